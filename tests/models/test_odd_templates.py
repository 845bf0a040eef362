"""Templates that cannot be trained on are refused when the model is loaded, in one sentence."""

import shutil

import pytest

from mmrlhf.cli import main
from mmrlhf.models.loading import load
from mmrlhf.records import InputError, Message
from tests.helpers.tiny_models import build_checkpoint

TEXT = "{% for c in m['content'] %}{% if c['type'] == 'image' %}{{ '<image>' }}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
START = "{% if add_generation_prompt %}assistant: {% endif %}"


def turns(text: str = TEXT, end: str = "</s>", start: str = START) -> str:
    """Return a template of `role: text` lines; an assistant's text is written as `text`."""
    content = "{% if m['role'] == 'assistant' %}" + text + end + "{% else %}" + TEXT + "\n{% endif %}"
    return "{% for m in messages %}{{ m['role'] }}: " + content + "{% endfor %}" + start


ANSWER = "m['content'][0]['text']"
REFUSED = {
    "no generation prompt": (turns(start=""), "writes 'assistant:' between its generation prompt and an answer"),
    "a generation prompt for user turns": (turns(start="user: "), "differently from its generation prompt"),
    "a thought that only the generation prompt opens": (
        turns(start=START.replace("assistant: ", "assistant: <think>\n")),
        "differently from its generation prompt",
    ),
    "a generation prompt that ends within a word": (turns(start=START.replace("assistant: ", "assi")), "writes 'stant:' between"),
    "text between answer and end": (turns(end="\n(end of answer)</s>"), r"writes '\(end of answer\)' between an answer and"),
    "text between generation prompt and answer": (turns("Sure! " + TEXT), "writes 'Sure!' between its generation prompt"),
    "quoted answers": (turns("{{ " + ANSWER + " | tojson }}"), "writes '\"' between"),
    "lower case": (turns("{{ " + ANSWER + " | lower }}"), "differently from its generation prompt"),
    "cut answers": (turns("{{ " + ANSWER + "[:3] }}"), "differently from its generation prompt"),
    "no answers": (turns(""), "differently from its generation prompt"),
    "turns in reverse": (turns().replace("in messages", "in messages | reverse"), "differently from its generation prompt"),
    "another text each time": ("{{ range(9999) | random }}{{ range(9999) | random }}" + turns(), "differently from its gener"),
    "parts as code": ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}" + START, "parts as code"),
    "texts only": ("{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}", "fails on a plain question"),
    "parts in another form": (turns("{{ m['content'][0]['value'].strip() }}"), "fails on a plain question"),
    "no questions": ("{% for m in messages if m['role'] == 'assistant' %}" + TEXT + "{% endfor %}", "leaves out a turn's text"),
    "no questions about images": (turns().replace("c['type'] == 'image'", "m['content'][1]"), "leaves out a turn's text"),
    "only the last turn": (turns().replace("in messages", "in messages[-1:]"), "leaves out a turn's text"),
    "an endless loop": ("{% for i in range(10 ** 9) %}x{% endfor %}", "fails on a plain question"),
    "a syntax error": ("{% for m in messages %}", "fails on a plain question"),
}
TRAINED = {
    "an end that is no token": (turns(end="<\\s>"), "A cat."),
    "no end": (turns(end=""), "A cat."),
    "a blank before the end": (turns(end=" </s>"), "A cat."),
    "a line break before the answer": (turns("\n" + TEXT, start=START.replace(": ", ":")), "A cat."),
    "trimmed texts": (turns("{{ " + ANSWER + " | trim }}"), "A cat."),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("llava")
    build_checkpoint("llava", directory)
    return directory


@pytest.fixture
def with_template(checkpoint, tmp_path):
    """Return a function that copies the checkpoint with another template."""

    def copy(template: str) -> str:
        shutil.copytree(checkpoint, tmp_path / "model")
        (tmp_path / "model" / "chat_template.jinja").write_text(template)
        return str(tmp_path / "model")

    return copy


@pytest.mark.parametrize("name", REFUSED)
def test_template_that_cannot_be_trained_on_is_refused(name, with_template):
    template, reason = REFUSED[name]
    model = with_template(template)
    with pytest.raises(InputError, match=f"{model}: its .*{reason}") as caught:
        load(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TRAINED)
def test_odd_template_that_can_be_trained_on_teaches_the_answer_and_its_end(name, with_template):
    template, text = TRAINED[name]
    vlm = load(with_template(template))
    question = (Message("user", "What is it?"),)
    ids = vlm.answer_token_ids(question, "A cat.", 0)
    assert vlm.decode(ids) == text
    assert ids[-1].item() in vlm.eos and ids.tolist().count(vlm.tokenizer.eos_token_id) == 1
    assert not {"<", "\\"} & set(vlm.tokenizer.decode(ids[:-1]))


def test_system_turn_that_the_template_takes_as_plain_text_is_given_as_such(with_template):
    """Llama 3.2's reads parts in all turns but the system's."""
    system = "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}\n{% endif %}"
    vlm = load(with_template(system + turns().replace("in messages", "in messages if m['role'] != 'system'")))
    conversation = (Message("system", ' It\'s "brief". '), Message("user", "What is it?"))
    lines = vlm.apply_chat_template(conversation, 1, generation_prompt=True).splitlines()
    assert lines == ['It\'s "brief".', "user: <image>What is it?assistant:"]


def test_refusal_is_one_line_with_exit_code_2(with_template, tmp_path, capsys):
    model = with_template(REFUSED["no generation prompt"][0])
    (tmp_path / "rows.jsonl").write_text(
        '{"images": [], "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "A."}]}'
    )
    flags = ["--model_name_or_path", model, "--dataset_name", str(tmp_path / "rows.jsonl"), "--output_dir", str(tmp_path / "out")]
    assert main(["sft", *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "between its generation prompt and an answer" in line
