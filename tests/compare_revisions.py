"""Compare what a revision computes with what the working tree computes: every figure and tensor.

    python -m tests.compare_revisions --against REV [--out DIR]

Both run `tests.revision_runs`, one after the other, with their own `mmrlhf` and `tests`; nothing is
installed and nothing is kept unless --out says where. A revision that has no runner yet gets this
tree's. Figures must be equal to the last bit. The exit code is 0 if all are, else 1, after the
first 50 differences.

What a change renames goes into the tables below, which are applied to the old side; whatever they
do not cover is a difference. Times, memory, versions and the place of the outputs never count, and
pictures and web pages only have to be there.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
import yaml
from safetensors.torch import load_file

RENAMED_KEYS: dict[str, str] = {
    "guard/": "hacking/",
    "habit": "cooccurrence_errors",
    "sight": "perception_errors",
    "u": "utility",
    "chair_s_habit": "chair_s_cooccurrence",
    "chair_s_sight": "chair_s_perception",
    "image_encodes_again": "image_reencodes",
    "alarm": "warning",
    "clip": "verifier_score",
    "prefix": "share_prefix",
    "train": "tuning",
    "facts_budget": "max_facts_tokens",
    "planted_claims": "injected_claim_rate",
    "spans_paid": "span_credit",
    "watch_verifiers": "monitor_verifiers",
    "same_verifier": "allow_monitoring_reward_verifiers",
    "min_probe_rate": "min_probe_detection_rate",
    "claims_from": "claim_source",
    "judgments": "recorded_judgments",
    "judge_tokens": "judge_max_tokens",
    "judge_budget": "judge_token_budget",
    "vocab > u": "vocab > u",
    "rewards/clip/": "rewards/verifier_score/",
    "bins > sure": "bins > confidence",
    "bins > right": "bins > accuracy",
}
"""Old name to new, of keys and tensors: `"kl_coef": "beta"`. A name that ends in `/` or `.` renames
that part of longer ones, at their beginning and after a `/`, `.` or `@`: `"guard/": "hacking/"`.
`"bins > right"` renames a key only where it is inside `bins`."""

RENAMED_FILES: dict[str, str] = {
    r"(.*)/done\.json": r"\1/finished.json",
    r"(.*)/alarms\.jsonl": r"\1/warnings.jsonl",
    r"(.*)/reward-bench\.png": r"\1/reward-eval.png",
}
"""Pattern of a whole old path below the output folder to the new one, as `re.sub` takes them:
`r"(.*)/ledger\\.jsonl": r"\\1/rewards.jsonl"`. Also applied to such paths inside values."""

RENAMED_VALUES: dict[str, str] = {
    "at_end": "last_token",
    "where_said": "token",
    "margin": "bt_margin",
    "smoothed": "bt_label_smoothing",
    "review": "yes_no",
}
"""Old text to new, of whole values under any key: `"where_said": "at_span"`."""

RENAMED_TEXT: dict[str, str] = {
    r"data/scenes_base": "data/tiny_vlm",
    r"^\| held_out u \|": "| held_out utility |",
    r"^\| held_out habit \|": "| held_out cooccurrence_errors |",
    r"^\| held_out sight \|": "| held_out perception_errors |",
    r"chair_s_habit": "chair_s_cooccurrence",
    r"chair_s_sight": "chair_s_perception",
    r"\bguard/": "hacking/",
    r"(?<![+@])\bclip(?==)": "verifier_score",
    r"^there is no picture$": "there is no image",
    r"^nothing is known to be its contrary$": "there is no distractor to compare it with",
    r"of answers claim nothing of their picture": "of answers claim nothing about their image",
    r"^EAD: distinct words over .*": "EAD",
    r"distinct pictures": "distinct images  ",
    r"asserts 96 answers, and these are": "asserts 96 answers, and there are",
    r"script takes phrases apart with": "script splits phrases with",
    r"answers stand on another question's line": "answers are on another question's line",
    r"or the pictures hold none": "or the images hold none",
    r"^nothing was asked that says so$": "no question that was asked measures it",
}
"""Pattern to new text, applied anywhere in old values."""

ADDED_KEYS = {"use_critic", "kl_penalty"}
"""Keys of the new side that the old one cannot have."""

IGNORED_KEYS = re.compile(
    r"time|date|eta|eps|seconds?|elapsed|duration|.*_(time|seconds|ms)|memory/peak.*|seal|packages|"
    r"(mmrlhf|package)_version|commit"
)
"""Wall-clock, memory and versions; and a reward model's seal, a hash over its card's names."""

IGNORED_FILES = re.compile(r"(.*/)?(subject|run_key)\.json|(.*/)?\..*")
"""`subject.json`, now `run_key.json`, holds modification times; hidden files are unfinished."""

ONLY_THERE = {".png", ".html"}
"""Of these only the presence is compared."""

PRINTED = {"plan.json", "check.json"}
"""Files of printed tables: only the numbers in them are compared, line by line."""

REFORMULATED = re.compile(r".*(> (low|high)|\[\d\])")
"""Bounds of intervals. Two formulas of Wilson's interval became one, which differs in the last bit:
these figures may differ by 1e-15."""

DIGEST = re.compile(r"\.[0-9a-f]{12}(?=\.)")
"""In a file's name: follows from settings' names and from when files were written."""

ROOT = Path(__file__).resolve().parents[1]
RUNNER = "tests/revision_runs.py"
SHOWN = 50


# ---- running both --------------------------------------------------------------------------------


def extract(revision: str, tree: Path) -> None:
    """Write a revision's files into a folder, and this tree's runner where it has none."""
    archive = tree.with_suffix(".tar")
    subprocess.run(["git", "archive", "--output", str(archive), revision], cwd=ROOT, check=True)
    shutil.unpack_archive(archive, tree, filter="data")
    archive.unlink()
    if not (tree / RUNNER).exists():
        print(f"note: {revision} has no {RUNNER}: it runs this tree's")
        shutil.copy(ROOT / RUNNER, tree / RUNNER)


def environment(tree: Path) -> dict[str, str]:
    """Return what both sides run under: a tree's own modules, one thread, one order of sets."""
    fixed = {"PYTHONPATH": str(tree), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "200",
             "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    return {**os.environ, **fixed, "MMRLHF_SHARED": os.environ.get("MMRLHF_SHARED", str(ROOT.parent / "shared"))}


def refuse_other_modules(tree: Path) -> None:
    """Stop unless `mmrlhf` and `tests` come from the tree, whatever is installed."""
    code = "import mmrlhf, importlib.util as u; print(mmrlhf.__file__, u.find_spec('tests.revision_runs').origin, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=environment(tree), check=True, capture_output=True, text=True
    )
    for file in done.stdout.split("\n")[:2]:
        if not Path(file).resolve().is_relative_to(tree.resolve()):
            raise SystemExit(f"{file} would be imported, which is not in {tree}")


def run(name: str, tree: Path, out: Path, kept: Path) -> None:
    """Run a tree's runner into `out`, one path for both sides, and move the outputs to `kept`."""
    refuse_other_modules(tree)
    began = time.monotonic()
    log = kept.with_suffix(".log")
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "tests.revision_runs", str(out)]
        code = subprocess.run(command, cwd=tree, env=environment(tree), stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-20:])
        raise SystemExit(f"{tail}\n{name}: the runner ended with exit code {code}")
    out.rename(kept)
    print(f"{name}: {time.monotonic() - began:.0f} s")


# ---- reading -------------------------------------------------------------------------------------


@dataclass
class Side:
    """One revision's outputs: their folder, the folders to hide in texts, and if names are old."""

    folder: Path
    places: tuple[str, ...]
    old: bool

    def files(self) -> dict[str, Path]:
        """Return the files to compare by their new names."""
        found = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            name = path.relative_to(self.folder).as_posix()
            if not IGNORED_FILES.fullmatch(name):
                found[self.file_name(DIGEST.sub("", name))] = path
        return found

    def file_name(self, name: str) -> str:
        """Return a file's new name."""
        for pattern, new in RENAMED_FILES.items() if self.old else ():
            if re.fullmatch(pattern, name):
                return re.sub(pattern, new, name)
        return name

    def key(self, key: str, parent: str = "") -> str:
        """Return the new name of a key or a tensor; `parent` is the key that holds it."""
        key = self.placed(key)
        if self.old and f"{parent} > {key}" in RENAMED_KEYS:
            return RENAMED_KEYS[f"{parent} > {key}"].partition(" > ")[2]
        if not self.old or key in RENAMED_KEYS:
            return RENAMED_KEYS.get(key, key) if self.old else key
        for old, new in RENAMED_KEYS.items():
            if old.endswith(("/", ".")):
                key = re.sub(rf"(^|(?<=[/.@])){re.escape(old)}", lambda _, new=new: new, key)
        return key

    def placed(self, text: str) -> str:
        """Return a text without the folders that differ between the sides."""
        for place, word in zip(self.places, ("OUT", "TREE"), strict=True):
            text = text.replace(place, word)
        return text

    def text(self, text: str) -> str:
        """Return a text as the new side would have it: renamed if it is a value or a path."""
        text = self.placed(text)
        if not self.old:
            return "EAD" if text.startswith("EAD: distinct words over ") else text
        if text.startswith("OUT/"):
            text = "OUT/" + self.file_name(text.removeprefix("OUT/"))
        for pattern, new in RENAMED_TEXT.items():
            text = re.sub(pattern, new, text)
        return RENAMED_VALUES.get(text, text)


def leaves(value: Any, side: Side, at: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every figure and text, and every empty list and object, with its path of keys."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if not IGNORED_KEYS.fullmatch(str(key)) and str(key) not in ADDED_KEYS:
                parent = at.rpartition(" > ")[2].partition("[")[0]
                yield from leaves(inner, side, f"{at} > {side.key(str(key), parent)}")
    elif isinstance(value, list | tuple) and value:
        for number, inner in enumerate(value):
            yield from leaves(inner, side, f"{at}[{number}]")
    else:
        yield at, side.text(value) if isinstance(value, str) else value


def read(path: Path) -> Any:
    """Return what a file holds: objects, lists, figures and texts, or else its bytes."""
    if path.suffix in ONLY_THERE:
        return "there"
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    content = path.read_bytes()
    try:
        text = content.decode()
        if path.suffix == ".json":
            return json.loads(text)
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.split("\n") if line]
        return yaml.safe_load(text) if path.suffix == ".yaml" else text.splitlines()
    except ValueError:
        return content


# ---- comparing -----------------------------------------------------------------------------------


@dataclass
class Comparison:
    """What was compared, and what differs: (file, path of keys, old value, new value)."""

    files: int = 0
    figures: int = 0
    tensors: int = 0
    differences: list[tuple[str, str, str, str]] = field(default_factory=list)

    def differ(self, file: str, at: str, old: Any, new: Any) -> None:
        """Keep a difference."""
        self.differences.append((file, at, short(old), short(new)))


def short(value: Any) -> str:
    """Return a value in a line: a figure with all of its digits, of a long text the beginning."""
    text = value if isinstance(value, Missing) else repr(value)
    return str(text) if len(str(text)) <= 160 else f"{str(text)[:157]}..."


class Missing(str):
    """What stands for a value that one side does not have."""


MISSING = Missing("missing")


def same(old: Any, new: Any) -> bool:
    """Say whether two values are equal and of one type; a NaN equals a NaN, 0.0 is not -0.0."""
    if isinstance(old, float) and isinstance(new, float):
        both_nan = math.isnan(old) and math.isnan(new)
        return both_nan or (old == new and math.copysign(1, old) == math.copysign(1, new))
    return type(old) is type(new) and old == new


def numbers_in(value: Any) -> Any:
    """Return the numbers of a printed line as text, or the value itself if it is not a line."""
    return re.findall(r"\d[\d,.]*", value) if isinstance(value, str) else value


def compare_values(comparison: Comparison, name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Compare the figures and texts of a file."""
    for at in {**old, **new}:
        comparison.figures += 1
        before, after = old.get(at, MISSING), new.get(at, MISSING)
        if name in PRINTED:
            before, after = (numbers_in(value) for value in (before, after))
        may_round = REFORMULATED.fullmatch(at) and isinstance(before, float) and isinstance(after, float)
        if may_round and math.isclose(before, after, rel_tol=1e-15, abs_tol=1e-15):
            continue
        if not same(before, after):
            comparison.differ(name, at.removeprefix(" > "), before, after)


def compare_tensors(comparison: Comparison, name: str, old: tuple[Path, Side], new: tuple[Path, Side]) -> None:
    """Compare the tensors of a file bit by bit, their types and shapes among it."""
    before, after = ({side.key(key): tensor for key, tensor in load_file(path).items()} for path, side in (old, new))
    for key in {**before, **after}:
        comparison.tensors += 1
        if key not in before or key not in after:
            comparison.differ(name, key, *("there" if key in side else MISSING for side in (before, after)))
            continue
        a, b = before[key], after[key]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            comparison.differ(name, key, (a.dtype, tuple(a.shape)), (b.dtype, tuple(b.shape)))
        elif not torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8)):
            at = int((a != b).flatten().int().argmax())
            comparison.differ(name, f"{key}[{at}]", a.flatten()[at].item(), b.flatten()[at].item())


def compare(old: Side, new: Side) -> Comparison:
    """Compare two output folders file by file."""
    comparison = Comparison()
    before, after = old.files(), new.files()
    for name in sorted({**before, **after}):
        comparison.files += 1
        if name not in before or name not in after:
            comparison.differ(name, "", *("there" if name in side else MISSING for side in (before, after)))
        elif name.endswith(".safetensors"):
            compare_tensors(comparison, name, (before[name], old), (after[name], new))
        else:
            values = (dict(leaves(read(path), side)) for path, side in ((before[name], old), (after[name], new)))
            compare_values(comparison, name, *values)
    return comparison


def report(comparison: Comparison) -> int:
    """Print the summary, after the first differences if there are any, and return the exit code."""
    counts = f"{comparison.files} files, {comparison.figures} figures, {comparison.tensors} tensors"
    if not comparison.differences:
        print(f"{counts} equal")
        return 0
    for file, at, old, new in comparison.differences[:SHOWN]:
        print(f"{file}: {at}\n    old {old}\n    new {new}")
    found = Counter(file.split("/")[0] for file, *_ in comparison.differences)
    print("differences by part:", ", ".join(f"{part} {number}" for part, number in found.items()))
    print(f"{counts} compared, {len(comparison.differences)} differences, of which at most {SHOWN} are shown")
    return 1


def main() -> int:
    """Run both revisions and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV", required=True, help="the revision to compare the working tree with")
    parser.add_argument("--out", metavar="DIR", help="keep both outputs and logs there, in `old` and `new`")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory).resolve()
        kept = Path(given.out).resolve() if given.out else work / "kept"
        if any((kept / name).exists() for name in ("old", "new")):
            raise SystemExit(f"{kept} holds an earlier comparison: remove it or give another --out")
        kept.mkdir(parents=True, exist_ok=True)
        trees = {"old": work / "tree", "new": ROOT}
        extract(given.against, trees["old"])
        for name, tree in trees.items():
            run(name, tree, work / "out", kept / name)
        old, new = (Side(kept / name, (str(work / "out"), str(tree)), name == "old") for name, tree in trees.items())
        return report(compare(old, new))


if __name__ == "__main__":
    sys.exit(main())
