"""Profiles that are fitted on the fly: cuts of texts, texts of a user, and models that nobody prepared."""

import copy
import shutil

import numpy as np
import pytest

import ugap.profile.fitting
from ugap.errors import InputError
from ugap.models import load_model
from ugap.profile import HumanProfile, like_texts
from ugap.profile.fitting import BESIDE, by_kind, check_like, cut_text, named_profile, profile_for
from ugap.profile.positions import TextTokens
from ugap.scoring import Scorer


@pytest.fixture
def scorer(tiny_model, tokenizer):
    return Scorer(tiny_model, tokenizer)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(ugap.profile.fitting, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "profiles"


def test_a_text_is_cut_at_tokens(tokenizer):
    text = "Once upon a time there was an old tailor who had three sons, and they went into the forest. " * 3
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for most, tokens, before in ((8, 20, 8), (64, 10**6, len(ids) // 2 if len(ids) < 128 else 64)):
        cut = cut_text(tokenizer, text, prefix_tokens=most, max_tokens=tokens, min_tokens=4)
        assert cut is not None
        assert text.startswith(cut.prefix + cut.text)
        assert len(tokenizer(cut.prefix, add_special_tokens=False)["input_ids"]) == before
    assert cut_text(tokenizer, text, min_tokens=10**4) is None
    # A prompt is the prefix, as it stands.
    assert cut_text(tokenizer, text, "Tell me.", max_tokens=10**6) == ("Tell me.", text)


def test_a_kind_is_of_one_domain():
    assert by_kind([("news", "functional"), ("tale", "creative"), ("news", "functional")]) == {
        "news": "functional",
        "tale": "creative",
    }
    with pytest.raises(InputError, match="kind 'news' has texts of two domains, 'functional' and 'creative'"):
        by_kind([("news", "functional"), ("news", "creative")])


class TestLike:
    def test_it_is_fitted_once_for_the_texts(self, make_profile, tiny_model, scorer, text_rows, cache, monkeypatch):
        profile = make_profile(tiny_model, level=3.0)
        texts = [f"{row['text']} {row['text']} {i}" for i, row in enumerate(text_rows)]
        like = like_texts(profile, scorer, texts)
        assert list(like.kinds) == [*profile.kinds, "like"]
        cuts = [cut for text in texts if (cut := cut_text(scorer.tokenizer, text)) is not None]
        scores = scorer.score([cut.text for cut in cuts], [cut.prefix for cut in cuts])
        mean = np.concatenate([one.surprisal for one in scores]).mean()
        assert like.kinds["like"].means["surprisal"] == pytest.approx(mean, rel=0.02)
        assert like.kinds["like"].n_texts == len(texts)
        monkeypatch.setattr(Scorer, "score", None)
        assert like_texts(profile, scorer, [*texts, texts[0]]).to_dict() == like.to_dict()
        assert len(list(cache.glob("like-*"))) == 1

    def test_few_texts_are_a_warning(self, make_profile, tiny_model, scorer, text_rows, cache, caplog):
        profile = make_profile(tiny_model, level=3.0)
        texts = [f"{row['text']} {row['text']}" for row in text_rows[:3]]
        for _ in range(2):
            like_texts(profile, scorer, texts)
        (record,) = caplog.records
        assert record.getMessage().startswith("3 texts to write like are few")

    def test_of_many_texts_some_are_read(self, make_profile, tiny_model, scorer, text_rows, cache, monkeypatch):
        monkeypatch.setattr(ugap.profile.fitting, "LIKE_TEXTS", 9)
        profile = make_profile(tiny_model, level=3.0)
        texts = [f"{i} {text_rows[i % 12]['text']} {text_rows[i % 12]['text']}" for i in range(20)]
        every_other = [texts[int(i * 20 / 9)] for i in range(9)]
        assert like_texts(profile, scorer, texts).to_dict() == like_texts(profile, scorer, every_other).to_dict()

    def test_texts_that_are_continued_are_refused(self, caplog):
        prompt = "It was late when the ferry left, and the old man at the rail had not said a word since noon."
        mine = ["Another text.", f"{prompt} Then he spoke."]
        with pytest.raises(InputError, match="all 2 texts to write like are texts to continue, or hold one"):
            check_like([prompt, mine[1]], [prompt])
        assert not caplog.records
        check_like(mine, [prompt])
        assert [record.getMessage() for record in caplog.records] == [
            "1 of 2 texts to write like are texts to continue, or hold one"
        ]
        caplog.clear()
        # Many texts hold a short prompt by chance.
        check_like([f"{start} there was." for start in ("Once upon a time", "Once")], ["Once upon a time", "Once"])
        check_like([], [prompt])
        assert not caplog.records

    def test_texts_of_another_language_are_refused(self, make_profile, tiny_model, scorer, text_rows, cache):
        profile = make_profile(tiny_model, level=0.2)
        texts = [f"{row['text']} {row['text']} {i}" for i, row in enumerate(text_rows)]
        with pytest.raises(InputError, match="the model may not read their language"):
            like_texts(profile, scorer, texts)
        assert not list(cache.glob("like-*"))


class TestForModel:
    def test_embedded_texts_are_read_once(self, tiny_model, tokenizer, cache, monkeypatch):
        monkeypatch.setattr(ugap.profile.fitting, "EMBEDDED_TEXTS", 4)
        profile = HumanProfile.for_model(tiny_model, tokenizer)
        assert {name: kind.domain for name, kind in profile.kinds.items()} == {
            "fairy-tale": "creative",
            "manual": "functional",
        }
        assert profile.kinds["fairy-tale"].n_texts == 4
        assert profile.prompt is not None
        assert profile.prompt.kinds == ()
        # What a prompt tells is the level alone; its kinds are the creative ones.
        rng = np.random.default_rng(0)
        target = profile.target("auto", prompt=TextTokens(np.arange(80), *rng.gamma(2, 2, (2, 80))))
        assert target.weights == {"fairy-tale": 1.0}
        assert target.factor != 1
        monkeypatch.setattr(Scorer, "score", None)
        assert HumanProfile.for_model(tiny_model, tokenizer).to_dict() == profile.to_dict()

    def test_the_profile_in_the_folder_of_a_model_comes_first(self, tiny_folder, make_profile, tmp_path, cache):
        folder = shutil.copytree(tiny_folder, tmp_path / "model")
        model, tokenizer = load_model(str(folder))
        profile = make_profile(model)
        profile.save(folder / BESIDE)
        assert HumanProfile.for_model(model, tokenizer).to_dict() == profile.to_dict()

    def test_what_a_name_tells(self, tiny_folder, make_profile, tmp_path):
        shipped = named_profile("gemma-3-270m")
        assert shipped is not None
        assert shipped.scorer_name == "gemma-3-270m"
        assert named_profile("org/model") is None
        assert named_profile(str(tmp_path)) is None
        profile = make_profile(load_model(str(tiny_folder))[0])
        profile.save(tmp_path / BESIDE)
        beside = named_profile(str(tmp_path))
        assert beside is not None
        assert beside.to_dict() == profile.to_dict()


def test_a_fitted_profile_is_that_of_the_tokenizer_too(tiny_model, tokenizer, cache):
    with_bos = profile_for(tiny_model, tokenizer)
    without = copy.deepcopy(tokenizer)
    without.bos_token = None
    # The same weights, read without BOS: the level is another one, and must not come from the cache.
    assert profile_for(tiny_model, without).kinds["manual"].means != with_bos.kinds["manual"].means
    assert len(list(cache.glob("[0-9a-f]*"))) == 2
