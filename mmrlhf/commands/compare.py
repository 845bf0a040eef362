"""`mmrlhf compare`: compare runs of eval, as Markdown, JSON, and an HTML page for offline use."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from mmrlhf.evaluation.benchmark import Benchmark
from mmrlhf.evaluation.diversity import EAD_NOTE, diversity
from mmrlhf.evaluation.paired import compare_pair
from mmrlhf.evaluation.results import Result, differences, load_benchmark_of, open_result, read_runs, unstated_settings
from mmrlhf.files.atomic import refuse_unwritable, write_atomic
from mmrlhf.files.jsonl import to_jsonable
from mmrlhf.models.images import open_image
from mmrlhf.records import ImageSource, InputError

THUMBNAIL_PIXELS = 320
"""Longer side, in pixels, of an image on the page."""


def compare(
    runs: Sequence[str], out: str, force: bool = False, seed: int = 0, benchmark_files: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare every run with the first one, benchmark by benchmark.

    Write compare.md, compare.json and compare.html, and return the content of the JSON file.
    benchmark_files: the user's own benchmarks, which results may be of. Raises InputError if
    results are damaged or not comparable; with `force`, differences are warnings in all three files
    instead.
    """
    results_by_benchmark = read_runs(runs)
    refuse_unwritable(Path(out), "out")
    benchmarks = {
        name: _compare_benchmark(results, load_benchmark_of(results[0], benchmark_files), force, seed)
        for name, results in results_by_benchmark.items()
    }
    report = {"runs": list(runs), "benchmarks": benchmarks}
    markdown = _markdown(benchmarks)
    html = _html_page(benchmarks)
    write_atomic(Path(out) / "compare.json", json.dumps(to_jsonable(report), indent=1, ensure_ascii=False) + "\n")
    write_atomic(Path(out) / "compare.md", markdown)
    write_atomic(Path(out) / "compare.html", html)
    print(markdown.split("\n### Flipped")[0])
    print(f"{Path(out) / 'compare.html'} has the flipped answers")
    return report


def _compare_benchmark(results: Sequence[Result], benchmark: Benchmark, force: bool, seed: int) -> dict[str, Any]:
    baseline, warnings = results[0], []
    for other in results[1:]:
        if problems := differences(baseline, other):
            text = f"{baseline.folder} and {other.folder} differ in {'; '.join(problems)}"
            if not force:
                raise InputError(f"{text}: measure both in the same way, or add --force")
            warnings.append(text)
        if unstated := unstated_settings(baseline, other):
            warnings.append(f"{baseline.folder} or {other.folder} does not state its {', '.join(unstated)}: they may differ")
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    ids = set.intersection(*(result.answered_ids for result in results))
    if not ids:
        raise InputError(f"{', '.join(str(result.folder) for result in results)} have no answered example in common")
    with _damage_as_input_errors(results):
        return _measure_differences(results, benchmark, ids, warnings, seed)


@contextmanager
def _damage_as_input_errors(results: Sequence[Result]) -> Iterator[None]:
    """Turn the errors of a benchmark on rows that it did not write into one InputError."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        files = " or ".join(str(result.folder / "scores.jsonl") for result in results)
        raise InputError(f"{files} does not hold what the benchmark writes ({reason}): run eval again") from error


def _measure_differences(
    results: Sequence[Result], benchmark: Benchmark, ids: set[str], warnings: list[str], seed: int
) -> dict[str, Any]:
    baseline = results[0]
    task, _ = open_result(baseline, benchmark, ids)
    summary = baseline.summary
    return {
        "headline": summary["headline"],
        "direction": summary["direction"],
        "cluster": summary.get("cluster", "example"),
        "n": len(ids),
        "warnings": warnings,
        "models": [result.name for result in results],
        "pairs": [
            {"a": baseline.name, "b": other.name, **compare_pair(baseline, other, benchmark, ids, seed)} for other in results[1:]
        ],
        "diversity": diversity(results, dict(task.examples), ids),
    }


# ---- Markdown ------------------------------------------------------------------------------------


def _format_number(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def metric_rows(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any] | None]]:
    """Flatten nested differences into rows; the name of a part becomes a prefix."""
    flat_rows: list[tuple[str, Mapping[str, Any] | None]] = []
    for name, value in metrics.items():
        if value is None or "difference" in value:
            flat_rows.append((f"{prefix}{name}", value))
        else:
            flat_rows += metric_rows(value, f"{prefix}{name} ")
    return flat_rows


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *([_markdown_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_cell(value: Any) -> str:
    return " ".join(_format_number(value).split()).replace("|", "\\|")


def _difference_cells(value: Mapping[str, Any] | None) -> list[Any]:
    if value is None or "difference" not in value:
        return [None] * 6
    interval = f"[{_format_number(value['low'])}, {_format_number(value['high'])}]"
    return [value["a"], value["b"], value["difference"], interval, value["p"], value["detectable"]]


def _diversity_names(row: Mapping[str, Any]) -> list[str]:
    return [name for name in row if name not in ("part", "name", "n") and not name.endswith("_ci")]


def _markdown(benchmarks: Mapping[str, Any]) -> str:
    parts = ["# Comparison"]
    for name, comparison in benchmarks.items():
        parts += [f"## {name}", *_markdown_benchmark(comparison)]
    return "\n\n".join(parts) + "\n"


def _markdown_benchmark(comparison: Mapping[str, Any]) -> list[str]:
    headline = f"headline `{comparison['headline']}`, {comparison['direction']} is better"
    parts = [f"{comparison['n']} examples answered in every run; {headline}."]
    parts += [f"**Warning:** {warning}." for warning in comparison["warnings"]]
    for pair in comparison["pairs"]:
        parts += _markdown_pair(pair)
    parts.append(
        f"Intervals: paired bootstrap over {comparison['cluster']}s. Detectable: the difference that such data would show "
        "in 80% of trials."
    )
    if comparison["diversity"]:
        names = _diversity_names(comparison["diversity"][0])
        rows = [
            [row["part"], row["name"], row["n"], *(_format_interval(row, name) for name in names)]
            for row in comparison["diversity"]
        ]
        parts += ["### Diversity", _markdown_table(["part", "model", "n", *names], rows), EAD_NOTE]
    for pair in comparison["pairs"]:
        if pair["flipped"]:
            parts += [f"### Flipped, {pair['b']} against {pair['a']}", _markdown_flipped(pair)]
    return parts


def _markdown_pair(pair: Mapping[str, Any]) -> list[str]:
    parts = [f"### {pair['b']} against {pair['a']}"]
    header = [pair["a"], pair["b"], "difference", "95% interval", "p", "detectable"]
    for mode, metrics in pair["metrics"].items():
        if metrics:
            rows = [[name, *_difference_cells(value)] for name, value in metric_rows(metrics)]
            parts.append(_markdown_table([mode, *header], rows))
    if test := pair["mcnemar"]:
        parts.append(
            f"Right in {pair['a']} alone: {test['only_a']}; in {pair['b']} alone: {test['only_b']}; in both: {test['both']}; "
            f"McNemar's exact p {_format_number(test['p'])}." + _repeated_note(test)
        )
    if pair["categories"]:
        rows = [
            [category["name"], category["n"], *_difference_cells(category if "difference" in category else None)]
            for category in pair["categories"]
        ]
        parts.append(_markdown_table(["share right", "n", *header], rows))
    return parts


def _repeated_note(test: Mapping[str, Any]) -> str:
    """Return a sentence on questions that several examples ask, or ""."""
    if not test["repeated"]:
        return ""
    return f" Each of {test['questions']} questions counts once; {test['repeated']} examples ask one of them again."


def _markdown_flipped(pair: Mapping[str, Any]) -> str:
    rows = [
        [flip["id"], flip["asked"][:200], flip["truth"] or "", *(answer["text"][:300] for answer in flip["answers"])]
        for flip in pair["flipped"]
    ]
    return _markdown_table(["id", "asked", "truth", pair["a"], pair["b"]], rows)


def _format_interval(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    low, high = row[f"{name}_ci"]
    return f"{_format_number(row[name])} [{_format_number(low)}, {_format_number(high)}]"


# ---- HTML ----------------------------------------------------------------------------------------


def _html_page(benchmarks: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("compare.html.j2").render(
        benchmarks=benchmarks,
        number=_format_number,
        difference_cells=_difference_cells,
        metric_rows=metric_rows,
        split_by_claims=_split_by_claims,
        thumbnail_url=_thumbnail_url,
        interval=_format_interval,
        repeated_note=_repeated_note,
        diversity_names=_diversity_names,
        diversity_note=EAD_NOTE,
    )


def _split_by_claims(answer: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Split an answer's text into pieces, each with a flag that marks a false claim."""
    pieces, position, text = [], 0, answer["text"][:2000]
    for start, end in answer["false"]:
        if start >= position and end <= len(text):
            pieces += [(text[position:start], False), (text[start:end], True)]
            position = end
    return [*pieces, (text[position:], False)]


def _thumbnail_url(path: str | None) -> str:
    """Return a thumbnail as a data URL, or "" if the image is missing or cannot be opened."""
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
