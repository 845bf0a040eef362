"""Templates that came with data stop, and stay within their limits."""

import pytest
from jinja2 import TemplateSyntaxError, UndefinedError
from jinja2.sandbox import SecurityError

from mmrlhf.text.templates import MAX_CHARS, BoundedEnvironment, TemplateLimitError

TEXT = "A long answer. " * 2000


def render(source: str, **variables) -> str:
    environment = BoundedEnvironment()
    return environment.render_bounded(environment.compile_bounded(source), **variables)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        "{{ 'a' * 3000000000 }}",
        "{{ 3000000000 * 'a' }}",
        "{{ [1] * 3000000000 }}",
        "{{ 10 ** (10 ** 8) }}",
        "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = [n.s, n.s] | join %}{% endfor %}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s.replace('a', 'aa') %}{% endfor %}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set n.s = n.s | replace('a', 'aa') %}{% endfor %}",
        "{% set n = namespace(s='aaaa') %}{% for i in range(60) %}{% set s %}{{ n.s }}{{ n.s }}{% endset %}{% set n.s = s %}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
        "{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{% if s.upper() %}{% endif %}{% endfor %}",
        "{{ 'a'.ljust(3000000000) }}",
        "{{ 'a' | center(3000000000) }}",
        "{{ 'a\nb' | indent(3000000000) }}",
        "{{ '%3000000000d' % 1 }}",
        "{{ '%*d' % (3000000000, 1) }}",
        "{{ '%3000000000d' | format(1) }}",
        "{{ '{:>3000000000}'.format(1) }}",
        "{{ '{:>{}}'.format(1, 3000000000) }}",
        "{{ 'a'.zfill(3000000000) }}",
        "{{ ('a' * 100000).join('b' * 100000) }}",
        "x" * (1 << 21),
    ],
)
def test_a_template_that_does_or_makes_too_much_is_stopped(source):
    with pytest.raises(TemplateLimitError):
        render(source, x=[1, 1])


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("{% macro m(n) %}{{ m(n - 1) }}{{ m(n - 1) }}{% endmacro %}{{ m(60) }}", RecursionError),
        ("{{ range(50000) | batch(99999, 'a' * 1000000) | map('join') | join }}", (TemplateLimitError, MemoryError)),
        ("{{ '(' * 2000 }}{% for a in x recursive %}{{ loop([1, 1]) }}{% endfor %}", RecursionError),
        ("{{ lipsum(n=99999) }}", UndefinedError),
        ("{{ ''.__class__.__mro__ }}", SecurityError),
        ("{{ cycler.__init__.__globals__ }}", SecurityError),
        ("{% include 'x' %}", TypeError),
        ("{% for %}", TemplateSyntaxError),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", (RecursionError, SyntaxError, MemoryError)),
    ],
)
def test_other_hostile_templates_end_in_an_error(source, error):
    with pytest.raises(error):
        render(source, x=[1, 1])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{% for m in turns %}{{ loop.index }}{{ m.role ~ ': ' ~ m.text | trim }};{% endfor %}", "1user: a;2gpt: b;"),
        ("{{ 'ab' * 3 + '%5d|' % 7 + '{:>4}'.format('x') }}", "ababab    7|   x"),
        ("{{ text | length }} {{ text.split('.') | length }} {{ text.replace('. ', '! ') | truncate(20) }}", "30000 2001 A long answer! A..."),
        ("{% set ns = namespace(n=0) %}{% for c in text %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n * 2 ** 10 }}", "30720000"),
        ("{{ missing | default('-') }}{{ missing is defined }}{% if missing %}!{% endif %}{{ missing | list | length }}", "-False0"),
        ("{% macro turn(m) %}<{{ m }}>{% endmacro %}{{ turn('a') }}{{ ['x', 'y'] | map('upper') | join(',') }}", "<a>X,Y"),
    ],
)  # fmt: skip
def test_ordinary_templates_render_as_in_jinja(source, expected):
    assert render(source, text=TEXT, turns=[{"role": "user", "text": " a "}, {"role": "gpt", "text": "b"}]) == expected


def test_limits_count_anew_in_each_rendering():
    environment = BoundedEnvironment()
    template = environment.compile_bounded("{% for i in range(90000) %}{{ x }}{% endfor %}")
    for _ in range(3):
        assert len(environment.render_bounded(template, x="ab")) == 180000
    with pytest.raises(TemplateLimitError, match=f"more than {MAX_CHARS:,} characters"):
        environment.render_bounded(template, x="a" * 50)
