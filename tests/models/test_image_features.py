"""The tiers of the feature cache: budgets, evictions, failing disks, files under a wrong key."""

import errno
import os
from pathlib import Path

import pytest
import torch

from mmrlhf.models.image_features import FeatureCache, ImageFeatures, MemoryTier
from mmrlhf.records import InputError

CPU = torch.device("cpu")
TOWER = "0123456789abcdef0123"
IMAGE = "a" * 64


def make_key(number: int) -> str:
    """Build the key of an image, as `Encoder.feature_key` does."""
    return f"{TOWER}/{number:064x}"


def make_features(value: float, tokens: int = 4) -> ImageFeatures:
    """Build features of 16 bytes per token: 4 float32 values."""
    return ImageFeatures([[torch.full((tokens, 4), float(value))]], False, "<image>" * tokens, torch.tensor([[1, 2, 2]]))


def test_memory_keeps_most_recently_used():
    memory = MemoryTier(CPU, max_bytes=128)  # room for two of 64 bytes
    memory.put("a", make_features(1))
    assert memory.put("b", make_features(2)) == []
    memory.get("a")
    assert [key for key, _ in memory.put("c", make_features(3))] == ["b"]
    assert memory.num_bytes == 128 and memory.get("b") is None and memory.get("a") is not None


def test_memory_keeps_oversized_image_until_the_next():
    memory = MemoryTier(CPU, max_bytes=1)
    assert memory.put("a", make_features(1)) == []
    assert [key for key, _ in memory.put("b", make_features(2))] == ["a"]


def test_feature_cache_moves_evicted_entries_to_next_tier():
    cache = FeatureCache(CPU)
    cache.tiers = [MemoryTier(CPU, 64), MemoryTier(CPU, 128)]  # like a GPU's and main memory
    for name in "abc":
        cache.put(name, make_features(ord(name)))
    assert list(cache.tiers[0].entries) == ["c"] and list(cache.tiers[1].entries) == ["a", "b"]
    features = cache.get("a")
    assert features is not None and features.levels[0][0][0, 0] == ord("a") and "a" in cache.tiers[0].entries
    assert cache.counters.encodes == 3 and cache.counters.memory_hits == 1 and cache.num_bytes <= 64 + 128


def test_feature_cache_counts_reencodes():
    cache = FeatureCache(CPU, memory_gib=1e-9)
    for name in "aba":
        cache.put(name, make_features(1))
    assert (cache.counters.encodes, cache.counters.reencodes) == (3, 1)


def test_feature_cache_disk_round_trip(tmp_path):
    FeatureCache(CPU, folder=str(tmp_path)).put(f"{TOWER}/{IMAGE}", make_features(0.5))
    features = FeatureCache(CPU, folder=str(tmp_path)).get(f"{TOWER}/{IMAGE}")
    assert features is not None and torch.equal(features.levels[0][0], make_features(0.5).levels[0][0])
    assert features.placeholder_text == "<image>" * 4 and features.is_stacked is False
    assert torch.equal(features.grid_thw, torch.tensor([[1, 2, 2]]))
    assert FeatureCache(CPU, folder=str(tmp_path)).get(f"{TOWER[::-1]}/{IMAGE}") is None


@pytest.mark.parametrize("length", [0, 7, 100])
def test_feature_cache_discards_truncated_file(tmp_path, capsys, length):
    cache = FeatureCache(CPU, folder=str(tmp_path))
    cache.put(f"{TOWER}/{IMAGE}", make_features(1))
    path = tmp_path / TOWER / f"{IMAGE}.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    assert FeatureCache(CPU, folder=str(tmp_path)).get(f"{TOWER}/{IMAGE}") is None
    assert f"{IMAGE}.safetensors is not a complete feature file" in capsys.readouterr().out


def test_feature_cache_discards_damaged_file(tmp_path, capsys):
    cache = FeatureCache(CPU, folder=str(tmp_path))
    cache.put(f"{TOWER}/{IMAGE}", make_features(1))
    path = tmp_path / TOWER / f"{IMAGE}.safetensors"
    data = bytearray(path.read_bytes())
    data[-8:] = bytes(8)  # the header is intact, as after a power cut
    path.write_bytes(data)
    assert FeatureCache(CPU, folder=str(tmp_path)).get(f"{TOWER}/{IMAGE}") is None
    assert "its content is damaged" in capsys.readouterr().out


def test_feature_cache_tolerates_stray_files(tmp_path):
    FeatureCache(CPU, folder=str(tmp_path)).put(f"{TOWER}/{IMAGE}", make_features(1))
    (tmp_path / f"{make_key(1)}.safetensors").symlink_to(tmp_path / "nowhere")
    abandoned = tmp_path / TOWER / f".{IMAGE}-several.safetensors.12f"
    abandoned.write_bytes(b"half")
    os.utime(abandoned, (0, 0))
    cache = FeatureCache(CPU, folder=str(tmp_path))
    assert cache.get(f"{TOWER}/{IMAGE}") is not None and not abandoned.exists()


def test_feature_cache_ignores_file_under_another_key(tmp_path):
    cache = FeatureCache(CPU, folder=str(tmp_path))
    cache.put(f"{TOWER}/{IMAGE}", make_features(1))
    (tmp_path / TOWER / f"{IMAGE}.safetensors").rename(tmp_path / f"{make_key(2)}.safetensors")
    assert FeatureCache(CPU, folder=str(tmp_path)).get(make_key(2)) is None


def test_feature_cache_full_disk_is_reported_once(tmp_path, capsys, monkeypatch):
    cache = FeatureCache(CPU, folder=str(tmp_path))

    def fail_when_full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail_when_full)
    for name in "ab":
        cache.put(f"{TOWER}/{name * 64}", make_features(1))
    printed = capsys.readouterr().out
    assert printed.count("No space left on device): going on without it") == 1
    assert cache.get(f"{TOWER}/{'a' * 64}") is not None and not list(tmp_path.rglob("*.safetensors*"))


def test_feature_cache_refuses_file_in_place_of_folder(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(InputError, match=r"feature_cache_dir .*cache is a file: name a folder"):
        FeatureCache(CPU, folder=str(tmp_path / "cache"))


def test_feature_cache_respects_disk_budget(tmp_path):
    cache = FeatureCache(CPU, folder=str(tmp_path), disk_gib=3000 / 2**30)
    for number in range(12):
        cache.put(make_key(number), make_features(number, tokens=16))
    remaining = sorted(int(p.stem, 16) for p in tmp_path.rglob("*.safetensors"))
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors")) <= 3000 and remaining[-1] == 11 and len(remaining) > 1


def test_feature_cache_removes_only_its_own_files(tmp_path):
    foreign = [tmp_path / name for name in (
        "model.safetensors", "model.safetensors.index.json", f"{TOWER}/adapter.safetensors", f"{TOWER}/.x.safetensors.1",
        f"llava/{IMAGE}.safetensors", f"deep/{TOWER}/{IMAGE}.safetensors", f"{IMAGE}.safetensors",
    )]  # fmt: skip
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(2000))
        os.utime(path, (0, 0))
    cache = FeatureCache(CPU, folder=str(tmp_path), disk_gib=3000 / 2**30)
    assert cache.disk.num_bytes == 0
    for number in range(12):
        cache.put(make_key(number), make_features(number, tokens=16))
    assert all(path.exists() for path in foreign) and len(list(tmp_path.rglob("*.safetensors"))) < 12 + len(foreign)


def test_feature_cache_disk_budget_is_shared_with_other_processes(tmp_path):
    caches = [FeatureCache(CPU, folder=str(tmp_path), disk_gib=9000 / 2**30) for _ in range(4)]
    for number in range(40):
        caches[number % 4].put(make_key(number), make_features(number, tokens=16))
    assert sum(p.stat().st_size for p in tmp_path.rglob("*.safetensors")) <= 9000


def test_feature_cache_temporary_names_differ_between_processes(tmp_path, monkeypatch):
    """Containers on two nodes may have the same process id and share a folder."""
    names, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (names.append(source), replace(source, target)))
    for _ in range(2):
        FeatureCache(CPU, folder=str(tmp_path)).put(make_key(1), make_features(1))
    assert names[0] != names[1]


def test_feature_cache_returns_what_it_has_moved_to_the_device(tmp_path):
    FeatureCache(CPU, folder=str(tmp_path)).put(make_key(1), make_features(1))
    cache = FeatureCache(torch.device("meta"), folder=str(tmp_path))  # another device than main memory
    cache.tiers[1].put(make_key(2), make_features(2))
    for key in (make_key(1), make_key(2)):
        assert cache.get(key).levels[0][0] is cache.tiers[0].entries[key].levels[0][0]
