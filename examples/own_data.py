"""Use your own data: write rows, check them, and train a reward model that reads their facts.

Run it with `python examples/own_data.py [OUTPUT_DIR]`.
"""

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from mmrlhf import RewardConfig
from mmrlhf.commands.check import check
from mmrlhf.datasets import read_preferences
from mmrlhf.reward_model import train_reward_model

ROOT = Path(__file__).resolve().parents[1]
COLOURS = ("red", "blue", "green", "orange")


def write_pairs(path: Path) -> None:
    """Write TRL preference rows, each with an image and, as an additional field, its `facts`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for colour, other in zip(COLOURS, COLOURS[1:] + COLOURS[:1], strict=True):
        image = Image.new("RGB", (96, 96), "white")
        ImageDraw.Draw(image).ellipse((20, 20, 76, 76), fill=colour)
        image.save(path.parent / f"{colour}.png")
        row = {
            "images": [f"{colour}.png"],
            "prompt": [{"role": "user", "content": "What do you see?"}],
            "chosen": [{"role": "assistant", "content": f"There is a {colour} circle."}],
            "rejected": [{"role": "assistant", "content": f"There is a {colour} circle and a {other} star."}],
            "facts": [{"kind": "object", "text": f"{colour} circle"}, {"kind": "absent", "text": "star"}],
        }
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def main(output_dir: Path) -> None:
    """Check the rows as `mmrlhf data check` does, print one, and train for two steps."""
    pairs = output_dir / "pairs.jsonl"
    write_pairs(pairs)
    check(str(pairs))
    preference = read_preferences(str(pairs))[0]
    print(f"{preference.chosen!r} is better than {preference.rejected!r}, given {preference.facts[0].text!r}")
    config = RewardConfig(
        model_name_or_path=str(ROOT / "data" / "tiny_vlm"), dataset_name=str(pairs), output_dir=str(output_dir / "reward"),
        max_steps=2, per_device_train_batch_size=4,
    )  # fmt: skip
    print(f"reward model: {train_reward_model(config)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/own_data"))
