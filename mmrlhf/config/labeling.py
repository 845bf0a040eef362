"""Configuration of `mmrlhf label serve`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmrlhf.config.base import Count, DatasetConfig, NonNegativeInt, settings

CONSENT = (
    "My labels, when I gave them and how long I took may be stored under the name that I choose here, and used to train and "
    "measure models."
)


@settings
class LabelConfig(DatasetConfig):
    """Serve a web page on which annotators label answers about images."""

    output_file: str
    """SQLite file of tasks and labels. An existing one is continued: new tasks are added."""
    dataset_name: str | None = None
    """Rows with a prompt, images and answers, in any format, or a JSON export of Label Studio or
    Argilla; several files separated by commas. May be left out if output_file has tasks."""
    mode: Literal["pairwise", "ranking", "claims", "facts"] | None = None
    """The annotators' task. By default a row's field `mode` decides, or its number of answers: none
    is facts, one claims, two pairwise, more a ranking."""
    gold_file: str | None = None
    """Rows whose right label is known, to mix in as gold questions: preferences; of claims, an
    answer with `spans`, the passages that are wrong in it; of facts, `facts` to state."""
    gold_every: NonNegativeInt = 10
    """One task in this many is a gold question, at a random place among them, as long as there are
    new ones."""
    overlap: Count = 1
    """Annotators who label each task; agreement needs 2 or more."""
    order: Literal["file", "random", "uncertainty"] = "file"
    """Which tasks come first: those first in the file, any, or those of the highest uncertainty
    (from a row's field `uncertainty`, `scores_file` or `reward_eval_file`)."""
    scores_file: str | None = None
    """Output of `mmrlhf score` for the same pairs: a small margin is uncertain. With several files,
    separated by commas, the disagreement of their margins."""
    reward_eval_file: str | None = None
    """result.json of `mmrlhf reward-eval --answers`, instead of scores_file: claims of kinds for
    which the reward model cannot separate true from false (low J) are uncertain."""
    lexicon_file: str | None = None
    """Nouns and other words to add to the lexicon that claims of answers, and facts of typed
    sentences, are extracted with. output_file keeps its path for later starts."""
    title: str = "Labelling"
    """Title of the page."""
    guidelines_file: str | None = None
    """Text that annotators can read beside each task."""
    consent: str = CONSENT
    """The line that annotators agree to before they start."""
    host: str = "127.0.0.1"
    """Address to listen on. If other machines can connect (0.0.0.0 for all networks), annotators
    need a token, which the command prints."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8010
    """Port to listen on; 0 takes a free one."""
    seed: NonNegativeInt = 0
    """Random seed of order random, and of the places of gold questions."""
