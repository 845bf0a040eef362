"""The lexicon of claim extraction: user files and their errors."""

import pytest

from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.records import InputError


def test_load_lexicon_user_file_adds_words(tmp_path):
    path = tmp_path / "more.txt"
    path.write_text(
        "[coco]\nbird: | gryphon  # a kind\n[same thing]\nhippogriff: hippogryph\n[not objects]\nlamp\n[compounds]\nblue moon\n"
    )
    claims = extract_claims("A gryphon, a hippogryph and a lamp under a blue moon.", load_lexicon(str(path)))
    assert {(c.subject, c.category) for c in claims if c.kind == "object"} == {
        ("gryphon", "bird"),
        ("hippogriff", ""),
        ("blue moon", ""),
    }
    # The package's own lexicon is unchanged.
    assert ("lamp", "") in {(c.subject, c.category) for c in extract_claims("A lamp.")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dog\n", "line 1: an entry comes before any section"),
        ("[cocoa]\n", "line 1: there is no section [cocoa]"),
        ("[coco]\n\ndog, puppy\n", "line 3: [coco] needs lines of the form"),
        ("[image places]\nupper left\n", "line 2: upper left is not a place in the image: use top left, top middle"),
        ("[image places]\nupper left: top left\n", "line 2: upper left is not a place in the image: use top left, top middle"),
    ],
)
def test_load_lexicon_refuses_malformed_user_file(tmp_path, content, message):
    path = tmp_path / "more.txt"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        load_lexicon(str(path))
    assert message in str(error.value)
