"""Processes that share a feature folder: each image is encoded by one of them."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mmrlhf.models.encoding_claims import EncodingClaims
from mmrlhf.models.image_features import FeatureCache, ImageFeatures
from tests.models.test_image_features import CPU, make_features, make_key

OTHER_PROCESS = """
import sys
from pathlib import Path
from mmrlhf.models.encoding_claims import EncodingClaims

print(*sorted(EncodingClaims(Path(sys.argv[1])).claim(sys.argv[2:])), flush=True)
sys.stdin.readline()
"""


@contextmanager
def another_process(folder: Path, keys: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a process that claims images until a line comes, and check that it has them all."""
    command = [sys.executable, "-c", OTHER_PROCESS, str(folder), *keys]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline().split() == sorted(keys)
            yield process
        finally:
            process.kill()


def recorder(encoded: list[str]) -> Callable[[Sequence[str]], Iterator[tuple[str, ImageFeatures]]]:
    """Return an encoder that records the keys it is asked for."""

    def encode(keys: Sequence[str]) -> Iterator[tuple[str, ImageFeatures]]:
        encoded.extend(keys)
        return ((key, make_features(len(encoded))) for key in keys)

    return encode


def test_claims_of_another_process_last_until_it_dies(tmp_path):
    claims = EncodingClaims(tmp_path)
    with another_process(tmp_path, ["a", "b"]) as process:
        assert claims.claim(["a", "b", "c"]) == {"c"}
        process.kill()
        process.wait()
        assert claims.claim(["a", "b", "c"]) == {"a", "b", "c"}
    claims.release(["a", "c"])
    with another_process(tmp_path, ["a", "c"]):
        pass


def test_images_are_released_one_by_one_and_after_an_error(tmp_path):
    """Who needs the first image of a batch need not wait for the last."""
    keys = [make_key(number) for number in range(3)]
    cache = FeatureCache(CPU, folder=str(tmp_path))

    def encode(missing: Sequence[str]) -> Iterator[tuple[str, ImageFeatures]]:
        yield missing[0], make_features(1)
        with another_process(tmp_path, keys[:1]):
            pass
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.encode_missing(keys, encode)
    with another_process(tmp_path, keys):
        pass


def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mmrlhf.models.encoding_claims.NOTE_AFTER_SECONDS", 0.0)
    monkeypatch.setattr("mmrlhf.models.encoding_claims.WAIT_SECONDS", 0.2)
    encoded: list[str] = []
    with another_process(tmp_path, [make_key(1)]):
        FeatureCache(CPU, folder=str(tmp_path)).encode_missing([make_key(1)], recorder(encoded))
    assert encoded == [make_key(1)] and capsys.readouterr().out.count("waiting for another process") == 1


@pytest.mark.parametrize("other_writes", [True, False])
def test_image_that_another_process_encodes_is_waited_for(tmp_path, other_writes):
    """It is read when that process has written it, and encoded here if it stopped before."""
    first, second = make_key(1), make_key(2)
    cache, encoded, results = FeatureCache(CPU, folder=str(tmp_path)), [], []
    own_image_is_encoded = threading.Event()

    def encode(keys: Sequence[str]) -> Iterator[tuple[str, ImageFeatures]]:
        rows = recorder(encoded)(keys)
        own_image_is_encoded.set()
        return rows

    with another_process(tmp_path, [first]) as process:
        thread = threading.Thread(target=lambda: results.append(cache.encode_missing([first, second], encode)))
        thread.start()
        assert own_image_is_encoded.wait(60) and encoded == [second]
        thread.join(0.3)
        assert thread.is_alive()
        if other_writes:
            FeatureCache(CPU, folder=str(tmp_path)).put(first, make_features(7))
        process.kill()
        thread.join(60)
    (features,) = results
    assert features.keys() == {first, second}
    assert encoded == ([second] if other_writes else [second, first])
    assert features[first].levels[0][0][0, 0] == (7 if other_writes else 2)


def test_image_written_since_it_was_missed_is_not_encoded(tmp_path):
    cache, encoded = FeatureCache(CPU, folder=str(tmp_path)), []
    assert cache.get(make_key(1)) is None
    FeatureCache(CPU, folder=str(tmp_path)).put(make_key(1), make_features(7))
    features = cache.encode_missing([make_key(1)], recorder(encoded))
    assert features[make_key(1)].levels[0][0][0, 0] == 7 and not encoded and cache.counters.encodes == 0


def test_folder_that_cannot_be_written_does_not_stop_encoding(tmp_path):
    cache, encoded = FeatureCache(CPU, folder=str(tmp_path / "folder")), []
    (tmp_path / "folder").write_text("")  # a file in its place
    for number in (1, 2):
        cache.encode_missing([make_key(number)], recorder(encoded))
    assert encoded == [make_key(1), make_key(2)]
