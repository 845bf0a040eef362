"""Feedback: pairs of a model's own answers, labelled claim by claim."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from mmrlhf import scenes
from mmrlhf.cli import main
from mmrlhf.datasets import read_preferences
from mmrlhf.feedback import feedback
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import InputError, Preference
from mmrlhf.verifiers.base import PlattScaling, save_calibration
from tests.helpers.fake_server import FAKE_MODEL, chat_completion, scripted_server
from tests.helpers.feedback_runs import LEXICON, feedback_config, true_utility, write_recipe
from tests.helpers.tiny_clip import save_tiny_clip

ROUND_FILES = ("answers.jsonl", "verdicts.jsonl", "scores.jsonl", "pairs.jsonl", "dropped.jsonl", "labels.json", "report.html")


# ---- one round -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def labelled_round(tiny_vlm_path, examples, tmp_path_factory):
    """A run of one round that only labels."""
    folder = tmp_path_factory.mktemp("labelled")
    feedback(feedback_config(tiny_vlm_path, folder), examples[:4], true_utility)
    return folder


def test_every_step_leaves_its_file(labelled_round):
    folder = labelled_round / "round_1"
    assert all((folder / name).is_file() for name in ROUND_FILES)
    answers, scores = read_jsonl(folder / "answers.jsonl"), read_jsonl(folder / "scores.jsonl")
    assert [(row["row"], row["number"]) for row in answers] == [(row, number) for row in range(4) for number in range(4)]
    summary = json.loads((folder / "labels.json").read_text())
    pairs, dropped = read_jsonl(folder / "pairs.jsonl"), read_jsonl(folder / "dropped.jsonl")
    assert summary["pairs"]["kept"] == len(pairs) > 0
    assert summary["pairs"]["compared"] == len(pairs) + len(dropped)
    assert sum(summary["pairs"]["dropped"].values()) == len(dropped)
    for row in scores:
        assert row["utility"] == row["supported"] - 4 * row["contradicted"]
        assert row["precision"] is None or 0 <= row["precision"] <= 1
    by_place = {(row["row"], row["number"]): row for row in scores}
    for row in pairs:
        index, better, worse = _place(row["id"])
        gap = by_place[index, better]["utility"] - by_place[index, worse]["utility"]
        assert row["margin"] == gap >= 1
        assert row["chosen"][0]["content"][0]["text"] == answers[4 * index + better]["answer"]
        assert row["rejected"][0]["content"][0]["text"] == answers[4 * index + worse]["answer"]
    assert read_jsonl(labelled_round / "metrics.jsonl")[0]["feedback/kept"] == len(pairs)
    assert not (labelled_round / "policy").exists()


def _place(pair_id):
    """Return row and answer numbers of a pair: selection-INDEX-ROUND-BETTER-WORSE."""
    _, index, _, better, worse = pair_id.split("-")
    return int(index), int(better), int(worse)


def test_labels_are_compared_with_the_truth(labelled_round, examples):
    summary = json.loads((labelled_round / "round_1" / "labels.json").read_text())
    scores = read_jsonl(labelled_round / "round_1" / "scores.jsonl")
    answers = read_jsonl(labelled_round / "round_1" / "answers.jsonl")
    truth = {
        (row["row"], row["number"]): true_utility(examples[row["row"]], row["answer"]) for row in answers if not row["unusable"]
    }
    assert {(r["row"], r["number"]): r["true_utility"] for r in scores if r["true_utility"] is not None} == truth
    gaps = [
        truth[i, b] - truth[i, w]
        for i, b, w in map(_place, (r["id"] for r in read_jsonl(labelled_round / "round_1/pairs.jsonl")))
    ]
    clear = [gap > 0 for gap in gaps if abs(gap) >= 1]
    assert summary["agreement"]["pairs"]["clear"]["n"] == len(clear)
    assert summary["agreement"]["pairs"]["clear"]["value"] == pytest.approx(sum(clear) / len(clear))


def test_the_pairs_are_read_as_they_are_by_reward_and_dpo(tiny_vlm_path, labelled_round, tmp_path):
    path = str(labelled_round / "round_1" / "pairs.jsonl")
    pairs = read_preferences(path)
    assert all(isinstance(pair, Preference) and pair.facts and pair.images and pair.ratings for pair in pairs)
    common = ["--model", tiny_vlm_path, "--data", path, "--max_steps", "1", "--per_device_train_batch_size", "2", "--lora_r", "4"]
    assert main(["reward", *common, "--out", str(tmp_path / "reward")]) == 0
    assert main(["dpo", *common, "--out", str(tmp_path / "dpo")]) == 0


def test_a_larger_penalty_never_prefers_more_false_claims(tiny_vlm_path, examples, tmp_path, labelled_round):
    """A sign flip of the penalty would choose the answers with errors."""
    copy = shutil.copytree(labelled_round / "round_1", tmp_path / "run" / "round_1")
    for name in ("pairs.jsonl", "dropped.jsonl", "labels.json"):
        (copy / name).unlink()
    feedback(feedback_config(tiny_vlm_path, tmp_path / "run", false_claim_penalty=100.0), examples[:4])
    scores = {(row["row"], row["number"]): row for row in read_jsonl(copy / "scores.jsonl")}
    for index, better, worse in map(_place, (row["id"] for row in read_jsonl(copy / "pairs.jsonl"))):
        assert scores[index, better]["contradicted"] <= scores[index, worse]["contradicted"]


def test_prompts_of_a_file_keep_their_paths_and_the_facts_file_is_the_verifiers(tiny_vlm_path, tmp_path, capsys):
    scenes.export_dataset(str(tmp_path / "scenes"), num_rows=4)
    command = [
        "feedback",
        "--model",
        tiny_vlm_path,
        "--data",
        str(tmp_path / "scenes/prompts.jsonl"),
        "--out",
        str(tmp_path / "run"),
    ]
    flags = ["--num_generations", "4", "--response_length", "60", "--no-balance_lengths", "--lexicon_file", LEXICON]
    assert main([*command, *flags]) == 0
    out = capsys.readouterr().out
    assert "comparisons are pairs" in out and f"--data {tmp_path}/run/round_1/pairs.jsonl" in out
    pairs = read_preferences(str(tmp_path / "run/round_1/pairs.jsonl"), image_folder=str(tmp_path / "scenes"))
    rows = read_jsonl(tmp_path / "run" / "round_1" / "pairs.jsonl")
    assert [row["images"] for row in rows] == [[f"images/{'-'.join(row['id'].split('-')[:2])}.png"] for row in rows]
    assert all(Path(str(pair.images[0].path)).is_file() for pair in pairs)


def test_truth_may_be_facts_kept_apart(tiny_vlm_path, examples, tmp_path):
    truth = tmp_path / "truth.jsonl"
    rows = []
    for example in examples[:3]:
        scene = scenes.generate_scene("selection", int(example.id.split("-")[1]), 0)
        objects = [{"kind": "object", "text": f"{o.size} {o.colour} {o.shape}"} for o in scene.objects]
        rows.append({"image": example.id, "facts": objects})
    truth.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = [
        dataclasses.replace(e, images=tuple(dataclasses.replace(i, recorded_name=e.id) for i in e.images)) for e in examples[:3]
    ]
    feedback(feedback_config(tiny_vlm_path, tmp_path / "run", truth_file=str(truth)), named)
    scores = read_jsonl(tmp_path / "run" / "round_1" / "scores.jsonl")
    assert any(row["true_utility"] for row in scores)
    assert "agreement" in json.loads((tmp_path / "run" / "round_1" / "labels.json").read_text())


def test_the_model_itself_may_verify(tiny_vlm_path, examples, tmp_path):
    feedback(feedback_config(tiny_vlm_path, tmp_path, verifier="facts+vlm"), examples[:1])
    verdicts = [v for row in read_jsonl(tmp_path / "round_1" / "verdicts.jsonl") for v in row["verdicts"]]
    assert any("says yes to" in v["evidence"] or "says no to" in v["evidence"] for v in verdicts)


def test_an_open_clip_model_may_verify(tiny_vlm_path, examples, tmp_path):
    save_calibration(PlattScaling({"object": (1.0, 0.0)}), save_tiny_clip(tmp_path / "clip") / "calibration.json")
    settings = {"verifier": "facts+clip", "clip_model": str(tmp_path / "clip")}
    rows = [dataclasses.replace(examples[0], facts=examples[0].facts[:1])]  # the other claims are left to open_clip
    feedback(feedback_config(tiny_vlm_path, tmp_path / "run", **settings), rows)
    verdicts = [v for row in read_jsonl(tmp_path / "run/round_1/verdicts.jsonl") for v in row["verdicts"]]
    by_clip = [v for v in verdicts if "open_clip" in v["evidence"]]
    decided = [v for v in by_clip if v["value"] != "unknown"]
    assert decided and all(v["claim"]["kind"] == "object" for v in decided)  # the calibrated kind


def test_other_settings_are_refused_and_a_finished_run_is_left_alone(tiny_vlm_path, examples, labelled_round, tmp_path, capsys):
    copy = shutil.copytree(labelled_round, tmp_path / "copy")
    with pytest.raises(InputError, match="other settings, min_gap"):
        feedback(feedback_config(tiny_vlm_path, copy, min_gap=2.0), examples[:4])
    with pytest.raises(InputError, match="other inputs, rows"):
        feedback(feedback_config(tiny_vlm_path, copy), examples[:5])
    capsys.readouterr()
    assert feedback(feedback_config(tiny_vlm_path, copy), examples[:4]) == copy / "round_1" / "pairs.jsonl"
    assert "is finished, nothing to do" in capsys.readouterr().out


# ---- a judge -------------------------------------------------------------------------------------


def test_a_judge_labels_and_is_asked_nothing_twice(tiny_vlm_path, examples, tmp_path):
    def says(request):
        question = request["messages"][0]["content"][-1]["text"]
        return 200, chat_completion("Yes." if "ring" in question or "object" in question else "No.")

    with scripted_server(says) as server:
        config = feedback_config(tiny_vlm_path, tmp_path / "run", verifier="judge", judge=server.url)
        feedback(config, examples[:2])
        asked = len(server.requests)
        copy = tmp_path / "again"
        copy.mkdir()
        shutil.copy(tmp_path / "run" / "judgments.jsonl", copy)
        feedback(dataclasses.replace(config, output_dir=str(copy)), examples[:2])
        assert len(server.requests) == asked > 0
    pairs = [(tmp_path / name / "round_1" / "pairs.jsonl").read_bytes() for name in ("run", "again")]
    assert pairs[0] == pairs[1]
    assert read_jsonl(tmp_path / "run" / "judgments.jsonl")[0]["model"] == FAKE_MODEL


def test_a_judge_that_cannot_be_reached_stops_the_run_and_the_answers_are_kept(tiny_vlm_path, examples, tmp_path, monkeypatch):
    monkeypatch.setattr("mmrlhf.evaluation.openai_client.time.sleep", lambda seconds: None)  # between retries
    config = feedback_config(tiny_vlm_path, tmp_path, verifier="judge", judge="http://127.0.0.1:9/v1", judge_model="m")
    with pytest.raises(InputError, match=r"m at http://127\.0\.0\.1:9/v1 cannot be reached"):
        feedback(config, examples[:1])
    assert (tmp_path / "round_1" / "answers.jsonl").is_file() and not (tmp_path / "round_1" / "pairs.jsonl").exists()


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 1}, "num_generations 1 leaves nothing to compare: sample at least 2"),
        ({"verifier": "nobody"}, "verifier: there is no verifier 'nobody'; use facts, clip, vlm, judge"),
        ({"verifier": "facts+facts"}, "named twice"),
        ({"verifier": "clip"}, "needs an open_clip model: give --clip_model"),
        ({"verifier": "judge"}, "verifier judge needs a server: give --judge http://HOST:PORT/v1"),
        ({"judge": "http://h/v1"}, "judge is given, and verifier facts does not ask it"),
        (
            {"verifier": "judge", "judge": "http://me:secret@h/v1"},
            "holds a password, which the run.s files would keep: set OPENAI_API_KEY",
        ),
        ({"unknown_claim_costs": "object=2"}, "unknown_claim_costs has 'object=2'"),
        ({"response_length": 4096}, "leaves no room for a prompt within max_length 2048"),
        ({"num_rounds": 3}, "num_rounds 3 with algorithm none would label answers of the same model again"),
        (
            {"num_rounds": 3, "algorithm": "dpo"},
            r"nothing chooses it: give eval_benchmarks with held-out prompts \(a selection set\)",
        ),
        ({"metric_for_best_model": "scenes/utility"}, "choose a trained policy: give --algorithm dpo or ppo"),
        ({"algorithm": "dpo", "ppo_config": "demo/ppo"}, "ppo_config is a recipe that algorithm dpo does not read"),
        ({"algorithm": "dpo", "dpo_config": "demo/dpoo"}, "there is no demo/dpoo in configs: did you mean demo/dpo"),
        ({"algorithm": "dpo", "dpo_config": "demo/ppo"}, "cliprange_value"),
        ({"min_new_tokens": 200}, "min_new_tokens 200 is more than response_length [0-9]+, so no answer could end"),
        ({"algorithm": "dpo", "metric_for_best_model": "scenes/utility"}, "metric_for_best_model"),
        (
            {"algorithm": "dpo", "eval_benchmarks": "scenes", "eval_limit": 1, "metric_for_best_model": "scenes/nice"},
            "scenes does not give it",
        ),
        ({"human_weight": 2.0}, "human_weight is about pairs labelled by people: give human_dataset_name"),
        ({"human_dataset_name": "h"}, "algorithm none learns nothing: give dpo or ppo"),
        ({"adapter_path": "absent"}, "absent"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(tmp_path, examples, settings, message):
    with pytest.raises(InputError, match=message) as refusal:
        feedback(feedback_config("no-such-model", tmp_path / "new", **settings), examples)
    assert "\n" not in str(refusal.value) and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("algorithm", "recipe", "settings", "message"),
    [
        ("dpo", "dpo", {"label_smoothing": 0.1, "loss_type": "ipo"}, "label_smoothing is for"),
        ("ppo", "reward", {"loss_type": "bt_margin", "injected_claim_rate": 0.3}, "injected claims have none"),
        ("ppo", "ppo", {"num_generations": 1, "advantage_estimator": "rloo"}, "num_generations"),
        ("ppo", "ppo", {"reward_terms": "nothing=1"}, "reward_terms names nothing, which does not exist"),
    ],
)
def test_recipes_that_a_stage_refuses_are_refused_before_anything_is_loaded(
    tmp_path, examples, algorithm, recipe, settings, message
):
    path = write_recipe(tmp_path, recipe, **settings)
    config = feedback_config("no-such-model", tmp_path / "new", algorithm=algorithm, **{f"{recipe}_config": path})
    with pytest.raises(InputError, match=message):
        feedback(config, examples)
    assert not (tmp_path / "new").exists()


def test_a_recipe_of_dpo_may_measure_held_out_pairs(tmp_path, examples):
    """The model is the first thing that is missing."""
    path = write_recipe(tmp_path, "dpo", eval_dataset_name="held.jsonl", eval_steps=5)
    with pytest.raises(InputError, match="no-such-model"):
        feedback(feedback_config("no-such-model", tmp_path / "new", algorithm="dpo", dpo_config=path), examples)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({}, {"facts": ()}, "verifier facts compares claims with facts, and none of the 3 rows has any: give --facts_file"),
        ({"verifier": "vlm"}, {"images": ()}, r"row selection-000000: verifier vlm looks at the image, and the row has none"),
        ({"verifier": "judge", "judge": "http://h/v1"}, {"images": ()}, "verifier judge looks at the image"),
    ],
)
def test_rows_that_the_verifier_cannot_judge_are_refused(tmp_path, examples, settings, changes, message):
    rows = [dataclasses.replace(example, **changes) for example in examples[:3]]
    with pytest.raises(InputError, match=message):
        feedback(feedback_config("no-such-model", tmp_path / "new", **settings), rows)
    assert not (tmp_path / "new").exists()


def test_a_gap_that_drops_all_pairs_stops_the_run_and_says_the_widest(tiny_vlm_path, examples, tmp_path):
    with pytest.raises(
        InputError, match=r"round 1 keeps none of \d+ comparisons: .*gap below min_gap; the widest gap is \d+: lower"
    ):
        feedback(feedback_config(tiny_vlm_path, tmp_path / "gap", min_gap=1e6), examples[:1])
    config = feedback_config(tiny_vlm_path, tmp_path / "cut", response_length=2)
    with pytest.raises(
        InputError, match=r"no prompt has two usable answers \(4 cut off at response_length\): raise response_length"
    ):
        feedback(config, examples[:1])


def test_truth_that_the_verifier_reads_is_refused(tmp_path, examples):
    (tmp_path / "facts.jsonl").write_text(json.dumps({"image": "a", "objects": ["ring"]}) + "\n")
    facts = {"facts_file": str(tmp_path / "facts.jsonl"), "truth_file": str(tmp_path / "facts.jsonl")}
    in_the_rows = {"dataset_name": str(tmp_path / "facts.jsonl"), "truth_file": str(tmp_path / "facts.jsonl")}
    for settings in (facts, in_the_rows):
        with pytest.raises(InputError, match="has the facts that the verifier reads"):
            feedback(feedback_config("m", tmp_path / "new", **settings), examples)


def test_truth_about_other_images_is_refused(tmp_path, examples):
    (tmp_path / "facts.jsonl").write_text(
        json.dumps({"image": "elsewhere", "facts": [{"kind": "object", "text": "ring"}]}) + "\n"
    )
    with pytest.raises(InputError, match="has no facts about the images of x: name images as the rows do"):
        feedback(feedback_config("m", tmp_path / "new", truth_file=str(tmp_path / "facts.jsonl")), examples)
