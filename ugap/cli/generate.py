"""`ugap generate`: continue prompts at human uncertainty, and print the surprisal of the texts."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TextIO

from ugap.cli.arguments import option
from ugap.cli.human import like_option, parts_of, read_like, reader_option, selection_of
from ugap.cli.model import ModelOptions, check_adapter
from ugap.study.options import ENGINE_ARGS_HELP, ENGINE_HELP, EngineName

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from ugap.sampling import Generation

DESCRIPTION = """\
Continue prompts at human uncertainty: every token is as surprising as people are at the model's entropy.

examples:
  ugap generate --model gemma-3-270m --prompt "Once upon a time" --heatmap
  ugap generate --model gemma-3-270m --prompt "The capital of France is" --mode precise
  ugap generate --model gemma-3-270m --prompt "Dear Anna," --kind letter
  ugap generate --model gemma-3-270m --prompt "It was late" --like my-stories.jsonl
  ugap generate --model smollm2-135m-instruct --chat --prompt "Write a haiku." --num_return_sequences 3
  ugap generate --model org/model --profile my-profile.json --input prompts.txt --output texts.jsonl

Prints each text with its mean surprisal, that of human text, and the kind of that human text. The assets have human
profiles. For another model, one is fitted once to embedded tales and manuals; `ugap profile` fits one to your texts."""


@dataclass(kw_only=True)
class Arguments(ModelOptions):
    """Arguments of `ugap generate`."""

    prompt: list[str] = option("texts to continue", default=[], group="prompts", metavar="TEXT")
    input: str | None = option(
        "prompts from a file: a line each, or the column prompt of .jsonl(.gz), .csv(.gz) or .parquet",
        default=None,
        group="prompts",
        metavar="FILE",
    )
    chat: bool = option(
        "send each prompt as a user's message through the chat template", default=False, group="prompts"
    )
    mode: Literal["creative", "balanced", "precise"] | None = option(
        "creative: as surprising as people to the profile's reader (the default); balanced: half the model's own human "
        "level; precise: greedy",
        default=None,
        group="decoding",
    )
    weight: float | None = option(
        "share of the model's own human level, 0 to 1, instead of a mode", default=None, group="decoding"
    )
    kind: list[str] = option(
        "kind of text, domain, or a mixture as KIND=WEIGHT; auto: the prompt decides",
        default=["auto"],
        group="decoding",
        metavar="KIND",
    )
    like: str | None = like_option("decoding")
    reader: str | None = reader_option("decoding")
    profile: str | None = option(
        "human profile of the model: a file or a name (default: the model's own)",
        default=None,
        group="decoding",
        metavar="FILE",
    )
    tail: float = option(
        "tokens beyond the rank that holds this share of human tokens are cut; 1 cuts nothing",
        default=0.999,
        group="decoding",
    )
    num_return_sequences: int = option("texts for each prompt", default=1, group="decoding")
    max_new_tokens: int = option("longest text in tokens", default=128, group="decoding")
    engine: EngineName = option(ENGINE_HELP, default="transformers", group="decoding")
    engine_args: list[str] = option(ENGINE_ARGS_HELP, default=[], group="decoding", metavar="KEY=VALUE")
    batch_size: int = option("texts that are written together", default=16, group="decoding")
    seed: int = option("seed of the draws", default=0, group="decoding")
    output: str | None = option("also write the texts, token by token, as JSON lines", default=None, metavar="FILE")
    heatmap: bool = option("colour the tokens by their surprisal", default=False)


def run(arguments: Arguments) -> None:
    """Write, and print every text as soon as its batch is finished.

    Raises:
        InputError: The input is bad, or there is no human profile of the model.
    """
    import sys

    from ugap.errors import InputError
    from ugap.files import output_file
    from ugap.models import load_model
    from ugap.profile import HumanProfile
    from ugap.profile.fitting import certainty, check_like, named_profile
    from ugap.profile.profile import LIKE
    from ugap.sampling import human_params, profile_of, weight_of
    from ugap.sampling.generation import generate_batches
    from ugap.study.engine import check_engine, open_engine
    from ugap.study.generation import seed_of
    from ugap.terminal import Terminal, visible

    # Whatever can be refused without the model is refused before it is loaded, which takes seconds.
    prompts = _prompts(arguments)
    weight_of(arguments.mode, arguments.weight)
    tail = None if arguments.tail == 1 else arguments.tail
    if arguments.output is not None:
        output_file(arguments.output)
    profile = None if arguments.profile is None else HumanProfile.load(arguments.profile)
    kind = selection_of(arguments.kind)
    known = profile or named_profile(arguments.model, arguments.adapter)
    if known is not None:
        human_params(known, kind, tail)
    if arguments.like is not None and arguments.kind != ["auto"]:
        raise InputError("give --like or --kind, not both")
    like = read_like(arguments.like) or None
    check_like(like or [], prompts)
    check_engine(arguments.engine, arguments.engine_args, {})
    check_adapter(arguments.adapter, [arguments.model], arguments.engine)
    model, tokenizer = load_model(arguments.model, **arguments.loading())
    if arguments.chat and tokenizer.chat_template is None:
        raise InputError(f"{arguments.model} has no chat template: leave out --chat")
    profile = profile_of(model, profile, tokenizer, like=like, reader=arguments.reader)
    if arguments.profile is None and profile.scorer_name != arguments.model:  # as for an adapter or a merged model
        print(f"human profile: that of {visible(profile.scorer_name)}", file=sys.stderr)
    if like is not None:
        print(visible(certainty(profile)), file=sys.stderr)
    followed = kind if like is None else LIKE
    engine = open_engine(
        arguments.engine,
        arguments.engine_args,
        model,
        tokenizer,
        arguments.model,
        trust_remote_code=arguments.trust_remote_code,
    )
    how = {"human_mode": arguments.mode, "human_weight": arguments.weight, "human_tail": tail}

    def write(contexts: list[list[int]], number: int) -> list[list[int]]:
        return engine.continue_contexts(
            contexts,
            {**how, "human_kind": followed, "human_profile": profile},
            max_new_tokens=arguments.max_new_tokens,
            seed=seed_of(arguments.seed, number),
        )

    batches = generate_batches(
        model,
        tokenizer,
        [[{"role": "user", "content": prompt}] for prompt in prompts] if arguments.chat else prompts,
        kind=followed,
        mode=arguments.mode,
        weight=arguments.weight,
        profile=profile,
        tail=tail,
        max_new_tokens=arguments.max_new_tokens,
        num_return_sequences=arguments.num_return_sequences,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        write=None if arguments.engine == "transformers" else write,
    )
    total = len(prompts) * arguments.num_return_sequences
    console = Terminal(file=sys.stdout, soft_wrap=True)
    coloured = arguments.heatmap and console.color_system is not None and not console.no_color
    # A single batch is printed at once: a bar would only flash.
    with closing(engine), _opened(arguments.output) as file, _bar(total, hidden=total <= arguments.batch_size) as bar:
        for batch in batches:
            bar.update(0, advance=len(batch))
            bar.stop()  # a bar on the screen would mix with the texts
            for one in batch:
                prompt = one.prompt if isinstance(one.prompt, str) else one.prompt[0]["content"]
                _show(console, prompt, one, arguments, tokenizer if coloured else None)
                if file is not None:
                    file.write(_line(prompt, one))
            bar.start()
    if coloured:
        from ugap.report.heatmap import legend

        console.print(legend())
    elif arguments.heatmap:
        print("no heat map: colours need a terminal that shows them, and NO_COLOR unset", file=sys.stderr)
    if arguments.output is not None:
        console.print(f"{total} texts written to {arguments.output}", markup=False)


def _prompts(arguments: Arguments) -> list[str]:
    """The prompts, from the command line or a file.

    Raises:
        InputError: There are none, or one is empty or cannot be encoded.
    """
    from ugap.data import load_texts
    from ugap.data.readers import SUFFIXES
    from ugap.errors import InputError
    from ugap.unicode import text_fault

    if arguments.prompt and arguments.input is not None:
        raise InputError("give --prompt or --input, not both")
    if not arguments.prompt and arguments.input is None:
        raise InputError("nothing to continue: give --prompt TEXT or --input FILE")
    if arguments.input is not None and arguments.input.lower().endswith(SUFFIXES):
        return [row.text for row in load_texts(arguments.input, text_column="prompt", domain="any")]
    named = (
        [(f"--prompt {i}", prompt) for i, prompt in enumerate(arguments.prompt, start=1)]
        if arguments.input is None
        else parts_of(arguments.input, b"\n")
    )
    for name, prompt in named:
        if not prompt.strip():
            raise InputError(f"{name}: the prompt is empty")
        if fault := text_fault(prompt):
            raise InputError(f"{name}: {fault}")
    return [prompt for _, prompt in named]


def _show(
    console: "Console",
    prompt: str,
    one: "Generation",
    arguments: Arguments,
    tokenizer: "PreTrainedTokenizerBase | None",
) -> None:
    """Print a text and its mean surprisal; with a tokenizer, in colours."""
    from rich.text import Text

    from ugap.report.heatmap import heat_map, token_strings
    from ugap.terminal import visible

    if tokenizer is None:
        written = Text(visible(one.text))
    else:
        # Tokens are decoded behind the prompt, as a character may start in it. A chat ends with a special token.
        context = tokenizer(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        strings = token_strings(tokenizer, one.token_ids, [] if arguments.chat else context)
        written = heat_map(strings, one.surprisal)
    text = Text.assemble((visible(prompt), "dim"), "\n" if arguments.chat else "", written)
    console.print(text)
    wrote = f"{one.nll:.2f} nats per token" if one.token_ids else "the model ended the text at once"
    people = f"people: {one.human_level:.2f} (kind: {visible(one.target.named)})"
    if (reading := one.target.reading) is not None:
        people += f", {one.target.share * one.human_level:.2f} to the reader {visible(reading.reader)}"
    console.print(f"{wrote}; {people}\n", markup=False)


def _line(prompt: str, one: "Generation") -> str:
    import json

    row = {
        "prompt": prompt,
        "text": one.text,
        "token_ids": one.token_ids,
        "surprisal": one.surprisal,
        "entropy": one.entropy,
        "nll": one.nll if one.token_ids else None,  # JSON has no NaN
        "human_level": one.human_level,
        "aim": one.aim,
    }
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


@contextmanager
def _opened(output: str | None) -> Iterator[TextIO | None]:
    """A file that takes its name once it is complete; `None` without a name."""
    from ugap.files import replacing

    if output is None:
        yield None
        return
    with replacing(output) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yield file


def _bar(total: int, *, hidden: bool) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ugap.terminal import Terminal

    console = Terminal(stderr=True)  # stdout has the texts, which may go to a file
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=hidden or not console.is_terminal,
    )
    bar.add_task("writing", total=total)
    return bar
