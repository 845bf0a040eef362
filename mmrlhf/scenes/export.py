"""Write synthetic scenes as data files in the users' formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmrlhf.files.atomic import refuse_unwritable, write_atomic
from mmrlhf.scenes.captions import annotator_facts, caption
from mmrlhf.scenes.ground_truth import verify_answer
from mmrlhf.scenes.questions import description_question
from mmrlhf.scenes.scene_graph import Scene, Split, generate_scene

COOCCURRENCE_BIAS = 0.9
"""Probability that an exported SFT caption mentions the absent partner of a trigger shape."""


def export_dataset(output_dir: str, num_rows: int = 1000, seed: int = 0) -> None:
    """Write sft.jsonl, pairs.jsonl, prompts.jsonl (with facts) and their images to `output_dir`.

    A pair is a clean caption against one with injected faults. Each file has `num_rows` rows.
    Raises InputError if the folder cannot be written.
    """
    output_path = Path(output_dir)
    refuse_unwritable(output_path, "output_dir")
    (output_path / "images").mkdir(parents=True, exist_ok=True)
    splits: Sequence[tuple[Split, str]] = (("sft", "sft"), ("pairs", "pairs"), ("rl", "prompts"))
    for split, file_stem in splits:
        rows = [_export_row(split, index, seed, output_path) for index in range(num_rows)]
        write_atomic(output_path / f"{file_stem}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _export_row(split: Split, index: int, seed: int, output_path: Path) -> dict[str, object]:
    """Write a scene's image and return its row."""
    scene, rng = generate_scene(split, index, seed), np.random.default_rng([seed, 53, index])
    image_path = f"images/{scene.id}.png"
    (output_path / image_path).write_bytes(scene.image_source().read())
    question = description_question(scene, rng, cooccurrence_bias=COOCCURRENCE_BIAS if split == "sft" else 0.0)
    row: dict[str, object] = {
        "id": scene.id,
        "images": [image_path],
        "prompt": [{"role": "user", "content": question.text}],
    }
    if split == "sft":
        row["completion"] = [{"role": "assistant", "content": question.answer}]
    else:
        row["facts"] = [{"kind": f.kind, "text": f.text, "source": f.source} for f in annotator_facts(scene, rng)]
    if split == "pairs":
        row["chosen"] = [{"role": "assistant", "content": question.answer}]
        row["rejected"] = [{"role": "assistant", "content": _false_caption(scene, rng)}]
    return row


def _false_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Sample captions with two faults until one is false: two faults may cancel each other out."""
    while True:
        text = caption(scene, rng, num_faults=2)
        if verify_answer(scene, text).false_claims:
            return text
