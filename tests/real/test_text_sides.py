"""Ids, loss masks, ends and texts of families with their published tokenizers and templates.

`make test-real` runs this folder; `tests.real.families` names the real parts of each family.
"""

import itertools
from types import SimpleNamespace

import pytest
import torch

from mmrlhf.claims import Lexicon, load_lexicon
from mmrlhf.engine.completions import Completions, char_to_token, pad_right
from mmrlhf.engine.sampling import SamplingParams, sample
from mmrlhf.engine.scoring import hidden_states
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import YES_NO_QUESTION, yes_no_head
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Claim, InputError, Message
from mmrlhf.rewards.credit import span_rewards
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.vlm import IMAGE_PROMPT, IMAGE_REPLY, VLMVerifier
from tests.helpers.family_setup import random_image
from tests.real.families import NO_TEXT_ONLY
from tests.real.oracle import AROUND_ANSWER, TRIMS_TEXTS, answer_text, last_hidden, one_pass, render

pytestmark = pytest.mark.real

IMAGE, OTHER_IMAGE = random_image(60, 60, 0), random_image(48, 40, 1)
QUESTION = "What is in the picture?"
ANSWERS = [
    "A cat.",
    "Yes",
    "No, there are 12 dogs (and a cat).",
    "🙂 A smile, 👩‍👩‍👧 a family.",
    "一只猫坐在红色的椅子上。",
    "قطة على كرسي أحمر",
    "  two  blanks in front,  and  between",
    "First line.\n\nSecond line:\n- a cup\n- 2 plates\n",
    "\nA line break in front",
    "- a list\n- of things",
    "(in brackets)",
    "1. one",
    "“Quoted”, naïve café.",
    ".",
    "a",
]


def expected_text(family: str, answer: str) -> str:
    """Return what an answer's ids must decode to."""
    return answer.strip() if family in TRIMS_TEXTS else answer


# ---- ids and masks -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_images", [1, 0])
def test_prompt_and_answer_ids_are_one_pass_over_the_conversation(family, vlm, num_images):
    """Every answer that one pass can tell apart from its prompt; `A cat.` must be one of them."""
    if family in NO_TEXT_ONLY and not num_images:
        return
    images = (IMAGE,) * num_images
    message = Message("user", QUESTION)
    (prompt,) = vlm.build_prompts([((message,), images)])
    prompt_text = render(vlm.processor, [("user", [None] * num_images + [QUESTION])], generation_prompt=True)
    assert prompt.token_ids.tolist() == one_pass(vlm, prompt_text, images)["input_ids"][0].tolist()
    for answer in ANSWERS:
        ids = vlm.answer_token_ids((message,), answer, num_images)
        actual = prompt.token_ids.tolist() + ids.tolist()
        if family == "paligemma":  # its processor writes an answer behind a line break of its own
            end = one_pass(vlm, prompt_text, images)["input_ids"][0].tolist()
            expected = end + vlm.tokenizer(answer + "<eos>", add_special_tokens=False)["input_ids"]
        else:
            expected = one_pass(vlm, answer_text(family, prompt_text, answer), images)["input_ids"][0].tolist()
        if expected[: len(prompt.token_ids)] == prompt.token_ids.tolist():
            assert actual == expected, answer
        else:  # the answer's first characters merge with the prompt's last ones
            assert answer in ("\nA line break in front", "(in brackets)", ".", "  two  blanks in front,  and  between"), answer
        assert vlm.decode(ids) == expected_text(family, answer)


def test_answer_ends_with_one_token_that_stops_generation(family, vlm, monkeypatch):
    ids = vlm.answer_token_ids((Message("user", QUESTION),), "A cat.", 0).tolist()
    end_id = vlm.tokenizer.convert_tokens_to_ids(AROUND_ANSWER[family][1])
    assert ids[-1] == end_id and end_id in vlm.eos and end_id not in vlm.suppressed_tokens.tolist()
    assert not set(ids[:-1]) & {*vlm.eos, *vlm.tokenizer.all_special_ids}
    process = VLM.process_logits

    def prefer_end(self, logits, temperature):
        return process(self, logits, temperature).index_fill(-1, torch.tensor([end_id]), 1e4)

    monkeypatch.setattr(VLM, "process_logits", prefer_end)
    prompts = vlm.build_prompts([((Message("user", QUESTION),), (IMAGE,))])
    sampled = sample(vlm, prompts, [0], SamplingParams(4, 0.0))
    assert sampled.token_ids_NT[0][sampled.mask_NT[0].bool()].tolist() == [end_id]
    assert sampled.finished_N.tolist() == [True]


def test_loss_is_on_all_assistant_turns_and_their_ends(family, vlm):
    """Each turn's learnt ids are those of the answer alone; the rest of the conversation is not."""
    conversation = [
        Message("user", QUESTION),
        Message("assistant", "A cat."),
        Message("user", "And what else?"),
        Message("assistant", "Two dogs\nand a bird."),
        Message("user", "Sure?"),
        Message("assistant", "Yes"),
    ]
    continuations = vlm.chat.learnt_continuations(conversation, 1, train_on="all")
    learnt = [t for c in continuations for t in c.targets[c.is_learnt.bool()].tolist()]
    answers = [vlm.answer_token_ids(conversation[:i], conversation[i].content, 1).tolist() for i in (1, 3, 5)]
    assert learnt == list(itertools.chain.from_iterable(answers))
    (last,) = vlm.chat.learnt_continuations(conversation, 1, train_on="last")
    assert last.targets[last.is_learnt.bool()].tolist() == answers[2]
    if family == "paligemma":
        return
    # What the model reads is one pass over the conversation, up to the last answer's end.
    turns = [("user", [None, QUESTION]), *((m.role, m.content) for m in conversation[1:])]
    for continuation in continuations:
        stop = continuation.num_messages
        (prompt,) = vlm.build_prompts([(conversation[:stop], (IMAGE,))])
        read = prompt.token_ids.tolist() + continuation.token_ids.tolist()
        num_turns = 2 * round(continuation.is_learnt.diff().eq(1).sum().item() + float(continuation.is_learnt[0])) + stop - 1
        text = answer_text(family, render(vlm.processor, turns[: num_turns - 1], generation_prompt=True), turns[num_turns - 1][1])
        assert read == one_pass(vlm, text, (IMAGE,))["input_ids"][0].tolist()


IMAGE_SIZES = [[(60, 60)], [(640, 427)], [(500, 1200)], [(1500, 300)], [(64, 64), (900, 700)]]


def test_lengths_of_prompts_are_known_from_image_sizes(family, vlm):
    lengths = PromptLengths(vlm)
    for sizes in IMAGE_SIZES[: -1 if family in NO_TEXT_ONLY else None]:
        images = tuple(random_image(*size, seed) for seed, size in enumerate(sizes))
        text = render(vlm.processor, [("user", [*[None] * len(images), QUESTION])], generation_prompt=True)
        expected = one_pass(vlm, text, images)["input_ids"].shape[1]
        assert lengths.count((Message("user", QUESTION),), images) == expected, sizes


def test_images_between_texts_keep_their_places(family, vlm):
    if family in NO_TEXT_ONLY:
        pytest.skip("its processor wants one image, in front")
    text, places = "Before:  after:  What changed?", (8, 16)
    conversation = (Message("user", text, places),)
    (prompt,) = vlm.build_prompts([(conversation, (IMAGE, OTHER_IMAGE))])
    turns = [("user", [text[:8], None, text[8:16], None, text[16:]])]
    expected = one_pass(vlm, render(vlm.processor, turns, generation_prompt=True), (IMAGE, OTHER_IMAGE))
    assert prompt.token_ids.tolist() == expected["input_ids"][0].tolist()


@pytest.mark.parametrize("where", ["user", "assistant"])
def test_control_tokens_in_texts_are_refused(family, vlm, where):
    image_tokens = {getattr(vlm.processor, "image_token", None), "<image>", "<|image_pad|>", "<start_of_image>", "<|image|>"}
    known = set(vlm.tokenizer.get_added_vocab())
    for token in {AROUND_ANSWER[family][1], *(image_tokens & known)}:
        text = f"A {token} cat."
        with pytest.raises(InputError, match=r"control token|would show the model 2 images"):
            if where == "user":
                vlm.build_prompts([((Message("user", text),), (IMAGE,))])
            else:
                vlm.answer_token_ids((Message("user", QUESTION),), text, 1, row_id="r")
        escaped = vlm.escape_control_tokens(text)
        assert token not in escaped
        ids = vlm.answer_token_ids((Message("user", QUESTION),), escaped, 1)[:-1].tolist()
        assert not set(ids) & set(vlm.tokenizer.all_special_ids)


def test_system_turns_are_written_as_text(family, vlm):
    conversation = (Message("system", "Be brief."), Message("user", QUESTION))
    text = vlm.apply_chat_template(conversation, 0, generation_prompt=True)
    assert text.count("Be brief.") == 1 and text.index("Be brief.") < text.index(QUESTION) and "type" not in text
    if family == "mllama":
        with pytest.raises(InputError, match=r"refuses it \(Prompting with images is incompatible with system messages\)"):
            vlm.apply_chat_template(conversation, 1, generation_prompt=True)


# ---- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ANSWERS)
def test_characters_belong_to_the_tokens_that_complete_them(family, vlm, answer):
    """The tokenizer's own offsets, over the whole text, say where each character ends."""
    ids = vlm.answer_token_ids((Message("user", QUESTION),), answer, 0)
    text = vlm.decode(ids)
    token_of_char = char_to_token(vlm, ids, text)
    assert len(token_of_char) == len(text) and token_of_char == sorted(token_of_char)
    lead, _ = AROUND_ANSWER[family]
    before = "a:\n" if not lead else "a:"
    whole = vlm.tokenizer(before + lead + text, add_special_tokens=False, return_offsets_mapping=True)
    num_before = len(vlm.tokenizer(before, add_special_tokens=False)["input_ids"])
    if whole["input_ids"][num_before:] != ids.tolist()[:-1]:
        return  # the first characters merge with those before them: another tokenization than the answer's
    starts_at = len(before + lead)
    for position in range(len(text)):
        covering = [
            t for t, (start, end) in enumerate(whole["offset_mapping"][num_before:]) if start <= starts_at + position < end
        ]
        assert token_of_char[position] == max(covering), (position, text[position])


def test_rewards_of_claims_land_on_their_last_tokens(family, vlm):
    claims = ["a 🐈 cat", "一只狗", "two  cups"]
    text = f"There is {claims[0]}.\n\n{claims[1]}，and {claims[2]} on it."
    ids = vlm.answer_token_ids((Message("user", QUESTION),), text, 0)
    assert vlm.decode(ids) == text
    ends = [text.index(claim) + len(claim) for claim in claims]
    spans = [(end - len(claim), end, reward) for claim, end, reward in zip(claims, ends, (-1.0, 2.0, -3.0), strict=True)]
    completions = SimpleNamespace(
        token_ids_NT=ids[None], mask_NT=torch.ones_like(ids)[None], logps_NT=torch.zeros(1, len(ids)), texts=[text]
    )
    (rewards,) = span_rewards(vlm, completions, [SimpleNamespace(spans={"claims": spans})])
    rewarded = rewards.nonzero()[:, 0].tolist()
    assert rewards[rewarded].tolist() == [-1.0, 2.0, -3.0]
    for token, end in zip(rewarded, ends, strict=True):
        before, after = (vlm.decode(ids[:n]).rstrip("\N{REPLACEMENT CHARACTER}") for n in (token, token + 1))
        assert len(before) < end <= len(after)


# ---- numbers -------------------------------------------------------------------------------------


def test_log_probs_of_a_pair_are_those_of_a_plain_forward(family, vlm):
    message, pair = Message("user", QUESTION), ("A cat on a red chair.", "Two dogs.")
    prompts = vlm.build_prompts([((message,), (IMAGE,))])
    answer_ids = [vlm.answer_token_ids((message,), answer, 1) for answer in pair]
    completions = Completions(prompts, torch.tensor([0, 0]), *pad_right(answer_ids, 0, vlm.device))
    actual = torch.zeros(2)
    with torch.no_grad():
        for indices, hidden in hidden_states(Role(Adapters(vlm), None), completions):
            width = hidden.shape[1]
            ids, mask = completions.token_ids_NT[indices, :width], completions.mask_NT[indices, :width]
            actual[indices] = vlm.token_logps(hidden, ids, mask).sum(1)
    prompt_text = render(vlm.processor, [("user", [None, QUESTION])], generation_prompt=True)
    for n, ids in enumerate(answer_ids):
        batch = whole_batch(family, vlm, prompt_text, pair[n])
        states = last_hidden(vlm, batch, len(ids) + 1)[:-1]
        logits = vlm.model.get_output_embeddings()(states)
        logits[:, vlm.suppressed_tokens] = -torch.inf
        expected = logits.log_softmax(-1).gather(1, ids[:, None]).sum()
        assert actual[n].item() == pytest.approx(expected.item(), abs=1e-5 * len(ids))


def whole_batch(family: str, vlm, prompt_text: str, answer: str) -> dict[str, torch.Tensor]:
    """Return the processor's batch for a prompt with an image and an answer."""
    if family != "paligemma":
        return one_pass(vlm, answer_text(family, prompt_text, answer), (IMAGE,))
    batch = one_pass(vlm, prompt_text, (IMAGE,))
    answer_ids = torch.tensor([vlm.tokenizer(answer + "<eos>", add_special_tokens=False)["input_ids"]])
    batch["input_ids"] = torch.cat([batch["input_ids"], answer_ids], 1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["token_type_ids"] = torch.cat([batch["token_type_ids"], torch.ones_like(answer_ids)], 1)
    return batch


def yes_minus_no(family: str, vlm, turns, images) -> float:
    """Return the logit of Yes minus that of No after a conversation, by a plain forward pass."""
    text = render(vlm.processor, turns, generation_prompt=True)
    if family == "llava_onevision":  # an answer follows the generation prompt; its turn has a blank more
        text = text.replace(f"assistant \n{turns[1][1]}", f"assistant\n{turns[1][1]}")
    batch = one_pass(vlm, text, images)
    lead, _ = AROUND_ANSWER[family]
    if family == "paligemma":
        yes, no = (vlm.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    else:
        ids = [one_pass(vlm, text + lead + word, images)["input_ids"][0].tolist() for word in ("Yes", "No")]
        length = batch["input_ids"].shape[1]
        assert ids[0][:length] == ids[1][:length] == batch["input_ids"][0].tolist()
        yes, no = (row[length] for row in ids)
    assert yes != no
    weight = vlm.model.get_output_embeddings().weight.float()
    return float(last_hidden(vlm, batch, 1)[0] @ (weight[yes] - weight[no]))


def test_reward_starts_from_yes_against_no(family, vlm):
    if family == "paligemma":
        pytest.skip("its processor writes no conversation after an answer")
    message, answer = Message("user", QUESTION), "A cat."
    model = RewardModel(Role(Adapters(vlm), None, yes_no_head(vlm)), "none", "before", max_length=8192)
    ((_, scores),) = list(model.raw_scores([AnswerGroup((IMAGE,), (message,), (answer,))]))
    turns = [("user", [None, QUESTION]), ("assistant", answer), ("user", YES_NO_QUESTION)]
    assert scores[0].item() == pytest.approx(yes_minus_no(family, vlm, turns, (IMAGE,)), abs=1e-4)


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return load_lexicon()


def test_verifier_reads_yes_against_no(family, vlm, lexicon):
    if family == "paligemma":
        pytest.skip("its processor writes no conversation after an answer")
    verifier = VLMVerifier(Role(Adapters(vlm), None), lexicon, max_length=8192)
    ((log_odds,),) = verifier.log_odds([AnswerClaims((IMAGE,), (), (Claim("object", "cat"),))])
    question = "Is there a cat in the picture?"
    turns = [("user", [None, IMAGE_PROMPT]), ("assistant", IMAGE_REPLY), ("user", question)]
    assert log_odds == pytest.approx(yes_minus_no(family, vlm, turns, (IMAGE,)), abs=1e-4)
