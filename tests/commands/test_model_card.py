"""A model card has valid metadata, and names from data stay text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.commands.model_card import AdapterFacts, CardFacts, model_card
from mmrlhf.commands.training_record import DataFile, Evaluation, Figure, TrainingRecord
from mmrlhf.text.markdown import escape_markdown, table

HOSTILE = "<script>|[a](https://x.example)`b`\n# head\x1b[31m *i* $x$ &amp;"


def record(stage="sft", model="them/llava", **changes):
    data = [DataFile("dataset_name", "rows.jsonl", 60, "0123456789abcdef" * 4)]
    fields = {"path": Path("runs/x"), "model": model, "data": data, "num_steps": 4, "settings": {"lora_r": "8"}} | changes
    return TrainingRecord(stage=stage, **fields)


def evaluation(value=0.25, interval=(0.2, 0.3), **changes):
    fields = {"benchmark": "pope", "num_examples": 500, "direction": "higher", "note": "with mmrlhf eval"} | changes
    return Evaluation(figures=[Figure("accuracy", value, interval), Figure("speed", 2.0, None)], **fields)


def card_of(**changes):
    fields = {"kind": "model", "folder": "runs/out", "hub_id": "me/mine", "model": "runs/sft/model"}
    return model_card(CardFacts(**fields | {"records": [record()], "evaluations": [evaluation()]} | changes))


def test_the_head_is_the_hubs_metadata():
    data = ModelCard(card_of(records=[record(), record("ppo", "runs/sft/model")])).data
    assert data.base_model == "them/llava" and data.library_name == "transformers" and data.license is None
    assert data.pipeline_tag == "image-text-to-text" and data.tags == ["mmrlhf", "sft", "ppo"]
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("pope", "accuracy", 0.25)
    assert result.metric_name == "accuracy, 95% interval 0.2 to 0.3"


def test_it_says_what_it_is_and_how_to_load_it():
    text = card_of(records=[record(), record("ppo")])
    assert "# me/mine\n\nA vision-language model made from [them/llava](https://huggingface.co/them/llava), trained with" in text
    assert ": sft, then ppo.\n" in text
    assert 'from_pretrained("me/mine", dtype="auto")' in text and "vllm serve me/mine\nmmrlhf serve me/mine\n" in text
    local = card_of(hub_id=None)
    assert local.partition("# ")[2].startswith("out\n") and "vllm serve runs/out\n" in local


def test_an_adapter_is_loaded_on_its_own_base():
    text = card_of(kind="adapter", model="them/llava", adapter=AdapterFacts(20, True))
    assert ModelCard(text).data.library_name == "peft" and ModelCard(text).data.base_model == "them/llava"
    assert "vllm serve them/llava --enable-lora --max-lora-rank 32 --lora-modules policy=me/mine\n" in text
    assert "hf download me/mine --local-dir mine\nmmrlhf serve them/llava --adapter_path mine\n" in text
    # The model at the beginning of it all is not the one that the adapter fits.
    text = card_of(kind="adapter", adapter=AdapterFacts(8, True))
    assert ModelCard(text).data.base_model is None and "on a model that is not on the Hub" in text
    assert "`WHERE_THE_BASE_IS` stands for" in text


def test_an_adapter_that_vllm_does_not_apply_has_no_line_for_it():
    for adapter in (AdapterFacts(8, False), AdapterFacts(1024, True)):
        text = card_of(kind="adapter", adapter=adapter)
        assert "vllm serve" not in text and "export the model with --merge" in text


def test_a_reward_model_says_that_it_holds_rows():
    text = card_of(kind="reward model", adapter=AdapterFacts(8, True))
    assert "pipeline_tag" not in text and "reward-model" in ModelCard(text).data.tags
    assert "`reference.jsonl` holds a few rows of its data with their images" in text
    assert "mmrlhf serve mine    # POST /score" in text and "AutoPeftModel" not in text


def test_data_and_settings_are_tables():
    text = card_of()
    assert "| rows.jsonl | dataset_name | 60 | 0123456789abcdef |\n" in text and "| lora_r | 8 |\n" in text
    assert "All settings have their defaults." in card_of(records=[record(settings={})])
    assert "data and settings are not known here" in card_of(records=[])


def test_every_figure_has_its_interval_or_none():
    text = card_of()
    assert "| accuracy | 0.25 | 0.2 to 0.3 |\n| speed | 2 | none |\n" in text
    assert "Measured with mmrlhf eval, 500 examples; higher is better for accuracy." in text
    empty = card_of(evaluations=[])
    assert empty.endswith("## Evaluation\n\nNot evaluated.\n") and "model-index" not in empty


def test_names_from_data_stay_text():
    data = [DataFile(HOSTILE, HOSTILE, None, HOSTILE)]
    runs = [record(data=data, settings={HOSTILE: HOSTILE})]
    text = card_of(records=runs, evaluations=[evaluation(benchmark=HOSTILE, note=HOSTILE)])
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(head)["model-index"][0]["results"][0]["dataset"]["name"] == HOSTILE
    assert "\n# head" not in body and "\x1b" not in body and "https://x.example" not in body
    for markup in ("<script", "[a]", "`b`", "*i*", "$x$", "&amp;"):
        assert markup not in body.replace("\\" + markup[0], "")


@pytest.mark.parametrize(
    ("text", "escaped"),
    [("rows_1.jsonl", "rows_1.jsonl"), ("_a_", "\\_a\\_"), ("a|b", "a\\|b"), ("a\n\n# b", "a # b"), ("\\|", "\\\\\\|")],
)
def test_escape_markdown(text, escaped):
    assert escape_markdown(text) == escaped


@given(st.text(max_size=400))
def test_an_escaped_text_is_one_cell(text):
    escaped = escape_markdown(text)
    lines = table(("a", "b"), [(escaped, "x")]).splitlines()
    unescaped = escaped.replace("\\\\", "").replace("\\|", "")
    assert len(lines) == 3 and "|" not in unescaped and "<" not in unescaped.replace("\\<", "")
