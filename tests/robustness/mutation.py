"""Damage for readers: bytes and JSON values that are nearly what they were, from a seeded generator."""

import copy
import random
from typing import Any

_ODD_BYTES = (b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"\n", b"{", b"[" * 3000, b"9" * 6000, b"\x1b[2J", b"\xff" * 8)
_ODD_VALUES: tuple[Any, ...] = (
    None,
    [],
    {},
    "x",
    "",
    "\ud800",
    "\x1b[2J\n",
    True,
    0,
    -1,
    1.5,
    2**31,
    2**63,
    10**4000,
    float("inf"),
    float("nan"),
    [None],
    [[["x"]]],
    {"x": {}},
    "x" * 100_000,
)


def mutated_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, insert, repeat or overwrite bytes of `content`, once to thrice.

    Example:
        >>> mutated_bytes(b"abc", random.Random(0)) == mutated_bytes(b"abc", random.Random(0)) != b"abc"
        True
    """
    damaged = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(damaged) + 1)
        length = int(2 ** rng.uniform(0, 12))
        match rng.randrange(5):
            case 0 if at < len(damaged):
                damaged[at] ^= 1 << rng.randrange(8)
            case 1:
                del damaged[at : at + length]
            case 2:
                damaged[at:at] = rng.choice(_ODD_BYTES)
            case 3:
                damaged[at:at] = damaged[at : at + length]
            case _:
                odd = rng.choice(_ODD_BYTES)
                damaged[at : at + len(odd)] = odd
    return bytes(damaged)


def mutated_json(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one value somewhere in it replaced by an odd one, or one key or element removed.

    Example:
        >>> mutated_json({"a": [1, 2]}, random.Random(3)) != {"a": [1, 2]}
        True
    """
    changed = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []
    unseen = [changed]
    while unseen:
        inner = unseen.pop()
        if isinstance(inner, dict | list):
            keys = list(inner) if isinstance(inner, dict) else range(len(inner))
            places += [(inner, key) for key in keys]
            unseen += [inner[key] for key in keys]
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(_ODD_VALUES))
    # Half of the time close to the top, where most of what a reader looks at stands.
    place, key = rng.choice(places[:40] if rng.random() < 0.5 else places)
    if rng.random() < 0.15:
        del place[key]
    else:
        place[key] = copy.deepcopy(rng.choice(_ODD_VALUES))
    return changed
