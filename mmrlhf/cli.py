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
from mmrlhf import content
from mmrlhf.config import (
    CalibrateClipConfig,
    CalibrateVLMConfig,
    EncodeConfig,
    EvalConfig,
    GenerateConfig,
    PPOConfig,
    RewardBenchConfig,
    RewardConfig,
    ScoreConfig,
    SFTConfig,
)
from mmrlhf.records import InputError
from mmrlhf.settings import Setting, load, settings, suggestion


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
        return " ".join(words[: 3 if words[1] in ("data", "calibrate") else 2])


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


def _calibrate(_: Command, argv: list[str]) -> int:
    return _choose("mmrlhf calibrate", CALIBRATE, argv, "Find out what a verifier of claims is worth on your data.")


def _calibrate_one(command: Command, argv: list[str]) -> None:
    config = _configured(CalibrateClipConfig if command.name.endswith("clip") else CalibrateVLMConfig, command, argv)
    from mmrlhf.calibrate import calibrate

    calibrate(config)


TRAINING = {"sft": SFTConfig, "reward": RewardConfig, "ppo": PPOConfig}


def _plan(command: Command, argv: list[str]) -> None:
    # A stage, or a recipe that is named after its stage: ppo, llava-1.5-7b/ppo, my/ppo.yaml.
    named = next((word for word in argv if Path(word).stem in TRAINING and not word.startswith("-")), None)
    if named is None and not {"-h", "--help"} & set(argv):
        raise InputError(
            f"mmrlhf plan is told a stage first, {', '.join(TRAINING)}, or a recipe of one, such as llava-1.5-7b/ppo"
        )
    cls: type = TRAINING[Path(named).stem if named else "ppo"]
    parser = _config_parser(cls, command, "STAGE|RECIPE")
    parser.add_argument(
        "stage", metavar="STAGE|RECIPE", help=f"{', '.join(TRAINING)}, or a recipe of one; flags are that stage's"
    )
    given = parser.parse(argv)
    if given.pop("stage") not in TRAINING:
        given.setdefault("config", named)
    # What a stage reads and writes takes no memory: it need not be known yet.
    for name, field in settings(cls).items():
        if field.required and name != "model_name_or_path":
            given.setdefault(name, "-")
    from mmrlhf.plan import show

    show(_load(cls, given))


def _eval(command: Command, argv: list[str]) -> None:
    from mmrlhf.suites import Suite, expand, read_suite

    words = list(itertools.takewhile(lambda word: not word.startswith("-"), argv))
    names = [name for word in words for name in word.split(",")]
    suite = (
        read_suite(Path(names[0]))
        if len(names) == 1 and names[0].endswith((".yaml", ".yml"))
        else Suite({name: {} for name in names})
    )
    modules = {
        name: content.load_module(content.find("eval", name)) for name in suite.benchmarks
    }  # a wrong name is said before torch is imported
    parser = _config_parser(EvalConfig, command, "BENCHMARK [BENCHMARK ...]", several=("model_name_or_path", "answers", "data"))
    there = ", ".join(name for name in content.names("eval") if "/" not in name)
    text = f"one or several of {there}; paths that end in .py; or a suite, a path that ends in .yaml"
    parser.add_argument("benchmark", metavar="BENCHMARK", nargs="+", help=text)
    own: dict[str, list[str]] = {}
    for name, module in modules.items():
        group = parser.add_argument_group(f"of {name}")
        for field in settings(module.Options).values() if hasattr(module, "Options") else ():
            if field.name not in own:
                _add_flag(group, field)
            own.setdefault(field.name, []).append(name)
    given = parser.parse(argv)
    del given["benchmark"]
    options = {name: {o: given[o] for o, names in own.items() if name in names and o in given} for name in modules}
    runs = expand(suite, {k: v for k, v in given.items() if k not in own}, options, lambda values: _load(EvalConfig, values))
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
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="of the bootstrap (default 0)")
    given = parser.parse(argv)
    from mmrlhf.compare import compare

    compare(given["runs"], given["out"], given.get("force", False), given["seed"])


Config = TypeVar("Config")


def _configured(cls: type[Config], command: Command, argv: list[str]) -> Config:
    return _load(cls, _config_parser(cls, command).parse(argv))


def _load(cls: type[Config], given: dict[str, Any]) -> Config:
    """A config file is a path, or the name of one that comes with the package (`demo/sft`)."""
    name = given.pop("config", None)
    file = None if name is None else Path(name) if Path(name).exists() else content.find("configs", name)
    return load(cls, file, given)


SHORT = {"model_name_or_path": "--model", "dataset_name": "--data", "output_dir": "--out", "output_file": "--out"}
"""Shorter names of flags."""


def _config_parser(cls: type, command: Command, usage: str = "", several: Sequence[str] = ()) -> _Parser:
    """Flags from a configuration's fields; `several` may be given more than one value."""
    parser = _Parser(command, f"{usage} [--config FILE] [--FIELD VALUE ...]".strip(), about=cls.__doc__ or "")
    parser.add_argument("--config", metavar="FILE", help="YAML with `field: value` lines; flags win over it")
    groups = {title: parser.add_argument_group(title) for title in ("required, here or in the file", "optional")}
    shared = parser.add_argument_group("optional, as in other stages")
    for field in settings(cls).values():
        inherited = field.name not in inspect.get_annotations(cls)
        required, own = groups.values()
        more = {"nargs": "+", "action": "extend"} if field.name in several else {}
        _add_flag(required if field.required else shared if inherited else own, field, **more)
    return parser


def _add_flag(group: argparse._ArgumentGroup, field: Setting, **how: Any) -> None:
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
        names = [SHORT[field.name], f"--{field.name}"] if field.name in SHORT else [f"--{field.name}"]
        group.add_argument(*names, dest=field.name, metavar=metavar, help=text, **how)


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


READ = "FILE [--image_folder DIR] [--facts_file FILE] [--split NAME]"


def _reads(parser: _Parser, facts: str = "facts by image name") -> None:
    """The arguments of a command that reads one data file."""
    parser.add_argument("file", metavar="FILE", help="JSON, JSONL or parquet, or a `datasets` folder")
    parser.add_argument("--image_folder", metavar="DIR", help="where relative image paths start; FILE's folder if not given")
    parser.add_argument("--facts_file", metavar="FILE", help=facts)
    parser.add_argument(
        "--split", metavar="NAME", default="train", help="of a `datasets` folder that has several (default train)"
    )


def _data_check(command: Command, argv: list[str]) -> int:
    parser = _Parser(command, READ)
    _reads(parser)
    given = parser.parse(argv)
    from mmrlhf.check import check

    return check(given["file"], given.get("image_folder"), given.get("facts_file"), given["split"])


def _data_convert(command: Command, argv: list[str]) -> None:
    from mmrlhf.formats import FORMATS

    parser = _Parser(command, f"{READ} --to FORMAT --output_file OUT [--balance_lengths] [--seed N]")
    _reads(parser, "facts by image name, to write into the rows")
    parser.add_argument("--to", metavar="FORMAT", choices=FORMATS, required=True, help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--output_file", metavar="OUT", required=True, help="a .jsonl, .json or .parquet file to write")
    text = "leave pairs out until the longer answer is chosen as often as not, at every size of the difference"
    parser.add_argument("--balance_lengths", action="store_true", help=text)
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="of what --balance_lengths draws (default 0)")
    given = parser.parse(argv)
    from mmrlhf.convert import convert

    convert(
        given["file"], given["to"], given["output_file"], given.get("image_folder"), given.get("facts_file"),
        given.get("balance_lengths", False), given["seed"], given["split"],
    )  # fmt: skip


def _data_stats(command: Command, argv: list[str]) -> None:
    parser = _Parser(command, f"{READ} [--output_dir DIR]")
    _reads(parser)
    text = "where stats.json and stats.png are written (default runs/stats)"
    parser.add_argument("--output_dir", metavar="DIR", default="runs/stats", help=text)
    given = parser.parse(argv)
    from mmrlhf.stats import stats

    stats(given["file"], given.get("image_folder"), given.get("facts_file"), given["output_dir"], given["split"])


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
        _claims,
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

CALIBRATE = {
    "clip": Command(
        "an open_clip model",
        "mmrlhf calibrate clip --clip_model ViT-B-32:laion2b_s34b_b79k --dataset_name pairs.jsonl --output_file calibration.json",
        _calibrate_one,
    ),
    "vlm": Command(
        "the model itself, asked yes or no",
        "mmrlhf calibrate vlm --model_name_or_path runs/sft/model --dataset_name pairs.jsonl --output_file calibration.json",
        _calibrate_one,
    ),
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
