"""Axe-core's rules of accessibility in a real Chromium (`make test-browser` fetches them): the
annotators' page and the lead's, at the width of a desktop and of a phone, in light and dark."""

import os
from pathlib import Path

import pytest

from mmrlhf.arena.page import report_arena
from mmrlhf.label import serving_labels
from mmrlhf.labeling.lead_report import report_labels
from mmrlhf.labeling.store import Store
from mmrlhf.labeling.tasks import read_tasks
from tests.labeling.browsing import MODES, answer, come_in, config_of, needs_browser, press
from tests.labeling.conftest import assign

AXE = Path(os.environ.get("MMRLHF_AXE", Path(__file__).parents[2] / "build/axe/node_modules/axe-core/axe.min.js"))
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}

pytestmark = [
    pytest.mark.browser,
    needs_browser,
    pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: `make test-browser` fetches it"),
]
on_every_device = pytest.mark.parametrize(
    "device",
    [device | {"color_scheme": scheme} for device in (DESKTOP, PHONE) for scheme in ("light", "dark")],
    ids=["desktop-light", "desktop-dark", "phone-light", "phone-dark"],
)


@on_every_device
@pytest.mark.parametrize("mode", MODES)
def test_axe_finds_no_serious_fault(mode, device, tmp_path, open_page):
    with serving_labels(config_of(tmp_path, mode, number=1)) as server:
        page = open_page(**device)
        page.goto(server.url)
        check_with_axe(page)
        come_in(page, server.url)
        answer(page, mode, 0)
        check_with_axe(page)
        press(page, "Escape", "g")
        for opener in ("?", "f"):  # on a phone without a keyboard, nothing opens the list of keys
            press(page, opener)
            page.wait_for_selector("dialog[open]")
            check_with_axe(page)
            page.keyboard.press("Escape")
        page.click("summary")
        check_with_axe(page)
        press(page, "Escape", "g", "s")
        page.wait_for_selector("text=Nothing is left")
        check_with_axe(page)


@on_every_device
def test_axe_finds_no_serious_fault_in_what_the_lead_reads(device, tmp_path, write_rows, open_page):
    """Every table of the report on labels, with its warning, and the leaderboard of that file."""
    modes = {"pairwise": ["a", "b"], "ranking": ["a", "b", "c"], "claims": ["a"], "facts": []}
    rows = [{"prompt": f"{n}?", "mode": mode, "answers": [{"text": text, "model": f"model {text}"} for text in texts]}
            for n in range(24) for mode, texts in modes.items()]  # fmt: skip
    store = Store(tmp_path / "labels.db", create=True)
    store.add_tasks(read_tasks([write_rows(*rows)], None, None, "train"))
    work = assign(store, overlap=2)
    for name in ("heron", "robin"):
        annotator = store.add_annotator(name, f"{name}-code", 0.0, "yes")
        while (shown := work.current(annotator)) is not None:
            number = int(shown.task.prompt[0].content[:-1])
            ranks = [
                2 - (index == shown.order[0]) if name == "heron" else 1 + (index + number) % 2
                for index in range(len(shown.order))
            ]
            label = {
                "pairwise": {"ranks": ranks, "strength": 2},
                "ranking": {"ranks": ranks},
                "claims": {"spans": [], "claims": [], "corrected": "ab"[number % 2]},
                "facts": {"facts": [{"kind": "object", "text": "ab"[number % 2]}], "complete": True},
            }[shown.task.mode]
            work.submit(annotator, shown, "label", label | {"note": "A note of some length."}, seconds=None)
    store.close()
    page = open_page(**device)
    for report in (report_labels, report_arena):
        report(str(store.path), str(tmp_path / "page.html"))
        page.goto((tmp_path / "page.html").as_uri())
        assert page.locator("table").count() >= 3
        assert page.evaluate("document.documentElement.scrollWidth") <= device["viewport"]["width"]
        check_with_axe(page)


def check_with_axe(page):
    page.evaluate(AXE.read_text())
    violations = page.evaluate("async () => (await axe.run()).violations")
    faults = [
        f"{v['id']} ({v['impact']}): {v['help']}: {v['nodes'][0]['html'][:200]}"
        for v in violations
        if v["impact"] in ("serious", "critical")
    ]
    assert faults == []
