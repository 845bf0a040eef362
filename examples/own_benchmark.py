"""Write your own benchmark: one file with a subclass of `Benchmark`.

Run it with `python examples/own_benchmark.py [OUTPUT_DIR]`. From the command line:

    mmrlhf eval examples/own_benchmark.py --model runs/sft/model --limit 100 --out runs/own
"""

import sys
from pathlib import Path

import numpy as np

from mmrlhf import EvalConfig, Example, Message
from mmrlhf.evaluate import evaluate
from mmrlhf.evaluation.benchmark import Benchmark, first_valid
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.scenes import SHAPES, generate_scene
from mmrlhf.text.answer_parsing import parse_yes_no

ROOT = Path(__file__).resolve().parents[1]


class ShapePresence(Benchmark):
    """Asks one question per scene, "Is there a SHAPE?"; half of the shapes are absent."""

    version, license = "1", "Apache-2.0"
    headline, direction, cluster = "accuracy", "higher", "image"

    def load(self, task):
        """Return the questions. A benchmark with a data file would read `task.path` here."""
        examples = []
        for i in range(task.limit or 100):
            scene = generate_scene("selection", i, seed=0)
            present = {scene_object.shape for scene_object in scene.objects}
            shape, label = (min(present), "yes") if i % 2 else (min(set(SHAPES) - present), "no")
            prompt = (Message("user", f"Is there {'an' if shape[0] in 'aeiou' else 'a'} {shape}?"),)
            examples.append(Example(scene.id, (scene.image_source(),), prompt, meta={"label": label}))
        return examples

    def score(self, example, answers, task):
        """Return everything that determines the score; it becomes a line of scores.jsonl."""
        said = parse_yes_no(answers[0])
        return {"said": said, "unparsed": said is None, "right": said == example.meta["label"]}

    def aggregate(self, rows, task):
        """Return the metric as a function of column sums, from which its interval follows."""
        rows = first_valid(rows)
        columns = np.array([[row["right"], 1] for row in rows]).reshape(-1, 2)
        return {"robust": SufficientStats([row["id"] for row in rows], columns, lambda s: {"accuracy": s[..., 0] / s[..., 1]})}


def main(output_dir: Path) -> None:
    """Evaluate the shipped tiny model."""
    config = EvalConfig(
        model_name_or_path=str(ROOT / "data" / "tiny_vlm"), output_dir=str(output_dir), limit=16, response_length=16
    )
    print(evaluate(__file__, config)["metrics"]["robust"])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/own_benchmark"))
