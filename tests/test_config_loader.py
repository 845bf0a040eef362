"""`load` either gives a configuration or one sentence that a user can act on."""

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
    ScoreConfig,
    SFTConfig,
)
from mmrlhf.config_loader import config_fields, load_config, save_config
from mmrlhf.records import InputError

REQUIRED = {"model_name_or_path": "base", "dataset_name": "rows.jsonl", "output_dir": "out"}
CONFIGS = [CalibrateClipConfig, CalibrateVLMConfig, SFTConfig, RewardConfig, PPOConfig, GenerateConfig, ScoreConfig, EvalConfig]


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return file


def complaint(file: Path | None = None, **overrides: object) -> str:
    with pytest.raises(InputError) as caught:
        load_config(SFTConfig, file, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_command_line_wins_over_file_and_file_over_default(tmp_path):
    config = load_config(SFTConfig, written(tmp_path, "lora_r: 4\nseed: 5"), {**REQUIRED, "seed": "6"})
    assert (config.lora_r, config.seed, config.save_steps) == (4, 6, 100)


def test_an_override_replaces_a_bad_value_of_the_file(tmp_path):
    assert load_config(SFTConfig, written(tmp_path, "lora_r: many"), {**REQUIRED, "lora_r": "2"}).lora_r == 2


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", ".1e-3", "1.0e-4", "0.0001", "'1e-4'"])
def test_every_spelling_of_a_float(tmp_path, text):
    assert load_config(SFTConfig, written(tmp_path, f"learning_rate: {text}"), REQUIRED).learning_rate == 1e-4
    assert load_config(SFTConfig, None, {**REQUIRED, "learning_rate": text.strip("'")}).learning_rate == 1e-4


def test_none_on_the_command_line_empties_only_what_may_be_empty(tmp_path):
    file = written(tmp_path, "image_folder: pictures")
    assert load_config(SFTConfig, file, {**REQUIRED, "image_folder": "none"}).image_folder is None
    assert load_config(SFTConfig, file, {**REQUIRED, "output_dir": "none"}).output_dir == "none"


def test_unknown_key_names_the_file_or_the_flag_and_the_nearest(tmp_path):
    file = written(tmp_path, "learning_rte: 1")
    assert complaint(file, **REQUIRED) == f"{file}: learning_rte is unknown: did you mean learning_rate?"
    assert complaint(**REQUIRED, lora_rank="1").startswith("--lora_rank is unknown: did you mean --lora_r")


@pytest.mark.parametrize(
    ("field", "value", "allowed", "shown"),
    [
        ("learning_rate", "fast", "a number above 0", "'fast'"),
        ("learning_rate", "0", "a number above 0", "0"),
        ("learning_rate", ".inf", "a number above 0", "inf"),
        ("learning_rate", "true", "a number above 0", "true"),
        ("lora_r", "0", "an integer of at least 1", "0"),
        ("lora_r", "2.5", "an integer of at least 1", "2.5"),
        ("lora_r", "", "an integer of at least 1", "null"),
        ("tuning", "qlora", "lora or full", "'qlora'"),
        ("output_dir", "2026", "non-empty text", "2026 (put it in quotes)"),
        ("output_dir", "''", "non-empty text", "''"),
        ("image_folder", "[a]", "non-empty text or none", "['a']"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(tmp_path, field, value, allowed, shown):
    file = written(tmp_path, f"{field}: {value}")
    required = {key: text for key, text in REQUIRED.items() if key != field}
    assert complaint(file, **required) == f"{file}: {field} must be {allowed}, not {shown}"


def test_a_range_is_told_whole(tmp_path):
    with pytest.raises(InputError, match=r"--lam must be a number from 0 to 1, not '1\.5'"):
        load_config(PPOConfig, None, {**REQUIRED, "reward_model_path": "r", "lam": "1.5"})


def test_all_problems_at_once(tmp_path):
    file = written(tmp_path, "model_name_or_path: base\ndataset_name: rows\nlora_r: 0\nsead: 1")
    assert complaint(file, seed="-1") == (
        f"--seed must be an integer of at least 0, not '-1'; "
        f"{file}: lora_r must be an integer of at least 1, not 0; sead is unknown: did you mean seed?; "
        f"output_dir is required: add --output_dir ..., or a line to {file}"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1", "is not valid YAML at line 1, column 6"),
        ("- a", "must hold `field: value` lines, not a sequence"),
        ("sft", "must hold `field: value` lines, not a scalar"),
        ("seed: 1\nseed: 2", "gives seed more than once"),
        ("seed: 2026-13-01", "is not valid YAML: month must be in 1..12"),
        ("seed: \x01", "is not valid YAML: unacceptable character"),
        ("seed: !!python/object:os.system {}", "is not valid YAML at line 1, column 7"),
    ],
)
def test_a_broken_file(tmp_path, text, told):
    assert told in complaint(written(tmp_path, text), **REQUIRED)


def test_a_file_that_cannot_be_read(tmp_path):
    assert complaint(tmp_path / "no.yaml") == f"config file {tmp_path / 'no.yaml'} does not exist"
    assert complaint(tmp_path).startswith(f"config file {tmp_path} cannot be read")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xff")
    assert "is not valid YAML" in complaint(binary)


def test_an_empty_file_is_an_empty_mapping(tmp_path):
    assert load_config(SFTConfig, written(tmp_path, "# nothing yet\n"), REQUIRED) == SFTConfig(**REQUIRED)


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_explains_itself(cls):
    assert list(config_fields(cls)) == [field.name for field in dataclasses.fields(cls)]
    assert not [field.name for field in config_fields(cls).values() if not field.help]


def test_saving_leaves_one_whole_file(tmp_path):
    file = tmp_path / "config.yaml"
    for seed in (1, 2):
        save_config(SFTConfig(**REQUIRED, seed=seed), file)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert load_config(SFTConfig, file, {}).seed == 2


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.sampled_from(["1e-4", "null", "2026-01-01", "~"])


@given(output_dir=TEXT, folder=st.none() | TEXT, rate=st.floats(0, math.inf, exclude_min=True, exclude_max=True))
def test_what_is_saved_is_what_is_loaded(output_dir, folder, rate):
    config = SFTConfig(**REQUIRED | {"output_dir": output_dir}, image_folder=folder, learning_rate=rate)
    with tempfile.TemporaryDirectory() as place:
        save_config(config, Path(place) / "config.yaml")
        assert load_config(SFTConfig, Path(place) / "config.yaml", {}) == config
