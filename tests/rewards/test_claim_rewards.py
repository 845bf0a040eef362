"""Claim rewards: their values and spans by verdict, the verifiers they use, and runs of ppo."""

import dataclasses
import json

import pytest

from mmrlhf.claims import load_lexicon
from mmrlhf.config import PPOConfig
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.ppo import ppo
from mmrlhf.records import Claim, Fact, InputError, Message, Verdict
from mmrlhf.rewards.claim_rewards import (
    ClaimScorer,
    claim_reward_verifiers,
    coverage,
    hallucination,
    monitor_verifiers,
    parse_unknown_costs,
    verifier_score,
)
from mmrlhf.rewards.ledger import score_samples
from mmrlhf.rewards.reward_terms import resolve_rewards
from mmrlhf.rewards.types import Sample
from mmrlhf.training.ppo import advantages
from mmrlhf.verifiers.base import PlattScaling, save_calibration
from mmrlhf.verifiers.cascade import facts_verifier
from tests.helpers.tiny_clip import save_tiny_clip

LEXICON = load_lexicon()


def make_verdict(verdict, kind="object", subject="dog", span=(0, 3), p=None, **claim_fields):
    return Verdict(Claim(kind, subject, span=span, **claim_fields), verdict, "evidence", p)


def test_hallucination_matches_hand_computation():
    dog = make_verdict("contradicted", span=(2, 5))
    assert hallucination([dog, make_verdict("supported", subject="cat"), make_verdict("unknown", subject="cow")]) == [(2, 5, 1.0)]
    brown = make_verdict("contradicted", "attribute", value="brown", span=(2, 9))
    assert hallucination([dog, brown]) == [(2, 5, 1.0)]  # there is no dog, so "brown" adds nothing
    assert hallucination([brown]) == [(2, 9, 1.0)]
    near = make_verdict("contradicted", "relation", subject="cat", relation="near", target="dog", span=(0, 20))
    assert hallucination([dog, near]) == [(2, 5, 1.0)] and hallucination([near]) == [(0, 20, 1.0)]
    no_dog = make_verdict("contradicted", negated=True, span=(0, 6))
    assert hallucination([no_dog, brown]) == [(0, 6, 1.0), (2, 9, 1.0)]
    assert hallucination([make_verdict("contradicted", hedged=True)]) == []


def test_hallucination_charges_unknown_claims_the_false_rate_of_their_kind():
    costs = parse_unknown_costs("object=0.25, attribute=0.5")
    assert costs == {"object": 0.25, "attribute": 0.5} and parse_unknown_costs(None) == {}
    dog, cow = make_verdict("contradicted", span=(2, 5)), make_verdict("unknown", subject="cow", span=(9, 12))
    assert hallucination([dog, cow], costs) == [(2, 5, 1.0), (9, 12, 0.25)]
    brown_cow = make_verdict("unknown", "attribute", subject="cow", value="brown", span=(3, 8))
    brown_dog = make_verdict("unknown", "attribute", value="brown", span=(1, 3))
    assert hallucination([brown_cow, brown_dog, dog], costs) == [(2, 5, 1.0), (3, 8, 0.5)]  # there is no dog to be brown
    count = make_verdict("unknown", "count", subject="cow", value="2")
    quiet = [make_verdict("unknown", subject="cow", hedged=True), make_verdict("unknown", subject="cow", negated=True)]
    assert hallucination([count, *quiet], costs) == []
    scorer = ClaimScorer(LEXICON, {"facts": facts_verifier(LEXICON)}, ("facts",), costs)
    sample = Sample("a", (), (Message("user", "?"),), "A cow.", facts=())
    assert scorer.reward_function("hallucination", "facts")([sample]) == [[(2, 5, 0.25)]]


@pytest.mark.parametrize("text", ["dog=0.5", "count", "count=2", "count=nan", "count=0.1, count=0.2"])
def test_parse_unknown_costs_refuses_other_kinds_and_shares(text):
    with pytest.raises(InputError, match="unknown_claim_costs"):
        parse_unknown_costs(text)


def test_coverage_matches_hand_computation():
    dog, brown = make_verdict("supported"), make_verdict("supported", "attribute", value="brown", span=(4, 9))
    repeated_dog = make_verdict("supported", span=(20, 23))
    assert coverage([dog, brown, repeated_dog]) == [(0, 3, 1.0), (4, 9, 1.0)]
    negated, hedged = make_verdict("supported", negated=True), make_verdict("supported", hedged=True)
    assert coverage([negated, hedged, make_verdict("contradicted"), make_verdict("unknown")]) == []


def test_verifier_score_matches_hand_computation():
    verdicts = [
        make_verdict("supported", p=1.0),
        make_verdict("unknown", span=(4, 5), p=0.25),
        make_verdict("unknown"),
        make_verdict("unknown", p=0.5),
    ]
    # three have a probability: (2 - 1) / 3, (0.5 - 1) / 3, and 0, which is left out
    assert verifier_score(verdicts) == [(0, 3, pytest.approx(1 / 3)), (4, 5, pytest.approx(-0.5 / 3))]


def test_claim_reward_verifiers_parses_verifier_names():
    reward_terms = "fact_rm=1, hallucination=-1, coverage@facts+clip=0.2, verifier_score=1, verifier_score@vlm=1"
    assert claim_reward_verifiers(reward_terms) == {
        "hallucination": "facts",
        "coverage@facts+clip": "facts+clip",
        "verifier_score": "clip",
        "verifier_score@vlm": "vlm",
    }
    for name, message in {
        "hallucination@": "no verifier ''",
        "coverage@facts+me": "no verifier 'me'; use facts, clip, vlm",
        "verifier_score@vlm+vlm": "twice",
    }.items():
        with pytest.raises(InputError, match=message):
            claim_reward_verifiers(f"{name}=1")
    assert claim_reward_verifiers("length=1, mine.py:f@g=1") == {}


def test_monitor_verifiers_refuses_verifier_used_in_reward():
    assert monitor_verifiers("clip, vlm", ["facts"], False) == ["clip", "vlm"]
    assert monitor_verifiers(None, ["facts"], False) == []
    for monitored, rewarded, overlap in (("facts", ["facts"], "facts"), ("clip+vlm", ["facts+clip"], "clip")):
        message = f"names {overlap}, which the reward uses.*--allow_monitoring_reward_verifiers"
        with pytest.raises(InputError, match=message):
            monitor_verifiers(monitored, rewarded, False)
        assert monitor_verifiers(monitored, rewarded, True) == [monitored]
    with pytest.raises(InputError, match="monitor_verifiers: there is no verifier 'me'"):
        monitor_verifiers("me", [], False)


def make_sample(answer, *facts):
    return Sample("row", (), (Message("user", "?"),), answer, facts)


FACTS = (Fact("object", "brown dog"), Fact("absent", "cat"), Fact("count", "two chairs"))


def test_claim_rewards_penalise_only_false_spans(tmp_path):
    claim_scorer = ClaimScorer(LEXICON, {"facts": facts_verifier(LEXICON)}, ("facts",))
    reward_terms = "hallucination=-2, coverage=0.5, length=1"
    rewards = resolve_rewards(reward_terms, claim_scorer.reward_functions(reward_terms))
    samples = [make_sample("A brown dog sits beside a cat.", *FACTS), make_sample("Nothing is known.", *FACTS)]
    breakdown, without_claims = score_samples(rewards, samples, tmp_path / "unused.json")
    answer = samples[0].answer
    ((start, end, reward),) = breakdown.spans["hallucination"]
    assert answer[start:end] == "cat" and reward == -2
    assert {answer[start:end] for start, end, _ in breakdown.spans["coverage"]} == {"dog", "brown dog"}
    assert breakdown.terms["coverage"] == 1
    assert breakdown.answer_total == 0 and breakdown.total == -1
    assert without_claims.total == 0 and without_claims.spans == {"hallucination": [], "coverage": []}


def test_claim_scorer_verifies_each_batch_once():
    batch_sizes = []

    def counting_verifier(answers):
        batch_sizes.append(len(answers))
        return facts_verifier(LEXICON)(answers)

    claim_scorer = ClaimScorer(LEXICON, {"facts": counting_verifier}, ("facts",))
    samples = [make_sample("A dog.", *FACTS), make_sample("A cat.", *FACTS)]
    for name in ("hallucination", "coverage@facts", "verifier_score@facts"):
        claim_scorer.reward_function(name, "facts")(samples)
    rows = claim_scorer.ledger_rows(samples)
    assert batch_sizes == [2]
    assert rows[1] == [
        {
            "kind": "object",
            "claim": "a cat",
            "start": 2,
            "end": 5,
            "hedged": False,
            "by": "facts",
            "verdict": "contradicted",
            "probability": 0.0,
            "evidence": "absent: cat",
        }
    ]
    claim_scorer.verdicts([samples[0]], "facts")
    assert batch_sizes == [2, 1]


# ---- in ppo --------------------------------------------------------------------------------------


def ppo_config(base, output_dir, **settings):
    defaults = {
        "max_steps": 2,
        "per_device_train_batch_size": 3,
        "num_mini_batches": 3,
        "num_generations": 2,
        "response_length": 30,
        "learning_rate": 1e-3,
        "lora_r": 4,
        "num_sample_generations": 0,
    }
    return PPOConfig(model_name_or_path=base, dataset_name="x", output_dir=str(output_dir), **defaults | settings)


def with_absent_facts(examples):
    """Return examples whose facts say that most shapes of the synthetic scenes are absent."""
    absent = tuple(Fact("absent", noun) for noun in ("ring", "star", "heart", "cross", "moon", "arrow", "square"))
    return [dataclasses.replace(e, facts=absent) for e in examples]


@pytest.fixture
def recorded_rewards(monkeypatch):
    """Token rewards [N, T] of each step, as they reach the advantage estimator."""
    rewards, gae = [], advantages.gae
    monkeypatch.setattr(advantages, "gae", lambda rewards_NT, *rest: rewards.append(rewards_NT) or gae(rewards_NT, *rest))
    return rewards


def test_ppo_claim_rewards_land_on_their_spans_and_in_ledger(tiny_vlm_path, examples, tmp_path, recorded_rewards):
    settings = {"reward_terms": "hallucination=-1, coverage=0.1", "monitor_verifiers": "vlm", "kl_coef": 0.0}
    ppo(ppo_config(tiny_vlm_path, tmp_path / "a", **settings), with_absent_facts(examples))
    rows = read_jsonl(tmp_path / "a/ledger.jsonl")
    claims = [claim for row in rows for claim in row["claims"]]
    contradicted = [claim for claim in claims if claim["by"] == "facts" and claim["verdict"] == "contradicted"]
    assert contradicted and all(claim["evidence"].startswith("absent: ") for claim in contradicted)
    assert {claim["by"] for claim in claims} == {"facts", "vlm"}
    for row in rows:
        spans = row["spans"]["hallucination"]
        assert row["terms"]["hallucination"] == -len(spans)
        assert row["total"] == pytest.approx(sum(row["terms"].values()), abs=1e-5)
        assert {(c["start"], c["end"]) for c in row["claims"] if c["by"] == "facts"} >= {(s, e) for s, e, _ in spans}
    # each penalty is on a token of its own, none at the end of the answer
    num_penalties = sum(len(row["spans"]["hallucination"]) for row in rows)
    assert sum(int((rewards_NT < -0.5).sum()) for rewards_NT in recorded_rewards) == num_penalties
    metrics = read_jsonl(tmp_path / "a/metrics.jsonl")[-1]
    rates = {"claims/contradicted_rate@facts", "claims/contradicted_rate@vlm"}
    assert {"hacking/zero_claim_rate", "hacking/vagueness", *rates} <= set(metrics)


def test_ppo_span_credit_last_token_pays_the_same_total(tiny_vlm_path, examples, tmp_path, recorded_rewards):
    settings = {"reward_terms": "hallucination=-1, coverage=0.1", "kl_coef": 0.0, "max_steps": 1}
    ppo(ppo_config(tiny_vlm_path, tmp_path / "a", **settings), with_absent_facts(examples))
    ppo(ppo_config(tiny_vlm_path, tmp_path / "b", span_credit="last_token", **settings), with_absent_facts(examples))
    at_spans, at_end = recorded_rewards
    assert at_end.sum(1).tolist() == pytest.approx(at_spans.sum(1).tolist(), abs=1e-5)
    assert int((at_end != 0).sum(1).max()) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_terms": "verifier_score=1"}, "give --clip_model"),
        ({"reward_terms": "hallucination@cilp=1"}, "no verifier 'cilp'"),
        ({"reward_terms": "coverage=1", "monitor_verifiers": "facts"}, "which the reward uses"),
        ({"reward_terms": "coverage=1", "lexicon_file": "gone.txt"}, "gone.txt does not exist"),
        ({"reward_terms": "coverage@vlm=1", "vlm_calibration": "gone.json"}, "gone.json does not exist"),
        ({"reward_terms": "verifier_score=1", "clip_model": "CLIP"}, "has no calibration"),
    ],
)
def test_ppo_claim_rewards_refuse_incomplete_config(tiny_vlm_path, examples, tmp_path, settings, message):
    if "clip_model" in settings:
        settings = settings | {"clip_model": str(save_tiny_clip(tmp_path / "clip"))}
    with pytest.raises(InputError, match=message):
        ppo(ppo_config(tiny_vlm_path, tmp_path / "out", **settings), examples)
    assert not (tmp_path / "out").exists()


def test_ppo_claim_rewards_with_clip_verifier(tiny_vlm_path, examples, tmp_path):
    clip_dir = save_tiny_clip(tmp_path / "clip")
    calibration = PlattScaling({"object": (1.0, 0.0), "attribute": (1.0, 0.0)})
    save_calibration(calibration, clip_dir / "calibration.json", nouns=["ring", "star", "moon"])
    reward_terms = "verifier_score=1, hallucination@facts+clip=-1"
    config = ppo_config(tiny_vlm_path, tmp_path / "a", reward_terms=reward_terms, clip_model=str(clip_dir), max_steps=1)
    ppo(config, with_absent_facts(examples))
    claims = [claim for row in read_jsonl(tmp_path / "a/ledger.jsonl") for claim in row["claims"]]
    assert {claim["by"] for claim in claims} == {"clip", "facts+clip"}
    assert any(claim["evidence"].startswith("open_clip: ") for claim in claims)
    assert json.loads((tmp_path / "a/finished.json").read_text())["steps"] == 1
