"""What runs together: requests cut to the model's window, sorted by length, batched by a token budget.

Requests of one context (continuations of one prefix) form batches of their own, which share that context's KV cache.
Requests whose rotary embeddings depend on their length run apart from those of another regime.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# A shorter context is not worth a forward pass of its own.
MIN_SHARED = 16


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
    for request in sorted(requests, key=lambda request: -len(request)):
        # Longest first, so the first row of a batch gives its padded width.
        if out and (len(out[-1]) + 1) * len(out[-1][0]) <= token_budget:
            out[-1].append(request)
        else:
            out.append([request])
    return out
