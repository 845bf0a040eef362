"""How many answers a second one core reads claims from, and how many claims it judges by facts.

    python eval/speed/claims.py [--answers 4000] [--seed 0]

Answers are made of sentences of `tests/claims_tuned.jsonl`, drawn with a seed: captions of about 20 words, and descriptions of about 90.
Every answer is another text, and words are looked up in a dictionary that is warm, as it is after a second of any run. Time is the
process's own (CPU), so that a busy machine says little less. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from mmrlhf.claims import claims, lexicon
from mmrlhf.records import Fact
from mmrlhf.verify import by_facts

SENTENCES = Path(__file__).parents[2] / "tests/claims_tuned.jsonl"


def answers(number: int, words: int, rng: np.random.Generator) -> list[str]:
    """Texts of about as many words each, of whole sentences."""
    sentences = [json.loads(line)["text"] for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    sentences = [s for s in sentences if s.endswith(".") and "\n" not in s]
    lengths = np.array([len(s.split()) for s in sentences])
    found = []
    for _ in range(number):
        order = rng.permutation(len(sentences))
        enough = int(np.searchsorted(np.cumsum(lengths[order]), words - lengths.mean() / 2)) + 1
        found.append(" ".join(sentences[i] for i in order[:enough]))
    return found


def rate(texts: list[str]) -> dict[str, float]:
    """Answers, words and claims a second."""
    began = time.process_time()
    found = sum(len(claims(text)) for text in texts)
    took = time.process_time() - began
    words = sum(len(text.split()) for text in texts)
    return {
        "answers_per_s": round(len(texts) / took), "words_per_s": round(words / took), "claims_per_s": round(found / took),
        "words_per_answer": round(words / len(texts), 1), "claims_per_answer": round(found / len(texts), 1),
    }  # fmt: skip


def judged(texts: list[str]) -> int:
    """Claims judged a second by facts that another answer gives, read anew for each."""
    said = [claims(text) for text in texts]
    facts = [(Fact("caption", text),) for text in [*texts[1:], texts[0]]]
    began = time.process_time()
    for found, of in zip(said, facts, strict=True):
        by_facts(found, of)
    return round(sum(map(len, said)) / (time.process_time() - began))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    began = time.process_time()
    lexicon()
    loading = time.process_time() - began
    short, long = answers(given.answers, 20, rng), answers(given.answers // 4, 90, rng)
    rate(short[:200])
    result = {
        "caption": rate(short),
        "description": rate(long),
        "judged_per_s": judged(short[:1000]),
        "loading_s": round(loading, 3),
    }
    for name in ("caption", "description"):
        print(f"{name:<12} {result[name]}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
