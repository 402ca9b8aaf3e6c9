"""`ugap study`: the gap of many models, one after another or in shards, and the contrasts between them."""

from dataclasses import dataclass
from typing import Any

from ugap.cli.arguments import option

DESCRIPTION = """\
Measure the gap of many models, one after another, each in a folder of its own, and contrast them: people against
models; base, instruct and reasoning models of a family; creative against functional text. Holm's correction is over all
contrasts.

examples:
  ugap study --config study_28.yaml --data stories.jsonl manuals.jsonl --output runs/study_28
  ugap study --config study_28.yaml --data stories.jsonl manuals.jsonl --output runs/study_28 --resume
  ugap study --config study_28.yaml --data stories.jsonl manuals.jsonl --output runs/study_28 --shard 0/4

The YAML file holds the options and the list `models`; a model has a name, a family and a kind (base, instruct,
reasoning), and may have a label, dtype, revision, chat (raw, template, both) and trust_remote_code. A model that
cannot be run is skipped, with the reason, and tried again by the next run; what is finished is not run again.

With --shard i/n a process runs every n-th model; start n of them, on as many machines as share the folder. Under
`accelerate launch` every process takes its shard by itself. The one that ends last makes the contrasts.

The folder gets report.html, a study per model (as of ugap measure), contrasts.json, study.md, models.png and lock.yaml:
the commits of the Hub models. With --lock another study holds to them."""


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap study`."""

    output: str = option("folder of the study", group="study", metavar="DIR")
    models: list[dict[str, Any]] | str | None = option(
        "the list of models; it stands in the YAML file", default=None, group="models", metavar="YAML"
    )
    scorer: list[str] = option(
        "who scores: self (each model itself) or one fixed model for all",
        default=["self"],
        group="models",
        metavar="NAME",
    )
    lock: str | None = option(
        "commits of the Hub models to hold to: the lock.yaml of a study", default=None, group="models", metavar="FILE"
    )
    device: str | None = option("where models run (default: the GPU if there is one)", default=None, group="models")
    data: list[str] = option(
        "human texts: .jsonl(.gz), .csv(.gz), .parquet, a Hub data set, or demo; several are joined",
        default=["demo"],
        group="texts",
        metavar="FILE",
    )
    text_column: str = option("column of the human text", default="text", group="texts", metavar="COLUMN")
    id_column: str = option("column of the id", default="id", group="texts", metavar="COLUMN")
    domain_column: str = option("column of the domain", default="domain", group="texts", metavar="COLUMN")
    prompt_column: str = option("column of the prompt, if any", default="prompt", group="texts", metavar="COLUMN")
    split: str = option("split of a Hub data set", default="train", group="texts")
    skip_bad: bool = option("log and skip bad rows instead of stopping", default=False, group="texts")
    decoding: list[str] = option(
        "decodings: see ugap measure --help", default=["ancestral"], group="study", metavar="NAME"
    )
    prefix_tokens: int = option("tokens of a prefix, where a text has no prompt", default=64, group="study")
    prompt_separator: str | None = option(
        "what stands between a prompt and its text (default: an empty line, unless one of them has white space there)",
        default=None,
        group="study",
        metavar="TEXT",
    )
    max_new_tokens: int = option("tokens of a continuation", default=128, group="study")
    limit: int | None = option("prefixes per domain", default=None, group="study")
    per_text: int = option("prefixes of one source text, at most", default=4, group="study")
    batch_size: int = option("prefixes in a unit of work", default=16, group="study")
    seed: int = option("seed of sampling and bootstrap", default=0, group="study")
    pmi: bool = option("measure PMI and CPMI too (a second pass)", default=False, group="study")
    shard: str | None = option(
        "run the i-th of n shards of the models: i/n, from 0/n on", default=None, group="study", metavar="I/N"
    )
    resume: bool = option("go on with an interrupted study", default=False, group="study")


def run(arguments: Arguments) -> None:
    """Run the models of this shard; where that ends the study, contrast them and say what was found.

    Raises:
        InputError: The input is bad; what is finished stays for `--resume`.
    """
    import shlex
    import sys
    from dataclasses import asdict
    from pathlib import Path

    from ugap.cli.programs import find_config
    from ugap.data import load_texts
    from ugap.report.multi import PLOT, RECORD, TABLE, write_multi
    from ugap.report.page import write_page
    from ugap.study import parse_decodings
    from ugap.study.multi.contrasts import contrast_multi, read_levels
    from ugap.study.multi.run import MultiSettings, model_folder, parse_models, read_lock, run_multi
    from ugap.terminal import Terminal

    one = ("prefix_tokens", "prompt_separator", "max_new_tokens", "limit", "per_text", "batch_size", "seed", "pmi")
    shared = (*one, "skip_bad", "device")
    settings = MultiSettings(
        models=parse_models(_listed(arguments.models)),
        scorers=arguments.scorer,
        decodings=parse_decodings(arguments.decoding),
        **{name: getattr(arguments, name) for name in shared},
    )
    shard = _shard(arguments.shard)
    lock = read_lock(find_config(arguments.lock)) if arguments.lock is not None else {}
    rows = [
        row
        for source in arguments.data
        for row in load_texts(
            source,
            text_column=arguments.text_column,
            id_column=arguments.id_column,
            domain_column=arguments.domain_column,
            prompt_column=arguments.prompt_column,
            split=arguments.split,
            skip_bad=arguments.skip_bad,
        )
    ]
    console = Terminal(soft_wrap=True)
    outcomes = run_multi(
        rows,
        settings,
        arguments.output,
        data=arguments.data,
        lock=lock,
        shard=shard,
        resume=arguments.resume,
        progress=True,
        say=lambda line: console.print(line, markup=False),
    )
    waiting = [one.model.title for one in outcomes if one.status == "open"]
    if waiting:
        console.print(f"still to be run, by other shards: {', '.join(waiting)}", markup=False)
        return
    finished = [one for one in outcomes if one.status == "finished"]
    levels = [level for one in finished for level in read_levels(arguments.output, one.model)]
    contrasts = contrast_multi(levels, seed=settings.seed)
    recorded = {**asdict(settings), "data": arguments.data}
    for sentence in write_multi(
        contrasts, outcomes, recorded, arguments.output, command=shlex.join(["ugap", *sys.argv[1:]])
    ):
        console.print(f"- {sentence}", markup=False)
    console.print(f"\n{arguments.output}: {TABLE}, {RECORD}, {PLOT}", markup=False)
    if finished:
        page = Path(arguments.output) / "report.html"
        write_page([model_folder(arguments.output, one.model) for one in finished], page)
        console.print(f"To look at it, and to read the texts token by token, open {page} in a browser", markup=False)


def _listed(models: Any) -> Any:
    """The list of models, which on the command line is a word of YAML.

    Raises:
        InputError: It is no YAML.
    """
    import yaml

    from ugap.errors import InputError

    if not isinstance(models, str):
        return models
    try:
        return yaml.safe_load(models)
    except yaml.YAMLError as error:
        raise InputError(f"models: not YAML: {' '.join(str(error).split())}") from error


def _shard(word: str | None) -> tuple[int, int]:
    """Which shard this process runs: as it was told, else by its rank under a launcher.

    Raises:
        InputError: It is not `i/n`.
    """
    from accelerate.utils import get_cpu_distributed_information

    from ugap.errors import InputError

    if word is None:
        process = get_cpu_distributed_information()
        return process.rank, max(1, process.world_size)
    index, slash, n = word.partition("/")
    if not (slash and index.isdecimal() and n.isdecimal() and int(index) < int(n)):
        raise InputError(f"--shard {word}: give I/N, such as 0/4, with I from 0 to N - 1")
    return int(index), int(n)
