"""`mmrlhf calibrate clip|vlm`: fit probabilities to scores of claims labelled by facts.

The claims come from the dataset's answers, or from its facts, each paired with a false one. Facts
label them as true or false. Claims that facts leave unknown are not used, repeated claims about the
same images count once, and negated ones are scored without their negation. The calibration is
fitted on most images and evaluated on the others, which are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.special import expit

from mmrlhf.claims import Lexicon, load_lexicon
from mmrlhf.commands.claim_labels import (
    LabelledClaim,
    LabelledImage,
    Rows,
    count_labels,
    group_by_image,
    label_claims,
    require_labels,
    train_test_split,
)
from mmrlhf.config import CalibrateClipConfig, CalibrateConfig, CalibrateVLMConfig
from mmrlhf.datasets import read_records
from mmrlhf.facts import read_facts
from mmrlhf.files.atomic import atomic, refuse_output_file
from mmrlhf.files.jsonl import to_jsonable
from mmrlhf.metrics.calibration import Bin, auroc, draw_reliability, expected_calibration_error, proportion, reliability_bins
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load
from mmrlhf.records import CLAIM_KINDS, InputError
from mmrlhf.report.progress import progress
from mmrlhf.verifiers import AnswerClaims
from mmrlhf.verifiers.base import PlattScaling, save_calibration
from mmrlhf.verifiers.clip import load_clip
from mmrlhf.verifiers.vlm import VLMVerifier

ScoreFn = Callable[[Sequence[AnswerClaims]], Sequence[Sequence[float | None]]]
"""Returns a score for each claim of each answer, None for claims that the verifier cannot score."""


def calibrate(config: CalibrateConfig, rows: Rows | None = None) -> dict[str, Any]:
    """Label claims, score them, fit, and write the calibration with a reliability diagram.

    Return the report, which is saved with the calibration. Raises InputError if the data gives too
    few labels, before a model is loaded, or if the verifier's scores do not separate true from
    false claims of any kind.
    """
    out = Path(config.output_file)
    refuse_output_file(out, inputs=[config.dataset_name, config.facts_file, config.lexicon_file])
    if out.suffix != ".json":
        raise InputError(f"output_file {out} must end in .json: a plot with the same name is saved next to it")
    lexicon = load_lexicon(config.lexicon_file)
    if rows is None:
        rows = _load_rows(config)
    rows = rows[: config.limit] if config.limit else rows

    # 1. Label claims by facts, and hold out some images
    groups = group_by_image(rows, config.dataset_name)
    labelled_images = label_claims(groups, lexicon, config.claim_source, config.seed, config.dataset_name)
    train_images, test_images = train_test_split(labelled_images, config.held_out, config.seed)
    train_labels = [label for _, labels in train_images for label in labels]
    require_labels(train_labels, config.min_labels, config.claim_source, config.dataset_name)

    # 2. Score them with the verifier
    score_fn, verifier_info = _build_verifier(config, lexicon)
    with progress(len(train_images) + len(test_images), "calibrate") as progress_bar:
        train = _score_labels(train_images, rows, score_fn, config.batch_size, progress_bar.advance)
        test = _score_labels(test_images, rows, score_fn, config.batch_size, progress_bar.advance)

    # 3. Fit on one part, evaluate on the other
    calibration, left_out = fit_platt(train, config.min_labels)
    if not calibration.coefficients:
        reasons = "; ".join(f"{kind} ({reason})" for kind, reason in left_out.items())
        raise InputError(f"nothing can be calibrated: {reasons}")
    report = {
        **verifier_info,
        "data": config.dataset_name,
        "claim_source": config.claim_source,
        "fitted_on": {"images": len(train_images), "claims": count_labels(train)},
        "left_out": left_out,
        "measured_on": {"images": len(test_images), "claims": count_labels(test)},
        "measured": evaluate(test, calibration, include_uncalibrated=isinstance(config, CalibrateVLMConfig)),
    }
    print_table(report)
    plot_path = plot_reliability(report["measured"], out.with_suffix(".png"))
    save_calibration(calibration, out, **to_jsonable(report))
    evaluated = f"the table and {plot_path} cover" if plot_path else "the table covers"
    print(
        f"{out}: fitted on {len(train)} claims about {len(train_images)} images; "
        f"{evaluated} {len(test)} claims about {len(test_images)} held-out images"
    )
    return report


def _load_rows(config: CalibrateConfig) -> Rows:
    facts = read_facts(config.facts_file) if config.facts_file else None
    return read_records(config.dataset_name, config.dataset_train_split, config.image_folder, facts)


def _build_verifier(config: CalibrateConfig, lexicon: Lexicon) -> tuple[ScoreFn, dict[str, Any]]:
    """Return the function that scores claims, and a description of it to save.

    The description of an open_clip model includes its distractors, because margins depend on them.
    """
    if isinstance(config, CalibrateClipConfig):
        device = "cuda" if torch.cuda.is_available() else "cpu"
        clip_verifier = load_clip(config.clip_model, lexicon, config.clip_calibration, device)
        pool = clip_verifier.distractor_pool
        verifier_info = {
            "verifier": "clip",
            "model": clip_verifier.name,
            "template": clip_verifier.template,
            "nouns": pool.nouns,
            "groups": [sorted(group) for group in pool.groups],
        }

        def margins(answers: Sequence[AnswerClaims]) -> Sequence[Sequence[float | None]]:
            return [[margin for margin, _ in row] for row in clip_verifier.margins(answers)]

        return margins, verifier_info
    assert isinstance(config, CalibrateVLMConfig)
    vlm = load(config.model_name_or_path, config.dtype, engine=config, pixels=config)
    vlm_verifier = VLMVerifier(Role(Adapters(vlm), None), lexicon, max_length=config.max_length)
    return vlm_verifier.log_odds, {"verifier": "vlm", "model": vlm.name}


def _score_labels(
    images: Sequence[LabelledImage], rows: Rows, score_fn: ScoreFn, batch_size: int, advance: Callable[[int], None]
) -> list[LabelledClaim]:
    scored = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        answers = [
            AnswerClaims(rows[group.first_row].images, (), tuple(label.claim for label in labels)) for group, labels in batch
        ]
        scores = score_fn(answers)
        for (group, labels), image_scores in zip(batch, scores, strict=True):
            scored += [
                replace(label, score=score, image=group.first_row) for label, score in zip(labels, image_scores, strict=True)
            ]
        advance(len(batch))
    return scored


# ---- fitting and evaluation ----------------------------------------------------------------------


def fit_platt(labels: Sequence[LabelledClaim], min_labels: int) -> tuple[PlattScaling, dict[str, str]]:
    """Fit each kind that has enough labels, and scores that separate true from false claims.

    Return the calibration, and the reason for each kind that is left out.
    """
    scored = [label for label in labels if label.score is not None]
    left_out = {}
    for kind in CLAIM_KINDS:
        scores, is_true = _to_arrays([label for label in scored if label.claim.kind == kind])
        auc, low, high = auroc(scores, is_true)
        num_true, num_false = is_true.sum(), (~is_true).sum()
        if min(num_true, num_false) < min_labels:
            left_out[kind] = f"{num_true} true and {num_false} false claims with a score, {min_labels} of each are needed"
        elif low <= 0.5:
            left_out[kind] = f"its scores do not separate true from false claims, AUROC {auc:.2f} ({low:.2f}-{high:.2f})"
    return PlattScaling.fit(
        (label.claim.kind, label.score, label.is_true)
        for label in scored
        if label.claim.kind not in left_out and label.score is not None
    ), left_out


def _to_arrays(labels: Sequence[LabelledClaim]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([label.score for label in labels], dtype=float), np.array([label.is_true for label in labels], dtype=bool)


def evaluate(labels: Sequence[LabelledClaim], calibration: PlattScaling, include_uncalibrated: bool) -> dict[str, Any]:
    """Return metrics by kind of claim, from labels that were not used to fit the calibration.

    They are the counts, AUROC, the fraction left unknown and the accuracy of the other verdicts
    (with intervals over images), the expected calibration error with its bins, and, with
    `include_uncalibrated`, the error of sigmoid(score).
    """
    metrics_by_kind: dict[str, Any] = {}
    for kind, counts in count_labels(labels).items():
        kind_labels = [label for label in labels if label.claim.kind == kind]
        scored = [label for label in kind_labels if label.score is not None]
        scores, is_true = _to_arrays(scored)
        verdicts = [
            "unknown" if label.score is None else calibration.verdict(label.claim, label.score, "").value for label in kind_labels
        ]
        is_unknown = np.array([verdict == "unknown" for verdict in verdicts], dtype=bool)
        is_right = np.array(
            [(verdict == "supported") == label.is_true for verdict, label in zip(verdicts, kind_labels, strict=True)], dtype=bool
        )
        image_of = np.array([label.image for label in kind_labels])
        metrics: dict[str, Any] = {**counts, "auroc": dict(zip(("value", "low", "high"), auroc(scores, is_true), strict=True))}
        metrics["unknown"] = proportion(is_unknown, image_of.tolist())
        metrics["right"] = proportion(is_right[~is_unknown], image_of[~is_unknown].tolist())
        if include_uncalibrated and scored:
            metrics["ece_uncalibrated"] = expected_calibration_error(reliability_bins(expit(scores), is_true))
        if kind in calibration.coefficients and scored:
            bins = reliability_bins(np.array([calibration.probability(kind, score) for score in scores]), is_true)
            metrics |= {"ece": expected_calibration_error(bins), "bins": [asdict(bin_) for bin_ in bins]}
        metrics_by_kind[kind] = metrics
    return metrics_by_kind


# ---- output --------------------------------------------------------------------------------------


def print_table(report: dict[str, Any]) -> None:
    """Print the metrics on held-out images, and the kinds that are left out."""
    has_uncalibrated = any("ece_uncalibrated" in metrics for metrics in report["measured"].values())
    table = Table(
        title=f"{report['model']} on held-out images, 95% intervals", title_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    headers = [
        "claims",
        "true",
        "false",
        "AUROC",
        "unknown\n%",
        "right of\nthe rest, %",
        *["error\nas is"] * has_uncalibrated,
        "error\ncalibrated",
    ]
    for name in headers:
        table.add_column(name, justify="left" if name == "claims" else "right", no_wrap=True)
    for kind, metrics in report["measured"].items():
        table.add_row(
            kind,
            str(metrics["true"]),
            str(metrics["false"]),
            _format_interval(metrics["auroc"], 1),
            f"{100 * metrics['unknown']['value']:.0f}",
            _format_interval(metrics["right"], 100),
            *[_format_error(metrics, "ece_uncalibrated")] * has_uncalibrated,
            _format_error(metrics, "ece"),
        )
    console = Console(highlight=False)
    console.print(table)
    for kind, reason in report["left_out"].items():
        console.print(f"{kind}: left out of the calibration, so its claims stay unknown: {reason}", soft_wrap=True)


def _format_interval(metric: dict[str, Any], scale: int) -> str:
    value, low, high = (metric[name] for name in ("value", "low", "high"))
    if value is None or not np.isfinite(value):
        return "-"
    digits = 2 if scale == 1 else 0
    return f"{scale * value:.{digits}f} ({scale * low:.{digits}f}-{scale * high:.{digits}f})"


def _format_error(metrics: dict[str, Any], name: str) -> str:
    return f"{metrics[name]:.3f}" if name in metrics else "-"


def plot_reliability(metrics_by_kind: dict[str, Any], path: Path) -> Path | None:
    """Plot a reliability diagram of each calibrated kind; return the path, None without a plot."""
    from matplotlib.figure import Figure

    kinds = [kind for kind, metrics in metrics_by_kind.items() if "bins" in metrics]
    if not kinds:
        return None
    figure = Figure(figsize=(3.6 * len(kinds), 3.6), layout="constrained")
    for kind, axes in zip(kinds, np.atleast_1d(figure.subplots(1, len(kinds))), strict=True):
        draw_reliability(axes, [Bin(**bin_) for bin_ in metrics_by_kind[kind]["bins"]])
        axes.set(
            xlabel="predicted probability", ylabel="fraction true", title=f"{kind}, error {metrics_by_kind[kind]['ece']:.3f}"
        )
    with atomic(path) as temp_path:
        figure.savefig(temp_path, format="png", dpi=140)
    return path
