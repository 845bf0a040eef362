"""Alpha, sides and gold questions, by numbers that a pencil can check."""

import krippendorff
import numpy as np
import pytest

from mmrlhf.labeling.agreement import AnnotatorSummary, Speed, agreements, one_sided, summarise_annotators
from mmrlhf.labeling.results import Label, Labels
from mmrlhf.labeling.tasks import Task

FIRST, SECOND, TIE = {"ranks": [1, 2], "strength": 2}, {"ranks": [2, 1], "strength": 2}, {"ranks": [1, 1]}


def labels_of(values, mode="pairwise", gold=None, order=(0, 1), name="same"):
    """Return labels from a table: a row per task, a column per annotator, None for no label."""
    labels = []
    for number, row in enumerate(values):
        task = Task(mode, name or str(number), (), (), ("a", "b"), gold=gold or {})
        for annotator, content in enumerate(row):
            if content is not None:
                labels.append(Label(annotator, number, task, order, content, 0.0, 10.0 * (annotator + 1)))
    return Labels(labels, [], {0: "a", 1: "b", 2: "c"}, {label.task_id: label.task for label in labels})


def alpha_of(values, index=0):
    return agreements(labels_of(values))[index].alpha


def test_alpha_does_not_depend_on_which_answer_the_row_has_first():
    rng = np.random.default_rng(0)
    values = [[FIRST if rng.random() < 0.9 else SECOND for _ in range(2)] for _ in range(800)]  # the row's first is better
    assert agreements(labels_of(values, name=""))[0].alpha == pytest.approx(0.64, abs=0.08)
    ranked = [[{"ranks": label["ranks"]} for label in row] for row in values]
    assert agreements(labels_of(ranked, "ranking", name=""))[0].alpha == pytest.approx(0.64, abs=0.08)


def test_alpha_by_hand():
    assert alpha_of([[FIRST, FIRST], [SECOND, SECOND]]) == 1.0
    # Coincidences of four pairs: 2 x (1,1), 2 x (2,2), and (1,2) twice each way.
    # Observed disagreement 4/8; expected 2 x 4 x 4 / (8 x 7) = 4/7; alpha = 1 - 1/2 / (4/7).
    assert alpha_of([[FIRST, FIRST], [SECOND, SECOND], [FIRST, SECOND], [SECOND, FIRST]]) == pytest.approx(1 / 8)
    # Always the opposite: observed 1, expected 2 x 2 x 2 / (4 x 3) = 2/3; alpha = -1/2.
    assert alpha_of([[FIRST, SECOND], [SECOND, FIRST]]) == pytest.approx(-1 / 2)


def test_tasks_with_one_label_do_not_count():
    with_single = [[FIRST, FIRST], [SECOND, SECOND], [FIRST, None], [None, TIE]]
    assert alpha_of(with_single) == 1.0
    assert agreements(labels_of(with_single))[0].num_tasks == 2


def test_alpha_that_is_not_defined():
    for values in ([[FIRST, None]], [[FIRST, FIRST], [FIRST, FIRST]]):
        result = agreements(labels_of(values))[0]
        assert result.alpha is None and result.interval is None


def test_strength_is_ordinal():
    """A slip by one step disagrees less than one across the scale."""
    base = [[FIRST, FIRST], [SECOND, SECOND], [TIE, TIE]] * 4
    slight, much = {"ranks": [1, 2], "strength": 1}, {"ranks": [2, 1], "strength": 3}
    near, far = alpha_of([*base, [FIRST, slight]], 1), alpha_of([*base, [FIRST, much]], 1)
    assert 0 < far < near < 1


def test_random_labels_agree_by_chance_and_noisy_ones_as_they_should():
    rng = np.random.default_rng(0)
    random_values = [[FIRST if rng.random() < 0.5 else SECOND for _ in range(2)] for _ in range(800)]
    result = agreements(labels_of(random_values))[0]
    assert abs(result.alpha) < 0.1 and result.interval[0] < result.alpha < result.interval[1]
    # Two annotators who err in 10% of pairs agree in 0.9^2 + 0.1^2 = 82%; chance in half.
    truth = rng.random(800) < 0.5
    noisy = [[FIRST if t != (rng.random() < 0.1) else SECOND for _ in range(2)] for t in truth]
    result = agreements(labels_of(noisy))[0]
    assert result.alpha == pytest.approx(0.64, abs=0.08) and result.interval[0] < 0.64 < result.interval[1]


def test_sides_times_and_gold():
    values = [[FIRST, SECOND]] * 30
    a, b, c = summarise_annotators(labels_of(values, order=(1, 0)))
    assert (a.num_left, a.num_decided) == (0, 30)  # the first answer was on the right
    assert (b.num_left, b.num_decided) == (30, 30)
    assert (a.speeds, b.speeds) == ({"pairwise": Speed(10.0, 360.0)}, {"pairwise": Speed(20.0, 180.0)})
    assert one_sided([a, b, c]) == [a, b]
    assert (c.num_labels, c.speeds, c.left_interval) == (0, {}, (0.0, 1.0))
    a, b, _ = summarise_annotators(labels_of([[FIRST, SECOND], [FIRST, TIE]], gold={"ranks": [1, 2]}))
    assert (a.num_gold_right, a.num_gold, b.num_gold_right, b.num_gold) == (2, 2, 0, 2)
    assert agreements(labels_of(values, gold={"ranks": [1, 2]})) == []


def test_speed_is_by_mode_and_first_places_are_by_shown_position():
    """Shown are c, a, b, then b, a: the best answer of three is second, and a tie counts half."""
    ranked = Task("ranking", "r", (), (), ("a", "b", "c")), Task("ranking", "q", (), (), ("a", "b"))
    contents = [(ranked[0], (2, 0, 1), [1, 2, 3], 30.0), (ranked[1], (1, 0), [1, 1], 50.0)]
    rankings = [Label(0, 8 + i, task, order, {"ranks": ranks}, 0.0, s) for i, (task, order, ranks, s) in enumerate(contents)]
    quick = labels_of([[FIRST], [SECOND], [FIRST]])
    (heron, *_) = summarise_annotators(Labels([*quick.labels, *rankings], [], {0: "heron"}, {}))
    assert heron.speeds == {"pairwise": Speed(10.0, 360.0), "ranking": Speed(40.0, 90.0)}
    assert heron.first_places == [0.5, 1.5, 0.0] and heron.num_decided == 3


def test_among_many_annotators_more_is_chance():
    """65 of 100 on one side: Wilson's interval is from 0.553 at 95%, from 0.499 at 99.75%."""
    heron = AnnotatorSummary("heron", 100, 0, 0, {}, 65, 100, [], 0, 0)
    fair = AnnotatorSummary("robin", 100, 0, 0, {}, 50, 100, [], 0, 0)
    assert one_sided([heron]) == [heron] and one_sided([heron, *[fair] * 19]) == []


def facts(*texts, complete=True):
    return {"facts": [{"kind": "object", "text": text} for text in texts], "complete": complete}


def facts_alpha_of(values):
    return agreements(labels_of(values, "facts"))[-1]


def test_alpha_of_facts_by_hand():
    """Lists {dog, cat}, {dog}; {cup}, {cup}: F1 of 2/3 in the first task, 1 in the second.

    Observed: 4 ordered pairs within tasks, 2 of distance 1/3, so (2/3) / 4 = 1/6. Expected: of the
    12 ordered pairs of lists, 8 share nothing, 2 differ by 1/3, so (8 + 2/3) / 12 = 13/18. Alpha is
    1 - (1/6) / (13/18) = 10/13. Of the first task alone it is 1 - (1/3) / (2/9) = -1/2, of the
    second not defined. Whether a list is complete: observed 1/2, expected 1/2, alpha 0.
    """
    values = [[facts("dog", "cat"), facts("dog")], [facts("cup"), facts("cup", complete=False)]]
    complete, lists = agreements(labels_of(values, "facts"))
    assert lists.alpha == pytest.approx(10 / 13) and lists.num_tasks == 2
    assert lists.interval == pytest.approx((-1 / 2, 10 / 13))
    assert complete.alpha == pytest.approx(0.0)
    assert facts_alpha_of([[facts("cup", "cup"), facts("cup")], [facts("dog"), facts("dog")]]).alpha == 1.0  # said twice
    kinds = [[facts("cup"), {"facts": [{"kind": "absent", "text": "cup"}], "complete": True}], [facts("dog"), facts("dog")]]
    assert facts_alpha_of(kinds).alpha < 0.5
    for undefined in ([[facts("cup"), None]], [[facts("cup"), facts("cup")]] * 2):
        assert facts_alpha_of(undefined).alpha is None and facts_alpha_of(undefined).interval is None


def test_alpha_of_facts_is_that_of_the_package():
    """Which takes a matrix of the distances of all lists, so that it is for few lists only."""
    rng = np.random.default_rng(1)
    lists = [[frozenset(rng.choice(6, 1 + rng.integers(5)).tolist()) for _ in range(2 + rng.integers(2))] for _ in range(20)]
    values = [[facts(*map(str, sorted(chosen))) for chosen in row] + [None] * (3 - len(row)) for row in lists]
    domain = sorted({tuple(sorted(chosen)) for row in lists for chosen in row})
    counts = [[sum(tuple(sorted(chosen)) == value for chosen in row) for value in domain] for row in lists]

    def distance(v1, v2, i1, i2, n_v, dtype):
        pairs = np.broadcast(i1, i2)
        shared = [len({*domain[i]} & {*domain[j]}) / (len(domain[i]) + len(domain[j])) for i, j in pairs]
        return 1 - 2 * np.array(shared).reshape(pairs.shape)

    expected = krippendorff.alpha(value_counts=counts, value_domain=np.arange(len(domain)), level_of_measurement=distance)
    assert facts_alpha_of(values).alpha == pytest.approx(expected)


def marked(*spans, corrected="a"):
    return {"spans": [{"start": start, "end": end} for start, end in spans], "corrected": corrected}


@pytest.mark.parametrize(
    ("known", "label", "is_right"),
    [
        ([[0, 3], [8, 9]], marked((2, 5), (8, 9)), True),  # where a mark ends may differ
        ([[0, 3], [8, 9]], marked((0, 9)), True),
        ([[0, 3], [8, 9]], marked((0, 3)), False),
        ([[0, 3]], marked((0, 3), (5, 6)), False),
        ([[0, 3]], marked((3, 5)), False),
        ([[0, 3]], marked(), False),
        ([[0, 3]], marked(corrected="b"), True),  # edited without marks
        ([], marked(), True),
        ([], marked(corrected="b"), False),
        ([], marked((0, 3)), False),
    ],
)
def test_gold_questions_of_claims(known, label, is_right):
    summary, *_ = summarise_annotators(labels_of([[label]], "claims", {"spans": known}))
    assert (summary.num_gold_right, summary.num_gold) == (int(is_right), 1)


def test_gold_questions_of_facts():
    """All that is known must be said, in the same words, and nothing that is known to be absent."""
    known = {"facts": [["object", "dog"], ["object", "cat"], ["absent", "cup"]]}
    labels = [facts("dog", "cat"), facts("cat", "dog", "sofa"), facts("dog"), facts("dog", "cat", "cup"), facts("Dog", "cat")]
    summary, *_ = summarise_annotators(labels_of([[label] for label in labels], "facts", known))
    assert (summary.num_gold_right, summary.num_gold) == (2, 5)
