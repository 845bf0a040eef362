"""A resumable file appears only when complete, and a killed run with the same key continues it."""

import json
from dataclasses import replace

import pytest

from mmrlhf import generate as stage
from mmrlhf.commands.score import score
from mmrlhf.config import GenerateConfig, ScoreConfig
from mmrlhf.datasets import read_examples
from mmrlhf.files.resumable import ResumableWriter
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import yes_no_head
from mmrlhf.records import InputError
from mmrlhf.rewards.checkpoint import save_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel


def visible(folder):
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_resumable_writer_file_appears_only_when_finished(tmp_path):
    path = tmp_path / "out.jsonl"
    file = ResumableWriter(path, {"seed": 0})
    assert [path.name for path in tmp_path.iterdir()] == [".out.jsonl.lock"]
    file.append(["1\n", "2\n"])
    assert not path.exists()
    file.finish()
    assert path.read_text() == "1\n2\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.jsonl.inputs.json", "out.jsonl"]


def test_resumable_writer_resumes_without_torn_end(tmp_path):
    path = tmp_path / "out.jsonl"
    ResumableWriter(path, {}, group_size=2).append(["1\n", "1\n", "2\n", "2\n", "3\n"])
    partial_file = tmp_path / ".out.jsonl.part"
    partial_file.write_bytes(partial_file.read_bytes() + b"3")  # the second line of the third pair is cut off
    resumed = ResumableWriter(path, {}, group_size=2)
    assert resumed.num_done == 4
    resumed.append(["3\n", "3\n"])
    resumed.finish()
    assert path.read_text() == "1\n1\n2\n2\n3\n3\n"


def test_resumable_writer_refuses_to_replace_an_input(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("1\n")
    with pytest.raises(InputError, match=r"output_file .*rows\.jsonl is an input file: name another"):
        ResumableWriter(path, {"dataset_name": {"path": str(path), "sha256": "1"}})
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]


def test_resumable_writer_knows_a_settings_former_name(tmp_path):
    path = tmp_path / "out.jsonl"
    ResumableWriter(path, {"allow_worse_judge": True}).append(["1\n"])
    with pytest.raises(InputError, match=r"allow_worse_reward_model \(was True, now False\)"):
        ResumableWriter(path, {"allow_worse_reward_model": False})
    file = ResumableWriter(path, {"allow_worse_reward_model": True})
    assert file.num_done == 1
    file.finish()
    assert ResumableWriter(path, {"allow_worse_reward_model": True}).is_finished


def test_resumable_writer_refuses_other_inputs_by_name(tmp_path):
    path = tmp_path / "out.jsonl"
    file = ResumableWriter(path, {"seed": 0, "data": {"path": "a", "sha256": "1"}})
    file.append(["1\n"])
    with pytest.raises(InputError, match=r"\.part was made with other inputs, seed \(was 0, now 1\): give another --output_file"):
        ResumableWriter(path, {"seed": 1, "data": {"path": "a", "sha256": "1"}})
    with pytest.raises(InputError, match=r"data \(a has changed since\)"):
        ResumableWriter(path, {"seed": 0, "data": {"path": "a", "sha256": "2"}})
    moved = ResumableWriter(path, {"seed": 0, "data": {"path": "b", "sha256": "1"}})
    assert moved.num_done == 1 and not moved.is_finished
    moved.finish()
    with pytest.raises(InputError, match=r"out\.jsonl was made with other inputs, limit \(was not set, now 5\)"):
        ResumableWriter(path, {"seed": 0, "data": {"path": "a", "sha256": "1"}, "limit": 5})
    assert ResumableWriter(path, {"seed": 0, "data": {"path": "a", "sha256": "1"}}).is_finished


def test_resumable_writer_starts_over_where_nobody_knows_the_inputs(tmp_path):
    path = tmp_path / "out.jsonl"
    ResumableWriter(path, {}).append(["1\n"])
    (tmp_path / ".out.jsonl.inputs.json").write_text('{"inp')
    file = ResumableWriter(path, {})
    assert file.num_done == 0
    file.append(["2\n"])
    file.finish()
    assert path.read_text() == "2\n"
    path.write_text("edited")  # no longer what the inputs gave
    assert not ResumableWriter(path, {}).is_finished


def test_resumable_writer_writes_empty_file_and_refuses_folder(tmp_path):
    ResumableWriter(tmp_path / "none.jsonl", {}).finish()
    assert (tmp_path / "none.jsonl").read_text() == "" and visible(tmp_path) == ["none.jsonl"]
    with pytest.raises(InputError, match="is a directory"):
        ResumableWriter(tmp_path, {})


def test_generate_does_not_continue_answers_without_their_embedded_images(tiny_vlm_path, examples, tmp_path, monkeypatch):
    config = GenerateConfig(
        model_name_or_path=tiny_vlm_path, dataset_name="scenes", output_file=str(tmp_path / "a.jsonl"), response_length=4
    )
    stage.generate(config, examples[:1])
    inputs_file = tmp_path / ".a.jsonl.inputs.json"
    saved = json.loads(inputs_file.read_text())
    del saved["inputs"]["embedded images"]  # as an older version wrote them
    inputs_file.write_text(json.dumps(saved))
    with pytest.raises(InputError, match="embedded images"):
        stage.generate(config, examples[:1])


def test_generate_resumes_after_kill(tiny_vlm_path, examples, tmp_path, monkeypatch):
    output_file = tmp_path / "answers.jsonl"
    config = GenerateConfig(
        model_name_or_path=tiny_vlm_path, dataset_name="scenes", output_file=str(output_file), batch_size=2, num_generations=2,
        temperature=1.0, response_length=8,
    )  # fmt: skip
    uninterrupted = stage.generate(config, examples[:6]).read_text()
    embedded = [row.images for row in read_examples(str(output_file))]  # `score` sees the images
    assert [images[0].key for images in embedded[::2]] == [example.images[0].key for example in examples[:6]]
    limited = stage.generate(replace(config, limit=2, output_file=str(tmp_path / "limited.jsonl")), examples[:6])
    assert limited.read_text().splitlines() == uninterrupted.splitlines()[:4]
    output_file.unlink()
    calls = []
    generate_batches = stage.generate_batches

    def interrupt_after_three(vlm, rows, sampling_params, **options):
        calls.append(len(rows) - options["num_done"])
        for number, batch in enumerate(generate_batches(vlm, rows, sampling_params, **options)):
            if len(calls) == 1 and number == 3:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(stage, "generate_batches", interrupt_after_three)
    with pytest.raises(KeyboardInterrupt):
        stage.generate(config, examples[:6])
    assert not output_file.exists()
    assert stage.generate(config, examples[:6]).read_text() == uninterrupted and calls == [6, 3]


def test_score_resumes_after_kill(vlm, examples, tmp_path, monkeypatch):
    adapters = Adapters(vlm)
    adapters.add("reward", 4, 8, seed=0)
    reference_groups = [AnswerGroup(examples[0].images, examples[0].prompt, ("A star.",))]
    reward_model = RewardModel(Role(adapters, "reward", yes_no_head(vlm)), "none", "before")
    save_reward_model(reward_model, tmp_path / "reward", reference_groups)
    rows = []
    for colour, example in zip(("red", "blue", "green"), examples, strict=False):
        (tmp_path / f"{example.id}.png").write_bytes(example.images[0].read())
        answer = f"There is a {colour} star." + "</s>" * (colour == "green")  # a model may spell the end of its turn
        rows.append({"prompt": "What is here?", "images": [f"{example.id}.png"], "answer": answer})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output_file = tmp_path / "scores.jsonl"
    config = ScoreConfig(
        reward_model_path=str(tmp_path / "reward"), dataset_name=str(tmp_path / "rows.jsonl"), output_file=str(output_file),
        batch_size=1,
    )  # fmt: skip
    uninterrupted = score(config).read_text()
    limited = score(replace(config, limit=2, output_file=str(tmp_path / "limited.jsonl")))
    assert len(limited.read_text().splitlines()) == 2
    output_file.unlink()
    score_groups, calls = RewardModel.score, []

    def interrupt_at_second_row(self, groups, **options):
        calls.append(1)
        if len(calls) == 3:  # loading the reward model makes the first call
            raise KeyboardInterrupt
        return score_groups(self, groups, **options)

    monkeypatch.setattr(RewardModel, "score", interrupt_at_second_row)
    with pytest.raises(KeyboardInterrupt):
        score(config)
    assert not output_file.exists()
    assert score(config).read_text() == uninterrupted and len(calls) == 6
