"""The claims page: every claim of the ledger's latest answers, escaped, in one file."""

from __future__ import annotations

import base64
import io
import json

from PIL import Image

from mmrlhf.cli.closing import print_closing
from mmrlhf.config import PPOConfig
from mmrlhf.datasets.image_fields import parse_images, row_context
from mmrlhf.files.rows import Row
from mmrlhf.records import ImageSource, Message
from mmrlhf.report import claims as claims_page
from mmrlhf.report.claims import write_claims_page
from mmrlhf.rewards.ledger import RewardBreakdown, ledger_rows
from mmrlhf.rewards.types import Sample


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 400), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def no_images(ids):
    return {}


def claim_row(verdict, claim, **fields):
    return {
        "kind": "object",
        "claim": claim,
        "start": 0,
        "end": 5,
        "by": "facts",
        "verdict": verdict,
        "probability": 0.25,
        "evidence": "",
        **fields,
    }


def test_write_claims_page_shows_every_claim_with_its_evidence(tmp_path):
    claims = [
        claim_row("contradicted", "a <b>cat</b>", start=2, end=5, evidence='absent: "cat" & <script>'),
        claim_row("supported", "a dog", start=10, end=13, evidence="object: dog (annotator)", probability=None),
        claim_row("unknown", "a cow", by="clip", evidence="open_clip: by +0.3"),
    ]
    answer = "A cat and dog <i>"
    row = {"id": "r1", "answer": answer, "terms": {"hallucination": -1.0}, "images": ["gone.png"], "claims": claims}
    rows = [{"step": 0, "id": "r0"}, row | {"step": 1}, row | {"step": 2}]
    (tmp_path / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page_path = write_claims_page(tmp_path, lambda ids: {id_: ImageSource(data=png_bytes()) for id_ in ids})
    source = page_path.read_text(encoding="utf-8")
    assert "<script" not in source and "<i>" not in source and "<b>cat" not in source
    assert "absent: &#34;cat&#34; &amp; &lt;script&gt;" in source
    assert "object: dog (annotator)" in source and "open_clip: by +0.3" in source
    assert source.count("<article>") == 1 and source.count("step 2</h4>") == 1
    assert '<del><span class="hidden">false: </span>cat</del>' in source
    assert "hallucination -1.00" in source and source.count("data:image/jpeg;base64,") == 1
    assert "http" not in source.replace("http-equiv", "")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["claims.html", "ledger.jsonl"]


def test_write_claims_page_shows_marks_that_would_act_on_other_text(tmp_path):
    claims = [claim_row("contradicted", "a \u202ecat", start=2, end=5, evidence="\x1b[31mabsent")]
    row = {"step": 1, "id": "r\u20661", "question": "What?\u202e", "answer": "A cat\x07.", "terms": {}, "claims": claims}
    (tmp_path / "ledger.jsonl").write_text(json.dumps(row) + "\n")
    source = write_claims_page(tmp_path, no_images).read_text(encoding="utf-8")
    assert not set(source) & set("\u202e\u2066\x1b\x07")
    for shown in ("a \ufffdcat", "\u241b[31mabsent", "r\ufffd1", "What?\ufffd", "\u2407."):
        assert shown in source


def ledger_line(step, id_, verdicts, total=0.0, **fields):
    claims = [claim_row(verdict, "a dog") for verdict in verdicts]
    row = {"step": step, "id": id_, "answer": f"Answer {step} to {id_}.", "terms": {}, "total": total, "claims": claims}
    return json.dumps(row | fields) + "\n"


def test_write_claims_page_shows_the_worst_of_the_latest_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(claims_page, "MAX_ANSWERS", 3)
    lines = [
        ledger_line(1, "a", ["contradicted", "contradicted"]),
        ledger_line(1, "b", ["contradicted"], total=-1.0),
        ledger_line(2, "c", ["contradicted"], total=2.0),
        ledger_line(3, "d", ["supported"], total=-9.0),
        ledger_line(3, "e", ["unknown"]),
    ]
    (tmp_path / "ledger.jsonl").write_text("".join(lines))
    source = write_claims_page(tmp_path, no_images).read_text(encoding="utf-8")
    positions = [source.find(f"r {step} to {id_}.") for step, id_ in ((1, "a"), (1, "b"), (2, "c"))]
    assert -1 not in positions and positions == sorted(positions) and "to d." not in source and "to e." not in source
    assert "supported: " not in source  # none of the three has a supported claim
    (tmp_path / "ledger.jsonl").write_text(ledger_line(1, "a", ["supported", "contradicted", "supported"]))
    folded = write_claims_page(tmp_path, no_images).read_text(encoding="utf-8").partition("<details>")[2]
    assert "2 supported: a dog, a dog</summary>" in folded and "contradicted" not in folded
    assert "The 3 answers with the most contradicted claims, worst first, among 5 of steps 1 to 3." in source


def test_write_claims_page_shows_image_files_and_questions_of_a_ledger(tmp_path):
    """The paths are those that `ledger_rows` writes for images that come from a data file's row."""
    (tmp_path / "a.png").write_bytes(png_bytes())
    images = parse_images(Row("rows.jsonl, line 3", 3, {"image": "a.png"}), row_context("rows.jsonl", str(tmp_path)))
    prompt = (Message("user", "What is <here>?"), Message("assistant", "A"))
    sample = Sample("r1", images, prompt, "A dog.")
    (ledger_row,) = ledger_rows([sample], [RewardBreakdown({}, {}, {}, {})], [0.0], [[claim_row("supported", "a dog")]])
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"step": 1, **ledger_row}) + "\n")
    source = write_claims_page(tmp_path, no_images).read_text(encoding="utf-8")
    assert source.count("data:image/jpeg;base64,") == 1 and "<b>What is &lt;here&gt;?</b>" in source


def test_write_claims_page_without_verified_claims_writes_nothing(tmp_path):
    assert write_claims_page(tmp_path, no_images) is None
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"step": 1, "id": "r1", "answer": "", "terms": {}}) + "\n")
    assert write_claims_page(tmp_path, no_images) is None and not (tmp_path / "claims.html").exists()


def test_the_page_of_a_run_shows_images_that_its_rows_embed(tmp_path):
    data = tmp_path / "rows.jsonl"
    image = f"data:image/png;base64,{base64.b64encode(png_bytes()).decode()}"
    data.write_text("".join(json.dumps({"id": id_, "image": image, "prompt": "What?"}) + "\n" for id_ in "ab"))
    (tmp_path / "ledger.jsonl").write_text(ledger_line(1, "b", ["contradicted"], images=["b"]))
    config = PPOConfig(model_name_or_path="m", dataset_name=str(data), output_dir=str(tmp_path), reward_terms="hallucination=-1")
    print_closing("ppo", config)
    assert (tmp_path / "claims.html").read_text(encoding="utf-8").count("data:image/jpeg;base64,") == 1
    data.unlink()
    print_closing("ppo", config)
    assert "data:image/jpeg" not in (tmp_path / "claims.html").read_text(encoding="utf-8")
