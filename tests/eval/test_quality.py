"""Quality as a program, on a tiny model: record, tables, plots, resuming, bad input."""

import json
import random

import numpy as np
import pytest
from PIL import Image

from ugap.cli.main import main
from ugap.profile import HumanProfile
from ugap.scoring import Scorer
from ugap.statistics import correlation

TALE = "once upon a time there was a tailor who had three sons and the youngest went into the forest"
WORDS = TALE.split()
ASK = "Tell me a story."


@pytest.fixture(scope="module")
def files(tiny_folder, tmp_path_factory):
    """Sixty texts that are best where their surprisal is in the middle, and a human profile of the tiny model."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(20, 40))) for _ in range(60)]
    scorer = Scorer.from_pretrained(str(tiny_folder))
    scores = scorer.score(texts, [f"{ASK}\n\n"] * 60)
    nll = np.array([one.nll for one in scores])
    place = (nll - nll.mean()) / nll.std()
    rows = [
        {
            "id": str(i),
            "story": text,
            "ask": ASK,
            "by": ("model", "human")[i % 2],
            "best": 5 - place[i] ** 2 + 0.2 * rng.random(),
            "rises": place[i] + rng.random() if i < 40 else None,
            "word": "good",
        }
        for i, text in enumerate(texts)
    ]
    (folder / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    HumanProfile.fit({"creative": scores}, resamples=2, source="made up").save(folder / "profile.json")
    return folder


@pytest.fixture(scope="module")
def words(tiny_folder, files):
    columns = ["--text", "story", "--prompt", "ask", "--author", "by", "--rating", "best", "rises"]
    data = ["--data", str(files / "rated.jsonl"), "--profile", str(files / "profile.json"), "--resamples", "200"]
    return ["eval", "quality", "--model", str(tiny_folder), *data, *columns]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quality"
    assert main([*words, "--output", str(folder)]) == 0
    return folder


def read(folder):
    return json.loads((folder / "quality.json").read_text(encoding="utf-8"))


def test_the_record(finished, files):
    record = read(finished)
    assert record["n_texts"] == 60
    assert {(row["scope"], row["author"]) for row in record["relations"]} == {
        ("overall", None),
        ("within", None),
        ("author", "human"),
        ("author", "model"),
    }
    nll = {
        (row["rating"], row["scope"]): row
        for row in record["relations"]
        if row["measure"] == "nll" and row["author"] is None
    }
    hill, rising = nll["best", "within"], nll["rises", "within"]
    assert hill["quadratic"]["found"]
    assert (rising["n"], rising["quadratic"]["found"]) == (40, False)
    assert rising["spearman"]["ci95"][0] > 0.5
    # From scratch: of the texts' own numbers, within author.
    x = [text["measures"]["nll"] for text in record["texts"]]
    y = [text["ratings"]["best"] for text in record["texts"]]
    again = correlation(x, y, strata=[text["author"] for text in record["texts"]], resamples=200)
    assert hill["spearman"]["r"] == pytest.approx(again.r)
    assert hill["spearman"]["ci95"] == pytest.approx(again.ci95)
    assert record["human"]["nll"] == pytest.approx(np.mean(x), rel=0.01)
    # The best are those that are about as surprising as the profile's texts, which are these.
    near = next(
        row
        for row in record["relations"]
        if (row["rating"], row["scope"], row["measure"]) == ("best", "within", "nll distance")
    )
    assert near["spearman"]["ci95"][1] < -0.5
    assert {(one["author"], one["n"]) for one in record["means"] if one["rating"] == "rises"} == {
        ("human", 20),
        ("model", 20),
    }


def test_the_plots(finished):
    for name in ("quality.png", "quality-curves.png"):
        image = Image.open(finished / name).convert("RGB")
        assert min(image.size) > 300
        assert len(image.getcolors(2**24) or ()) > 20


def test_it_goes_on_and_prints_the_same(words, finished, capsys):
    before = read(finished)
    (finished / "quality.json").unlink()
    assert main([*words, "--output", str(finished), "--resume"]) == 0
    assert read(finished)["relations"] == before["relations"]
    printed = capsys.readouterr().out
    assert "best (model: mean" in printed
    assert "within author (60)" in printed
    assert "Is there an inverted U within author group?" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert "yes" in [row[-1] for row in rows if row[:1] == ["nll"]]


def test_a_scorer_that_nobody_prepared_gets_a_profile(words, tmp_path):
    rest = [word for word in words if "profile" not in word]
    assert main([*rest, "--output", str(tmp_path / "out"), "--rating", "best"]) == 0
    record = read(tmp_path / "out")
    assert record["settings"]["profile"].startswith("embedded texts")
    assert record["human"]["nll"] > 0


@pytest.mark.slow
def test_a_kind_that_was_fitted_to_the_rated_texts_is_left_out(words, tiny_folder, tmp_path):
    scorer = Scorer.from_pretrained(str(tiny_folder))
    kinds = {"other": scorer.score(["So it goes. " * 12] * 20), "rated": scorer.score(["tailor wolf " * 12] * 20)}
    both = HumanProfile.fit(kinds, domains=dict.fromkeys(kinds, "creative"), resamples=2)
    both.save(tmp_path / "both.json")
    levels = {}
    for name, more in (("both", []), ("one", ["--without", "rated"])):
        profile = ["--profile", str(tmp_path / "both.json"), "--output", str(tmp_path / name), "--rating", "best"]
        assert main([*words, *profile, *more]) == 0
        levels[name] = read(tmp_path / name)["human"]["nll"]
    assert levels["one"] == pytest.approx(both.kinds["other"].means["surprisal"])
    assert abs(levels["both"] - levels["one"]) > 0.01


def test_pmi(words, tmp_path):
    assert main([*words, "--output", str(tmp_path / "out"), "--rating", "best", "--pmi"]) == 0
    measures = {row["measure"] for row in read(tmp_path / "out")["relations"]}
    assert {"pmi", "cpmi", "pmi distance"} - measures <= {"pmi distance"}  # this profile was fitted without


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rating", "word"], "row 1: column 'word' holds 'good', and a rating is a number"),
        (["--rating", "worth"], "no column 'worth'"),
        (["--text", "words"], "no column 'words'; the columns are"),
        (["--author", "who"], "no column 'who'; the columns are"),
        (["--limit", "9"], "column 'best' rates 9 texts, and at least 10 are needed"),
        (["--resamples", "1"], "resamples is 1, and at least 100 are needed"),
        (["--without", "creative"], "cannot do without 'creative'"),
        (["--domain", "poems"], "the human profile has no kind 'poems'"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_bad_input(words, more, message, refused, tmp_path):
    assert message in refused(*words, "--output", str(tmp_path / "out"), *more)
    assert not (tmp_path / "out" / "quality.json").exists()


def test_pmi_needs_a_prompt(words, refused, tmp_path):
    rest = [word for word in words if word not in ("--prompt", "ask")]
    assert "--pmi needs --prompt" in refused(*rest, "--pmi", "--output", str(tmp_path / "out"))


def test_results_are_not_overwritten(words, finished, refused):
    assert "there are results already" in refused(*words, "--output", str(finished))
