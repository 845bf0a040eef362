"""Tables and the JSON of `algorithms.py`, from the cells in a directory."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from algorithms_figures import write_figures
from algorithms_measure import DIVERSITY, SPLITS
from algorithms_training import (
    CORRECTION_WEIGHT,
    JUDGED,
    KL_FACTOR,
    METHODS,
    STRENGTHS,
    TARGET_KL,
    TEMPERATURES,
    WARM_UP_SHARE,
    labels_of,
)
from common import format_mean, markdown_table, mean_and_half_width

from mmrlhf.files.atomic import write_atomic
from mmrlhf.records import InputError

METRICS = ("chair_s", "coverage", "claim_f1", "u", "habit", "sight", "ead", "kl", "seconds")
PERCENT = ("chair_s", "coverage", "claim_f1")
GENERALISATION_METHODS = ("sft", "dpo", "ppo", "best_of_n")
COMPARED = (
    ("rft", "sft"), ("dpo", "sft"), ("ppo", "sft"), ("ppo", "best_of_n"), ("dpo", "ppo"), ("grpo", "ppo"), ("rloo", "ppo"),
    ("ppo_dense", "ppo"), ("clean_sft", "ppo_dense"),
)  # fmt: skip
"""Methods that are compared seed by seed, the first minus the second."""
ONLINE = ("rft", "rft3", "grpo", "rloo", "ppo", "ppo_dense")
UNTRAINED = ("sft", *TEMPERATURES, "best_of_n")
"""Methods that a trained one must beat in u."""
MAX_HABIT_SHARE, MAX_COVERAGE_LOSS = 0.1, 0.02
"""What is asked of a trained method: co-occurrence errors and coverage beside those of SFT."""
Cells = dict[int, dict[str, Any]]
"""Results of a method by seed."""


# ---- cells ---------------------------------------------------------------------------------------


def read_cells(out: Path, pattern: str) -> dict[int, dict[str, Any]]:
    """Return cells by seed. `pattern` is a name in which * stands for the seed."""
    prefix, _, suffix = pattern.partition("*")
    paths = sorted((out / "cells").glob(f"{pattern}.json"))
    by_seed = {path.stem.removeprefix(prefix).removesuffix(suffix): json.loads(path.read_text()) for path in paths}
    return {int(seed): cell for seed, cell in by_seed.items() if seed.isdecimal()}


def method_cells(out: Path, method: str, labels: int, ranking: str = "metrics") -> dict[str, Cells]:
    """Return a method's metrics by split and seed, with the seconds from the base."""
    by_split: dict[str, Cells] = {split: {} for split in SPLITS}
    for seed, cell in read_cells(out, f"measure-*-{method}-{labels_of(method, labels)}").items():
        stages = {name: read_cells(out, f"prepare-*-{name}")[seed]["core_seconds"] for name in stages_of(method, labels)}
        seconds = sum(stages.values()) + cell["core_seconds"]
        for split, metrics in cell[ranking].items():
            by_split[split][seed] = metrics | {"seconds": seconds}
    return by_split


def stages_of(method: str, labels: int) -> list[str]:
    """Return the shared stages that a method needs besides its own training."""
    if method == "clean_sft":
        return []
    if method == "sft" or method in TEMPERATURES:
        return ["sft"]
    return ["sft", "pairs", *([f"judge_{labels}"] if method in JUDGED else [])]


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean, low and high of a 95% t-interval; low and high are None for one value."""
    mean, half_width = mean_and_half_width(values)
    ends = (None, None) if math.isnan(half_width) else (mean - half_width, mean + half_width)
    return {"mean": mean, "low": ends[0], "high": ends[1]}


def intervals(cells: Cells) -> dict[str, dict[str, float | None]]:
    return {name: interval([metrics[name] for metrics in cells.values()]) for name in METRICS}


def tuning_of(out: Path, methods: Sequence[str], labels: int) -> dict[str, Any]:
    """Return u on the selection split of the tuning seed, for each value of each setting."""
    tuning: dict[str, Any] = {}
    for method in methods:
        files = (out / "cells").glob(f"tune-*-{method}-{labels}-*.json")  # of an earlier grid, too
        tried = {float(path.stem.rpartition("-")[2]): json.loads(path.read_text())["u"] for path in files}
        if tried:
            setting, _ = STRENGTHS[method]
            tuning[method] = {"setting": setting, "selection_u": {f"{value:g}": tried[value] for value in sorted(tried)}}
    return tuning


# ---- what is reported ----------------------------------------------------------------------------


def report(out: Path, labels: Sequence[int]) -> dict[str, Any]:
    """Print all tables, write them and the pictures to `out`, and return the JSON.

    Raises InputError if no method has been measured.
    """
    main = labels[0]
    by_method = {m: cells for m in METHODS if any((cells := method_cells(out, m, main)).values())}
    if not by_method:
        raise InputError(f"{out} has no method that was measured with {main} labels: run some first")
    sections = {f"{split}, {main} labels": method_table(by_method, split) for split in SPLITS}
    differences = differences_of(by_method)
    sections["Differences within a seed"] = differences_table(differences)
    sections["What is reached"] = targets_table(targets := reached(by_method))
    with_facts = method_cells(out, "best_of_n", main, "with_facts") if "best_of_n" in by_method else {}
    if with_facts:
        sections["Best-of-n ranked with the measured scenes' facts"] = method_table({"with facts": with_facts}, "held_out")
    few: dict[str, Any] = {}
    for number in labels[1:]:
        cells_of = {m: cells for m in METHODS if any((cells := method_cells(out, m, number)).values())}
        sections[f"held_out, {number} labels"] = method_table(cells_of, "held_out")
        few[str(number)] = {
            "methods": {m: intervals(cells["held_out"]) for m, cells in cells_of.items()},
            "targets": reached(cells_of),
        }
    generalisation = generalisation_of(out, by_method, main)
    sections["Generalisation and diversity"] = generalisation_table(generalisation)
    adaptive = {seed: cell["held_share"] for seed, cell in read_cells(out, f"adaptive_kl-*-{main}").items()}
    sections["Adaptive KL"] = markdown_table(
        ("seed", "share of steps held"), [(str(s), "-" if v is None else f"{v:.3f}") for s, v in adaptive.items()]
    )
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in sections.items())
    print(text, flush=True)
    write_atomic(out / "report.md", text + "\n")
    write_figures(out / "figures", {method: list(cells["held_out"].values()) for method, cells in by_method.items()})
    return {
        "study": "algorithms",
        "seeds": sorted({seed for cells in by_method.values() for seed in cells["held_out"]}),
        "settings": settings_of(out, by_method, labels),
        "methods": {m: intervals(cells["held_out"]) for m, cells in by_method.items()},
        "shifts": {
            split: {"methods": {m: intervals(cells[split]) for m, cells in by_method.items()}}
            for split in SPLITS
            if split != "held_out"
        },
        "best_of_n_with_facts": {split: intervals(cells) for split, cells in with_facts.items()},
        "differences": {
            f"{first} - {second}": {key: interval(values) for key, values in by_key.items()}
            for (first, second), by_key in differences.items()
        },
        "targets": targets,
        "other_labels": few,
        "generalisation": generalisation,
        "adaptive_kl": {
            "target": TARGET_KL,
            "factor": KL_FACTOR,
            "warm_up_share": WARM_UP_SHARE,
            "held_share": adaptive,
            "holds_on_every_seed": bool(adaptive) and all(share == 1 for share in adaptive.values()),
        },
    }


def settings_of(out: Path, methods: Sequence[str] | Mapping[str, Any], labels: Sequence[int]) -> dict[str, Any]:
    """Return the study's settings, and what each method was given, as numbers."""
    path = out / "settings.json"
    sizes = json.loads(path.read_text()) if path.exists() else {}
    tuning = {str(number): tuning_of(out, list(methods), number) for number in labels}
    given = {
        method: {
            "labels": labels_of(method, labels[0]),
            "answers_sampled_in_training": sizes.get("answers", 0) if method in ONLINE else 0,
            "answers_per_question": sizes.get("best_of_n", 1) if method == "best_of_n" else 1,
            "values_tried": len(tuning[str(labels[0])].get(method, {}).get("selection_u", ())),
        }
        for method in methods
    }
    return {"sizes": sizes, "labels": list(labels), "given": given, "tuning": tuning, "changed_token_weight": CORRECTION_WEIGHT}


def method_table(by_method: Mapping[str, Mapping[str, Cells]], split: str) -> str:
    rows = []
    for method, cells in by_method.items():
        values = [format_mean([metrics[name] for metrics in cells[split].values()], name in PERCENT) for name in METRICS]
        rows.append((method, str(len(cells[split])), *values))
    return markdown_table(("method", "seeds", *METRICS), rows)


Differences = dict[tuple[str, str], dict[str, list[float]]]
"""One value per seed, by the methods and by split and metric."""


def differences_of(by_method: Mapping[str, Mapping[str, Cells]]) -> Differences:
    """Return the differences of COMPARED methods in the seeds that both have.

    A world's difficulty is in both, so their interval is narrower than those of the methods.
    """
    names = [("held_out", name) for name in ("claim_f1", "coverage", "u")] + [(split, "u") for split in SPLITS[1:]]
    differences: Differences = {}
    for first, second in COMPARED:
        if first not in by_method or second not in by_method:
            continue
        differences[first, second] = {}
        for split, name in names:
            ours, theirs = by_method[first][split], by_method[second][split]
            values = [ours[seed][name] - theirs[seed][name] for seed in sorted(ours.keys() & theirs.keys())]
            differences[first, second][f"{split} {name}"] = values
    return differences


def differences_table(differences: Differences) -> str:
    keys = list(next(iter(differences.values()), {}))
    rows = [
        (f"{first} - {second}", *(format_mean(values, key.endswith(PERCENT), sign="+") for key, values in by_key.items()))
        for (first, second), by_key in differences.items()
    ]
    return markdown_table(("difference", *keys), rows)


def reached(by_method: Mapping[str, Mapping[str, Cells]]) -> dict[str, dict[str, Any]]:
    """Return, for each trained method, what it reaches on held-out scenes beside untrained ones.

    `habit_share` is of SFT's, `coverage_change` in points / 100 within a seed; `above` are the
    untrained methods whose interval of u ends below this one's; `worse_than_sft` are seeds in
    which u fell, and `reaches` whether all that is asked for holds.
    """
    if "sft" not in by_method:
        return {}
    held_out = {method: cells["held_out"] for method, cells in by_method.items()}
    sft, untrained = held_out["sft"], [m for m in UNTRAINED if m in held_out]
    u = {method: interval([metrics["u"] for metrics in cells.values()]) for method, cells in held_out.items()}
    result = {}
    for method, cells in held_out.items():
        shared = sorted(set(cells) & set(sft))
        if method not in STRENGTHS or not shared:
            continue
        habit = sum(cells[s]["habit"] for s in shared) / max(sum(sft[s]["habit"] for s in shared), 1e-9)
        change = sum(cells[s]["coverage"] - sft[s]["coverage"] for s in shared) / len(shared)
        above = [m for m in untrained if _is_above(u[method], u[m])]
        worse = [s for s in shared if not cells[s]["u"] >= sft[s]["u"]]
        reaches = habit <= MAX_HABIT_SHARE and change >= -MAX_COVERAGE_LOSS and above == untrained and not worse
        result[method] = {
            "habit_share": habit, "coverage_change": change, "above": above, "worse_than_sft": worse, "reaches": reaches
        }  # fmt: skip
    return result


def _is_above(a: Mapping[str, float | None], b: Mapping[str, float | None]) -> bool:
    """Return whether an interval lies above another; False where one seed gives none."""
    return a["low"] is not None and b["high"] is not None and a["low"] > b["high"]


def targets_table(targets: Mapping[str, Mapping[str, Any]]) -> str:
    header = (
        "method",
        "habit / SFT's",
        "coverage - SFT's, points",
        "u above, intervals apart",
        "seeds worse than SFT",
        "reaches all",
    )
    rows = [
        (
            method,
            f"{row['habit_share']:.2f}",
            f"{100 * row['coverage_change']:+.1f}",
            ", ".join(row["above"]) or "none",
            ", ".join(map(str, row["worse_than_sft"])) or "none",
            "yes" if row["reaches"] else "no",
        )
        for method, row in targets.items()
    ]
    return markdown_table(header, rows)


# ---- generalisation and diversity ----------------------------------------------------------------


def generalisation_of(out: Path, by_method: Mapping[str, Mapping[str, Cells]], labels: int) -> dict[str, Any]:
    """Return u and claim F1 by split, the loss of F1 from held-out scenes to the mean shift, and
    the diversity of samples, with intervals.
    """
    result: dict[str, Any] = {}
    for method in GENERALISATION_METHODS:
        if method not in by_method:
            continue
        cells, shifts = by_method[method], [split for split in SPLITS if split != "held_out"]
        row = {
            f"{split}/{name}": interval([m[name] for m in cells[split].values()])
            for split in SPLITS
            for name in ("claim_f1", "u")
        }
        losses = [
            cells["held_out"][seed]["claim_f1"] - sum(cells[split][seed]["claim_f1"] for split in shifts) / len(shifts)
            for seed in cells["held_out"]
        ]
        row["claim_f1_lost"] = interval(losses)
        diverse = read_cells(out, f"diversity-*-{method}-{labels_of(method, labels)}").values()
        row |= {name: interval([cell[name] for cell in diverse]) for name in DIVERSITY if diverse}
        result[method] = row
    return result


def generalisation_table(rows: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> str:
    names = {f"{split}/claim_f1": f"F1 {split}" for split in SPLITS}
    names |= {
        "claim_f1_lost": "F1 lost",
        **{f"{split}/u": f"u {split}" for split in SPLITS},
        **{name: name for name in DIVERSITY},
    }

    def text(value: Mapping[str, float | None] | None, as_percent: bool) -> str:
        if value is None or value["mean"] is None:
            return "-"
        scale, digits = (100, 1) if as_percent else (1, 2)
        half_width = "" if value["high"] is None else f" ± {scale * (value['high'] - value['mean']):.{digits}f}"
        return f"{scale * value['mean']:.{digits}f}{half_width}"

    table = [(method, *(text(row.get(key), "claim_f1" in key) for key in names)) for method, row in rows.items()]
    return markdown_table(("method", *names.values()), table)
