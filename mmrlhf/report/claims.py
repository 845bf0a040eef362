"""Write the claims page of a PPO run: the claims of its worst recent answers, with verdicts and
evidence."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.files.atomic import write_atomic
from mmrlhf.records import ImageSource
from mmrlhf.report.results import split_at_claims
from mmrlhf.report.templates import jinja_environment
from mmrlhf.report.thumbnails import thumbnail_url

MAX_ANSWERS = 48
"""Number of answers on the page."""
LATEST_ANSWERS = 1000
"""Number of answers, the latest in the ledger, from which the worst are chosen."""
VERDICT_MARKS = {"supported": ("ok", "✓"), "contradicted": ("wrong", "✗"), "unknown": ("soft", "?")}
"""Verdict -> CSS class and mark."""


FindImages = Callable[[Collection[str]], Mapping[str, ImageSource]]
"""Returns the first images of rows by id, those that it finds."""


def write_claims_page(run_dir: Path, find_images: FindImages) -> Path | None:
    """Write `claims.html` into a PPO run's directory, from the end of its ledger.

    It shows the answers with the most contradicted claims, worst first. Returns None if no claims
    were verified. `find_images` is called for the rows whose images are not files. Missing images
    are left out.
    """
    ledger = run_dir / "ledger.jsonl"
    if not ledger.exists():
        return None
    with open(ledger, encoding="utf-8") as file:
        latest = [row for row in map(json.loads, deque(file, maxlen=LATEST_ANSWERS)) if "claims" in row]
    if not latest:
        return None
    rows = sorted(latest, key=_rank_of_badness)[:MAX_ANSWERS]
    embedded_ids = {row["id"] for row in rows if row.get("images") and _image_file(row) is None}
    embedded_images = find_images(embedded_ids) if embedded_ids else {}
    entries_by_id: dict[str, dict[str, Any]] = {}
    for row in rows:
        row_id = row["id"]
        if row_id not in entries_by_id:
            image_url = thumbnail_url(_image_file(row) or embedded_images.get(row_id))
            entries_by_id[row_id] = {"id": row_id, "image": image_url, "question": row.get("question", ""), "answers": []}
        entries_by_id[row_id]["answers"].append(_answer_entry(row))
    template = jinja_environment().get_template("claims.html.j2")
    html = template.render(
        run=run_dir.name,
        entries=list(entries_by_id.values()),
        num_shown=len(rows),
        num_latest=len(latest),
        first_step=latest[0]["step"],
        last_step=latest[-1]["step"],
    )
    page_path = run_dir / "claims.html"
    write_atomic(page_path, html)
    return page_path


def _rank_of_badness(row: Mapping[str, Any]) -> tuple[int, float, int]:
    """Return a sort key: first the most contradicted claims, then the lowest reward, then the
    latest step."""
    verdicts = [claim["verdict"] for claim in row["claims"]]
    total = row.get("total")
    return -verdicts.count("contradicted"), float(total) if total is not None else 0.0, -int(row["step"])


def _answer_entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer, split at the first verifier's contradicted claims, with verdicts and
    rewards."""
    claims_by_verifier: dict[str, list[dict[str, Any]]] = {}
    for claim in row["claims"]:
        claims_by_verifier.setdefault(claim["by"], []).append({**claim, "mark": VERDICT_MARKS[claim["verdict"]]})
    first_claims: Sequence[dict[str, Any]] = next(iter(claims_by_verifier.values()), [])
    return {
        "step": row["step"],
        "segments": split_at_claims(row["answer"], first_claims) if first_claims else [],
        "text": row["answer"],
        "claims_by_verifier": list(claims_by_verifier.items()),
        "rewards": ", ".join(f"{name} {value:+.2f}" for name, value in row["terms"].items()),
    }


def _image_file(row: Mapping[str, Any]) -> ImageSource | None:
    """Return the row's first image if it is a file."""
    paths = row.get("images")
    return ImageSource(path=paths[0]) if paths and Path(paths[0]).is_file() else None
