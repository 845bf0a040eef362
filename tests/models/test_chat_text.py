"""Token ids of prompts and answers, the loss mask of a conversation, control tokens in texts."""

import re
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrlhf.models.chat_template import apply_chat_template
from mmrlhf.models.chat_text import ChatText
from mmrlhf.models.control_tokens import ControlTokens
from mmrlhf.records import InputError, Message, place_images
from tests.helpers.tiny_llama import LLAVA_1_5, PARTS, build_llama_tokenizer, build_processor
from tests.helpers.tiny_parts import build_chat_template, build_tokenizer

QUESTION = Message("user", "What is this?")
END = "{% if m['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
WITH_END = LLAVA_1_5.replace("{{ ' ' }}{% endfor %}", END + "{{ ' ' }}{% endfor %}")
ALL_KINDS = ("prepend", "metaspace", "bytes")


def make_chat(kind: str, template: str = LLAVA_1_5) -> ChatText:
    tokenizer = build_tokenizer("<image>", image_token="<image>") if kind == "bytes" else build_llama_tokenizer(kind)
    return ChatText(build_processor(tokenizer, template), "MODEL", [tokenizer.eos_token_id])


def tokens(chat: ChatText, token_ids) -> list[str]:
    return chat.tokenizer.convert_ids_to_tokens(token_ids)


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prepend", "metaspace"])
def test_answer_ids_are_those_of_one_pass(kind):
    """No mark comes before the answer's first token or before its end."""
    chat = make_chat(kind)
    assert tokens(chat, chat.answer_token_ids([QUESTION], "A cat.", 1)) == ["▁A", "▁cat", ".", "</s>"]
    assert [tokens(chat, chat.answer_token_ids([QUESTION], word, 0))[0] for word in ("Yes", "No")] == ["▁Yes", "▁No"]


BLANK_BEFORE_END = LLAVA_1_5.replace("{{ ' ' }}{% endfor %}", "{{ ' ' }}" + END + "{% endfor %}")
LINE_BREAK_FIRST = WITH_END.replace("': ' }}", "':\\n' }}")
TRAILING_BLANK = LLAVA_1_5.replace("'ASSISTANT:'", "'ASSISTANT: '")


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("template", [LLAVA_1_5, WITH_END, BLANK_BEFORE_END, LINE_BREAK_FIRST, TRAILING_BLANK])
@pytest.mark.parametrize("answer", ["A cat.", "Yes", "🙂 is 一 مرحبا.", "  two  blanks", "a\n\nb", "3 dogs", "\nx"])
def test_prompt_and_answer_ids_are_one_pass_and_decode_to_the_answer(kind, template, answer):
    chat = make_chat(kind, template)
    prompt = chat.render([QUESTION], 1, generation_prompt=True)
    answer_ids = chat.answer_token_ids([QUESTION], answer, 1)
    text = prompt + chat.lead + answer + chat.tail + "</s>"
    assert (chat.lead, chat.tail) == ("\n" if template == LINE_BREAK_FIRST else " ", " " * (template == BLANK_BEFORE_END))
    assert chat.encode(prompt) + answer_ids.tolist() == chat.encode(text)
    assert chat.decode(answer_ids) == answer


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_reply_is_read_where_its_first_word_begins(kind):
    """If an answer has a line break of its own before it, yes and no come after it."""
    for template, expected in ((LLAVA_1_5, []), (LINE_BREAK_FIRST, ["<0x0A>" if kind != "bytes" else "Ċ"])):
        chat = make_chat(kind, template)
        prompt = chat.render(CONVERSATION[:3], 1, generation_prompt=True)
        ids = chat.answer_token_ids([QUESTION], "A cat.", 1, [CONVERSATION[2]])
        first_prompt_ids = chat.encode(chat.render([QUESTION], 1, generation_prompt=True))
        assert tokens(chat, (first_prompt_ids + ids.tolist())[len(chat.encode(prompt)) :]) == expected
        yes, no = (chat.answer_token_ids(CONVERSATION[:3], word, 1).tolist() for word in ("Yes", "No"))
        assert tokens(chat, yes[: len(expected)]) == expected == tokens(chat, no[: len(expected)])
        assert yes[len(expected)] != no[len(expected)]


def test_turn_that_differs_from_its_generation_prompt_in_white_space_only():
    """LLaVA-OneVision's does; an answer is learnt after the same tokens as it is generated."""
    turn = "{{ m['role'] }}: {% if m['role'] == 'assistant' %}{{ '\n' }}{% endif %}" + PARTS
    template = "{% for m in messages %}" + turn + END + "{% endfor %}{% if add_generation_prompt %}assistant:\n{% endif %}"
    chat = make_chat("bytes", template)
    prompt = chat.render(CONVERSATION[:1], 0, generation_prompt=True)
    for answer in ("A cat.", " two  blanks", "\nA line"):
        ids = chat.answer_token_ids([QUESTION], answer, 0)
        assert chat.decode(ids) == answer
        assert chat.encode(prompt) + ids.tolist() == chat.encode(f"{prompt}{answer}</s>") or answer[0] == "\n"
    learnt = chat.learnt_continuations(CONVERSATION, 0, train_on="all")
    assert [c.num_messages for c in learnt] == [1, 3] and all(bool(c.is_learnt.all()) for c in learnt)
    assert [chat.decode(c.targets) for c in learnt] == ["A cat.", "Two dogs."]


def test_template_that_opens_a_thought_is_used_without_one(capsys):
    """Like Qwen3.5's, which writes an answer behind an empty thought; thinking is on by default."""
    thought = "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    start = (
        "{{ 'ASSISTANT: <think>\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}"
    )
    turn = "{{ m['role'].upper() ~ ': ' }}" + thought + PARTS + END
    template = "{% for m in messages %}" + turn + "{% endfor %}{% if add_generation_prompt %}" + start + "{% endif %}"
    chat = make_chat("bytes", template)
    assert "without thinking first" in capsys.readouterr().out
    assert chat.render([QUESTION], 0, generation_prompt=True).endswith("ASSISTANT: <think>\n\n</think>\n\n")
    assert chat.decode(chat.answer_token_ids([QUESTION], "A cat.", 0)) == "A cat."
    assert ChatText(chat.processor, "SAVED", chat.eos).render([QUESTION], 0, generation_prompt=True).endswith("</think>\n\n")
    assert not capsys.readouterr().out
    with pytest.raises(InputError, match="writes '</think>' between its generation prompt and an answer"):
        make_chat("bytes", template.replace("enable_thinking", "other"))


def test_end_that_is_no_token_is_not_learnt():
    """llava-v1.6-mistral's template was published with a literal <\\s> as the end of a turn."""
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}" + PARTS + "{{ ' [/INST]' }}{% else %}"
    template += "{{ ' ' }}" + PARTS + "{{ '<\\\\s>' }}{% endif %}{% endfor %}"
    chat = make_chat("prepend", template)
    assert tokens(chat, chat.answer_token_ids([QUESTION], "A cat.", 0)) == ["▁A", "▁cat", ".", "</s>"]
    assert "<\\s>" in chat.render([QUESTION, Message("assistant", "A cat.")], 0, generation_prompt=False)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            WITH_END[: WITH_END.index("{% if add_generation_prompt")],
            "writes 'ASSISTANT:' between its generation prompt and an answer",
        ),
        (WITH_END.replace("{{ '</s>' }}", "{{ '<\\\\s></s>' }}"), r"writes '<\\\\s>' between an answer and its end"),
        (LLAVA_1_5.replace("'ASSISTANT:'", "'ASSISTANT (thinks):'"), "renders an assistant turn differently"),
        (LLAVA_1_5.replace("'ASSISTANT:'", "'ASSIST'"), "writes 'ANT:' between|merges the end of the generation prompt"),
        ("{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] }} {% endfor %}", "writes a turn's parts as code"),
        ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] }} {% endfor %}", "fails on a plain question"),
        ("{{ raise_exception('No.') }}", r"fails on a plain question \(No\)"),
        ("Hello.", "leaves out a turn's text"),
    ],
)
def test_model_whose_answers_cannot_be_told_apart_is_refused(template, reason):
    with pytest.raises(InputError, match=f"^MODEL: its .*(?:{reason})"):
        make_chat("prepend", template)


GENERATION_TAG = LLAVA_1_5.replace("{{ c['text'] }}", "{% generation %}{{ c['text'] | tojson }}{% endgeneration %}{% continue %}")


@pytest.mark.parametrize(
    "template",
    [
        LLAVA_1_5,
        WITH_END,
        GENERATION_TAG,
        build_chat_template("<image>"),
        "{{ bos_token }}\n  {% if 1 %}\n  x{% endif %}" + LLAVA_1_5,
    ],
)
def test_templates_render_as_in_transformers(template):
    processor = build_processor(build_llama_tokenizer("prepend"), template)
    conversation = [QUESTION, Message("assistant", '<A> "cat"\n é.'), Message("user", "And this?", (4,))]
    turns = [{"role": m.role, "content": m.parts()} for m in place_images(conversation, 2)]
    for generation_prompt in (True, False):
        expected = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
        assert apply_chat_template(processor, conversation, 2, generation_prompt=generation_prompt, name="MODEL") == expected


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + LLAVA_1_5,
        "{{ 'a' * 3000000000 }}" + LLAVA_1_5,
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}" + LLAVA_1_5,
        LLAVA_1_5 + "{{ 1 / 0 }}",
        LLAVA_1_5 + "{{ messages[9].role.x.y }}",
        LLAVA_1_5 + "{% include 'a' %}",
        LLAVA_1_5 + "{% if %}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}" + LLAVA_1_5,
        7,
        {"tool_use": LLAVA_1_5},
    ],
)  # fmt: skip
def test_broken_and_hostile_templates_are_one_sentence(template):
    processor = build_processor(build_llama_tokenizer("prepend"))
    processor.chat_template = template
    with pytest.raises(
        InputError, match=r"^MODEL: its chat template fails on a plain question \([^\n]+\): use another template$"
    ):
        ChatText(processor, "MODEL", [2])


def test_prompts_do_not_depend_on_the_day():
    chat = make_chat("bytes", "{{ strftime_now('%d %b %Y') }} " + LLAVA_1_5)
    assert chat.render([QUESTION], 0, generation_prompt=True) == "26 Jul 2024 USER: What is this? ASSISTANT:"


def test_templates_refusal_names_the_row():
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turns.') }}{% endif %}" + LLAVA_1_5
    chat = make_chat("prepend", template)
    with pytest.raises(InputError, match=r"^row 30: the chat template of MODEL refuses it \(No system turns\)"):
        chat.answer_token_ids([Message("system", "Be brief."), QUESTION], "Yes", 0, row_id="30")


def test_answer_that_the_template_rewrites_is_refused():
    chat = make_chat("bytes", LLAVA_1_5.replace("c['text']", "c['text'].split('</think>')[-1]"))
    with pytest.raises(InputError, match="row 4: the chat template of MODEL rewrites the answer"):
        chat.answer_token_ids([QUESTION], "<think>hm</think> Yes", 0, row_id="4")


@settings(max_examples=60)
@given(
    st.sampled_from(ALL_KINDS),
    st.sampled_from([LLAVA_1_5, WITH_END, build_chat_template("<image>")]),
    st.text(st.sampled_from("aA1 .(:\né\u0301🙂一م</>s"), min_size=1, max_size=12),
)
def test_any_answer_decodes_to_itself(kind, template, answer):
    chat = make_chat(kind, template)
    ids = chat.answer_token_ids([QUESTION], answer, 0) if "<s>" not in answer and "</s>" not in answer else None
    if ids is not None:
        assert chat.decode(ids).strip() == answer.strip() and ids[-1] in chat.eos and chat.eos[0] not in ids[:-1]


# ---- conversations -------------------------------------------------------------------------------

CONVERSATION = [QUESTION, Message("assistant", "A cat."), Message("user", "describe"), Message("assistant", "Two dogs.")]


def learnt_tokens(chat: ChatText, continuation) -> list[str]:
    return tokens(chat, continuation.targets[continuation.is_learnt.bool()])


@pytest.mark.parametrize("kind", ["prepend", "metaspace"])
@pytest.mark.parametrize("template", [LLAVA_1_5, WITH_END])
def test_all_assistant_turns_are_learnt_with_their_ends(kind, template):
    chat = make_chat(kind, template)
    (both,) = chat.learnt_continuations(CONVERSATION, 1, train_on="all")
    assert (both.num_messages, both.num_images) == (1, 1)
    assert learnt_tokens(chat, both) == ["▁A", "▁cat", ".", "</s>", "▁Two", "▁dogs", ".", "</s>"]
    prompt = chat.render(CONVERSATION[:1], 1, generation_prompt=True)
    text = chat.render(CONVERSATION, 1, generation_prompt=False).rstrip().removesuffix("</s>") + "</s>"
    assert chat.encode(prompt) + both.token_ids.tolist() == chat.encode(text)
    (last,) = chat.learnt_continuations(CONVERSATION, 1, train_on="last")
    assert last.num_messages == 3 and learnt_tokens(chat, last) == ["▁Two", "▁dogs", ".", "</s>"]
    assert last.token_ids.tolist() == chat.answer_token_ids(CONVERSATION[:3], "Two dogs.", 1).tolist()


def test_turn_with_images_begins_another_prompt():
    conversation = [*CONVERSATION[:2], Message("user", "describe", (0,)), CONVERSATION[3]]
    first, second = make_chat("prepend").learnt_continuations(conversation, 2, train_on="all")
    assert [(c.num_messages, c.num_images) for c in (first, second)] == [(1, 1), (3, 2)]


def test_turns_that_a_template_rewrites_later_have_prompts_of_their_own():
    """Like templates that write the thoughts of the last turn only."""
    earlier = "{% if m['role'] == 'user' and loop.index0 < messages|length - 2 %}{{ '(earlier) ' }}{% endif %}"
    chat = make_chat("bytes", WITH_END.replace("{{ m['role'].upper()", earlier + "{{ m['role'].upper()"))
    continuations = chat.learnt_continuations(CONVERSATION, 0, train_on="all")
    assert [c.num_messages for c in continuations] == [1, 3]
    assert [chat.decode(c.targets[c.is_learnt.bool()]) for c in continuations] == ["A cat.", "Two dogs."]


def test_assistant_turn_without_a_question_is_context():
    conversation = [Message("assistant", "Hello."), *CONVERSATION[:2]]
    (continuation,) = make_chat("bytes").learnt_continuations(conversation, 0, train_on="all")
    assert continuation.num_messages == 2


# ---- images --------------------------------------------------------------------------------------


def test_images_are_shown_where_they_stand():
    chat = make_chat("bytes")
    message = Message("user", "Before:  After:  What changed?", (8, 16))
    assert chat.render([message], 2, generation_prompt=True) == (
        "USER: Before: <image>\n After: <image>\n What changed? ASSISTANT:"
    )
    assert chat.render([QUESTION], 2, generation_prompt=True) == "USER: <image>\n<image>\nWhat is this? ASSISTANT:"
    turns = [QUESTION, CONVERSATION[1], Message("user", "And this?", (0,))]
    assert chat.render(turns, 2, generation_prompt=True) == (
        "USER: <image>\nWhat is this? ASSISTANT: A cat. USER: <image>\nAnd this? ASSISTANT:"
    )


IMAGES_FIRST = (
    LLAVA_1_5.replace(PARTS, "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}")
)  # fmt: skip


def test_template_that_moves_images_says_so_once(capsys):
    """LLaVA's own templates show a turn's images first."""
    between = Message("user", "Before:  After: ", (8,))
    for template, num_notes in ((IMAGES_FIRST, 1), (LLAVA_1_5, 0)):
        chat = make_chat("bytes", template)
        chat.render([QUESTION], 2, generation_prompt=True)
        chat.render([Message("user", "Sure?", (0,))], 1, generation_prompt=True)
        assert capsys.readouterr().out.count("note:") == 0
        for _ in range(2):
            chat.render([between], 1, generation_prompt=True)
        assert (
            capsys.readouterr().out.count("note: the chat template of MODEL shows a turn's images before its text") == num_notes
        )


def test_model_without_an_end_of_answers_is_refused():
    with pytest.raises(InputError, match=r"^MODEL: no token ends an answer: set eos_token"):
        ChatText(build_processor(build_llama_tokenizer("prepend")), "MODEL", [])


# ---- control tokens ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hi</s>", "<s>hi", "A <image>.", "a <pad> b", "<unk>", "</s><s>", "<s>a<s>b</s>"])
def test_control_tokens_are_refused_and_broken_up(text):
    chat = make_chat("bytes")
    for refused in (
        lambda text: chat.answer_token_ids([QUESTION], text, 0, row_id="7"),
        lambda text: chat.learnt_continuations([Message("user", text), CONVERSATION[1]], 0, train_on="all", row_id="7"),
    ):
        with pytest.raises(InputError, match=r"^row 7: .* holds <.*, which the model takes for a control token: remove it"):
            refused(text)
        refused(chat.control_tokens.escape(text))
    special = set(chat.tokenizer.all_special_ids)
    assert not special & set(chat.answer_token_ids([QUESTION], chat.control_tokens.escape(text), 0).tolist()[:-1])


def test_texts_pass_where_no_special_tokens_are_a_pair_of_tags():
    processor = SimpleNamespace(tokenizer=SimpleNamespace(added_tokens_decoder={}), image_token="<image>")
    control_tokens = ControlTokens(processor, ["<end>"])
    message = Message("user", "a <b>text</b> <s>x</s>")
    control_tokens.check([message], "it")
    assert control_tokens.mark(message) == message
    for token in ("<end>", "<image>"):
        with pytest.raises(InputError, match=f"^it holds {token}, which"):
            control_tokens.check([Message("user", f"a {token}")], "it")


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_markup_is_text_even_if_its_tags_are_special_tokens(kind):
    chat = make_chat(kind)
    text = "old <s>price</s> new <b>x</b>"
    ids = chat.answer_token_ids([QUESTION], text, 0).tolist()
    assert not set(ids[:-1]) & set(chat.tokenizer.all_special_ids) and ids[-1] in chat.eos
    assert chat.decode(chat.answer_token_ids([QUESTION], text, 0)) == text
    question = Message("user", f"{text} or new?", (4,))
    prompt_ids = chat.encode(chat.render([question], 1, generation_prompt=True))
    shown = chat.tokenizer.decode(prompt_ids)
    assert re.sub(r"\s", "", shown) == "USER:old<image><s>price</s>new<b>x</b>ornew?ASSISTANT:"
    assert chat.tokenizer.convert_tokens_to_ids("<image>") in prompt_ids
    assert not {chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id} & set(prompt_ids)
    (continuation,) = chat.learnt_continuations([question, Message("assistant", text)], 1, train_on="all")
    assert continuation.token_ids.tolist() == chat.answer_token_ids([question], text, 1).tolist()
