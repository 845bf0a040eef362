"""`mmrlhf compare`: compare runs of eval, as Markdown, JSON, and an HTML page for offline use."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmrlhf.evaluation.benchmark import Benchmark
from mmrlhf.evaluation.diversity import EAD_NOTE, diversity
from mmrlhf.evaluation.paired import compare_pair
from mmrlhf.evaluation.results import Result, differences, load_benchmark_of, open_result, read_runs, unstated_settings
from mmrlhf.files.atomic import refuse_unwritable, write_atomic
from mmrlhf.files.jsonl import to_jsonable
from mmrlhf.files.writing import writing
from mmrlhf.records import ImageSource, InputError
from mmrlhf.report.compare_page import comparison_page
from mmrlhf.report.compare_table import print_comparison
from mmrlhf.report.differences import (
    COLUMNS,
    categories_of,
    diversity_cells,
    diversity_names,
    headline_sentence,
    interval_note,
    mcnemar_sentence,
    tables_of,
)
from mmrlhf.text.markdown import escape_markdown, table
from mmrlhf.text.printable import printable


def compare(
    runs: Sequence[str], out: str, force: bool = False, seed: int = 0, benchmark_files: Sequence[str] = ()
) -> dict[str, Any]:
    """Compare every run with the first one, benchmark by benchmark.

    Write compare.md, compare.json and compare.html, and return the content of the JSON file.
    benchmark_files: the user's own benchmarks, to which results may belong. Raises InputError if
    results are damaged or not comparable; with `force`, differences are warnings in all three files
    instead.
    """
    results_by_benchmark = read_runs(runs)
    refuse_unwritable(Path(out), "out")
    images: dict[tuple[str, str], ImageSource] = {}
    benchmarks = {
        name: _compare_benchmark(results, load_benchmark_of(results[0], benchmark_files), force, seed, images)
        for name, results in results_by_benchmark.items()
    }
    report = {"runs": list(runs), "benchmarks": benchmarks}
    markdown = _markdown(benchmarks)
    html = comparison_page(benchmarks, images, EAD_NOTE)
    with writing(Path(out), kept=None):
        write_atomic(Path(out) / "compare.json", json.dumps(to_jsonable(report), indent=1, ensure_ascii=False) + "\n")
        write_atomic(Path(out) / "compare.md", markdown)
        write_atomic(Path(out) / "compare.html", html)
    for name, comparison in benchmarks.items():
        print_comparison(name, comparison)
    print(f"wrote {Path(out) / 'compare.html'}, with plots and changed answers; compare.md and compare.json are next to it")
    return report


def _compare_benchmark(
    results: Sequence[Result], benchmark: Benchmark, force: bool, seed: int, images: dict[tuple[str, str], ImageSource]
) -> dict[str, Any]:
    """Return the comparison, and add the images of its examples to `images`."""
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
        print(f"warning: {printable(text)}", file=sys.stderr)
    notes = [f"{result.name}: {note}" for result in results for note in result.answer_notes]
    for text in notes:
        print(f"note: {printable(text)}", file=sys.stderr)
    ids = set.intersection(*(result.answered_ids for result in results))
    if not ids:
        raise InputError(f"{', '.join(str(result.folder) for result in results)} have no answered example in common")
    with _damage_as_input_errors(results):
        return _measure_differences(results, benchmark, ids, seed, images) | {"warnings": warnings, "notes": notes}


@contextmanager
def _damage_as_input_errors(results: Sequence[Result]) -> Iterator[None]:
    """Turn a benchmark's errors on rows that it did not write into one InputError."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        files = " or ".join(str(result.folder / "scores.jsonl") for result in results)
        raise InputError(f"{files} does not hold what the benchmark writes ({reason}): run eval again") from error


def _measure_differences(
    results: Sequence[Result],
    benchmark: Benchmark,
    ids: set[str],
    seed: int,
    images: dict[tuple[str, str], ImageSource],
) -> dict[str, Any]:
    baseline = results[0]
    task, _ = open_result(baseline, benchmark, ids)
    images |= {(baseline.benchmark, id_): example.images[0] for id_, example in task.examples.items() if example.images}
    summary = baseline.summary
    return {
        "headline": summary["headline"],
        "direction": summary["direction"],
        "cluster": summary.get("cluster", "example"),
        "n": len(ids),
        "models": [result.name for result in results],
        "pairs": [
            {"a": baseline.name, "b": other.name, **compare_pair(baseline, other, benchmark, ids, seed)} for other in results[1:]
        ],
        "diversity": diversity(results, dict(task.examples), ids),
    }


# ---- Markdown ------------------------------------------------------------------------------------


def _markdown(benchmarks: Mapping[str, Any]) -> str:
    parts = ["# Comparison"]
    for name, comparison in benchmarks.items():
        parts += [f"## {name}", *_markdown_benchmark(name, comparison)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _markdown_benchmark(name: str, comparison: Mapping[str, Any]) -> list[str]:
    headline, direction = comparison["headline"], comparison["direction"]
    pairs = [pair | {name: escape_markdown(pair[name]) for name in ("a", "b")} for pair in comparison["pairs"]]
    parts = [headline_sentence(name, pair, headline, direction, comparison["n"]) for pair in pairs]
    parts += [f"**Warning:** {warning}." for warning in comparison["warnings"]]
    parts += [f"**Note:** {note}." for note in comparison["notes"]]
    for pair in pairs:
        parts += _markdown_pair(pair, headline, direction)
    parts.append(interval_note(comparison["cluster"]))
    if comparison["diversity"]:
        names = diversity_names(comparison["diversity"][0])
        rows = [
            [*map(escape_markdown, (row["part"], row["name"], str(row["n"]))), *diversity_cells(row, names)]
            for row in comparison["diversity"]
        ]
        parts += ["### Diversity", table(["part", "model", "n", *names], rows), EAD_NOTE]
    for pair in pairs:
        if pair["flipped"]:
            parts += [f"### Changed, {pair['b']} against {pair['a']}", _markdown_changed(pair)]
    return parts


def _markdown_pair(pair: Mapping[str, Any], headline: str, direction: str) -> list[str]:
    parts = [f"### {pair['b']} against {pair['a']}"]
    header = [pair["a"], pair["b"], *COLUMNS, ""]
    for mode, rows in tables_of(pair, headline, direction):
        parts.append(table([mode, *header], [[escape_markdown(row.name), *row.cells, row.word] for row in rows]))
    if sentence := mcnemar_sentence(pair):
        parts.append(sentence)
    if categories := categories_of(pair):
        category_rows = [[escape_markdown(row.name), str(count), *row.cells, row.word] for count, row in categories]
        parts.append(table(["accuracy", "n", *header], category_rows))
    return parts


def _markdown_changed(pair: Mapping[str, Any]) -> str:
    rows = [
        [
            "better" if flip["better"] else "worse",
            *map(escape_markdown, [flip["id"], flip["asked"], flip["truth"] or "", *(a["text"] for a in flip["answers"])]),
        ]
        for flip in pair["flipped"]
    ]
    return table(["", "id", "asked", "right answer", pair["a"], pair["b"]], rows)
