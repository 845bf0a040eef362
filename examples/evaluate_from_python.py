"""Evaluate two models on a benchmark and compare them with paired intervals.

Run it with `python examples/evaluate_from_python.py [OUTPUT_DIR]`.
"""

import sys
from pathlib import Path

from mmrlhf import SFTConfig
from mmrlhf.commands.compare import compare
from mmrlhf.evaluate import evaluate_all
from mmrlhf.scenes import export_dataset
from mmrlhf.sft import sft

BASE = str(Path(__file__).resolve().parents[1] / "data" / "tiny_vlm")


def main(output_dir: Path) -> None:
    """Fine-tune the tiny model on captions for a few steps, then compare it with its base."""
    export_dataset(str(output_dir / "scenes"), num_rows=64)
    tuned = sft(
        SFTConfig(
            model_name_or_path=BASE, dataset_name=str(output_dir / "scenes" / "sft.jsonl"), output_dir=str(output_dir / "sft"),
            max_steps=4, learning_rate=1e-3,
        )
    )  # fmt: skip
    results = evaluate_all(
        {"scenes": {"limit": 16, "response_length": 48}}, {"base": {"model": BASE}, "tuned": {"model": str(tuned)}},
        str(output_dir / "eval"),
    )  # fmt: skip
    for model, by_benchmark in results.items():
        figure = by_benchmark["scenes"]["metrics"]["official"]["held_out"]["chair_s"]
        print(f"{model}: {figure['value']:.1%} of answers have a false claim ({figure['low']:.1%} to {figure['high']:.1%})")
    compare([str(output_dir / "eval" / model / "scenes") for model in results], str(output_dir / "compare"))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/evaluate_from_python"))
