"""`load_config` returns a configuration, or raises an error that a user can act on."""

import dataclasses
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.config import (
    CalibrateClipConfig,
    CalibrateVLMConfig,
    EvalConfig,
    GenerateConfig,
    PPOConfig,
    RewardConfig,
    ScenesConfig,
    ScoreConfig,
    SFTConfig,
)
from mmrlhf.config.loader import (
    DEPRECATED_FIELDS,
    RENAMED_FIELDS,
    RENAMED_VALUES,
    config_fields,
    load_config,
    read_yaml,
    save_config,
)
from mmrlhf.records import InputError

REQUIRED = {"model_name_or_path": "base", "dataset_name": "rows.jsonl", "output_dir": "out"}
CONFIGS = [
    CalibrateClipConfig,
    CalibrateVLMConfig,
    SFTConfig,
    RewardConfig,
    PPOConfig,
    GenerateConfig,
    ScoreConfig,
    EvalConfig,
    ScenesConfig,
]


def write_config(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return file


def load_error(file: Path | None = None, **overrides: object) -> str:
    with pytest.raises(InputError) as caught:
        load_config(SFTConfig, file, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_load_config_flags_override_file_and_file_overrides_defaults(tmp_path):
    config = load_config(SFTConfig, write_config(tmp_path, "lora_r: 4\nseed: 5"), {**REQUIRED, "seed": "6"})
    assert (config.lora_r, config.seed, config.save_steps) == (4, 6, 100)


def test_load_config_flag_replaces_invalid_file_value(tmp_path):
    assert load_config(SFTConfig, write_config(tmp_path, "lora_r: many"), {**REQUIRED, "lora_r": "2"}).lora_r == 2


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", ".1e-3", "1.0e-4", "0.0001", "'1e-4'"])
def test_load_config_accepts_every_float_spelling(tmp_path, text):
    assert load_config(SFTConfig, write_config(tmp_path, f"learning_rate: {text}"), REQUIRED).learning_rate == 1e-4
    assert load_config(SFTConfig, None, {**REQUIRED, "learning_rate": text.strip("'")}).learning_rate == 1e-4


def test_load_config_none_flag_clears_only_optional_fields(tmp_path):
    file = write_config(tmp_path, "image_folder: images")
    assert load_config(SFTConfig, file, {**REQUIRED, "image_folder": "none"}).image_folder is None
    assert load_config(SFTConfig, file, {**REQUIRED, "output_dir": "none"}).output_dir == "none"


def test_load_config_reads_words_and_integers_as_they_are_written(tmp_path):
    text = "seed: 016\nload_best_model_at_end: off\nmetric_for_best_model: none\nshare_prefix: off\noutput_dir: 2026-01-01\nadapter_path: null"
    config = load_config(PPOConfig, write_config(tmp_path, text), {**REQUIRED, "output_dir": "out", "reward_model_path": "r"})
    assert (config.seed, config.load_best_model_at_end, config.metric_for_best_model) == (16, False, None)
    assert (config.share_prefix, config.adapter_path) == ("off", None)
    assert read_yaml(tmp_path / "recipe.yaml")["output_dir"] == "2026-01-01"
    for value, seed in (("0x10", 16), ("0o17", 15), ("+7", 7)):
        assert load_config(SFTConfig, write_config(tmp_path, f"seed: {value}"), REQUIRED).seed == seed
    for word in ("yes", "On", "true"):
        assert load_config(
            SFTConfig, write_config(tmp_path, f"activation_checkpointing: {word}"), REQUIRED
        ).activation_checkpointing
    assert "seed must be an integer of at least 0, not '1:30'" in load_error(write_config(tmp_path, "seed: 1:30"), **REQUIRED)


def test_load_config_unknown_key_suggests_nearest(tmp_path):
    file = write_config(tmp_path, "learning_rte: 1")
    assert load_error(file, **REQUIRED) == f"{file}: learning_rte is unknown: did you mean learning_rate?"
    assert load_error(**REQUIRED, lora_rank="1") == "--lora_rank is unknown: use --lora_r"


def test_load_config_explains_the_settings_of_a_recipe_of_another_tool(tmp_path):
    file = write_config(tmp_path, "stage: sft\nlora_rank: 8\nbf16: true\nzzz: 1")
    assert load_error(file, **REQUIRED) == (
        f"{file}: stage is unknown: the stage is the command: `mmrlhf sft`, `mmrlhf reward`, `mmrlhf dpo` or `mmrlhf ppo`; "
        "lora_rank is unknown: use lora_r; bf16 is unknown: use dtype bfloat16; "
        "zzz is unknown: leave it out (the command's --help lists its settings)"
    )


@pytest.mark.parametrize(
    ("field", "value", "allowed", "value_text"),
    [
        ("learning_rate", "fast", "a number above 0", "'fast'"),
        ("learning_rate", "0", "a number above 0", "0"),
        ("learning_rate", ".inf", "a number above 0", "inf"),
        ("learning_rate", "true", "a number above 0", "true"),
        ("lora_r", "0", "an integer of at least 1", "0"),
        ("lora_r", "2.5", "an integer of at least 1", "2.5"),
        ("lora_r", "", "an integer of at least 1", "null"),
        ("tuning", "qlora", "lora or full", "'qlora': use lora"),
        ("output_dir", "2026", "non-empty text", "2026 (put it in quotes)"),
        ("output_dir", "''", "non-empty text", "''"),
        ("image_folder", "[a]", "non-empty text or none", "['a']"),
    ],
)
def test_load_config_wrong_value_states_what_is_allowed(tmp_path, field, value, allowed, value_text):
    file = write_config(tmp_path, f"{field}: {value}")
    required = {key: text for key, text in REQUIRED.items() if key != field}
    assert load_error(file, **required) == f"{file}: {field} must be {allowed}, not {value_text}"


@pytest.mark.parametrize(("old", "new"), RENAMED_FIELDS.items())
def test_load_config_refuses_every_old_field_with_the_new_one(tmp_path, old, new):
    classes_with_field = [cls for cls in CONFIGS if new in config_fields(cls)]
    assert classes_with_field
    file = write_config(tmp_path, f"{old}: 1")
    for cls in classes_with_field:
        with pytest.raises(InputError) as from_file:
            load_config(cls, file, {})
        assert f"{file}: `{old}` was renamed: use `{new}`" in str(from_file.value)
        with pytest.raises(InputError, match=f"`--{old}` was renamed: use `--{new}`"):
            load_config(cls, None, {old: "1"})


def test_load_config_suggests_a_new_name_only_where_the_class_has_it(tmp_path):
    assert "--judgments is unknown: " in load_error(**REQUIRED, judgments="a.jsonl")
    assert not {name for cls in CONFIGS for name in config_fields(cls)} & RENAMED_FIELDS.keys()


@pytest.mark.parametrize(("old", "new"), DEPRECATED_FIELDS.items())
def test_load_config_accepts_a_deprecated_field_with_a_note(tmp_path, capsys, old, new):
    (cls, *_), file = [cls for cls in CONFIGS if new in config_fields(cls)], write_config(tmp_path, f"{old}: true")
    assert getattr(load_config(cls, file, REQUIRED), new) is True
    assert capsys.readouterr().out == f"note: {file}: `{old}` was renamed: use `{new}`\n"
    assert getattr(load_config(cls, file, {**REQUIRED, new: "false"}), new) is False  # flags win
    assert getattr(load_config(cls, write_config(tmp_path, f"{new}: true"), {**REQUIRED, old: "false"}), new) is False
    assert f"`{old}` was renamed: use `{new}`" in refusal(cls, write_config(tmp_path, f"{old}: true\n{new}: false"))
    assert f"{new} must be true or false, not 'maybe'" in refusal(cls, write_config(tmp_path, f"{old}: maybe"))
    assert f"{old} is unknown: " in load_error(write_config(tmp_path, f"{old}: true"), **REQUIRED)  # sft has neither


def refusal(cls, file):
    with pytest.raises(InputError) as error:
        load_config(cls, file, REQUIRED)
    return str(error.value)


@pytest.mark.parametrize(
    ("field", "old", "new"),
    [(field, old, new) for field, values in RENAMED_VALUES.items() for old, new in values.items()],
)
def test_load_config_refuses_every_old_value_with_the_new_one(tmp_path, field, old, new):
    cls = next(cls for cls in CONFIGS if field in config_fields(cls))
    assert new in config_fields(cls)[field].choices
    file = write_config(tmp_path, f"{field}: {old}")
    with pytest.raises(InputError) as error:
        load_config(cls, file, REQUIRED)
    assert str(error.value) == f"{file}: {field}: `{old}` was renamed: use `{new}`"
    with pytest.raises(InputError, match=f"--{field}: `{old}` was renamed: use `{new}`"):
        load_config(cls, None, {**REQUIRED, field: old})


def test_config_fields_help_is_one_paragraph():
    assert not [
        field.name for cls in CONFIGS for field in config_fields(cls).values() if "\n" in field.help or "  " in field.help
    ]


def test_load_config_out_of_range_value_states_range():
    with pytest.raises(InputError, match=r"--lam must be a number from 0 to 1, not '1\.5'"):
        load_config(PPOConfig, None, {**REQUIRED, "reward_model_path": "r", "lam": "1.5"})


def test_load_config_reports_all_problems_at_once(tmp_path):
    file = write_config(tmp_path, "model_name_or_path: base\ndataset_name: rows\nlora_r: 0\nsead: 1")
    assert load_error(file, seed="-1") == (
        f"--seed must be an integer of at least 0, not '-1'; "
        f"{file}: lora_r must be an integer of at least 1, not 0; sead is unknown: did you mean seed?; "
        f"output_dir is required: add --output_dir ..., or a line to {file}"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "is not valid YAML at line 1, column 6"),
        ("- a", "must hold `field: value` lines, not a sequence"),
        ("sft", "must hold `field: value` lines, not a scalar"),
        ("seed: 1\nseed: 2", "gives seed more than once"),
        ("seed: {a: 1, b: [{c: 1, c: 2}]}", "gives c more than once"),
        ("seed: \x01", "is not valid YAML: unacceptable character"),
        ("seed: !!python/object:os.system {}", "uses a YAML anchor, alias or tag"),
    ],
)
def test_load_config_refuses_invalid_yaml(tmp_path, text, message):
    assert message in load_error(write_config(tmp_path, text), **REQUIRED)


def test_load_config_refuses_unreadable_file(tmp_path):
    assert load_error(tmp_path / "no.yaml") == f"config file {tmp_path / 'no.yaml'} does not exist"
    assert load_error(tmp_path).startswith(f"config file {tmp_path} cannot be read")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xff")
    assert "is not valid YAML" in load_error(binary)


def test_load_config_empty_file_gives_defaults(tmp_path):
    assert load_config(SFTConfig, write_config(tmp_path, "# nothing yet\n"), REQUIRED) == SFTConfig(**REQUIRED)


@pytest.mark.parametrize("cls", CONFIGS)
def test_config_fields_all_have_help(cls):
    assert list(config_fields(cls)) == [field.name for field in dataclasses.fields(cls)]
    assert not [field.name for field in config_fields(cls).values() if not field.help]


def test_save_config_leaves_one_complete_file(tmp_path):
    file = tmp_path / "config.yaml"
    for seed in (1, 2):
        save_config(SFTConfig(**REQUIRED, seed=seed), file)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert load_config(SFTConfig, file, {}).seed == 2


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(
    ["1e-4", "null", "2026-01-01", "~", "off", "016", "0x10", "0o17", "1.", ".inf", "true"]
)


@given(output_dir=TEXTS, image_folder=st.none() | TEXTS, rate=st.floats(0, math.inf, exclude_min=True, exclude_max=True))
def test_save_and_load_config_round_trip(output_dir, image_folder, rate):
    config = SFTConfig(**REQUIRED | {"output_dir": output_dir}, image_folder=image_folder, learning_rate=rate)
    with tempfile.TemporaryDirectory() as folder:
        save_config(config, Path(folder) / "config.yaml")
        assert load_config(SFTConfig, Path(folder) / "config.yaml", {}) == config


NESTED_ALIASES = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NESTED_ALIASES + "seed: *i\n", "line 1 uses a YAML anchor, alias or tag"),
        ("seed: 1\noutput_dir: *x\n", "line 2 uses a YAML anchor, alias or tag"),
        ("seed: !!timestamp x\n", "line 1 uses a YAML anchor, alias or tag"),
        ("seed: !!python/object/apply:os.system [ls]\n", "line 1 uses a YAML anchor, alias or tag"),
        ("seed: " + "[" * 100_000 + "\n", "nested more than 16 levels deep"),
        ("seed:\n" + "".join("  " * i + "- \n" for i in range(1, 40)), "nested more than 16 levels deep"),
        ("[1, 2]: 3\n", "is not valid YAML"),
        ("{a: b}: 3\n", "is not valid YAML"),
    ],
)
def test_load_config_refuses_yaml_that_costs_much_or_is_no_setting(tmp_path, text, message):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_yaml(file)


def test_configurations_built_in_python_raise_one_sentence():
    with pytest.raises(InputError) as error:
        SFTConfig(**REQUIRED, lora_r=0, sead=1)
    message = str(error.value)
    assert message.startswith("SFTConfig: ") and "\n" not in message
    assert (
        "lora_r: input should be greater than or equal to 1, not 0" in message and "sead: unexpected keyword argument" in message
    )
    with pytest.raises(InputError, match="SFTConfig: learning_rate: input should be greater than 0, not -1"):
        dataclasses.replace(SFTConfig(**REQUIRED), learning_rate=-1)
    with pytest.raises(InputError, match="SFTConfig: lora_r: input should be a number, not True"):
        SFTConfig(**REQUIRED, lora_r=True)
    with pytest.raises(InputError, match="GenerateConfig: output_file: field required"):
        GenerateConfig(model_name_or_path="m", dataset_name="d")


def test_load_config_names_the_first_of_many_unknown_lines(tmp_path):
    file = tmp_path / "many.yaml"
    file.write_text("".join(f"zzz{number}: 1\n" for number in range(1000)))
    with pytest.raises(InputError, match=r"zzz19 is unknown: .*; and 980 more; ") as error:
        load_config(SFTConfig, file, {})
    assert "zzz20" not in str(error.value)
