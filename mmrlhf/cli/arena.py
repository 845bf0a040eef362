"""The commands of `mmrlhf arena`; similar commands are in `cli.commands`."""

from __future__ import annotations

from typing import Any

from mmrlhf.cli.parser import Command, Parser, load_named_config, make_config_parser
from mmrlhf.config import ArenaConfig, ArenaJudgeConfig
from mmrlhf.records import InputError


def run_arena_serve(command: Command, argv: list[str]) -> None:
    config = _load_config(ArenaConfig, command, argv)
    from mmrlhf.arena.serve import serve_arena

    serve_arena(config)


def run_arena_judge(command: Command, argv: list[str]) -> None:
    config = _load_config(ArenaJudgeConfig, command, argv)
    from mmrlhf.arena.serve import judge_arena

    judge_arena(config)


def _load_config(cls: type[Any], command: Command, argv: list[str]) -> Any:
    """Return a configuration whose models are positional arguments."""
    parser = make_config_parser(cls, command, "[NAME=SOURCE ...]")
    parser.add_argument("sources", metavar="NAME=SOURCE", nargs="*", help="the models, as in --models")
    args = parser.parse(argv)
    if sources := args.pop("sources", []):
        if "models" in args:
            raise InputError("models are given twice, as NAME=SOURCE and as --models: give them once")
        args["models"] = ",".join(sources)
    return load_named_config(cls, args)


def run_arena_report(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "VOTES [--out FILE]")
    parser.add_argument("file", metavar="VOTES", help="file that `mmrlhf arena serve` writes")
    parser.add_argument("--out", metavar="FILE", help="HTML page to write")
    args = parser.parse(argv)
    from mmrlhf.arena.page import report_arena

    report_arena(args["file"], args.get("out"))


def run_arena_export(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "VOTES --to FORMAT --output_file OUT [--judge NAME] [--anonymous]")
    parser.add_argument("file", metavar="VOTES", help="file that `mmrlhf arena serve` writes")
    help_text = "trl, rankings, rlhf-v, ... as in `mmrlhf data convert`; or labels, which has every vote as it is"
    parser.add_argument("--to", metavar="FORMAT", required=True, help=help_text)
    parser.add_argument("--output_file", metavar="OUT", required=True, help=".jsonl, .json or .parquet file to write")
    parser.add_argument("--judge", metavar="NAME", help="write the votes of this judge in place of people's")
    parser.add_argument(
        "--anonymous", action="store_true", help="number voters, and leave out their names, times of day and notes"
    )
    args = parser.parse(argv)
    from mmrlhf.arena.export import export_arena

    export_arena(args["file"], args["to"], args["output_file"], args.get("judge"), args.get("anonymous", False))


ARENA_COMMANDS = {
    "serve": Command(
        "arena serve",
        "serve the page on which people choose between two models' answers",
        "sft=sft.jsonl dpo=dpo.jsonl --output_file votes.db",
        run_arena_serve,
    ),
    "judge": Command(
        "arena judge",
        "have a judge vote in place of people, or beside them",
        "sft=sft.jsonl dpo=dpo.jsonl --output_file votes.db --judge http://localhost:8000/v1",
        run_arena_judge,
    ),
    "report": Command(
        "arena report", "write the leaderboard, and which differences are real", "votes.db --out arena.html", run_arena_report
    ),
    "export": Command(
        "arena export", "write the votes as preferences", "votes.db --to trl --output_file pairs.jsonl", run_arena_export
    ),
}
