"""What the tests of training share: made-up rows of both domains, and a human profile of a tiny model on them."""

import copy
import random

import pytest
from datasets import Dataset

from ugap.profile import HumanProfile
from ugap.scoring import Scorer

TALE = "once upon a time there was a tailor who had three sons and the youngest went into the forest"
WORDS = TALE.split()


@pytest.fixture
def own_tokenizer(tokenizer):
    """A tokenizer that may be changed: the trainers tell it to start texts with BOS."""
    return copy.deepcopy(tokenizer)


@pytest.fixture(scope="session")
def human_texts():
    """Forty texts of forty words."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=40)) for _ in range(40)]


@pytest.fixture(scope="session")
def base_model(make_model):
    """`base_model()`: a new tiny Llama that can be trained, not far from uniform; always with the same weights."""
    return lambda: make_model("llama", initializer_range=0.15).requires_grad_(True)


@pytest.fixture(scope="session")
def human_profile(base_model, tokenizer, human_texts):
    """The profile of `base_model` on `human_texts`, in both domains."""
    scorer = Scorer(base_model().eval(), tokenizer, name="tiny")
    scores = scorer.score(human_texts, ["Once upon"] * len(human_texts), pmi=True)
    return HumanProfile.fit({"creative": scores, "functional": scores[:30]}, resamples=2)


@pytest.fixture(scope="session")
def prompts(human_texts):
    """Prompts for GRPO: every other is functional."""
    rows = []
    for text in human_texts[:8]:
        rows.append(
            {"prompt": "Once upon a time", "domain": "creative", "human_completion": " " + text, "answer": None}
        )
        rows.append({"prompt": "A function", "domain": "functional", "human_completion": None, "answer": ["a value"]})
    return Dataset.from_list(rows)


@pytest.fixture(scope="session")
def sentences():
    """Rows for SFT: every other is functional."""
    creative = "Once upon a time there was a tailor who had three sons, and the youngest was called Simpleton."
    functional = "A function returns a value; the value of the expression is the value of the function."
    return Dataset.from_list(
        [{"text": creative, "domain": "creative"}, {"text": functional, "domain": "functional"}] * 8
    )
