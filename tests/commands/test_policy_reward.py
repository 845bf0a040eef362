"""The reward that reward-eval measures: ensembles and claims by hand, claim rewards alone."""

import json
from types import SimpleNamespace

import pytest

from mmrlhf.claims import load_lexicon
from mmrlhf.commands.policy_outlook import fact_conditions
from mmrlhf.commands.policy_reward import Ensemble, check_reward, load_ensemble, reads_facts, weighted_score
from mmrlhf.commands.reward_eval import _answer_group, reward_eval
from mmrlhf.records import Fact, InputError
from mmrlhf.report.closing import closing_text
from tests.commands.test_policy_outlook import make_config, make_group, write_lines
from tests.report.test_page import ParsedPage

CLAIMS_ALONE = {"reward_model_path": None, "dataset_name": None}


def make_model(*scores, facts="none", temperature=1.0):
    """Return a reward model that gives these scores to the answers of every group."""
    return SimpleNamespace(score=lambda groups: [list(scores) for _ in groups], facts=facts, temperature=temperature)


def test_an_ensemble_scores_by_mean_minus_deviations():
    models = [make_model(1.0, 0.0), make_model(3.0, 0.0, facts="given", temperature=3.0)]
    groups = [make_group("A cup.", "A dog.")]
    assert Ensemble(models).score(groups) == [[2.0, 0.0]]
    assert Ensemble(models, 0.5).score(groups) == [[1.5, 0.0]]  # the deviation of 1 and 3 is 1
    assert Ensemble(models[:1], 0.5).score(groups) == [[1.0, 0.0]]  # one model does not disagree
    assert (Ensemble(models).facts, Ensemble(models[:1]).facts, Ensemble(models).temperature) == ("given", "none", 2.0)
    score = weighted_score(Ensemble(models), {"fact_rm": 2.0, "hallucination": -1.0}, load_lexicon())
    assert score([make_group("A cup.", "A dog.", facts=(Fact("absent", "dog"),))]) == [[4.0, -1.0]]


def test_a_reward_depends_on_facts_if_a_model_or_a_claim_does():
    blind, reader = Ensemble([make_model()]), Ensemble([make_model(), make_model(facts="given")])
    assert [reads_facts(e, {"fact_rm": 1.0}) for e in (blind, reader)] == [False, True]
    assert reads_facts(blind, {"fact_rm": 1.0, "coverage": 1.0}) and reads_facts(None, {"coverage": 1.0})


def test_claim_rewards_are_scored_by_each_condition_of_the_facts(tmp_path):
    facts = (Fact("object", "red cup"), Fact("absent", "dog"))
    groups = [
        make_group("A red cup.", "A dog and a red cup.", facts=facts),
        make_group("A hat.", facts=(), id_="b", image="b.png"),
    ]
    weights = check_reward(make_config(tmp_path, reward_terms="hallucination=-1, coverage=0.5"))
    score = weighted_score(None, weights, load_lexicon())
    conditions = fact_conditions(groups, True)
    assert list(conditions) == ["with facts", "without facts", "with another image's facts"]
    assert score(conditions["with facts"]) == [[1.0, 0.0], [0.0]]  # cup and red are 0.5 each, the dog costs 1
    assert score(conditions["without facts"]) == [[0.0, 0.0], [0.0]]
    assert conditions["with another image's facts"][0].facts == () and conditions["with another image's facts"][1].facts == facts
    assert list(fact_conditions(groups, False)) == ["without facts"]


def test_unknown_claims_cost_the_false_rate_of_their_kind():
    facts = (Fact("object", "cup"), Fact("absent", "dog"))
    groups = [make_group("A cup.", "A dog.", "A red hat.", facts=facts)]
    score = weighted_score(None, {"hallucination": -1.0}, load_lexicon(), "object=0.25, attribute=0.5")
    assert score(groups) == [[0.0, -1.0, -0.75]]  # nobody knows of a hat, nor of its colour
    without = [make_group(*groups[0].answers)]
    assert score(without) == [[-0.25, -0.25, -0.75]]
    assert weighted_score(None, {"hallucination": -1.0}, load_lexicon())(without) == [[0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_terms": "fact_rm=1, length=-0.1"}, "reward_terms names length"),
        ({"reward_terms": "coverage@clip=1"}, "reward_terms names coverage@clip"),
        ({"unknown_claim_costs": "object=0.1"}, "unknown_claim_costs is for the claim reward hallucination"),
        ({"uncertainty_penalty": 2.0}, "uncertainty_penalty is for several reward models"),
        (
            CLAIMS_ALONE | {"reward_terms": "coverage=1", "answers": "x", "uncertainty_penalty": 2.0},
            "uncertainty_penalty is for several reward models",
        ),
        (
            {
                "reward_model_path": "r,s",
                "dataset_name": None,
                "reward_terms": "coverage=1",
                "answers": "x",
                "uncertainty_penalty": 2.0,
            },
            "uncertainty_penalty is for several reward models",
        ),
        ({"dataset_name": None}, "nothing to measure the reward model on: give --dataset_name"),
        (CLAIMS_ALONE | {"answers": "x"}, "reward_terms names fact_rm: give --reward_model_path, or measure claim rewards alone"),
        (CLAIMS_ALONE | {"reward_terms": "coverage=1"}, "claim rewards are measured on sampled answers: give --answers"),
        ({"reward_model_path": None, "reward_terms": "coverage=1", "answers": "x"}, "dataset_name d has preferences"),
    ],
)
def test_rewards_that_cannot_be_measured_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        check_reward(make_config(tmp_path, **settings))


def test_a_penalty_of_an_ensemble_is_accepted_on_pairs_or_as_part_of_the_reward(tmp_path):
    penalised = {"reward_model_path": "r,s", "uncertainty_penalty": 2.0}
    check_reward(make_config(tmp_path, **penalised, reward_terms="coverage=1"))  # its pairs are scored
    check_reward(make_config(tmp_path, **penalised, dataset_name=None, answers="x"))


def write_answers(tmp_path, num_prompts=20):
    """Write answers about cups, one true and one false to each prompt, and the whole truth.

    The row's own facts decide about the dog, not about the colour of the cup.
    """
    answers, truth = [], []
    for index in range(num_prompts):
        facts = [{"kind": "object", "text": "cup"}, {"kind": "absent", "text": "dog"}]
        row = {"id": str(index), "images": [], "prompt": "What is it?", "facts": facts}
        answers += [{**row, "answer": "A red cup."}, {**row, "answer": "A blue cup and a dog."}]
        truth.append({"id": row["id"], "facts": [{"kind": "object", "text": "red cup"}, facts[1]]})
    return {
        "answers": write_lines(tmp_path / "answers.jsonl", answers),
        "truth_file": write_lines(tmp_path / "truth.jsonl", truth),
        "truth": "facts",
    }


def test_claim_rewards_alone_are_measured_without_a_model_or_pairs(tmp_path, capsys):
    settings = CLAIMS_ALONE | write_answers(tmp_path) | {"reward_terms": "hallucination=-1"}
    result = reward_eval(make_config(tmp_path, **settings))
    assert (result["reward_model"], result["n"]) == (None, 0) and "accuracy" not in result
    policy = result["policy"]
    assert policy["contradicted"]["object"]["value"] == pytest.approx(1 / 3)  # two cups and a dog to each prompt
    assert policy["contradicted"]["attribute"]["value"] == 0
    own, without = (policy["detection"][name] for name in ("with facts", "without facts"))
    assert (own["object"]["TPR"]["value"], own["object"]["FPR"]["value"], own["object"]["J"]["value"]) == (1, 0, 1)
    assert own["attribute"]["num_false"] == 20 and own["attribute"]["J"]["value"] == 0 == without["object"]["J"]["value"]
    # The answer with one false object more is worth 1 less: sqrt 2 x Cov -.5 / Std sqrt .5
    assert policy["slopes"]["with facts"]["object"]["false"]["value"] == pytest.approx(-1)
    assert policy["slopes"]["without facts"]["object"]["false"]["value"] == 0
    page = ParsedPage((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.ids_of_sections() == ["policy", "tables"]
    assert "hallucination=-1 on 40 answers of the policy (20 prompts)." in page.text
    output = capsys.readouterr().out
    assert "object claims of the policy, contradicted" in output and "33.3" in output
    assert "Facts will change the policy: only with them do false claims go that are about" in output
    config = make_config(tmp_path, **settings, unknown_claim_costs="object=0.2")
    assert "--reward_terms hallucination=-1 --unknown_claim_costs object=0.2 --out" in closing_text("reward-eval", config)


def test_an_ensemble_is_measured_on_pairs_and_answers(reward_dir, pairs, tmp_path):
    settings = write_answers(tmp_path, 2) | {"probes": 0, "uncertainty_penalty": 1.0}
    config = make_config(tmp_path, reward_model_path=f"{reward_dir}, {reward_dir}", **settings)
    first, second = load_ensemble(config).models
    assert first.role.adapters is second.role.adapters and first.role.adapter != second.role.adapter
    result = reward_eval(config, pairs[:2])
    # Equal models agree, so that their mean, with or without a penalty, is the one model's score.
    lines = (tmp_path / "out" / "scores" / "as_given.jsonl").read_text().splitlines()
    expected = first.score([_answer_group(pair, pair.facts) for pair in pairs[:2]])
    assert [json.loads(line)["scores"] for line in lines] == [pytest.approx(scores, abs=1e-4) for scores in expected]
    assert result["accuracy"]["n"] == 2 and result["policy"]["num_answers"] == 4
    assert f"{reward_dir.parent}/ppo" in closing_text("reward-eval", config)
