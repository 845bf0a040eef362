"""Where the time goes: encoding, sampling, learning, memory, and one PPO step by phases, each with the share of the device's limit it reaches.

    python eval/speed/phases.py --shape llava-1.5-7b|llava-10m|qwen2.5-vl-3b|toy|CHECKPOINT [--prompts 8] [--generations 8] [--tokens 128] [--out DIR]

The named shapes have random weights made on the device; bfloat16 on a GPU, float32 on a CPU. FLOPs are those of the matrix products and the
attention that torch counts while a phase runs once more (LoRA: no weight gradients of the base); the limit is what one large matrix product
reaches here. Writes DIR/SHAPE.json.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.flop_counter import FlopCounterMode

from mmrlhf.config import EngineConfig
from mmrlhf.engine.prefill import max_logp_gap
from mmrlhf.engine.rollout import LocalEngine, prompts_from_examples
from mmrlhf.engine.sampling import SamplingParams
from mmrlhf.engine.scoring import hidden_states, in_micro_batches, logps, values
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.heads import scalar_head
from mmrlhf.models.images import open_image
from mmrlhf.models.loading import load, wrap
from mmrlhf.models.vlm import VLM
from mmrlhf.records import Example, ImageSource, Message
from mmrlhf.rewards.reward_model import AnswerGroup, RewardModel
from mmrlhf.training import advantages, losses

LORA = (16, 32.0, 0, "q_proj,k_proj,v_proj,o_proj")


def build_tokenizer(*extra_tokens: str, **named_tokens: str) -> Any:
    """A byte-level tokenizer: what it knows does not matter here, only that its special tokens are right."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special_tokens = ["<unk>", "<pad>", "<s>", "</s>", *extra_tokens]
    tokenizer.train_from_iterator(
        ["Yes No"],
        trainers.BpeTrainer(vocab_size=400, special_tokens=special_tokens, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        extra_special_tokens=named_tokens,
    )  # fmt: skip


def chat_template(image: str) -> str:
    return (
        "<s>{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + "{% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )


LLAVA_SHAPES = {
    "llava-1.5-7b": (336, (1024, 4096, 24, 16), (4096, 11008, 32, 32, 32064)),
    "llava-10m": (336, (192, 768, 6, 6), (256, 704, 6, 8, 4096)),
    "toy": (56, (32, 64, 2, 2), (64, 128, 2, 4, 512)),
}
"""Pixels a side; width, inner width, layers and heads of the tower, and of the language model with its vocabulary."""


def build_llava(shape: str) -> tuple[Any, Any]:
    """LLaVA-1.5-7B: CLIP-L/14 at 336 pixels, Vicuna-7B, 576 image tokens; or smaller ones of its make."""
    tokenizer = build_tokenizer("<image>", image_token="<image>")
    image_size, tower_sizes, language_sizes = LLAVA_SHAPES[shape]
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size={"height": image_size, "width": image_size}),
        tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=chat_template("<image>\n"),
    )  # fmt: skip
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    tower, language = (dict(zip(names, sizes, strict=False)) for sizes in (tower_sizes, language_sizes))
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=image_size, patch_size=14, **tower),
        text_config=transformers.LlamaConfig(max_position_embeddings=4096, pad_token_id=1, bos_token_id=2, eos_token_id=3, **language),
        image_token_index=tokenizer.image_token_id, image_seq_length=(image_size // 14) ** 2,
    )  # fmt: skip
    return processor, transformers.LlavaForConditionalGeneration(config)


def build_qwen() -> tuple[Any, Any]:
    """Qwen2.5-VL-3B: about 400 image tokens for a picture of 560 x 560."""
    names = {
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
    }
    tokenizer = build_tokenizer(*names.values(), **{f"{k}_token": v for k, v in names.items()})
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=14, merge_size=2), tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(), chat_template=chat_template("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    text = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}  # fmt: skip
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
             "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112}  # fmt: skip
    ids = {f"{k}_token_id": tokenizer.convert_tokens_to_ids(v) for k, v in names.items()}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=True, **ids)
    return processor, transformers.Qwen2_5_VLForConditionalGeneration(config)


def build_vlm(shape: str, device: str, dtype: torch.dtype) -> VLM:
    if Path(shape).is_dir():
        return load(shape, str(dtype).removeprefix("torch."), device)
    previous_dtype = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            processor, model = build_qwen() if shape.startswith("qwen") else build_llava(shape)
    finally:
        torch.set_default_dtype(previous_dtype)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 1, 3
    return wrap(model.to(device), processor, shape, EngineConfig(micro_batch_tokens=65536))


def noise_examples(count: int, image_size: int, first: int = 0) -> list[Example]:
    examples = []
    for i in range(first, first + count):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (image_size, image_size, 3), dtype=np.uint8)).save(
            file, "JPEG", quality=90
        )
        examples.append(Example(f"row-{i}", (ImageSource(data=file.getvalue()),), (Message("user", "Describe the image."),)))
    return examples


def time_call(work: Callable[[], Any]) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def count_flops(work: Callable[[], Any]) -> float:
    """FLOPs of work, run once more."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def peak_flops_per_s(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product."""
    side = 8192 if device == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = min(time_call(lambda: a @ a)[0] for _ in range(10))
    return 2 * side**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="toy", help="llava-1.5-7b, llava-10m, qwen2.5-vl-3b, toy, or a checkpoint directory")
    for name, default in (("prompts", 8), ("generations", 8), ("tokens", 128), ("images", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path())
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    image_size = {"qwen2.5-vl-3b": 560, "toy": 56}.get(args.shape, 336)
    vlm, peak_flops = build_vlm(args.shape, device, dtype), peak_flops_per_s(device, dtype)
    results: dict[str, Any] = {
        "shape": args.shape, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "dtype": str(dtype),
        "torch": torch.__version__, "transformers": transformers.__version__, "sizes": {k: v for k, v in vars(args).items() if k != "out"},
        "matmul_tflops": peak_flops / 1e12,
    }  # fmt: skip

    # Encoding, from files to features, and the tower's share of the limit
    image_rows = [(e.images[0],) for e in noise_examples(args.images + 8, image_size)]
    vlm.encoder.get_features(image_rows[:8])
    seconds, _ = time_call(lambda: vlm.encoder.get_features(image_rows[8:]))
    prepared = [vlm.encoder._preprocess(vlm.encoder._key(s, 1), (s, 1)) for (s,) in image_rows[8:]]
    tower_seconds, _ = time_call(lambda: vlm.encoder._run_tower(prepared))
    flops = count_flops(lambda: vlm.encoder._run_tower(prepared))
    results["encode"] = {
        "images_per_s": args.images / seconds,
        "tower_images_per_s": args.images / tower_seconds,
        "tower_of_limit": flops / tower_seconds / peak_flops,
    }

    # The two paths on one prompt, in nats
    results["difference"] = max_logp_gap(vlm, vlm.build_prompts([(e.prompt, e.images) for e in noise_examples(1, image_size)])[0])

    # Sampling, against generate on the same prompts
    adapters = Adapters(vlm)
    adapters.add("policy", *LORA)
    examples, sampling_params = (
        noise_examples(args.prompts, image_size, 1000),
        SamplingParams(args.tokens, min_tokens=args.tokens),
    )
    policy = Role(adapters, "policy")
    engine = LocalEngine(policy)
    num_tokens = args.prompts * args.generations * args.tokens

    def sample_rollout() -> Any:
        return engine.sample(prompts_from_examples(vlm, examples), args.generations, sampling_params)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    sample_rollout()
    rollout_seconds, completions = time_call(sample_rollout)

    def hf_generate() -> Any:
        texts = [vlm.apply_chat_template(e.prompt, 1, generation_prompt=True) for e in examples]
        batch, _ = vlm.encoder.process(texts, [[open_image(e.images[0])] for e in examples])
        batch = {k: v.to(vlm.device, vlm.model.dtype if v.is_floating_point() else None) for k, v in batch.items()}
        options = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens, "do_sample": True, "top_k": 0}
        bad_words_ids = [
            [i] for i in vlm.suppressed_tokens.tolist() if i < 400
        ]  # the placeholders; rows beyond the tokenizer are harmless to generate
        with policy.active(), torch.no_grad():
            return vlm.model.generate(**batch, num_return_sequences=args.generations, bad_words_ids=bad_words_ids, **options)

    hf_generate()
    generate_seconds, _ = time_call(hf_generate)
    results["rollout"] = {
        "tokens_per_s": num_tokens / rollout_seconds,
        "generate_tokens_per_s": num_tokens / generate_seconds,
        "times_generate": generate_seconds / rollout_seconds,
    }

    # Learning, with what one LoRA policy takes at its peak
    def backward_pass(role: Role) -> None:
        vlm.model.zero_grad(set_to_none=True)
        for indices, hidden in hidden_states(role, completions):
            (-logps(role, completions, hidden, indices).sum() / completions.mask_NT.sum()).backward()

    backward_pass(policy)
    update_seconds, _ = time_call(lambda: backward_pass(policy))
    flops = count_flops(lambda: backward_pass(policy))
    results["update"] = {"tokens_per_s": num_tokens / update_seconds, "mfu": flops / update_seconds / peak_flops}
    one_policy_bytes = torch.cuda.max_memory_allocated() if device == "cuda" else 0

    # Four roles: one PPO step by phases
    for name in ("value", "reward"):
        adapters.add(name, *LORA)
    value = Role(adapters, "value", scalar_head(torch.zeros(vlm.hidden_size, device=device)))
    reward = RewardModel(Role(adapters, "reward", scalar_head(torch.randn(vlm.hidden_size, device=device))), "none", "before")
    reference, num_generations = Role(adapters, None), args.generations
    parameters = policy.parameters() + value.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    phases: dict[str, dict[str, float]] = {}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for is_warmup in (True, False):
        examples = noise_examples(args.prompts, image_size, 2000 + 1000 * is_warmup)

        def phase(name: str, work: Callable[[], Any], count_again: bool = not is_warmup) -> Any:
            seconds, result = time_call(work)
            flops = count_flops(work) if count_again else 0.0
            phases[name] = {"seconds": seconds, "tflop": flops / 1e12, "of_limit": flops / seconds / peak_flops}
            return result

        sources = [(e.images[0], 1) for e in examples]
        phase(
            "encode",
            lambda sources=sources: vlm.encoder.encode({vlm.encoder._key(s, n): (s, n) for s, n in sources}),
            count_again=False,
        )
        completions = phase("rollout", sample_rollout)
        groups = [
            AnswerGroup(e.images, e.prompt, tuple(completions.texts[i * num_generations : (i + 1) * num_generations]))
            for i, e in enumerate(examples)
        ]
        phase("reward", lambda groups=groups: reward.score(groups))
        reference_logps = phase("reference", lambda completions=completions: in_micro_batches(logps, reference, completions))
        old_values = phase("values", lambda completions=completions: in_micro_batches(values, value, completions))
        old_logps, mask = completions.logps_NT, completions.mask_NT.float()
        advantages_NT, returns = advantages.gae(-0.05 * (old_logps - reference_logps), old_values, mask, 1.0, 0.95)
        tokens = mask.sum()

        def policy_gradients(
            completions: Any = completions,
            old_logps: Any = old_logps,
            mask: Any = mask,
            advantages_NT: Any = advantages_NT,
            tokens: Any = tokens,
        ) -> None:
            for indices, hidden in hidden_states(policy, completions):
                loss, _ = losses.ppo_policy(
                    logps(policy, completions, hidden, indices),
                    old_logps[indices],
                    advantages_NT[indices],
                    mask[indices],
                    0.2,
                    tokens,
                )
                loss.backward()

        def value_gradients(
            completions: Any = completions,
            old_logps: Any = old_values,
            mask: Any = mask,
            returns: Any = returns,
            tokens: Any = tokens,
        ) -> None:
            for indices, hidden in hidden_states(value, completions):
                loss, _ = losses.ppo_value(
                    values(value, completions, hidden, indices), old_logps[indices], returns[indices], mask[indices], 0.2, tokens
                )
                loss.backward()

        phase("policy update", policy_gradients)
        phase("value update", value_gradients)
        phase("optimiser", optimizer.step, count_again=False)
        optimizer.zero_grad(set_to_none=True)
    total_seconds = sum(p["seconds"] for p in phases.values())
    flops = sum(p["tflop"] for p in phases.values())
    results["ppo_step"] = phases | {
        "whole": {"seconds": total_seconds, "tflop": flops, "of_limit": 1e12 * flops / total_seconds / peak_flops}
    }
    if device == "cuda":
        four_roles_bytes = torch.cuda.max_memory_allocated()
        results["peak_gib"] = {
            "one_policy": one_policy_bytes / 2**30,
            "four_roles": four_roles_bytes / 2**30,
            "ratio": four_roles_bytes / one_policy_bytes,
        }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{Path(args.shape).name}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
