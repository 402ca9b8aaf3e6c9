"""Edits as a program, on a tiny model: record, page, tables, resuming, bad input."""

import json
import random
import re

import numpy as np
import pytest

from ugap.cli.main import main
from ugap.profile import HumanProfile
from ugap.scoring import Scorer
from ugap.statistics import paired_gap

TALE = "once upon a time there was a tailor who had three sons and the youngest went into the forest"
WORDS = TALE.split()
ASK = "Tell me a story."


@pytest.fixture(scope="module")
def files(tiny_folder, tmp_path_factory):
    """Sixteen edits of twelve texts, and a human profile of the tiny model."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=40)) for _ in range(12)]
    rows = []
    for i in range(16):
        words = texts[i % 12].split()
        words[10:20] = ["<b>", *rng.choices(WORDS, k=4 + i % 3)]
        by, scores = ("gpt", "llama")[i % 2], {"low": 2 + i % 3, "high": 5 + i % 2}
        rows.append({"id": f"e{i}", "old": texts[i % 12], "new": " ".join(words), "by": by, "ask": ASK, **scores})
    (folder / "edits.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    read = Scorer.from_pretrained(str(tiny_folder)).score([" ".join(rng.choices(WORDS, k=40)) for _ in range(20)])
    HumanProfile.fit({"creative": read}, resamples=2, source="made up").save(folder / "profile.json")
    return folder


@pytest.fixture(scope="module")
def words(tiny_folder, files):
    columns = ["--before", "old", "--after", "new", "--group", "by", "--prompt", "ask"]
    columns += ["--score_before", "low", "--score_after", "high"]
    data = ["--data", str(files / "edits.jsonl"), "--profile", str(files / "profile.json"), "--resamples", "200"]
    return ["eval", "edits", "--model", str(tiny_folder), *data, *columns, "--pmi"]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "edits"
    assert main([*words, "--output", str(folder)]) == 0
    return folder


def read(folder):
    return json.loads((folder / "edits.json").read_text(encoding="utf-8"))


def test_the_record(finished, files, tiny_folder):
    record = read(finished)
    rows = [json.loads(line) for line in (files / "edits.jsonl").read_text(encoding="utf-8").splitlines()]
    scorer = Scorer.from_pretrained(str(tiny_folder))
    # From scratch: both texts after the prompt, cut to the shorter one.
    before, after = (scorer.score([row[side] for row in rows], [f"{ASK}\n\n"] * 16, True) for side in ("old", "new"))
    lengths = [min(len(a), len(b)) for a, b in zip(before, after, strict=True)]
    new, old = ([one.first(n).nll for one, n in zip(side, lengths, strict=True)] for side in (after, before))
    again = paired_gap(new, old, [row["old"] for row in rows], resamples=200)
    moves = {(row["scope"], row["measure"]): row for row in record["moves"]}
    nll = moves["all", "nll"]
    assert (nll["n"], nll["n_texts"]) == (16, 12)
    assert nll["change"] == pytest.approx(again.gap, abs=1e-4)
    assert nll["ci95"] == pytest.approx(again.ci95, abs=1e-4)
    assert moves["all", "score"]["change"] == pytest.approx(np.mean([row["high"] - row["low"] for row in rows]))
    assert {"pmi", "closeness", "bits_per_byte"} <= {measure for _, measure in moves}
    assert moves["gpt", "nll"]["n"] == 8
    assert {row["tokens"] for row in record["pointers"]} == {"removed", "added"}
    assert [one["text"] for one in record["edits"][:2] + record["edits"][12:14]] == [0, 1, 0, 1]
    assert WORDS[7] not in json.dumps(record["edits"])


def test_the_page_marks_changes_and_shows_texts_as_they_are(finished, files):
    page = (finished / "edits.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 16
    assert "<script" not in page
    assert "<b>" not in page
    first = json.loads((files / "edits.jsonl").read_text(encoding="utf-8").splitlines()[0])
    article = page.split("<article>")[1]
    shown = [re.sub(r"<[^>]*>", "", text) for text in re.findall(r'<p class="text">(.*?)</p>', article, re.DOTALL)]
    assert [text.replace("&lt;", "<").replace("&gt;", ">") for text in shown] == [first["old"], first["new"]]
    marked = ["".join(re.findall(r'<i class="c"[^>]*>(.*?)</i>', side)) for side in article.split("After")]
    assert "&lt;" in marked[1]
    assert marked[0]


def test_a_page_is_bounded(finished, files, tmp_path, tiny_folder):
    from ugap.report.page.edits import write_edits
    from ugap.study.analysis.edits import changes, load_edits

    edits = load_edits(str(files / "edits.jsonl"), "old", "new")
    scorer = Scorer.from_pretrained(str(tiny_folder))
    scores = list(zip(*(scorer.score([edit.texts[i] for edit in edits]) for i in (0, 1)), strict=True))
    path = tmp_path / "edits.html"
    write_edits(read(finished), edits, scores, [changes(*edit.texts) for edit in edits], path, most_tokens=1)
    page = path.read_text(encoding="utf-8")
    assert page.count("<article>") == 1
    assert "1 of 16 edits" in page


def test_it_goes_on_and_prints_the_same(words, finished, capsys):
    before = read(finished)
    (finished / "edits.json").unlink()
    assert main([*words, "--output", str(finished), "--resume"]) == 0
    assert read(finished)["moves"] == before["moves"]
    printed = capsys.readouterr().out
    assert "After less before [95%]" in printed
    assert "edited most" in printed
    assert "AUC of changed against kept tokens" in printed
    assert "Spearman" in printed


def test_closeness_can_be_left_out(words, tmp_path):
    at = words.index("--profile")
    rest = [*words[:at], *words[at + 2 :], "--closeness", "no", "--limit", "3", "--output", str(tmp_path / "out")]
    assert main(rest) == 0
    record = read(tmp_path / "out")
    assert record["settings"]["profile"] is None
    assert "closeness" not in {row["measure"] for row in record["moves"]}


def test_an_adapter_reads_otherwise(words, finished, adapter, tmp_path):
    words = [*words, "--closeness", "no", "--adapter", str(adapter), "--output", str(tmp_path / "out")]
    assert main(words) == 0
    of = {
        folder: next(row["change"] for row in read(folder)["moves"] if row["measure"] == "nll")
        for folder in (finished, tmp_path / "out")
    }
    assert len(set(of.values())) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--before", "draft"], "no column 'draft'"),
        (["--group", "model"], "no column 'model'"),
        (["--score_after", "by"], "column 'by' holds 'gpt', and a rating is a number"),
        (["--resamples", "10"], "at least 100 are needed"),
        (["--domain", "poem"], "poem"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    ],
)
def test_bad_input(words, more, message, refused, tmp_path):
    assert message in refused(*words, "--output", str(tmp_path / "out"), *more)
    assert not (tmp_path / "out" / "edits.json").exists()


def test_options_that_belong_together(words, refused, tmp_path):
    def without(name):
        at = words.index(name)
        return [*words[:at], *words[at + 2 :], "--output", str(tmp_path / "out")]

    assert "--pmi needs --prompt" in refused(*without("--prompt"))
    assert "--score_before and --score_after belong together" in refused(*without("--score_before"))


def test_results_are_not_overwritten(words, finished, refused):
    assert "there are results already" in refused(*words, "--output", str(finished))


@pytest.mark.slow
def test_a_real_model_sees_what_was_made_plain(tmp_path, write_rows):
    """Surprising words that replace those of a cliche: surprisal rises, and the new words stand out."""
    edits = [
        ("The sun was shining and the {} in the trees. It was a good day.", "birds sang", "gutters auctioned rust"),
        ("He walked into the room. The old man was {}, with a book.", "sitting in his chair", "shelling his gondola"),
        (
            "There was a king who had a daughter. She was the most {} in the land.",
            "beautiful girl",
            "litigious beekeeper",
        ),
    ]
    rows = [{"id": str(i), "a": text.format(a), "b": text.format(b)} for i, (text, a, b) in enumerate(edits)]
    output = str(tmp_path / "out")
    words = ["--data", write_rows(rows), "--before", "a", "--after", "b", "--output", output]
    assert main(["eval", "edits", "--model", "smollm2-135m-instruct", *words]) == 0
    record = read(tmp_path / "out")
    moved = next(row for row in record["moves"] if (row["scope"], row["measure"]) == ("all", "nll"))
    assert moved["change"] > 0.3
    added = {
        row["pointer"]: row["auc"] for row in record["pointers"] if (row["scope"], row["tokens"]) == ("all", "added")
    }
    assert added["surprisal"] > 0.7
    assert added["deviation"] > 0.8
