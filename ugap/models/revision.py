"""The commit behind a revision of a Hub model, so that a study can hold to what it began with."""

import re
from pathlib import Path

from huggingface_hub import model_info, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ugap.errors import InputError
from ugap.models.assets import ASSETS
from ugap.models.hub import NETWORK_ERRORS

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ERRORS: tuple[type[Exception], ...] = (HFValidationError, *NETWORK_ERRORS)
_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (HFValidationError, "neither a folder, nor an asset, nor a Hub id"),
    (GatedRepoError, "the Hub gives it only to those who accepted its terms and are logged in"),
    (RepositoryNotFoundError, "no folder here, no asset, and no such model on the Hub (or a private one)"),
    (RevisionNotFoundError, "the Hub has no such revision of it"),
)


def is_local(name: str) -> bool:
    """Whether a model is an asset, a folder or a file: one that has no revisions.

    Example:
        >>> is_local("gemma-3-270m"), is_local("some/model")
        (True, False)
    """
    return name in ASSETS or Path(name).exists()


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit hash, which can mean one thing only."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def resolve_commit(name: str, revision: str | None = None) -> str:
    """The commit hash that a revision of a Hub model means now; without a network, what the Hub's cache holds.

    Args:
        name (`str`): A Hub id.
        revision (`str`, *optional*): Branch, tag or commit; by default the main branch.

    Raises:
        InputError: If there is no such model or revision, it may not be read, or neither Hub nor cache answers.
    """
    if revision is not None and is_commit(revision):
        return revision
    try:
        commit = model_info(name, revision=revision, timeout=10).sha
    except _ERRORS as error:
        for kind, reason in _REASONS:
            if isinstance(error, kind):
                raise InputError(f"{name}: {reason}") from error
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(cached, str):
            line = str(error).strip().partition("\n")[0]
            raise InputError(f"{name}: the Hub cannot be reached and its cache has no copy ({line})") from error
        commit = Path(cached).parent.name  # the cache keeps a snapshot under its commit
    if not is_commit(commit):
        raise InputError(f"{name}: the Hub names no commit of revision {revision or 'main'!r}")
    return str(commit)
