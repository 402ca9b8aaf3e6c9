"""The rows of Parquet files that a job writes as it runs: generated texts and scored texts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ugap.data import TextRow, content_hash
from ugap.scoring import ScorerId, TokenScores
from ugap.study.pairs import ScoredText

_FLOATS = pa.list_(pa.float32())
_ARRAYS = ("surprisal", "entropy", "varentropy", "rank")
_LABELS = ("id", "source", "domain", "model", "prompting", "decoding", "scorer", "prefix")

SCORES = pa.schema(
    [
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("offsets", pa.list_(pa.int32())),
        *((name, _FLOATS) for name in (*_ARRAYS, "marginal_surprisal")),
        ("straddles", pa.bool_()),
    ]
)
GENERATED = pa.schema([("id", pa.string()), ("text", pa.string())])
SCORED = pa.schema([*((label, pa.string()) for label in _LABELS), ("weight_hash", pa.string()), *SCORES])


def rows_hash(rows: Sequence[TextRow]) -> str:
    """A fingerprint of human texts and what belongs to them, 16 hexadecimal digits."""
    return content_hash([(row.id, row.domain, row.text, row.prompt, sorted(row.candidates.items())) for row in rows])


def scores_to_row(scores: TokenScores) -> dict[str, Any]:
    """The columns of `SCORES`; offsets are flattened, two per token."""
    return {
        "text": scores.text,
        "token_ids": scores.token_ids,
        # (T, 2) to (2 T): Arrow's lists have one dimension.
        "offsets": scores.offsets.reshape(-1),
        **{name: getattr(scores, name) for name in _ARRAYS},
        "marginal_surprisal": scores.marginal_surprisal,
        "straddles": scores.straddles,
    }


def scores_from_row(row: Mapping[str, Any], scorer: ScorerId) -> TokenScores:
    """The scores of a row of `SCORES`, made by `scorer`."""
    # Null, and not NaN, where the second pass was not made.
    marginal = row.get("marginal_surprisal")
    return TokenScores(
        row["text"],
        np.asarray(row["token_ids"], np.int32),
        np.asarray(row["offsets"], np.int32).reshape(-1, 2),
        **{name: np.asarray(row[name], np.float32) for name in _ARRAYS},
        marginal_surprisal=None if marginal is None else np.asarray(marginal, np.float32),
        scorer=scorer,
        straddles=row["straddles"],
    )


def to_row(text: ScoredText) -> dict[str, Any]:
    """A scored text of a study as a row of `scores.parquet`."""
    labels = {label: getattr(text, label) for label in _LABELS}
    return {**labels, "weight_hash": text.scores.scorer.weight_hash, **scores_to_row(text.scores)}


def from_row(row: Mapping[str, Any]) -> ScoredText:
    """The scored text of a row of `scores.parquet`."""
    scores = scores_from_row(row, ScorerId(row["scorer"], row["weight_hash"]))
    return ScoredText(**{label: row[label] for label in _LABELS}, scores=scores)


def no_scores(text: str, scorer: ScorerId) -> TokenScores:
    """The record of a text without a token to score."""
    empty, ids, offsets = np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
    return TokenScores(text, ids, offsets, empty, empty, empty, empty, None, scorer, False)
