"""The rules for a word's tag: each decides the word in stars of its own example."""

import pytest

from mmrlhf.claims import content_words, load_lexicon, verb_or_other
from mmrlhf.claims.disambiguation import tag_text
from mmrlhf.claims.tag_rules import NOUN, Rule, RuleTable


def find_tables():
    tables = {
        name: value
        for module in (content_words, verb_or_other)
        for name, value in vars(module).items()
        if isinstance(value, RuleTable)
    }
    return tables | content_words.WORD_RULES


RULES = list({rule.example: rule for table in find_tables().values() for rule in table.rules}.values())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.example)
def test_rule_decides_the_word_in_stars_of_its_example(rule, monkeypatch):
    decided = set()

    def applies_and_notes(word, rule=rule):
        if rule.applies(word):
            decided.add(word.tokens.starts[word.index])
            return True
        return False

    for table in find_tables().values():
        noting = [Rule(r.example, r.tag, r.after, applies_and_notes) if r is rule else r for r in table.rules]
        monkeypatch.setattr(table, "_rules_after", RuleTable(*noting)._rules_after)
    tokens = tag_text(rule.example.replace("*", ""), load_lexicon())
    start = rule.example.index("*")
    assert start in decided
    tag = tokens.tags[tokens.starts.index(start)]
    assert tag in ("N", "X") if rule.tag == NOUN else tag == rule.tag


def test_rule_examples_are_distinct():
    all_rules = [rule for table in {id(t): t for t in find_tables().values()}.values() for rule in table.rules]
    assert len(RULES) == len(all_rules)
