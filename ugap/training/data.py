"""Training sets from human texts and facts: what the trainers of this package take."""

import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from ugap.data import TextRow
from ugap.data.facts import Fact
from ugap.errors import InputError
from ugap.study.excerpts import Excerpt, cut_excerpts
from ugap.training.domains import CREATIVE, FUNCTIONAL

# Shorter pieces of a text teach little.
FEWEST_TOKENS = 16


def start_with_bos(tokenizer: PreTrainedTokenizerBase | ProcessorMixin) -> list[int]:
    """Let the tokenizer put its BOS before a text, as the scorer does; what it then puts there.

    Some tokenizers have a BOS and do not add it. TRL tokenises prompts as the tokenizer does, and a model that is
    trained on other starts than it is measured with would be another model. The trainers of this package call it. Chat
    templates say themselves what a chat starts with.

    Args:
        tokenizer (`PreTrainedTokenizerBase` or `ProcessorMixin`): It, or that of the processor, is changed in place.

    Raises:
        InputError: If the tokenizer has a BOS that it cannot be told to add.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    bos = tokenizer.bos_token_id
    if bos is None:
        return []
    if tokenizer("a")["input_ids"][0] != bos:
        tokenizer.add_bos_token = True
    if tokenizer("a")["input_ids"][:2].count(bos) != 1:
        raise InputError(f"{tokenizer.name_or_path}: the tokenizer cannot be told to start a text with its BOS, once")
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
        facts (`Sequence[Fact]`): Facts to hold; the half that is not asked afterwards.
        tokenizer (`PreTrainedTokenizerBase`): The policy's, after `start_with_bos`.
        max_tokens (`int`, *optional*, defaults to `256`): Longest piece, without BOS and end.
        functional_share (`float`, *optional*, defaults to `0.3`): Share of functional rows; they are repeated, or some
            left out, to have it. Creative rows stand once each.
        seed (`int`, *optional*, defaults to `0`): Seed of the order.

    Returns:
        `Dataset`: Columns `input_ids`, `labels` (-100 at BOS) and `domain`.

    Raises:
        InputError: If no text is creative, a domain has no text that is long enough, or the share is not in [0, 1).
    """
    if not 0 <= functional_share < 1:
        raise InputError(f"functional_share is {functional_share}, not in [0, 1)")
    rng = random.Random(seed)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]

    def row(text: str, domain: str, end: bool) -> dict[str, Any]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids += [tokenizer.eos_token_id] if end and tokenizer.eos_token_id is not None else []
        return {"input_ids": bos + ids, "labels": [-100] * len(bos) + ids, "domain": domain}

    full = {text.id: text.text for text in texts}
    pieces = cut_excerpts(
        texts, tokenizer, prefix_tokens=0, max_new_tokens=max_tokens, min_new_tokens=FEWEST_TOKENS, per_text=10**6
    )
    rows = [row(piece.human, piece.domain, full[piece.source].endswith(piece.human)) for piece in pieces]
    creative = [made for made in rows if made["domain"] == CREATIVE]
    functional = [made for made in rows if made["domain"] == FUNCTIONAL]
    stated = [row(f"{fact.prompt} {fact.answer}.", FUNCTIONAL, False) for fact in facts]
    if not creative:
        raise InputError("the texts have no creative domain to train on")
    wanted = round(len(creative) * functional_share / (1 - functional_share))
    drawn = _repeated([functional, stated], wanted, rng)
    everything = creative + drawn
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
        `Dataset`: Columns `prompt`, `domain`, `human_completion` (creative rows), `answer` and `wrong` (functional
        rows: lists of what counts as right, and of wrong answers).

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
    asked = [
        {
            "prompt": fact.prompt,
            "domain": FUNCTIONAL,
            "human_completion": None,
            "answer": [fact.answer, *fact.accept],
            "wrong": list(fact.wrong),
        }
        for fact in facts
    ]
    everything = creative + _repeated([asked], round(len(creative) * functional_share / (1 - functional_share)), rng)
    rng.shuffle(everything)
    return Dataset.from_list(everything)


def _prompt(excerpt: Excerpt) -> dict[str, Any]:
    return {
        "prompt": excerpt.prefix,
        "domain": CREATIVE,
        "human_completion": excerpt.human,
        "answer": None,
        "wrong": None,
    }


def _repeated(kinds: Sequence[list[dict[str, Any]]], wanted: int, rng: random.Random) -> list[dict[str, Any]]:
    """`wanted` rows, as many of each kind that there is, repeated in whole passes where they do not reach."""
    kinds = [kind for kind in kinds if kind]
    out: list[dict[str, Any]] = []
    for number, kind in enumerate(kinds):
        n = wanted // len(kinds) + (number < wanted % len(kinds))
        passes = [rng.sample(kind, len(kind)) for _ in range(-(-n // len(kind)))]
        out += [made for one in passes for made in one][:n]
    return out
