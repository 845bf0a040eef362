"""Run the commands that take more arguments than the fields of one configuration.

Each function parses its arguments first, and imports the command's module only once they are valid.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mmrlhf.cli.parser import (
    Command,
    Parser,
    add_flag,
    fraction,
    load_named_config,
    make_config_parser,
    non_negative_int,
    positive_int,
)
from mmrlhf.config import (
    DPOConfig,
    EvalConfig,
    ExportConfig,
    PPOConfig,
    RewardConfig,
    ServeConfig,
    SFTConfig,
)
from mmrlhf.config.loader import config_fields
from mmrlhf.files import bundled
from mmrlhf.files.paths import require_paths
from mmrlhf.records import InputError

if TYPE_CHECKING:
    from mmrlhf.evaluation.benchmark import Benchmark
    from mmrlhf.evaluation.suites import Suite

TRAINING_CONFIGS = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig, "ppo": PPOConfig}


def run_plan(command: Command, argv: list[str]) -> None:
    # A stage, or a recipe named after its stage: ppo, llava-1.5-7b/ppo, my/ppo.yaml.
    stage_or_recipe = argv[0] if argv and Path(argv[0]).stem in TRAINING_CONFIGS else None
    stages = ", ".join(TRAINING_CONFIGS)
    if stage_or_recipe is None and not {"-h", "--help"} & set(argv):
        raise InputError(
            f"mmrlhf plan needs a stage ({stages}) or a recipe of one, such as llava-1.5-7b/ppo, as its first argument"
        )
    cls: type = TRAINING_CONFIGS[Path(stage_or_recipe).stem if stage_or_recipe else "ppo"]
    parser = make_config_parser(cls, command, "STAGE|RECIPE")
    parser.add_argument("stage", metavar="STAGE|RECIPE", help=f"{stages}, or a recipe of one; the flags are those of the stage")
    shards_help = "processes that split the base over them, with FSDP2 or ZeRO-3 (default 1: each process has all of it)"
    parser.add_argument("--num_shards", type=positive_int, default=1, metavar="N", help=shards_help)
    memory_help = "memory of the GPU to plan for, such as 80 (default: that of this machine)"
    parser.add_argument("--gpu_memory_gib", type=positive_int, metavar="N", help=memory_help)
    args = parser.parse(argv)
    num_shards, gpu_memory_gib = args.pop("num_shards"), args.pop("gpu_memory_gib", None)
    if args.pop("stage") not in TRAINING_CONFIGS:
        if "config" in args:
            raise InputError(f"mmrlhf plan has two recipes, {stage_or_recipe} and --config {args['config']}: give one")
        args["config"] = stage_or_recipe
    # The dataset and the output folder need no memory, so they may be left out.
    for name, field in config_fields(cls).items():
        if field.is_required and name != "model_name_or_path":
            args.setdefault(name, "-")
    from mmrlhf.commands.plan import print_memory_estimate

    print_memory_estimate(load_named_config(cls, args), num_shards, gpu_memory_gib)


def run_serve(command: Command, argv: list[str]) -> None:
    parser = make_config_parser(ServeConfig, command, "RUN")
    parser.add_argument("model_name_or_path", metavar="RUN", nargs="?", help="finished run, checkpoint directory or Hub id")
    config = load_named_config(ServeConfig, parser.parse(argv))
    require_paths(config)
    from mmrlhf.serve import serve

    serve(config)


def run_eval(command: Command, argv: list[str]) -> None:
    from mmrlhf.evaluation.benchmark import load_benchmark
    from mmrlhf.evaluation.suites import expand_runs

    suite = _parse_benchmarks(argv)
    # Benchmarks load before torch is imported, so a wrong name fails at once.
    benchmarks = {name: load_benchmark(name) for name in suite.benchmarks}
    multi_value_fields = ("model_name_or_path", "answers", "data")
    parser = make_config_parser(EvalConfig, command, "BENCHMARK [BENCHMARK ...]", multi_value_fields)
    benchmark_names = ", ".join(name for name in bundled.names("eval") if "/" not in name)
    help_text = f"one or more of {benchmark_names}; paths that end in .py; or a suite, a path that ends in .yaml"
    parser.add_argument("benchmark", metavar="BENCHMARK", nargs="+", help=help_text)
    flag_owners = _add_benchmark_options(parser, benchmarks)
    args = parser.parse(argv)
    del args["benchmark"]
    flags = {name: value for name, value in args.items() if name not in flag_owners}
    options = {
        name: {option: args[option] for option, owners in flag_owners.items() if name in owners and option in args}
        for name in benchmarks
    }
    runs = expand_runs(suite, flags, options, lambda values: load_named_config(EvalConfig, values))
    for run in runs:
        require_paths(run.config)
    if len(runs) == 1:
        from mmrlhf.evaluate import evaluate

        evaluate(runs[0].benchmark, runs[0].config, runs[0].options)
    else:
        from mmrlhf.evaluate import run_all

        run_all(runs)


def run_export(command: Command, argv: list[str]) -> None:
    args = make_config_parser(ExportConfig, command, multi_value_fields=("eval_results",)).parse(argv)
    if "eval_results" in args:
        args["eval_results"] = ",".join(args["eval_results"])
    config = load_named_config(ExportConfig, args)
    require_paths(config)
    from mmrlhf.commands.export import export

    export(config)


def _parse_benchmarks(argv: list[str]) -> Suite:
    """Read the benchmarks before the first flag: names, comma-separated names, or a suite."""
    from mmrlhf.evaluation.suites import Suite, read_suite

    leading_args = itertools.takewhile(lambda word: not word.startswith("-"), argv)
    names = [name for word in leading_args for name in word.split(",")]
    if len(names) == 1 and names[0].endswith((".yaml", ".yml")):
        return read_suite(Path(names[0]))
    return Suite({name: {} for name in names})


def _add_benchmark_options(parser: Parser, benchmarks: Mapping[str, Benchmark]) -> dict[str, list[str]]:
    """Add a flag for each option of the benchmarks; return the benchmarks that have each option."""
    flag_owners: dict[str, list[str]] = {}
    for name, benchmark in benchmarks.items():
        group = parser.add_argument_group(f"options of {name}")
        for field in config_fields(benchmark.options_type).values() if benchmark.options_type else ():
            if field.name not in flag_owners:
                add_flag(group, field)
            flag_owners.setdefault(field.name, []).append(name)
    return flag_owners


def run_compare(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "RUN RUN [RUN ...] [--out DIR] [--force] [--seed N] [--benchmark_file FILE ...]")
    help_text = "output folder of eval, or a folder of them; the first run is the baseline"
    parser.add_argument("runs", metavar="RUN", nargs="+", help=help_text)
    parser.add_argument("--out", metavar="DIR", default="runs/compare", help="folder to write (default runs/compare)")
    help_text = "compare runs that differ in data, prompts, parser, judge or settings, with a warning"
    parser.add_argument("--force", action="store_true", help=help_text)
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0, help="seed of the bootstrap (default 0)")
    help_text = "file of your own benchmark, if the runs are of one: the file that they name is not run"
    parser.add_argument("--benchmark_file", metavar="FILE", nargs="+", default=[], help=help_text)
    args = parser.parse(argv)
    from mmrlhf.commands.compare import compare

    compare(args["runs"], args["out"], args.get("force", False), args["seed"], args["benchmark_file"])


def run_report(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "RUN [RUN ...] [--out FILE]")
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="an output_dir of sft, reward, dpo, rft or ppo; several are drawn together"
    )
    help_text = "HTML file to write (default: report.html in RUN; in the current folder for several)"
    parser.add_argument("--out", metavar="FILE", help=help_text)
    args = parser.parse(argv)
    from mmrlhf.report.runs import write_runs_page

    print(f"wrote {write_runs_page(args['runs'], args.get('out'))}")


def run_replay(command: Command, argv: list[str]) -> int:
    parser = Parser(command, "FILE [--model_name_or_path MODEL]")
    parser.add_argument("file", metavar="FILE", help="a file of the folder `skipped` in the output_dir of a run")
    parser.add_argument("--model_name_or_path", metavar="MODEL", help="the run's base model, if it has moved")
    args = parser.parse(argv)
    from mmrlhf.replay import replay

    return 0 if replay(args["file"], args.get("model_name_or_path")) else 1


def run_demo(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "[--output_dir DIR] [--seed N] [--fresh]")
    parser.add_argument("--output_dir", metavar="DIR", default="runs/demo", help="folder to write (default runs/demo)")
    help_text = "seed of everything except the base model and the evaluation scenes (default 0)"
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0, help=help_text)
    parser.add_argument("--fresh", action="store_true", help="start over instead of keeping finished parts")
    args = parser.parse(argv)
    from mmrlhf.demo.pipeline import demo

    demo(args["output_dir"], args.get("fresh", False), args["seed"])


def run_claims(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "FILE [--facts_file FACTS] [--output_file OUT] [--lexicon_file WORDS]")
    parser.add_argument("file", metavar="FILE", help="answers: JSON rows (of generate, eval, ...), or one per line as text")
    parser.add_argument(
        "--facts_file", "--facts", metavar="FACTS", help="facts by image name or row id: adds a verdict to each claim"
    )
    help_text = "JSONL file to write (default: standard output)"
    parser.add_argument("--output_file", "--out", metavar="OUT", help=help_text)
    parser.add_argument(
        "--lexicon_file", "--lexicon", metavar="WORDS", help="additional words, in the format of mmrlhf/claims/lexicon.txt"
    )
    args = parser.parse(argv)
    from mmrlhf.commands.claims import extract

    extract(args["file"], args.get("facts_file"), args.get("output_file"), args.get("lexicon_file"))


def run_env(command: Command, argv: list[str]) -> None:
    Parser(command, "").parse(argv)
    from mmrlhf.commands.env import print_environment

    print_environment()


# ---- mmrlhf data ---------------------------------------------------------------------------------

READ_USAGE = "FILE [--image_folder DIR] [--facts_file FILE] [--split NAME]"


def _add_read_arguments(parser: Parser, facts_help: str | None = "facts by image name") -> None:
    """Add the arguments of a command that reads one data file."""
    parser.add_argument("file", metavar="FILE", help="JSON, JSONL or parquet, or a `datasets` folder")
    help_text = "folder that relative image paths start from (default: the folder of FILE)"
    parser.add_argument("--image_folder", metavar="DIR", help=help_text)
    if facts_help is not None:
        parser.add_argument("--facts_file", metavar="FILE", help=facts_help)
    help_text = "split of a `datasets` folder that has several (default train)"
    parser.add_argument("--split", "--dataset_train_split", metavar="NAME", default="train", help=help_text)


def run_data_check(command: Command, argv: list[str]) -> int:
    parser = Parser(command, f"{READ_USAGE} [--bad_rows_file OUT]")
    _add_read_arguments(parser)
    help_text = "JSONL to write: each bad row with its location and its error"
    parser.add_argument("--bad_rows_file", metavar="OUT", help=help_text)
    args = parser.parse(argv)
    from mmrlhf.commands.check import check

    return check(args["file"], args.get("image_folder"), args.get("facts_file"), args["split"], args.get("bad_rows_file"))


def run_data_split(command: Command, argv: list[str]) -> None:
    usage = "FILE --held_out N --train_file OUT --held_out_file OUT [--image_folder DIR] [--split NAME] [--seed N]"
    parser = Parser(command, usage)
    _add_read_arguments(parser, facts_help=None)
    parser.add_argument("--held_out", metavar="N", type=positive_int, required=True, help="rows to hold out, or a few more")
    parser.add_argument("--train_file", metavar="OUT", required=True, help=".jsonl file for the other rows")
    parser.add_argument("--held_out_file", metavar="OUT", required=True, help=".jsonl file for the rows held out")
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0, help="seed that decides which rows (default 0)")
    args = parser.parse(argv)
    from mmrlhf.commands.split import split

    outputs = (args["train_file"], args["held_out_file"])
    split(args["file"], args["held_out"], *outputs, args.get("image_folder"), args["split"], args["seed"])


def run_data_convert(command: Command, argv: list[str]) -> None:
    from mmrlhf.datasets import EXAMPLE_FORMATS, FORMATS

    formats = [*EXAMPLE_FORMATS, *FORMATS]
    parser = Parser(command, f"{READ_USAGE} --to FORMAT --output_file OUT [--balance_lengths] [--seed N]")
    _add_read_arguments(parser, "facts by image name, to write into the rows")
    help_text = f"sft (chosen answers), prompts (no answers), or a format of preferences: {', '.join(FORMATS)}"
    parser.add_argument("--to", metavar="FORMAT", choices=formats, required=True, help=help_text)
    parser.add_argument("--output_file", metavar="OUT", required=True, help=".jsonl, .json or .parquet file to write")
    help_text = "drop pairs until the longer answer is chosen as often as the shorter one, at every length gap"
    parser.add_argument("--balance_lengths", action="store_true", help=help_text)
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0, help="seed of --balance_lengths (default 0)")
    args = parser.parse(argv)
    from mmrlhf.commands.convert import convert

    convert(
        args["file"],
        args["to"],
        args["output_file"],
        args.get("image_folder"),
        args.get("facts_file"),
        args.get("balance_lengths", False),
        args["seed"],
        args["split"],
    )


def run_data_facts(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "FILE [FILE ...] --output_file OUT [--caption_key COLUMN | --captioner URL] [--dataset_name ROWS]")
    help_text = "COCO instances or captions, scene graphs, facts, or rows with captions; with --captioner, rows with images"
    parser.add_argument("files", metavar="FILE", nargs="+", help=help_text)
    parser.add_argument("--output_file", metavar="OUT", required=True, help="facts file to write (JSONL)")
    parser.add_argument("--caption_key", metavar="COLUMN", help="column of captions, in rows that name their image")
    parser.add_argument("--dataset_name", metavar="ROWS", help="keep facts about the images of this dataset only")
    help_text = "URL of an OpenAI-compatible server (http://HOST:PORT/v1) to ask for a caption of each image"
    parser.add_argument("--captioner", metavar="URL", help=help_text)
    parser.add_argument("--captioner_model", metavar="NAME", help="its model, if it serves several")
    parser.add_argument("--question", metavar="TEXT", help="what to ask about each image")
    parser.add_argument("--max_tokens", metavar="N", type=positive_int, help="maximum tokens of a caption (default 512)")
    parser.add_argument("--concurrency", metavar="N", type=positive_int, help="requests at a time (default 4)")
    parser.add_argument("--confidence", metavar="F", type=fraction, help="confidence of the facts, from 0 to 1 (default 1)")
    parser.add_argument("--image_folder", metavar="DIR", help="folder that relative image paths start from")
    parser.add_argument(
        "--split",
        "--dataset_train_split",
        metavar="NAME",
        default="train",
        help="split of a dataset that has several (default train)",
    )
    args = parser.parse(argv)
    from mmrlhf.commands.facts import CAPTION_QUESTION, facts_from_captioner, facts_from_files

    common = {name: args[name] for name in ("output_file", "image_folder", "confidence", "split") if name in args}
    if "captioner" not in args:
        for name in ("captioner_model", "question", "max_tokens", "concurrency"):
            if name in args:
                raise InputError(f"{command.prog}: --{name} is for --captioner: give that, too, or leave --{name} out")
        if "image_folder" in args and "dataset_name" not in args:
            raise InputError(f"{command.prog}: --image_folder is for rows: give --dataset_name or --captioner, or leave it out")
        facts_from_files(args["files"], caption_key=args.get("caption_key"), dataset_name=args.get("dataset_name"), **common)
        return
    if len(args["files"]) > 1 or "caption_key" in args or "dataset_name" in args:
        raise InputError(f"{command.prog}: --captioner takes one FILE, rows with images, and no --caption_key or --dataset_name")
    from mmrlhf.evaluation.openai_client import Endpoint

    endpoint = Endpoint(args["captioner"], args.get("captioner_model", ""), concurrency=args.get("concurrency", 4))
    question = args.get("question", CAPTION_QUESTION)
    facts_from_captioner(args["files"][0], endpoint=endpoint, question=question, max_tokens=args.get("max_tokens", 512), **common)


def run_data_stats(command: Command, argv: list[str]) -> None:
    parser = Parser(command, f"{READ_USAGE} [--output_dir DIR]")
    _add_read_arguments(parser)
    help_text = "folder for stats.json and stats.png (default runs/stats)"
    parser.add_argument("--output_dir", metavar="DIR", default="runs/stats", help=help_text)
    args = parser.parse(argv)
    from mmrlhf.commands.stats import stats

    stats(args["file"], args.get("image_folder"), args.get("facts_file"), args["output_dir"], args["split"])


def run_data_scenes(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "--output_dir DIR [--rows N] [--seed N]")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="folder to write")
    parser.add_argument("--rows", metavar="N", type=non_negative_int, default=1000, help="number of scenes (default 1000)")
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0, help="random seed (default 0)")
    args = parser.parse(argv)
    from mmrlhf.scenes import export_dataset

    export_dataset(args["output_dir"], args["rows"], args["seed"])
    folder = Path(args["output_dir"])
    names = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ""
    print(f"wrote {folder} ({names})\nnext: mmrlhf data check {shlex.quote(str(folder / 'pairs.jsonl'))}")


def run_data_tiny_vlm(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "--output_dir DIR [--seed N] [--dtype float32|bfloat16] [--unaided_review_rate D]")
    parser.add_argument("--output_dir", metavar="DIR", required=True, help="checkpoint directory to write")
    parser.add_argument("--seed", metavar="N", type=non_negative_int, default=0, help="seed of weights and data (default 0)")
    help_text = (
        "precision of matrix products: bfloat16 is faster on a CPU that supports it, and much slower on others (default float32)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help=help_text)
    help_text = "share of the conversations about pictures that review an answer without facts (default 0.02)"
    parser.add_argument("--unaided_review_rate", metavar="D", type=fraction, default=0.02, help=help_text)
    args = parser.parse(argv)
    from mmrlhf.demo.tiny_vlm import train_tiny_vlm

    train_tiny_vlm(args["output_dir"], args["seed"], args["dtype"], args["unaided_review_rate"])


# ---- mmrlhf label --------------------------------------------------------------------------------
