"""`mmrlhf reward-bench`: how far a reward model can be trusted, on preferences that it was not trained on.

Accuracy (overall, by source, by hallucination flag, by length, on ties), calibration, the contradiction probe, and what becomes of accuracy
when facts are missing, another picture's, or contradicted. Intervals are 95% (Wilson).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from mmrlhf.artefact import load_reward_model
from mmrlhf.calibration import Bin, draw_reliability, expected_calibration_error, fit_temperature, reliability, share
from mmrlhf.config import RewardBenchConfig
from mmrlhf.damage import contradicted, thinned
from mmrlhf.facts import read_facts
from mmrlhf.files import write_whole
from mmrlhf.formats import read_preferences
from mmrlhf.growing import GrowingFile, digest_of, state_of
from mmrlhf.probe import KINDS, Planted, plant
from mmrlhf.records import Comparison, Fact, InputError, Preference
from mmrlhf.rewards import Group, RewardModel
from mmrlhf.run import Run, json_line, progress, read_jsonl

GAPS = (-0.25, -0.05, 0.05, 0.25)
"""Edges of the bins of length: words of the better answer less those of the worse one, over the longer one's."""
KEPT = (0.75, 0.5, 0.25, 0.0)
"""Shares of facts that are left."""
CHANCE = 1e-9
"""Scores closer than this are the same."""


def reward_bench(config: RewardBenchConfig, preferences: Sequence[Preference] | None = None) -> dict[str, Any]:
    """Score, measure, draw; returns what result.json says. Killed, the same command continues."""
    run = Run(config.output_dir, config)
    if preferences is None:
        facts = read_facts(config.facts_file) if config.facts_file else None
        preferences = read_preferences(config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    rows = list(preferences[: config.limit] if config.limit else preferences)
    if all(c.tie for p in rows for c in p.comparisons):
        raise InputError(f"{config.dataset_name} has ties only: accuracy needs rows of which one answer is better")
    model = load_reward_model(config.reward_model_path, max_length=config.max_length, engine=config)
    planted = plant(rows[: config.probes], seed=config.seed)

    # 1. Scores, a file for each state of the facts
    states = facts_states(rows, config.seed) if model.facts == "given" and any(p.facts for p in rows) else {}
    asked = {"as given": [_group(p, p.facts) for p in rows], "probes": [_probe(p) for p in planted]}
    asked |= {name: [_group(p, f) for p, f in zip(rows, facts, strict=True)] for name, facts in states.items()}
    subject = [
        replace(config, output_dir="-"),
        state_of(config.reward_model_path),
        state_of(config.dataset_name),
        state_of(config.facts_file),
    ]
    with progress(sum(map(len, asked.values())), "reward-bench") as steps:
        scores = {}
        for name, groups in asked.items():
            of = [*subject, name]
            path = run.path / "scores" / f"{name.replace(' ', '_')}.{digest_of(of)}.jsonl"
            scores[name] = _scored(model, groups, path, of, config.batch_size, steps.advance)

    # 2. What they say
    result = {"reward_model": config.reward_model_path, "data": config.dataset_name, "n": len(rows), "facts": model.facts}
    result |= measured(rows, scores["as given"], model.temperature)
    result["probe"] = probe_table(planted, scores["probes"])
    if states:
        curve = {"as given": accuracy(rows, scores["as given"])} | {name: accuracy(rows, scores[name]) for name in states}
        result["facts_curve"] = curve
    run.begin()
    write_whole(run.path / "result.json", json.dumps(result, indent=1))
    draw(result, run.path / "reward-bench.png")
    show(result)
    print(f"{run.path / 'result.json'} has the numbers, {run.path / 'reward-bench.png'} the pictures")
    return result


def _group(p: Preference, facts: Sequence[Fact]) -> Group:
    return Group(p.images, p.prompt, p.answers, tuple(facts), p.id)


def _probe(p: Planted) -> Group:
    return replace(p.group, answers=(p.group.answers[0], p.false, p.true))


def _scored(
    model: RewardModel, groups: Sequence[Group], path: Path, subject: Sequence[Any], batch_size: int, advance: Callable[[int], None]
) -> list[list[float]]:  # fmt: skip
    if path.exists():
        advance(len(groups))
        return [row["scores"] for row in read_jsonl(path)]
    out = GrowingFile(path, subject)
    advance(out.done)
    for start in range(out.done, len(groups), batch_size):
        part = groups[start : start + batch_size]
        out.add([json_line({"id": g.id, "scores": s}) for g, s in zip(part, model.score(part), strict=True)])
        advance(len(part))
    out.finish()
    return [row["scores"] for row in read_jsonl(path)]


# ---- measuring -------------------------------------------------------------------------------------------------------


def facts_states(rows: Sequence[Preference], seed: int) -> dict[str, list[tuple[Fact, ...]]]:
    """The rows' facts, damaged: fewer of them, those of the next row with another picture, and contradicted."""
    states = {}
    for kept in KEPT:
        states[f"{kept:.0%} left"] = [thinned(p.facts, kept, np.random.default_rng([seed, 5, i])) for i, p in enumerate(rows)]
    others = []
    for i, p in enumerate(rows):
        later = (rows[(i + k) % len(rows)] for k in range(1, len(rows)))
        others.append(next((q.facts for q in later if q.facts and q.images != p.images), ()))
    states["another picture's"] = others
    states["contradicted"] = [contradicted(p.facts, 1.0, np.random.default_rng([seed, 6, i]))[0] for i, p in enumerate(rows)]
    return states


def accuracy(rows: Sequence[Preference], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The share of comparisons, ties left out, whose better answer scores higher."""
    return share(np.array([s[c.better] > s[c.worse] + CHANCE for _, s, c in _comparisons(rows, scores) if not c.tie], dtype=bool))


def _comparisons(
    rows: Sequence[Preference], scores: Sequence[Sequence[float]]
) -> list[tuple[Preference, Sequence[float], Comparison]]:
    return [(p, s, c) for p, s in zip(rows, scores, strict=True) for c in p.comparisons]


def measured(rows: Sequence[Preference], scores: Sequence[Sequence[float]], temperature: float) -> dict[str, Any]:
    """Accuracy by group, and calibration at the model's temperature and at these rows' own best."""
    found = [(p, s[c.better] - s[c.worse], c) for p, s, c in _comparisons(rows, scores)]
    told = [(p, gap, c) for p, gap, c in found if not c.tie]
    margins = np.array([gap for _, gap, _ in told])

    def by(name: Callable[[Preference, Comparison], str]) -> dict[str, Any]:
        names = [name(p, c) for p, _, c in told]
        return {n: share(margins[[m == n for m in names]] > CHANCE) for n in dict.fromkeys(sorted(names))}

    def hallucinated(p: Preference, c: Comparison) -> str:
        """What is said of the worst answer says nothing of the others."""
        return {True: "yes", False: "no", None: "unknown"}[p.hallucinated if c.worse == len(p.answers) - 1 else None]

    bins = reliability(margins, temperature)
    return {
        "accuracy": share(margins > CHANCE),
        "by_source": by(lambda p, _: p.source or "unknown"),
        "by_hallucinated": by(hallucinated),
        "by_length": by(lambda p, c: length_bin(p.answers[c.better], p.answers[c.worse])),
        "ties": _ties(np.array([abs(gap) for _, gap, c in found if c.tie]), np.abs(margins)),
        "calibration": {
            "temperature": temperature,
            "best_temperature": fit_temperature(margins),
            "ece": expected_calibration_error(bins),
            "ece_uncalibrated": expected_calibration_error(reliability(margins, 1.0)),
            "bins": [asdict(b) for b in bins],
        },
    }


def length_bin(better: str, worse: str) -> str:
    """How much longer the better answer is, in words."""
    a, b = len(better.split()), len(worse.split())
    gap = (a - b) / max(a, b, 1)
    names = ("1 much shorter", "2 shorter", "3 as long", "4 longer", "5 much longer")
    return names[int(np.searchsorted(GAPS, gap))]


def _ties(ties: np.ndarray, others: np.ndarray) -> dict[str, float] | None:
    """Whether scores of equal answers are nearer to each other than those of unequal ones: `auroc` 1 if always, 0.5 by chance."""
    if not len(ties) or not len(others):
        return None
    ranks = rankdata(np.concatenate([others, ties]))[: len(others)].sum()
    auroc = (ranks - len(others) * (len(others) + 1) / 2) / (len(others) * len(ties))
    return {"n": len(ties), "mean_gap": float(ties.mean()), "mean_gap_of_others": float(others.mean()), "auroc": float(auroc)}


def probe_table(planted: Sequence[Planted], scores: Sequence[Sequence[float]]) -> dict[str, Any]:
    """By kind of claim: how often a false one lowers the score, how often a true one does, and how often the false one scores below
    the true one."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        s = np.array([s for s, p in zip(scores, planted, strict=True) if p.kind == kind]).reshape(-1, 3)
        if len(s):
            good, false, true = s.T
            found[kind] = {
                "false_lowers": share(false < good), "true_lowers": share(true < good), "false_below_true": share(false < true)
            }  # fmt: skip
    return found


# ---- showing ---------------------------------------------------------------------------------------------------------


def show(result: dict[str, Any]) -> None:
    """The table on the screen."""
    table = Table(title=f"{result['reward_model']} on {result['data']}", title_justify="left")
    for name, justify in (("", "left"), ("%", "right"), ("95% interval", "right"), ("n", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]

    def add(name: str, found: dict[str, Any]) -> None:
        if found["n"]:
            table.add_row(
                name, f"{100 * found['value']:.1f}", f"{100 * found['low']:.1f} - {100 * found['high']:.1f}", str(found["n"])
            )

    add("accuracy", result["accuracy"])
    for title, key in (("source", "by_source"), ("hallucinated", "by_hallucinated"), ("the better answer is", "by_length")):
        if len(result[key]) > 1 or key == "by_length":
            for name, found in result[key].items():
                add(f"  {title} {name.lstrip('12345 ')}", found)
    for name, found in result.get("facts_curve", {}).items():
        add(f"  facts {name}", found)
    for kind, found in result["probe"].items():
        add(f"a false {kind} lowers the score", found["false_lowers"])
        add(f"  it scores below a true {kind} in the same words", found["false_below_true"])
    console = Console(highlight=False)
    console.print(table)
    ece, before = result["calibration"]["ece"], result["calibration"]["ece_uncalibrated"]
    console.print(f"expected calibration error {ece:.3f} (without temperature {before:.3f})", soft_wrap=True)
    if result["ties"]:
        console.print(f"ties: their scores lie nearer than others' with AUROC {result['ties']['auroc']:.2f}", soft_wrap=True)


def draw(result: dict[str, Any], path: Path) -> None:
    """The reliability diagram, accuracy by facts, and the probe."""
    from matplotlib.figure import Figure

    panels = ["reliability", *(["facts"] if "facts_curve" in result else []), *(["probe"] if result["probe"] else [])]
    figure = Figure(figsize=(4.4 * len(panels), 3.9), layout="constrained")
    for panel, axes in zip(panels, np.atleast_1d(figure.subplots(1, len(panels))), strict=True):
        if panel == "reliability":
            draw_reliability(axes, [Bin(**b) for b in result["calibration"]["bins"]], 0.5)
            axes.set(
                xlabel="how sure it is",
                ylabel="how often it is right",
                title=f"calibration error {result['calibration']['ece']:.3f}",
            )
        elif panel == "facts":
            _bars(axes, result["facts_curve"], "#3f8f46", "accuracy by facts")
        else:
            found = {f"{kind}{end}": row[key] for kind, row in result["probe"].items()
                     for end, key in ((", lowers", "false_lowers"), (", below true", "false_below_true"))}  # fmt: skip
            _bars(axes, found, "#d43f3a", "a planted false claim")
    figure.savefig(path, dpi=140)


def _bars(axes: Any, found: dict[str, dict[str, Any]], colour: str, title: str) -> None:
    names, places = list(found), np.arange(len(found))
    values = np.array([found[n]["value"] for n in names], dtype=float)
    spread = np.abs(np.array([[found[n]["low"] for n in names], [found[n]["high"] for n in names]]) - values)
    axes.barh(places, values, xerr=spread, color=colour, alpha=0.75, error_kw={"elinewidth": 0.8})
    axes.axvline(0.5, color="0.6", linewidth=0.8)
    axes.set(yticks=places, yticklabels=names, xlim=(0, 1), title=title)
    axes.invert_yaxis()
