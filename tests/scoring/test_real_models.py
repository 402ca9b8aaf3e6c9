"""The scorer on both real models, against float64."""

import copy

import numpy as np
import pytest
import torch

from ugap.scoring import Scorer, TokenScores
from ugap.scoring.head.lm_head import backbone

pytestmark = pytest.mark.slow

TEXTS = [
    "The ferry left the island a little before dawn, with eleven passengers and a goat. Nobody had slept. The "
    "captain, who owed money on both shores, kept the lamps unlit and steered by the sound of the buoys, and "
    "whenever one of them rang on the wrong side he swore softly in a language that his crew pretended not to "
    "know. By the time the sun came up there was no land to be seen in any direction, only the goat, standing "
    "at the bow as if it had paid for the view.",
    "A list holds its items in order. Items can be added at the end with append, or removed with pop, which "
    "gives back the item that it removed. Looking up an item by its position takes the same time however long "
    "the list is, while looking for a value means going through the items one by one.",
    "My grandmother kept every key she had ever owned.",
    "Water boils at a lower temperature in the mountains, because the air there presses on it less.",
]
PREFIX = (
    "It was the third winter without snow, and the old people had begun to say that the village was being punished. "
    "Marta did not believe in punishments. She believed in the weather station on the roof of the school, and "
)
ENDINGS = ["it had been broken since May.", "in the notebook where she wrote its numbers down, every day at six."]


@pytest.fixture(params=["gemma", "smollm2"])
def scorer(request) -> Scorer:
    return request.getfixturevalue(request.param)


def table(scores: TokenScores) -> np.ndarray:
    return np.stack([scores.surprisal, scores.entropy, scores.varentropy, scores.rank]).astype(np.float64)


def assert_close(got, expected, atol, rank_rtol=1e-3):
    for i, name in enumerate(("surprisal", "entropy", "varentropy")):
        # A variance of some ten nats² moves more than the mean does.
        tolerance = atol * (10 if name == "varentropy" else 1)
        np.testing.assert_allclose(got[i], expected[i], rtol=0, atol=tolerance, err_msg=name)
    # Deep ranks hang on logits that agree to the last bit.
    np.testing.assert_allclose(got[3], expected[3], rtol=rank_rtol, atol=1, err_msg="rank")
    assert (got[3] == expected[3]).mean() > 0.95


def in_pieces(statistics_of, logits_of, n, targets):
    """Statistics `(4, N)` of rows of float64 logits that are made 32 at a time."""
    return np.concatenate(
        [statistics_of(logits_of(slice(i, min(i + 32, n))), targets[i : i + 32]) for i in range(0, n, 32)], axis=1
    )


@torch.no_grad()
def test_equals_float64(scorer, statistics_of):
    """The head against a float64 head on the same states, then the whole against the whole model in float64."""
    (scores,) = scorer.score(TEXTS[:1])
    targets = torch.as_tensor(scores.token_ids.astype(np.int64))
    ids = torch.tensor([[*scorer.bos, *targets.tolist()]])
    skip = 1 - len(scorer.bos)
    n = len(targets) - skip
    hidden = backbone(scorer.model)(input_ids=ids, use_cache=False).last_hidden_state[0]
    double = copy.deepcopy(scorer.model).double()
    weight = double.get_output_embeddings().weight
    expected = in_pieces(statistics_of, lambda rows: hidden[rows].double() @ weight.T, n, targets[skip:])
    head_alone = torch.stack(scorer.head.statistics(hidden[:n], targets[skip:], impl="torch")).double().numpy()
    assert_close(head_alone, expected, atol=1e-4)

    logits = double(input_ids=ids, use_cache=False).logits[0]
    whole = in_pieces(statistics_of, lambda rows: logits[rows], n, targets[skip:])
    assert_close(table(scores)[:, skip:], whole, atol=1e-4)


def test_batches_and_shared_caches_change_nothing(scorer):
    texts = [*TEXTS, *ENDINGS, *ENDINGS]
    prefixes = [""] * len(TEXTS) + [PREFIX.rstrip()] * 2 + [""] * 2
    texts[len(TEXTS) : len(TEXTS) + 2] = [" " + ending for ending in ENDINGS]
    together = scorer.score(texts, prefixes)
    for scores, text, prefix in zip(together, texts, prefixes, strict=True):
        (alone,) = scorer.score([text], [prefix])
        got, expected = table(scores), table(alone)
        first = 0 if scorer.bos or prefix else 1
        assert_close(got[:, first:], expected[:, first:], atol=1e-4)  # float32 products round by the shape of a batch
        assert np.isfinite(got[:, first:]).all()


def test_numbers_are_those_of_english(scorer):
    """A model of English finds English likely, shuffled English not, and the second telling of a text very likely."""
    words = TEXTS[0].split()
    rng = np.random.default_rng(0)
    shuffled = " ".join(rng.permutation(words))
    plain, wild, again = scorer.score([TEXTS[0], shuffled, " " + TEXTS[0]], ["", "", TEXTS[0]], pmi=True)
    assert 2.5 < plain.nll < 4.5
    assert wild.nll > plain.nll + 1.5
    assert again.nll < plain.nll - 1.5
    assert again.pmi.mean() > 1.5
    assert 0.6 < plain.bits_per_byte < 1.5
    assert abs(np.nanmean(plain.deviation)) < 0.6


@pytest.mark.parametrize("name", ["gemma-3-270m", "smollm2-135m-instruct"])
def test_half_precision_is_off_by_rounding_only(name, request):
    exact = request.getfixturevalue({"gemma-3-270m": "gemma", "smollm2-135m-instruct": "smollm2"}[name])
    half = Scorer.from_pretrained(name, dtype="bfloat16")
    assert half.id == exact.id
    differences = [
        np.abs(table(mine) - table(theirs))[:2]
        for mine, theirs in zip(half.score(TEXTS), exact.score(TEXTS), strict=True)
    ]
    # The state of a document's very first token is huge in some models, and rounds the more.
    assert np.nanmax(np.concatenate([difference[:, :1] for difference in differences])) < 3
    later = np.concatenate([difference[:, 1:] for difference in differences], axis=1)
    assert later.mean() < 0.1
    assert later.max() < 0.6
