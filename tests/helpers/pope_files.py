"""Small files in POPE's form: questions, answers, and logs of other programs."""

import json
from pathlib import Path

LABELS = ["yes", "no"] * 3
PHRASE = "\nAnswer the question using a single word or phrase."
OBJECTS = {"adversarial": "chair", "popular": "car", "random": "zebra"}
"""The absent object of each split of the fixture `pope`."""


def write_questions(path: Path, objects: str = "dog cat") -> Path:
    rows = [
        {
            "question_id": i + 1,
            "image": f"{i // 2}.jpg",
            "text": f"Is there a {objects.split()[i % 2]} in the image?",
            "label": label,
        }
        for i, label in enumerate(LABELS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def write_answers(path: Path, texts, ids=None, **more) -> Path:
    ids = ids or range(1, len(texts) + 1)
    path.write_text("\n".join(json.dumps({"question_id": i, "answer": t, **more}) for i, t in zip(ids, texts, strict=True)))
    return path


def pope_log(*splits, distance=0):
    """Return LLaVA's log: all right, but yes to the second absent object of the last split."""
    rows = []
    for k, split in enumerate(splits):
        for image in range(2):
            for n, noun in enumerate(("dog", OBJECTS[split])):
                reply = "Yes" if n == 0 or (split == splits[-1] and image == 1) else "No"
                prompt = f"Is there a {noun} in the image?{PHRASE}"
                rows.append({"question_id": k * distance + 2 * image + n + 1, "prompt": prompt, "text": reply, "model_id": "m"})
    return rows


def pope_samples(*splits, **more):
    """Return a log of lmms-eval from 0.4 on: no doc, ids in the objects of the metrics."""
    rows = pope_log(*splits)
    return [
        {
            "doc_id": n, "target": "x", "filtered_resps": row["text"], "doc_hash": "h", "input": row["prompt"],
            **{f"pope_{m}": {"question_id": str(row["question_id"]), "score": 1.0, "prediction": "yes"} for m in ("accuracy", "f1_score")},
            **more,
        }
        for n, row in enumerate(rows)
    ]  # fmt: skip
