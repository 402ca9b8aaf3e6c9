"""`ugap profile`."""

import re

import numpy as np
import pytest

import ugap.profile.fitting
import ugap.sampling.reading
import ugap.study.scoring_job
from ugap.cli.main import main
from ugap.errors import InputError
from ugap.files import locked
from ugap.profile import HumanProfile
from ugap.profile.reading import Share
from ugap.scoring import Scorer


@pytest.fixture
def fit(tiny_folder, tmp_path):
    short = ["--prefix_tokens", "8", "--max_tokens", "40", "--min_tokens", "8"]
    return ["profile", "--model", str(tiny_folder), "--output", str(tmp_path / "profile.json"), *short, "--data"]


def test_profile_fits_and_shows(fit, write_rows, text_rows, tmp_path, tiny_folder, capsys, tokenizer):
    path = write_rows(text_rows)
    assert main([*fit, path]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    fitted = HumanProfile.load(tmp_path / "profile.json")
    assert fitted.domains == ("creative", "functional")
    assert fitted.source == "texts.jsonl"
    scorer = Scorer.from_pretrained(str(tiny_folder))
    fitted.check(scorer.id)
    # The profile is that of the tokens behind the prefix.
    surprisals = []
    for row in text_rows[:6]:
        ends = [end for _, end in tokenizer(row["text"], return_offsets_mapping=True)["offset_mapping"]]
        (scores,) = scorer.score([row["text"][ends[7] : ends[47]]], [row["text"][: ends[7]]])
        surprisals.append(scores.surprisal)
    creative = fitted.kind("creative")
    assert (creative.n_texts, creative.n_tokens) == (6, 240)
    assert creative.means["surprisal"] == pytest.approx(np.concatenate(surprisals).mean(), rel=1e-4)
    assert main(["profile", "--show", str(tmp_path / "profile.json")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^creative +creative +6 +240 ", shown, re.MULTILINE)
    assert shown.strip() in printed.out
    with pytest.raises(InputError, match="no kind 'poems'; it has creative, functional"):
        fitted.curve("poems")


def test_profile_goes_on_where_it_stopped(
    fit, write_rows, text_rows, tmp_path, broken_folder, refused, seen, monkeypatch
):
    monkeypatch.setattr(ugap.study.scoring_job, "TEXTS_PER_PART", 4)
    fit[fit.index("--model") + 1] = str(broken_folder)
    odd = dict(text_rows[9], text=text_rows[9]["text"][:50] + "Q" + text_rows[9]["text"][50:])
    path = write_rows([*text_rows[:9], odd, *text_rows[10:]])
    assert re.search(
        rf"error: {re.escape(path)}, row 10, text 'f3': the logits of .* are not finite", refused(*fit, path)
    )
    assert len(list((tmp_path / "profile.json.parts").glob("*.parquet"))) == 2
    write_rows(text_rows)
    assert "add --resume" in refused(*fit, path)
    seen.clear()
    assert main([*fit, path, "--resume"]) == 0
    assert len(seen) == 16
    assert not (tmp_path / "profile.json.parts").exists()
    resumed = HumanProfile.load(tmp_path / "profile.json").to_dict()
    assert main([*fit, path]) == 0
    assert HumanProfile.load(tmp_path / "profile.json").to_dict() == resumed


def test_the_profile_of_a_model_alone(tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ugap.profile.fitting, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(ugap.profile.fitting, "EMBEDDED_TEXTS", 4)
    assert main(["profile", "--model", str(tiny_folder), "--output", str(tmp_path / "own.json")]) == 0
    first = capsys.readouterr()
    assert re.search(r"^fairy-tale +creative +4 ", first.out, re.MULTILINE)
    assert re.search(r"^manual +functional +4 ", first.out, re.MULTILINE)
    assert "one is fitted to embedded tales and manuals, once" in first.err
    assert set(HumanProfile.load(tmp_path / "own.json").kinds) == {"fairy-tale", "manual"}
    assert main(["profile", "--model", str(tiny_folder)]) == 0
    again = capsys.readouterr()
    assert again.err == ""
    assert first.out.startswith(again.out)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--data", "d"], "--model is needed to fit a profile, or --show NAME to see one"),
        (["--model", "m", "--data", "d"], "--output is needed to fit a profile to texts"),
        (["--model", "./m"], "./m: neither a folder"),
        (["--show", "no-such-profile"], "no-such-profile: neither a file nor a shipped profile"),
    ],
)
def test_profile_refuses(refused, words, line):
    assert refused("profile", *words).startswith(f"ugap: error: {line}")


class TestReader:
    @pytest.fixture
    def reader_folder(self, save_model, make_model):
        return save_model("reader", make_model("gpt2"))

    def test_a_fitted_profile_is_calibrated(self, fit, write_rows, text_rows, tmp_path, reader_folder, capsys):
        path = write_rows([dict(row, id=f"{row['id']}-{n}", text=row["text"] * 2) for row in text_rows for n in (1, 2)])
        assert main([*fit, path, "--reader", str(reader_folder)]) == 0
        printed = capsys.readouterr().out
        profile = HumanProfile.load(tmp_path / "profile.json")
        (reading,) = profile.readings.values()
        assert reading.reader == reader_folder.name
        assert set(reading.shares) == {"creative", "functional"}
        assert re.search(rf"^creative: 0\.\d+ \+- 0\.\d+ of the human level is human to {reader_folder}", printed, re.M)
        assert f"share of the human level that is human to {reader_folder.name}" in printed
        assert not (tmp_path / "profile.json.reading.json").exists()

    @pytest.mark.slow
    def test_it_goes_on_with_the_kinds_that_are_left(
        self, fit, write_rows, text_rows, tmp_path, tiny_folder, reader_folder, monkeypatch, capsys
    ):
        path = write_rows([dict(row, id=f"{row['id']}-{n}", text=row["text"] * 2) for row in text_rows for n in (1, 2)])
        assert main([*fit, path]) == 0
        own, out = str(tmp_path / "profile.json"), str(tmp_path / "read.json")
        words = [
            "profile",
            "--model",
            str(tiny_folder),
            "--profile",
            own,
            "--reader",
            str(reader_folder),
            "--data",
            path,
        ]
        whole = ugap.sampling.reading._share
        kinds = []

        def killed(writer, reader, profile, kind, *options):
            kinds.append(kind)
            if kind == "functional" and kinds.count(kind) == 1:
                raise KeyboardInterrupt
            return whole(writer, reader, profile, kind, *options)

        monkeypatch.setattr(ugap.sampling.reading, "_share", killed)
        assert main([*words, "--output", out]) == 130
        assert main([*words, "--output", out, "--resume"]) == 0
        assert kinds == ["creative", "functional", "functional"]
        assert set(next(iter(HumanProfile.load(out).readings.values())).shares) == {"creative", "functional"}

    def test_names_of_kinds_do_not_steer_the_terminal(
        self, fit, write_rows, text_rows, tmp_path, reader_folder, capsys, monkeypatch
    ):
        monkeypatch.setattr(ugap.sampling.reading, "_share", lambda *_: Share(0.7, 0.1, 3.0, 8))
        rows = [dict(row, kind="new\x1b[31ms", text=row["text"] * 2, domain="creative") for row in text_rows]
        assert main([*fit, write_rows(rows), "--reader", str(reader_folder)]) == 0
        printed = capsys.readouterr().out
        assert "\x1b" not in printed
        assert r"new\x1b[31ms: 0.700 +- 0.100 of the human level" in printed

    @pytest.mark.parametrize("damage", ['{"of": ', "[]", "[" * 100_000])
    def test_shares_that_cannot_be_resumed_are_refused(
        self, fit, write_rows, text_rows, tmp_path, reader_folder, refused, damage
    ):
        path = write_rows(text_rows)
        (tmp_path / "profile.json.reading.json").write_text(damage, encoding="utf-8")
        message = refused(*fit, path, "--reader", str(reader_folder), "--resume")
        assert "profile.json.reading.json: cannot be resumed: delete it, or leave out --resume" in message

    def test_two_processes_do_not_calibrate_into_one_file(
        self, fit, write_rows, text_rows, tmp_path, reader_folder, refused, monkeypatch
    ):
        monkeypatch.setattr(ugap.sampling.reading, "_share", lambda *_: Share(0.7, 0.1, 3.0, 8))
        own = str(tmp_path / "own.json")
        path = write_rows([dict(row, text=row["text"] * 2, domain="creative") for row in text_rows])
        assert main([*fit[:-1], "--data", path, "--output", own]) == 0
        with locked(tmp_path / "profile.json"):
            message = refused(*fit, path, "--profile", own, "--reader", str(reader_folder))
        assert "another process is writing there" in message

    def test_a_profile_without_a_reader_is_refused(self, refused, tiny_folder, tmp_path):
        words = ["profile", "--model", str(tiny_folder), "--profile", "gemma-3-270m"]
        assert refused(*words) == "ugap: error: --profile is calibrated for a reader: name it with --reader\n"
