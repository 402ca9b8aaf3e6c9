"""Uncertainty against factuality: fine-tunings with several weights and limits, and baselines, on one plot."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ugap.cli.arguments import option
from ugap.cli.comparing import CompareOptions, compared
from ugap.cli.main import main
from ugap.files import locked, refuse_results, replacing, write_json

DESCRIPTION = """\
Train with several weights of creativity and limits of the constraint, and with plain SFT and GEM, and plot how far
each model is from human uncertainty against what it still knows: the Pareto frontier.

examples:
  ugap eval tradeoff --train_config sft_smollm2.yaml --override data=stories.train.jsonl --data stories.test.jsonl
      --weights 0 0.5 1 --limits 0.01 0.05 none --output runs/tradeoff
  ugap eval tradeoff --train_config sft_smollm2.yaml --override data=stories.train.jsonl max_steps=50
      --data stories.test.jsonl --tune stories.val.jsonl --match --add grpo=runs/grpo adaptive=runs/adaptive
      --output runs/tradeoff --resume

Each training is `ugap train sft` with the config, one after another: `creativity-reality` for every weight and limit,
and the objectives of --objectives without a constraint. With --resume those that are finished are not made again, one
that was interrupted resumes from its last checkpoint, and weights, limits and models can be added. --add puts adapters
of the same base on the plot that were trained elsewhere: by GRPO, or with TRL's adaptive entropy.

All models are then measured as by ugap eval before_after: the same prompts and seeds, read by the same frozen models.
A model is on the frontier if no other is as near to people and as accurate, and better in one of both.

The folder gets tradeoff.json (the points, and the runs with their settings and times), tradeoff.png,
before_after.json (all that was measured) and runs (configs, logs and adapters)."""

OURS = "creativity-reality"
NAMES = {"cross-entropy": "plain SFT", "gem": "GEM"}
NONE = "none"
NAME, PARTS = "tradeoff", "parts"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The trainings."""

    train_config: str = option(
        "config of ugap train sft: the base, the data and the settings of every run", group="runs", metavar="FILE"
    )
    override: list[str] = option(
        "options that replace those of the config", default=[], group="runs", metavar="NAME=VALUE"
    )
    weights: list[float] = option(
        "weights of the creativity loss, in [0, 1]", default=[0.0, 0.5, 1.0], group="runs", metavar="X"
    )
    limits: list[str] = option(
        "limits of the constraint, KL in nats per token, and none", default=["0.02", NONE], group="runs", metavar="X"
    )
    objectives: list[str] = option(
        "baselines, trained without a constraint: cross-entropy, gem, or none",
        default=list(NAMES),
        group="runs",
        metavar="NAME",
    )
    add: list[str] = option(
        "further finished adapters of the base: NAME=DIR", default=[], group="runs", metavar="NAME=DIR"
    )


@dataclass(frozen=True, kw_only=True)
class Arguments(CompareOptions, Sweep):
    """Arguments of `ugap eval tradeoff`."""

    decoding: list[str] = option(
        "decodings; each has a plot of its own", default=["ancestral"], group="decodings", metavar="NAME"
    )
    probe: Literal["contrastive", "generative"] = option(
        "accuracy on the plot: what the model holds for likely, or what it says under the decoding",
        default="contrastive",
        group="probes",
    )
    output: str = option("folder of the results", default="runs/tradeoff", group="output", metavar="DIR")
    resume: bool = option(
        "resume an interrupted sweep, or add weights, limits and models to one", default=False, group="output"
    )


@dataclass(frozen=True)
class Run:
    """One training: its name on the plot, that of its folder, and what its config says otherwise than that of all."""

    name: str
    folder: str
    settings: Mapping[str, Any]


def run(arguments: Arguments) -> None:
    """Train the missing models, measure all, print the table, and write the files.

    Raises:
        InputError: The input is bad, or a training failed; what is finished stays for `--resume`.
    """
    from ugap.errors import InputError
    from ugap.models import adapter_hash
    from ugap.report.before_after import before_after_tables
    from ugap.report.tradeoff import plot_tradeoff, tradeoff_tables
    from ugap.study.compare.run import Tuned, measure_before_after
    from ugap.study.compare.tradeoff import tradeoff_points
    from ugap.terminal import Terminal

    if arguments.facts == "none":
        raise InputError("the trade-off is with the facts of the probe: --facts none leaves nothing to plot")
    output = Path(arguments.output)
    refuse_results(arguments.output, arguments.resume, PARTS, "runs")
    config = training_config(arguments)
    sweep = planned(arguments)
    added = [Tuned.parse(word, is_adapter=True) for word in arguments.add]
    for adapter in added:
        adapter_hash(adapter.model)  # a folder that is none is found before anything is trained
    # A full fine-tuning leaves a whole model, and no adapter of the base.
    whole = bool(config.get("full"))
    tuned = [Tuned(one.name, str(output / "runs" / one.folder), not whole) for one in sweep]
    rows, others, settings = compared(arguments, str(config["model"]), [*tuned, *added])
    with locked(output):
        trained = []
        for number, planned_run in enumerate(sweep, start=1):
            seconds = train(planned_run, config, output / "runs", f"{number} of {len(sweep)}")
            trained.append({**asdict(planned_run), "seconds": seconds})
        record = measure_before_after(rows, settings, output / PARTS, tune=others, progress=True)
        record["settings"] |= {"arguments": asdict(arguments)}
        points = {
            "version": VERSION,
            "settings": {
                "arguments": asdict(arguments),
                "config": config,
                "environment": record["settings"]["environment"],
            },
            "runs": trained,
            "matched": record["matched"],
            "points": tradeoff_points(record, arguments.probe),
        }
        for name, content in (("before_after", record), (NAME, points)):
            write_json(output / f"{name}.json", content)
        plot_tradeoff(points, output / f"{NAME}.png")
        console = Terminal()
        for table in (*before_after_tables(record), *tradeoff_tables(points)):
            console.print(table)
            console.print()
        console.print(f"The points are in {output / f'{NAME}.json'} and {NAME}.png", markup=False)


def training_config(arguments: Arguments) -> dict[str, Any]:
    """The config of every run: that of the file, with what replaces it."""
    import yaml

    from ugap.cli.config import read_config
    from ugap.cli.programs import find_config
    from ugap.errors import InputError

    config = read_config(find_config(arguments.train_config))
    for word in arguments.override:
        name, given, value = word.partition("=")
        if not given:
            raise InputError(f"override {word!r}: not NAME=VALUE")
        try:
            # As YAML reads it, like the config: `1e-4` and `no` have their types.
            config[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"override {word!r}: {value!r} is not a value") from error
    for name in ("model", "data"):
        if not config.get(name):
            raise InputError(f"{arguments.train_config}: has no {name}; add --override {name}=...")
    if config.get("adapter"):
        raise InputError(
            f"{arguments.train_config}: goes on from an adapter, and the base of the plot is a model: merge it"
        )
    return config


def planned(arguments: Arguments) -> list[Run]:
    """Every training of the sweep."""
    from ugap.errors import InputError

    # By the word that was typed: it is in the names of the folder and of the run.
    limits: dict[str, float | None] = {}
    for word in arguments.limits:
        try:
            limits[word] = None if word == NONE else float(word)
        except ValueError:
            raise InputError(f"limits: {word!r} is neither a number nor {NONE}") from None
    runs = [
        Run(
            f"w={weight:g}, " + ("no limit" if limit is None else f"limit {word}"),
            f"weight-{weight:g}-limit-{word}",
            {"objective": OURS, "mode": None, "weight": weight, "constraint_limit": limit},
        )
        for weight in arguments.weights
        for word, limit in limits.items()
    ]
    for name in arguments.objectives:
        if name not in (*NAMES, NONE):
            raise InputError(f"objectives: {name!r} is none of {', '.join((*NAMES, NONE))}")
        if name != NONE:
            runs.append(Run(NAMES[name], name, {"objective": name, "constraint_limit": None}))
    # A weight or limit that was typed twice is one training.
    return list({run.folder: run for run in runs}.values())


def train(one: Run, config: Mapping[str, Any], folder: Path, position: str) -> float:
    """Train, unless it is done; the seconds that it took, an interrupted part left out."""
    import yaml

    from ugap.cli.config import read_config
    from ugap.errors import InputError

    path, done, log = (folder / f"{one.folder}{suffix}" for suffix in (".yaml", ".done", ".log"))
    run_config = {**config, **one.settings, "output_dir": str(folder / one.folder)}
    if path.exists():
        before = read_config(path)
        differs = next((name for name in {**before, **run_config} if before.get(name) != run_config.get(name)), None)
        if differs is not None:
            raise InputError(
                f"{path}: {differs} was {before.get(differs)!r} and is {run_config.get(differs)!r} now; resume with "
                "the old settings or choose another folder"
            )
    if done.exists():
        return float(done.read_text(encoding="utf-8"))
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(run_config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    # A folder without this file has no checkpoint yet, which the trainer would refuse.
    again = ["--resume_from_checkpoint", "yes"] if (folder / one.folder / "ugap_run.json").exists() else []
    # A process of its own: memory and random states of one training must not reach the next.
    command = [sys.executable, "-m", "ugap.cli.main", "train", "sft", "--config", str(path), *again]
    print(f"training {position}, {one.name}: the log is {log}", flush=True)
    begin = time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        raise InputError(f"training {one.name} ended with status {status}: {last_line(log)} (log: {log})")
    seconds = round(time.monotonic() - begin, 1)
    with replacing(done) as temporary:
        temporary.write_text(f"{seconds}\n", encoding="utf-8")
    return seconds


def last_line(log: Path) -> str:
    """The last line of a log that says anything."""
    lines: Sequence[str] = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


if __name__ == "__main__":
    sys.exit(main(["eval", NAME, *sys.argv[1:]]))
