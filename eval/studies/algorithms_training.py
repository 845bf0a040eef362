"""The methods of `algorithms.py`: what they share in a world, and how each is trained.

Every method starts from the same SFT model. Those with a judge share one reward model, those with
labels the same pairs (or as many corrections), and those that sample the same number of answers to
the same prompts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from annotator_corrections import corrected_pairs
from common import Experiment, cached_result
from facts_map_judges import FEW_LABELS, LEXICON_FILE, build_judge

from mmrlhf.config import DPOConfig, RFTConfig, SFTConfig
from mmrlhf.config.loader import load_config
from mmrlhf.demo import data
from mmrlhf.demo.measure import sampled_rows
from mmrlhf.demo.pipeline import stage_config
from mmrlhf.dpo import dpo
from mmrlhf.files.bundled import find, folder
from mmrlhf.files.jsonl import read_jsonl
from mmrlhf.records import Example, InputError, Preference
from mmrlhf.rft import rft
from mmrlhf.sft import sft

METHODS = (
    "sft", "sft_t03", "sft_t07", "clean_sft", "best_of_n", "rft", "rft3", "dpo", "ddpo", "grpo", "rloo", "ppo", "ppo_dense",
)  # fmt: skip
TEMPERATURES = {"sft_t03": 0.3, "sft_t07": 0.7}
"""Rows that sample from the SFT model. All other rows are greedy, but for best_of_n."""
UNLABELLED = ("sft", *TEMPERATURES, "clean_sft")
"""Methods that need no labels; their cells have 0."""
JUDGED = ("best_of_n", "rft", "rft3", "grpo", "rloo", "ppo", "ppo_dense")
"""Methods that the reward model scores answers for."""
STRENGTHS: dict[str, tuple[str, tuple[float, ...]]] = {
    **dict.fromkeys(("rft", "rft3", "sft_chosen"), ("learning_rate", (2e-4, 5e-4, 1e-3))),
    "dpo": ("beta", (0.1, 0.3, 1.0)),
    "ddpo": ("beta", (1.0, 3.0, 10.0)),
    **dict.fromkeys(("grpo", "rloo", "ppo", "ppo_dense"), ("kl_coef", (0.1, 0.3, 1.0))),
}
"""The setting that decides how far each trained method goes, and the values that are tried."""
ANSWER_TERMS = "fact_rm=1, missing_eos=-2"
DENSE_TERMS = "fact_rm=1, hallucination=-1, coverage=0.2, missing_eos=-2"
ESTIMATORS = {"grpo": "grpo", "rloo": "rloo", "ppo": "gae", "ppo_dense": "gae"}
NO_CRITIC = {"critic_learning_rate": None, "cliprange_value": 0.2, "vf_coef": 0.5}
"""The defaults of settings for a critic, which the demo's recipe changes."""
RFT_GENERATIONS = 8
NUM_GENERATIONS = 4
CORRECTION_WEIGHT = 5.0
"""`changed_token_weight` of DDPO, as in RLHF-V, whose log-probs are also divided by the weighted
length: its betas are larger than DPO's."""
LORA = {"tuning": "lora", "lora_r": 16, "lora_alpha": 32.0}


@dataclass(frozen=True)
class Sizes:
    """What all methods and seeds of a directory share. `base` is the hash of the base's weights."""

    base: str
    sft_rows: int
    pair_scenes: int
    held_out_pairs: int
    answers: int
    prompts_per_step: int
    selection_scenes: int
    held_out_scenes: int
    shift_scenes: int
    kl_scenes: int
    diversity_scenes: int
    best_of_n: int

    @property
    def steps(self) -> int:
        """Return the steps of an online method, in which each prompt occurs once."""
        return self.answers // (NUM_GENERATIONS * self.prompts_per_step)


@dataclass(frozen=True)
class Policy:
    """A model that answers: a checkpoint, and an adapter if there is one."""

    model_path: str
    adapter_path: str | None = None


@dataclass(frozen=True)
class World:
    """A seed. `experiment` has its SFT model, pairs and directory."""

    experiment: Experiment
    sizes: Sizes

    @property
    def seed(self) -> int:
        return self.experiment.seed

    def prompts(self) -> Sequence[Example]:
        """Return the prompts, with the annotator's facts, that methods sample answers to."""
        return data.LazyRows(lambda: data.build_rl_prompts(self.experiment.data_config))


@lru_cache(maxsize=1)
def make_world(out: Path, seed: int, sizes: Sizes, base_path: str | None = None) -> World:
    """Return a seed's world. A process keeps the last one, whose pairs take a while to build."""
    overrides = {
        **{name: value for name, value in asdict(sizes).items() if name in ("sft_rows", "pair_scenes", "held_out_pairs")},
        "rl_scenes": sizes.answers // NUM_GENERATIONS,
    }
    base_path = base_path or str(folder("data") / "tiny_vlm")
    return World(Experiment(out, seed, base_path=base_path, data_overrides=overrides), sizes)


def with_seconds(run: Callable[[], object]) -> dict[str, Any]:
    """Call `run` and return the seconds that it kept a core busy."""
    start = time.process_time()
    run()
    return {"core_seconds": round(time.process_time() - start, 1)}


# ---- what methods share --------------------------------------------------------------------------


def prepare(labels: Sequence[int], world: World) -> dict[str, float]:
    """Build the SFT model, the pairs and a reward model per number of labels.

    Return the seconds of each. Raises InputError if there are fewer pairs than labels.
    """
    experiment, seconds = world.experiment, {}
    stages = {"sft": lambda: experiment.sft_path, "pairs": lambda: experiment.pairs}
    stages |= {f"judge_{n}": partial(build_judge, experiment, n, "annotator") for n in labels}
    for name, run in stages.items():
        result = cached_result(experiment.output_dir, f"prepare-{world.seed}-{name}", partial(with_seconds, run))
        seconds[name] = float(result["core_seconds"])
    return seconds


def labelled_pairs(world: World, labels: int) -> list[Preference]:
    """Return the first pairs. Raises InputError if there are too few."""
    pairs, _ = world.experiment.pairs
    if len(pairs) < labels:
        raise InputError(f"seed {world.seed} has {len(pairs)} training pairs, not {labels}: raise --pair-scenes")
    return pairs[:labels]


def labels_of(method: str, labels: int) -> int:
    """Return how many labels a method needs of those that there are."""
    return 0 if method in UNLABELLED else labels


def passes(labels: int) -> float:
    """Return how often each label is read: as often as by the reward model."""
    return 2.0 if labels <= FEW_LABELS else 1.0


# ---- methods -------------------------------------------------------------------------------------


def policy_of(world: World, method: str, labels: int, value: float | None) -> Policy:
    """Return the policy of a method, trained if it has not been yet.

    `value` is that of the method's setting in `STRENGTHS`, None without one.
    """
    experiment = world.experiment
    if method in ("sft", "best_of_n", *TEMPERATURES):
        return Policy(experiment.sft_path)
    if method == "clean_sft":
        return Policy(_clean_sft(experiment))
    assert value is not None
    setting, _ = STRENGTHS[method]
    name, change = f"{method}-{labels}-{setting}{value:g}", {setting: value}
    if method == "sft_chosen":
        return Policy(_sft_on_chosen(world, labels, name, change))
    if method in ("rft", "rft3"):
        return Policy(_rft(world, labels, name, change, num_rounds=3 if method == "rft3" else 1))
    if method in ("dpo", "ddpo"):
        return Policy(experiment.sft_path, _dpo(world, method, labels, name, change))
    return Policy(experiment.sft_path, train_online(world, method, labels, name, **change))


def _clean_sft(experiment: Experiment) -> str:
    """Train SFT on the same pictures, with captions without the co-occurrence bias."""
    directory = experiment.directory / "clean_sft"
    if not (directory / "finished.json").exists():
        config = stage_config(SFTConfig, experiment.seed, directory, model_name_or_path=experiment.base_path)
        sft(config, data.build_sft_rows(experiment.data_config, 0.0))
    return str(directory / "model")


def _sft_on_chosen(world: World, labels: int, name: str, change: Mapping[str, Any]) -> str:
    experiment, directory = world.experiment, world.experiment.directory / name
    if not (directory / "finished.json").exists():
        settings = {"model_name_or_path": experiment.sft_path, "num_train_epochs": passes(labels), **LORA, **change}
        rows = [Example(pair.id, pair.images, pair.prompt, pair.chosen) for pair in labelled_pairs(world, labels)]
        sft(stage_config(SFTConfig, experiment.seed, directory, **settings), rows)
    return str(directory / "model")


def _rft(world: World, labels: int, name: str, change: Mapping[str, Any], num_rounds: int) -> str:
    """Train on the best of eight answers to a prompt; the rounds share the number of answers."""
    experiment, directory = world.experiment, world.experiment.directory / name
    num_prompts = world.sizes.answers // (RFT_GENERATIONS * num_rounds)
    overrides = {
        "model_name_or_path": experiment.sft_path,
        "reward_model_path": build_judge(experiment, labels, "annotator"),
        "reward_terms": ANSWER_TERMS,
        "num_rounds": num_rounds,
        "num_generations": RFT_GENERATIONS,
        "num_train_epochs": 2.0,
        "per_device_train_batch_size": world.sizes.prompts_per_step,
        **LORA,
        **change,
    }
    if not (directory / "finished.json").exists():
        config = load_config(RFTConfig, find("configs", "demo/rft"), overrides | _own(experiment, directory))
        rft(config, world.prompts()[:num_prompts])
    return str(directory / "model")


def _dpo(world: World, method: str, labels: int, name: str, change: Mapping[str, Any]) -> str:
    experiment, directory = world.experiment, world.experiment.directory / name
    if (directory / "finished.json").exists():
        return str(directory / "policy")
    rows = labelled_pairs(world, labels)
    overrides = {"model_name_or_path": experiment.sft_path, "num_train_epochs": passes(labels), **change}
    if method == "ddpo":
        rows = corrected_pairs(rows, experiment.data_config)
        overrides |= {"changed_token_weight": CORRECTION_WEIGHT, "loss_type": "sigmoid_norm"}
    config = load_config(DPOConfig, find("configs", "demo/dpo"), overrides | _own(experiment, directory))
    return str(dpo(config, [replace(row, facts=()) for row in rows]))


def _own(experiment: Experiment, directory: Path) -> dict[str, Any]:
    """Return the settings of a run with rows in memory."""
    return {"dataset_name": data.IN_MEMORY_DATASET, "seed": experiment.seed, "output_dir": str(directory)}


def train_online(world: World, method: str, labels: int, name: str, **change: Any) -> str:
    """Train with GRPO, RLOO or PPO, and return the adapter. `change` are further settings."""
    experiment, sizes = world.experiment, world.sizes
    settings: dict[str, Any] = {
        "advantage_estimator": ESTIMATORS[method],
        "reward_model_path": build_judge(experiment, labels, "annotator"),
        "reward_terms": DENSE_TERMS if method == "ppo_dense" else ANSWER_TERMS,
        "lexicon_file": LEXICON_FILE if method == "ppo_dense" else None,
        "num_generations": NUM_GENERATIONS,
        "per_device_train_batch_size": sizes.prompts_per_step,
        "max_steps": sizes.steps,
        **({} if ESTIMATORS[method] == "gae" else NO_CRITIC),
        **change,
    }
    return experiment.train_policy(name, world.prompts(), **settings)


# ---- adaptive KL ---------------------------------------------------------------------------------

TARGET_KL = 1.0
"""Nats per answer."""
KL_FACTOR = 1.5
"""How far from the target a mean of ten steps may be."""
KL_WINDOW = 10
WARM_UP_SHARE = 1 / 3
"""Share of the run in which the KL may rise from 0 to the target."""


def measure_adaptive_kl(world: World, labels: int) -> dict[str, Any]:
    """Train PPO with an adaptive KL, in twice the steps of half the prompts, at a constant rate.

    Return the share of steps after warm-up whose 10-step mean is within the factor of the target,
    and these means.
    """
    prompts_per_step = max(1, world.sizes.prompts_per_step // 2)
    path = train_online(
        world, "ppo", labels, f"adaptive_kl-{labels}",
        kl_controller="adaptive", target_kl=TARGET_KL, kl_coef=0.3,
        per_device_train_batch_size=prompts_per_step, num_mini_batches=1 if prompts_per_step % 2 else 2,
        max_steps=world.sizes.answers // (prompts_per_step * NUM_GENERATIONS), lr_scheduler_type="constant",
    )  # fmt: skip
    kls = [row["objective/kl"] for row in sampled_rows(read_jsonl(Path(path).parent / "metrics.jsonl"))]
    return held_share(kls, TARGET_KL)


def held_share(kls: Sequence[float], target: float) -> dict[str, Any]:
    """Return the share of steps after warm-up whose mean over ten steps is near the target."""
    ends = range(max(KL_WINDOW, round(WARM_UP_SHARE * len(kls))), len(kls) + 1)
    means = [sum(kls[end - KL_WINDOW : end]) / KL_WINDOW for end in ends]
    if not means:
        return {"held_share": None, "means": []}
    held = [target / KL_FACTOR <= mean <= target * KL_FACTOR for mean in means]
    return {"held_share": sum(held) / len(held), "means": [round(mean, 4) for mean in means]}
