"""Upload a folder to the Hugging Face Hub.

The token is that of the environment (HF_TOKEN) or of `hf auth login`. Neither the token nor the
server's messages are ever printed.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from mmrlhf.records import InputError

ALLOWED_FILES = (".gitattributes", "LICENSE", "LICENSE.md", "LICENSE.txt", "README.md")
"""Files that a repository may contain before a model is pushed; a README.md is replaced."""


def check_repo_id(name: str) -> None:
    """Raise InputError, before a model is loaded, for an invalid name of a repository."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        name_is_whole = False
    else:
        name_is_whole = name.count("/") == 1
    if not name_is_whole:
        raise InputError(
            f"hub_model_id {name} is not a valid Hub repository id: give OWNER/NAME, of letters, digits, -, _ and . (at most 96)"
        )


def push_folder(folder: Path, repo_id: str, private: bool | None) -> str:
    """Upload a folder in one commit, and return the repository's address.

    A missing repository is created, `private` or not, or as its owner's default if None. Raises
    InputError if the repository holds another model, the token is refused, or the Hub cannot be
    reached. The folder is never changed.
    """
    api = HfApi()
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        is_private = bool(api.repo_info(repo_id).private)
        others = sorted(set(api.list_repo_files(repo_id)) - set(ALLOWED_FILES))
        if private is not None and is_private != private:
            problem = f"it exists and is {'private' if is_private else 'public'}, not as --hub_private_repo says: change either"
        elif others:
            problem = f"it holds {len(others)} files already, {others[0]} first: give another --hub_model_id"
        else:
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a model trained with mmrlhf")
            return str(url)
    except (OSError, httpx2.HTTPError, ValueError, RuntimeError) as error:  # the last two for damaged replies
        problem = _describe(error)
    later = f"hf upload {shlex.quote(repo_id)} {shlex.quote(str(folder))}"
    raise InputError(f"nothing is pushed to {repo_id}: {problem}; {folder} is complete, and `{later}` pushes it later")


def _describe(error: Exception) -> str:
    """Return a short description of the error, and what to do, without the server's own text."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set: unset it"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError | RepositoryNotFoundError):
        return "the Hub refuses the token, or there is none: log in with `hf auth login`, with a token that may write there"
    if status is not None:
        return f"the Hub answers with status {status}: try again later"
    return f"the Hub cannot be reached, or the connection broke ({type(error).__name__}): check the network"
