"""The factual probe: what a model knows, and what it says under a decoding, on the facts of `ugap.data.facts`.

- The contrastive score asks what the model holds for likely: it is right where the right answer has the lowest mean
  surprisal of the four. No decoding and no luck is in it.
- The generative score asks what the model says: it continues the prompt under a decoding and is right where what it
  writes starts with the answer. A model that answers in other words ("Paris" as "a city in France") is counted wrong,
  so it is a number to compare with, between decodings or between a model and its fine-tuned self.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.data.facts import Fact
from ugap.errors import InputError
from ugap.scoring import Scorer
from ugap.statistics import mcnemar, paired_gap, wilson
from ugap.study.decodings import Settings
from ugap.study.generation import generate_continuations, seed_of

DOMAIN = "functional"
MAX_NEW_TOKENS = 8
BATCH_SIZE = 32

Advance = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class FactResult:
    """The answers of a model to `n` facts, each tried once.

    Args:
        ids (`tuple[str, ...]`): The facts.
        kinds (`tuple[str, ...]`): Their kinds.
        said (`tuple[str, ...]`): The preferred option (contrastive), or the text that was written (generative).
        right (`np.ndarray` of shape `(n,)`, bool): Whether that is right.
    """

    ids: tuple[str, ...]
    kinds: tuple[str, ...]
    said: tuple[str, ...]
    right: np.ndarray

    @classmethod
    def of(cls, facts: Sequence[Fact], said: Sequence[str], right: Sequence[bool]) -> "FactResult":
        """The result of `facts`, in their order."""
        kinds = tuple(fact.kind for fact in facts)
        return cls(tuple(fact.id for fact in facts), kinds, tuple(said), np.array(right, dtype=np.bool_))

    @property
    def accuracy(self) -> float:
        """Share of the facts that are right."""
        return float(self.right.mean())


@dataclass(frozen=True)
class Accuracy:
    """The accuracy on one kind of facts.

    Args:
        kind (`str`, *optional*): The kind; `None` for all kinds together.
        n (`int`): Facts.
        accuracy (`float`): Share of right answers.
        ci95 (`tuple[float, float]`): Wilson's 95% interval over facts.
    """

    kind: str | None
    n: int
    accuracy: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """The accuracy of `a` less that of `b` on the facts that both were asked.

    Args:
        n (`int`): Facts.
        difference (`float`): Accuracy of `a` less that of `b`.
        ci95 (`tuple[float, float]`): 95% bootstrap interval over facts; NaN for a single fact.
        test (`str`): `"mcnemar"` (exact) where each fact was tried once on both sides, else `"bootstrap-t"` over the
            differences of each fact's means, as the interval is.
        p_value (`float`): Two-sided p of that test; NaN for a single fact.
        a_only (`int`, *optional*): Facts that `a` alone has right; `None` where facts were tried several times.
        b_only (`int`, *optional*): Facts that `b` alone has right.
    """

    n: int
    difference: float
    ci95: tuple[float, float]
    test: Literal["mcnemar", "bootstrap-t"]
    p_value: float
    a_only: int | None
    b_only: int | None


def contrastive(scorer: Scorer, facts: Sequence[Fact], *, advance: Advance | None = None) -> FactResult:
    """Which of four answers a model holds for most likely.

    An answer's score is the mean surprisal in nats of its tokens after the prompt (the length-normalised likelihood): a
    space and the answer, without a mark of its end. An answer of several tokens is thus not held against for its
    length. The right answer has to be below all three wrong ones: a tie is wrong.

    Args:
        scorer (`Scorer`): The model.
        facts (`Sequence[Fact]`): What to ask.
        advance (`Callable[[int], object]`, *optional*): Called with the number of facts done since the last call.

    Raises:
        InputError: If the tokenizer joins the end of a prompt and the start of an answer to one token, or the logits of
            a fact are not finite.

    Example:
        >>> scorer = Scorer.from_pretrained("gemma-3-270m")  # doctest: +SKIP
        >>> contrastive(scorer, load_facts(["capitals"])).accuracy  # doctest: +SKIP
    """
    said: list[str] = []
    for batch in _batches(facts, BATCH_SIZE):
        answers = [answer for fact in batch for answer in (*fact.wrong, fact.answer)]
        owners = [fact for fact in batch for _ in range(4)]
        scores = scorer.score(
            [f" {answer}" for answer in answers],
            [fact.prompt for fact in owners],
            names=[f"fact {fact.id!r}, answer {answer!r}" for fact, answer in zip(owners, answers, strict=True)],
        )
        for fact, answer, score in zip(owners, answers, scores, strict=True):
            # The four answers would be scored after different prompts.
            if score.straddles:
                raise InputError(f"fact {fact.id!r}: to {scorer.name}, the prompt's end and {answer!r} are one token")
        # The right answer is the last: argmax takes the first of equal ones, so a tie is not counted as right.
        best = np.reshape([score.nll for score in scores], (-1, 4)).argmin(axis=1)
        said += [answers[4 * i + int(option)] for i, option in enumerate(best)]
        if advance is not None:
            advance(len(batch))
    return FactResult.of(facts, said, [word == fact.answer for word, fact in zip(said, facts, strict=True)])


def generative(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    facts: Sequence[Fact],
    settings: Settings,
    *,
    bos: Sequence[int],
    seed: int,
    domain: str | None = DOMAIN,
    max_new_tokens: int = MAX_NEW_TOKENS,
    batch_size: int = BATCH_SIZE,
    advance: Advance | None = None,
) -> FactResult:
    """Whether a model continues with the right answer under a decoding; see `is_answer`.

    Args:
        model (`PreTrainedModel`): A causal language model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        facts (`Sequence[Fact]`): What to ask.
        settings (`Settings`): The decoding, as `ugap.study.generation.generate_continuations` takes it.
        bos (`Sequence[int]`): Tokens that a prompt starts with, such as `scorer.bos`.
        seed (`int`): Seed of this run; the same seed, facts and batch size give the same texts.
        domain (`str`, *optional*, defaults to `"functional"`): Domain of the prompts, for the decodings that aim at the
            human level of one.
        max_new_tokens (`int`, *optional*, defaults to `8`): Longest completion in tokens.
        batch_size (`int`, *optional*, defaults to `32`): Prompts that are continued at once.
        advance (`Callable[[int], object]`, *optional*): Called with the number of facts done since the last call.

    Raises:
        InputError: As in `ugap.study.generation.generate_continuations`.
    """
    said: list[str] = []
    for number, batch in enumerate(_batches(facts, batch_size)):
        prompts = [fact.prompt for fact in batch]
        ids = tokenizer(prompts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        said += generate_continuations(
            model,
            tokenizer,
            [[*bos, *prompt] for prompt in ids],
            settings,
            max_new_tokens=max_new_tokens,
            seed=seed_of(seed, "facts", number),
            domain=domain,
            names=[f"fact {fact.id!r}" for fact in batch],
        )
        if advance is not None:
            advance(len(batch))
    return FactResult.of(facts, said, [is_answer(text, fact) for text, fact in zip(said, facts, strict=True)])


def is_answer(completion: str, fact: Fact) -> bool:
    """Whether a completion starts with the answer of a fact, or with another way to give it; see `starts_with`.

    Example:
        >>> fact = Fact("sums/8", "sums", "Five plus three equals", "eight", ("six", "seven", "nine"), ("8",))
        >>> is_answer(" Eight. And four", fact), is_answer(" 8", fact), is_answer(" eighty", fact)
        (True, True, False)
    """
    return starts_with(completion, (fact.answer, *fact.accept))


def starts_with(completion: str, answers: Iterable[str]) -> bool:
    """Whether a completion starts with one of the answers.

    Both are cut to words by `answer_words`; the first words of the completion, as many as the answer has, have to be
    the answer's. An answer without words matches nothing.
    """
    said = answer_words(completion)
    return any(words and said[: len(words)] == words for words in map(answer_words, answers))


def first_named(completion: str, candidates: Sequence[str]) -> int | None:
    """Which candidate a completion names first, as its place in `candidates`; `None` where it names none.

    Of candidates that start at the same word the longest counts. Words are those of `answer_words`.

    Example:
        >>> first_named("Not Lyon, but Paris.", ["Paris", "Lyon", "Nice"])
        1
    """
    said = answer_words(completion)
    wanted = [answer_words(candidate) for candidate in candidates]
    for begin in range(len(said)):
        here = [i for i, words in enumerate(wanted) if words and said[begin : begin + len(words)] == words]
        if here:
            return max(here, key=lambda i: len(wanted[i]))
    return None


# Thai, Lao, Burmese, Khmer, kana and Chinese characters: these scripts put nothing between words.
_BORDERLESS = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30fa\u30fc-\u30ff"
    "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# `\w` leaves out the vowel signs of India.
_LETTER = rf"(?:[^\W_{_BORDERLESS}]|[\u0900-\u0963\u0966-\u0dff])"
_WORD = re.compile(rf"-?(?:\d+|(?<![\w.]))\.\d+|[{_BORDERLESS}]|-?{_LETTER}+(?:(?<!\d)(?:\+\+|[+#](?!\w)))?")
# Latin, Greek, Cyrillic, Hebrew and Arabic write a word with or without marks; elsewhere a mark is part of the letter.
_ACCENTS = re.compile(
    "[\u0300-\u036f\u0483-\u0487\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
)
# A hyphen or minus that is no sign of a number.
_NO_SIGN = re.compile(r"(?<=[\w)\]])-|-(?!\.?\d)")


def answer_words(text: str) -> list[str]:
    """The words of a short answer, without differences of spelling.

    Lower case, without accents, punctuation, HTML tags (base models like them) and leading articles. Words with a
    hyphen or an apostrophe are one word ("forty-two" starts with no "forty"), and so are numbers with a decimal point
    or commas between thousands. A minus belongs to the number behind it where nothing is subtracted from, and `+` and
    `#` to the letters before them ("C" is not "C++"). In scripts without borders between words every character is a
    word: "東京都です" starts with "東京", and "京都" with "京".

    Example:
        >>> answer_words(" The Forty-Two cafés: 1,000.5!")
        ['fortytwo', 'cafes', '1000.5']
        >>> answer_words("-5 is no C++"), answer_words("東京")
        (['-5', 'is', 'no', 'c++'], ['東', '京'])
    """
    text = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold())))
    text = re.sub(r"</?[a-z][^<>]*>", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=[^\W\d_])['’‐‑-](?=[^\W\d_])", "", text)
    text = _NO_SIGN.sub(" ", text.replace("\N{MINUS SIGN}", "-"))
    words = [re.sub(r"^(-?)\.", r"\g<1>0.", word) for word in _WORD.findall(text)]
    start = next((i for i, word in enumerate(words) if word not in ("a", "an", "the")), max(len(words) - 1, 0))
    return words[start:]


def accuracies(runs: Sequence[FactResult]) -> list[Accuracy]:
    """The accuracy on all facts, then that on each kind; over several runs of the same facts their mean.

    The interval is about facts, not runs: each counts once, with its share of right runs, see
    [`wilson`][].

    Args:
        runs (`Sequence[FactResult]`): One result, or several (of one decoding and several seeds, say).

    Raises:
        ValueError: If there is no run or the runs are not about the same facts.
    """
    shares = _shares(runs, "runs")
    kinds = np.array(runs[0].kinds)
    out = []
    for kind in (None, *dict.fromkeys(runs[0].kinds)):
        of_kind = shares if kind is None else shares[kinds == kind]
        n, accuracy = len(of_kind), float(of_kind.mean())
        out.append(Accuracy(kind, n, accuracy, wilson(min(float(of_kind.sum()), n), n)))
    return out


def compare(a: Sequence[FactResult], b: Sequence[FactResult], *, seed: int = 0) -> Comparison:
    """Compare two models or decodings on the facts that both were asked.

    Args:
        a (`Sequence[FactResult]`): The runs of one side, all on the same facts.
        b (`Sequence[FactResult]`): Those of the other; how many need not be the same.
        seed (`int`, *optional*, defaults to `0`): Seed of the bootstrap.

    Raises:
        ValueError: If a side has no run, its runs are not about the same facts, or the sides share no fact.

    Example:
        >>> facts = [Fact(str(i), "sums", "", "", ("", "", "")) for i in range(3)]
        >>> a = FactResult.of(facts, ["", "", ""], [True, True, False])
        >>> b = FactResult.of(facts, ["", "", ""], [True, False, False])
        >>> compare([a], [b]).a_only, compare([a], [b]).b_only, compare([a], [b]).p_value
        (1, 0, 1.0)
    """
    shares_a = dict(zip(a[0].ids if a else (), _shares(a, "a"), strict=True))
    shares_b = dict(zip(b[0].ids if b else (), _shares(b, "b"), strict=True))
    shared = [name for name in shares_a if name in shares_b]
    if not shared:
        raise ValueError("b: no fact is shared with a")
    values_a = np.array([shares_a[name] for name in shared])
    values_b = np.array([shares_b[name] for name in shared])
    gap = paired_gap(values_a, values_b, shared, seed=seed)
    # One run a side is right or wrong on each fact; several have shares, which McNemar cannot take.
    if len(a) == len(b) == 1:
        tested = mcnemar(values_a == 1, values_b == 1)
        return Comparison(gap.n, tested.difference, gap.ci95, "mcnemar", tested.p_value, tested.a_only, tested.b_only)
    return Comparison(gap.n, gap.gap, gap.ci95, "bootstrap-t", gap.p_value, None, None)


def _shares(runs: Sequence[FactResult], name: str) -> np.ndarray:
    """The share of right runs of every fact, shape `(n,)`."""
    if not runs:
        raise ValueError(f"{name}: no runs")
    if any(run.ids != runs[0].ids for run in runs):
        raise ValueError(f"{name}: the runs are not about the same facts")
    return np.mean([run.right for run in runs], axis=0)


def _batches(facts: Sequence[Fact], size: int) -> Iterator[Sequence[Fact]]:
    for begin in range(0, len(facts), size):
        yield facts[begin : begin + size]
