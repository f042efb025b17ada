"""Adapters on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from hiso.errors import LoadError
from hiso.export.adapter import CARD, FILE, read_adapter


def push_to_hub(folder: str | Path, repository: str, *, private: bool = True) -> str:
    """Uploads an adapter, with the token of `hf auth login`. Returns its address.

    `hiso.load(BASE, repository)` then finds the adapter. Not tested, because this needs a network.

    Args:
        folder: An adapter's folder.
        repository: `owner/name`; created if it does not exist.
        private: Whether a new repository is private. The log is a function of private data.

    Raises:
        LoadError: There is no adapter in the folder, or the hub refuses it.
    """
    from huggingface_hub import HfApi

    read_adapter(Path(folder))
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository, folder_path=Path(folder), allow_patterns=[FILE, CARD]
        )
    except Exception as error:  # huggingface_hub raises unrelated exception types
        raise LoadError(f"cannot upload {folder} to {repository}: {error}") from error
    return str(done)
