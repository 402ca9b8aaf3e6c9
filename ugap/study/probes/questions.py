"""Questions whose answer is a number, as those of GSM8K (Cobbe et al., 2021, arXiv 2110.14168): read, asked, compared.

A question is asked without examples and without a chat template, and answered greedily. An answer is right where the
last number of what was written is that of the reference: no other part of it counts.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.data.readers import BadRow, read_records
from ugap.errors import InputError
from ugap.study.generation import generate_continuations
from ugap.study.probes.facts import FactResult

PROMPT = "Question: {question}\nAnswer:"
KIND = "questions"
BATCH_SIZE = 8
MAX_NEW_TOKENS = 256
_NEXT = "\nQuestion:"  # where a base model starts a question of its own
_MARK = "####"  # before the answer in GSM8K's references
# A minus belongs to a number where nothing is subtracted from.
_NUMBER = re.compile(r"(?:(?<![\w)\]])-)?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


@dataclass(frozen=True)
class Question:
    """A question and its answer.

    Args:
        id (`str`): Its row in the file.
        question (`str`): The question.
        answer (`Decimal`): The right number.
        kind (`str`): The same of all, as facts have kinds.
    """

    id: str
    question: str
    answer: Decimal
    kind: str = KIND


def load_questions(source: str, *, limit: int | None = None) -> list[Question]:
    """Read questions: the answer is the number behind `####`, else the last number of the column `answer`.

    Args:
        source (`str`): A file with the columns `question` and `answer`, of a kind that
            [`load_texts`][ugap.data.load_texts] reads.
        limit (`int`, *optional*): The first so many.

    Raises:
        InputError: If the file cannot be read, a row has no question or no number for an answer, or there is none.
    """
    if limit is not None and limit < 1:
        raise InputError(f"{source}: limit is {limit}, and at least 1 is needed")
    out: list[Question] = []
    for number, record in read_records(source, ["question", "answer"], [], "test"):
        where = f"{source}, row {number}"
        if isinstance(record, BadRow):
            raise InputError(f"{where}: {record.cause}")
        question, reference = record["question"], str(record["answer"])
        answer = last_number(reference.rpartition(_MARK)[2])
        if not isinstance(question, str) or not question.strip():
            raise InputError(f"{where}: the question is empty")
        if answer is None:
            raise InputError(f"{where}: the answer holds no number")
        out.append(Question(str(number), question.strip(), answer))
        if limit is not None and len(out) == limit:
            break
    if not out:
        raise InputError(f"{source}: there are no questions")
    return out


def last_number(text: str) -> Decimal | None:
    """The last number of a text; `None` where there is none. Commas between thousands and a closing dot do not count.

    Example:
        >>> last_number("16 - 3 = 13, so $1,300.50."), last_number("10-12"), last_number("It is -5"), last_number("?")
        (Decimal('1300.50'), Decimal('12'), Decimal('-5'), None)
    """
    numbers = _NUMBER.findall(text)
    # Decimal and not float: 0.1 and 0.10 are one answer, and large numbers stay exact.
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def ask_questions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    bos: Sequence[int],
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    advance: Callable[[int], object] | None = None,
) -> FactResult:
    """Answer questions greedily, and compare the numbers.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        questions (`Sequence[Question]`): What to ask.
        bos (`Sequence[int]`): Tokens that a prompt starts with, such as `scorer.bos`.
        max_new_tokens (`int`, *optional*, defaults to `256`): Longest answer in tokens; it also ends where the model
            asks another question.
        batch_size (`int`, *optional*, defaults to `8`): Questions that are answered at once.
        advance (`Callable[[int], object]`, *optional*): Called with the number of questions done since the last call.

    Returns:
        `ugap.study.probes.facts.FactResult`: All of one kind, so that it compares as facts do.

    Raises:
        InputError: As in `ugap.study.generation.generate_continuations`.
    """
    said: list[str] = []
    for begin in range(0, len(questions), batch_size):
        batch = questions[begin : begin + batch_size]
        prompts = [PROMPT.format(question=one.question) for one in batch]
        ids = tokenizer(prompts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        written = generate_continuations(
            model,
            tokenizer,
            [[*bos, *prompt] for prompt in ids],
            {"do_sample": False},
            max_new_tokens=max_new_tokens,
            seed=0,
            names=[f"question {one.id}" for one in batch],
        )
        said += [text.partition(_NEXT)[0] for text in written]
        if advance is not None:
            advance(len(batch))
    right = np.array([last_number(text) == one.answer for one, text in zip(questions, said, strict=True)], np.bool_)
    ids, kinds = tuple(one.id for one in questions), tuple(one.kind for one in questions)
    return FactResult(ids, kinds, tuple(said), right)
