"""The command line: `mmrlhf STAGE --config FILE --field value ...`.

A stage's flags are its configuration's fields, so there is nothing to keep in step: argparse only splits the line,
and `settings.load` judges flags and file alike, in the same words. A stage's module, and torch with it, is imported when
its configuration is known to be good: help and errors come at once.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import mmrlhf
from mmrlhf.config import (
    CalibrateClipConfig,
    CalibrateVLMConfig,
    EncodeConfig,
    EvalConfig,
    GenerateConfig,
    PPOConfig,
    RewardConfig,
    RewardEvalConfig,
    ScoreConfig,
    SFTConfig,
)
from mmrlhf.config_loader import ConfigField, config_fields, load_config, suggestion
from mmrlhf.files import bundled
from mmrlhf.records import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for what the user can correct, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _silence_libraries(arguments)
    try:
        return _dispatch("mmrlhf", COMMANDS, arguments, DESCRIPTION)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command resumes from what is already written", file=sys.stderr)
        return 130


class Command:
    """A word after `mmrlhf`: what `--help` says of it, a line to copy, and what it runs."""

    def __init__(self, summary: str, example: str, run: Callable[[Command, list[str]], int | None]) -> None:
        self.summary, self.example, self.run = summary, example, run

    @property
    def name(self) -> str:
        """The example up to its first flag or argument, as the user types it."""
        words = self.example.split()
        return " ".join(words[: 3 if words[1] in ("data", "calibrate") else 2])


# ---- stages: flags from a configuration ------------------------------------------------------------------------------


def _sft(command: Command, argv: list[str]) -> None:
    config = _parse_config(SFTConfig, command, argv)
    from mmrlhf.sft import sft

    sft(config)


def _reward(command: Command, argv: list[str]) -> None:
    config = _parse_config(RewardConfig, command, argv)
    from mmrlhf.reward_model import train_reward_model

    train_reward_model(config)


def _ppo(command: Command, argv: list[str]) -> None:
    config = _parse_config(PPOConfig, command, argv)
    from mmrlhf.ppo import ppo
    from mmrlhf.report import write_claims_page

    ppo(config)
    if os.environ.get("RANK", "0") == "0" and (page := write_claims_page(Path(config.output_dir))):
        print(f"{page} shows every claim of the latest answers, and who judged it")


def _generate(command: Command, argv: list[str]) -> None:
    config = _parse_config(GenerateConfig, command, argv)
    from mmrlhf.generate import generate

    generate(config)


def _score(command: Command, argv: list[str]) -> None:
    config = _parse_config(ScoreConfig, command, argv)
    from mmrlhf.commands.score import score

    score(config)


def _reward_eval(command: Command, argv: list[str]) -> None:
    config = _parse_config(RewardEvalConfig, command, argv)
    from mmrlhf.commands.reward_eval import reward_eval

    reward_eval(config)


def _cache_features(command: Command, argv: list[str]) -> None:
    config = _parse_config(EncodeConfig, command, argv)
    from mmrlhf.commands.encode import cache_features

    cache_features(config)


def _calibrate(_: Command, argv: list[str]) -> int:
    return _dispatch("mmrlhf calibrate", CALIBRATE_COMMANDS, argv, "Find out what a verifier of claims is worth on your data.")


def _calibrate_verifier(command: Command, argv: list[str]) -> None:
    config = _parse_config(CalibrateClipConfig if command.name.endswith("clip") else CalibrateVLMConfig, command, argv)
    from mmrlhf.commands.calibrate import calibrate

    calibrate(config)


TRAINING_CONFIGS = {"sft": SFTConfig, "reward": RewardConfig, "ppo": PPOConfig}


def _estimate_memory(command: Command, argv: list[str]) -> None:
    # A stage, or a recipe that is named after its stage: ppo, llava-1.5-7b/ppo, my/ppo.yaml.
    stage_or_recipe = next((word for word in argv if Path(word).stem in TRAINING_CONFIGS and not word.startswith("-")), None)
    if stage_or_recipe is None and not {"-h", "--help"} & set(argv):
        raise InputError(
            f"mmrlhf plan is told a stage first, {', '.join(TRAINING_CONFIGS)}, or a recipe of one, such as llava-1.5-7b/ppo"
        )
    cls: type = TRAINING_CONFIGS[Path(stage_or_recipe).stem if stage_or_recipe else "ppo"]
    parser = _make_config_parser(cls, command, "STAGE|RECIPE")
    parser.add_argument(
        "stage", metavar="STAGE|RECIPE", help=f"{', '.join(TRAINING_CONFIGS)}, or a recipe of one; flags are that stage's"
    )
    args = parser.parse(argv)
    if args.pop("stage") not in TRAINING_CONFIGS:
        args.setdefault("config", stage_or_recipe)
    # What a stage reads and writes takes no memory: it need not be known yet.
    for name, field in config_fields(cls).items():
        if field.is_required and name != "model_name_or_path":
            args.setdefault(name, "-")
    from mmrlhf.commands.plan import print_memory_estimate

    print_memory_estimate(_load_config(cls, args))


def _eval(command: Command, argv: list[str]) -> None:
    from mmrlhf.evaluation.suites import Suite, expand_runs, read_suite

    leading_args = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    names = [name for word in leading_args for name in word.split(",")]
    suite = (
        read_suite(Path(names[0]))
        if len(names) == 1 and names[0].endswith((".yaml", ".yml"))
        else Suite({name: {} for name in names})
    )
    modules = {
        name: bundled.load_module(bundled.find("eval", name)) for name in suite.benchmarks
    }  # a wrong name is said before torch is imported
    parser = _make_config_parser(
        EvalConfig, command, "BENCHMARK [BENCHMARK ...]", multi_value_fields=("model_name_or_path", "answers", "data")
    )
    benchmark_names = ", ".join(name for name in bundled.names("eval") if "/" not in name)
    help_text = f"one or several of {benchmark_names}; paths that end in .py; or a suite, a path that ends in .yaml"
    parser.add_argument("benchmark", metavar="BENCHMARK", nargs="+", help=help_text)
    flag_owners: dict[str, list[str]] = {}
    for name, module in modules.items():
        group = parser.add_argument_group(f"of {name}")
        for field in config_fields(module.Options).values() if hasattr(module, "Options") else ():
            if field.name not in flag_owners:
                _add_flag(group, field)
            flag_owners.setdefault(field.name, []).append(name)
    args = parser.parse(argv)
    del args["benchmark"]
    options = {
        name: {option: args[option] for option, names in flag_owners.items() if name in names and option in args}
        for name in modules
    }
    runs = expand_runs(
        suite, {k: v for k, v in args.items() if k not in flag_owners}, options, lambda values: _load_config(EvalConfig, values)
    )
    if len(runs) == 1:
        from mmrlhf.evaluate import evaluate

        evaluate(runs[0].benchmark, runs[0].config, runs[0].options)
        return
    from mmrlhf.evaluate import run_all

    run_all(runs)


def _compare(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, "RUN RUN [RUN ...] [--out DIR] [--force] [--seed N]")
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="what eval wrote (--out), or a folder of such; all are compared with the first"
    )
    parser.add_argument("--out", metavar="DIR", default="runs/compare", help="where it writes (default runs/compare)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="compare results of different data, prompts, parsers, judges or settings, with a warning",
    )
    parser.add_argument("--seed", metavar="N", type=_non_negative_int, default=0, help="of the bootstrap (default 0)")
    args = parser.parse(argv)
    from mmrlhf.commands.compare import compare

    compare(args["runs"], args["out"], args.get("force", False), args["seed"])


Config = TypeVar("Config")


def _parse_config(cls: type[Config], command: Command, argv: list[str]) -> Config:
    return _load_config(cls, _make_config_parser(cls, command).parse(argv))


def _load_config(cls: type[Config], flag_values: dict[str, Any]) -> Config:
    """A config file is a path, or the name of one that comes with the package (`demo/sft`)."""
    name = flag_values.pop("config", None)
    file = None if name is None else Path(name) if Path(name).exists() else bundled.find("configs", name)
    return load_config(cls, file, flag_values)


FLAG_ALIASES = {"model_name_or_path": "--model", "dataset_name": "--data", "output_dir": "--out", "output_file": "--out"}
"""Shorter names of flags."""


def _make_config_parser(cls: type, command: Command, usage: str = "", multi_value_fields: Sequence[str] = ()) -> _Parser:
    """Flags from a configuration's fields; `several` may be given more than one value."""
    parser = _Parser(command, f"{usage} [--config FILE] [--FIELD VALUE ...]".strip(), description=cls.__doc__ or "")
    parser.add_argument("--config", metavar="FILE", help="YAML with `field: value` lines; flags win over it")
    groups = {title: parser.add_argument_group(title) for title in ("required, here or in the file", "optional")}
    shared_group = parser.add_argument_group("optional, as in other stages")
    for field in config_fields(cls).values():
        is_inherited = field.name not in inspect.get_annotations(cls)
        required_group, own_group = groups.values()
        kwargs = {"nargs": "+", "action": "extend"} if field.name in multi_value_fields else {}
        _add_flag(required_group if field.is_required else shared_group if is_inherited else own_group, field, **kwargs)
    return parser


def _add_flag(group: argparse._ArgumentGroup, field: ConfigField, **kwargs: Any) -> None:
    """A flag takes any text: `load` checks it. A boolean's may stand alone, or as --no-flag."""
    hints = [field.bounds.removeprefix("of ")] if field.bounds else []
    if not field.is_required:
        hints.append(f"default {_format_default(field.default)}")
    help_text = (field.help + f" ({'; '.join(hints)})" * bool(hints)).replace("%", "%%")
    if field.value_type == "boolean":
        group.add_argument(f"--{field.name}", nargs="?", const="true", metavar="true|false", help=help_text)
        group.add_argument(f"--no-{field.name}", dest=field.name, action="store_const", const="false")
    else:
        metavar = "|".join(field.choices) or field.value_type.upper()
        names = [FLAG_ALIASES[field.name], f"--{field.name}"] if field.name in FLAG_ALIASES else [f"--{field.name}"]
        group.add_argument(*names, dest=field.name, metavar=metavar, help=help_text, **kwargs)


def _format_default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


# ---- the other commands ----------------------------------------------------------------------------------------------


def _demo(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, "[--output_dir DIR] [--seed N] [--fresh]")
    parser.add_argument("--output_dir", metavar="DIR", default="runs/demo", help="where it writes (default runs/demo)")
    parser.add_argument(
        "--seed",
        metavar="N",
        type=_non_negative_int,
        default=0,
        help="of everything but the base and the scenes it is measured on (default 0)",
    )
    parser.add_argument("--fresh", action="store_true", help="start over; without it, finished parts are kept")
    args = parser.parse(argv)
    from mmrlhf.demo.pipeline import demo

    demo(args["output_dir"], args.get("fresh", False), args["seed"])


def _extract_claims(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, "FILE [--facts FACTS] [--out FILE] [--lexicon FILE]")
    parser.add_argument("file", metavar="FILE", help="an answer a line, as text or as JSON with `text` or `answer`")
    parser.add_argument("--facts", metavar="FACTS", help="facts by `image`, or a row for each line: each claim gets a verdict")
    parser.add_argument("--out", metavar="FILE", help="a JSONL file to write; standard output if not given")
    parser.add_argument("--lexicon", metavar="FILE", help="more words, as mmrlhf/claims/lexicon.txt has them")
    args = parser.parse(argv)
    from mmrlhf.commands.claims import extract

    extract(args["file"], args.get("facts"), args.get("out"), args.get("lexicon"))


def _data(_: Command, argv: list[str]) -> int:
    return _dispatch("mmrlhf data", DATA_COMMANDS, argv, "Check, count and convert data, or make some.")


READ_USAGE = "FILE [--image_folder DIR] [--facts_file FILE] [--split NAME]"


def _add_read_arguments(parser: _Parser, facts_help: str = "facts by image name") -> None:
    """The arguments of a command that reads one data file."""
    parser.add_argument("file", metavar="FILE", help="JSON, JSONL or parquet, or a `datasets` folder")
    parser.add_argument("--image_folder", metavar="DIR", help="where relative image paths start; FILE's folder if not given")
    parser.add_argument("--facts_file", metavar="FILE", help=facts_help)
    parser.add_argument(
        "--split", metavar="NAME", default="train", help="of a `datasets` folder that has several (default train)"
    )


def _data_check(command: Command, argv: list[str]) -> int:
    parser = _Parser(command, READ_USAGE)
    _add_read_arguments(parser)
    args = parser.parse(argv)
    from mmrlhf.commands.check import check

    return check(args["file"], args.get("image_folder"), args.get("facts_file"), args["split"])


def _data_convert(command: Command, argv: list[str]) -> None:
    from mmrlhf.datasets import FORMATS

    parser = _Parser(command, f"{READ_USAGE} --to FORMAT --output_file OUT [--balance_lengths] [--seed N]")
    _add_read_arguments(parser, "facts by image name, to write into the rows")
    parser.add_argument("--to", metavar="FORMAT", choices=FORMATS, required=True, help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--output_file", metavar="OUT", required=True, help="a .jsonl, .json or .parquet file to write")
    help_text = "leave pairs out until the longer answer is chosen as often as not, at every size of the difference"
    parser.add_argument("--balance_lengths", action="store_true", help=help_text)
    parser.add_argument(
        "--seed", metavar="N", type=_non_negative_int, default=0, help="of what --balance_lengths draws (default 0)"
    )
    args = parser.parse(argv)
    from mmrlhf.commands.convert import convert

    convert(
        args["file"], args["to"], args["output_file"], args.get("image_folder"), args.get("facts_file"),
        args.get("balance_lengths", False), args["seed"], args["split"],
    )  # fmt: skip


def _data_stats(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, f"{READ_USAGE} [--output_dir DIR]")
    _add_read_arguments(parser)
    help_text = "where stats.json and stats.png are written (default runs/stats)"
    parser.add_argument("--output_dir", metavar="DIR", default="runs/stats", help=help_text)
    args = parser.parse(argv)
    from mmrlhf.commands.stats import stats

    stats(args["file"], args.get("image_folder"), args.get("facts_file"), args["output_dir"], args["split"])


def _data_scenes(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, "--output_dir DIR [--rows N] [--seed N]")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="folder to write")
    parser.add_argument("--rows", metavar="N", type=_non_negative_int, default=1000, help="how many scenes (default 1000)")
    parser.add_argument("--seed", metavar="N", type=_non_negative_int, default=0, help="the same seed draws the same (default 0)")
    args = parser.parse(argv)
    from mmrlhf.scenes import export_dataset

    export_dataset(args["output_dir"], args["rows"], args["seed"])


def _data_tiny_vlm(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, "--output_dir DIR [--seed N] [--dtype float32|bfloat16]")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="checkpoint directory to write")
    parser.add_argument("--seed", metavar="N", type=_non_negative_int, default=0, help="of weights and data (default 0)")
    help_text = "of matrix products: bfloat16 is quicker on a processor that has it, and much slower on others (default float32)"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=help_text)
    args = parser.parse(argv)
    from mmrlhf.demo.tiny_vlm import train_tiny_vlm

    train_tiny_vlm(args["output_dir"], args["seed"], args["dtype"])


def _non_negative_int(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, not {text!r}")
    return int(text)


REPORTED_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "open_clip_torch", "pillow")


def _env(command: Command, argv: list[str]) -> None:
    _Parser(command, "").parse(argv)
    rows = {"mmrlhf": mmrlhf.__version__, "python": f"{platform.python_version()}, {platform.platform()}"}
    for package in REPORTED_PACKAGES:
        try:
            rows[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            rows[package] = "not installed"
    rows["cuda"] = _describe_cuda()
    rows["cpus"] = str(os.cpu_count())
    print("\n".join(f"{name:<16} {value}" for name, value in rows.items()))


def _describe_cuda() -> str:
    try:
        import torch
    except (ImportError, OSError) as error:  # the report is worth most when torch does not load
        return f"unknown, torch does not load: {error}"
    if not torch.cuda.is_available():
        return "not available"
    devices = (torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{torch.version.cuda}: {', '.join(devices)}"


# ---- choosing and helping --------------------------------------------------------------------------------------------

DESCRIPTION = """Train vision-language models with feedback, so that they claim only what the picture shows.

usage: mmrlhf STAGE [--config FILE] [--FIELD VALUE ...]"""

COMMANDS = {
    "demo": Command("the whole of it in minutes, on a CPU", "mmrlhf demo", _demo),
    "sft": Command(
        "fine-tune a model on answers",
        "mmrlhf sft --config configs/demo/sft.yaml --output_dir runs/sft --learning_rate 1e-4",
        _sft,
    ),
    "reward": Command(
        "train a reward model on pairs of answers, with facts about the picture",
        "mmrlhf reward --config configs/demo/reward.yaml --output_dir runs/reward --facts given",
        _reward,
    ),
    "ppo": Command(
        "improve a model against the reward model",
        "mmrlhf ppo --config configs/demo/ppo.yaml --reward_model_path runs/reward --output_dir runs/ppo",
        _ppo,
    ),
    "generate": Command(
        "write a model's answers to a file",
        "mmrlhf generate --model_name_or_path runs/sft/model --dataset_name rows.jsonl --output_file answers.jsonl",
        _generate,
    ),
    "score": Command(
        "score answers with a reward model",
        "mmrlhf score --reward_model_path runs/reward --dataset_name answers.jsonl --output_file scores.jsonl",
        _score,
    ),
    "reward-eval": Command(
        "measure a reward model: accuracy, calibration, planted false claims, missing and wrong facts",
        "mmrlhf reward-eval --reward_model_path runs/reward --dataset_name held_out.jsonl --output_dir runs/reward-eval",
        _reward_eval,
    ),
    "encode": Command(
        "keep the picture features of a data set, ahead of training",
        "mmrlhf encode --model_name_or_path runs/sft/model --dataset_name pairs.jsonl --feature_cache_dir runs/features",
        _cache_features,
    ),
    "plan": Command(
        "say what a training stage will hold in memory, before anything is loaded",
        "mmrlhf plan ppo --config llava-1.5-7b/ppo --micro_batch_tokens 8192",
        _estimate_memory,
    ),
    "eval": Command(
        "measure models on benchmarks, or score answers that exist",
        "mmrlhf eval scenes --model runs/sft/model --adapter_path runs/ppo/policy --out runs/eval",
        _eval,
    ),
    "compare": Command(
        "compare runs of eval: differences, intervals, what flipped",
        "mmrlhf compare runs/pope/sft runs/pope/ppo --out runs/compare",
        _compare,
    ),
    "claims": Command(
        "say what answers claim of their pictures, and what facts say of that",
        "mmrlhf claims answers.jsonl --facts facts.jsonl --out claims.jsonl",
        _extract_claims,
    ),
    "calibrate": Command(
        "find out what a verifier of claims is worth on your data",
        "mmrlhf calibrate clip --clip_model ViT-B-32:laion2b_s34b_b79k --dataset_name pairs.jsonl --output_file calibration.json",
        _calibrate,
    ),
    "data": Command(
        "check, count or convert a data file, or make data", "mmrlhf data check rows.jsonl --image_folder images", _data
    ),
    "env": Command("print versions and devices, for a bug report", "mmrlhf env", _env),
}

CALIBRATE_COMMANDS = {
    "clip": Command(
        "an open_clip model",
        "mmrlhf calibrate clip --clip_model ViT-B-32:laion2b_s34b_b79k --dataset_name pairs.jsonl --output_file calibration.json",
        _calibrate_verifier,
    ),
    "vlm": Command(
        "the model itself, asked yes or no",
        "mmrlhf calibrate vlm --model_name_or_path runs/sft/model --dataset_name pairs.jsonl --output_file calibration.json",
        _calibrate_verifier,
    ),
}

DATA_COMMANDS = {
    "check": Command(
        "read every row of a file and say what is wrong",
        "mmrlhf data check rows.jsonl --image_folder images",
        _data_check,
    ),
    "convert": Command(
        "write preferences in another format",
        "mmrlhf data convert rows.jsonl --to rankings --output_file rows.parquet",
        _data_convert,
    ),
    "stats": Command(
        "count and measure a file: sources, lengths, ties, duplicates",
        "mmrlhf data stats rows.jsonl --output_dir runs/stats",
        _data_stats,
    ),
    "scenes": Command("draw scenes with exact facts", "mmrlhf data scenes --output_dir runs/scenes", _data_scenes),
    "tiny-vlm": Command("train the tiny VLM of the demo", "mmrlhf data tiny-vlm --output_dir runs/tiny_vlm", _data_tiny_vlm),
}


def _dispatch(prog: str, commands: Mapping[str, Command], argv: list[str], description: str) -> int:
    """Run the command that the first word names."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<12} {command.summary}\n               {command.example}" for name, command in commands.items()]
        help_text = "\n\n".join(
            [description, "\n".join(lines), f"`{prog} {next(iter(commands))} --help` tells more; so with each."]
        )
        print(help_text, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(mmrlhf.__version__)
        return 0
    if argv[0] not in commands:
        raise InputError(f"{prog} has no {argv[0]}: {suggestion(argv[0], commands)}")
    command = commands[argv[0]]
    return command.run(command, argv[1:]) or 0


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints are InputErrors, which names the nearest flag, and whose help wastes no line."""

    def __init__(self, command: Command, usage: str, description: str = "") -> None:
        super().__init__(
            prog=command.name,
            usage=f"%(prog)s {usage}".rstrip(),
            description=description or command.summary[0].upper() + command.summary[1:] + ".",
            epilog=f"example:\n  {command.example}",
            formatter_class=_Formatter,
            allow_abbrev=False,  # a flag's meaning must not change when another is added
            argument_default=argparse.SUPPRESS,
        )

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """The arguments that were given or have a default."""
        args, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            word = unknown[0].partition("=")[0]
            raise InputError(
                f"{self.prog} has no flag {word}: {suggestion(word, flags)}"
                if word.startswith("-")
                else f"{self.prog} does not expect {word!r} here: flags are written --name value"
            )
        return vars(args)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def _silence_libraries(argv: list[str]) -> None:
    """Keep other libraries' bars and advice out of logs. Their warnings and errors stay; what the user has set wins.

    On a terminal the bars of downloads are worth having, except in the demo, which downloads nothing.
    """
    # PEFT asks transformers for a name that is being retired: nothing that a user could change.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if argv[:1] == ["demo"] or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
