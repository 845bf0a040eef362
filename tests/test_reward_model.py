"""Training the reward model: its data, its losses, and what it refuses."""

import dataclasses
import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.commands.export import export
from mmrlhf.config import ExportConfig
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.adapters import Adapters
from mmrlhf.models.processes import Accelerator
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError, Preference
from mmrlhf.reward_model import build_models, train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model, save_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, untrained_role
from mmrlhf.training.reward_model.step import compute_gradients, preference_loss
from tests.helpers.runs import stopped_after
from tests.helpers.stages import ppo_config, reward_config


def test_train_reward_model_does_not_depend_on_micro_batches(tiny_vlm_path, examples, pairs, tmp_path):
    losses = []
    for tokens in (16384, 200):
        config = reward_config(tiny_vlm_path, tmp_path / str(tokens), micro_batch_tokens=tokens, max_steps=2)
        train_reward_model(config, pairs)
        losses.append([r["loss"] for r in read_jsonl(tmp_path / str(tokens) / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_metrics_of_processes_add_up_to_means_over_all_rows(vlm, tiny_vlm_path, pairs, tmp_path):
    config = reward_config(tiny_vlm_path, tmp_path)
    model, untrained = build_models(config, vlm)
    whole, *shares = (
        compute_gradients(config, Accelerator(), model, untrained, rows, batch_size=3)
        for rows in (pairs[:3], pairs[:2], pairs[2:3])
    )
    assert whole["ranked"] == pytest.approx(1)
    assert {name: sum(share[name] for share in shares) for name in whole} == pytest.approx(whole, rel=1e-4, abs=1e-6)


def test_train_reward_model_learns_and_scores_standalone(tiny_vlm_path, pairs, reward_dir):
    metrics = read_jsonl(reward_dir / "metrics.jsonl")
    assert metrics[-1]["accuracy"] == 1.0 and metrics[-1]["loss"] < metrics[0]["loss"]
    model = load_reward_model(str(reward_dir))
    groups = [AnswerGroup(p.images, p.prompt, (p.chosen, p.rejected), p.facts) for p in pairs]
    scores = torch.tensor(model.score(groups))
    assert (scores[:, 0] > scores[:, 1]).all()
    assert scores.mean().abs() < 1e-3 and abs(scores.std() - 1) < 1e-3  # normalised on these pairs
    alone = model.score([dataclasses.replace(groups[0], answers=(groups[0].answers[1],))])
    assert alone[0][0] == pytest.approx(float(scores[0, 1]), abs=1e-4)  # does not depend on the other answers


@pytest.mark.parametrize("position", ["before", "after"])
def test_reward_model_uses_facts_only_when_given(tiny_vlm_path, pairs, tmp_path, position):
    for facts in ("given", "none"):
        config = reward_config(tiny_vlm_path, tmp_path / facts, facts=facts, facts_position=position, max_steps=1)
        model = load_reward_model(str(train_reward_model(config, pairs)))
        one = AnswerGroup(pairs[0].images, pairs[0].prompt, (pairs[0].chosen,), pairs[0].facts)
        with_, without = model.score([one])[0], model.score([dataclasses.replace(one, facts=())])[0]
        assert (abs(with_[0] - without[0]) > 1e-4) == (facts == "given")


def test_train_reward_model_with_full_tuning_brings_its_own_base(tiny_vlm_path, examples, pairs, tmp_path):
    """A fully tuned reward model has its own base, and a policy on another base can train on it."""
    config = dataclasses.replace(
        reward_config(tiny_vlm_path, tmp_path / "reward"), tuning="full", learning_rate=3e-4, save_steps=2
    )
    path = train_reward_model(config, pairs, pairs)
    card = json.loads((path / "reward.json").read_text())
    assert card["base"] == "model" and not (path / "adapter_model.safetensors").exists()
    before, after = load_file(f"{tiny_vlm_path}/model.safetensors"), load_file(path / "model" / "model.safetensors")
    after = {name.replace("vision_tower.vision_model.", "vision_tower."): tensor for name, tensor in after.items()}
    changed = {k for k in before if not torch.allclose(before[k].float(), after[k].float(), atol=1e-6)}
    assert changed and not [k for k in changed if "vision" in k or "projector" in k]
    assert read_jsonl(path / "metrics.jsonl")[-1]["accuracy"] == 1.0
    ppo(ppo_config(tiny_vlm_path, path, tmp_path / "ppo", max_steps=1), examples)
    moved = shutil.move(path, tmp_path / "elsewhere")
    assert load_reward_model(str(moved)).role.vlm.name == str(tmp_path / "elsewhere" / "model")
    out = export(ExportConfig(model_name_or_path=tiny_vlm_path, adapter_path=str(moved), output_dir=str(tmp_path / "out")))
    assert load_reward_model(str(out)).role.vlm.fingerprint == card["base_fingerprint"]  # its reference rows score the same


@pytest.mark.parametrize("loss_type", ["bt_margin", "bt_label_smoothing", "rao_kupper"])
def test_train_reward_model_learns_with_other_losses_and_rankings(tiny_vlm_path, examples, tmp_path, loss_type):
    """Rank three answers, two of them tied; without ratings, bt_margin refuses the rows."""
    rows = [
        Preference(e.id, e.images, e.prompt, (e.answer, "There is a pink ring.", "That makes nine objects."), (1, 2, 2), (2.0, 0.5, 0.5), e.facts)
        for e in examples
    ]  # fmt: skip
    path = train_reward_model(reward_config(tiny_vlm_path, tmp_path / "r", loss_type=loss_type), rows, rows)
    metrics = read_jsonl(path / "metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[0]["loss"] and json.loads((path / "finished.json").read_text())["accuracy"] > 0.9
    if loss_type == "bt_margin":
        bare = [dataclasses.replace(r, ratings=()) for r in rows]
        with pytest.raises(InputError, match=r"row .* has no margin: loss_type bt_margin needs one in every row"):
            train_reward_model(reward_config(tiny_vlm_path, tmp_path / "bare", loss_type="bt_margin"), bare)
        assert not (tmp_path / "bare").exists()
        config = reward_config(tiny_vlm_path, tmp_path / "bare", loss_type="bt_margin", injected_claim_rate=0.3)
        with pytest.raises(InputError, match=r"injected claims have none: set injected_claim_rate 0"):
            train_reward_model(config, rows)


def test_preference_loss_weighs_a_ranking_like_a_pair():
    """Each comparison in a row of K different answers has weight 1 / C(K, 2)."""
    config = reward_config("x", "x", center_rewards_coefficient=0.0)
    three = Preference("a", (), (), ("1", "2", "3"), (1, 2, 3))
    two = Preference.from_pair("b", (), (), "1", "2")
    raw = torch.tensor([math.log(3), 0.0, -math.log(3), math.log(3), 0.0])
    loss, metrics = preference_loss(config, [three, two], raw)
    gaps = [math.log(4 / 3), math.log(10 / 9), math.log(4 / 3)]  # sigmoid of log 3, log 9, log 3
    assert loss.item() == pytest.approx(sum(gaps) / 3 + math.log(4 / 3)) and metrics["accuracy"] == pytest.approx(2.0)
    tie = Preference("c", (), (), ("1", "2"), (1, 1))
    # Ties are left out unless the loss models them.
    assert preference_loss(config, [tie], torch.tensor([5.0, 0.0]))[0].item() == 0.0
    partly_tied = Preference("d", (), (), ("1", "2", "3"), (1, 1, 3))
    loss, metrics = preference_loss(config, [partly_tied, tie], torch.tensor([0.0, 5.0, 0.0, 9.0, 0.0]))
    # Two comparisons are left, of half the row's weight each; the tie is neither right nor wrong.
    assert loss.item() == pytest.approx((math.log(2) + math.log1p(math.exp(-5))) / 2)
    assert metrics["accuracy"] == pytest.approx(0.5) and metrics["ranked"] == pytest.approx(1.0)


def test_train_reward_model_refuses_rows_that_teach_nothing(tiny_vlm_path, examples, tmp_path):
    tie = Preference("c", examples[0].images, examples[0].prompt, ("1", "2"), (1, 1))
    with pytest.raises(InputError, match="has ties only, and only loss_type rao_kupper learns from ties"):
        train_reward_model(reward_config(tiny_vlm_path, tmp_path / "ties"), [tie])
    longer = Preference.from_pair("l", tie.images, tie.prompt, "one two three", "one")
    with pytest.raises(InputError, match="balance_lengths leaves no row"):
        train_reward_model(reward_config(tiny_vlm_path, tmp_path / "none", balance_lengths=True), [longer])


# ---- judges that stay close to the untrained review ----------------------------------------------


def raw_scores(model, pairs):
    """Return a model's scores before normalisation, of both answers of each pair."""
    bare = dataclasses.replace(model, mean=0.0, std=1.0)
    return torch.tensor(bare.score([AnswerGroup(p.images, p.prompt, p.answers, p.facts, p.id) for p in pairs]))


@pytest.fixture(scope="module")
def untrained_dir(tiny_vlm_path, pairs, tmp_path_factory):
    """The untrained review as a reward model: no steps."""
    return train_reward_model(reward_config(tiny_vlm_path, tmp_path_factory.mktemp("untrained"), max_steps=0), pairs)


def test_no_steps_save_the_untrained_review(vlm, pairs, untrained_dir):
    """With a prior, no correction is exactly 0: the scores are the base's own log-odds."""
    untrained = load_reward_model(str(untrained_dir))
    base = dataclasses.replace(untrained, role=untrained_role(Adapters(vlm)))
    assert torch.equal(raw_scores(untrained, pairs), raw_scores(base, pairs))
    assert json.loads((untrained_dir / "finished.json").read_text())["steps"] == 0
    j = json.loads((untrained_dir / "reward.json").read_text())["j"]
    assert j["before"] == j["after"] and j["change"]["value"] == 0


def test_untrained_prior_starts_at_the_untrained_review_and_is_saved(tiny_vlm_path, pairs, untrained_dir, tmp_path):
    untrained = raw_scores(load_reward_model(str(untrained_dir)), pairs)
    start = reward_config(tiny_vlm_path, tmp_path / "start", untrained_prior=True, max_steps=0)
    assert torch.equal(raw_scores(load_reward_model(str(train_reward_model(start, pairs))), pairs), untrained)
    trained_dir = train_reward_model(dataclasses.replace(start, output_dir=str(tmp_path / "trained"), max_steps=2), pairs)
    trained = load_reward_model(str(trained_dir))  # also compares reference scores
    correction_alone = dataclasses.replace(trained, prior=None)
    assert raw_scores(trained, pairs) == pytest.approx(untrained + raw_scores(correction_alone, pairs), abs=1e-4)
    assert not torch.allclose(raw_scores(trained, pairs), untrained, atol=1e-3)


def test_preference_loss_penalises_the_distance_to_the_untrained_scores():
    config = reward_config("x", "x", center_rewards_coefficient=0.0, untrained_score_coefficient=0.5)
    rows = [Preference.from_pair("a", (), (), "1", "2"), Preference("b", (), (), ("1", "2", "3"), (1, 2, 3))]
    scores, untrained = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]), torch.tensor([3.0, 1.0, 3.0, 0.0, 0.0])
    plain, _ = preference_loss(config, rows, scores)
    penalised, metrics = preference_loss(config, rows, scores, untrained)
    distance = (4 + 1) / 2 + 9 / 3  # mean squares of each row's answers
    assert metrics["distance_to_untrained"] == pytest.approx(distance)
    assert penalised.item() - plain.item() == pytest.approx(0.5 * distance)


def test_untrained_score_coefficient_keeps_scores_near_the_untrained_ones(tiny_vlm_path, pairs, untrained_dir, tmp_path):
    untrained, distances = raw_scores(load_reward_model(str(untrained_dir)), pairs), []
    for coefficient in (0.0, 10.0):
        settings = {"tuning": "head", "learning_rate": 2e-2, "max_steps": 12, "untrained_score_coefficient": coefficient}
        config = reward_config(tiny_vlm_path, tmp_path / str(coefficient), **settings)
        trained = load_reward_model(str(train_reward_model(config, pairs)))
        distances.append((raw_scores(trained, pairs) - untrained).pow(2).mean().item())
    assert distances[1] < distances[0] / 4, distances
    assert read_jsonl(tmp_path / "10.0" / "metrics.jsonl")[0]["distance_to_untrained"] == 0  # the first step starts there


def test_tuning_head_trains_the_head_alone(tiny_vlm_path, pairs, untrained_dir, tmp_path):
    path = train_reward_model(reward_config(tiny_vlm_path, tmp_path, tuning="head", learning_rate=1e-2), pairs)
    before, after = (load_file(d / "adapter_model.safetensors") for d in (untrained_dir, path))
    assert all(torch.equal(before[k], after[k]) for k in before) and not any(v.any() for k, v in after.items() if "lora_B" in k)
    heads = [load_file(d / "head.safetensors")["weight"] for d in (untrained_dir, path)]
    assert not torch.equal(*heads)
    losses = [row["loss"] for row in read_jsonl(path / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_early_stopping_keeps_the_first_of_equal_measurements(tiny_vlm_path, pairs, untrained_dir, tmp_path):
    settings = {"eval_steps": 1, "load_best_model_at_end": True, "early_stopping_patience": 2}
    config = reward_config(tiny_vlm_path, tmp_path, **settings, learning_rate=1e-12)  # accuracy stays as it is
    path = train_reward_model(config, pairs, pairs[:4])
    assert [row["step"] for row in read_jsonl(path / "metrics.jsonl")] == [0, 1, 2]
    assert json.loads((path / "finished.json").read_text())["steps"] == 2
    assert torch.equal(*(raw_scores(load_reward_model(str(d)), pairs) for d in (path, untrained_dir)))


def test_load_best_model_at_end_keeps_the_best_weights_and_resumes(tiny_vlm_path, pairs, tmp_path):
    settings = {"untrained_prior": True, "learning_rate": 0.3, "lr_scheduler_type": "constant", "tuning": "head"}
    measuring = {"eval_steps": 1, "load_best_model_at_end": True, "metric_for_best_model": "loss", "save_steps": 1}
    config = reward_config(tiny_vlm_path, tmp_path / "whole", **settings, **measuring)
    whole = train_reward_model(config, pairs, pairs[:4])
    measured = [row["eval/loss"] for row in read_jsonl(whole / "metrics.jsonl")]
    scores = raw_scores(load_reward_model(str(whole)), pairs[:4])
    assert torch.nn.functional.softplus(scores[:, 1] - scores[:, 0]).mean().item() == pytest.approx(min(measured), abs=1e-4)
    killed = dataclasses.replace(config, output_dir=str(tmp_path / "killed"))
    with stopped_after(step=2):
        train_reward_model(killed, pairs, pairs[:4])
    resumed = train_reward_model(killed, pairs, pairs[:4])
    for name in ("adapter_model.safetensors", "head.safetensors", "reward.json", "finished.json"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name


def test_a_reward_model_trains_on_from_another_round(tiny_vlm_path, pairs, reward_dir, untrained_dir, tmp_path):
    config = reward_config(tiny_vlm_path, tmp_path / "again", adapter_path=str(reward_dir), max_steps=0)
    again = load_reward_model(str(train_reward_model(config, pairs)))
    assert raw_scores(again, pairs) == pytest.approx(raw_scores(load_reward_model(str(reward_dir)), pairs), abs=1e-5)
    j = json.loads((tmp_path / "again" / "reward.json").read_text())["j"]
    assert j["before"] == json.loads((untrained_dir / "reward.json").read_text())["j"]["before"]  # that of the untrained review
    with pytest.raises(InputError, match='is a reward model with another facts than "none": give the one of'):
        train_reward_model(dataclasses.replace(config, facts="none", output_dir=str(tmp_path / "n")), pairs)
    with pytest.raises(InputError, match="trains on with tuning lora or head only"):
        train_reward_model(dataclasses.replace(config, tuning="full", output_dir=str(tmp_path / "n")), pairs)


def test_j_is_measured_on_the_answers_where_their_truth_is_known(tiny_vlm_path, pairs, tmp_path):
    """Without steps, J is of the untrained review: its scores of answers without each claim."""
    answers = ("There is a cat. There is a boat.", "There is a cat. There is a dog.")
    pairs = [Preference.from_pair(p.id, p.images, p.prompt, *answers) for p in pairs]
    facts = [{"kind": kind, "text": text} for kind, text in (("object", "cat"), ("object", "boat"), ("absent", "dog"))]
    truth = tmp_path / "truth.jsonl"
    truth.write_text("".join(json.dumps({"id": p.id, "facts": facts}) + "\n" for p in pairs))
    config = reward_config(tiny_vlm_path, tmp_path / "run", truth_file=str(truth), max_steps=0)
    j = json.loads((train_reward_model(config, pairs) / "reward.json").read_text())["j"]
    assert j["measured_on"] == "claims of answers" and j["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (j["before"]["object"]["n_true"], j["before"]["object"]["n_false"]) == (3 * len(pairs), len(pairs))
    with pytest.raises(InputError, match=r"truth\.jsonl decides no claim in the answers of"):
        other = [dataclasses.replace(p, id=f"x{p.id}") for p in pairs]
        train_reward_model(dataclasses.replace(config, output_dir=str(tmp_path / "n")), other)
    with pytest.raises(InputError, match=r"truth\.jsonl has the facts that the reward model reads"):
        train_reward_model(dataclasses.replace(config, output_dir=str(tmp_path / "n"), facts_file=str(truth)), pairs)


def test_rows_from_python_are_measured_on_the_held_out_file(tiny_vlm_path, pairs, tmp_path):
    held_out = tmp_path / "held.jsonl"
    held_out.write_text(json.dumps({"prompt": "What is it?", "images": [], "chosen": "A cup.", "rejected": "A dog."}) + "\n")
    config = reward_config(tiny_vlm_path, tmp_path / "run", max_steps=1, eval_steps=1, eval_dataset_name=str(held_out))
    finished = json.loads((train_reward_model(config, pairs) / "finished.json").read_text())
    assert len(finished["right"]) == 1 and finished["clusters"] == [0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"untrained_prior": True, "tuning": "full"}, "untrained_prior needs the untrained base"),
        ({"untrained_score_coefficient": 1.0, "head_init": "random"}, "untrained_score_coefficient is about the base's own Yes"),
        ({"eval_steps": 1}, "eval_steps measures on rows that are not trained on: give --eval_dataset_name"),
        ({"load_best_model_at_end": True}, "give --eval_steps"),
        (
            {"label_smoothing": 0.2},
            "label_smoothing is for loss_type bt_label_smoothing, and this is bradley_terry; leave it out",
        ),
        ({"loss_type": "bt_margin", "tie_threshold": 1.0}, "tie_threshold is for loss_type rao_kupper"),
        ({"early_stopping_patience": 1}, "give --load_best_model_at_end true"),
    ],
)
def test_train_reward_model_refuses_contradictions_before_it_loads(settings, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train_reward_model(reward_config("no such model", tmp_path / "r", **settings), [])


def test_ppo_refuses_a_judge_that_training_made_worse(tiny_vlm_path, examples, pairs, untrained_dir, tmp_path, capsys):
    model = load_reward_model(str(untrained_dir))
    rates = {
        name: {"all": {"j": j, "tpr": j, "fpr": 0.0, "n_false": 9, "n_true": 9}} for name, j in (("before", 0.75), ("after", 0.5))
    }
    groups = [AnswerGroup(p.images, p.prompt, p.answers, p.facts, p.id) for p in pairs[:2]]
    on_answers, on_injected = "claims of answers", "injected claims"
    for name, measured_on, high in (
        ("worse", on_answers, -0.01), ("unclear", on_answers, 0.01), ("worse_on_injected", on_injected, -0.01),
    ):  # fmt: skip
        model.j = {"measured_on": measured_on, **rates, "change": {"value": -0.25, "low": -0.4, "high": high}}
        save_reward_model(model, tmp_path / name, groups)
    config = ppo_config(tiny_vlm_path, tmp_path / "worse", tmp_path / "ppo", max_steps=0, allow_worse_reward_model=False)
    with pytest.raises(
        InputError, match=r"worse than before its training \(J 0\.50, before 0\.75\): use .*--allow_worse_reward_model true"
    ):
        ppo(config, examples)
    ppo(dataclasses.replace(config, allow_worse_reward_model=True), examples)
    note = "tells injected false claims from true ones worse than before its training (J 0.50, before 0.75)"
    for name in ("unclear", "worse_on_injected"):
        capsys.readouterr()
        ppo(
            dataclasses.replace(config, reward_model_path=str(tmp_path / name), output_dir=str(tmp_path / f"ppo_{name}")),
            examples,
        )
        assert (note in capsys.readouterr().out) == (name == "worse_on_injected")
