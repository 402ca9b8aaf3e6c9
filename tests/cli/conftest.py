"""What the tests of the commands share."""

import pytest

from ugap.scoring import Scorer


@pytest.fixture(scope="session")
def broken_folder(save_model, make_model, tokenizer):
    """A tiny Llama that has no finite logits behind a capital Q."""
    model = make_model("llama", eos_token_id=0)
    model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids("Q")] = float("nan")
    return save_model("broken", model)


@pytest.fixture
def seen(monkeypatch):
    """The texts that any scorer is given."""
    texts: list[str] = []
    original = Scorer.score

    def spy(self, batch, *args, **kwargs):
        texts.extend(batch)
        return original(self, batch, *args, **kwargs)

    monkeypatch.setattr(Scorer, "score", spy)
    return texts
