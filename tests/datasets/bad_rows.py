"""Bad rows of other formats: changes to good rows, with patterns that their errors must match."""

import json

from tests.helpers.rows import REMOVED, assistant_turn, gpt_turn, human_turn, user_turn


def rated_completion(response, rating="4", **fields):
    """Build one of VLFeedback's completions."""
    return {"response": response, "annotations": {"Helpfulness": {"Rating": rating}}, **fields}


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
    "id": "p",
    "image": "a.png",
    "prompt": "What is it?",
    "chosen": "A cup.",
    "rejected": "A cat.",
    "chosen_reason": "It is.",
    "rejected_reason": "It is not.",
    "is_tie": False,
    "ls_factor": 1.0,
}
VLFEEDBACK = {
    "id": "p",
    "prompt": "What is it?",
    "completions": [rated_completion("A cup."), rated_completion("A cat.", "2")],
    "img_path": "a.png",
}
RANKING = {"id": "p", "images": ["a.png"], "prompt": "What is it?", "answers": ["A cup.", "A mug.", "A cat."], "ranks": [1, 1, 2]}
SFT = {"id": "p", "images": ["a.png"], "messages": [user_turn("What is it?"), assistant_turn("A cup.")]}


def changed_text(**change):
    """Return a change to fields in RLHF-V's `text`."""
    text_fields = {**RLHF_V["text"], **change}
    return {"text": {name: value for name, value in text_fields.items() if value is not REMOVED}}


LLAVA_CASES = [
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
    ({"conversations": [{"from": "tool", "value": "a"}]}, r"`conversations\[1\].from` must be one of system, human, gpt, user,"),
    ({"conversations": [{"from": "human"}]}, r"`conversations\[1\].value` must be text, not null"),
    ({"conversations": [human_turn("<image>Is it <image>?")]}, r"the prompt has placeholders for 2 images and the row has 1"),
    ({"image": REMOVED}, r"the prompt has placeholders for 1 image and the row has 0"),
    ({"image": {"path": "b.png"}}, r"`image` does not exist in data: 'b.png'"),
    ({"hallucination": 1}, r"`hallucination` must be true or false, not 1"),
]

RLHF_V_CASES = [
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
]

RLAIF_V_CASES = [
    ({"question": REMOVED}, r"`prompt` is missing: add it \(the row has idx, image, chosen, rejected, origin_dataset\)"),
    ({"question": REMOVED, "qestion": "What is it?"}, r"`question` is missing: rename `qestion` to it"),
    ({"question": 3}, r"`question` must be text or a list of turns, not a number"),
    ({"question": ""}, r"turn 1 of the prompt is empty"),
    ({"chosen": REMOVED}, r"`chosen` is missing: add it"),
    ({"rejected": 0}, r"`rejected` must be text or a list of turns, not a number"),
    ({"rejected": "A cup."}, r"the chosen and the rejected answer are the same"),
    ({"idx": [1]}, r"`idx` must be text or a whole number, not a list"),
    ({"image": 3}, r"`image` must be a path or an object with bytes, not 3"),
]

MM_RLHF_CASES = [
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
    ({"ls_factor": "1.0"}, r"`ls_factor` must be a number from -1,000,000,000 to 1,000,000,000, not '1.0'"),
    ({"ls_factor": False}, r"`ls_factor` must be a number from -1,000,000,000 to 1,000,000,000, not False"),
    ({"ls_factor": float("-inf")}, r"`ls_factor` must be a number from -1,000,000,000 to 1,000,000,000, not -inf"),
    ({"ls_factor": {}}, r"`ls_factor` must be a number from -1,000,000,000 to 1,000,000,000, not \{\}"),
    ({"chosen_reason": 3}, r"`chosen_reason` must be text, not a number"),
    ({"rejected_reason": ["It is not."]}, r"`rejected_reason` must be text, not a list"),
    ({"rejected_reason": "\ud800"}, r"`rejected_reason` is not valid Unicode"),
]

VLFEEDBACK_CASES = [
    ({"completions": REMOVED}, r"`chosen` is missing: add it"),
    ({"completions": 3}, r"`completions` must be a list, not a number"),
    ({"completions": "A cup."}, r"`completions` must be a list, not text"),
    ({"completions": []}, r"`completions` has 0 distinct rated answers, and a ranking needs 2: drop the row"),
    ({"completions": [rated_completion("A cup.")]}, r"`completions` has 1 distinct rated answers, and a ranking needs 2"),
    ({"completions": [rated_completion("A cup."), rated_completion(" A cup.")]}, r"`completions` has 1 distinct rated answers"),
    (
        {"completions": [rated_completion("A cup."), rated_completion("A cup.\u200d")]},
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
    ({"completions": [rated_completion("A cup."), rated_completion("")]}, r"`completions` has 1 distinct rated answers"),
    ({"completions": [rated_completion("A cup."), {"response": "A cat."}]}, r"`completions` has 1 distinct rated answers"),
    ({"completions": ["A cup.", "A cat."]}, r"`completions\[1\]` must be an object with response and annotations, not text"),
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
    ({"completions": {"response": ["a"] * 65}}, r"`completions.response` has 65 entries, and a row may compare 64"),
    ({"completions": {"response": ["a", "b"]}}, r"`completions` has 0 distinct rated answers"),
    ({"prompt": REMOVED}, r"`prompt` is missing: add it"),
    ({"prompt": 3}, r"`prompt` must be text or a list of turns, not a number"),
    ({"img_path": REMOVED}, r"`images` is missing: add it"),
    ({"img_path": 3}, r"`img_path` must be a path or an object with bytes, not 3"),
    ({"img_path": "/etc/passwd"}, r"`img_path` is outside the image folder data"),
]

RANKING_CASES = [
    ({"answers": [str(n) for n in range(65)]}, r"`answers` has 65 entries, and a row may compare 64 answers: split it"),
    ({"answers": REMOVED}, r"`answers` is missing: add it"),
    ({"answers": "A cup."}, r"`answers` must be a list, not text"),
    ({"answers": []}, r"`answers` has 0 entries; a ranking needs at least 2, so add some or drop the row"),
    ({"answers": ["A cup."]}, r"`answers` has 1 entry; a ranking needs at least 2"),
    ({"answers": ["A cup.", 3, "A cat."]}, r"`answers\[2\]` must be text, not a number"),
    ({"answers": ["A cup.", None, "A cat."]}, r"`answers\[2\]` must be text, not null"),
    ({"answers": ["A cup.", "", "A cat."]}, r"`answers\[2\]` is empty"),
    ({"answers": ["A cup.", "<image>", "A cat."]}, r"`answers\[2\]` contains an image or <image>"),
    ({"answers": ["A cup.", "A cat.", "A cup. "]}, r"`answers\[1\]` and `answers\[3\]` are the same: drop one of them"),
    ({"answers": ["A cup.", "A cat.", "A cup\u00ad."]}, r"`answers\[1\]` and `answers\[3\]` are the same: drop one of them"),
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
    (
        {"ranks": REMOVED, "ratings": [1, "2", 3]},
        r"`ratings\[2\]` must be a number from -1,000,000,000 to 1,000,000,000, not '2'",
    ),
    (
        {"ranks": REMOVED, "ratings": [1, 2, float("nan")]},
        r"`ratings\[3\]` must be a number from -1,000,000,000 to 1,000,000,000, not nan",
    ),
    ({"ranks": REMOVED, "ratings": [1e308, -1e308, 0]}, r"`ratings\[1\]` must be a number from .* not 1e\+308"),
    (
        {"ranks": REMOVED, "ratings": [1, 2, True]},
        r"`ratings\[3\]` must be a number from -1,000,000,000 to 1,000,000,000, not True",
    ),
    ({"prompt": REMOVED}, r"`prompt` is missing: add it"),
    ({"images": REMOVED}, r"`images` is missing: add it"),
    ({"hallucination": 0.5}, r"`hallucination` must be true or false, not 0.5"),
]

PPO_CASES = [
    ({"conversations": []}, r"`conversations` must be a list of turns, not an empty one"),
    ({"conversations": None}, r"`messages` is missing: add it, or `prompt`"),
    ({"conversations": [gpt_turn("A cup.")]}, r"the prompt must end with a user turn"),
    ({"conversations": [human_turn("")]}, r"turn 1 of the prompt is empty"),
    ({"conversations": [human_turn("<image>"), 3]}, r"`conversations\[2\]` must be an object with from and value, not a number"),
    ({"conversations": [human_turn("<image>Is it <image>?")]}, r"the prompt has placeholders for 2 images and the row has 1"),
    ({"length_bonus": 10**400}, r"`length_bonus` must be a finite number, not 1000"),
    ({"id": " "}, r"`id` is empty: fill it in or remove it"),
    ({"image": "000000000001.jpg"}, r"`image` does not exist in data: '000000000001.jpg'"),
]

SFT_CASES = [
    ({"messages": REMOVED}, r"`messages` is missing: add it, or `prompt`"),
    ({"messages": REMOVED, "mesages": []}, r"`messages` is missing: rename `mesages` to it"),
    ({"messages": "What is it?"}, r"`messages` must be a list of turns, not text"),
    ({"messages": [user_turn("What is it?")]}, r"the row has no answer: add `completion`, or end the conversation with"),
    ({"messages": [assistant_turn("A cup.")]}, r"the prompt must end with a user turn"),
    ({"messages": [user_turn("What is it?"), assistant_turn("")]}, r"`messages\[2\]` is empty"),
    ({"messages": [user_turn("What is it?"), assistant_turn("<image>")]}, r"`messages\[2\]` contains an image or <image>"),
    ({"messages": REMOVED, "prompt": "a"}, r"the row has no answer: add `completion`"),
    ({"messages": REMOVED, "prompt": "a", "completion": ""}, r"`completion` is empty"),
    ({"messages": REMOVED, "prompt": "a", "completion": 3}, r"`completion` must be text or a list of turns, not a number"),
    ({"messages": REMOVED, "prompt": "a", "answer": [1]}, r"`answer\[1\]` must be an object with role and content"),
    (
        {"messages": REMOVED, "prompt": "a", "chosen": "b", "rejected": "c"},
        r"compares answers and has no SFT target: `mmrlhf data convert --to sft` takes",
    ),
    ({"messages": REMOVED, **{k: RANKING[k] for k in ("prompt", "answers", "ranks")}}, r"compares answers and has no SFT target"),
    ({"messages": REMOVED, "text": "{}"}, r"`text.question` must be text, not null"),
]

BAD_LINES = [
    ("{bad", r"line 1: not JSON \(Expecting property name enclosed in double quotes at column 2\): correct it"),
    ('{"id": 1', r"line 1: not JSON \("),
    ('{"id": 1} {"id": 2}', r"line 1: not JSON \(Extra data"),
    ('{"prompt": "a", "id": 1, "prompt": "b"}', r"line 1: `prompt` is given twice in an object: keep one of them"),
    ('{"messages": [{"role": "user", "role": "assistant"}]}', r"line 1: `role` is given twice in an object"),
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
