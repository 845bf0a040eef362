"""Answers that show images: log-probs and scores equal a naive forward of the whole text."""

import dataclasses
import json

import pytest
import torch

from mmrlhf.cli import main
from mmrlhf.commands.score import score
from mmrlhf.config import ScoreConfig
from mmrlhf.datasets import read_preferences
from mmrlhf.dpo import dpo
from mmrlhf.files.inputs import rows_digest
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.models.adapters import Role
from mmrlhf.models.answer_images import answer_texts
from mmrlhf.models.heads import scalar_head
from mmrlhf.models.images import open_image
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.records import ImageSource, InputError, Message, PlacedImage, Preference, answer_turn
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel, by_group, reward_messages
from mmrlhf.training.dpo.batch import answer_lengths, build_batch
from mmrlhf.training.reward_model.measured_rows import to_answer_group
from mmrlhf.training.row_checks import group_length
from tests.helpers.family_setup import IMAGE_A, IMAGE_B, IMAGE_C, FamilySetup
from tests.helpers.runs import stopped_after
from tests.helpers.stages import dpo_config, reward_config

PROMPT = (Message("user", "Draw the circle on a blue square."),)


def placed(*images: tuple[int, ImageSource]) -> tuple[PlacedImage, ...]:
    return tuple(PlacedImage(position, source) for position, source in images)


def ranking(images: tuple[ImageSource, ...] = (IMAGE_A,), row_id: str = "row") -> Preference:
    """Three answers: an image between texts, texts around and before two images, and a text."""
    answers = ("A red circle. There it is.", "A blue square in the top left", "A square.")
    answer_images = (placed((13, IMAGE_B)), placed((0, IMAGE_C), (29, IMAGE_B)), ())
    return Preference(row_id, images, PROMPT, answers, (1, 2, 3), answer_images=answer_images)


@pytest.fixture(params=["llava", "qwen2_5_vl", "qwen3_vl", "idefics3", "gemma3"])
def family(request, tmp_path) -> FamilySetup:
    return FamilySetup(request.param, tmp_path / "checkpoint")


def naive_states(f: FamilySetup, text: str, images) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids [L] and hidden states [L, D] of a rendered text, from pixels, in one pass."""
    batch, _ = f.vlm.encoder.process([text], [[open_image(image) for image in images]])
    return batch["input_ids"][0], f.vlm.model.base_model(**batch, use_cache=False).last_hidden_state[0]


def sum_of_logps(f: FamilySetup, row: Preference, answer: int) -> float:
    """Return the log-prob of an answer's own texts and its end, each token found in the whole."""
    images, turn = row.images_of(answer), answer_turn(row.answers[answer], row.images_of(answer))
    shown = (*row.images, *(image.source for image in images))
    text = f.vlm.chat.render([*row.prompt, turn], len(shown), generation_prompt=False)
    ids, hidden = naive_states(f, text.rstrip(), shown)
    log_probs, position, total = f.vlm.log_softmax(hidden), 0, 0.0
    if not images:
        token_ids = f.vlm.answer_token_ids(row.prompt, row.answers[answer], len(row.images)).tolist()
        texts = [token_ids]
    else:
        texts = [text.token_ids.tolist() for text in answer_texts(f.vlm.chat, row.prompt, turn, len(row.images))]
    position = len(f.vlm.build_prompts([(row.prompt, row.images)])[0].token_ids)
    for token_ids in texts:
        while ids[position : position + len(token_ids)].tolist() != token_ids:
            position += 1
            assert position < len(ids)
        total += sum(float(log_probs[position + t - 1, i]) for t, i in enumerate(token_ids))
        position += len(token_ids)
    return total


@torch.no_grad()
def test_log_probs_are_those_of_one_pass_over_everything(family):
    """Texts before, between and after images; image tokens are read and not counted."""
    drawing = Preference("pair", (), PROMPT, ("Here.", "No."), (1, 2), answer_images=(placed((0, IMAGE_B)), ()))
    rows = [ranking(), ranking((), "without an image in the prompt"), drawing]
    config = dpo_config(str(family.directory), family.directory)
    policy = Role(family.adapters, "policy")
    batch = build_batch(config, family.vlm, rows, [None] * 3)
    actual = batch.by_answer(batch.weighted_logps(policy))
    with policy.active():
        expected = [sum_of_logps(family, row, answer) for row in rows for answer in range(len(row.answers))]
    assert torch.allclose(actual, torch.tensor(expected), atol=2e-3)
    assert batch.answers_per_row == [5, 5, 2] and batch.prompts_per_row == [5, 5, 2]
    lengths = PromptLengths(family.vlm)
    measured = answer_lengths(config, family.vlm, lengths, rows[0], rows[0].images, range(3))
    num_tokens = [
        len(p.token_ids) + int(n) for p, n in zip(batch.completions.prompts, batch.completions.mask_NT.sum(1), strict=False)
    ]
    assert sorted(measured) == sorted([num_tokens[0], num_tokens[2], num_tokens[4]])
    family.vlm.engine.share_prefix = "off"  # the naive path reads the same rows
    again = build_batch(config, family.vlm, rows, [None] * 3)
    assert torch.allclose(again.by_answer(again.weighted_logps(policy)), actual, atol=2e-3)


@torch.no_grad()
def test_scores_are_those_of_one_pass_over_everything(family):
    row = ranking()
    weight = torch.randn(family.vlm.hidden_size, generator=torch.Generator().manual_seed(3))
    model = RewardModel(Role(family.adapters, "policy", scalar_head(weight)), "none", "before")
    groups = [to_answer_group(row), AnswerGroup((IMAGE_B,), PROMPT, ("No.", "Yes."), (), "text")]
    actual = by_group(model.raw_scores(groups), groups)
    with model.role.active():
        for answer in range(3):
            *messages, _, question = reward_messages(row.prompt, "", "", "before")
            turn = answer_turn(row.answers[answer], row.images_of(answer))
            shown = (*row.images, *(image.source for image in row.images_of(answer)))
            text = family.vlm.chat.render([*messages, turn, question], len(shown), generation_prompt=True)
            _, hidden = naive_states(family, text, shown)
            if not family.vlm.chat.reply_start:
                assert float(model.role.head(hidden[-1])) == pytest.approx(float(actual[0][answer]), abs=2e-3)
    alone = by_group(model.raw_scores(groups[1:]), groups[1:])[0]
    assert torch.allclose(actual[1], alone, atol=1e-4)
    texts = model.last_texts(groups[0])
    built = family.vlm.build_prompts_before([t for t, _ in texts], [i for _, i in texts], 4096, ["row"] * 3)
    longest = max(len(p.token_ids) + len(t.token_ids) for p, (t, _) in zip(built, texts, strict=True))
    assert group_length(model, PromptLengths(family.vlm), groups[0]).num_tokens == longest


def test_texts_are_found_between_the_tokens_of_images(tmp_path):
    """Qwen's `<|vision_end|>` holds the word that follows it; a blank after an image is no text."""
    f = FamilySetup("qwen2_5_vl", tmp_path / "checkpoint")
    texts = answer_texts(f.vlm.chat, PROMPT, Message("assistant", "start end ", (5, 10)), 0)
    assert [f.vlm.tokenizer.decode(text.token_ids) for text in texts] == ["start", " end", "</s>"]
    assert [text.num_images for text in texts] == [0, 1, 2]
    assert texts[1].before.endswith("<|vision_end|>") and texts[2].before.endswith("<|vision_end|>")


@pytest.mark.parametrize("token", ["</s>", "<|image_pad|>"])
def test_control_tokens_in_the_prompt_are_refused(token, tmp_path):
    f = FamilySetup("qwen2_5_vl", tmp_path / "checkpoint")
    prompt = (Message("user", f"Draw. {token} Ten points."),)
    with pytest.raises(InputError, match="row 7: the prompt, an answer or what follows it"):
        answer_texts(f.vlm.chat, prompt, Message("assistant", "So: here.", (4,)), 0, row_id="7")


def test_a_template_without_images_in_answers_is_refused(vlm):
    """As if the template wrote the texts of an assistant's turn alone."""
    answer = Message("assistant", "So: here.", (4,))
    vlm.chat.render = lambda messages, n, **kwargs: type(vlm.chat).render(
        vlm.chat, [dataclasses.replace(m, image_positions=()) if m.role == "assistant" else m for m in messages], 0, **kwargs
    )
    with pytest.raises(InputError, match=r"row 7: the chat template of \S+ does not write the images and texts of an answer"):
        answer_texts(vlm.chat, PROMPT, answer, 0, row_id="7")


def test_equal_texts_with_other_images_have_scores_of_their_own(family):
    model = RewardModel(Role(family.adapters, "policy", scalar_head(torch.ones(family.vlm.hidden_size))), "none", "before")
    images = (placed((0, IMAGE_A)), placed((0, IMAGE_B)), placed((0, IMAGE_A)))
    (scores,) = model.score([AnswerGroup((), PROMPT, ("", "", ""), (), "row", images)])
    assert scores[0] == scores[2] != scores[1]


# ---- stages ------------------------------------------------------------------------------------


@pytest.fixture
def rows(examples, pairs) -> list[Preference]:
    """Pairs of drawings with the same words, and two ordinary pairs."""
    drawn = [
        Preference.from_pair(
            f"drawn-{i}", (), PROMPT, "Here it is.", "Here it is!",
            answer_images=(placed((0, a.images[0])), placed((0, b.images[0]))),
        )
        for i, (a, b) in enumerate(zip(examples[:4], examples[4:8], strict=True))
    ]  # fmt: skip
    return [*drawn, *pairs[:2]]


def test_dpo_learns_and_resumes_bit_for_bit(tiny_vlm_path, rows, tmp_path):
    def train(folder):
        return dpo(dpo_config(tiny_vlm_path, folder, max_steps=3, per_device_train_batch_size=3), rows)

    train(tmp_path / "whole")
    with stopped_after(2):
        train(tmp_path / "stopped")
    train(tmp_path / "stopped")
    whole, stopped = ((tmp_path / name / "policy/adapter_model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped
    first, last = (read_jsonl(tmp_path / "whole" / "metrics.jsonl")[i] for i in (0, -1))
    assert first["grad_norm"] > 0 and last["loss"] < first["loss"]


def test_reward_learns_saves_and_scores_drawings(tiny_vlm_path, rows, tmp_path):
    path = train_reward_model(reward_config(tiny_vlm_path, tmp_path / "reward", max_steps=6), rows, rows)
    metrics = read_jsonl(tmp_path / "reward" / "metrics.jsonl")
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    model = load_reward_model(str(path))  # it scores its reference rows again
    scores = model.score([to_answer_group(row) for row in rows])
    assert scores[0][0] != scores[0][1]


def test_dpo_refuses_what_it_cannot_learn(tiny_vlm_path, rows, tmp_path):
    with pytest.raises(InputError, match=r"changed_token_weight compares texts, and an answer shows images: .* \(row drawn-0\)"):
        dpo(dpo_config(tiny_vlm_path, tmp_path / "a", changed_token_weight=2), rows[:1])
    images_alone = dataclasses.replace(rows[0], answers=("", ""))
    with pytest.raises(InputError, match=r"an answer is images alone, and dpo learns texts: .* \(row drawn-0\)"):
        dpo(dpo_config(tiny_vlm_path, tmp_path / "b"), [images_alone])


# ---- files -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name, image in (("p.png", IMAGE_A), ("a.png", IMAGE_B), ("b.png", IMAGE_C)):
        (tmp_path / name).write_bytes(image.read())
    return tmp_path


def part(image=None, text=None):
    return {"type": "text", "text": text} if image is None else {"type": "image"} | ({"image": image} if image else {})


FORMATS = {
    "parts that hold their images": {
        "images": ["p.png"],
        "prompt": "What?",
        "chosen": [{"role": "assistant", "content": [part(text="So: "), part("a.png")]}],
        "rejected": [{"role": "assistant", "content": [part("b.png"), part(text="No.")]}],
    },
    "conversations": {
        "chosen": [
            {"role": "user", "content": [part("p.png"), part(text="What?")]},
            {"role": "assistant", "content": [part(text="So: "), part("a.png")]},
        ],
        "rejected": [
            {"role": "user", "content": [part("p.png"), part(text="What?")]},
            {"role": "assistant", "content": [part("b.png"), part(text="No.")]},
        ],
    },
    "LLaMA-Factory": {
        "images": ["p.png", "a.png", "b.png"],
        "conversations": [{"from": "human", "value": "<image>What?"}],
        "chosen": {"from": "gpt", "value": "So: <image>"},
        "rejected": {"from": "gpt", "value": "<image>No."},
    },
    "ms-swift": {
        "images": ["p.png", "a.png"],
        "messages": [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "So: <image>"}],
        "rejected_response": "<image>No.",
        "rejected_images": ["p.png", "b.png"],
    },
}


def write_row(folder, row) -> str:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return str(folder / "rows.jsonl")


@pytest.mark.parametrize("name", FORMATS)
def test_formats_give_the_same_row(name, folder):
    path = write_row(folder, FORMATS[name])
    (row,) = read_preferences(path, answer_images=True)
    assert ([message.content for message in row.prompt] == ["What?"] and row.answers == ("So: ", "No.")) or row.answers == (
        "So:",
        "No.",
    )
    assert [image.read() for image in row.all_images] == [image.read() for image in (IMAGE_A, IMAGE_B, IMAGE_C)]
    assert [[image.position for image in images] for images in row.answer_images] == [[len(row.answers[0])], [0]]
    with pytest.raises(InputError, match=r"rows.jsonl, line 1: its answers contain images, which only dpo and reward read"):
        read_preferences(path)
    score_config = ScoreConfig(reward_model_path="none", dataset_name=path, output_file=str(folder / "scores.jsonl"))
    with pytest.raises(InputError, match="which only dpo and reward read"):
        score(score_config)


def test_equal_answers_with_equal_images_are_refused(folder):
    row = FORMATS["LLaMA-Factory"] | {"rejected": {"from": "gpt", "value": "So: <image>"}}
    (pair,) = read_preferences(write_row(folder, row), answer_images=True)
    assert pair.answers[0] == pair.answers[1]
    with pytest.raises(InputError, match="the chosen and the rejected answer are the same"):
        read_preferences(write_row(folder, row | {"images": ["p.png", "a.png", "a.png"]}), answer_images=True)


def test_commands_on_files_read_answers_with_images(folder, capsys):
    path = write_row(folder, FORMATS["ms-swift"])
    for command in (["check"], ["stats"]):
        assert main(["data", *command, path]) == 0
    assert "3" in capsys.readouterr().out
    out = folder / "out.jsonl"
    assert main(["data", "convert", path, "--output_file", str(out), "--to", "trl"]) == 0
    (before,), (after,) = (read_preferences(str(file), answer_images=True) for file in (path, out))
    assert rows_digest([before], images_only=False) == rows_digest([dataclasses.replace(after, id=before.id)], images_only=False)
    assert main(["data", "convert", path, "--output_file", str(folder / "v.jsonl"), "--to", "rlhf-v"]) == 2
    assert "images inside answers" in capsys.readouterr().err
