"""Draw the pictures of docs/labeling.md: each mode at the width of a desktop and of a phone.

python -m tests.labeling.screenshots [docs/assets]

Needs Chromium, like the tests in a browser. Answers always have the same order here, so a picture
changes only with the page or the fonts of the machine, or where edges are smoothed.
"""

import io
import json
import random
import sys
import tempfile
from pathlib import Path
from unittest import mock

from PIL import Image
from playwright.sync_api import sync_playwright

from mmrlhf.config import LabelConfig
from mmrlhf.files.bundled import folder
from mmrlhf.label import serving_labels
from tests.labeling.browsing import ANSWERS, CHROMIUM, come_in, press

HEIGHT, GAP, GAP_COLOUR = 760, 24, "#8b929c"
DESKTOP = {"viewport": {"width": 1280, "height": HEIGHT}}
PHONE = {"viewport": {"width": 390, "height": HEIGHT}, "has_touch": True, "is_mobile": True}
ROWS = {
    "pairwise": ANSWERS[:2],
    "ranking": ANSWERS,
    "claims": ["A red mug stands on a brown table, beside a blue saucer."],
    "facts": [],
}


def answer(page, mode):
    """Answer the task on the page as somebody would who looks at the picture."""
    if mode == "pairwise":
        press(page, "a")
    elif mode == "ranking":
        press(page, *"123")
    elif mode == "claims":
        press(page, *["ArrowRight"] * 9, *["Shift+ArrowRight"] * 2, "m")  # a blue saucer
        page.keyboard.type("two grey spoons")
        press(page, "Enter", *"cyyy")
    else:
        page.keyboard.type("A red mug stands on a brown table, beside two grey spoons. There is no saucer.")
        press(page, "Enter")
        page.wait_for_selector("#facts li:nth-child(4)")


def draw(browser, mode, path):
    """Answer a task of a mode on both devices, and write the picture of both before it is saved."""
    row = {"images": ["images/red_mug.png"], "prompt": "Describe the picture in one sentence.", "mode": mode}
    shots = []
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "rows.jsonl").write_text(json.dumps(row | {"answers": ROWS[mode]}) + "\n")
        config = LabelConfig(
            dataset_name=f"{work}/rows.jsonl",
            output_file=f"{work}/labels.db",
            image_folder=str(folder("data") / "samples"),
            overlap=2,
            port=0,
        )
        with mock.patch("secrets.SystemRandom", lambda: random.Random(0)), serving_labels(config) as server:
            for name, device in (("heron", DESKTOP), ("robin", PHONE)):
                context = browser.new_context(**device)
                page = context.new_page()
                come_in(page, server.url, name)
                answer(page, mode)
                page.evaluate("scrollTo(0, 0)")
                shots.append(Image.open(io.BytesIO(page.screenshot(animations="disabled"))))
                context.close()
    whole = Image.new("RGB", (sum(shot.width for shot in shots) + GAP, HEIGHT), GAP_COLOUR)
    whole.paste(shots[0], (0, 0))
    whole.paste(shots[1], (shots[0].width + GAP, 0))
    whole.quantize(128).save(path, optimize=True)


def main():
    target = Path(sys.argv[1] if len(sys.argv) > 1 else folder("docs") / "assets")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for mode in ROWS:
            draw(browser, mode, target / f"label_{mode}.png")
        browser.close()


if __name__ == "__main__":
    main()
