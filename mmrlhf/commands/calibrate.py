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

from mmrlhf.claims import Lexicon, extract_claims, load_lexicon
from mmrlhf.config import CalibrateClipConfig, CalibrateConfig, CalibrateVLMConfig
from mmrlhf.datasets import has_preferences, read_examples, read_preferences
from mmrlhf.facts import read_facts
from mmrlhf.files.atomic import atomic, refuse_output_file
from mmrlhf.files.jsonl import to_jsonable
from mmrlhf.metrics.calibration import Bin, auroc, draw_reliability, expected_calibration_error, proportion, reliability_bins
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load
from mmrlhf.records import Claim, Example, Fact, InputError, Preference
from mmrlhf.report.progress import progress
from mmrlhf.verifiers import AnswerClaims, verify_against_facts
from mmrlhf.verifiers.base import CLAIM_KINDS, PlattScaling, fit_platt_scaling, save_calibration, strip_negation
from mmrlhf.verifiers.clip import load_clip
from mmrlhf.verifiers.facts import claims_of_fact
from mmrlhf.verifiers.verbalize import DistractorPool, distractors
from mmrlhf.verifiers.vlm import VLMVerifier

Rows = Sequence[Example | Preference]
ScoreFn = Callable[[Sequence[AnswerClaims]], Sequence[Sequence[float | None]]]
"""A number for each claim of each answer, None where the verifier has none."""


@dataclass
class ImageGroup:
    """What rows say of the same pictures, put together. `row` is the first of them, `keys` the pictures' contents."""

    first_row: int
    keys: tuple[str, ...]
    facts: dict[Fact, None] = field(default_factory=dict)
    answers: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledClaim:
    """A claim without negation, whether it is true, and what the verifier measured."""

    claim: Claim
    is_true: bool
    score: float | None = None


LabelledImage = tuple[ImageGroup, list[LabelledClaim]]


def calibrate(config: CalibrateConfig, rows: Rows | None = None) -> dict[str, Any]:
    """Label, measure, fit, and write the calibration with its reliability diagram; returns what the file says beside it.

    Raises InputError when the data gives too few labels, before a model is loaded, or the verifier can tell true from false claims of no kind.
    """
    out = Path(config.output_file)
    refuse_output_file(out)
    if out.suffix != ".json":
        raise InputError(f"output_file {out} must end in .json: a picture of the same name comes beside it")
    lexicon = load_lexicon(config.lexicon_file)
    if rows is None:
        rows = _load_rows(config)
    rows = rows[: config.limit] if config.limit else rows

    # 1. Claims that facts judge, those of some pictures kept apart
    labelled_images = label_claims(
        group_by_image(rows, config.dataset_name), lexicon, config.claim_source, config.seed, config.dataset_name
    )
    splits = train_test_split(labelled_images, config.held_out, config.seed)
    require_labels([label for _, labels in splits[0] for label in labels], config)

    # 2. What the verifier measures
    score_fn, verifier_info = _build_verifier(config, lexicon)
    with progress(sum(map(len, splits)), "calibrate") as progress_bar:
        train, test = (_score_labels(images, rows, score_fn, config.batch_size, progress_bar.advance) for images in splits)

    # 3. What that is worth: fitted on the one part, measured on the other
    calibration, left_out = fit_platt(train, config.min_labels)
    if not calibration.coefficients:
        raise InputError(f"nothing can be calibrated: {'; '.join(f'{kind} ({reason})' for kind, reason in left_out.items())}")
    split_sizes = [
        {"pictures": len(images), "claims": count_labels(labels)} for images, labels in zip(splits, (train, test), strict=True)
    ]
    report = {
        **verifier_info, "data": config.dataset_name, "claim_source": config.claim_source, "fitted_on": split_sizes[0], "left_out": left_out,
        "measured_on": split_sizes[1], "measured": evaluate(test, calibration, isinstance(config, CalibrateVLMConfig)),
    }  # fmt: skip
    print_table(report)
    plot_path = plot_reliability(report["measured"], out.with_suffix(".png"))
    save_calibration(calibration, out, **to_jsonable(report))
    print(
        f"{out}: fitted on {len(train)} claims about {len(splits[0])} pictures; the table is of {len(test)} about {len(splits[1])} others"
        + (f", and so is {plot_path}" if plot_path else "")
    )
    return report


def _load_rows(config: CalibrateConfig) -> Rows:
    facts = read_facts(config.facts_file) if config.facts_file else None
    dataset_args = (config.dataset_name, config.dataset_train_split, config.image_folder, facts)
    return read_preferences(*dataset_args) if has_preferences(*dataset_args[:2]) else read_examples(*dataset_args)


def _build_verifier(config: CalibrateConfig, lexicon: Lexicon) -> tuple[ScoreFn, dict[str, Any]]:
    """How claims are measured, and what the file says of that: an open_clip model's margins mean nothing without what they were held against."""
    if isinstance(config, CalibrateClipConfig):
        clip_verifier = load_clip(
            config.clip_model, lexicon, config.clip_calibration, "cuda" if torch.cuda.is_available() else "cpu"
        )
        nouns, groups = clip_verifier.distractor_pool.nouns, [sorted(group) for group in clip_verifier.distractor_pool.groups]
        verifier_info = {
            "verifier": "clip",
            "model": clip_verifier.name,
            "template": clip_verifier.template,
            "nouns": nouns,
            "groups": groups,
        }
        return lambda answers: [[margin for margin, _ in row] for row in clip_verifier.margins(answers)], verifier_info
    assert isinstance(config, CalibrateVLMConfig)
    vlm = load(config.model_name_or_path, config.dtype, engine=config)
    vlm_verifier = VLMVerifier(Role(Adapters(vlm), None), lexicon, max_length=config.max_length)
    return vlm_verifier.log_odds, {"verifier": "vlm", "model": vlm.name}


def _score_labels(
    images: Sequence[LabelledImage], rows: Rows, score_fn: ScoreFn, batch_size: int, advance: Callable[[int], None]
) -> list[LabelledClaim]:
    scored = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        scores = score_fn(
            [AnswerClaims(rows[group.first_row].images, (), tuple(label.claim for label in labels)) for group, labels in batch]
        )
        for (_, labels), image_scores in zip(batch, scores, strict=True):
            scored += [replace(label, score=score) for label, score in zip(labels, image_scores, strict=True)]
        advance(len(batch))
    return scored


# ---- labels ------------------------------------------------------------------------------------------------------------


def group_by_image(rows: Rows, name: str) -> list[ImageGroup]:
    """Facts and answers by the pictures they are about, in the rows' order. Raises InputError where all rows lack pictures, or facts."""
    groups: dict[tuple[str, ...], ImageGroup] = {}
    for row_index, row in enumerate(rows):
        if keys := tuple(image.key for image in row.images):
            group = groups.setdefault(keys, ImageGroup(row_index, keys))
            group.facts.update(dict.fromkeys(row.facts))
            group.answers.update(
                dict.fromkeys(row.answers if isinstance(row, Preference) else [row.answer] if row.answer else [])
            )
    if not groups:
        raise InputError(
            f"{name} has no pictures: a verifier is calibrated on claims about pictures, so give rows that have some"
        )
    if not any(image_group.facts for image_group in groups.values()):
        raise InputError(f"{name} has no facts, which say what is true: add `facts` to its rows, or give --facts_file")
    return list(groups.values())


def label_claims(groups: Sequence[ImageGroup], lexicon: Lexicon, claim_source: str, seed: int, name: str) -> list[LabelledImage]:
    """The pictures of which something is claimed that their facts judge, with those claims. Raises InputError where there are none."""
    if claim_source == "answers" and not any(group.answers for group in groups):
        raise InputError(
            f"{name} has no answers to read claims out of: give rows with `chosen` and `rejected`, `answer` or `completion`, or "
            "--claim_source facts"
        )
    labelled_images = []
    with progress(len(groups), "claims") as progress_bar:
        for group in groups:
            facts = tuple(group.facts)
            if claim_source == "answers":
                labels = label_with_facts(
                    (claim for text in group.answers for claim in extract_claims(text, lexicon)), facts, lexicon
                )
            else:
                labels = negatives_for(
                    label_with_facts((claim for fact in facts for claim in claims_of_fact(fact, lexicon)), facts, lexicon),
                    group,
                    lexicon,
                    seed,
                )
            labelled_images += [(group, labels)] if labels else []
            progress_bar.advance()
    if not labelled_images:
        raise InputError(
            f"{name}: its facts judge nothing that its {claim_source} claim: give facts of more things, or other {claim_source}"
        )
    return labelled_images


def label_with_facts(claims: Iterable[Claim], facts: tuple[Fact, ...], lexicon: Lexicon) -> list[LabelledClaim]:
    """Distinct claims in their positive form with what facts say of them, where they say something."""
    positive_claims = list(dict.fromkeys(replace(strip_negation(claim)[0], hedged=False) for claim in claims))
    return [
        LabelledClaim(verdict.claim, verdict.value == "supported")
        for verdict in verify_against_facts(positive_claims, facts, lexicon)
        if verdict.value != "unknown"
    ]


def negatives_for(labels: Sequence[LabelledClaim], group: ImageGroup, lexicon: Lexicon, seed: int) -> list[LabelledClaim]:
    """Each true claim for which facts know a contrary one, with one of those, so that as many are true as false."""
    default_pool = DistractorPool.from_lexicon(lexicon)
    pool = replace(
        default_pool,
        nouns=(
            *(label.claim.subject for label in labels if label.claim.kind == "object" and not label.is_true),
            *default_pool.nouns,
        ),
    )
    is_true_by_claim: dict[Claim, bool] = {}
    for claim in (label.claim for label in labels if label.is_true):
        candidates = label_with_facts(distractors(claim, pool, lexicon), tuple(group.facts), lexicon)
        false_claims = [label.claim for label in candidates if not label.is_true and label.claim not in is_true_by_claim]
        if false_claims:
            random_index = int(_digest(f"{seed} {group.keys} {claim}"), 16)
            is_true_by_claim |= {claim: True, false_claims[random_index % len(false_claims)]: False}
    return [LabelledClaim(claim, is_true) for claim, is_true in is_true_by_claim.items()]


def train_test_split(
    labelled_images: Sequence[LabelledImage], held_out: float, seed: int
) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Those to fit on, and those about a share of the pictures, one at least, that are kept apart: by their content, so that they are the same in
    another order and under other names. What is about pictures of both sides is in neither."""
    order = sorted({key for group, _ in labelled_images for key in group.keys}, key=lambda key: _digest(f"{seed} {key}"))
    test_keys = set(order[: max(1, round(held_out * len(order)))])
    return [labelled for labelled in labelled_images if test_keys.isdisjoint(labelled[0].keys)], [
        labelled for labelled in labelled_images if test_keys.issuperset(labelled[0].keys)
    ]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def count_labels(labels: Sequence[LabelledClaim]) -> dict[str, dict[str, int]]:
    """True and false claims by kind."""
    values = {kind: [label.is_true for label in labels if label.claim.kind == kind] for kind in CLAIM_KINDS}
    return {kind: {"true": outcomes.count(True), "false": outcomes.count(False)} for kind, outcomes in values.items() if outcomes}


def require_labels(labels: Sequence[LabelledClaim], config: CalibrateConfig) -> None:
    """Raises InputError where no kind has labels enough to be fitted."""
    counts = count_labels(labels)
    if not any(min(count.values()) >= config.min_labels for count in counts.values()):
        available = (
            ", ".join(f"{kind} {count['true']} true and {count['false']} false" for kind, count in counts.items()) or "none"
        )
        hint = ", or --claim_source facts" if config.claim_source == "answers" else ""
        raise InputError(
            f"{config.dataset_name} gives too few claims that facts judge ({available}, pictures kept apart not counted): {config.min_labels} "
            f"true and as many false ones of a kind are needed, so give more rows{hint}"
        )


# ---- fitting and measuring ---------------------------------------------------------------------------------------------


def fit_platt(labels: Sequence[LabelledClaim], min_labels: int) -> tuple[PlattScaling, dict[str, str]]:
    """A certainty of the kinds that have labels enough and whose numbers tell true from false claims, and why the others are left out."""
    scored, left_out = [label for label in labels if label.score is not None], {}
    for kind in CLAIM_KINDS:
        scores, is_true = _to_arrays([label for label in scored if label.claim.kind == kind])
        auc, low, high = auroc(scores, is_true)
        if min(is_true.sum(), (~is_true).sum()) < min_labels:
            left_out[kind] = (
                f"{is_true.sum()} true and {(~is_true).sum()} false claims that it measures, {min_labels} of each are needed"
            )
        elif low <= 0.5:
            left_out[kind] = f"its numbers do not tell true from false claims, AUROC {auc:.2f} ({low:.2f}-{high:.2f})"
    return fit_platt_scaling(
        (label.claim.kind, label.score, label.is_true)
        for label in scored
        if label.claim.kind not in left_out and label.score is not None
    ), left_out


def _to_arrays(labels: Sequence[LabelledClaim]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([label.score for label in labels], dtype=float), np.array([label.is_true for label in labels], dtype=bool)


def evaluate(labels: Sequence[LabelledClaim], calibration: PlattScaling, include_uncalibrated: bool) -> dict[str, Any]:
    """By kind: how many are true and false, AUROC, the share left unknown, how often a verdict is right, and the calibration error with its bins;
    with `as_said` also that of sigmoid(x), a model taken at its word."""
    metrics_by_kind: dict[str, Any] = {}
    for kind, counts in count_labels(labels).items():
        kind_labels = [label for label in labels if label.claim.kind == kind]
        scored = [label for label in kind_labels if label.score is not None]
        scores, is_true = _to_arrays(scored)
        verdicts = [
            (calibration.verdict(label.claim, label.score, "").value, label.is_true)
            for label in scored
            if label.score is not None
        ]
        is_right = [(value == "supported") == truth for value, truth in verdicts if value != "unknown"]
        is_unknown = np.arange(len(kind_labels)) < len(kind_labels) - len(is_right)
        metrics: dict[str, Any] = {**counts, "auroc": dict(zip(("value", "low", "high"), auroc(scores, is_true), strict=True))}
        metrics |= {"unknown": proportion(is_unknown), "right": proportion(np.array(is_right, dtype=bool))}
        if include_uncalibrated and scored:
            metrics["ece_as_said"] = expected_calibration_error(reliability_bins(expit(scores), is_true))
        if kind in calibration.coefficients and scored:
            bins = reliability_bins(np.array([calibration.probability(kind, score) for score in scores]), is_true)
            metrics |= {"ece": expected_calibration_error(bins), "bins": [asdict(bin_) for bin_ in bins]}
        metrics_by_kind[kind] = metrics
    return metrics_by_kind


# ---- showing -----------------------------------------------------------------------------------------------------------


def print_table(report: dict[str, Any]) -> None:
    """The table on the screen, of pictures that were kept apart, and what was left out."""
    has_uncalibrated = any("ece_as_said" in metrics for metrics in report["measured"].values())
    table = Table(
        title=f"{report['model']} on pictures kept apart, 95% intervals", title_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    headers = [
        "claims",
        "true",
        "false",
        "AUROC",
        "unknown\n%",
        "right of\nthe rest, %",
        *["error\nas said"] * has_uncalibrated,
        "error\ncalibrated",
    ]
    for name in headers:
        table.add_column(name, justify="left" if name == "claims" else "right", no_wrap=True)
    for kind, metrics in report["measured"].items():
        table.add_row(
            kind, str(metrics["true"]), str(metrics["false"]), _format_interval(metrics["auroc"], 1), f"{100 * metrics['unknown']['value']:.0f}",
            _format_interval(metrics["right"], 100), *[_format_error(metrics, "ece_as_said")] * has_uncalibrated, _format_error(metrics, "ece"),
        )  # fmt: skip
    console = Console(highlight=False)
    console.print(table)
    for kind, reason in report["left_out"].items():
        console.print(f"{kind}: left out of the calibration, so that it stays unknown: {reason}", soft_wrap=True)


def _format_interval(metric: dict[str, Any], scale: int) -> str:
    value, low, high = (metric[name] for name in ("value", "low", "high"))
    if value is None or not np.isfinite(value):
        return "-"
    digits = 2 if scale == 1 else 0
    return f"{scale * value:.{digits}f} ({scale * low:.{digits}f}-{scale * high:.{digits}f})"


def _format_error(metrics: dict[str, Any], name: str) -> str:
    return f"{metrics[name]:.3f}" if name in metrics else "-"


def plot_reliability(metrics_by_kind: dict[str, Any], path: Path) -> Path | None:
    """A reliability diagram for each kind that is calibrated; None where none was measured."""
    from matplotlib.figure import Figure

    kinds = [kind for kind, metrics in metrics_by_kind.items() if "bins" in metrics]
    if not kinds:
        return None
    figure = Figure(figsize=(3.6 * len(kinds), 3.6), layout="constrained")
    for kind, axes in zip(kinds, np.atleast_1d(figure.subplots(1, len(kinds))), strict=True):
        draw_reliability(axes, [Bin(**bin_) for bin_ in metrics_by_kind[kind]["bins"]])
        axes.set(xlabel="how likely it says", ylabel="how often true", title=f"{kind}, error {metrics_by_kind[kind]['ece']:.3f}")
    with atomic(path) as temporary_path:
        figure.savefig(temporary_path, format="png", dpi=140)
    return path
