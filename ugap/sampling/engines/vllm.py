"""The sampler as logits processors of vLLM (`pip install "ugap[vllm]"`), loaded by name and switched on per request.

```python
os.environ["UGAP_PROFILE"] = "profile.json"  # the human profile of the model, or the name of a shipped one
llm = LLM(model=..., logits_processors=["ugap.sampling.engines.vllm:HumanEntropyProcessor"])
llm.generate(prompts, SamplingParams(temperature=1.0, max_tokens=200, extra_args={"ugap_mode": "creative"}))
```

A request takes part if it has one of the keys `ugap_mode`, `ugap_weight` and `ugap_kind` in its `extra_args` (over
HTTP: `"vllm_xargs": {"ugap_mode": "creative"}`); others stay as they are. vLLM applies temperature, top-p, top-k
and min-p to the returned scores before it samples. A request with values that would distort the distribution is refused
when it arrives. A key of `null` means the default. The default kind, `auto`, is the creative kinds: prompts are not
read here. Special tokens are not drawn, except for those that end the text of a request.

vLLM has two interfaces that exclude each other: `HumanEntropyProcessor` is for the first (`update_state()`; model
runner V1, vLLM 0.12 and later), `HumanEntropyProcessorV2` for the second (`add_request()`; model runner V2, from
vLLM 0.32). Neither is an entry point: vLLM would load it for every model, and V2 refuses to start where V1's is there.

This module also imports without vLLM, with `object` as the base of its two processors.
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
from ugap.profile.profile import AUTO
from ugap.sampling.params import human_params
from ugap.sampling.portable.human import HumanSampler, State, Step
from ugap.sampling.portable.params_processor import mode_weight
from ugap.sampling.portable.special import loaded_tokenizer, unwritable_tokens

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
_KEYS = ("ugap_kind", "ugap_mode", "ugap_weight")
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
    """The settings of one request.

    Args:
        kind (`str`): Kind of text, or domain, of the human profile.
        weight (`float`): Share of the human level in [0, 1].
        ends (`frozenset[int]`, *optional*): Tokens that end its text.
        own (`bool`, *optional*): Whether the level is the model's own, and not that of the profile's reader.
    """

    kind: str
    weight: float
    ends: frozenset[int] = frozenset()
    own: bool = False


def request_of(sampling_params: Any) -> Request | None:
    """The settings in a request's `SamplingParams.extra_args`; `None` if none of its keys is ours.

    Raises:
        ValueError: If a key that starts with `ugap_` is unknown or of another type, or mode or weight is unknown or out
            of range.
    """
    extra = getattr(sampling_params, "extra_args", None) or {}
    settings = {key: value for key, value in extra.items() if key.startswith("ugap_")}
    unknown = sorted(settings.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r}: there are {', '.join(_KEYS)}")
    if not settings:
        return None
    for key in ("ugap_kind", "ugap_mode"):
        if not isinstance(settings.get(key), str | None):
            raise ValueError(f"{key}: expected a text, got {settings[key]!r}")
    kind = settings.get("ugap_kind")
    ends = frozenset(getattr(sampling_params, "all_stop_token_ids", ()))
    weight = mode_weight(settings.get("ugap_mode"), settings.get("ugap_weight"))
    return Request(AUTO if kind is None else kind, weight, ends, settings.get("ugap_weight") is not None)


def validate_params(sampling_params: Any) -> None:
    """Refuse a request with unknown settings, or with settings that would distort the distribution.

    Raises:
        ValueError: If an argument of ours is unknown or out of range, or temperature, top-p, top-k, min-p or a penalty
            is not switched off.
    """
    request = request_of(sampling_params)
    if request is None:
        return
    human_params(_profile(), request.kind)
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


# Read once: every request that arrives is checked against the profile.
@lru_cache(maxsize=1)
def _loaded(name: str) -> HumanProfile:
    return HumanProfile.load(name)


def _refuse(vllm_config: Any) -> None:
    """Refuse engines that do not add one token to every running request in each step."""
    if getattr(vllm_config, "speculative_config", None) is not None:
        raise ValueError("the sampler at human uncertainty needs one token at a time: no speculative decoding")
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ValueError("the sampler at human uncertainty follows requests from step to step: no pipeline parallelism")


def _suppressed(model_config: Any) -> list[int]:
    """Ids that are never drawn; the tokens that end a text are among them, as each request has its own."""
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
    """The state of the requests of an engine, each in a slot of its own.

    Args:
        profile (`HumanProfile`): The human profile of the model.
        device (`torch.device`): Device of the logits.
        suppress_tokens (`Sequence[int]`, *optional*): Tokens that are not drawn, unless they end the text of a request.
    """

    def __init__(self, profile: HumanProfile, device: torch.device | str, suppress_tokens: Sequence[int] = ()):
        self._profile, self._device, self._suppress_tokens = profile, device, suppress_tokens
        self._samplers: dict[int, HumanSampler] = {}  # by slot; requests with the same settings share one
        # Weak: a sampler ends with its last request.
        self._shared: WeakValueDictionary[Request, HumanSampler] = WeakValueDictionary()
        self._states = torch.zeros(len(State._fields), 0, device=device)  # (fields, slots)
        self._steps: dict[int, tuple[Step, int]] = {}  # by slot: the last step and its row in the step

    def __contains__(self, slot: int) -> bool:
        return slot in self._samplers

    def start(self, slot: int, request: Request) -> None:
        """Put a new request into `slot`, without any token yet, instead of the one there."""
        self.stop(slot)
        sampler = self._shared.get(request)
        if sampler is None:
            profile = self._profile if request.own else self._profile.read_by()
            params = human_params(profile, request.kind)
            suppress_tokens = [token for token in self._suppress_tokens if token not in request.ends]
            sampler = HumanSampler.of(params, request.weight, suppress_tokens=suppress_tokens, device=self._device)
            self._shared[request] = sampler
        missing = slot + 1 - self._states.shape[1]
        if missing > 0:
            self._states = torch.cat([self._states, self._states.new_zeros(len(State._fields), missing)], 1)
        self._states[:, slot] = 0
        self._samplers[slot] = sampler

    def stop(self, slot: int) -> None:
        """Forget the request in `slot`, if any."""
        self._samplers.pop(slot, None)
        self._steps.pop(slot, None)

    def apply(
        self, logits: Tensor, rows: Sequence[int], slots: Sequence[int], tokens: Tensor, positions: Tensor
    ) -> Tensor:
        """Add the drawn tokens to the states, and put the scores of the next step into the rows.

        Args:
            logits (`Tensor` of shape `(B, V)`): Changed in place.
            rows (`Sequence[int]`): Rows to change, `N` of them.
            slots (`Sequence[int]`): Slot of the request of each.
            tokens (`Tensor` of shape `(N,)`): Token drawn in the last step of each; negative for none.
            positions (`Tensor` of shape `(N,)`): Tokens before the next one of each, the prompt's included.

        Raises:
            ValueError: If the logits of a row are not finite.
        """
        self._observe(slots, tokens)
        self._states[State._fields.index("position"), list(slots)] = positions.to(self._states)
        groups: dict[int, list[int]] = {}
        for i, slot in enumerate(slots):
            groups.setdefault(id(self._samplers[slot]), []).append(i)
        for members in groups.values():
            group_slots = [slots[i] for i in members]
            index = torch.tensor([rows[i] for i in members], device=logits.device)
            scores = logits[index]
            step = self._samplers[group_slots[0]].step(scores, State(*self._states[:, group_slots]))
            logits[index] = step.scores(scores)
            self._steps.update((slot, (step, row)) for row, slot in enumerate(group_slots))
        return logits

    def _observe(self, slots: Sequence[int], tokens: Tensor) -> None:
        """Add the drawn tokens to the states, step by step: the tokens of one step together."""
        groups: dict[int, tuple[Step, list[int]]] = {}
        for i, slot in enumerate(slots):
            if slot in self._steps:
                step, _ = self._steps[slot]
                groups.setdefault(id(step), (step, []))[1].append(i)
        for step, members in groups.values():
            group_slots = [slots[i] for i in members]
            within = torch.tensor([self._steps[slot][1] for slot in group_slots], device=tokens.device)
            drawn = torch.full_like(step.entropy, -1, dtype=torch.long)
            drawn[within] = tokens[torch.tensor(members, device=tokens.device)].long()
            surprisal = step.surprisal_of(drawn)
            # The result of the other rows of the step is not read, so their states may be zeros.
            state = State(
                *self._states.new_zeros(len(State._fields), len(drawn)).index_copy_(
                    1, within, self._states[:, group_slots]
                )
            )
            after = self._samplers[group_slots[0]].observe(state, step, surprisal)
            self._states[:, group_slots] = torch.stack(list(after))[:, within]
            for slot in group_slots:
                del self._steps[slot]


@dataclass
class _Row:
    slot: int
    n_prompt: int
    output: list[int]  # vLLM's own list of the request's output tokens, which grows
    n_seen: int  # tokens of it at the last step


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
        params = SamplingParams(temperature=1.0, extra_args={"ugap_weight": 0.8, "ugap_kind": "story"})
        ```
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """As `validate_params`, when a request arrives."""
        validate_params(sampling_params)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool):
        _refuse(vllm_config)
        self._device = device
        self._requests = Requests(_profile(), device, _suppressed(vllm_config.model_config))
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        """False: vLLM applies processors that are, after temperature only, and never to greedy requests."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follow the requests through the rows of the batch.

        Args:
            batch_update (`BatchUpdate`, *optional*): Rows removed, added and moved, in this order.
        """
        if batch_update is None:
            return
        for row in batch_update.removed:
            self._drop(self._rows.pop(row, None))
        for row, params, prompt, output in batch_update.added:
            self._drop(self._rows.pop(row, None))
            request = request_of(params)
            if request is not None:
                used_slots = {other.slot for other in self._rows.values()}
                slot = next(slot for slot in range(len(used_slots) + 1) if slot not in used_slots)
                self._requests.start(slot, request)
                self._rows[row] = _Row(slot, len(prompt or ()), output, len(output))
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
            new = len(row.output) - row.n_seen
            row.n_seen += new
            if new > 1 or (new == 1 and row.output[-1] < 0):
                raise ValueError(
                    f"vLLM added {new} tokens since the last step, the last being {row.output[-1]}: the sampler needs "
                    "to see every token (try async_scheduling=False)"
                )
            # Without a new token vLLM repeats the step, as for the chunks of a long prompt.
            tokens.append(row.output[-1] if new == 1 else -1)
        slots = [row.slot for row in self._rows.values()]
        positions = [row.n_prompt + row.n_seen for row in self._rows.values()]
        on_device = (torch.tensor(values, device=self._device) for values in (tokens, positions))
        return self._requests.apply(logits, list(self._rows), slots, *on_device)

    def _drop(self, row: _Row | None) -> None:
        if row is not None:
            self._requests.stop(row.slot)


class HumanEntropyProcessorV2(_InterfaceV2):
    """Decode at human uncertainty in vLLM: the logits processor for model runner V2.

    vLLM keeps a request in one slot, and names the slot of each row of a step. The drawn token is read on the
    device: it is the token that was fed to the model. A request that vLLM preempts starts again as if it
    were new.

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
        self._requests = Requests(_profile(), req_states.device, _suppressed(vllm_config.model_config))
        # By slot, the position of the token fed to the model in the last step; -2 before the first step.
        self._position = torch.full((req_states.max_num_reqs,), -2, device=req_states.device)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Put a request into slot `req_idx`; returns whether it takes part."""
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
        # A token of the prompt was not drawn, even where it follows the last one that was fed.
        drawn = (position == self._position[slots] + 1) & (position >= self._states.prompt_len.gpu[slots])
        self._position[slots] = position
        return self._requests.apply(logits, rows, slots, torch.where(drawn, fed, -1), position + 1)
