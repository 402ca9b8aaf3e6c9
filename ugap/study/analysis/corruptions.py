"""Texts that a reward must not take for human text: noise, shuffles, loops, and text that belongs to another place.

Each is made from a human continuation and has about its length. It starts with the same white space, so that its first
word is not glued to the prefix.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from ugap.errors import InputError
from ugap.sampling.portable.special import special_tokens
from ugap.study.excerpts import Excerpt
from ugap.unicode import text_fault

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’])\s+")
_REPLACED = 0.3  # share of the words
# Written for this purpose, so that no model knows them by heart.
OTHER_LANGUAGES = {
    "German": (
        "Am Morgen ging die alte Frau zum Brunnen und fand dort einen Handschuh, der keinem im Dorf gehörte. Sie "
        "fragte den Müller, den Lehrer und zuletzt den Jungen mit dem Hund, doch alle schüttelten nur den Kopf. Da "
        "legte sie ihn auf die Mauer und wartete bis zum Abend. Als die Sonne sank, kam ein Wagen herauf, und der "
        "Kutscher hatte nur eine Hand bedeckt. Er sagte nichts, nahm den Handschuh und ließ ihr eine Münze da, die so "
        "alt war, dass niemand das Gesicht darauf erkannte."
    ),
    "Spanish": (
        "El viernes por la tarde mi hermano abrió la caja que nadie había tocado desde el invierno. Dentro había una "
        "radio pequeña, dos cartas sin firma y un billete de tren para una ciudad que ya no existe. Nos sentamos en la "
        "cocina y leímos las cartas en voz alta, despacio, como si alguien nos escuchara detrás de la puerta. Mi madre "
        "apagó la luz antes de que llegáramos al final y dijo que algunas historias se guardan mejor en la oscuridad."
    ),
}
CODE = """
def merge(left, right):
    out = []
    i = j = 0
    while i < len(left) and j < len(right):
        if left[i] <= right[j]:
            out.append(left[i])
            i += 1
        else:
            out.append(right[j])
            j += 1
    return out + left[i:] + right[j:]


class Queue:
    def __init__(self, size=16):
        self.items = [None] * size
        self.head = self.tail = 0

    def push(self, item):
        if (self.tail + 1) % len(self.items) == self.head:
            raise IndexError("full")
        self.items[self.tail] = item
        self.tail = (self.tail + 1) % len(self.items)
"""


def corruptions(
    excerpts: Sequence[Excerpt], tokenizer: PreTrainedTokenizerBase, n: int
) -> dict[str, Callable[[Excerpt], str]]:
    """How each kind of text is made from an excerpt, by the name of the kind.

    Args:
        excerpts (`Sequence[Excerpt]`): Prefixes with their human continuations, of at least two sources.
        tokenizer (`PreTrainedTokenizerBase`): Counts the tokens of texts that do not get their length from a person.
        n (`int`): Tokens of such a text, at most.

    Raises:
        InputError: If all excerpts are of one source.
    """
    # Each prefix with the continuation of another source.
    others = {one.id: text for one, text in zip(excerpts, of_other_sources(excerpts), strict=True)}
    rare, common = rare_and_common([one.human for one in excerpts])

    def rng(excerpt: Excerpt) -> random.Random:
        # By the excerpt, so that a resumed run or another limit corrupts a text in the same way.
        return random.Random(excerpt.id)

    def fixed(text: str) -> Callable[[Excerpt], str]:
        return lambda one: _start(one.human) + first_tokens(tokenizer, text, n)

    return {
        "random tokens": lambda one: random_tokens(tokenizer, n, rng(one)),
        "shuffled words": lambda one: shuffled_words(one.human, rng(one)),
        "shuffled sentences": lambda one: shuffled_sentences(one.human, rng(one)),
        "loop of 8 words": lambda one: looped(one.human, 8),
        "loop of 20 words": lambda one: looped(one.human, 20),
        "another story": lambda one: others[one.id],
        "prefix's words, another story": lambda one: first_tokens(
            tokenizer, _start(one.human) + " ".join(one.prefix.split()[-8:]) + others[one.id], n
        ),
        "30% rare words": lambda one: replaced_words(one.human, rare, _REPLACED, rng(one)),
        "30% common words": lambda one: replaced_words(one.human, common, _REPLACED, rng(one)),
        "copied prefix": lambda one: first_tokens(tokenizer, _start(one.human) + one.prefix.lstrip(), n),
        "one fixed text": fixed(excerpts[0].human.lstrip()),
        **{name: fixed(text) for name, text in OTHER_LANGUAGES.items()},
        "code": fixed(CODE),
    }


def first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, n: int) -> str:
    """The first `n` tokens of a text, as text."""
    offsets = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    return text[: offsets["offset_mapping"][:n][-1][1]]


def random_tokens(tokenizer: PreTrainedTokenizerBase, n: int, rng: random.Random) -> str:
    """The text of `n` tokens, each drawn from the whole vocabulary but the special ones.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        n (`int`): Tokens; read again, the text may have a few more or less.
        rng (`random.Random`): Where they are drawn from.
    """
    # A special token is no noise that a policy could write: the samplers suppress it.
    special = special_tokens(tokenizer)
    ids = [i for i in range(len(tokenizer)) if i not in special]
    while True:
        text = tokenizer.decode(rng.choices(ids, k=n), clean_up_tokenization_spaces=False)
        if text_fault(text) is None:  # NUL is a token of some tokenizers, and no text
            return text


def shuffled_words(text: str, rng: random.Random) -> str:
    """The words of a text in another order.

    Example:
        >>> shuffled_words(" the king had lost his ring", random.Random(0))
        ' lost ring the king had his'
    """
    words = text.split()
    return _start(text) + " ".join(rng.sample(words, len(words)))


def shuffled_sentences(text: str, rng: random.Random) -> str:
    """The sentences of a text in another order; a text of one sentence stays.

    Example:
        >>> shuffled_sentences(" He came. She left. It rained.", random.Random(1))
        ' He came. It rained. She left.'
    """
    sentences = _SENTENCE_END.split(text.strip())
    order = rng.sample(range(len(sentences)), len(sentences))
    if len(sentences) > 1 and order == sorted(order):
        order = [*order[1:], order[0]]
    return _start(text) + " ".join(sentences[i] for i in order)


def replaced_words(text: str, others: Sequence[str], share: float, rng: random.Random) -> str:
    """A text in which a share of the words is replaced, each by one of `others`.

    Example:
        >>> replaced_words(" the king had lost his ring", ["of"], 0.5, random.Random(0))
        ' of king had of his of'
    """
    words = text.split()
    for i in rng.sample(range(len(words)), round(share * len(words))):
        words[i] = rng.choice(others)
    return _start(text) + " ".join(words)


def rare_and_common(texts: Sequence[str], most: int = 50) -> tuple[list[str], list[str]]:
    """The words that occur once in texts, and the `most` that occur most often, both in their order.

    Example:
        >>> rare_and_common(["the king and the ring", "the fox"], 1)
        (['king', 'and', 'ring', 'fox'], ['the'])
    """
    counts = Counter(word for text in texts for word in text.split())
    return [word for word, n in counts.items() if n == 1], [word for word, _ in counts.most_common(most)]


def looped(text: str, n: int) -> str:
    """The first `n` words of a text over and over, up to its number of words.

    Example:
        >>> looped(" so it goes, and so it went", 2)
        ' so it so it so it so'
    """
    words = text.split()
    return _start(text) + " ".join(words[i % min(n, len(words))] for i in range(len(words)))


def of_other_sources(excerpts: Sequence[Excerpt]) -> list[str]:
    """For each excerpt, how a person went on in another text: each continuation is taken about once.

    Raises:
        InputError: If all excerpts are of one source.
    """
    if len({excerpt.source for excerpt in excerpts}) < 2:
        raise InputError("all prefixes are of one text: there is no other to take a continuation from")
    n = len(excerpts)
    out = []
    for i, excerpt in enumerate(excerpts):
        # Half the list away first: neighbours are often of one source.
        others = (excerpts[(i + step) % n] for step in (*range(n // 2, n), *range(n // 2)))
        out.append(next(other.human for other in others if other.source != excerpt.source))
    return out


def _start(text: str) -> str:
    return text[: len(text) - len(text.lstrip())]
