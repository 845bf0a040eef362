"""Render facts as text for a reward model's prompt."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jinja2 import StrictUndefined, Template

from mmrlhf.facts.scope import mark_incomplete, split_scope
from mmrlhf.records import Fact, InputError
from mmrlhf.text.printable import first_line
from mmrlhf.text.templates import BoundedEnvironment


def render_facts(
    facts: Sequence[Fact],
    order_seed: int | None = None,
    template: str = "typed",
    max_tokens: int | None = None,
    count_tokens: Callable[[str], int] = lambda text: len(text.split()),
) -> str:
    """Return facts as text, or "" if there are none.

    `template` is one of:

    typed       `Facts: object red circle [0.10, 0.20, 0.45, 0.60]; count two objects.`, with
                `Facts (complete)` or `Facts (incomplete)` in front if a fact of kind scope says so
    captions    a line per fact, as in LLaVA-RLHF
    TEXT        the text of a Jinja template (`load_facts_template`), which gets `facts`

    `order_seed` shuffles the facts, in the same order for every answer to a prompt; None keeps the
    given order. Above `max_tokens`, as `count_tokens` counts, facts are dropped one by one: the
    least confident first, and the last of several equals. The first two templates collapse white
    space, which keeps each fact on one line.

    Raises InputError for a template that fails.
    """
    scope = [fact for fact in facts if fact.kind == "scope"]
    listed = [fact for fact in facts if fact.kind != "scope"]
    order = np.arange(len(listed)) if order_seed is None else np.random.default_rng(order_seed).permutation(len(listed))
    included = [listed[i] for i in order]
    # Least confident first; -i puts the last of equals in front.
    drop_order = sorted(range(len(included)), key=lambda i: (included[i].confidence, -i))

    def text_without(num_dropped: int) -> str:
        dropped = set(drop_order[:num_dropped])
        kept = [fact for i, fact in enumerate(included) if i not in dropped]
        return to_text([*(mark_incomplete(scope) if dropped else scope), *kept]) if kept else ""

    def fits(num_dropped: int) -> bool:
        return max_tokens is None or count_tokens(text_without(num_dropped)) <= max_tokens

    to_text, num_facts = _renderer(template), len(included)
    if not num_facts or fits(0):
        return text_without(0)
    # Bisect, because a row may have hundreds of facts, and counting tokens is slow.
    return text_without(1 + bisect.bisect_left(range(1, num_facts), True, key=fits))


def _renderer(template: str) -> Callable[[Sequence[Fact]], str]:
    if template == "typed":
        return _render_typed
    if template == "captions":
        return _render_captions
    return lambda facts: _render_jinja(template, facts)


def load_facts_template(name: str) -> str:
    """Return a template for `render_facts`: `typed`, `captions`, or the text of a Jinja file.

    A saved reward model holds the text, so it does not need the file. Raises InputError for a
    missing file or a template that fails.
    """
    if name in ("typed", "captions"):
        return name
    if not Path(name).is_file():
        raise InputError(f"facts_template {name} does not exist: use typed, captions, or the path of a Jinja file")
    try:
        text = Path(name).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"facts_template {name} cannot be read ({error}): give a Jinja file in UTF-8") from None
    _render_jinja(text, (Fact("object", "dog"),))  # fails now rather than in the middle of training
    return text


def _one_line(fact: Fact) -> str:
    return " ".join(fact.text.split())


def box_text(fact: Fact) -> str:
    """Return a fact's box as it follows the fact's text, ` [0.10, 0.20, 0.50, 0.75]`, or ""."""
    return f" [{', '.join(f'{coordinate:.2f}' for coordinate in fact.box)}]" if fact.box else ""


def _render_typed(facts: Sequence[Fact]) -> str:
    scope, listed = split_scope(facts)
    heading = f"Facts ({scope})" if scope else "Facts"
    return f"{heading}: " + "; ".join(f"{fact.kind} {_one_line(fact)}{box_text(fact)}" for fact in listed) + "."


def _render_captions(facts: Sequence[Fact]) -> str:
    lines = (_one_line(fact) if fact.kind == "caption" else f"{fact.kind}: {_one_line(fact)}" for fact in facts)
    return "Here is what others have written of the picture.\n" + "\n".join(f"- {line}" for line in lines) + "\n"


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> tuple[BoundedEnvironment, Template]:
    environment = BoundedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment, environment.compile_bounded(template)


def _render_jinja(template: str, facts: Sequence[Fact]) -> str:
    """Render a user's template in a sandbox. Facts are data to it, never template text."""
    try:
        environment, compiled = _compile(template)
        return environment.render_bounded(compiled, facts=list(facts))
    except Exception as error:  # a template may raise anything
        reason = first_line(error)
        raise InputError(f"facts_template fails ({reason}): correct it; it gets `facts`, with kind and text") from None
