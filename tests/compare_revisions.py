"""Compare every figure and tensor that another revision and the working tree compute.

    python -m tests.compare_revisions --against REV [--out DIR]

Runs `tests.revision_runs` in both, one after the other, each with its own `mmrlhf` and `tests`; a
revision without this runner gets the working tree's. Nothing is installed, and outputs are deleted
unless --out is given. Figures must be equal to the last bit, except the bounds of `ROUNDED_BOUNDS`.
Exits with 0 if nothing differs; otherwise prints the first 50 differences and exits with 1.

The tables below map old names to new ones and are applied to the old outputs; any other change
counts as a difference. Times, memory, versions and output paths are ignored, and images and web
pages only have to exist.
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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
import yaml
from safetensors.torch import load_file

from mmrlhf.config.loader import DEPRECATED_FIELDS, RENAMED_FIELDS

RENAMED_KEYS: dict[str, str] = {
    **RENAMED_FIELDS,
    **DEPRECATED_FIELDS,
    "guard/": "hacking/",
    "habit": "cooccurrence_errors",
    "sight": "perception_errors",
    "u": "utility",
    "chair_s_habit": "chair_s_cooccurrence",
    "chair_s_sight": "chair_s_perception",
    "image_encodes_again": "image_reencodes",
    "alarm": "warning",
    "clip": "verifier_score",
    "vocab > u": "vocab > u",  # a token of the tokenizer, not the metric u
    "rewards/clip/": "rewards/verifier_score/",
    "pictures": "images",
    "pictures_in_several_rows": "images_in_several_rows",
    "not said": "not stated",
    "another picture's": "another image's",
    "bins > sure": "bins > confidence",
    "bins > right": "bins > accuracy",
}
"""New name of each old key or tensor: `"kl_coef": "beta"`.

A name that ends in `/` or `.` is a prefix of longer names, replaced at their start and after `/`,
`.` or `@`: `"guard/": "hacking/"`. `"bins > right"` renames the key only inside `bins`.
"""

RENAMED_FILES: dict[str, str] = {
    r"(.*)/done\.json": r"\1/finished.json",
    r"(.*)/alarms\.jsonl": r"\1/warnings.jsonl",
    r"(.*)/another_picture's\.jsonl": r"\1/another_image's.jsonl",
    r"(.*)/reward-bench\.png": r"\1/reward-eval.png",
}
"""Patterns that match an old path below the output folder entirely, with the new paths, for
`re.sub`: `r"(.*)/ledger\\.jsonl": r"\\1/rewards.jsonl"`. Paths inside values are renamed, too.
"""

RENAMED_VALUES: dict[str, str] = {
    "at_end": "last_token",
    "where_said": "token",
    "margin": "bt_margin",
    "smoothed": "bt_label_smoothing",
    "review": "yes_no",
}
"""New text of values that equal an old text, under any key: `"at_end": "last_token"`."""

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
    r"length and reward correlate by (\S+) among": r"length and reward have a correlation of \1 within",
    r"distinct pictures": "distinct images  ",
    r"asserts 96 answers, and these are": "asserts 96 answers, and there are",
    r"script takes phrases apart with": "script splits phrases with",
    r"answers stand on another question's line": "answers are on another question's line",
    r"or the pictures hold none": "or the images hold none",
    r"^nothing was asked that says so$": "no question that was asked measures it",
    r"false claims that it measures, ": "false claims with a score, ",
    r"its numbers do not tell true from false claims": "its scores do not separate true from false claims",
    r"examples that all have answered": "examples answered in every run",
}
"""Patterns and their replacements, applied anywhere in old values."""

ADDED_KEYS = {"use_critic", "kl_penalty"}
"""Keys that only the new side has."""

IGNORED_KEYS = re.compile(
    r"time|date|eta|eps|seconds?|elapsed|duration|.*_(time|seconds|ms)|memory/peak.*|seal|packages|"
    r"(mmrlhf|package)_version|commit"
)
"""Times, memory and versions; also a reward model's seal, which hashes the names in its card."""

IGNORED_FILES = re.compile(r"(.*/)?(subject|run_key|inputs)\.json|(.*/)?\..*")
"""`run_key.json` (formerly `subject.json`) and `inputs.json` have paths and versions; hidden files
are unfinished."""

UNCOMPARED_SUFFIXES = {".png", ".html"}
"""Files that only have to exist."""

TABLE_FILES = {"plan.json", "check.json"}
"""Files of printed tables: only the numbers in them are compared, line by line."""

ROUNDED_BOUNDS = re.compile(r".*(> (low|high)|\[\d\])")
"""Bounds of intervals, which may differ by 1e-15: two formulas of Wilson's interval became one,
which rounds the last bit differently.
"""

DIGEST = re.compile(r"\.[0-9a-f]{12}(?=\.)")
"""A digest in a file's name, which depends on the names of settings and on modification times."""

ROOT = Path(__file__).resolve().parents[1]
RUNNER = "tests/revision_runs.py"
MAX_SHOWN = 50


# ---- running both --------------------------------------------------------------------------------


def extract_revision(revision: str, tree: Path) -> None:
    """Write a revision's files into a folder, with this tree's runner if it has none."""
    archive = tree.with_suffix(".tar")
    subprocess.run(["git", "archive", "--output", str(archive), revision], cwd=ROOT, check=True)
    shutil.unpack_archive(archive, tree, filter="data")
    archive.unlink()
    if not (tree / RUNNER).exists():
        print(f"note: {revision} has no {RUNNER}: using the working tree's")
        shutil.copy(ROOT / RUNNER, tree / RUNNER)


def run_environment(tree: Path) -> dict[str, str]:
    """Return the environment of a run: the tree's own modules, one thread, a fixed hash seed."""
    fixed = {"PYTHONPATH": str(tree), "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "COLUMNS": "200",
             "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
    return {**os.environ, **fixed, "MMRLHF_SHARED": os.environ.get("MMRLHF_SHARED", str(ROOT.parent / "shared"))}


def check_imports(tree: Path) -> None:
    """Exit unless `mmrlhf` and `tests` are imported from the tree, whatever is installed."""
    code = "import mmrlhf, importlib.util as u; print(mmrlhf.__file__, u.find_spec('tests.revision_runs').origin, sep='\\n')"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=run_environment(tree), check=True, capture_output=True, text=True
    )
    for file in result.stdout.split("\n")[:2]:
        if not Path(file).resolve().is_relative_to(tree.resolve()):
            raise SystemExit(f"{file} would be imported, which is not in {tree}")


def run_tree(name: str, tree: Path, out: Path, saved: Path) -> None:
    """Run a tree's runner and move its outputs to `saved`.

    Both trees write to the same `out`, so that paths in the outputs are equal.
    """
    check_imports(tree)
    log = saved.with_suffix(".log")
    with log.open("w", encoding="utf-8") as file:
        command = [sys.executable, "-m", "tests.revision_runs", str(out)]
        code = subprocess.run(command, cwd=tree, env=run_environment(tree), stdout=file, stderr=subprocess.STDOUT).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-20:])
        raise SystemExit(f"{tail}\n{name}: the runner failed with exit code {code}")
    out.rename(saved)
    print(f"{name}: done")


# ---- reading -------------------------------------------------------------------------------------


@dataclass
class Side:
    """One revision's outputs."""

    folder: Path
    hidden_paths: tuple[str, str]
    """The output folder and the tree, which texts mention."""
    is_old: bool

    def files(self) -> dict[str, Path]:
        """Return the files to compare by their new names."""
        path_by_name = {}
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            name = path.relative_to(self.folder).as_posix()
            if not IGNORED_FILES.fullmatch(name):
                path_by_name[self.rename_file(DIGEST.sub("", name))] = path
        return path_by_name

    def rename_file(self, name: str) -> str:
        """Return a file's new name."""
        for pattern, new in RENAMED_FILES.items() if self.is_old else ():
            if re.fullmatch(pattern, name):
                return re.sub(pattern, new, name)
        return name

    def rename_key(self, key: str, parent: str = "") -> str:
        """Return the new name of a key or a tensor; `parent` is the key that holds it."""
        key = self.hide_paths(key)
        if not self.is_old:
            return key
        if f"{parent} > {key}" in RENAMED_KEYS:
            return RENAMED_KEYS[f"{parent} > {key}"].partition(" > ")[2]
        if key in RENAMED_KEYS:
            return RENAMED_KEYS[key]
        for old, new in RENAMED_KEYS.items():
            if old.endswith(("/", ".")):
                key = re.sub(rf"(^|(?<=[/.@])){re.escape(old)}", lambda _, new=new: new, key)
        return key

    def hide_paths(self, text: str) -> str:
        """Replace the folders that differ between the sides by fixed words."""
        for path, word in zip(self.hidden_paths, ("OUT", "TREE"), strict=True):
            text = text.replace(path, word)
        return text

    def rename_text(self, text: str) -> str:
        """Return a text as the new side would have it, with paths, values and words renamed."""
        text = self.hide_paths(text)
        if not self.is_old:
            return "EAD" if text.startswith("EAD: distinct words over ") else text
        if text.startswith("OUT/"):
            text = "OUT/" + self.rename_file(text.removeprefix("OUT/"))
        for pattern, new in RENAMED_TEXT.items():
            text = re.sub(pattern, new, text)
        return RENAMED_VALUES.get(text, text)


def leaves(value: Any, side: Side, key_path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every figure and text, and every empty list and object, with its path of keys."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            if not IGNORED_KEYS.fullmatch(str(key)) and str(key) not in ADDED_KEYS:
                parent = key_path.rpartition(" > ")[2].partition("[")[0]
                yield from leaves(inner, side, f"{key_path} > {side.rename_key(str(key), parent)}")
    elif isinstance(value, list | tuple) and value:
        for index, inner in enumerate(value):
            yield from leaves(inner, side, f"{key_path}[{index}]")
    else:
        yield key_path, side.rename_text(value) if isinstance(value, str) else value


def read_content(path: Path) -> Any:
    """Return a file's content, parsed if its suffix says how; lines of other text, else bytes."""
    if path.suffix in UNCOMPARED_SUFFIXES:
        return "present"
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
    """Counts of what was compared, and the differences."""

    num_files: int = 0
    num_figures: int = 0
    num_tensors: int = 0
    differences: list[tuple[str, str, str, str]] = field(default_factory=list)
    """File, path of keys, old value and new value of each."""

    def add_difference(self, file: str, key_path: str, old: Any, new: Any) -> None:
        self.differences.append((file, key_path, abbreviate(old), abbreviate(new)))


def abbreviate(value: Any) -> str:
    """Return a value's `repr`, cut after 160 characters; figures keep all their digits."""
    text = str(value) if isinstance(value, Missing) else repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


class Missing(str):
    """Stands for a value that one side lacks."""


MISSING = Missing("missing")


def are_equal(old: Any, new: Any) -> bool:
    """Return whether two values have one type and are equal; NaN equals NaN, 0.0 is not -0.0."""
    if isinstance(old, float) and isinstance(new, float):
        both_nan = math.isnan(old) and math.isnan(new)
        return both_nan or (old == new and math.copysign(1, old) == math.copysign(1, new))
    return type(old) is type(new) and old == new


def numbers_in(value: Any) -> Any:
    """Return the numbers in a line of text, as strings; other values are returned unchanged."""
    return re.findall(r"\d[\d,.]*", value) if isinstance(value, str) else value


def compare_values(comparison: Comparison, name: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Compare the figures and texts of a file."""
    for key_path in {**old, **new}:
        comparison.num_figures += 1
        old_value, new_value = old.get(key_path, MISSING), new.get(key_path, MISSING)
        if name in TABLE_FILES and MISSING not in (old_value, new_value):
            old_value, new_value = numbers_in(old_value), numbers_in(new_value)
        may_round = ROUNDED_BOUNDS.fullmatch(key_path) and isinstance(old_value, float) and isinstance(new_value, float)
        if may_round and math.isclose(old_value, new_value, rel_tol=1e-15, abs_tol=1e-15):
            continue
        if not are_equal(old_value, new_value):
            comparison.add_difference(name, key_path.removeprefix(" > "), old_value, new_value)


def compare_tensors(comparison: Comparison, name: str, old: tuple[Path, Side], new: tuple[Path, Side]) -> None:
    """Compare a file's tensors bit by bit, with their types and shapes."""
    old_tensors, new_tensors = (
        {side.rename_key(key): tensor for key, tensor in load_file(path).items()} for path, side in (old, new)
    )
    for key in {**old_tensors, **new_tensors}:
        comparison.num_tensors += 1
        if key not in old_tensors or key not in new_tensors:
            comparison.add_difference(
                name, key, *("present" if key in tensors else MISSING for tensors in (old_tensors, new_tensors))
            )
            continue
        a, b = old_tensors[key], new_tensors[key]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            comparison.add_difference(name, key, (a.dtype, tuple(a.shape)), (b.dtype, tuple(b.shape)))
        # As bytes, so that NaN equals NaN and 0.0 differs from -0.0.
        elif not torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8)):
            index = int((a != b).flatten().int().argmax())
            comparison.add_difference(name, f"{key}[{index}]", a.flatten()[index].item(), b.flatten()[index].item())


def compare(old: Side, new: Side) -> Comparison:
    """Compare two output folders file by file."""
    comparison = Comparison()
    old_files, new_files = old.files(), new.files()
    for name in sorted({**old_files, **new_files}):
        comparison.num_files += 1
        if name not in old_files or name not in new_files:
            comparison.add_difference(name, "", *("present" if name in files else MISSING for files in (old_files, new_files)))
        elif name.endswith(".safetensors"):
            compare_tensors(comparison, name, (old_files[name], old), (new_files[name], new))
        else:
            old_values = dict(leaves(read_content(old_files[name]), old))
            new_values = dict(leaves(read_content(new_files[name]), new))
            compare_values(comparison, name, old_values, new_values)
    return comparison


def report(comparison: Comparison) -> int:
    """Print the first differences, if any, and a summary; return the exit code."""
    counts = f"{comparison.num_files} files, {comparison.num_figures} figures, {comparison.num_tensors} tensors"
    if not comparison.differences:
        print(f"{counts} equal")
        return 0
    for file, key_path, old, new in comparison.differences[:MAX_SHOWN]:
        print(f"{file}: {key_path}\n    old {old}\n    new {new}")
    count_by_part = Counter(file.split("/")[0] for file, *_ in comparison.differences)
    print("differences by part:", ", ".join(f"{part} {count}" for part, count in count_by_part.items()))
    print(f"{counts} compared, {len(comparison.differences)} differences (at most {MAX_SHOWN} shown)")
    return 1


def main() -> int:
    """Run both revisions and compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="REV", required=True, help="the revision to compare the working tree with")
    parser.add_argument("--out", metavar="DIR", help="keep the outputs in DIR/old and DIR/new, with logs next to them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory).resolve()
        saved = Path(args.out).resolve() if args.out else work / "saved"
        if any((saved / name).exists() for name in ("old", "new")):
            raise SystemExit(f"{saved} holds an earlier comparison: remove it or give another --out")
        saved.mkdir(parents=True, exist_ok=True)
        trees = {"old": work / "tree", "new": ROOT}
        extract_revision(args.against, trees["old"])
        for name, tree in trees.items():
            run_tree(name, tree, work / "out", saved / name)
        old, new = (Side(saved / name, (str(work / "out"), str(tree)), name == "old") for name, tree in trees.items())
        return report(compare(old, new))


if __name__ == "__main__":
    sys.exit(main())
