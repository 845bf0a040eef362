"""Label claims by facts, and split them by image, for `mmrlhf calibrate`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from mmrlhf.claims import Lexicon, extract_claims
from mmrlhf.records import CLAIM_KINDS, Claim, Example, Fact, InputError, Preference
from mmrlhf.report.progress import progress
from mmrlhf.verifiers import verify_against_facts
from mmrlhf.verifiers.base import strip_negation
from mmrlhf.verifiers.fact_claims import claims_of_fact
from mmrlhf.verifiers.verbalize import DistractorPool, distractors

Rows = Sequence[Example | Preference]


@dataclass
class ImageGroup:
    """The facts and answers of all rows with the same images.

    first_row: index of the first of these rows.
    keys: content hashes of the images.
    """

    first_row: int
    keys: tuple[str, ...]
    facts: list[Fact] = field(default_factory=list)
    answers: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelledClaim:
    """A claim without negation, whether it is true, the verifier's score, and the first row with
    the claim's images."""

    claim: Claim
    is_true: bool
    score: float | None = None
    image: int = 0


LabelledImage = tuple[ImageGroup, list[LabelledClaim]]


def group_by_image(rows: Rows, name: str) -> list[ImageGroup]:
    """Group the rows' facts and answers by image, in the order of the rows.

    Raises InputError if no row has images, or no row has facts.
    """
    groups: dict[tuple[str, ...], ImageGroup] = {}
    for row_index, row in enumerate(rows):
        keys = tuple(image.key for image in row.images)
        if not keys:
            continue
        group = groups.setdefault(keys, ImageGroup(row_index, keys))
        known_facts = set(group.facts)  # a row may list two equal objects, and rows may repeat a list
        group.facts += [fact for fact in row.facts if fact not in known_facts]
        group.answers.update(dict.fromkeys(_answers(row)))
    if not groups:
        raise InputError(f"{name} has no images: a verifier is calibrated on claims about images, so give rows with images")
    if not any(group.facts for group in groups.values()):
        raise InputError(f"{name} has no facts to label claims with: add `facts` to its rows, or give --facts_file")
    return list(groups.values())


def _answers(row: Example | Preference) -> Sequence[str]:
    if isinstance(row, Preference):
        return row.answers
    return [row.answer] if row.answer else []


def label_claims(groups: Sequence[ImageGroup], lexicon: Lexicon, claim_source: str, seed: int, name: str) -> list[LabelledImage]:
    """Return the images with labelled claims. Raises InputError if there are none."""
    if claim_source == "answers" and not any(group.answers for group in groups):
        raise InputError(
            f"{name} has no answers to extract claims from: give rows with `chosen` and `rejected`, `answer` or `completion`, "
            "or --claim_source facts"
        )
    labelled_images = []
    with progress(len(groups), "claims") as progress_bar:
        for group in groups:
            facts = tuple(group.facts)
            if claim_source == "answers":
                claims = [claim for text in group.answers for claim in extract_claims(text, lexicon)]
                labels = label_with_facts(claims, facts, lexicon)
            else:
                claims = [claim for fact in facts for claim in claims_of_fact(fact, lexicon)]
                labels = negatives_for(label_with_facts(claims, facts, lexicon), group, lexicon, seed)
            if labels:
                labelled_images.append((group, labels))
            progress_bar.advance()
    if not labelled_images:
        raise InputError(
            f"the facts of {name} verify none of the claims of its {claim_source}: give facts about more objects, or other {claim_source}"
        )
    return labelled_images


def label_with_facts(claims: Iterable[Claim], facts: tuple[Fact, ...], lexicon: Lexicon) -> list[LabelledClaim]:
    """Label the distinct claims, without their negation, that facts support or contradict.

    An approximate number is left out, as it is neither true nor false.
    """
    exact_claims = (claim for claim in claims if not (claim.kind == "count" and claim.hedged))
    positive_claims = list(dict.fromkeys(replace(strip_negation(claim)[0], hedged=False) for claim in exact_claims))
    return [
        LabelledClaim(verdict.claim, verdict.value == "supported")
        for verdict in verify_against_facts(positive_claims, facts, lexicon)
        if verdict.value != "unknown"
    ]


def negatives_for(labels: Sequence[LabelledClaim], group: ImageGroup, lexicon: Lexicon, seed: int) -> list[LabelledClaim]:
    """Pair each true claim with a claim that facts contradict, so that the labels are balanced.

    A true claim without a false counterpart is left out.
    """
    default_pool = DistractorPool.from_lexicon(lexicon)
    absent_objects = (label.claim.subject for label in labels if label.claim.kind == "object" and not label.is_true)
    pool = replace(default_pool, nouns=(*absent_objects, *default_pool.nouns))
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
    """Split the images into a part to fit on and a held-out part, which has at least one image.

    The split depends on the content of images, not on their order or names. A group with images
    from both parts is in neither.
    """
    order = sorted({key for group, _ in labelled_images for key in group.keys}, key=lambda key: _digest(f"{seed} {key}"))
    test_keys = set(order[: max(1, round(held_out * len(order)))])
    train = [labelled for labelled in labelled_images if test_keys.isdisjoint(labelled[0].keys)]
    test = [labelled for labelled in labelled_images if test_keys.issuperset(labelled[0].keys)]
    return train, test


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def count_labels(labels: Sequence[LabelledClaim]) -> dict[str, dict[str, int]]:
    """Count true and false claims by kind."""
    values = {kind: [label.is_true for label in labels if label.claim.kind == kind] for kind in CLAIM_KINDS}
    return {kind: {"true": outcomes.count(True), "false": outcomes.count(False)} for kind, outcomes in values.items() if outcomes}


def require_labels(labels: Sequence[LabelledClaim], min_labels: int, claim_source: str, name: str) -> None:
    """Raise InputError if no kind has enough labels to be fitted."""
    counts = count_labels(labels)
    if any(min(count.values()) >= min_labels for count in counts.values()):
        return
    available = ", ".join(f"{kind} {count['true']} true and {count['false']} false" for kind, count in counts.items())
    hint = ", or --claim_source facts" if claim_source == "answers" else ""
    raise InputError(
        f"{name} gives too few claims that facts label ({available or 'none'}, without held-out images): one kind needs "
        f"{min_labels} true and {min_labels} false claims, so give more rows{hint}"
    )
