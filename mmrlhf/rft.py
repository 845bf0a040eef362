"""Fine-tune a model on the best of its own answers: rejection-sampling fine-tuning, in rounds.

A round samples several answers to every prompt, scores them with the rewards of ppo, keeps the best
(best-of-n: Nakano et al. 2021), writes these as a dataset and fine-tunes on it with the ordinary
sft. The next round samples from the model that results (expert iteration; ReST, Gulcehre et al.
2023; RFT, Yuan et al. 2023). Each round either continues the last one's weights or starts from the
base again (STaR, Zelikman et al. 2022). It is the baseline that RL has to beat: it needs no KL, no
critic and no ratios, and learns nothing from bad answers.

A round is a folder of the run: `answers.jsonl` has every sampled answer with its rewards,
`sft.jsonl` the kept ones, and `sft/` is a run of sft, which also evaluates along the way. All of
them resume after a kill.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmrlhf.config import FactsConfig, PixelConfig, RewardTermsConfig, RFTConfig, RolloutConfig, SFTConfig
from mmrlhf.config.unread import refuse_unread
from mmrlhf.datasets import Records, read_examples
from mmrlhf.datasets.write_examples import EXAMPLE_FORMATS
from mmrlhf.evaluation.policy_eval import PolicyEvaluation
from mmrlhf.files.atomic import write_atomic
from mmrlhf.files.inputs import content_digest, inputs_of
from mmrlhf.files.jsonl import json_line
from mmrlhf.files.writing import writes
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.finite import NotFiniteError
from mmrlhf.models.images import image_value
from mmrlhf.models.loading import load_base
from mmrlhf.models.policy import check_adapter_setting, check_same_base
from mmrlhf.models.processes import Accelerator
from mmrlhf.models.prompt_lengths import PromptLengths
from mmrlhf.records import Example, InputError
from mmrlhf.report.progress import format_number
from mmrlhf.rewards.aggregation import build_aggregation
from mmrlhf.rewards.build import build_rewards, check_reward_rows, check_rewards, penalty_note
from mmrlhf.rewards.claim_rewards import asks_base, counts_claims
from mmrlhf.rewards.ledger import FAILURE_FILE, ledger_rows, saved_in, score_samples
from mmrlhf.rewards.reward_terms import parse_reward_spec
from mmrlhf.rewards.types import RewardFunction, Sample
from mmrlhf.sft import check_recipe, sft
from mmrlhf.training.answer_batches import NOT_FINITE, warn_of_left_out, write_answers
from mmrlhf.training.monitor import ANSWER_WARNINGS, CLAIM_WARNINGS, REWARD
from mmrlhf.training.rft.evaluations import best_round, first_evaluation, last_evaluation
from mmrlhf.training.rft.metrics import advice, describe_round, round_metrics
from mmrlhf.training.rft.scored_answers import ScoredAnswer, read_scored_answers, with_breakdowns, without_rewards
from mmrlhf.training.rft.selection import Candidate, select
from mmrlhf.training.row_checks import KeptChecks, rewarded_lengths, usable_indices
from mmrlhf.training.run import Run
from mmrlhf.training.run_rows import image_root, open_rows
from mmrlhf.training.sampled_answers import sample_rows, why_unusable
from mmrlhf.training.shared_writer import SharedWriter


@writes("output_dir")
def rft(
    config: RFTConfig,
    examples: Sequence[Example] | None = None,
    extra_reward_functions: Mapping[str, RewardFunction] | None = None,
) -> Path:
    """Train on prompts from `examples`, or from the configured dataset; return the checkpoint.

    `reward_terms` may name `extra_reward_functions`. Raises InputError if settings, data or models
    are unusable, or if a round keeps no answer.
    """
    check_rewards(config, extra_reward_functions or ())
    if config.compares_terms_in_groups:
        reason = "compares answers to different prompts, and multi_objective_aggregation normalize_then_sum makes them relative"
        refuse_unread(config, ("min_score", "top_share"), reason)
    check_recipe(_sft_config(config, _sft_dir(Path(config.output_dir), 1), config.model_name_or_path, continues=False))
    check_adapter_setting(config.adapter_path, config.tuning)
    evaluation = PolicyEvaluation(config, proxy=REWARD, warnings=_possible_warnings(config))  # each round's sft makes them
    accelerator = Accelerator()
    run = Run(config.output_dir, config, main_process=accelerator.is_main_process, num_processes=accelerator.num_processes)
    model_dir = run.path / "model"
    examples, _ = open_rows(config, run, examples, read_examples)
    evaluation.claim(run, examples)
    if run.is_finished:
        run.print_finished(model_dir)
        return model_dir
    check_reward_rows(config, examples)
    if note := penalty_note(config.reward_terms):
        run.print(note)
    aggregation, weights = build_aggregation(config, list), parse_reward_spec(config.reward_terms)
    evaluation.plan(examples, config.num_rounds)
    first_round = 1
    if resumed := run.resume():
        first_round, state = resumed[0] + 1, resumed[2]
        aggregation.load_state_dict(state["rewards"])
        evaluation.restore({}, state, resumed[0])

    for number in range(first_round, evaluation.num_steps + 1):
        folder = run.path / f"round_{number}"
        policy = config.model_name_or_path if number == 1 else str(_sft_dir(run.path, number - 1) / "model")

        # 1. Sample answers with the newest policy, and score them
        _sample(config, accelerator, run, examples, policy, number, folder / "answers.jsonl", extra_reward_functions)
        accelerator.wait_for_everyone()
        gc.collect()
        torch.cuda.empty_cache()
        sampled = read_scored_answers(folder / "answers.jsonl", examples, weights, config.response_length)
        answers = [answer for answer in sampled if answer.is_scored]
        num_unscored = len(sampled) - len(answers)
        warn_of_left_out(run, number, num_unscored)
        samples = [answer.sample for answer in answers]
        answers = with_breakdowns(answers, aggregation([answer.breakdown for answer in answers], samples))

        # 2. Keep the best
        candidates = [Candidate(answer.sample.answer, answer.breakdown.total, answer.unusable) for answer in answers]
        selection = select(config, candidates)
        metrics = round_metrics(config, answers, selection)
        if num_unscored:
            selection.left_out[NOT_FINITE] = num_unscored
            metrics["rft/not_finite"] = float(num_unscored)
        run.print(describe_round(number, metrics, selection))
        if not selection.kept:
            raise InputError(f"round {number} keeps none of {len(answers)} answers: {advice(candidates, selection)}")

        # 3. Write them as a dataset of sft
        kept = [answers[i] for i in selection.kept]
        if accelerator.is_main_process:
            write_atomic(folder / "sft.jsonl", "".join(_sft_lines(config, kept, examples)))
        accelerator.wait_for_everyone()

        # 4. Fine-tune
        continues, sft_dir = number > 1 and config.start_from == "last", _sft_dir(run.path, number)
        sft(_sft_config(config, sft_dir, policy if continues else config.model_name_or_path, continues))

        # 5. Log and save
        if number == 1 and (measured := evaluation.record(run, 0, first_evaluation(sft_dir))):
            run.log(0, measured)
        metrics |= evaluation.record(run, number, last_evaluation(sft_dir))
        run.log(number, metrics)
        claims = None if answers[0].claims is None else [answer.claims or [] for answer in answers]
        totals = [candidate.score for candidate in candidates]
        ledger = ledger_rows(samples, [answer.breakdown for answer in answers], totals, claims)
        run.log_ledger(number, ledger)
        if config.num_sample_generations:
            kept_samples, kept_ledger = [answer.sample for answer in kept], [ledger[i] for i in selection.kept]
            kept_totals = [answer.breakdown.total for answer in kept]
            run.log_samples(number, sample_rows(run, kept_samples, kept_totals, kept_ledger, config.num_sample_generations))
        stop = evaluation.after_step(run, accelerator, number, metrics, is_logging_step=True)
        run.save_checkpoint(number, {}, {"rewards": aggregation.state_dict(), "monitor": evaluation.monitor.state_dict()})
        if stop:
            raise InputError(stop)
        if number == evaluation.num_steps:
            break

    if accelerator.is_main_process:
        chosen, best = _result(config, run, evaluation)
        if not model_dir.exists():
            (_sft_dir(run.path, chosen) / "model").rename(model_dir)
        run.finish({"steps": evaluation.num_steps, **best})
    accelerator.wait_for_everyone()
    return model_dir


def _result(config: RFTConfig, run: Run, evaluation: PolicyEvaluation) -> tuple[int, dict[str, Any]]:
    """Return the round whose model is the result, and the entries of finished.json about it.

    It is the last round or, with `load_best_model_at_end`, the best one.
    """
    last = evaluation.num_steps
    if not config.load_best_model_at_end or evaluation.best is None:
        return last, {}
    stopped = {"stopped": evaluation.monitor.ended} if evaluation.monitor.ended else {}
    found = best_round([_sft_dir(run.path, number) for number in range(1, last + 1)], evaluation.best)
    if found is None:
        return last, {"policy_step": last} | stopped
    number, best = found
    run.print(f"{best['metric']} was best after round {best['step']} of {last}, {format_number(best['value'])}: the result")
    return number, {"best": best, "policy_step": best["step"]} | stopped


def _possible_warnings(config: RFTConfig) -> tuple[str, ...]:
    """Return the warnings that a round can raise: those about claims need claims to count."""
    return tuple(name for name in ANSWER_WARNINGS if name not in CLAIM_WARNINGS or counts_claims(config))


def _sft_dir(run_dir: Path, number: int) -> Path:
    """Return the directory of a round's sft."""
    return run_dir / f"round_{number}" / "sft"


# ---- 1. sample -----------------------------------------------------------------------------------

ANSWER_SETTINGS = {
    *(field.name for shared in (RewardTermsConfig, RolloutConfig, FactsConfig, PixelConfig) for field in dataclasses.fields(shared)),
    *("dataset_name", "top_p", "top_k", "max_length", "overlong", "dtype", "seed"),
}  # fmt: skip
"""Settings that affect a round's answers and their rewards, besides the policy."""


def _sample(
    config: RFTConfig,
    accelerator: Accelerator,
    run: Run,
    examples: Sequence[Example],
    policy: str,
    number: int,
    path: Path,
    extra_reward_functions: Mapping[str, RewardFunction] | None,
) -> None:
    """Write the answers of the model `policy` to all prompts, with their rewards, to `path`.

    A killed call resumes after the last complete batch, so every answer is scored together with the
    same others. If a reward function fails, the run stops, and FAILURE_FILE records the failed
    input. Raises InputError like `write_answers`, and if the file contains answers made from other
    inputs.
    """

    def inputs() -> dict[str, Any]:
        own = {k: v for k, v in inputs_of(config).items() if k in ANSWER_SETTINGS or k.startswith("reward function file")}
        return own | {"policy": {"path": policy, "sha256": content_digest(policy)}}

    batch_size = config.per_device_train_batch_size * accelerator.num_processes
    writer = SharedWriter(run, path, inputs, batch_size * config.num_generations)
    if writer.is_finished:
        return
    vlm = load_base(config, accelerator, policy)
    adapters, adapter = Adapters(vlm), None
    if number == 1 and config.adapter_path is not None:
        check_same_base(Path(config.adapter_path), vlm)
        adapters.load(adapter := "policy", Path(config.adapter_path), trainable=False)
    base = None
    if number > 1 and asks_base(config):
        base = Adapters(load_base(config, accelerator))
    rewards = build_rewards(config, adapters, accelerator, extra_reward_functions, base)
    lengths, kept_checks = PromptLengths(vlm, config.max_pixels), KeptChecks(run.path / "rows.json", run.add_file)
    lengths_of = rewarded_lengths(config, vlm, lengths, rewards.reward_models)
    rows = usable_indices(examples, config, config.dataset_name, lengths_of, lengths, run.console, kept_checks)

    failure_file = run.path / FAILURE_FILE

    def score(answer_rows: Sequence[int], samples: Sequence[Sample]) -> list[ScoredAnswer]:
        try:
            breakdowns = score_samples(rewards.weighted_rewards, samples, failure_file)
        except NotFiniteError as error:
            # Another process, or a later batch, may overwrite the file that the message names.
            raise NotFiniteError(str(error).replace(saved_in(failure_file), "")) from None
        scorer = rewards.claim_scorer
        claims: list[Any] = [None] * len(samples)
        if scorer is not None and scorer.verifier_names:
            claims = scorer.ledger_rows(samples)
        return [
            ScoredAnswer(row, sample, breakdown, answer_claims, why_unusable(sample, vlm.escape_control_tokens))
            for row, sample, breakdown, answer_claims in zip(answer_rows, samples, breakdowns, claims, strict=True)
        ]

    write_answers(
        config, run, accelerator, writer, Role(adapters, adapter), examples, rows, number, batch_size,
        to_answers=score,
        left_out=lambda row, _: without_rewards(row, examples[row].id),
        advice=f"If a reward function is the cause, correct it, remove {path.parent} and repeat the command with "
        "--allow_change reward_terms; otherwise start over with a lower learning_rate or without that row",
    )  # fmt: skip


# ---- 3. write, 4. fine-tune ----------------------------------------------------------------------


def _sft_lines(config: RFTConfig, kept: Sequence[ScoredAnswer], examples: Sequence[Example]) -> list[str]:
    """Return kept answers as rows of an SFT dataset, with scores; images as in convert."""
    lines = []
    for answer in kept:
        example = replace(examples[answer.row], answer=answer.sample.answer, facts=())
        images = example.images
        if not isinstance(examples, Records):  # their paths may start anywhere
            images = tuple(replace(image, path=None, data=image.read()) for image in images)
        row = EXAMPLE_FORMATS["sft"].to_row(example, [image_value(image, image_root(config), False) for image in images])
        lines.append(json_line({**row, "score": answer.breakdown.total, "terms": answer.breakdown.terms}))
    return lines


def _sft_config(config: RFTConfig, sft_dir: Path, model: str, continues: bool) -> SFTConfig:
    """Return the settings of a round's sft: those that it shares with the run, on the kept rows."""
    names = [field.name for field in dataclasses.fields(SFTConfig)]
    shared = {name: getattr(config, name) for name in names if hasattr(config, name)}
    allowed = [name for name in (config.allow_change or "").split(",") if name.strip() in names]
    own = {
        "model_name_or_path": model,
        "adapter_path": None if continues else config.adapter_path,
        "dataset_name": str(sft_dir.parent / "sft.jsonl"),
        "dataset_train_split": "train",
        "image_folder": image_root(config),
        "facts_file": None,
        "allow_change": ",".join(allowed) or None,
        "output_dir": str(sft_dir),
        "stop_on_warning": None,
        "train_on": "last",  # the earlier turns are the prompt
        "overlong": "drop",
    }
    return SFTConfig(**{**shared, **own})
