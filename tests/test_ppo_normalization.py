"""PPO and GRPO on rewards normalised before they are added: what is trained on, resuming."""

import math

import pytest
import torch
from safetensors.torch import load_file

from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.ppo import ppo
from mmrlhf.records import InputError
from mmrlhf.training.ppo import advantages
from tests.helpers.runs import stopped_after
from tests.helpers.stages import ppo_config

GROUP = {"multi_objective_aggregation": "normalize_then_sum"}
RUNNING = {**GROUP, "term_statistics": "running"}


def first_words(samples):
    """Reward the first two words, each where it stands, in units of hundreds."""
    return [[(m, m + 1, 100.0) for m in range(min(len(s.answer), len(s.id) % 2 + i % 3))] for i, s in enumerate(samples)]


FUNCTIONS = {
    "first_words": first_words,
    "alternating": lambda samples: [i % 2 for i in range(len(samples))],
    "constant": lambda samples: [7.3 for _ in samples],
}
TERMS = {"reward_terms": "length=2, missing_eos=-0.5, first_words=0.5, alternating=1, constant=3"}


@pytest.mark.parametrize(
    "settings",
    [
        GROUP,
        RUNNING,
        {**GROUP, "kl_coef": 0.0},
        {**RUNNING, "use_critic": False},
        {**GROUP, "span_credit": "last_token"},
        {**GROUP, "length_bounds": "1,5"},
    ],
    ids=["group", "running", "no KL", "no critic", "last token", "bounds"],
)
def test_ledger_adds_up_to_the_rewards_trained_on(tiny_vlm_path, examples, tmp_path, monkeypatch, settings):
    token_rewards, gae = [], advantages.gae
    monkeypatch.setattr(advantages, "gae", lambda rewards, *rest: token_rewards.append(rewards.clone()) or gae(rewards, *rest))
    config = ppo_config(tiny_vlm_path, None, tmp_path, max_steps=2, **TERMS, **settings)
    ppo(config, examples, extra_reward_functions=FUNCTIONS)
    rows = read_jsonl(tmp_path / "ledger.jsonl")
    assert [r["total"] for r in rows] == pytest.approx([float(v) for t in token_rewards for v in t.sum(1)], abs=1e-5)
    for number, row in enumerate(rows):
        assert sum(row["terms"].values()) + row["kl"] == pytest.approx(row["total"], abs=1e-5)
        pair = [sum(r["terms"][name] for name in r["values"]) for r in rows[number // 2 * 2 :][:2]]
        # All answers are too long: both to a prompt get the lower sum, 0 at most.
        cut = {"length_bounds": min(*pair, 0) - pair[number % 2]} if "length_bounds" in settings else {}
        assert row["terms"] == pytest.approx({name: w * row["normalized"][name] for name, w in row["weights"].items()} | cut)
        assert row["terms"]["constant"] == 0 and row["values"]["constant"] == 7.3
        scales = {reward for *_, reward in row["spans"]["first_words"]}
        assert len(scales) <= 1 and all(reward >= 0 for reward in scales)
    if settings.get("kl_coef") == 0:  # rewards are then what functions gave, on one token of each answer
        assert max(int((t != 0).sum(1).max()) for t in token_rewards) == 1
    if settings is GROUP:
        for step in (rows[:6], rows[6:]):
            for pair in zip(step[::2], step[1::2], strict=True):
                assert sum(row["normalized"]["length"] for row in pair) == pytest.approx(0, abs=1e-9)
    logged = read_jsonl(tmp_path / "metrics.jsonl")[1]
    assert logged["rewards/constant/mean"] == pytest.approx(21.9)  # before normalisation
    raw = [sum(row["weights"][name] * value for name, value in row["values"].items()) for row in rows[:6]]
    assert logged["objective/scores"] == pytest.approx(sum(raw) / 6, rel=1e-5)


def test_grpo_on_normalised_terms_is_gdpo(tiny_vlm_path, examples, tmp_path, monkeypatch):
    """Advantages are the sums of group-normalised values, scaled over the batch's answers."""
    estimated, scale = [], advantages.scale_answers
    monkeypatch.setattr(advantages, "scale_answers", lambda *args: estimated.append(scale(*args)) or estimated[-1])
    settings = {**GROUP, **TERMS, "advantage_estimator": "grpo", "num_generations": 4, "max_steps": 1}
    ppo(ppo_config(tiny_vlm_path, None, tmp_path, **settings), examples, extra_reward_functions=FUNCTIONS)
    totals = [row["total"] for row in read_jsonl(tmp_path / "ledger.jsonl")]
    assert len(totals) == 12 and sum(totals) == pytest.approx(0, abs=1e-5)
    deviation = math.sqrt(sum(total**2 for total in totals) / 12)
    assert estimated[0][:, 0].tolist() == pytest.approx([total / deviation for total in totals], abs=1e-4)


def test_length_bounds_cut_what_is_positive_and_no_more(tiny_vlm_path, examples, tmp_path, capsys):
    """All answers have ten tokens, or end before; bounds of nine at most cut those of ten."""
    settings = {"reward_terms": "alternating=2, constant=-0.1", "length_bounds": "1,9", "kl_coef": 0.0, "max_steps": 1}
    ppo(ppo_config(tiny_vlm_path, None, tmp_path, **settings), examples, extra_reward_functions=FUNCTIONS)
    rows, logged = read_jsonl(tmp_path / "ledger.jsonl"), read_jsonl(tmp_path / "metrics.jsonl")[1]
    assert {round(row["total"], 5) for row in rows} <= {-0.73, 0.0, 1.27}
    # 1.27 is cut to 0, or to what the prompt's other answer has.
    cuts = [row["terms"]["length_bounds"] for row in rows if row["terms"]["length_bounds"] < 0]
    assert 0 < len(cuts) <= 3 and {round(cut, 5) for cut in cuts} <= {-1.27, -2.0}
    assert logged["rewards/length_bounds/mean"] == pytest.approx(sum(cuts) / 6)
    assert (logged["length_bounds/lower"], logged["length_bounds/upper"]) == (1, 9)
    assert logged["length_bounds/outside"] * 6 == pytest.approx(6 - logged["val/num_eos_tokens"])
    assert logged["objective/scores"] == pytest.approx(1 - 0.73)  # before anything is cut
    assert "length bounds:" not in capsys.readouterr().out  # these were given, not measured


def test_what_is_measured_resumes_bit_identically(tiny_vlm_path, examples, tmp_path, capsys):
    def config(name):
        settings = {"max_steps": 3, "save_steps": 2, "length_bounds": "auto", "response_length": 30}
        return ppo_config(tiny_vlm_path, None, tmp_path / name, **settings, **RUNNING, **TERMS)

    ppo(config("uninterrupted"), examples, extra_reward_functions=FUNCTIONS)
    with stopped_after(step=2):
        ppo(config("killed"), examples, extra_reward_functions=FUNCTIONS)
    ppo(config("killed"), examples, extra_reward_functions=FUNCTIONS)
    logged = [read_jsonl(tmp_path / name / "metrics.jsonl")[1:] for name in ("uninterrupted", "killed")]
    bounds = [{(row["length_bounds/lower"], row["length_bounds/upper"]) for row in rows} for rows in logged]
    assert len(bounds[0]) == 1 and bounds[0] == bounds[1]
    lower, upper = bounds[0].pop()
    text = f"length bounds: {lower:.0f} to {upper:.0f} tokens, the 2% and 98% quantiles of the reference's answers in this step"
    assert capsys.readouterr().out.count(text) == 2
    assert (tmp_path / "killed/ledger.jsonl").read_text() == (tmp_path / "uninterrupted/ledger.jsonl").read_text()
    expected, resumed = (load_file(tmp_path / name / "policy/adapter_model.safetensors") for name in ("uninterrupted", "killed"))
    assert all(torch.equal(expected[k], resumed[k]) for k in expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**GROUP, "num_generations": 1}, "num_generations is 1: sample more, or set term_statistics running"),
        ({"length_bounds": "12,30"}, "no answer can be that long, because response_length is 10; lower the first bound"),
        ({"length_bounds": "9,3"}, "length_bounds is '9,3': write the fewest and the most tokens, such as 8,40, or auto"),
        ({"term_statistics": "running"}, "needs multi_objective_aggregation normalize_then_sum: set both"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        ppo(ppo_config("no-such-model", None, tmp_path / "new", **settings))
    assert not (tmp_path / "new").exists()
