"""Gold questions: from exported labels, and with more than one right answer."""

import pytest
from PIL import Image

from mmrlhf.labeling.export import export_labels
from mmrlhf.labeling.tasks import read_tasks
from mmrlhf.records import InputError
from tests.labeling.conftest import assign, pairs

CLAIM = {"id": "x", "answer": "a red cup"}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([CLAIM | {"spans": ["cup"]}, CLAIM | {"spans": [], "id": "y"}], "rows x and y are the same gold question"),
        ([CLAIM | {"spans": ["red", "cup"]}, CLAIM | {"spans": ["cup", "red"]}], None),
        ([{"chosen": "a", "rejected": "b"}, {"chosen": "b", "rejected": "a"}], "with different right answers: keep the right"),
        ([{"answers": ["a", "b"], "ranks": [1, 3]}, {"answers": ["b", "a"], "ranks": [2, 1]}], None),
    ],
)
def test_gold_questions_have_one_right_answer(write_rows, rows, problem):
    path = write_rows(*rows)
    if problem is None:
        assert len(read_tasks([path], None, None, "train", is_gold=True)) == 1
        return
    with pytest.raises(InputError, match=problem):
        read_tasks([path], None, None, "train", is_gold=True)


def test_exported_labels_are_gold_questions_about_pictures_in_folders(make_store, tmp_path, capsys):
    images = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 6), {"one": "red", "two": "blue"}[name]).save(tmp_path / name / "a.png")
        images[name] = (tmp_path / name / "a.png").read_bytes()
    store = make_store([row | {"images": [f"{name}/a.png"]} for row, name in zip(pairs(2), images, strict=True)])
    work, annotator = assign(store), store.add_annotator("a", "code", 0.0, "yes")
    for ranks in ([1, 2], [2, 1]):
        work.submit(annotator, work.current(annotator), "label", {"ranks": ranks, "strength": 2})
    path = str(tmp_path / "gold" / "labels.jsonl")
    (tmp_path / "gold").mkdir()
    export_labels(str(store.path), "labels", path)
    assert f"2 rows as labels; image paths start from {tmp_path} (--image_folder {tmp_path})" in capsys.readouterr().out
    tasks = read_tasks([path], None, str(tmp_path), "train", is_gold=True)
    assert [(task.images[0].read(), task.answers[task.gold["ranks"].index(1)]) for task in tasks] == [
        (images["one"], "First 0."),
        (images["two"], "Second 1."),
    ]
