"""Encoding image files to features: each image once, and none mistaken for another."""

import io
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from mmrlhf.config import EngineConfig
from mmrlhf.engine.prefill import prefill
from mmrlhf.models.loading import load
from mmrlhf.records import ImageSource, InputError, Message
from tests.helpers.tiny_models import build_checkpoint

PROMPT = (Message("user", "what is it"),)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Checkpoints of two families: images of one size, and images of any size."""
    root = tmp_path_factory.mktemp("families")
    for family in ("llava", "qwen2_5_vl"):
        build_checkpoint(family, root / family)
    return root


def save_image(path, width=56, height=56, seed=0, mode="RGB", **options):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return ImageSource(str(path))


def test_encoder_encodes_each_image_once_across_epochs(checkpoints, tmp_path):
    vlm = load(str(checkpoints / "llava"))
    sources = [save_image(tmp_path / f"{i}.png", seed=i % 3) for i in range(6)]  # three images under six names
    for text in ("what is it", "describe the image"):
        for _ in range(2):
            vlm.build_prompts([((Message("user", text),), (s,)) for s in sources])
    assert vlm.image_encodes == 3 and vlm.encoder.cache.counters.reencodes == 0


def test_encoder_concurrent_requests_encode_once(checkpoints, tmp_path):
    vlm = load(str(checkpoints / "llava"))
    sources = [save_image(tmp_path / f"{i}.png", seed=i) for i in range(4)]
    threads = [threading.Thread(target=vlm.encoder.get_features, args=([(s,) for s in sources],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vlm.image_encodes == 4


def test_encoder_reencodes_changed_file(checkpoints, tmp_path):
    vlm = load(str(checkpoints / "llava"))
    source = save_image(tmp_path / "a.png", seed=0)
    (first,) = vlm.encoder.get_features([(source,)])[0]
    save_image(tmp_path / "a.png", seed=1)
    (second,) = vlm.encoder.get_features([(source,)])[0]
    assert vlm.image_encodes == 2 and not torch.equal(first.levels[0][0], second.levels[0][0])
    (fresh,) = load(str(checkpoints / "llava")).encoder.get_features([(ImageSource(str(tmp_path / "a.png")),)])[0]
    assert torch.equal(second.levels[0][0], fresh.levels[0][0])


def test_encoder_features_do_not_depend_on_batch(checkpoints, tmp_path):
    sources = [save_image(tmp_path / f"{i}.png", 56 + 20 * i, 80, seed=i) for i in range(5)]
    for family in ("llava", "qwen2_5_vl"):
        together = load(str(checkpoints / family)).encoder.get_features([(s,) for s in sources])
        alone = [load(str(checkpoints / family)).encoder.get_features([(s,)])[0] for s in sources]
        for (a,), (b,) in zip(together, alone, strict=True):
            assert a.placeholder_text == b.placeholder_text
            assert all(torch.equal(x, y) for x, y in zip(a.levels[0], b.levels[0], strict=True))


def test_encode_gpu_batches_hold_one_shape_and_match_encode_cpu(checkpoints, tmp_path, monkeypatch):
    """Run the GPU's batches, by shape and within a limit, on the CPU."""
    sources = [save_image(tmp_path / f"{i}.png", 56 + 28 * (i % 2), 56, seed=i) for i in range(7)]
    for family in ("llava", "qwen2_5_vl"):
        encoder = load(str(checkpoints / family)).encoder
        largest = max(encoder._preprocess(encoder.feature_key(s, 1), (s, 1)).num_elements for s in sources[:2])
        monkeypatch.setattr("mmrlhf.models.vision_encoder.MAX_ELEMENTS_GPU", 3 * largest)
        missing = {encoder.feature_key(s, 1): (s, 1) for s in sources}
        sizes, run_tower = [], encoder.run_tower

        def record_size(batch, sizes=sizes, run_tower=run_tower):
            sizes.append(len(batch))
            return run_tower(batch)

        monkeypatch.setattr(encoder, "run_tower", record_size)
        batched = dict(encoder._encode_gpu(missing))
        assert set(batched) == set(missing) and max(sizes) > 1 and sum(sizes) == 7
        for key, features in encoder._encode_cpu(missing):
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(features.levels[0], batched[key].levels[0], strict=True))


def test_encoder_refuses_trainable_tower(checkpoints, tmp_path):
    vlm = load(str(checkpoints / "llava"))
    vlm.model.base_model.multi_modal_projector.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"the vision tower or the projector is trainable: .* freeze both"):
        vlm.encoder.get_features([(save_image(tmp_path / "a.png"),)])


def test_encoder_fingerprint_covers_tower_processor_and_dtype(checkpoints):
    unchanged = {
        load(str(checkpoints / "llava")).encoder.fingerprint,
        load(str(checkpoints / "qwen2_5_vl")).encoder.fingerprint,
        load(str(checkpoints / "llava"), "bfloat16").encoder.fingerprint,
    }
    processor = load(str(checkpoints / "llava"))
    processor.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    projector = load(str(checkpoints / "llava"))
    with torch.no_grad():
        projector.model.base_model.multi_modal_projector.linear_1.weight.add_(1.0)
    language = load(str(checkpoints / "llava"))
    with torch.no_grad():
        language.model.get_output_embeddings().weight.add_(1.0)
    one_value = load(str(checkpoints / "llava"))
    with torch.no_grad():  # any value counts, not only sampled ones
        one_value.model.base_model.multi_modal_projector.linear_1.weight.view(-1)[1] += 1.0
    layer = load(str(checkpoints / "llava"))
    layer.model.config.vision_feature_layer = -1 if layer.model.config.vision_feature_layer != -1 else -2
    changed = {v.encoder.fingerprint for v in (processor, projector, one_value, layer)}
    assert len(unchanged | changed) == 7
    # Features of a model with a fine-tuned language model are those of its base.
    assert language.encoder.fingerprint in unchanged


def test_prompts_mismatched_processor_is_refused(checkpoints, tmp_path):
    vlm = load(str(checkpoints / "llava"))
    vlm.processor.patch_size = 28
    with pytest.raises(
        InputError, match=r"image .*a.png.*: the (processor writes|model's tower gives more).* from one checkpoint"
    ):
        vlm.build_prompts([(PROMPT, (save_image(tmp_path / "a.png"),))])


def test_prompts_image_refused_by_processor_is_named(checkpoints, tmp_path):
    vlm = load(str(checkpoints / "qwen2_5_vl"))
    with pytest.raises(InputError, match=r"strip\.png \(2000 x 1\) is refused by the model's processor \(.*\): change its size"):
        vlm.build_prompts([(PROMPT, (save_image(tmp_path / "strip.png", 2000, 1),))])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_encoder_does_not_blame_an_image_for_the_device(checkpoints, tmp_path, monkeypatch, error):
    vlm = load(str(checkpoints / "llava"))

    def fail(*args, **kwargs):
        raise error("the device's fault")

    monkeypatch.setattr(vlm.encoder, "process", fail)
    with pytest.raises(error, match="the device's fault"):
        vlm.build_prompts([(PROMPT, (save_image(tmp_path / "a.png"),))])


def test_encoder_preprocesses_on_the_cpu_if_a_gpu_has_no_room(checkpoints, tmp_path, monkeypatch):
    vlm = load(str(checkpoints / "llava"))
    process = vlm.encoder.process

    def process_on_full_gpu(*args, on_cpu=False, **kwargs):
        if not on_cpu:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return process(*args, **kwargs)

    monkeypatch.setattr(vlm.encoder, "process", process_on_full_gpu)
    assert vlm.encoder.get_features([(save_image(tmp_path / "a.png"),)])[0][0].levels[0][0].isfinite().all()


def test_encoder_does_not_blame_an_image_for_the_towers_device(checkpoints, tmp_path, monkeypatch):
    vlm = load(str(checkpoints / "llava"))

    def fail(batch):
        raise RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR")

    monkeypatch.setattr(vlm.encoder, "run_tower", fail)
    with pytest.raises(RuntimeError, match=r"^cuDNN error"):
        vlm.encoder.get_features([(save_image(tmp_path / "a.png"),)])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_encoder_reads_unusual_images(checkpoints, tmp_path, family):
    exif = Image.Exif()
    exif[0x0112] = 6
    sources = [
        save_image(tmp_path / "one_pixel.png", 1, 1),
        save_image(tmp_path / "cmyk.jpg", mode="CMYK"),
        save_image(tmp_path / "16_bits.png", mode="I;16"),
        save_image(tmp_path / "rotated.jpg", 80, 40, exif=exif),
    ]
    prompts = load(str(checkpoints / family)).build_prompts([(PROMPT, (s,)) for s in sources])
    assert all(p.image_features and torch.isfinite(p.image_features[0].levels[0][0]).all() for p in prompts)


@pytest.mark.parametrize("data", [b"", b"\x89PNG\r\n\x1a\n", b"not an image"])
def test_encoder_refuses_invalid_image_from_any_thread(checkpoints, tmp_path, data):
    (tmp_path / "bad.png").write_bytes(data)
    good = [save_image(tmp_path / f"{i}.png", seed=i) for i in range(6)]
    vlm = load(str(checkpoints / "llava"))
    with pytest.raises(InputError, match=r"bad\.png is (empty|damaged|truncated)"):
        vlm.encoder.get_features([(s,) for s in [*good[:3], ImageSource(str(tmp_path / "bad.png")), *good[3:]]])
    assert len(vlm.encoder.get_features([(s,) for s in good])) == 6  # the encoder still works


def test_encoder_refuses_huge_image_by_its_header(checkpoints, tmp_path):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    (tmp_path / "huge.png").write_bytes(file.getvalue())
    with pytest.raises(InputError, match=r"huge\.png has far more than 40,000,000 pixels: scale it down"):
        load(str(checkpoints / "llava")).encoder.get_features([(ImageSource(str(tmp_path / "huge.png")),)])


def test_prompts_placeholder_in_text_is_refused(checkpoints, tmp_path):
    with pytest.raises(InputError, match=r"the prompt of row r1, .* would show the model 2 images and has 1: remove <image>"):
        text = (Message("user", "what is <image> here"),)
        load(str(checkpoints / "llava")).build_prompts([(text, (save_image(tmp_path / "a.png"),))], row_ids=["r1"])


def test_feature_cache_dir_serves_only_its_own_model(checkpoints, tmp_path):
    sources = [(save_image(tmp_path / f"{i}.png", seed=i),) for i in range(3)]
    engine = EngineConfig(feature_cache_dir=str(tmp_path / "cache"))
    load(str(checkpoints / "llava"), engine=engine).encoder.get_features(sources)
    same_model = load(str(checkpoints / "llava"), engine=engine)
    same_model.encoder.get_features(sources)
    other_model = load(str(checkpoints / "qwen2_5_vl"), engine=engine)
    other_model.encoder.get_features(sources)
    assert same_model.image_encodes == 0 and same_model.encoder.cache.counters.disk_hits == 3
    assert other_model.image_encodes == 3


def test_prefill_refuses_image_changed_after_encoding(checkpoints, tmp_path):
    """The naive path, and processors that need pixels, reopen the file and refuse a changed one."""
    vlm = load(str(checkpoints / "llava"), engine=EngineConfig(share_prefix="off"))
    source = save_image(tmp_path / "a.png", seed=1)
    prompts = vlm.build_prompts([(PROMPT, (source,))])
    prefill(vlm, prompts).last_hidden_PD  # noqa: B018
    save_image(tmp_path / "a.png", seed=2)
    with pytest.raises(InputError, match=r"a.png changed while it was being used: run again"):
        prefill(vlm, prompts).last_hidden_PD  # noqa: B018


def test_encode_gpu_halves_batch_on_oom(checkpoints, tmp_path, monkeypatch, capsys):
    encoder = load(str(checkpoints / "llava")).encoder
    sources = [save_image(tmp_path / f"{i}.png", seed=i) for i in range(4)]
    run_tower = encoder.run_tower

    def fit_one_image(batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError
        return run_tower(batch)

    monkeypatch.setattr(encoder, "run_tower", fit_one_image)
    features_by_key = dict(encoder._encode_gpu({encoder.feature_key(s, 1): (s, 1) for s in sources}))
    assert len(features_by_key) == 4 and "going on with 2 images at a time" in capsys.readouterr().out


def test_full_feature_cache_evicts_and_reencodes(vlm, examples):
    vlm.encoder.cache.tiers[0].max_bytes = 1
    conversations = [(e.prompt, e.images) for e in examples[:4]]
    for order in (conversations, conversations[::-1]):
        assert all(p.image_features for p in vlm.build_prompts(order))
    assert vlm.image_encodes > 4


def test_image_that_the_tower_refuses_is_named(tmp_path):
    """Mistral 3's tower fails on an image of one patch; the others in its batch do not hide it."""
    build_checkpoint("mistral3", tmp_path / "model")
    vlm = load(str(tmp_path / "model"))
    icon = save_image(tmp_path / "icon.png", 20, 20)
    with pytest.raises(InputError, match=r"image .*icon\.png is refused by the model's vision tower \(.*\): change its size"):
        vlm.build_prompts([(PROMPT, (save_image(tmp_path / "other.png", 84, 84),)), (PROMPT, (icon,))])


def test_processor_without_a_setting_is_one_sentence(checkpoints, tmp_path):
    vlm = load(str(checkpoints / "llava"))
    vlm.processor.patch_size = None
    image = save_image(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png \(56 x 56\) is refused by .*: complete processor_config\.json"):
        vlm.build_prompts([(PROMPT, (image,))])
