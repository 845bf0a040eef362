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

from mmrlhf.evaluation.diversity import EAD_NOTE, diversity
from mmrlhf.evaluation.paired import compare_pair
from mmrlhf.evaluation.results import Result, differences, open_result, read_runs, unstated_settings
from mmrlhf.files.atomic import refuse_unwritable, write_atomic
from mmrlhf.files.jsonl import to_jsonable
from mmrlhf.models.images import open_image
from mmrlhf.records import ImageSource, InputError

THUMBNAIL_PIXELS = 320
"""Pixels of a picture's longer side on the page."""


def compare(runs: Sequence[str], out: str, force: bool = False, seed: int = 0) -> dict[str, Any]:
    """Compare every run with the first, benchmark by benchmark; write compare.md, compare.json and compare.html, and return what the JSON says.

    Raises InputError where results cannot stand side by side; with `force` that is a warning in all three.
    """
    results_by_benchmark = read_runs(runs)
    refuse_unwritable(Path(out), "out")
    benchmarks = {name: _compare_benchmark(results, force, seed) for name, results in results_by_benchmark.items()}
    report = {"runs": list(runs), "benchmarks": benchmarks}
    markdown = _markdown(benchmarks)
    html = _html_page(benchmarks)
    write_atomic(Path(out) / "compare.json", json.dumps(to_jsonable(report), indent=1, ensure_ascii=False) + "\n")
    write_atomic(Path(out) / "compare.md", markdown)
    write_atomic(Path(out) / "compare.html", html)
    print(markdown.split("\n### Flipped")[0])
    print(f"{Path(out) / 'compare.html'} has the rest")
    return report


def _compare_benchmark(results: Sequence[Result], force: bool, seed: int) -> dict[str, Any]:
    baseline, warnings = results[0], []
    for other in results[1:]:
        if problems := differences(baseline, other):
            text = f"{baseline.folder} and {other.folder} differ in {'; '.join(problems)}"
            if not force:
                raise InputError(f"{text}: measure both in one way, or add --force")
            warnings.append(text)
        if unstated := unstated_settings(baseline, other):
            warnings.append(f"{baseline.folder} or {other.folder} does not say its {', '.join(unstated)}: they may differ")
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    ids = set.intersection(*(r.answered_ids for r in results))
    if not ids:
        raise InputError(f"{', '.join(str(r.folder) for r in results)} have no answered example in common")
    _, task, _ = open_result(baseline, ids)
    summary = baseline.summary
    return {
        "headline": summary["headline"], "direction": summary["direction"], "cluster": summary.get("cluster", "example"), "n": len(ids), "warnings": warnings,
        "models": [r.name for r in results],
        "pairs": [{"a": baseline.name, "b": other.name, **compare_pair(baseline, other, ids, seed)} for other in results[1:]],
        "diversity": diversity(results, dict(task.examples), ids),
    }  # fmt: skip


# ---- Markdown --------------------------------------------------------------------------------------------------------


def _format_number(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def metric_rows(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any] | None]]:
    """Differences with their names, parts in front."""
    flat_rows: list[tuple[str, Mapping[str, Any] | None]] = []
    for name, value in metrics.items():
        if value is None or "difference" in value:
            flat_rows.append((f"{prefix}{name}", value))
        else:
            flat_rows += metric_rows(value, f"{prefix}{name} ")
    return flat_rows


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *([_markdown_cell(c) for c in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(value: Any) -> str:
    return " ".join(_format_number(value).split()).replace("|", "\\|")


def _difference_cells(value: Mapping[str, Any] | None) -> list[Any]:
    if value is None or "difference" not in value:
        return [None] * 6
    interval = f"[{_format_number(value['low'])}, {_format_number(value['high'])}]"
    return [value["a"], value["b"], value["difference"], interval, value["p"], value["detectable"]]


def _markdown(benchmarks: Mapping[str, Any]) -> str:
    parts = ["# Comparison"]
    for name, comparison in benchmarks.items():
        parts.append(f"## {name}")
        parts.append(
            f"{comparison['n']} examples that all have answered; headline `{comparison['headline']}`, {comparison['direction']} is better."
        )
        parts += [f"**Warning:** {w}." for w in comparison["warnings"]]
        for pair in comparison["pairs"]:
            parts.append(f"### {pair['b']} against {pair['a']}")
            header = ["metric", pair["a"], pair["b"], "difference", "95% interval", "p", "detectable"]
            for mode, metrics in pair["metrics"].items():
                if metrics:
                    parts.append(
                        _markdown_table([f"{mode}", *header[1:]], [[n, *_difference_cells(v)] for n, v in metric_rows(metrics)])
                    )
            if mcnemar_test := pair["mcnemar"]:
                parts.append(
                    f"Right in {pair['a']} alone: {mcnemar_test['only_a']}; in {pair['b']} alone: {mcnemar_test['only_b']}; in both: {mcnemar_test['both']}; "
                    f"McNemar's exact p {_format_number(mcnemar_test['p'])}."
                )
            if pair["categories"]:
                parts.append(
                    _markdown_table(
                        ["share right", "n", *header[1:]],
                        [[c["name"], c["n"], *_difference_cells(c if "difference" in c else None)] for c in pair["categories"]],
                    )
                )
        parts.append(
            f"Intervals: paired bootstrap over {comparison['cluster']}s. Detectable: the difference that such data would show in 80% of trials."
        )
        if comparison["diversity"]:
            names = [k for k in comparison["diversity"][0] if k not in ("part", "name", "n") and not k.endswith("_ci")]
            rows = [[d["part"], d["name"], d["n"], *(_format_interval(d, k) for k in names)] for d in comparison["diversity"]]
            parts += ["### Diversity", _markdown_table(["part", "model", "n", *names], rows), EAD_NOTE]
        for pair in comparison["pairs"]:
            if pair["flipped"]:
                parts.append(f"### Flipped, {pair['b']} against {pair['a']}")
                parts.append(
                    _markdown_table(["id", "asked", "truth", pair["a"], pair["b"]],
                           [[f["id"], f["asked"][:200], f["truth"] or "", *(a["text"][:300] for a in f["answers"])] for f in pair["flipped"]])
                )  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _format_interval(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    low, high = row[f"{name}_ci"]
    return f"{_format_number(row[name])} [{_format_number(low)}, {_format_number(high)}]"


# ---- the page --------------------------------------------------------------------------------------------------------


def _html_page(benchmarks: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("compare.html.j2").render(
        benchmarks=benchmarks, number=_format_number, apart=_difference_cells, rows_of=metric_rows, pieces=_split_by_claims, picture=_thumbnail_url, interval=_format_interval,
        diversity_note=EAD_NOTE, figure=lambda d: [k for k in d if k not in ("part", "name", "n") and not k.endswith("_ci")],
    )  # fmt: skip


def _split_by_claims(answer: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """An answer's text in pieces, each with whether it is a false claim."""
    pieces, position, text = [], 0, answer["text"][:2000]
    for start, end in answer["false"]:
        if start >= position and end <= len(text):
            pieces += [(text[position:start], False), (text[start:end], True)]
            position = end
    return [*pieces, (text[position:], False)]


def _thumbnail_url(path: str | None) -> str:
    """A small copy as a data address; empty where the picture is not there or does not open."""
    if path is None or not Path(path).is_file():
        return ""
    try:
        image = open_image(ImageSource(path=path))
    except InputError:
        return ""
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
