"""Prefixes and the human continuations of them, cut out of human texts.

Where a text has a prompt, the prompt is the prefix. Elsewhere the text is cut, by the tokens of the model that is to
continue it, into excerpts of a prefix and a continuation. One long text may give several excerpts, all but the first
starting at a sentence; they keep the name of their source, because they are not independent of each other.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from ugap.data import TextRow
from ugap.errors import InputError

PROMPT_SEPARATOR = "\n\n"
_SENTENCE_START = re.compile(r"[.!?][\"'”’)]*\s+(?=[\"'“‘(]?[A-Z])")


@dataclass(frozen=True)
class Excerpt:
    """A prefix and how a person went on.

    Args:
        id (`str`): Name of the excerpt: the source's, and `#k` for its k-th further excerpt.
        source (`str`): Name of the text that it was cut from.
        domain (`str`): Domain of the text.
        prefix (`str`): The text that the model continues.
        human (`str`): The human continuation.
        candidates (`Mapping[str, str]`): Given model continuations by name.
        where (`str`): Where the text was read, as errors say it.
        kind (`str`, *optional*): Kind of the text, as [`TextRow`][ugap.data.TextRow] has it; by default the domain.
    """

    id: str
    source: str
    domain: str
    prefix: str
    human: str
    candidates: Mapping[str, str] = field(default_factory=dict)
    where: str = "texts"
    kind: str = ""

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", self.domain)


def cut_excerpts(
    rows: Sequence[TextRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefix_tokens: int,
    max_new_tokens: int,
    min_new_tokens: int | None = None,
    limit: int | None = None,
    per_text: int = 4,
    prompt_separator: str | None = None,
) -> list[Excerpt]:
    """Cut at most `limit` excerpts per domain: the first of every text, then the second of every text, and so on.

    Args:
        rows (`Sequence[TextRow]`): Human texts.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the model that continues the prefixes.
        prefix_tokens (`int`): Tokens of a prefix where a text has no prompt; with 0 there is no prefix.
        max_new_tokens (`int`): Tokens of a continuation.
        min_new_tokens (`int`, *optional*): Tokens that a human continuation has at least; by default `max_new_tokens`.
            A text with given continuations is taken at any length.
        limit (`int`, *optional*): Excerpts per domain.
        per_text (`int`, *optional*, defaults to `4`): Excerpts of one text; one where it has a prompt or candidates.
        prompt_separator (`str`, *optional*): Text between a prompt and its text; by default that which
            `after_prompt` chooses.

    Raises:
        InputError: If no text of a domain is long enough.
    """
    least = max_new_tokens if min_new_tokens is None else min_new_tokens
    sources = [(row, _excerpts(row, tokenizer, prefix_tokens, max_new_tokens, least, prompt_separator)) for row in rows]
    taken: Counter[str] = Counter()
    out: list[Excerpt] = []
    # In rounds, so that a limit takes few excerpts of many texts rather than many of few.
    for _ in range(per_text):
        going_on = []
        for row, excerpts in sources:
            if limit is not None and taken[row.domain] >= limit:
                continue
            excerpt = next(excerpts, None)
            if excerpt is not None:
                out.append(excerpt)
                taken[row.domain] += 1
                going_on.append((row, excerpts))
        sources = going_on
    for domain in dict.fromkeys(row.domain for row in rows):
        if not taken[domain]:
            needed = prefix_tokens + least
            raise InputError(f"domain {domain!r}: no text has the {needed} tokens of a prefix and its continuation")
    return out


def after_prompt(prompt: str, text: str, separator: str | None = None) -> str:
    r"""The prompt of a text, and the separator between the two.

    Args:
        prompt (`str`): The prompt.
        text (`str`): The text.
        separator (`str`, *optional*): What separates them. By default nothing where either of them has white space at
            the border already, or there is no prompt; an empty line elsewhere.

    Example:
        >>> after_prompt("A tale of a fox.", "Once upon a time"), after_prompt("Once upon", " a time")
        ('A tale of a fox.\n\n', 'Once upon')
    """
    if separator is None:
        separator = "" if not prompt or prompt[-1].isspace() or text[:1].isspace() else PROMPT_SEPARATOR
    return prompt + separator


def _excerpts(
    row: TextRow,
    tokenizer: PreTrainedTokenizerBase,
    prefix_tokens: int,
    max_new_tokens: int,
    least: int,
    prompt_separator: str | None,
) -> Iterator[Excerpt]:
    if row.prompt is not None:
        # The text alone is cut: prompt and text are tokenised together only when they are scored.
        ends = _token_ends(tokenizer, row.text, max_new_tokens)
        prefix, human = after_prompt(row.prompt, row.text, prompt_separator), row.text[: ends[-1]]
        yield Excerpt(row.id, row.id, row.domain, prefix, human, row.candidates, row.where, row.kind)
        return
    begin, k = 0, 0
    while True:
        text = row.text[begin:]
        ends = _token_ends(tokenizer, text, prefix_tokens + max_new_tokens)
        # A given continuation is compared with what there is of the human one.
        if len(ends) < prefix_tokens + (1 if row.candidates else least):
            return
        border = ends[prefix_tokens - 1] if prefix_tokens else 0
        name = f"{row.id}#{k}" if k else row.id
        human = text[border : ends[-1]]
        yield Excerpt(name, row.id, row.domain, text[:border], human, row.candidates, row.where, row.kind)
        # One character back: the sentence may end with the last character of the excerpt.
        following = _SENTENCE_START.search(text, ends[-1] - 1)
        if row.candidates or following is None:
            return
        begin, k = begin + following.end(), k + 1


def _token_ends(tokenizer: PreTrainedTokenizerBase, text: str, n: int) -> list[int]:
    """End of each of the first `n` tokens as a position in `text`."""
    # No token of English text is longer than 16 characters on average: no need to tokenise a whole book.
    encoding = tokenizer(
        text[: 16 * n + 64], add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    return [end for _, end in encoding["offset_mapping"][:n]]
