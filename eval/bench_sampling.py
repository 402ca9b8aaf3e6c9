"""What drawing costs: tokens per second of `generate()` with our samplers, and their share of a decoding step."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.files import replacing

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LogitsProcessor, PreTrainedModel

    from ugap.sampling import HumanEntropyLogitsProcessor

DESCRIPTION = """\
Time the samplers: tokens per second of generate() against stock sampling, and their share of a decoding step.

examples:
  ugap eval bench_sampling --model gemma-3-270m
  ugap eval bench_sampling --model gemma-3-270m --threads 1 --repeats 9 --output runs/sampling.json

Variants take turns, so that what else the machine does falls on all of them; medians are shown, and every ratio is of
times of one run. stock: do_sample=True at T=1, no warpers. draw: the same distribution, drawn in two levels.
ugap: the sampler at human uncertainty, drawing. ugap-scores: the same, drawn by generate(). greedy: no draw at all."""

PROMPT = "Once upon a time there was a king who"
VARIANTS = ("stock", "draw", "ugap", "ugap-scores", "greedy")


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval bench_sampling`."""

    model: str = option("asset, folder, .gguf file or Hub id", default="gemma-3-270m", group="model", metavar="NAME")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = option(
        "type of the weights", default="float32", group="model"
    )
    device: str | None = option("where the model runs (default: the GPU if there is one)", default=None, group="model")
    batch_size: int = option("sequences of the tokens per second", default=16, group="bench")
    step_batch_size: int = option("sequences of the decoding step", default=8, group="bench")
    new_tokens: int = option("tokens that are generated", default=32, group="bench")
    repeats: int = option("runs of each variant, after one to warm up", default=5, group="bench")
    threads: int | None = option("threads of torch (default: its own choice)", default=None, group="bench")
    output: str | None = option("JSON file to write", default=None, group="output", metavar="FILE")


def run(arguments: Arguments) -> None:
    """Time, print and, where asked, write.

    Raises:
        InputError: The model cannot be used or has no shipped human profile, or a number is less than 1.
    """
    import torch

    from ugap.errors import InputError
    from ugap.models import load_model
    from ugap.sampling import DrawLogitsProcessor, HumanEntropyLogitsProcessor, profile_of
    from ugap.study.study import environment

    for name in ("batch_size", "step_batch_size", "new_tokens", "repeats"):
        if getattr(arguments, name) < 1:
            raise InputError(f"{name}: expected a positive number, got {getattr(arguments, name)}")
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
    profile = profile_of(model)
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
    speed = tokens_per_second(model, ids.repeat(arguments.batch_size, 1), makers, arguments)
    step = step_costs(model, ids.repeat(arguments.step_batch_size, 1), human, arguments.repeats * 4)
    record = {
        "settings": {**asdict(arguments), "environment": environment()},
        "tokens_per_second": speed,
        "step_seconds": step,
    }
    print(
        f"{arguments.model}, {torch.get_num_threads()} threads, "
        f"{arguments.batch_size} sequences of {arguments.new_tokens} tokens\n"
    )
    print(f"{'variant':<12} {'tokens/s':>9} {'of stock':>9}")
    for name, value in speed.items():
        print(f"{name:<12} {value:>9.1f} {value / speed['stock']:>8.2f}x")
    drawing = "softmax and multinomial"
    whole = step["model"] + step[drawing]
    print(f"\none step of {arguments.step_batch_size} sequences: the model {1e3 * step['model']:.1f} ms")
    for name in ("ugap", "ugap-scores", drawing):
        shares = (
            f"{100 * step[name] / step['model']:.1f}% of that, {100 * step[name] / whole:.1f}% of it with {drawing}"
        )
        print(f"{name:<24} {1e3 * step[name]:>6.1f} ms: {shares}")
    if arguments.output is not None:
        with replacing(Path(arguments.output)) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def tokens_per_second(
    model: "PreTrainedModel",
    ids: "Tensor",
    makers: "dict[str, Callable[[], tuple[bool, list[LogitsProcessor]]]]",
    arguments: Arguments,
) -> dict[str, float]:
    """Median tokens per second of `generate()` by variant."""
    from transformers import GenerationConfig, LogitsProcessorList

    def once(name: str) -> float:
        sample, processors = makers[name]()
        config = GenerationConfig(
            do_sample=sample,
            top_k=0 if sample else None,
            max_new_tokens=arguments.new_tokens,
            min_new_tokens=arguments.new_tokens,
            eos_token_id=model.generation_config.eos_token_id,
            pad_token_id=0,
        )
        begin = time.perf_counter()
        model.generate(ids, generation_config=config, logits_processor=LogitsProcessorList(processors))
        return len(ids) * arguments.new_tokens / (time.perf_counter() - begin)

    return in_turns({name: partial(once, name) for name in makers}, arguments.repeats)


def step_costs(
    model: "PreTrainedModel", ids: "Tensor", human: "Callable[[bool], HumanEntropyLogitsProcessor]", repeats: int
) -> dict[str, float]:
    """Median seconds of a decoding step of the model, and of what each way to draw does with its logits."""
    import torch

    def timed(work: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        work()
        if ids.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    with torch.no_grad():
        start = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        logits, token = start.logits[:, -1].float(), start.logits[:, -1:].argmax(-1)
        cache = start.past_key_values

        def model_step() -> None:
            model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.crop(-1)

        def first_step(processor: "HumanEntropyLogitsProcessor") -> float:
            # A fresh prompt each time: a step of the sampler without the memory of others.
            processor.reset()
            return timed(lambda: processor(ids, logits))

        return in_turns(
            {
                "model": lambda: timed(model_step),
                "ugap": partial(first_step, human(True)),
                "ugap-scores": partial(first_step, human(False)),
                "softmax and multinomial": lambda: timed(lambda: torch.multinomial(logits.softmax(-1), 1)),
            },
            repeats,
        )


def in_turns(work: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of what each work returns, the works taking turns, after one turn to warm up."""
    values: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, once in work.items():
            value = once()
            if turn:
                values[name].append(value)
    return {name: statistics.median(found) for name, found in values.items()}


if __name__ == "__main__":
    sys.exit(main(["eval", "bench_sampling", *sys.argv[1:]]))
