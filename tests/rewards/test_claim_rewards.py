"""Claims as reward: what each verdict pays and where, who judges, and what ppo makes of it."""

import dataclasses
import json

import pytest
import torch

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
    verifier_score,
)
from mmrlhf.rewards.ledger import resolve_rewards, score_samples
from mmrlhf.rewards.monitors import claim_hacking_metrics, hacking_warnings, verdict_rates
from mmrlhf.rewards.types import Sample
from mmrlhf.training import advantages
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import PlattScaling, save_calibration
from mmrlhf.verifiers.cascade import facts_verifier
from tests.helpers.tiny_clip import save_tiny_clip

LEXICON = load_lexicon()


def make_verdict(found, kind="object", subject="dog", span=(0, 3), p=None, **more):
    return Verdict(Claim(kind, subject, span=span, **more), found, "told", p)


def test_hallucination_matches_hand_computation():
    dog = make_verdict("contradicted", span=(2, 5))
    assert hallucination([dog, make_verdict("supported", subject="cat"), make_verdict("unknown", subject="cow")]) == [(2, 5, 1.0)]
    brown = make_verdict("contradicted", "attribute", value="brown", span=(2, 9))
    assert hallucination([dog, brown]) == [(2, 5, 1.0)]  # there is no dog: that it is not brown adds nothing
    assert hallucination([brown]) == [(2, 9, 1.0)]
    near = make_verdict("contradicted", "relation", subject="cat", relation="near", target="dog", span=(0, 20))
    assert hallucination([dog, near]) == [(2, 5, 1.0)] and hallucination([near]) == [(0, 20, 1.0)]
    no_dog = make_verdict("contradicted", negated=True, span=(0, 6))
    assert hallucination([no_dog, brown]) == [(0, 6, 1.0), (2, 9, 1.0)]
    assert hallucination([make_verdict("contradicted", hedged=True)]) == []


def test_coverage_matches_hand_computation():
    dog, brown = make_verdict("supported"), make_verdict("supported", "attribute", value="brown", span=(4, 9))
    assert coverage([dog, brown, make_verdict("supported", span=(20, 23))]) == [(0, 3, 1.0), (4, 9, 1.0)]
    assert (
        coverage(
            [
                make_verdict("supported", negated=True),
                make_verdict("supported", hedged=True),
                make_verdict("contradicted"),
                make_verdict("unknown"),
            ]
        )
        == []
    )


def test_verifier_score_matches_hand_computation():
    found = verifier_score(
        [
            make_verdict("supported", p=1.0),
            make_verdict("unknown", span=(4, 5), p=0.25),
            make_verdict("unknown"),
            make_verdict("unknown", p=0.5),
        ]
    )
    assert found == [(0, 3, pytest.approx(1 / 3)), (4, 5, pytest.approx(-0.5 / 3))]


def test_claim_reward_verifiers_parses_verifier_names():
    assert claim_reward_verifiers("fact_rm=1, hallucination=-1, coverage@facts+clip=0.2, verifier_score=1, verifier_score@vlm=1") == {
        "hallucination": "facts", "coverage@facts+clip": "facts+clip", "verifier_score": "clip", "verifier_score@vlm": "vlm",
    }  # fmt: skip
    for name, sentence in {
        "hallucination@": "no verifier ''", "coverage@facts+me": "no verifier 'me', but facts, clip, vlm", "verifier_score@vlm+vlm": "twice",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=sentence):
            claim_reward_verifiers(f"{name}=1")
    assert claim_reward_verifiers("length=1, mine.py:f@g=1") == {}


def test_monitor_verifiers_refuses_verifier_used_in_reward():
    assert monitor_verifiers("clip, vlm", ["facts"], False) == ["clip", "vlm"] and monitor_verifiers(None, ["facts"], False) == []
    for watch, paid in (("facts", ["facts"]), ("clip+vlm", ["facts+clip"])):
        with pytest.raises(
            InputError,
            match=f"names {'facts' if watch == 'facts' else 'clip'}, which the reward is made of.*--allow_monitoring_reward_verifiers",
        ):
            monitor_verifiers(watch, paid, False)
        assert monitor_verifiers(watch, paid, True) == [watch]
    with pytest.raises(InputError, match="monitor_verifiers: there is no verifier 'me'"):
        monitor_verifiers("me", [], False)


def make_sample(answer, *facts):
    return Sample("row", (), (Message("user", "?"),), answer, facts)


FACTS = (Fact("object", "brown dog"), Fact("absent", "cat"), Fact("count", "two chairs"))


def test_claim_rewards_penalise_only_false_spans(tmp_path):
    judge = ClaimScorer(LEXICON, {"facts": facts_verifier(LEXICON)}, ("facts",))
    text = "hallucination=-2, coverage=0.5, length=1"
    terms = resolve_rewards(text, judge.reward_functions(text))
    samples = [make_sample("A brown dog sits beside a cat.", *FACTS), make_sample("Nothing is known.", *FACTS)]
    entry, none = score_samples(terms, samples, tmp_path / "no.json")
    ((start, end, worth),) = entry.spans["hallucination"]
    assert samples[0].answer[start:end] == "cat" and worth == -2
    assert {samples[0].answer[s:e] for s, e, _ in entry.spans["coverage"]} == {"dog", "brown dog"} and entry.terms[
        "coverage"
    ] == 1
    assert entry.answer_total == 0 and entry.total == -1
    assert none.total == 0 and none.spans == {"hallucination": [], "coverage": []}


def test_claim_scorer_verifies_each_batch_once():
    calls = []

    def verifier(said):
        calls.append(len(said))
        return facts_verifier(LEXICON)(said)

    judge = ClaimScorer(LEXICON, {"facts": verifier}, ("facts",))
    samples = [make_sample("A dog.", *FACTS), make_sample("A cat.", *FACTS)]
    for name in ("hallucination", "coverage@facts", "verifier_score@facts"):
        judge.reward_function(name, "facts")(samples)
    rows = judge.ledger_rows(samples)
    assert calls == [2]
    assert rows[1] == [{"kind": "object", "claim": "a cat", "start": 2, "end": 5, "by": "facts", "verdict": "contradicted",
                        "probability": 0.0, "evidence": "absent: cat"}]  # fmt: skip
    judge.verdicts([samples[0]], "facts")
    assert calls == [2, 1]


def test_claim_hacking_metrics_and_verdict_rates_match_hand_computation():
    dog, may = Claim("object", "dog"), Claim("object", "cat", hedged=True)
    said = [
        AnswerClaims((), (), (dog, may)),
        AnswerClaims((), (), ()),
        AnswerClaims((), (), (dog,)),
        AnswerClaims((), (), (may,)),
    ]
    assert claim_hacking_metrics(said) == {"hacking/zero_claim_rate": 0.25, "hacking/vagueness": 0.5}
    assert claim_hacking_metrics([AnswerClaims((), (), ())])["hacking/vagueness"] == 0
    found = verdict_rates(
        [[make_verdict("contradicted"), make_verdict("unknown")], [make_verdict("supported"), make_verdict("supported")]], "clip"
    )
    assert found == {"claims/contradicted_rate@clip": 0.25, "claims/unknown_rate@clip": 0.25, "claims/supported@clip": 1.0}
    calm = {"hacking/refusal_rate": 0, "hacking/says_yes": 0, "hacking/says_no": 0, "hacking/length_reward_correlation": 0}
    assert "60% of answers claim nothing" in hacking_warnings(calm | {"hacking/zero_claim_rate": 0.6})[0]
    assert "40% of claims are hedged" in hacking_warnings(calm | {"hacking/vagueness": 0.4})[0] and not hacking_warnings(calm)


# ---- in ppo --------------------------------------------------------------------------------------------------------------


def ppo_config(base, out, **more):
    settings = {"max_steps": 2, "per_device_train_batch_size": 3, "num_generations": 2, "response_length": 30, "learning_rate": 1e-3,
                "lora_r": 4, "num_sample_generations": 0, **more}  # fmt: skip
    return PPOConfig(model_name_or_path=base, dataset_name="x", output_dir=str(out), **settings)


def with_absent_facts(examples):
    """Examples whose facts say that nothing of what the world has is there."""
    absent = tuple(Fact("absent", noun) for noun in ("ring", "star", "heart", "cross", "moon", "arrow", "square"))
    return [dataclasses.replace(e, facts=absent) for e in examples]


def test_ppo_claim_rewards_land_on_their_spans_and_in_ledger(tiny_vlm_path, examples, tmp_path, monkeypatch):
    paid, gae = [], advantages.gae
    monkeypatch.setattr(advantages, "gae", lambda rewards, *rest: paid.append(rewards) or gae(rewards, *rest))
    ppo(
        ppo_config(tiny_vlm_path, tmp_path / "a", reward_terms="hallucination=-1, coverage=0.1", monitor_verifiers="vlm", kl_coef=0.0),
        with_absent_facts(examples),
    )
    rows = read_jsonl(tmp_path / "a/ledger.jsonl")
    false = [c for r in rows for c in r["claims"] if c["by"] == "facts" and c["verdict"] == "contradicted"]
    assert (
        false
        and all(c["evidence"].startswith("absent: ") for c in false)
        and {c["by"] for r in rows for c in r["claims"]} == {"facts", "vlm"}
    )
    for row in rows:
        spans = row["spans"]["hallucination"]
        assert row["terms"]["hallucination"] == -len(spans) and row["total"] == pytest.approx(
            sum(row["terms"].values()), abs=1e-5
        )
        assert {(c["start"], c["end"]) for c in row["claims"] if c["by"] == "facts"} >= {(s, e) for s, e, _ in spans}
    # each penalty on a token of its own, none at the end
    assert sum(int((r < -0.5).sum()) for r in paid) == sum(len(r["spans"]["hallucination"]) for r in rows)
    logged = read_jsonl(tmp_path / "a/metrics.jsonl")[-1]
    assert {
        "hacking/zero_claim_rate",
        "hacking/vagueness",
        "claims/contradicted_rate@facts",
        "claims/contradicted_rate@vlm",
    } <= set(logged)

    dense = torch.cat([r.sum(1) for r in paid])
    paid.clear()
    ppo(
        ppo_config(
            tiny_vlm_path,
            tmp_path / "b",
            reward_terms="hallucination=-1, coverage=0.1",
            span_credit="last_token",
            kl_coef=0.0,
            max_steps=1,
        ),
        with_absent_facts(examples),
    )
    (at_end,) = paid
    assert at_end.sum(1).tolist() == pytest.approx(dense[: len(at_end)].tolist(), abs=1e-5)  # the same total
    assert int((at_end != 0).sum(1).max()) == 1  # on one token


def test_ppo_claim_rewards_refuse_incomplete_config(tiny_vlm_path, examples, tmp_path):
    for more, sentence in (
        ({"reward_terms": "verifier_score=1"}, "give --clip_model"),
        ({"reward_terms": "hallucination@cilp=1"}, "no verifier 'cilp'"),
        ({"reward_terms": "coverage=1", "monitor_verifiers": "facts"}, "which the reward is made of"),
        ({"reward_terms": "coverage=1", "lexicon_file": "gone.txt"}, "gone.txt does not exist"),
        ({"reward_terms": "coverage@vlm=1", "vlm_calibration": "gone.json"}, "gone.json does not exist"),
        ({"reward_terms": "verifier_score=1", "clip_model": str(save_tiny_clip(tmp_path / "clip"))}, "has no calibration"),
    ):
        with pytest.raises(InputError, match=sentence):
            ppo(ppo_config(tiny_vlm_path, tmp_path / "no", **more), examples)
    assert not (tmp_path / "no").exists()


def test_ppo_claim_rewards_with_clip_verifier(tiny_vlm_path, examples, tmp_path):
    clip = save_tiny_clip(tmp_path / "clip")
    save_calibration(
        PlattScaling({"object": (1.0, 0.0), "attribute": (1.0, 0.0)}), clip / "calibration.json", nouns=["ring", "star", "moon"]
    )
    ppo(
        ppo_config(
            tiny_vlm_path, tmp_path / "a", reward_terms="verifier_score=1, hallucination@facts+clip=-1", clip_model=str(clip), max_steps=1
        ),
        with_absent_facts(examples),
    )
    rows = read_jsonl(tmp_path / "a/ledger.jsonl")
    by = {c["by"] for r in rows for c in r["claims"]}
    assert by == {"clip", "facts+clip"} and any(c["evidence"].startswith("open_clip: ") for r in rows for c in r["claims"])
    assert json.loads((tmp_path / "a/finished.json").read_text())["steps"] == 1
