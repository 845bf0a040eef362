"""The command line: `mmrlhf COMMAND --config FILE --field value ...`.

The flags of a stage are the fields of its configuration (`cli.parser`). A command's module, and
torch with it, is imported only once its arguments are valid, so help and errors appear at once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import mmrlhf
from mmrlhf.cli.arena import ARENA_COMMANDS
from mmrlhf.cli.closing import print_closing
from mmrlhf.cli.commands import (
    run_claims,
    run_compare,
    run_data_check,
    run_data_convert,
    run_data_facts,
    run_data_scenes,
    run_data_split,
    run_data_stats,
    run_data_tiny_vlm,
    run_demo,
    run_env,
    run_eval,
    run_export,
    run_plan,
    run_replay,
    run_report,
    run_serve,
)
from mmrlhf.cli.label import run_label_add, run_label_export, run_label_report, run_label_serve
from mmrlhf.cli.parser import Command, parse_config, stop_message
from mmrlhf.config import (
    CalibrateClipConfig,
    CalibrateVLMConfig,
    DPOConfig,
    EncodeConfig,
    FeedbackConfig,
    GenerateConfig,
    PPOConfig,
    RewardConfig,
    RewardEvalConfig,
    RFTConfig,
    ScoreConfig,
    SFTConfig,
)
from mmrlhf.config.foreign_commands import OTHER_COMMANDS
from mmrlhf.config.loader import renamed, suggestion
from mmrlhf.files import stop_signals
from mmrlhf.files.paths import require_paths
from mmrlhf.records import InputError
from mmrlhf.report.library_output import print_engine_notes, silence_libraries
from mmrlhf.text.printable import printable

DESCRIPTION = """Train vision-language models with feedback, so that they claim only what the image shows.

usage: mmrlhf COMMAND [--config FILE] [--FIELD VALUE ...] [--verbose]

--verbose prints the engine's decisions, too."""
RENAMED_COMMANDS = {"mmrlhf reward-bench": "mmrlhf reward-eval", "mmrlhf data base": "mmrlhf data tiny-vlm"}
"""Old commands with the new ones. They are refused, not accepted as aliases."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    0 on success, 1 for bad rows (`data check`) or a different result (`replay`), 2 for an error
    that the user can correct, 130 when interrupted, 143, 129 and 141 after SIGTERM, SIGHUP and
    SIGPIPE.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--verbose" in arguments:
        arguments.remove("--verbose")
        print_engine_notes()
    _limit_library_output(arguments)
    try:
        with stop_signals.handled():
            return _dispatch("mmrlhf", COMMANDS, arguments, DESCRIPTION)
    except InputError as error:
        return _refuse(str(error))
    except BrokenPipeError:  # the reader of the output has ended, as `| head` does
        return stop_signals.discard_output()
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename} cannot be used ({error.strerror or error}): check its path and permissions")
    except KeyboardInterrupt as error:
        stopped = error if isinstance(error, stop_signals.Stopped) else stop_signals.Stopped(signal.SIGINT)
        print(stop_message(stopped.name, arguments), file=sys.stderr)
        return stopped.exit_code


def _refuse(message: str) -> int:
    """Print an error, which may quote data or a server, and return its exit code."""
    print("error:", printable(message, keep="\n"), file=sys.stderr)
    return 2


def _limit_library_output(argv: list[str]) -> None:
    """Keep progress bars and advice of other libraries out of logs; the user's settings win.

    Warnings and errors stay. Download bars stay on a terminal, except in the demo, which downloads
    nothing.
    """
    silence_libraries()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if argv[:1] == ["demo"] or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def _dispatch(prog: str, commands: Mapping[str, Command], argv: list[str], description: str) -> int:
    """Run the command that the first argument names."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<12} {command.summary}\n               {command.example}" for name, command in commands.items()]
        hint = f"Run `{prog} COMMAND --help` for the arguments of a command."
        print("\n\n".join([description, "\n".join(lines), hint]), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    name = argv[0]
    if name == "--version":
        print(mmrlhf.__version__)
        return 0
    if name in commands:
        return commands[name].run(commands[name], argv[1:]) or 0
    if new_name := RENAMED_COMMANDS.get(f"{prog} {name}"):
        raise InputError(renamed(f"{prog} {name}", new_name))
    place = OTHER_COMMANDS.get(name) if prog == "mmrlhf" else None
    raise InputError(f"{prog} has no command {name}: {place or suggestion(name.replace('_', '-'), commands)}")


# ---- kinds of commands ---------------------------------------------------------------------------


def _config_command(name: str, config_class: type[Any], function: str, summary: str, example_arguments: str) -> Command:
    """Build a command that passes its configuration to `function`, given as `module:function`."""

    def run(command: Command, argv: list[str]) -> None:
        config = parse_config(config_class, command, argv)
        require_paths(config)
        module_name, _, function_name = function.partition(":")
        getattr(importlib.import_module(module_name), function_name)(config)
        print_closing(name, config)

    return Command(name, summary, example_arguments, run)


def _command_group(name: str, commands: Mapping[str, Command], description: str, summary: str, example_arguments: str) -> Command:
    """Build a command that runs one of several others."""

    def run(command: Command, argv: list[str]) -> int:
        return _dispatch(command.prog, commands, argv, description)

    return Command(name, summary, example_arguments, run)


def _by_last_word(*commands: Command) -> dict[str, Command]:
    """Return commands by the last word of their names: `check` for `data check`."""
    return {command.name.split()[-1]: command for command in commands}


# ---- tables of commands --------------------------------------------------------------------------

DATA_COMMANDS = _by_last_word(
    Command("data check", "read every row of a file and report errors", "rows.jsonl --image_folder images", run_data_check),
    Command(
        "data convert",
        "write preferences in another format, or rows for sft and prompts",
        "rows.jsonl --to rankings --output_file rows.parquet",
        run_data_convert,
    ),
    Command(
        "data split",
        "hold rows out for evaluation, with no image on both sides",
        "pairs.jsonl --held_out 500 --train_file train.jsonl --held_out_file held_out.jsonl",
        run_data_split,
    ),
    Command(
        "data facts",
        "write a facts file from captions, COCO files, scene graphs or a captioner",
        "instances_train2017.json captions_train2017.json --dataset_name rows.jsonl --output_file facts.jsonl",
        run_data_facts,
    ),
    Command(
        "data stats",
        "summarise a file: sources, lengths, ties, duplicates",
        "rows.jsonl --output_dir runs/stats",
        run_data_stats,
    ),
    Command("data scenes", "render scenes with exact facts", "--output_dir runs/scenes", run_data_scenes),
    Command("data tiny-vlm", "train the tiny VLM of the demo", "--output_dir runs/tiny_vlm", run_data_tiny_vlm),
)

CALIBRATE_COMMANDS = _by_last_word(
    _config_command(
        "calibrate clip",
        CalibrateClipConfig,
        "mmrlhf.commands.calibrate:calibrate",
        "an open_clip model",
        "--clip_model ViT-B-32:laion2b_s34b_b79k --dataset_name pairs.jsonl --output_file calibration.json",
    ),
    _config_command(
        "calibrate vlm",
        CalibrateVLMConfig,
        "mmrlhf.commands.calibrate:calibrate",
        "the VLM itself, from its answers to yes/no questions",
        "--model_name_or_path runs/sft/model --dataset_name pairs.jsonl --output_file calibration.json",
    ),
)

LABEL_COMMANDS = _by_last_word(
    Command(
        "label serve",
        "serve the annotators' page",
        "answers.jsonl --output_file labels.db --overlap 2",
        run_label_serve,
    ),
    Command("label add", "add tasks, also while people work", "more.jsonl --output_file labels.db", run_label_add),
    Command(
        "label export",
        "write the labels as preferences, claims or facts",
        "labels.db --to trl --output_file pairs.jsonl",
        run_label_export,
    ),
    Command("label report", "show agreement, gold questions, sides and speed", "labels.db --out labels.html", run_label_report),
)

COMMANDS = _by_last_word(
    Command("demo", "run the whole pipeline in minutes, on a CPU", "", run_demo),
    _config_command(
        "sft",
        SFTConfig,
        "mmrlhf.sft:sft",
        "fine-tune a model on answers",
        "--config llava-1.5-7b/sft --data sft.jsonl --out runs/sft",
    ),
    _config_command(
        "reward",
        RewardConfig,
        "mmrlhf.reward_model:train_reward_model",
        "train a reward model on preferences, with facts about the images",
        "--config llava-1.5-7b/reward --model runs/sft/model --data pairs.jsonl --facts_file facts.jsonl --out runs/reward",
    ),
    _config_command(
        "dpo",
        DPOConfig,
        "mmrlhf.dpo:dpo",
        "train a model on preference pairs (DPO), without a reward model",
        "--config llava-1.5-7b/dpo --model runs/sft/model --data pairs.jsonl --out runs/dpo",
    ),
    _config_command(
        "ppo",
        PPOConfig,
        "mmrlhf.ppo:ppo",
        "optimise a model against a reward model or reward functions (PPO, GRPO, RLOO)",
        "--config llava-1.5-7b/ppo --model runs/sft/model --data prompts.jsonl --reward_model_path runs/reward --out runs/ppo",
    ),
    _config_command(
        "rft",
        RFTConfig,
        "mmrlhf.rft:rft",
        "fine-tune a model on the best of its own answers (best-of-n), in rounds",
        "--model runs/sft/model --data prompts.jsonl --reward_model_path runs/reward --num_rounds 3 --out runs/rft",
    ),
    _config_command(
        "feedback",
        FeedbackConfig,
        "mmrlhf.feedback:feedback",
        "make preference pairs by verifying the claims of a model's answers, and train on them, in rounds",
        "--model runs/sft/model --data prompts.jsonl --facts_file facts.jsonl --out runs/feedback",
    ),
    _config_command(
        "generate",
        GenerateConfig,
        "mmrlhf.generate:generate",
        "write a model's answers to a file",
        "--model runs/sft/model --data rows.jsonl --out answers.jsonl",
    ),
    _config_command(
        "score",
        ScoreConfig,
        "mmrlhf.commands.score:score",
        "score answers with a reward model",
        "--reward_model_path runs/reward --data answers.jsonl --out scores.jsonl",
    ),
    Command(
        "serve",
        "answer chat completions with a model, and score answers, over HTTP",
        "runs/ppo --reward_model_path runs/reward --port 8000",
        run_serve,
    ),
    _config_command(
        "reward-eval",
        RewardEvalConfig,
        "mmrlhf.commands.reward_eval:reward_eval",
        "measure a reward model: accuracy, calibration, facts, and which of a policy's errors it will reduce",
        "--reward_model_path runs/reward --data held_out.jsonl --out runs/reward-eval",
    ),
    Command(
        "export",
        "write a trained model so that other programs can load it, and publish it",
        "--model runs/sft/model --adapter_path runs/ppo/policy --merge --out runs/export",
        run_export,
    ),
    _config_command(
        "encode",
        EncodeConfig,
        "mmrlhf.commands.encode:cache_features",
        "precompute the image features of a dataset",
        "--model_name_or_path runs/sft/model --dataset_name pairs.jsonl --feature_cache_dir runs/features",
    ),
    Command(
        "plan",
        "estimate the memory of a training stage before anything is loaded",
        "ppo --config llava-1.5-7b/ppo --micro_batch_tokens 8192",
        run_plan,
    ),
    Command(
        "eval",
        "measure models on benchmarks, or score existing answers",
        "scenes --model runs/sft/model --adapter_path runs/ppo/policy --out runs/eval",
        run_eval,
    ),
    Command(
        "compare",
        "compare runs of eval: differences, intervals, answers that changed",
        "runs/pope/sft runs/pope/ppo --out runs/compare",
        run_compare,
    ),
    Command(
        "report",
        "write a page about training runs: curves, answers over steps, warnings",
        "runs/ppo_a runs/ppo_b --out report.html",
        run_report,
    ),
    Command(
        "replay",
        "compute a training step again that was skipped, and name what was not finite in it",
        "runs/ppo/skipped/step-000012.safetensors",
        run_replay,
    ),
    Command(
        "claims",
        "extract the claims in answers, and verify them against facts",
        "answers.jsonl --facts_file facts.jsonl --output_file claims.jsonl",
        run_claims,
    ),
    _command_group(
        "label",
        LABEL_COMMANDS,
        "Label answers about images on a web page, and use the labels.",
        "label answers about images on a web page, and use the labels",
        "serve answers.jsonl --output_file labels.db",
    ),
    _command_group(
        "arena",
        ARENA_COMMANDS,
        "Rank models by blind votes of people, or of a judge.",
        "rank models by blind votes of people, or of a judge",
        "serve sft=sft.jsonl dpo=dpo.jsonl --output_file votes.db",
    ),
    _command_group(
        "calibrate",
        CALIBRATE_COMMANDS,
        "Calibrate a verifier of claims on your data.",
        "calibrate a verifier of claims on your data",
        "clip --clip_model ViT-B-32:laion2b_s34b_b79k --dataset_name pairs.jsonl --output_file calibration.json",
    ),
    _command_group(
        "data",
        DATA_COMMANDS,
        "Check, count, convert or generate data.",
        "check, count, convert or generate data",
        "check rows.jsonl --image_folder images",
    ),
    Command("env", "print versions and devices, for a bug report", "", run_env),
)
