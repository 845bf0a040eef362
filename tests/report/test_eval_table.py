"""The table of eval: modes side by side, nothing said twice, no interval without width."""

from __future__ import annotations

from typing import Any

from mmrlhf.report.eval_table import print_eval_result


def leaf(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value} if low is None else {"value": value, "low": low, "high": high}


def make_result(**metrics: Any) -> dict[str, Any]:
    counts = {"missing": 0, "null": 2, "unparsed": 1}
    return {"benchmark": "mine", "n": 3, "examples": 4, "headline": "f1", "metrics": metrics, "reasons": {}, "counts": counts}


def rows_of(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def test_modes_with_the_same_figures_share_a_column(capsys):
    official = {"f1": leaf(0.5, 0.25, 0.75), "hard": {"f1": None}}
    print_eval_result(make_result(official=official, robust={**official, "unparsed": leaf(0.25, 0.25, 0.25)}))
    assert rows_of(capsys.readouterr().out) == [
        ["mine:", "3", "of", "4", "answered"],
        ["official", "=", "robust", "95%", "interval"],
        ["f1", "0.5", "0.25", "to", "0.75"],
        ["unparsed", "0.25"],  # no width
        ["hard"],
        ["f1", "none"],
        ["answers:", "2", "empty", "(null),", "1", "not", "understood"],
    ]


def test_other_modes_have_columns_of_their_own(capsys):
    result = make_result(official={"f1": leaf(0.5, 0.25, 0.75)}, robust={"f1": leaf(0.625, 0.5, 0.75), "ead": leaf(0.9)})
    print_eval_result({**result, "counts": {}, "reasons": {"official": {"hard": {"f1": "no question asks it"}}}})
    rows = rows_of(capsys.readouterr().out)
    assert rows[1:] == [
        ["official", "95%", "interval", "robust", "95%", "interval"],
        ["f1", "0.5", "0.25", "to", "0.75", "0.625", "0.5", "to", "0.75"],
        ["ead", "0.9"],
        ["official:", "undefined,", "because", "no", "question", "asks", "it"],
    ]


def test_names_from_the_data_cannot_control_the_terminal(capsys):
    name = "\x1b[31mconv\u202e"
    result = make_result(robust={name: {"f1": leaf(0.5)}, f"{name}2": None})
    print_eval_result({**result, "counts": {}, "reasons": {"robust": {name: f"no answer to {name}"}}})
    output = capsys.readouterr().out
    assert output.count("conv") == 3 and not {"\x1b", "\u202e"} & {*output}
