"""Models on the Hub: which commit a revision means, asked once, or answered by the cache where there is no network."""

import re
from pathlib import Path
from typing import cast

from huggingface_hub import model_info, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ugap.errors import InputError

# The base error of the HTTP client under huggingface_hub, which changes with its version, and OSError. Answers of the
# Hub, such as 404, are of the subclass `HfHubHTTPError`: catch them first.
NETWORK_ERRORS = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# All but the weights of a model: transformers asks for what it needs and would leave the human profile.
_SMALL = ("*.json", "*.jinja", "*.model", "adapter_model.safetensors")


def is_local(name: str) -> bool:
    """Whether a model is an asset, a folder or a file: one that has no revisions.

    Example:
        >>> is_local("gemma-3-270m"), is_local("some/model")
        (True, False)
    """
    from ugap.models.assets import ASSETS  # imports torch, which readers of a data set on the Hub do without

    return name in ASSETS or Path(name).exists()


def _assets() -> str:
    from ugap.models.assets import ASSETS  # as in `is_local`

    return ", ".join(ASSETS)


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
    commit, snapshot = look_up(name, revision)
    commit = snapshot.name if snapshot else commit  # the cache keeps a snapshot under its commit
    if not is_commit(commit):
        raise InputError(f"{name}: the Hub names no commit of revision {revision or 'main'!r}")
    return str(commit)


def look_up(name: str, revision: str | None = None) -> tuple[str | None, Path | None]:
    """The commit of a model, asked of the Hub, or the folder of its snapshot in the cache where the Hub is unreachable.

    Raises:
        InputError: As `resolve_commit`.
    """
    try:
        # transformers would try for half a minute before it says that there is no network.
        return model_info(name, revision=revision, timeout=10).sha, None
    except HFValidationError as error:
        raise InputError(f"{name}: neither a folder, nor an asset ({_assets()}), nor a Hub id") from error
    except GatedRepoError as error:
        raise InputError(f"{name}: the Hub gives it only to those who accepted its terms and are logged in") from error
    except RepositoryNotFoundError as error:
        reason = f"no folder here, no asset ({_assets()}), and no such model on the Hub (or a private one)"
        raise InputError(f"{name}: {reason}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{name}: the Hub has no revision {revision!r} of it") from error
    except NETWORK_ERRORS as error:
        for file in ("config.json", "adapter_config.json"):
            config = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(config, str):
                return None, Path(config).parent
        line = str(error).strip().partition("\n")[0]
        reason = f"the Hub cannot be reached and its cache has no copy ({line})"
        raise InputError(f"{name}: no folder here, no asset ({_assets()}), and {reason}") from error


def hub_folder(name: str, revision: str | None = None) -> tuple[Path, bool]:
    """The folder of a Hub repository in the cache, and whether all that can be had is in it.

    It gets the configs, the tokenizer, the weights of an adapter and the human profile. Without a network, it is what
    the cache holds.

    Raises:
        InputError: As `resolve_commit`, or if the files cannot be fetched.
    """
    commit, snapshot = look_up(name, revision)
    if snapshot is not None:
        return snapshot, True
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=list(_SMALL))), False
    except NETWORK_ERRORS as error:
        line = str(error).strip().partition("\n")[0]
        raise InputError(f"{name}: cannot be fetched from the Hub: {line}") from error


def file_beside(name: str, commit: str | None, file: str) -> Path | None:
    """A file in the folder of a model, or in the cached snapshot of its Hub repository; `None` if there is none."""
    if (Path(name) / file).is_file():
        return Path(name) / file
    if commit is None or Path(name).exists():
        return None
    cached = try_to_load_from_cache(name, file, revision=commit)
    return Path(cached) if isinstance(cached, str) else None
