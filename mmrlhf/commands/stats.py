"""`mmrlhf data stats FILE`: summarise a file, and measure whether length predicts the label."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mmrlhf.datasets import detect_format, is_preference, parse_example, parse_preference, row_context
from mmrlhf.datasets.summary import DatasetSummary
from mmrlhf.facts import read_facts
from mmrlhf.files.atomic import refuse_unwritable, write_atomic
from mmrlhf.files.tables import read_rows
from mmrlhf.files.writing import writing
from mmrlhf.metrics.intervals import wilson
from mmrlhf.records import Example, Preference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

StatsDict = dict[str, Any]
MAX_SOURCES_SHOWN = 6
"""Maximum number of sources in the printed table; stats.json has all."""


def stats(
    path: str,
    image_folder: str | None = None,
    facts_file: str | None = None,
    output_dir: str = "runs/stats",
    split: str = "train",
) -> StatsDict:
    """Read a file once, print a summary, and write stats.json and stats.png.

    Return the content of stats.json. Raises InputError on the first bad row.
    """
    output_path = Path(output_dir)
    refuse_unwritable(output_path, "output_dir")
    context = row_context(path, image_folder, read_facts(facts_file) if facts_file is not None else None)
    overall = DatasetSummary()
    by_source = defaultdict[str, DatasetSummary](DatasetSummary)
    has_preferences, format_name = None, ""
    record: Example | Preference
    for raw_row in read_rows(path, split):
        row = raw_row.parse()
        if has_preferences is None:  # the first row decides for the whole file
            has_preferences, format_name = is_preference(row), detect_format(row)
        record = parse_preference(row, context) if has_preferences else parse_example(row, context, require_answer=False)
        overall.add(record)
        if isinstance(record, Preference):
            by_source[record.source or "not stated"].add(record)
    results: StatsDict = {"file": path, "layout": format_name, **summary_stats(overall)}
    results["by_source"] = {name: summary_stats(summary) for name, summary in sorted(by_source.items())}
    buffer = io.BytesIO()
    lengths_figure(overall).savefig(buffer, format="png", dpi=150)
    with writing(output_path, kept=None):
        write_atomic(output_path / "stats.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        write_atomic(output_path / "stats.png", buffer.getvalue())
    _print_table(results)
    print(f"wrote {output_path / 'stats.json'} and {output_path / 'stats.png'}")
    return results


def summary_stats(summary: DatasetSummary) -> StatsDict:
    """Return the statistics of a summary as a JSON object; undefined ones are None.

    docs/metrics.md explains each.
    """
    return {
        "rows": summary.num_rows,
        "images": len(summary.rows_per_image),
        "images_per_row": _histogram(summary.images_per_row),
        "answers_per_row": _histogram(summary.answers_per_row),
        "rows_with_facts": sum(count > 0 for count in summary.facts_per_row),
        "rows_with_ties": summary.num_tied,
        "rows_with_ratings": len(summary.margins),
        "mean_margin": fmean(summary.margins) if summary.margins else None,
        "ratings_against_ranks": summary.num_against_ranks,
        "hallucinated": {name: summary.hallucinated[key] for name, key in (("yes", True), ("no", False), ("not stated", None))},
        "rows_repeated": sum(count - 1 for count in summary.row_fingerprints.values()),
        "images_in_several_rows": sum(count > 1 for count in summary.rows_per_image.values()),
        **{f"{name}_mean_words": fmean(lengths) if lengths else None for name, lengths in summary.word_counts.items()},
        "chosen_longer": _chosen_longer(summary),
        "length_label_correlation": _length_label_correlation(summary),
    }


def _histogram(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(size): count for size, count in sorted(counts.items())}


def _chosen_longer(summary: DatasetSummary) -> StatsDict | None:
    """Return how often the chosen answer is the longer one, with Wilson's interval.

    Pairs with answers of equal length do not count.
    """
    length_diffs = np.subtract(summary.word_counts["chosen"], summary.word_counts["rejected"], dtype=float)
    num_unequal = int(np.count_nonzero(length_diffs))
    if not num_unequal:
        return None
    num_longer = int((length_diffs > 0).sum())
    return {"share": num_longer / num_unequal, "ci": list(wilson(num_longer, num_unequal)), "of": num_unequal}


def _length_label_correlation(summary: DatasetSummary) -> StatsDict | None:
    """Return the correlation of an answer's length with its label, with Fisher's interval.

    The correlation is point-biserial: chosen answers have the value 1, rejected ones 0.
    """
    from scipy.stats import pearsonr

    chosen, rejected = summary.word_counts["chosen"], summary.word_counts["rejected"]
    lengths = np.array([*chosen, *rejected], dtype=float)
    if len(lengths) < 4 or np.ptp(lengths) == 0:
        return None
    test = pearsonr(np.repeat([1.0, 0.0], [len(chosen), len(rejected)]), lengths)
    r = float(test.statistic)
    if abs(r) > 1 - 1e-12:  # Fisher's transform is infinite at 1
        return {"r": r, "ci": [r, r], "of": len(lengths)}
    low, high = test.confidence_interval()
    return {"r": r, "ci": [float(low), float(high)], "of": len(lengths)}


# ---- output --------------------------------------------------------------------------------------


def _print_table(results: StatsDict) -> None:
    sources = results["by_source"] if len(results["by_source"]) > 1 else {}
    columns = {"all": results, **dict(sorted(sources.items(), key=lambda item: -item[1]["rows"])[:MAX_SOURCES_SHOWN])}
    table = Table(title=f"{results['file']}: {results['layout']}", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in columns:
        table.add_column(name.replace("[", r"\["), justify="right")
    for field in summary_stats(DatasetSummary()):
        cells = [format_stats_cell(column[field]) for column in columns.values()]
        if set(cells) - {"", "0"}:
            table.add_row(field.replace("_", " "), *cells)
    console = Console(highlight=False)
    console.print(table)
    if len(sources) > MAX_SOURCES_SHOWN:
        console.print(f"{len(sources) - MAX_SOURCES_SHOWN} more sources are in stats.json")


def format_stats_cell(value: Any) -> str:
    """Return a value of `summary_stats` as text, "" if it is undefined."""
    if value is None:
        return ""
    if not isinstance(value, dict):
        return f"{value:.1f}" if isinstance(value, float) else str(value)
    if "ci" in value:
        estimate = value.get("share", value.get("r"))
        low, high = value["ci"]
        return f"{estimate:.2f} ({low:.2f} to {high:.2f})"
    if "not stated" in value and not value["yes"] + value["no"]:
        return ""
    return ", ".join(f"{count} x {name}" for name, count in value.items() if count)


CHOSEN_COLOUR, REJECTED_COLOUR, AXIS_COLOUR = "#4a90d9", "#d0653f", "#7d8894"


def lengths_figure(summary: DatasetSummary) -> Figure:
    """Plot the lengths of answers and, for preferences, how much longer the chosen one is."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    is_paired = bool(summary.word_counts["chosen"])
    figure = Figure(figsize=(9, 3.4) if is_paired else (5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    plot_lengths(figure.subplots(1, 2 if is_paired else 1, squeeze=False)[0], summary)
    return figure


def length_figures(summary: DatasetSummary) -> Iterator[tuple[str, Figure, str]]:
    """Yield (id, figure, description): lengths of the answers, and differences of lengths."""
    from matplotlib.figure import Figure

    figures = [Figure(figsize=(4.2, 3.4), layout="constrained") for _ in range(2)]
    plot_lengths([figure.subplots() for figure in figures], summary)
    yield "lengths", figures[0], "Histograms of the lengths of better and worse answers."
    yield "length_differences", figures[1], "Histogram of the differences of lengths, better minus worse."


def plot_lengths(axes_list: Sequence[Any], summary: DatasetSummary) -> None:
    """Plot lengths into the first axes and, for preferences, their differences into the second."""
    length_axes, *diff_axes = axes_list
    chosen, rejected, answers = (np.array(summary.word_counts[name], dtype=float) for name in ("chosen", "rejected", "answer"))
    series = (
        [("chosen", chosen, CHOSEN_COLOUR), ("rejected", rejected, REJECTED_COLOUR)]
        if len(chosen)
        else [("answers", answers, CHOSEN_COLOUR)]
    )
    edges = _bin_edges(np.concatenate([values for _, values, _ in series]))
    for name, values, colour in series:
        if len(values):
            length_axes.hist(_clip_to_bins(values, edges), edges, histtype="stepfilled", color=colour, alpha=0.35)
            length_axes.hist(_clip_to_bins(values, edges), edges, histtype="step", color=colour, linewidth=1.4)
            length_axes.axvline(
                values.mean(), color=colour, linestyle="--", linewidth=1.2, label=f"{name}, mean {values.mean():.1f}"
            )
    length_axes.set(title="Length of answers", xlabel="words", ylabel="answers")
    if any(len(values) for _, values, _ in series):
        length_axes.legend(frameon=False, fontsize=8)
    for axes in diff_axes:
        _plot_length_diffs(axes, chosen - rejected)
    for axes in (length_axes, *diff_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.get_major_locator().set_params(integer=True)


def _plot_length_diffs(axes: Any, length_diffs: np.ndarray) -> None:
    edges, mean = _bin_edges(length_diffs), length_diffs.mean()
    axes.hist(_clip_to_bins(length_diffs, edges), edges, color="#8a8f98")
    axes.axvline(0, color=AXIS_COLOUR, linewidth=1)
    axes.axvline(mean, color=CHOSEN_COLOUR, linestyle="--", linewidth=1.2, label=f"mean {mean:+.1f}")
    axes.set(title="How much longer the chosen answer is", xlabel="words, chosen minus rejected", ylabel="pairs")
    axes.legend(frameon=False, fontsize=8)


def _bin_edges(values: np.ndarray) -> np.ndarray:
    """Return the edges of at most 40 bins of whole words.

    They cover the central 99% of values, so that one long answer does not squeeze all others into
    one bin; `_clip_to_bins` puts outliers into the outer bins.
    """
    if not len(values):
        return np.arange(2.0)
    low, high = np.floor(np.quantile(values, 0.005)), np.ceil(np.quantile(values, 0.995))
    width = max(1.0, np.ceil((high - low + 1) / 40))
    return np.arange(low, high + width + 1, width) - 0.5


def _clip_to_bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return values.clip(edges[0], edges[-1])
