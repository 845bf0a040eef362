"""Answer a prompt with an image greedily in vLLM, and print tokens and their log-probs as JSON.

It runs in vLLM's own environment: `python vllm_greedy.py '{"model": ..., "image": ..., ...}'`.
"""

import json
import os
import sys

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_CI_ENV": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    from PIL import Image
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    job = json.loads(sys.argv[1])
    settings = {"dtype": "float32", "enforce_eager": True, "max_model_len": 256, "max_num_seqs": 2}
    llm = LLM(model=job["model"], enable_lora=True, max_lora_rank=8, logprobs_mode="processed_logprobs", **settings)
    params = SamplingParams(temperature=0, max_tokens=8, logprobs=0, logit_bias={job["banned"]: -100.0})
    prompt = {"prompt_token_ids": job["token_ids"], "multi_modal_data": {"image": Image.open(job["image"])}}
    results = []
    for adapter in job["adapters"]:
        request = LoRARequest("policy", 1, adapter) if adapter else None
        (output,) = llm.generate([prompt], params, lora_request=request, use_tqdm=False)
        answer = output.outputs[0]
        logps = [logprobs[token].logprob for token, logprobs in zip(answer.token_ids, answer.logprobs, strict=True)]
        results.append({"token_ids": list(answer.token_ids), "logps": logps})
    print("RESULT", json.dumps(results))


if __name__ == "__main__":
    main()
