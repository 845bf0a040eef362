"""Do the arena's intervals cover true ratings, and does the true order come out?

    python eval/studies/arena_coverage.py --simulations 200

Voters of known skill vote on five models. In each setting the chance that a model wins is known, so
that the centred true ratings are known, too. Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from mmrlhf.arena.ratings import Vote, rate

SKILLS = {"a": 0.7, "b": 0.3, "c": 0.0, "d": -0.2, "e": -0.8}
"""True ratings, with mean 0."""
LIKES_LENGTH = 1.0
"""Log-odds that voters of the setting `style` give for a whole unit of length."""
SETTINGS = {
    "decided": (750, "750 votes, all decided"),
    "many": (5000, "5000 votes, all decided"),
    "few": (60, "60 votes, all decided"),
    "ties": (750, "750 votes: two impressions that may differ, then a tie"),
    "repeated": (750, "250 questions, three voters each, who half of the time repeat the first"),
    "style": (750, "750 votes that like length, which some models have more of; style is controlled"),
    "equal": (750, "750 votes on five equal models"),
}


def draw_votes(setting: str, rng: np.random.Generator) -> list[Vote]:
    """Return the votes of one simulation."""
    names = list(SKILLS)
    repeats = 3 if setting == "repeated" else 1
    impressions = 2 if setting == "ties" else 1
    votes: list[Vote] = []
    for question in range(SETTINGS[setting][0] // repeats):
        a, b = rng.choice(len(names), 2, replace=False)
        length = float(np.clip(rng.normal(0.1 * (b - a), 0.3), -1, 1)) if setting == "style" else 0.0
        advantage = 0.0 if setting == "equal" else SKILLS[names[a]] - SKILLS[names[b]]
        chance = expit(advantage + LIKES_LENGTH * length)
        first = rng.binomial(impressions, chance) / impressions
        for voter in range(repeats):
            score = first if voter == 0 or rng.random() < 0.5 else rng.binomial(impressions, chance) / impressions
            votes.append(Vote(names[a], names[b], score, f"q{question}", f"v{voter}", style=(length, 0.0, 0.0, 0.0)))
    return votes


def measure(setting: str, num_simulations: int) -> dict[str, float | None]:
    """Return the share of intervals that cover, of right orders, and of wrong real differences."""
    covered: list[bool] = []
    is_ordered: list[bool] = []
    is_wrong: list[bool] = []
    for simulation in range(num_simulations):
        votes = draw_votes(setting, np.random.default_rng([simulation, list(SETTINGS).index(setting)]))
        ratings = rate(votes, control_style=setting == "style", seed=simulation)
        true_M = np.array([0.0 if setting == "equal" else SKILLS[model] for model in ratings.models])
        covered += list((ratings.low_M <= true_M) & (true_M <= ratings.high_M))
        is_ordered.append(ratings.models == tuple(SKILLS))
        is_upside_down = ratings.difference_MM * (true_M[:, None] - true_M) <= 0
        is_wrong.append(bool((ratings.is_real_MM & is_upside_down).any()))
    right_order = None if setting == "equal" else float(np.mean(is_ordered))
    return {"coverage": float(np.mean(covered)), "right_order": right_order, "wrong_difference": float(np.mean(is_wrong))}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=200)
    num_simulations = parser.parse_args(argv).simulations
    results = {setting: measure(setting, num_simulations) for setting in SETTINGS}
    columns = "coverage of centred ratings | whole order right | a wrong difference called real"
    print(f"| {len(SKILLS)} models, {num_simulations} simulations | {columns} |")
    print("|---|---|---|---|")
    for setting, (_, text) in SETTINGS.items():
        print(f"| {text} | {' | '.join('' if value is None else f'{value:.1%}' for value in results[setting].values())} |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
