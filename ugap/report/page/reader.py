"""The data of the page's reader: human and model continuations of one prefix, token by token.

Design choices:

- A page holds at most a budget of tokens. Prefixes are drawn for every run and domain in turn, with a fixed seed, and
  a prefix comes with all that was written for it, so that decodings can be compared on it.
- A character may be made of several tokens. It is shown once, with the numbers of its most surprising token, as in the
  terminal's heat map. Strings are cut here and not in the browser, which counts characters otherwise.
- Numbers are whole hundredths: the page stays small.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ugap.files import without_nan
from ugap.report.labels import label, writer
from ugap.report.page.runs import Run
from ugap.scoring import TokenScores
from ugap.study.measures import text_value
from ugap.study.pairs import ScoredText, pair

MOST_TOKENS = 100_000
MEANS = ("nll", "entropy", "deviation", "pmi")
_MOST_REST = 600  # characters shown after the last token compared


def reading(runs: Sequence[Run], both: Sequence[bool], most_tokens: int = MOST_TOKENS) -> dict[str, Any]:
    """Texts and pairs for the reader.

    Args:
        runs (`Sequence[Run]`): The runs.
        both (`Sequence[bool]`): For each, whether it has raw and chat prompting.
        most_tokens (`int`, *optional*): Tokens at most; one prefix of every run and domain is always there.

    Returns:
        `dict`: `texts`, `prefixes`, and `items` that point to them: run, writer, scorer, domain, series, id, prefix,
        human text, model text; and `total`, the number of pairs in the runs.
    """
    shelf = _Shelf()
    drawn: dict[tuple[int, int], list[list[Any]]] = {}
    turns = [(number, *queue) for number, run in enumerate(runs) for queue in _queues(run)]
    turn_number = 0
    while True:
        turns = [turn for turn in turns if turn_number < len(turn[1])]
        if not turns or (turn_number and shelf.n_tokens >= most_tokens):
            break
        for number, order, groups in turns:
            if turn_number and shelf.n_tokens >= most_tokens:
                break
            position = order[turn_number]
            drawn[number, position] = _items(shelf, number, groups[position], both[number])
        turn_number += 1
    return {
        "texts": shelf.texts,
        "prefixes": shelf.prefixes,
        "items": [item for key in sorted(drawn) for item in drawn[key]],
        "total": sum(len(cell.human) for run in runs for cell in run.cells),
    }


def _queues(run: Run) -> list[tuple[list[int], dict[int, list[ScoredText]]]]:
    """For every domain the places of its prefixes, shuffled, and the texts by place."""
    index: dict[tuple[str, str], int] = {}
    groups: dict[int, list[ScoredText]] = {}
    for text in run.texts:
        groups.setdefault(index.setdefault((text.domain, text.id), len(index)), []).append(text)
    # Fixed: the page of one study is the same bytes each time.
    rng = np.random.default_rng(0)
    queues = []
    for domain in dict.fromkeys(domain for domain, _ in index):
        positions = [position for (other, _), position in index.items() if other == domain]
        queues.append(([positions[i] for i in rng.permutation(len(positions))], groups))
    return queues


class _Shelf:
    """Texts and prefixes of the page, each once."""

    def __init__(self) -> None:
        self.texts: list[dict[str, Any]] = []
        self.prefixes: list[str] = []
        self.n_tokens = 0
        self._places: dict[Any, int] = {}

    def text(self, scores: TokenScores, prefix: str) -> int:
        # Surprisals are in the key: one text may be read after two prompts, or cut at two lengths.
        key = (scores.scorer, prefix, scores.text, len(scores), scores.surprisal.tobytes())
        if key not in self._places:
            self._places[key] = len(self.texts)
            self.texts.append(entry(scores))
            self.n_tokens += len(scores)
        return self._places[key]

    def prefix(self, prefix: str) -> int:
        if prefix not in self._places:
            self._places[prefix] = len(self.prefixes)
            self.prefixes.append(prefix)
        return self._places[prefix]


def _items(shelf: _Shelf, number: int, texts: Sequence[ScoredText], both: bool) -> list[list[Any]]:
    """The pairs of one prefix."""
    by_cell = {(text.model, text.prompting, text.decoding, text.scorer): text for text in texts}
    out = []
    for cell in pair(texts):
        text = by_cell[cell.model, cell.prompting, cell.decoding, cell.scorer]
        for human, generated in zip(cell.human, cell.generated, strict=True):
            out.append(
                [
                    number,
                    *writer(cell, both),
                    cell.domain,
                    label(cell),
                    text.id,
                    shelf.prefix(text.prefix),
                    shelf.text(human, text.prefix),
                    shelf.text(generated, text.prefix),
                ]
            )
    return out


def entry(scores: TokenScores) -> dict[str, Any]:
    """A text for the reader.

    Args:
        scores (`TokenScores`): The text, cut to the tokens compared.

    Returns:
        `dict`: `lead`, characters before the first token; `pieces`, the strings; `s`, `h`, `z`, `m` (PMI) in hundredths
        and `r` (rank), null where there is none; `means` of the text by measure; `k`, tokens of a
        piece that has several; `rest`, what was not compared.
    """
    pieces: list[str] = []
    members: list[list[int]] = []
    begin = position = int(scores.offsets[0, 0])
    for i, end in enumerate(scores.offsets[:, 1].tolist()):
        piece = scores.text[position:end]
        position = max(position, end)
        if piece or not members:
            pieces.append(piece)
            members.append([i])
        else:
            members[-1].append(i)
    surprisal = np.nan_to_num(scores.surprisal, nan=-1.0)
    chosen = [max(group, key=lambda i: surprisal[i]) for group in members]
    pmi = None if scores.marginal_surprisal is None else scores.pmi
    columns = {"s": scores.surprisal, "h": scores.entropy, "z": scores.deviation, "m": pmi}
    measures = MEANS if pmi is not None else MEANS[:-1]
    rest = scores.text[position:]
    return {
        "lead": scores.text[:begin],
        "pieces": pieces,
        **{name: None if values is None else _hundredths(values[chosen]) for name, values in columns.items()},
        "r": [int(value) if np.isfinite(value) else None for value in scores.rank[chosen]],
        "k": {str(i): len(group) for i, group in enumerate(members) if len(group) > 1},
        "means": without_nan([round(text_value(scores, measure), 4) for measure in measures]),
        "rest": rest if len(rest) <= _MOST_REST else rest[:_MOST_REST] + " …",
    }


def _hundredths(values: np.ndarray) -> list[int | None]:
    return [int(value) if np.isfinite(value) else None for value in np.rint(100.0 * values.astype(np.float64))]
