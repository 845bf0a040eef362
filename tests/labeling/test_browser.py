"""The page in a real Chromium: tasks by keyboard alone, reloads, lost servers, phones."""

import json
import re
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from mmrlhf.config import LabelConfig
from mmrlhf.files.bundled import folder
from mmrlhf.label import add_tasks, serving_labels
from tests.labeling.browsing import ANSWERS, MODES, NUM_TASKS, answer, come_in, config_of, is_at, needs_browser, press
from tests.labeling.conftest import standing

pytestmark = [pytest.mark.browser, needs_browser]


def check_label(mode, number, label, order):
    if mode == "pairwise":
        better = {"a": order[0], "b": order[1]}.get("abtx"[number % 4])
        expected = (
            {"ranks": [1, 1]} if better is None else {"ranks": [1 + (better != i) for i in range(2)], "strength": number % 3 + 1}
        )
        assert label == expected | ({"both_bad": True} if number % 4 == 3 else {})
    elif mode == "ranking":
        assert [label["ranks"][i] for i in order] == [2, 1, 3]
    elif mode == "claims":
        (mark, *_) = label["spans"]
        assert (mark["text"], mark["correction"]) == ("red mug", "blue cup")
        assert label["corrected"].startswith("A blue cup stands on")
        assert [claim["verdict"] for claim in label["claims"]][:3] == ["supported", "contradicted", "unknown"]
    else:
        kinds = {fact["kind"] for fact in label["facts"]}
        assert {"object", "attribute", "relation", "ocr", "absent"} <= kinds and not label["complete"]


@pytest.mark.parametrize("mode", MODES)
def test_tasks_by_keyboard_alone(mode, tmp_path, open_page):
    from mmrlhf.labeling.results import read_labels

    with serving_labels(config_of(tmp_path, mode)) as server:
        page = open_page()
        come_in(page, server.url)
        for number in range(NUM_TASKS):
            is_at(page, number)
            answer(page, mode, number)
            if number == NUM_TASKS // 2:
                page.reload()  # in the middle of a task, whose form is kept
                page.wait_for_selector("main[data-ready]")
                press(page, "Escape", "g", "g")
                if mode == "facts":
                    press(page, "e")
            press(page, "Control+Enter" if mode == "claims" else "Enter")
        page.wait_for_selector("main.card[data-ready]")
        found, before = read_labels(server.store), standing(server.store)
        press(page, "u")  # the last one again, as it was, in whichever order
        page.wait_for_selector("main.task[data-ready]")
        assert standing(server.store) == before[:-1]
        press(page, "Control+Enter")
        page.wait_for_selector("text=Nothing is left")
        assert standing(server.store) == before
    assert [label.task.name for label in found.labels] == [f"row {i}" for i in range(NUM_TASKS)]
    for number, label in enumerate(found.labels):
        check_label(mode, number, dict(label.content), label.order)
        assert label.seconds is not None and 0 < label.seconds < 60


def test_undo_brings_the_answer_back(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, number=3)) as server:
        page = open_page()
        come_in(page, server.url)
        press(page, "b", "3", "Enter")
        is_at(page, 1)
        press(page, "s")
        is_at(page, 2)
        press(page, "u")
        is_at(page, 1)
        press(page, "u")
        is_at(page, 0)
        assert page.input_value("[name=strength]:checked") == "3"
        chosen = page.inner_text(".answer.chosen .text")  # on whichever side it is now
        press(page, "Enter")
        is_at(page, 1)
        ((_, row, label),) = standing(server.store)
        assert row == "row 0" and ANSWERS[label["ranks"].index(1)] == chosen and label["strength"] == 3


def test_undo_keeps_what_was_typed_in_the_open_task(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, "facts", number=2)) as server:
        page = open_page()
        come_in(page, server.url)
        answer(page, "facts", 0)
        press(page, "Enter")
        is_at(page, 1)
        answer(page, "facts", 1)
        page.keyboard.type("half a sen")
        press(page, "Escape", "u")
        is_at(page, 0)
        page.wait_for_selector("#facts li:nth-child(4)")
        press(page, "Enter")
        is_at(page, 1)
        page.wait_for_selector("#facts li:nth-child(4)")
        assert page.input_value("#sentence") == "half a sen"


def test_a_server_that_goes_away_loses_nothing(tmp_path, open_page):
    page = open_page()
    config = config_of(tmp_path, number=2)
    with serving_labels(config) as server:
        come_in(page, server.url)
        port = int(server.url.rpartition(":")[2])
    press(page, "a", "3", "Enter")
    page.wait_for_selector("text=Not saved: the server does not answer")
    page.problems.clear()  # the browser reports that nobody answered
    with serving_labels(LabelConfig(output_file=config.output_file, port=port)) as server:
        press(page, "Enter")
        is_at(page, 1)
        ((_, _, label),) = standing(server.store)
        assert label["strength"] == 3


def test_a_full_disk_keeps_the_form(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, number=2)) as server:
        page = open_page()
        come_in(page, server.url)
        database = server.store._database
        database.execute(f"PRAGMA max_page_count = {database.execute('PRAGMA page_count')[0][0]}")
        press(page, "f")
        page.fill("#note", "n" * 3900)
        page.click("text=Flag and go on")
        page.wait_for_selector("text=nothing was saved")
        page.problems.clear()
        assert page.input_value("#note") == "n" * 3900
        database.execute("PRAGMA max_page_count = 1000000")
        page.click("text=Flag and go on")
        is_at(page, 1)


def test_two_tabs(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, number=3)) as server:
        page = open_page()
        come_in(page, server.url)
        other = page.context.new_page()
        other.goto(server.url)
        press(page, "a", "Enter")
        is_at(page, 1)
        press(other, "b", "Enter")
        is_at(other, 1)
        assert len(standing(server.store)) == 1


def test_the_picture_is_enlarged_and_moved(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, number=1)) as server:
        page = open_page()
        come_in(page, server.url)

        def transform():
            return page.eval_on_selector(".viewer img", "image => image.style.transform")

        press(page, "+", "+", "p", "ArrowRight")
        scale = float(re.search(r"scale\(([\d.]+)\)", transform())[1])
        assert scale == pytest.approx(1.69)
        before = transform()
        page.mouse.move(300, 400)
        page.mouse.down()
        page.mouse.move(320, 420)
        page.mouse.up()
        assert transform() != before
        page.mouse.wheel(0, -300)
        page.wait_for_selector(f'.viewer img:not([style*="scale({scale})"])')
        press(page, "0")
        assert "scale(1)" in transform()


def test_several_pictures(tmp_path, open_page):
    row = {"id": "two", "images": ["images/red_mug.png", "images/sofa.png"], "prompt": "Compare.", "answers": ANSWERS[:2]}
    (tmp_path / "two.jsonl").write_text(json.dumps(row) + "\n")
    samples = str(folder("data") / "samples")
    config = LabelConfig(
        dataset_name=str(tmp_path / "two.jsonl"), output_file=str(tmp_path / "labels.db"), image_folder=samples, port=0
    )
    with serving_labels(config) as server:
        page = open_page()
        come_in(page, server.url)
        shown = page.get_attribute(".viewer img:not([hidden])", "src")
        for keys, which in (("]", "2 / 2"), ("]", "1 / 2"), ("[", "2 / 2")):
            press(page, keys)
            page.wait_for_selector(f".which:text-is('{which}')")
        assert page.get_attribute(".viewer img:not([hidden])", "src") != shown
        # A picture that changes on disk is not shown, and says so.
        changed = tmp_path / "changed.png"
        changed.write_bytes((Path(samples) / "images/apples.png").read_bytes())
        row |= {"id": "changed", "images": [str(changed.name)], "prompt": "Changed?"}
        (tmp_path / "changed.jsonl").write_text(json.dumps(row) + "\n")
        add_tasks([str(tmp_path / "changed.jsonl")], config.output_file)
        changed.write_bytes(b"no picture")
        press(page, "s")
        page.wait_for_selector("text=This picture cannot be shown")
        page.problems.clear()  # the browser reports status 410


def test_hostile_text_runs_nothing(tmp_path, open_page):
    text = "<img src=x onerror=document.title=1><script>document.title=1</script>\u202e" + "w" * 200_000
    row = {"id": text[:60], "images": ["images/red_mug.png"], "prompt": text, "answers": [text, "plain"]}
    (tmp_path / "hostile.jsonl").write_text(
        json.dumps(row) + "\n" + json.dumps(row | {"answers": [text], "mode": "claims"}) + "\n"
    )
    config = LabelConfig(
        dataset_name=str(tmp_path / "hostile.jsonl"),
        output_file=str(tmp_path / "labels.db"),
        image_folder=str(folder("data") / "samples"),
        port=0,
        title=text[:60],
    )
    with serving_labels(config) as server:
        page = open_page(viewport={"width": 390, "height": 844})
        come_in(page, server.url)
        for keys in (("a", "Enter"), ("m", "Control+Enter")):
            assert page.title() != "1"
            assert "<script>document.title=1</script>\ufffdwww" in page.inner_text("h1")
            wide = [
                e
                for e in page.evaluate(
                    "[...document.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > 391).map(e => e.outerHTML.slice(0, 200))"
                )
            ]
            assert wide == []
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            mode = page.get_attribute("main", "data-mode")
            press(page, *keys)
            page.wait_for_selector(f'main:not([data-mode="{mode}"]):is([data-ready], .card)')
        assert len(standing(server.store)) == 2


@pytest.mark.parametrize("mode", MODES)
def test_a_phone_needs_no_keyboard(mode, tmp_path, open_page):
    with serving_labels(config_of(tmp_path, mode, number=1)) as server:
        page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        page.goto(server.url)
        page.fill("#name", "heron")
        page.tap("[name=consent]")
        page.tap("text=Start")
        page.wait_for_selector("main[data-ready]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if mode == "pairwise":
            page.tap("[value=right]")
        elif mode == "ranking":
            for position in range(3):
                page.tap(f"[name=rank-{position}][value='1']")
        elif mode == "claims":
            page.tap("#w1")
            page.tap("[name^=claim-][value=true] >> nth=0")
        else:
            page.fill("#sentence", "A red mug.")
            page.tap("#add")
            page.wait_for_selector("#facts li")
        page.tap("#save")
        page.wait_for_selector("text=Nothing is left")
        assert len(standing(server.store)) == 1


def test_skips_send_nothing_of_the_label(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, "claims", number=2)) as server:
        page = open_page()
        come_in(page, server.url)
        page.click(".correcting summary")
        page.fill("#corrected", "x" * 10_000)
        with page.expect_request("**/answer") as sent:
            page.click("button[value=skip]")
        assert set(parse_qs(sent.value.post_data, keep_blank_values=True)) == {"form_key", "token", "kind", "seconds", "note"}
        is_at(page, 1)


def test_a_corrected_answer_is_sent_only_if_it_was_edited(tmp_path, open_page):
    answer = "A  red mug.\r\n    Two spoons , here."
    row = {"id": "x", "images": ["images/red_mug.png"], "prompt": "Describe picture 0.", "answers": [answer]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    config = config_of(tmp_path, "claims", number=1)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with serving_labels(config) as server:
        page = open_page()
        come_in(page, server.url)
        press(page, "ArrowRight", "m")  # red, which is removed
        assert page.input_value("#corrected") == "A  mug. \n    Two spoons , here."
        press(page, "Control+Enter")
        page.wait_for_selector("text=Nothing is left")
        page.wait_for_selector("main.card[data-ready]")
        assert standing(server.store)[0][2]["corrected"] == answer.replace("red ", "")
        press(page, "u")
        page.wait_for_selector("main.task[data-ready]")
        page.click(".correcting summary")
        page.fill("#corrected", "A blue mug.")
        page.reload()
        page.wait_for_selector("main.task[data-ready]")
        press(page, "Control+Enter")
        page.wait_for_selector("text=Nothing is left")
        assert standing(server.store)[0][2]["corrected"] == "A blue mug."
