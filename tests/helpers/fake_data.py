"""Small fake datasets for benchmarks with data that cannot be shipped, on synthetic scenes."""

import csv
import json
from pathlib import Path

from mmrlhf import scenes


def write_image(path: Path, scene_index: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scenes.generate_scene("selection", scene_index, 0).image_source().read())
    return path


def write_jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mme(root: Path) -> dict:
    """Write the four hallucination tasks, with one text file per task or one per image."""
    for i in range(2):
        write_image(root / "color" / "images" / f"{i}.png", i)
        question_file = root / "color" / "questions_answers_YN" / f"{i}.txt"
        question_file.parent.mkdir(parents=True, exist_ok=True)
        question_file.write_text(
            "Is the star red? Please answer yes or no.\tYes\nIs the star blue? Please answer yes or no.\tNo\n"
        )
    questions = [
        f"{i}.jpg\tIs there a {noun}? Please answer yes or no.\t{label}\n"
        for i in range(2)
        for noun, label in (("star", "Yes"), ("cat", "No"))
    ]
    for task in ("existence", "count", "position"):
        (root / f"{task}.txt").write_text("".join(questions))
        for i in range(2):
            write_image(root / task / f"{i}.jpg", i)
    return {"data": str(root)}


def hallusionbench_rows(figures=((1, "1"), (1, "0"))):
    """Return rows of both categories.

    Two figures have two questions each (VD); one question comes with and without its image (VS).
    """
    base = {"sample_note": "", "gt_answer_details": "The star is red."}
    rows = [
        {"category": "VD", "subcategory": "map", "visual_input": str(1 + f), "set_id": "0", "figure_id": str(f), "question_id": str(q),
         "question": f"Is the star {('red', 'blue')[q]}?", "gt_answer": str(int(q == f)), "filename": f"./0_{f}.png", **base}
        for f in range(2) for q in range(2)
    ]  # fmt: skip
    rows += [
        {"category": "VS", "subcategory": "ocr", "visual_input": str(2 * f), "set_id": "0", "figure_id": str(f), "question_id": "0",
         "question": "Is there a star?", "gt_answer": "1", "filename": None if f == 0 else "0_0.png", **base}
        for f in range(2)
    ]  # fmt: skip
    return rows


def hallusionbench(root: Path) -> dict:
    (root / "h.json").write_text(json.dumps(hallusionbench_rows()))
    for f in range(2):
        write_image(root / f"0_{f}.png", f)
    return {"data": str(root / "h.json")}


def mmhal_bench(root: Path, num_rows: int = 8) -> dict:
    question_types = ["attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other"]
    questions = [
        {"question_type": question_types[i % 8], "question_topic": "", "image_id": f"p{i}", "image_src": f"http://host/p{i}.jpg", "image_content": ["Star"],
         "question": "What is in the picture?", "gt_answer": "A star.", "model_answer": ""}
        for i in range(num_rows)
    ]  # fmt: skip
    (root / "m.json").write_text(json.dumps(questions))
    for i in range(min(num_rows, 8)):
        write_image(root / f"p{i}.jpg", i)
    return {"data": str(root / "m.json")}


def object_halbench(root: Path) -> dict:
    (root / "gt.json").write_text(json.dumps({"1": ["dog", "person"], "2": ["cat"]}))
    for i in (1, 2):
        write_image(root / f"COCO_val2014_{i:012d}.jpg", i)
    return {"data": str(root / "gt.json")}


def llava_bench(root: Path) -> dict:
    categories = ("conv", "detail", "complex")
    write_jsonl(
        root / "qa90_questions.jsonl",
        [{"question_id": i, "image": f"{i // 3}.jpg", "text": "What is it?", "category": categories[i % 3]} for i in range(6)],
    )
    write_jsonl(
        root / "qa90_gpt4_answer.jsonl", [{"question_id": i, "text": "A star.", "category": categories[i % 3]} for i in range(6)]
    )
    boxes = [{"category": "star", "bbox": [0, 0, 1, 1]}]
    write_jsonl(
        root / "caps_boxes_coco2014_val_80.jsonl",
        [{"id": str(i), "image": f"{i}.jpg", "captions": ["A star."], "instances": boxes} for i in range(2)],
    )
    (root / "rule.json").write_text(
        json.dumps({kind: {"role": "Assistant", "prompt": "Two numbers, please."} for kind in categories})
    )
    for i in range(2):
        write_image(root / f"{i}.jpg", i)
    return {"data": str(root)}


def vl_rewardbench(root: Path) -> dict:
    ids = ("VLFeedback-0", "RLAIF-V-1", "mathverse_2")
    rows = [
        {
            "id": id_,
            "query": "<image>\nWhat is it?",
            "response": ["A star.", "A cat."],
            "human_ranking": [0, 1],
            "image_path": "0.png",
        }
        for id_ in ids
    ]
    write_image(root / "0.png", 0)
    return {"data": str(write_jsonl(root / "pairs.jsonl", rows))}


def multimodal_rewardbench(root: Path) -> dict:
    categories = (("math_1", "reasoning"), ("code_1", "reasoning"), ("pairs_1", "safety"), ("nocaps_1", "open_generation"))
    rows = [
        {
            "ID": id_,
            "Text": "What is it?",
            "Image": "0.png",
            "Output1": "A star.",
            "Output2": "A cat.",
            "Better": "Output1",
            "Category": kind,
        }
        for id_, kind in categories
    ]
    (root / "all_data.json").write_text(json.dumps(rows))
    write_image(root / "0.png", 0)
    return {"data": str(root / "all_data.json")}


def dash_b(root: Path) -> dict:
    for kind, scene_index in (("neg", 0), ("pos", 1)):
        (root / f"dash_benchmark_{kind}.json").write_text(json.dumps({"coco": {"star": [f"{kind}.png"]}}))
        write_image(root / kind / "coco" / "star" / f"{kind}.png", scene_index)
    return {"data": str(root)}


def haloquest(root: Path) -> dict:
    rows = [
        ("0", "0.png", "", "generated", "false premises", "What colour is the cat?", "There is no cat; No cat", "eval"),
        ("1", "1.png", "", "real", "visual challenge", "What is it?", "A star", "eval"),
    ]
    with (root / "h.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows(
            [["", "image_name", "url", "image type", "hallucination type", "question", "groundtruth responses", "split"], *rows]
        )
    for i in range(2):
        write_image(root / f"{i}.png", i)
    return {"data": str(root / "h.csv")}


def hallucinogen_rows(kind: str, noun: str = "cat", label: str = "no", image: str = "0.png", id_: int = 1) -> dict:
    """Return a row of HALLUCINOGEN's release, with queries of our own."""
    queries = {"id": "Can a {} be seen?", "loc": "Where is the {}?", "vc": "What surrounds the {}?", "cf": "What if the {} left?"}
    row = {"question_id": id_, "image": image, "text": f"Is there a {noun} in the image?", "label": label}
    return row | {f"query_{n}": f"{n}: {queries[kind].format(noun)}" for n in range(1, 6)}


def hallucinogen(root: Path) -> dict:
    for kind in ("id", "loc"):
        (root / kind).mkdir(exist_ok=True)
        for split, noun, label in (("adv", "cat", "no"), ("rand", "star", "yes")):
            write_jsonl(root / kind / f"{kind}_POPE_{split}.json", [hallucinogen_rows(kind, noun, label)])
    write_image(root / "0.png", 0)
    return {"data": str(root)}


def decapbench(root: Path) -> dict:
    facts = ["There is a star.", "The star is red.", "The star is on the left.", "There is a ring."]
    row = {"image_name": "0.png", "oracle_caption": "A red star on the left, and a ring.", "oracle_facts": facts}
    write_image(root / "0.png", 0)
    return {"data": str(write_jsonl(root / "facts.jsonl", [row]))}


DATASET_WRITERS = {
    f.__name__: f
    for f in (
        mme,
        hallusionbench,
        mmhal_bench,
        object_halbench,
        llava_bench,
        vl_rewardbench,
        multimodal_rewardbench,
        dash_b,
        haloquest,
        hallucinogen,
        decapbench,
    )
}
