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
from mmrlhf.growing import GrowingFile, state_of
from mmrlhf.loading import load
from mmrlhf.records import Example, InputError
from mmrlhf.roles import Adapters
from mmrlhf.rollout import answer_all
from mmrlhf.run import json_line, progress
from mmrlhf.sampling import Sampling
from mmrlhf.vlm import VLM


@contextlib.contextmanager
def policy(
    model_name_or_path: str, adapter_path: str | None, dtype: str = "float32", engine: EngineConfig | None = None
) -> Iterator[VLM]:
    """A model to ask, under the adapter if one is given. Raises InputError when the adapter belongs to another base."""
    if adapter_path is not None:
        _refuse_what_is_no_adapter(Path(adapter_path))
    vlm = load(model_name_or_path, dtype, engine=engine)
    if adapter_path is None:
        yield vlm
        return
    _refuse_another_base(Path(adapter_path), vlm)
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


def _refuse_what_is_no_adapter(path: Path) -> None:
    """What is given instead, most often: a ppo run's own directory, or a reward model's."""
    if (path / "reward.json").is_file():
        raise InputError(f"adapter {path} is a reward model, which scores answers and gives none: give a ppo run's policy folder")
    if not (path / "adapter_model.safetensors").is_file():
        inside = path / "policy"
        found = inside if inside.is_dir() else "the policy folder of a finished ppo run"
        raise InputError(f"adapter {path} holds no adapter_model.safetensors: give {found}")


def _refuse_another_base(path: Path, vlm: VLM) -> None:
    """Equal shapes are no proof: the adapter of another model of this architecture would load, and answer nonsense."""
    card = path / "base.json"
    if not card.is_file():
        print(f"note: adapter {path} does not say which weights it was trained on (no base.json): only shapes can be compared")
        return
    try:
        base = json.loads(card.read_text(encoding="utf-8"))
        trained_on, name = base["base_fingerprint"], base["base"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{card} cannot be read as the ppo stage wrote it: copy the adapter again") from None
    if trained_on != vlm.fingerprint:
        raise InputError(f"adapter {path} was trained on {name}, whose weights {vlm.name} does not hold: give that model")


def sampling(config: GenerateConfig | EvalConfig) -> Sampling:
    """How a configuration asks for answers."""
    stop = (config.stop,) if config.stop else ()
    return Sampling(config.response_length, config.temperature, config.top_p, config.top_k, config.min_new_tokens, stop)


def generate(config: GenerateConfig, examples: Sequence[Example] | None = None) -> Path:
    """Write one line for each answer: id, images, prompt, answer. The file appears when all are there; killed, the same command
    continues."""
    sources = (config.model_name_or_path, config.adapter_path, config.dataset_name)
    out = GrowingFile(Path(config.output_file), [config, *map(state_of, sources)], config.num_generations)
    if examples is None:
        examples = read_examples(config.dataset_name, config.dataset_train_split, config.image_folder)
    home = Path(config.image_folder or Path(config.dataset_name).parent)
    inside = [e.id for e in examples if any(i.path is None for i in e.images)]
    if inside:
        print(
            f"note: the pictures of {len(inside)} rows lie inside {config.dataset_name}; their answers are written without them"
        )
    first = out.done // config.num_generations
    with (
        policy(config.model_name_or_path, config.adapter_path, config.dtype, config) as vlm,
        progress(len(examples), "generate", start=first) as steps,
    ):
        for example, texts in answer_all(
            vlm, examples[first:], sampling(config), batch_size=config.batch_size, num_generations=config.num_generations,
            seed=config.seed, max_length=config.max_length,
        ):  # fmt: skip
            row = {
                "id": example.id,
                "images": [os.path.relpath(i.path, home) for i in example.images if i.path is not None],
                "prompt": [{"role": m.role, "content": m.content} for m in example.prompt],
            }
            facts = [{"kind": f.kind, "text": f.text, "source": f.source} for f in example.facts]
            out.add([json_line({**row, "answer": text, "facts": facts}) for text in texts])
            steps.advance()
    out.finish()
    print(
        f"{config.output_file}: {len(examples) * config.num_generations} answers; image paths start from {home} (--image_folder {home} to score them)"
    )
    return Path(config.output_file)
