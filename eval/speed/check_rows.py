"""Time reading a dataset and checking its rows against a model, before the first step.

    python eval/speed/check_rows.py CHECKPOINT [--rows 10000] [--answers 1]

Every row has a JPEG of its own, 300 to 1300 pixels a side, a question and answers of some 60 words.
`read_s` parses all rows; `check_s` renders them, reads the images' headers and counts tokens, as
sft does (`--answers 1`) or reward (`--answers 2`). The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from mmrlhf.config import SFTConfig
from mmrlhf.datasets import read_examples
from mmrlhf.models.loading import load
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.records import Example
from mmrlhf.training.row_checks import Length, check_rows

CAPTION = "the man in a red shirt is standing next to two dogs on the wet street and holds an open umbrella"


def make_dataset(folder: Path, num_rows: int) -> str:
    """Write rows with an image each, and return the file's path."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (1300, 1300, 3), dtype=np.uint8)
    rows = []
    for index in range(num_rows):
        width, height = rng.integers(300, 1300, 2)
        Image.fromarray(texture[:height, :width]).save(folder / f"{index}.jpg", quality=5)
        answer = " ".join(rng.choice(CAPTION.split(), 60))
        rows.append({"id": index, "image": f"{index}.jpg", "prompt": "What is shown here?", "completion": answer})
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--rows", type=int, default=10000)
    parser.add_argument("--answers", type=int, default=1)
    args = parser.parse_args()
    vlm = load(args.checkpoint)
    config = SFTConfig(model_name_or_path=args.checkpoint, dataset_name="rows.jsonl", output_dir="-", max_length=1 << 20)
    with tempfile.TemporaryDirectory() as folder:
        path = make_dataset(Path(folder), args.rows)
        start = time.perf_counter()
        examples = read_examples(path)
        read_s = time.perf_counter() - start
        lengths = PromptLengths(vlm)

        def lengths_of(example: Example) -> list[Length]:
            answer_ids = [vlm.answer_token_ids(example.prompt, example.answer or "", 1) for _ in range(args.answers)]
            return [Length(lengths.count(example.prompt, example.images) + max(map(len, answer_ids)), config.max_length)]

        checks = check_rows(examples, path, lengths_of, lengths, Console())
        check_s = time.perf_counter() - start - read_s
    print(json.dumps({"rows": args.rows, "longest": checks.longest, "read_s": round(read_s, 1), "check_s": round(check_s, 1)}))


if __name__ == "__main__":
    main()
