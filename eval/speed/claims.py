"""Measure the speed of claim extraction and of verification against facts, on one core.

    python eval/speed/claims.py [--answers 4000] [--seed 0]

Answers consist of sentences of `tests/claims/claims_tuned.jsonl`, drawn with a seed: captions of
about 20 words and descriptions of about 90. All answers differ, and the token cache is warm, as it
is after the first second of any run. Times are CPU times, which other load on the machine hardly
changes. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from mmrlhf.claims import extract_claims, load_lexicon
from mmrlhf.records import Fact
from mmrlhf.verifiers import verify_against_facts

SENTENCES = Path(__file__).parents[2] / "tests/claims/claims_tuned.jsonl"


def make_answers(count: int, num_words: int, rng: np.random.Generator) -> list[str]:
    """Return `count` texts of whole sentences, each about `num_words` words long."""
    sentences = [json.loads(line)["text"] for line in SENTENCES.read_text(encoding="utf-8").splitlines()]
    sentences = [s for s in sentences if s.endswith(".") and "\n" not in s]
    lengths = np.array([len(s.split()) for s in sentences])
    texts = []
    for _ in range(count):
        order = rng.permutation(len(sentences))
        # The number of sentences that brings the length closest to num_words.
        num_sentences = int(np.searchsorted(np.cumsum(lengths[order]), num_words - lengths.mean() / 2)) + 1
        texts.append(" ".join(sentences[i] for i in order[:num_sentences]))
    return texts


def extraction_rate(texts: list[str]) -> dict[str, float]:
    """Return answers, words and claims per second."""
    start = time.process_time()
    num_claims = sum(len(extract_claims(text)) for text in texts)
    elapsed = time.process_time() - start
    num_words = sum(len(text.split()) for text in texts)
    return {
        "answers_per_s": round(len(texts) / elapsed),
        "words_per_s": round(num_words / elapsed),
        "claims_per_s": round(num_claims / elapsed),
        "words_per_answer": round(num_words / len(texts), 1),
        "claims_per_answer": round(num_claims / len(texts), 1),
    }


def verification_rate(texts: list[str]) -> int:
    """Return verified claims per second.

    Each answer's only fact is another answer, which is not in the cache of parsed facts.
    """
    claims_per_text = [extract_claims(text) for text in texts]
    facts_per_text = [(Fact("caption", text),) for text in [*texts[1:], texts[0]]]
    start = time.process_time()
    for text_claims, text_facts in zip(claims_per_text, facts_per_text, strict=True):
        verify_against_facts(text_claims, text_facts)
    return round(sum(map(len, claims_per_text)) / (time.process_time() - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    start = time.process_time()
    load_lexicon()
    loading_s = time.process_time() - start
    captions, descriptions = make_answers(args.answers, 20, rng), make_answers(args.answers // 4, 90, rng)
    extraction_rate(captions[:200])
    result = {
        "caption": extraction_rate(captions),
        "description": extraction_rate(descriptions),
        "judged_per_s": verification_rate(captions[:1000]),
        "loading_s": round(loading_s, 3),
    }
    for name in ("caption", "description"):
        print(f"{name:<12} {result[name]}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
