"""`mmrlhf demo`: the whole way on rendered scenes, through the same stages that train a model of your own.

SFT on captions with a habit -> answers of that model, ranked in pairs -> a reward model with facts and one without -> PPO
against each -> hallucination before and after, on scenes that nothing was trained or chosen on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mmrlhf import report, scenes
from mmrlhf.artefact import load_reward_model
from mmrlhf.benchmark import bootstrap, load_benchmark
from mmrlhf.best_of_n import best_of_n
from mmrlhf.config import PPOConfig, RewardConfig, SFTConfig, WorldConfig
from mmrlhf.content import find, folder
from mmrlhf.evaluate import scored
from mmrlhf.files import write_whole
from mmrlhf.loading import load as load_vlm
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, Fact, InputError, Message, Preference
from mmrlhf.reward_model import reward
from mmrlhf.roles import Adapters
from mmrlhf.rollout import answer_all
from mmrlhf.run import json_line, progress, read_jsonl
from mmrlhf.sampling import Sampling
from mmrlhf.settings import Config, load, save
from mmrlhf.sft import sft
from mmrlhf.vlm import VLM

SPLITS = ("held_out", "ood_1", "ood_2", "ood_3")
SAMPLES = 4
"""Answers to each held-out prompt at temperature 1, beside the greedy one: is truth lost when sampled, and how varied are they?"""
IN_MEMORY = "scenes"
"""What the demo's stages are told as their data set: the rows are handed over as records."""
RESPONSE = 72
GREEDY = Sampling(RESPONSE, 0.0)


def demo(output_dir: str = "runs/demo", fresh: bool = False, seed: int = 0) -> dict[str, Any]:
    """Run everything that is not there yet; returns what summary.json says.

    `seed` draws the training scenes, captions, pairs, first weights and samples; the scenes it is measured on stay the same.
    """
    out, console = Path(output_dir), Console(highlight=False)
    if fresh and out.exists():
        if not (out / "world.yaml").is_file():
            raise InputError(f"--fresh would empty {out}, which holds no demo: give another --output_dir")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    world = load(WorldConfig, find("configs", "demo/world"), {"seed": seed})
    if (out / "world.yaml").is_file() and load(WorldConfig, out / "world.yaml", {}) != world:
        raise InputError(f"{out} holds a demo of another world or seed: give its --seed or another --output_dir, or add --fresh")
    base = str(folder("data") / "scenes_base")
    weights = hashlib.sha256((Path(base) / "model.safetensors").read_bytes()).hexdigest()
    if (out / "base.sha256").is_file() and (out / "base.sha256").read_text() != weights:
        raise InputError(f"{out} holds a demo of another base model: give another --output_dir, or add --fresh")
    save(world, out / "world.yaml")
    write_whole(out / "base.sha256", weights)
    seconds: dict[str, float] = json.loads((out / "seconds.json").read_text()) if (out / "seconds.json").exists() else {}

    def timed(name: str, stage: Callable[[], Any]) -> Any:
        """A finished stage takes no time and keeps the time it took; one that was killed counts its longest stretch."""
        console.rule(name)
        began = time.time()
        result = stage()
        spent = round(time.time() - began, 1)
        seconds[name] = max(spent, seconds.get(name, 0.0))
        write_whole(out / "seconds.json", json.dumps(seconds))
        return result

    def configured(cls: type[Config], stage: str, **values: str) -> Config:
        known = {"dataset_name": IN_MEMORY, "seed": seed, **values}
        return load(cls, find("configs", f"demo/{stage}"), known)

    # 1. Fine-tuning: on annotators' captions, and on captions without their habit (a reference for how true these eyes can be)
    def tune(name: str, habit: float) -> str:
        config = configured(SFTConfig, "sft", model_name_or_path=base, output_dir=str(out / name))
        return str(sft(config, _LazyRows(lambda: sft_rows(world, habit))))

    model = timed("sft", lambda: tune("sft", world.habit))
    clean = timed("clean_sft", lambda: tune("clean_sft", 0.0))

    # 2. Preference pairs from the fine-tuned model's own answers
    pairs, held_out_pairs = timed("pairs", lambda: preference_pairs(world, model, out / "pairs.jsonl"))

    # 3. Reward models with and without facts
    def train_reward(facts: str) -> str:
        directory = str(out / ("reward_fact" if facts == "given" else "reward_plain"))
        config = configured(RewardConfig, "reward", model_name_or_path=model, facts=facts, output_dir=directory)
        return str(reward(config, pairs, held_out_pairs))

    rewards = {
        "fact": timed("reward_fact", lambda: train_reward("given")),
        "plain": timed("reward_plain", lambda: train_reward("none")),
    }

    # 4. PPO against each
    prompts = _LazyRows(lambda: rl_prompts(world))
    watched = _LazyRows(lambda: _examples("selection", world.selection_scenes))

    def train_policy(name: str) -> str:
        config = configured(
            PPOConfig, "ppo", model_name_or_path=model, reward_model_path=rewards[name], output_dir=str(out / f"ppo_{name}")
        )
        return str(ppo(config, prompts, lambda vlm: measure(vlm, watched)))

    policies = {f"ppo_{name}": timed(f"ppo_{name}", partial(train_policy, name)) for name in ("fact", "plain")}

    # 5. Every model on every split
    answers = timed("evaluation", lambda: evaluation(world, model, clean, policies, rewards["fact"], out / "answers"))
    summary = summarise(world, out, answers, seconds)
    write_whole(out / "summary.json", json.dumps(summary, indent=1))
    curves = {name: read_jsonl(out / name / "metrics.jsonl") for name in ("ppo_plain", "ppo_fact")}
    shown = gallery(world, answers)
    report.write(out / "report.html", summary, curves, shown, {k: str(v) for k, v in asdict(world).items()})
    report.picture(out / "picture.png", summary, shown)
    report.terminal_table(summary)
    console.print(f"{out / 'report.html'} shows pictures, answers and curves; {out / 'summary.json'} has the numbers")
    return summary


class _LazyRows(Sequence[Example]):
    """Rows that are rendered when a stage first asks for one: a finished stage never does."""

    def __init__(self, make: Callable[[], list[Example]]):
        self._make = make
        self._rows: list[Example] | None = None

    def _all(self) -> list[Example]:
        if self._rows is None:
            self._rows = self._make()
        return self._rows

    def __len__(self) -> int:
        return len(self._all())

    def __getitem__(self, index: Any) -> Any:
        return self._all()[index]


# ---- data -------------------------------------------------------------------------------------------------------


def scene_of(split: scenes.Split, index: int, world: WorldConfig) -> scenes.Scene:
    """A scene to train on, as hard to see as the world's are."""
    return scenes.scene(split, index, world.seed, scenes.Difficulty(hard=world.hard))


def sft_rows(world: WorldConfig, habit: float) -> list[Example]:
    """Three descriptions to one question; the same scenes and questions whatever the habit."""
    rows = []
    for index in range(world.sft_rows):
        scene, rng = scene_of("sft", index, world), np.random.default_rng([world.seed, 31, index])
        asked = scenes.describe(scene, rng, habit=habit) if index % 4 else scenes.question(scene, rng)
        rows.append(Example(scene.id, (scene.source(),), (Message("user", asked.text),), asked.answer))
    return rows


def rl_prompts(world: WorldConfig) -> list[Example]:
    """Prompts with facts: nine descriptions to one question."""
    rows = []
    for index in range(world.rl_scenes):
        scene, rng = scene_of("rl", index, world), np.random.default_rng([world.seed, 37, index])
        asked = scenes.describe(scene, rng) if index % 10 else scenes.question(scene, rng)
        facts = scenes.facts(scene, rng, listed=world.listed, wrong=world.wrong)
        rows.append(Example(scene.id, (scene.source(),), (Message("user", asked.text),), facts=facts))
    return rows


def preference_pairs(world: WorldConfig, model: str, path: Path) -> tuple[list[Preference], list[Preference]]:
    """Answers of the model to each scene, compared two by two by utility; some labels are turned round.

    Half of the answers are sampled hotter, and some are replaced by descriptions with planted faults: a reward model that
    has seen only today's errors has holes that ppo finds. Returns training pairs and pairs of other scenes for accuracy.
    The texts are kept, so that another run reads them.
    """
    examples = []
    for index in range(world.pair_scenes):
        scene, rng = scene_of("pairs", index, world), np.random.default_rng([world.seed, 41, index])
        asked = scenes.describe(scene, rng) if index % 10 else scenes.question(scene, rng)
        facts = scenes.facts(scene, rng, listed=world.listed, wrong=world.wrong)
        meta = {"kind": asked.kind}
        examples.append(Example(scene.id, (scene.source(),), (Message("user", asked.text),), facts=facts, meta=meta))
    if path.exists():
        texts = [row["answers"] for row in read_jsonl(path)]
    else:
        vlm, half = load_vlm(model), world.answers_per_scene // 2
        with progress(2 * len(examples), "pairs") as steps:
            sampled = []
            for heat, number in ((1.0, world.answers_per_scene - half), (world.hot_temperature, half)):
                found = []
                hot = Sampling(RESPONSE, heat)
                for _, texts in answer_all(
                    vlm, examples, hot, batch_size=64, num_generations=number, seed=world.seed + int(heat * 100)
                ):
                    found.append(texts)
                    steps.advance()
                sampled.append(found)
        texts = [a + b for a, b in zip(*sampled, strict=True)]
        write_whole(path, "".join(json_line({"id": e.id, "answers": t}) for e, t in zip(examples, texts, strict=True)))
    pairs: list[Preference] = []
    for index, (example, answers) in enumerate(zip(examples, texts, strict=True)):
        scene, rng = scene_of("pairs", index, world), np.random.default_rng([world.seed, 43, index])
        answers = list(answers)
        if example.meta["kind"] == "describe" and rng.random() < world.planted:
            answers[0] = scenes.caption(scene, rng, faults=int(rng.integers(1, 4)))
        rng.shuffle(answers)
        for a, b in zip(answers[::2], answers[1::2], strict=False):
            gap = scenes.utility(scene, a, world.lambda_) - scenes.utility(scene, b, world.lambda_)
            if abs(gap) < world.near_tie or a == b:
                continue
            if (gap < 0) != (rng.random() < world.annotator_error):
                a, b = b, a
            pairs.append(Preference.pair(f"{example.id}-{len(pairs)}", example.images, example.prompt, a, b, example.facts))
    cut = world.held_out_pairs
    while pairs[cut].images == pairs[cut - 1].images:  # both pairs of a scene on one side
        cut += 1
    return pairs[cut:], pairs[:cut]


def _examples(split: scenes.Split, count: int, *, facts: WorldConfig | None = None) -> list[Example]:
    """The benchmark's rows on a split, with facts where something that reads them will rank answers."""
    rows = load_benchmark("scenes").prompts(split, count)
    if facts is None:
        return rows
    found = []
    for row in rows:
        scene = scenes.scene(split, row.meta["index"], 0)
        found.append(Example(row.id, row.images, row.prompt, facts=_listed(facts, scene, row.meta["index"]), meta=row.meta))
    return found


def _listed(world: WorldConfig, scene: scenes.Scene, index: int) -> tuple[Fact, ...]:
    """The facts on a scene that models are measured on."""
    rng = np.random.default_rng([world.seed, 47, index])
    return scenes.facts(scene, rng, listed=world.listed, wrong=world.wrong)


# ---- measuring --------------------------------------------------------------------------------------------------


def measure(vlm: VLM, examples: Sequence[Example]) -> dict[str, float]:
    """Greedy descriptions of the selection split, for the curves."""
    module = load_benchmark("scenes")
    rows = [e for e in examples if e.meta["kind"] == "describe"]
    said = answer_all(vlm, rows, GREEDY, batch_size=100)
    metrics = scored(module, rows, {e.id: texts for e, texts in said}, None, 0)["selection"]
    return {k: metrics[k] for k in ("chair_s", "chair_i", "coverage", "claim_f1", "u", "habit", "sight", "mean_length")}


Answered = dict[str, dict[str, dict[str, list[str]]]]
"""model -> split (or "sampled": held-out scenes at temperature 1) -> row id -> answers"""


def evaluation(world: WorldConfig, model: str, clean: str, policies: dict[str, str], fact_reward: str, folder_: Path) -> Answered:
    """Greedy answers of every model on every split (SFT also sampled, and the best of n); kept as files, made once."""
    rows = {s: _examples(s, world.held_out_scenes if s == "held_out" else world.ood_scenes, facts=world) for s in SPLITS}  # type: ignore[arg-type]
    names = [f"{m}-{s}" for m in ("sft", "sft_t03", "sft_t07", *policies, "best_of_n", "clean_sft") for s in SPLITS]
    names += [f"{m}-sampled" for m in ("sft", *policies)]
    rows["sampled"] = [e for e in rows["held_out"][: world.ood_scenes] if e.meta["kind"] == "describe"]
    loaded: dict[str, Any] = {}

    def tuned() -> Adapters:
        if "sft" not in loaded:
            loaded["sft"] = Adapters(load_vlm(model))
            for name, path in policies.items():
                loaded["sft"].load(name, Path(path), trainable=False)
            loaded["reward"] = load_reward_model(fact_reward, loaded["sft"])
        return loaded["sft"]

    def say(name: str, split: str) -> Iterator[tuple[Example, list[str]]]:
        how = {"batch_size": 100, "seed": world.seed}
        if name == "clean_sft":
            loaded.setdefault("clean", load_vlm(clean))
            yield from answer_all(loaded["clean"], rows[split], GREEDY, **how)
            return
        adapters = tuned()
        if name == "best_of_n":
            described = [e for e in rows[split] if e.meta["kind"] == "describe"]
            for example, text in best_of_n(
                adapters.vlm,
                loaded["reward"],
                described,
                world.best_of_n,
                batch_size=25,
                response_length=RESPONSE,
                seed=world.seed,
            ):
                yield example, [text]
            return
        with adapters.use(name if name in policies else None):
            temperature = 1.0 if split == "sampled" else {"sft_t03": 0.3, "sft_t07": 0.7}.get(name, 0.0)
            number = SAMPLES if split == "sampled" else 1
            yield from answer_all(adapters.vlm, rows[split], Sampling(RESPONSE, temperature), num_generations=number, **how)

    found: Answered = {}
    with progress(len(names), "evaluation") as steps:
        for full in names:
            name, split = full.rsplit("-", 1)
            path = folder_ / f"{full}.jsonl"
            if not path.exists():
                write_whole(path, "".join(json_line({"id": e.id, "answers": a}) for e, a in say(name, split)))
            found.setdefault(name, {})[split] = {row["id"]: row["answers"] for row in read_jsonl(path)}
            steps.advance()
    return found


def summarise(world: WorldConfig, out: Path, answers: Answered, seconds: dict[str, float]) -> dict[str, Any]:
    """summary.json: metrics of every model and split, reward accuracy, final KL, seconds."""
    module = load_benchmark("scenes")
    models: dict[str, Any] = {name: {} for name in answers}
    sampled: dict[str, Any] = {}
    for name, by_split in answers.items():
        for split, said in by_split.items():
            if split == "sampled":
                sampled[name] = scored(module, _described("held_out", said), said, None, world.seed)["held_out"]
            else:
                models[name][split] = scored(module, _described(split, said), said, None, world.seed)[split]
    accuracy = {}
    for name in ("fact", "plain"):
        right = json.loads((out / f"reward_{name}" / "done.json").read_text())["right"]
        accuracy[name] = bootstrap(np.array([[r, 1.0] for r in right]), lambda s: {"accuracy": s[..., 0] / s[..., 1]}, world.seed)
    kl = {f"ppo_{n}": read_jsonl(out / f"ppo_{n}" / "metrics.jsonl")[-1]["objective/kl"] for n in ("plain", "fact")}
    return {
        "models": models,
        "sampled": sampled,
        "reward_models": accuracy,
        "kl": kl,
        "seconds": seconds,
        "seed": world.seed,
    }


def _described(split: str, said: dict[str, list[str]]) -> list[Example]:
    """The rows that answers belong to, without pictures: judging needs the graph alone, and yes/no rows their true answer."""
    module, rows = load_benchmark("scenes"), []
    for id_ in said:
        index, kind = int(id_.split("-")[1]), id_.split("-")[2]
        meta: dict[str, Any] = {"split": split, "index": index, "kind": kind}
        rows.append(Example(id_, (), (), meta=meta | ({"truth": module.truth(split, index)} if kind == "yes_no" else {})))
    return rows


def gallery(world: WorldConfig, answers: Answered, count: int = 12) -> list[dict[str, Any]]:
    """A dozen held-out scenes with every model's answer, claim by claim: the first six where SFT claims something false,
    and the first six where it does not."""
    wrong: list[scenes.Scene] = []
    right: list[scenes.Scene] = []
    for index in range(world.held_out_scenes):
        scene = scenes.scene("held_out", index, 0)
        said = answers["sft"]["held_out"][f"{scene.id}-describe"][0]
        (wrong if scenes.judge(scene, said).false else right).append(scene)
        if len(wrong) >= count // 2 and len(right) >= count // 2:
            break
    shown = []
    for scene in itertools.chain(wrong[: count // 2], right[: count // 2]):
        index = int(scene.id.split("-")[1])
        facts = "; ".join(f.text for f in _listed(world, scene, index))
        prompt = load_benchmark("scenes").description(scene, index).text
        entry: dict[str, Any] = {
            "image": scene.source().read(), "id": scene.id, "prompt": prompt, "facts": facts, "answers": [],
        }  # fmt: skip
        for name in ("sft", "ppo_plain", "ppo_fact", "best_of_n", "clean_sft"):
            text = answers[name]["held_out"][f"{scene.id}-describe"][0]
            verdicts = [scenes.verify(scene, c) for c in scenes.claims(text)]
            marks = [
                {"start": v.claim.span[0], "end": v.claim.span[1], "verdict": v.value, "evidence": v.evidence} for v in verdicts
            ]
            entry["answers"].append({"model": name, "text": text, "claims": marks})
        shown.append(entry)
    return shown
