"""Verifiers by name, built from the settings of a run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from mmrlhf.claims import Lexicon
from mmrlhf.config import VerifyingConfig
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.records import InputError
from mmrlhf.verifiers.base import Verifier, load_calibration
from mmrlhf.verifiers.cascade import cached, facts_verifier
from mmrlhf.verifiers.vlm import UNCALIBRATED, VLMVerifier

VerifierBuilder = Callable[[VerifyingConfig, Adapters, Lexicon], Verifier]
"""Builds a verifier from a run's settings, its model with adapters, and its lexicon."""


def build_facts_verifier(config: VerifyingConfig, adapters: Adapters, lexicon: Lexicon) -> Verifier:
    """Return the verifier that compares claims with each row's facts."""
    return facts_verifier(lexicon)


def build_clip_verifier(config: VerifyingConfig, adapters: Adapters, lexicon: Lexicon) -> Verifier:
    """Return the open_clip verifier. Raises InputError without --clip_model or a calibration."""
    if config.clip_model is None:
        raise InputError("the verifier clip needs an open_clip model: give --clip_model, or use facts or vlm")
    from mmrlhf.verifiers.clip import load_clip  # open_clip takes a second to load

    clip_verifier = load_clip(config.clip_model, lexicon, config.clip_calibration, adapters.vlm.device)
    if not clip_verifier.calibration.coefficients:
        raise InputError(
            f"open_clip model {config.clip_model} has no calibration, without which every verdict is unknown: make one "
            "with `mmrlhf calibrate clip` and give it as --clip_calibration"
        )
    return cached(clip_verifier)


def build_vlm_verifier(config: VerifyingConfig, adapters: Adapters, lexicon: Lexicon) -> Verifier:
    """Return the verifier that asks the base model. Raises InputError for a bad calibration."""
    calibration = load_calibration(Path(config.vlm_calibration))[0] if config.vlm_calibration else UNCALIBRATED
    return cached(VLMVerifier(Role(adapters, None), lexicon, calibration, config.max_length))


VERIFIERS: dict[str, VerifierBuilder] = {
    "facts": build_facts_verifier,
    "clip": build_clip_verifier,
    "vlm": build_vlm_verifier,
}
"""Verifiers by their name in `reward_terms` and `monitor_verifiers`.

To add one, write a function from `AnswerClaims` to verdicts (`base.Verifier`) in a module of its
own, write a builder above, and list it here. Wrap it in `cached` if it reads only images.
"""


def validate_verifier(verifier_name: str, location: str, names: Collection[str] = VERIFIERS) -> str:
    """Return the name of a verifier, or of several joined by `+`, without spaces.

    Raises InputError for one that is not in `names`, or is repeated. The message begins with
    `location`.
    """
    parts = [part.strip() for part in verifier_name.split("+")]
    for part in parts:
        if part not in names:
            raise InputError(f"{location}: there is no verifier {part!r}; use {', '.join(names)}, or several joined by +")
    if len(set(parts)) < len(parts):
        raise InputError(f"{location}: a verifier is named twice; name each once")
    return "+".join(parts)
