"""J of a judge before and after training: whose claims it is measured on."""

from mmrlhf.claims import extract_claims
from mmrlhf.records import Fact, ImageSource, Message, Preference, Verdict
from mmrlhf.rewards.detection import removals
from mmrlhf.rewards.probes import make_probes
from mmrlhf.training.reward_model.measured_rows import MeasuredRows, to_answer_group


class ShortAnswersReward:
    """A reward model that gives minus the length of an answer."""

    def score(self, groups, advance=None):
        return [[-float(len(answer)) for answer in group.answers] for group in groups]

    def without_limit(self):
        return self


def make_row(id_, image, *facts):
    return Preference.from_pair(id_, (ImageSource(image),), (Message("user", "?"),), "A cup.", "A cup and a dog.", facts)


def test_claims_are_those_of_their_rows_and_rows_those_of_their_images():
    rows = [make_row("1", "a.png"), make_row("2", "a.png"), make_row("3", "b.png")]
    groups = [to_answer_group(row) for row in rows]
    verdicts = [
        [[Verdict(c, "contradicted" if c.subject == "dog" else "supported") for c in extract_claims(a)] for a in g.answers]
        for g in groups
    ]
    measured = MeasuredRows(rows, True, (), removals(groups, verdicts))
    (false_rows, true_rows) = measured.rows_of_claims["object"]
    assert [image.path for (image,) in false_rows] == ["a.png", "a.png", "b.png"]  # the dog of each row
    assert [image.path for (image,) in true_rows] == ["a.png"] * 4 + ["b.png"] * 2  # the cup in both answers
    assert [len(part) for part in measured.outcomes(ShortAnswersReward())["object"]] == [3, 6]


def test_injected_claims_have_the_rows_that_they_are_injected_into():
    red, green = Fact("object", "red cup"), Fact("object", "green hat")
    rows = [make_row("1", "a.png", red, Fact("count", "two spoons")), make_row("2", "b.png", green)]
    measured = MeasuredRows(rows, True, make_probes(rows))
    outcomes = measured.outcomes(ShortAnswersReward())
    assert {kind: tuple(map(len, parts)) for kind, parts in measured.rows_of_claims.items()} == {
        kind: tuple(map(len, parts)) for kind, parts in outcomes.items()
    }
    assert [image.path for (image,) in measured.rows_of_claims["count"][0]] == ["a.png"]
