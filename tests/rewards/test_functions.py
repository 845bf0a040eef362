"""Built-in reward functions, by hand."""

import pytest

from mmrlhf.config import PPOConfig
from mmrlhf.config.loader import load_config
from mmrlhf.files.bundled import find
from mmrlhf.records import Message
from mmrlhf.rewards.functions import answer_format, correctness, is_correct, length, missing_eos, question_mark, repetition
from mmrlhf.rewards.ledger import score_samples
from mmrlhf.rewards.reward_terms import resolve_rewards
from mmrlhf.rewards.types import Sample


def make_sample(answer, **fields):
    return Sample(**{"id": "row-1", "images": (), "prompt": (Message("user", "?"),), "answer": answer, **fields})


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
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
        ("<think>1, 2 and 4</think><answer>3</answer>", "<answer> 3 </answer>", True),
        ("<think>it is 3</think><answer>4</answer>", "3", False),
        ("<think>it is 3", "3", False),
        (r"Thus \boxed{12}", "12.0", True),
        ("<think>not A</think><answer>B</answer>", "B. a dog", True),
        ("(C)", "(B) 4", False),
        ("A. Smith", "A. Jones", True),  # read as a letter with its option
        ("No smoking", "No parking", False),
        ("No", "No parking", False),
        ("no parking.", "No parking", True),
        ("Yes", "Yes there is", True),
        ("Yes", "Yes the man is wearing a hat", True),
        ("No", "No dogs are visible.", True),
        ("No. 5", "No. 7", False),
        ("예", "예 있습니다", True),
        ("No, nothing", "no - it is empty", True),
        ("−3", "-3", True),
        ("3", "−3", False),
    ],
)
def test_is_correct_matches_hand_labels(answer, reference, expected):
    assert is_correct(answer, reference) is expected


@pytest.mark.parametrize(
    ("answer", "caption_type", "reward"),
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
def test_correctness_matches_llava_rlhf(answer, caption_type, reward):
    assert correctness([make_sample(answer, meta={"caption_type": caption_type})]) == [reward]


def test_length_matches_hand_computation():
    a_quarter = make_sample("", num_tokens=3, max_tokens=12)
    penalised = make_sample("", num_tokens=3, max_tokens=12, meta={"length_bonus": -0.5})
    assert length([a_quarter, penalised]) == [0.25, -0.125]


def test_missing_eos_and_question_mark_match_hand_computation():
    assert missing_eos([make_sample("", finished=False), make_sample("")]) == [1.0, 0.0]
    assert question_mark([make_sample("A cat?"), make_sample("A cat.")]) == [1.0, 0.0]


def test_answer_format_matches_hand_labels():
    assert answer_format([make_sample("<think>two</think><answer>3</answer>"), make_sample("3")]) == [1.0, 0.0]


def test_repetition_matches_hand_computation():
    # "a b c d a b c d" has five 4-grams, and the last repeats the first
    assert repetition([make_sample("a b c d A b c d"), make_sample("a b c")]) == [pytest.approx(0.2), 0.0]


def test_repetition_counts_characters_where_there_are_no_blanks():
    # 8 characters, so five 4-grams: the last repeats the first; the full stop makes 9 and six
    assert repetition([make_sample("红色杯子红色杯子"), make_sample("红色杯子红色杯子。"), make_sample("红色杯")]) == [
        pytest.approx(1 / 5), pytest.approx(1 / 6), 0.0,
    ]  # fmt: skip


def test_reward_functions_match_llava_rlhf_recipe_by_hand(tmp_path):
    """Its script's reward times ten: 10 x (1.2 + 2 x 1 - 10 x 448/896 x 1) for a right answer.

    An answer that is cut off, or asks something, gets 80 less.
    """
    config = load_config(PPOConfig, find("configs", "llava-rlhf/ppo"), {"dataset_name": "x", "output_dir": "x"})
    rewards = resolve_rewards(config.reward_terms, {"fact_rm": lambda samples: [1.2 for _ in samples]})
    half_length = {"num_tokens": 448, "max_tokens": config.response_length, "meta": {"caption_type": 2, "length_bonus": 1.0}}
    samples = [
        make_sample("A. A cat.", **half_length),
        make_sample("B. A cat.", **half_length, finished=False),
        make_sample("A. Or a cat?", **half_length),
    ]
    right, cut_off, with_question = score_samples(rewards, samples, tmp_path / "unused.json")
    assert right.total == pytest.approx(10 * (1.2 + 2 * 1 - 10 * 0.5)) and config.kl_coef == 10 * 0.1
    assert cut_off.total == pytest.approx(10 * (1.2 + 0 - 10 * 0.5 - 8))
    assert with_question.total == pytest.approx(right.total - 80)
    assert right.terms == pytest.approx({"fact_rm": 12, "correctness": 20, "length": -50, "missing_eos": 0, "question_mark": 0})


def test_correctness_does_not_apply_to_rows_without_a_reference():
    samples = [
        make_sample("2", reference="2"),
        make_sample("3", reference="2"),
        make_sample("2"),
        make_sample("No", meta={"caption_type": 6}),
    ]
    assert correctness(samples) == [1.0, 0.0, None, 0.5]


def test_is_correct_reads_no_with_a_noun_as_an_answer_to_a_yes_no_question():
    assert is_correct("No", "No cars in the street", "Look closely. Are there cars?")
    assert not is_correct("No", "No parking", "What does the sign say?")
