"""The comparison of levels as a program, on a tiny model: its numbers, and what it is not asked twice."""

import json

import numpy as np
import pytest

import ugap.profile.fitting
from eval.levels import TUNED
from ugap.cli.main import main


@pytest.fixture(scope="module")
def files(text_rows, tiny_folder, make_profile, tmp_path_factory):
    from ugap.models import load_model

    folder = tmp_path_factory.mktemp("levels")
    rows = [
        {
            **row,
            "id": f"{row['id']}-{i}",
            "text": f"{row['text']} {row['text']} {i}",
            "kind": "tale" if i % 2 else "news",
        }
        for i in range(2)
        for row in text_rows
    ]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    make_profile(load_model(str(tiny_folder))[0], level=3.0).save(folder / "profile.json")
    return folder


@pytest.fixture
def words(files, tiny_folder, tmp_path):
    sizes = ["--limit", "3", "--prefix_tokens", "24", "--max_new_tokens", "16", "--seeds", "2", "--like", "6"]
    profile = ["--profile", str(files / "profile.json"), "--named", "tale=creative", "--without", "news=functional"]
    data = ["--data", str(files / "texts.jsonl"), "--output", str(tmp_path / "out")]
    return ["eval", "levels", "--model", str(tiny_folder), *data, *profile, *sizes]


def test_levels(words, tmp_path, capsys, monkeypatch, refused, caplog):
    monkeypatch.setattr(ugap.profile.fitting, "LIKE_TOKENS", 50)
    monkeypatch.setattr(ugap.profile.fitting, "cache_dir", lambda: tmp_path / "cache")
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "levels.json").read_text(encoding="utf-8"))
    rows = {(row["kind"], row["decoding"]): row for row in record["rows"]}
    # No kind of the profile is called news, and none was named for it.
    assert set(rows) == {
        *((kind, decoding) for kind in ("tale", "news") for decoding in ("auto", "like", "ancestral", TUNED)),
        ("tale", "named"),
    }
    for row in rows.values():
        assert row["n_written"] <= 6
        assert ("temperature" in row) == (row["decoding"] == TUNED)
        assert row["miss_percent"] == pytest.approx(100 * (row["written"] / row["human"] - 1))
        low, high = row["miss_ci95"]
        assert low <= row["miss_percent"] <= high
        assert row["text_distance"] > 0
    caplog.clear()  # six texts to write like are few, which is logged
    printed = capsys.readouterr().out
    assert "mean absolute miss" in printed
    # Nothing is written twice.
    monkeypatch.setattr("ugap.study.continuations.generate_continuations", None)
    assert main([*words, "--resume"]) == 0
    again = json.loads((tmp_path / "out" / "levels.json").read_text(encoding="utf-8"))
    assert again["rows"] == record["rows"]
    assert "add --resume" in refused(*words)


def test_the_miss_is_that_of_the_means():
    from ugap.cli.eval import load_program
    from ugap.cli.programs import programs_folder

    compared = load_program(programs_folder("eval") / "levels.py").compared
    rng = np.random.default_rng(0)
    human = [np.full(8, level) for level in rng.normal(3.0, 0.3, 40)]
    written = [0.9 * text for text in human[:20]] * 2
    row = compared(human, written, [*range(20)] * 2)
    assert row["text_distance"] == pytest.approx(0.1 * np.mean([text[0] for text in human[:20]]))
    assert row["miss_ci95"][0] < 100 * (np.mean(written) / np.mean(human) - 1) < row["miss_ci95"][1]
    assert row["n_texts"], row["n_written"] == (40, 40)
    # A text that was not written at all counts nowhere.
    assert compared(human, [*written, np.zeros(0)], [*range(20)] * 2 + [0])["written"] == row["written"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--named", "tale"], "--named 'tale': not KIND=PROFILE_KIND"),
        (["--without", "poem=creative"], "no text is of kind 'poem'"),
        (["--named", "tale=poem"], "no kind 'poem'"),
        (["--decoding", "gredy"], "unknown decoding 'gredy'"),
    ],
)
def test_bad_input(words, refused, more, message):
    assert message in refused(*words, *more)
