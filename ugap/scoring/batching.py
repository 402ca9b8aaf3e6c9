"""Batches: requests cut to the model's window, sorted by length, and batched by a token budget.

Requests of one context (continuations of one prefix) form batches of their own, which share that context's KV cache.
Some rotary embeddings depend on the longest row of a batch (LongRoPE, dynamic NTK). Rows of different regimes run
apart, so that the score of a text does not depend on the other texts.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# A shorter context is not worth a forward pass of its own.
MIN_SHARED = 16
# Where transformers keeps the longest sequence that dynamic embeddings have seen.
_LONGEST = "max_seq_len_cached"


@dataclass(frozen=True, eq=False)
class Request:
    """Score `token_ids` after `context`, as the tokens of text `owner` from its token `start` on."""

    owner: int
    start: int
    context: list[int]
    token_ids: list[int]

    def __len__(self) -> int:
        return len(self.context) + len(self.token_ids)


@dataclass(frozen=True, eq=False)
class Batch:
    """Requests that run in one forward pass; the first `n_shared` context tokens are the same in all and run once."""

    requests: list[Request]
    n_shared: int = 0


class Regimes:
    """Which lengths of a sequence have the same rotary embeddings.

    Args:
        config (`PreTrainedConfig`): Of the language model.

    Example:
        >>> from types import SimpleNamespace
        >>> scaling = {"rope_type": "longrope", "original_max_position_embeddings": 16}
        >>> regimes = Regimes(SimpleNamespace(rope_parameters=scaling))
        >>> [regimes(length) for length in (1, 16, 17, 90)]
        [0, 0, 16, 16]
    """

    def __init__(self, config: Any):
        parameters = getattr(config, "rope_parameters", None) or {}
        # One set of parameters, or one for each type of layer.
        each = [p for p in parameters.values() if isinstance(p, dict)] or [parameters]
        kinds = {p.get("rope_type"): p for p in each}
        self._switch = kinds.get("longrope", {}).get("original_max_position_embeddings")
        dynamic = any("dynamic" in str(kind) for kind in kinds)
        self._dynamic_from: int | None = getattr(config, "max_position_embeddings", None) if dynamic else None

    def __call__(self, length: int) -> int:
        """A number that sequences of the same regime share."""
        if self._dynamic_from is not None and length > self._dynamic_from:
            return length  # every length has embeddings of its own
        return self._switch if self._switch is not None and length > self._switch else 0

    def reset(self, model: "torch.nn.Module") -> None:
        """Make dynamic embeddings forget the longest sequence so far, whose frequencies others would be given."""
        if self._dynamic_from is None:
            return
        for module in model.modules():
            for name in [name for name in vars(module) if name.endswith(_LONGEST)]:
                of_layers = name.removesuffix(_LONGEST)  # "" or a type of layer
                setattr(module, name, module.original_max_seq_len)
                frequencies = getattr(module, f"{of_layers}inv_freq")
                frequencies.copy_(getattr(module, f"{of_layers}original_inv_freq"))


def windows(request: Request, bos: list[int], max_length: int) -> list[Request]:
    """Cut a request that is longer than the model's context into overlapping windows.

    The first window holds as much as fits. Each later one scores up to `max_length // 2` further tokens, after BOS and
    as many of the tokens before them as fit: every token sees at least half a window of context.
    """
    if len(request) <= max_length:
        return [request]
    everything = request.context + request.token_ids
    begin = len(request.context)
    out: list[Request] = []
    while begin < len(everything):
        first = not out and begin < max_length
        end = min(max_length if first else begin + max_length // 2, len(everything))
        context = everything[:begin] if first else bos + everything[max(end - max_length + len(bos), 0) : begin]
        out.append(Request(request.owner, request.start + begin - len(request.context), context, everything[begin:end]))
        begin = end
    return out


def plan(
    requests: Iterable[Request],
    token_budget: int,
    *,
    share: bool = True,
    regime: Callable[[int], int] = lambda length: 0,
) -> list[Batch]:
    """Batches of at most `token_budget` padded tokens each (or one request), longest first.

    Args:
        requests (`Iterable[Request]`): What to run, in any order.
        token_budget (`int`): Rows times longest row, with the shared context counted for every row (its keys and
            values are held for each).
        share (`bool`, *optional*, defaults to `True`): Whether requests after one context may share its cache.
        regime (`Callable[[int], int]`, *optional*): Of the length of a row that runs; rows of different regimes are in
            different batches, and a context is shared only by rows of its own regime.
    """
    by_context: dict[tuple[int, ...], list[Request]] = defaultdict(list)
    alone: dict[int, list[Request]] = defaultdict(list)
    for request in requests:
        # The last token of a row predicts nothing and does not run.
        of_row = regime(len(request) - 1)
        if share and len(request.context) > MIN_SHARED and of_row == regime(len(request.context) - 1):
            by_context[tuple(request.context)].append(request)
        else:
            alone[of_row].append(request)
    batches: list[Batch] = []
    for context, group in by_context.items():
        if len(group) > 1:
            # The last context token stays with each row: its hidden state predicts the row's first token.
            batches += [Batch(rows, len(context) - 1) for rows in _fill(group, token_budget)]
        else:
            alone[regime(len(group[0]) - 1)] += group
    batches += [Batch(rows) for group in alone.values() for rows in _fill(group, token_budget)]
    return sorted(batches, key=lambda batch: -len(batch.requests[0]))


def _fill(requests: Sequence[Request], token_budget: int) -> list[list[Request]]:
    out: list[list[Request]] = []
    for request in sorted(requests, key=len, reverse=True):
        # Longest first, so the first row of a batch gives its padded width.
        if out and (len(out[-1]) + 1) * len(out[-1][0]) <= token_budget:
            out[-1].append(request)
        else:
            out.append([request])
    return out
