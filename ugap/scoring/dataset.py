"""Score a data set: add the scorer's numbers to its rows as columns.

`map` of `datasets` runs the scorer on blocks of rows. A `Dataset` is written to disk while it is scored, an
`IterableDataset` stays lazy. The fingerprint of the result covers everything that changes a number. So `datasets` never
hashes or pickles the model, and scoring the same rows again reads the cached file.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from accelerate.utils import get_cpu_distributed_information
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    List,
    Value,
    disable_progress_bars,
    enable_progress_bars,
    is_progress_bar_enabled,
)
from datasets.distributed import split_dataset_by_node

from ugap import __version__
from ugap.errors import InputError
from ugap.models.fingerprint import weight_hash
from ugap.scoring.records import STATISTICS, TokenScores

if TYPE_CHECKING:
    from ugap.scoring.scorer import Scorer

AnyDataset = TypeVar("AnyDataset", Dataset, IterableDataset)


def score_dataset(
    scorer: "Scorer",
    dataset: AnyDataset,
    *,
    text_column: str = "text",
    prefix_column: str | None = None,
    pmi: bool = False,
    special_tokens: bool = False,
    batch_size: int = 256,
    skip_bad: bool = False,
    progress: bool = True,
) -> AnyDataset:
    """Score a column of texts; see [`Scorer.score_dataset`][]."""
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise TypeError(f"dataset is a {type(dataset).__name__}, not a Dataset or an IterableDataset: choose one split")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, not a positive number")
    inputs = [text_column] if prefix_column is None else [text_column, prefix_column]
    added = _features(pmi)
    if dataset.column_names is not None:
        _check_columns(dataset.column_names, inputs, added)
    # Where a stream does not know its columns, those of the result are unknown too.
    features: Any = None if dataset.features is None else Features({**dataset.features, **added})
    # The launcher's environment says who we are; `PartialState()` would open a process group, and takes several
    # processes without GPUs for single ones.
    process = get_cpu_distributed_information()
    dataset, name_row = _local_part(dataset, process.rank, process.world_size)

    def score_rows(batch: dict[str, Any], indices: Sequence[int]) -> dict[str, list]:
        _check_columns(list(batch), inputs, {})
        names = [name_row(i) for i in indices]
        # A missing text is an empty one, and is refused as such.
        texts = ["" if text is None else text for text in batch[text_column]]
        for text, name in zip(texts, names, strict=True):
            if not isinstance(text, str):
                raise InputError(f"{name}: column {text_column!r} holds {type(text).__name__}, not text")
        prefixes = None if prefix_column is None else ["" if p is None else p for p in batch[prefix_column]]
        scores = scorer.score(texts, prefixes, pmi, special_tokens=special_tokens, names=names, skip_bad=skip_bad)
        return _columns(scores, list(added))

    if isinstance(dataset, IterableDataset):
        return dataset.map(score_rows, with_indices=True, batched=True, batch_size=batch_size, features=features)
    if not len(dataset):
        # `map` leaves an empty data set as it is, without the columns.
        return Dataset.from_dict({name: [] for name in features}, features=features, split=dataset.split)
    with _progress_bars(progress and process.local_rank == 0):
        return dataset.map(
            score_rows,
            with_indices=True,
            batched=True,
            batch_size=batch_size,
            features=features,
            new_fingerprint=_fingerprint(
                scorer, dataset, inputs, pmi=pmi, special_tokens=special_tokens, skip_bad=skip_bad
            ),
            desc=f"scoring with {scorer.name}",
        )


def _features(pmi: bool) -> dict[str, Any]:
    """Types of the added columns, in their order."""
    floats = (*STATISTICS, "marginal_surprisal") if pmi else STATISTICS
    integers = {"token_ids": List(Value("int32")), "offsets": List(Value("int32"))}
    return {**integers, **{name: List(Value("float32")) for name in floats}, "straddles": Value("bool")}


def _columns(scores: Sequence[TokenScores | None], names: Sequence[str]) -> dict[str, list]:
    """The added columns of some rows; null where a bad row was skipped."""
    out: dict[str, list] = {name: [] for name in names}
    for record in scores:
        for name, column in out.items():
            value = None if record is None else getattr(record, name)
            column.append(value if value is None or isinstance(value, bool) else value.reshape(-1).tolist())
    return out


def _check_columns(present: Sequence[str], inputs: Sequence[str], added: dict[str, Any]) -> None:
    for name in inputs:
        if name not in present:
            raise InputError(f"the data set has no column {name!r}, it has {', '.join(present)}")
    if taken := [name for name in added if name in present]:
        raise InputError(f"the data set already has {', '.join(taken)}: rename or remove what it has")


def _local_part(dataset: AnyDataset, rank: int, n_processes: int) -> tuple[AnyDataset, Callable[[int], str]]:
    """The rows of this process, and what the `i`-th of them is called in errors."""
    if n_processes == 1:
        return dataset, lambda i: f"row {i}"
    if isinstance(dataset, Dataset):
        if rank >= len(dataset):
            # `split_dataset_by_node` cannot make an empty part.
            return dataset.select([]), lambda i: f"row {i}"
        before = sum(len(split_dataset_by_node(dataset, i, n_processes)) for i in range(rank))
        return split_dataset_by_node(dataset, rank, n_processes), lambda i: f"row {before + i}"
    if dataset.num_shards % n_processes == 0:
        return split_dataset_by_node(dataset, rank, n_processes), lambda i: f"row {i} of part {rank}"
    # `split_dataset_by_node` would drop the other processes' rows only after they were scored.
    part = dataset.filter(lambda _, i: i % n_processes == rank, with_indices=True)
    return part, lambda i: f"row {rank + n_processes * i}"


def _fingerprint(scorer: "Scorer", dataset: Dataset, inputs: list[str], **settings: bool) -> str:
    """Hash of everything that changes a number."""
    model, tokenizer = scorer.model, scorer.tokenizer
    parts = {
        "version": __version__,
        "dataset": dataset._fingerprint,
        # Taken anew: the weights may have been trained since the scorer was made.
        "weights": weight_hash(model),
        "config": model.config.to_json_string(use_diff=False),
        "dtype": str(model.dtype),
        "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "scorer": [scorer.bos, scorer.max_length, scorer.precision],
        "columns": inputs,
        **settings,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def _progress_bars(wanted: bool) -> Iterator[None]:
    hide = not wanted and is_progress_bar_enabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
