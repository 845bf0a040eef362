"""Image sources are known by content, hashed only if the file changes; turns; unique ids."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf.records import ImageSource, InputError, Message, number_repeated, place_images


def count_hashed_files(monkeypatch):
    """Return a list to which every hashed file adds an entry."""
    calls, file_digest = [], hashlib.file_digest

    def counting_file_digest(file, digest):
        calls.append(file.name)
        return file_digest(file, digest)

    monkeypatch.setattr(hashlib, "file_digest", counting_file_digest)
    return calls


def test_image_key_hashes_a_file_once_until_it_changes(tmp_path, monkeypatch):
    calls = count_hashed_files(monkeypatch)
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    source = ImageSource(str(path))
    assert source.key == source.key == ImageSource(data=b"first").key == hashlib.sha256(b"first").hexdigest()
    assert len(calls) == 1
    path.write_bytes(b"the second")
    assert source.key == hashlib.sha256(b"the second").hexdigest() and len(calls) == 2


def test_image_pinned_hashes_once_and_refuses_changed_file(tmp_path, monkeypatch):
    calls = count_hashed_files(monkeypatch)
    path = tmp_path / "a.png"
    path.write_bytes(b"first")
    pinned = ImageSource(str(path)).pinned()
    assert pinned.key == pinned.expected_sha256 and pinned.pinned() is pinned and len(calls) == 1
    path.write_bytes(b"the second")
    with pytest.raises(InputError, match="changed while it was being used"):
        pinned.read()


def test_image_equality_and_repr_ignore_cached_hashes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"first")
    hashed, fresh = ImageSource(str(tmp_path / "a.png")), ImageSource(str(tmp_path / "a.png"))
    assert hashed.key and hashed == fresh and hash(hashed) == hash(fresh) and repr(hashed) == repr(fresh)


def test_image_replaced_data_has_another_key():
    source = ImageSource(data=b"first")
    assert source.key != replace(source, data=b"second").key == hashlib.sha256(b"second").hexdigest()


def test_image_key_of_missing_file_raises(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        _ = ImageSource(str(tmp_path / "none.png")).key


def kinds(message):
    return [part.get("text", "IMAGE") for part in message.parts()]


def test_message_parts_are_in_the_order_of_the_text():
    assert kinds(Message("user", "Before:  After: ", (8, 16))) == ["Before: ", "IMAGE", " After: ", "IMAGE"]
    assert kinds(Message("user", "", (0, 0))) == ["IMAGE", "IMAGE"]
    assert kinds(Message("user", "")) == [""] and kinds(Message("user", "a")) == ["a"]
    assert Message("user", "a", (1,)).to_dict() == {"role": "user", "content": "a", "image_positions": [1]}
    assert repr(Message("user", "a", (1,))) == "Message(role='user', content='a')"  # seeds the order of facts


def test_place_images_puts_images_without_a_place_before_the_first_user_text():
    turns = [Message("system", "s"), Message("user", "ab", (1,)), Message("user", "c")]
    assert [turn.image_positions for turn in place_images(turns, 3)] == [(), (0, 0, 1), ()]
    assert place_images(turns, 1) == turns


def test_number_repeated_skips_numbers_that_another_id_has():
    assert number_repeated(["a", "b", "a", "a"], "#", first=1) == ["a", "b", "a#1", "a#2"]
    assert number_repeated(["a", "a", "a-2", "a"], "-", first=2) == ["a", "a-3", "a-2", "a-4"]
    assert number_repeated(["a", "a-2", "a-2"], "-", first=2) == ["a", "a-2", "a-2-2"]


@given(st.lists(st.sampled_from(["a", "b", "a-2", "a-3", "a-2-2", ""])))
def test_number_repeated_gives_the_first_free_number_as_one_looks_it_up(ids):
    expected: list[str] = []
    for index, row_id in enumerate(ids):
        number, unique_id = 2, row_id
        while row_id in ids[:index] and unique_id in {*ids, *expected}:
            number, unique_id = number + 1, f"{row_id}-{number}"
        expected.append(unique_id)
    assert number_repeated(ids, "-", first=2) == expected
    assert len(set(expected)) == len(ids)
