"""The folder of a run: its settings, its checkpoints, and the data made before training.

`ugap_run.json` records the run, so that another run neither resumes from the folder nor overwrites it. Data made before
training (pairs, samples) are kept, whole or absent, so that a resumed run trains on the same rows.
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
    """Check that a run may train in a folder, and find the checkpoint to resume from.

    Every process has to call this before any process writes into the folder. `note_run` records the settings.

    Args:
        folder (`str` or `Path`): The output folder.
        resume (`str`, *optional*): `"yes"` resumes the run in the folder from its last checkpoint, or from the start if
            it has none. A path names a checkpoint. By default a new run starts.
        settings (`Mapping[str, Any]`): Settings that a resumed run must share with the run before.

    Returns:
        `Path` or `None`: The checkpoint.

    Raises:
        InputError: If the folder holds another run, there is nothing to resume, or settings differ.
    """
    folder = Path(folder)
    checkpoint: Path | None = None
    if resume is None or resume.lower() in ("no", "false"):
        if (folder / RUN_FILE).exists() or _checkpoints(folder):
            raise InputError(
                f"{folder}: there is a run already; add --resume_from_checkpoint yes to go on, or choose another folder"
            )
    else:
        if resume.lower() in ("yes", "true"):
            checkpoint = next(iter(_checkpoints(folder)), None)
            if checkpoint is None and not (folder / RUN_FILE).exists():
                raise InputError(f"{folder}: there is no run to resume")
        else:
            checkpoint = Path(resume)
            if not _is_whole(checkpoint):
                raise InputError(f"{resume}: not a checkpoint: it has no trainer_state.json, or a damaged one")
        check_settings(folder if checkpoint is None else checkpoint.parent, settings)
    PartialState().wait_for_everyone()  # no process writes before all have looked
    return checkpoint


def _checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints, the last one first."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    whole = {path: int(step[1]) for path, step in steps.items() if step and _is_whole(path)}
    return sorted(whole, key=whole.__getitem__, reverse=True)


def _is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is finished: transformers writes the trainer's state last, and not atomically."""
    try:
        return isinstance(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


def check_settings(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Check that the run in a folder, if there is one, has these settings, as far as its record names them.

    Raises:
        InputError: If a setting differs, or the record of the run cannot be read.
    """
    path = Path(folder) / RUN_FILE
    try:
        recorded = dict(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except FileNotFoundError:
        return  # the checkpoint of another program
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not the record of a run") from error
    for name, value in json.loads(json.dumps(dict(settings))).items():
        if name in recorded and recorded[name] != value:
            raise InputError(f"{path.parent}: the run there has {name} {recorded[name]!r}, not {value!r}")


def note_run(folder: str | Path, settings: Mapping[str, Any], **more: Any) -> None:
    """Record a run in its folder; the main process writes."""
    if PartialState().is_main_process:
        record = {"version": ugap.__version__, "settings": dict(settings), **more}
        with replacing(Path(folder) / RUN_FILE) as temporary:
            temporary.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def made_once(path: str | Path, make: Callable[[], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of a file of JSON lines. Without the file, every process makes the rows and the main process writes them.

    Raises:
        InputError: If the file cannot be read.
    """
    path = Path(path)
    exists = path.is_file()
    PartialState().wait_for_everyone()  # no process writes before all have looked
    if exists:
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not JSON lines: {error}") from error
        if not all(isinstance(row, dict) for row in rows) or not rows:
            raise InputError(f"{path}: not JSON lines of objects")
        return rows
    rows = [dict(row) for row in make()]
    if PartialState().is_main_process:
        with replacing(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows
