from itertools import chain

import pytest

from ugap.scoring.batching import MIN_SHARED, Request, plan, windows


def request(n, context=(9,), owner=0):
    return Request(owner, 0, list(context), list(range(100, 100 + n)))


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40, 100])
@pytest.mark.parametrize("n_context", [0, 1, 7, 15, 16, 17, 50])
@pytest.mark.parametrize("bos", [[], [9]])
def test_windows_score_each_token_once_with_at_least_half_a_window(n, n_context, bos):
    limit = 16
    whole = request(n, bos + list(range(n_context)))
    everything = whole.context + whole.token_ids
    pieces = windows(whole, bos, limit)
    assert list(chain.from_iterable(piece.token_ids for piece in pieces)) == whole.token_ids
    for piece in pieces:
        begin = len(whole.context) + piece.start
        assert everything[begin : begin + len(piece.token_ids)] == piece.token_ids
        assert len(piece) <= limit
        # What stands before the scored tokens is what the text has there, after a BOS.
        seen = piece.context[len(bos) :] if begin > len(piece.context) else piece.context
        assert everything[begin - len(seen) : begin] == seen
        assert piece.context[: len(bos)] == bos
        assert len(seen) >= min(begin, limit // 2 - len(bos))


def test_what_fits_is_left_alone():
    whole = request(15)
    assert windows(whole, [9], 16) == [whole]


def test_batches_keep_to_the_budget():
    requests = [request(n, owner=n) for n in (5, 1, 30, 12, 7, 2, 9, 90, 3)]
    batches = plan(requests, 40)
    assert sorted(r.owner for batch in batches for r in batch.requests) == sorted(r.owner for r in requests)
    for batch in batches:
        assert len(batch.requests) * max(map(len, batch.requests)) <= 40 or len(batch.requests) == 1
    widths = [len(batch.requests[0]) for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert len(plan(requests, 10**6)) == 1


def test_one_context_is_shared_where_it_is_worth_it():
    long, short = list(range(MIN_SHARED + 1)), list(range(MIN_SHARED))
    batches = plan(
        [request(3, long), request(2, short), request(5, long), request(4, short), request(6, [1, *long])], 10**6
    )
    shared = [batch for batch in batches if batch.n_shared]
    assert [[len(r.token_ids) for r in batch.requests] for batch in shared] == [[5, 3]]
    # The last token of the context predicts the first of the text, so it runs with each row.
    assert shared[0].n_shared == len(long) - 1
    assert sum(len(batch.requests) for batch in batches) == 5
