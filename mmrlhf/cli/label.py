"""The commands of `mmrlhf label`; similar commands are in `cli.commands`."""

from __future__ import annotations

from mmrlhf.cli.parser import Command, Parser, load_named_config, make_config_parser
from mmrlhf.config import LabelConfig


def run_label_serve(command: Command, argv: list[str]) -> None:
    parser = make_config_parser(LabelConfig, command, "[ROWS]")
    parser.add_argument("dataset_name", metavar="ROWS", nargs="?", help="rows to label, in any format")
    config = load_named_config(LabelConfig, parser.parse(argv))
    from mmrlhf.label import serve_labels

    serve_labels(config)


def run_label_add(command: Command, argv: list[str]) -> None:
    usage = (
        "[ROWS ...] --output_file LABELS [--mode MODE] [--image_folder DIR] [--gold_file FILE] "
        "[--scores_file FILE | --reward_eval_file FILE]"
    )
    parser = Parser(command, usage)
    parser.add_argument("rows", metavar="ROWS", nargs="*", help="rows to label, in any format")
    parser.add_argument("--output_file", metavar="LABELS", required=True, help="file that `mmrlhf label serve` writes")
    help_text = "pairwise, ranking, claims or facts (default: by the number of answers)"
    parser.add_argument("--mode", choices=("pairwise", "ranking", "claims", "facts"), metavar="MODE", help=help_text)
    parser.add_argument("--image_folder", metavar="DIR", help="folder that relative image paths start from")
    parser.add_argument("--gold_file", metavar="FILE", help="rows whose right label is known, as gold questions")
    parser.add_argument("--scores_file", metavar="FILE", help="output of `mmrlhf score` for the same pairs")
    help_text = "report of `mmrlhf reward-eval --answers`, instead"
    parser.add_argument("--reward_eval_file", metavar="FILE", help=help_text)
    parser.add_argument(
        "--split",
        "--dataset_train_split",
        dest="split",
        metavar="NAME",
        default="train",
        help="split of a dataset that has several (default train)",
    )
    args = parser.parse(argv)
    from mmrlhf.label import add_tasks

    names = ("mode", "image_folder", "split", "gold_file", "scores_file", "reward_eval_file")
    add_tasks(args.get("rows", []), args["output_file"], **{name: args[name] for name in names if name in args})


def run_label_export(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "LABELS --to FORMAT --output_file OUT [--anonymous] [--without NAME[,NAME]]")
    parser.add_argument("file", metavar="LABELS", help="file that `mmrlhf label serve` writes")
    help_text = (
        "trl, rankings, rlhf-v, ... as in `mmrlhf data convert`; claims, facts, or labels, which has every label as it is; "
        "flags, which has every flag and skip"
    )
    parser.add_argument("--to", metavar="FORMAT", required=True, help=help_text)
    parser.add_argument("--output_file", metavar="OUT", required=True, help=".jsonl, .json or .parquet file to write")
    help_text = "number annotators, and leave out pseudonyms, times of day and notes"
    parser.add_argument("--anonymous", action="store_true", help=help_text)
    _add_without(parser)
    args = parser.parse(argv)
    from mmrlhf.labeling.export import export_labels

    export_labels(args["file"], args["to"], args["output_file"], args.get("anonymous", False), args.get("without", ()))


def run_label_report(command: Command, argv: list[str]) -> None:
    parser = Parser(command, "LABELS [--out FILE] [--anonymous] [--without NAME[,NAME]]")
    parser.add_argument("file", metavar="LABELS", help="file that `mmrlhf label serve` writes")
    parser.add_argument("--out", metavar="FILE", help="HTML page to write")
    parser.add_argument("--anonymous", action="store_true", help="number annotators, and leave out pseudonyms and notes")
    _add_without(parser)
    args = parser.parse(argv)
    from mmrlhf.labeling.lead_report import report_labels

    report_labels(args["file"], args.get("out"), args.get("anonymous", False), args.get("without", ()))


def _add_without(parser: Parser) -> None:
    parser.add_argument(
        "--without",
        action="extend",
        metavar="NAME[,NAME]",
        type=lambda value: [name.strip() for name in value.split(",")],
        help="pseudonyms of annotators to leave out, such as those who fail gold questions; may be repeated",
    )
