"""A long file appears whole, continues after a kill, and is of one subject only."""

import json

import pytest

from mmrlhf import generate as stage
from mmrlhf.commands.score import score
from mmrlhf.config import GenerateConfig, ScoreConfig
from mmrlhf.files.resumable import ResumableWriter, file_signature
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import yes_no_head
from mmrlhf.records import InputError
from mmrlhf.rewards.checkpoint import save_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel


def test_resumable_writer_file_appears_only_when_finished(tmp_path):
    path = tmp_path / "out.jsonl"
    file = ResumableWriter(path, ["a"])
    assert list(tmp_path.iterdir()) == []
    file.append(["1\n", "2\n"])
    assert not path.exists()
    file.finish()
    assert path.read_text() == "1\n2\n" and list(tmp_path.iterdir()) == [path]


def test_resumable_writer_resumes_without_torn_end(tmp_path):
    path = tmp_path / "out.jsonl"
    ResumableWriter(path, ["a"], group_size=2).append(["1\n", "1\n", "2\n", "2\n", "3\n"])
    part = next(tmp_path.iterdir())
    part.write_bytes(part.read_bytes() + b"3")  # the second line of the third pair is torn
    again = ResumableWriter(path, ["a"], group_size=2)
    assert again.num_done == 4
    again.append(["3\n", "3\n"])
    again.finish()
    assert path.read_text() == "1\n1\n2\n2\n3\n3\n"


def test_resumable_writer_starts_over_for_another_key(tmp_path):
    ResumableWriter(tmp_path / "out.jsonl", ["a"]).append(["1\n"])
    assert ResumableWriter(tmp_path / "out.jsonl", ["b"]).num_done == 0
    (tmp_path / "weights").write_text("x")
    before = file_signature(str(tmp_path / "weights"))
    (tmp_path / "weights").write_text("xy")
    assert file_signature(str(tmp_path / "weights")) != before and file_signature("owner/name") == ["owner/name"]


def test_resumable_writer_writes_empty_file_and_refuses_folder(tmp_path):
    ResumableWriter(tmp_path / "none.jsonl", []).finish()
    assert (tmp_path / "none.jsonl").read_text() == ""
    with pytest.raises(InputError, match="is a directory"):
        ResumableWriter(tmp_path, [])


def test_generate_and_score_resume_after_kill(base, vlm, examples, tmp_path, monkeypatch):
    config = GenerateConfig(model_name_or_path=base, dataset_name="scenes", output_file=str(tmp_path / "a.jsonl"), batch_size=2,
                            num_generations=2, temperature=1.0, response_length=8)  # fmt: skip
    whole = stage.generate(config, examples[:6]).read_text()
    (tmp_path / "a.jsonl").unlink()
    asked = []
    real = stage.generate_batches

    def killed_after_three(vlm, rows, sampling, **how):
        asked.append(len(rows))
        for number, found in enumerate(real(vlm, rows, sampling, **how)):
            if len(asked) == 1 and number == 3:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(stage, "generate_batches", killed_after_three)
    with pytest.raises(KeyboardInterrupt):
        stage.generate(config, examples[:6])
    assert not (tmp_path / "a.jsonl").exists()
    assert stage.generate(config, examples[:6]).read_text() == whole and asked == [6, 3]

    adapters = Adapters(vlm)
    adapters.add("reward", 4, 8, seed=0)
    kept = [AnswerGroup(examples[0].images, examples[0].prompt, ("A star.",))]
    save_reward_model(RewardModel(Role(adapters, "reward", yes_no_head(vlm)), "none", "before"), tmp_path / "reward", kept)
    rows = [{"prompt": "What is here?", "images": [], "answer": f"There is a {c} star."} for c in ("red", "blue", "green")]
    for row, example in zip(rows, examples, strict=False):
        (tmp_path / f"{example.id}.png").write_bytes(example.images[0].read())
        row["images"] = [f"{example.id}.png"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ScoreConfig(reward_model_path=str(tmp_path / "reward"), dataset_name=str(tmp_path / "rows.jsonl"),
                       output_file=str(tmp_path / "s.jsonl"), batch_size=1)  # fmt: skip
    scores = score(told).read_text()
    real_score, calls = RewardModel.score, []

    def killed_at_the_second(self, groups, **how):
        calls.append(1)
        if len(calls) == 3:  # the first is of loading
            raise KeyboardInterrupt
        return real_score(self, groups, **how)

    monkeypatch.setattr(RewardModel, "score", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        score(told)
    assert score(told).read_text() == scores and len(calls) == 6
