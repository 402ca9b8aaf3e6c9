"""The rows of a training: made from human texts and facts, and checked for their domain.

Creative rows are moved to the human level, functional rows are held.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ugap.data import TextRow
from ugap.data.domain import CREATIVE, FUNCTIONAL
from ugap.data.facts import Fact
from ugap.errors import InputError
from ugap.scoring.tokenise import bos_ids
from ugap.study.excerpts import Excerpt, cut_excerpts

# Shorter pieces of a text teach little.
FEWEST_TOKENS = 16
# A stream may be endless: functional rows are looked for among so many of its first rows.
STREAM_ROWS = 10_000


def start_with_bos(tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> list[int]:
    """Make the tokenizer put its BOS before a text, as the scorer does. Returns the ids there: BOS, or none.

    Some tokenizers have a BOS and do not add it. TRL tokenises prompts as the tokenizer does, and training has to start
    texts as scoring does. The trainers of this package call this function. A chat template writes its own start.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): A tokenizer or a processor with one; changed in
            place.

    Raises:
        InputError: If the tokenizer has a BOS and does not add it even when asked.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    bos = tokenizer.bos_token_id
    if bos is None:
        return []
    # Tested on an example: attributes alone do not tell what the post-processor adds.
    if tokenizer("a")["input_ids"][0] != bos:
        tokenizer.add_bos_token = True
    if tokenizer("a")["input_ids"][:2].count(bos) != 1:
        raise InputError(f"{tokenizer.name_or_path}: the tokenizer does not start a text with exactly one BOS")
    return [bos]


def sft_dataset(
    texts: Sequence[TextRow],
    facts: Sequence[Fact],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int = 256,
    functional_share: float = 0.3,
    seed: int = 0,
) -> Dataset:
    """Tokenised rows for [`UncertaintySFTTrainer`][ugap.training.UncertaintySFTTrainer]: pieces of human texts, and
    facts as statements.

    A text is cut into pieces of at most `max_tokens` that start at a sentence, each after BOS; the end token follows
    where a piece ends its text. A fact is its prompt with its answer and a full stop, of the domain `"functional"`.

    Args:
        texts (`Sequence[TextRow]`): Human texts, of the domains `"creative"` and `"functional"`.
        facts (`Sequence[Fact]`): Facts to hold: the half of the probe that evaluations do not ask.
        tokenizer (`PreTrainedTokenizerBase`): The policy's, after `start_with_bos`.
        max_tokens (`int`, *optional*, defaults to `256`): Longest piece, without BOS and end.
        functional_share (`float`, *optional*, defaults to `0.3`): Share of functional rows. Functional rows are
            repeated or left out to reach it; each creative row comes once.
        seed (`int`, *optional*, defaults to `0`): Seed of the order.

    Returns:
        `Dataset`: Columns `input_ids`, `labels` (-100 at BOS) and `domain`.

    Raises:
        InputError: If no text is creative, a domain has no text that is long enough, or the share is not in [0, 1).
    """
    if not 0 <= functional_share < 1:
        raise InputError(f"functional_share is {functional_share}, not in [0, 1)")
    rng = random.Random(seed)
    bos = bos_ids(tokenizer)

    def row(text: str, domain: str, end: bool) -> dict[str, Any]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids += [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
        return {"input_ids": bos + ids, "labels": [-100] * len(bos) + ids, "domain": domain}

    # To see whether a piece ends its text.
    full = {text.id: text.text for text in texts}
    pieces = cut_excerpts(
        texts, tokenizer, prefix_tokens=0, max_new_tokens=max_tokens, min_new_tokens=FEWEST_TOKENS, per_text=10**6
    )
    rows = [row(piece.human, piece.domain, full[piece.source].endswith(piece.human)) for piece in pieces]
    creative = [one for one in rows if one["domain"] == CREATIVE]
    functional = [one for one in rows if one["domain"] == FUNCTIONAL]
    # A fact goes on after its full stop, so no end token follows.
    statements = [row(f"{fact.prompt} {fact.answer}.", FUNCTIONAL, False) for fact in facts]
    if not creative:
        raise InputError("the texts have no creative domain to train on")
    # From share = functional / (creative + functional).
    wanted = round(len(creative) * functional_share / (1 - functional_share))
    everything = creative + _repeated([functional, statements], wanted, rng)
    rng.shuffle(everything)
    return Dataset.from_list(everything)


def grpo_dataset(
    texts: Sequence[TextRow],
    facts: Sequence[Fact],
    tokenizer: PreTrainedTokenizerBase,
    *,
    prefix_tokens: int = 64,
    max_tokens: int = 64,
    per_text: int = 4,
    functional_share: float = 0.3,
    seed: int = 0,
) -> Dataset:
    """Prompts for [`UncertaintyGRPOTrainer`][ugap.training.UncertaintyGRPOTrainer]: starts of creative texts, and facts
    without their answers.

    Args:
        texts (`Sequence[TextRow]`): Human texts; those of other domains than `"creative"` are left out.
        facts (`Sequence[Fact]`): Facts to ask.
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        prefix_tokens (`int`, *optional*, defaults to `64`): Tokens of a prompt.
        max_tokens (`int`, *optional*, defaults to `64`): Tokens of the human continuation.
        per_text (`int`, *optional*, defaults to `4`): Prompts of one text.
        functional_share (`float`, *optional*, defaults to `0.3`): As in [`sft_dataset`][].
        seed (`int`, *optional*, defaults to `0`): Seed of the order.

    Returns:
        `Dataset`: Columns `prompt`, `domain`, `kind` and `human_completion` (creative rows), `answer` and `wrong`
        (functional rows: lists of what counts as right, and of wrong answers).

    Raises:
        InputError: If no text is creative or long enough, or the share is not in [0, 1).
    """
    if not 0 <= functional_share < 1:
        raise InputError(f"functional_share is {functional_share}, not in [0, 1)")
    rng = random.Random(seed)
    excerpts = cut_excerpts(
        [text for text in texts if text.domain == CREATIVE],
        tokenizer,
        prefix_tokens=prefix_tokens,
        max_new_tokens=max_tokens,
        per_text=per_text,
    )
    creative = [_prompt(excerpt) for excerpt in excerpts]
    if not creative:
        raise InputError("the texts have no creative domain to train on")
    questions = [
        {
            "prompt": fact.prompt,
            "domain": FUNCTIONAL,
            "kind": None,
            "human_completion": None,
            "answer": [fact.answer, *fact.accept],
            "wrong": list(fact.wrong),
        }
        for fact in facts
    ]
    everything = creative + _repeated(
        [questions], round(len(creative) * functional_share / (1 - functional_share)), rng
    )
    rng.shuffle(everything)
    return Dataset.from_list(everything)


def check_domains(dataset: Dataset | IterableDataset, *, constrained: bool) -> None:
    """Refuse a training set without domains, or without rows that a constraint needs.

    Args:
        dataset (`Dataset` or `IterableDataset`): The rows. Of a stream, only the columns are checked, and for a
            constraint its first rows.
        constrained (`bool`): Whether functional rows are needed.

    Raises:
        InputError: If there is no column `domain`, a row has neither domain, no row is creative, or a constraint has
            no functional row.

    Example:
        >>> check_domains(Dataset.from_dict({"text": ["So it goes."]}), constrained=False)
        Traceback (most recent call last):
        ...
        ugap.errors.InputError: the training set has no column 'domain'; it has 'text'
    """
    domains = _domains(dataset, "the training set")
    if domains is not None and CREATIVE not in domains:
        raise InputError("the training set has no creative rows")
    if constrained:
        functional_rows(dataset, 1)


def functional_rows(dataset: Dataset | IterableDataset, most: int) -> list[Mapping[str, Any]]:
    """The first functional rows of a training set, at most `most`; of a stream, those among its first 10,000 rows.

    Raises:
        InputError: If there is none, or a row before them has neither domain.
    """
    rows = dataset.take(STREAM_ROWS) if isinstance(dataset, IterableDataset) else dataset
    functional, n = [], 0
    for n, row in enumerate(rows, 1):  # noqa: B007
        if not is_creative(row.get("domain")):
            functional.append(row)
        # A stream may be endless, so stop as soon as there are enough rows.
        if len(functional) == most:
            break
    if not functional:
        where = f"no functional rows among its first {n}" if n == STREAM_ROWS else "no functional rows"
        raise InputError(f"the training set has {where}, and the constraint is held on them")
    return functional


def check_evaluation_domains(datasets: Any) -> None:
    """Refuse evaluation sets without domains.

    Args:
        datasets (`Dataset`, `IterableDataset`, `Mapping` or `None`): As TRL takes them: one, or several by name.

    Raises:
        InputError: If a set has no column `domain`, or a row has neither domain.
    """
    for name, dataset in evaluation_sets(datasets).items():
        _domains(dataset, name)


def evaluation_sets(datasets: Any) -> dict[str, Any]:
    """Evaluation sets as TRL takes them, by the name that errors use."""
    named = datasets if isinstance(datasets, Mapping) else {"": datasets}
    return {f"the evaluation set {name}".rstrip(): one for name, one in named.items() if one is not None}


def is_creative(domain: object, where: str = "a row of the training or evaluation set") -> bool:
    """Whether a row is creative, by its `domain`.

    Raises:
        InputError: If the row has neither domain.
    """
    if domain not in (CREATIVE, FUNCTIONAL):
        raise InputError(f"{where} is of domain {domain!r}, not {CREATIVE!r} or {FUNCTIONAL!r}")
    return domain == CREATIVE


def creative_mask(rows: Sequence[Mapping[str, Any]]) -> list[bool]:
    """Which rows are creative; raises as `is_creative`."""
    return [is_creative(row.get("domain")) for row in rows]


def _domains(dataset: Dataset | IterableDataset, name: str) -> set[str] | None:
    """The domains of a set; `None` for a stream, whose rows come later."""
    columns = dataset.column_names
    if columns is not None and "domain" not in columns:
        raise InputError(f"{name} has no column 'domain'; it has {', '.join(map(repr, columns))}")
    if isinstance(dataset, IterableDataset):
        return None
    domains = dataset["domain"]
    for number, domain in enumerate(domains):
        is_creative(domain, f"{name}'s row {number}")
    return set(domains)


def _prompt(excerpt: Excerpt) -> dict[str, Any]:
    return {
        "prompt": excerpt.prefix,
        "domain": CREATIVE,
        "kind": excerpt.kind,
        "human_completion": excerpt.human,
        "answer": None,
        "wrong": None,
    }


def _repeated(kinds: Sequence[list[dict[str, Any]]], wanted: int, rng: random.Random) -> list[dict[str, Any]]:
    """`wanted` rows in equal shares of the kinds, each repeated in whole passes where it has too few rows."""
    kinds = [kind for kind in kinds if kind]
    out: list[dict[str, Any]] = []
    for number, kind in enumerate(kinds):
        # The first kinds get one row more where the division has a remainder.
        n = wanted // len(kinds) + (number < wanted % len(kinds))
        passes = [rng.sample(kind, len(kind)) for _ in range(-(-n // len(kind)))]
        out += [row for one in passes for row in one][:n]
    return out
