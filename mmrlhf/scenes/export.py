"""The world as data files, as users have theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mmrlhf.scenes.captions import annotator_facts, caption, description_question
from mmrlhf.scenes.ground_truth import verify_answer
from mmrlhf.scenes.scene_graph import generate_scene

COOCCURRENCE_BIAS = 0.9
"""Share of exported captions in which a trigger calls its absent partner."""


def export_dataset(output_dir: str, num_rows: int = 1000, seed: int = 0) -> None:
    """The world as data files: sft.jsonl, pairs.jsonl (a clean caption against one with planted faults), prompts.jsonl with
    facts, and their pictures. What the stages read from users' files."""
    output_path = Path(output_dir)
    (output_path / "images").mkdir(parents=True, exist_ok=True)
    for split, file_stem in (("sft", "sft"), ("pairs", "pairs"), ("rl", "prompts")):
        lines = []
        for index in range(num_rows):
            scene, rng = generate_scene(split, index, seed), np.random.default_rng([seed, 53, index])  # type: ignore[arg-type]
            image_path = f"images/{scene.id}.png"
            (output_path / image_path).write_bytes(scene.image_source().read())
            question = description_question(scene, rng, habit=COOCCURRENCE_BIAS if split == "sft" else 0.0)
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
                while not verify_answer(scene, faulty_caption := caption(scene, rng, faults=2)).false_claims:
                    pass  # two faults may undo each other
                row |= {
                    "chosen": [{"role": "assistant", "content": question.answer}],
                    "rejected": [{"role": "assistant", "content": faulty_caption}],
                }
            lines.append(json.dumps(row) + "\n")
        (output_path / f"{file_stem}.jsonl").write_text("".join(lines))
