"""Do the arena's intervals cover true ratings, and does the true order come out?

    python -m eval.studies.arena_coverage --simulations 200

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
NUM_VOTES = 750
LIKES_LENGTH = 1.0
"""Log-odds that voters of the setting `style` give for a whole unit of length."""
SETTINGS = {
    "decided": "every vote is decided",
    "ties": "two impressions that may differ: then a tie",
    "repeated": "three voters a question, who half of the time repeat the first",
    "style": "voters like length; models write more or less; style is controlled",
}


def draw_votes(setting: str, rng: np.random.Generator) -> list[Vote]:
    """Return the votes of one simulation."""
    names = list(SKILLS)
    repeats = 3 if setting == "repeated" else 1
    votes: list[Vote] = []
    for question in range(NUM_VOTES // repeats):
        a, b = rng.choice(len(names), 2, replace=False)
        length = float(np.clip(rng.normal(0.1 * (b - a), 0.3), -1, 1)) if setting == "style" else 0.0
        chance = expit(SKILLS[names[a]] - SKILLS[names[b]] + LIKES_LENGTH * length)
        impressions = 2 if setting == "ties" else 1
        first = rng.binomial(impressions, chance) / impressions
        for voter in range(repeats):
            score = first if voter == 0 or rng.random() < 0.5 else rng.binomial(impressions, chance) / impressions
            votes.append(Vote(names[a], names[b], score, f"q{question}", f"v{voter}", style=(length, 0.0, 0.0, 0.0)))
    return votes


def measure(setting: str, num_simulations: int) -> dict[str, float]:
    """Return the share of intervals that cover, of right orders, and of wrong real differences."""
    covered: list[bool] = []
    is_ordered: list[bool] = []
    is_wrong: list[bool] = []
    for simulation in range(num_simulations):
        votes = draw_votes(setting, np.random.default_rng([simulation, list(SETTINGS).index(setting)]))
        ratings = rate(votes, control_style=setting == "style", seed=simulation)
        true_M = np.array([SKILLS[model] for model in ratings.models])
        covered += list((ratings.low_M <= true_M) & (true_M <= ratings.high_M))
        is_ordered.append(ratings.models == tuple(SKILLS))
        is_wrong.append(bool((ratings.is_real_MM & (ratings.difference_MM * (true_M[:, None] - true_M) < 0)).any()))
    return {
        "coverage": float(np.mean(covered)),
        "true_order": float(np.mean(is_ordered)),
        "a_real_difference_of_the_wrong_sign": float(np.mean(is_wrong)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=200)
    num_simulations = parser.parse_args(argv).simulations
    results = {setting: measure(setting, num_simulations) for setting in SETTINGS}
    print(
        f"| {NUM_VOTES} votes on {len(SKILLS)} models, {num_simulations} simulations | coverage | true order | wrong sign called real |"
    )
    print("|---|---|---|---|")
    for setting, text in SETTINGS.items():
        print(f"| {text} | {' | '.join(f'{value:.1%}' for value in results[setting].values())} |")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
