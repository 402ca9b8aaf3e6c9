"""The sampler as logits processors of vLLM (`pip install "ugap[vllm]"`), loaded by name and switched on per request.

```python
os.environ["UGAP_PROFILE"] = "profile.json"  # the human profile of the model, or the name of a shipped one
llm = LLM(model=..., logits_processors=["ugap.sampling.engines.vllm:HumanEntropyProcessor"])
llm.generate(prompts, SamplingParams(temperature=1.0, max_tokens=200, extra_args={"ugap_mode": "creative"}))
```

A request takes part if it has one of the keys `ugap_mode`, `ugap_weight` and `ugap_domain` in its `extra_args` (over
HTTP: `"vllm_xargs": {"ugap_mode": "creative"}`); others are left as they are. vLLM samples from the scores that are
returned and applies temperature, top-p, top-k and min-p after, so a request whose values of these would distort the
distribution is refused when it arrives. A key of `null` means the default. Special tokens are not drawn, but for those
that end the text of a request.

vLLM has two interfaces that exclude each other: `HumanEntropyProcessor` is for the first (`update_state()`; model
runner V1, vLLM 0.12 and later), `HumanEntropyProcessorV2` for the second (`add_request()`; model runner V2, as of
vLLM 0.32). Neither is an entry point: vLLM would load it for every model, and V2 refuses to start where V1's is there.

Everything but the two base classes works without vLLM.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.sampling.params import human_params
from ugap.sampling.portable.human import HumanSampler, State, Step
from ugap.sampling.portable.params_processor import mode_weight
from ugap.sampling.portable.special import loaded_tokenizer, unwritable_tokens
from ugap.sampling.portable.steps import step_scores, taken_surprisal

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as _InterfaceV1
except ImportError:
    _InterfaceV1 = object
try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as _InterfaceV2
except ImportError:
    _InterfaceV2 = object

logger = logging.getLogger(__name__)

PROFILE_VARIABLE = "UGAP_PROFILE"
_KEYS = ("ugap_domain", "ugap_mode", "ugap_weight")
# Values of SamplingParams that leave the returned scores as they are.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "temperature": (1,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
}


class Request(NamedTuple):
    """What one request asks for.

    Args:
        domain (`str`): Domain of the human profile.
        weight (`float`): Share of the human level in [0, 1].
        ends (`frozenset[int]`, *optional*): Tokens that end its text.
    """

    domain: str
    weight: float
    ends: frozenset[int] = frozenset()


def request_of(sampling_params: Any) -> Request | None:
    """What a request asks for in its `SamplingParams.extra_args`; `None` if it has no key of ours.

    Raises:
        ValueError: If a key that starts with `ugap_` is unknown or of another type, or mode or weight is unknown or out
            of range.
    """
    extra = getattr(sampling_params, "extra_args", None) or {}
    own = {key: value for key, value in extra.items() if key.startswith("ugap_")}
    unknown = sorted(own.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r}: there are {', '.join(_KEYS)}")
    if not own:
        return None
    for key in ("ugap_domain", "ugap_mode"):
        if not isinstance(own.get(key), str | None):
            raise ValueError(f"{key}: expected a text, got {own[key]!r}")
    domain = "creative" if own.get("ugap_domain") is None else own["ugap_domain"]
    ends = frozenset(getattr(sampling_params, "all_stop_token_ids", ()))
    return Request(domain, mode_weight(own.get("ugap_mode"), own.get("ugap_weight")), ends)


def validate_params(sampling_params: Any) -> None:
    """Refuse a request that asks for what there is not, or for what would distort the distribution.

    Raises:
        ValueError: If an argument of ours is unknown or out of range, or temperature, top-p, top-k, min-p or a penalty
            is not switched off.
    """
    request = request_of(sampling_params)
    if request is None:
        return
    human_params(_profile(), request.domain)
    for name, neutral in _NEUTRAL.items():
        value = getattr(sampling_params, name)
        if value not in neutral:
            raise ValueError(f"{name}={value}: a request at human uncertainty needs {name}={neutral[0]}")


def _profile() -> HumanProfile:
    name = os.environ.get(PROFILE_VARIABLE)
    if not name:
        raise InputError(
            f"set {PROFILE_VARIABLE} to the human profile of the model: a file, or the name of a shipped one"
        )
    return _loaded(name)


@lru_cache(maxsize=1)
def _loaded(name: str) -> HumanProfile:
    return HumanProfile.load(name)


def _refuse(vllm_config: Any) -> None:
    """Refuse engines whose steps are not one token of every running request."""
    if getattr(vllm_config, "speculative_config", None) is not None:
        raise ValueError("the sampler at human uncertainty needs one token at a time: no speculative decoding")
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError("the sampler at human uncertainty follows requests from step to step: no pipeline parallelism")


def _never(model_config: Any) -> list[int]:
    """Ids that are never drawn, whatever ends the text of a request."""
    tokenizer = None
    if not model_config.skip_tokenizer_init:
        tokenizer = loaded_tokenizer(
            model_config.tokenizer,
            revision=model_config.tokenizer_revision,
            trust_remote_code=model_config.trust_remote_code,
        )
    if tokenizer is None:
        logger.warning("no tokenizer: of the special tokens only those that the model's config names are not drawn")
    configs = [model_config.hf_config, model_config.hf_config.get_text_config()]
    return unwritable_tokens(tokenizer, model_config.get_vocab_size(), (), configs)


class Requests:
    """What is remembered of the requests of an engine, each in a slot of its own.

    Args:
        profile (`HumanProfile`): The human profile of the model.
        device (`torch.device`): Device of the logits.
        suppress_tokens (`Sequence[int]`, *optional*): Tokens that are not drawn but to end a text.
    """

    def __init__(self, profile: HumanProfile, device: torch.device | str, suppress_tokens: Sequence[int] = ()):
        self._profile, self._device, self._never = profile, device, suppress_tokens
        self._samplers: dict[int, HumanSampler] = {}  # by slot; requests that ask for the same share one
        self._shared: WeakValueDictionary[Request, HumanSampler] = WeakValueDictionary()
        self._memory = torch.zeros(len(State._fields), 0, device=device)  # the state, by field and slot
        self._steps: dict[int, tuple[Step, int]] = {}  # by slot: the last step and the row in it

    def __contains__(self, slot: int) -> bool:
        return slot in self._samplers

    def start(self, slot: int, request: Request) -> None:
        """A new request in `slot`, of which nothing is drawn yet, in the place of what was there."""
        self.stop(slot)
        sampler = self._shared.get(request)
        if sampler is None:
            params = human_params(self._profile, request.domain)
            suppress_tokens = [token for token in self._never if token not in request.ends]
            sampler = HumanSampler.of(params, request.weight, suppress_tokens=suppress_tokens, device=self._device)
            self._shared[request] = sampler
        missing = slot + 1 - self._memory.shape[1]
        if missing > 0:
            self._memory = torch.cat([self._memory, self._memory.new_zeros(len(State._fields), missing)], 1)
        self._memory[:, slot] = 0
        self._samplers[slot] = sampler

    def stop(self, slot: int) -> None:
        """Forget what is in `slot`, if anything."""
        self._samplers.pop(slot, None)
        self._steps.pop(slot, None)

    def apply(self, logits: Tensor, rows: Sequence[int], slots: Sequence[int], tokens: Tensor) -> Tensor:
        """Take what was drawn, and put the scores of the next step into the rows.

        Args:
            logits (`Tensor` of shape `(B, V)`): Changed in place.
            rows (`Sequence[int]`): Rows to change, `N` of them.
            slots (`Sequence[int]`): Slot of the request of each.
            tokens (`Tensor` of shape `(N,)`): Token that was drawn in the last step of each; negative where none was.

        Raises:
            ValueError: If the logits of a row are not finite.
        """
        self._observe(slots, tokens)
        groups: dict[int, list[int]] = {}
        for place, slot in enumerate(slots):
            groups.setdefault(id(self._samplers[slot]), []).append(place)
        for places in groups.values():
            own = [slots[place] for place in places]
            index = torch.tensor([rows[place] for place in places], device=logits.device)
            scores = logits[index]
            step = self._samplers[own[0]].step(scores, State(*self._memory[:, own]))
            logits[index] = step_scores(step, scores)
            self._steps.update((slot, (step, row)) for row, slot in enumerate(own))
        return logits

    def _observe(self, slots: Sequence[int], tokens: Tensor) -> None:
        """Add the drawn tokens to the states; those of one step at once."""
        groups: dict[int, tuple[Step, list[int]]] = {}
        for place, slot in enumerate(slots):
            if slot in self._steps:
                groups.setdefault(id(self._steps[slot][0]), (self._steps[slot][0], []))[1].append(place)
        for step, places in groups.values():
            own = [slots[place] for place in places]
            within = torch.tensor([self._steps[slot][1] for slot in own], device=tokens.device)
            drawn = torch.full_like(step.entropy, -1, dtype=torch.long)
            drawn[within] = tokens[torch.tensor(places, device=tokens.device)].long()
            surprisal = taken_surprisal(step, drawn)
            # The other rows of the step take nothing, so zeros will do for their states.
            state = State(
                *self._memory.new_zeros(len(State._fields), len(drawn)).index_copy_(1, within, self._memory[:, own])
            )
            after = self._samplers[own[0]].observe(state, step, surprisal)
            self._memory[:, own] = torch.stack(list(after))[:, within]
            for slot in own:
                del self._steps[slot]


@dataclass
class _Row:
    slot: int
    output: list[int]  # vLLM's own list of the request's output tokens, which grows
    known: int


class HumanEntropyProcessor(_InterfaceV1):
    """Decode at human uncertainty in vLLM: the logits processor for model runner V1.

    The state of a request follows it through the rows of vLLM's batch. A request that vLLM preempts starts again at the
    human level, as if it were new. With asynchronous scheduling vLLM fills in the last token just before sampling if
    the processor was given as `logits_processors`.

    Args:
        vllm_config (`VllmConfig`): vLLM's configuration.
        device (`torch.device`): Device of the logits.
        is_pin_memory (`bool`): Not used.

    Raises:
        InputError: If `UGAP_PROFILE` is not set or cannot be read.
        ValueError: If the engine decodes speculatively or in a pipeline.

    Example:
        ```python
        llm = LLM(model=..., logits_processors=["ugap.sampling.engines.vllm:HumanEntropyProcessor"])
        params = SamplingParams(temperature=1.0, extra_args={"ugap_weight": 0.8, "ugap_domain": "creative"})
        ```
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """As `validate_params`, when a request arrives."""
        validate_params(sampling_params)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        _refuse(vllm_config)
        self._device = device
        self._requests = Requests(_profile(), device, _never(vllm_config.model_config))
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """False: vLLM applies the others after temperature, and not at all to greedy requests."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests through the rows of the batch.

        Args:
            batch_update (`BatchUpdate`, *optional*): What was removed, added and moved, in this order.
        """
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._drop(self._rows.pop(row, None))
        for row, params, _, output in batch_update.added:
            self._drop(self._rows.pop(row, None))
            request = request_of(params)
            if request is not None:
                taken = {one.slot for one in self._rows.values()}
                slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
                self._requests.start(slot, request)
                self._rows[row] = _Row(slot, output, len(output))
        for first, second, direction in batch_update.moved:
            one, other = self._rows.pop(first, None), self._rows.pop(second, None)
            if one is not None:
                self._rows[second] = one
            if direction.name == "SWAP" and other is not None:
                self._rows[first] = other
            else:
                self._drop(other)

    def apply(self, logits: Tensor) -> Tensor:
        """Scores of the distributions to sample from, in the rows of the requests that take part.

        Args:
            logits (`Tensor` of shape `(B, V)`): Changed in place.

        Raises:
            ValueError: If the logits of a row are not finite, or vLLM did not fill in the token of the last step.
        """
        if not self._rows:
            return logits
        tokens = []
        for row in self._rows.values():
            new = len(row.output) - row.known
            row.known += new
            if new > 1 or (new == 1 and row.output[-1] < 0):
                raise ValueError(
                    f"vLLM added {new} tokens since the last step, the last being {row.output[-1]}: the sampler needs "
                    "to see every token (try async_scheduling=False)"
                )
            # Without a new one the step is done again, as for the parts of a long prompt.
            tokens.append(row.output[-1] if new == 1 else -1)
        slots = [row.slot for row in self._rows.values()]
        return self._requests.apply(logits, list(self._rows), slots, torch.tensor(tokens, device=self._device))

    def _drop(self, row: _Row | None) -> None:
        if row is not None:
            self._requests.stop(row.slot)


class HumanEntropyProcessorV2(_InterfaceV2):
    """Decode at human uncertainty in vLLM: the logits processor for model runner V2.

    vLLM keeps a request in one slot, and says for each row of a step which slot it is of. What was drawn is read on the
    device, from the token that was fed to the model. A request that vLLM preempts starts again at the human level, as
    if it were new.

    Args:
        vllm_config (`VllmConfig`): vLLM's configuration.
        req_states (`LogitsProcRequestState`): vLLM's record of the requests.

    Raises:
        InputError: If `UGAP_PROFILE` is not set or cannot be read.
        ValueError: If the engine decodes speculatively or in a pipeline.

    Example:
        ```python
        llm = LLM(model=..., logits_processors=["ugap.sampling.engines.vllm:HumanEntropyProcessorV2"])
        ```
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """As `validate_params`, when a request arrives."""
        validate_params(sampling_params)

    def __init__(self, vllm_config: Any, req_states: Any):
        _refuse(vllm_config)
        self._states = req_states
        self._requests = Requests(_profile(), req_states.device, _never(vllm_config.model_config))
        # Position, by slot, of the token that was fed to the model in the last step; none before the first.
        self._position = torch.full((req_states.max_num_reqs,), -2, device=req_states.device)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request enters slot `req_idx`; whether it takes part."""
        self._requests.stop(req_idx)
        request = request_of(sampling_params)
        if request is None:
            return False
        self._requests.start(req_idx, request)
        self._position[req_idx] = -2
        return True

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Scores of the distributions to sample from, in the rows of the requests that take part.

        Args:
            logits (`Tensor` of shape `(B, V)`): Changed in place.
            ctx (`LogitsContext`): Slot of each row, the token fed to the model, and its position.

        Raises:
            ValueError: If the logits of a row are not finite, or there are several rows of a request.
        """
        all_slots = ctx.idx_mapping_np.tolist()
        if len(all_slots) != len(logits):
            raise ValueError("the sampler at human uncertainty needs one token at a time: no speculative decoding")
        rows = [row for row, slot in enumerate(all_slots) if slot in self._requests]
        if not rows:
            return logits
        slots = [all_slots[row] for row in rows]
        fed, position = ctx.input_ids[rows].long(), ctx.pos[rows].long()
        # A token of the prompt was not drawn, though it may follow on the last that was fed.
        drawn = (position == self._position[slots] + 1) & (position >= self._states.prompt_len.gpu[slots])
        self._position[slots] = position
        return self._requests.apply(logits, rows, slots, torch.where(drawn, fed, -1))
