"""Preference pairs labelled by verifying claims, and training on them, in rounds.

A round samples several answers to every prompt from one policy, splits each answer into claims,
verifies these one by one (divide and conquer: Yu et al. 2024, RLAIF-V), and compares the answers to
a prompt by their utility, which counts supported claims as well as contradicted ones. Pairs with a
clear gap and balanced lengths train the policy by dpo, or a reward model and the policy by ppo. The
next round samples from the best policy of this one, by a metric on held-out prompts, and uses it as
the reference.

A round is a folder of the run: `answers.jsonl`, `verdicts.jsonl`, `scores.jsonl`, `pairs.jsonl`,
`dropped.jsonl`, `labels.json`, `report.html`, and the runs of its training. All of them resume
after a kill.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.config import FeedbackConfig
from mmrlhf.datasets import read_examples, read_preferences
from mmrlhf.dpo import check_recipe as check_dpo_recipe
from mmrlhf.dpo import dpo
from mmrlhf.evaluation.claim_judge import ClaimJudge
from mmrlhf.evaluation.openai_client import Endpoint
from mmrlhf.evaluation.policy_eval import EvalFunction
from mmrlhf.facts import NAMES_HINT, facts_about, read_facts
from mmrlhf.files.atomic import atomic_folder
from mmrlhf.files.inputs import content_digest, inputs_of
from mmrlhf.files.writing import writes
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.loading import load_base
from mmrlhf.models.policy import check_adapter_setting, check_same_base
from mmrlhf.models.processes import Accelerator, gather_object
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.ppo import check_recipe as check_ppo_recipe
from mmrlhf.ppo import ppo
from mmrlhf.records import Example, InputError
from mmrlhf.reward_model import check_config as check_reward_recipe
from mmrlhf.reward_model import train_reward_model
from mmrlhf.rewards.claim_rewards import parse_unknown_costs
from mmrlhf.rewards.types import Sample
from mmrlhf.training.answer_batches import NOT_FINITE, warn_of_left_out, write_answers
from mmrlhf.training.feedback.labels import (
    LabelledAnswer,
    SampledAnswer,
    label_group,
    read_sampled,
    read_verdicts,
    utility,
    verdicts_row,
)
from mmrlhf.training.feedback.pairs import select_pairs
from mmrlhf.training.feedback.recipes import dpo_config, ppo_config, reward_config
from mmrlhf.training.feedback.round_files import (
    describe_round,
    round_metrics,
    summarise,
    why_nothing_is_kept,
    write_round,
)
from mmrlhf.training.feedback.settings import check_rows, check_settings
from mmrlhf.training.row_checks import KeptChecks, Length, usable_indices
from mmrlhf.training.run import Run
from mmrlhf.training.run_rows import open_rows
from mmrlhf.training.sampled_answers import why_unusable
from mmrlhf.training.shared_writer import SharedWriter
from mmrlhf.verifiers import AnswerClaims, Verifier, verify_against_facts
from mmrlhf.verifiers.build import VERIFIERS
from mmrlhf.verifiers.cascade import cascade, facts_verifier

TrueUtility = Callable[[Example, str], float | None]
"""Returns the true utility of an answer to an example; None if it is unknown."""


@writes("output_dir")
def feedback(
    config: FeedbackConfig,
    examples: Sequence[Example] | None = None,
    true_utility: TrueUtility | None = None,
    eval_function: EvalFunction | None = None,
) -> Path:
    """Label pairs of answers to `examples`, or to the configured dataset, and train on them.

    Return the adapter folder of the best policy or, without training, the file of pairs. Labels are
    compared with `true_utility`, or with truth_file. `eval_function` measures policies in addition
    to eval_benchmarks. Raises InputError if settings, data or models are unusable, or if a round
    keeps no pair.
    """
    check_settings(config)
    check_adapter_setting(config.adapter_path, "lora")
    _check_training(config, eval_function)
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process, num_processes=accelerator.num_processes)
    examples, _ = open_rows(config, run, examples, read_examples)
    examples = examples[: config.limit]
    human = None
    if config.human_dataset_name is not None:
        human = read_preferences(config.human_dataset_name, image_folder=config.human_image_folder)
        run.claim_rows(human, "human")
    result = run.path / "policy" if config.algorithm != "none" else _folder(run, config.num_rounds) / "pairs.jsonl"
    if run.is_finished:
        run.print_finished(result)
        return result
    check_rows(config, examples)
    true_utility = true_utility or _truth_of_file(config, examples)
    run.resume()

    policy, best = config.adapter_path, list[Any]()
    for number in range(1, config.num_rounds + 1):
        folder = _folder(run, number)

        # 1. Sample answers with the newest policy, and verify their claims
        _sample(config, accelerator, run, examples, policy, number, folder / "answers.jsonl")
        accelerator.wait_for_everyone()
        _verify(config, accelerator, run, examples, number, folder)
        accelerator.wait_for_everyone()
        _free_memory()

        # 2. Score them by supported and contradicted claims
        groups = _label(config, examples, folder, true_utility)

        # 3. Choose pairs, and write them with the dropped comparisons and the reasons
        selection = select_pairs(groups, config.min_gap, config.max_pairs_per_prompt, config.balance_lengths, config.seed)
        warn_of_left_out(run, number, selection.unusable[NOT_FINITE])
        if not selection.kept:
            raise InputError(
                f"round {number} keeps none of {len(selection.comparisons)} comparisons: {why_nothing_is_kept(selection)}"
            )
        summary = summarise(number, config.verifier, groups, selection)
        if accelerator.is_main_process:
            write_round(config, run, folder, examples, groups, selection, summary, human)
        run.print(describe_round(summary))
        accelerator.wait_for_everyone()

        # 4. Train on them; the next round starts from the best policy
        metrics = round_metrics(summary)
        if config.algorithm != "none":
            policy = str(_train(config, folder, examples, policy, eval_function))
            finished = json.loads((Path(policy).parent / "finished.json").read_text(encoding="utf-8"))
            best.append(finished.get("best"))
            if best[-1]:
                metrics[f"eval/{best[-1]['metric']}"] = best[-1]["value"]
            _free_memory()
        run.log(number, metrics)
        run.refresh_report()

    if accelerator.is_main_process:
        if policy is not None and config.algorithm != "none":
            with atomic_folder(result) as folder:
                shutil.copytree(policy, folder, dirs_exist_ok=True)
        run.finish({"rounds": config.num_rounds, "best_by_round": best})
    accelerator.wait_for_everyone()
    return result


def _folder(run: Run, number: int) -> Path:
    return run.path / f"round_{number}"


def _free_memory() -> None:
    gc.collect()
    torch.cuda.empty_cache()


# ---- 1. sample and verify ------------------------------------------------------------------------

SAMPLING_SETTINGS = (
    "dataset_name", "dataset_train_split", "limit", "num_generations", "temperature", "top_p", "top_k", "min_new_tokens",
    "response_length", "max_length", "overlong", "min_pixels", "max_pixels", "dtype", "seed", "model_name_or_path",
)  # fmt: skip
"""Settings that affect a round's answers, besides the policy."""
VERIFIER_SETTINGS = (
    "model_name_or_path", "facts_file", "verifier", "clip_model", "clip_calibration", "vlm_calibration", "lexicon_file", "judge",
    "judge_model", "judge_max_tokens", "max_length", "min_pixels", "max_pixels", "dtype",
)  # fmt: skip
"""Settings that affect the verdicts, besides the answers."""


def _sample(
    config: FeedbackConfig,
    accelerator: Accelerator,
    run: Run,
    examples: Sequence[Example],
    policy: str | None,
    number: int,
    path: Path,
) -> None:
    """Write the answers of the policy to all prompts to `path`; the answers to one share a prefill.

    A killed call resumes after the last whole batch. Raises InputError like `write_answers`, and if
    the file contains answers made from other inputs.
    """

    def inputs() -> dict[str, Any]:
        sampled_by = {"path": policy, "sha256": content_digest(policy) if policy else None}
        return _inputs(config, SAMPLING_SETTINGS) | {"policy": sampled_by}

    batch_size = config.batch_size * accelerator.num_processes
    writer = SharedWriter(run, path, inputs, batch_size * config.num_generations)
    if writer.is_finished:
        return
    vlm = load_base(config, accelerator)
    adapters = Adapters(vlm)
    if policy is not None:
        check_same_base(Path(policy), vlm)
        adapters.load("policy", Path(policy), trainable=False)
    lengths = PromptLengths(vlm, config.max_pixels)

    def lengths_of(example: Example) -> list[Length]:
        num_tokens = lengths.count(example.prompt, example.images) + config.response_length
        return [Length(num_tokens, lengths.limit(config.max_length))]

    kept_checks = KeptChecks(run.path / "rows.json", run.add_file)
    rows = usable_indices(examples, config, config.dataset_name, lengths_of, lengths, run.console, kept_checks)

    def to_answers(answer_rows: Sequence[int], samples: Sequence[Sample]) -> list[SampledAnswer]:
        return [
            SampledAnswer(
                row,
                index % config.num_generations,
                sample.answer,
                sample.num_tokens,
                why_unusable(sample, vlm.escape_control_tokens),
            )
            for index, (row, sample) in enumerate(zip(answer_rows, samples, strict=True))
        ]

    policy_role = Role(adapters, "policy" if policy is not None else None)
    write_answers(
        config, run, accelerator, writer, policy_role, examples, rows, number, batch_size,
        to_answers=to_answers,
        left_out=lambda row, index: SampledAnswer(row, index, "", 0, NOT_FINITE),
        advice="Start over with dtype float32, with a lower learning_rate in the recipe, or without that row",
    )  # fmt: skip


def _verify(
    config: FeedbackConfig, accelerator: Accelerator, run: Run, examples: Sequence[Example], number: int, folder: Path
) -> None:
    """Write the verdicts on the claims of all answers that may be in a pair.

    A killed call resumes after the last whole answer. Raises InputError like the verifiers.
    """
    answers = read_sampled(folder / "answers.jsonl")

    def inputs() -> dict[str, Any]:
        path = str(folder / "answers.jsonl")
        return _inputs(config, VERIFIER_SETTINGS) | {"answers": {"path": path, "sha256": content_digest(path)}}

    writer = SharedWriter(run, folder / "verdicts.jsonl", inputs)
    if writer.is_finished:
        return
    lexicon = load_lexicon(config.lexicon_file)
    verify = _build_verifier(config, accelerator, run.path)
    batch_size = config.batch_size * config.num_generations * accelerator.num_processes
    with run.progress(len(answers), writer.num_done, f"round {number}: verify") as progress_bar:
        for start in range(writer.num_done, len(answers), batch_size):
            batch = list(range(start, min(start + batch_size, len(answers))))
            local = batch[accelerator.process_index :: accelerator.num_processes]
            claims = [
                AnswerClaims(
                    examples[answers[i].row].images,
                    examples[answers[i].row].facts,
                    tuple(extract_claims(answers[i].answer, lexicon)) if not answers[i].unusable else (),
                )
                for i in local
            ]
            verdicts = dict(gather_object(list(zip(local, verify(claims), strict=True))))
            writer.append([verdicts_row(answers[i], verdicts[i]) for i in batch])
            progress_bar.advance(len(batch))
    writer.finish()


def _build_verifier(config: FeedbackConfig, accelerator: Accelerator, run_dir: Path) -> Verifier:
    """Return the verifier of the settings, or a cascade of several."""
    lexicon, names = load_lexicon(config.lexicon_file), [name.strip() for name in config.verifier.split("+")]
    verifiers = dict[str, Verifier]()
    adapters = None
    if {"clip", "vlm"} & set(names):
        adapters = Adapters(load_base(config, accelerator))
    for name in names:
        if name == "judge":
            endpoint = Endpoint(str(config.judge), config.judge_model or "", concurrency=config.judge_concurrency)
            suffix = f"-{accelerator.process_index}" if accelerator.process_index else ""
            verifiers[name] = ClaimJudge(endpoint, lexicon, run_dir / f"judgments{suffix}.jsonl", config.judge_max_tokens)
        elif adapters is None:
            verifiers[name] = facts_verifier(lexicon)
        else:
            verifiers[name] = VERIFIERS[name](config, adapters, lexicon)
    return cascade(list(verifiers.values()), lexicon)


def _inputs(config: FeedbackConfig, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in inputs_of(config).items() if name in names}


# ---- 2. score, 3. choose and write ---------------------------------------------------------------


def _label(
    config: FeedbackConfig, examples: Sequence[Example], folder: Path, true_utility: TrueUtility | None
) -> list[list[LabelledAnswer]]:
    """Return the answers to each prompt with their labels, from the round's files."""
    answers, verdicts = read_sampled(folder / "answers.jsonl"), read_verdicts(folder / "verdicts.jsonl")
    costs, groups = parse_unknown_costs(config.unknown_claim_costs), []
    for start in range(0, len(answers), config.num_generations):
        group = slice(start, start + config.num_generations)
        truth = None
        if true_utility is not None:
            example = examples[answers[start].row]
            truth = [None if answer.unusable else true_utility(example, answer.answer) for answer in answers[group]]
        labelled = list(zip(answers[group], verdicts[group], strict=True))
        groups.append(label_group(labelled, config.false_claim_penalty, costs, truth))
    return groups


def _truth_of_file(config: FeedbackConfig, examples: Sequence[Example]) -> TrueUtility | None:
    """Return the utility by the facts of truth_file, None without it.

    Raises InputError if they belong to none of the rows.
    """
    if config.truth_file is None:
        return None
    facts, lexicon = read_facts(config.truth_file), load_lexicon(config.lexicon_file)
    if not any(facts_about(facts, example.id, example.images) for example in examples):
        raise InputError(f"truth_file {config.truth_file} has no facts about the images of {config.dataset_name}: {NAMES_HINT}")

    def true_utility(example: Example, answer: str) -> float | None:
        if not (true_facts := facts_about(facts, example.id, example.images)):
            return None
        verdicts = verify_against_facts(extract_claims(answer, lexicon), true_facts, lexicon)
        return utility(verdicts, config.false_claim_penalty)

    return true_utility


# ---- 4. learn ------------------------------------------------------------------------------------


def _train(
    config: FeedbackConfig, folder: Path, examples: Sequence[Example], policy: str | None, eval_function: EvalFunction | None
) -> Path:
    """Train on a round's pairs, starting from its policy; return the folder of the best one."""
    if config.algorithm == "dpo":
        return dpo(dpo_config(config, folder, policy), None, eval_function)
    reward_model = train_reward_model(reward_config(config, folder))
    _free_memory()
    return ppo(ppo_config(config, folder, policy, str(reward_model)), examples, eval_function)


def _check_training(config: FeedbackConfig, eval_function: EvalFunction | None) -> None:
    """Raise InputError, before a model is loaded, for bad recipes and evaluations."""
    folder = Path(config.output_dir) / "round_1"
    if config.algorithm == "dpo":
        check_dpo_recipe(dpo_config(config, folder, None), eval_function)
    elif config.algorithm == "ppo":
        check_reward_recipe(reward_config(config, folder))
        check_ppo_recipe(ppo_config(config, folder, None, "reward"), eval_function)
