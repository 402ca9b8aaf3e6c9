"""What the tests of the sampler share: a human profile of the tiny model."""

from pathlib import Path

import pytest

from ugap.profile import HumanProfile


@pytest.fixture(scope="session")
def profile(make_profile, tiny_model) -> HumanProfile:
    """Of `tiny_model`: people are as surprising as its entropy says."""
    return make_profile(tiny_model)


@pytest.fixture(scope="session")
def profile_file(profile, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("profiles") / "tiny.json"
    profile.save(path)
    return path
