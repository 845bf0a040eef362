"""The tables of rules: each rule decides the word in stars of its own example."""

import pytest

from mmrlhf.claims import content_words, extract_claims, extraction, load_lexicon, place_rules, relations, verb_or_other
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


PLACE_RULES = [place_rules.PART_OF_ACTION, *place_rules.NO_PLACE, *place_rules.LOCATED]


@pytest.mark.parametrize("rule", PLACE_RULES, ids=lambda rule: rule.example)
def test_place_rule_decides_the_preposition_in_stars_of_its_example(rule, monkeypatch):
    position, decided = [], []

    def begin_relation(builder, index, *args):
        position[:] = [builder.tokens.starts[index]]
        return relations.begin_relation(builder, index, *args)

    def gives_no_place(preposition):
        found = place_rules.gives_no_place(preposition)
        if found is rule:
            decided.extend(position)
        return found

    def find_located(preposition):
        rules = place_rules._LOCATED_AFTER[preposition.previous_tag]
        if next((r for r in rules if r.applies(preposition)), None) is rule:
            decided.extend(position)
        return place_rules.find_located(preposition)

    monkeypatch.setattr(extraction, "begin_relation", begin_relation)
    monkeypatch.setattr(relations, "gives_no_place", gives_no_place)
    monkeypatch.setattr(relations, "find_located", find_located)
    extract_claims(rule.example.replace("*", ""))
    assert rule.example.index("*") in decided
