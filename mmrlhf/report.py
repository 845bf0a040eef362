"""The report: what a run of everything came to, as one HTML file, as a picture, and as a table in the terminal.

The HTML opens offline: styles, plots and pictures are in it, there is no script, and every text that came with data is
escaped. Whatever a summary lacks is left out. Sentences follow the numbers: a fall is called one when the 95% intervals
before and after lie apart.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mmrlhf.run import write_whole

# ---- what is shown, under which name ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A column: its key in the summary, its head, what it says in one line, and which way is good."""

    key: str
    title: str
    better: str
    meaning: str
    percent: bool = True

    def text(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.2f}"

    def bounds(self, low: float, high: float) -> str:
        return f"{100 * low:.1f}–{100 * high:.1f}" if self.percent else f"{low:.2f}–{high:.2f}"


METRICS = (
    Metric("chair_s", "chair_s", "lower", "Answers with at least one false claim, of all answers."),
    Metric("chair_i", "chair_i", "lower", "False claims, of all claims made. Truth in the plot is 1 − chair_i."),
    Metric("habit", "habit", "lower", "False claims per answer that come of a habit in the training captions: "
           "a thing in the picture calls for an absent one.", percent=False),
    Metric("sight", "sight", "lower", "All other false claims per answer: the picture was misread.", percent=False),
    Metric("coverage", "coverage", "higher", "Of what a full description says, the share that was said. "
           "It falls when a model learns to say less."),
    Metric("claim_f1", "claim F1", "higher", "Harmonic mean of truth and coverage: silence does not pay."),
    Metric("u", "u", "higher", "Utility of an answer: true claims minus a multiple of the false ones.", percent=False),
    Metric("mean_length", "length", "", "Mean length of an answer.", percent=False),
    Metric("ead", "EAD", "higher", "How varied answers are: distinct n-grams, against how many one would expect "
           "at this length.", percent=False),
    Metric("distinct_2", "distinct-2", "higher", "Distinct pairs of neighbouring words, of all such pairs.",
           percent=False),
    Metric("yes_no_accuracy", "yes/no", "higher", "Right answers to yes/no questions."),
    Metric("yes_rate", "yes rate", "", "Answers to yes/no questions that say yes. "
           "A model that agrees with anything has a high one."),
)  # fmt: skip
METRIC = {metric.key: metric for metric in METRICS}
MAIN = tuple(METRIC[key] for key in ("chair_s", "chair_i", "habit", "sight", "coverage", "claim_f1", "u"))
OTHER = tuple(metric for metric in METRICS if metric not in MAIN)
TERMINAL = (*MAIN, METRIC["mean_length"])


@dataclass(frozen=True)
class Model:
    """A row: its name, what it is, and how plots draw it."""

    title: str
    meaning: str
    colour: str
    marker: str


# Middle tones: they must be seen on white and on black.
MODELS = {
    "sft": Model("SFT", "The fine-tuned model, from which PPO starts.", "#7d8894", "o"),
    "sft_t03": Model("SFT, T=0.3", "The same, sampled at temperature 0.3.", "#7d8894", "v"),
    "sft_t07": Model("SFT, T=0.7", "The same, sampled at temperature 0.7.", "#7d8894", "s"),
    "best_of_n": Model(
        "best of n",
        "Of several samples of SFT, the one the reward model likes best (it reads facts of the test scenes, which the others never see).",
        "#c08a2c",
        "P",
    ),
    "ppo_plain": Model("PPO, plain", "PPO against a reward model that sees no facts.", "#8b7cf0", "D"),
    "ppo_fact": Model("PPO, facts", "PPO against a reward model that sees facts about the picture.", "#12a08f", "*"),
    "clean_sft": Model("clean SFT", "Fine-tuned on captions without the habit: what better data gives.", "#4a90d9", "X"),
}
AFTER = {"ppo_fact": "After PPO with facts in the reward", "ppo_plain": "After PPO without facts in the reward"}
"""What SFT is compared with, the first that is there, and how a sentence on it begins."""

SPLITS = {
    "held_out": "Held out: new pictures of the kind trained on",
    "ood_1": "Out of distribution 1: pairings of shape and colour never trained on",
    "ood_2": "Out of distribution 2: more objects than ever trained on",
    "ood_3": "Out of distribution 3: another background, more noise",
}
REWARDS = {"plain": "without facts", "fact": "with facts"}
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


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _interval(row: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    found = row.get(f"{key}_ci")
    if not isinstance(found, Sequence) or len(found) != 2:
        return None
    low, high = (_number({"end": end}, "end") for end in found)
    return None if low is None or high is None else (low, high)


def _models(summary: Mapping[str, Any], split: str) -> dict[str, Mapping[str, Any]]:
    """The models measured on a split, in the order of MODELS, those it does not know last."""
    there = {name: splits[split] for name, splits in (summary.get("models") or {}).items() if splits.get(split)}
    return {name: there[name] for name in (*MODELS, *(n for n in there if n not in MODELS)) if name in there}


def _model(name: str) -> Model:
    return MODELS.get(name) or Model(name, "", "#9a6fb0", "h")


def headline(summary: Mapping[str, Any]) -> str:
    """One sentence on what happened to false claims and coverage on held-out pictures, as the numbers have it."""
    models = _models(summary, "held_out")
    after = next((name for name in AFTER if name in models), None)
    if "sft" not in models or after is None:
        return "There is no run before and after PPO to compare"
    false = _change(models["sft"], models[after], METRIC["chair_s"], "fall")
    if not false:
        return "False claims were not measured before and after PPO"
    covered = _change(models["sft"], models[after], METRIC["coverage"], "change")
    count = models[after].get("n")
    sentence = f"{AFTER[after]}, answers with a false claim {false}" + (f"; coverage {covered}" if covered else "")
    return sentence + (f" ({count} held-out pictures)" if count else "")


def _change(before: Mapping[str, Any], after: Mapping[str, Any], metric: Metric, hoped: str) -> str:
    """As in "fell from 42.0% to 6.0%"; "did not HOPED ..." if the intervals overlap; "" without numbers."""
    a, b = _number(before, metric.key), _number(after, metric.key)
    if a is None or b is None:
        return ""
    old, new = metric.text(a), metric.text(b)
    a_low, a_high = _interval(before, metric.key) or (a, a)
    b_low, b_high = _interval(after, metric.key) or (b, b)
    if b_high < a_low:
        return f"fell from {old} to {new}"
    if b_low > a_high:
        return f"rose from {old} to {new}"
    measurably = " measurably" if b < a or hoped == "change" else ""
    return f"did not {hoped}{measurably}, {old} before and {new} after"


# ---- answers ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A stretch of an answer: plain, or false with what refutes it. Without text: a false claim of no place in it."""

    text: str
    false: bool = False
    evidence: tuple[str, ...] = ()


def pieces(text: str, claims: Sequence[Mapping[str, Any]]) -> list[Piece]:
    """Cut an answer at its contradicted claims; those that overlap or coincide become one piece with all evidence.

    Each claim has start, end (characters), verdict, evidence. The pieces' texts joined are the answer.
    """
    spans: list[tuple[int, int, tuple[str, ...]]] = []
    placeless: tuple[str, ...] = ()
    for claim in sorted(claims, key=lambda claim: (claim["start"], claim["end"])):
        if claim["verdict"] != "contradicted":
            continue
        start, end = (min(max(claim[side], 0), len(text)) for side in ("start", "end"))
        why: tuple[str, ...] = (str(claim["evidence"]),) if claim.get("evidence") else ()
        if start >= end:
            placeless += why
        elif spans and start < spans[-1][1]:
            first, last, known = spans[-1]
            spans[-1] = (first, max(last, end), known + why)
        else:
            spans.append((start, end, why))
    found, done = [], 0
    for start, end, why in spans:
        found += [Piece(text[done:start]), Piece(text[start:end], True, tuple(dict.fromkeys(why)))]
        done = end
    found.append(Piece(text[done:]))
    found = [piece for piece in found if piece.text]
    return found + [Piece("", True, tuple(dict.fromkeys(placeless)))] * bool(placeless)


# ---- plots -----------------------------------------------------------------------------------------------------------


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


def _scatter(models: Mapping[str, Mapping[str, Any]]) -> tuple[Markup, str] | None:
    """Truth against coverage, a cross of intervals for each model; SFT's temperatures are joined. (plot, alt text)."""
    points = {}
    for name, row in models.items():
        covered, false = _number(row, "coverage"), _number(row, "chair_i")
        if covered is not None and false is not None:
            points[name] = (covered, 1 - false)
    if not points:
        return None
    with _style(INK):
        figure = Figure(figsize=(4.2, 3.9), layout="constrained")
        axes = figure.subplots()
        curve = [points[name] for name in ("sft", "sft_t03", "sft_t07") if name in points]
        axes.plot(*zip(*curve, strict=True), color=MODELS["sft"].colour, linewidth=0.8, zorder=1) if curve else None
        for name, (x, y) in points.items():
            model, row = _model(name), models[name]
            across = _interval(row, "coverage") or (x, x)
            low, high = _interval(row, "chair_i") or (1 - y, 1 - y)
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
    said = "; ".join(f"{_model(name).title}: truth {y:.1%}, coverage {x:.1%}" for name, (x, y) in points.items())
    return _svg(figure, "scatter"), f"Truth against coverage. {said}."


def _curve(curves: Mapping[str, Sequence[Mapping[str, Any]]], key: str, title: str, axis: str, percent: bool) -> tuple[
    Markup, str
] | None:  # fmt: skip
    """One quantity against steps, a line for each run. (plot, alt text), or None without data."""
    lines = {run: [(row["step"], value) for row in rows if (value := _number(row, key)) is not None]
             for run, rows in curves.items()}  # fmt: skip
    lines = {run: line for run, line in lines.items() if line}
    if not lines:
        return None
    with _style(INK):
        figure = Figure(figsize=(3.6, 2.5), layout="constrained")
        axes = figure.subplots()
        for number, (run, line) in enumerate(lines.items()):
            steps, values = zip(*line, strict=True)
            how: dict[str, Any] = {"color": _model(run).colour, "linestyle": ("-", (0, (4, 1.2)))[number % 2]}
            if len(line) > 40:  # every step was measured: the noise stays visible behind its mean
                axes.plot(steps, values, color=_model(run).colour, linewidth=0.6, alpha=0.35)
                axes.plot(steps, _running_mean(values, len(line) // 20), label=_model(run).title, **how)
            else:
                axes.plot(steps, values, marker="o", markersize=3, label=_model(run).title, **how)
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1))
        if key.startswith("eval/"):  # shares and counts: a small change must look small
            axes.set_ylim(bottom=0)
        axes.set_title(title)
        axes.set(xlabel="step", ylabel=axis)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(linewidth=0.4, alpha=0.3)
        axes.legend(loc="best")
    said = "; ".join(f"{_model(run).title} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for run, line in lines.items())
    return _svg(figure, re.sub(r"\W", "-", key)), f"{title}, {axis}, against steps. {said}."


def _running_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to `reach` neighbours on either side."""
    windows = (values[max(i - reach, 0) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


# ---- the page --------------------------------------------------------------------------------------------------------


def write(
    path: Path,
    summary: Mapping[str, Any],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    gallery: Sequence[Mapping[str, Any]],
    notes: Mapping[str, Any],
) -> None:
    """Write the report as one HTML file.

    summary: models -> splits -> metrics with NAME_ci beside NAME; reward_models; kl; seconds. Any of it may be missing.
    curves: for each PPO run its lines of metrics.jsonl. gallery: image (PNG bytes), id, prompt, facts, answers of
    models with judged claims. notes: what else to say of the run, name and text.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    held_out = _models(summary, "held_out")
    seconds = {stage: float(s) for stage, s in (summary.get("seconds") or {}).items() if s is not None}
    page = environment.get_template("report.html.j2").render(
        headline=headline(summary),
        tables=[_table(summary, split, title) for split, title in SPLITS.items() if _models(summary, split)],
        scatter=_scatter(held_out),
        curves=[drawn for curve in CURVES if (drawn := _curve(curves, *curve))],
        gallery=[_exhibit(entry) for entry in gallery],
        rewards=[
            (REWARDS.get(name, name), _cell(row, Metric("accuracy", "accuracy", "higher", "")))
            for name, row in (summary.get("reward_models") or {}).items()
        ],
        kl=[(_model(name).title, f"{kl:.2f}") for name, kl in (summary.get("kl") or {}).items() if kl is not None],
        seconds=[(stage, _duration(s)) for stage, s in seconds.items()],
        total=_duration(sum(seconds.values())),
        metrics=METRICS,
        models=[_model(name) for name in held_out],
        notes=notes,
    )
    write_whole(Path(path), page)


def _table(summary: Mapping[str, Any], split: str, title: str) -> dict[str, Any]:
    """Two blocks of columns, so that neither is wider than a page; the second only for held-out pictures."""
    models = _models(summary, split)
    blocks = []
    for metrics in (MAIN, OTHER) if split == "held_out" else (MAIN,):
        there = [metric for metric in metrics if any(_number(row, metric.key) is not None for row in models.values())]
        if there:
            rows = [(_model(name), [_cell(row, metric) for metric in there]) for name, row in models.items()]
            blocks.append({"metrics": there, "rows": rows})
    counts = sorted({row["n"] for row in models.values() if row.get("n")})
    return {"id": split, "title": title, "blocks": blocks, "n": " to ".join(map(str, counts[:: len(counts) - 1 or 1]))}


def _cell(row: Mapping[str, Any], metric: Metric) -> tuple[str, str]:
    """A value and its interval, "" where there is none."""
    value, interval = _number(row, metric.key), _interval(row, metric.key)
    return ("" if value is None else metric.text(value)), (metric.bounds(*interval) if interval else "")


def _exhibit(entry: Mapping[str, Any]) -> dict[str, Any]:
    answers = []
    for answer in entry["answers"]:
        cut = pieces(answer["text"], answer["claims"])
        answers.append({"model": _model(answer["model"]), "pieces": cut, "false": any(piece.false for piece in cut)})
    image = "data:image/png;base64," + base64.b64encode(entry["image"]).decode()
    return {"image": image, "answers": answers, **{name: entry[name] for name in ("id", "prompt", "facts")}}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


# ---- the picture -----------------------------------------------------------------------------------------------------


def picture(path: Path, summary: Mapping[str, Any], gallery: Sequence[Mapping[str, Any]]) -> None:
    """Write a PNG, 1800 pixels wide: left two pictures with the answers before and after, right the measurements.

    The two are the first of the gallery in which SFT errs, whatever PPO says of them.
    """
    models = _models(summary, "held_out")
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
        figure.text(left, y, _model(name).title, weight="bold", fontsize=9, color=_model(name).colour)
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
        keys = [key for key in labels if any(_number(row, key) is not None for row in models.values())]
        if not keys:
            continue
        axes = figure.add_axes((0.715, bottom, 0.235, height))
        widest = 0.0
        for number, (name, row) in enumerate(models.items()):
            for place, key in enumerate(keys):
                value = _number(row, key)
                if value is None:
                    continue
                y, (low, high) = place + 0.36 * (number - 0.5), _interval(row, key) or (value, value)
                axes.barh(y, value, 0.32, color=_model(name).colour, label=_model(name).title if not place else None)
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


# ---- the terminal ----------------------------------------------------------------------------------------------------


def terminal_table(summary: Mapping[str, Any]) -> None:
    """Print the held-out results, a model a row, intervals beneath the values; fits 80 columns."""
    table = Table(title="Held-out pictures, with 95% intervals", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for metric in TERMINAL:
        arrow = {"lower": "↓", "higher": "↑"}.get(metric.better, "")
        table.add_column(f"{metric.title}\n{arrow}", justify="right", no_wrap=True)
    for name, row in _models(summary, "held_out").items():
        cells = []
        for metric in TERMINAL:
            value, interval = _number(row, metric.key), _interval(row, metric.key)
            cell = Text("" if value is None else metric.text(value))
            if interval:
                cell.append("\n" + "–".join(_short(end, metric) for end in interval), "dim")
            cells.append(cell)
        style = "bold" if name == "ppo_fact" else ""
        table.add_row(Text(_model(name).title, style), *cells)
    Console().print(table)


def _short(end: float, metric: Metric) -> str:
    """An interval's end for a narrow column: 12 (percent), .31, 5.1."""
    if metric.percent:
        return f"{100 * end:.0f}"
    return re.sub(r"^(-?)0\.", r"\1.", f"{end:.2f}") if abs(end) < 0.995 else f"{end:.1f}"
