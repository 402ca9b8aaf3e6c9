"""The factuality reward for TRL's GRPO: whether a completion gives the right answer."""

import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from ugap.data.domain import FUNCTIONAL
from ugap.errors import InputError
from ugap.study.probes.facts import answer_words, first_named, starts_with

Message = Mapping[str, Any]
# A text, or a chat as TRL's conversational data hold it.
Text = str | Sequence[Message]


class FactualityReward:
    """Whether completions give the right answer: 1 or 0. `None` for rows of another domain or without an answer.

    Args:
        kind (`str`, *optional*, defaults to `"exact"`): `"exact"`: the completion starts with an answer.
            `"contrastive"`: the completion names a right answer before any wrong one of the column `wrong`, anywhere;
            for answers in sentences.
        domain (`str`, *optional*, defaults to `"functional"`): Rows of other domains get `None`. Without a column
            `domain`, all rows count.
        name (`str`, *optional*, defaults to `"factuality_reward"`): Name in logs.

    Columns: `answer` (one answer, or a list of all right answers) and, for `"contrastive"`, `wrong` (a list). Answers
    are compared word by word, ignoring case, accents and articles, see `ugap.study.probes.facts.answer_words`. A number
    counts as its text: 12 and 12.0 as "12", True as "True".

    Raises:
        InputError: If the kind is unknown. When called: if a column is missing. In `check`, or when called: if an
            answer is no text or number, or has no word.

    Example:
        >>> reward = FactualityReward()
        >>> reward(["Two plus two is"] * 2, [" four.", " five."], answer=["four", ["four", "4"]])
        [1.0, 0.0]
    """

    def __init__(
        self,
        kind: Literal["exact", "contrastive"] = "exact",
        *,
        domain: str = FUNCTIONAL,
        name: str = "factuality_reward",
    ):
        if kind not in ("exact", "contrastive"):
            raise InputError(f"kind {kind!r}: not exact or contrastive")
        self.kind, self.domain, self.__name__ = kind, domain, name

    def check(self, rows: Iterable[Mapping[str, Any]], name: str = "the training set") -> None:
        """Refuse answers that no completion can match; trainers of this package call this before training.

        Args:
            rows (`Iterable[Mapping]`): The rows; those of other domains are skipped.
            name (`str`, *optional*, defaults to `"the training set"`): The name that errors use.

        Raises:
            InputError: If an answer is no text or number, or has no word.
        """
        for number, row in enumerate(rows):
            if row.get("domain", self.domain) == self.domain:
                for column in ("answer", "wrong") if self.kind == "contrastive" else ("answer",):
                    _listed(row.get(column), f"{name}'s row {number}, {column}")

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Any = None,
        *,
        domain: Sequence[str] | None = None,
        answer: Sequence[Any] | None = None,
        wrong: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """The reward of every completion."""
        if answer is None:
            raise InputError(f"{self.__name__}: the data have no column 'answer'")
        if wrong is None:
            if self.kind == "contrastive":
                raise InputError(f"{self.__name__}: the data have no column 'wrong', which contrastive answers need")
            wrong = [None] * len(completions)
        rewards: list[float | None] = []
        for i, completion in enumerate(completions):
            row = f"{self.__name__}, row {i} of the batch"
            applies = domain is None or domain[i] == self.domain
            right = _listed(answer[i], f"{row}, answer") if applies else []
            if not right:
                rewards.append(None)
            elif self.kind == "exact":
                rewards.append(float(starts_with(text_of(completion), right)))
            else:
                named = first_named(text_of(completion), [*right, *_listed(wrong[i], f"{row}, wrong")])
                # The right answers come first in the list.
                rewards.append(float(named is not None and named < len(right)))
        return rewards


def text_of(text: Text) -> str:
    """A text, or the content of a chat's last message."""
    if isinstance(text, str):
        return text
    return str(text[-1]["content"]) if text else ""


def _listed(answers: Any, where: str) -> list[str]:
    """The answers of a row as texts; `where` names them in errors."""
    if answers is None:
        return []
    # Data sets give lists or arrays, depending on their format.
    several = isinstance(answers, Sequence | np.ndarray) and not isinstance(answers, str)
    return [_answer(answer, where) for answer in (answers if several else [answers])]


def _answer(answer: Any, where: str) -> str:
    if isinstance(answer, float | np.floating) and math.isfinite(answer):
        # Tables store whole numbers as floats where another row has no answer.
        text = np.format_float_positional(answer, trim="-")
    elif isinstance(answer, str | int | np.integer | np.bool_ | Decimal):
        text = str(answer)
    else:
        raise InputError(f"{where}: {answer!r} is no text and no number")
    # The empty list of words would be found at the start of everything.
    if not answer_words(text):
        raise InputError(f"{where}: {answer!r} has no word, so no completion can match it")
    return text
