"""Split the texts and facts of a training from those that are held out."""

import random
from collections.abc import Sequence
from itertools import chain, zip_longest

from transformers import PreTrainedTokenizerBase

from ugap.data import TextRow, load_texts
from ugap.data.domain import CREATIVE, FUNCTIONAL
from ugap.data.facts import Fact
from ugap.errors import InputError
from ugap.study.excerpts import cut_excerpts


def read_texts(sources: Sequence[str], functional: Sequence[str] = (), *, limit: int | None = None) -> list[TextRow]:
    """Read texts to train on or to hold out: all of some sources, and the functional texts of others.

    Args:
        sources (`Sequence[str]`): As [`load_texts`][] takes them, with a column `domain`.
        functional (`Sequence[str]`, *optional*): Sources that give only their functional texts.
        limit (`int`, *optional*): Texts of each domain and source.

    Raises:
        InputError: If a source cannot be read, a domain is missing or neither `"creative"` nor `"functional"`, a source
            of functional texts has none, or two texts have one id.
    """
    texts: dict[str, TextRow] = {}
    for source in [*sources, *(name for name in functional if name not in sources)]:
        rows = load_texts(source, limit=limit)
        if source not in sources:
            rows = [row for row in rows if row.domain == FUNCTIONAL]
            if not rows:
                raise InputError(f"{source}: has no texts of the domain {FUNCTIONAL!r}")
        for row in rows:
            if row.domain not in (CREATIVE, FUNCTIONAL):
                raise InputError(f"{row.where}: domain {row.domain!r} is neither {CREATIVE!r} nor {FUNCTIONAL!r}")
            # Ids join prefixes with continuations later.
            if row.id in texts:
                raise InputError(
                    f"{row.where}: id {row.id!r} is that of {texts[row.id].where}: each text needs its own"
                )
            texts[row.id] = row
    return list(texts.values())


def hold_out(
    texts: Sequence[TextRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefix_tokens: int,
    max_new_tokens: int,
    share: float = 0.1,
) -> tuple[list[TextRow], list[TextRow]]:
    """Split texts into those to train on and those to evaluate on. Whole texts are held out, so no source is in both.

    The same texts are held out whatever the seed of a training, so that runs can be compared.

    Args:
        texts (`Sequence[TextRow]`): Texts of any number of domains.
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        prefix_tokens (`int`): Tokens of a held-out prefix.
        max_new_tokens (`int`): Tokens of its continuation; shorter texts are not held out.
        share (`float`, *optional*, defaults to `0.1`): Share of the texts of each domain, at least one.

    Raises:
        InputError: If a domain has no text that is long enough, or nothing would be left to train on.
    """
    long = cut_excerpts(texts, tokenizer, prefix_tokens=prefix_tokens, max_new_tokens=max_new_tokens, per_text=1)
    held: set[str] = set()
    for domain in dict.fromkeys(text.domain for text in texts):
        of_domain = [text.id for text in texts if text.domain == domain]
        able = sorted(excerpt.source for excerpt in long if excerpt.domain == domain)
        # At least one text, but never more than are long enough.
        n = min(len(able), max(1, round(share * len(of_domain))))
        if n == len(of_domain):
            raise InputError(f"domain {domain!r}: with one text there is none to hold out; name held-out texts")
        # A fixed seed, see above: runs with other seeds hold out the same texts.
        held |= set(random.Random(0).sample(able, n))
    return [text for text in texts if text.id not in held], [text for text in texts if text.id in held]


def some_of_every_kind(facts: Sequence[Fact], n: int) -> list[Fact]:
    """At most `n` facts, from each kind in turn."""
    kinds: dict[str, list[Fact]] = {}
    for fact in facts:
        kinds.setdefault(fact.kind, []).append(fact)
    return [fact for fact in chain.from_iterable(zip_longest(*kinds.values())) if fact is not None][:n]
