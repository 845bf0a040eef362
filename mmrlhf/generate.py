"""`mmrlhf generate`: answers of a model, or of a model under a ppo run's adapter, as JSONL."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from safetensors import SafetensorError

from mmrlhf.config import EngineConfig, EvalConfig, GenerateConfig
from mmrlhf.formats import read_examples
from mmrlhf.growing import ResumableWriter, file_signature
from mmrlhf.loading import load
from mmrlhf.records import Example, InputError
from mmrlhf.roles import Adapters
from mmrlhf.rollout import generate_batches
from mmrlhf.run import json_line, progress
from mmrlhf.sampling import SamplingParams
from mmrlhf.vlm import VLM


@contextlib.contextmanager
def load_policy(
    model_name_or_path: str, adapter_path: str | None, dtype: str = "float32", engine: EngineConfig | None = None
) -> Iterator[VLM]:
    """A model to ask, under the adapter if one is given. Raises InputError when the adapter belongs to another base."""
    if adapter_path is not None:
        _check_is_adapter(Path(adapter_path))
    vlm = load(model_name_or_path, dtype, engine=engine)
    if adapter_path is None:
        yield vlm
        return
    _check_same_base(Path(adapter_path), vlm)
    adapters = Adapters(vlm)
    try:
        adapters.load("policy", Path(adapter_path), trainable=False)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"adapter {adapter_path} cannot be loaded ({reason}): copy it again, or train it again") from None
    with adapters.use("policy"):
        yield vlm


def _check_is_adapter(path: Path) -> None:
    """What is given instead, most often: a ppo run's own directory, or a reward model's."""
    if (path / "reward.json").is_file():
        raise InputError(f"adapter {path} is a reward model, which scores answers and gives none: give a ppo run's policy folder")
    if not (path / "adapter_model.safetensors").is_file():
        policy_dir = path / "policy"
        suggestion = policy_dir if policy_dir.is_dir() else "the policy folder of a finished ppo run"
        raise InputError(f"adapter {path} holds no adapter_model.safetensors: give {suggestion}")


def _check_same_base(path: Path, vlm: VLM) -> None:
    """Equal shapes are no proof: the adapter of another model of this architecture would load, and answer nonsense."""
    base_file = path / "base.json"
    if not base_file.is_file():
        print(f"note: adapter {path} does not say which weights it was trained on (no base.json): only shapes can be compared")
        return
    try:
        metadata = json.loads(base_file.read_text(encoding="utf-8"))
        trained_fingerprint, base_name = metadata["base_fingerprint"], metadata["base"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{base_file} cannot be read as the ppo stage wrote it: copy the adapter again") from None
    if trained_fingerprint != vlm.fingerprint:
        raise InputError(f"adapter {path} was trained on {base_name}, whose weights {vlm.name} does not hold: give that model")


def make_sampling_params(config: GenerateConfig | EvalConfig) -> SamplingParams:
    """How a configuration asks for answers."""
    stop = (config.stop,) if config.stop else ()
    return SamplingParams(config.response_length, config.temperature, config.top_p, config.top_k, config.min_new_tokens, stop)


def generate(config: GenerateConfig, examples: Sequence[Example] | None = None) -> Path:
    """Write one line for each answer: id, images, prompt, answer. The file appears when all are there; killed, the same command
    continues."""
    sources = (config.model_name_or_path, config.adapter_path, config.dataset_name)
    writer = ResumableWriter(Path(config.output_file), [config, *map(file_signature, sources)], config.num_generations)
    if examples is None:
        examples = read_examples(config.dataset_name, config.dataset_train_split, config.image_folder)
    image_root = Path(config.image_folder or Path(config.dataset_name).parent)
    embedded_ids = [e.id for e in examples if any(i.path is None for i in e.images)]
    if embedded_ids:
        print(
            f"note: the pictures of {len(embedded_ids)} rows lie inside {config.dataset_name}; their answers are written without them"
        )
    num_done = writer.num_done // config.num_generations
    with (
        load_policy(config.model_name_or_path, config.adapter_path, config.dtype, config) as vlm,
        progress(len(examples), "generate", start=num_done) as progress_bar,
    ):
        for example, texts in generate_batches(
            vlm, examples[num_done:], make_sampling_params(config), batch_size=config.batch_size, num_generations=config.num_generations,
            seed=config.seed, max_length=config.max_length,
        ):  # fmt: skip
            row = {
                "id": example.id,
                "images": [os.path.relpath(i.path, image_root) for i in example.images if i.path is not None],
                "prompt": [{"role": m.role, "content": m.content} for m in example.prompt],
            }
            facts = [{"kind": f.kind, "text": f.text, "source": f.source} for f in example.facts]
            writer.append([json_line({**row, "answer": text, "facts": facts}) for text in texts])
            progress_bar.advance()
    writer.finish()
    print(
        f"{config.output_file}: {len(examples) * config.num_generations} answers; image paths start from {image_root} (--image_folder {image_root} to score them)"
    )
    return Path(config.output_file)
