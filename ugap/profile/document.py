"""The file of a human profile: where shipped ones are, and what is refused before a figure is read."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from ugap.errors import InputError

VERSION = 3
_MOST_BYTES = 32 * 2**20  # a kind takes some 10 thousand


def shipped_files() -> dict[str, Any]:
    """Files of the shipped profiles by name."""
    folder = resources.files("ugap.profile") / "shipped"
    entries = sorted(folder.iterdir(), key=lambda entry: entry.name) if folder.is_dir() else []
    return {entry.name.removesuffix(".json"): entry for entry in entries if entry.name.endswith(".json")}


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object of a profile of this version.

    Raises:
        InputError: If the file cannot be read, is no profile, or is of another version.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InputError(f"{path}: not a human profile: more than {_MOST_BYTES:,} bytes")
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a human profile: {error}") from error
    if not isinstance(document, dict) or type(document.get("version")) is not int:
        raise InputError(f"{path}: not a human profile: it has no version")
    if document["version"] != VERSION:
        shown = str(document["version"])[:12]
        raise InputError(
            f"{path}: a human profile of version {shown}; this ugap reads version {VERSION}: fit it again with "
            "`ugap profile --model ... --data ... --output ...`"
        )
    return document
