"""DeepSpeed's settings: ZeRO-3 becomes FSDP2, and what would have no effect is refused."""

import json

import pytest

from mmrlhf.models.zero import use_fsdp_for_zero
from mmrlhf.records import InputError

FSDP2 = {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
LAUNCHED = {"ACCELERATE_USE_DEEPSPEED": "true"}


def with_file(tmp_path, settings):
    (tmp_path / "ds.json").write_text(settings if isinstance(settings, str) else json.dumps(settings))
    return LAUNCHED | {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(tmp_path / "ds.json")}


def test_zero_3_becomes_fsdp2():
    environ = LAUNCHED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none"}
    assert "FSDP2 splits the frozen base" in use_fsdp_for_zero(environ)
    assert environ.items() >= FSDP2.items()


def test_zero_3_of_a_file_becomes_fsdp2(tmp_path):
    settings = {
        "zero_optimization": {"stage": 3, "overlap_comm": True, "offload_param": {"device": "none"}},
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
    }
    environ = with_file(tmp_path, settings)
    use_fsdp_for_zero(environ)
    assert environ.items() >= FSDP2.items()


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_other_stages_split_nothing(stage, tmp_path):
    environ = with_file(tmp_path, {"zero_optimization": {"stage": stage}})
    assert f"ZeRO-{stage}: every process has the whole frozen base" in use_fsdp_for_zero(environ)
    assert environ["ACCELERATE_USE_DEEPSPEED"] == "false" and "ACCELERATE_USE_FSDP" not in environ


def test_without_deepspeed_nothing_changes():
    environ = {"ACCELERATE_USE_FSDP": "false", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}
    assert use_fsdp_for_zero(environ) is None and environ["ACCELERATE_USE_FSDP"] == "false"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}, "`offload_param` to cpu is not supported"),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}, "`offload_optimizer` to nvme"),
        ({"zero_optimization": {"stage": 4}}, "the stage of ZeRO is 0, 1, 2 or 3, not 4"),
        ({"zero_optimization": {"stage": "three"}}, "not 'three'"),
        ({"zero_optimization": 3}, "its zero_optimization has to be an object"),
        ([3], "is not a file of DeepSpeed's settings"),
        ("stage: 3", "cannot be read"),
        ({"zero_optimization": {"stage": 3}, "optimizer": {"type": "AdamW"}}, "remove `optimizer`: learning_rate"),
        ({"zero_optimization": {"stage": 3}, "scheduler": {}}, "remove `scheduler`: lr_scheduler_type"),
        ({"zero_optimization": {"stage": 3}, "train_batch_size": 8}, 'has to be "auto", because per_device_train_batch_size'),
        ({"zero_optimization": {"stage": 3}, "fp16": {"enabled": True}}, "`fp16` overflows here"),
        ({"zero_optimization": {"stage": 3}, "fp16": True}, "`fp16` overflows here"),
        ({"zero_optimization": {"stage": 3}, "fp16": [1]}, "`fp16` overflows here"),
    ],
)
def test_settings_without_effect_are_refused(settings, message, tmp_path):
    environ = with_file(tmp_path, settings)
    with pytest.raises(InputError, match=message):
        use_fsdp_for_zero(environ)
    assert environ["ACCELERATE_USE_DEEPSPEED"] == "true"


def test_offloading_by_accelerates_flags_is_refused():
    environ = LAUNCHED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "cpu"}
    with pytest.raises(InputError, match="accelerate's DeepSpeed settings: `offload_param` to cpu"):
        use_fsdp_for_zero(environ)
