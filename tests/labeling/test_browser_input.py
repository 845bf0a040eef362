"""Keys, fingers and the mouse in a real Chromium: what has the focus keeps its keys, words are
tapped or dragged over, two fingers enlarge the picture."""

import re

import pytest

from mmrlhf.label import serving_labels
from tests.labeling.browsing import ANSWERS, come_in, config_of, is_at, needs_browser, press
from tests.labeling.conftest import standing

pytestmark = [pytest.mark.browser, needs_browser]


def test_a_focused_control_keeps_its_own_keys(tmp_path, open_page):
    """Arrows and Space on a radio button or on the whole picture are no votes."""
    with serving_labels(config_of(tmp_path, number=1)) as server:
        page = open_page()
        come_in(page, server.url)
        press(page, "a")
        page.focus("[name=strength][value='2']")
        press(page, "ArrowRight")
        assert page.input_value("[name=strength]:checked") == "3" and page.input_value("[name=choice]:checked") == "left"
        press(page, "p", "ArrowRight")
        assert page.input_value("[name=choice]:checked") == "left"
        page.focus("#save")
        press(page, "ArrowRight")
        assert page.input_value("[name=choice]:checked") == "right"
    (tmp_path / "claims").mkdir()
    with serving_labels(config_of(tmp_path / "claims", "claims", number=1)) as server:
        page = open_page()
        come_in(page, server.url)
        page.focus("[name^=claim-][value='true']")
        press(page, "Space")
        assert page.is_checked("[name^=claim-][value='true'] >> nth=0")
        press(page, "ArrowRight")
        assert page.is_checked("[name^=claim-][value='false'] >> nth=0")


def test_guidelines_stay_beside_the_tasks_and_the_pace_is_shown(tmp_path, open_page):
    (tmp_path / "guidelines.txt").write_text("Look at the picture first.\nThen <b>read</b>.")
    with serving_labels(config_of(tmp_path, number=2, guidelines_file=str(tmp_path / "guidelines.txt"))) as server:
        page = open_page()
        come_in(page, server.url)
        guidelines, work = page.locator("#guidelines"), page.locator("#task")
        assert not guidelines.is_visible() and page.locator(".pace").count() == 0
        press(page, "g", "a", "Enter")
        is_at(page, 1)
        assert guidelines.locator(".text").inner_text() == "Look at the picture first.\nThen <b>read</b>."
        beside = work.bounding_box()["x"] + work.bounding_box()["width"]
        assert guidelines.bounding_box()["x"] >= beside and page.is_visible("#save")
        assert re.fullmatch(r"\d+ s each", page.inner_text(".pace"))


def test_words_that_the_mouse_is_dragged_over_are_one_mark(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, "claims", number=1)) as server:
        page = open_page()
        come_in(page, server.url)
        page.hover("#w2")
        page.mouse.down()
        page.hover("#w1")  # backwards
        page.mouse.up()
        assert page.locator(".mark q").all_inner_texts() == ["red mug"]
        page.keyboard.type("blue cup")  # the correction has the focus
        press(page, "Control+Enter")
        page.wait_for_selector("text=Nothing is left")
        ((_, _, label),) = standing(server.store)
        assert [(span["text"], span["correction"]) for span in label["spans"]] == [("red mug", "blue cup")]


def test_two_fingers_enlarge_the_picture_and_one_moves_it(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, number=1)) as server:
        page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        come_in(page, server.url)
        box = page.locator(".viewer").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        fingers = page.context.new_cdp_session(page)

        def touch(kind, *points):
            touches = [{"x": left, "y": top, "id": number} for number, (left, top) in enumerate(points)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

        def transform():
            style = page.eval_on_selector(".viewer img", "image => image.style.transform")
            return [float(number) for number in re.findall(r"-?[\d.]+", style)]

        touch("touchStart", (x - 30, y), (x + 30, y))
        touch("touchMove", (x - 60, y), (x + 60, y))  # twice as far apart
        touch("touchEnd")
        page.wait_for_selector('.viewer img[style*="scale"]')
        left, top, scale = transform()
        assert scale == pytest.approx(2, abs=0.05)
        touch("touchStart", (x, y))
        touch("touchMove", (x + 40, y + 20))
        touch("touchEnd")
        assert transform() == pytest.approx([left + 40, top + 20, scale], abs=1)
        assert page.evaluate("visualViewport.scale") == 1  # the page itself stays


def test_taps_on_neighbouring_words_make_one_mark(tmp_path, open_page):
    """On a phone: a finger that is drawn over the words scrolls."""
    with serving_labels(config_of(tmp_path, "claims", number=1)) as server:
        page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        come_in(page, server.url)

        def marked():
            return page.locator(".mark q").all_inner_texts()

        page.tap("#w1")
        page.fill(".mark input", "blue cup")
        page.tap("#w2")
        page.tap("#w0")
        assert marked() == ["A red mug"] and page.input_value(".mark input") == "blue cup"
        page.tap("#w6")
        assert marked() == ["A red mug", "brown"]
        page.tap("#w1")  # a tap in a mark removes it
        assert marked() == ["brown"]
        page.tap("#w7")
        page.tap("#save")
        page.wait_for_selector("text=Nothing is left")
        ((_, _, label),) = standing(server.store)
        assert [span["text"] for span in label["spans"]] == ["brown table"]


def test_a_mark_that_a_tap_made_longer_goes_with_its_verdict(tmp_path, open_page):
    """The claim is true after all, so that its words stay in the corrected answer."""
    with serving_labels(config_of(tmp_path, "claims", number=1)) as server:
        page = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        come_in(page, server.url)
        claim = page.locator(".claim").first
        next_word = int(claim.get_attribute("data-last")) + 1
        claim.locator("[value=false]").tap()
        page.tap(f"#w{next_word}")
        page.reload()  # the mark is its claim's in a draft, too
        page.wait_for_selector("main[data-ready]")
        assert page.locator(f"#w{next_word}.marked").count() == page.locator(".mark").count() == 1
        claim.locator("[value=true]").tap()
        assert page.locator(".mark").count() == 0
        page.tap("#save")
        page.wait_for_selector("text=Nothing is left")
        ((_, _, label),) = standing(server.store)
        assert label["spans"] == [] and label["corrected"] == ANSWERS[0]
        assert [verdict["verdict"] for verdict in label["claims"]] == ["supported"]


def hold(page, key, times=3):
    """Hold a key: the browser says that all but the first press are repeats."""
    for _ in range(times):
        page.keyboard.down(key)


def test_a_held_key_answers_one_task(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, number=4)) as server:
        page = open_page()
        come_in(page, server.url)
        for number, key in enumerate(("Enter", "s")):
            press(page, "a")
            hold(page, key)
            is_at(page, number + 1)
            hold(page, key)  # on the task that nobody has read
            page.keyboard.up(key)
        hold(page, "u")
        is_at(page, 1)
        hold(page, "u")
        assert [event.kind for event in server.store.events() if event.kind != "shown"] == ["joined", "label", "skip", "undo"]


def test_held_keys_in_the_field_of_facts(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, "facts", number=2)) as server:
        page = open_page()
        come_in(page, server.url)
        page.keyboard.type('"TEA" "NO"')
        hold(page, "Enter", 1)
        page.wait_for_selector("#facts li:nth-child(2)")
        hold(page, "Enter")  # of the same press, in the field that is now empty
        page.keyboard.up("Enter")
        page.keyboard.type("x")
        hold(page, "Backspace")
        page.keyboard.up("Backspace")
        assert page.locator("#facts li").count() == 2 and standing(server.store) == []


def test_control_enter_in_the_flag_dialog_flags(tmp_path, open_page):
    with serving_labels(config_of(tmp_path, number=2)) as server:
        page = open_page()
        come_in(page, server.url)
        press(page, "a", "f")
        page.fill("#note", "broken")
        press(page, "Control+Enter")
        is_at(page, 1)
        assert [(e.kind, e.content) for e in server.store.events()][2] == ("flag", {"note": "broken"})
