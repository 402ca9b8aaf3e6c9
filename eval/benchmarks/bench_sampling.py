"""What drawing costs: tokens per second of `generate()` with our samplers, and their share of a decoding step."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.programs import load_program
from ugap.errors import InputError
from ugap.files import write_json

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LogitsProcessor, PreTrainedModel

    from eval.benchmarks import bench_utils
    from ugap.sampling import HumanEntropyLogitsProcessor
else:
    bench_utils = load_program(Path(__file__).with_name("bench_utils.py"))

DESCRIPTION = """\
Time the samplers: tokens per second of generate() against stock sampling, and their share of a decoding step.

examples:
  ugap eval bench_sampling --model gemma-3-270m
  ugap eval bench_sampling --model gemma-3-270m --threads 1 --repeats 9 --output runs/sampling.json
  ugap eval bench_sampling --model runs/model --profile runs/profile.json --dtype bfloat16 --step_batch_sizes 1 8 64

Variants take turns, so that what else the machine does falls on all of them; medians are shown, and every ratio is of
times of one run. stock: do_sample=True at T=1, no warpers. draw: the same distribution, drawn in two levels.
ugap: the sampler at human uncertainty, drawing. ugap-scores: the same, drawn by generate(). greedy: no draw at all.

The step is one forward pass with a cache, and then one way to deal with its logits. argmax is that of greedy decoding.
ugap and ugap-scores begin with a prompt. In a later step, the usual one, they also follow the sequences."""

PROMPT = "Once upon a time there was a king who"


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval bench_sampling`."""

    model: str = option("asset, folder, .gguf file or Hub id", default="gemma-3-270m", group="model", metavar="NAME")
    profile: str | None = option(
        "human profile of the model (default: the shipped one)", default=None, group="model", metavar="FILE"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "type of the weights", default="float32", group="model"
    )
    device: str | None = option("where the model runs (default: the GPU if there is one)", default=None, group="model")
    batch_size: int = option("sequences of the tokens per second", default=16, group="bench")
    step_batch_sizes: list[int] = option("sequences of the decoding step", default=[8], group="bench")
    new_tokens: int = option("tokens that are generated", default=32, group="bench")
    repeats: int = option("runs of each variant, after one to warm up", default=5, group="bench")
    threads: int | None = option("threads of torch (default: its own choice)", default=None, group="bench")
    output: str | None = option("JSON file to write", default=None, group="output", metavar="FILE")

    def check(self) -> None:
        """Refuse numbers that fit nothing."""
        for name in ("batch_size", "step_batch_sizes", "new_tokens", "repeats", "threads"):
            given = getattr(self, name)
            for value in given if isinstance(given, list) else [given]:
                if value is not None and value < 1:
                    raise InputError(f"{name}: expected a positive number, got {value}")


def run(arguments: Arguments) -> None:
    """Time, print and, where asked, write.

    Raises:
        InputError: The model cannot be used or has no human profile, the profile is another model's, or a number is
            less than 1.
    """
    import torch

    from ugap.environment import environment
    from ugap.models import load_model
    from ugap.sampling import DrawLogitsProcessor, HumanEntropyLogitsProcessor, profile_of

    arguments.check()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
    profile = profile_of(model, arguments.profile)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]], device=model.device)

    def human(draw: bool) -> HumanEntropyLogitsProcessor:
        return HumanEntropyLogitsProcessor(profile, "creative", draw=draw)

    makers: dict[str, Callable[[], tuple[bool, list[LogitsProcessor]]]] = {
        "stock": lambda: (True, []),
        "draw": lambda: (False, [DrawLogitsProcessor()]),
        "ugap": lambda: (False, [human(draw=True)]),
        "ugap-scores": lambda: (True, [human(draw=False)]),
        "greedy": lambda: (False, []),
    }
    torch.manual_seed(0)
    bench_utils.progress(f"{arguments.batch_size} sequences of {arguments.new_tokens} tokens")
    speed = tokens_per_second(model, ids.repeat(arguments.batch_size, 1), makers, arguments)
    settings = {**asdict(arguments), "environment": environment()}
    record: dict[str, Any] = {"settings": settings, "tokens_per_second": speed, "step_seconds": {}}
    where = torch.cuda.get_device_name() if ids.is_cuda else f"{torch.get_num_threads()} threads"
    print(
        f"{arguments.model}, {arguments.dtype}, {where}: "
        f"{arguments.batch_size} sequences of {arguments.new_tokens} tokens\n"
    )
    print(speed_table(speed), flush=True)
    for size in arguments.step_batch_sizes:
        bench_utils.progress(f"one step of {size} sequences")
        step = step_costs(model, ids.repeat(size, 1), human, arguments.repeats * 4)
        record["step_seconds"][size] = step
        print(f"One step of {size} sequences:\n\n{step_table(step)}", flush=True)
    if arguments.output is not None:
        write_json(Path(arguments.output), record)


def speed_table(speed: Mapping[str, float]) -> str:
    """Tokens per second in Markdown."""
    rows = [f"| {name} | {value:,.1f} | {value / speed['stock']:.2f} |\n" for name, value in speed.items()]
    return "| variant | tokens/s | of stock |\n|---|---:|---:|\n" + "".join(rows)


def step_table(step: Mapping[str, float]) -> str:
    """What a step is made of, in Markdown."""
    rows = [f"| {name} | {1e3 * value:.3f} | {100 * value / step['model']:.1f}% |\n" for name, value in step.items()]
    return "| work | ms | of the model's step |\n|---|---:|---:|\n" + "".join(rows)


def tokens_per_second(
    model: "PreTrainedModel",
    ids: "Tensor",
    makers: "dict[str, Callable[[], tuple[bool, list[LogitsProcessor]]]]",
    arguments: Arguments,
) -> dict[str, float]:
    """Median tokens per second of `generate()` by variant."""
    from torch import ones_like
    from transformers import GenerationConfig, LogitsProcessorList

    def once(name: str) -> float:
        sample, processors = makers[name]()
        config = GenerationConfig(
            do_sample=sample,
            top_k=0 if sample else None,
            max_new_tokens=arguments.new_tokens,
            min_new_tokens=arguments.new_tokens,  # an early end would count tokens that nobody made
            eos_token_id=model.generation_config.eos_token_id,
            pad_token_id=0,
        )
        work = partial(
            model.generate,
            ids,
            attention_mask=ones_like(ids),
            generation_config=config,
            logits_processor=LogitsProcessorList(processors),
        )
        return len(ids) * arguments.new_tokens / timed(work, ids.device.type)

    return in_turns({name: partial(once, name) for name in makers}, arguments.repeats)


def step_costs(
    model: "PreTrainedModel", ids: "Tensor", human: "Callable[[bool], HumanEntropyLogitsProcessor]", repeats: int
) -> dict[str, float]:
    """Median seconds of a decoding step of the model, and of what each way to draw does with its logits."""
    import torch

    from ugap.sampling import DrawLogitsProcessor

    device = ids.device.type

    def step(token: "Tensor") -> "Tensor":
        logits = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        cache.crop(-1)  # every step starts from the same length
        return logits

    def first_step(processor: "HumanEntropyLogitsProcessor") -> float:
        # A fresh prompt each time: a step of the sampler without the memory of others.
        processor.reset()
        return timed(lambda: processor(ids, logits), device)

    def later_step(processor: "HumanEntropyLogitsProcessor") -> float:
        # The step after a fresh prompt, each time: what is remembered of the sequences does not grow.
        processor.reset()
        longer = torch.cat([ids, processor(ids, logits).argmax(-1, keepdim=True)], dim=1)
        return timed(lambda: processor(longer, logits), device)

    with torch.no_grad():
        start = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        cache = start.past_key_values
        # The solver takes as long as its slowest row. So each sequence goes on with a token of its own.
        token = torch.multinomial(start.logits[:, -1].float().softmax(-1), 1)
        logits = step(token).float()
        draw = DrawLogitsProcessor()
        drawing, scoring = human(True), human(False)
        return in_turns(
            {
                "model": lambda: timed(lambda: step(token), device),
                "argmax": lambda: timed(lambda: logits.argmax(-1), device),
                "draw": lambda: timed(lambda: draw(ids, logits), device),
                "ugap": partial(first_step, drawing),
                "ugap, later step": partial(later_step, drawing),
                "ugap-scores": partial(first_step, scoring),
                "ugap-scores, later step": partial(later_step, scoring),
                "softmax and multinomial": lambda: timed(lambda: torch.multinomial(logits.softmax(-1), 1), device),
            },
            repeats,
        )


def timed(work: "Callable[[], Any]", device: str) -> float:
    """Seconds of a call, until the device has done it, and of nothing that came before."""
    bench_utils.synchronize(device)
    begin = time.perf_counter()
    work()
    bench_utils.synchronize(device)
    return time.perf_counter() - begin


def in_turns(work: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of what each work returns, the works taking turns, after one turn to warm up."""
    values: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, once in work.items():
            value = once()
            if turn:  # the first turn warms up
                values[name].append(value)
    return {name: statistics.median(seconds) for name, seconds in values.items()}


if __name__ == "__main__":
    sys.exit(main(["eval", "bench_sampling", *sys.argv[1:]]))
