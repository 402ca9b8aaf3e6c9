"""The reward's AUCs as a program, on a tiny model with a made-up profile: record, tables, resuming, bad input."""

import json
import random

import pyarrow.parquet as pq
import pytest

from ugap.cli.main import main
from ugap.data import load_texts
from ugap.models import load_model
from ugap.profile import HumanProfile
from ugap.profile.texts import FEATURES
from ugap.scoring import Scorer
from ugap.statistics.auc import auc
from ugap.study.excerpts import cut_excerpts
from ugap.training import UncertaintyReward

TALE = "once upon a time there was a tailor who had three sons and the youngest went into the forest"
WORDS = TALE.split()
MADE = [
    "random tokens",
    "shuffled words",
    "shuffled sentences",
    "loop of 8 words",
    "loop of 20 words",
    "another story",
    "prefix's words, another story",
    "30% rare words",
    "30% common words",
    "copied prefix",
    "one fixed text",
    "German",
    "Spanish",
    "code",
]
SIZES = ["--prefix_tokens", "8", "--max_new_tokens", "24", "--per_text", "1", "--batch_size", "5"]
SIZES += ["--best_of", "3", "--best_of_limit", "6"]


@pytest.fixture(scope="module")
def files(tiny_folder, tmp_path_factory):
    """Texts, and a human profile of the tiny model on other texts of the same kind."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=50)) for _ in range(38)]
    others = [" ".join(rng.choices(WORDS[:4], k=50)) for _ in range(8)]
    rows = [
        {"id": str(i), "domain": "creative", "text": text, "said": other, "by": "a narrow model"}
        for i, (text, other) in enumerate(zip(texts[:8], others, strict=True))
    ]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    scorer = Scorer.from_pretrained(str(tiny_folder))
    scores = scorer.score(texts[8:], ["Once upon"] * 30, pmi=True)
    HumanProfile.fit({"creative": scores}, resamples=2).save(folder / "profile.json")
    return folder


@pytest.fixture(scope="module")
def words(tiny_folder, files):
    data = ["--data", str(files / "test.jsonl"), "--profile", str(files / "profile.json")]
    return ["eval", "reward_auc", "--model", str(tiny_folder), *data, *SIZES]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "reward"
    assert main([*words, "--decoding", "greedy", "ancestral", "--output", str(folder)]) == 0
    return folder


def read(folder):
    return json.loads((folder / "reward_auc.json").read_text(encoding="utf-8"))


def by_kind(folder):
    return {row["kind"]: row for row in read(folder)["kinds"]}


def test_the_record(finished):
    rows = by_kind(finished)
    assert list(rows) == ["human", *MADE, "greedy", "ancestral"]
    for kind, row in rows.items():
        assert (row["n"], row["n_sources"]) == (8, 8)
        assert all(-1 <= value <= 2 for value in row["reward"].values())
        assert 0 <= row["closeness"] <= 1
        assert row["reward"].keys() == {"uncertainty", *FEATURES}
        assert ("auc" in row) == (kind != "human")
        for area in row.get("auc", {}).values():
            assert 0 <= area["ci95"][0] <= area["auc"] <= area["ci95"][1] <= 1
    # Of this model people's texts are words at random: another story is as good, a loop is not.
    assert rows["human"]["reward"]["uncertainty"] > 0.6
    assert rows["one fixed text"]["auc"]["uncertainty"]["auc"] > 0.6
    assert rows["loop of 8 words"]["auc"]["repetition"]["auc"] > 0.9
    assert rows["random tokens"]["auc"]["uncertainty"]["auc"] > 0.7
    assert rows["human"]["standardised"]["repetition"] < 1 < rows["loop of 8 words"]["standardised"]["repetition"]


def test_the_aucs_are_those_of_the_rewards(finished, files, tiny_folder):
    """From scratch: the texts of the parts, and the reward of the class for all texts of a kind together."""
    texts: dict[str, list] = {"human": [], "loop of 8 words": [], "greedy": []}
    for path in sorted((finished / "parts").glob("*.parquet")):
        table = pq.read_table(path)
        kind, number = pq.read_schema(path).metadata[b"ugap.key"].decode().rsplit("|", 1)
        name = kind.partition("|")[0]
        if name in texts:
            texts[name].append((int(number), table["text"].to_pylist()))
    said = {kind: [text for _, batch in sorted(found) for text in batch] for kind, found in texts.items()}
    _, tokenizer = load_model(str(tiny_folder))
    excerpts = cut_excerpts(
        load_texts(str(files / "test.jsonl")), tokenizer, prefix_tokens=8, max_new_tokens=24, per_text=1
    )
    prefixes, sources = [excerpt.prefix for excerpt in excerpts], [excerpt.source for excerpt in excerpts]
    assert said["human"] == [excerpt.human for excerpt in excerpts]
    scorer, profile = Scorer.from_pretrained(str(tiny_folder)), HumanProfile.load(files / "profile.json")
    reward = UncertaintyReward(profile, scorer)
    human = [one.reward for one in reward.judge(prefixes, said["human"])]
    for kind in ("loop of 8 words", "greedy"):
        other = [one.reward for one in reward.judge(prefixes, said[kind])]
        row = by_kind(finished)[kind]
        assert row["auc"]["uncertainty"]["auc"] == pytest.approx(auc(human, sources, other, sources).auc, abs=0.02)


def test_stopping_early_never_pays(finished):
    gains = {row["kind"]: row["gain"] for row in read(finished)["early"]}
    assert list(gains) == ["first 12%", "first 25%", "first 50%", "first 75%", "first 88%", "first 95%"]
    assert all(gain < 0 for name, gain in gains.items() if name != "first 95%")
    assert gains["first 12%"] < gains["first 50%"] < gains["first 75%"]


def test_the_selection(finished):
    rows = read(finished)["selection"]
    assert list(rows) == ["human", "drawn", "selected"]
    assert rows["human"]["n"] == 8
    assert rows["selected"]["n"] == 6
    assert 12 < rows["drawn"]["n"] <= 18  # a text can be empty
    assert rows["selected"]["closeness"] > rows["drawn"]["closeness"]
    assert all(row["spread"] > 0 for row in rows.values())


def test_texts_that_were_given_and_a_profile_of_the_texts(words, finished, files, tmp_path, capsys):
    given = ["--written", "said", "--writer", "by", "--decoding", "greedy", "--best_of", "0"]
    assert main([*words, *given, "--output", str(tmp_path / "given")]) == 0
    rows = by_kind(tmp_path / "given")
    assert list(rows) == ["human", *MADE, "a narrow model", "greedy"]
    assert rows["a narrow model"]["n"] == 8
    assert rows["a narrow model"]["auc"]["uncertainty"]["auc"] > 0.9
    assert read(tmp_path / "given")["selection"] is None
    lines = (files / "test.jsonl").read_text().splitlines()
    rng = random.Random(5)
    more = [{"id": f"m{i}", "domain": "creative", "text": " ".join(rng.choices(WORDS, k=60))} for i in range(20)]
    (tmp_path / "more.jsonl").write_text("\n".join([*map(json.dumps, more), *lines]))
    at = words.index("--data")
    like = [*words[: at + 1], str(tmp_path / "more.jsonl"), *words[at + 2 :], "--like_texts", "20", "--best_of", "0"]
    assert main([*like, "--decoding", "greedy", "--output", str(tmp_path / "like")]) == 0
    found = read(tmp_path / "like")
    assert found["settings"]["kind"] == "like"
    assert found["kinds"][0]["n"] == 8
    capsys.readouterr()


def test_a_scorer_that_does_not_write(words, finished, chat_folder, files, tmp_path, capsys):
    """Another model writes; the reward of what people wrote is as before, but its own texts are others."""
    at = words.index("--model")
    run = [*words[: at + 1], str(chat_folder), *words[at + 2 :], "--scorer", words[at + 1], "--decoding", "greedy"]
    assert main([*run, "--output", str(tmp_path)]) == 0
    ours, theirs = by_kind(tmp_path), by_kind(finished)
    assert ours["human"]["reward"] == theirs["human"]["reward"]
    assert ours["greedy"]["reward"] != theirs["greedy"]["reward"]
    capsys.readouterr()


def test_going_on_makes_nothing_twice_and_adds(words, finished, monkeypatch, capsys):
    before = by_kind(finished)
    with monkeypatch.context() as patch:
        patch.setattr("ugap.training.judge.Judge.judge", None)
        patch.setattr("ugap.study.generation.generate_continuations", None)
        assert main([*words, "--decoding", "greedy", "ancestral", "--output", str(finished), "--resume"]) == 0
    assert by_kind(finished) == before
    printed = capsys.readouterr().out
    area = before["another story"]["auc"]["uncertainty"]
    assert f"{area['auc']:.3f} [{area['ci95'][0]:.3f}, {area['ci95'][1]:.3f}]" in printed
    assert "AUC of the closeness of one measure alone" in printed
    assert main([*words, "--decoding", "warm=temperature:1.5", "--output", str(finished), "--resume"]) == 0
    after = by_kind(finished)
    assert list(after) == ["human", *MADE, "warm"]
    assert all(after[kind] == before[kind] for kind in ["human", *MADE])
    capsys.readouterr()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--decoding", "gredy"], "unknown decoding 'gredy'"),
        (["--decoding", "another story=top_k:5"], "decoding 'another story': the name is taken"),
        (["--domain", "poems"], "no text of the domain 'poems'"),
        (["--limit", "0"], "limit is 0, and at least 1 is needed"),
        (["--kind", "sermon"], "has no kind 'sermon'"),
        (["--best_of", "2"], "best_of is 2: a selection needs 3 texts"),
        (["--like_texts", "4"], "the texts to write like have"),
        (["--like_texts", "4", "--kind", "creative"], "give --like_texts or --kind, not both"),
        (["--written", "said"], "--written and --writer belong together"),
        (["--written", "nothing", "--writer", "by"], "nothing"),
        (["--limit", "1"], "all prefixes are of one text"),
        (["--scorer", "CHAT"], "the human profile was fitted with"),
        (["--profile", "nowhere"], "nowhere: neither a file nor a shipped profile"),
        (["--max_new_tokens", "500"], "no text has the 508 tokens"),
        (["--data", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_bad_input(words, chat_folder, tmp_path, refused, changes, message):
    changes = [str(chat_folder) if word == "CHAT" else word for word in changes]
    assert message in refused(*words, *changes, "--output", str(tmp_path / "out"))


def test_a_folder_with_results_is_not_overwritten(words, finished, refused):
    assert "add --resume to continue" in refused(*words, "--output", str(finished))
    other = [*words, "--max_new_tokens", "20", "--output", str(finished), "--resume"]
    assert "the setting 'max_new_tokens' was 24 and is 20 now" in refused(*other)
