"""The README.md of an exported model: description, loading, training, figures.

Its head is the Hub's metadata (https://huggingface.co/docs/hub/model-cards). Names come from data
and from other people's runs, so all are escaped. The only path shown is that of the folder, as
given.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub import EvalResult, ModelCardData

import mmrlhf
from mmrlhf.commands.training_record import Evaluation, Figure, TrainingRecord, hub_base
from mmrlhf.engine.vllm_requests import LORA_RANKS
from mmrlhf.models.export import ADAPTER_LINES, MODEL_LINES
from mmrlhf.text.markdown import escape_markdown, table

MAX_FIGURES = 12
"""Number of figures of a benchmark that are shown."""
Kind = Literal["model", "adapter", "reward model"]
KIND_NAMES = {"model": "A vision-language model", "adapter": "A LoRA adapter", "reward model": "A reward model"}


@dataclass(frozen=True)
class AdapterFacts:
    """The highest rank of an adapter's layers, and whether vLLM applies all of it."""

    rank: int
    is_for_vllm: bool


@dataclass(frozen=True)
class CardFacts:
    """The subject of a card.

    folder: where it is written. hub_id: its future id on the Hub, if any. model: the base of an
    adapter, or the written model.
    """

    kind: Kind
    folder: str
    hub_id: str | None
    model: str
    records: Sequence[TrainingRecord]
    evaluations: Sequence[Evaluation]
    adapter: AdapterFacts | None = None

    @property
    def title(self) -> str:
        """The Hub id, or the name of the folder."""
        return self.hub_id or Path(self.folder).name

    @property
    def base(self) -> str | None:
        """Return the Hub id of the model that it was made from; None if that is not on the Hub."""
        records = () if self.adapter is not None else self.records  # an adapter fits its own base only
        return hub_base(self.model, records)


def model_card(facts: CardFacts) -> str:
    """Return the text of README.md."""
    parts = [
        f"# {escape_markdown(facts.title)}",
        _what_it_is(facts),
        f"## Use\n\n{_how_to_load(facts)}",
        f"## Training\n\n{_training(facts)}",
        f"## Evaluation\n\n{_evaluation(facts)}",
    ]
    return f"---\n{_metadata(facts).to_yaml()}\n---\n\n" + "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _metadata(facts: CardFacts) -> ModelCardData:
    """Return the header. The licence is left to the user, who knows that of the data."""
    is_adapter = facts.adapter is not None
    tags = ["mmrlhf", *(["lora"] if is_adapter else []), *(["reward-model"] if facts.kind == "reward model" else [])]
    results = [
        EvalResult(
            task_type="image-text-to-text",
            dataset_type=evaluation.benchmark,
            dataset_name=evaluation.benchmark,
            metric_type=figure.name,
            metric_name=f"{figure.name}, 95% interval {_interval(figure)}",
            metric_value=figure.value,
        )
        for evaluation in {evaluation.benchmark: evaluation for evaluation in reversed(facts.evaluations)}.values()
        for figure in evaluation.figures[:1]
    ]
    return ModelCardData(
        base_model=facts.base,
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=None if facts.kind == "reward model" else "image-text-to-text",
        tags=[*tags, *dict.fromkeys(record.stage for record in facts.records)],
        model_name=facts.title if results else None,  # of the figures
        eval_results=results or None,
    )


def _what_it_is(facts: CardFacts) -> str:
    on = "on" if facts.adapter is not None else "made from"
    base = (
        f"[{escape_markdown(facts.base)}](https://huggingface.co/{facts.base})"
        if facts.base
        else "a model that is not on the Hub"
    )
    stages = ", then ".join(record.stage for record in facts.records)
    text = f"{KIND_NAMES[facts.kind]} {on} {base}, trained with mmrlhf {mmrlhf.__version__}{f': {stages}' if stages else ''}."
    if facts.kind == "reward model":
        text += (
            " It scores answers about images and writes none: its head (`head.safetensors`) reads the score where the reply to "
            "a yes/no question would begin.\n\n`reference.jsonl` holds a few rows of its data with their images, which "
            "are scored again when it is loaded."
        )
    return text


# ---- how to load it ------------------------------------------------------------------------------


def _how_to_load(facts: CardFacts) -> str:
    """Return code for transformers or PEFT, and commands for vLLM and mmrlhf."""
    name, base = facts.hub_id or facts.folder, facts.base or "WHERE_THE_BASE_IS"
    quoted, folder = shlex.quote(name), shlex.quote(facts.hub_id.rpartition("/")[2] if facts.hub_id else facts.folder)
    download = f"hf download {quoted} --local-dir {folder}\n" if facts.hub_id else ""
    if facts.kind == "model":
        return (
            _code("python", MODEL_LINES.format(directory=name))
            + "\n"
            + _code("", f"vllm serve {quoted}\nmmrlhf serve {quoted}\n")
        )
    if facts.kind == "reward model":
        return _code("", f"{download}mmrlhf serve {folder}    # POST /score\n")
    assert facts.adapter is not None
    rank = next((rank for rank in LORA_RANKS if rank >= facts.adapter.rank), None)
    vllm = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules policy={quoted}\n"
    if not facts.adapter.is_for_vllm or rank is None:
        vllm = "# vLLM does not apply all of this adapter: export the model with --merge for it\n"
    mmrlhf_serve = f"mmrlhf serve {base} --adapter_path {folder}\n"
    placeholder = "" if facts.base else "\n`WHERE_THE_BASE_IS` stands for the model that it was trained on.\n"
    return _code("python", ADAPTER_LINES.format(directory=name)) + "\n" + _code("", vllm + download + mmrlhf_serve) + placeholder


def _code(language: str, lines: str) -> str:
    return f"```{language}\n{lines}```\n"


# ---- how it came about ---------------------------------------------------------------------------


def _training(facts: CardFacts) -> str:
    if not facts.records:
        return "No run of mmrlhf was found beside the weights, so data and settings are not known here."
    return "\n\n".join(_stage(record).rstrip() for record in facts.records)


def _stage(record: TrainingRecord) -> str:
    steps = "" if record.num_steps is None else f"{record.num_steps} steps. "
    rows = [
        (
            escape_markdown(file.name),
            escape_markdown(file.setting),
            "" if file.num_rows is None else str(file.num_rows),
            file.sha256[:16] if file.sha256 and file.sha256.isalnum() else "",
        )
        for file in record.data
    ]
    data = table(("data", "used as", "rows", "sha256 begins with"), rows) if rows else "No data is recorded.\n"
    settings = table(("setting", "value"), [(escape_markdown(k), escape_markdown(v)) for k, v in sorted(record.settings.items())])
    others = (
        f"Settings that differ from the defaults:\n\n{settings}" if record.settings else "All settings have their defaults.\n"
    )
    return f"### {record.stage}\n\n{steps}Learnt from:\n\n{data}\n{others}"


# ---- figures -------------------------------------------------------------------------------------


def _evaluation(facts: CardFacts) -> str:
    if not any(evaluation.figures for evaluation in facts.evaluations):
        return "Not evaluated."
    return "\n\n".join(_figures(evaluation).rstrip() for evaluation in facts.evaluations if evaluation.figures)


def _figures(evaluation: Evaluation) -> str:
    shown = evaluation.figures[:MAX_FIGURES]
    rows = [(escape_markdown(figure.name), f"{figure.value:.4g}", _interval(figure)) for figure in shown]
    count = "" if evaluation.num_examples is None else f", {evaluation.num_examples} examples"
    better = ""
    if evaluation.direction in ("higher", "lower"):
        better = f"; {evaluation.direction} is better for {escape_markdown(shown[0].name)}"
    more = len(evaluation.figures) - len(shown)
    tail = f"\nand {more} more figures in its files." if more else ""
    return (
        f"### {escape_markdown(evaluation.benchmark)}\n\nMeasured {escape_markdown(evaluation.note)}{count}{better}.\n\n"
        + table(("figure", "value", "95% interval"), rows)
        + tail
    )


def _interval(figure: Figure) -> str:
    return "none" if figure.interval is None else "{:.4g} to {:.4g}".format(*figure.interval)
