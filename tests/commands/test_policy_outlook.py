"""What reward-eval says of a policy: truth kept apart, forecasts by hand, and the whole command."""

import json

import pytest

from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.commands.claim_truth import check_truth_settings, read_verdicts
from mmrlhf.commands.claims import extract
from mmrlhf.commands.policy_outlook import (
    answer_groups,
    contradicted_shares,
    fact_conditions,
    forecast,
    measure_outlook,
    outlook_sentences,
)
from mmrlhf.commands.policy_reward import weighted_score
from mmrlhf.commands.reward_eval import _read_answers, reward_eval
from mmrlhf.commands.reward_eval_page import _policy_plots
from mmrlhf.commands.reward_metrics import other_facts, perturbed_pictures
from mmrlhf.config import RewardEvalConfig
from mmrlhf.records import Example, Fact, ImageSource, InputError, Message, Preference
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.verifiers import verify_against_facts
from tests.helpers.tiny_clip import random_image, save_tiny_clip
from tests.report.test_page import ParsedPage

PROMPT = (Message("user", "What is it?"),)


def make_config(tmp_path, **settings):
    settings = {"reward_model_path": "r", "dataset_name": "d", "output_dir": str(tmp_path / "out")} | settings
    return RewardEvalConfig(**settings)


def make_group(*answers, facts=(), id_="a", image="a.png"):
    return AnswerGroup((ImageSource(image),), PROMPT, answers, facts, id_)


def interval(value, width=0.1):
    return {"value": value, "low": value - width, "high": value + width}


def slope(false, num=40, true=0.0):
    return {"false": interval(false), "true": interval(true), "num_false": num, "num_true": num} | dict.fromkeys(
        ("num_prompts", "num_prompts_true"), num
    )


SPREAD = {
    "with facts": {"within_std": 1.0, "explained": {"value": 0.4}},
    "without facts": {"within_std": 0.5, "explained": {"value": 0.1}},
}


def compared(differences, ratio=2.0):
    return {kind: {"difference": difference, "ratio": interval(ratio, 0.5)} for kind, difference in differences.items()}


def sentences_of(with_facts, without, differences, minus_other=None):
    slopes = {"with facts": {"all": slope(-0.4), **with_facts}, "without facts": {"all": slope(-0.2), **without}}
    outlook = {"spread": SPREAD, "slopes": slopes, "forecast": forecast(slopes, compared(differences))}
    return outlook_sentences(outlook | {"own_minus_other_facts": minus_other, "num_answers": 80, "num_measured": 80})


def test_contradicted_shares_count_prompts_not_their_claims():
    """Half of 20 prompts are contradicted: the interval is about 0.4 wide however many answers."""
    facts = Fact("object", "cat"), Fact("absent", "dog")
    for repeats in (1, 9):
        groups = [make_group(*[f"There is a {'cat' if i % 2 else 'dog'}."] * repeats, facts=facts, id_=str(i)) for i in range(20)]
        share = contradicted_shares(groups, load_lexicon())["object"]
        assert share["value"] == 0.5 and share["n"] == 20 * repeats
        assert share["high"] - share["low"] == pytest.approx(0.42, abs=0.05)


def test_forecast_follows_from_slopes():
    slopes = {
        "with facts": {"object": slope(-0.6), "count": slope(0.05), "attribute": slope(0.3), "relation": slope(-0.9, num=4)},
        "without facts": {"object": slope(-0.3), "count": slope(-0.5), "attribute": slope(0.05), "relation": slope(-0.9, num=4)},
    }
    entries = forecast(slopes, compared(dict.fromkeys(slopes["with facts"], interval(-0.3))))
    assert entries["object"]["trend"] == {"with facts": "falls", "without facts": "falls"}
    assert entries["object"]["speed_ratio"] == interval(2.0, 0.5)
    assert entries["count"]["trend"] == {"with facts": "unclear", "without facts": "falls"}
    assert entries["attribute"]["trend"] == {"with facts": "rises", "without facts": "unclear"}
    assert entries["relation"]["trend"] == {"with facts": "not measured", "without facts": "not measured"}
    assert entries["count"]["speed_ratio"] is None


def test_sentences_say_what_goes_stays_and_grows():
    sentences = sentences_of(
        {"object": slope(-0.6), "count": slope(0.05), "attribute": slope(0.3, true=-0.2), "relation": slope(-0.9, num=4)},
        {"object": slope(-0.3), "count": slope(-0.5), "attribute": slope(0.05), "relation": slope(-0.9, num=4)},
        {"object": interval(-0.3), "count": interval(0.55), "attribute": interval(0.25), "relation": interval(0)},
    )
    assert sentences == [
        "Within a prompt's answers the reward has a standard deviation of 1 with facts, 40% of its variance explained by true "
        "and false claims; 0.5 without facts, 10% of its variance explained by true and false claims.",
        "Trained against this reward with facts, false claims will become rarer: object (slope -0.60, -0.70 to -0.50; 2.0 times as fast as "
        "without facts, 1.5 to 2.5).",
        "Trained against this reward with facts, false claims are not shown to change (the interval of the slope includes 0): "
        "count (slope 0.05, -0.05 to 0.15; without facts they become rarer).",
        "Trained against this reward with facts, false claims will become more frequent: attribute (slope 0.30, 0.20 to 0.40; without facts not "
        "shown to change).",
        "Not measured, with false claims in fewer than 20 prompts: relation (4).",
        "True claims about attributes will become fewer, too: watch coverage, or add it to the reward.",
        "Facts will speed up what happens without them, too: fewer false claims about objects.",
        "With facts, false claims about attributes and counts go more slowly or grow: check the facts, or train without them.",
        "The policy reads no facts: it gains only as far as it sees in the images what they say.",
    ]


def test_few_true_claims_say_nothing_about_coverage():
    for num, is_said in ((19, False), (20, True)):
        kind = slope(-0.6, true=-0.2) | {"num_prompts_true": num}
        sentences = sentences_of({"object": kind}, {"object": kind}, {"object": interval(0)})
        assert any("True claims about objects will become fewer" in sentence for sentence in sentences) == is_said


def test_sentences_say_whether_facts_matter():
    objects = {"object": slope(-0.6)}
    assert sentences_of(objects, {"object": slope(0.0)}, {"object": interval(-0.6)})[-2:] == [
        "Facts will change the policy: only with them do false claims go that are about objects.",
        "The policy reads no facts: it gains only as far as it sees in the images what they say.",
    ]
    assert sentences_of(objects, {"object": slope(-0.65)}, {"object": interval(0.05)})[-1] == (
        "Facts are not shown to change what the policy learns from this reward."
    )
    assert sentences_of({"object": slope(0.0)}, {"object": slope(0.5)}, {"object": interval(-0.5)})[-1] == (
        "With facts, false claims about objects grow less than without, or not at all."
    )
    sentences = sentences_of(objects, objects, {"object": interval(0)}, interval(-0.05))
    assert sentences[-1].startswith(
        "The slope over all kinds, -0.40, is not shown to be steeper than with another image's facts (difference -0.05, -0.15 to 0.05)"
    )
    assert "another image" not in sentences_of(objects, objects, {"object": interval(0)}, interval(-0.2))[-1]


def test_whether_facts_matter_is_not_measured_on_few_false_claims():
    no_false = {"false": None, "true": interval(0.1), "num_false": 0, "num_true": 40, "num_prompts": 0, "num_prompts_true": 20}
    for few in (slope(-0.6, num=19), no_false):
        sentences = sentences_of({"object": few}, {"object": few}, {"object": interval(-0.6)})
        assert sentences[-2].startswith("Not measured, with false claims in fewer than 20 prompts: object (")
        assert sentences[-1] == (
            "Whether facts change what the policy learns is not measured: no kind has false claims in enough prompts."
        )
    assert "falls" in forecast({"with facts": {"object": slope(-0.6, num=20)}})["object"]["trend"].values()


def test_kinds_without_false_claims_have_no_picture():
    nothing = {"object": {"false": None, "J": None}}
    both = {name: nothing for name in ("with facts", "without facts")}
    assert list(_policy_plots({"policy": {"slopes": both, "detection": both}})) == []
    some = both | {"with facts": {"object": {"false": interval(-0.6)}}}
    ((_, figure, text),) = _policy_plots({"policy": {"slopes": some, "detection": both}})
    assert text == "First slope of false claims by kind: with facts object -0.60."
    assert figure.axes[0].get_legend() is None  # one condition needs none


def test_claims_checked_against_facts_are_worth_nothing_without_them():
    """Without facts the reward is constant, so the policy stays where it is: facts do it all."""
    groups = [make_group("A cup.", "A dog.", facts=(Fact("object", "cup"), Fact("absent", "dog")), id_=str(i)) for i in range(20)]
    lexicon = load_lexicon()
    score = weighted_score(None, {"hallucination": -1.0}, lexicon)
    scores = {name: score(rows) for name, rows in fact_conditions(groups, True).items()}
    verdicts = [[verify_against_facts(extract_claims(a, lexicon), g.facts, lexicon) for a in g.answers] for g in groups]
    outlook = measure_outlook(groups, [], verdicts, scores)
    assert outlook["slopes"]["without facts"]["object"]["false"]["value"] == 0
    assert "Facts will change the policy: only with them do false claims go that are about objects." in outlook_sentences(outlook)


def test_the_answers_that_slopes_are_measured_on_are_counted():
    groups = [make_group("A cup.", "A dog.", id_=str(i)) for i in range(4)]
    lexicon = load_lexicon()
    truth = (Fact("object", "cup"), Fact("absent", "dog"))
    known = [verify_against_facts(extract_claims(answer, lexicon), truth, lexicon) for answer in groups[0].answers]
    outlook = measure_outlook(groups, [], [known, known, [None, known[1]], [None, None]], {"without facts": [[1.0, 0.0]] * 4})
    assert (outlook["num_answers"], outlook["num_measured"]) == (8, 4)
    assert outlook["slopes"]["without facts"]["object"]["num_prompts"] == 2
    assert outlook_sentences(outlook)[1] == (
        "Slopes are measured on 4 of 8 answers: the others have no known truth, or no second answer of known truth to their prompt."
    )


def test_sentences_say_what_was_not_measured():
    no_truth = outlook_sentences({"spread": SPREAD, "slopes": None, "forecast": None})
    assert "is not measured: it needs a truth that the reward does not read" in no_truth[-1]
    single = {name: {"within_std": None, "explained": None} for name in SPREAD}
    assert outlook_sentences({"spread": single, "slopes": {"with facts": {}}, "forecast": {}}) == [
        "What training will change is not measured: it needs several answers per prompt "
        "(`mmrlhf generate --num_generations 4 --temperature 1`)."
    ]


def test_answers_need_no_split_of_the_pairs(tmp_path):
    answers = write_lines(tmp_path / "answers.jsonl", [{"id": "a", "images": [], "prompt": "What?", "answer": "A cup."}])
    (group,) = _read_answers(make_config(tmp_path, answers=answers, dataset_train_split="test"))
    assert group.answers == ("A cup.",)


def test_sampled_answers_may_be_empty(tmp_path):
    row = {"id": "a", "images": [], "prompt": "What?"}
    path = write_lines(tmp_path / "answers.jsonl", [{**row, "answer": text} for text in ("", "A cup.", " \n")])
    (group,) = _read_answers(make_config(tmp_path, answers=path))
    assert group.answers == ("", "A cup.", "")
    missing = write_lines(tmp_path / "missing.jsonl", [row])
    with pytest.raises(InputError, match="row a has no `answer`"):
        _read_answers(make_config(tmp_path, answers=missing))


def test_answers_are_grouped_by_row():
    rows = [Example("a", (), PROMPT, "A cup."), Example("b", (), PROMPT, "A hat."), Example("a", (), PROMPT, "A dog.")]
    assert [group.answers for group in answer_groups(rows, "x")] == [("A cup.", "A dog."), ("A hat.",)]
    with pytest.raises(InputError, match="x: row c has no `answer`"):
        answer_groups([Example("c", (), PROMPT)], "x")
    with pytest.raises(InputError, match="two rows with id a have different prompts"):
        answer_groups([rows[0], Example("a", (), (Message("user", "Who?"),), "A cup.")], "x")


def test_other_facts_are_those_of_the_next_row_with_another_image():
    """Each row takes the next facts after it, around the end, of an image that is not its own."""
    rows = [
        make_group("x", facts=(Fact("object", fact),) if fact else (), image=image)
        for image, fact in zip("aabca", ("1", "", "", "4", "5"), strict=True)
    ]
    assert [facts[0].text for facts in other_facts(rows)] == ["4", "4", "4", "5", "4"]
    assert other_facts(rows[:1]) == [()] and other_facts([]) == []
    reads = 0

    class Counted(tuple):
        def __getitem__(self, index):
            nonlocal reads
            reads += 1
            return super().__getitem__(index)

        def __reversed__(self):
            return (self[index] for index in reversed(range(len(self))))

    many = Counted([make_group("x", facts=rows[0].facts if i == 0 else (), image=str(i)) for i in range(100)])
    assert other_facts(many)[50] == rows[0].facts
    assert reads <= 300  # a search from each row would read 5,000


def test_perturbed_pictures_have_another_rows_or_none():
    prompt = (Message("user", "Look: what?", (5,)),)
    rows = [Preference.from_pair(n, (ImageSource(f"{n}.png"),), prompt, "x", "y") for n in "abc"]
    blind_row = Preference.from_pair("d", (), PROMPT, "x", "y")
    indices, pictures = perturbed_pictures([blind_row, *rows])
    assert indices == [1, 2, 3]
    assert [row.images[0].path for row in pictures["another row's"]] == ["b.png", "c.png", "a.png"]
    assert all(row.images == () and row.prompt[0].image_positions == () for row in pictures["none"])
    assert perturbed_pictures([blind_row]) == ([], {})


# ---- the truth -----------------------------------------------------------------------------------


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_truth_of_facts_kept_apart(tmp_path):
    path = write_lines(
        tmp_path / "truth.jsonl",
        [{"image": "a.png", "facts": [{"kind": "object", "text": "red cup"}, {"kind": "absent", "text": "dog"}]}],
    )
    group = make_group("A cup and a dog.", facts=(Fact("object", "red cup"),), image="images/a.png")
    config = make_config(tmp_path, answers="x.jsonl", truth="facts", truth_file=path)
    ((verdicts,),) = read_verdicts(config, [group], load_lexicon(), True)
    assert {v.claim.subject: v.value for v in verdicts} == {"cup": "supported", "dog": "contradicted"}
    # The reward must not read the truth itself.
    own = make_group("A cup and a dog.", facts=(Fact("object", "red cup"), Fact("absent", "dog")), image="images/a.png")
    with pytest.raises(InputError, match="has the facts that the reward reads"):
        read_verdicts(config, [own], load_lexicon(), True)
    assert read_verdicts(config, [own], load_lexicon(), False)
    # Nothing is known of an image without facts: its answers do not count as free of false claims.
    assert read_verdicts(config, [group, make_group("A dog.", image="z.png")], load_lexicon(), True)[1] == [None]
    with pytest.raises(InputError, match="has no facts about the images of"):
        read_verdicts(config, [make_group("A cup.", image="z.png")], load_lexicon(), True)


def test_truth_of_clip_leaves_a_denial_of_only_a_part_unknown(tmp_path):
    """The model sees every object, but somebody else may look at the camera."""
    (tmp_path / "a.png").write_bytes(random_image(0).read())
    model = save_tiny_clip(tmp_path / "clip")
    (model / "calibration.json").write_text(json.dumps({"certainty": {"object": [0, 9]}, "unknown_between": [0.3, 0.7]}))
    group = make_group("There is a man. Nobody looks at the camera.", image=str(tmp_path / "a.png"))
    config = make_config(tmp_path, answers="x.jsonl", truth="clip", clip_model=str(model))
    ((verdicts,),) = read_verdicts(config, [group], load_lexicon(), True)
    values = {(v.claim.subject, v.claim.negated): v.value for v in verdicts if v.claim.kind == "object"}
    assert values["man", False] == "supported" and set(values.values()) == {"supported", "unknown"}


def test_truth_of_labels_is_joined_by_row_and_text(tmp_path):
    answers = write_lines(
        tmp_path / "answers.jsonl", [{"id": "a", "answer": "A cup and a dog."}, {"id": "b", "answer": "A hat.\n"}]
    )
    labels = tmp_path / "labels.jsonl"
    extract(answers, output_file=str(labels))
    rows = [json.loads(line) for line in labels.read_text().splitlines()]
    rows[0]["claims"][1]["verdict"] = "contradicted"
    rows[0]["claims"][0]["verdict"] = "supported"
    path = write_lines(labels, rows)
    config = make_config(tmp_path, answers=answers, truth="labels", truth_file=path)
    groups = [make_group("A cup and a dog.", "A mouse."), make_group("A hat.", id_="b")]
    verdicts = read_verdicts(config, groups, load_lexicon(), True)
    # No row is about the mouse, and in that of the hat nobody set a verdict.
    assert verdicts[0][1] is None and verdicts[1] == [None]
    assert [v.value for v in verdicts[0][0]] == ["supported", "contradicted"]
    with pytest.raises(InputError, match="labels none of the answers"):
        read_verdicts(config, [make_group("A mouse.")], load_lexicon(), True)
    with pytest.raises(InputError, match="is known to be true or false: set the `verdict` of each claim"):
        read_verdicts(config, groups[1:], load_lexicon(), True)


def labelled_cup(verdict, **fields):
    claim = {"kind": "object", "object": "cup", "span": [2, 5], "verdict": verdict}
    return {**fields, "text": "A cup.", "claims": [claim]}


def test_labels_with_an_id_are_not_another_images(tmp_path):
    rows = [labelled_cup("supported", id="a"), labelled_cup("contradicted", id="b"), {"id": "d", "text": "Hm.", "claims": []}]
    groups = [make_group("A cup.", id_=id_) for id_ in "abc"] + [make_group("Hm.", id_="d")]
    config = make_config(tmp_path, answers="x", truth="labels", truth_file=write_lines(tmp_path / "labels.jsonl", rows))
    values = [
        [v.value for v in answer] if answer is not None else None for (answer,) in read_verdicts(config, groups, None, True)
    ]
    assert values == [["supported"], ["contradicted"], None, []]  # an answer without claims needs no labels


def test_labels_without_an_id_are_of_every_answer_with_their_text(tmp_path):
    path = write_lines(tmp_path / "labels.jsonl", [labelled_cup("supported"), labelled_cup("supported")])
    config = make_config(tmp_path, answers="x", truth="labels", truth_file=path)
    assert [v.value for ((v,),) in read_verdicts(config, [make_group("A cup.", id_=i) for i in "ab"], None, True)] == [
        "supported"
    ] * 2
    for fields in ({}, {"id": "a"}):
        rows = [labelled_cup(verdict, **fields) for verdict in ("supported", "contradicted")]
        write_lines(tmp_path / "labels.jsonl", rows)
        with pytest.raises(
            InputError, match="line 2: `text` has other verdicts in an earlier row with the same `id`, or without"
        ):
            read_verdicts(config, [make_group("A cup.", id_="a")], None, True)


@pytest.mark.parametrize("fields", [{}, {"id": "a"}])
@pytest.mark.parametrize("verdicts", [("supported", "unknown"), ("unknown", "supported")])
def test_one_label_of_equal_answers_is_enough(tmp_path, fields, verdicts):
    """Samples of a prompt may coincide, and `mmrlhf claims` writes a row for each."""
    path = write_lines(tmp_path / "labels.jsonl", [labelled_cup(verdict, **fields) for verdict in verdicts])
    config = make_config(tmp_path, answers="x", truth="labels", truth_file=path)
    (((verdict,),),) = read_verdicts(config, [make_group("A cup.", id_="a")], None, True)
    assert verdict.value == "supported"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"verdict": "yes"}, r"line 1: `verdict` of a claim must be supported, contradicted, unknown, not 'yes'"),
        ({"kind": "smell"}, r"line 1: `kind` of a claim must be object"),
        ({"span": [3, 99]}, r"line 1: `span` of a claim must be its start and end in `text`, not \[3, 99\]"),
        ({"span": None}, r"line 1: `span` of a claim must be"),
    ],
)
def test_bad_labels_are_refused_with_their_place(tmp_path, change, message):
    claim = {"kind": "object", "object": "cup", "span": [2, 5], "verdict": "supported"} | change
    path = write_lines(tmp_path / "labels.jsonl", [{"id": "a", "text": "A cup.", "claims": [claim]}])
    config = make_config(tmp_path, answers="x.jsonl", truth="labels", truth_file=path)
    with pytest.raises(InputError, match=message):
        read_verdicts(config, [make_group("A cup.")], load_lexicon(), True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truth": "facts"}, "truth facts is about sampled answers: give --answers"),
        ({"answers": "x", "truth": "facts"}, "truth facts needs a file: give --truth_file"),
        ({"answers": "x", "truth": "labels"}, r"truth labels needs a file: give --truth_file \(what `mmrlhf claims` wrote"),
        ({"answers": "x", "truth_file": "f"}, "truth_file f is not read with truth none"),
        ({"answers": "x", "truth": "clip"}, "truth clip needs an open_clip model"),
    ],
)
def test_settings_of_the_truth_that_do_not_fit_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        check_truth_settings(make_config(tmp_path, **settings))


# ---- the command ---------------------------------------------------------------------------------


def test_reward_eval_measures_slopes_and_j_on_the_policys_answers(reward_dir, pairs, examples, tmp_path, capsys):
    rows = []
    for example in examples[:6]:
        (tmp_path / f"{example.id}.png").write_bytes(example.images[0].read())
        facts = [{"kind": f.kind, "text": f.text} for f in example.facts]
        row = {"id": example.id, "images": [f"{example.id}.png"], "prompt": example.prompt[0].content, "facts": facts}
        rows += [{**row, "answer": "There is a cup and a dog."}, {**row, "answer": "There is a cup, a cat and a tree."}]
    answers = write_lines(tmp_path / "answers.jsonl", [*rows, {**rows[0], "answer": ""}])
    truth = write_lines(
        tmp_path / "truth.jsonl",
        [{"id": row["id"], "facts": [*row["facts"], {"kind": "object", "text": "cup"}, *({"kind": "absent", "text": w} for w in ("dog", "cat", "tree"))]} for row in rows[::2]],
    )  # fmt: skip
    config = make_config(
        tmp_path, reward_model_path=str(reward_dir), answers=answers, reward_terms="fact_rm=1, hallucination=-1", truth="facts",
        truth_file=truth, probes=2, batch_size=4,
    )  # fmt: skip
    policy = reward_eval(config, pairs[:6])["policy"]
    assert (policy["num_prompts"], policy["num_answers"]) == (6, 13)
    assert set(policy["detection"]) == {"with facts", "without facts", "with another image's facts"}
    assert policy["detection"]["with facts"]["object"]["num_false"] == 18
    assert policy["detection"]["with facts"]["object"]["num_true"] == 12
    assert policy["slopes"]["with facts"]["object"]["num_false"] == 18
    assert policy["slopes"]["with facts"]["object"]["false"]["low"] <= policy["slopes"]["with facts"]["object"]["false"]["value"]
    assert policy["spread"]["with facts"]["within_std"] > 0 and policy["contradicted"]["object"]["n"] == 30
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(result["picture_curve"]) == {"own", "another row's", "none"}
    assert result["picture_gain"]["value"] == pytest.approx(
        result["picture_curve"]["own"]["value"] - result["picture_curve"]["another row's"]["value"]
    )
    page = ParsedPage((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.ids_of_sections() == ["plots", "policy", "lengths", "tables"]
    assert "Will facts change my policy?" in page.text
    output = capsys.readouterr().out
    assert "fact_rm=1, hallucination=-1 on 13 answers of the policy (6 prompts)" in output
    assert "without the picture" in output and "Within a prompt's answers the reward has a standard deviation" in output
