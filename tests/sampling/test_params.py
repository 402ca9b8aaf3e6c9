"""From a profile to a sampler's parameters, and the profile that is a model's own."""

import copy
import json
from importlib import resources

import numpy as np
import pytest

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.sampling import MODES, human_params, profile_of, weight_of


def changed(profile: HumanProfile, change) -> HumanProfile:
    """The profile after `change(document of the creative domain)`."""
    from ugap.profile import DomainProfile

    document = json.loads(json.dumps(profile.by_domain["creative"].to_dict()))
    change(document)
    return HumanProfile(
        profile.scorer_name, profile.weight_hash, profile.source, {"creative": DomainProfile.from_dict(document)}
    )


class TestFigures:
    def test_they_are_those_of_the_domain(self, profile, profile_file):
        for name in ("creative", "functional"):
            domain = profile.domain(name)
            params = human_params(profile, name)
            assert params["h"] == domain.curve.h.tolist()
            assert params["g"] == domain.curve.g.tolist()
            assert params["edges"] == domain.bins.edges.tolist()
            assert params["entropy_quantiles"] == [0.0, *domain.quantiles["entropy"].tolist()]
            assert len(params["cdf"]) == len(params["entropy_quantiles"])
            assert (params["cdf"][0], params["cdf"][-1]) == (0.0, 1.0)
            assert np.all(np.diff(params["cdf"]) > 0)
            assert params["mean_surprisal"] == domain.means["surprisal"]
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
        weights = profile.domain("creative").bins.n_tokens
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
        with pytest.raises(InputError, match=r"^the human profile of 'creative' has no mean surprisal above 0$"):
            human_params(changed(profile, lambda document: document["means"].update(surprisal=level)), "creative")

    def test_shipped_profiles_make_params(self):
        for entry in (resources.files("ugap.profile") / "shipped").iterdir():
            if entry.name.endswith(".json"):
                for domain in ("creative", "functional"):
                    assert 1 < human_params(entry.name.removesuffix(".json"), domain)["mean_surprisal"] < 6


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
