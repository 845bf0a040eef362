"""CHAIR's matching with the lexicon of claim extraction."""

from mmrlhf.claims import find_mentions


def test_find_mentions_counts_words_despite_negation():
    mentions = find_mentions("No dogs, a wine glass and the toilet seat near a sofa. A hot dog!")
    assert [(m.word, m.node) for m in mentions] == [
        ("dog", "dog"), ("wine glass", "wine glass"), ("toilet", "toilet"), ("sofa", "couch"),
        ("hot dog", "hot dog"),
    ]  # fmt: skip


def test_find_mentions_merges_plural_wine_glasses():
    assert [m.word for m in find_mentions("Two wine glasses.")] == ["wine glass"]
