"""What matplotlib draws: the plots of the page, and the picture of answers before and after."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
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

from mmrlhf.files import write_whole
from mmrlhf.report.results import AFTER, METRIC, MODELS, Piece, interval_of, model_named, models_on, pieces, value_of

Plot = tuple[Markup, str]
"""An inline SVG and its alternative text."""
CURVES = (
    ("objective/scores", "Reward", "score of the reward model", False),
    ("objective/kl", "KL", "nats per answer", False),
    ("eval/chair_s", "Hallucination", "answers with a false claim", True),
    ("eval/coverage", "Coverage", "share said", True),
    ("eval/habit", "Habit", "false claims per answer", False),
    ("eval/sight", "Sight", "false claims per answer", False),
)
"""Key in a line of metrics, title, axis, whether in percent."""
INK = "#010203"
"""Drawn by matplotlib, then made the page's text colour, whichever scheme the page is in."""
FALSE = "#d43f3a"


def _style(ink: str) -> Any:
    return matplotlib.rc_context(
        {
            "font.family": "sans-serif", "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "mmrlhf",
            "text.color": ink, "axes.labelcolor": ink, "axes.edgecolor": ink, "xtick.color": ink, "ytick.color": ink,
            "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.titlesize": 10,
            "axes.titleweight": "bold", "axes.titlelocation": "left", "legend.frameon": False, "legend.fontsize": 8,
            "xtick.major.width": 0.6, "ytick.major.width": 0.6, "figure.facecolor": "none", "axes.facecolor": "none",
        }
    )  # fmt: skip


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as an inline element: its ids made its own, its ink the page's."""
    buffer = io.StringIO()
    with _style(INK):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg xmlns="http://www.w3.org/2000/svg" '
                  r'xmlns:xlink="http://www.w3.org/1999/xlink" aria-hidden="true" \1>', text, count=1)  # fmt: skip
    return Markup(text.replace(INK, "currentColor"))


def scatter_plot(models: Mapping[str, Mapping[str, Any]]) -> Plot | None:
    """Truth against coverage, a cross of intervals for each model; SFT's temperatures are joined. None without data."""
    points = {}
    for name, row in models.items():
        covered, false = value_of(row, "coverage"), value_of(row, "chair_i")
        if covered is not None and false is not None:
            points[name] = (covered, 1 - false)
    if not points:
        return None
    with _style(INK):
        figure = Figure(figsize=(4.2, 3.9), layout="constrained")
        axes = figure.subplots()
        curve = [points[name] for name in ("sft", "sft_t03", "sft_t07") if name in points]
        if curve:
            axes.plot(*zip(*curve, strict=True), color=MODELS["sft"].colour, linewidth=0.8, zorder=1)
        for name, (x, y) in points.items():
            model, row = model_named(name), models[name]
            across = interval_of(row, "coverage") or (x, x)
            low, high = interval_of(row, "chair_i") or (1 - y, 1 - y)
            axes.plot(across, (y, y), color=model.colour, linewidth=1.2, zorder=2)
            axes.plot((x, x), (1 - high, 1 - low), color=model.colour, linewidth=1.2, zorder=2)
            size = 13 if model.marker == "*" else 7
            axes.plot(x, y, model.marker, color=model.colour, markersize=size, label=model.title, zorder=3)
        axes.set(xlabel="coverage", ylabel="truth (1 − chair_i)")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
            axis.set_major_locator(MaxNLocator(5))
        axes.grid(linewidth=0.4, alpha=0.3)
        figure.legend(loc="outside lower center", ncols=min(3, len(points)), columnspacing=1, handletextpad=0.3)
    said = "; ".join(f"{model_named(name).title}: truth {y:.1%}, coverage {x:.1%}" for name, (x, y) in points.items())
    return _svg(figure, "scatter"), f"Truth against coverage. {said}."


def curve_plot(curves: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str, axis: str, percent: bool) -> Plot | None:
    """One quantity against steps, a line for each run. None without data."""
    lines = {run: [(row["step"], value) for row in rows if (value := value_of(row, key)) is not None]
             for run, rows in curves.items()}  # fmt: skip
    lines = {run: line for run, line in lines.items() if line}
    if not lines:
        return None
    with _style(INK):
        figure = Figure(figsize=(3.6, 2.5), layout="constrained")
        axes = figure.subplots()
        for number, (run, line) in enumerate(lines.items()):
            steps, values = zip(*line, strict=True)
            how: dict[str, Any] = {"color": model_named(run).colour, "linestyle": ("-", (0, (4, 1.2)))[number % 2]}
            if len(line) > 40:  # every step was measured: the noise stays visible behind its mean
                axes.plot(steps, values, color=model_named(run).colour, linewidth=0.6, alpha=0.35)
                axes.plot(steps, _running_mean(values, len(line) // 20), label=model_named(run).title, **how)
            else:
                axes.plot(steps, values, marker="o", markersize=3, label=model_named(run).title, **how)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if key.startswith("eval/"):  # shares and counts: a small change must look small
            axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.set(xlabel="step", ylabel=axis)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(linewidth=0.4, alpha=0.3)
        axes.legend(loc="best")
    said = "; ".join(f"{model_named(run).title} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for run, line in lines.items())
    return _svg(figure, re.sub(r"\W", "-", key)), f"{title}, {axis}, against steps. {said}."


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to `reach` neighbours on either side."""
    windows = (values[max(i - reach, 0) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


# ---- the picture -----------------------------------------------------------------------------------------------------


def picture(path: Path, summary: Mapping[str, Any], gallery: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG, 1800 pixels wide: left two pictures with the answers before and after, right the measurements.

    The two are the first of the gallery in which SFT errs, whatever PPO says of them.
    """
    models = models_on(summary, "held_out")
    after = next((name for name in AFTER if name in models), "ppo_fact")
    with _style("#1f2630"):
        figure = Figure(figsize=(11.25, 5.2), dpi=160, facecolor="white")
        canvas = FigureCanvasAgg(figure)
        for row, answers in enumerate(_before_after(gallery, after)):
            _draw_exhibit(figure, canvas.get_renderer(), 0.93 - 0.45 * row, *answers)
        pair = {name: models[name] for name in ("sft", after) if name in models}
        _draw_bars(figure, pair)
        count = next((row["n"] for row in pair.values() if row.get("n")), None)
        said = f"{count} held-out pictures, 95% intervals" if count else "held-out pictures"
        figure.text(0.985, 0.02, said, ha="right", fontsize=8, color="#66707c")
        figure.text(0.02, 0.02, "The first two of the gallery in which SFT errs", fontsize=8, color="#66707c")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    write_whole(Path(path), buffer.getvalue())


def _before_after(gallery: Sequence[Mapping[str, Any]], after: str) -> list[tuple[bytes, dict[str, list[Piece]]]]:
    found = []
    for entry in gallery:
        cut = {answer["model"]: pieces(answer["text"], answer["claims"]) for answer in entry["answers"]}
        if {"sft", after} <= cut.keys() and any(piece.false for piece in cut["sft"]):
            found.append((entry["image"], {name: cut[name] for name in ("sft", after)}))
    return found[:2]


def _draw_exhibit(figure: Figure, renderer: Any, top: float, image: bytes, answers: Mapping[str, Sequence[Piece]]) -> None:
    width, height = figure.get_size_inches()
    side = 0.36 * height / width
    axes = figure.add_axes((0.02, top - 0.36, side, 0.36))
    axes.imshow(Image.open(io.BytesIO(image)).convert("RGB"), interpolation="lanczos")
    axes.axis("off")
    left, line = 0.02 + side + 0.02, 0.16 / height  # 0.16 inches
    y = top - 0.025
    for name, cut in answers.items():
        figure.text(left, y, model_named(name).title, weight="bold", fontsize=9, color=model_named(name).colour)
        y = _flow(figure, renderer, cut, left, 0.56, y - line, line, most=4) - 1.5 * line


def _flow(
    figure: Figure, renderer: Any, cut: Sequence[Piece], left: float, right: float, y: float, line: float, *, most: int
) -> float:
    """Set an answer word by word from the baseline `y` on, false words red and struck out; the last baseline."""
    font = FontProperties(size=9)
    pixels = figure.get_size_inches()[0] * figure.dpi

    def width(text: str) -> float:
        return renderer.get_text_width_height_descent(text, font, False)[0] / pixels

    x, lines, space = left, 1, width("a a") - width("aa")
    words = list(_words(cut))
    for number, (word, false, glued) in enumerate(words):
        x += 0 if glued or x == left else space
        if x + width(word) > right:
            if lines == most:
                figure.text(x, y, "…", fontproperties=font)
                return y
            x, y, lines = left, y - line, lines + 1
        figure.text(x, y, word, fontproperties=font, color=FALSE if false else None, parse_math=False)
        if false:  # through the space as well, where the claim goes on
            more = number + 1 < len(words) and words[number + 1][1] and x + width(f"{word} {words[number + 1][0]}") < right
            end = x + width(word) + (space if more else 0)
            figure.add_artist(Line2D((x, end), (y + 0.3 * line,) * 2, color=FALSE, linewidth=1))
        x += width(word)
    return y


def _words(cut: Sequence[Piece]) -> Iterator[tuple[str, bool, bool]]:
    """(word, whether it is false, whether no space stands before it)."""
    ended = False
    for piece in cut:
        for number, word in enumerate(piece.text.split()):
            yield word, piece.false, number == 0 and ended and not piece.text[0].isspace()
        ended = bool(piece.text) and not piece.text[-1].isspace()


def _draw_bars(figure: Figure, models: Mapping[str, Mapping[str, Any]]) -> None:
    groups = (
        ("Lower is better", 0.53, 0.37, {"chair_s": "answers with a\nfalse claim (chair_s)",
            "habit": "habit: false\nclaims per answer", "sight": "sight: false\nclaims per answer"}),
        ("Higher is better", 0.12, 0.25, {"claim_f1": "claim F1", "coverage": "coverage"}),
    )  # fmt: skip
    for title, bottom, height, labels in groups:
        keys = [key for key in labels if any(value_of(row, key) is not None for row in models.values())]
        if not keys:
            continue
        axes = figure.add_axes((0.715, bottom, 0.235, height))
        widest = 0.0
        for number, (name, row) in enumerate(models.items()):
            for place, key in enumerate(keys):
                value = value_of(row, key)
                if value is None:
                    continue
                y, (low, high) = place + 0.36 * (number - 0.5), interval_of(row, key) or (value, value)
                axes.barh(y, value, 0.32, color=model_named(name).colour, label=model_named(name).title if not place else None)
                axes.plot((low, high), (y, y), color="#1f2630", linewidth=1.2, solid_capstyle="butt")
                axes.text(high, y, f" {METRIC[key].text(value)}", va="center", fontsize=8)
                widest = max(widest, high)
        axes.set_xlim(0, max(widest * 1.2, 1e-9))
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
