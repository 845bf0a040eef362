"""Do facts make a better judge? Reward models with facts and without on the world's held-out pairs, at three difficulties.

    python eval/studies/reward_accuracy.py --out runs/studies [--seeds 3] [--difficulties demo easier harder]

Both models see the same pairs, planted claims included, each once; labels are wrong in 10% of pairs, held-out ones included, so that 90% is the
most. `clean` is against what the scenes say, also by what decides a pair. Then what becomes of accuracy at the demo's difficulty when facts are missing, another picture's,
or contradicted; and the contradiction probe, by an injector of this study alone: other sentences than any that were trained on, made from the
scene itself and put in front of a clean caption.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from world import DIFFICULTIES, World, arguments, cell, markdown, over, shown

from mmrlhf import demo, scenes
from mmrlhf.artefact import load_reward_model
from mmrlhf.calibration import expected_calibration_error, reliability
from mmrlhf.records import Message, Preference
from mmrlhf.reward_bench import CHANCE, accuracy, facts_states
from mmrlhf.reward_model import group, margins_of
from mmrlhf.rewards import Group, RewardModel
from mmrlhf.scenes.language import relation_of

PLANTED = 0.3
PROBES = 200
FACTS = {"facts": {"facts": "given", "fact_dropout": 0.2}, "none": {"facts": "none"}}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def sentences(scene: scenes.Scene, kind: str, rng: np.random.Generator) -> tuple[str, str] | None:
    """A false claim on a scene and a true one in the same words."""
    thing = scene.things[int(rng.integers(len(scene.things)))]
    if kind == "object":
        shape = str(rng.choice([s for s in scenes.SHAPES if s not in {t.shape for t in scene.things}]))
        strange = f"{rng.choice(list(scenes.COLOURS))} {shape}"
        return tuple(f"Somewhere in it you find {scenes.article(n)}." for n in (strange, thing.name))  # type: ignore[return-value]
    if kind == "attribute":
        here = {t.colour for t in scene.things if t.shape == thing.shape}
        colours = (str(rng.choice([c for c in scenes.COLOURS if c not in here])), thing.colour)
        return tuple(f"Colour of the {thing.shape}: {c}." for c in colours)  # type: ignore[return-value]
    if kind == "count":
        count = len(scene.things)
        wrong = count + 1 if count == 1 else count + int(rng.choice([-1, 1]))
        return tuple(f"Someone put {scenes.plural(n, 'object')} in it." for n in (wrong, count))  # type: ignore[return-value]
    if len({t.name for t in scene.things}) < max(2, len(scene.things)):  # two of a name make a relation true both ways
        return None
    a, b = (scene.things[i] for i in rng.choice(len(scene.things), 2, replace=False))
    said = relation_of(a, b, rng)
    return tuple(f"You find the {a.name} {r} the {b.name}." for r in (OPPOSITE[said], said))  # type: ignore[return-value]


def probes(world: World, model: RewardModel) -> dict[str, dict[str, float]]:
    """By kind of claim, the share of clean captions whose score a false claim lowers, and whose false claim scores below a true one."""
    found = {}
    for kind in ("object", "attribute", "count", "relation"):
        groups = []
        for index in range(PROBES):
            scene, rng = scenes.scene("selection", index, 0), np.random.default_rng([61, index])
            asked, pair = scenes.describe(scene, rng), sentences(scene, kind, rng)
            if pair:
                facts = scenes.facts(scene, rng, listed=world.listed, wrong=world.wrong)
                answers = (asked.answer, *(f"{sentence} {asked.answer}" for sentence in pair))
                groups.append(Group((scene.source(),), (Message("user", asked.text),), answers, facts, scene.id))
        good, false, true = np.array(model.score(groups)).T
        found[kind] = {
            "lowers": float((false < good).mean()), "true_lowers": float((true < good).mean()), "below_true": float((false < true).mean())
        }  # fmt: skip
    return found


DECIDED = ("sight", "habit", "completeness")


def clean(world: World, rows: list[Preference], scores: list[list[float]]) -> dict[str, float]:
    """Accuracy against what the scenes say, turned labels turned back: of all pairs, and by what decides them: one answer misreads more
    (`sight`) or says more out of habit, all else alike, or both are as false and one tells more (`completeness`)."""
    right: dict[str, list[bool]] = {"clean": [], **{kind: [] for kind in DECIDED}}
    for row, (first, second) in zip(rows, scores, strict=True):
        scene = demo.scene_of("pairs", int(row.id.split("-")[1]), world.config)
        a, b = (scenes.judge(scene, answer) for answer in row.answers)
        gap = len(a.true) - len(b.true) - world.config.lambda_ * (len(a.false) - len(b.false))
        ok = (gap > 0) == (first > second + CHANCE)
        sight, habit = len(a.sight) - len(b.sight), len(a.habit) - len(b.habit)
        kinds = (
            ["sight"] * bool(sight and not habit)
            + ["habit"] * bool(habit and not sight)
            + ["completeness"] * (not sight and not habit)
        )
        for kind in ("clean", *kinds):
            right[kind].append(ok)
    return {kind: float(np.mean(oks)) for kind, oks in right.items()}


def judged(world: World, name: str) -> dict[str, Any]:
    _, held_out = world.pairs
    model = load_reward_model(world.reward(name, planted_claims=PLANTED, **FACTS[name]))
    scores = model.score([group(p) for p in held_out])
    found: dict[str, Any] = {"accuracy": accuracy(held_out, scores)["value"], **clean(world, held_out, scores)}
    found["ece"] = expected_calibration_error(reliability(margins_of(held_out, scores), model.temperature))
    if name == "facts" and world.difficulty == "demo":
        for state, facts in facts_states(held_out, 0).items():
            groups = [Group(p.images, p.prompt, p.answers, f, p.id) for p, f in zip(held_out, facts, strict=True)]
            found[state] = accuracy(held_out, model.score(groups))["value"]
    return found | {"probes": probes(world, model)}


def studied(world: World) -> dict[str, dict[str, Any]]:
    return {
        name: cell(world.out, f"reward_accuracy-{world.difficulty}-{world.seed}-{name}", lambda n=name: judged(world, n))  # type: ignore[misc]
        for name in FACTS
    }


def main() -> None:
    given = arguments(__doc__, difficulties={"nargs": "+", "choices": list(DIFFICULTIES), "default": list(DIFFICULTIES)})
    worlds = [World(given.out, seed, difficulty) for difficulty in given.difficulties for seed in range(given.seeds)]
    found: dict[str, dict[str, list[dict[str, Any]]]] = {d: {name: [] for name in FACTS} for d in given.difficulties}
    for world, by_name in zip(worlds, over(worlds, studied, given.workers), strict=True):
        for name, row in by_name.items():
            found[world.difficulty][name].append(row)
    rows, keys = [], ("accuracy", "clean", *DECIDED, "ece")
    for difficulty, models in found.items():
        for name, cells in models.items():
            rows.append([difficulty, name, *(shown((c[k] for c in cells), k != "ece") for k in keys)])
        pairs = list(zip(models["facts"], models["none"], strict=True))
        rows.append([difficulty, "difference", *(shown((a[k] - b[k] for a, b in pairs), k != "ece", "+") for k in keys)])
    print(markdown(("difficulty", "reward model", *(f"{k} %" for k in keys[:-1]), "calibration error"), rows) + "\n")
    if "demo" in found:
        told = found["demo"]["facts"]
        states = [k for k in told[0] if k.endswith("left") or k in ("another picture's", "contradicted")]
        print(markdown(("facts", "accuracy %"), [(s, shown((c[s] for c in told), True)) for s in states]) + "\n")
    kinds = ("object", "attribute", "count", "relation")
    table = [
        (difficulty, name, what, *(shown((c["probes"][k][key] for c in cells), True) for k in kinds))
        for difficulty, models in found.items() for name, cells in models.items()
        for what, key in (("false lowers", "lowers"), ("true lowers", "true_lowers"), ("false below true", "below_true"))
    ]  # fmt: skip
    print(markdown(("difficulty", "reward model", "probe %", *kinds), table) + "\n")
    print(json.dumps({"study": "reward_accuracy", "seeds": given.seeds, "cells": found}))


if __name__ == "__main__":
    main()
