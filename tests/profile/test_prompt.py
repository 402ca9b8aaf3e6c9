"""What a prompt tells of the text that follows."""

import numpy as np
import pytest

from ugap.profile.positions import PlacedTokens, TextTokens, fit_positions
from ugap.profile.prompt import N_TOKENS, PromptModel

KINDS = ("tale", "news", "law", "letter")
LEVELS = (3.0, 3.0, 2.6, 3.4)


def text(rng, kind, n=160):
    """A text whose first 64 tokens look alike in every kind, but for how often each token is there."""
    surprisal, entropy = rng.gamma(9, 1 / 3, (2, n))
    surprisal[64:] *= LEVELS[kind] / 3
    ids = rng.integers(100, 400, n)
    ids[rng.random(n) < 0.2] = 7 + kind
    return TextTokens(ids, surprisal, entropy)


def flat(column):
    """Surprisals, and entropies, of the first token of every text, then of the second."""
    return (np.stack([getattr(one, name) for one in column], axis=1).ravel() for name in ("surprisal", "entropy"))


@pytest.fixture(scope="module")
def model() -> PromptModel:
    rng = np.random.default_rng(0)
    texts = {kind: [text(rng, i) for _ in range(60)] for i, kind in enumerate(KINDS)}
    placed = {kind: PlacedTokens(np.arange(160.0).repeat(60), *flat(column)) for kind, column in texts.items()}
    fitted = PromptModel.fit(texts, fit_positions(placed))
    assert fitted is not None
    return fitted


def test_the_words_of_a_prompt_tell_its_kind_and_so_its_level(model):
    rng = np.random.default_rng(1)
    for i, kind in enumerate(KINDS):
        readings = [model.read(text(rng, i).first(64)) for _ in range(50)]
        assert np.mean([max(one.kinds, key=one.kinds.get) == kind for one in readings]) > 0.9
        assert np.mean([one.mean_surprisal for one in readings]) == pytest.approx(LEVELS[i], abs=0.06)


def test_the_words_alone_tell_kind_and_level(model):
    """Surprisal and entropy are not known where no model has read the prompt."""
    rng = np.random.default_rng(4)
    for i, kind in enumerate(KINDS):
        prompts = [text(rng, i).first(64) for _ in range(50)]
        unread = [one._replace(surprisal=one.surprisal * np.nan, entropy=one.entropy * np.nan) for one in prompts]
        readings = [model.read(one) for one in unread]
        assert np.mean([max(one.kinds, key=one.kinds.get) == kind for one in readings]) > 0.9
        assert np.mean([one.mean_surprisal for one in readings]) == pytest.approx(LEVELS[i], abs=0.06)
        assert model.without_names().read(unread[0]) is None


def test_a_kind_that_was_left_out_is_read_as_the_others(model):
    without = model.without("law")
    reading = without.read(text(np.random.default_rng(2), 2).first(64))
    assert set(reading.kinds) == {"tale", "news", "letter"}
    assert sum(reading.kinds.values()) == pytest.approx(1)
    assert reading.mean_surprisal > 2.9


def test_the_level_alone_can_be_lent_to_other_tokens(model):
    lent = PromptModel.from_dict(model.without_names().to_dict())
    prompt = text(np.random.default_rng(3), 1).first(64)
    reading = lent.read(prompt)
    assert reading is not None
    assert reading.kinds == {}
    assert lent.read(prompt._replace(token_ids=prompt.token_ids + 50_000)) == reading


def test_the_tokens_are_the_most_frequent_of_all_kinds(model):
    assert len(model.tokens) == N_TOKENS
    assert {7, 8, 9, 10} < set(model.tokens)
    assert model.counts.sum(1).tolist() == [60 * 128] * 4
    assert PromptModel.from_dict(model.to_dict()).to_dict() == model.to_dict()
