"""From a profile to a sampler's parameters, and the profile that is a model's own."""

import copy
import json
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.sampling import MODES, human_params, profile_of, weight_of
from ugap.sampling.params import target_params


def changed(profile: HumanProfile, change) -> HumanProfile:
    """The profile after `change(document of the creative domain)`."""
    from ugap.profile import KindProfile

    document = json.loads(json.dumps(profile.kinds["creative"].to_dict()))
    change(document)
    return replace(profile, kinds={"creative": KindProfile.from_dict(document)})


class TestFigures:
    def test_they_are_those_of_the_domain(self, profile, profile_file):
        for name in ("creative", "functional"):
            domain = profile.kind(name)
            params = human_params(profile, name)
            assert params["h"] == domain.curve.h.tolist()
            assert params["g"] == domain.curve.g.tolist()
            assert params["edges"] == domain.bins.edges.tolist()
            assert params["entropy_quantiles"] == [0.0, *domain.quantiles["entropy"].tolist()]
            assert len(params["cdf"]) == len(params["entropy_quantiles"])
            assert (params["cdf"][0], params["cdf"][-1]) == (0.0, 1.0)
            assert np.all(np.diff(params["cdf"]) > 0)
            assert params["mean_surprisal"] == domain.positions.surprisal.tolist()
            assert params["entropy_scale"] == (domain.positions.entropy / domain.means["entropy"]).tolist()
            assert len(params["gain"]) == len(params["bands"]) + 1
            assert len(params["ranks"]) == len(params["edges"]) + 1
            assert human_params(str(profile_file), name) == params
            # Plain lists: what other engines are given travels as JSON.
            assert json.loads(json.dumps(params)) == params
        assert human_params(profile, "creative") != human_params(profile, "functional")

    def test_ranks_are_whole_at_least_1_and_never_fall(self, profile):
        noisy = [30.0, 12.4, 0.2, 99.9, 40.0]

        def change(document):
            bins = document["bins"]
            column = bins["rank_levels"].index(0.999)
            for row, value in zip(bins["rank"], noisy, strict=False):
                row[column] = value
            bins["rank"][0][bins["rank_levels"].index(0.5)] = 0.3

        params = human_params(changed(profile, change), "creative")
        # Neighbours that fall become their weighted geometric mean, rounded up.
        weights = profile.kind("creative").bins.n_tokens
        low = np.exp(np.average(np.log([30.0, 12.4, 1.0]), weights=weights[:3]))
        assert params["ranks"][:3] == [np.ceil(low)] * 3
        assert low < 30 < params["ranks"][3] < 99
        assert all(type(rank) is int for rank in params["ranks"])
        assert np.all(np.diff(params["ranks"]) >= 0)
        assert human_params(changed(profile, change), "creative", 0.5)["ranks"][0] == 1

    def test_a_longer_tail_reaches_further(self, profile):
        depths = [human_params(profile, "creative", tail)["ranks"] for tail in (0.5, 0.9, 0.95, 0.99, 0.995, 0.999)]
        assert np.all(np.diff(np.array(depths), axis=0) >= 0)
        assert human_params(profile, "creative", None)["ranks"] == []

    @pytest.mark.parametrize("level", [None, 0, -1.0])
    def test_a_domain_without_a_level(self, profile, level):
        with pytest.raises(InputError, match=r"^the human profile has no mean entropy and surprisal above 0$"):
            human_params(changed(profile, lambda document: document["means"].update(surprisal=level)), "creative")

    def test_shipped_profiles_make_params(self):
        for entry in (resources.files("ugap.profile") / "shipped").iterdir():
            if entry.name.endswith(".json"):
                name = entry.name.removesuffix(".json")
                for kind in ("auto", "functional", *HumanProfile.load(name).kinds):
                    assert all(0.8 < mean < 7 for mean in human_params(name, kind)["mean_surprisal"])

    def test_the_aim_is_the_level_at_every_position_and_for_every_prompt(self, profile):
        """The mean of `gain * g(scale * q)` over the quantiles is the mean surprisal, whatever moved it."""
        target = profile.target("creative")
        level = target.mean_surprisal
        for factor in (1.0, 0.6, 1.3):
            params = target_params(target._replace(mean_surprisal=factor * level))
            curve = profile.kind("creative").curve
            cdf, quantiles = np.array(params["cdf"]), np.array(params["entropy_quantiles"])
            for scale, gain, mean in zip(
                params["entropy_scale"], params["gain"], params["mean_surprisal"], strict=True
            ):
                values = gain * curve(scale * quantiles)
                assert ((values[1:] + values[:-1]) / 2 * np.diff(cdf)).sum() == pytest.approx(mean, rel=1e-6)
            assert params["mean_surprisal"][4] == pytest.approx(factor * level, rel=0.02)
        assert target_params(target._replace(mean_surprisal=0.6 * level))["entropy_scale"][4] < 0.8


class TestWeight:
    def test_of_modes_and_numbers(self):
        assert [weight_of(mode, None) for mode in MODES] == [1.0, 0.5, 0.0]
        assert [weight_of(None, weight) for weight in (None, 0, 0.3, 1)] == [1.0, 0.0, 0.3, 1.0]
        assert type(weight_of(None, 1)) is float

    @pytest.mark.parametrize("weight", [-1, 1.5, float("nan"), True, "0.5"])
    def test_out_of_range(self, weight):
        with pytest.raises(InputError, match=r"^weight: expected a number in \[0, 1\], got "):
            weight_of(None, weight)


class TestProfileOf:
    def test_one_that_is_given(self, profile, profile_file, tiny_model):
        assert profile_of(tiny_model, profile) is profile
        assert profile_of(tiny_model, profile_file).to_dict() == profile.to_dict()
        assert profile_of(copy.deepcopy(tiny_model).bfloat16(), profile) is profile

    def test_one_of_another_model(self, profile, profile_file, make_model):
        other = make_model("llama", initializer_range=0.2)
        for given in (profile, str(profile_file)):
            with pytest.raises(InputError, match=r"fitted with 'tiny' \(weights \w+\), not with 'LlamaForCausalLM'"):
                profile_of(other, given)

    def test_the_shipped_one_of_the_weights(self, profile, tiny_model, tmp_path, monkeypatch):
        with pytest.raises(InputError, match=r"no shipped human profile fits .*: fit one with `ugap profile --model"):
            profile_of(tiny_model)
        profile.save(tmp_path / "shipped" / "any-name.json")
        monkeypatch.setattr(resources, "files", lambda package: tmp_path)
        assert profile_of(tiny_model).to_dict() == profile.to_dict()
