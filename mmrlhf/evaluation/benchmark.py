"""Benchmarks: one file each, found by name in `eval/` or by path.

A file defines a subclass of `Benchmark`, whose methods and attributes are documented here, or
module-level functions of the same names with the attributes in capitals (`VERSION`,
`ANSWER_FIELDS`; `Options` for `options_type`). `load_benchmark` converts the latter into a
`Benchmark`. `eval/README.md` shows a complete example. No torch.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, ClassVar, Literal, NamedTuple

from mmrlhf.config.loader import load_config
from mmrlhf.evaluation.answer_rows import ID_FIELDS, fold
from mmrlhf.evaluation.answer_rows import Fields as Fields
from mmrlhf.evaluation.answer_rows import first_present as first_present
from mmrlhf.evaluation.task import Task as Task
from mmrlhf.files.bundled import find, load_module
from mmrlhf.files.inputs import file_sha256
from mmrlhf.files.rows import Row, read_json_objects
from mmrlhf.metrics.intervals import SufficientStats
from mmrlhf.records import Example, ImageSource, InputError, Preference, number_repeated

ScoreRow = dict[str, Any]
"""A line of scores.jsonl: id, status, answers, and what `score` returned."""
AnswersById = Mapping[str, list[str]]
"""The answers to be judged, by the id of their example."""


class Prediction(NamedTuple):
    """The answers to one prompt, as a file gives them and in its order.

    `answers` holds None for a null.
    """

    id: str
    answers: list[str | None]


class JudgeRequest(NamedTuple):
    """A question to a judge.

    `key` identifies it in judgments.jsonl; `prompt` is the filled `template`.
    """

    key: str
    prompt: str
    template: str = ""
    images: tuple[ImageSource, ...] = ()


# ---- the protocol --------------------------------------------------------------------------------


class Benchmark:
    """A benchmark: its data, how an answer is scored, and which metrics follow from the scores.

    A subclass sets the five attributes without a default and defines `load`, `score` and
    `aggregate`. Everything else has a default. Methods receive the `Task`, so that an instance
    holds no state.
    """

    name: str
    """The name or path under which it was loaded. `load_benchmark` sets it."""
    module: ModuleType
    """The module that defines it, for its functions beyond this protocol.

    `load_benchmark` sets it.
    """

    version: ClassVar[str]
    """Raise it whenever results change: files of another version are not continued."""
    license: ClassVar[str]
    """License of the data."""
    headline: ClassVar[str]
    """Name of the metric to report."""
    direction: ClassVar[Literal["higher", "lower"]]
    """Which values of the headline metric are better."""
    cluster: ClassVar[str]
    """The unit of resampling: "image" if the questions about one image are not independent."""

    options_type: ClassVar[type[Any] | None] = None
    """A pydantic dataclass of the benchmark's settings, which become flags and `task.options`."""
    answer_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of the official answer format: the id, the answer, and other names of the answer."""
    splits: ClassVar[tuple[str, ...]] = ()
    """Names of parts in which ids restart. Answer files may mix them and leave out the names."""
    known_versions: ClassVar[Mapping[str, str]] = {}
    """Known versions of the data by sha256. Any other file gets a note that lists them."""
    requires_all_answers: ClassVar[bool] = True
    """Whether an example without an answer counts as missing.

    False where users choose what to evaluate on.
    """
    counts_repeated: ClassVar[bool] = False
    """Whether robust metrics count further answers to the same example, not only the first."""
    selection_data: ClassVar[str | None] = None
    """Default data for evaluations during `ppo`; never used for reported results."""
    judge_rounds: ClassVar[int] = 1
    """Number of calls of `judge_requests`: 2 if questions follow from the judge's replies."""

    # ---- required ----

    def load(self, task: Task) -> Sequence[Example]:
        """Return the examples, each with a unique id.

        An example's `meta` may hold anything that `score` needs. `meta["part"]` names its split: a
        split without any answer has no metrics, but its examples are not missing. `meta["image"]`
        is used to group by image.
        """
        raise NotImplementedError

    def score(self, example: Example, answers: list[str], task: Task) -> dict[str, Any]:
        """Return a JSON-able row with everything that determines the score of an example's answers.

        `unparsed` (bool) is counted. `right` (bool), or `said` and `label` (or `truth`), say
        whether the answer is right as a whole, for McNemar's test, categories and changed examples
        in `mmrlhf compare`.
        """
        raise NotImplementedError

    def aggregate(self, rows: list[ScoreRow], task: Task) -> Mapping[str, SufficientStats | dict[str, Any]]:
        """Return the metrics of all rows by mode: `official` as in the authors' script, `robust`
        with careful counting.

        `rows` holds every answer in the order of the file; `first_valid(rows)` are those that count
        by default. Intervals and paired comparisons follow from `SufficientStats`.
        """
        raise NotImplementedError

    # ---- data and answer files ----

    def files(self, task: Task) -> Sequence[Path]:
        """Return the data files that `load` reads, to hash. Default: the file, or the folder's."""
        if task.path.is_file():
            return [task.path]
        return sorted(path for path in task.path.iterdir() if path.is_file())

    def read(self, path: Path, task: Task) -> list[Prediction] | None:
        """Read an answer file in the official format, or return None if it is not in that format.

        Default: None. Only formats that `answer_fields` and `match_id` cannot describe need it.
        """
        return None

    def rename_fields(self, fields: Fields, task: Task) -> Fields:
        """Rename a row's fields to those of `answer_fields`, depending on options. Default:
        no-op."""
        return fields

    def match_id(self, fields: Fields, task: Task) -> str | None:
        """Return the id of the example in a row of an answer file, None if there is none.

        Default: its id field. Question and image are compared too, by `identity`.
        """
        return first_present(fields, self.answer_fields[:1] + ID_FIELDS)

    def identity(self, example: Example) -> tuple[str, str]:
        """Return the question and image name that identify rows of other programs; "" for a missing
        one. Default: those in `meta`."""
        return str(example.meta.get("question") or ""), str(example.meta.get("image") or "")

    def question_key(self, text: str) -> str:
        """Return the form in which questions are compared. Default: lower case, single spaces."""
        return fold(text)

    # ---- a judge ----

    def judge_requests(self, answers_by_id: AnswersById, task: Task) -> Iterable[JudgeRequest]:
        """Yield the questions to a judge. Their replies are in `task.replies` by key in `score` and
        `aggregate`."""
        raise NotImplementedError

    def rule(self, key: str, answers_by_id: AnswersById, task: Task) -> str | None:
        """Return the reply of `--judge rules` to the request `key`, None if it has no reply."""
        raise NotImplementedError

    def read_judgments(self, rows: Sequence[Row], answers_by_id: AnswersById, task: Task) -> Mapping[str, str | None]:
        """Return replies by key from judgments that other scripts recorded.

        Default: raise InputError for all of them.
        """
        next(row for row in rows if "key" not in row.fields).require("key", "use the judgments.jsonl of a run")
        return {}

    @property
    def uses_judge(self) -> bool:
        """Whether the benchmark defines `judge_requests`."""
        return self._overrides("judge_requests")

    @property
    def has_rules(self) -> bool:
        """Whether the benchmark defines `rule`."""
        return self._overrides("rule")

    # ---- a reward model ----

    def pairs(self, task: Task) -> list[Preference]:
        """Return the examples as pairs of answers for a reward model to score."""
        raise NotImplementedError

    def preference_reply(self, example: Example, chosen: float, rejected: float) -> str:
        """Return a reward model's preference in a pair in a judge's words, to be scored alike."""
        raise NotImplementedError

    @property
    def has_pairs(self) -> bool:
        """Whether the benchmark defines `pairs`, so that a reward model can answer it."""
        return self._overrides("pairs")

    # ---- comparing two runs ----

    def categories(self, example: Example) -> list[str]:
        """Return the categories that `mmrlhf compare` breaks accuracy down by.

        Default: its part, category, kind and label.
        """
        names = [str(example.meta[key]) for key in ("part", "category", "kind") if example.meta.get(key)]
        return names + [f"label {example.meta[key]}" for key in ("label", "truth") if isinstance(example.meta.get(key), str)]

    def false_spans(self, example: Example, row: ScoreRow, task: Task) -> list[tuple[int, int]]:
        """Return where the first answer makes false claims, as (start, end).

        Default: the words that `score` lists as `false`.
        """
        details = row["robust"] if isinstance(row.get("robust"), dict) else row
        words = [w[0] if isinstance(w, list) else w for w in details.get("false", []) if isinstance(w, list | str)]
        # The listed words are singular; the answer may hold their plural.
        patterns = [rf"\b{re.escape(str(word))}(?:e?s)?\b" for word in dict.fromkeys(words)]
        return [match.span() for pattern in patterns for match in re.finditer(pattern, str(row["answers"][0]), re.I)]

    def _overrides(self, method: str) -> bool:
        return getattr(type(self), method) is not getattr(Benchmark, method)


REQUIRED_ATTRIBUTES = ("version", "license", "headline", "direction", "cluster")
OPTIONAL_ATTRIBUTES = (
    "answer_fields", "splits", "known_versions", "requires_all_answers", "counts_repeated", "selection_data", "judge_rounds",
)  # fmt: skip
REQUIRED_METHODS = ("load", "score", "aggregate")


def load_benchmark(name: str) -> Benchmark:
    """Load a benchmark: the name of a file in `eval/`, or a path that ends in .py.

    Raises InputError if there is no such file, or it lacks required parts.
    """
    path = find("eval", name)
    module = load_module(path)
    classes = [value for value in vars(module).values() if _is_benchmark_class(value, module)]
    if len(classes) > 1:
        raise InputError(f"{path} defines {len(classes)} benchmarks ({', '.join(c.__name__ for c in classes)}): leave one")
    benchmark = classes[0]() if classes else _benchmark_of_functions(module)
    missing = [method for method in REQUIRED_METHODS if not benchmark._overrides(method)]
    if missing:
        raise InputError(f"{path} is not a benchmark: it defines no {' and no '.join(missing)}")
    for attribute in REQUIRED_ATTRIBUTES:
        # Files with functions have them in capitals.
        label = attribute if classes else attribute.upper()
        if not isinstance(getattr(benchmark, attribute, None), str):
            hint = ", and raise it when results change" if attribute == "version" else ""
            raise InputError(f'benchmark {name} does not state its {label}: add {label} = "..."{hint}')
        if attribute == "direction" and benchmark.direction not in ("higher", "lower"):
            raise InputError(f'benchmark {name}: {label} must be "higher" or "lower", not {benchmark.direction!r}')
    benchmark.name, benchmark.module = name, module
    return benchmark


def _is_benchmark_class(value: Any, module: ModuleType) -> bool:
    return isinstance(value, type) and issubclass(value, Benchmark) and value.__module__ == module.__name__


def _benchmark_of_functions(module: ModuleType) -> Benchmark:
    """Convert a file of functions into a Benchmark: functions and constants become members."""
    members: dict[str, Any] = {"options_type": getattr(module, "Options", None)}
    for name, default in vars(Benchmark).items():
        if isinstance(default, FunctionType) and not name.startswith("_") and callable(getattr(module, name, None)):
            members[name] = staticmethod(getattr(module, name))
    for name in REQUIRED_ATTRIBUTES + OPTIONAL_ATTRIBUTES:
        if hasattr(module, name.upper()):
            members[name] = getattr(module, name.upper())
    benchmark: Benchmark = type(module.__name__, (Benchmark,), members)()
    return benchmark


def parse_options(benchmark: Benchmark, values: Mapping[str, Any]) -> Any:
    """Return the benchmark's own options, validated like a stage's settings; None if it has none.

    Raises InputError.
    """
    if benchmark.options_type is None:
        if values:
            raise InputError(f"this benchmark has no option {', '.join(values)}")
        return None
    return load_config(benchmark.options_type, None, values)


def data_hashes(benchmark: Benchmark, task: Task) -> dict[str, str]:
    """Return the sha256 of every data file, by file name, or by path if two have the same name."""
    if task.data is None:
        return {}
    paths = list(map(Path, benchmark.files(task)))
    names = Counter(path.name for path in paths)
    return {path.name if names[path.name] == 1 else str(path): file_sha256(path) for path in paths}


# ---- rows of scores ------------------------------------------------------------------------------

DUPLICATES_REASON = "an example is answered twice, and only its first answer was judged"


def first_valid(rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Return the rows that count by default: the first answer to each example, unless null."""
    return [row for row in rows if row["status"] == "ok"]


def answered(rows: Sequence[ScoreRow]) -> list[ScoreRow]:
    """Return the rows that were scored: `first_valid` ones, and others to the same examples."""
    return [row for row in rows if row["status"] in ("ok", "duplicate")]


def has_duplicates(rows: Sequence[ScoreRow]) -> bool:
    """Return whether an example has several answers. A judge has read only the first."""
    return any(row["status"] == "duplicate" for row in rows)


# ---- help for benchmark files --------------------------------------------------------------------


def is_self_describing(task: Task, *fields: str) -> bool:
    """Return whether the answers are a file whose rows contain their questions, in these fields."""
    path = Path(task.answers) if task.answers is not None else None
    if path is None or path.suffix not in (".json", ".jsonl") or not path.is_file():
        return False
    return any({*fields} <= row.fields.keys() for row in read_json_objects(path)[:1])


def number_repeated_ids(examples: Sequence[Example]) -> list[Example]:
    """Return examples with unique ids: a second `a` becomes `a-2`."""
    ids = number_repeated([example.id for example in examples], "-", first=2)
    return [replace(example, id=unique_id) for example, unique_id in zip(examples, ids, strict=True)]


def contains_yes_no(answer: str) -> Literal["yes", "no"] | None:
    """Return yes or no if its letters occur anywhere in an answer, yes first: `know` counts as no.

    None without either.
    """
    lower = answer.lower()
    if "yes" in lower:
        return "yes"
    return "no" if "no" in lower else None


def text_sha256(text: str) -> str:
    """Return the sha256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()
