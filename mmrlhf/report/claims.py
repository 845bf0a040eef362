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

from mmrlhf.files import write_whole
from mmrlhf.images import open_image
from mmrlhf.records import ImageSource, InputError
from mmrlhf.report.results import pieces

SHOWN = 48
"""Answers of a page, the latest of the ledger."""
SIDE = 320
"""Pixels of a picture's longer side there."""
MARKS = {"supported": ("ok", "✓"), "contradicted": ("wrong", "✗"), "unknown": ("soft", "?")}


def write_claims(run: Path, pictures: Mapping[str, ImageSource] | None = None) -> Path | None:
    """Write `claims.html` into the directory of a ppo run from the end of its ledger; None where no answer's claims were judged.

    pictures: by row, for rows whose pictures are no files. A picture that is gone is left out.
    """
    ledger = run / "ledger.jsonl"
    if not ledger.exists():
        return None
    with open(ledger, encoding="utf-8") as file:
        rows = [row for row in map(json.loads, deque(file, maxlen=SHOWN)) if "claims" in row]
    if not rows:
        return None
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    shown: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = shown.setdefault(row["id"], {"id": row["id"], "image": _picture(row, pictures or {}), "answers": []})
        entry["answers"].append(_answer(row))
    page = environment.get_template("claims.html.j2").render(run=run.name, entries=list(shown.values()), last=rows[-1]["step"])
    target = run / "claims.html"
    write_whole(target, page)
    return target


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """An answer cut at what the first verifier contradicts; all verdicts; and what each term paid."""
    judges = list(dict.fromkeys(claim["by"] for claim in row["claims"]))
    cut = pieces(row["answer"], [claim for claim in row["claims"] if claim["by"] == judges[0]]) if judges else []
    by = [
        (judge, [{**claim, "mark": MARKS[claim["verdict"]]} for claim in row["claims"] if claim["by"] == judge])
        for judge in judges
    ]
    terms = ", ".join(f"{name} {worth:+.2f}" for name, worth in row["terms"].items())
    return {"step": row["step"], "pieces": cut, "text": row["answer"], "by": by, "terms": terms}


def _picture(row: Mapping[str, Any], pictures: Mapping[str, ImageSource]) -> str:
    """The row's first picture, small, as a data URL; "" if there is none any more."""
    source = pictures.get(row["id"])
    if source is None and (names := row.get("images")) and Path(names[0]).is_file():
        source = ImageSource(path=names[0])
    if source is None:
        return ""
    try:
        image = open_image(source)
    except InputError:
        return ""
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
