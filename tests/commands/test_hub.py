"""Uploads go through a Hub on this machine."""

from __future__ import annotations

import pytest

from mmrlhf.commands.hub import check_repo_id, push_folder
from mmrlhf.records import InputError
from tests.helpers.fake_hub import TOKEN, fake_hub, use_hub


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "README.md").write_text("---\nlibrary_name: peft\n---\n")
    (path / "adapter_model.safetensors").write_bytes(b"\0\1\2")
    return path


def test_a_folder_is_pushed_whole(folder, monkeypatch):
    with fake_hub(monkeypatch) as hub:
        assert push_folder(folder, "me/mine", private=True) == f"{hub.url}/me/mine"
        assert hub.visibility == {"me/mine": "private"}
        assert hub.repos["me/mine"] == {
            ".gitattributes": b"",
            "README.md": b"---\nlibrary_name: peft\n---\n",
            "adapter_model.safetensors": b"\0\1\2",
        }
        assert push_folder(folder, "me/other", private=None)
        assert hub.visibility["me/other"] is None  # as the owner's settings say


def test_a_repository_with_another_model_is_left_alone(folder, monkeypatch):
    with fake_hub(monkeypatch) as hub:
        hub.repos["me/mine"] = {".gitattributes": b"", "README.md": b"old", "model.safetensors": b"weights"}
        with pytest.raises(InputError, match=r"nothing is pushed to me/mine: it holds 1 files already, model\.safetensors first"):
            push_folder(folder, "me/mine", private=None)
        assert hub.repos["me/mine"]["README.md"] == b"old"
        hub.repos["me/empty"] = {"README.md": b"old", "LICENSE": b"mine"}
        push_folder(folder, "me/empty", private=None)
        assert hub.repos["me/empty"]["README.md"] != b"old" and hub.repos["me/empty"]["LICENSE"] == b"mine"


def test_a_repository_that_is_not_as_private_as_asked_is_left_alone(folder, monkeypatch):
    """Its README.md alone would not keep it from getting rows with images."""
    with fake_hub(monkeypatch) as hub:
        hub.repos["me/mine"] = {"README.md": b"old"}
        hub.visibility["me/mine"] = "public"
        with pytest.raises(InputError, match="it exists and is public, not as --hub_private_repo says"):
            push_folder(folder, "me/mine", private=True)
        assert hub.repos["me/mine"] == {"README.md": b"old"}


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_a_refused_token_is_one_sentence_without_it(folder, monkeypatch, token):
    with fake_hub(monkeypatch, token) as hub:
        with pytest.raises(
            InputError, match=r"the Hub refuses the token, or there is none: log in with `hf auth login`"
        ) as caught:
            push_folder(folder, "me/mine", private=None)
        assert hub.repos == {}
    message = str(caught.value)
    assert f"{folder} is complete, and `hf upload me/mine {folder}` pushes it later" in message
    assert "hf_" not in message and "\n" not in message


def test_a_fault_of_the_hub_leaves_nothing_there(folder, monkeypatch):
    with fake_hub(monkeypatch) as hub:
        hub.failure = "commit"
        with pytest.raises(InputError, match="the Hub answers with status 400: try again later"):
            push_folder(folder, "me/mine", private=None)
        assert list(hub.repos["me/mine"]) == [".gitattributes"]


def test_without_a_network_the_folder_stays(folder, monkeypatch):
    use_hub(monkeypatch, "http://127.0.0.1:9", TOKEN)  # nothing listens there
    with pytest.raises(InputError, match=r"the Hub cannot be reached, or the connection broke \(ConnectError\)"):
        push_folder(folder, "me/mine", private=None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set: unset it"):
        push_folder(folder, "me/mine", private=None)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "adapter_model.safetensors"]


@pytest.mark.parametrize("name", ["mine", "a/b/c", "../x", "me/", "me/mi ne", "me/" + "x" * 100, "me/mine.git", "me/a--b"])
def test_names_that_are_no_repository_are_refused(name):
    with pytest.raises(InputError, match="is not a valid Hub repository id: give OWNER/NAME"):
        check_repo_id(name)
    check_repo_id("me/llava-1.5-7b_ppo")
