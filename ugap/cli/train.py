"""`ugap train PROGRAM`: runs a program of the folder `train` in this process, or in many through accelerate.

A program has the form of a command with two dataclasses: `Arguments` and `CONFIG`, the config of its trainer. Both are
read from one flat YAML file and from the command line, which wins. `DEFAULTS` are its defaults that differ from the
trainer's, and `run(arguments, config)` runs it. Its file is a script too: `accelerate launch train/sft.py ...`.
"""

import argparse
import dataclasses
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ugap.cli.programs import configs_folder, load_program, pick_program
from ugap.errors import InputError

if TYPE_CHECKING:
    from types import ModuleType

    from ugap.cli.arguments import CommandParser

# The options of TRL's configs that the help shows; `--help_all` shows all.
TRAINING = "training"
SHOWN = {
    **dict.fromkeys(
        [
            "max_steps",
            "num_train_epochs",
            "learning_rate",
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "max_completion_length",
            "num_generations",
            "temperature",
            "beta",
            "bf16",
            "gradient_checkpointing",
            "use_cpu",
            "seed",
        ],
        TRAINING,
    ),
    **dict.fromkeys(
        [
            "output_dir",
            "resume_from_checkpoint",
            "logging_steps",
            "save_steps",
            "report_to",
            "run_name",
            "push_to_hub",
            "hub_model_id",
        ],
        "output",
    ),
}
CLOSING = """\
launch (on the command line alone; without them the program runs in this process):
  --num_processes N           processes, over all machines (default: one for each GPU)
  --accelerate NAME|FILE      config of accelerate: multi_gpu, fsdp2, zero2, or a file
  --num_machines N, --machine_rank N, --main_process_ip ADDRESS, --main_process_port N
                              several machines: the same command on each, with its rank

--resume_from_checkpoint yes resumes the run in the output folder; a path resumes from that checkpoint.
After SIGTERM a run finishes its step, saves a checkpoint and ends with status 143.
All options of the trainer's config in TRL work too: --help_all shows them."""


@dataclass(frozen=True)
class Launch:
    """The processes for accelerate to start, and their machines."""

    num_processes: int | None = None
    accelerate: str | None = None
    num_machines: int | None = None
    machine_rank: int | None = None
    main_process_ip: str | None = None
    main_process_port: int | None = None

    @property
    def asked(self) -> bool:
        """Whether any option of the launch was given."""
        return self != Launch()


def start(words: list[str]) -> int:
    """Run the program that the first word names, or print the list; returns the exit status (143 after SIGTERM).

    Raises:
        InputError: There is no such program, its options are wrong, or its input is bad.
    """
    path = pick_program("train", words)
    if path is None:
        return 0
    with warnings.catch_warnings():
        # TRL uses options that transformers has renamed; its users can change nothing about it.
        warnings.filterwarnings("ignore", ".* is deprecated and will be removed in v6", FutureWarning)
        return _start(path, words[1:])


def _start(path: Path, words: Sequence[str]) -> int:
    from ugap.cli.arguments import see_help

    module = load_program(path)
    try:
        with see_help(f"train {path.stem}"):
            launch, program_words = split_launch(words)
            reader = parser(path.stem, module)
            if not launch.asked:
                arguments, config = reader.parse(program_words)
            else:
                reader.check(program_words)  # an error is printed here once, rather than by each process
    except SystemExit:  # the help has been printed
        return 0
    if launch.asked:
        return run_launched(path, launch, program_words)
    from ugap.cli.training import say
    from ugap.files import locked
    from ugap.training.termination import STATUS, Terminated

    try:
        with locked(config.output_dir):
            module.run(arguments, config)
    except Terminated as ended:
        say(f"ugap: {ended}; --resume_from_checkpoint yes resumes it", sys.stderr)
        return STATUS
    return 0


def parser(name: str, module: "ModuleType") -> "CommandParser":
    """The parser of a program's two dataclasses."""
    from ugap.cli.arguments import CommandParser

    return CommandParser(
        [module.Arguments, module.CONFIG],
        f"train {name}",
        module.DESCRIPTION,
        sections={**dict.fromkeys(own_fields(module.CONFIG), "trainer"), **SHOWN},
        defaults=partial(defaults, name, module.DEFAULTS),
        closing=CLOSING,
    )


def own_fields(config: type) -> list[str]:
    """The options that a config adds to the config of TRL that it is derived from."""
    trl = next(base for base in config.__mro__ if base.__module__.split(".")[0] == "trl")
    inherited = {field.name for field in dataclasses.fields(trl)}
    return [field.name for field in dataclasses.fields(config) if field.name not in inherited]


def defaults(name: str, of_program: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """The defaults of a training, instead of TRL's.

    On a CPU, mixed precision is off, and so is gradient checkpointing, which gains nothing there. An adapter gets a
    higher learning rate than all weights. Nothing is reported to a service that was not named.
    """
    import torch

    values: dict[str, Any] = {
        "output_dir": f"runs/{name}",
        "report_to": "none",
        "disable_tqdm": not sys.stderr.isatty(),  # transformers would decide by its log level
        "ddp_find_unused_parameters": False,  # none exist, and the search costs a pass over the graph
    }
    if not options.full:
        values["learning_rate"] = 1e-4
    if options.use_cpu or not torch.cuda.is_available():
        values |= {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
    return {**values, **of_program}


def split_launch(words: Sequence[str]) -> tuple[Launch, list[str]]:
    """Take the options of the launch out of a command line.

    Raises:
        InputError: A value is missing or is no number.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for field in dataclasses.fields(Launch):
        kind = str if field.name in ("accelerate", "main_process_ip") else int
        finder.add_argument(f"--{field.name}", f"--{field.name.replace('_', '-')}", type=kind)
    try:
        options, rest = finder.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise InputError(f"{str(error.argument_name).partition('/')[0]}: {error.message}") from error
    if options.num_processes is not None and options.num_processes < 1:
        raise InputError(f"--num_processes is {options.num_processes}, and at least 1 is needed")
    return Launch(**vars(options)), rest


def launch_words(launch: Launch) -> list[str]:
    """The options of `accelerate launch`.

    Raises:
        InputError: There is no such config of accelerate.
    """
    import torch

    from ugap.cli.config import read_config

    config = None if launch.accelerate is None else _accelerate_config(launch.accelerate)
    n = launch.num_processes
    if n is None and (config is None or "num_processes" not in read_config(config)):
        n = max(1, torch.cuda.device_count()) * (launch.num_machines or 1)
    words = [] if n is None else ["--num_processes", str(n)]
    for name in ("num_machines", "machine_rank", "main_process_ip", "main_process_port"):
        value = getattr(launch, name)
        words += [] if value is None else [f"--{name}", str(value)]
    if config is not None:
        return [*words, "--config_file", str(config)]
    if launch.num_machines is None:
        words += ["--num_machines", "1"]
    # Spelt out: accelerate takes missing options from the user's own config file.
    # Precision is an option of the trainer: accelerate's own must not override it.
    return [*words, "--mixed_precision", "no", "--dynamo_backend", "no", *([] if n == 1 else ["--multi_gpu"])]


def run_launched(path: Path, launch: Launch, words: Sequence[str]) -> int:
    """Run a program in processes of accelerate; returns the exit status of the first that failed, or 0.

    Raises:
        InputError: accelerate cannot start them with these options.
    """
    import subprocess

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # In this process, not by `accelerate launch`: its error would hide ours behind a traceback.
    options = launch_command_parser().parse_args([*launch_words(launch), str(path), *words])
    sys.stdout.flush()
    try:
        launch_command(options)
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
    except subprocess.CalledProcessError as error:
        status = error.returncode
    except SignalException as error:
        status = -int(error.sigval)
    except (ValueError, ImportError, ConnectionError) as error:
        raise InputError(f"accelerate: {' '.join(str(error).split())}") from error
    else:
        return 0
    return status if status > 0 else 128 - status  # as a shell says that a signal has ended it


def _accelerate_config(name: str) -> Path:
    path, shipped = Path(name).expanduser(), configs_folder() / "accelerate" / f"{name.removesuffix('.yaml')}.yaml"
    if path.is_file():
        return path
    if shipped.is_file():
        return shipped
    names = sorted(config.stem for config in shipped.parent.glob("*.yaml"))
    raise InputError(f"--accelerate {name}: neither a file nor one of {', '.join(names)}")
