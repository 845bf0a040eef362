"""`mmrlhf calibrate clip|vlm`: what a verifier's numbers are worth, fitted on claims that facts judge.

Claims are those of the data's answers, or those that its facts state with a false one beside each. Facts say which are true; what they do not
know is not used, a claim on the same pictures counts once, and a negated one is asked without its negation. A share of the pictures is kept
apart: the calibration is fitted on the others, and what is said of it is measured on those.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from mmrlhf.calibration import Bin, auroc, binned, draw_reliability, expected_calibration_error, share
from mmrlhf.claims import Lexicon, claims, lexicon
from mmrlhf.config import CalibrateClipConfig, CalibrateConfig, CalibrateVLMConfig
from mmrlhf.facts import read_facts
from mmrlhf.files import refuse_output_file, whole
from mmrlhf.formats import holds_preferences, read_examples, read_preferences
from mmrlhf.lines import plain
from mmrlhf.loading import load
from mmrlhf.records import Claim, Example, Fact, InputError, Preference
from mmrlhf.roles import Adapters, Role
from mmrlhf.run import progress
from mmrlhf.verify import Said, by_facts
from mmrlhf.verify.asking import Asking
from mmrlhf.verify.clip import load_clip
from mmrlhf.verify.facts import stated
from mmrlhf.verify.sentences import Foils, foils
from mmrlhf.verify.verifier import KINDS, Certainty, fitted, positive, save

Rows = Sequence[Example | Preference]
Measure = Callable[[Sequence[Said]], Sequence[Sequence[float | None]]]
"""A number for each claim of each answer, None where the verifier has none."""


@dataclass
class Pictured:
    """What rows say of the same pictures, put together. `row` is the first of them, `keys` the pictures' contents."""

    row: int
    keys: tuple[str, ...]
    facts: dict[Fact, None] = field(default_factory=dict)
    answers: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    """A claim without negation, whether it is true, and what the verifier measured."""

    claim: Claim
    true: bool
    x: float | None = None


Told = tuple[Pictured, list[Label]]


def calibrate(config: CalibrateConfig, rows: Rows | None = None) -> dict[str, Any]:
    """Label, measure, fit, and write the calibration with its reliability diagram; returns what the file says beside it.

    Raises InputError when the data gives too few labels, before a model is loaded, or the verifier can tell true from false claims of no kind.
    """
    out = Path(config.output_file)
    refuse_output_file(out)
    if out.suffix != ".json":
        raise InputError(f"output_file {out} must end in .json: a picture of the same name comes beside it")
    words = lexicon(config.lexicon_file)
    if rows is None:
        rows = _read(config)
    rows = rows[: config.limit] if config.limit else rows

    # 1. Claims that facts judge, those of some pictures kept apart
    told = labelled(pictured(rows, config.dataset_name), words, config.claims_from, config.seed, config.dataset_name)
    parts = split(told, config.held_out, config.seed)
    enough([c for _, labels in parts[0] for c in labels], config)

    # 2. What the verifier measures
    measure, about = _verifier(config, words)
    with progress(sum(map(len, parts)), "calibrate") as steps:
        ours, apart = (_numbered(part, rows, measure, config.batch_size, steps.advance) for part in parts)

    # 3. What that is worth: fitted on the one part, measured on the other
    certainty, left_out = fit(ours, config.min_labels)
    if not certainty.by_kind:
        raise InputError(f"nothing can be calibrated: {'; '.join(f'{kind} ({why})' for kind, why in left_out.items())}")
    on = [{"pictures": len(part), "claims": counted(labels)} for part, labels in zip(parts, (ours, apart), strict=True)]
    found = {
        **about, "data": config.dataset_name, "claims_from": config.claims_from, "fitted_on": on[0], "left_out": left_out,
        "measured_on": on[1], "measured": measured(apart, certainty, isinstance(config, CalibrateVLMConfig)),
    }  # fmt: skip
    show(found)
    drawn = draw(found["measured"], out.with_suffix(".png"))
    save(certainty, out, **plain(found))
    print(
        f"{out}: fitted on {len(ours)} claims about {len(parts[0])} pictures; the table is of {len(apart)} about {len(parts[1])} others"
        + (f", and so is {drawn}" if drawn else "")
    )
    return found


def _read(config: CalibrateConfig) -> Rows:
    facts = read_facts(config.facts_file) if config.facts_file else None
    where = (config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    return read_preferences(*where) if holds_preferences(*where[:2]) else read_examples(*where)


def _verifier(config: CalibrateConfig, words: Lexicon) -> tuple[Measure, dict[str, Any]]:
    """How claims are measured, and what the file says of that: an open_clip model's margins mean nothing without what they were held against."""
    if isinstance(config, CalibrateClipConfig):
        clip = load_clip(config.clip_model, words, config.clip_calibration, "cuda" if torch.cuda.is_available() else "cpu")
        nouns, groups = clip.against.nouns, [sorted(group) for group in clip.against.groups]
        about = {"verifier": "clip", "model": clip.name, "template": clip.template, "nouns": nouns, "groups": groups}
        return lambda said: [[x for x, _ in row] for row in clip.margins(said)], about
    assert isinstance(config, CalibrateVLMConfig)
    vlm = load(config.model_name_or_path, config.dtype, engine=config)
    asking = Asking(Role(Adapters(vlm), None), words, max_length=config.max_length)
    return asking.log_odds, {"verifier": "vlm", "model": vlm.name}


def _numbered(part: Sequence[Told], rows: Rows, measure: Measure, at_a_time: int, advance: Callable[[int], None]) -> list[Label]:
    found = []
    for start in range(0, len(part), at_a_time):
        some = part[start : start + at_a_time]
        numbers = measure([Said(rows[p.row].images, (), tuple(c.claim for c in labels)) for p, labels in some])
        for (_, labels), row in zip(some, numbers, strict=True):
            found += [replace(c, x=x) for c, x in zip(labels, row, strict=True)]
        advance(len(some))
    return found


# ---- labels ------------------------------------------------------------------------------------------------------------


def pictured(rows: Rows, name: str) -> list[Pictured]:
    """Facts and answers by the pictures they are about, in the rows' order. Raises InputError where all rows lack pictures, or facts."""
    found: dict[tuple[str, ...], Pictured] = {}
    for number, row in enumerate(rows):
        if keys := tuple(image.key for image in row.images):
            here = found.setdefault(keys, Pictured(number, keys))
            here.facts.update(dict.fromkeys(row.facts))
            here.answers.update(dict.fromkeys(row.answers if isinstance(row, Preference) else [row.answer] if row.answer else []))
    if not found:
        raise InputError(
            f"{name} has no pictures: a verifier is calibrated on claims about pictures, so give rows that have some"
        )
    if not any(p.facts for p in found.values()):
        raise InputError(f"{name} has no facts, which say what is true: add `facts` to its rows, or give --facts_file")
    return list(found.values())


def labelled(found: Sequence[Pictured], words: Lexicon, claims_from: str, seed: int, name: str) -> list[Told]:
    """The pictures of which something is claimed that their facts judge, with those claims. Raises InputError where there are none."""
    if claims_from == "answers" and not any(p.answers for p in found):
        raise InputError(
            f"{name} has no answers to read claims out of: give rows with `chosen` and `rejected`, `answer` or `completion`, or "
            "--claims_from facts"
        )
    told = []
    with progress(len(found), "claims") as steps:
        for p in found:
            facts = tuple(p.facts)
            if claims_from == "answers":
                labels = judged((c for text in p.answers for c in claims(text, words)), facts, words)
            else:
                labels = beside(judged((c for fact in facts for c in stated(fact, words)), facts, words), p, words, seed)
            told += [(p, labels)] if labels else []
            steps.advance()
    if not told:
        raise InputError(
            f"{name}: its facts judge nothing that its {claims_from} claim: give facts of more things, or other {claims_from}"
        )
    return told


def judged(made: Iterable[Claim], facts: tuple[Fact, ...], words: Lexicon) -> list[Label]:
    """Distinct claims in their positive form with what facts say of them, where they say something."""
    asked = list(dict.fromkeys(replace(positive(claim)[0], hedged=False) for claim in made))
    return [Label(v.claim, v.value == "supported") for v in by_facts(asked, facts, words) if v.value != "unknown"]


def beside(known: Sequence[Label], p: Pictured, words: Lexicon, seed: int) -> list[Label]:
    """Each true claim for which facts know a contrary one, with one of those, so that as many are true as false."""
    usual = Foils.of(words)
    against = replace(usual, nouns=(*(c.claim.subject for c in known if c.claim.kind == "object" and not c.true), *usual.nouns))
    found: dict[Claim, bool] = {}
    for claim in (c.claim for c in known if c.true):
        contrary = judged(foils(claim, against, words), tuple(p.facts), words)
        false = [c.claim for c in contrary if not c.true and c.claim not in found]
        if false:
            draw = int(_digest(f"{seed} {p.keys} {claim}"), 16)
            found |= {claim: True, false[draw % len(false)]: False}
    return [Label(claim, true) for claim, true in found.items()]


def split(told: Sequence[Told], held_out: float, seed: int) -> tuple[list[Told], list[Told]]:
    """Those to fit on, and those about a share of the pictures, one at least, that are kept apart: by their content, so that they are the same in
    another order and under other names. What is about pictures of both sides is in neither."""
    order = sorted({key for p, _ in told for key in p.keys}, key=lambda key: _digest(f"{seed} {key}"))
    apart = set(order[: max(1, round(held_out * len(order)))])
    return [t for t in told if apart.isdisjoint(t[0].keys)], [t for t in told if apart.issuperset(t[0].keys)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def counted(labels: Sequence[Label]) -> dict[str, dict[str, int]]:
    """True and false claims by kind."""
    values = {kind: [c.true for c in labels if c.claim.kind == kind] for kind in KINDS}
    return {kind: {"true": mine.count(True), "false": mine.count(False)} for kind, mine in values.items() if mine}


def enough(labels: Sequence[Label], config: CalibrateConfig) -> None:
    """Raises InputError where no kind has labels enough to be fitted."""
    counts = counted(labels)
    if not any(min(n.values()) >= config.min_labels for n in counts.values()):
        there = ", ".join(f"{kind} {n['true']} true and {n['false']} false" for kind, n in counts.items()) or "none"
        other = ", or --claims_from facts" if config.claims_from == "answers" else ""
        raise InputError(
            f"{config.dataset_name} gives too few claims that facts judge ({there}, pictures kept apart not counted): {config.min_labels} "
            f"true and as many false ones of a kind are needed, so give more rows{other}"
        )


# ---- fitting and measuring ---------------------------------------------------------------------------------------------


def fit(labels: Sequence[Label], min_labels: int) -> tuple[Certainty, dict[str, str]]:
    """A certainty of the kinds that have labels enough and whose numbers tell true from false claims, and why the others are left out."""
    known, left_out = [c for c in labels if c.x is not None], {}
    for kind in KINDS:
        x, true = _numbers([c for c in known if c.claim.kind == kind])
        area, low, high = auroc(x, true)
        if min(true.sum(), (~true).sum()) < min_labels:
            left_out[kind] = (
                f"{true.sum()} true and {(~true).sum()} false claims that it measures, {min_labels} of each are needed"
            )
        elif low <= 0.5:
            left_out[kind] = f"its numbers do not tell true from false claims, AUROC {area:.2f} ({low:.2f}-{high:.2f})"
    return fitted((c.claim.kind, c.x, c.true) for c in known if c.claim.kind not in left_out and c.x is not None), left_out


def _numbers(labels: Sequence[Label]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([c.x for c in labels], dtype=float), np.array([c.true for c in labels], dtype=bool)


def measured(labels: Sequence[Label], certainty: Certainty, as_said: bool) -> dict[str, Any]:
    """By kind: how many are true and false, AUROC, the share left unknown, how often a verdict is right, and the calibration error with its bins;
    with `as_said` also that of sigmoid(x), a model taken at its word."""
    found: dict[str, Any] = {}
    for kind, counts in counted(labels).items():
        mine = [c for c in labels if c.claim.kind == kind]
        known = [c for c in mine if c.x is not None]
        x, true = _numbers(known)
        verdicts = [(certainty.verdict(c.claim, c.x, "").value, c.true) for c in known if c.x is not None]
        given = [(value == "supported") == is_true for value, is_true in verdicts if value != "unknown"]
        unknown = np.arange(len(mine)) < len(mine) - len(given)
        row: dict[str, Any] = {**counts, "auroc": dict(zip(("value", "low", "high"), auroc(x, true), strict=True))}
        row |= {"unknown": share(unknown), "right": share(np.array(given, dtype=bool))}
        if as_said and known:
            row["ece_as_said"] = expected_calibration_error(binned(expit(x), true))
        if kind in certainty.by_kind and known:
            bins = binned(np.array([certainty.probability(kind, v) for v in x]), true)
            row |= {"ece": expected_calibration_error(bins), "bins": [asdict(b) for b in bins]}
        found[kind] = row
    return found


# ---- showing -----------------------------------------------------------------------------------------------------------


def show(found: dict[str, Any]) -> None:
    """The table on the screen, of pictures that were kept apart, and what was left out."""
    said = any("ece_as_said" in row for row in found["measured"].values())
    table = Table(
        title=f"{found['model']} on pictures kept apart, 95% intervals", title_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    heads = [
        "claims",
        "true",
        "false",
        "AUROC",
        "unknown\n%",
        "right of\nthe rest, %",
        *["error\nas said"] * said,
        "error\ncalibrated",
    ]
    for name in heads:
        table.add_column(name, justify="left" if name == "claims" else "right", no_wrap=True)
    for kind, row in found["measured"].items():
        table.add_row(
            kind, str(row["true"]), str(row["false"]), _shown(row["auroc"], 1), f"{100 * row['unknown']['value']:.0f}",
            _shown(row["right"], 100), *[_error(row, "ece_as_said")] * said, _error(row, "ece"),
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    for kind, why in found["left_out"].items():
        console.print(f"{kind}: left out of the calibration, so that it stays unknown: {why}", soft_wrap=True)


def _shown(found: dict[str, Any], scale: int) -> str:
    value, low, high = (found[name] for name in ("value", "low", "high"))
    if value is None or not np.isfinite(value):
        return "-"
    digits = 2 if scale == 1 else 0
    return f"{scale * value:.{digits}f} ({scale * low:.{digits}f}-{scale * high:.{digits}f})"


def _error(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.3f}" if name in row else "-"


def draw(table: dict[str, Any], path: Path) -> Path | None:
    """A reliability diagram for each kind that is calibrated; None where none was measured."""
    from matplotlib.figure import Figure

    kinds = [kind for kind, row in table.items() if "bins" in row]
    if not kinds:
        return None
    figure = Figure(figsize=(3.6 * len(kinds), 3.6), layout="constrained")
    for kind, axes in zip(kinds, np.atleast_1d(figure.subplots(1, len(kinds))), strict=True):
        draw_reliability(axes, [Bin(**b) for b in table[kind]["bins"]])
        axes.set(xlabel="how likely it says", ylabel="how often true", title=f"{kind}, error {table[kind]['ece']:.3f}")
    with whole(path) as place:
        figure.savefig(place, format="png", dpi=140)
    return path
