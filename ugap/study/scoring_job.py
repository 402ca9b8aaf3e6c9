"""Score many texts in parts: finished parts survive a kill, and processes started together share the work."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from accelerate.utils import get_cpu_distributed_information
from rich.progress import track

from ugap.data import PartStore, part_key
from ugap.errors import InputError
from ugap.scoring import Scorer
from ugap.study.store import SCORES, scores_to_row

TEXTS_PER_PART = 64
_POLL_SECONDS = 0.2


class ScoringJob:
    """Scores of named texts, kept part by part in a folder.

    Under `accelerate launch` every process scores its share of the parts. The processes meet in the folder and need no
    process group: the launcher's environment gives their ranks, on CPU as on GPU.

    Args:
        scorer (`Scorer`): The scorer.
        folder (`str` or `Path`): Folder of the parts.
        pmi (`bool`, *optional*, defaults to `False`): Score each text without its prefix too.
        skip_bad (`bool`, *optional*, defaults to `False`): Log a bad text and leave it out.
        special_tokens (`bool`, *optional*, defaults to `False`): Read strings such as `<bos>` as special tokens.
        resume (`bool`, *optional*, defaults to `False`): Use the parts that are in the folder.
        settings (`dict[str, Any]`, *optional*): Further settings of the scores; they may not change between runs.

    Raises:
        InputError: If the folder holds parts and `resume` is off, or they were made with other settings.
    """

    def __init__(
        self,
        scorer: Scorer,
        folder: str | Path,
        *,
        pmi: bool = False,
        skip_bad: bool = False,
        special_tokens: bool = False,
        resume: bool = False,
        settings: dict[str, Any] | None = None,
    ):
        folder = Path(folder)
        process = get_cpu_distributed_information()
        self.rank, self.size = process.rank, process.world_size
        if self.is_main and folder.exists() and not resume:
            raise InputError(f"{folder}: holds an unfinished run; add --resume to finish it, or remove the folder")
        while not self.is_main and not (folder / "settings.json").exists():
            time.sleep(_POLL_SECONDS)  # until the main process has checked the folder
        self.scorer = scorer
        self.options = {"pmi": pmi, "special_tokens": special_tokens, "skip_bad": skip_bad}
        # A column of nulls would double the file's width for nothing.
        columns = [column for column in SCORES if pmi or column.name != "marginal_surprisal"]
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
        where: Sequence[str],
        progress: bool = False,
    ) -> list[str]:
        """Score this process's share of the missing parts; the keys of all parts, in order.

        Args:
            ids (`Sequence[str]`): Names of the texts, for the column `id`.
            texts (`Sequence[str]`): Texts.
            prefixes (`Sequence[str]`, *optional*): The prefix of each.
            where (`Sequence[str]`): Where each was read, as errors say it.
            progress (`bool`, *optional*, defaults to `False`): Show a progress bar.

        Raises:
            InputError: If a text cannot be scored; finished parts stay.
        """
        prefixes = [""] * len(texts) if prefixes is None else prefixes
        # Every process names all parts and does every n-th: nothing has to be sent between them.
        begins = range(0, len(texts), TEXTS_PER_PART)
        keys = {begin: self._key(begin, ids, texts, prefixes) for begin in begins}
        mine = [begin for i, begin in enumerate(begins) if i % self.size == self.rank]
        for begin in track(mine, "scoring", disable=not (progress and self.is_main)):
            part = slice(begin, begin + TEXTS_PER_PART)
            if self.store.done(keys[begin]):
                continue
            try:
                scores = self.scorer.score(texts[part], prefixes[part], names=where[part], **self.options)
            except InputError:
                if self.size == 1 and not any(self.store.folder.glob("*.parquet")):
                    self.store.clear()  # nothing to resume: a corrected command may start here
                raise
            rows = []
            for name, score in zip(ids[part], scores, strict=True):
                if score is not None:
                    row = {"id": name, **scores_to_row(score)}
                    rows.append({column: row[column] for column in self.store.schema.names})
            self.store.write(keys[begin], rows)
        return list(keys.values())

    def finish(self, path: str | Path, keys: Sequence[str]) -> None:
        """Merge the parts to one Parquet file and remove them; the main process does, when all others are done."""
        if not self.is_main:
            return
        # The last process may still be scoring: a part is there when its file is whole.
        for key in keys:
            while not self.store.done(key):
                time.sleep(_POLL_SECONDS)
        self.store.merge(path, keys)
        self.store.clear()

    @property
    def is_main(self) -> bool:
        """Whether this process checks the folder and merges the parts."""
        return self.rank == 0

    def _key(self, begin: int, ids: Sequence[str], texts: Sequence[str], prefixes: Sequence[str]) -> str:
        """The key of a part: by its texts, so that the texts of a file may change between two runs."""
        part = slice(begin, begin + TEXTS_PER_PART)
        content = list(zip(ids[part], texts[part], prefixes[part], strict=True))
        return part_key(f"from-{begin}", weights=self.scorer.id.weight_hash, content=content)
