"""The folder of a run: which run it holds, where that is gone on from, and what was made before training.

The folder says what the run is (`ugap_run.json`): another run neither goes on in it nor overwrites it. What is made
before training (pairs, samples) is kept there, whole or absent, so that a run that goes on trains on the same.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

import ugap
from ugap.errors import InputError
from ugap.files import replacing

RUN_FILE = "ugap_run.json"


def open_run(folder: str | Path, resume: str | None, settings: Mapping[str, Any]) -> Path | None:
    """See that a run may train in a folder, and find the checkpoint that it goes on from.

    Every process has to call it, before any writes into the folder; `note_run` writes the settings down.

    Args:
        folder (`str` or `Path`): The output folder.
        resume (`str`, *optional*): `"yes"` goes on where the run in the folder was: from its last checkpoint, or from
            the start if it has none. A path is that of a checkpoint. By default a new run starts.
        settings (`Mapping[str, Any]`): What a run that goes on must share with the one it goes on from.

    Returns:
        `Path` or `None`: The checkpoint.

    Raises:
        InputError: If the folder holds another run, there is nothing to go on from, or settings differ.
    """
    folder = Path(folder)
    found: Path | None = None
    if resume is None or resume.lower() in ("no", "false"):
        if (folder / RUN_FILE).exists() or _checkpoints(folder):
            raise InputError(
                f"{folder}: there is a run already; add --resume_from_checkpoint yes to go on, or choose another folder"
            )
    else:
        if resume.lower() in ("yes", "true"):
            found = next(iter(_checkpoints(folder)), None)
            if found is None and not (folder / RUN_FILE).exists():
                raise InputError(f"{folder}: there is no run to go on with")
        else:
            found = Path(resume)
            if not _is_whole(found):
                raise InputError(f"{resume}: not a checkpoint: it has no trainer_state.json, or a damaged one")
        check_settings(folder if found is None else found.parent, settings)
    PartialState().wait_for_everyone()
    return found


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were finished, the last one first."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    whole = {path: int(step[1]) for path, step in steps.items() if step and _is_whole(path)}
    return sorted(whole, key=whole.__getitem__, reverse=True)


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was finished: transformers writes the state of the trainer last, and not at once."""
    try:
        return isinstance(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def check_settings(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """See that the run in a folder, if there is one, was made with these settings, as far as it knows them.

    Raises:
        InputError: One differs, or the record of the run cannot be read.
    """
    path = Path(folder) / RUN_FILE
    try:
        known = dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except FileNotFoundError:
        return  # a checkpoint of another program's run
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the record of a run") from error
    for name, value in json.loads(json.dumps(dict(settings))).items():
        if name in known and known[name] != value:
            raise InputError(f"{path.parent}: the run there has {name} {known[name]!r}, not {value!r}")


def note_run(folder: str | Path, settings: Mapping[str, Any], **more: Any) -> None:
    """Write down in its folder what a run is; by the main process."""
    if PartialState().is_main_process:
        record = {"version": ugap.__version__, "settings": dict(settings), **more}
        with replacing(Path(folder) / RUN_FILE) as temporary:
            temporary.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def made_once(path: str | Path, make: Callable[[], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines. Where there is none, every process makes them and the main one writes them.

    Raises:
        InputError: If the file cannot be read.
    """
    path = Path(path)
    there = path.is_file()
    PartialState().wait_for_everyone()  # none writes before all have looked
    if there:
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not JSON lines: {error}") from error
        if not all(isinstance(row, dict) for row in rows) or not rows:
            raise InputError(f"{path}: not JSON lines of objects")
        return rows
    made = [dict(row) for row in make()]
    if PartialState().is_main_process:
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return made
