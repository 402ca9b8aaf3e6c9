"""The comparison of decodings as a program, on a tiny model: its record, its tables, resuming, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ugap.study.continuations
from eval import decoding
from ugap.cli.eval import load_program
from ugap.cli.main import main
from ugap.cli.programs import programs_folder
from ugap.data import TextRow
from ugap.models import load_model
from ugap.profile.reading import Reading, Share
from ugap.scoring import Scorer
from ugap.study.excerpts import cut_excerpts
from ugap.study.pairs import MIN_TOKENS

STORY = (
    "Once upon a time there was an old woman who had three sons. The youngest went into the forest and met a fox, "
    "and the fox said that the king had lost his golden ring. He thought about it all night long. In the morning he "
    "went to the castle and asked for work, and they gave him the geese to mind. "
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Two files of stories: one to compare with, one to tune on."""
    folder = tmp_path_factory.mktemp("texts")
    for name, first in (("test", 0), ("tune", 10)):
        numbers = range(first, first + 4)
        rows = [{"id": f"{name}-{i}", "domain": "creative", "text": f"{i}. " + STORY * 2} for i in numbers]
        rows.append({"id": f"{name}-other", "domain": "functional", "text": STORY})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def words(tiny_folder, make_profile, texts, tmp_path_factory):
    profile = tmp_path_factory.mktemp("profile") / "profile.json"
    make_profile(load_model(str(tiny_folder))[0], level=0.8).save(profile)
    sizes = ["--limit", "4", "--per_text", "1", "--prefix_tokens", "8", "--max_new_tokens", "16", "--batch_size", "3"]
    files = ["--data", str(texts / "test.jsonl"), "--tune", str(texts / "tune.jsonl"), "--profile", str(profile)]
    return ["eval", "decoding", "--model", str(tiny_folder), *files, *sizes]


SAMPLERS = load_program(Path(programs_folder("eval")) / "baselines.py").TUNED
DECODINGS = [
    "ugap-creative",
    "ancestral",
    "temperature-tuned",
    "mirostat-2",
    "top-n-sigma-1",
    "hot=temperature:1.3",
    "xtc-tuned",
    "adaptive-p-tuned",
]


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "decoding"
    assert main([*words, "--seeds", "2", "--decoding", *DECODINGS, "--output", str(folder)]) == 0
    return folder


def read(folder: Path):
    return json.loads((folder / "decoding.json").read_text())


def test_the_record(finished, tiny_folder):
    record = read(finished)
    (model,) = record["models"]
    assert model["model"] == str(tiny_folder)
    assert [row["decoding"] for row in model["rows"]] == [name.partition("=")[0] for name in DECODINGS]
    for row in model["rows"]:
        assert row["n"] + row["n_dropped"] == 8  # four prefixes by two seeds; a text may be too short to compare
        assert row["gap"] == pytest.approx(row["human"] - row["model_value"])
        assert row["ci95"][0] <= row["gap"] <= row["ci95"][1]
        assert row["wasserstein_surprisal"] > 0
        assert row["distinct_4"]["human"] is None or 0 < row["distinct_4"]["human"] <= 1
        assert 0 <= row["repetition"]["model_value"] <= 1
    tuned = next(row for row in model["rows"] if row["decoding"] == "temperature-tuned")
    assert 0.5 <= tuned["settings"]["temperature"] <= 2
    found = {row["decoding"]: row["settings"] for row in model["rows"][-2:]}
    assert 0 <= found["xtc-tuned"]["probability"] <= 1
    assert 0 <= found["adaptive-p-tuned"]["target"] <= 0.95


def test_the_table(finished):
    text = (finished / "decoding.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(DECODINGS)
    assert len({line.count("|") for line in lines}) == 1
    row = read(finished)["models"][0]["rows"][1]
    assert f"| {row['model_value']:.3f} | {row['gap']:+.3f} [" in lines[3]


def test_going_on_makes_nothing_twice(words, finished, monkeypatch, capsys):
    before = read(finished)
    # The program is loaded afresh, so what it writes and scores with is taken away below it.
    monkeypatch.setattr(ugap.study.continuations, "generate_continuations", None)
    monkeypatch.setattr(Scorer, "score", None)
    assert main([*words, "--seeds", "2", "--decoding", *DECODINGS, "--output", str(finished), "--resume"]) == 0
    after = read(finished)
    assert after["models"] == before["models"]
    capsys.readouterr()


def test_means_are_those_of_the_parts(finished):
    """Recomputed from the parts: people's own texts, cut to the model's lengths."""
    record = read(finished)
    row = next(row for row in record["models"][0]["rows"] if row["decoding"] == "ancestral")
    import pyarrow.parquet as pq

    parts = [pq.read_table(path).to_pylist() for path in (finished / "parts" / "scored").glob("*.parquet")]
    rows = [r for part in parts for r in part if r["id"].startswith("test-")]
    human = {r["id"]: r for r in rows if r["decoding"] == "human"}
    made = [r for r in rows if r["decoding"] == "ancestral"]
    assert len(human) == 4
    assert len(made) == 8
    made = [r for r in made if len(r["surprisal"]) >= MIN_TOKENS]
    nll = [np.mean(r["surprisal"][: len(human[r["id"]]["surprisal"])]) for r in made]
    assert row["model_value"] == pytest.approx(np.mean(nll), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--decoding", "gredy"], "unknown decoding 'gredy'"),
        (["--seeds", "0"], "seeds: expected a positive number, got 0"),
        (["--domain", "poems"], "no text of the domain 'poems'"),
        (["--data", "none.jsonl"], "none.jsonl"),
    ],
)
def test_bad_input(words, tmp_path, capsys, changes, message):
    assert main([*words, "--decoding", "ancestral", *changes, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_tuning_needs_texts(words, tmp_path, capsys):
    at = words.index("--tune")
    rest = [*words[:at], *words[at + 2 :]]
    assert main([*rest, "--decoding", "temperature-tuned", "--output", str(tmp_path / "out")]) == 2
    assert "temperature-tuned needs --tune: other human texts, to tune it on" in capsys.readouterr().err


def test_a_folder_with_results_is_not_overwritten(words, finished, capsys):
    assert main([*words, "--decoding", "ancestral", "--output", str(finished)]) == 2
    assert "add --resume" in capsys.readouterr().err


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_setting_is_tuned_to_where_the_levels_cross(name):
    """Of a model whose surprisal is 3 nats at the second place of the search and rises with it; people are at 2.9."""

    class Text:
        def __init__(self, nll):
            self.scores = type("Scores", (), {"nll": nll, "__len__": lambda self: 1})()

    tuned = SAMPLERS[name]
    low, middle, _ = tuned.first
    places = {tuned.value(place / 1000): place / 1000 for place in range(8001)}

    class Fake(decoding.Writer):
        def __init__(self):
            pass

        def cut(self, rows):
            return []

        def texts(self, use, excerpts, decoding, how, seed, sampler=None):
            if sampler is None:
                return [Text(2.9)]
            (value,) = sampler.settings.values()
            place = min(places.items(), key=lambda one: abs(one[0] - value))[1]
            return [Text(3 + (place - middle) / (middle - low))]

    sampler = decoding.baseline(f"{name}-tuned", Fake(), [])
    assert sampler is not None
    (value,) = sampler.settings.values()
    assert value == pytest.approx(tuned.value(middle - 0.1 * (middle - low)), rel=0.02)
    assert sampler.processors(0) or tuned.setting in sampler.generate


def test_texts_to_write_like(words, texts, tiny_folder, make_profile, refused, tmp_path, caplog):
    make_profile(load_model(str(tiny_folder))[0], level=3.0).save(tmp_path / "profile.json")
    mine = tmp_path / "mine.txt"
    mine.write_text("\n\n".join(" ".join(f"{i}. {STORY}".split()[::-1] * 2) for i in range(9)))
    few = ["--seeds", "1", "--decoding", "ugap-creative", "mirostat-2", "--profile", str(tmp_path / "profile.json")]
    like = [*words, *few, "--like", str(mine)]
    assert main([*words, *few, "--output", str(tmp_path / "plain")]) == 0
    assert main([*like, "--output", str(tmp_path / "like")]) == 0
    plain, followed = read(tmp_path / "plain"), read(tmp_path / "like")
    assert "9 texts: human level" in followed["models"][0]["like"]
    assert "Written like 9 texts" in (tmp_path / "like" / "decoding.md").read_text()
    assert plain["models"][0]["rows"][0]["model_value"] != followed["models"][0]["rows"][0]["model_value"]
    mine.write_text(mine.read_text() + "!")
    caplog.clear()  # the tiny model writes bytes that are no text
    assert "like" in refused(*like, "--output", str(tmp_path / "like"), "--resume")
    rows = (texts / "test.jsonl").read_text().splitlines()[:4]
    data = str(tmp_path / "data.jsonl")
    Path(data).write_text("\n".join(rows))
    assert "are texts to continue" in refused(*words, *few, "--like", data, "--output", str(tmp_path / "none"))


def test_another_reader(words, texts, tiny_folder, save_model, make_model, make_profile, tmp_path):
    folder = save_model("reader", make_model("gpt2"))
    reader = Scorer.from_pretrained(str(folder))
    profile = make_profile(load_model(str(tiny_folder))[0], level=0.8)
    shares = {"creative": Share(0.5, 0.02, 3.0, 32)}
    path, output = tmp_path / "profile.json", tmp_path / "read"
    replace(profile, readings={folder.name: Reading(folder.name, reader.id.weight_hash, shares)}).save(path)
    options = ["--reader", str(folder), "--profile", str(path), "--seeds", "1", "--output", str(output)]
    assert main([*words, *options, "--decoding", "ugap-creative", "ugap-own"]) == 0
    (model,) = read(output)["models"]
    assert model["reader"] == str(folder)
    assert f"Read by {folder}." in (output / "decoding.md").read_text()
    (creative, own) = model["rows"]
    assert creative["settings"] == {"human_mode": "creative", "human_reader": str(folder)}
    assert "human_reader" not in own["settings"]
    # The reader reads people too.
    rows = [json.loads(line) for line in (texts / "test.jsonl").read_text().splitlines()][:4]
    excerpts = cut_excerpts(
        [TextRow(**row) for row in rows],
        load_model(str(tiny_folder))[1],
        prefix_tokens=8,
        max_new_tokens=16,
        per_text=1,
    )
    scores = reader.score([one.human for one in excerpts], [one.prefix for one in excerpts])
    kept = [one.nll for one in scores]
    assert creative["human"] == pytest.approx(np.mean(kept), rel=0.02)
    assert creative["text_distance"] > 0
