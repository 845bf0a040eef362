"""`mmrlhf data stats FILE`: what a file holds, and whether the length of an answer gives its label away."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mmrlhf.facts import read_facts
from mmrlhf.files import refuse_unwritable, write_whole
from mmrlhf.formats import beside_of, example_of, is_preference, layout_of, preference_of
from mmrlhf.records import Example, Preference
from mmrlhf.summary import Summary
from mmrlhf.tables import read

Figures = dict[str, Any]
MOST_SOURCES = 6
"""In the printed table; stats.json has all."""


def stats(
    path: str,
    image_folder: str | None = None,
    facts_file: str | None = None,
    output_dir: str = "runs/stats",
    split: str = "train",
) -> Figures:
    """Read a file once, print what it holds, and write stats.json and stats.png; returns what stats.json says.

    Raises InputError on the first row that cannot be used.
    """
    out = Path(output_dir)
    refuse_unwritable(out, "output_dir")
    beside = beside_of(path, image_folder, read_facts(facts_file) if facts_file is not None else None)
    whole, by_source, compares, layout = Summary(), defaultdict[str, Summary](Summary), None, ""
    for unread in read(path, split):
        row = unread.row()
        if compares is None:
            compares, layout = is_preference(row), layout_of(row)
        record: Example | Preference = preference_of(row, beside) if compares else example_of(row, beside, need_answer=False)
        whole.add(record)
        if isinstance(record, Preference):
            by_source[record.source or "not said"].add(record)
    figures: Figures = {"file": path, "layout": layout, **figures_of(whole)}
    figures["by_source"] = {name: figures_of(part) for name, part in sorted(by_source.items())}
    write_whole(out / "stats.json", json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    _plot(whole, out / "stats.png")
    _print(figures)
    print(f"{out / 'stats.json'} and {out / 'stats.png'}")
    return figures


def figures_of(found: Summary) -> Figures:
    """What a summary says, as JSON has it; null where there is nothing to say it of. docs/metrics.md explains each."""
    return {
        "rows": found.rows,
        "pictures": len(found.pictures),
        "images_per_row": _spread(found.images),
        "answers_per_row": _spread(found.answers),
        "rows_with_facts": sum(count > 0 for count in found.facts),
        "rows_with_ties": found.tied,
        "rows_with_ratings": len(found.margins),
        "mean_margin": fmean(found.margins) if found.margins else None,
        "ratings_against_ranks": found.against_ranks,
        "hallucinated": {name: found.hallucinated[key] for name, key in (("yes", True), ("no", False), ("not said", None))},
        "rows_repeated": sum(count - 1 for count in found.rows_alike.values()),
        "pictures_in_several_rows": sum(count > 1 for count in found.pictures.values()),
        **{f"{name}_mean_words": fmean(lengths) if lengths else None for name, lengths in found.words.items()},
        "chosen_longer": _chosen_longer(found),
        "length_label_correlation": _correlation(found),
    }


def _spread(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(size): count for size, count in sorted(counts.items())}


def _chosen_longer(found: Summary) -> Figures | None:
    """Of the pairs whose answers differ in length, the share whose chosen one is longer, with Wilson's interval."""
    from scipy.stats import binomtest

    gap = np.subtract(found.words["chosen"], found.words["rejected"], dtype=float)
    uneven = int(np.count_nonzero(gap))
    if not uneven:
        return None
    test = binomtest(int((gap > 0).sum()), uneven)
    low, high = test.proportion_ci(method="wilson")
    return {"share": float(test.statistic), "ci": [float(low), float(high)], "of": uneven}


def _correlation(found: Summary) -> Figures | None:
    """Point-biserial, over answers: 1 for a chosen and 0 for a rejected one against their lengths; Fisher's interval."""
    from scipy.stats import pearsonr

    chosen, rejected = found.words["chosen"], found.words["rejected"]
    words = np.array([*chosen, *rejected], dtype=float)
    if len(words) < 4 or np.ptp(words) == 0:
        return None
    test = pearsonr(np.repeat([1.0, 0.0], [len(chosen), len(rejected)]), words)
    r = float(test.statistic)
    if abs(r) > 1 - 1e-12:  # Fisher's transform ends there
        return {"r": r, "ci": [r, r], "of": len(words)}
    low, high = test.confidence_interval()
    return {"r": r, "ci": [float(low), float(high)], "of": len(words)}


# ---- shown -----------------------------------------------------------------------------------------------------------


def _print(figures: Figures) -> None:
    sources = figures["by_source"] if len(figures["by_source"]) > 1 else {}
    shown = {"all": figures, **dict(sorted(sources.items(), key=lambda item: -item[1]["rows"])[:MOST_SOURCES])}
    table = Table(title=f"{figures['file']}: {figures['layout']}", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in shown:
        table.add_column(name.replace("[", r"\["), justify="right")
    for field in figures_of(Summary()):
        cells = [_cell(part[field]) for part in shown.values()]
        if set(cells) - {"", "0"}:
            table.add_row(field.replace("_", " "), *cells)
    console = Console(highlight=False)
    console.print(table)
    if len(sources) > MOST_SOURCES:
        console.print(f"{len(sources) - MOST_SOURCES} more sources are in stats.json")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, dict):
        return f"{value:.1f}" if isinstance(value, float) else str(value)
    if "ci" in value:
        estimate = value.get("share", value.get("r"))
        low, high = value["ci"]
        return f"{estimate:.2f} ({low:.2f} to {high:.2f})"
    if "not said" in value and not value["yes"] + value["no"]:
        return ""
    return ", ".join(f"{count} x {name}" for name, count in value.items() if count)


CHOSEN, REJECTED, INK = "#2f6fa8", "#c8553a", "#333333"


def _plot(found: Summary, path: Path) -> None:
    """How long chosen and rejected answers are, and how much longer the chosen one is; or how long the answers of examples are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    chosen, rejected, answers = (np.array(found.words[name], dtype=float) for name in ("chosen", "rejected", "answer"))
    figure = Figure(figsize=(9, 3.4) if len(chosen) else (5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    first, *more = figure.subplots(1, 2 if len(chosen) else 1, squeeze=False)[0]
    series = [("chosen", chosen, CHOSEN), ("rejected", rejected, REJECTED)] if len(chosen) else [("answers", answers, CHOSEN)]
    edges = _edges(np.concatenate([values for _, values, _ in series]))
    for name, values, colour in series:
        if len(values):
            first.hist(_inside(values, edges), edges, histtype="stepfilled", color=colour, alpha=0.35)
            first.hist(_inside(values, edges), edges, histtype="step", color=colour, linewidth=1.4)
            first.axvline(values.mean(), color=colour, linestyle="--", linewidth=1.2, label=f"{name}, mean {values.mean():.1f}")
    first.set(title="Length of answers", xlabel="words", ylabel="answers")
    if any(len(values) for _, values, _ in series):
        first.legend(frameon=False, fontsize=8)
    for axes in more:
        gap = chosen - rejected
        axes.hist(_inside(gap, _edges(gap)), _edges(gap), color="#8a8f98")
        axes.axvline(0, color=INK, linewidth=1)
        axes.axvline(gap.mean(), color=CHOSEN, linestyle="--", linewidth=1.2, label=f"mean {gap.mean():+.1f}")
        axes.set(title="How much longer the chosen answer is", xlabel="words, chosen less rejected", ylabel="pairs")
        axes.legend(frameon=False, fontsize=8)
    for axes in (first, *more):
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.get_major_locator().set_params(integer=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    write_whole(path, buffer.getvalue())


def _edges(values: np.ndarray) -> np.ndarray:
    """Of bins of whole words, at most 40 of them; what is longer than nearly all is put into the last (`_inside`), so that one
    tale does not hide the rest."""
    if not len(values):
        return np.arange(2.0)
    low, high = np.floor(np.quantile(values, 0.005)), np.ceil(np.quantile(values, 0.995))
    width = max(1.0, np.ceil((high - low + 1) / 40))
    return np.arange(low, high + width + 1, width) - 0.5


def _inside(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return values.clip(edges[0], edges[-1])
