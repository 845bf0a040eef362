"""Run vLLM in a process of its own, and print what the tests read as JSON.

python -m tests.with_vllm.in_process compare FAMILY FOLDER
python -m tests.with_vllm.in_process train ESTIMATOR SEEDS STEPS FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mmrlhf.engine.vllm_local import VLLMEngine
from tests.with_vllm import checks


def compare(family: str, folder: Path) -> dict[str, float]:
    """Return the rows of `checks.compare` for a family."""
    policy, examples = checks.prepare(family, folder)
    engine = VLLMEngine.start(policy.vlm, "policy", max_length=512, lora_rank=8, gpu_memory_utilization=0.3)
    rows = checks.compare(engine, policy, examples, folder)
    engine.close()
    return rows


if __name__ == "__main__":
    name, *arguments, output = sys.argv[1:]
    if name == "compare":
        result: object = compare(arguments[0], Path(output))
    else:
        result = checks.train("vllm", arguments[0], int(arguments[1]), int(arguments[2]), Path(output))
    print("RESULT " + json.dumps(result))
