"""Readings: the shares of a profile that are human to another model."""

import json
from dataclasses import replace

import pytest

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.profile.reading import Reading, Share
from ugap.sampling import human_params
from ugap.sampling.params import CONTRAST, aimed

SHARES = {"creative": Share(0.6, 0.03, 3.2, 32), "functional": Share(0.8, 0.02, 2.1, 30)}


@pytest.fixture
def read_profile(make_profile, tiny_scorer) -> HumanProfile:
    return replace(make_profile(tiny_scorer.model), readings={"strong": Reading("strong", "abc", SHARES)})


def test_a_file_keeps_them(read_profile, tmp_path):
    path = tmp_path / "profile.json"
    read_profile.read_by("strong").save(path)
    loaded = HumanProfile.load(path)
    assert loaded.readings == {"strong": Reading("strong", "abc", SHARES)}
    # Who reads is the choice of a call, not of the file.
    assert loaded.reader is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda entry: entry["shares"]["creative"].update(share=0), "a share is not above 0"),
        (lambda entry: entry["shares"]["creative"].update(share="x"), "'share' is no finite number"),
        (lambda entry: entry["shares"].clear(), "a reading needs a kind"),
        (lambda entry: entry.pop("shares"), "'shares' is missing"),
        (lambda entry: entry.update(shares=[]), "'shares' is no object"),
    ],
)
def test_a_damaged_one_is_refused(read_profile, tmp_path, change, fault):
    path = tmp_path / "profile.json"
    document = json.loads(json.dumps(read_profile.to_dict()))
    change(document["readings"]["strong"])
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=fault):
        HumanProfile.load(path)


def test_creative_aims_at_the_reader_and_shares_at_the_model_itself(read_profile):
    assert aimed(read_profile)[0].reader == "strong"
    assert aimed(read_profile, "creative")[0].reader == "strong"
    balanced, weight = aimed(read_profile, "balanced")
    assert (balanced.reader, weight) == (None, 0.5)
    assert aimed(read_profile, weight=1.0)[0].reader is None
    assert aimed(read_profile.read_by("strong"), weight=0.7)[0].reader == "strong"
    assert aimed(replace(read_profile, readings={}))[0].reader is None
    with pytest.raises(InputError, match="not calibrated for the reader 'weak'; it knows strong"):
        read_profile.read_by("weak")
    with pytest.raises(InputError, match="it knows none"):
        replace(read_profile, readings={}).read_by("weak")


def test_the_share_of_a_mixture(read_profile):
    target = read_profile.read_by("strong").target({"creative": 1, "functional": 3})
    assert target.share == pytest.approx(0.6 / 4 + 0.8 * 3 / 4)
    assert read_profile.target("creative").share == 1.0
    assert str(read_profile.read_by().target("creative")).endswith("strong reads 0.60 of it as human")


def test_a_kind_left_out_is_left_out_of_the_shares(read_profile):
    left = read_profile.without("functional").read_by()
    assert set(left.readings["strong"].shares) == {"creative"}


def test_the_aim_is_a_share_of_the_level_on_a_steeper_curve(read_profile):
    own, to_reader = human_params(read_profile, "creative"), human_params(read_profile.read_by(), "creative")
    assert to_reader["mean_surprisal"] == pytest.approx([0.6 * level for level in own["mean_surprisal"]])
    # Gain times curve: a power of the own curve, so the aim falls most at the low end.
    ratio = [a / b for a, b in zip(to_reader["g"], own["g"], strict=True) if b]
    expected = [value**CONTRAST for value in own["g"] if value]
    assert [one / ratio[0] for one in ratio] == pytest.approx([one / expected[0] for one in expected])
    for name in ("h", "entropy_quantiles", "cdf", "edges", "ranks", "entropy_scale"):
        assert to_reader[name] == own[name]
