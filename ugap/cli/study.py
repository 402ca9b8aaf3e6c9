"""`ugap study`: the gap of many models, one after another or in shards, and the contrasts between them."""

from dataclasses import dataclass
from typing import Any

from ugap.cli.arguments import option
from ugap.cli.human import like_option, read_like
from ugap.cli.plan import dry_run_option, print_plan
from ugap.cli.report import command_line, print_page
from ugap.cli.texts import Texts, read_texts
from ugap.study.options import MultiOptions, values

DESCRIPTION = """\
Measure the gap of many models, one after another, each in a folder of its own, and contrast them: people against
models; base, instruct and reasoning models of a family; creative against functional text. P-values are corrected over
all contrasts.

examples:
  ugap study --config study_28.yaml --data stories.jsonl manuals.jsonl --output runs/study_28
  ugap study --config study_28.yaml --data stories.jsonl manuals.jsonl --output runs/study_28 --resume
  ugap study --config study_28.yaml --data stories.jsonl manuals.jsonl --output runs/study_28 --shard 0/4

The YAML file holds the options and the list `models`; a model has a name, a family and a stage (base, instruct,
reasoning), and may have a label, dtype, revision, chat (raw, template, both) and trust_remote_code. A model that
fails is skipped, with the reason, and tried again by the next run. Finished models are not run again.

With --shard i/n a process runs every n-th model. Start n processes, on any machines that share the folder. Under
`accelerate launch` every process takes its own shard. The process that ends last makes the contrasts.

The folder gets report.html, a study per model (see ugap measure), contrasts.json, study.md, models.png and lock.yaml:
the commits of the Hub models. --lock holds another study to these commits."""


@dataclass(frozen=True, kw_only=True)
class Models:
    """The models that write, their decodings, and the scorers."""

    output: str = option("folder of the study", group="study", metavar="DIR")
    decoding: list[str] = option(
        "decodings: see ugap measure --help", default=["ancestral"], group="study", metavar="NAME"
    )
    like: str | None = like_option("study")
    models: list[dict[str, Any]] | str | None = option(
        "the list of models, in the YAML file", default=None, group="models", metavar="YAML"
    )
    scorer: list[str] = option(
        "who scores: self (each model itself) or one fixed model for all",
        default=["self"],
        group="models",
        metavar="NAME",
    )
    lock: str | None = option(
        "the lock.yaml of a study: use its commits of the Hub models", default=None, group="models", metavar="FILE"
    )


@dataclass(frozen=True, kw_only=True)
class Arguments(MultiOptions, Texts, Models):
    """Arguments of `ugap study`."""

    shard: str | None = option(
        "run the i-th of n shards of the models: i/n, from 0/n on", default=None, group="study", metavar="I/N"
    )
    resume: bool = option("resume an interrupted study", default=False, group="study")
    dry_run: bool = dry_run_option()


def run(arguments: Arguments) -> None:
    """Run the models of this shard. If they are the last ones, contrast all models and print the findings.

    Raises:
        InputError: The input is bad; finished models stay for `--resume`.
    """
    from dataclasses import asdict
    from pathlib import Path

    from ugap.cli.programs import find_config
    from ugap.errors import InputError
    from ugap.report.multi import PLOT, RECORD, TABLE, write_multi
    from ugap.report.page import write_page
    from ugap.study import parse_decodings
    from ugap.study.following import like_hash
    from ugap.study.gap.plan import plan_study
    from ugap.study.multi.contrasts import contrast_multi, read_cells
    from ugap.study.multi.run import MultiSettings, model_folder, parse_models, read_lock, run_multi
    from ugap.terminal import Terminal, one_line

    settings = MultiSettings(
        models=parse_models(_listed(arguments.models)),
        scorers=arguments.scorer,
        decodings=parse_decodings(arguments.decoding),
        like=read_like(arguments.like),
        **values(arguments, MultiOptions),
    )
    shard = _shard(arguments.shard)
    lock = read_lock(find_config(arguments.lock)) if arguments.lock is not None else {}
    rows = read_texts(arguments, skip_bad=arguments.skip_bad)
    console = Terminal(soft_wrap=True)
    if arguments.dry_run:
        steps = []
        for model in settings.models[shard[0] :: shard[1]]:
            try:
                steps += plan_study(rows, settings.of(model, lock.get(model.title, model.revision)))
            except InputError as error:
                console.print(f"{model.title}: would be skipped: {one_line(str(error))}")
        print_plan(steps)
        return
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
    # Only the process that ends last sees all models and makes the contrasts.
    waiting = [one.model.title for one in outcomes if one.status == "open"]
    if waiting:
        console.print(f"still to be run, by other shards: {', '.join(waiting)}", markup=False)
        return
    finished = [one for one in outcomes if one.status == "finished"]
    cells = [cell for one in finished for cell in read_cells(arguments.output, one.model)]
    gaps, contrasts = contrast_multi(cells, seed=settings.seed)
    recorded = {**asdict(settings), "like": like_hash(settings.like), "data": arguments.data}
    for sentence in write_multi(gaps, contrasts, outcomes, recorded, arguments.output, command=command_line()):
        console.print(f"- {sentence}", markup=False)
    console.print(f"\n{arguments.output}: {TABLE}, {RECORD}, {PLOT}", markup=False)
    if finished:
        folders = [model_folder(arguments.output, one.model) for one in finished]
        write_page(folders, Path(arguments.output) / "report.html")
        print_page(arguments.output)


def _listed(models: Any) -> Any:
    """The list of models; on the command line it is one word of YAML.

    Raises:
        InputError: It is no YAML.
    """
    import yaml

    from ugap.errors import reading

    if not isinstance(models, str):
        return models
    with reading("models: not YAML"):
        return yaml.safe_load(models)


def _shard(word: str | None) -> tuple[int, int]:
    """The shard of this process: from the option, else from its rank under a launcher.

    Raises:
        InputError: It is not `i/n`.
    """
    from accelerate.utils import get_cpu_distributed_information

    from ugap.errors import InputError

    if word is None:
        # It reads the launcher's environment alone; `PartialState` would open a process group.
        process = get_cpu_distributed_information()
        return process.rank, max(1, process.world_size)
    index, slash, n = word.partition("/")
    if not (slash and index.isdecimal() and n.isdecimal() and int(index) < int(n)):
        raise InputError(f"--shard {word}: give I/N, such as 0/4, with I from 0 to N - 1")
    return int(index), int(n)
