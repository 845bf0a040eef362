"""Write the page of `mmrlhf compare`: a sentence, a forest plot, tables, and changed answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from mmrlhf.records import ImageSource
from mmrlhf.report.differences import (
    COLUMNS,
    Difference,
    categories_of,
    diversity_cells,
    diversity_names,
    headline_sentence,
    interval_note,
    mcnemar_sentence,
    tables_of,
)
from mmrlhf.report.plots import Plot, style_context, to_inline_svg
from mmrlhf.report.templates import jinja_environment
from mmrlhf.report.thumbnails import thumbnail_url

MAX_PLOTTED = 24
"""Metrics in a forest plot."""
COLOURS = {"better": "#12a08f", "worse": "#d43f3a"}
NEUTRAL_COLOUR = "#7d8894"
SHOWN_CHARACTERS = 2000
"""Characters of an answer that are shown."""


def comparison_page(
    benchmarks: Mapping[str, Mapping[str, Any]], images: Mapping[tuple[str, str], ImageSource], diversity_note: str
) -> str:
    """Return the page as HTML that opens offline.

    benchmarks: comparisons by benchmark, as in compare.json. images: by benchmark and example id.
    """
    sections = []
    for number, (name, comparison) in enumerate(benchmarks.items()):
        headline, direction = comparison["headline"], comparison["direction"]
        pairs = []
        for pair_number, pair in enumerate(comparison["pairs"]):
            tables = tables_of(pair, headline, direction)
            pairs.append(
                {
                    "a": pair["a"],
                    "b": pair["b"],
                    "sentence": headline_sentence(name, pair, headline, direction, comparison["n"]),
                    "plot": forest_plot(tables[-1][1], f"forest-{number}-{pair_number}") if tables else None,
                    "tables": tables,
                    "mcnemar": mcnemar_sentence(pair),
                    "categories": categories_of(pair),
                    "changed": [_changed_entry(flip, images.get((name, flip["id"]))) for flip in pair["flipped"]],
                }
            )
        diversity = comparison["diversity"]
        names = diversity_names(diversity[0]) if diversity else []
        sections.append(
            {
                "name": name,
                "n": comparison["n"],
                "warnings": comparison["warnings"],
                "answer_notes": comparison["notes"],
                "pairs": pairs,
                "note": interval_note(comparison["cluster"]),
                "diversity_names": names,
                "diversity": [(row["part"], row["name"], row["n"], diversity_cells(row, names)) for row in diversity],
            }
        )
    template = jinja_environment().get_template("compare.html.j2")
    return template.render(sections=sections, columns=COLUMNS, diversity_note=diversity_note)


def forest_plot(differences: Sequence[Difference], id_prefix: str) -> Plot | None:
    """Plot differences with their intervals, one metric a line. Returns None without any.

    Only metrics in percent share an axis; if there are none, the others are plotted.
    """
    measured = [d for d in differences if d.comparison is not None and d.comparison["low"] <= d.comparison["high"]]
    rows = ([d for d in measured if d.percent] or measured)[:MAX_PLOTTED]
    if not rows:
        return None
    scale = 100 if rows[0].percent else 1
    with style_context():
        figure = Figure(figsize=(6.4, 0.7 + 0.27 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for y, row in enumerate(rows):
            assert row.comparison is not None
            colour = COLOURS.get(row.word, NEUTRAL_COLOUR)
            bounds = [scale * row.comparison[bound] for bound in ("low", "high")]
            axes.plot(bounds, (y, y), color=colour, linewidth=1.6)
            axes.plot(scale * row.comparison["difference"], y, "o" if row.is_clear else "s", color=colour, markersize=5)
        axes.axvline(0, color=NEUTRAL_COLOUR, linewidth=0.8)
        axes.set_yticks(range(len(rows)), [row.name for row in rows], parse_math=False)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("difference in points, with its 95% interval" if scale == 100 else "difference, with its 95% interval")
        axes.grid(axis="x", linewidth=0.4, alpha=0.3)
        axes.tick_params(left=False)
    texts = (f"{row.name} {row.cells[2]} ({row.cells[3] or 'no interval'}), {row.word}" for row in rows)
    return to_inline_svg(figure, id_prefix), f"Differences by metric: {'; '.join(texts)}."


def _changed_entry(flip: Mapping[str, Any], image: ImageSource | None) -> dict[str, Any]:
    if image is None and flip["image"]:
        image = ImageSource(path=flip["image"])
    return {**flip, "image": thumbnail_url(image), "answers": [_split_by_claims(answer) for answer in flip["answers"]]}


def _split_by_claims(answer: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Split an answer's text into pieces, each with a flag that marks a false claim."""
    pieces, position, text = [], 0, answer["text"][:SHOWN_CHARACTERS]
    for start, end in answer["false"]:
        if start >= position and end <= len(text):
            pieces += [(text[position:start], False), (text[start:end], True)]
            position = end
    return [*pieces, (text[position:], False)]
