"""Plots of the report page, and the overview image with answers before and after."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from mmrlhf.files.atomic import write_atomic
from mmrlhf.report.results import (
    METRICS_BY_KEY,
    MODEL_STYLES,
    ModelStyle,
    Segment,
    metric_interval,
    metric_value,
    model_style,
    models_on_split,
    policy_after_ppo,
    split_at_claims,
)

Plot = tuple[Markup, str]
"""An inline SVG and its alternative text."""
CURVES = (
    ("objective/scores", "Reward", "score of the reward model", False),
    ("objective/kl", "KL", "nats per answer", False),
    ("eval/chair_s", "Hallucination", "answers with a false claim", True),
    ("eval/coverage", "Recall", "share of a full description", True),
    ("eval/cooccurrence_errors", "Co-occurrence hallucinations", "false claims per answer", False),
    ("eval/perception_errors", "Perception errors", "false claims per answer", False),
)
"""Key in metrics.jsonl, title, label of the y axis, whether values are percentages."""
INK_COLOUR = "#010203"
"""Placeholder for the page's text colour, so that plots follow its light or dark scheme."""
FALSE_COLOUR = "#d43f3a"


def style_context(text_colour: str = INK_COLOUR) -> Any:
    """Return a context in which figures have the pages' style."""
    return matplotlib.rc_context(
        {
            "font.family": "sans-serif", "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "mmrlhf", "text.parse_math": False,
            "text.color": text_colour, "axes.labelcolor": text_colour, "axes.edgecolor": text_colour,
            "xtick.color": text_colour, "ytick.color": text_colour,
            "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.titlesize": 10,
            "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False, "legend.fontsize": 8,
            "xtick.major.width": 0.6, "ytick.major.width": 0.6, "figure.facecolor": "none", "axes.facecolor": "none",
        }
    )  # fmt: skip


def to_inline_svg(figure: Figure, id_prefix: str) -> Markup:
    """Return a figure as an inline SVG in the page's text colour, with unique ids."""
    buffer = io.StringIO()
    with style_context(INK_COLOUR):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # drop the XML prolog
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Several SVGs share one page: prefix ids and the references to them.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{id_prefix}-", svg)
    # Without width and height the figure scales with the page.
    svg_tag = r'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true" \1>'
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', svg_tag, svg, count=1)
    return Markup(svg.replace(INK_COLOUR, "currentColor"))


def scatter_plot(models: Mapping[str, Mapping[str, Any]]) -> Plot | None:
    """Plot precision against recall with 95% intervals. Returns None without data.

    A line connects SFT at its temperatures.
    """
    points = {}
    for name, row in models.items():
        coverage, false_rate = metric_value(row, "coverage"), metric_value(row, "chair_i")
        if coverage is not None and false_rate is not None:
            points[name] = (coverage, 1 - false_rate)
    if not points:
        return None
    with style_context(INK_COLOUR):
        figure = Figure(figsize=(4.2, 3.9), layout="constrained")
        axes = figure.subplots()
        sft_curve = [points[name] for name in ("sft", "sft_t03", "sft_t07") if name in points]
        if sft_curve:
            axes.plot(*zip(*sft_curve, strict=True), color=MODEL_STYLES["sft"].colour, linewidth=0.8, zorder=1)
        for name, (x, y) in points.items():
            model, row = model_style(name), models[name]
            coverage_interval = metric_interval(row, "coverage") or (x, x)
            low, high = metric_interval(row, "chair_i") or (1 - y, 1 - y)
            axes.plot(coverage_interval, (y, y), color=model.colour, linewidth=1.2, zorder=2)
            axes.plot((x, x), (1 - high, 1 - low), color=model.colour, linewidth=1.2, zorder=2)
            size = 13 if model.marker == "*" else 7
            axes.plot(x, y, model.marker, color=model.colour, markersize=size, label=model.title, zorder=3)
        axes.set(xlabel="recall", ylabel="precision (1 − chair_i)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
            axis.set_major_locator(MaxNLocator(5))
        axes.grid(linewidth=0.4, alpha=0.3)
        figure.legend(loc="outside lower center", ncols=min(3, len(points)), columnspacing=1, handletextpad=0.3)
    description = "; ".join(f"{model_style(name).title}: precision {y:.1%}, recall {x:.1%}" for name, (x, y) in points.items())
    return to_inline_svg(figure, "scatter"), f"Precision against recall. {description}."


def curve_plot(
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    key: str,
    title: str,
    y_label: str,
    is_percent: bool,
    style_of: Callable[[str], ModelStyle] = model_style,
) -> Plot | None:
    """Plot a metric against steps, one line per run. Returns None without data.

    `style_of` returns the title and the colour of a run.
    """
    lines: dict[str, list[tuple[int, float]]] = {}
    for run, rows in curves.items():
        measured = ((row["step"], metric_value(row, key)) for row in rows)
        line = [(step, value) for step, value in measured if value is not None]
        if line:
            lines[run] = line
    if not lines:
        return None
    with style_context(INK_COLOUR):
        figure = Figure(figsize=(3.6, 2.5), layout="constrained")
        axes = figure.subplots()
        for run_index, (run, line) in enumerate(lines.items()):
            steps, values = zip(*line, strict=True)
            line_style: dict[str, Any] = {"color": style_of(run).colour, "linestyle": ("-", (0, (4, 1.2)))[run_index % 2]}
            if len(line) > 40:  # measured at every step: show the noise behind its mean
                axes.plot(steps, values, color=style_of(run).colour, linewidth=0.6, alpha=0.35)
                axes.plot(steps, running_mean(values, len(line) // 20), label=style_of(run).title, **line_style)
            else:
                axes.plot(steps, values, marker="o", markersize=3, label=style_of(run).title, **line_style)
        if is_percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if (
            key.startswith("eval/") and min(value for line in lines.values() for _, value in line) >= 0
        ):  # shares and counts: start at zero to keep small changes small
            axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.set(xlabel="step", ylabel=y_label)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(linewidth=0.4, alpha=0.3)
        axes.legend(loc="best")
    description = "; ".join(f"{style_of(run).title} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for run, line in lines.items())
    return to_inline_svg(figure, re.sub(r"\W", "-", key)), f"{title}, {y_label}, against steps. {description}."


def running_mean(values: Sequence[float], radius: int) -> list[float]:
    """Return the mean of each value and up to `radius` neighbours on either side."""
    windows = (values[max(i - radius, 0) : i + radius + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


# ---- the overview image --------------------------------------------------------------------------


def write_overview_image(path: Path, summary: Mapping[str, Any], gallery: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG, 1800 pixels wide: two images with answers before and after, and a bar chart.

    The images are the first two of the gallery where SFT makes a false claim, regardless of PPO's
    answers.
    """
    models = models_on_split(summary, "held_out")
    after = policy_after_ppo(models) or "ppo_fact"
    with style_context("#1f2630"):
        figure = Figure(figsize=(11.25, 5.2), dpi=160, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        for row_index, (image, answers) in enumerate(_before_after_answers(gallery, after)):
            _draw_gallery_entry(figure, canvas.get_renderer(), 0.93 - 0.45 * row_index, image, answers)
        compared_models = {name: models[name] for name in ("sft", after) if name in models}
        _draw_bars(figure, compared_models)
        num_images = next((row["n"] for row in compared_models.values() if row.get("n")), None)
        caption = f"{num_images} held-out images, 95% intervals" if num_images else "held-out images"
        figure.text(0.985, 0.02, caption, ha="right", fontsize=8, color="#66707c")
        figure.text(0.02, 0.02, "The first two images of the gallery where SFT makes a false claim", fontsize=8, color="#66707c")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    write_atomic(Path(path), buffer.getvalue())


def _before_after_answers(gallery: Sequence[Mapping[str, Any]], after: str) -> list[tuple[bytes, dict[str, list[Segment]]]]:
    """Return the first two images where SFT makes a false claim, with both models' answers."""
    examples = []
    for entry in gallery:
        segments_by_model = {answer["model"]: split_at_claims(answer["text"], answer["claims"]) for answer in entry["answers"]}
        if {"sft", after} <= segments_by_model.keys() and any(segment.false for segment in segments_by_model["sft"]):
            examples.append((entry["image"], {name: segments_by_model[name] for name in ("sft", after)}))
    return examples[:2]


def _draw_gallery_entry(
    figure: Figure, renderer: Any, top: float, image: bytes, answers: Mapping[str, Sequence[Segment]]
) -> None:
    width, height = figure.get_size_inches()
    image_width = 0.36 * height / width  # fractions of the figure: 0.36 of its height, square
    axes = figure.add_axes((0.02, top - 0.36, image_width, 0.36))
    axes.imshow(Image.open(io.BytesIO(image)).convert("RGB"), interpolation="lanczos")
    axes.axis("off")
    left, line_height = 0.02 + image_width + 0.02, 0.16 / height  # 0.16 inches
    y = top - 0.025
    for name, segments in answers.items():
        figure.text(left, y, model_style(name).title, weight="bold", fontsize=9, color=model_style(name).colour)
        y = _draw_wrapped_text(figure, renderer, segments, left, 0.56, y - line_height, line_height, max_lines=4)
        y -= 1.5 * line_height


def _draw_wrapped_text(
    figure: Figure,
    renderer: Any,
    segments: Sequence[Segment],
    left: float,
    right: float,
    y: float,
    line_height: float,
    *,
    max_lines: int,
) -> float:
    """Draw an answer from baseline `y` on, with false words struck out. Return the last baseline.

    Matplotlib can neither wrap nor strike out text, so each word is placed by its width.
    """
    font = FontProperties(size=9)
    figure_width_px = figure.get_size_inches()[0] * figure.dpi

    def text_width(text: str) -> float:
        return renderer.get_text_width_height_descent(text, font, False)[0] / figure_width_px

    x, num_lines, space = left, 1, text_width("a a") - text_width("aa")
    words = list(_iter_words(segments))
    for index, (word, is_false, no_space) in enumerate(words):
        x += 0 if no_space or x == left else space
        if x + text_width(word) > right:
            if num_lines == max_lines:
                figure.text(x, y, "…", fontproperties=font)
                return y
            x, y, num_lines = left, y - line_height, num_lines + 1
        figure.text(x, y, word, fontproperties=font, color=FALSE_COLOUR if is_false else None, parse_math=False)
        if is_false:
            # Strike through the space, too, if the next word continues the claim on this line.
            next_word, next_is_false, _ = words[index + 1] if index + 1 < len(words) else ("", False, False)
            continues = next_is_false and x + text_width(f"{word} {next_word}") < right
            end = x + text_width(word) + (space if continues else 0)
            figure.add_artist(Line2D((x, end), (y + 0.3 * line_height,) * 2, color=FALSE_COLOUR, linewidth=1))
        x += text_width(word)
    return y


def _iter_words(segments: Sequence[Segment]) -> Iterator[tuple[str, bool, bool]]:
    """Yield each word, whether it is false, and whether it follows without a space."""
    ends_without_space = False
    for segment in segments:
        for index, word in enumerate(segment.text.split()):
            yield word, segment.false, index == 0 and ends_without_space and not segment.text[0].isspace()
        ends_without_space = bool(segment.text) and not segment.text[-1].isspace()


def _draw_bars(figure: Figure, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the main metrics of the compared models in the right quarter of the figure."""
    groups = (
        ("Lower is better", 0.53, 0.37, {"chair_s": "answers with a\nfalse claim (chair_s)",
            "cooccurrence_errors": "co-occurrence halluci-\nnations per answer", "perception_errors": "perception\nerrors per answer"}),
        ("Higher is better", 0.12, 0.25, {"claim_f1": "claim F1", "coverage": "recall"}),
    )  # fmt: skip
    for title, bottom, height, labels in groups:
        keys = [key for key in labels if any(metric_value(row, key) is not None for row in models.values())]
        if not keys:
            continue
        axes = figure.add_axes((0.715, bottom, 0.235, height))
        max_value = 0.0
        for model_index, (name, row) in enumerate(models.items()):
            for key_index, key in enumerate(keys):
                value = metric_value(row, key)
                if value is None:
                    continue
                y, (low, high) = key_index + 0.36 * (model_index - 0.5), metric_interval(row, key) or (value, value)
                label = model_style(name).title if key_index == 0 else None  # one legend entry per model
                axes.barh(y, value, 0.32, color=model_style(name).colour, label=label)
                axes.plot((low, high), (y, y), color="#1f2630", linewidth=1.2, solid_capstyle="butt")
                axes.text(high, y, f" {METRICS_BY_KEY[key].format_value(value)}", va="center", fontsize=8)
                max_value = max(max_value, high)
        axes.set_xlim(0, max(max_value * 1.2, 1e-9))
        axes.set_yticks(range(len(keys)), [labels[key] for key in keys], fontsize=8.5)
        axes.set_ylim(len(keys) - 0.5, -0.5)
        axes.set_title(title)
        axes.tick_params(left=False, bottom=False, labelbottom=False)
        axes.spines["bottom"].set_visible(False)
        if bottom > 0.5:
            axes.legend(
                loc="lower right",
                bbox_to_anchor=(1.02, 1.06),
                borderaxespad=0,
                ncols=2,
                handlelength=1,
                columnspacing=1,
            )
