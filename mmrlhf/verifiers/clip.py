"""Verify claims with an open_clip model, which compares each claim in words with distractors.

The score is the margin by which the image is closer to the claim than to its distractors. A
calibration, from the checkpoint's folder or a given file, turns it into a probability
(`base.PlattScaling`). Images and phrases are encoded only once. CLIP is good at objects and
colours, but weak at numbers and at left and right: a good calibration leaves those unknown.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from mmrlhf.claims import Lexicon
from mmrlhf.files.atomic import write_atomic
from mmrlhf.models.finite import check_finite
from mmrlhf.models.images import open_image
from mmrlhf.records import Claim, ImageSource, InputError, Verdict
from mmrlhf.text.printable import first_line
from mmrlhf.verifiers.base import AnswerClaims, PlattScaling, load_calibration, strip_negation, unknown_verdict
from mmrlhf.verifiers.verbalize import DistractorPool, claim_phrase, distractors

TEMPLATE = "a photo of {}"
BATCH_SIZE = 64
"""Number of images encoded at once; four times as many phrases."""
MAX_CACHED_FEATURES = 200_000
"""Maximum number of features in each of the two caches; a full cache is emptied."""
CALIBRATION_FILE = "calibration.json"
"""File name of the calibration in a checkpoint's folder."""
CONFIG_FILE = "open_clip_config.json"


@dataclass
class ClipVerifier:
    """An open_clip model as a verifier.

    `calibration` turns its margins into probabilities. Claims are compared with distractors from
    `distractor_pool`. The text features of a phrase are None if the tokenizer would truncate it.
    """

    name: str
    model: Any
    preprocess: Any
    tokenizer: Any
    lexicon: Lexicon
    distractor_pool: DistractorPool
    calibration: PlattScaling
    template: str = TEMPLATE
    _image_features: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _text_features: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def __call__(self, answers: Sequence[AnswerClaims]) -> list[list[Verdict]]:
        """Return a verdict for each claim of each answer."""
        return [
            [self._verdict(claim, *margin) for claim, margin in zip(answer.claims, answer_margins, strict=True)]
            for answer, answer_margins in zip(answers, self.margins(answers), strict=True)
        ]

    def _verdict(self, claim: Claim, margin: float | None, evidence: str) -> Verdict:
        return unknown_verdict(claim, evidence) if margin is None else self.calibration.verdict(claim, margin, evidence)

    def margins(self, answers: Sequence[AnswerClaims]) -> list[list[tuple[float | None, str]]]:
        """Return the margin in logits of each claim's positive form, with evidence in words.

        The margin is the claim's logit minus the log-sum-exp of its distractors' logits; with
        several images, the highest one counts. If no comparison is possible it is None, and the
        evidence gives the reason.
        """
        claim_texts = [[self._claim_texts(strip_negation(claim)[0]) for claim in answer.claims] for answer in answers]
        self._encode_images([image for answer in answers if answer.claims for image in answer.images])
        self._encode_texts([text for answer_texts in claim_texts for texts in answer_texts for text in texts])
        scale = float(self.model.logit_scale.exp())
        margins = []
        for answer, answer_texts in zip(answers, claim_texts, strict=True):
            if answer.images and answer.claims:
                images_ID = torch.stack([self._image_features[source.key] for source in answer.images])
            else:
                images_ID = torch.empty(0)
            margins.append([self._margin(images_ID, texts, scale) for texts in answer_texts])
        return margins

    def _claim_texts(self, claim: Claim) -> list[str]:
        """Return the texts of a claim and its distractors for the model, the claim first."""
        candidates = (claim, *distractors(claim, self.distractor_pool, self.lexicon))
        return [self.template.format(claim_phrase(candidate, self.lexicon)) for candidate in candidates]

    def _margin(self, images_ID: Tensor, texts: Sequence[str], scale: float) -> tuple[float | None, str]:
        """Return the margin of the first text over the others (or None), and its evidence."""
        if not len(images_ID):
            return None, "there is no image"
        if self._text_features[texts[0]] is None:
            return None, f"{self.name} reads {self.tokenizer.context_length} tokens, too few for {texts[0]!r}"
        features = {text: self._text_features[text] for text in texts}
        texts = [text for text in texts if features[text] is not None]
        if len(texts) == 1:
            return None, "there is no distractor to compare it with"
        texts_TD = torch.stack([vector for text in texts if (vector := features[text]) is not None])
        logits_IT = scale * images_ID @ texts_TD.T
        margins_I = logits_IT[:, 0] - logits_IT[:, 1:].logsumexp(1)
        best = int(margins_I.argmax())
        # The evidence names only the nearest distractor.
        nearest = 1 + int(logits_IT[best, 1:].argmax())
        gap = float(logits_IT[best, 0] - logits_IT[best, nearest])
        return float(margins_I[best]), f"open_clip: {texts[0]!r} by {gap:+.1f} against {texts[nearest]!r}"

    @torch.no_grad()
    def _encode_images(self, images: Sequence[ImageSource]) -> None:
        if len(self._image_features) > MAX_CACHED_FEATURES:
            self._image_features.clear()
        missing = list({source.key: source for source in images if source.key not in self._image_features}.values())
        for start in range(0, len(missing), BATCH_SIZE):
            batch = missing[start : start + BATCH_SIZE]
            pixels = torch.stack([self.preprocess(open_image(image)) for image in batch]).to(self.device)
            features = self.model.encode_image(pixels, normalize=True).float().cpu()
            self._image_features.update(zip((image.key for image in batch), features, strict=True))

    @torch.no_grad()
    def _encode_texts(self, texts: Sequence[str]) -> None:
        """Cache the features of phrases: None for one that the tokenizer would truncate."""
        if len(self._text_features) > MAX_CACHED_FEATURES:
            self._text_features.clear()
        missing = [text for text in dict.fromkeys(texts) if text not in self._text_features]
        for start in range(0, len(missing), 4 * BATCH_SIZE):
            batch = missing[start : start + 4 * BATCH_SIZE]
            token_ids_NT, is_truncated_N = tokenize(self.tokenizer, batch)
            features = self.model.encode_text(token_ids_NT.to(self.device), normalize=True).float().cpu()
            self._text_features.update(
                (text, None if is_truncated else text_features)
                for text, text_features, is_truncated in zip(batch, features, is_truncated_N.tolist(), strict=True)
            )


def tokenize(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return token ids [N, T], and whether each text was truncated [N].

    The tokenizer truncates silently. A text was truncated if its ids differ when there is room for
    one more token.
    """
    context_length = int(tokenizer.context_length)
    token_ids, longer_ids = tokenizer(list(texts)), tokenizer(list(texts), context_length=context_length + 1)
    pad_id = tokenizer([""], context_length=context_length + 1)[0, -1]
    return token_ids, (token_ids != longer_ids[:, :context_length]).any(1) | (longer_ids[:, context_length] != pad_id)


# ---- on disk -----------------------------------------------------------------------------------


def save_clip(directory: Path, model: Any, model_cfg: Mapping[str, Any]) -> None:
    """Save a model in open_clip's own format, which open_clip loads as `local-dir:DIRECTORY`."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, directory / "open_clip_model.safetensors"
    )
    write_atomic(
        directory / CONFIG_FILE,
        json.dumps({"model_cfg": dict(model_cfg), "preprocess_cfg": model.visual.preprocess_cfg}, indent=1),
    )


def load_clip(
    name: str, lexicon: Lexicon, calibration_file: str | None = None, device: torch.device | str = "cpu"
) -> ClipVerifier:
    """Load an open_clip model as a verifier.

    `name` is a directory with open_clip_config.json and weights, or an open_clip architecture with
    a tag or a weights file, such as `ViT-B-32:laion2b_s34b_b79k`. Weights must be safetensors. The
    calibration is `calibration_file`, or else calibration.json in the directory. Without one, every
    verdict is unknown.

    Raises InputError for a model or calibration that is missing, malformed or unsafe to load.
    """
    directory = Path(name)
    calibration, metadata = _find_calibration(directory, calibration_file)
    if directory.is_dir():
        _refuse_foreign_code(directory)
        architecture, weights = f"local-dir:{name}", _find_weights(directory)
    else:
        architecture, weights = _resolve_pretrained(name)
    model, tokenizer, preprocess = _create_model(name, architecture, weights)
    check_finite(model.state_dict().items(), f"open_clip model {name}")
    model.requires_grad_(False).eval().to(device)
    template = metadata.get("template", TEMPLATE)
    if not isinstance(template, str) or template.count("{}") != 1:
        raise InputError(f"calibration: `template` must be a text with {{}} once, not {template!r}")
    distractor_pool = DistractorPool.from_lexicon(lexicon, metadata)
    return ClipVerifier(name, model, preprocess, tokenizer, lexicon, distractor_pool, calibration, template)


def _find_calibration(directory: Path, calibration_file: str | None) -> tuple[PlattScaling, dict[str, Any]]:
    """Return a calibration and its metadata: the given one, the directory's, or an empty one."""
    if calibration_file is not None:
        return load_calibration(Path(calibration_file))
    if directory.is_dir() and (directory / CALIBRATION_FILE).exists():
        return load_calibration(directory / CALIBRATION_FILE)
    return PlattScaling({}), {}


def _create_model(name: str, architecture: str, weights: Path) -> tuple[Any, Any, Any]:
    """Return model, tokenizer and preprocessing. Raises InputError if the weights do not fit."""
    log_level = logging.getLogger().level
    try:
        # Silence open_clip's warning that the weights are random: they are loaded next.
        logging.getLogger().setLevel(logging.ERROR)
        model = open_clip.create_model(architecture, load_weights=False, pretrained_text=False, device="cpu")
        open_clip.load_checkpoint(model, str(weights), strict=True)
        tokenizer = open_clip.get_tokenizer(architecture)
        preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, ImportError, SafetensorError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:120].rstrip(".: ")
        raise InputError(
            f"open_clip model {name} cannot be loaded ({reason}): its weights must fit the architecture, and all its files "
            "must be on this machine"
        ) from None
    finally:
        logging.getLogger().setLevel(log_level)
    return model, tokenizer, preprocess


def _refuse_foreign_code(directory: Path) -> None:
    """Raise InputError for a checkpoint without a configuration, or with one that runs code."""
    config = directory / CONFIG_FILE
    if not config.is_file():
        raise InputError(
            f"open_clip model {directory}: the directory has no {CONFIG_FILE}; give a checkpoint that open_clip saved"
        )
    try:
        if "trust_remote_code" in json.dumps(json.loads(config.read_text(encoding="utf-8"))):
            raise InputError(f"open_clip model {directory}: {CONFIG_FILE} asks to run its own code, which is refused")
    except (OSError, RecursionError) as error:
        raise InputError(f"{config} cannot be read ({error})") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{config} is not JSON ({error}): copy the checkpoint again") from None


def _find_weights(directory: Path) -> Path:
    """Return a directory's safetensors file. Raises InputError if there is none, or several."""
    files = sorted(directory.glob("*.safetensors"))
    if len(files) != 1:
        count_text = f"{len(files)} files" if files else "no file"
        raise InputError(
            f"open_clip model {directory} has {count_text} of weights in safetensors: keep exactly one (pickles are never loaded)"
        )
    return files[0]


def _resolve_pretrained(name: str) -> tuple[str, Path]:
    """Return the architecture and the weights file of `NAME:TAG` or `NAME:FILE`.

    Raises InputError for an unknown name or tag, or for weights that are pickles or cannot be
    fetched.
    """
    architecture, separator, tag = name.partition(":")
    if architecture not in open_clip.list_models():
        raise InputError(f"open_clip has no model {architecture}, and there is no such directory: see open_clip.list_models()")
    if not separator or not tag:
        raise InputError(
            f"open_clip model {name}: write {architecture}:TAG, or :FILE with weights; its tags are {_format_tags(architecture)}"
        )
    file = Path(tag) if Path(tag).is_file() else _download_weights(name, architecture, tag)
    if file.suffix != ".safetensors":
        raise InputError(f"open_clip model {name}: {file.name} is not in safetensors, and pickles are never loaded: convert it")
    return architecture, file


def _download_weights(name: str, architecture: str, tag: str) -> Path:
    """Fetch the weights of a tag, or find them in the cache. Raises InputError if that fails."""
    entry = open_clip.get_pretrained_cfg(architecture, tag)
    if not entry:
        raise InputError(
            f"open_clip model {architecture} has no tag {tag}, and there is no such file: its tags are {_format_tags(architecture)}"
        )
    if not entry.get("hf_hub"):
        raise InputError(f"open_clip model {name} is published as a pickle only, which is never loaded: use another tag")
    try:
        return Path(open_clip.download_pretrained(entry))
    except Exception as error:  # a download may raise anything
        reason = " ".join(first_line(error).split())[:160]
        raise InputError(
            f"open_clip model {name} is not on this machine and cannot be fetched ({reason}): fetch it on a machine with a "
            "network, or give a directory"
        ) from None


def _format_tags(architecture: str) -> str:
    """Return the first tags of an architecture, and the number of others."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    return (", ".join(tags[:6]) or "none") + (f" and {len(tags) - 6} more" if len(tags) > 6 else "")
