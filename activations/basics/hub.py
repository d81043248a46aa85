"""Snapshots of repositories on the Hugging Face hub: weights and JSON alone, never code or pickles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .errors import DefectionError

REVISION = "@"
"""Stands in a hub id before the revision, where one is meant: `org/model@v2`."""


def is_hub_id(source: str | Path) -> bool:
    """Whether this names a repository (`user/name`, `user/name@revision`) and nothing that lies here."""
    name = str(source)
    plain = name.startswith((".", "/", "~")) or name.endswith(".safetensors") or Path(source).exists()
    return name.count("/") == 1 and not plain


def snapshot(identifier: str, patterns: Sequence[str]) -> Path:
    """The folder of a repository's files that match; what is in the cache already is not fetched again.

    Raises DefectionError when it cannot be fetched.
    """
    from huggingface_hub import snapshot_download

    name, _, revision = identifier.partition(REVISION)
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DefectionError(f"cannot fetch {identifier!r} from the Hugging Face hub: {reason}") from error
