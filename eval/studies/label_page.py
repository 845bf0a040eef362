"""Label synthetic pairs on the annotators' page, and train a reward model on what it exports.

    python eval/studies/label_page.py [--pairs 600] [--annotators 3] [--error 0.1]

Scripted annotators, who are wrong about a known share of pairs, work over HTTP as people do: they
come in, read a page, and send its form. The labels are exported as TRL's pairs and go into `mmrlhf
reward` as they are. With e errors, alpha of two values should be (1 - 2e)^2, and the majority of
three should be right in (1 - e)^3 + 3 e (1 - e)^2 of pairs. A reward model is trained on the labels
of the page, and one on the true ones; both are measured on other pairs, whose labels are true. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import html
import json
import random
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import httpx2 as httpx

from mmrlhf.config import LabelConfig, RewardConfig
from mmrlhf.datasets import read_preferences
from mmrlhf.files import bundled
from mmrlhf.label import serving_labels
from mmrlhf.labeling.agreement import agreements
from mmrlhf.labeling.export import export_labels
from mmrlhf.labeling.results import read_labels
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.checkpoint import load_reward_model
from mmrlhf.rewards.reward_model import AnswerGroup
from mmrlhf.scenes import export_dataset

ANSWER = re.compile(r'<div class="text" dir="auto">(.*?)</div>', re.DOTALL)
PICTURE = re.compile(r'src="/images/(\w+)"')
CONSENT_LINE = re.compile(r'name="(consent_line)" value="([^"]+)"')
FIELD = re.compile(r'name="(form_key|token)" value="([^"]+)"')


def label_pairs(url: str, name: str, true_answers: Mapping[str, str], error: float, rng: random.Random) -> None:
    """Label every pair that the server has, as an annotator of a known error rate.

    true_answers: the answer that is right, by the hash of the picture that it is about.
    """
    with httpx.Client(base_url=url, follow_redirects=True, timeout=60) as client:
        line = dict(CONSENT_LINE.findall(client.get("/").text))
        page = client.post("/join", data={**line, "name": name, "consent": "yes"}).text
        while "Nothing is left" not in page:
            left, right = (html.unescape(text) for text in ANSWER.findall(page))
            right_answer = true_answers[PICTURE.findall(page)[0]]
            assert right_answer in (left, right)
            is_left = (left == right_answer) != (rng.random() < error)
            form = dict(FIELD.findall(page)) | {"choice": "left" if is_left else "right", "strength": "2", "seconds": "1"}
            page = client.post("/answer", data=form).text


def held_out_accuracy(dataset_name: Path, image_folder: Path, held_out: Path, output_dir: Path) -> float:
    """Train a reward model, and return the share of held-out pairs that it ranks right."""
    tiny_vlm = str(bundled.folder("data") / "tiny_vlm")
    config = RewardConfig(
        model_name_or_path=tiny_vlm,
        dataset_name=str(dataset_name),
        image_folder=str(image_folder),
        output_dir=str(output_dir),
        learning_rate=1e-3,
        per_device_train_batch_size=32,
        num_train_epochs=2,
        warmup_steps=5,
        lora_r=32,
        lora_alpha=64,
        facts="given",
    )
    train_reward_model(config)
    model = load_reward_model(str(output_dir))
    rows = read_preferences(str(held_out))
    scores = model.score([AnswerGroup(row.images, row.prompt, (row.chosen, row.rejected), row.facts, row.id) for row in rows])
    return sum(chosen > rejected for chosen, rejected in scores) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=600)
    parser.add_argument("--held_out", type=int, default=300)
    parser.add_argument("--annotators", type=int, default=3)
    parser.add_argument("--error", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder_name:
        folder = Path(folder_name)
        export_dataset(folder_name, args.pairs + args.held_out, args.seed)
        lines = (folder / "pairs.jsonl").read_text().splitlines(keepends=True)
        (folder / "train.jsonl").write_text("".join(lines[: args.pairs]))
        (folder / "held_out.jsonl").write_text("".join(lines[args.pairs :]))
        rows = read_preferences(str(folder / "train.jsonl"))
        truth, true_answers = {row.id: row.chosen for row in rows}, {row.images[0].key: row.chosen for row in rows}
        config = LabelConfig(
            dataset_name=str(folder / "train.jsonl"), output_file=str(folder / "labels.db"), overlap=args.annotators, port=0
        )
        with serving_labels(config) as server:
            for number in range(args.annotators):
                rng = random.Random(f"{args.seed} {number}")
                label_pairs(server.url, f"annotator {number}", true_answers, args.error, rng)
            (agreement, *_) = agreements(read_labels(server.store))
        export_labels(config.output_file, "trl", str(folder / "labelled.jsonl"))
        labelled = read_preferences(str(folder / "labelled.jsonl"), image_folder=str(folder / "images"))
        result = {
            "alpha": agreement.alpha,
            "alpha_interval": agreement.interval,
            "expected_alpha": (1 - 2 * args.error) ** 2,
            "label_accuracy": sum(row.chosen == truth[row.id] for row in labelled) / len(labelled),
        }
        for name, data, image_folder in (
            ("after_labels_of_the_page", "labelled.jsonl", folder / "images"),
            ("after_true_labels", "train.jsonl", folder),
        ):
            result[f"accuracy_{name}"] = held_out_accuracy(folder / data, image_folder, folder / "held_out.jsonl", folder / name)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
