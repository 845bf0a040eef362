"""The command line: `mmrlhf STAGE --config FILE --field value ...`.

A stage's flags are its configuration's fields, so there is nothing to keep in step: argparse only splits the line,
and `config.load` judges flags and file alike, in the same words. A stage's module, and torch with it, is imported when
its configuration is known to be good: help and errors come at once.
"""

from __future__ import annotations

import argparse
import inspect
import os
import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import mmrlhf
from mmrlhf import content
from mmrlhf.config import (
    EncodeConfig,
    EvalConfig,
    GenerateConfig,
    PPOConfig,
    RewardBenchConfig,
    RewardConfig,
    ScoreConfig,
    Setting,
    SFTConfig,
    load,
    settings,
    suggestion,
)
from mmrlhf.records import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for what the user can correct, 130 when interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _quiet(arguments)
    try:
        return _choose("mmrlhf", COMMANDS, arguments, ABOUT)
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
        return " ".join(words[: 3 if words[1] == "data" else 2])


# ---- stages: flags from a configuration ------------------------------------------------------------------------------


def _sft(command: Command, argv: list[str]) -> None:
    config = _configured(SFTConfig, command, argv)
    from mmrlhf.sft import sft

    sft(config)


def _reward(command: Command, argv: list[str]) -> None:
    config = _configured(RewardConfig, command, argv)
    from mmrlhf.reward_model import reward

    reward(config)


def _ppo(command: Command, argv: list[str]) -> None:
    config = _configured(PPOConfig, command, argv)
    from mmrlhf.ppo import ppo
    from mmrlhf.report import write_claims

    ppo(config)
    if os.environ.get("RANK", "0") == "0" and (page := write_claims(Path(config.output_dir))):
        print(f"{page} shows every claim of the latest answers, and who judged it")


def _generate(command: Command, argv: list[str]) -> None:
    config = _configured(GenerateConfig, command, argv)
    from mmrlhf.generate import generate

    generate(config)


def _score(command: Command, argv: list[str]) -> None:
    config = _configured(ScoreConfig, command, argv)
    from mmrlhf.score import score

    score(config)


def _reward_bench(command: Command, argv: list[str]) -> None:
    config = _configured(RewardBenchConfig, command, argv)
    from mmrlhf.reward_bench import reward_bench

    reward_bench(config)


def _encode(command: Command, argv: list[str]) -> None:
    config = _configured(EncodeConfig, command, argv)
    from mmrlhf.encode import encode

    encode(config)


TRAINING = {"sft": SFTConfig, "reward": RewardConfig, "ppo": PPOConfig}


def _plan(command: Command, argv: list[str]) -> None:
    named = next((word for word in argv if word in TRAINING), None)
    if named is None and not {"-h", "--help"} & set(argv):
        raise InputError(f"mmrlhf plan is told a stage first: {', '.join(TRAINING)}")
    cls: type = TRAINING[named or "ppo"]
    parser = _config_parser(cls, command, "|".join(TRAINING))
    parser.add_argument("stage", metavar="|".join(TRAINING), help="whose memory is planned; flags and file are that stage's")
    given = parser.parse(argv)
    given.pop("stage")
    # What a stage reads and writes takes no memory: it need not be known yet.
    for name, field in settings(cls).items():
        if field.required and name != "model_name_or_path":
            given.setdefault(name, "-")
    from mmrlhf.plan import show

    show(_load(cls, given))


def _eval(command: Command, argv: list[str]) -> None:
    parser = _config_parser(EvalConfig, command, "BENCHMARK")
    there = ", ".join(content.names("eval"))
    parser.add_argument("benchmark", metavar="BENCHMARK", help=f"one of {there}; or a path that ends in .py")
    given = parser.parse(argv)
    benchmark = given.pop("benchmark")
    content.find("eval", benchmark)  # a wrong name is said before torch is imported
    config = _load(EvalConfig, given)
    from mmrlhf.evaluate import evaluate

    evaluate(benchmark, config)


Config = TypeVar("Config")


def _configured(cls: type[Config], command: Command, argv: list[str]) -> Config:
    return _load(cls, _config_parser(cls, command).parse(argv))


def _load(cls: type[Config], given: dict[str, Any]) -> Config:
    """A config file is a path, or the name of one that comes with the package (`demo/sft`)."""
    name = given.pop("config", None)
    file = None if name is None else Path(name) if Path(name).exists() else content.find("configs", name)
    return load(cls, file, given)


def _config_parser(cls: type, command: Command, usage: str = "") -> _Parser:
    parser = _Parser(command, f"{usage} [--config FILE] [--FIELD VALUE ...]".strip(), about=cls.__doc__ or "")
    parser.add_argument("--config", metavar="FILE", help="YAML with `field: value` lines; flags win over it")
    groups = {title: parser.add_argument_group(title) for title in ("required, here or in the file", "optional")}
    shared = parser.add_argument_group("optional, as in every training stage")
    for field in settings(cls).values():
        inherited = field.name not in inspect.get_annotations(cls)
        required, own = groups.values()
        _add_flag(required if field.required else shared if inherited else own, field)
    return parser


def _add_flag(group: argparse._ArgumentGroup, field: Setting) -> None:
    """A flag takes any text: `load` checks it. A boolean's may stand alone, or as --no-flag."""
    more = [field.bounds.removeprefix("of ")] if field.bounds else []
    if not field.required:
        more.append(f"default {_shown(field.default)}")
    text = (field.help + f" ({'; '.join(more)})" * bool(more)).replace("%", "%%")
    if field.kind == "boolean":
        group.add_argument(f"--{field.name}", nargs="?", const="true", metavar="true|false", help=text)
        group.add_argument(f"--no-{field.name}", dest=field.name, action="store_const", const="false")
    else:
        metavar = "|".join(field.choices) or field.kind.upper()
        group.add_argument(f"--{field.name}", metavar=metavar, help=text)


def _shown(value: Any) -> str:
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
        type=_whole,
        default=0,
        help="of everything but the base and the scenes it is measured on (default 0)",
    )
    parser.add_argument("--fresh", action="store_true", help="start over; without it, finished parts are kept")
    given = parser.parse(argv)
    from mmrlhf.demo import demo

    demo(given["output_dir"], given.get("fresh", False), given["seed"])


def _claims(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, "FILE [--facts FACTS] [--out FILE] [--lexicon FILE]")
    parser.add_argument("file", metavar="FILE", help="an answer a line, as text or as JSON with `text` or `answer`")
    parser.add_argument("--facts", metavar="FACTS", help="facts by `image`, or a row for each line: each claim gets a verdict")
    parser.add_argument("--out", metavar="FILE", help="a JSONL file to write; standard output if not given")
    parser.add_argument("--lexicon", metavar="FILE", help="more words, as mmrlhf/claims/lexicon.txt has them")
    given = parser.parse(argv)
    from mmrlhf.extract import extract

    extract(given["file"], given.get("facts"), given.get("out"), given.get("lexicon"))


def _data(_: Command, argv: list[str]) -> int:
    return _choose("mmrlhf data", DATA, argv, "Check, count and convert data, or make some.")


def _data_check(command: Command, argv: list[str]) -> int:
    parser = _Parser(command, "FILE [--image_folder DIR] [--facts_file FILE]")
    parser.add_argument("file", metavar="FILE", help="JSON, JSONL or parquet, or a `datasets` folder")
    parser.add_argument("--image_folder", metavar="DIR", help="where relative image paths start; FILE's folder if not given")
    parser.add_argument("--facts_file", metavar="FILE", help="facts by image name")
    given = parser.parse(argv)
    from mmrlhf.check import check

    return check(given["file"], image_folder=given.get("image_folder"), facts_file=given.get("facts_file"))


def _data_convert(command: Command, argv: list[str]) -> None:
    from mmrlhf.formats import FORMATS

    parser = _Parser(
        command, "FILE --to FORMAT --output_file OUT [--image_folder DIR] [--facts_file FILE] [--balance_lengths] [--seed N]"
    )
    parser.add_argument("file", metavar="FILE", help="preferences in any format that is read")
    parser.add_argument("--to", metavar="FORMAT", choices=FORMATS, required=True, help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--output_file", metavar="OUT", required=True, help="a .jsonl, .json or .parquet file to write")
    parser.add_argument("--image_folder", metavar="DIR", help="where relative image paths start; FILE's folder if not given")
    parser.add_argument("--facts_file", metavar="FILE", help="facts by image name, to write into the rows")
    text = "leave pairs out until the longer answer is chosen as often as not, at every size of the difference"
    parser.add_argument("--balance_lengths", action="store_true", help=text)
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="of what --balance_lengths draws (default 0)")
    given = parser.parse(argv)
    from mmrlhf.convert import convert

    convert(
        given["file"], given["to"], given["output_file"], given.get("image_folder"), given.get("facts_file"),
        given.get("balance_lengths", False), given["seed"],
    )  # fmt: skip


def _data_stats(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, "FILE [--image_folder DIR] [--facts_file FILE] [--output_dir DIR]")
    parser.add_argument("file", metavar="FILE", help="JSON, JSONL or parquet, or a `datasets` folder")
    parser.add_argument("--image_folder", metavar="DIR", help="where relative image paths start; FILE's folder if not given")
    parser.add_argument("--facts_file", metavar="FILE", help="facts by image name")
    text = "where stats.json and stats.png are written (default runs/stats)"
    parser.add_argument("--output_dir", metavar="DIR", default="runs/stats", help=text)
    given = parser.parse(argv)
    from mmrlhf.stats import stats

    stats(given["file"], given.get("image_folder"), given.get("facts_file"), given["output_dir"])


def _data_scenes(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, "--output_dir DIR [--rows N] [--seed N]")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="folder to write")
    parser.add_argument("--rows", metavar="N", type=_whole, default=1000, help="how many scenes (default 1000)")
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="the same seed draws the same (default 0)")
    given = parser.parse(argv)
    from mmrlhf.scenes import export

    export(given["output_dir"], given["rows"], given["seed"])


def _data_base(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, "--output_dir DIR [--seed N] [--dtype float32|bfloat16]")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="checkpoint directory to write")
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="of weights and data (default 0)")
    text = "of matrix products: bfloat16 is quicker on a processor that has it, and much slower on others (default float32)"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=text)
    given = parser.parse(argv)
    from mmrlhf.scenes_base import build

    build(given["output_dir"], given["seed"], given["dtype"])


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, not {text!r}")
    return int(text)


PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "open_clip_torch", "pillow")


def _env(command: Command, argv: list[str]) -> None:
    _Parser(command, "").parse(argv)
    rows = {"mmrlhf": mmrlhf.__version__, "python": f"{platform.python_version()}, {platform.platform()}"}
    for package in PACKAGES:
        try:
            rows[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            rows[package] = "not installed"
    rows["cuda"] = _cuda()
    rows["cpus"] = str(os.cpu_count())
    print("\n".join(f"{name:<16} {value}" for name, value in rows.items()))


def _cuda() -> str:
    try:
        import torch
    except (ImportError, OSError) as error:  # the report is worth most when torch does not load
        return f"unknown, torch does not load: {error}"
    if not torch.cuda.is_available():
        return "not available"
    devices = (torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{torch.version.cuda}: {', '.join(devices)}"


# ---- choosing and helping --------------------------------------------------------------------------------------------

ABOUT = """Train vision-language models with feedback, so that they claim only what the picture shows.

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
    "reward-bench": Command(
        "measure a reward model: accuracy, calibration, planted false claims, missing and wrong facts",
        "mmrlhf reward-bench --reward_model_path runs/reward --dataset_name held_out.jsonl --output_dir runs/reward-bench",
        _reward_bench,
    ),
    "encode": Command(
        "keep the picture features of a data set, ahead of training",
        "mmrlhf encode --model_name_or_path runs/sft/model --dataset_name pairs.jsonl --feature_cache_dir runs/features",
        _encode,
    ),
    "plan": Command(
        "say what a training stage will hold in memory, before anything is loaded",
        "mmrlhf plan ppo --config llava-1.5-7b/ppo --micro_batch_tokens 8192",
        _plan,
    ),
    "eval": Command(
        "measure a model on a benchmark",
        "mmrlhf eval scenes --model_name_or_path runs/sft/model --adapter_path runs/ppo/policy --output_dir runs/eval",
        _eval,
    ),
    "claims": Command(
        "say what answers claim of their pictures, and what facts say of that",
        "mmrlhf claims answers.jsonl --facts facts.jsonl --out claims.jsonl",
        _claims,
    ),
    "data": Command(
        "check, count or convert a data file, or make data", "mmrlhf data check rows.jsonl --image_folder images", _data
    ),
    "env": Command("print versions and devices, for a bug report", "mmrlhf env", _env),
}

DATA = {
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
    "base": Command("train the demo's small base model", "mmrlhf data base --output_dir runs/base", _data_base),
}


def _choose(prog: str, commands: Mapping[str, Command], argv: list[str], about: str) -> int:
    """Run the command that the first word names."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<12} {command.summary}\n               {command.example}" for name, command in commands.items()]
        text = "\n\n".join([about, "\n".join(lines), f"`{prog} {next(iter(commands))} --help` tells more; so with each."])
        print(text, file=sys.stdout if argv else sys.stderr)
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

    def __init__(self, command: Command, usage: str, about: str = "") -> None:
        super().__init__(
            prog=command.name,
            usage=f"%(prog)s {usage}".rstrip(),
            description=about or command.summary[0].upper() + command.summary[1:] + ".",
            epilog=f"example:\n  {command.example}",
            formatter_class=_Formatter,
            allow_abbrev=False,  # a flag's meaning must not change when another is added
            argument_default=argparse.SUPPRESS,
        )

    def parse(self, argv: list[str]) -> dict[str, Any]:
        """The arguments that were given or have a default."""
        given, unknown = self.parse_known_args(argv)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            word = unknown[0].partition("=")[0]
            raise InputError(
                f"{self.prog} has no flag {word}: {suggestion(word, flags)}"
                if word.startswith("-")
                else f"{self.prog} does not expect {word!r} here: flags are written --name value"
            )
        return vars(given)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


def _quiet(argv: list[str]) -> None:
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
