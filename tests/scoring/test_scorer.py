import logging
import math

import numpy as np
import pytest
import torch
from transformers import XLNetConfig, XLNetLMHeadModel

from ugap.errors import InputError
from ugap.models.fingerprint import weight_hash
from ugap.scoring import Scorer, TokenScores, batching
from ugap.scoring.head.statistics import head_statistics
from ugap.study.measures import text_value

TEXTS = [
    "Once upon a time there was a tailor who had three sons.",
    "The youngest went into the forest, and the old man said to the youngest: give me a piece of your cake.",
    "A function returns a value.",
    "être, 東京の夜 🦊",
    "the",
    "Wenn es regnet, wird das Haus naß. " * 6,
]
PREFIX = "A tale of three sons and an old man in the forest who gave them a piece of his cake, told in the evening:"
STATISTICS = ("surprisal", "entropy", "varentropy", "rank")


def table(scores: TokenScores) -> np.ndarray:
    return np.stack([getattr(scores, name) for name in STATISTICS])


def assert_same(some, others, atol=1e-5):
    for a, b in zip(some, others, strict=True):
        assert a.token_ids.tolist() == b.token_ids.tolist()
        np.testing.assert_allclose(table(a), table(b), rtol=1e-5, atol=atol)
        if a.marginal_surprisal is not None:
            np.testing.assert_allclose(marginal(a), marginal(b), rtol=1e-5, atol=atol)


def marginal(scores: TokenScores) -> np.ndarray:
    assert scores.marginal_surprisal is not None
    return scores.marginal_surprisal


def no_sharing(monkeypatch):
    monkeypatch.setattr(batching, "MIN_SHARED", 10**9)


# --- the numbers ---


def test_equals_the_models_own_logits_in_float64(any_model, tokenizer, reference):
    scorer = Scorer(any_model, tokenizer)
    for scores in scorer.score(TEXTS):
        expected = reference(any_model, [tokenizer.bos_token_id], scores.token_ids.tolist())
        np.testing.assert_allclose(table(scores)[:3], expected[:3], rtol=0, atol=1e-4)
        assert (scores.rank == expected[3]).all()
        assert scores.scorer == scorer.id


def test_equals_float64_after_a_shared_prefix(any_model, tokenizer, reference):
    """The prefix is longer than the sliding windows of 8, and its cache is shared by all texts."""
    scorer = Scorer(any_model, tokenizer)
    prefix = tokenizer(PREFIX)["input_ids"]
    assert len(prefix) > batching.MIN_SHARED > 8
    for scores in scorer.score(TEXTS, [prefix] * len(TEXTS)):
        expected = reference(any_model, prefix, scores.token_ids.tolist())
        np.testing.assert_allclose(table(scores)[:3], expected[:3], rtol=0, atol=1e-4)
        assert (scores.rank == expected[3]).all()


def test_record(tiny_scorer, tiny_model):
    (scores,) = tiny_scorer.score(TEXTS[:1])
    assert scores.text == TEXTS[0]
    assert scores.token_ids.dtype == scores.offsets.dtype == np.int32
    assert {getattr(scores, name).dtype for name in STATISTICS} == {np.dtype(np.float32)}
    assert scores.marginal_surprisal is None
    assert scores.scorer == ("tiny", weight_hash(tiny_model))
    assert scores.nll == pytest.approx(scores.surprisal.mean())
    assert tiny_scorer.score([]) == []


# --- what must not change them ---


@pytest.mark.parametrize("budget", [1, 64, 300, 100_000])
def test_batches_change_nothing(budget, any_model, tokenizer):
    texts, prefixes = TEXTS * 2, [""] * len(TEXTS) + [PREFIX] * len(TEXTS)
    prefixes[4] = PREFIX  # "the" alone would be a single token
    alone = [Scorer(any_model, tokenizer).score([t], [p], pmi=True)[0] for t, p in zip(texts, prefixes, strict=True)]
    together = Scorer(any_model, tokenizer, token_budget=budget).score(texts, prefixes, pmi=True)
    assert [scores.text for scores in together] == texts
    assert_same(together, alone)


def test_order_changes_nothing(tiny_scorer):
    order = [3, 0, 5, 1, 2]
    forward = tiny_scorer.score([TEXTS[i] for i in sorted(order)])
    shuffled = tiny_scorer.score([TEXTS[i] for i in order])
    assert_same([forward[sorted(order).index(i)] for i in order], shuffled)


def test_sharing_the_prefix_changes_nothing(any_model, tokenizer, monkeypatch):
    scorer = Scorer(any_model, tokenizer)
    prefixes = [PREFIX] * len(TEXTS)
    runs = []
    real = scorer._run

    def watched(batch):
        runs.append(batch.n_shared)
        return real(batch)

    monkeypatch.setattr(scorer, "_run", watched)
    shared = scorer.score(TEXTS, prefixes)
    assert max(runs) > batching.MIN_SHARED
    no_sharing(monkeypatch)
    runs.clear()
    assert_same(shared, scorer.score(TEXTS, prefixes))
    assert set(runs) == {0}


def test_positions_that_are_not_scored_never_reach_the_head(tiny_scorer, monkeypatch):
    seen = []

    def watched(hidden, *args, **kwargs):
        seen.append(len(hidden))
        return head_statistics(hidden, *args, **kwargs)

    monkeypatch.setattr("ugap.scoring.head.lm_head.head_statistics", watched)
    scores = tiny_scorer.score(TEXTS, [PREFIX] * len(TEXTS))
    assert sum(seen) == sum(map(len, scores))


# --- prefix and marginal ---


@pytest.fixture
def bigram(make_model, tokenizer):
    """A scorer whose next token depends on the last token alone, and its table `-log p(next | last)` `(V, V)`."""
    model = make_model("llama")
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    scorer = Scorer(model, tokenizer, name="bigram")
    state = model.model.embed_tokens.weight.double()
    state = state / (state.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps).sqrt()
    return scorer, -torch.log_softmax(state @ model.lm_head.weight.double().T, -1).numpy()


def test_pmi_where_the_marginals_are_known(bigram, tokenizer):
    scorer, surprisal = bigram
    texts = [" youngest son went into the forest", " value of the function", " a"]
    prefixes = ["Once upon a time the", "The", PREFIX]
    for text, prefix, scores in zip(texts, prefixes, scorer.score(texts, prefixes, pmi=True), strict=True):
        y = tokenizer(text)["input_ids"]
        last = tokenizer(prefix)["input_ids"][-1]
        assert scores.token_ids.tolist() == y
        np.testing.assert_allclose(scores.surprisal, surprisal[[last, *y[:-1]], y], atol=1e-4)
        np.testing.assert_allclose(marginal(scores), surprisal[[tokenizer.bos_token_id, *y[:-1]], y], atol=1e-4)
        # Only the first token learns from the prefix.
        assert abs(scores.pmi[0] - (surprisal[tokenizer.bos_token_id, y[0]] - surprisal[last, y[0]])) < 2e-4
        assert abs(scores.pmi[0]) > 0.01
        np.testing.assert_allclose(scores.pmi[1:], 0, atol=1e-4)


def test_marginal_is_the_score_without_the_prefix(any_model, tokenizer, reference):
    (scores,) = Scorer(any_model, tokenizer).score([" youngest son went away"], [PREFIX + " the"], pmi=True)
    y = scores.token_ids.tolist()
    np.testing.assert_allclose(marginal(scores), reference(any_model, [2], y)[0], atol=1e-4)
    expected = reference(any_model, [2, *tokenizer(PREFIX + " the")["input_ids"]], y)[0]
    np.testing.assert_allclose(scores.surprisal, expected, atol=1e-4)


def test_without_a_prefix_there_is_no_marginal(tiny_scorer):
    alone, after = tiny_scorer.score(TEXTS[:2], ["", PREFIX], pmi=True)
    assert alone.marginal_surprisal is None
    assert after.marginal_surprisal is not None
    for measure in ("pmi", "cpmi"):
        assert np.isnan(text_value(alone, measure))
        assert np.isfinite(text_value(after, measure))


def test_a_straddling_token_is_context(tiny_scorer, tiny_model, tokenizer, reference):
    (scores,) = tiny_scorer.score(["youngest son"], ["the "], pmi=True)
    assert scores.straddles
    assert "".join(scores.text[begin:end] for begin, end in scores.offsets) == " son"
    context = [2, *tokenizer("the youngest")["input_ids"]]
    np.testing.assert_allclose(
        table(scores)[0], reference(tiny_model, context, scores.token_ids.tolist())[0], atol=1e-4
    )
    assert not tiny_scorer.score([" youngest son"], ["the"])[0].straddles


def test_prefix_of_token_ids(tiny_scorer, tiny_model, reference):
    for context in ([7, 8, 9], np.array([7, 8, 9]), (7,)):
        (scores,) = tiny_scorer.score([TEXTS[0]], [context])
        expected = reference(tiny_model, list(context), scores.token_ids.tolist())
        np.testing.assert_allclose(scores.surprisal, expected[0], atol=1e-4)


def test_no_token_ids_means_nothing_before_the_text(tiny_scorer):
    (scores,) = tiny_scorer.score([TEXTS[0]], [[]], pmi=True)
    assert math.isnan(scores.surprisal[0])
    assert np.isfinite(scores.surprisal[1:]).all()
    assert np.isfinite(marginal(scores)).all()


# --- BOS, special tokens ---


def test_first_token_is_scored_after_bos(tiny_scorer, tiny_model, reference):
    (scores,) = tiny_scorer.score([TEXTS[0]])
    assert np.isfinite(scores.surprisal[0])
    np.testing.assert_allclose(scores.surprisal, reference(tiny_model, [2], scores.token_ids.tolist())[0], atol=1e-4)


@pytest.mark.parametrize("how", ["none", "off"])
def test_first_token_is_nan_without_bos(how, tiny_model, tokenizer, tokenizer_without_bos, reference):
    own, bos = (tokenizer_without_bos, None) if how == "none" else (tokenizer, False)
    scorer = Scorer(tiny_model, own, bos=bos)
    for scores in scorer.score(TEXTS[:4], pmi=True):
        assert np.isnan(table(scores)[:, 0]).all()
        expected = reference(tiny_model, [], scores.token_ids.tolist())
        np.testing.assert_allclose(table(scores)[:3, 1:], expected[:3, 1:], atol=1e-4)
        assert scores.nll == pytest.approx(expected[0, 1:].mean(), abs=1e-4)
    # After a prefix there is something to condition on.
    (scores,) = scorer.score([" youngest son"], ["the"], pmi=True)
    assert np.isfinite(scores.surprisal).all()
    assert np.isnan(marginal(scores)[0])


def test_marginal_of_a_single_token_without_bos(tiny_model, tokenizer_without_bos):
    scorer = Scorer(tiny_model, tokenizer_without_bos)
    # The long prefix is shared, which leaves the marginals, without anything to predict them, to a batch of their own.
    for n, prefix in ((1, "the"), (3, PREFIX + " the")):
        for scores in scorer.score([" youngest"] * n, [prefix] * n, pmi=True):
            assert np.isfinite(scores.surprisal).all()
            assert np.isnan(marginal(scores)).all()


def test_bos_that_the_tokenizer_lacks(tiny_model, tokenizer_without_bos):
    with pytest.raises(ValueError, match="no BOS token"):
        Scorer(tiny_model, tokenizer_without_bos, bos=True)


def test_special_strings(tiny_scorer, tokenizer):
    text = "Once <bos> upon <|im_end|> a time"
    (plain,) = tiny_scorer.score([text])
    (meant,) = tiny_scorer.score([text], special_tokens=True)
    special = set(tokenizer.convert_tokens_to_ids(["<bos>", "<|im_end|>"]))
    assert not special & set(plain.token_ids.tolist())
    assert special <= set(meant.token_ids.tolist())


# --- windows, memory ---


@pytest.mark.parametrize("prefix", ["", PREFIX], ids=["alone", "after_a_long_prefix"])
def test_long_texts_slide(prefix, tiny_model, tokenizer, reference):
    limit, text = 16, " " + " ".join(TEXTS[:3])
    scorer = Scorer(tiny_model, tokenizer, max_length=limit)
    (scores,) = scorer.score([text], [prefix], pmi=True)

    def by_hand(context, y):
        ids = [*context, *y]
        done, out = len(context), []
        if done < limit:  # the first window holds what fits
            out.append(reference(tiny_model, ids[:done], ids[done:limit]))
            done = limit
        while done < len(ids):  # each later one scores half a window after BOS and what still fits
            end = min(done + limit // 2, len(ids))
            out.append(reference(tiny_model, [2, *ids[end - limit + 1 : done]], ids[done:end]))
            done = end
        return np.concatenate(out, axis=1)

    y = scores.token_ids.tolist()
    context = [2, *tokenizer(prefix)["input_ids"]] if prefix else [2]
    assert len(y) > 2 * limit
    np.testing.assert_allclose(table(scores)[:3], by_hand(context, y)[:3], atol=1e-4)
    if prefix:
        np.testing.assert_allclose(marginal(scores), by_hand([2], y)[0], atol=1e-4)


def test_the_models_limit_holds_by_default(make_model, tokenizer):
    for architecture in ("llama", "gpt2"):
        scorer = Scorer(make_model(architecture, max_position_embeddings=32), tokenizer)
        assert scorer.max_length == 32
        (scores,) = scorer.score([TEXTS[1] * 3])
        assert np.isfinite(table(scores)).all()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])  # fmt: skip
def test_out_of_memory_halves_the_budget(error, tiny_model, tokenizer, monkeypatch, caplog):
    texts, prefixes = TEXTS * 3, ["", PREFIX, "The tale: "] * len(TEXTS)
    texts[4 :: len(TEXTS)] = [TEXTS[0]] * 3
    expected = Scorer(tiny_model, tokenizer).score(texts, prefixes, pmi=True)
    scorer = Scorer(tiny_model, tokenizer, token_budget=4096)
    real, sizes = scorer._run, []

    def small_memory(batch):
        size = len(batch.requests) * len(batch.requests[0])
        if size > 400:
            raise error
        sizes.append(size)
        return real(batch)

    monkeypatch.setattr(scorer, "_run", small_memory)
    with caplog.at_level(logging.WARNING):
        got = scorer.score(texts, prefixes, pmi=True)
    assert [scores.text for scores in got] == texts
    assert_same(got, expected)
    assert max(sizes) > 100
    assert 50 < scorer.token_budget <= 1024
    assert "out of memory" in caplog.text


def test_out_of_memory_for_one_text_and_other_errors_are_raised(tiny_scorer, monkeypatch):
    for error in (torch.OutOfMemoryError("no memory"), RuntimeError("something else")):

        def fail(batch, error=error):
            raise error

        monkeypatch.setattr(tiny_scorer, "_run", fail)
        with pytest.raises(RuntimeError, match=str(error)):
            tiny_scorer.score(TEXTS[:1] if isinstance(error, torch.OutOfMemoryError) else TEXTS[:3])


# --- bad input ---

BAD = [
    ("", "", "the text is empty"),
    ("a", "", "a single token"),
    ("nul\0byte", "", "NUL byte"),
    ("half \ud83e pair", "", "lone surrogate"),
    ("youngest", "the ", "covers the end of the prefix"),
]


@pytest.mark.parametrize(("text", "prefix", "cause"), BAD)
def test_bad_text_is_named(text, prefix, cause, tiny_scorer):
    with pytest.raises(InputError, match=rf"^text 1: .*{cause}"):
        tiny_scorer.score([TEXTS[0], text], ["", prefix])
    with pytest.raises(InputError, match=rf"^a\.csv, row 8: .*{cause}"):
        tiny_scorer.score([TEXTS[0], text], ["", prefix], names=["a.csv, row 7", "a.csv, row 8"])


def test_skip_bad_keeps_the_others(tiny_scorer, caplog):
    texts = [TEXTS[0], *(text for text, _, _ in BAD), TEXTS[1]]
    prefixes = ["", *(prefix for _, prefix, _ in BAD), ""]
    with caplog.at_level(logging.WARNING):
        got = tiny_scorer.score(texts, prefixes, skip_bad=True)
    assert [scores is None for scores in got] == [False, *[True] * len(BAD), False]
    assert_same([got[0], got[-1]], tiny_scorer.score([TEXTS[0], TEXTS[1]]))
    assert [f"text {i + 1}" in record.getMessage() for i, record in enumerate(caplog.records)] == [True] * len(BAD)
    assert tiny_scorer.score([""], skip_bad=True) == [None]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite(value, make_model, tokenizer):
    model = make_model("llama")
    texts = ["Once upon a time", "the forest and the 夜 🦊", "three sons"]
    fox = tokenizer("🦊")["input_ids"][-1]
    assert [fox in tokenizer(text)["input_ids"] for text in texts] == [False, True, False]
    # What comes after the fox is broken; the fox is the last but one, so that something does.
    model.model.embed_tokens.weight.data[fox] = value
    scorer = Scorer(model, tokenizer, name="broken")
    texts[1] += " son"
    with pytest.raises(InputError, match=r"^text 1: the logits of broken are not finite at token \d+"):
        scorer.score(texts)
    got = scorer.score(texts, skip_bad=True)
    assert [scores is None for scores in got] == [False, True, False]
    whole = make_model("llama")
    whole.lm_head.weight.data[50] = value
    with pytest.raises(InputError, match=r"^text 0: the logits of broken are not finite at token 0$"):
        Scorer(whole, tokenizer, name="broken").score(texts)


def test_logits_that_are_not_finite_in_the_marginal_alone(make_model, tokenizer):
    """The state after BOS is broken, which only a text without a prefix of its own sees."""
    model = make_model("llama")
    model.model.embed_tokens.weight.data[tokenizer.bos_token_id] = math.nan
    scorer = Scorer(model, tokenizer, name="broken")
    assert np.isfinite(scorer.score([TEXTS[0]], [[7, 8]])[0].surprisal).all()
    with pytest.raises(InputError, match=r"^text 0: the logits of broken are not finite"):
        scorer.score([TEXTS[0]], [[7, 8]], pmi=True)


@pytest.mark.parametrize("prefix", [[7, 400], [-1, 7]])
def test_prefix_token_ids_outside_the_vocabulary(prefix, tiny_scorer):
    with pytest.raises(InputError, match=r"^text 1: .*token id (400|-1)"):
        tiny_scorer.score(TEXTS[:2], [[7], prefix])


def test_wrong_arguments(tiny_scorer, tiny_model, tokenizer):
    with pytest.raises(ValueError, match="2 texts, 1 prefixes"):
        tiny_scorer.score(TEXTS[:2], [""])
    with pytest.raises(ValueError, match="token_budget is 0"):
        Scorer(tiny_model, tokenizer, token_budget=0)
    for length in (0, 7):
        with pytest.raises(ValueError, match=f"max_length is {length}"):
            Scorer(tiny_model, tokenizer, max_length=length)


def test_progress_bar(tiny_scorer, capsys):
    tiny_scorer.score(TEXTS[:2], progress=True)
    assert "scoring with tiny" in capsys.readouterr().out
    tiny_scorer.score(TEXTS[:2])
    assert capsys.readouterr().out == ""


def test_a_model_that_needs_more_than_token_ids_is_one_line(make_model, tokenizer, monkeypatch):
    model = make_model("llama")

    def forward(input_ids, pixel_values, **options):
        raise AssertionError

    monkeypatch.setattr(model.model, "forward", forward)
    with pytest.raises(InputError, match=r"^eyes: cannot run on token ids alone: .*pixel_values") as caught:
        Scorer(model, tokenizer, name="eyes")
    assert "\n" not in str(caught.value)


def test_xlnet_is_refused(tokenizer):
    config = XLNetConfig(vocab_size=len(tokenizer), d_model=16, n_layer=1, n_head=2, d_inner=16, attn_type="uni")
    with pytest.raises(InputError, match=r"^x: XLNet cannot be scored"):
        Scorer(XLNetLMHeadModel(config).eval(), tokenizer, name="x")
