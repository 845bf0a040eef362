"""Train with your own reward function. It needs no registration: name it as FILE.py:NAME.

Run it with `python examples/own_reward_function.py [OUTPUT_DIR]`. From the command line:

    mmrlhf ppo ... --reward_terms "fact_rm=1, examples/own_reward_function.py:colour_words=0.2"
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from mmrlhf import PPOConfig
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.ppo import ppo
from mmrlhf.rewards.types import RewardSpan, Sample
from mmrlhf.scenes import COLOURS, export_dataset

ROOT = Path(__file__).resolve().parents[1]
COLOUR_PATTERN = re.compile(rf"\b({'|'.join(COLOURS)})\b")


def colour_words(samples: Sequence[Sample]) -> list[list[RewardSpan]]:
    """Give 1 to each colour word, at its characters. Numbers would score whole answers instead."""
    return [[(*match.span(), 1.0) for match in COLOUR_PATTERN.finditer(sample.answer)] for sample in samples]


def main(output_dir: Path) -> None:
    """Take two PPO steps without a reward model, and print the reward of an answer."""
    export_dataset(str(output_dir / "scenes"), num_rows=8)
    config = PPOConfig(
        model_name_or_path=str(ROOT / "data" / "tiny_vlm"), dataset_name=str(output_dir / "scenes" / "prompts.jsonl"),
        output_dir=str(output_dir / "ppo"), reward_terms=f"{__file__}:colour_words=0.2, missing_eos=-1",
        max_steps=2, per_device_train_batch_size=4, num_generations=2, response_length=40,
    )  # fmt: skip
    ppo(config)
    row = read_jsonl(output_dir / "ppo" / "ledger.jsonl")[-1]
    print(f"{row['answer']}\n  {len(next(iter(row['spans'].values())))} colour words, reward {row['total']:.2f}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/own_reward_function"))
