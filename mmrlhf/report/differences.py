"""Describe differences between two results in words and numbers, for pages and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmrlhf.metrics.intervals import MIN_CLUSTERS

Comparison = Mapping[str, Any]
"""A metric of two results: `a`, `b`, `difference`, `low`, `high`, `p`, `detectable`."""
COLUMNS = ("difference", "95% interval", "p", "minimum detectable effect")
"""Columns after the names of the two results."""
FRACTIONS = re.compile(
    r"accuracy|acc|precision|recall|f1|yes_ratio|yes_rate|coverage|right|.*_rate|.*_accuracy|.*_acc|.*f1|distinct.*|chair_.*|hal|cog|cover"
)
"""Names of metrics that are fractions where no value exceeds 1."""
LOWER_IS_BETTER = re.compile(r".*(chair|error|hallucinat|false|unparsed).*|hal|cog|response_rate|mention_rate")
HIGHER_IS_BETTER = re.compile(
    r"accuracy|acc|precision|recall|f1|coverage|cover|claim_f1|utility|score|.*_accuracy|accuracy_plus|.*_acc|.*_f1|.*score.*|right"
    r"|informativeness|tnr|tpr|harmonic_mean"
)


@dataclass(frozen=True)
class Difference:
    """A metric of two results, ready to show: cells of a table, and the difference in a word."""

    name: str
    comparison: Comparison | None
    percent: bool
    word: str
    """better or worse, higher or lower if no direction is known; unclear if the interval contains
    0, or there is none."""

    @property
    def cells(self) -> list[str]:
        """Return a, b, difference, interval, p and minimum detectable effect, as text."""
        value = self.comparison
        if value is None:
            return ["none"] * 6
        has_width = value["low"] < value["high"]
        interval = f"{self.format(value['low'], sign=True)} to {self.format(value['high'], sign=True)}" if has_width else ""
        return [
            self.format(value["a"]),
            self.format(value["b"]),
            self.format(value["difference"], sign=True),
            interval,
            f"{value['p']:.2g}" if has_width else "",
            self.format(value["detectable"], sign=True).removeprefix("+") if has_width else "",
        ]

    @property
    def is_clear(self) -> bool:
        """Return whether the interval of the difference excludes 0."""
        return self.comparison is not None and (self.comparison["low"] > 0 or self.comparison["high"] < 0)

    def format(self, value: float, sign: bool = False) -> str:
        """Return a value in percent or as a number; with `sign`, a difference."""
        if self.percent:
            return f"{100 * value:+.1f}" if sign else f"{value:.1%}"
        return f"{value:+.4g}" if sign else f"{value:.4g}"


def flat_differences(metrics: Mapping[str, Any], headline: str, direction: str) -> list[Difference]:
    """Return the differences of nested metrics in order; the name of a part becomes a prefix.

    `headline` and `direction` are the benchmark's main metric, and whether lower or higher is
    better.
    """
    rows = _flatten(metrics)
    # CHAIR's figures, for one, are in percent in one benchmark and fractions in another.
    named = [value for name, value in rows if value is not None and FRACTIONS.fullmatch(name.split()[-1])]
    are_fractions = all(abs(value[side]) <= 1 for value in named for side in ("a", "b"))
    differences = []
    for name, value in rows:
        last = name.split()[-1]
        better = better_direction(last, headline, direction)
        percent = are_fractions and FRACTIONS.fullmatch(last) is not None
        differences.append(Difference(name, value, percent, _word(value, better)))
    return differences


def better_direction(metric: str, headline: str = "", direction: str = "") -> str:
    """Return whether "higher" or "lower" values of a metric are better, "" if that is not known.

    `headline` and `direction` are a benchmark's main metric and its better direction.
    """
    if metric == headline:
        return direction
    if LOWER_IS_BETTER.fullmatch(metric):
        return "lower"
    return "higher" if HIGHER_IS_BETTER.fullmatch(metric) else ""


def _flatten(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Comparison | None]]:
    rows: list[tuple[str, Comparison | None]] = []
    for name, value in metrics.items():
        if value is None or "difference" in value:
            rows.append((f"{prefix}{name}", value))
        else:
            rows += _flatten(value, f"{prefix}{name} ")
    return rows


def _word(value: Comparison | None, better: str) -> str:
    if value is None:
        return ""
    if not (value["low"] > 0 or value["high"] < 0):
        return "equal" if value["low"] == value["high"] == 0 else "unclear"
    change = "higher" if value["difference"] > 0 else "lower"
    return change if not better else "better" if change == better else "worse"


def tables_of(pair: Mapping[str, Any], headline: str, direction: str) -> list[tuple[str, list[Difference]]]:
    """Return (title, differences) for each mode of a pair.

    Modes share a table if all metrics that both have are shown alike.
    """
    tables: list[tuple[str, list[Difference]]] = []
    for mode, metrics in pair["metrics"].items():
        differences = flat_differences(metrics, headline, direction) if metrics else []
        for number, (title, others) in enumerate(tables):
            known = {other.name: other for other in others}
            shared = [(row, known[row.name]) for row in differences if row.name in known]
            if shared and all(row.cells == other.cells for row, other in shared):
                tables[number] = (f"{title} = {mode}", [*others, *(row for row in differences if row.name not in known)])
                break
        else:
            if differences:
                tables.append((mode, differences))
    return tables


def categories_of(pair: Mapping[str, Any]) -> list[tuple[int, Difference]]:
    """Return the accuracies by category, with the number of examples."""
    rows = []
    for category in pair["categories"]:
        value = category if "difference" in category else None
        rows.append((int(category["n"]), Difference(str(category["name"]), value, True, _word(value, "higher"))))
    return rows


def headline_sentence(benchmark: str, pair: Mapping[str, Any], headline: str, direction: str, num_examples: int) -> str:
    """Return one sentence on the main metric, as far as the interval allows one."""
    for mode, differences in reversed(tables_of(pair, headline, direction)):
        by_name = {difference.name: difference for difference in differences}
        names = [name for name in by_name if name.split()[-1] == headline]
        for name in dict.fromkeys((headline, f"mean {headline}", *names)):
            difference = by_name.get(name)
            value = difference.comparison if difference else None
            if difference is None or value is None:
                continue
            part = difference.name.removesuffix(headline).strip()
            place = f"{benchmark} {part}".rstrip()
            begin = f"{pair['b']} is {difference.word} than {pair['a']} on {place}"
            if not difference.is_clear:
                begin = f"No difference between {pair['a']} and {pair['b']} is shown on {place}"
            unit = " points" if difference.percent else ""
            interval = f"{difference.cells[2]}{unit}" + (f", 95% interval {difference.cells[3]}" if difference.cells[3] else "")
            values = f"{headline} from {difference.cells[0]} to {difference.cells[1]}"
            return f"{begin}: {values} ({interval}; {direction} is better; {mode}, {num_examples} examples)."
    return f"{pair['b']} against {pair['a']} on {benchmark}: {headline} is not defined in both."


def mcnemar_sentence(pair: Mapping[str, Any]) -> str:
    """Return how many examples changed between right and wrong, or ""."""
    test = pair["mcnemar"]
    if not test:
        return ""
    sentence = (
        f"Right in {pair['a']} alone: {test['only_a']}; in {pair['b']} alone: {test['only_b']}; in both: {test['both']}; "
        f"McNemar's exact p {test['p']:.2g}."
    )
    if test["repeated"]:
        sentence += f" Each of {test['questions']} questions counts once; {test['repeated']} examples ask one of them again."
    return sentence


def interval_note(cluster: str) -> str:
    """Return a note on the intervals and units in the tables."""
    return (
        f"Intervals: paired bootstrap over {cluster}s; differences of percentages are in points. "
        "Minimum detectable effect: the difference that such data would show in 80% of trials. "
        f"Fewer than {MIN_CLUSTERS} {cluster}s have no interval."
    )


def diversity_cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Return a model's diversity metrics with their intervals, as text."""
    cells = []
    for name in names:
        low, high = row.get(f"{name}_ci", (None, None))
        interval = "" if low is None or low == high else f" ({low:.4g} to {high:.4g})"
        cells.append(f"{row[name]:.4g}{interval}" if name in row else "")
    return cells


def diversity_names(row: Mapping[str, Any]) -> list[str]:
    """Return the names of the metrics in a row of diversity."""
    return [name for name in row if name not in ("part", "name", "n") and not name.endswith("_ci")]
