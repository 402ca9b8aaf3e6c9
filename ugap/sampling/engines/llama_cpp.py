"""The sampler as a logits processor of llama-cpp-python (`pip install "ugap[llama-cpp]"`).

Design choices, from how llama-cpp-python 0.3.36 samples:

- Logits processors come first in llama.cpp's chain of samplers. The token is drawn here and left alone in the scores,
  so the samplers behind (penalties, and the most probable token at `temperature=0`) have no choice.
- llama.cpp prints an error of a processor and samples on without it, and `logit_bias` drops all processors. So the
  processor keeps its error, and a stopping criterion raises it: errors of a criterion do reach the caller.
- The processor for transformers follows the sequence, with a batch of one.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.profile.profile import AUTO, Selection
from ugap.sampling.params import TAIL, aimed
from ugap.sampling.portable.params_processor import ParamsLogitsProcessor
from ugap.sampling.portable.special import unwritable_tokens
from ugap.sampling.prompts import PromptParams


class HumanEntropyLlamaProcessor:
    """Decode at human uncertainty in llama-cpp-python:
    [`HumanEntropyLogitsProcessor`][ugap.HumanEntropyLogitsProcessor] for `Llama.create_completion()`.

    Use `completion_kwargs`, which sets everything else right. One processor serves one completion after another. It
    excludes a `grammar`, `logit_bias` and `draft_model`.

    Args:
        profile (`HumanProfile`, `str` or `Path`): Human profile of the model that generates, its file, or the name of a
            shipped one. The shipped ones were fitted with the weights of the GGUF files that the assets hold.
        kind (`str` or `Mapping[str, float]`, *optional*, defaults to `"auto"`): Kind, domain or mixture of kinds of
            the profile; with `auto` the words of the prompt decide.
        weight (`float`, *optional*, defaults to 1.0): Share of the human level in [0, 1]: 1 is human, 0 exactly greedy.
        mode (`str`, *optional*): `"creative"`, `"balanced"` or `"precise"`: names for the weights 1, 0.5 and 0.
        tail (`float`, *optional*, defaults to 0.999): Tokens beyond the rank that holds this share of human tokens at
            the entropy are cut; `None` cuts nothing.
        seed (`int`, *optional*): Seed of the draws; by default torch's own generator is used.
        suppress_tokens (`Sequence[int]`, *optional*): Tokens that no person writes. They are drawn only where nothing
            else is left.

    Attributes:
        surprisal (`list[float]`): `-log p` under the model of each token drawn in the current completion, nats; the
            last may be the end token.

    Raises:
        InputError: If mode, weight, kind or tail is unknown or out of range, or the profile cannot be read.

    Example:
        >>> processor = HumanEntropyLlamaProcessor("gemma-3-270m", seed=0)
        >>> scores = processor(np.array([2, 3]), np.array([9.0, 8.0] + [-9.0] * 262142, dtype=np.float32))
        >>> int(np.isfinite(scores).sum()), len(processor.surprisal)
        (1, 1)
    """

    def __init__(
        self,
        profile: HumanProfile | str | Path,
        kind: Selection = AUTO,
        weight: float | None = None,
        *,
        mode: str | None = None,
        tail: float | None = TAIL,
        seed: int | None = None,
        suppress_tokens: Sequence[int] = (),
    ):
        loaded = profile if isinstance(profile, HumanProfile) else HumanProfile.load(profile)
        loaded, weight = aimed(loaded, mode, weight)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        params = PromptParams(loaded, kind, tail, special=suppress_tokens)
        self._sequence = _Sequence(params, weight, draw=True, generator=generator, suppress_tokens=suppress_tokens)
        self._seen = 0  # tokens of the sequence at the last call
        self._error: Exception | None = None

    @property
    def surprisal(self) -> list[float]:
        return self._sequence.surprisal

    def reset(self) -> None:
        """Forget the sequence: the next call is the first of a new completion.

        Needed only to start a new completion from the text that the last one wrote, or from a part of it.
        """
        self._sequence.reset()
        self._seen, self._error = 0, None

    def __call__(self, input_ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        """Scores that leave the drawn token alone.

        Args:
            input_ids (`np.ndarray` of shape `(T,)`): The sequence so far.
            scores (`np.ndarray` of shape `(V,)`): Logits; `-inf` rules a token out.

        Returns:
            `np.ndarray` of shape `(V,)`: 0 for the drawn token, `-inf` for the others.

        Raises:
            ValueError: If tokens were removed since the last call, another token was added than the one drawn, the
                scores are not finite, or the vocabulary is smaller than the ranks of the profile. llama.cpp prints it
                and continues: `check` raises it.
        """
        self._seen = len(input_ids)
        try:
            # Copies: both are views into memory that llama.cpp overwrites.
            ids = torch.from_numpy(np.array(input_ids, dtype=np.int64)).unsqueeze(0)
            logits = torch.from_numpy(np.array(scores, dtype=np.float32)).unsqueeze(0)
            return self._sequence(ids, logits).squeeze(0).numpy()
        except Exception as error:
            self._error = error
            raise

    def check(self, input_ids: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> bool:
        """A stopping criterion that never stops, but raises the error of the step before.

        Raises:
            ValueError: If the processor failed, or llama.cpp did not call it.
        """
        if self._error is not None:
            raise self._error
        if len(input_ids) != self._seen:
            raise ValueError("llama.cpp did not call the sampler (with logit_bias it drops all logits processors)")
        return False


class _Sequence(ParamsLogitsProcessor):
    """A batch of one, which takes only the tokens that were drawn."""

    def reset(self) -> None:
        super().reset()
        self.surprisal: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        out = super().__call__(input_ids, scores)
        assert self.drawn is not None
        self.surprisal.append(self.drawn.surprisal.item())
        return out

    def _begin(self, input_ids: Tensor, scores: Tensor) -> None:
        super()._begin(input_ids, scores)
        self.surprisal = []

    def _observe(self, tokens: Tensor) -> None:
        assert self.drawn is not None
        if not torch.equal(tokens, self.drawn.tokens):
            raise ValueError(
                f"token {tokens.item()} was taken where {self.drawn.tokens.item()} was drawn: no grammar, sampler or "
                "processor may act behind this one"
            )
        super()._observe(tokens)


def completion_kwargs(
    llama: Any,
    profile: HumanProfile | str | Path,
    kind: Selection = AUTO,
    *,
    mode: str | None = None,
    weight: float | None = None,
    tail: float | None = TAIL,
    seed: int | None = None,
) -> dict[str, Any]:
    """Arguments for `Llama.create_completion()` to write at human uncertainty; made anew for every completion.

    The human texts of the shipped profiles were scored behind a BOS, so the prompt must start with one. llama.cpp adds
    it to a prompt that is a string.

    For `create_chat_completion()`, which takes no stopping criteria, leave out `stopping_criteria`. llama.cpp then only
    prints the errors of the sampler.

    Args:
        llama (`llama_cpp.Llama`): The model that will generate. Its special tokens are not drawn, except for those
            that end a text.
        profile (`HumanProfile`, `str` or `Path`): Human profile of the model that generates, its file, or the name of a
            shipped one.
        kind (`str` or `Mapping[str, float]`, *optional*, defaults to `"auto"`): Kind, domain or mixture of kinds of
            the profile; with `auto` the words of the prompt decide.
        mode (`str`, *optional*): `"creative"` (the default), `"balanced"` or `"precise"`.
        weight (`float`, *optional*): Share of the human level in [0, 1], instead of a mode.
        tail (`float`, *optional*, defaults to `0.999`): Where the human tail is cut; `None` cuts nothing.
        seed (`int`, *optional*): Seed of the draws; by default torch's own generator is used.

    Raises:
        InputError: If llama-cpp-python is not installed, or as `HumanEntropyLlamaProcessor`.

    Example:
        ```python
        llama = Llama("gemma-3-270m-q4_k_m.gguf")
        options = completion_kwargs(llama, "gemma-3-270m", mode="creative", seed=0)
        llama.create_completion("Once upon a time", max_tokens=200, **options)
        ```
    """
    try:
        from llama_cpp import LogitsProcessorList, StoppingCriteriaList
    except ImportError as error:
        raise InputError('llama-cpp-python is not installed: pip install "ugap[llama-cpp]"') from error
    suppress_tokens = _suppressed(llama)
    processor = HumanEntropyLlamaProcessor(
        profile, kind, weight, mode=mode, tail=tail, seed=seed, suppress_tokens=suppress_tokens
    )
    return {
        "logits_processor": LogitsProcessorList([processor]),
        "stopping_criteria": StoppingCriteriaList([processor.check]),
        # Only the drawn token is left, so the most probable one is it; the penalties would only cost time.
        "temperature": 0.0,
        "repeat_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
    }


def _suppressed(llama: Any) -> list[int]:
    """Ids that are never drawn, by the attributes of the tokens in the GGUF file."""
    import llama_cpp

    size, vocab = llama.n_vocab(), llama_cpp.llama_model_get_vocab(llama.model)
    special = (
        llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN | llama_cpp.LLAMA_TOKEN_ATTR_UNUSED
    )
    attributes = [llama_cpp.llama_vocab_get_attr(vocab, token) for token in range(size)]
    added = {
        token: SimpleNamespace(
            special=bool(bits & special),
            content=llama_cpp.llama_vocab_get_text(vocab, token).decode(errors="replace"),
        )
        for token, bits in enumerate(attributes)
        if bits & (special | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED)
    }
    vocab_ids = {
        str(token): token for token, bits in enumerate(attributes) if bits != llama_cpp.LLAMA_TOKEN_ATTR_UNDEFINED
    }
    # The few attributes of a transformers tokenizer that `unwritable_tokens` reads.
    tokenizer = SimpleNamespace(all_special_ids=[], added_tokens_decoder=added, get_vocab=lambda: vocab_ids)
    return unwritable_tokens(tokenizer, size, [token for token in added if llama_cpp.llama_vocab_is_eog(vocab, token)])
