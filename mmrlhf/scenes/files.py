"""The world as data files, as users have theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mmrlhf.scenes.graph import scene
from mmrlhf.scenes.language import caption, describe, facts
from mmrlhf.scenes.truth import judge

HABIT = 0.9
"""Share of exported captions in which a trigger calls its absent partner."""


def export(output_dir: str, rows: int = 1000, seed: int = 0) -> None:
    """The world as data files: sft.jsonl, pairs.jsonl (a clean caption against one with planted faults), prompts.jsonl with
    facts, and their pictures. What the stages read from users' files."""
    out = Path(output_dir)
    (out / "images").mkdir(parents=True, exist_ok=True)
    for split, name in (("sft", "sft"), ("pairs", "pairs"), ("rl", "prompts")):
        lines = []
        for index in range(rows):
            drawn, rng = scene(split, index, seed), np.random.default_rng([seed, 53, index])  # type: ignore[arg-type]
            picture = f"images/{drawn.id}.png"
            (out / picture).write_bytes(drawn.source().read())
            asked = describe(drawn, rng, habit=HABIT if split == "sft" else 0.0)
            row: dict[str, object] = {"id": drawn.id, "images": [picture], "prompt": [{"role": "user", "content": asked.text}]}
            if split == "sft":
                row["completion"] = [{"role": "assistant", "content": asked.answer}]
            else:
                row["facts"] = [{"kind": f.kind, "text": f.text, "source": f.source} for f in facts(drawn, rng)]
            if split == "pairs":
                while not judge(drawn, faulty := caption(drawn, rng, faults=2)).false:
                    pass  # two faults may undo each other
                row |= {
                    "chosen": [{"role": "assistant", "content": asked.answer}],
                    "rejected": [{"role": "assistant", "content": faulty}],
                }
            lines.append(json.dumps(row) + "\n")
        (out / f"{name}.jsonl").write_text("".join(lines))
