import math

import numpy as np
import pytest

from ugap.scoring import ScorerId, TokenScores

NAN = float("nan")


def row(*values):
    return np.array(values, dtype=np.float32)


@pytest.fixture
def scores():
    """ "naß " in three tokens, the last two of which share a character; then a certain token."""
    return TokenScores(
        text="naß e",
        token_ids=np.array([1, 2, 3, 4], np.int32),
        offsets=np.array([[0, 2], [2, 3], [2, 3], [3, 5]], np.int32),
        surprisal=row(1.0, 2.0, 4.0, 0.0),
        entropy=row(1.5, 4.0, 3.0, 0.0),
        varentropy=row(0.25, 4.0, 1.0, 0.0),
        rank=row(1, 2, 7, 1),
        marginal_surprisal=row(1.5, 5.0, 3.0, 0.5),
        scorer=ScorerId("tiny", "abc"),
        straddles=False,
    )


def test_means(scores):
    assert len(scores) == 4
    assert scores.nll == pytest.approx(7 / 4)
    assert scores.perplexity == pytest.approx(math.exp(7 / 4))


def test_bits_per_byte(scores):
    # n, a, two bytes of ß, a space, e
    assert scores.bits_per_byte == pytest.approx(7 / math.log(2) / 6)


def test_bits_per_byte_counts_the_bytes_of_scored_tokens_only(scores):
    scores.surprisal[0] = NAN
    assert scores.nll == pytest.approx(2)
    assert scores.bits_per_byte == pytest.approx(6 / math.log(2) / 4)
    scores.surprisal[:] = NAN
    assert math.isnan(scores.nll)
    assert math.isnan(scores.perplexity)
    assert math.isnan(scores.bits_per_byte)


def test_deviation(scores):
    np.testing.assert_allclose(scores.deviation, [-1.0, -1.0, 1.0, NAN])
    assert scores.deviation.dtype == np.float32


def test_pmi_is_what_the_prefix_saves(scores):
    np.testing.assert_allclose(scores.pmi, [0.5, 3.0, -1.0, 0.5])


def test_cpmi_roles_of_tau_and_lambda(scores):
    # The marginal counts where the entropy reaches tau, weighted by lambda.
    np.testing.assert_allclose(scores.cpmi(tau=3.0, lam=0.1), [1.0, 2.0 - 0.5, 4.0 - 0.3, 0.0], rtol=1e-6)
    np.testing.assert_allclose(scores.cpmi(tau=0.0, lam=1.0), [-0.5, -3.0, 1.0, -0.5], rtol=1e-6)
    # Swapped, the defaults (3.5987, 0.0656) would subtract from every token but the last.
    np.testing.assert_allclose(scores.cpmi(), [1.0, 2.0 - 0.0656 * 5.0, 4.0, 0.0], rtol=1e-6)


def test_no_marginal(scores):
    bare = TokenScores(**{**vars(scores), "marginal_surprisal": None})
    with pytest.raises(ValueError, match="pmi=True"):
        bare.pmi  # noqa: B018
    with pytest.raises(ValueError, match="pmi=True"):
        bare.cpmi()
    assert bare.first(2).marginal_surprisal is None


def test_first(scores):
    cut = scores.first(2)
    assert len(cut) == 2
    assert cut.nll == pytest.approx(1.5)
    assert cut.offsets.tolist() == [[0, 2], [2, 3]]
    assert cut.pmi.tolist() == [0.5, 3.0]
    # The first byte of ß stands for the whole character.
    assert cut.bits_per_byte == pytest.approx(3 / math.log(2) / 4)
    assert (cut.text, cut.scorer, cut.straddles) == (scores.text, scores.scorer, scores.straddles)
    assert len(scores.first(99)) == 4
    assert len(scores) == 4
