"""The demo's output directory, recipes and timer. The stages have tests of their own."""

import json

import pytest
from rich.console import Console

from mmrlhf.config import PPOConfig, RewardConfig, ScenesConfig, SFTConfig
from mmrlhf.demo import pipeline
from mmrlhf.records import InputError


def claim(path, *, fresh=False, seed=0, base):
    pipeline._claim_output_dir(path, fresh, ScenesConfig(seed=seed), str(base))


@pytest.fixture
def base(tmp_path):
    directory = tmp_path / "base"
    directory.mkdir()
    (directory / "model.safetensors").write_bytes(b"weights")
    return directory


def test_demo_output_dir_is_continued_by_the_same_demo_only(tmp_path, base):
    run = tmp_path / "run"
    claim(run, base=base)
    claim(run, base=base)
    with pytest.raises(InputError, match="another seed: give its --seed"):
        claim(run, seed=1, base=base)
    (base / "model.safetensors").write_bytes(b"others")
    with pytest.raises(InputError, match="another base model"):
        claim(run, base=base)


def test_demo_fresh_deletes_a_demo_and_nothing_else(tmp_path, base):
    run = tmp_path / "run"
    claim(run, base=base)
    (run / "pairs.jsonl").write_text("")
    claim(run, fresh=True, seed=1, base=base)
    assert sorted(p.name for p in run.iterdir()) == ["base.sha256", "scenes.yaml"]


def test_demo_fresh_deletes_a_demo_behind_a_symlink(tmp_path, base):
    claim(tmp_path / "disk", base=base)
    (tmp_path / "disk" / "pairs.jsonl").write_text("")
    (tmp_path / "run").symlink_to("disk")
    claim(tmp_path / "run", fresh=True, seed=1, base=base)
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["base.sha256", "scenes.yaml"]
    assert (tmp_path / "run").is_symlink()


def test_demo_fresh_says_what_cannot_be_deleted(tmp_path, base, monkeypatch):
    def fail(folder):
        raise PermissionError(13, "Permission denied", "frozen.txt")

    claim(tmp_path / "run", base=base)
    monkeypatch.setattr(pipeline.shutil, "rmtree", fail)
    with pytest.raises(InputError, match=r"cannot be deleted \(Permission denied: frozen\.txt\): delete it yourself"):
        claim(tmp_path / "run", fresh=True, base=base)


@pytest.mark.parametrize("fresh", [False, True])
def test_demo_refuses_a_folder_of_other_files_and_a_file(tmp_path, base, fresh):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="has files that are not a demo's: give another --output_dir"):
        claim(other, fresh=fresh, base=base)
    with pytest.raises(InputError, match=r"output_dir .*thesis\.tex cannot be written"):
        claim(other / "thesis.tex", fresh=fresh, base=base)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_stage_timer_adds_up_the_runs_of_a_stage(tmp_path, capsys, monkeypatch):
    path = tmp_path / "seconds.json"
    path.write_text(json.dumps({"sft": 62.0}))
    monkeypatch.setattr(pipeline.time, "time", iter((0.0, 3.0, 3.0, 5.5)).__next__)
    timer = pipeline.StageTimer(path, Console(highlight=False))
    with timer.stage("sft"):
        pass
    with pytest.raises(KeyboardInterrupt), timer.stage("pairs"):
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == timer.seconds == {"sft": 65.0, "pairs": 2.5}
    output = capsys.readouterr().out
    assert "sft finished in 1 min 5 s" in output and "pairs finished" not in output


@pytest.mark.parametrize(
    ("config_class", "values"),
    [(SFTConfig, {}), (RewardConfig, {"facts": "none"}), (PPOConfig, {"reward_model_path": "reward"})],
)
def test_stage_config_loads_the_recipe_of_each_stage(tmp_path, config_class, values):
    config = pipeline.stage_config(config_class, 7, tmp_path, model_name_or_path="base", **values)
    assert isinstance(config, config_class) and config.seed == 7 and config.output_dir == str(tmp_path)
    assert all(getattr(config, name) == value for name, value in values.items())
