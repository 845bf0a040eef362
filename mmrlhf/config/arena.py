"""Configuration of `mmrlhf arena serve` and `mmrlhf arena judge`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mmrlhf.config.base import Count, DatasetConfig, Dtype, NonNegative, NonNegativeInt, Positive, settings
from mmrlhf.config.labeling import CONSENT


@settings
class PairsConfig(DatasetConfig):
    """Pairs of models' answers, in a file of votes."""

    output_file: str
    """SQLite file of pairs and votes. An existing one is continued: new pairs are added."""
    models: str | None = None
    """The models, separated by commas, each as SOURCE or NAME=SOURCE. SOURCE is a file of
    `mmrlhf generate`; for people also a run, checkpoint or Hub id, or the URL of an
    OpenAI-compatible server (http://HOST:PORT/v1, with #MODEL if it has several). May be left out
    if output_file has pairs."""
    categories_file: str | None = None
    """Rows with `id` and `category`, if the answers (or the questions) do not have a `category`
    themselves."""
    identity_words: str | None = None
    """Words, separated by commas, that reveal a model; pairs with such an answer are left out. They
    are whole words: gpt is in GPT-4, not in ChatGPT."""


@settings
class ArenaConfig(PairsConfig):
    """Serve a web page on which people choose between the answers of two models, blind."""

    dataset_name: str | None = None
    """Questions for live models: rows with a prompt and images, in any format. Files of answers
    bring their own."""
    overlap: Count = 1
    """People who vote on each pair."""
    response_length: Count = 256
    """Maximum tokens of a live model's answer."""
    temperature: NonNegative = 0.0
    """Sampling temperature of live models; 0 is greedy."""
    seed: NonNegativeInt = 0
    """Random seed of live models in this process."""
    answer_timeout: Positive = 60.0
    """Time limit for a live model's answer, in seconds; after that the vote is void."""
    ahead: Count = 4
    """Pairs of live models to prepare ahead of the voters."""
    dtype: Dtype = "float32"
    """Precision of the weights of live models in this process."""
    title: str = "Which answer is better?"
    """Title of the page."""
    guidelines_file: str | None = None
    """Text that voters can read beside each pair."""
    consent: str = CONSENT
    """The line that voters agree to before they start."""
    host: str = "127.0.0.1"
    """Address to listen on. If other machines can connect (0.0.0.0 for all networks), voters need a
    token, which the command prints."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8020
    """Port to listen on; 0 takes a free one."""


@settings
class ArenaJudgeConfig(PairsConfig):
    """Have a judge choose between the answers of two models, in both orders."""

    judge: str
    """The judge: the URL of an OpenAI-compatible server (http://HOST:PORT/v1)."""
    judge_model: str | None = None
    """Model name of the judge on its server; not needed if the server has one model."""
    judge_prompt: str | None = None
    """Text file with another prompt; it may contain {question}, {answer_a}, {answer_b} and
    {mark}."""
    judge_max_tokens: Count = 512
    """Maximum tokens of a judgment."""
    limit: Count | None = None
    """Judge only the first pairs."""
    endpoint_timeout: Positive = 120.0
    """Seconds to wait for a complete reply."""
    endpoint_retries: NonNegativeInt = 4
    """Retries of a failed request, after waits of 1, 2, 4, ... seconds."""
    endpoint_concurrency: Count = 4
    """Concurrent requests."""
