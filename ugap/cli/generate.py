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
    from ugap.cli.writer import Screen, Writer
    from ugap.report.written import Block
    from ugap.sampling import Generation

DESCRIPTION = """\
Continue prompts at human uncertainty: every token is as surprising as people are at the model's entropy.

examples:
  ugap generate --model gemma-3-270m --prompt "Once upon a time" --heatmap
  ugap generate --model gemma-3-270m --prompt "Once upon a time" --compare --html texts.html
  ugap generate --model gemma-3-270m --prompt "Once upon a time" --interactive
  ugap generate --model gemma-3-270m --prompt "The capital of France is" --mode precise
  ugap generate --model gemma-3-270m --prompt "Dear Anna," --kind letter
  ugap generate --model gemma-3-270m --prompt "It was late" --like my-stories.jsonl
  ugap generate --model smollm2-135m-instruct --chat --prompt "Write a haiku." --num_return_sequences 3
  ugap generate --model org/model --profile my-profile.json --input prompts.txt --output texts.jsonl

Prints each text with its mean surprisal, that of human text, and the kind of that human text. A single text appears
token by token; texts of a batch, and those of vLLM, when they are finished. The assets have human profiles. For another
model, one is fitted once to embedded tales and manuals; `ugap profile` fits one to your texts."""

_SAMPLERS = (
    "temperature", "top_p", "top_k", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "do_sample",
    "num_beams", "repetition_penalty", "no_repeat_ngram_size", "frequency_penalty", "presence_penalty",
)  # fmt: skip
# Why options that a person may expect are not there.
NOT_TAKEN = {
    name: f"--{name} is not taken: the sampler shapes every step itself; --mode or --weight says how surprising it is"
    for name in _SAMPLERS
}
# The decodings that `--compare` puts beside ours.
COMPARED: dict[str, dict[str, Any]] = {"temperature-0.7": {"temperature": 0.7}, "top-p-0.95": {"top_p": 0.95}}


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
    seed: int | None = option(
        "seed of the draws (default: a random one, which is printed)", default=None, group="decoding"
    )
    compare: bool = option(
        "write with temperature 0.7 and with top-p 0.95 too, and show the texts side by side",
        default=False,
        group="ways to write",
    )
    interactive: bool = option(
        "write passage by passage: Enter goes on; again, undo, mode and quit", default=False, group="ways to write"
    )
    heatmap: bool = option("colour the tokens by their surprisal", default=False, group="output")
    color: Literal["always", "never", "auto"] = option(
        "colours; auto: where stdout is a terminal that shows them", default="auto", group="output"
    )
    html: str | None = option(
        "also write a page of the texts with tinted tokens", default=None, group="output", metavar="FILE"
    )
    output: str | None = option(
        "also write the texts, token by token, as JSON lines", default=None, group="output", metavar="FILE"
    )


def run(arguments: Arguments) -> None:
    """Write, and print every text as soon as it or its batch is finished.

    Raises:
        InputError: The input is bad, or there is no human profile of the model.
    """
    import secrets
    import sys

    from ugap.sampling import weight_of
    from ugap.terminal import visible

    # Whatever can be refused without the model is refused before it is loaded, which takes seconds.
    prompts = _prompts(arguments)
    _check_ways(arguments, prompts)
    drawn = arguments.seed is None
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    writer = _writer(arguments, prompts)
    from ugap.cli.interactive import Session
    from ugap.cli.writer import Screen

    if drawn and (weight_of(arguments.mode, arguments.weight) > 0 or arguments.compare or arguments.interactive):
        print(f"seed: a random one; --seed {visible(str(seed))} gives the same again", file=sys.stderr)
    screen = Screen(writer, arguments.color, arguments.heatmap)
    session = Session(writer, screen, prompts[0], seed, arguments.mode, arguments.weight)
    write = _compare if arguments.compare else _write
    blocks, total = [], 0
    with closing(writer.engine), _opened(arguments.output) as file:
        if arguments.interactive:
            session.run()
        for texts in [session.texts()] if arguments.interactive else write(arguments, writer, screen, prompts, seed):
            total += len(texts)
            if file is not None:
                file.writelines(_line(name, one) for name, one in texts)
            if arguments.html is not None:
                blocks += [session.block()] if arguments.interactive else [writer.block(texts)]
    screen.end()
    if arguments.html is not None:
        _write_page(arguments, blocks, seed if drawn else None)
        screen.console.print(f"page written to {arguments.html}")
    if arguments.output is not None:
        screen.console.print(f"{total} texts written to {arguments.output}")


def _check_ways(arguments: Arguments, prompts: list[str]) -> None:
    """Refuse options that exclude each other, and files that cannot be written.

    Raises:
        InputError: See above.
    """
    from ugap.errors import InputError, require
    from ugap.files import output_file
    from ugap.sampling import weight_of

    weight_of(arguments.mode, arguments.weight)
    for file in (arguments.output, arguments.html):
        if file is not None:
            output_file(file)
    if arguments.html is not None:
        require("report")
    if arguments.compare and arguments.interactive:
        raise InputError("give --compare or --interactive, not both")
    if arguments.interactive and (len(prompts) != 1 or arguments.num_return_sequences != 1):
        raise InputError("--interactive writes one text: give one prompt, and no --num_return_sequences")
    if arguments.interactive and arguments.chat:
        raise InputError("--interactive continues a text: leave out --chat")


def _writer(arguments: Arguments, prompts: list[str]) -> "Writer":
    """The model, loaded, with its human profile.

    Raises:
        InputError: There is no such model, profile or kind, or they do not go together.
    """
    import sys

    from ugap.errors import InputError
    from ugap.models import load_model
    from ugap.models.console import announced
    from ugap.profile import HumanProfile
    from ugap.profile.fitting import certainty, check_like, named_profile
    from ugap.profile.profile import LIKE
    from ugap.sampling import human_params, profile_of
    from ugap.study.engine import check_engine, open_engine
    from ugap.terminal import visible

    tail = None if arguments.tail == 1 else arguments.tail
    profile: HumanProfile | None = None if arguments.profile is None else HumanProfile.load(arguments.profile)
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
    with announced(f"loading {arguments.model}"):
        model, tokenizer = load_model(arguments.model, **arguments.loading())
    if arguments.chat and tokenizer.chat_template is None:
        raise InputError(f"{arguments.model} has no chat template: leave out --chat")
    profile = profile_of(model, profile, tokenizer, like=like, reader=arguments.reader)
    if arguments.profile is None and profile.scorer_name != arguments.model:  # as for an adapter or a merged model
        print(f"human profile: that of {visible(profile.scorer_name)}", file=sys.stderr)
    if like is not None:
        print(visible(certainty(profile)), file=sys.stderr)
    from ugap.cli.writer import Writer

    return Writer(
        model,
        tokenizer,
        open_engine(
            arguments.engine,
            arguments.engine_args,
            model,
            tokenizer,
            arguments.model,
            trust_remote_code=arguments.trust_remote_code,
        ),
        by_engine=arguments.engine != "transformers",
        profile=profile,
        kind=kind if like is None else LIKE,
        tail=tail,
        chat=arguments.chat,
        sizes={
            "max_new_tokens": arguments.max_new_tokens,
            "num_return_sequences": arguments.num_return_sequences,
            "batch_size": arguments.batch_size,
        },
    )


# The versions of a text, each with the name of its decoding.
_Texts = list[tuple[str, "Generation"]]


def _write(arguments: Arguments, writer: "Writer", screen: "Screen", prompts: list[str], seed: int) -> Iterator[_Texts]:
    """Show each text."""
    from ugap.cli.writer import decoding_name
    from ugap.progress import progress_bar

    starts = iter([prompt for prompt in prompts for _ in range(arguments.num_return_sequences)])
    total = len(prompts) * arguments.num_return_sequences
    streamed = 1 in (total, arguments.batch_size)
    batches = writer.batches(
        prompts, seed, mode=arguments.mode, weight=arguments.weight, on_token=screen.token if streamed else None
    )
    # A single batch is printed at once, and a stream shows itself: a bar would only flash.
    with progress_bar(stderr=True, disable=streamed or total <= arguments.batch_size) as bar:
        task = bar.add_task("writing", total=total)
        while True:
            if streamed and (prompt := next(starts, None)) is not None:
                screen.prompt(prompt)
            batch = next(batches, None)
            if batch is None:
                return
            bar.advance(task, len(batch))
            bar.stop()  # a bar on the screen would mix with the texts
            for one in batch:
                screen.text(one)
                yield [(decoding_name(arguments.mode, arguments.weight), one)]
            bar.start()


def _compare(
    arguments: Arguments, writer: "Writer", screen: "Screen", prompts: list[str], seed: int
) -> Iterator[_Texts]:
    """Show each text beside those of the other decodings."""
    from ugap.cli.writer import decoding_name
    from ugap.progress import progress_bar

    names = [*COMPARED, decoding_name(arguments.mode, arguments.weight)]
    runs = [
        *(writer.batches(prompts, seed, other=settings) for settings in COMPARED.values()),
        writer.batches(prompts, seed, mode=arguments.mode, weight=arguments.weight),
    ]
    total = len(names) * len(prompts) * arguments.num_return_sequences
    with progress_bar(stderr=True) as bar:
        task = bar.add_task("writing", total=total)
        while True:
            batches = []
            for batch in (next(batches_of, None) for batches_of in runs):
                if batch is None:
                    return
                batches.append(batch)
                bar.advance(task, len(batch))
            bar.stop()
            for texts in zip(*batches, strict=True):
                versions = list(zip(names, texts, strict=True))
                screen.compare(writer.block(versions))
                yield versions
            bar.start()


def _write_page(arguments: Arguments, blocks: "list[Block]", drawn_seed: int | None) -> None:
    from ugap.cli.report import command_line
    from ugap.report.page.writing import write_texts

    assert arguments.html is not None
    command = command_line() + ("" if drawn_seed is None else f" --seed {drawn_seed}")
    write_texts(blocks, arguments.model, "" if arguments.interactive else command, arguments.html)


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


def _line(name: str, one: "Generation") -> str:
    import json

    from ugap.cli.writer import prompt_of

    row = {
        "prompt": prompt_of(one),
        "decoding": name,
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
