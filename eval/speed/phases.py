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

from mmrlhf import losses
from mmrlhf.config import EngineConfig
from mmrlhf.images import open_image
from mmrlhf.loading import load, wrap
from mmrlhf.prefix import difference
from mmrlhf.records import Example, ImageSource, Message
from mmrlhf.rewards import Group, RewardModel
from mmrlhf.roles import Adapters, Role, scalar_head
from mmrlhf.rollout import answer, hidden_states, logps, over_all, values
from mmrlhf.sampling import Sampling
from mmrlhf.vlm import VLM

LORA = (16, 32.0, 0, "q_proj,k_proj,v_proj,o_proj")


def words(*special: str, **named: str) -> Any:
    """A byte-level tokenizer: what it knows does not matter here, only that its special tokens are right."""
    found = Tokenizer(models.BPE(unk_token="<unk>"))
    found.pre_tokenizer, found.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    first = ["<unk>", "<pad>", "<s>", "</s>", *special]
    found.train_from_iterator(
        ["Yes No"],
        trainers.BpeTrainer(vocab_size=400, special_tokens=first, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=found, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        extra_special_tokens=named,
    )  # fmt: skip


def template(image: str) -> str:
    return (
        "<s>{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        + image
        + "{% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% if m['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )


LLAVAS = {
    "llava-1.5-7b": (336, (1024, 4096, 24, 16), (4096, 11008, 32, 32, 32064)),
    "llava-10m": (336, (192, 768, 6, 6), (256, 704, 6, 8, 4096)),
    "toy": (56, (32, 64, 2, 2), (64, 128, 2, 4, 512)),
}
"""Pixels a side; width, inner width, layers and heads of the tower, and of the language model with its vocabulary."""


def llava(shape: str) -> tuple[Any, Any]:
    """LLaVA-1.5-7B: CLIP-L/14 at 336 pixels, Vicuna-7B, 576 image tokens; or smaller ones of its make."""
    tokens = words("<image>", image_token="<image>")
    side, tower_sizes, language_sizes = LLAVAS[shape]
    processor = transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=tokens, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template("<image>\n"),
    )  # fmt: skip
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    tower, language = (dict(zip(names, sizes, strict=False)) for sizes in (tower_sizes, language_sizes))
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=side, patch_size=14, **tower),
        text_config=transformers.LlamaConfig(max_position_embeddings=4096, pad_token_id=1, bos_token_id=2, eos_token_id=3, **language),
        image_token_index=tokens.image_token_id, image_seq_length=(side // 14) ** 2,
    )  # fmt: skip
    return processor, transformers.LlavaForConditionalGeneration(config)


def qwen() -> tuple[Any, Any]:
    """Qwen2.5-VL-3B: about 400 image tokens for a picture of 560 x 560."""
    names = {
        "vision_start": "<|vision_start|>",
        "vision_end": "<|vision_end|>",
        "image": "<|image_pad|>",
        "video": "<|video_pad|>",
    }
    tokens = words(*names.values(), **{f"{k}_token": v for k, v in names.items()})
    processor = transformers.Qwen2_5_VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(patch_size=14, merge_size=2), tokenizer=tokens,
        video_processor=transformers.Qwen2VLVideoProcessor(), chat_template=template("<|vision_start|><|image_pad|><|vision_end|>"),
    )  # fmt: skip
    text = {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
            "num_key_value_heads": 2, "max_position_embeddings": 32768, "tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}}  # fmt: skip
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 2048,
             "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112}  # fmt: skip
    ids = {f"{k}_token_id": tokens.convert_tokens_to_ids(v) for k, v in names.items()}
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=tower, tie_word_embeddings=True, **ids)
    return processor, transformers.Qwen2_5_VLForConditionalGeneration(config)


def build(shape: str, device: str, dtype: torch.dtype) -> VLM:
    if Path(shape).is_dir():
        return load(shape, str(dtype).removeprefix("torch."), device)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            processor, model = qwen() if shape.startswith("qwen") else llava(shape)
    finally:
        torch.set_default_dtype(before)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 1, 3
    return wrap(model.to(device), processor, shape, EngineConfig(micro_batch_tokens=65536))


def rows(count: int, side: int, first: int = 0) -> list[Example]:
    found = []
    for i in range(first, first + count):
        file = io.BytesIO()
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(file, "JPEG", quality=90)
        found.append(Example(f"row-{i}", (ImageSource(data=file.getvalue()),), (Message("user", "Describe the image."),)))
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, result


def counted(work: Callable[[], Any]) -> float:
    """FLOPs of work, run once more."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def peak_rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of a large matrix product."""
    side = 8192 if device == "cuda" else 1024
    a = torch.randn(side, side, device=device, dtype=dtype)
    best = min(timed(lambda: a @ a)[0] for _ in range(10))
    return 2 * side**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="toy", help="llava-1.5-7b, llava-10m, qwen2.5-vl-3b, toy, or a checkpoint directory")
    for name, default in (("prompts", 8), ("generations", 8), ("tokens", 128), ("images", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path())
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    side = {"qwen2.5-vl-3b": 560, "toy": 56}.get(given.shape, 336)
    vlm, limit = build(given.shape, device, dtype), peak_rate(device, dtype)
    found: dict[str, Any] = {
        "shape": given.shape, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "dtype": str(dtype),
        "torch": torch.__version__, "transformers": transformers.__version__, "sizes": {k: v for k, v in vars(given).items() if k != "out"},
        "matmul_tflops": limit / 1e12,
    }  # fmt: skip

    # Encoding, from files to features, and the tower's share of the limit
    pictures = [(e.images[0],) for e in rows(given.images + 8, side)]
    vlm.encoder.pictures(pictures[:8])
    seconds, _ = timed(lambda: vlm.encoder.pictures(pictures[8:]))
    ready = [vlm.encoder._prepare(vlm.encoder._key(s, 1), (s, 1)) for (s,) in pictures[8:]]
    tower, _ = timed(lambda: vlm.encoder._tower(ready))
    flops = counted(lambda: vlm.encoder._tower(ready))
    found["encode"] = {
        "images_per_s": given.images / seconds,
        "tower_images_per_s": given.images / tower,
        "tower_of_limit": flops / tower / limit,
    }

    # The two paths on one prompt, in nats
    found["difference"] = difference(vlm, vlm.prompts([(e.prompt, e.images) for e in rows(1, side)])[0])

    # Sampling, against generate on the same prompts
    adapters = Adapters(vlm)
    adapters.add("policy", *LORA)
    examples, how = rows(given.prompts, side, 1000), Sampling(given.tokens, min_tokens=given.tokens)
    policy = Role(adapters, "policy")
    total = given.prompts * given.generations * given.tokens

    def roll() -> Any:
        with policy.active():
            return answer(vlm, examples, how, num_generations=given.generations)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    roll()
    rollout, out = timed(roll)

    def generate() -> Any:
        texts = [vlm.render(e.prompt, 1, generation_prompt=True) for e in examples]
        batch, _ = vlm.encoder.process(texts, [[open_image(e.images[0])] for e in examples])
        batch = {k: v.to(vlm.device, vlm.model.dtype if v.is_floating_point() else None) for k, v in batch.items()}
        options = {"max_new_tokens": given.tokens, "min_new_tokens": given.tokens, "do_sample": True, "top_k": 0}
        ban = [
            [i] for i in vlm.banned.tolist() if i < 400
        ]  # the placeholders; rows beyond the tokenizer are harmless to generate
        with policy.active(), torch.no_grad():
            return vlm.model.generate(**batch, num_return_sequences=given.generations, bad_words_ids=ban, **options)

    generate()
    theirs, _ = timed(generate)
    found["rollout"] = {
        "tokens_per_s": total / rollout,
        "generate_tokens_per_s": total / theirs,
        "times_generate": theirs / rollout,
    }

    # Learning, with what one LoRA policy takes at its peak
    def learn(role: Role) -> None:
        vlm.model.zero_grad(set_to_none=True)
        for at, hidden in hidden_states(role, out):
            (-logps(role, out, hidden, at).sum() / out.mask_NT.sum()).backward()

    learn(policy)
    update, _ = timed(lambda: learn(policy))
    flops = counted(lambda: learn(policy))
    found["update"] = {"tokens_per_s": total / update, "mfu": flops / update / limit}
    alone = torch.cuda.max_memory_allocated() if device == "cuda" else 0

    # Four roles: one PPO step by phases
    for name in ("value", "reward"):
        adapters.add(name, *LORA)
    value = Role(adapters, "value", scalar_head(torch.zeros(vlm.hidden_size, device=device)))
    reward = RewardModel(Role(adapters, "reward", scalar_head(torch.randn(vlm.hidden_size, device=device))), "none", "before")
    reference, each = Role(adapters, None), given.generations
    parameters = policy.parameters() + value.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)
    phases: dict[str, dict[str, float]] = {}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for warm in (True, False):
        examples = rows(given.prompts, side, 2000 + 1000 * warm)

        def phase(name: str, work: Callable[[], Any], again: bool = not warm) -> Any:
            seconds, result = timed(work)
            flops = counted(work) if again else 0.0
            phases[name] = {"seconds": seconds, "tflop": flops / 1e12, "of_limit": flops / seconds / limit}
            return result

        sources = [(e.images[0], 1) for e in examples]
        phase(
            "encode",
            lambda sources=sources: vlm.encoder.encode({vlm.encoder._key(s, n): (s, n) for s, n in sources}),
            again=False,
        )
        out = phase("rollout", roll)
        groups = [Group(e.images, e.prompt, tuple(out.texts[i * each : (i + 1) * each])) for i, e in enumerate(examples)]
        phase("reward", lambda groups=groups: reward.score(groups))
        ref = phase("reference", lambda out=out: over_all(logps, reference, out))
        old_values = phase("values", lambda out=out: over_all(values, value, out))
        old, mask = out.logps_NT, out.mask_NT.float()
        advantages, returns = losses.gae(-0.05 * (old - ref), old_values, mask, 1.0, 0.95)
        tokens = mask.sum()

        def policy_gradients(
            out: Any = out, old: Any = old, mask: Any = mask, advantages: Any = advantages, tokens: Any = tokens
        ) -> None:
            for at, hidden in hidden_states(policy, out):
                loss, _ = losses.ppo_policy(logps(policy, out, hidden, at), old[at], advantages[at], mask[at], 0.2, tokens)
                loss.backward()

        def value_gradients(
            out: Any = out, old: Any = old_values, mask: Any = mask, returns: Any = returns, tokens: Any = tokens
        ) -> None:
            for at, hidden in hidden_states(value, out):
                loss, _ = losses.ppo_value(values(value, out, hidden, at), old[at], returns[at], mask[at], 0.2, tokens)
                loss.backward()

        phase("policy update", policy_gradients)
        phase("value update", value_gradients)
        phase("optimiser", optimizer.step, again=False)
        optimizer.zero_grad(set_to_none=True)
    whole = sum(p["seconds"] for p in phases.values())
    flops = sum(p["tflop"] for p in phases.values())
    found["ppo_step"] = phases | {"whole": {"seconds": whole, "tflop": flops, "of_limit": 1e12 * flops / whole / limit}}
    if device == "cuda":
        four = torch.cuda.max_memory_allocated()
        found["peak_gib"] = {"one_policy": alone / 2**30, "four_roles": four / 2**30, "ratio": four / alone}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{Path(given.shape).name}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
