"""Train a reward model and a policy against it from Python, with your own metric during PPO.

Run it with `python examples/ppo_from_python.py [OUTPUT_DIR]`.
"""

import sys
from pathlib import Path

from mmrlhf import PPOConfig, RewardConfig
from mmrlhf.datasets import read_examples
from mmrlhf.engine.rollout import generate_batches
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.ppo import ppo
from mmrlhf.reward_model import train_reward_model
from mmrlhf.scenes import export_dataset

BASE = str(Path(__file__).resolve().parents[1] / "data" / "tiny_vlm")


def main(output_dir: Path) -> None:
    """Train for a few steps, and print the KL to the reference and the mean answer length."""
    scenes = output_dir / "scenes"
    export_dataset(str(scenes), num_rows=24)
    reward_model = train_reward_model(
        RewardConfig(
            model_name_or_path=BASE, dataset_name=str(scenes / "pairs.jsonl"), output_dir=str(output_dir / "reward"), max_steps=3
        )
    )
    prompts = read_examples(str(scenes / "prompts.jsonl"))

    def mean_words(vlm):
        """Measure greedy answers. It is logged as eval/NAME; metric_for_best_model may name it."""
        answers = [texts[0] for _, texts in generate_batches(vlm, prompts[:4], SamplingParams(40), batch_size=4)]
        return {"mean_words": sum(len(answer.split()) for answer in answers) / len(answers)}

    config = PPOConfig(
        model_name_or_path=BASE, dataset_name=str(scenes / "prompts.jsonl"), reward_model_path=str(reward_model),
        output_dir=str(output_dir / "ppo"), max_steps=2, per_device_train_batch_size=4, num_generations=2, response_length=40,
        min_probe_detection_rate=0,  # a reward model trained for three steps does not pass the probes
    )  # fmt: skip
    adapter = ppo(config, prompts, eval_function=mean_words)
    last = read_jsonl(output_dir / "ppo" / "metrics.jsonl")[-1]
    print(f"{adapter}: KL {last['objective/kl']:.3f} nats, {last['eval/mean_words']:.1f} words per answer")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/ppo_from_python"))
