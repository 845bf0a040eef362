"""Render Jinja templates from data: in a sandbox, with limits on work and size.

Jinja's sandbox protects Python's internals, but not against an endless loop, or a string that fills
the memory. Here every loop, call, filter and operator counts its work.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any

from jinja2 import Environment, Template, TemplateError, Undefined, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_TEMPLATE_CHARS = 1 << 20
"""Maximum length of a template."""
MAX_CHARS = 1 << 22
"""Maximum length of a text or list made by a template: more than any model reads."""
MAX_STEPS = 500_000
"""Maximum number of steps of a rendering; every 1,000 characters of a result also count as one."""
MAX_INTEGER = 100_000
"""Maximum number that a function or filter takes, such as a width."""
MAX_BITS = 4096
"""Maximum size of a number that an operator makes."""
SIZED = (str, bytes, list, tuple)


class TemplateLimitError(TemplateError):
    """A template that exceeds a limit."""


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """A sandbox that raises TemplateLimitError if a template exceeds the limits on work or size."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._steps: ContextVar[int] = ContextVar("steps", default=0)
        self.filters = {name: self.bounded(function) for name, function in self.filters.items()}
        self.globals.pop("lipsum", None)
        self.concat = self._concat  # type: ignore[method-assign]

    def compile_bounded(self, source: str) -> Template:
        """Compile a template. Raises TemplateError for a syntax error or a template too long."""
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateLimitError(f"it has {len(source):,} characters, more than {MAX_TEMPLATE_CHARS:,}")
        return self.from_string(_CountWork().visit(self.parse(source)))

    def render_bounded(self, template: Template, **variables: Any) -> str:
        """Render a template with a new count of steps. Raises what the template raises."""
        self._steps.set(0)
        return template.render(**variables)

    # ---- counting ------------------------------------------------------------------------------

    def tick(self, num_steps: int = 1) -> str:
        """Count work; the code of a template calls this in each round of a loop."""
        steps = self._steps.get() + num_steps
        self._steps.set(steps)
        if steps > MAX_STEPS:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS:,} steps")
        return ""

    def _check_size(self, value: Any) -> Any:
        if isinstance(value, SIZED):
            _require_size(len(value))
            self.tick(1 + len(value) // 1000)
        return value

    def join_texts(self, values: Iterable[Any]) -> str:
        """Join texts, for the operator `~`."""
        return self._concat(str(value) for value in values)

    def _concat(self, pieces: Iterable[str]) -> str:
        texts, length = [], 0
        for piece in pieces:
            length += len(piece)
            _require_size(length)
            texts.append(piece)
        self.tick(1 + length // 1000)
        return "".join(texts)

    # ---- what a template may call --------------------------------------------------------------

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call a function within limits."""
        __self.tick()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_text_method(__obj.__name__, (owner, *args), kwargs)
        return __self._check_size(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Wrap `str.format`, which could pad a value to any width."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        format_string = value.__self__

        def bounded_format(*args: Any, **kwargs: Any) -> str:
            _check_text_method("format", (format_string, *args), kwargs)
            return wrapped(*args, **kwargs)

        return bounded_format

    def bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Let a filter or function work within limits."""

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            values = [a for a in args if not isinstance(a, (Context, nodes.EvalContext, Environment, Undefined))]
            _check_text_method(function.__name__.removeprefix("do_"), values, kwargs)
            return self._check_size(function(*args, **kwargs))

        return bounded

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator within limits."""
        self.tick()
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        for value, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(value, SIZED) and isinstance(other, int):
                _require_size(len(value) * max(other, 0))
        if operator == "+" and isinstance(left, SIZED) and isinstance(right, SIZED):
            _require_size(len(left) + len(right))
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise TemplateLimitError(f"it makes a number of more than {MAX_BITS:,} bits")
        return self._check_size(super().call_binop(context, operator, left, right))


class _CountWork(NodeTransformer):
    """Count each round of a loop, and join texts within limits."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        joined = nodes.Call(nodes.EnvironmentAttribute("join_texts"), [nodes.List(node.nodes)], [], None, None)
        joined.set_lineno(node.lineno)
        return joined


def _require_size(length: int) -> None:
    if length > MAX_CHARS:
        raise TemplateLimitError(f"it makes a text or list of more than {MAX_CHARS:,} characters or items")


def _check_format(format_string: str) -> None:
    """Raise TemplateLimitError for a width of five digits or more, or one given as a value."""
    if re.search(r"\d{5}|%[^%a-zA-Z]*\*", format_string):
        raise TemplateLimitError("it pads a value to more than 9,999 characters")


def _check_text_method(name: str, arguments: Iterable[Any], kwargs: dict[str, Any]) -> None:
    """Raise TemplateLimitError if a method of texts, or a filter, would exceed the limits."""
    values = [*arguments, *kwargs.values()]
    integers = [value for value in values if isinstance(value, int)]
    if max(integers, default=0) > MAX_INTEGER:
        raise TemplateLimitError(f"it calls {name} with a number above {MAX_INTEGER:,}")
    if not values or not isinstance(values[0], str):
        return
    text = values[0]
    if max(integers, default=0) * len(text) > MAX_CHARS * 64:
        raise TemplateLimitError(f"it calls {name} on a text that is too long for it")
    if name == "format":
        _check_format(text)
    if name == "replace" and len(values) > 2 and isinstance(values[1], str) and isinstance(values[2], str):
        _require_size(len(text) + text.count(values[1]) * len(values[2]))
    if name == "join" and len(values) > 1 and isinstance(values[1], SIZED):
        _require_size(len(text) * len(values[1]) + sum(len(v) for v in values[1] if isinstance(v, str)))
