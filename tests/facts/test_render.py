"""Facts as text: one line each, in an order that a seed decides."""

import pytest

from mmrlhf.facts import load_facts_template, mark_incomplete, render_facts
from mmrlhf.records import Fact, InputError

FACTS = tuple(Fact("object", name) for name in ("plate", "fork", "cup", "spoon", "bowl"))


def test_load_facts_template_returns_a_users_template(tmp_path):
    (tmp_path / "mine.jinja").write_text("{% for f in facts %}<{{ f.text }}>{% endfor %}")
    text = load_facts_template(str(tmp_path / "mine.jinja"))
    (tmp_path / "mine.jinja").unlink()
    assert render_facts(FACTS[:2], template=text) == "<plate><fork>" and load_facts_template("captions") == "captions"
    with pytest.raises(InputError, match="does not exist: use typed, captions, or the path of a Jinja file"):
        load_facts_template(str(tmp_path / "mine.jinja"))
    (tmp_path / "bad.jinja").write_text("{{ fact.text }}")
    with pytest.raises(InputError, match=r"facts_template fails .*it gets `facts`"):
        load_facts_template(str(tmp_path / "bad.jinja"))


@pytest.mark.parametrize(
    "template",
    [
        "{% for f in range(99999) %}{% for g in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 3000000000 }}",
        "{{ facts[7].text }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ ''.__class__ }}{{ facts[0].__class__.__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{{ {}['a'] }}",
        "{% for f in facts %}",
    ],
)
def test_broken_and_hostile_templates_are_one_sentence(tmp_path, template):
    (tmp_path / "bad.jinja").write_text(template)
    with pytest.raises(InputError, match=r"^facts_template fails \([^\n]+\): correct it; it gets `facts`, with kind and text$"):
        load_facts_template(str(tmp_path / "bad.jinja"))


def test_render_facts_is_one_line_in_seeded_order():
    text = render_facts((Fact("caption", "A\n\n dog"), Fact("absent", "cat")))
    assert text == "Facts: caption A dog; absent cat."
    assert render_facts(()) == render_facts((), 3) == ""
    assert render_facts(FACTS, 3) == render_facts(FACTS, 3)
    orders = {render_facts(FACTS, seed) for seed in range(20)}
    assert len(orders) > 10
    assert all(sorted(text[7:-1].split("; ")) == sorted(f"object {fact.text}" for fact in FACTS) for text in orders)


def test_render_facts_drops_the_least_confident_above_max_tokens():
    facts = (Fact("object", "plate", confidence=0.5), Fact("object", "fork"), Fact("object", "cup", confidence=0.5))
    # "Facts: object plate; object fork." has five words; of the unsure facts the last goes first
    assert render_facts(facts, max_tokens=5) == "Facts: object plate; object fork."
    assert render_facts(facts, max_tokens=3) == "Facts: object fork."
    assert render_facts(facts, max_tokens=2) == ""


def test_render_facts_counts_tokens_of_few_texts_to_drop_many_facts():
    """They could not be dropped one by one: a row has hundreds of facts."""
    facts = [Fact("object", f"n{i}", confidence=(i * 7 % 50) / 50) for i in range(200)]
    counted = []

    def count_words(text):
        counted.append(text)
        return len(text.split())

    text = render_facts(facts, max_tokens=21, count_tokens=count_words)  # "Facts:", and ten facts of two words
    best = sorted(range(200), key=lambda i: (-facts[i].confidence, i))[:10]
    assert text == f"Facts: {'; '.join(f'object n{i}' for i in sorted(best))}." and len(counted) <= 10


SCOPED = (Fact("scope", "complete"), Fact("object", "plate", confidence=0.5), Fact("object", "fork"))


def test_render_facts_says_whether_the_list_is_complete():
    assert render_facts(SCOPED) == "Facts (complete): object plate; object fork."
    assert render_facts(mark_incomplete(SCOPED)) == "Facts (incomplete): object plate; object fork."
    # Wherever it stands and in whatever order, and a list that names both is incomplete.
    assert {render_facts(SCOPED[::-1], seed)[:16] for seed in range(5)} == {"Facts (complete)"}
    assert render_facts((*SCOPED, Fact("scope", "incomplete"))).startswith("Facts (incomplete): object plate")
    assert render_facts(SCOPED[:1]) == ""  # a scope alone says nothing of the image


def test_render_facts_that_drops_a_fact_says_incomplete():
    assert render_facts(SCOPED, max_tokens=6) == "Facts (complete): object plate; object fork."
    assert render_facts(SCOPED, max_tokens=5) == "Facts (incomplete): object fork."
