"""Score many texts in parts: what is finished survives a kill, and processes started together share the work."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate import PartialState
from rich.progress import track

from ugap.data import PartStore
from ugap.errors import InputError
from ugap.scoring import Scorer
from ugap.study.store import SCORES, scores_to_row

TEXTS_PER_PART = 64


class ScoringJob:
    """Scores of named texts, kept part by part in a folder.

    Under `accelerate launch` every process scores its share of the parts; all of them return when all is done.

    Args:
        scorer (`Scorer`): Who scores.
        folder (`str` or `Path`): Folder of the parts.
        source (`str`): What errors call the texts, for instance the file that they come from.
        pmi (`bool`, *optional*, defaults to `False`): Score each text without its prefix too.
        skip_bad (`bool`, *optional*, defaults to `False`): Log a bad text and leave it out.
        special_tokens (`bool`, *optional*, defaults to `False`): Read strings such as `<bos>` as special tokens.
        resume (`bool`, *optional*, defaults to `False`): Go on with the parts that are in the folder.
        settings (`dict[str, Any]`, *optional*): What else the scores depend on; it may not change between runs.

    Raises:
        InputError: If the folder holds parts and `resume` is off, or they were made with other settings.
    """

    def __init__(
        self,
        scorer: Scorer,
        folder: str | Path,
        *,
        source: str,
        pmi: bool = False,
        skip_bad: bool = False,
        special_tokens: bool = False,
        resume: bool = False,
        settings: dict[str, Any] | None = None,
    ):
        folder = Path(folder)
        self.state = PartialState() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
        if folder.exists() and not resume and (self.state is None or self.state.is_main_process):
            raise InputError(f"{folder}: an earlier run left off there; add --resume to go on, or remove the folder")
        self.scorer, self.source = scorer, source
        self.options = {"pmi": pmi, "special_tokens": special_tokens, "skip_bad": skip_bad}
        columns = [column for column in SCORES if pmi or column.name != "marginal_surprisal"]
        self._wait()
        self.store = PartStore(
            folder,
            pa.schema([("id", pa.string()), *columns]),
            {**(settings or {}), "scorer": list(scorer.id), **self.options},
        )

    def run(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        prefixes: Sequence[str] | None = None,
        *,
        progress: bool = False,
    ) -> list[str]:
        """Score what is not scored yet; the keys of the parts, in order.

        Raises:
            InputError: If a text cannot be scored; what is finished stays.
        """
        prefixes = [""] * len(texts) if prefixes is None else prefixes
        begins = range(0, len(texts), TEXTS_PER_PART)
        rank, size = (self.state.process_index, self.state.num_processes) if self.state else (0, 1)
        mine = [begin for i, begin in enumerate(begins) if i % size == rank]
        for begin in track(mine, "scoring", disable=not progress or rank > 0):
            part = slice(begin, begin + TEXTS_PER_PART)
            if self.store.done(_key(begin)):
                continue
            names = [f"{self.source}, text {name!r}" for name in ids[part]]
            try:
                scores = self.scorer.score(texts[part], prefixes[part], names=names, **self.options)
            except InputError:
                if self.state is None and not any(self.store.folder.glob("*.parquet")):
                    self.store.clear()  # nothing to go on with: a corrected command may start here
                raise
            rows = []
            for name, score in zip(ids[part], scores, strict=True):
                if score is not None:
                    row = {"id": name, **scores_to_row(score)}
                    rows.append({column: row[column] for column in self.store.schema.names})
            self.store.write(_key(begin), rows)
        self._wait()
        return [_key(begin) for begin in begins]

    def finish(self, path: str | Path, keys: Sequence[str]) -> None:
        """Merge the parts to one Parquet file and remove them."""
        if self.is_main:
            self.store.merge(path, keys)
            self.store.clear()
        self._wait()

    @property
    def is_main(self) -> bool:
        """Whether this process speaks for all."""
        return self.state is None or self.state.is_main_process

    def _wait(self) -> None:
        if self.state is not None:
            self.state.wait_for_everyone()


def _key(begin: int) -> str:
    return f"from-{begin}"
