import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.profile.positions import TextTokens
from ugap.scoring.records import ScorerId, TokenScores

TINY, OTHER = ScorerId("tiny", "aaaa"), ScorerId("other", "bbbb")


def score(seed, n=300, scorer=TINY, pmi=True):
    """Made-up scores of a text of `n` tokens of three characters; the first token has no score."""
    rng = np.random.default_rng(seed)
    entropy = rng.gamma(2.0, 1.3, n)
    surprisal = entropy * rng.gamma(2.0, 0.5, n)
    varentropy = rng.gamma(2.0, 1.0, n)
    rank = np.ceil(np.exp(np.minimum(surprisal, 12)))
    marginal = surprisal + rng.normal(0.5, 0.5, n)
    columns = [np.concatenate([[np.nan], row[1:]]) for row in (surprisal, entropy, varentropy, rank)]
    s, h, v, r = (row.astype(np.float32) for row in columns)
    v[5:6] = 0  # the scorer is certain: no deviation
    return TokenScores(
        text="abé" * n,
        token_ids=np.arange(n, dtype=np.int32),
        offsets=np.stack([np.arange(n) * 3, np.arange(n) * 3 + 3], axis=1).astype(np.int32),
        surprisal=s,
        entropy=h,
        varentropy=v,
        rank=r,
        marginal_surprisal=marginal.astype(np.float32) if pmi else None,
        scorer=scorer,
        straddles=False,
    )


@pytest.fixture(scope="module")
def texts():
    return {"creative": [score(i) for i in range(8)], "functional": [score(i, pmi=False) for i in range(20, 24)]}


@pytest.fixture(scope="module")
def profile(texts):
    return HumanProfile.fit(texts, source="made up", resamples=50)


@pytest.fixture(scope="module")
def whole():
    """A profile of four kinds that was fitted from the starts of texts, and what it was fitted on."""
    return kinds_of_texts(0)


def kinds_of_texts(seed):
    """Texts with a level of their own around that of their kind, more surprising where less was read."""
    rng = np.random.default_rng(seed)
    texts: dict[str, list[TokenScores]] = {}
    prefixes: dict[str, list[TokenScores | None]] = {}
    for number, kind in enumerate(("tale", "story", "news", "manual")):
        texts[kind], prefixes[kind] = [], []
        for i in range(24):
            level = (1.0 + 0.15 * number) * rng.normal(1, 0.1)
            one = score(1000 * seed + 100 * number + i, n=160)
            factor = (level * (1 + 0.6 / np.sqrt(1 + np.arange(160)))).astype(np.float32)
            one = replace(one, surprisal=one.surprisal * factor, entropy=one.entropy * factor)
            prefixes[kind].append(replace(one.first(64), marginal_surprisal=None))
            texts[kind].append(one.after(64))
    domains = {"tale": "creative", "story": "creative", "news": "functional", "manual": "functional"}
    return HumanProfile.fit(texts, prefixes=prefixes, domains=domains, resamples=10), texts, prefixes


def pooled(texts, of):
    values = np.concatenate([of(scores) for scores in texts]).astype(np.float64)
    return values[np.isfinite(values)]


MEASURES = {
    "surprisal": lambda scores: scores.surprisal,
    "entropy": lambda scores: scores.entropy,
    "deviation": lambda scores: scores.deviation,
    "rank": lambda scores: scores.rank,
    "pmi": lambda scores: scores.pmi,
}


@pytest.mark.parametrize("measure", MEASURES)
def test_quantiles_against_numpy(texts, profile, measure):
    values = pooled(texts["creative"], MEASURES[measure])
    quantiles = profile.quantiles("creative", measure)
    assert quantiles.levels[[0, 22, -1]].tolist() == [0.001, 0.5, 0.999]
    assert (np.diff(quantiles.levels) > 0).all()
    np.testing.assert_allclose(quantiles.values, np.quantile(values, quantiles.levels), rtol=1e-5, atol=1e-12)


def test_counts_and_means(texts, profile):
    creative = profile.kind("creative")
    assert (creative.n_texts, creative.n_tokens) == (8, 8 * 299)
    for measure in ("surprisal", "entropy", "deviation", "pmi"):
        expected = pooled(texts["creative"], MEASURES[measure]).mean()
        assert creative.means[measure] == pytest.approx(expected, rel=1e-5)
    assert creative.means["varentropy"] == pytest.approx(pooled(texts["creative"], lambda s: s.varentropy).mean(), 1e-5)
    assert len(pooled(texts["creative"], MEASURES["deviation"])) == 8 * 298


def test_bits_per_byte_pools_bits_and_bytes():
    short, long = score(0, n=10), score(1, n=1000)
    bits = sum(pooled([scores], MEASURES["surprisal"]).sum() / np.log(2) for scores in (short, long))
    profile = HumanProfile.fit({"creative": [short, long]})
    assert profile.kind("creative").means["bits_per_byte"] == pytest.approx(bits / (4 * (9 + 999)), rel=1e-5)


def test_without_marginals_there_is_no_pmi(profile):
    assert "pmi" not in profile.kind("functional").means
    with pytest.raises(InputError, match=r"^the human profile of 'functional' has no 'pmi'; it has surprisal, .*rank"):
        profile.quantiles("functional", "pmi")


def test_tokens_without_a_score_are_left_out(texts, profile):
    holes = []
    for scores in texts["creative"]:
        columns = {}
        for name in ("surprisal", "entropy", "varentropy", "rank", "marginal_surprisal"):
            columns[name] = np.concatenate([getattr(scores, name), np.full(7, np.nan, np.float32)])
        offsets = np.concatenate([scores.offsets, np.full((7, 2), len(scores.text), np.int32)])
        ids = np.concatenate([scores.token_ids, np.zeros(7, np.int32)])
        holes.append(TokenScores(scores.text, ids, offsets, scorer=TINY, straddles=False, **columns))
    nothing = score(99, n=1)  # a text without any scored token
    padded = HumanProfile.fit({**texts, "creative": [*holes, nothing]}, source="made up", resamples=50)
    assert padded.to_dict()["kinds"]["creative"] == profile.to_dict()["kinds"]["creative"]


def test_fit_is_reproducible(texts, profile):
    again = HumanProfile.fit(texts, source="made up", resamples=50)
    assert again.to_dict() == profile.to_dict()
    other = HumanProfile.fit(texts, source="made up", resamples=50, seed=1)
    assert other.curve("creative").g.tolist() == profile.curve("creative").g.tolist()
    assert np.isfinite(other.curve("creative").low).all()
    assert other.curve("creative").low.tolist() != profile.curve("creative").low.tolist()


def test_save_and_load_give_the_same_profile(profile, tmp_path):
    path = tmp_path / "deep" / "profile.json"
    profile.save(path)
    loaded = HumanProfile.load(path)
    assert loaded.to_dict() == profile.to_dict()
    assert loaded.scorer == TINY
    assert loaded.domains == ("creative", "functional")
    assert loaded.source == "made up"
    grid = np.linspace(0, 12, 50)
    assert loaded.curve("creative")(grid).tolist() == profile.curve("creative")(grid).tolist()
    assert json.loads(path.read_text())["version"] == 3
    assert [entry.name for entry in path.parent.iterdir()] == ["profile.json"]
    assert path.stat().st_size < 40_000


def test_one_text_round_trips_without_a_band(tmp_path):
    HumanProfile.fit({"creative": [score(0)]}).save(tmp_path / "one.json")
    curve = HumanProfile.load(str(tmp_path / "one.json")).curve("creative")
    assert np.isnan(curve.low).all()
    assert np.isfinite(curve(2.0))


def test_the_file_holds_no_text(tmp_path):
    HumanProfile.fit({"creative": [score(0), score(1)]}).save(tmp_path / "profile.json")
    assert "abé" not in json.dumps(json.loads((tmp_path / "profile.json").read_text()), ensure_ascii=False)


def test_check_names_both_scorers(profile):
    profile.check(TINY)
    profile.check(ScorerId("/a/local/copy/of/tiny", "aaaa"))  # the same weights by another name
    with pytest.raises(InputError, match=r"'tiny' \(weights aaaa\), not with 'other' \(weights bbbb\)$"):
        profile.check(OTHER)
    with pytest.raises(InputError, match=r"'tiny' \(weights aaaa\), not with 'tiny' \(weights bbbb\)$"):
        profile.check(ScorerId("tiny", "bbbb"))


def test_mixed_scorers_are_refused():
    with pytest.raises(InputError, match=r"'tiny' \(weights aaaa\) and 'other' \(weights bbbb\)"):
        HumanProfile.fit({"creative": [score(0)], "functional": [score(1, scorer=OTHER)]})


def test_an_unknown_kind_names_those_that_exist(profile):
    for call in (profile.curve, profile.kind, lambda kind: profile.quantiles(kind, "rank")):
        with pytest.raises(InputError, match=r"no kind 'legal'; it has creative, functional$"):
            call("legal")


def test_nothing_to_fit():
    with pytest.raises(InputError, match="no kind"):
        HumanProfile.fit({})
    with pytest.raises(InputError, match="kind 'creative': no scored token"):
        HumanProfile.fit({"creative": [score(0, n=1)]})
    with pytest.raises(InputError, match="kind 'creative': no scored token"):
        HumanProfile.fit({"creative": []})
    with pytest.raises(ValueError, match="resamples"):
        HumanProfile.fit({"creative": [score(0)]}, resamples=0)


def damage(document, *keys, value):
    *path, last = keys
    for key in path:
        document = document[key]
    if value is None:
        del document[last]
    else:
        document[last] = value


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("version",), 1, "version 1; this ugap reads version 3: fit it again with `ugap profile"),
        (("version",), None, "no version"),
        (("scorer",), None, "'scorer' is missing"),
        (("scorer",), "tiny", "damaged"),
        (("kinds",), [1], "damaged"),
        (("kinds", "creative"), [], "damaged"),
        (("kinds", "creative", "curve"), None, "'curve' is missing"),
        (("kinds", "creative", "curve", "g"), [1.0], "one common length"),
        (("kinds", "creative", "curve", "g"), "text", "damaged"),
        (("kinds", "creative", "bins", "edges"), [3.0, 1.0], "do not fit together"),
        (("kinds", "creative", "quantiles", "rank"), [1.0], "quantiles of rank"),
        (("kinds", "creative", "means"), 3, "damaged"),
        (("kinds", "creative", "n_texts"), "many", "damaged"),
        (("version",), 10**4000, "version 100000000000;"),
        (("version",), True, "no version"),
        (("scorer", "name"), ["tiny"], "'name' is no text"),
        (("source",), 3, "'source' is no text"),
        (("kinds",), {}, "needs a kind"),
        (("kinds", "creative", "n_tokens"), 0, "kind 'creative': 'n_tokens' is no whole number above 0"),
        (("kinds", "creative", "n_tokens"), True, "'n_tokens' is no whole number above 0"),
        (("kinds", "creative", "means", "surprisal"), "3.1", "'surprisal' is no finite number"),
        (("kinds", "creative", "levels"), [0.0] * 45, "levels must rise from above 0 to at most 1"),
        (("kinds", "creative", "levels", 5), 1.5, "levels must rise"),
        (("kinds", "creative", "levels", 5), float("inf"), "'levels' is no list of finite numbers"),
        (("kinds", "creative", "levels", 5), 10**400, "'levels' is no list of finite numbers"),
        (("kinds", "creative", "quantiles", "entropy", 3), -1.0, "quantiles of entropy fall or are negative"),
        (("kinds", "creative", "quantiles", "entropy", 3), "NaN", "'entropy' is no list of finite numbers"),
        (("kinds", "creative", "quantiles", "entropy"), None, "quantiles of entropy are missing"),
        (("kinds", "creative", "curve", "low", 0), 1e9, "low must not be above its high"),
        (("kinds", "creative", "bins", "rank", 0, 0), 1e12, "rank holds a rank beyond any vocabulary"),
        (("kinds", "creative", "bins", "n_tokens", 0), -1, "n_tokens must be counts"),
        (("kinds", "creative", "bins", "surprisal", 0, 0), 1e9, "surprisal must not fall"),
        (("kinds", "creative", "bins", "surprisal", 0), [1.0], "'surprisal' is no list of finite numbers"),
        (("kinds", "creative", "bins", "rank_levels", 0), 0.95, "rank_levels must rise"),
        (("kinds", "creative", "texts"), [], "not an object with 'features'"),
        (("kinds", "creative", "domain"), 3, "'domain' is no text"),
        (("kinds", "creative", "positions", "bands"), [1], "other bands than 8, 16"),
        (("kinds", "creative", "positions", "surprisal", 0), 0, "must be above 0"),
        (("kinds", "creative", "positions", "entropy"), [1.0], "must be 7 finite numbers"),
        (("kinds", "creative", "error"), "0.1", "'error' is no finite number"),
        (("pooling",), None, "'pooling' is missing"),
        (("pooling", "g"), [1.0], "do not fit the entropy bins"),
        (("pooling", "spread"), -1, "spread is no number from 0"),
        (("pooling", "edges"), [], "do not fit the entropy bins"),
        (("prompt",), [], "not an object with 'kinds'"),
        (("prompt", "kinds"), ["letter"] * 4, "names a kind that is not there"),
        (("prompt", "cross", 0), [1.0], "'cross' is no list of finite numbers"),
        (("prompt", "ratios", 0, 0), 0, "ratios must be above 0"),
        (("prompt", "covariance", 0, 0, 0), -1, "covariance is none"),
        (("prompt", "lengths", 0), 500, "lengths must rise"),
        (("prompt", "tokens", 0), 10**9, "tokens must rise"),
        (("prompt", "tokens"), [], "counts do not fit"),
        (("prompt", "counts", 0, 0), -1, "have counts from 0"),
        (("kinds", "creative", "error"), [0.1], "'error' is no finite number"),
        (("kinds", "creative", "error"), [[0.1], 0.2], "'error' is no finite number"),
        (("pooling", "spread"), [0.1], "'spread' is no finite number"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(profile, whole, tmp_path, keys, value, message):
    document = json.loads(json.dumps(profile.to_dict()))
    document["prompt"] = json.loads(json.dumps({**whole[0].prompt.to_dict(), "kinds": ["creative"] * 4}))
    damage(document, *keys, value=value)
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=message) as caught:
        HumanProfile.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b'{"version": "1"}'])
def test_what_is_no_profile_is_named_in_one_line(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a human profile") as caught:
        HumanProfile.load(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(profile, tmp_path):
    path = tmp_path / "profile.json"
    profile.save(path)
    content = path.read_bytes()
    for size in range(1, len(content) - 2, 997):
        path.write_bytes(content[:size])
        with pytest.raises(InputError):
            HumanProfile.load(path)


def test_a_shipped_profile_is_found_by_name(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    with pytest.raises(InputError, match=r"^tiny: neither a file nor a shipped profile; shipped: none$"):
        HumanProfile.load("tiny")
    profile.save(tmp_path / "shipped" / "tiny.json")
    profile.save(tmp_path / "shipped" / "tiny-2.5b.json")
    assert HumanProfile.load("tiny").to_dict() == profile.to_dict()
    assert HumanProfile.load("tiny-2.5b").to_dict() == profile.to_dict()
    with pytest.raises(InputError, match=r"^nobody: neither a file nor a shipped profile; shipped: tiny, tiny-2.5b$"):
        HumanProfile.load("nobody")
    with pytest.raises(InputError, match="neither a file"):
        HumanProfile.load("../shipped/tiny")


def test_a_folder_does_not_hide_a_shipped_profile(profile, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    profile.save(tmp_path / "shipped" / "tiny.json")
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert HumanProfile.load("tiny").scorer == TINY


def test_every_shipped_profile_loads_and_bears_its_scorers_name():
    folder = resources.files("ugap.profile") / "shipped"
    names = [entry.name for entry in folder.iterdir() if entry.name.endswith(".json")] if folder.is_dir() else []
    for name in names:
        profile = HumanProfile.load(name.removesuffix(".json"))
        assert profile.scorer_name == name.removesuffix(".json")


def test_a_profile_is_read_without_torch(profile, tmp_path):
    profile.save(tmp_path / "profile.json")
    code = (
        "import sys; from ugap.profile import HumanProfile; profile = HumanProfile.load(sys.argv[1]);"
        " profile.curve('creative')(1.0); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "profile.json")], check=True)


def test_a_domain_is_its_kinds_with_equal_weight(whole):
    profile = whole[0]
    assert profile.domains == ("creative", "functional")
    assert profile.weights("creative") == {"tale": 0.5, "story": 0.5}
    assert profile.weights("auto") == profile.weights("creative")
    assert profile.weights("news") == {"news": 1.0}
    assert profile.weights({"news": 3, "tale": 1, "story": 0}) == {"news": 0.75, "tale": 0.25}
    mixed, tale, story = (profile.kind(name) for name in ("creative", "tale", "story"))
    assert mixed.means["surprisal"] == pytest.approx((tale.means["surprisal"] + story.means["surprisal"]) / 2)
    assert mixed.domain == "creative"
    assert profile.kind({"tale": 1, "news": 1}).domain == "mixed"


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("haiku", "no kind 'haiku'; it has tale, story, news, manual, creative, functional"),
        ({"haiku": 1.0}, "no kind 'haiku'"),
        ({"tale": -1.0}, "weight of kind 'tale' is -1.0"),
        ({"tale": True}, "weight of kind 'tale' is True"),
        ({"tale": float("nan")}, "weight of kind 'tale' is nan"),
        ({"tale": 0}, "needs a weight above 0"),
        ({}, "needs a weight above 0"),
    ],
)
def test_selections_that_are_none(whole, selection, message):
    with pytest.raises(InputError, match=message):
        whole[0].target(selection)


def test_a_mixture_has_the_quantiles_of_its_texts_together(whole):
    profile, texts, _ = whole
    mixed = profile.kind({"tale": 1, "manual": 1})
    together = np.concatenate([scores.entropy for kind in ("tale", "manual") for scores in texts[kind]])
    np.testing.assert_allclose(mixed.quantiles["entropy"], np.quantile(together, mixed.levels), rtol=0.05, atol=0.03)
    single = [profile.kind(name).curve([2.0, 4.0]) for name in ("tale", "manual")]
    between = mixed.curve([2.0, 4.0])
    assert ((np.minimum(*single) - 1e-9 <= between) & (between <= np.maximum(*single) + 1e-9)).all()
    # Between kinds that differ, a text of the mixture scatters more than within either.
    within = [profile.kind(name).texts.at(64)[1][0, 0] for name in ("tale", "manual")]
    assert mixed.texts.at(64)[1][0, 0] > max(within)


def test_surprisal_falls_with_the_position(whole):
    profile, texts, prefixes = whole
    for kind in texts:
        tokens = [
            np.concatenate(pair)
            for pair in zip(*([s.surprisal for s in c[kind]] for c in (prefixes, texts)), strict=True)
        ]
        for position, end in ((8, 16), (32, 64), (64, 128)):
            seen = np.mean([row[position:end] for row in tokens])
            assert profile.kind(kind).positions.mean_surprisal(position, end - position) == pytest.approx(
                seen, rel=0.08
            )
    early, late = (profile.target("tale", position=position) for position in (5, 64))
    assert early.mean_surprisal > 1.03 * late.mean_surprisal
    assert early.factor == late.factor == 1


def test_a_prompt_tells_the_level_of_a_kind_that_was_left_out(whole):
    """Fitted without a kind, the prompts of its texts tell more of its mean than the mean of the others does."""
    _, texts, prefixes = whole
    for left_out in ("tale", "manual"):  # the kinds at the ends
        profile = HumanProfile.fit(
            {kind: column for kind, column in texts.items() if kind != left_out},
            prefixes={kind: column for kind, column in prefixes.items() if kind != left_out},
            resamples=2,
        )
        predicted = [
            profile.target("auto", prompt=TextTokens.of(before)).mean_surprisal for before in prefixes[left_out]
        ]
        seen = np.mean([scores.surprisal[:64].mean() for scores in texts[left_out]])
        grand = np.mean([kind.positions.mean_surprisal(64, 64) for kind in profile.kinds.values()])
        assert abs(np.mean(predicted) - seen) < 0.6 * abs(grand - seen)


def test_a_kind_can_be_left_out_afterwards(whole):
    profile, texts, prefixes = whole
    without = profile.without("news")
    assert without.prompt is not None
    assert list(without.kinds) == ["tale", "story", "manual"]
    again = HumanProfile.fit(
        {kind: column for kind, column in texts.items() if kind != "news"},
        prefixes={kind: column for kind, column in prefixes.items() if kind != "news"},
        resamples=2,
    )
    assert again.prompt is not None
    # The common ratios of the positions are a little other ones.
    np.testing.assert_allclose(without.prompt.coefficients, again.prompt.coefficients, atol=0.05)
    assert without.prompt.kinds == again.prompt.kinds
    with pytest.raises(InputError, match="no kind 'haiku'"):
        profile.without("haiku")
    with pytest.raises(InputError, match="cannot do without 'creative'"):
        profile.without("creative")


def test_what_a_prompt_tells(whole):
    profile, _, prefixes = whole
    before = prefixes["manual"][0]
    prompt = TextTokens.of(before)
    target = profile.target("auto", prompt=prompt)
    assert sum(target.weights.values()) == pytest.approx(1)
    assert max(target.weights, key=target.weights.get) in ("news", "manual")
    assert not target.strange
    assert re.fullmatch(r"kind: (\w+ 0\.\d(, )?)+; human level \d\.\d\d", str(target))
    assert str(profile.target("tale")).startswith("kind: tale; human level ")
    # A short prompt tells nothing; one of 16 tokens the level; a named kind is not moved.
    short = profile.target("auto", position=15, prompt=prompt.first(15))
    assert short.factor == 1
    assert str(short) == str(profile.target("auto", position=15))
    some = profile.target("auto", position=16, prompt=prompt.first(16))
    assert (some.weights, some.factor == 1) == (profile.weights("creative"), False)
    assert profile.target("tale", prompt=prompt).factor == 1
    for factor in (0.05, 4.0):
        odd = TextTokens(prompt.token_ids, prompt.surprisal * factor, prompt.entropy * factor)
        assert profile.target("auto", prompt=odd).strange
        assert profile.target("tale", prompt=odd).strange


def test_texts_of_the_user_are_a_kind(whole):
    """Their level is known the better, the more they are; few are drawn to what their prompts let expect."""
    profile = whole[0]
    _, texts, prefixes = kinds_of_texts(3)
    truth = np.mean([scores.surprisal[:64].mean() for scores in texts["manual"]])
    errors = []
    for n in (4, 24):
        like = profile.like(texts["manual"][:n], prefixes["manual"][:n], resamples=2)
        assert list(like.kinds) == [*profile.kinds, "like"]
        assert like.weights("creative") == profile.weights("creative")  # named, never mixed in
        assert like.target("like").mean_surprisal == pytest.approx(truth, rel=0.2 / np.sqrt(n))
        assert like.kinds["like"].bins.edges.tolist() == profile.pooling.edges.tolist()
        errors.append(like.kinds["like"].error)
    assert errors[1] < 0.7 * errors[0]
    with pytest.raises(InputError, match="was fitted with 'tiny'"):
        profile.like([replace(texts["manual"][0], scorer=OTHER)])


def test_kinds_round_trip(whole, tmp_path):
    profile = whole[0]
    profile.save(tmp_path / "kinds.json")
    loaded = HumanProfile.load(tmp_path / "kinds.json")
    assert loaded.to_dict() == profile.to_dict()
    prompt = TextTokens.of(whole[2]["news"][0])
    assert loaded.target("auto", prompt=prompt).mean_surprisal == profile.target("auto", prompt=prompt).mean_surprisal
