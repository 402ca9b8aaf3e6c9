"""Calibrating a writer for a reader."""

import math
from dataclasses import replace

import numpy as np
import pytest

import ugap.sampling.reading
from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.profile.fitting import HumanText, cut_text
from ugap.profile.reading import Reading, Share
from ugap.sampling import profile_of
from ugap.sampling.reading import LEAST_SHARE, MOST_SHARE, _solve, calibrate, profile_read_by, shrunk
from ugap.scoring import Scorer

TEXTS = [HumanText("Once upon a time there was", f" a king who had {n} daughters and a garden") for n in range(8)]


class TestSolve:
    def test_a_log_linear_level_is_solved_exactly(self):
        levels = [np.full(4, math.exp(0.3 + 1.5 * share)) for share in (0.6, 0.8)]
        people = np.full(5, math.exp(0.3 + 1.5 * 0.71))
        assert _solve([0.6, 0.8], levels, people) == pytest.approx(0.71)

    def test_it_stays_within_its_bounds(self):
        levels = [np.full(4, 3.0), np.full(4, 4.0)]
        assert _solve([0.6, 0.8], levels, np.full(3, 0.1)) == LEAST_SHARE
        assert _solve([0.6, 0.8], levels, np.full(3, 50.0)) == MOST_SHARE

    def test_levels_that_do_not_rise_count_as_rising_slowly(self):
        share = _solve([0.6, 0.8], [np.full(4, 3.0), np.full(4, 2.9)], np.full(4, 2.95))
        assert share == pytest.approx(0.7, abs=0.01)

    def test_empty_texts_are_left_out(self):
        levels = [np.array([2.0, np.nan]), np.array([3.0, 3.0])]
        assert _solve([0.6, 0.8], levels, np.full(2, 3.0)) == pytest.approx(0.8)


class TestShrunk:
    def test_kinds_that_differ_keep_their_shares(self):
        shares = {"a": Share(0.5, 1e-4, 3.0, 32), "b": Share(0.9, 1e-4, 3.0, 32)}
        assert [one.share for one in shrunk(shares).values()] == pytest.approx([0.5, 0.9], abs=1e-4)

    def test_an_uncertain_kind_moves_most(self):
        shares = {"a": Share(0.5, 0.02, 3.0, 32), "b": Share(0.7, 0.02, 3.0, 32), "c": Share(0.9, 0.15, 3.0, 8)}
        out = shrunk(shares)
        moved = {kind: abs(out[kind].share - shares[kind].share) for kind in shares}
        assert max(moved, key=lambda kind: moved[kind]) == "c"
        assert all(out[kind].error <= shares[kind].error for kind in shares)

    def test_a_single_kind_stays(self):
        shares = {"a": Share(0.5, 0.1, 3.0, 32)}
        assert shrunk(shares) == shares


class TestCalibrate:
    def test_every_kind_gets_a_share_that_a_seed_repeats(self, tiny_scorer, make_model, tokenizer, make_profile):
        profile = make_profile(tiny_scorer.model)
        reader = Scorer(make_model("gpt2"), tokenizer, name="reader")
        texts, seen = {"creative": TEXTS, "functional": TEXTS}, []
        first, second = (
            calibrate(
                tiny_scorer,
                reader,
                profile,
                texts,
                max_new_tokens=6,
                seed=3,
                done=lambda kind, share: seen.append(kind),
            )
            for _ in range(2)
        )
        assert first == second
        assert seen == ["creative", "functional"] * 2
        assert (first.reader, first.weight_hash) == ("reader", reader.id.weight_hash)
        people = np.mean([one.nll for one in reader.score([t.text for t in TEXTS], [t.prefix for t in TEXTS])])
        for share in first.shares.values():
            assert LEAST_SHARE <= share.share <= MOST_SHARE
            assert share.people == pytest.approx(people)
            assert share.n_texts == 8

    def test_what_cannot_be_calibrated_is_refused(self, tiny_scorer, make_model, tokenizer, make_profile):
        profile = make_profile(tiny_scorer.model)
        reader = Scorer(make_model("gpt2"), tokenizer, name="reader")
        with pytest.raises(InputError, match="is the writer itself"):
            calibrate(tiny_scorer, tiny_scorer, profile, {"creative": TEXTS})
        with pytest.raises(InputError, match="7 texts to calibrate a reader on, 8 is the least"):
            calibrate(tiny_scorer, reader, profile, {"creative": TEXTS[:7]})
        with pytest.raises(InputError, match="has no kind 'news'"):
            calibrate(tiny_scorer, reader, profile, {"news": TEXTS})
        with pytest.raises(InputError, match="no kind of text"):
            calibrate(tiny_scorer, reader, profile, {})
        with pytest.raises(InputError, match="was fitted with"):
            calibrate(reader, tiny_scorer, profile, {"creative": TEXTS})

    def test_a_reader_whose_folder_has_other_weights_reads_anew(
        self, tiny_scorer, make_model, save_model, make_profile, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(ugap.sampling.reading, "cache_dir", lambda: tmp_path / "cache")
        folder, calibrated = save_model("reader", make_model("gpt2")), []

        def noted(writer, reader, profile, texts):
            calibrated.append(reader.id.weight_hash)
            return Reading("reader", reader.id.weight_hash, {"creative": Share(0.7, 0.1, 3.0, 8)})

        monkeypatch.setattr(ugap.sampling.reading, "calibrate", noted)
        profile = profile_read_by(make_profile(tiny_scorer.model), tiny_scorer, str(folder))
        assert len(calibrated) == 1
        # By its name alone where nothing of that name is on the disk, and by its weights where it is.
        assert profile_read_by(profile, tiny_scorer, "reader").reader == "reader"
        (tmp_path / "reader").symlink_to(folder)
        assert profile_read_by(profile, tiny_scorer, "reader").reader == "reader"
        assert len(calibrated) == 1
        make_model("gpt2", initializer_range=0.1).save_pretrained(folder)
        kept = replace(profile, reader=None)
        profile_of(tiny_scorer.model, kept, tiny_scorer.tokenizer, reader="reader")
        assert len(set(calibrated)) == 2

    @pytest.mark.slow
    def test_text_at_the_share_is_human_to_the_reader(self, smollm2, gemma):
        from ugap.data import DEMO, load_texts
        from ugap.sampling import generate

        rows = [row for row in load_texts(DEMO) if row.domain == "creative"][:12]
        found = [cut_text(smollm2.tokenizer, row.text, prefix_tokens=32, max_tokens=32) for row in rows]
        cuts = [cut for cut in found if cut is not None]
        profile = HumanProfile.load("smollm2-135m-instruct")
        reading = calibrate(smollm2, gemma, profile, {"fairy-tale": cuts}, max_new_tokens=32)
        read = replace(profile, readings={gemma.name: reading})
        prefixes = [cut.prefix for cut in cuts]
        levels = {}
        for name, options in {"own": {"weight": 1.0}, "to reader": {"reader": gemma.name}}.items():
            written = generate(
                smollm2.model,
                smollm2.tokenizer,
                prefixes,
                kind="fairy-tale",
                profile=read,
                max_new_tokens=32,
                seed=9,
                **options,
            )
            levels[name] = np.mean([one.nll for one in gemma.score([one.text for one in written], prefixes)])
        people = reading.shares["fairy-tale"].people
        assert reading.shares["fairy-tale"].share < 0.95
        assert abs(levels["to reader"] - people) < abs(levels["own"] - people)
        assert levels["to reader"] == pytest.approx(people, rel=0.15)
