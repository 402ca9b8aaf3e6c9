import json
import subprocess
import sys
from importlib import resources

import numpy as np
import pytest

from ugap.errors import InputError
from ugap.profile import HumanProfile
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
    assert quantiles.levels[[0, 52, -1]].tolist() == [0.001, 0.51, 0.999]
    assert (np.diff(quantiles.levels) > 0).all()
    np.testing.assert_allclose(quantiles.values, np.quantile(values, quantiles.levels), rtol=1e-5, atol=1e-12)


def test_counts_and_means(texts, profile):
    creative = profile.domain("creative")
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
    assert profile.domain("creative").means["bits_per_byte"] == pytest.approx(bits / (4 * (9 + 999)), rel=1e-5)


def test_without_marginals_there_is_no_pmi(profile):
    assert "pmi" not in profile.domain("functional").means
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
    padded = HumanProfile.fit({"creative": [*holes, nothing]}, source="made up", resamples=50)
    assert padded.to_dict()["domains"]["creative"] == profile.to_dict()["domains"]["creative"]


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
    assert json.loads(path.read_text())["version"] == 1
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


def test_unknown_domain_names_those_that_exist(profile):
    for call in (profile.curve, profile.domain, lambda domain: profile.quantiles(domain, "rank")):
        with pytest.raises(InputError, match=r"no domain 'legal'; it has creative, functional$"):
            call("legal")


def test_nothing_to_fit():
    with pytest.raises(InputError, match="no domain"):
        HumanProfile.fit({})
    with pytest.raises(InputError, match="domain 'creative': no scored token"):
        HumanProfile.fit({"creative": [score(0, n=1)]})
    with pytest.raises(InputError, match="domain 'creative': no scored token"):
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
        (("version",), 2, "version 2; this ugap reads version 1"),
        (("version",), None, "no version"),
        (("scorer",), None, "'scorer' is missing"),
        (("scorer",), "tiny", "damaged"),
        (("domains",), [1], "damaged"),
        (("domains", "creative"), [], "damaged"),
        (("domains", "creative", "curve"), None, "'curve' is missing"),
        (("domains", "creative", "curve", "g"), [1.0], "one common length"),
        (("domains", "creative", "curve", "g"), "text", "damaged"),
        (("domains", "creative", "bins", "edges"), [3.0, 1.0], "do not fit together"),
        (("domains", "creative", "quantiles", "rank"), [1.0], "quantiles of rank"),
        (("domains", "creative", "means"), 3, "damaged"),
        (("domains", "creative", "n_texts"), "many", "damaged"),
        (("version",), 10**4000, "version 100000000000;"),
        (("version",), True, "no version"),
        (("scorer", "name"), ["tiny"], "'name' is no text"),
        (("source",), 3, "'source' is no text"),
        (("domains",), {}, "'domains' is no object with a domain"),
        (("domains", "creative", "n_tokens"), 0, "domain 'creative': 'n_tokens' is no whole number above 0"),
        (("domains", "creative", "n_tokens"), True, "'n_tokens' is no whole number above 0"),
        (("domains", "creative", "means", "surprisal"), "3.1", "'surprisal' is no list of finite numbers"),
        (("domains", "creative", "levels"), [0.0] * 103, "levels must rise from above 0 to at most 1"),
        (("domains", "creative", "levels", 5), 1.5, "levels must rise"),
        (("domains", "creative", "levels", 5), float("inf"), "'levels' is no list of finite numbers"),
        (("domains", "creative", "levels", 5), 10**400, "'levels' is no list of finite numbers"),
        (("domains", "creative", "quantiles", "entropy", 3), -1.0, "quantiles of entropy fall or are negative"),
        (("domains", "creative", "quantiles", "entropy", 3), "NaN", "'entropy' is no list of finite numbers"),
        (("domains", "creative", "quantiles", "entropy"), None, "quantiles of entropy are missing"),
        (("domains", "creative", "curve", "low", 0), 1e9, "low must not be above its high"),
        (("domains", "creative", "bins", "rank", 0, 0), 1e12, "rank holds a rank beyond any vocabulary"),
        (("domains", "creative", "bins", "n_tokens", 0), 0, "n_tokens must be above 0"),
        (("domains", "creative", "bins", "surprisal", 0, 0), 1e9, "surprisal must not fall"),
        (("domains", "creative", "bins", "surprisal", 0), [1.0], "'surprisal' is no list of finite numbers"),
        (("domains", "creative", "bins", "rank_levels", 0), 0.95, "rank_levels must rise"),
        (("domains", "creative", "texts"), [], "not an object with 'features'"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(profile, tmp_path, keys, value, message):
    document = json.loads(json.dumps(profile.to_dict()))
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
