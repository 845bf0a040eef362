"""Benchmarks on the tiny VLM and synthetic images: several in one call, resumed, and on a full
disk."""

import errno
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from mmrlhf import evaluate as stage
from mmrlhf.cli import main
from mmrlhf.config import EvalConfig
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import Task, load_benchmark, parse_options
from mmrlhf.evaluation.model_cache import ModelCache
from mmrlhf.records import InputError
from tests.helpers import fake_data
from tests.helpers.fake_data import write_image, write_jsonl


@pytest.fixture
def benchmark_dir(tmp_path):
    """Write POPE, CHAIR and AMBER, each in a folder with two images."""
    root = tmp_path / "data"
    for name in ("pope", "chair", "amber"):
        (root / name).mkdir(parents=True)
    for i in range(2):
        write_image(root / "pope" / f"{i}.jpg", i)
        write_image(root / "chair" / f"COCO_val2014_{i:012d}.jpg", i)
        write_image(root / "amber" / f"AMBER_{i}.jpg", i)
    questions = [
        {"image": f"{i}.jpg", "text": f"Is there a {t} in the image?"} for i in range(2) for t in ("star", "ring", "square")
    ]
    for split in ("random", "popular", "adversarial"):
        rows = [{"question_id": n, "label": ("yes", "no")[n % 2], **row} for n, row in enumerate(questions, 1)]
        write_jsonl(root / "pope" / f"coco_pope_{split}.json", rows)
    images = {"images": [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg"} for i in range(2)]}
    boxes = {"categories": [{"id": 1, "name": "dog"}], "annotations": [{"image_id": 0, "category_id": 1}]}
    (root / "chair" / "instances_val2014.json").write_text(json.dumps(images | boxes))
    (root / "chair" / "captions_val2014.json").write_text(
        json.dumps(images | {"annotations": [{"image_id": 1, "caption": "A cat."}]})
    )
    kinds = ["discriminative-hallucination", "discriminative-attribute-state", "discriminative-attribute-number", "relation"]
    rows = [{"id": n + 1, "type": kinds[n % 4], "truth": ("no", "yes")[n % 2]} for n in range(4)]
    (root / "amber" / "annotations.json").write_text(json.dumps(rows))
    queries = [{"id": n + 1, "image": f"AMBER_{n % 2}.jpg", "query": "Is there a star in this image?"} for n in range(4)]
    (root / "amber" / "query_all.json").write_text(json.dumps(queries))
    (root / "amber" / "relation.json").write_text("{}")
    (root / "amber" / "safe_words.txt").write_text("orange\n")
    return root


def test_evaluate_runs_several_benchmarks_with_one_model(tiny_vlm_path, benchmark_dir, tmp_path, monkeypatch):
    import mmrlhf.models.policy

    opened, policy = [], mmrlhf.models.policy.load_policy
    monkeypatch.setattr(mmrlhf.models.policy, "load_policy", lambda *a: opened.append(a[0]) or policy(*a))
    line = [
        "eval",
        "pope",
        "chair",
        "amber",
        "--model",
        f"small={tiny_vlm_path}",
        "--data",
        str(benchmark_dir),
        "--out",
        str(tmp_path / "out"),
    ]
    line += ["--lineage", "portable", "--response_length", "6"]
    assert main(line) == 0 and opened == [tiny_vlm_path]  # one model for all benchmarks
    results = {n: json.loads((tmp_path / "out" / "small" / n / "result.json").read_text()) for n in ("pope", "chair", "amber")}
    assert results["pope"]["n"] == 18 and set(results["pope"]["metrics"]["robust"]) == {
        "random",
        "popular",
        "adversarial",
        "mean",
    }
    assert results["chair"]["n"] == 2 and results["amber"]["metrics"]["robust"]["existence_accuracy"] is not None
    for result in results.values():
        assert (
            result["model"] == tiny_vlm_path and result["model_sha256"] and result["template_sha256"] and result["prompt_sha256"]
        )
        assert result["generation"]["response_length"] == 6 and result["packages"]["torch"] and result["counts"]["missing"] == 0
    assert main(line) == 0 and opened == [tiny_vlm_path]  # everything is answered
    again = json.loads((tmp_path / "out" / "small" / "pope" / "result.json").read_text())
    assert again == results["pope"]


IMAGE_NAMES = {"object_halbench": '"1"', "mmhal_bench": "p0"}
"""What names an image in the data, where it is not the name of its file."""


@pytest.mark.parametrize("name", ["pope", "amber", "chair", *fake_data.DATASET_WRITERS])
def test_an_image_outside_the_image_folder_is_refused(name, benchmark_dir, tmp_path):
    benchmark, root = load_benchmark(name), benchmark_dir / name
    root.mkdir(exist_ok=True)
    data = fake_data.DATASET_WRITERS[name](root)["data"] if name in fake_data.DATASET_WRITERS else str(root)
    task = Task(data, options=parse_options(benchmark, {}))
    image = next(Path(example.images[0].path) for example in benchmark.load(task) if example.images)

    outside = image.rename(tmp_path / "secret.png")
    image.symlink_to(outside)
    with pytest.raises(InputError, match=r"`.+` leaves .* through a symlink: .*; if you trust it, give --image_folder"):
        benchmark.load(task)
    benchmark.load(replace(task, image_folder=str(task.image_root)))  # the user trusts it

    for file in root.rglob("*.*"):
        if file.suffix in (".json", ".jsonl", ".csv", ".txt"):
            text = file.read_text()
            name_in_data = IMAGE_NAMES.get(name, image.name)
            file.write_text(text.replace(name_in_data.strip('"'), "../" * 6 + "secret.png") if name_in_data in text else text)
    for folder in (None, str(task.image_root)):
        with pytest.raises(
            InputError, match=r"^.*data.*: `.+` is outside the image folder .*: '.*\.\./secret.png.*'; move the image"
        ):
            benchmark.load(replace(task, image_folder=folder))


def test_evaluate_refuses_answers_of_other_prompt_or_settings(tiny_vlm_path, benchmark_dir, tmp_path):
    config = {"model_name_or_path": tiny_vlm_path, "data": str(benchmark_dir / "chair"), "output_dir": str(tmp_path / "out")}
    evaluate("chair", EvalConfig(**config, response_length=3, limit=1), {"lineage": "portable"})
    with pytest.raises(InputError, match="answers to other prompts"):
        evaluate("chair", EvalConfig(**config, response_length=3, limit=1), {"lineage": "portable", "prompt": "Look!"})
    with pytest.raises(InputError, match=r"response_length \(was 3, now 4\)"):
        evaluate("chair", EvalConfig(**config, response_length=4, limit=1), {"lineage": "portable"})
    resumed = evaluate("chair", EvalConfig(**config, response_length=3), {"lineage": "portable"})
    assert resumed["n"] == 2 and len((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()) == 2


def test_evaluate_refuses_answers_about_an_image_that_has_changed(tiny_vlm_path, benchmark_dir, tmp_path):
    config = EvalConfig(
        model_name_or_path=tiny_vlm_path, data=str(benchmark_dir / "chair"), output_dir=str(tmp_path / "out"), response_length=3
    )
    evaluate("chair", config, {"lineage": "portable"})
    assert not (tmp_path / "out" / ".lock").exists()
    evaluate("chair", config, {"lineage": "portable"})
    image = sorted((benchmark_dir / "chair").rglob("*.jpg"))[0]
    content = image.read_bytes()
    image.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(InputError, match=r"holds answers about other images .* changed since\): give another --out"):
        evaluate("chair", config, {"lineage": "portable"})


def test_answer_cache_avoids_repeated_generation(tiny_vlm_path, benchmark_dir, tmp_path, monkeypatch):
    import mmrlhf.models.policy

    opened, policy = [], mmrlhf.models.policy.load_policy
    monkeypatch.setattr(mmrlhf.models.policy, "load_policy", lambda *a: opened.append(a[0]) or policy(*a))
    settings = {"model_name_or_path": tiny_vlm_path, "response_length": 3, "answer_cache_dir": str(tmp_path / "cache")}
    first = evaluate(
        "pope", EvalConfig(**settings, data=str(benchmark_dir / "pope" / "coco_pope_random.json"), output_dir=str(tmp_path / "a"))
    )
    # The other splits have the same questions. A killed run has left a torn line.
    file = next((tmp_path / "cache").iterdir())
    file.write_bytes(file.read_bytes() + b'{"key": "x')
    second = evaluate("pope", EvalConfig(**settings, data=str(benchmark_dir / "pope"), output_dir=str(tmp_path / "b")))
    assert opened == [tiny_vlm_path] and second["n"] == 18 and second["model_sha256"] == first["model_sha256"]
    lines = [json.loads(line) for line in (tmp_path / "b" / "predictions.jsonl").read_text().splitlines()]
    assert lines[0]["answers"] == json.loads((tmp_path / "a" / "predictions.jsonl").read_text().splitlines()[0])["answers"]
    write_image(benchmark_dir / "pope" / "0.jpg", 7)  # another image of the same name
    evaluate("pope", EvalConfig(**settings, data=str(benchmark_dir / "pope"), output_dir=str(tmp_path / "c")))
    assert opened == [tiny_vlm_path, tiny_vlm_path]


def test_answers_of_other_pixel_limits_are_not_reused(tiny_vlm_path, benchmark_dir, tmp_path, monkeypatch):
    import mmrlhf.models.policy

    limits, policy = [], mmrlhf.models.policy.load_policy

    def load(path, adapter, dtype, engine, pixels):
        limits.append((pixels.min_pixels, pixels.max_pixels))
        return policy(path, adapter, dtype, engine)  # LLaVA's images have one size

    monkeypatch.setattr(mmrlhf.models.policy, "load_policy", load)
    config = EvalConfig(
        model_name_or_path=tiny_vlm_path,
        data=str(benchmark_dir / "chair"),
        output_dir=str(tmp_path / "out"),
        answer_cache_dir=str(tmp_path / "cache"),
        response_length=3,
    )
    first = evaluate("chair", config, {"lineage": "portable"})
    for name in ("min_pixels", "max_pixels"):
        limited = replace(config, **{name: 64})
        with pytest.raises(InputError, match=rf"{name} \(was not set, now 64\): give another --out"):
            evaluate("chair", limited, {"lineage": "portable"})
        result = evaluate("chair", replace(limited, output_dir=str(tmp_path / name)), {"lineage": "portable"})
        assert result["generation"] == first["generation"] | {name: 64}
    assert limits == [(None, None), (64, None), (None, 64)]


def test_model_cache_loads_a_model_for_each_pixel_limit(monkeypatch):
    import mmrlhf.models.policy

    monkeypatch.setattr(mmrlhf.models.policy, "load_policy", lambda *args: nullcontext(args[-1].max_pixels))
    config, cache = EvalConfig(model_name_or_path="m", output_dir="out"), ModelCache()
    assert [cache.get_policy(replace(config, max_pixels=n)) for n in (64, 128)] == [64, 128]


@pytest.mark.parametrize(
    ("name", "value"),
    [("adapter_path", "a"), ("top_k", 5), ("min_new_tokens", 2)],
)
def test_evaluate_refuses_settings_that_a_server_is_not_sent(benchmark_dir, tmp_path, name, value):
    config = EvalConfig(
        model_name_or_path="http://localhost:1/v1",
        served_model="m",
        data=str(benchmark_dir / "chair"),
        output_dir=str(tmp_path / "out"),
        **{name: value},
    )
    with pytest.raises(InputError, match=rf"^--{name} {value} cannot be sent to the server http://localhost:1/v1: set it where"):
        evaluate("chair", config, {"lineage": "portable"})


def test_evaluate_full_disk_is_reported_and_files_are_kept(benchmark_dir, tmp_path, monkeypatch):
    answers = write_jsonl(tmp_path / "a.jsonl", [{"image_id": 0, "caption": "a dog"}])
    config = EvalConfig(answers=str(answers), data=str(benchmark_dir / "chair"), output_dir=str(tmp_path / "out"))
    write = stage.write_atomic

    def fail_on_result(path, content):
        if path.name == "result.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(stage, "write_atomic", fail_on_result)
    with pytest.raises(InputError, match="is on a full disk: make room"):
        evaluate("chair", config, {"lineage": "portable"})
    assert (tmp_path / "out" / "scores.jsonl").exists()
    monkeypatch.undo()
    assert evaluate("chair", config, {"lineage": "portable"})["metrics"]["official"]["chair_s"]["value"] == 0


def test_evaluate_file_size_limit_is_reported(benchmark_dir, tmp_path, monkeypatch):
    answers = write_jsonl(tmp_path / "a.jsonl", [{"image_id": 0, "caption": "a dog"}])
    config = EvalConfig(answers=str(answers), data=str(benchmark_dir / "chair"), output_dir=str(tmp_path / "out"))

    def fail(path, content):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(stage, "write_atomic", fail)
    with pytest.raises(InputError, match="out: File too large: correct it or give another --out"):
        evaluate("chair", config, {"lineage": "portable"})


def test_evaluate_recorded_answers_have_no_generation_settings(benchmark_dir, tmp_path):
    answers = write_jsonl(tmp_path / "a.jsonl", [{"image_id": 0, "caption": "a dog"}])
    config = EvalConfig(answers=str(answers), data=str(benchmark_dir / "chair"), output_dir=str(tmp_path / "out"))
    result = evaluate("chair", config, {"lineage": "portable"})
    assert result["generation"] is result["template_sha256"] is None and {"generation", "template_sha256"} <= result.keys()
    with pytest.raises(InputError, match="chair does not ask a judge"):
        evaluate("chair", replace(config, recorded_judgments=str(answers)), {"lineage": "portable"})
