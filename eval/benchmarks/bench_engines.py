"""What vLLM is worth as the engine: tokens per second beside transformers, with our sampler and without."""

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.programs import load_program
from ugap.errors import InputError
from ugap.files import write_json
from ugap.study.options import ENGINE_ARGS_HELP, Dtype

if TYPE_CHECKING:
    from eval.benchmarks import bench_sampling
    from ugap.study.generation import Engine
else:
    bench_sampling = load_program(Path(__file__).with_name("bench_sampling.py"))

DESCRIPTION = """\
Time the engines that write for a study: tokens per second of vLLM and of transformers, by decoding.

examples:
  ugap eval bench_engines --model smollm2-135m-instruct
  ugap eval bench_engines --model org/model --batch_sizes 16 64 --engine_args tensor_parallel_size=4

Engines and decodings take turns. Medians are shown. Both engines have the weights in memory at the same time."""

ENGINES = ("transformers", "vllm")


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval bench_engines`."""

    model: str = option("asset, folder, .gguf file or Hub id", default="smollm2-135m-instruct", metavar="NAME")
    dtype: Dtype = option("type of the weights", default="float32")
    device: str | None = option("where transformers runs (default: the GPU if there is one)", default=None)
    decoding: list[str] = option("decodings", default=["ancestral", "ugap-creative"], metavar="NAME")
    batch_sizes: list[int] = option("sequences that are written together", default=[16])
    new_tokens: int = option("longest text in tokens", default=64)
    repeats: int = option("runs of each variant, after one to warm up", default=5)
    engine_args: list[str] = option(ENGINE_ARGS_HELP, default=[], metavar="KEY=VALUE")
    output: str | None = option("JSON file to write", default=None, metavar="FILE")


def run(arguments: Arguments) -> None:
    """Time, print and, where asked, write.

    Raises:
        InputError: vLLM is not installed or lacks a decoding, the model cannot be used, or a number is less than 1.
    """
    from ugap.environment import environment
    from ugap.models import load_model
    from ugap.scoring.tokenise import bos_ids
    from ugap.study.decodings import parse_decodings
    from ugap.study.engine import check_engine, open_engine

    if min(*arguments.batch_sizes, arguments.new_tokens, arguments.repeats) < 1:
        raise InputError("batch_sizes, new_tokens and repeats: expected positive numbers")
    decodings = parse_decodings(arguments.decoding)
    check_engine("vllm", arguments.engine_args, decodings)
    model, tokenizer = load_model(arguments.model, dtype=arguments.dtype, device=arguments.device)
    prompt = [*bos_ids(tokenizer), *tokenizer(bench_sampling.PROMPT, add_special_tokens=False)["input_ids"]]
    record: dict[str, Any] = {"settings": {**asdict(arguments), "environment": environment()}, "tokens_per_second": {}}
    with ExitStack() as stack:
        engines = {
            name: stack.enter_context(
                closing(open_engine(name, arguments.engine_args, model, tokenizer, arguments.model))
            )
            for name in ENGINES
        }
        for size in arguments.batch_sizes:
            variants = {
                (decoding, name): partial(once, engine, [prompt] * size, how, arguments.new_tokens)
                for decoding, how in decodings.items()
                for name, engine in engines.items()
            }
            named: dict[str, Callable[[], float]] = {" ".join(key): work for key, work in variants.items()}
            speed = bench_sampling.in_turns(named, arguments.repeats)
            record["tokens_per_second"][str(size)] = speed
            print(
                f"{arguments.model}, {arguments.dtype}: {size} sequences\n\n{table(list(decodings), speed)}", flush=True
            )
    if arguments.output is not None:
        write_json(Path(arguments.output), record)


def once(engine: "Engine", contexts: list[list[int]], how: Mapping[str, Any], new_tokens: int) -> float:
    """Tokens per second of one batch."""
    begin = time.perf_counter()
    rows = engine.continue_contexts(
        contexts, how, max_new_tokens=new_tokens, seed=0, domain="creative", names=["a text"] * len(contexts)
    )
    return sum(map(len, rows)) / (time.perf_counter() - begin)


def table(decodings: list[str], speed: Mapping[str, float]) -> str:
    """Tokens per second in Markdown."""
    lines = ["| decoding | transformers | vLLM | ratio |", "|---|---:|---:|---:|"]
    for decoding in decodings:
        ours, others = (speed[f"{decoding} {name}"] for name in ENGINES)
        lines.append(f"| {decoding} | {ours:,.1f} | {others:,.1f} | {others / ours:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main(["eval", "bench_engines", *sys.argv[1:]]))
