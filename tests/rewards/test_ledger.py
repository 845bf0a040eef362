"""The reward's terms by hand, the list they stand in, and what becomes of one that fails."""

import json
import math

import pytest

from mmrlhf.config import PPOConfig
from mmrlhf.config_loader import load_config
from mmrlhf.files.bundled import find
from mmrlhf.records import ImageSource, InputError, Message
from mmrlhf.rewards.functions import REWARD_FUNCTIONS, is_correct
from mmrlhf.rewards.ledger import RewardBreakdown, WeightedReward, parse_reward_spec, resolve_rewards, score_samples
from mmrlhf.rewards.monitors import hacking_metrics, hacking_warnings
from mmrlhf.rewards.types import Sample


def make_sample(answer, **more):
    known = {"id": "row-1", "images": (), "prompt": (Message("user", "?"),)}
    return Sample(**known | {"answer": answer, **more})


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        ("Yes, there is.", "yes", True),
        ("No.", "Yes, there is a dog.", False),
        ("There is a dog.", "yes", True),
        ("Perhaps", "yes", False),
        ("Nobody knows", "no", False),
        ("B. A dog", "B", True),
        ("(b)", "B", True),
        ("The answer is (C).", "C", True),
        ("A dog", "A", False),
        ("A", "A", True),
        ("C'est la vie", "C", False),
        ("I count 3, no, 4 dogs", "4", True),
        ("It costs 1,200.50", "1200.5", True),
        ("Four", "4", True),
        ("4 or 5", "4", False),
        ("a red  Mug.", "A red mug", True),
        ("a mug", "a cup", False),
        ("yes", None, False),
    ],
)
def test_is_correct_matches_hand_labels(answer, truth, right):
    assert is_correct(answer, truth) is right


@pytest.mark.parametrize(
    ("answer", "kind", "worth"),
    [
        ("B. Because", 3, 1.0),
        ("So the correct option is B.", 3, 1.0),
        ("A. Because", 3, 0.0),
        ("No, it is not", 6, 0.5),
        ("Yes", 6, -0.5),
        ("Perhaps", 6, 0.0),
        ("Yes", 7, 0.0),
        ("No", 7, 0.0),
        ("A mug", 1, 0.0),
    ],
)
def test_correctness_matches_llava_rlhf(answer, kind, worth):
    assert REWARD_FUNCTIONS["correctness"]([make_sample(answer, meta={"caption_type": kind})]) == [worth]


def test_reward_functions_match_hand_computation():
    assert REWARD_FUNCTIONS["length"](
        [make_sample("", num_tokens=3, max_tokens=12), make_sample("", num_tokens=3, max_tokens=12, meta={"length_bonus": -0.5})]
    ) == [
        0.25,
        -0.125,
    ]
    assert REWARD_FUNCTIONS["missing_eos"]([make_sample("", finished=False), make_sample("")]) == [1.0, 0.0]
    # "a b c d a b c d": five runs of four words, the last one said before
    assert REWARD_FUNCTIONS["repetition"]([make_sample("a b c d A b c d"), make_sample("a b c")]) == [pytest.approx(0.2), 0.0]


def test_parse_reward_spec_and_resolve_rewards_check_names(tmp_path):
    assert parse_reward_spec("fact_rm=1, missing_eos=-2,x.py:f=.5") == {"fact_rm": 1.0, "missing_eos": -2.0, "x.py:f": 0.5}
    for text, sentence in {
        "fact_rm": r"reward_terms has 'fact_rm': write NAME=WEIGHT",
        "fact_rm=much": "write NAME=WEIGHT",
        "fact_rm=nan": "write NAME=WEIGHT",
        "length=1, length=2": "names length twice",
        " , ": "names no term",
    }.items():
        with pytest.raises(InputError, match=sentence):
            parse_reward_spec(text)
    (tmp_path / "mine.py").write_text(
        "def polite(samples):\n    return [('please' in s.answer) for s in samples]\n\nnumber = 3\n"
    )
    (tmp_path / "broken.py").write_text("def (")
    (found,) = resolve_rewards(f"{tmp_path}/mine.py:polite=0.5", {})
    assert score_samples([found], [make_sample("please"), make_sample("now")], tmp_path / "no.json")[0].total == 0.5
    for name, sentence in {
        "lenght": "names lenght: there is correctness, length",
        f"{tmp_path}/gone.py:f": "gone.py does not exist",
        f"{tmp_path}/mine.py:rude": "has no function rude",
        f"{tmp_path}/mine.py:number": "has no function number",
        f"{tmp_path}/broken.py:f": "cannot be imported .SyntaxError",
    }.items():
        with pytest.raises(InputError, match=sentence):
            resolve_rewards(f"{name}=1", {})


def test_score_samples_adds_up(tmp_path):
    terms = [
        WeightedReward("whole", 2.0, lambda samples: [1.5 for _ in samples]),
        WeightedReward("dense", -1.0, lambda samples: [[(0, 3, 1.0), (4, 7, 0.25)] for _ in samples]),
    ]
    (entry,) = score_samples(terms, [make_sample("one two three")], tmp_path / "no.json")
    assert entry == RewardBreakdown({"whole": 3.0, "dense": -1.25}, {"dense": [(0, 3, -1.0), (4, 7, -0.25)]})
    assert (entry.answer_total, entry.total) == (3.0, 1.75)


@pytest.mark.parametrize(
    ("term", "sentence"),
    [
        (lambda samples: [1 / (len(s.answer) - 3) for s in samples], "raised ZeroDivisionError.*row row-1"),
        (lambda samples: [math.nan if s.answer == "two" else 0 for s in samples], "gave nan"),
        (lambda samples: [1.0], "gave 1 values for 2 samples"),
        (lambda samples: [[(0, 99, 1.0)] for _ in samples], "gave the span 0..99 of an answer of 5 characters"),
        (lambda samples: [[(0, 2, math.inf)] for _ in samples], "gave inf for the span 0..2"),
        (lambda samples: ["good" for _ in samples], "neither a number nor a list"),
        (lambda samples: None, "raised TypeError"),
    ],
)
def test_score_samples_names_failing_function_and_keeps_sample(term, sentence, tmp_path):
    replay = tmp_path / "failed_term.json"
    with pytest.raises(InputError, match=f"reward term mine .*{sentence}.*failed_term.json: correct the term") as caught:
        score_samples([WeightedReward("mine", 1.0, term)], [make_sample("three"), make_sample("two", meta={"key": {1}})], replay)
    assert "\n" not in str(caught.value)
    kept = json.loads(replay.read_text())
    assert kept["term"] == "mine" and kept["answer"] in ("three", "two") and kept["prompt"] == [{"role": "user", "content": "?"}]


def test_hacking_metrics_and_warnings_match_hand_computation():
    samples = [
        make_sample("I'm sorry, I cannot see it.", num_tokens=1),
        make_sample("Yes, it is.", num_tokens=2),
        make_sample("A mug.", num_tokens=3),
        make_sample("No", num_tokens=5),
    ]
    found = hacking_metrics(samples, [1.0, 2.0, 7.0, 9.0], 2)
    assert found["hacking/refusal_rate"] == 0.25 and found["hacking/says_yes"] == found["hacking/says_no"] == 0.25
    # within prompts: lengths -.5 .5 | -1 1, rewards the same: they rise together
    assert found["hacking/length_reward_correlation"] == pytest.approx(1.0)
    assert hacking_metrics(samples, [2.0, 1.0, 9.0, 7.0], 2)["hacking/length_reward_correlation"] == pytest.approx(-1.0)
    assert hacking_metrics(samples, [1.0] * 4, 2)["hacking/length_reward_correlation"] == 0.0
    # one answer to each prompt: among all, lengths 1 2 3 5 and rewards twice that
    assert hacking_metrics(samples, [2.0, 4.0, 6.0, 10.0], 1)["hacking/length_reward_correlation"] == pytest.approx(1.0)
    assert [line[:3] for line in hacking_warnings(found)] == ["25%", "len"]
    assert not hacking_warnings(found | {"hacking/refusal_rate": 0.1, "hacking/length_reward_correlation": 0.2})
    assert "100% of answers that begin" in hacking_warnings(found | {"hacking/says_no": 0.0})[1]


def test_score_samples_matches_llava_rlhf_recipe_by_hand(tmp_path):
    """Its script's reward times ten: (1.2 + 2 x 1 - 10 x 448/896 x 1) x 10 for a right answer of half the room; -8 if it does not end."""
    config = load_config(PPOConfig, find("configs", "llava-rlhf/ppo"), {"dataset_name": "x", "output_dir": "x"})
    terms = resolve_rewards(config.reward_terms, {"fact_rm": lambda samples: [1.2 for _ in samples]})
    half = {"num_tokens": 448, "max_tokens": config.response_length, "meta": {"caption_type": 2, "length_bonus": 1.0}}
    answers = [
        make_sample("A. A cat.", **half),
        make_sample("B. A cat.", **half, finished=False),
        make_sample("A. Or a cat?", **half),
    ]
    entry, cut, asking = score_samples(terms, answers, tmp_path / "no.json")
    assert entry.total == pytest.approx(10 * (1.2 + 2 * 1 - 10 * 0.5)) and config.kl_coef == 10 * 0.1
    assert cut.total == pytest.approx(10 * (1.2 + 0 - 10 * 0.5 - 8))
    assert asking.total == pytest.approx(entry.total - 80)
    assert entry.terms == pytest.approx({"fact_rm": 12, "correctness": 20, "length": -50, "missing_eos": 0, "question_mark": 0})


def test_resolve_rewards_loads_user_file_with_dataclasses(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom mmrlhf.records import InputError\n"
        "@dataclass\nclass Word:\n    text: str\n"
        "def mine(samples):\n    raise InputError(f'image {Word(samples[0].id).text} is damaged')\n"
    )
    terms = resolve_rewards(f"{tmp_path / 'mine.py'}:mine=1", {})
    sample = make_sample("A mug.", id="row-7", images=(ImageSource(data=b"\x89PNG"),))
    with pytest.raises(
        InputError, match=r"reward term .*mine raised InputError: image row-7 is damaged on an answer to row row-7"
    ):
        score_samples(terms, [sample], tmp_path / "replay.json")
    assert json.loads((tmp_path / "replay.json").read_text())["images"] == [{"base64": "iVBORw=="}]
