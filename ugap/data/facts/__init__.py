"""Facts that everybody may know: statements without their last words, the right end and three wrong ones of its kind.

They are stated by this project, for a look at what a decoding or a fine-tuning does to what a model knows. A prompt
ends right before the answer, which follows after a space, so that a base model can continue it. Every fact is true in
every year and place: no office-holders, no prices, no disputed borders.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from ugap.errors import InputError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Fact:
    """One fact as a statement to complete.

    Args:
        id (`str`): Name of the fact, unique, such as `"capitals/france"`.
        kind (`str`): Its kind, such as `"capitals"`.
        prompt (`str`): The text before the answer, without a space at its end.
        answer (`str`): The right answer.
        wrong (`tuple[str, str, str]`): Wrong answers of the same type.
        accept (`tuple[str, ...]`): Other ways to give the right answer, such as `"8"` for `"eight"`.
    """

    id: str
    kind: str
    prompt: str
    answer: str
    wrong: tuple[str, str, str]
    accept: tuple[str, ...] = ()


def fact_kinds() -> list[str]:
    """The kinds of facts, in the order of the alphabet."""
    return sorted(path.stem for path in _FOLDER.glob("*.jsonl"))


def load_facts(kinds: Sequence[str] | None = None, *, limit: int | None = None) -> list[Fact]:
    """Read the facts that the package ships.

    Args:
        kinds (`Sequence[str]`, *optional*): The kinds to read; by default all of `fact_kinds`.
        limit (`int`, *optional*): So many facts, taken from each kind in turn, so that a few are of every kind.

    Returns:
        `list[Fact]`: The facts: kind by kind without a limit.

    Raises:
        InputError: If a kind is unknown or the limit is not positive.

    Example:
        >>> fact = load_facts(["capitals"])[0]
        >>> fact.prompt, fact.answer, fact.wrong
        ('The capital of France is', 'Paris', ('Lyon', 'Marseille', 'Bordeaux'))
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, and at least 1 is needed")
    shipped = fact_kinds()
    for kind in kinds or ():
        if kind not in shipped:
            raise InputError(f"unknown kind of facts {kind!r}: choose of {', '.join(shipped)}")
    files = [_read(kind) for kind in (shipped if kinds is None else kinds)]
    if limit is None:
        return list(chain.from_iterable(files))
    in_turn = chain.from_iterable(zip_longest(*files))
    return [fact for fact in in_turn if fact is not None][:limit]


def split_facts(facts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """Two halves of facts: one to train on, and one that is held out. Of each kind every other fact goes to each.

    Example:
        >>> training, held_out = split_facts(load_facts(["capitals"]))
        >>> len(training), len(held_out), training[0].id, held_out[0].id
        (40, 40, 'capitals/france', 'capitals/germany')
    """
    halves: tuple[list[Fact], list[Fact]] = ([], [])
    seen: Counter[str] = Counter()
    for fact in facts:
        halves[seen[fact.kind] % 2].append(fact)
        seen[fact.kind] += 1
    return halves


def _read(kind: str) -> list[Fact]:
    lines = (_FOLDER / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = map(json.loads, lines)
    return [Fact(**{**row, "wrong": tuple(row["wrong"]), "accept": tuple(row.get("accept", ()))}) for row in rows]
