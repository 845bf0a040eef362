"""Rows that cannot be used, and what is said of each: one sentence, with its place and what to do.

A case is what makes a good row bad (GONE takes a field away), and a regular expression that the sentence must match.
`python -m tests.datasets.test_data_errors` writes all of them into docs/malformed.md, with the sentences in full.
"""

import base64
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image

from mmrlhf.commands.check import check
from mmrlhf.datasets import read_examples, read_preferences
from mmrlhf.models.images import open_image
from mmrlhf.records import InputError

REMOVED = object()
DOCUMENT = Path(__file__).parents[2] / "docs" / "malformed.md"
DEEP: list = []
for _ in range(200):
    DEEP = [DEEP]


def user_turn(content):
    return {"role": "user", "content": content}


def assistant_turn(content):
    return {"role": "assistant", "content": content}


def human_turn(value):
    return {"from": "human", "value": value}


def gpt_turn(value):
    return {"from": "gpt", "value": value}


def rated_completion(response, rating="4", **more):
    return {"response": response, "annotations": {"Helpfulness": {"Rating": rating}}, **more}


TRL = {"id": "p", "images": ["a.png"], "prompt": [user_turn("What is it?")], "chosen": "A cup.", "rejected": "A cat."}
LLAVA = {
    "id": "p",
    "image": "a.png",
    "conversations": [human_turn("<image>\nWhat is it?"), gpt_turn("A cup.")],
    "output_1": gpt_turn("A cup."),
    "output_2": gpt_turn("A cat."),
    "preference": 1,
}
PPO = {
    "image": "a.png",
    "conversations": [human_turn("<image>\nWhat is it?"), gpt_turn("")],
    "caption_type": 1,
    "length_bonus": 1.0,
}
RLHF_V = {"idx": 1, "image": "a.png", "text": {"question": "What is it?", "chosen": "A cup.", "rejected": "A cat."}}
RLAIF_V = {
    "idx": "1",
    "image": "a.png",
    "question": "What is it?",
    "chosen": "A cup.",
    "rejected": "A cat.",
    "origin_dataset": "o",
}
MM_RLHF = {
    "id": "p", "image": "a.png", "prompt": "What is it?", "chosen": "A cup.", "rejected": "A cat.",
    "chosen_reason": "It is.", "rejected_reason": "It is not.", "is_tie": False, "ls_factor": 1.0,
}  # fmt: skip
VLFEEDBACK = {
    "id": "p",
    "prompt": "What is it?",
    "completions": [rated_completion("A cup."), rated_completion("A cat.", "2")],
    "img_path": "a.png",
}
RANKING = {"id": "p", "images": ["a.png"], "prompt": "What is it?", "answers": ["A cup.", "A mug.", "A cat."], "ranks": [1, 1, 2]}
SFT = {"id": "p", "images": ["a.png"], "messages": [user_turn("What is it?"), assistant_turn("A cup.")]}


def changed_text(**change):
    inner = {**RLHF_V["text"], **change}
    return {"text": {name: value for name, value in inner.items() if value is not REMOVED}}


def base64_text(data):
    return base64.b64encode(data).decode()


CASES = {
    "TRL's pairs": (
        read_preferences,
        TRL,
        [
            ({"images": REMOVED}, r"`images` is missing: add it, `\[\]` for a row without images"),
            ({"images": None}, r"`images` is missing: add it"),
            ({"images": REMOVED, "imagse": ["a.png"]}, r"`images` is missing: rename `imagse` to it"),
            ({"images": "a.png"}, r"`images` must be a list, not text: write a single image as `image`"),
            ({"images": 3}, r"`images` must be a list, not a number"),
            ({"images": {"path": "a.png"}}, r"`images` must be a list, not an object"),
            ({"images": True}, r"`images` must be a list, not true or false"),
            ({"image": "a.png"}, r"both `images` and `image` are given: keep one"),
            ({"images": REMOVED, "video": "a.mp4"}, r"`video` is given and no image: only images are supported, so drop the row"),
            ({"prompt": REMOVED}, r"`prompt` is missing: add it"),
            ({"prompt": None}, r"`prompt` is missing: add it"),
            ({"prompt": REMOVED, "promt": "What is it?"}, r"`prompt` is missing: rename `promt` to it"),
            ({"prompt": 3}, r"`prompt` must be text or a list of turns, not a number"),
            ({"prompt": True}, r"`prompt` must be text or a list of turns, not true or false"),
            ({"prompt": {"role": "user"}}, r"`prompt` must be text or a list of turns, not an object"),
            ({"prompt": []}, r"`prompt` must be text or a list of turns, not an empty one"),
            ({"prompt": ""}, r"turn 1 of the prompt is empty: fill it in or drop the row"),
            ({"prompt": " \n\t"}, r"turn 1 of the prompt is empty"),
            ({"prompt": [None]}, r"`prompt\[1\]` must be an object with role and content, not null"),
            ({"prompt": ["What is it?"]}, r"`prompt\[1\]` must be an object with role and content, not text"),
            ({"prompt": [{"content": "a"}]}, r"`prompt\[1\].role` must be one of system, user, assistant, not None"),
            ({"prompt": [{"role": "human", "content": "a"}]}, r"`prompt\[1\].role` must be one of .*, not 'human'"),
            ({"prompt": [{"role": ["user"], "content": "a"}]}, r"`prompt\[1\].role` must be one of"),
            ({"prompt": [{"role": "user"}]}, r"`prompt\[1\].content` must be text, not null"),
            ({"prompt": [user_turn(3)]}, r"`prompt\[1\].content` must be text, not a number"),
            ({"prompt": [user_turn({"text": "a"})]}, r"`prompt\[1\].content` must be text, not an object"),
            ({"prompt": [user_turn([])]}, r"turn 1 of the prompt is empty"),
            ({"prompt": [user_turn(["a"])]}, r"`prompt\[1\].content\[1\]` must be a part of type text or image, not 'a'"),
            ({"prompt": [user_turn([{"type": "video"}])]}, r"`prompt\[1\].content\[1\]` must be a part of type text or image"),
            ({"prompt": [user_turn([{"type": "text"}])]}, r"`prompt\[1\].content\[1\].text` must be text, not null"),
            (
                {"prompt": [user_turn([{"type": "text", "text": 1}])]},
                r"`prompt\[1\].content\[1\].text` must be text, not a number",
            ),
            (
                {"prompt": [user_turn([{"type": "image"}] * 2)]},
                r"the prompt has placeholders for 2 images and the row has 1: make",
            ),
            (
                {"prompt": [user_turn([{"type": "text", "text": "a"}])]},
                r"the prompt has placeholders for 0 images and the row has 1",
            ),
            ({"prompt": "<image><image>What is it?"}, r"the prompt has placeholders for 2 images and the row has 1"),
            ({"images": [], "prompt": "<image>What is it?"}, r"the prompt has placeholders for 1 images and the row has 0"),
            ({"images": ["a.png"] * 3, "prompt": "<image>So?"}, r"the prompt has placeholders for 1 images and the row has 3"),
            ({"prompt": [user_turn("a"), assistant_turn("b")]}, r"the prompt must end with a user turn: add the question"),
            ({"prompt": [{"role": "system", "content": "a"}]}, r"the prompt must end with a user turn"),
            (
                {"prompt": [user_turn("a"), {"role": "system", "content": "b"}, user_turn("c")]},
                r"turn 2 of the prompt is a system turn: only",
            ),
            (
                {"prompt": [user_turn("a"), assistant_turn("<image>b"), user_turn("c")]},
                r"turn 2 of the prompt contains an image, but is not a user turn",
            ),
            ({"prompt": [user_turn("a"), assistant_turn(""), user_turn("c")]}, r"turn 2 of the prompt is empty"),
            ({"prompt": "half \ud800"}, r"`prompt` is not valid Unicode: remove the unpaired surrogate"),
            ({"prompt": DEEP}, r"`prompt\[1\]` must be an object with role and content, not a list"),
            ({"chosen": REMOVED}, r"`chosen` is missing: add it \(the row has id, images, prompt, rejected\)"),
            ({"chosen": None}, r"`chosen` is missing: add it"),
            ({"chosen": REMOVED, "chosne": "A cup."}, r"`chosen` is missing: rename `chosne` to it"),
            ({"rejected": REMOVED}, r"`rejected` is missing: add it"),
            ({"rejected": REMOVED, "rejcted": "A cat."}, r"`rejected` is missing: rename `rejcted` to it"),
            ({"chosen": 4}, r"`chosen` must be text or a list of turns, not a number"),
            ({"chosen": {"content": "A cup."}}, r"`chosen` must be text or a list of turns, not an object"),
            ({"chosen": ""}, r"`chosen` is empty: fill it in or drop the row"),
            ({"rejected": "\u2003\u00a0"}, r"`rejected` is empty"),
            ({"rejected": []}, r"`rejected` must be text or a list of turns, not an empty one"),
            ({"rejected": False}, r"`rejected` must be text or a list of turns, not true or false"),
            ({"rejected": [user_turn("A cat.")]}, r"`rejected` must be the assistant's turn, not the user's"),
            (
                {"rejected": [assistant_turn("a"), assistant_turn("b")]},
                r"`rejected` must be one assistant turn, not 2 turns: move",
            ),
            ({"rejected": "<image> A cat."}, r"`rejected` contains an image or <image>: an answer must be text only"),
            ({"rejected": [assistant_turn([{"type": "image"}])]}, r"`rejected` contains an image or <image>"),
            ({"rejected": "\udfff"}, r"`rejected` is not valid Unicode"),
            ({"rejected": "A cup."}, r"the chosen and the rejected answer are the same: correct one of them or drop the row"),
            ({"rejected": "A cup.\n"}, r"the chosen and the rejected answer are the same"),
            ({"rejected": "A cup.", "is_tie": True}, r"the chosen and the rejected answer are the same"),
            (
                {
                    "prompt": REMOVED,
                    "chosen": [user_turn("a"), assistant_turn("b")],
                    "rejected": [user_turn("c"), assistant_turn("d")],
                },
                r"`chosen` and `rejected` may differ only in their last turn: give the shared turns as `prompt`",
            ),
            ({"margin": "0.5"}, r"`margin` must be a finite number, not '0.5'"),
            ({"margin": True}, r"`margin` must be a finite number, not True"),
            ({"margin": [1]}, r"`margin` must be a finite number, not \[1\]"),
            ({"margin": float("nan")}, r"`margin` must be a finite number, not nan"),
            ({"margin": float("inf")}, r"`margin` must be a finite number, not inf"),
            ({"margin": 10**400}, r"`margin` must be a finite number, not 1000"),
            ({"is_tie": "no"}, r"`is_tie` must be true or false, not 'no'"),
            ({"is_tie": 1}, r"`is_tie` must be true or false, not 1"),
            ({"hallucination": "yes"}, r"`hallucination` must be true or false, not 'yes'"),
            ({"source": "\ud900"}, r"`source` is not valid Unicode"),
            ({"id": 1.5}, r"`id` must be text or a whole number, not a number"),
            ({"id": True}, r"`id` must be text or a whole number, not true or false"),
            ({"id": ["p"]}, r"`id` must be text or a whole number, not a list"),
            ({"id": "\ud800"}, r"`id` is not valid Unicode"),
            ({"facts": {"kind": "ocr"}}, r"`facts` must be a list, not an object"),
            ({"facts": ["A cup."]}, r"`facts\[1\]` must be an object with kind and text, not text"),
            ({"facts": [{"kind": "smell", "text": "a"}]}, r"`facts\[1\].kind` must be one of .*, not 'smell'"),
            ({"facts": [{"kind": ["ocr"], "text": "a"}]}, r"`facts\[1\].kind` must be one of .*, not \['ocr'\]"),
            ({"facts": [{"kind": "ocr"}]}, r"`facts\[1\].text` must be text, not null"),
            ({"facts": [{"kind": "ocr", "text": " "}]}, r"`facts\[1\].text` is empty: fill it in or remove it"),
            ({"facts": [{"kind": "ocr", "text": "a", "confidence": 2}]}, r"`facts\[1\].confidence` must be a number from 0 to 1"),
            ({"facts": [{"kind": "ocr", "text": "a", "source": 3}]}, r"`facts\[1\].source` must be text, not a number"),
        ],
    ),
    "pictures": (
        read_preferences,
        TRL,
        [
            ({"images": [3]}, r"`images\[1\]` must be a path or an object with bytes, not 3"),
            ({"images": [None]}, r"`images\[1\]` must be a path or an object with bytes, not None"),
            ({"images": [True]}, r"`images\[1\]` must be a path or an object with bytes, not True"),
            ({"images": [["a.png"]]}, r"`images\[1\]` must be a path or an object with bytes, not \['a.png'\]"),
            ({"images": [{}]}, r"`images\[1\]` must be a path or an object with bytes, not \{\}"),
            ({"images": [""]}, r"`images\[1\]` must be a path or an object with bytes, not ''"),
            ({"images": [" "]}, r"`images\[1\]` must be a path or an object with bytes, not ' '"),
            ({"images": [{"path": 3}]}, r"`images\[1\]` must be a path or an object with bytes, not \{'path': 3\}"),
            ({"images": [{"bytes": [137, 80]}]}, r"`images\[1\]` must be a path or an object with bytes, not \{'bytes': \[137"),
            ({"images": [{"url": "a.png"}]}, r"`images\[1\]` must be a path or an object with bytes, not \{'url'"),
            (
                {"images": ["a.png", "b.png"]},
                r"`images\[2\]` does not exist in data: 'b.png'; correct the path or give --image_folder",
            ),
            ({"images": ["A.PNG"]}, r"`images\[1\]` does not exist in data: 'A.PNG'"),
            ({"images": ["a.png "]}, r"`images\[1\]` does not exist in data: 'a.png '"),
            ({"images": ["."]}, r"`images\[1\]` does not exist in data: '.'"),
            ({"images": ["a.png\0"]}, r"`images\[1\]` does not exist in data: 'a.png\\x00'"),
            ({"images": ["a.png\n"]}, r"`images\[1\]` does not exist in data: 'a.png\\n'"),
            ({"images": ["\u202egnp.a"]}, r"`images\[1\]` does not exist in data: '\\u202egnp.a'"),
            ({"images": ["صورة.png"]}, r"`images\[1\]` does not exist in data: 'صورة.png'"),
            ({"images": ["\ud800.png"]}, r"`images\[1\]` does not exist in data: '\\ud800.png'"),
            ({"images": ["\x1b[31m.png"]}, r"`images\[1\]` does not exist in data: '\\x1b\[31m.png'"),
            ({"images": ["a/" * 3000 + ".png"]}, r"`images\[1\]` does not exist in data: 'a/a/a.*\.\.\.'"),
            ({"images": ["é" * 300]}, r"`images\[1\]` does not exist in data: 'é+\.\.\.'"),
            (
                {"images": ["../secret.png"]},
                r"`images\[1\]` is outside the image folder data: '../secret.png'; move the image",
            ),
            ({"images": [{"path": "x/../../secret.png"}]}, r"`images\[1\]` is outside the image folder data"),
            ({"images": ["up/../../secret.png"]}, r"`images\[1\]` is outside the image folder data"),
            ({"images": ["/etc/passwd"]}, r"`images\[1\]` is outside the image folder data: '/etc/passwd'"),
            ({"images": ["//etc//passwd"]}, r"`images\[1\]` is outside the image folder data"),
            ({"images": ["~/a.png"]}, r"`images\[1\]` does not exist in data: '~/a.png'"),
            ({"images": ["$HOME/a.png"]}, r"`images\[1\]` does not exist in data"),
            ({"images": ["link.png"]}, r"`images\[1\]` leaves data through a symlink: 'link.png'; if you trust it, give"),
            ({"images": ["up/secret.png"]}, r"`images\[1\]` leaves data through a symlink"),
            (
                {"images": ["https://example.org/a.png"]},
                r"`images\[1\]` is a URL, 'https://.*': download the image and give its path",
            ),
            ({"images": ["file:///etc/passwd"]}, r"`images\[1\]` is a URL, 'file:///etc/passwd'"),
            ({"images": ["broken.png"]}, r"image data/broken.png \(rows.jsonl, line 1, `images\[1\]`\) is truncated or damaged"),
            ({"images": ["rows.jsonl"]}, r"image rows.jsonl \(.*line 1, `images\[1\]`\) is damaged, or not a JPEG"),
            ({"images": ["empty.png"]}, r"image data/empty.png \(.*\) is empty \(0 bytes\): replace the file or drop the row"),
            ({"images": [{"bytes": ""}]}, r"image <0 bytes> \(.*line 1, `images\[1\]`\) is empty \(0 bytes\)"),
            ({"images": [{"bytes": "?"}]}, r"`images\[1\]` is not base64 \(.*\): encode the image again or give its path"),
            ({"images": [{"bytes": "iVBOR"}]}, r"`images\[1\]` is not base64 \("),
            ({"images": [{"bytes": "żółw"}]}, r"`images\[1\]` is not base64 \(.*ascii"),
            ({"images": [{"base64": "iVBO=Rw0"}]}, r"`images\[1\]` is not base64 \("),
            ({"images": [{"base64": 3}]}, r"`images\[1\]` must be a path or an object with bytes, not \{'base64': 3\}"),
            (
                {"images": [{"base64": base64_text(b"text")}]},
                r"image <4 bytes> \(.*line 1, `images\[1\]`\) is damaged, or not a JPEG",
            ),
            ({"images": ["A" * 257]}, r"`images\[1\]` is not base64 \("),
            ({"images": ["A" * 300]}, r"image <225 bytes> \(.*line 1, `images\[1\]`\) is damaged, or not a JPEG"),
            ({"images": [base64_text(bytes(100_000))]}, r"image <100000 bytes> \(.*`images\[1\]`\) is damaged, or not a JPEG"),
            ({"images": ["data:image/png;base64,"]}, r"image <0 bytes> \(.*`images\[1\]`\) is empty"),
            ({"images": ["data:image/png;base64,&&&&"]}, r"`images\[1\]` is not base64 \("),
            (
                {"images": ["data:image/png,%89PNG"]},
                r"`images\[1\]` must be a path or a base64 image \(.*\), not 'data:image/png'",
            ),
            (
                {"images": ["data:text/html;base64,aGk="]},
                r"`images\[1\]` must be a path or a base64 image .*, not 'data:text/html;",
            ),
            ({"images": ["data:"]}, r"`images\[1\]` must be a path or a base64 image .*, not 'data:'"),
            (
                {"images": ["data:image/svg+xml;base64," + base64_text(b"<svg/>")]},
                r"image <6 bytes> \(.*\) is damaged, or not a JPEG",
            ),
        ],
    ),
    "LLaVA-RLHF's pairs": (
        read_preferences,
        LLAVA,
        [
            ({"output_1": REMOVED}, r"`output_1` is missing: add it"),
            ({"output_2": None}, r"`output_2` is missing: add it"),
            ({"preference": REMOVED}, r"`preference` is missing: add it"),
            ({"preference": 0}, r"`preference` must be 1 or 2, the number of the better output, not 0"),
            ({"preference": 3}, r"`preference` must be 1 or 2, .* not 3"),
            ({"preference": "1"}, r"`preference` must be 1 or 2, .* not '1'"),
            ({"preference": True}, r"`preference` must be 1 or 2, .* not True"),
            ({"preference": [1]}, r"`preference` must be 1 or 2, .* not \[1\]"),
            ({"output_1": "A cup."}, r"`output_1` must be an object with from and value, not text"),
            ({"output_1": {"from": "gpt"}}, r"`output_1.value` must be text, not null"),
            ({"output_1": gpt_turn(["A cup."])}, r"`output_1.value` must be text, not a list"),
            ({"output_1": gpt_turn("")}, r"`output_1` is empty"),
            ({"output_1": human_turn("A cup.")}, r"`output_1` must be the assistant's turn, not the user's"),
            ({"output_1": gpt_turn("A cat.")}, r"the chosen and the rejected answer are the same"),
            ({"conversations": []}, r"`conversations` must be a list of turns, not an empty one"),
            ({"conversations": "What is it?"}, r"`conversations` must be a list of turns, not text"),
            ({"conversations": None}, r"`chosen` is missing: add it"),
            ({"conversations": [gpt_turn("A cup.")]}, r"the prompt must end with a user turn"),
            (
                {"conversations": [{"from": "user", "value": "a"}]},
                r"`conversations\[1\].from` must be one of system, human, gpt, not",
            ),
            ({"conversations": [{"from": "human"}]}, r"`conversations\[1\].value` must be text, not null"),
            ({"conversations": [human_turn("What is it?")]}, r"the prompt has placeholders for 0 images and the row has 1"),
            ({"image": REMOVED}, r"the prompt has placeholders for 1 images and the row has 0"),
            ({"image": {"path": "b.png"}}, r"`image` does not exist in data: 'b.png'"),
            ({"hallucination": 1}, r"`hallucination` must be true or false, not 1"),
        ],
    ),
    "RLHF-V": (
        read_preferences,
        RLHF_V,
        [
            ({"text": REMOVED}, r"`chosen` is missing: add it \(the row has idx, image\)"),
            ({"text": 3}, r"`text` must be an object with question, chosen and rejected, or its JSON, not a number"),
            ({"text": []}, r"`text` must be an object with question, chosen and rejected, or its JSON, not a list"),
            ({"text": ""}, r"line 1, `text`: not JSON \(Expecting value at column 1\)"),
            ({"text": "A cup."}, r"line 1, `text`: not JSON \(Expecting value at column 1\)"),
            ({"text": "{'question': 'What is it?'}"}, r"line 1, `text`: not JSON \(Expecting property name"),
            ({"text": "[1]"}, r"`text` must be an object with question, chosen and rejected, or its JSON, not a list"),
            ({"text": "null"}, r"`text` must be an object with question, chosen and rejected, or its JSON, not null"),
            ({"text": "[" * 100_000}, r"line 1, `text`: nested too deeply"),
            ({"text": "\ud800"}, r"`text` is not valid Unicode"),
            (changed_text(question=REMOVED), r"`text.question` must be text, not null"),
            (changed_text(question=""), r"turn 1 of the prompt is empty"),
            (changed_text(chosen=REMOVED), r"`text.chosen` must be text, not null"),
            (changed_text(chosen=[assistant_turn("A cup.")]), r"`text.chosen` must be text, not a list"),
            (changed_text(rejected=None), r"`text.rejected` must be text, not null"),
            (changed_text(rejected=""), r"`rejected` is empty"),
            (changed_text(rejected="A cup."), r"the chosen and the rejected answer are the same"),
            ({"text": json.dumps({"question": "a", "chosen": "b"})}, r"`text.rejected` must be text, not null"),
            ({"text": '{"question": "a", "chosen": "\\ud800", "rejected": "c"}'}, r"`text.chosen` is not valid Unicode"),
            ({"idx": 1.5}, r"`idx` must be text or a whole number, not a number"),
            ({"image": REMOVED}, r"`images` is missing: add it"),
            ({"image": REMOVED, "image_path": "b.png"}, r"`image_path` does not exist in data: 'b.png'"),
            ({"image": REMOVED, "image_path": "../secret.png"}, r"`image_path` is outside the image folder data"),
            ({"image": {"bytes": None, "path": None}}, r"`image` must be a path or an object with bytes, not \{\}"),
        ],
    ),
    "RLAIF-V": (
        read_preferences,
        RLAIF_V,
        [
            ({"question": REMOVED}, r"`prompt` is missing: add it \(the row has idx, image, chosen, rejected, origin_dataset\)"),
            ({"question": REMOVED, "qestion": "What is it?"}, r"`question` is missing: rename `qestion` to it"),
            ({"question": 3}, r"`question` must be text or a list of turns, not a number"),
            ({"question": ""}, r"turn 1 of the prompt is empty"),
            ({"chosen": REMOVED}, r"`chosen` is missing: add it"),
            ({"rejected": 0}, r"`rejected` must be text or a list of turns, not a number"),
            ({"rejected": "A cup."}, r"the chosen and the rejected answer are the same"),
            ({"idx": [1]}, r"`idx` must be text or a whole number, not a list"),
            ({"image": 3}, r"`image` must be a path or an object with bytes, not 3"),
        ],
    ),
    "MM-RLHF": (
        read_preferences,
        MM_RLHF,
        [
            ({"image": REMOVED, "video": "a.mp4"}, r"`video` is given and no image: only images are supported, so drop the row"),
            ({"image": REMOVED}, r"`images` is missing: add it"),
            ({"image": "a.mp4"}, r"`image` does not exist in data: 'a.mp4'"),
            ({"prompt": REMOVED}, r"`prompt` is missing: add it"),
            ({"prompt": [1]}, r"`prompt\[1\]` must be an object with role and content, not a number"),
            ({"chosen": None}, r"`chosen` is missing: add it"),
            ({"rejected": {}}, r"`rejected` must be text or a list of turns, not an object"),
            ({"rejected": "A cup.", "is_tie": True}, r"the chosen and the rejected answer are the same"),
            ({"is_tie": "false"}, r"`is_tie` must be true or false, not 'false'"),
            ({"is_tie": 0}, r"`is_tie` must be true or false, not 0"),
            ({"is_tie": []}, r"`is_tie` must be true or false, not \[\]"),
            ({"ls_factor": "1.0"}, r"`ls_factor` must be a finite number, not '1.0'"),
            ({"ls_factor": False}, r"`ls_factor` must be a finite number, not False"),
            ({"ls_factor": float("-inf")}, r"`ls_factor` must be a finite number, not -inf"),
            ({"ls_factor": {}}, r"`ls_factor` must be a finite number, not \{\}"),
            ({"chosen_reason": 3}, r"`chosen_reason` must be text, not a number"),
            ({"rejected_reason": ["It is not."]}, r"`rejected_reason` must be text, not a list"),
            ({"rejected_reason": "\ud800"}, r"`rejected_reason` is not valid Unicode"),
        ],
    ),
    "VLFeedback": (
        read_preferences,
        VLFEEDBACK,
        [
            ({"completions": REMOVED}, r"`chosen` is missing: add it"),
            ({"completions": 3}, r"`completions` must be a list, not a number"),
            ({"completions": "A cup."}, r"`completions` must be a list, not text"),
            ({"completions": []}, r"`completions` has 0 distinct rated answers, and a ranking needs 2: drop the row"),
            (
                {"completions": [rated_completion("A cup.")]},
                r"`completions` has 1 distinct rated answers, and a ranking needs 2",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion(" A cup.")]},
                r"`completions` has 1 distinct rated answers",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion("A cat.", "N/A")]},
                r"`completions` has 1 distinct rated answers",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion("A cat.", "nan")]},
                r"`completions` has 1 distinct rated answers",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion("")]},
                r"`completions` has 1 distinct rated answers",
            ),
            (
                {"completions": [rated_completion("A cup."), {"response": "A cat."}]},
                r"`completions` has 1 distinct rated answers",
            ),
            (
                {"completions": ["A cup.", "A cat."]},
                r"`completions\[1\]` must be an object with response and annotations, not text",
            ),
            (
                {"completions": [rated_completion("A cup."), None]},
                r"`completions\[2\]` must be an object with response and annotations, not null",
            ),
            (
                {"completions": [rated_completion(None), rated_completion("A cat.")]},
                r"`completions\[1\].response` must be text, not null",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion(["A cat."])]},
                r"`completions\[2\].response` must be text, not a list",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion("<image>")]},
                r"`completions\[2\].response` contains an image or <image>",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion("\ud800")]},
                r"`completions\[2\].response` is not valid Unicode",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion("A cat.", [4])]},
                r"`completions\[2\].annotations.Helpfulness.Rating` must be a",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion("A cat.", True)]},
                r"Helpfulness.Rating` must be a number or text, not true or",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion("A cat.", annotations=[4])]},
                r"`completions\[2\].annotations` must be an object, not a list",
            ),
            (
                {"completions": [rated_completion("A cup."), rated_completion("A cat.", annotations={"Helpfulness": 4})]},
                r"`completions\[2\].annotations.Helpfulness` must be an object with Rating, not a number",
            ),
            ({"completions": {}}, r"`completions.response` must be a list, not null"),
            ({"completions": {"response": "A cup."}}, r"`completions.response` must be a list, not text"),
            (
                {"completions": {"response": ["a", "b"], "model": ["m"]}},
                r"`completions.model` must be a list with a value for each response",
            ),
            (
                {"completions": {"response": ["a", "b"], "annotations": {"Helpfulness": {"Rating": "4"}}}},
                r"`completions.annotations.Helpfulness.Rating` must be a list with a value for each response, not '4'",
            ),
            ({"completions": {"response": ["a", "b"]}}, r"`completions` has 0 distinct rated answers"),
            ({"prompt": REMOVED}, r"`prompt` is missing: add it"),
            ({"prompt": 3}, r"`prompt` must be text or a list of turns, not a number"),
            ({"img_path": REMOVED}, r"`images` is missing: add it"),
            ({"img_path": 3}, r"`img_path` must be a path or an object with bytes, not 3"),
            ({"img_path": "/etc/passwd"}, r"`img_path` is outside the image folder data"),
        ],
    ),
    "rankings": (
        read_preferences,
        RANKING,
        [
            ({"answers": REMOVED}, r"`answers` is missing: add it"),
            ({"answers": "A cup."}, r"`answers` must be a list, not text"),
            ({"answers": []}, r"`answers` has 0: a ranking needs at least 2, so add some or drop the row"),
            ({"answers": ["A cup."]}, r"`answers` has 1: a ranking needs at least 2"),
            ({"answers": ["A cup.", 3, "A cat."]}, r"`answers\[2\]` must be text, not a number"),
            ({"answers": ["A cup.", None, "A cat."]}, r"`answers\[2\]` must be text, not null"),
            ({"answers": ["A cup.", "", "A cat."]}, r"`answers\[2\]` is empty"),
            ({"answers": ["A cup.", "<image>", "A cat."]}, r"`answers\[2\]` contains an image or <image>"),
            ({"answers": ["A cup.", "A cat.", "A cup. "]}, r"`answers\[1\]` and `answers\[3\]` are the same: drop one of them"),
            ({"ranks": REMOVED}, r"`ranks` is missing: add it, 1 for the best answer, or `ratings`"),
            ({"ranks": None}, r"`ranks` is missing: add it, 1 for the best answer, or `ratings`"),
            ({"ranks": REMOVED, "rank": [1, 2, 3]}, r"`ranks` is missing: rename `rank` to it"),
            ({"ranks": 1}, r"`ranks` must be a list, not a number"),
            ({"ranks": []}, r"`ranks` has 0 values for 3 answers: give one for each answer"),
            ({"ranks": [1, 2]}, r"`ranks` has 2 values for 3 answers: give one for each answer"),
            ({"ranks": [1, 2, 3, 4]}, r"`ranks` has 4 values for 3 answers"),
            ({"ranks": [0, 1, 2]}, r"`ranks\[1\]` must be a whole number from 1 to 1,000,000, not 0"),
            ({"ranks": [1, 2, -1]}, r"`ranks\[3\]` must be a whole number from 1 to 1,000,000, not -1"),
            ({"ranks": [1, 2.0, 3]}, r"`ranks\[2\]` must be a whole number from 1 to 1,000,000, not 2.0"),
            ({"ranks": [1, "2", 3]}, r"`ranks\[2\]` must be a whole number from 1 to 1,000,000, not '2'"),
            ({"ranks": [True, 2, 3]}, r"`ranks\[1\]` must be a whole number from 1 to 1,000,000, not True"),
            ({"ranks": [1, 2, None]}, r"`ranks\[3\]` must be a whole number from 1 to 1,000,000, not None"),
            ({"ranks": [1, 2, 10**30]}, r"`ranks\[3\]` must be a whole number from 1 to 1,000,000, not 1000"),
            ({"ranks": REMOVED, "ratings": [1, 2]}, r"`ratings` has 2 values for 3 answers: give one for each answer"),
            ({"ratings": [1.0, 2.0]}, r"`ratings` has 2 values for 3 answers"),
            ({"ratings": {"a": 1}}, r"`ratings` must be a list, not an object"),
            ({"ranks": REMOVED, "ratings": [1, "2", 3]}, r"`ratings\[2\]` must be a finite number, not '2'"),
            ({"ranks": REMOVED, "ratings": [1, 2, float("nan")]}, r"`ratings\[3\]` must be a finite number, not nan"),
            ({"ranks": REMOVED, "ratings": [1, 2, True]}, r"`ratings\[3\]` must be a finite number, not True"),
            ({"prompt": REMOVED}, r"`prompt` is missing: add it"),
            ({"images": REMOVED}, r"`images` is missing: add it"),
            ({"hallucination": 0.5}, r"`hallucination` must be true or false, not 0.5"),
        ],
    ),
    "LLaVA-RLHF's prompts for PPO": (
        read_examples,
        PPO,
        [
            ({"conversations": []}, r"`conversations` must be a list of turns, not an empty one"),
            ({"conversations": None}, r"`messages` is missing: add it, or `prompt`"),
            ({"conversations": [gpt_turn("A cup.")]}, r"the prompt must end with a user turn"),
            ({"conversations": [human_turn("")]}, r"turn 1 of the prompt is empty"),
            (
                {"conversations": [human_turn("<image>"), 3]},
                r"`conversations\[2\]` must be an object with from and value, not a number",
            ),
            ({"conversations": [human_turn("What is it?")]}, r"the prompt has placeholders for 0 images and the row has 1"),
            ({"image": "000000000001.jpg"}, r"`image` does not exist in data: '000000000001.jpg'"),
        ],
    ),
    "answers to learn": (
        read_examples,
        SFT,
        [
            ({"messages": REMOVED}, r"`messages` is missing: add it, or `prompt`"),
            ({"messages": REMOVED, "mesages": []}, r"`messages` is missing: rename `mesages` to it"),
            ({"messages": "What is it?"}, r"`messages` must be a list of turns, not text"),
            ({"messages": [user_turn("What is it?")]}, r"the row has no answer: add `completion`, or end the conversation with"),
            ({"messages": [assistant_turn("A cup.")]}, r"the prompt must end with a user turn"),
            ({"messages": [user_turn("What is it?"), assistant_turn("")]}, r"`messages\[2\]` is empty"),
            (
                {"messages": [user_turn("What is it?"), assistant_turn("<image>")]},
                r"`messages\[2\]` contains an image or <image>",
            ),
            ({"messages": REMOVED, "prompt": "a"}, r"the row has no answer: add `completion`"),
            ({"messages": REMOVED, "prompt": "a", "completion": ""}, r"`completion` is empty"),
            (
                {"messages": REMOVED, "prompt": "a", "completion": 3},
                r"`completion` must be text or a list of turns, not a number",
            ),
            ({"messages": REMOVED, "prompt": "a", "answer": [1]}, r"`answer\[1\]` must be an object with role and content"),
            (
                {"messages": REMOVED, "prompt": "a", "chosen": "b", "rejected": "c"},
                r"the row has no answer: pairs and prompts cannot be",
            ),
            (
                {"messages": REMOVED, **{k: RANKING[k] for k in ("prompt", "answers", "ranks")}},
                r"no answer: pairs and prompts cannot",
            ),
            ({"messages": REMOVED, "text": "{}"}, r"`text.question` must be text, not null"),
        ],
    ),
}
LINES = [
    ("{bad", r"line 1: not JSON \(Expecting property name enclosed in double quotes at column 2\): correct it"),
    ('{"id": 1', r"line 1: not JSON \("),
    ('{"id": 1} {"id": 2}', r"line 1: not JSON \(Extra data"),
    ('"text"', r"line 1: a row must be an object with fields, not text"),
    ("null", r"line 1: a row must be an object with fields, not null"),
    ("3", r"line 1: a row must be an object with fields, not a number"),
    ("true", r"line 1: a row must be an object with fields, not true or false"),
    ("{}", r"line 1: `images` is missing: add it, .* \(the row has no fields\)"),
    ('{"a": ' + "[" * 100_000, r"line 1: nested too deeply"),
    ('{"id": ' + "9" * 5000 + "}", r"line 1: not JSON \("),
    ("\x00", r"line 1: not JSON \("),
    ("'id': 1", r"line 1: not JSON \("),
]


def apply_change(good, change):
    return {name: value for name, value in {**good, **change}.items() if value is not REMOVED}


def all_cases():
    for group, (read, good, cases) in CASES.items():
        for change, sentence in cases:
            yield group, read, change, json.dumps(apply_change(good, change)), sentence
    for line, sentence in LINES:
        yield "lines that are no rows", read_preferences, line, line, sentence


ALL_CASES = list(all_cases())


def make_data_dir(folder):
    """A folder `data` with a picture, broken ones, and links that lead to a picture beside it."""
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "PNG")
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for path, content in (("a.png", file.getvalue()), ("broken.png", file.getvalue()[:45]), ("empty.png", b"")):
        (data / path).write_bytes(content)
    (folder / "secret.png").write_bytes(file.getvalue())
    (data / "link.png").symlink_to("../secret.png")
    (data / "up").symlink_to("..")
    return data


def error_message(data, read, line):
    """What is said of the row, with the folder's place left out."""
    path = data / "rows.jsonl"
    path.write_text(line)
    try:
        options = {"require_answer": True} if read is read_examples and "caption_type" not in line else {}
        for record in read(str(path), **options):
            for image in record.images:
                open_image(image)
    except InputError as error:
        return str(error).replace(f"{path}", "rows.jsonl").replace(str(data), "data")
    return "(nothing is said)"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return make_data_dir(tmp_path_factory.mktemp("malformed"))


def test_cases_are_many_and_distinct():
    assert len(ALL_CASES) >= 150
    assert len({(group, line) for group, _, _, line, _ in ALL_CASES}) == len(ALL_CASES)


@pytest.mark.parametrize(
    ("group", "read", "change", "line", "sentence"), ALL_CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(ALL_CASES)]
)
def test_malformed_row_error_matches_its_pattern(data, group, read, change, line, sentence):
    said = error_message(data, read, line)
    assert re.search(sentence, said)
    assert "rows.jsonl, line 1" in said and len(said) < 400
    assert said.isprintable()


@pytest.mark.parametrize("good", [TRL, LLAVA, RLHF_V, RLAIF_V, MM_RLHF, VLFEEDBACK, RANKING])
def test_malformed_cases_start_from_valid_rows(data, good):
    (data / "good.jsonl").write_text(json.dumps(good))
    (preference,) = read_preferences(str(data / "good.jsonl"))
    assert (preference.chosen, preference.rejected) == ("A cup.", "A cat.")
    assert len(read_examples(str(data / "good.jsonl"))) == 1


def test_check_continues_after_each_malformed_row(data, capsys):
    (data / "all.jsonl").write_text(
        "\n".join([json.dumps(TRL), *(line for _, read, _, line, _ in ALL_CASES if read is read_preferences)])
    )
    with patch("mmrlhf.commands.check.MAX_ERRORS_SHOWN", 1000):
        assert check(str(data / "all.jsonl")) == 1
    shown = capsys.readouterr().out
    bad = sum(read is read_preferences for _, read, *_ in ALL_CASES)
    assert f" {bad} " in next(line for line in shown.splitlines() if "bad rows" in line)
    assert len(shown.splitlines()) < bad + 20  # a line each


# ---- the document ----------------------------------------------------------------------------------------------------


def describe_change(value, most=70):
    """Of a row, what makes it bad."""
    if isinstance(value, dict):
        gone = [f"no `{name}`" for name, inner in value.items() if inner is REMOVED]
        text = json.dumps({name: inner for name, inner in value.items() if inner is not REMOVED})[1:-1]
        return ", ".join(gone + [markdown_code(text, most)] * bool(text))
    return markdown_code(value, most)


def markdown_code(text, most):
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return f"`{text}`".replace("|", "\\|").replace("\x00", "\\0")


def render_document(data):
    lines = [
        "# What is said of rows that cannot be used",
        "",
        "A row's fault, and the sentence that names it; `mmrlhf data check FILE` finds all of a file. Made by",
        "`python -m tests.datasets.test_data_errors` from the cases that are tested.",
    ]
    of = None
    for group, read, change, line, _ in ALL_CASES:
        if group != of:
            lines += ["", f"## {group[0].upper()}{group[1:]}", "", "| row | sentence |", "|---|---|"]
            of = group
        said = error_message(data, read, line).replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| {describe_change(change)} | {said} |")
    return "\n".join(lines) + "\n"


def test_malformed_document_is_up_to_date(data):
    """But for what other libraries say in brackets, which differs from version to version."""

    def settled(text):
        return re.sub(r"\([^()]*\)", "()", text)

    assert settled(DOCUMENT.read_text(encoding="utf-8")) == settled(render_document(data)), (
        "run python -m tests.datasets.test_data_errors"
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        DOCUMENT.write_text(render_document(make_data_dir(Path(place))), encoding="utf-8")
    print(DOCUMENT, file=sys.stderr)
