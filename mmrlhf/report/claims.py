"""What a policy claimed, answer by answer: each claim with its verdict and the fact, score or answer that decided it. One HTML file."""

from __future__ import annotations

import base64
import io
import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmrlhf.files.atomic import write_atomic
from mmrlhf.models.images import open_image
from mmrlhf.records import ImageSource, InputError
from mmrlhf.report.results import split_at_claims

MAX_ANSWERS = 48
"""Answers of a page, the latest of the ledger."""
THUMBNAIL_SIZE = 320
"""Pixels of a picture's longer side there."""
VERDICT_MARKS = {"supported": ("ok", "✓"), "contradicted": ("wrong", "✗"), "unknown": ("soft", "?")}


def write_claims_page(run_dir: Path, images_by_id: Mapping[str, ImageSource] | None = None) -> Path | None:
    """Write `claims.html` into the directory of a ppo run from the end of its ledger; None where no answer's claims were judged.

    pictures: by row, for rows whose pictures are no files. A picture that is gone is left out.
    """
    ledger = run_dir / "ledger.jsonl"
    if not ledger.exists():
        return None
    with open(ledger, encoding="utf-8") as file:
        rows = [row for row in map(json.loads, deque(file, maxlen=MAX_ANSWERS)) if "claims" in row]
    if not rows:
        return None
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    entries_by_id: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = entries_by_id.setdefault(
            row["id"], {"id": row["id"], "image": _thumbnail_url(row, images_by_id or {}), "answers": []}
        )
        entry["answers"].append(_answer_entry(row))
    html = environment.get_template("claims.html.j2").render(
        run=run_dir.name, entries=list(entries_by_id.values()), last=rows[-1]["step"]
    )
    page_path = run_dir / "claims.html"
    write_atomic(page_path, html)
    return page_path


def _answer_entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """An answer cut at what the first verifier contradicts; all verdicts; and what each term paid."""
    verifiers = list(dict.fromkeys(claim["by"] for claim in row["claims"]))
    segments = (
        split_at_claims(row["answer"], [claim for claim in row["claims"] if claim["by"] == verifiers[0]]) if verifiers else []
    )
    claims_by_verifier = [
        (verifier, [{**claim, "mark": VERDICT_MARKS[claim["verdict"]]} for claim in row["claims"] if claim["by"] == verifier])
        for verifier in verifiers
    ]
    terms = ", ".join(f"{name} {value:+.2f}" for name, value in row["terms"].items())
    return {"step": row["step"], "pieces": segments, "text": row["answer"], "by": claims_by_verifier, "terms": terms}


def _thumbnail_url(row: Mapping[str, Any], images_by_id: Mapping[str, ImageSource]) -> str:
    """The row's first picture, small, as a data URL; "" if there is none any more."""
    source = images_by_id.get(row["id"])
    if source is None and (paths := row.get("images")) and Path(paths[0]).is_file():
        source = ImageSource(path=paths[0])
    if source is None:
        return ""
    try:
        image = open_image(source)
    except InputError:
        return ""
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
