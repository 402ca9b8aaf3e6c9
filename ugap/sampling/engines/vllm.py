"""The sampler as logits processors of vLLM (`pip install "ugap[vllm]"`), loaded by name and switched on per request.

```python
os.environ["UGAP_PROFILE"] = "profile.json"  # the human profile of the model, or the name of a shipped one
llm = LLM(model=..., logits_processors=["ugap.sampling.engines.vllm:HumanEntropyProcessor"])
llm.generate(prompts, SamplingParams(temperature=1.0, max_tokens=200, extra_args={"ugap_mode": "creative"}))
```

A request takes part if it has one of the keys `ugap_mode`, `ugap_weight`, `ugap_kind` and `ugap_params` in its
`extra_args` (over HTTP: `"vllm_xargs": {"ugap_mode": "creative"}`); others stay as they are. `ugap_params` is the JSON
text of `ugap.sampling.human_params`: such a request brings its own human level, and needs no profile.
vLLM applies temperature, top-p, top-k and min-p to the returned scores before it samples. A request with values that
would distort the distribution is refused when it arrives. A key of `null` means the default. The default kind, `auto`,
is the creative kinds: prompts are not read here. Special tokens are not drawn, except for those that end the text of a
request.
`allowed_token_ids`, `bad_words`, `min_tokens` and structured outputs rule tokens out first, and the sampler works on
those that are left. `logit_bias` is refused.

vLLM has two interfaces that exclude each other: `update_state()` for model runner V1, and `add_request()` for model
runner V2, the default since vLLM 0.31. `HumanEntropyProcessor` is accepted by both, and becomes the one that is called
for. It is no entry point, as vLLM would load it for every model.

A request that vLLM preempts loses its place, and later comes back with its tokens. The state follows from settings,
prompt and tokens, so it is kept under their hash: neither interface names requests.

This module also imports without vLLM, without the bases of its processors.
"""

import json
import logging
import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.profile.profile import AUTO
from ugap.sampling.params import checked_params, human_params
from ugap.sampling.portable.human import HumanSampler, State, Step
from ugap.sampling.portable.params_processor import mode_weight
from ugap.sampling.portable.special import loaded_tokenizer, unwritable_tokens
from ugap.sampling.portable.temperature import Candidates

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as _InterfaceV1
except ImportError:

    class _InterfaceV1: ...  # type: ignore[no-redef]


try:
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as _InterfaceV2
except ImportError:

    class _InterfaceV2: ...  # type: ignore[no-redef]


logger = logging.getLogger(__name__)

PROFILE_VARIABLE = "UGAP_PROFILE"
_KEYS = ("ugap_kind", "ugap_mode", "ugap_params", "ugap_weight")
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
        params (`str`, *optional*): The sampler's parameters as JSON, instead of a kind of the profile.
    """

    kind: str
    weight: float
    ends: frozenset[int] = frozenset()
    own: bool = False
    params: str | None = None


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
    for key in ("ugap_kind", "ugap_mode", "ugap_params"):
        if not isinstance(settings.get(key), str | None):
            raise ValueError(f"{key}: expected a text, got {settings[key]!r}")
    kind, params = settings.get("ugap_kind"), settings.get("ugap_params")
    if kind is not None and params is not None:
        raise ValueError("give ugap_kind or ugap_params, not both")
    # With `ignore_eos`, the tokenizer's end token is still among all of vLLM's stop tokens, and ends nothing.
    stops = "stop_token_ids" if getattr(sampling_params, "ignore_eos", False) else "all_stop_token_ids"
    ends = frozenset(getattr(sampling_params, stops, None) or ())
    weight = mode_weight(settings.get("ugap_mode"), settings.get("ugap_weight"))
    # As `ugap.sampling.params.aimed` has it.
    own = settings.get("ugap_weight") is not None or weight < 1
    return Request(AUTO if kind is None else kind, weight, ends, own, params)


def validate_params(sampling_params: Any) -> None:
    """Refuse a request with unknown settings, or with settings that would distort the distribution.

    Raises:
        ValueError: If an argument of ours is unknown or out of range, or temperature, top-p, top-k, min-p or a penalty
            is not switched off, or there is a `logit_bias`.
    """
    request = request_of(sampling_params)
    if request is None:
        return
    if request.params is None:
        human_params(_profile(), request.kind)
    else:
        _parsed(request.params)
    for name, neutral in _NEUTRAL.items():
        value = getattr(sampling_params, name)
        if value not in neutral:
            raise ValueError(f"{name}={value}: a request at human uncertainty needs {name}={neutral[0]}")
    # It would change the surprisals that the sampler aims at. Masks leave those of the other tokens in proportion.
    if getattr(sampling_params, "logit_bias", None):
        raise ValueError("logit_bias: a request at human uncertainty takes none (use allowed_token_ids or bad_words)")


def _profile() -> HumanProfile:
    name = os.environ.get(PROFILE_VARIABLE)
    if not name:
        raise InputError(
            f"set {PROFILE_VARIABLE} to the human profile of the model: a file, or the name of a shipped one; "
            "or send ugap_params"
        )
    return _loaded(name)


# Read once: every request that arrives is checked against the profile.
@lru_cache(maxsize=1)
def _loaded(name: str) -> HumanProfile:
    return HumanProfile.load(name)


# The requests of a batch often share their parameters.
@lru_cache(maxsize=256)
def _parsed(text: str) -> dict[str, Any]:
    """The sampler's parameters from their JSON text.

    Raises:
        ValueError: If they are none.
    """
    try:
        return checked_params(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"ugap_params: not the JSON text of human_params: {error}") from error


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


# Fields of a sampler with a row for each sequence.
_ROWS = ("h", "g", "entropy_quantiles", "cdf", "edges", "ranks", "entropy_scale", "gain", "mean_surprisal")


class _LastStep(NamedTuple):
    step: Step
    row: int  # of the request in the step
    sampler: HumanSampler  # of all rows of the step


class Requests:
    """The state of the requests of an engine, each in a slot of its own.

    Args:
        profile (`HumanProfile`, *optional*): The human profile of the model, for requests without `ugap_params`.
        device (`torch.device`): Device of the logits.
        suppress_tokens (`Sequence[int]`, *optional*): Tokens that are not drawn, unless they end the text of a request.
        most_parked (`int`, *optional*, defaults to `1024`): States that are kept of requests without a slot. While a
            preempted request waits, vLLM starts no other. So at most as many wait as run at once.
    """

    def __init__(
        self,
        profile: HumanProfile | None,
        device: torch.device | str,
        suppress_tokens: Sequence[int] = (),
        most_parked: int = 1024,
    ):
        self._profile, self._device, self._suppress_tokens = profile, device, suppress_tokens
        self._most_parked = most_parked
        self._samplers: dict[int, HumanSampler] = {}  # by slot; requests with the same settings share one
        self._groups: dict[int, Hashable] = {}  # by slot
        # Weak: a sampler ends with its last request.
        self._shared: WeakValueDictionary[Request, HumanSampler] = WeakValueDictionary()
        self._states = torch.zeros(len(State._fields), 0, device=device)  # (fields, slots)
        self._steps: dict[int, _LastStep] = {}  # by slot
        self._joined: dict[Hashable, tuple[list[HumanSampler], HumanSampler]] = {}  # of the last step, by group
        self._parked: OrderedDict[int, tuple[Tensor, Step]] = OrderedDict()  # by key: state (fields,) and last step

    def start(self, slot: int, request: Request) -> None:
        """Put a new request into `slot`, without any token yet, instead of the one there."""
        self.stop(slot)
        sampler = self._shared.get(request)
        if sampler is None:
            if request.params is None:
                profile = self._profile or _profile()
                params = human_params(profile if request.own else profile.read_by(), request.kind)
            else:
                params = _parsed(request.params)
            suppress_tokens = [token for token in self._suppress_tokens if token not in request.ends]
            sampler = HumanSampler.of(params, request.weight, suppress_tokens=suppress_tokens, device=self._device)
            self._shared[request] = sampler
        missing = slot + 1 - self._states.shape[1]
        if missing > 0:
            self._states = torch.cat([self._states, self._states.new_zeros(len(State._fields), missing)], 1)
        self._states[:, slot] = 0
        self._samplers[slot] = sampler
        # The rows of a group are decoded together: what they share, and the shapes of what each has of its own.
        shapes = tuple(getattr(sampler, name).shape[-1] for name in _ROWS)
        self._groups[slot] = request.weight, request.ends, tuple(sampler.bands.tolist()), shapes

    def park(self, slot: int, key: int) -> None:
        """Free `slot`, and keep the state of its request under `key`: vLLM does not say whether it comes back."""
        if slot in self._steps:
            # On the CPU, where it costs no memory of the model; the last token may not be known yet.
            last = self._steps[slot]
            self._parked[key] = self._states[:, slot].to("cpu", copy=True), _row_of(last.step, last.row, "cpu")
            self._parked.move_to_end(key)
            while len(self._parked) > self._most_parked:
                self._parked.popitem(last=False)
        self.stop(slot)

    def resume(self, slot: int, keys: Sequence[int]) -> int | None:
        """Give the request in `slot` the state kept under the first of `keys` that there is, and return its index."""
        for i, key in enumerate(keys):
            if key in self._parked:
                state, step = self._parked[key]
                # Kept, as another request may have the same tokens; but the first to be forgotten.
                self._parked.move_to_end(key, last=False)
                self._states[:, slot] = state.to(self._device)
                self._steps[slot] = _LastStep(_row_of(step, 0, self._device), 0, self._samplers[slot])
                return i
        logger.warning("the state of a preempted request is not known any more: it starts again at the human level")
        return None

    def stop(self, slot: int) -> None:
        self._samplers.pop(slot, None)
        self._groups.pop(slot, None)
        self._steps.pop(slot, None)

    def apply(
        self, logits: Tensor, rows: Sequence[int], slots: Sequence[int], tokens: Tensor, positions: Tensor
    ) -> Tensor:
        """Add the drawn tokens to the states, and put the scores of the next step into the rows.

        Args:
            logits (`Tensor` of shape `(B, V)`): May be changed in place.
            rows (`Sequence[int]`): Rows to change, `N` of them.
            slots (`Sequence[int]`): Slot of the request of each.
            tokens (`Tensor` of shape `(N,)`): Token drawn in the last step of each; negative for none.
            positions (`Tensor` of shape `(N,)`): Tokens before the next one of each, the prompt's included.

        Raises:
            ValueError: If the logits of a row are not finite.
        """
        self._observe(slots, tokens)
        self._states[State._fields.index("position"), list(slots)] = positions.to(self._states)
        groups: dict[Hashable, list[int]] = {}
        for i, slot in enumerate(slots):
            groups.setdefault(self._groups[slot], []).append(i)
        joined, self._joined = self._joined, {}
        for group, members in groups.items():
            group_slots = [slots[i] for i in members]
            samplers = [self._samplers[slot] for slot in group_slots]
            # The same requests run for many steps.
            before, sampler = joined.get(group, ([], samplers[0]))
            if len(before) != len(samplers) or any(a is not b for a, b in zip(before, samplers, strict=True)):
                sampler = _join(samplers)
            self._joined[group] = samplers, sampler
            group_rows = [rows[i] for i in members]
            # A group of all rows is the rule where one program asks, and copies would take a tenth of our time.
            is_whole = group_rows == list(range(len(logits)))
            index = torch.tensor(group_rows, device=logits.device)
            scores = logits if is_whole else logits[index]
            step = sampler.step(scores, State(*self._states[:, group_slots]))
            if is_whole:
                logits = step.scores(scores)
            else:
                logits[index] = step.scores(scores)
            self._steps.update((slot, _LastStep(step, row, sampler)) for row, slot in enumerate(group_slots))
        return logits

    def _observe(self, slots: Sequence[int], tokens: Tensor) -> None:
        """Add the drawn tokens to the states, step by step: the tokens of one step together."""
        groups: dict[int, tuple[_LastStep, list[int]]] = {}
        for i, slot in enumerate(slots):
            if slot in self._steps:
                last = self._steps[slot]
                groups.setdefault(id(last.step), (last, []))[1].append(i)
        for (step, _, sampler), members in groups.values():
            group_slots = [slots[i] for i in members]
            within = torch.tensor([self._steps[slot].row for slot in group_slots], device=tokens.device)
            drawn = torch.full_like(step.entropy, -1, dtype=torch.long)
            drawn[within] = tokens[torch.tensor(members, device=tokens.device)].long()
            surprisal = step.surprisal_of(drawn)
            # The result of the other rows of the step is not read, so their states may be zeros.
            state = State(
                *self._states.new_zeros(len(State._fields), len(drawn)).index_copy_(
                    1, within, self._states[:, group_slots]
                )
            )
            after = sampler.observe(state, step, surprisal)
            self._states[:, group_slots] = torch.stack(list(after))[:, within]
            for slot in group_slots:
                del self._steps[slot]


def _join(samplers: Sequence[HumanSampler]) -> HumanSampler:
    """One sampler with a row of parameters for each; their parameters are of one shape."""
    first = samplers[0]
    if all(one is first for one in samplers):
        return first
    rows: dict[str, Any] = {name: torch.cat([getattr(one, name) for one in samplers]) for name in _ROWS}
    return replace(first, **rows)


def _row_of(step: Step, row: int, device: torch.device | str) -> Step:
    """A copy of one row of a step, on `device`."""
    candidates, *others = step

    def of(values: Tensor) -> Tensor:
        return values[row : row + 1].to(device, copy=True)

    return Step(Candidates(*map(of, candidates)), *map(of, others))


def _key(request: Request, prompt: int | Sequence[int], tokens: Sequence[int]) -> int:
    """What the state of a request follows from: its settings, where its prompt ends, and all of its tokens."""
    return hash((request, prompt if isinstance(prompt, int) else tuple(prompt), tuple(tokens)))


class HumanEntropyProcessor(_InterfaceV1, _InterfaceV2):
    """Decode at human uncertainty in vLLM: a logits processor for both of its model runners.

    Args:
        vllm_config (`VllmConfig`): vLLM's configuration.
        device_or_states (`torch.device` or `LogitsProcRequestState`): Device of the logits (V1), or vLLM's record of
            the requests (V2).
        is_pin_memory (`bool`, *optional*): V1 gives it; not used.

    Raises:
        InputError: If the profile that `UGAP_PROFILE` names cannot be read.
        ValueError: If the engine decodes speculatively or in a pipeline.

    Example:
        ```python
        llm = LLM(model=..., logits_processors=["ugap.sampling.engines.vllm:HumanEntropyProcessor"])
        params = SamplingParams(temperature=1.0, extra_args={"ugap_weight": 0.8, "ugap_kind": "story"})
        ```
    """

    # Both of vLLM's loaders check the class, and use what its call returns.
    def __new__(cls, vllm_config: Any, device_or_states: Any, is_pin_memory: bool | None = None) -> Any:
        if is_pin_memory is None:
            return ProcessorV2(vllm_config, device_or_states)
        return ProcessorV1(vllm_config, device_or_states)

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """As `validate_params`, when a request arrives."""
        validate_params(sampling_params)


def _requests(vllm_config: Any, device: torch.device) -> Requests:
    _refuse(vllm_config)
    suppressed = _suppressed(vllm_config.model_config)
    # Without a profile, every request must bring its parameters; one with a wrong name is refused at the start.
    profile = _profile() if os.environ.get(PROFILE_VARIABLE) else None
    return Requests(profile, device, suppressed, vllm_config.scheduler_config.max_num_seqs)


@dataclass
class _Row:
    slot: int
    request: Request
    prompt: list[int] | None  # None for a prompt of embeddings
    output: list[int]  # vLLM's own list of the request's output tokens, which grows
    n_seen: int  # tokens of it at the last step


class ProcessorV1:
    """The processor for model runner V1; arguments and errors as of `HumanEntropyProcessor`.

    The state of a request follows it through the rows of vLLM's batch. With asynchronous scheduling vLLM fills in the
    last token just before sampling if the processor was given as `logits_processors`.
    """

    def __init__(self, vllm_config: Any, device: torch.device):
        self._device = device
        self._requests = _requests(vllm_config, device)
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
        # All leave before any enters: a request may leave one row and enter another.
        for row in (*batch_update.removed, *(row for row, *_ in batch_update.added)):
            self._drop(self._rows.pop(row, None))
        for row, params, prompt, output in batch_update.added:
            request = request_of(params)
            if request is not None:
                used_slots = {other.slot for other in self._rows.values()}
                slot = next(slot for slot in range(len(used_slots) + 1) if slot not in used_slots)
                self._requests.start(slot, request)
                self._rows[row] = _Row(slot, request, prompt, output, self._n_seen(slot, request, prompt, output))
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
            logits (`Tensor` of shape `(B, V)`): May be changed in place.

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
        positions = [len(row.prompt or ()) + row.n_seen for row in self._rows.values()]
        on_device = (torch.tensor(values, device=self._device) for values in (tokens, positions))
        return self._requests.apply(logits, list(self._rows), slots, *on_device)

    def _drop(self, row: _Row | None) -> None:
        if row is None:
            return
        if row.prompt is None or len(row.output) < row.n_seen:
            self._requests.stop(row.slot)
        else:
            self._requests.park(row.slot, _key(row.request, row.prompt, row.output[: row.n_seen]))

    def _n_seen(self, slot: int, request: Request, prompt: list[int] | None, output: list[int]) -> int:
        """Take up the state of a request that comes back, and return how many of its tokens the state holds."""
        if not output or prompt is None:
            return len(output)
        # vLLM drops the token of the last step, or delivers it while the request waits.
        lengths = (len(output), len(output) - 1)
        i = self._requests.resume(slot, [_key(request, prompt, output[:n]) for n in lengths])
        return len(output) if i is None else lengths[i]


@dataclass
class _Slot:
    request: Request
    n_prompt: int
    position: int = -1  # of the token that was fed to the model in the last step; -1 before it


class ProcessorV2:
    """The processor for model runner V2; arguments and errors as of `HumanEntropyProcessor`.

    vLLM keeps a request in one slot, and names the slot of each row of a step. The drawn token is read on the device:
    it is the token that is fed to the model in the next step.
    """

    def __init__(self, vllm_config: Any, req_states: Any):
        self._states = req_states
        self._requests = _requests(vllm_config, req_states.device)
        self._slots: dict[int, _Slot] = {}
        self._resumed: list[int] = []  # slots of requests that come back, with tokens that are not on the device yet

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Put a request into slot `req_idx`; returns whether it takes part."""
        # vLLM does not say when a request leaves: its tokens are on the device until the new ones are written.
        old = self._slots.pop(req_idx, None)
        if old is not None:
            self._requests.park(req_idx, self._key(req_idx, old, old.position + 1))
        request = request_of(sampling_params)
        if request is None:
            return False
        self._requests.start(req_idx, request)
        n_prompt = int(self._states.prompt_len.np[req_idx])
        self._slots[req_idx] = _Slot(request, n_prompt)
        if self._states.prefill_len.np[req_idx] > n_prompt:
            self._resumed.append(req_idx)
        return True

    def apply_staged_writes(self) -> None:
        """Take up the states of the requests that came back, whose tokens vLLM has just written."""
        for index in self._resumed:
            slot, n_tokens = self._slots[index], int(self._states.prefill_len.np[index])
            # vLLM drops the token of the last step, or delivers it while the request waits.
            lengths = (n_tokens, n_tokens - 1)
            i = self._requests.resume(index, [self._key(index, slot, n) for n in lengths])
            if i is not None:
                slot.position = lengths[i] - 1
        self._resumed.clear()

    def apply(self, logits: Tensor, ctx: Any) -> Tensor:
        """Scores of the distributions to sample from, in the rows of the requests that take part.

        Args:
            logits (`Tensor` of shape `(B, V)`): May be changed in place.
            ctx (`LogitsContext`): Slot of each row, the token fed to the model, and the length of its sequence.

        Raises:
            ValueError: If the logits of a row are not finite, or there are several rows of a request.
        """
        slots = ctx.idx_mapping_np.tolist()
        if len(slots) != len(logits):
            raise ValueError("the sampler at human uncertainty needs one token at a time: no speculative decoding")
        lengths = ctx.seq_lens_upper_bound_np.tolist()
        # vLLM throws away what it draws after a part of a prompt.
        n_needed = self._states.prefill_len.np
        rows = [i for i, slot in enumerate(slots) if slot in self._slots and lengths[i] >= n_needed[slot]]
        if not rows:
            return logits
        drawn = []
        for row in rows:
            slot, position = self._slots[slots[row]], lengths[row] - 1
            # A token of the prompt was not drawn; that of a step that is done again was counted.
            drawn.append(position == slot.position + 1 and position >= slot.n_prompt)
            slot.position = position
        on_device = (torch.tensor(values, device=logits.device) for values in (drawn, [lengths[row] for row in rows]))
        was_drawn, positions = on_device
        tokens = torch.where(was_drawn, ctx.input_ids[rows].long(), -1)
        return self._requests.apply(logits, rows, [slots[row] for row in rows], tokens, positions)

    def _key(self, index: int, slot: _Slot, n_tokens: int) -> int:
        return _key(slot.request, slot.n_prompt, self._states.all_token_ids.gpu[index, :n_tokens].tolist())
