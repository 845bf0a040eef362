"""The claims page: every claim of the ledger's latest answers, escaped, in one file."""

from __future__ import annotations

import io
import json

from PIL import Image

from mmrlhf.records import ImageSource
from mmrlhf.report import write_claims_page


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (400, 400), (200, 30, 30)).save(buffer, "PNG")
    return buffer.getvalue()


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
    page_path = write_claims_page(tmp_path, {"r1": ImageSource(data=png_bytes())})
    source = page_path.read_text(encoding="utf-8")
    assert "<script" not in source and "<i>" not in source and "<b>cat" not in source
    assert "absent: &#34;cat&#34; &amp; &lt;script&gt;" in source
    assert "object: dog (annotator)" in source and "open_clip: by +0.3" in source
    assert source.count("<article>") == 1 and source.count("step 2</h4>") == 1
    assert '<del><span class="hidden">false: </span>cat</del>' in source
    assert "hallucination -1.00" in source and source.count("data:image/png;base64,") == 1
    assert "http" not in source.replace("http-equiv", "")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["claims.html", "ledger.jsonl"]


def test_write_claims_page_without_verified_claims_writes_nothing(tmp_path):
    assert write_claims_page(tmp_path) is None
    (tmp_path / "ledger.jsonl").write_text(json.dumps({"step": 1, "id": "r1", "answer": "", "terms": {}}) + "\n")
    assert write_claims_page(tmp_path) is None and not (tmp_path / "claims.html").exists()
