"""The truth about sampled answers, for `mmrlhf reward-eval`: a source hidden from the reward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmrlhf.claims import Lexicon, extract_claims
from mmrlhf.commands.claims import claim_from_json
from mmrlhf.config import RewardEvalConfig
from mmrlhf.facts import NAMES_HINT, facts_about, read_facts
from mmrlhf.files.inputs import has_same_content
from mmrlhf.files.rows import Row
from mmrlhf.files.tables import read_rows
from mmrlhf.records import CLAIM_KINDS, Fact, InputError, Verdict
from mmrlhf.rewards.detection import GroupVerdicts
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.verifiers import AnswerClaims, verify_against_facts
from mmrlhf.verifiers.cascade import cascade
from mmrlhf.verifiers.clip import load_clip

VERDICTS = ("supported", "contradicted", "unknown")


def check_truth_settings(config: RewardEvalConfig) -> None:
    """Raise InputError for contradictory settings of the truth."""
    if config.answers is None:
        if config.truth != "none":
            raise InputError(f"truth {config.truth} is about sampled answers: give --answers, which `mmrlhf generate` writes")
        return
    if config.truth in ("facts", "labels") and config.truth_file is None:
        what = "facts that the reward does not read" if config.truth == "facts" else "what `mmrlhf claims` wrote, corrected"
        raise InputError(f"truth {config.truth} needs a file: give --truth_file ({what})")
    if config.truth_file is not None and config.truth not in ("facts", "labels"):
        raise InputError(f"truth_file {config.truth_file} is not read with truth {config.truth}: give --truth facts or labels")
    if config.truth == "clip" and config.clip_model is None:
        raise InputError("truth clip needs an open_clip model: give --clip_model, or --truth facts or labels")


def read_verdicts(
    config: RewardEvalConfig, groups: Sequence[AnswerGroup], lexicon: Lexicon, reads_facts: bool
) -> GroupVerdicts | None:
    """Return a verdict on each claim of each group's answers, None if no truth is given.

    An answer without known truth has None in place of its verdicts: nobody labelled it, or its
    image has no facts.

    Raises InputError if the reward reads the same facts, or if the truth belongs to other answers.
    """
    if config.truth == "none":
        return None
    if config.truth == "facts":
        verdicts = _verdicts_of_facts(config, groups, lexicon, reads_facts)
    elif config.truth == "labels":
        verdicts = _verdicts_of_labels(str(config.truth_file), groups)
    else:
        verdicts = _verdicts_of_clip(config, groups, lexicon)
    known = (v for group in verdicts for answer in group for v in answer or () if v.value != "unknown")
    if next(known, None) is None:
        hint = {
            "facts": "give facts about the objects that the answers name",
            "labels": "set the `verdict` of each claim to supported or contradicted",
            "clip": "calibrate more kinds of claims",
        }[config.truth]
        name = config.truth_file or config.clip_model
        raise InputError(f"truth {name}: none of the claims in {config.answers} is known to be true or false: {hint}")
    return verdicts


# ---- facts kept apart --------------------------------------------------------------------------


def _verdicts_of_facts(
    config: RewardEvalConfig, groups: Sequence[AnswerGroup], lexicon: Lexicon, reads_facts: bool
) -> GroupVerdicts:
    path = str(config.truth_file)
    truth_file = read_facts(path)
    true_facts = [facts_about(truth_file, group.id, group.images) for group in groups]
    if not any(true_facts):
        raise InputError(f"truth_file {path} has no facts about the images of {config.answers}: {NAMES_HINT}")
    same_file = has_same_content(path, config.facts_file)
    pairs = [(_texts(known), _texts(true)) for known, true in zip((g.facts for g in groups), true_facts, strict=True)]
    if reads_facts and (same_file or all(known == true for known, true in pairs if known or true)):
        raise InputError(
            f"truth_file {path} has the facts that the reward reads: a judge agrees with its facts, true or not, so give "
            "facts kept apart (more complete, or by another annotator), or --truth labels"
        )
    return [
        [verify_against_facts(extract_claims(answer, lexicon), facts, lexicon) if facts else None for answer in group.answers]
        for group, facts in zip(groups, true_facts, strict=True)
    ]


def _texts(facts: Sequence[Fact]) -> set[tuple[str, str]]:
    return {(fact.kind, " ".join(fact.text.lower().split())) for fact in facts}


# ---- labels ------------------------------------------------------------------------------------


def _verdicts_of_labels(path: str, groups: Sequence[AnswerGroup]) -> GroupVerdicts:
    """Read the output of `mmrlhf claims`, with verdicts, and join it by row id and text.

    Labels without an id are joined by text alone. An answer whose claims are all unknown was not
    labelled yet: it has None, like one without a row, unless another row with the same text is
    labelled.
    """
    by_answer: dict[tuple[str, str], list[Verdict]] = {}
    for raw_row in read_rows(path):
        row = raw_row.parse()
        text, id_ = row.require("text"), row.fields.get("id")
        stripped = row.require_text(text, "text")
        claims = row.require("claims")
        if not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
            row.fail("`claims` must be a list of objects, as `mmrlhf claims` writes them")
        verdicts = [_labelled_claim(row, claim, len(text)) for claim in claims]
        key = "" if id_ is None else str(id_), stripped
        earlier = by_answer.get(key)
        if earlier is not None and _is_unlabelled(verdicts):
            continue
        if earlier not in (None, verdicts) and not _is_unlabelled(earlier):
            row.fail(
                "`text` has other verdicts in an earlier row with the same `id`, or without one: keep one of the rows, or give both the ids "
                "of their answers"
            )
        by_answer[key] = verdicts

    def find(id_: str, answer: str) -> list[Verdict] | None:
        return by_answer.get((id_, answer.strip()), by_answer.get(("", answer.strip())))

    labels_by_group = [[find(group.id, answer) for answer in group.answers] for group in groups]
    if all(labels is None for group_labels in labels_by_group for labels in group_labels):
        raise InputError(
            f"truth_file {path} labels none of the answers: label claims that `mmrlhf claims` finds in that very file"
        )
    return [[None if _is_unlabelled(labels) else labels for labels in group_labels] for group_labels in labels_by_group]


def _is_unlabelled(verdicts: Sequence[Verdict] | None) -> bool:
    """Return whether no claim of an answer was labelled. One without claims needs no labels."""
    return verdicts is None or (bool(verdicts) and all(verdict.value == "unknown" for verdict in verdicts))


def _labelled_claim(row: Row, claim: dict[str, Any], length: int) -> Verdict:
    kind, verdict, span = claim.get("kind"), claim.get("verdict", "unknown"), claim.get("span")
    if kind not in CLAIM_KINDS:
        row.fail(f"`kind` of a claim must be {', '.join(CLAIM_KINDS)}, not {kind!r}")
    if verdict not in VERDICTS:
        row.fail(f"`verdict` of a claim must be {', '.join(VERDICTS)}, not {verdict!r}")
    is_span = isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)
    if not is_span or not 0 <= span[0] < span[1] <= length:  # type: ignore[index]
        row.fail(f"`span` of a claim must be its start and end in `text`, not {span!r}")
    return Verdict(claim_from_json(claim), verdict)


# ---- a verifier --------------------------------------------------------------------------------


def _verdicts_of_clip(config: RewardEvalConfig, groups: Sequence[AnswerGroup], lexicon: Lexicon) -> GroupVerdicts:
    verifier = load_clip(str(config.clip_model), lexicon, config.clip_calibration)
    if not verifier.calibration.coefficients:
        raise InputError(
            f"open_clip model {config.clip_model} has no calibration, without which every verdict is unknown: make one "
            "with `mmrlhf calibrate clip` and give it as --clip_calibration"
        )
    verify = cascade([verifier], lexicon)  # as in a reward, denials of only a part stay unknown
    return [
        verify([AnswerClaims(group.images, (), tuple(extract_claims(answer, lexicon))) for answer in group.answers])
        for group in groups
    ]
