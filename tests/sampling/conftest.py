"""What the tests of the sampler share: a human profile of the tiny model."""

import sys
from pathlib import Path

import pytest
from transformers import dynamic_module_utils

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


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory):
    """Where transformers copies the code of exported folders to: a new folder for each file of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        patch.setattr(sys, "path", list(sys.path))
        yield
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
