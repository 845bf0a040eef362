"""Write the page of `mmrlhf report RUN...`: curves of training runs, answers over steps,
warnings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.config.loader import current_names, read_yaml, stage_of
from mmrlhf.files.atomic import refuse_unwritable, write_atomic
from mmrlhf.records import ImageSource, InputError
from mmrlhf.report.over_kl import over_kl_plot
from mmrlhf.report.plots import Plot, curve_plot
from mmrlhf.report.results import METRICS_BY_KEY, ModelStyle, metric_value
from mmrlhf.report.templates import jinja_environment
from mmrlhf.report.thumbnails import thumbnail_url

COLOURS = ("#12a08f", "#8b7cf0", "#c08a2c", "#4a90d9", "#d0608f", "#7d8894")
"""Colours of runs, readable on white and on black."""
MAIN_CURVES = {
    "objective/scores": ("Reward", "mean of an answer"),
    "objective/kl": ("KL", "nats per answer"),
    "completions/mean_length": ("Length", "tokens per answer"),
    "policy/entropy_avg": ("Entropy", "nats per token"),
    "policy/clipfrac_avg": ("Clipped ratios", "share of tokens"),
    "loss": ("Loss", ""),
    "accuracy": ("Accuracy", "share of pairs"),
    "margin": ("Margin", "better minus worse score"),
    "eval/chair_s": ("Hallucination", "answers with a false claim"),
}
"""Metrics that are shown first, with titles and units; the others are folded."""
OTHER_PREFIXES = ("rewards/", "hacking/", "claims/", "verdicts/", "eval/")
"""Beginnings of the names of metrics that come first among the others."""
EVAL_CURVES = ("claim_f1", "coverage", "cover", "recall", "yes_rate", "yes_ratio", "mean_length", "distinct_2")
"""Metrics of a benchmark that are shown beside its main one."""
MAX_EVAL_CURVES = 12
MAX_OTHER_CURVES = 60
"""Folded curves."""
RELOAD_SECONDS = 60
"""Time after which a browser reloads the page of an unfinished run."""
MAX_PROMPTS = 12
"""Prompts whose answers are shown, those with answers of the most steps first."""
MAX_STEPS = 6
"""Answers of a prompt and a run that are shown, evenly spaced over its steps."""


@dataclass(frozen=True)
class TrainingRun:
    """The content of a run directory: its settings, and the rows of its files."""

    name: str
    path: Path
    stage: str
    settings: Mapping[str, Any]
    finished: bool
    best: Mapping[str, Any]
    """Metric, value and step of the best policy; empty if none was chosen."""
    eval_keys: Mapping[str, str]
    """Main metrics of evaluations, by key of metrics.jsonl, and their better direction."""
    metrics: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    warnings: Sequence[Mapping[str, Any]]


def write_runs_page(paths: Sequence[str], out: str | None = None, *, main_curves_only: bool = False) -> Path:
    """Write one HTML file about training runs and return its path.

    By default it is report.html in the directory of the only run, or in the current directory; in a
    folder `out` it is report.html, too. It opens offline. With `main_curves_only`, which takes a
    fraction of the time, a browser reloads it from time to time until the run is finished. Raises
    InputError if a directory is no run or has no metrics yet.
    """
    names = {path: Path(path).name or path for path in paths}
    if len(set(names.values())) < len(paths):
        names = {path: path for path in paths}
    runs = [read_run(Path(path), name) for path, name in names.items()]
    page_path = Path(out) if out else Path(paths[0] if len(runs) == 1 else "")
    if page_path.is_dir():
        page_path /= "report.html"
    refuse_unwritable(page_path.parent, "out")
    styles = {run.name: ModelStyle(run.name, "", COLOURS[i % len(COLOURS)], "o") for i, run in enumerate(runs)}
    curves = {run.name: run.metrics for run in runs}
    keys = dict.fromkeys(key for run in runs for row in run.metrics for key in row if key not in ("step", "time"))
    eval_labels = {key: eval_label(key, better) for run in runs for key, better in run.eval_keys.items()}

    def plots_of(chosen: Sequence[str]) -> list[Plot]:
        titles = {key: eval_labels.get(key) or MAIN_CURVES.get(key, (key, "")) for key in chosen}
        plots = (curve_plot(curves, key, *titles[key], False, styles.__getitem__) for key in chosen)
        return [plot for plot in plots if plot]

    eval_curves = [key for key in keys if _is_eval_curve(key)][:MAX_EVAL_CURVES]
    main_keys = [key for key in dict.fromkeys((*MAIN_CURVES, *eval_labels, *eval_curves)) if key in keys]
    other_keys = sorted((key for key in keys if key not in main_keys), key=lambda key: not key.startswith(OTHER_PREFIXES))
    compared = {"objective/scores": MAIN_CURVES["objective/scores"], **eval_labels} if eval_labels else {}
    over_kl = [over_kl_plot(curves, key, *label, styles.__getitem__) for key, label in compared.items()]
    html = (
        jinja_environment()
        .get_template("runs.html.j2")
        .render(
            sentences=[describe_run(run) for run in runs],
            runs=[(run, styles[run.name]) for run in runs],
            curves=plots_of(main_keys),
            over_kl=[plot for plot in over_kl if plot],
            other_curves=[] if main_curves_only else plots_of(other_keys[:MAX_OTHER_CURVES]),
            num_other_curves=len(other_keys) if main_curves_only else 0,
            reload_seconds=RELOAD_SECONDS if main_curves_only and not runs[0].finished else None,
            warnings=[(run.name, warning) for run in runs for warning in run.warnings],
            fixed_prompts=_prompts(runs, styles, fixed=True),
            prompts=_prompts(runs, styles, fixed=False),
            settings=_settings_table(runs),
        )
    )
    write_atomic(page_path, html.encode("utf-8", "replace"))  # JSON can escape lone surrogates
    return page_path


def read_run(path: Path, name: str) -> TrainingRun:
    """Read a run directory. Raises InputError if it is none."""
    if not (path / "config.yaml").is_file() or not (path / "metrics.jsonl").is_file():
        raise InputError(
            f"{path} is not a training run with metrics: give the output_dir of sft, reward, dpo, rft, feedback or ppo"
        )
    settings = current_names(read_yaml(path / "config.yaml"))
    metrics = list(_iter_rows(path / "metrics.jsonl"))
    if not any(row["step"] for row in metrics):
        raise InputError(f"{path} has no step yet: wait for its first one")
    stage = stage_of(settings)
    finished = (path / "finished.json").is_file()
    best = _best_of(path)
    eval_keys = {f"eval/{best['metric']}": "higher" if best.get("greater_is_better") else "lower"} if best else {}
    for row in _iter_rows(path / "eval.jsonl"):
        eval_keys.setdefault(f"eval/{row.get('benchmark')}/{row.get('headline')}", str(row.get("direction")))
    samples, warnings = _read_samples(path), list(_iter_rows(path / "warnings.jsonl"))
    return TrainingRun(name, path, stage, settings, finished, best, eval_keys, metrics, samples, warnings)


def _best_of(path: Path) -> Mapping[str, Any]:
    """Return a run's record of its best policy, final or so far; empty if there is none."""
    for file, key in ((path / "finished.json", "best"), (path / "best" / "best.json", None)):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            best = content.get(key) if key else content
            if best and isinstance(best["step"], int) and isinstance(best["value"], float) and isinstance(best["metric"], str):
                return dict(best)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
    return {}


def eval_label(key: str, better: str) -> tuple[str, str]:
    """Return the title of a curve of `eval/BENCHMARK/METRIC`, and the label of its y axis."""
    *owner, metric = key.removeprefix("eval/").split("/")
    title = METRICS_BY_KEY[metric].title if metric in METRICS_BY_KEY else metric
    return " ".join([*owner, title]), f"{better} is better" if better in ("higher", "lower") else ""


def _read_samples(path: Path) -> list[dict[str, Any]]:
    """Return the logged answers, and the ledger's first answers to their prompts at other steps."""
    samples = list(_iter_rows(path / "samples.jsonl"))
    sampled = [row for row in samples if not row.get("fixed")]
    sampled_ids, known = {str(row.get("id")) for row in sampled}, {(str(row.get("id")), row["step"]) for row in sampled}
    for row in _iter_rows(path / "ledger.jsonl"):
        key = str(row.get("id")), row["step"]
        if key[0] in sampled_ids and key not in known:
            known.add(key)
            samples.append({"step": row["step"], "id": row["id"], "answer": row.get("answer"), "score": row.get("total")})
    return samples


def _iter_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file to which a run appends; its last line may be incomplete."""
    if path.is_file():
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and isinstance(row.get("step"), int):
                    yield row


def _is_eval_curve(key: str) -> bool:
    """Return whether an evaluation's metric is shown in addition to its benchmark's main one."""
    parts = key.split("/")
    return parts[0] == "eval" and (len(parts) == 2 or parts[-1] in EVAL_CURVES)


def describe_run(run: TrainingRun) -> str:
    """Return one sentence on a run's progress and the change of its main metrics."""
    last_step = max(row["step"] for row in run.metrics)
    changes = []
    for key, (title, _) in MAIN_CURVES.items():
        values = [value for row in run.metrics if (value := metric_value(row, key)) is not None]
        if values and key in ("objective/scores", "objective/kl", "completions/mean_length", "loss", "accuracy"):
            tail = max(1, len(values) // 10)  # the mean of a tenth of the steps: single steps are noisy
            means = [f"{sum(part) / tail:z.2f}" for part in (values[:tail], values[-tail:])]
            changes.append(f"{title if title == 'KL' else title.lower()} {' to '.join(means[: len(values)])}")
    if run.best:
        changes.append(f"{run.best['metric']} best at step {run.best['step']} ({run.best['value']:.3g})")
    state = "finished" if run.finished else "not finished"
    name = run.name if run.name == run.stage else f"{run.name} ({run.stage})"
    steps, warnings = (
        _count(last_step, "round" if run.stage in ("feedback", "rft") else "step"),
        _count(len(run.warnings), "warning"),
    )
    return f"{name}: {steps}, {state}; {', '.join(changes) or 'no metrics'}; {warnings}."


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' * (number != 1)}"


def _prompts(runs: Sequence[TrainingRun], styles: Mapping[str, ModelStyle], *, fixed: bool) -> list[dict[str, Any]]:
    """Return the prompts with answers of the most steps, each with its answers by run.

    They are the fixed ones, which are answered at several steps, or those of other samples.
    """
    entries: dict[str, dict[str, Any]] = {}
    for run in runs:
        for row in run.samples:
            if bool(row.get("fixed")) != fixed:
                continue
            row_id, paths = str(row.get("id")), row.get("images")
            image = paths[0] if isinstance(paths, list) and paths and isinstance(paths[0], str) else None
            if image and not Path(image).is_file():
                image = str(run.path / image)  # of an image in memory, in the run's folder
            entry = entries.setdefault(row_id, {"id": row_id, "prompt": row.get("prompt", ""), "image": image, "answers": {}})
            entry.setdefault("reference", row.get("reference"))
            answer = {"step": row["step"], "answer": row.get("answer"), "score": metric_value(row, "score"), "terms": _terms(row)}
            entry["answers"].setdefault(run.name, {}).setdefault(row["step"], answer)
    most_answered = sorted(entries.values(), key=lambda entry: -sum(map(len, entry["answers"].values())))[:MAX_PROMPTS]
    for entry in most_answered:
        path = entry["image"]
        entry["image"] = thumbnail_url(ImageSource(path=path)) if path and Path(path).is_file() else ""
        entry["answers"] = [
            (styles[name], row)
            for name, rows_by_step in entry["answers"].items()
            for row in _evenly_spaced([rows_by_step[step] for step in sorted(rows_by_step)])
        ]
        texts = {str(row["answer"]) for _, row in entry["answers"]}
        entry["only_answer"] = texts.pop() if len(texts) == 1 and len(entry["answers"]) > 1 else None
    return most_answered


def _terms(row: Mapping[str, Any]) -> str:
    """Return a sample's values of reward functions, if there are several, such as `length 0.10`."""
    terms = row.get("terms")
    if not isinstance(terms, dict) or len(terms) < 2:
        return ""
    return ", ".join(f"{name} {value:.2f}" for name in terms if (value := metric_value(terms, name)) is not None)


def _evenly_spaced(rows: Sequence[Any]) -> list[Any]:
    """Return at most MAX_STEPS of the rows, the first and the last among them."""
    if len(rows) <= MAX_STEPS:
        return list(rows)
    return [rows[round(i * (len(rows) - 1) / (MAX_STEPS - 1))] for i in range(MAX_STEPS)]


def _settings_table(runs: Sequence[TrainingRun]) -> list[tuple[str, list[str], bool]]:
    """Return (name, value by run, whether the runs differ), those that differ first."""
    names = dict.fromkeys(str(name) for run in runs for name in run.settings)
    rows = []
    for name in names:
        values = ["" if run.settings.get(name) is None else str(run.settings[name]) for run in runs]
        rows.append((name, values, len(set(values)) > 1))
    return sorted(rows, key=lambda row: not row[2])
