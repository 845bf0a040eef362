"""Claims against a picture by open_clip: the claim in words against its foils in the same words.

What is measured is by how much the picture is nearer to the claim than to its foils; a calibration, which stands beside the checkpoint
or is named, makes a probability of it (`verifier.Certainty`). Pictures and phrases are encoded once. CLIP knows things and colours, and
little of numbers and of what is left of what: an honest calibration leaves those unknown.
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
from mmrlhf.files import write_whole
from mmrlhf.images import open_image
from mmrlhf.records import Claim, ImageSource, InputError, Verdict
from mmrlhf.verify.sentences import Foils, foils, phrase
from mmrlhf.verify.verifier import Certainty, Said, load, positive, unknown

TEMPLATE = "a photo of {}"
BATCH = 64
"""Pictures and, four times as many, phrases that are encoded at a time."""
KEPT = 200_000
"""Features that are kept of pictures, and of phrases; then all are forgotten."""
CALIBRATION = "calibration.json"
"""Its name beside a checkpoint."""
CONFIG = "open_clip_config.json"


@dataclass
class Clip:
    """An open_clip model as a verifier. `certainty` says what its margins are worth, `against` what claims are held against."""

    name: str
    model: Any
    preprocess: Any
    tokenizer: Any
    words: Lexicon
    against: Foils
    certainty: Certainty
    template: str = TEMPLATE
    _images: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _texts: dict[str, Tensor | None] = field(default_factory=dict, repr=False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def __call__(self, said: Sequence[Said]) -> list[list[Verdict]]:
        return [
            [self._verdict(claim, *found) for claim, found in zip(s.claims, margins, strict=True)]
            for s, margins in zip(said, self.margins(said), strict=True)
        ]

    def _verdict(self, claim: Claim, margin: float | None, why: str) -> Verdict:
        return unknown(claim, why) if margin is None else self.certainty.verdict(claim, margin, why)

    def margins(self, said: Sequence[Said]) -> list[list[tuple[float | None, str]]]:
        """For each claim's positive form by how many logits its picture is nearer to it than to its foils, and in words what was compared; None
        and why where nothing can be. Of several pictures the one that is nearest counts."""
        asked = [[self._asked(positive(claim)[0]) for claim in s.claims] for s in said]
        self._see([image for s in said if s.claims for image in s.images])
        self._read([text for texts in asked for row in texts for text in row])
        scale = float(self.model.logit_scale.exp())
        found = []
        for s, texts in zip(said, asked, strict=True):
            images_ID = torch.stack([self._images[i.key] for i in s.images]) if s.images and s.claims else torch.empty(0)
            found.append([self._margin(images_ID, row, scale) for row in texts])
        return found

    def _asked(self, claim: Claim) -> list[str]:
        """A claim and its foils, the claim first, as the model reads them."""
        return [self.template.format(phrase(c, self.words)) for c in (claim, *foils(claim, self.against, self.words))]

    def _margin(self, images_ID: Tensor, texts: Sequence[str], scale: float) -> tuple[float | None, str]:
        if not len(images_ID):
            return None, "there is no picture"
        if self._texts[texts[0]] is None:
            return None, f"{self.name} reads {self.tokenizer.context_length} tokens, too few for {texts[0]!r}"
        texts = [text for text in texts if self._texts[text] is not None]
        if len(texts) == 1:
            return None, "nothing is known to be its contrary"
        logits_IT = scale * images_ID @ torch.stack([row for text in texts if (row := self._texts[text]) is not None]).T
        margins_I = logits_IT[:, 0] - logits_IT[:, 1:].logsumexp(1)
        best = int(margins_I.argmax())
        rival = int(logits_IT[best, 1:].argmax())
        gap = float(logits_IT[best, 0] - logits_IT[best, 1 + rival])
        return float(margins_I[best]), f"open_clip: {texts[0]!r} by {gap:+.1f} against {texts[1 + rival]!r}"

    @torch.no_grad()
    def _see(self, images: Sequence[ImageSource]) -> None:
        if len(self._images) > KEPT:
            self._images.clear()
        new = list({i.key: i for i in images if i.key not in self._images}.values())
        for start in range(0, len(new), BATCH):
            part = new[start : start + BATCH]
            pixels = torch.stack([self.preprocess(open_image(image)) for image in part]).to(self.device)
            rows = self.model.encode_image(pixels, normalize=True).float().cpu()
            self._images.update(zip((image.key for image in part), rows, strict=True))

    @torch.no_grad()
    def _read(self, texts: Sequence[str]) -> None:
        """Phrases to features; None for one that the tokenizer would cut."""
        if len(self._texts) > KEPT:
            self._texts.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        for start in range(0, len(new), 4 * BATCH):
            part = new[start : start + 4 * BATCH]
            ids_NT, cut_N = tokens(self.tokenizer, part)
            rows = self.model.encode_text(ids_NT.to(self.device), normalize=True).float().cpu()
            self._texts.update((text, None if cut else row) for text, row, cut in zip(part, rows, cut_N.tolist(), strict=True))


def tokens(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids [N, T] and whether a text was cut [N]: with room for one more token it would have been written otherwise."""
    width = int(tokenizer.context_length)
    short, long = tokenizer(list(texts)), tokenizer(list(texts), context_length=width + 1)
    pad = tokenizer([""], context_length=width + 1)[0, -1]
    return short, (short != long[:, :width]).any(1) | (long[:, width] != pad)


# ---- on disk -------------------------------------------------------------------------------------------------------------


def save_clip(directory: Path, model: Any, model_cfg: Mapping[str, Any]) -> None:
    """In open_clip's own format, which `local-dir:` names there."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, directory / "open_clip_model.safetensors"
    )
    write_whole(
        directory / CONFIG, json.dumps({"model_cfg": dict(model_cfg), "preprocess_cfg": model.visual.preprocess_cfg}, indent=1)
    )


def load_clip(name: str, words: Lexicon, calibration_file: str | None = None, device: torch.device | str = "cpu") -> Clip:
    """A directory with open_clip_config.json and weights, or one of open_clip's models with a tag or a file of weights,
    `ViT-B-32:laion2b_s34b_b79k`. Weights are safetensors.

    Without a calibration every verdict is unknown. Raises InputError.
    """
    directory = Path(name)
    beside = directory / CALIBRATION if directory.is_dir() else None
    kept: dict[str, Any] = {}
    certainty = Certainty({})
    if calibration_file is not None or (beside is not None and beside.exists()):
        certainty, kept = load(Path(calibration_file) if calibration_file is not None else beside)  # type: ignore[arg-type]
    if directory.is_dir():
        _refuse_foreign_code(directory)
        architecture, weights = f"local-dir:{name}", _weights_in(directory)
    else:
        architecture, weights = _weights_of(name)
    level = logging.getLogger().level
    try:
        logging.getLogger().setLevel(logging.ERROR)  # open_clip warns that weights are random before they are loaded
        model = open_clip.create_model(architecture, load_weights=False, pretrained_text=False, device="cpu")
        open_clip.load_checkpoint(model, str(weights), strict=True)
        tokenizer = open_clip.get_tokenizer(architecture)
        preprocess = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, ImportError, SafetensorError) as error:
        reason = (" ".join(str(error).split()) or type(error).__name__)[:120].rstrip(".: ")
        raise InputError(
            f"open_clip model {name} cannot be loaded ({reason}): weights must be those of the architecture, and all files on this machine"
        ) from None
    finally:
        logging.getLogger().setLevel(level)
    model.requires_grad_(False).eval().to(device)
    template = kept.get("template", TEMPLATE)
    if not isinstance(template, str) or template.count("{}") != 1:
        raise InputError(f"calibration: `template` must have {{}} once, not be {template!r}")
    return Clip(name, model, preprocess, tokenizer, words, Foils.of(words, kept), certainty, template)


def _refuse_foreign_code(directory: Path) -> None:
    config = directory / CONFIG
    if not config.is_file():
        raise InputError(f"open_clip model {directory}: the directory holds no {CONFIG}; give a checkpoint that open_clip saved")
    try:
        if "trust_remote_code" in json.dumps(json.loads(config.read_text(encoding="utf-8"))):
            raise InputError(f"open_clip model {directory}: {CONFIG} asks for code of its own to be run, which is refused")
    except (OSError, RecursionError) as error:
        raise InputError(f"{config} cannot be read ({error})") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{config} is not JSON ({error}): copy the checkpoint again") from None


def _weights_in(directory: Path) -> Path:
    found = sorted(directory.glob("*.safetensors"))
    if len(found) != 1:
        held = f"{len(found)} files" if found else "no file"
        raise InputError(
            f"open_clip model {directory} holds {held} of weights in safetensors: leave one (pickles are never loaded)"
        )
    return found[0]


def _weights_of(name: str) -> tuple[str, Path]:
    """Architecture and file of `NAME:TAG` or `NAME:FILE`."""
    architecture, colon, tag = name.partition(":")
    if architecture not in open_clip.list_models():
        raise InputError(f"open_clip has no model {architecture}, and there is no such directory: see open_clip.list_models()")
    if not colon or not tag:
        raise InputError(
            f"open_clip model {name}: write {architecture}:TAG, or :FILE with weights; its tags are {_tags(architecture)}"
        )
    if Path(tag).is_file():
        file = Path(tag)
    else:
        entry = open_clip.get_pretrained_cfg(architecture, tag)
        if not entry:
            there = _tags(architecture)
            raise InputError(f"open_clip model {architecture} has no tag {tag}, and there is no such file: its tags are {there}")
        if not entry.get("hf_hub"):
            raise InputError(f"open_clip model {name} is published as a pickle only, which is never loaded: take another tag")
        try:
            file = Path(open_clip.download_pretrained(entry))
        except Exception as error:  # whatever a network does
            reason = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())[:160]
            raise InputError(
                f"open_clip model {name} is not on this machine and cannot be fetched ({reason}): fetch it where there is a network, or "
                "give a directory"
            ) from None
    if file.suffix != ".safetensors":
        raise InputError(f"open_clip model {name}: {file.name} is not in safetensors, and pickles are never loaded: convert it")
    return architecture, file


def _tags(architecture: str) -> str:
    """The first of an architecture's tags, and how many more there are."""
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    return (", ".join(tags[:6]) or "none") + (f" and {len(tags) - 6} more" if len(tags) > 6 else "")
