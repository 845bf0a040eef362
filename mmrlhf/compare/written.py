"""The comparison as Markdown, JSON, and one HTML page that opens offline."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmrlhf.compare.diversity import NOTE, diversity
from mmrlhf.compare.paired import compared
from mmrlhf.compare.runs import Result, differences, opened, read_runs, unsaid
from mmrlhf.files import refuse_unwritable, write_whole
from mmrlhf.images import open_image
from mmrlhf.lines import plain
from mmrlhf.records import ImageSource, InputError

THUMBNAIL = 320
"""Pixels of a picture's longer side on the page."""


def compare(runs: Sequence[str], out: str, force: bool = False, seed: int = 0) -> dict[str, Any]:
    """Compare every run with the first, benchmark by benchmark; write compare.md, compare.json and compare.html, and return what the JSON says.

    Raises InputError where results cannot stand side by side; with `force` that is a warning in all three.
    """
    found = read_runs(runs)
    refuse_unwritable(Path(out), "out")
    benchmarks = {name: _benchmark(results, force, seed) for name, results in found.items()}
    report = {"runs": list(runs), "benchmarks": benchmarks}
    text = _markdown(benchmarks)
    page = _page(benchmarks)
    write_whole(Path(out) / "compare.json", json.dumps(plain(report), indent=1, ensure_ascii=False) + "\n")
    write_whole(Path(out) / "compare.md", text)
    write_whole(Path(out) / "compare.html", page)
    print(text.split("\n### Flipped")[0])
    print(f"{Path(out) / 'compare.html'} has the rest")
    return report


def _benchmark(results: Sequence[Result], force: bool, seed: int) -> dict[str, Any]:
    first, warnings = results[0], []
    for other in results[1:]:
        if problems := differences(first, other):
            text = f"{first.folder} and {other.folder} differ in {'; '.join(problems)}"
            if not force:
                raise InputError(f"{text}: measure both in one way, or add --force")
            warnings.append(text)
        if quiet := unsaid(first, other):
            warnings.append(f"{first.folder} or {other.folder} does not say its {', '.join(quiet)}: they may differ")
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    ids = set.intersection(*(r.answered for r in results))
    if not ids:
        raise InputError(f"{', '.join(str(r.folder) for r in results)} have no answered example in common")
    _, task, _ = opened(first, ids)
    said = first.said
    return {
        "headline": said["headline"], "direction": said["direction"], "cluster": said.get("cluster", "example"), "n": len(ids), "warnings": warnings,
        "models": [r.name for r in results],
        "pairs": [{"a": first.name, "b": other.name, **compared(first, other, ids, seed)} for other in results[1:]],
        "diversity": diversity(results, dict(task.examples), ids),
    }  # fmt: skip


# ---- Markdown --------------------------------------------------------------------------------------------------------


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def rows_of(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any] | None]]:
    """Differences with their names, parts in front."""
    found: list[tuple[str, Mapping[str, Any] | None]] = []
    for name, value in metrics.items():
        if value is None or "difference" in value:
            found.append((f"{prefix}{name}", value))
        else:
            found += rows_of(value, f"{prefix}{name} ")
    return found


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([_cell(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(_number(value).split()).replace("|", "\\|")


def _apart(value: Mapping[str, Any] | None) -> list[Any]:
    if value is None or "difference" not in value:
        return [None] * 6
    interval = f"[{_number(value['low'])}, {_number(value['high'])}]"
    return [value["a"], value["b"], value["difference"], interval, value["p"], value["detectable"]]


def _markdown(benchmarks: Mapping[str, Any]) -> str:
    parts = ["# Comparison"]
    for name, found in benchmarks.items():
        parts.append(f"## {name}")
        parts.append(
            f"{found['n']} examples that all have answered; headline `{found['headline']}`, {found['direction']} is better."
        )
        parts += [f"**Warning:** {w}." for w in found["warnings"]]
        for pair in found["pairs"]:
            parts.append(f"### {pair['b']} against {pair['a']}")
            head = ["metric", pair["a"], pair["b"], "difference", "95% interval", "p", "detectable"]
            for mode, metrics in pair["metrics"].items():
                if metrics:
                    parts.append(_table([f"{mode}", *head[1:]], [[n, *_apart(v)] for n, v in rows_of(metrics)]))
            if test := pair["mcnemar"]:
                parts.append(
                    f"Right in {pair['a']} alone: {test['only_a']}; in {pair['b']} alone: {test['only_b']}; in both: {test['both']}; "
                    f"McNemar's exact p {_number(test['p'])}."
                )
            if pair["categories"]:
                parts.append(
                    _table(
                        ["share right", "n", *head[1:]],
                        [[c["name"], c["n"], *_apart(c if "difference" in c else None)] for c in pair["categories"]],
                    )
                )
        parts.append(
            f"Intervals: paired bootstrap over {found['cluster']}s. Detectable: the difference that such data would show in 80% of trials."
        )
        if found["diversity"]:
            names = [k for k in found["diversity"][0] if k not in ("part", "name", "n") and not k.endswith("_ci")]
            rows = [[d["part"], d["name"], d["n"], *(_with_interval(d, k) for k in names)] for d in found["diversity"]]
            parts += ["### Diversity", _table(["part", "model", "n", *names], rows), NOTE]
        for pair in found["pairs"]:
            if pair["flipped"]:
                parts.append(f"### Flipped, {pair['b']} against {pair['a']}")
                parts.append(
                    _table(["id", "asked", "truth", pair["a"], pair["b"]],
                           [[f["id"], f["asked"][:200], f["truth"] or "", *(a["text"][:300] for a in f["answers"])] for f in pair["flipped"]])
                )  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    low, high = row[f"{name}_ci"]
    return f"{_number(row[name])} [{_number(low)}, {_number(high)}]"


# ---- the page --------------------------------------------------------------------------------------------------------


def _page(benchmarks: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2").render(
        benchmarks=benchmarks, number=_number, apart=_apart, rows_of=rows_of, pieces=_pieces, picture=_picture, interval=_with_interval,
        diversity_note=NOTE, figure=lambda d: [k for k in d if k not in ("part", "name", "n") and not k.endswith("_ci")],
    )  # fmt: skip


def _pieces(answer: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """An answer's text in pieces, each with whether it is a false claim."""
    found, at, text = [], 0, answer["text"][:2000]
    for start, end in answer["false"]:
        if start >= at and end <= len(text):
            found += [(text[at:start], False), (text[start:end], True)]
            at = end
    return [*found, (text[at:], False)]


def _picture(path: str | None) -> str:
    """A small copy as a data address; empty where the picture is not there or does not open."""
    if path is None or not Path(path).is_file():
        return ""
    try:
        image = open_image(ImageSource(path=path))
    except InputError:
        return ""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    kept = io.BytesIO()
    image.save(kept, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(kept.getvalue()).decode()}"
