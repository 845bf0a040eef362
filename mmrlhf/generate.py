"""`mmrlhf generate`: write the answers of a model, optionally under a PPO adapter, as JSONL."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mmrlhf.config import GenerateConfig
from mmrlhf.datasets import read_examples
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import make_sampling_params
from mmrlhf.files.jsonl import json_line
from mmrlhf.files.resumable import ResumableWriter, file_signature
from mmrlhf.models.policy import load_policy
from mmrlhf.records import Example
from mmrlhf.report.progress import progress


def generate(config: GenerateConfig, examples: Sequence[Example] | None = None) -> Path:
    """Write one line per answer (id, images, prompt, answer, facts) and return the file's path.

    The file appears once all answers are written. After a kill, the same call resumes.
    """
    sources = (config.model_name_or_path, config.adapter_path, config.dataset_name)
    writer = ResumableWriter(Path(config.output_file), [config, *map(file_signature, sources)], config.num_generations)
    if examples is None:
        examples = read_examples(config.dataset_name, config.dataset_train_split, config.image_folder)
    image_root = Path(config.image_folder or Path(config.dataset_name).parent)
    embedded_ids = [e.id for e in examples if any(i.path is None for i in e.images)]
    if embedded_ids:
        print(
            f"note: the images of {len(embedded_ids)} rows are embedded in {config.dataset_name}; "
            "their answers are written without images"
        )
    num_done = writer.num_done // config.num_generations
    with (
        load_policy(config.model_name_or_path, config.adapter_path, config.dtype, config) as vlm,
        progress(len(examples), "generate", start=num_done) as progress_bar,
    ):
        for example, texts in generate_batches(
            vlm, examples[num_done:], make_sampling_params(config), batch_size=config.batch_size, num_generations=config.num_generations,
            max_length=config.max_length,
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
        f"{config.output_file}: {len(examples) * config.num_generations} answers; image paths are relative to {image_root} "
        f"(--image_folder {image_root} to score them)"
    )
    return Path(config.output_file)
