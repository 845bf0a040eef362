"""`mmrlhf arena report`: the leaderboard in the terminal, and as a page that opens offline."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from mmrlhf.arena.leaderboard import (
    Board,
    JudgeAgreement,
    OrderEffect,
    difference_sentences,
    headline,
    judge_agreements,
    make_boards,
    points,
    style_sentences,
)
from mmrlhf.arena.ledger import Void
from mmrlhf.arena.ratings import ELO_PER_UNIT, NUM_RESAMPLES, Ratings, score_tables
from mmrlhf.arena.serve import open_votes
from mmrlhf.arena.votes import read_ballots
from mmrlhf.files.atomic import refuse_output_file, write_atomic
from mmrlhf.records import InputError
from mmrlhf.report.plots import Plot, style_context, to_inline_svg
from mmrlhf.report.templates import jinja_environment
from mmrlhf.report.terminal import print_whole
from mmrlhf.text.printable import printable
from mmrlhf.text.visible_text import visible

PLAIN_COLOUR, CONTROLLED_COLOUR, ZERO_COLOUR = "#12a08f", "#c2701c", "#7d8894"
COLUMNS = ("model", "rank", "rating", "style controlled", "votes")


def report_arena(votes_file: str, page_file: str | None = None) -> None:
    """Print the leaderboard, and write it as a page. Raises InputError without any votes."""
    if page_file is not None:
        refuse_output_file(Path(page_file), "out", [votes_file])
    with open_votes(Path(votes_file)) as (store, ledger):
        ballots, voids = read_ballots(store, ledger), ledger.voids()
    boards = make_boards(ballots)
    if not boards:
        raise InputError(f"{votes_file} has no votes on models yet: vote with `mmrlhf arena serve`, or `mmrlhf arena judge`")
    agreements = judge_agreements(ballots)
    for board in boards:
        print(printable(f"{title_of(board)}: {headline(board)} ({_extent(board)})"))
        print_whole(_table(board))
        for sentence in (
            *difference_sentences(board.plain),
            *style_sentences(board),
            *dict.fromkeys((*board.plain.notes, *board.controlled.notes)),
        ):
            print(printable(sentence))
        if board.order_effect is not None:
            print(printable(order_sentence(board.order_effect)))
    for agreement in agreements:
        print(printable(agreement_sentence(agreement)))
    if voids:
        print(printable(_voids_sentence(voids)))
    if page_file is not None:
        try:
            write_atomic(Path(page_file), arena_page(Path(votes_file).name, boards, agreements, voids))
        except OSError as error:
            raise InputError(f"{page_file} cannot be written ({error.strerror}): give another --out") from None
        print(f"wrote {page_file}")


def arena_page(file: str, boards: list[Board], agreements: list[JudgeAgreement], voids: list[Void]) -> str:
    """Return the leaderboard as HTML."""
    template = jinja_environment().get_template("arena.html.j2")
    return template.render(
        file=file,
        title=f"{headline(boards[0])} ({_extent(boards[0])})",
        boards=[_section(board, number) for number, board in enumerate(boards)],
        agreements=[agreement_sentence(agreement) for agreement in agreements],
        voids=_voids_sentence(voids) if voids else "",
        columns=COLUMNS,
        num_resamples=NUM_RESAMPLES,
    )


def title_of(board: Board) -> str:
    return "What people chose" if board.title == "people" else f"What the judge {board.title} chose"


def _extent(board: Board) -> str:
    voters = len({vote.voter for vote in board.votes})
    who = f" by {voters} {'person' if voters == 1 else 'people'}" if board.title == "people" else ""
    return f"{len(board.votes):,} votes on {len({vote.question for vote in board.votes}):,} questions{who}"


def _section(board: Board, number: int) -> dict[str, Any]:
    """Return a board's content of the page."""
    ratings = board.plain
    scores_MM, counts_MM = score_tables(board.votes, ratings.models)
    win_rates = [
        (
            model,
            [
                ("", "") if not counts_MM[i, j] else (f"{scores_MM[i, j]:.0%}", f"of {counts_MM[i, j]:.0f}")
                for j in range(len(ratings.models))
            ],
        )
        for i, model in enumerate(ratings.models)
    ]
    differences = [
        (model, [None if i == j else (points(ratings.difference_MM[i, j]), _span(ratings.low_MM[i, j], ratings.high_MM[i, j]), bool(ratings.is_real_MM[i, j]))
                 for j in range(len(ratings.models))])
        for i, model in enumerate(ratings.models)
    ]  # fmt: skip
    return {
        "title": title_of(board),
        "extent": _extent(board),
        "sentences": [*difference_sentences(ratings), *style_sentences(board)],
        "controlled_sentences": difference_sentences(board.controlled) if board.controlled.style else [],
        "notes": [*dict.fromkeys((*ratings.notes, *board.controlled.notes))],
        "unusable": board.num_unusable,
        "order": order_sentence(board.order_effect) if board.order_effect is not None else "",
        "rows": [_cells(board, i) for i in range(len(ratings.models))],
        "plot": forest_plot(board, f"arena-{number}"),
        "models": ratings.models,
        "num_pairs": math.comb(len(ratings.models), 2),
        "win_rates": win_rates,
        "differences": differences,
        "categories": [
            (name, len([v for v in board.votes if v.category == name]), [_rating_with_rank(board.categories[name], model) for model in ratings.models])
            for name in board.categories
        ],
        "category_notes": [
            *_other_categories(board), *(f"{name}: {note}" for name, rated in board.categories.items() for note in rated.notes)
        ],
        "style": [(name, f"{math.exp(value):.2f}", f"{math.exp(low):.2f} to {math.exp(high):.2f}")
                  for name, (value, low, high) in board.controlled.style.items()],
    }  # fmt: skip


def _other_categories(board: Board) -> list[str]:
    """Return a note on the categories that the table leaves out, if there are any."""
    others = [vote.category for vote in board.votes if vote.category and vote.category not in board.categories]
    if not others:
        return []
    number = len(set(others))
    return [
        f"These are the {len(board.categories)} categories with the most votes; {number} more "
        f"{'category' if number == 1 else 'categories'}, with {len(others):,} {'vote' if len(others) == 1 else 'votes together'}, "
        f"{'is' if number == 1 else 'are'} left out."
    ]


def _rating_of(ratings: Ratings, model: str) -> tuple[str, str]:
    """Return a model's rating and its interval, in points; nothing if it has none."""
    if model not in ratings.models:
        return "", ""
    i = ratings.models.index(model)
    return points(ratings.value_M[i]), _span(ratings.low_M[i], ratings.high_M[i])


def _rating_with_rank(ratings: Ratings, model: str) -> tuple[str, str]:
    """Return a model's rating, and its interval with the rank that the real differences allow."""
    rating, interval = _rating_of(ratings, model)
    return (rating, f"{interval}, rank {_rank(ratings, ratings.models.index(model))}") if rating else ("", "")


def _rank(ratings: Ratings, i: int) -> str:
    best, worst = ratings.ranks(i)
    return f"{best}" if best == worst else f"{best} to {worst}"


def _span(low: float, high: float) -> str:
    return f"{points(low)} to {points(high)}"


def _cells(board: Board, i: int) -> list[tuple[str, str]]:
    """Return a model's cells: a text, and a smaller one."""
    model = board.plain.models[i]
    return [
        (model, ""),
        (_rank(board.plain, i), ""),
        _rating_of(board.plain, model),
        _rating_of(board.controlled, model) if board.controlled.style else ("", ""),
        (f"{board.plain.num_votes[model]:,}", ""),
    ]


def _table(board: Board) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right", no_wrap=True)
    for i in range(len(board.plain.models)):
        table.add_row(*(printable(f"{text} ({small})" if small else text) for text, small in _cells(board, i)))
    return table


def agreement_sentence(agreement: JudgeAgreement) -> str:
    """Return a judge's agreement with people, or that it is unknown."""
    if not agreement.num_pairs or agreement.agreement is None:
        return f"Nothing says how far {agreement.judge} agrees with people: they have not voted on the same pairs."
    parts = [f"{agreement.judge} says the same as most people on {_share(agreement.agreement)} of {agreement.num_pairs} pairs"]
    if agreement.decided is not None:
        parts.append(f"on {_share(agreement.decided)} of the {agreement.num_decided} on which neither says tie")
    if agreement.kappa is not None:
        low, high = agreement.kappa["low"], agreement.kappa["high"]
        parts.append(f"Cohen's kappa is {agreement.kappa['value']:.2f} ({low:.2f} to {high:.2f})")
    return f"{'; '.join(parts)}."


def order_sentence(effect: OrderEffect) -> str:
    """Return how often a judge's verdict changes with the order, and which place it favours."""
    changed, first = effect.changed, effect.first_favoured
    pairs, changes = changed["n"], first["n"]
    text = f"Swapping the answers changes the verdict on {_share(changed)} of {pairs:,} {'pair' if pairs == 1 else 'pairs'}"
    if not changes:
        return f"{text}."
    return (
        f"{text}; {'this one counts as a tie' if changes == 1 else 'these count as ties'}. In {_share(first)} of the {changes:,}, "
        "the change favours the answer shown first (50% without position bias)."
    )


def _share(interval: Mapping[str, Any]) -> str:
    return f"{interval['value']:.0%} ({interval['low']:.0%} to {interval['high']:.0%})"


def _voids_sentence(voids: list[Void]) -> str:
    counts = Counter(void.failed for void in voids).most_common()
    return f"Void votes, because a model gave no answer: {', '.join(f'{model} {count:,}' for model, count in counts)}."


def forest_plot(board: Board, id_prefix: str) -> Plot:
    """Plot each model's rating with its interval, uncontrolled and with style control."""
    models = board.plain.models
    kinds = [("as voted", board.plain, PLAIN_COLOUR, "o", -0.14)]
    if board.controlled.style:
        kinds.append(("style controlled", board.controlled, CONTROLLED_COLOUR, "s", 0.14))
    with style_context():
        figure = Figure(figsize=(4.4, 0.9 + 0.36 * len(models)), layout="constrained")
        axes = figure.subplots()
        for label, ratings, colour, marker, offset in kinds:
            for number, model in enumerate(ratings.models):
                y = models.index(model) + (offset if len(kinds) > 1 else 0)
                bounds = [ELO_PER_UNIT * bound[number] for bound in (ratings.low_M, ratings.high_M)]
                axes.plot(bounds, (y, y), color=colour, linewidth=1.6)
                axes.plot(
                    ELO_PER_UNIT * ratings.value_M[number], y, marker, color=colour, markersize=5, label="" if number else label
                )
        axes.axvline(0, color=ZERO_COLOUR, linewidth=0.8)
        axes.set_yticks(range(len(models)), [visible(model)[:24] for model in models], parse_math=False)
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlabel("rating in points, mean 0, with its 95% interval")
        axes.grid(axis="x", linewidth=0.4, alpha=0.3)
        axes.tick_params(left=False)
        if len(kinds) > 1:
            figure.legend(loc="outside lower center", ncols=2)
    texts = ("{} {} ({})".format(model, *_rating_of(board.plain, model)) for model in models)
    return to_inline_svg(figure, id_prefix), f"Ratings as voted: {'; '.join(texts)}."
