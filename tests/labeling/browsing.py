"""What the tests in a browser share: tasks to serve, and what annotators do by keyboard."""

import importlib.util
import json
import os
import shutil

import pytest

from mmrlhf.config import LabelConfig
from mmrlhf.files.bundled import folder

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NUM_TASKS = int(os.environ.get("MMRLHF_BROWSER_TASKS", "8"))
"""Tasks of each mode that are labelled by keyboard; `make test-browser` labels 50."""
MODES = ("pairwise", "ranking", "claims", "facts")
ANSWERS = [
    "A red mug stands on a brown table, with two grey spoons beside it.",
    "A blue cup on a shelf.",
    "A mug next to a saucer and a newspaper.",
]

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or importlib.util.find_spec("playwright") is None,
    reason="needs Chromium and the package playwright, which drives it: `.ci/run` installs both",
)


def write_tasks(path, mode, number=NUM_TASKS):
    answers = {"pairwise": ANSWERS[:2], "ranking": ANSWERS, "claims": ANSWERS[:1], "facts": []}[mode]
    rows = [
        {"id": f"row {i}", "images": ["images/red_mug.png"], "prompt": f"Describe picture {i}.", "answers": answers, "mode": mode}
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_of(tmp_path, mode="pairwise", number=NUM_TASKS, **settings):
    rows = write_tasks(tmp_path / "rows.jsonl", mode, number)
    image_folder = str(folder("data") / "samples")
    return LabelConfig(dataset_name=rows, output_file=str(tmp_path / "labels.db"), image_folder=image_folder, port=0, **settings)


def come_in(page, url, name="heron"):
    """Come in by keyboard alone."""
    page.goto(url)
    page.wait_for_selector("#name:focus")  # a busy browser focuses it only after the page has loaded
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.focus("#name")
    page.keyboard.press("Enter")
    page.wait_for_selector("main[data-ready]")


def is_at(page, number):
    """Wait for a task. (`wait_for_function` evaluates text, which the page's policy forbids.)"""
    page.wait_for_selector(f'main[data-ready] h1:text-is("Describe picture {number}."), h1:has-text("Nothing is left")')


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def answer(page, mode, number):
    """Answer the task on the page, up to the key that saves it."""
    if mode == "pairwise":
        press(page, "abtx"[number % 4], "123"[number % 3])
    elif mode == "ranking":
        press(page, *"213")
    elif mode == "claims":
        press(page, "ArrowRight", "Shift+ArrowRight", "m")  # red mug
        page.keyboard.type("blue cup")
        press(page, "Enter", "c", "y", "n", "d")
    else:
        page.keyboard.type('A red mug is on a table. The sign says "TEA". There is no cat.')
        press(page, "Enter")
        page.wait_for_selector("#facts li:nth-child(4)")
