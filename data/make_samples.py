"""Draw the sample images, and write a file in each format.

`python data/make_samples.py` rebuilds data/samples.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SAMPLES = Path(__file__).parent / "samples"
WALL, TABLE, WOOD, METAL = "#e9e2d0", "#b98a5a", "#7a5230", "#9aa0a6"
RED, GREEN, BLUE, YELLOW, WHITE, BLACK = "#c8322b", "#3f8f46", "#2f5fa8", "#e8b92e", "#fafafa", "#222222"

Pen = ImageDraw.ImageDraw

# ---- images: the function's name is the file's name ----------------------------------------------


def red_mug(pen: Pen) -> None:
    pen.rectangle((0, 150, 320, 240), fill=TABLE)
    pen.arc((168, 92, 216, 140), 270, 90, fill=RED, width=10)
    pen.rounded_rectangle((110, 76, 194, 172), 10, fill=RED)
    for y in (188, 208):
        pen.ellipse((196, y - 8, 232, y + 8), fill=METAL)
        pen.line((228, y, 300, y), fill=METAL, width=5)


def apples(pen: Pen) -> None:
    pen.rectangle((0, 170, 320, 240), fill=TABLE)
    for x in (110, 160, 210):
        pen.ellipse((x - 28, 70, x + 28, 126), fill=GREEN)
        pen.line((x, 74, x + 4, 58), fill=WOOD, width=4)
    pen.chord((70, 40, 250, 190), 0, 180, fill=BLUE)


def window(pen: Pen) -> None:
    pen.rectangle((90, 30, 230, 170), fill="#bfe0f5", outline=WHITE, width=8)
    pen.line((160, 30, 160, 170), fill=WHITE, width=6)
    pen.rectangle((66, 20, 104, 180), fill=YELLOW)
    pen.rectangle((216, 20, 254, 180), fill=YELLOW)
    pen.rectangle((60, 180, 260, 194), fill=WHITE)
    for tip in ((140, 110), (160, 100), (180, 110)):
        pen.line((160, 150, *tip), fill=GREEN, width=9)
    pen.polygon(((142, 146), (178, 146), (172, 180), (148, 180)), fill=RED)


def sofa(pen: Pen) -> None:
    pen.rectangle((0, 200, 320, 240), fill=WOOD)
    pen.rounded_rectangle((40, 100, 220, 170), 14, fill=BLUE)
    pen.rounded_rectangle((28, 140, 232, 206), 14, fill=BLUE)
    pen.rectangle((84, 122, 126, 160), fill=YELLOW)
    pen.line((276, 90, 276, 204), fill=BLACK, width=6)
    pen.polygon(((256, 50), (296, 50), (310, 96), (242, 96)), fill=WHITE)


def shelf(pen: Pen) -> None:
    pen.rectangle((40, 170, 280, 184), fill=WOOD)
    for x, colour in zip((60, 84, 108, 132), (RED, GREEN, BLUE, RED), strict=True):
        pen.rectangle((x, 90, x + 20, 169), fill=colour, outline=BLACK)
    pen.ellipse((190, 100, 258, 168), fill=WHITE, outline=BLACK, width=5)
    pen.line((224, 134, 224, 112), fill=BLACK, width=4)
    pen.line((224, 134, 242, 134), fill=BLACK, width=4)


def umbrella(pen: Pen) -> None:
    pen.rectangle((0, 210, 320, 240), fill=METAL)
    pen.rectangle((60, 30, 160, 210), fill=GREEN, outline=WOOD, width=5)
    pen.ellipse((138, 116, 150, 128), fill=YELLOW)
    pen.polygon(((222, 214), (206, 114), (238, 114)), fill=BLACK)
    pen.line((222, 114, 222, 84), fill=WOOD, width=5)
    pen.arc((222, 72, 242, 96), 180, 360, fill=WOOD, width=5)


@dataclass(frozen=True)
class SampleImage:
    """An image with facts about it, and a grounded and a hallucinated description."""

    draw: Callable[[Pen], None]
    caption: str
    objects: list[list[Any]]
    absent: list[str]
    chosen: str
    rejected: str
    relations: list[list[str]]

    @property
    def file_name(self) -> str:
        return f"{self.draw.__name__}.png"


SAMPLE_IMAGES = (
    SampleImage(
        red_mug,
        "A red mug on a table beside two spoons.",
        [["mug", 1, "red"], ["spoon", 2, "grey"], ["table", 1, "brown"]],
        ["saucer", "plate", "cat"],
        "A red mug stands on a brown table, and two spoons lie beside it.",
        "A red mug of coffee stands on a saucer beside a spoon and a croissant.",
        [["mug", "on", "table"]],
    ),
    SampleImage(
        apples,
        "Three green apples in a blue bowl.",
        [["apple", 3, "green"], ["bowl", 1, "blue"], ["table", 1, "brown"]],
        ["banana", "orange", "knife"],
        "A blue bowl with three green apples stands on a table.",
        "A blue bowl holds four red apples and a banana, with a knife next to it.",
        [["apple", "in", "bowl"]],
    ),
    SampleImage(
        window,
        "A potted plant on a window sill between yellow curtains.",
        [["window", 1, "white"], ["curtain", 2, "yellow"], ["plant", 1, "green"], ["pot", 1, "red"]],
        ["cat", "person", "bird"],
        "A green plant in a red pot stands on the sill of a window with yellow curtains.",
        "A cat sleeps on the sill of a window with blue curtains, and a bird flies past.",
        [["plant", "in front of", "window"]],
    ),
    SampleImage(
        sofa,
        "A blue sofa with a yellow cushion and a floor lamp.",
        [["sofa", 1, "blue"], ["cushion", 1, "yellow"], ["lamp", 1, "white"]],
        ["dog", "person", "television"],
        "A blue sofa with one yellow cushion; to its right a floor lamp with a white shade.",
        "A dog lies on a blue sofa with two cushions in front of a television.",
        [["lamp", "right of", "sofa"]],
    ),
    SampleImage(
        shelf,
        "Four books and a round clock on a shelf.",
        [["book", 4, None], ["clock", 1, "white"], ["shelf", 1, "brown"]],
        ["vase", "candle", "photograph"],
        "Four books, two of them red, and a round white clock stand on a wooden shelf.",
        "Six books, a vase of flowers and a candle stand on a wooden shelf.",
        [["clock", "right of", "book"]],
    ),
    SampleImage(
        umbrella,
        "A closed black umbrella beside a green door.",
        [["umbrella", 1, "black"], ["door", 1, "green"]],
        ["shoe", "coat", "person"],
        "A closed black umbrella stands to the right of a green door with a yellow knob.",
        "A person in a coat opens a red umbrella in front of a door, next to a pair of shoes.",
        [["umbrella", "right of", "door"]],
    ),
)

# ---- rows ----------------------------------------------------------------------------------------

DESCRIBE = "Describe the image."
QUESTIONS = (
    (SAMPLE_IMAGES[1], "How many apples are there?", "There are three apples.", "There are four apples."),
    (SAMPLE_IMAGES[3], "Is there a dog in the picture?", "No, there is no dog.", "Yes, a dog lies on the sofa."),
)
PAIRS = (*((sample, DESCRIBE, sample.chosen, sample.rejected) for sample in SAMPLE_IMAGES), *QUESTIONS)
"""(image, question, chosen, rejected)"""


def make_turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def llava_turn(role: str, value: str) -> dict[str, str]:
    return {"from": role, "value": value}


def trl_preference() -> list[dict[str, Any]]:
    """Build TRL preference pairs."""
    return [
        {
            "id": f"pair-{number}",
            "images": [f"images/{sample.file_name}"],
            "prompt": [make_turn("user", question)],
            "chosen": [make_turn("assistant", chosen)],
            "rejected": [make_turn("assistant", rejected)],
        }
        for number, (sample, question, chosen, rejected) in enumerate(PAIRS, 1)
    ]


def sft() -> list[dict[str, Any]]:
    """Build one conversation per image, with content in parts, and one without an image."""
    rows = [
        {
            "id": f"sft-{number}",
            "images": [f"images/{sample.file_name}"],
            "messages": [
                make_turn("user", [{"type": "image"}, {"type": "text", "text": DESCRIBE}]),
                make_turn("assistant", [{"type": "text", "text": sample.chosen}]),
            ],
        }
        for number, sample in enumerate(SAMPLE_IMAGES, 1)
    ]
    question, answer = "What would you need a picture for?", "To say what is in it. Without one I can only guess."
    return [*rows, {"id": "sft-7", "images": [], "messages": [make_turn("user", question), make_turn("assistant", answer)]}]


def llava_rlhf_preference() -> list[dict[str, Any]]:
    """Build LLaVA-RLHF pairs. The better output is the first in odd rows, else the second."""
    rows = []
    for number, (sample, question, chosen, rejected) in enumerate(PAIRS, 1):
        output_1, output_2 = (chosen, rejected) if number % 2 else (rejected, chosen)
        row = {
            "id": f"pair-{number}",
            "image": f"images/{sample.file_name}",
            "conversations": [llava_turn("human", f"<image>\n{question}"), llava_turn("gpt", output_2)],
            "output_1": llava_turn("gpt", output_1),
            "output_2": llava_turn("gpt", output_2),
            "preference": 1 if number % 2 else 2,
            "hallucination": True,
        }
        rows.append(row)
    return rows


def llava_rlhf_ppo() -> list[dict[str, Any]]:
    """Build LLaVA-RLHF prompts for PPO."""
    rows = []
    for number, sample in enumerate(SAMPLE_IMAGES, 1):
        question, length_bonus = (DESCRIBE, -0.5) if number % 2 else (f"{DESCRIBE} Keep it short.", 1.0)
        rows.append((sample, question, 1, length_bonus))
    rows.append((SAMPLE_IMAGES[3], "Is there a dog in the picture?", 6, 1.0))  # type 6: the right answer is no
    return [
        {
            "id": f"prompt-{number}",
            "image": f"images/{sample.file_name}",
            "conversations": [llava_turn("human", f"{question}\n<image>"), llava_turn("gpt", "")],
            "captions": [sample.caption],
            "caption_type": caption_type,
            "length_bonus": length_bonus,
        }
        for number, (sample, question, caption_type, length_bonus) in enumerate(rows, 1)
    ]


def rlhf_v() -> list[dict[str, Any]]:
    """Build RLHF-V pairs as on the Hub: texts as JSON in one column, the image, and its origin."""
    return [
        {
            "ds_name": "samples",
            "image": f"images/{sample.file_name}",
            "text": json.dumps({"question": question, "chosen": chosen, "rejected": rejected}),
            "origin_dataset": "make_samples",
            "origin_split": json.dumps({"type": "detailed description" if question == DESCRIBE else "question answering"}),
            "idx": number,
            "image_path": f"images/{sample.file_name}",
        }
        for number, (sample, question, chosen, rejected) in enumerate(PAIRS, 1)
    ]


def rlaif_v() -> list[dict[str, Any]]:
    """Build RLAIF-V pairs with images in base64, written in each of the accepted ways."""
    encodings: tuple[Callable[[str], Any], ...] = (
        lambda text: f"data:image/png;base64,{text}",
        lambda text: {"bytes": text},
        lambda text: {"base64": text},
        lambda text: text,
    )
    return [
        {
            "ds_name": "samples",
            "image": encodings[number % 4](base64.b64encode((SAMPLES / "images" / sample.file_name).read_bytes()).decode()),
            "question": question,
            "chosen": chosen,
            "rejected": rejected,
            "origin_dataset": "make_samples",
            "idx": f"pair-{number}",
            "image_path": f"images/{sample.file_name}",
        }
        for number, (sample, question, chosen, rejected) in enumerate(PAIRS, 1)
    ]


def mm_rlhf() -> list[dict[str, Any]]:
    """Build MM-RLHF pairs. The last row is a tie of two good answers."""
    rows = [
        {
            "id": f"pair-{number}",
            "image": f"images/{sample.file_name}",
            "prompt": question,
            "chosen": chosen,
            "rejected": rejected,
            "chosen_reason": "All of it is in the picture.",
            "rejected_reason": "Some of it is not in the picture.",
            "is_tie": False,
            "ls_factor": 1.5 if question == DESCRIBE else 1.0,
        }
        for number, (sample, question, chosen, rejected) in enumerate(PAIRS, 1)
    ]
    reason = "Both are true of the picture."
    tie_fields = {
        "chosen": SAMPLE_IMAGES[1].chosen,
        "rejected": SAMPLE_IMAGES[1].caption,
        "chosen_reason": reason,
        "rejected_reason": reason,
    }
    return [*rows, {**rows[1], **tie_fields, "id": "pair-9", "is_tie": True, "ls_factor": 0.0}]


RATINGS = ((5, 4), (3, 4), (2, 1))
"""Helpfulness and faithfulness of the chosen answer, the caption, and the rejected answer."""


def vlfeedback() -> list[dict[str, Any]]:
    """Build VLFeedback rankings: three answers, rated by aspect; one aspect does not apply."""

    def completion(text: str, helpfulness: int, faithfulness: int) -> dict[str, Any]:
        ratings = {"Helpfulness": str(helpfulness), "Ethical Considerations": "N/A", "Visual Faithfulness": str(faithfulness)}
        annotations = {name: {"Rating": rating, "Rationale": "Made up for this sample."} for name, rating in ratings.items()}
        return {"annotations": annotations, "model": "none", "response": text}

    rows = []
    for number, sample in enumerate(SAMPLE_IMAGES, 1):
        answers = (sample.chosen, sample.caption, sample.rejected)
        order = (1, 2, 0) if number % 2 else (2, 0, 1)
        row = {
            "id": f"rated-{number}",
            "prompt": DESCRIBE,
            "models": ["none"] * 3,
            "completions": [completion(answers[index], *RATINGS[index]) for index in order],
            "img_path": f"images/{sample.file_name}",
        }
        rows.append(row)
    return rows


def rankings() -> list[dict[str, Any]]:
    """Build rankings of three answers: four with ranks (two have a tie), and two with ratings."""
    rows: list[dict[str, Any]] = []
    for number, sample in enumerate(SAMPLE_IMAGES, 1):
        answers = [sample.rejected, sample.chosen, sample.caption]
        row = {"id": f"ranking-{number}", "prompt": DESCRIBE, "images": [f"images/{sample.file_name}"], "answers": answers}
        if number < 5:
            rows.append({**row, "ranks": [3, 1, 1 + number % 2]})
        else:
            rows.append({**row, "ratings": [1.0, 4.5, 3.0]})
    return rows


def facts() -> list[dict[str, Any]]:
    """Build typed facts by image."""
    return [
        {
            "image": sample.file_name,
            "captions": [sample.caption],
            "objects": sample.objects,
            "relations": sample.relations,
            "absent": sample.absent,
        }
        for sample in SAMPLE_IMAGES
    ]


# ---- files ---------------------------------------------------------------------------------------


def write_jsonl(name: str, rows: list[dict[str, Any]]) -> None:
    (SAMPLES / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_json(name: str, value: Any) -> None:
    (SAMPLES / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def write_parquet(name: str, rows: list[dict[str, Any]]) -> None:
    """Write a table with its images inside, as `push_to_hub` stores them."""
    import datasets

    def embed(path: Any) -> Any:
        if isinstance(path, list):
            return [embed(item) for item in path]
        return {"bytes": (SAMPLES / path).read_bytes(), "path": Path(path).name}

    datasets.disable_progress_bars()
    field_name = "images" if "images" in rows[0] else "image"
    feature = datasets.List(datasets.Image()) if field_name == "images" else datasets.Image()
    table = datasets.Dataset.from_list([{**row, field_name: embed(row[field_name])} for row in rows])
    table.cast_column(field_name, feature).to_parquet(SAMPLES / name)


def main() -> None:
    """Write all files, replacing those of an earlier run."""
    shutil.rmtree(SAMPLES, ignore_errors=True)
    (SAMPLES / "images").mkdir(parents=True)
    for sample in SAMPLE_IMAGES:
        image = Image.new("RGB", (320, 240), WALL)
        sample.draw(ImageDraw.Draw(image))
        image.save(SAMPLES / "images" / sample.file_name, optimize=True)
    write_jsonl("trl_preference.jsonl", trl_preference())
    write_parquet("trl_preference.parquet", trl_preference())
    write_jsonl("sft.jsonl", sft())
    write_json("llava_rlhf_preference.json", llava_rlhf_preference())
    write_json("llava_rlhf_ppo.json", llava_rlhf_ppo())
    write_parquet("rlhf_v.parquet", rlhf_v())
    write_jsonl("rlaif_v.jsonl", rlaif_v())
    write_jsonl("mm_rlhf.jsonl", mm_rlhf())
    write_jsonl("vlfeedback.jsonl", vlfeedback())
    write_jsonl("rankings.jsonl", rankings())
    write_json("image_to_caption.json", {sample.file_name: [sample.caption] for sample in SAMPLE_IMAGES})
    write_jsonl("facts.jsonl", facts())


if __name__ == "__main__":
    main()
