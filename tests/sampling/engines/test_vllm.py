"""The adapters for vLLM: driven as its model runners drive them, against the sampler alone, request by request."""

import enum
import json
import random
import re
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from tests.robustness.mutation import mutated_json
from ugap.errors import InputError
from ugap.sampling import HumanSampler, human_params
from ugap.sampling.engines.vllm import (
    PROFILE_VARIABLE,
    HumanEntropyProcessor,
    ProcessorV1,
    ProcessorV2,
    Request,
    Requests,
    request_of,
    validate_params,
)
from ugap.sampling.portable.human import State

VOCABULARY = 400
CONFIG = SimpleNamespace(
    speculative_config=None,
    parallel_config=SimpleNamespace(pipeline_parallel_size=1),
    scheduler_config=SimpleNamespace(max_num_seqs=16),
    model_config=SimpleNamespace(
        skip_tokenizer_init=True,
        hf_config=LlamaConfig(bos_token_id=None, eos_token_id=None),
        get_vocab_size=lambda: VOCABULARY,
    ),
)
REQUESTS: list[dict[str, Any] | None] = [
    {"ugap_mode": "creative"},
    {"ugap_weight": 0.6, "ugap_kind": "functional"},
    {"ugap_weight": 0.0},
    {"ugap_mode": "creative"},
    {"another": 1},
    None,
    {"ugap_params": 1.0, "ugap_weight": 0.6},
    {"ugap_params": 1.5, "ugap_weight": 0.6},
]


class Direction(enum.Enum):
    UNIDIRECTIONAL = enum.auto()
    SWAP = enum.auto()


class Update(NamedTuple):
    batch_size: int
    removed: list
    added: list
    moved: list


@dataclass
class Params:
    """The fields of vLLM's `SamplingParams` that matter here, with its defaults."""

    extra_args: dict | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] | None = None
    all_stop_token_ids: set[int] = field(default_factory=set)
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False


@dataclass
class Sequence:
    """A request, and what the sampler alone would make of it."""

    params: Params
    sampler: HumanSampler | None
    output: list[int] = field(default_factory=list)
    state: State = field(default_factory=lambda: State.start([3]))

    def check(self, logits: torch.Tensor, processed: torch.Tensor) -> int:
        """Compare a row `(V,)`, draw a token from it, and return its id."""
        if self.sampler is None:
            torch.testing.assert_close(processed, logits, rtol=0, atol=0)
            return int(processed.softmax(-1).multinomial(1))
        step = self.sampler.step(logits.unsqueeze(0), self.state)
        torch.testing.assert_close(processed, step.scores(logits.unsqueeze(0))[0], rtol=1e-3, atol=1e-3)
        assert processed.isfinite().any()
        token = processed.softmax(-1).multinomial(1)
        self.state = self.sampler.observe(self.state, step, step.surprisal_of(token))
        return int(token)


@pytest.fixture
def make(profile, profile_file, monkeypatch):
    """`make(number)`: one of the kinds of requests."""
    monkeypatch.setenv(PROFILE_VARIABLE, str(profile_file))

    def make(number: int) -> Sequence:
        extra = REQUESTS[number % len(REQUESTS)]
        human = human_params(profile, (extra or {}).get("ugap_kind", "auto"))
        if extra is not None and "ugap_params" in extra:
            human["gain"] = [extra["ugap_params"] * gain for gain in human["gain"]]
            extra = {**extra, "ugap_params": json.dumps(human)}
        params = Params(extra)
        request = request_of(params)
        sampler = request and HumanSampler.of(human, request.weight)
        return Sequence(params, sampler)

    return make


def logits_of(rows: int, rng: random.Random) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(10**6))
    scale = torch.empty(rows, 1).uniform_(0.5, 5.0, generator=generator)
    return torch.randn(rows, VOCABULARY, generator=generator) * scale


class BatchV1:
    """vLLM's persistent batch: new requests fill holes, the last ones move down, rows are swapped."""

    def __init__(self, processor: ProcessorV1, update=Update, direction: Any = Direction):
        self.processor, self.update, self.direction = processor, update, direction
        self.rows: list[Sequence] = []

    def change(self, leave: list[int], enter: list[Sequence], swap: tuple[int, int] | None = None) -> None:
        holes = sorted(leave)
        rows: list[Sequence | None] = [None if i in leave else one for i, one in enumerate(self.rows)]
        added, moved = [], []
        for one in enter:
            row = holes.pop(0) if holes else len(rows)
            rows[row : row + 1] = [one]
            added.append((row, one.params, [1, 2, 3], one.output))
        removed = sorted(holes, reverse=True)
        while None in rows:
            last = rows.pop()
            if last is not None:
                hole = rows.index(None)
                rows[hole] = last
                moved.append((len(rows), hole, self.direction.UNIDIRECTIONAL))
        self.rows = [one for one in rows if one is not None]
        if swap is not None:
            low, high = swap
            self.rows[low], self.rows[high] = self.rows[high], self.rows[low]
            moved.append((low, high, self.direction.SWAP))
        changed = removed or added or moved
        self.processor.update_state(self.update(len(self.rows), removed, added, moved) if changed else None)

    def step(self, logits: torch.Tensor) -> None:
        processed = self.processor.apply(logits.clone())
        for one, row, new in zip(self.rows, logits, processed, strict=True):
            one.output.append(one.check(row, new))


def drive_v1(processor, make, **interface) -> None:
    rng = random.Random(0)
    torch.manual_seed(0)
    batch = BatchV1(processor, **interface)
    batch.change([], [make(i) for i in range(6)])
    for number in range(6, 90):
        batch.step(logits_of(len(batch.rows), rng))
        leave = rng.sample(range(len(batch.rows)), rng.choice([0, 0, 1, 2])) if len(batch.rows) > 3 else []
        enter = [make(number + i) for i in range(rng.choice([0, 0, 1, 2]))]
        size = len(batch.rows) - len(leave) + len(enter)
        low, high = rng.sample(range(size), 2)
        batch.change(leave, enter, (low, high) if rng.random() < 0.4 else None)


class TestV1:
    def test_every_request_is_sampled_as_if_alone(self, make):
        drive_v1(HumanEntropyProcessor(CONFIG, torch.device("cpu"), False), make)

    def test_a_row_that_is_replaced(self, make):
        """A new request, or a moved one, may take the row of another that was not removed."""
        processor = HumanEntropyProcessor(CONFIG, torch.device("cpu"), False)
        first, second, third = make(0), make(1), make(3)
        processor.update_state(Update(2, [], [(0, first.params, None, []), (1, second.params, None, [])], []))
        processor.update_state(Update(2, [], [(1, third.params, None, third.output)], []))
        processor.update_state(Update(1, [], [], [(1, 0, Direction.UNIDIRECTIONAL)]))
        batch = BatchV1(processor)
        batch.rows = [third]
        for step in range(4):
            batch.step(logits_of(1, random.Random(step)))
        assert len(processor._requests._samplers) == 1

    def test_a_swap_with_a_request_that_takes_no_part(self, make):
        batch = BatchV1(HumanEntropyProcessor(CONFIG, torch.device("cpu"), False))
        batch.change([], [make(0), make(5)])
        for step in range(4):
            batch.step(logits_of(2, random.Random(step)))
            batch.change([], [], (0, 1))

    def test_a_step_that_is_done_again(self, make):
        """The parts of a long prompt are sampled too, and their tokens thrown away."""
        processor = HumanEntropyProcessor(CONFIG, torch.device("cpu"), False)
        batch = BatchV1(processor)
        batch.change([], [make(0)])
        thrown = logits_of(1, random.Random(9))
        assert not torch.equal(processor.apply(thrown.clone()), thrown)
        for step in range(3):
            batch.step(logits_of(1, random.Random(step)))
        assert processor._requests._states[1].tolist() == [2]

    @pytest.mark.parametrize("copied", [False, True])
    @pytest.mark.parametrize("n_steps", [1, 4])
    def test_a_request_that_comes_back(self, make, copied, n_steps):
        """vLLM takes a preempted request out of the batch, others go on, and it returns with all of its tokens."""
        torch.manual_seed(0)
        batch = BatchV1(HumanEntropyProcessor(CONFIG, torch.device("cpu"), False))
        batch.change([], [make(i) for i in (0, 3, 1)])  # the first two have the same settings
        for step in range(n_steps):
            batch.step(logits_of(3, random.Random(step)))
        gone = batch.rows[0]
        batch.change([0], [])
        for step in range(3):
            batch.step(logits_of(2, random.Random(step)))
        if copied:  # with asynchronous scheduling it gets another list
            gone.output = list(gone.output)
        batch.change([0], [gone])  # into the row of another that leaves
        thrown = logits_of(2, random.Random(9))
        batch.processor.apply(thrown)  # a part of its tokens
        for step in range(3):
            batch.step(logits_of(2, random.Random(10 + step)))

    def test_a_request_that_comes_back_in_the_same_step(self, make):
        """vLLM resets the prefix cache, which drops the tokens of the step, and fills the rows in another order."""
        batch = BatchV1(HumanEntropyProcessor(CONFIG, torch.device("cpu"), False))
        one, other = make(0), make(1)
        batch.change([], [one, other])
        for step in range(3):
            batch.step(logits_of(2, random.Random(step)))
        # Before the last step.
        kept = {id(row): (row.state, list(row.output)) for row in batch.rows}
        batch.step(logits_of(2, random.Random(3)))
        for row in batch.rows:
            row.state, row.output = kept[id(row)]
        batch.rows = [other, one]
        added = [(row, value.params, [1, 2, 3], value.output) for row, value in enumerate(batch.rows)]
        batch.processor.update_state(Update(2, [], added, []))
        for step in range(3):
            batch.step(logits_of(2, random.Random(step)))

    def test_a_request_whose_state_is_forgotten(self, make, caplog):
        """It starts again, with tokens that nothing is known of."""
        batch = BatchV1(HumanEntropyProcessor(CONFIG, torch.device("cpu"), False))
        one = make(0)
        one.output += [4, 8, 15]
        batch.change([], [one])
        for step in range(3):
            batch.step(logits_of(1, random.Random(step)))
        assert "starts again" in caplog.text

    def test_as_many_states_are_kept_as_requests_can_run(self, make):
        batch = BatchV1(HumanEntropyProcessor(CONFIG, torch.device("cpu"), False))
        for number in range(40):
            batch.change([], [make(0)])
            batch.step(logits_of(1, random.Random(number)))
            batch.step(logits_of(1, random.Random(number)))
            batch.change([0], [])
        assert len(batch.processor._requests._parked) == CONFIG.scheduler_config.max_num_seqs

    @pytest.mark.parametrize("tokens", [[-1], [5, 6]])
    def test_tokens_that_cannot_be_seen(self, make, tokens):
        processor = HumanEntropyProcessor(CONFIG, torch.device("cpu"), False)
        batch = BatchV1(processor)
        batch.change([], [make(0)])
        batch.step(logits_of(1, random.Random(0)))
        batch.rows[0].output[:] = tokens if len(tokens) == 1 else [*batch.rows[0].output, *tokens]
        with pytest.raises(ValueError, match="needs to see every token"):
            processor.apply(logits_of(1, random.Random(1)))

    def test_it_may_change_what_is_most_probable(self, make):
        assert HumanEntropyProcessor(CONFIG, torch.device("cpu"), False).is_argmax_invariant() is False

    def test_nothing_to_do(self, make):
        processor = HumanEntropyProcessor(CONFIG, torch.device("cpu"), False)
        processor.update_state(None)
        logits = logits_of(2, random.Random(0))
        assert torch.equal(processor.apply(logits.clone()), logits)


class BatchV2:
    """Requests in slots; each step runs some of them, in any order."""

    def __init__(self, slots: int = 8):
        self.tokens = torch.zeros(slots, 200, dtype=torch.int32)
        self.prompt, self.prefill = (np.zeros(slots, dtype=np.int32) for _ in range(2))
        self.states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=slots,
            prompt_len=SimpleNamespace(np=self.prompt),
            prefill_len=SimpleNamespace(np=self.prefill),
            all_token_ids=SimpleNamespace(gpu=self.tokens),
        )
        self.slots: dict[int, Sequence] = {}
        self.fed: dict[int, list[int]] = {}

    def start(self, processor: ProcessorV2, slot: int, one: Sequence, n_prompt: int = 3) -> None:
        """Put a request into a slot, with its tokens so far if it comes back."""
        self.slots[slot], self.fed[slot] = one, [*range(1, n_prompt + 1), *one.output]
        self.prompt[slot], self.prefill[slot] = n_prompt, len(self.fed[slot])
        assert processor.add_request(slot, one.params) is (one.sampler is not None)
        # vLLM writes the tokens to the device after it has added all requests of a step.
        self.tokens[slot, : len(self.fed[slot])] = torch.tensor(self.fed[slot], dtype=torch.int32)
        processor.apply_staged_writes()

    def step(self, processor: ProcessorV2, slots: list[int], logits: torch.Tensor) -> None:
        processed = processor.apply(logits.clone(), self.context(slots))
        for slot, row, new in zip(slots, logits, processed, strict=True):
            token = self.slots[slot].check(row, new)
            self.slots[slot].output.append(token)
            self.tokens[slot, len(self.fed[slot])] = token
            self.fed[slot].append(token)

    def context(self, slots: list[int], positions: list[int] | None = None) -> SimpleNamespace:
        last = positions or [len(self.fed[slot]) - 1 for slot in slots]
        return SimpleNamespace(
            idx_mapping_np=np.array(slots, dtype=np.int32),
            idx_mapping=torch.tensor(slots, dtype=torch.int32),
            expanded_idx_mapping=torch.tensor(slots, dtype=torch.int32),
            input_ids=torch.tensor([self.fed[s][p] for s, p in zip(slots, last, strict=True)], dtype=torch.int32),
            seq_lens_upper_bound_np=np.array(last, dtype=np.int32) + 1,
        )


class TestV2:
    def test_every_request_is_sampled_as_if_alone(self, make):
        rng = random.Random(1)
        torch.manual_seed(0)
        batch = BatchV2()
        processor = HumanEntropyProcessor(CONFIG, batch.states)
        for slot in range(6):
            batch.start(processor, slot, make(slot))
        for number in range(6, 90):
            slots = rng.sample(sorted(batch.slots), rng.randint(1, len(batch.slots)))
            batch.step(processor, slots, logits_of(len(slots), rng))
            if rng.random() < 0.4:
                batch.start(processor, rng.randrange(8), make(number))

    def test_parts_of_a_prompt_were_not_drawn(self, make):
        batch = BatchV2()
        processor = HumanEntropyProcessor(CONFIG, batch.states)
        batch.start(processor, 2, make(0))
        for position in range(2):
            processor.apply(logits_of(1, random.Random(position)), batch.context([2], [position]))
        for step in range(3):
            batch.step(processor, [2], logits_of(1, random.Random(step)))
        assert processor._requests._states[1, 2] == 2

    def test_a_step_that_is_done_again(self, make):
        """The token that was fed is counted once."""
        batch = BatchV2()
        processor = HumanEntropyProcessor(CONFIG, batch.states)
        batch.start(processor, 2, make(0))
        for step in range(3):
            logits = logits_of(1, random.Random(step))
            processor.apply(logits.clone(), batch.context([2]))
            batch.step(processor, [2], logits)
        assert processor._requests._states[1, 2] == 2

    @pytest.mark.parametrize("n_dropped", [0, 1])
    @pytest.mark.parametrize("back", [0, 5])
    def test_a_request_that_comes_back(self, make, back, n_dropped):
        """Another takes its slot; then it returns with all of its tokens, or without that of the last step."""
        torch.manual_seed(0)
        batch = BatchV2()
        processor = HumanEntropyProcessor(CONFIG, batch.states)
        batch.start(processor, 0, make(0))
        batch.start(processor, 1, make(3))
        gone = batch.slots[0]
        for step in range(4):
            batch.step(processor, [1, 0], logits_of(2, random.Random(step)))
            if step == 2:
                kept = gone.state, list(gone.output)
        if n_dropped:
            gone.state, gone.output = kept
        batch.start(processor, 0, make(1), n_prompt=5)
        for step in range(3):
            batch.step(processor, [0, 1], logits_of(2, random.Random(step)))
        batch.start(processor, back, gone)
        processor.apply(logits_of(1, random.Random(0)), batch.context([back], [2]))  # a part of its tokens
        for step in range(3):
            batch.step(processor, [back, 1], logits_of(2, random.Random(step)))

    def test_several_rows_of_a_request(self, make):
        batch = BatchV2()
        processor = HumanEntropyProcessor(CONFIG, batch.states)
        batch.start(processor, 0, make(0))
        with pytest.raises(ValueError, match="no speculative decoding"):
            processor.apply(logits_of(3, random.Random(0)), batch.context([0]))


class TestRequests:
    @pytest.mark.parametrize(
        ("extra", "request_"),
        [
            (None, None),
            ({"target_token": 3}, None),
            ({"ugap_kind": "functional"}, Request("functional", 1.0)),
            ({"ugap_mode": "balanced", "x": 1}, Request("auto", 0.5, own=True)),
            ({"ugap_weight": 1}, Request("auto", 1.0, own=True)),
            ({"ugap_mode": None}, Request("auto", 1.0)),
            ({"ugap_kind": None, "ugap_weight": 0.5}, Request("auto", 0.5, own=True)),
            ({"ugap_kind": None, "ugap_mode": None, "ugap_weight": None}, Request("auto", 1.0)),
        ],
    )
    def test_what_they_ask_for(self, make, extra, request_):
        assert request_of(Params(extra)) == request_
        HumanEntropyProcessor.validate_params(Params(extra))

    @pytest.mark.parametrize(
        ("params", "message"),
        [
            (Params({"ugap_domian": "creative"}), "unknown argument 'ugap_domian'"),
            (Params({"ugap_mode": "wild"}), "unknown mode"),
            (Params({"ugap_weight": "0.5"}), "weight: expected a number"),
            (Params({"ugap_weight": 2}), "weight: expected a number"),
            (Params({"ugap_mode": "creative", "ugap_weight": 1.0}), "not both"),
            (Params({"ugap_kind": "sermons"}), "sermons"),
            (Params({"ugap_mode": "creative"}, temperature=0.7), "needs temperature=1"),
            (Params({"ugap_mode": "creative"}, top_p=0.9), "needs top_p=1"),
            (Params({"ugap_mode": "creative"}, top_k=40), "needs top_k=0"),
            (Params({"ugap_mode": "creative"}, min_p=0.05), "needs min_p=0"),
            (Params({"ugap_mode": "creative"}, repetition_penalty=1.1), "needs repetition_penalty=1"),
            (Params({"ugap_mode": "creative"}, presence_penalty=0.5), "needs presence_penalty=0"),
            (Params({"ugap_mode": "creative"}, logit_bias={5: -100.0}), "takes none"),
        ],
    )
    def test_what_is_refused(self, make, params, message):
        with pytest.raises(ValueError, match=message):
            validate_params(params)

    @pytest.mark.parametrize("key", ["ugap_kind", "ugap_mode", "ugap_weight"])
    @pytest.mark.parametrize("value", [[], ["creative"], {"a": 1}, {}, True])
    def test_values_of_another_type(self, make, key, value):
        """As ValueError: of any other, vLLM makes an answer 500 without a message."""
        with pytest.raises(ValueError, match=rf"^{key.removeprefix('ugap_')}: expected|^{key}: expected") as caught:
            validate_params(Params({key: value}))
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("text", ["", "{}", "[1]", "null", '{"h": [0.0], "g": ["a"]}', "[" * 100_000])
    def test_parameters_that_are_none(self, text):
        with pytest.raises(ValueError, match=r"^ugap_params: not the JSON text of human_params: "):
            validate_params(Params({"ugap_params": text}))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"h": [], "g": []}, "the lists are not of lengths that belong together"),
            ({"gain": []}, "the lists are not of lengths that belong together"),
            ({"bands": [9, 4]}, "bands falls"),
            ({"h": [10**400]}, "h has a number outside"),
            ({"g": [float("nan")]}, "g has a number outside"),
            ({"mean_surprisal": [0.0]}, "mean_surprisal has a number that is not above 0"),
            ({"ranks": [1.5]}, "ranks is no list of numbers"),
            ({"cdf": 1.0}, "cdf is no list of numbers"),
            ({"more": []}, "the keys are not those"),
        ],
    )
    def test_parameters_that_would_fail_in_a_step_of_all_requests(self, change, message):
        params = {**human_params("smollm2-135m-instruct", "story"), **change}
        with pytest.raises(ValueError, match=re.escape(message)):
            validate_params(Params({"ugap_params": json.dumps(params)}))

    def test_damaged_parameters_are_refused_or_do_no_harm(self):
        """Beside a good request, as the two are decoded together."""
        good = json.dumps(human_params("smollm2-135m-instruct", "story"))
        refused = 0
        for seed in range(200):
            text = json.dumps(mutated_json(json.loads(good), random.Random(seed)))
            try:
                validate_params(Params({"ugap_params": text}))
            except ValueError:
                refused += 1
                continue
            requests = Requests(None, "cpu")
            for slot, one in enumerate((text, good)):
                request = request_of(Params({"ugap_params": one}))
                assert request is not None
                requests.start(slot, request)
            for step in range(3):
                logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(step))
                out = requests.apply(logits, [0, 1], [0, 1], torch.tensor([1, 2]), torch.tensor([5 + step] * 2))
                assert not out.isnan().any()
                assert out.isfinite().any(1).all()
        assert 100 < refused < 200

    def test_parameters_and_a_kind(self, make):
        with pytest.raises(ValueError, match=r"^give ugap_kind or ugap_params, not both$"):
            validate_params(Params({"ugap_params": "{}", "ugap_kind": "creative"}))

    def test_what_ends_the_text_of_a_request(self, make):
        params = Params({"ugap_mode": "creative"}, all_stop_token_ids={5, 7})
        assert request_of(params) == Request("auto", 1.0, frozenset({5, 7}))
        # vLLM counts the end token of the tokenizer, which then ends nothing, among all of them.
        params = Params({"ugap_mode": "creative"}, all_stop_token_ids={5, 7}, stop_token_ids=[7], ignore_eos=True)
        assert request_of(params) == Request("auto", 1.0, frozenset({7}))

    def test_others_may_do_as_they_like(self, make):
        validate_params(Params({"another": 1}, temperature=0.2, top_k=5, min_p=0.1))
        validate_params(Params({"ugap_mode": "creative"}, top_k=-1))

    def test_the_profile_must_be_named(self, make, monkeypatch):
        monkeypatch.delenv(PROFILE_VARIABLE)
        with pytest.raises(InputError, match=r"set UGAP_PROFILE .* or send ugap_params"):
            validate_params(Params({"ugap_mode": "creative"}))
        monkeypatch.setenv(PROFILE_VARIABLE, "no such profile")
        with pytest.raises(InputError, match="neither a file nor a shipped profile"):
            HumanEntropyProcessor(CONFIG, BatchV2().states)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"speculative_config": object()}, "no speculative decoding"),
            ({"parallel_config": SimpleNamespace(pipeline_parallel_size=2)}, "no pipeline parallelism"),
        ],
    )
    def test_engines_that_are_refused(self, make, changes, message):
        config = SimpleNamespace(**{**vars(CONFIG), **changes})
        with pytest.raises(ValueError, match=message):
            HumanEntropyProcessor(config, torch.device("cpu"), False)
        with pytest.raises(ValueError, match=message):
            HumanEntropyProcessor(config, BatchV2().states)
