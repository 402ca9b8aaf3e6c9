"""Everything that a GPU has to tell, in ten minutes: the gpu tests, the head, sampler, scorer and training.

Design choices:
- Each step is a process of its own with a limit of its own. One that fails or takes too long costs the others nothing.
- The most valuable steps come first, and the results are on disk after each: a run that is cut off loses one step.
- A model of random weights stands for real ones, since such a machine has neither models nor a network.
- On a CPU the same steps run with tiny shapes, the Triton kernels in their interpreter. So nothing runs for the first
  time on the GPU.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ugap.cli.arguments import option
from ugap.cli.main import main
from ugap.cli.programs import load_program
from ugap.cli.suggest import did_you_mean
from ugap.errors import InputError
from ugap.files import replacing

if TYPE_CHECKING:
    from eval.benchmarks import bench_utils
else:
    bench_utils = load_program(Path(__file__).with_name("bench_utils.py"))

DESCRIPTION = """\
Run the gpu tests and time head, sampler, scorer and training, each beside its peers, in nine minutes.

examples:
  make bench-gpu OUT=runs/gpu
  ugap eval bench_gpu --output runs/gpu --steps head blocks --minutes 4
  ugap eval bench_gpu --output runs/rehearsal --device cpu

Steps, the most valuable first:
  tests      the gpu tests
  agreement  our heads against float64 at real sizes
  head       the head beside TRL, Liger Kernel, cut-cross-entropy and the bare product
  model      makes a model of random weights for the next three: 1B on a GPU, tiny on a CPU
  sampler    a step of decoding
  scorer     whole texts, from strings to statistics
  training   ten steps of GRPO and of SFT beside TRL's own trainers
  blocks     other sizes of the kernels' blocks and tiles

--output gets summary.md, results.jsonl (a line for each step), log.txt, and what the steps write. It keeps the steps of
an earlier run unless they run again."""

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = ("tests/scoring", "tests/sampling/portable/test_human.py", "tests/models/test_load.py", "tests/eval")
# Options of each step's program, beside the folders. A test file that needs what a bare machine lacks stops no other.
ON_A_GPU = {
    "tests": "-q -m gpu -p no:cacheprovider --continue-on-collection-errors --numprocesses 8",
    "agreement": "--shapes 4096x131072 640x262144",
    "head": "--shapes 4096x131072 640x262144 --tokens 8192 2048 32768 --trained_head --dtype bfloat16 --repeats 5",
    "sampler": "--step_batch_sizes 1 8 64 --batch_size 64 --new_tokens 32 --repeats 3",
    "scorer": "--tokens 32768 --length 1024 --repeats 3",
    "training": "--steps 10 --variants trl trivial shared sft-trl sft-ours",
    "blocks": "--shapes 4096x131072 640x262144 --tokens 8192 --repeats 5",
}
REHEARSAL = {
    "tests": "-q -m gpu -p no:cacheprovider --continue-on-collection-errors",
    "agreement": "--shapes 32x300 24x700 --tokens 40",
    "head": "--shapes 32x300 --tokens 40 16 --trained_head --dtype bfloat16 --repeats 2 --memory no",
    "sampler": "--step_batch_sizes 2 3 --batch_size 3 --new_tokens 4 --repeats 2",
    "scorer": "--tokens 128 --length 64 --repeats 1 --memory no --variants backbone gemm ours-eager naive",
    "training": "--steps 2 --num_generations 2 --batch_size 2 --new_tokens 8 --text_tokens 16",
    "blocks": "--shapes 32x300 --tokens 24 --repeats 1",
}
LEAST = 10.0  # seconds: with less left, a step is not begun
TAIL = 10_000  # characters of the summary that are printed last
MAKE_MODEL = """
import sys
from pathlib import Path
from eval.benchmarks.random_model import make
make(Path(sys.argv[1]), *sys.argv[2:])
"""


class Step(NamedTuple):
    """One process.

    Args:
        name (`str`): Its name in the results.
        limit (`float`): Seconds after which it is killed.
        command (`list[str]`): What runs.
        needs_model (`bool`): Whether it reads the model of random weights.
        interpreted (`bool`): Whether Triton's interpreter stands in for a GPU.
    """

    name: str
    limit: float
    command: list[str]
    needs_model: bool = False
    interpreted: bool = False


@dataclass(kw_only=True)
class Arguments:
    """Arguments of `ugap eval bench_gpu`."""

    output: str = option("folder of the results", group="output", metavar="FOLDER")
    device: Literal["cuda", "cpu"] | None = option(
        "cpu is a rehearsal with tiny shapes (default: cuda where there is one)", default=None, group="run"
    )
    minutes: float = option("time for all steps together", default=9.0, group="run")
    steps: list[str] = option("steps to run (default: all)", default=[], group="run", metavar="NAME")


def run(arguments: Arguments) -> None:
    """Run the steps, and print the summary last.

    Raises:
        InputError: An unknown step, no such device, or no step that ended well.
    """
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device: torch finds no CUDA device here; --device cpu is a rehearsal")
    if arguments.minutes <= 0:
        raise InputError(f"--minutes: expected a positive number, got {arguments.minutes}")
    results = Results(Path(arguments.output).expanduser(), device)
    deadline = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as work:
        chosen = list(steps(Path(work), results.folder, device))
        for name in arguments.steps:
            if name not in [step.name for step in chosen]:
                names = [step.name for step in chosen]
                raise InputError(f"unknown step {name!r}{did_you_mean(name, names) or f' ({chr(44).join(names)})'}")
        wanted = set(arguments.steps or [step.name for step in chosen])
        if any(step.needs_model for step in chosen if step.name in wanted):
            wanted.add("model")
        for step in chosen:
            if step.name in wanted:
                results.put(perform(step, deadline, results.folder / "log.txt"))
    print(results.summary()[-TAIL:])
    if not any(row["status"] == "done" for row in results.rows.values() if row["step"] in wanted):
        raise InputError(f"no step ended well: see {results.folder / 'log.txt'}")


def steps(work: Path, output: Path, device: str) -> Iterator[Step]:
    """All steps, the most valuable first.

    Args:
        work (`Path`): Folder of the model of random weights.
        output (`Path`): Folder of the results.
        device (`str`): `"cuda"`, or `"cpu"` for the rehearsal.
    """
    tiny = device == "cpu"
    options = REHEARSAL if tiny else ON_A_GPU

    def program(step: str, name: str, *more: object) -> list[str]:
        words = [*options[step].split(), *map(str, more)]
        return [sys.executable, str(HERE / f"{name}.py"), *words, "--device", device]

    model = ("--model", work / "model", "--dtype", "bfloat16")
    profile = ("--profile", work / "profile.json")
    texts = work / "texts.jsonl"
    head = program("head", "bench_scoring", "--output", output / "head.csv", "--resume")
    sampler = program("sampler", "bench_sampling", *model, *profile, "--output", output / "sampler.json")
    scorer = program("scorer", "bench_texts", *model, "--texts", texts)
    training = program(
        "training", "bench_training", *model, *profile, "--data", texts, "--output", output / "training.json"
    )
    # The order is by worth: where the time is short, the last steps are left out.
    yield Step("tests", 110, [sys.executable, "-m", "pytest", *options["tests"].split(), *TESTS])
    yield Step("agreement", 60, program("agreement", "bench_kernels"), interpreted=tiny)
    yield Step("head", 150, head)
    yield Step("model", 60, [sys.executable, "-c", MAKE_MODEL, str(work), "tiny" if tiny else "1b", device])
    yield Step("sampler", 70, sampler, needs_model=True)
    yield Step("scorer", 60, scorer, needs_model=True)
    yield Step("training", 190, training, needs_model=True)
    yield Step("blocks", 120, program("blocks", "bench_kernels", "--what", "blocks"), interpreted=tiny)


def perform(step: Step, deadline: float, log: Path) -> dict[str, Any]:
    """Run a step: its name, status (`"done"`, `"failed"`, `"too long"`, `"no time"`), seconds, and what it printed."""
    limit = min(step.limit, deadline - time.monotonic())
    if limit < LEAST:
        bench_utils.progress(f"{step.name}: no time is left")
        return {"step": step.name, "status": "no time", "seconds": 0.0, "printed": ""}
    bench_utils.progress(f"{step.name}: {limit:.0f} s at most")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}
    environment |= {"TRITON_INTERPRET": "1"} if step.interpreted else {}
    begin = time.monotonic()
    with tempfile.TemporaryFile() as printed, log.open("ab") as errors:
        errors.write(f"\n=== {step.name}: {' '.join(step.command)}\n".encode())
        errors.flush()
        # A session of its own, for the processes that it starts to end with it.
        process = subprocess.Popen(
            step.command, stdout=printed, stderr=errors, env=environment, cwd=ROOT, start_new_session=True
        )
        try:
            status = "done" if process.wait(limit) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = "too long"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with its workers, which hold GPU memory
                process.wait()
        printed.seek(0)
        text = printed.read().decode(errors="replace")
    seconds = time.monotonic() - begin
    bench_utils.progress(f"{step.name}: {status} after {seconds:.0f} s")
    return {"step": step.name, "status": status, "seconds": round(seconds, 1), "printed": text}


class Results:
    """The rows of all steps, and the files that hold them.

    Args:
        folder (`Path`): Where they are; made if it is not there.
        device (`str`): `"cuda"` or `"cpu"`.
    """

    def __init__(self, folder: Path, device: str):
        import torch

        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path = folder, folder / "results.jsonl"
        self.machine = bench_utils.environment(("torch", "triton", "transformers", "trl", "peft", "liger_kernel"))
        self.machine["device_name"] = torch.cuda.get_device_name() if device == "cuda" else self.machine["cpu"]
        self.rows: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            try:
                rows = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
                self.rows = {row["step"]: row for row in rows}
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self.path} is not of this benchmark: {error}") from error

    def put(self, row: dict[str, Any]) -> None:
        """Take the row of a step, and write all of them and the summary."""
        self.rows[row["step"]] = {**row, "device": self.machine["device_name"], "date": self.machine["date"]}
        with replacing(self.path) as temporary:
            lines = [json.dumps(one) + "\n" for one in self.rows.values()]
            temporary.write_text("".join(lines), encoding="utf-8")
        with replacing(self.folder / "summary.md") as temporary:
            temporary.write_text(self.summary(), encoding="utf-8")

    def summary(self) -> str:
        """What every step printed, and at the end how each of them went and what was aimed at."""
        machine = "\n".join(f"- {name}: {value}" for name, value in self.machine.items() if value is not None)
        parts = [f"# {self.machine['device_name']}\n\n{machine}\n"]
        parts += [
            f"# {row['step']}\n\n{row['printed'].strip()}\n" for row in self.rows.values() if row["printed"].strip()
        ]
        parts.append("# Steps\n\n| step | status | seconds |\n|---|---|---:|")
        parts += [f"| {row['step']} | {row['status']} | {row['seconds']} |" for row in self.rows.values()]
        parts.append("\n# Aims on an H100\n\n| what | aim | measured |\n|---|---|---|")
        parts += [f"| {what} | {aim} | {measured} |" for what, aim, measured in aims(self.folder)]
        return "\n".join(parts) + "\n"


def aims(folder: Path) -> Iterator[tuple[str, str, str]]:
    """What the project aims at on an H100, and what was measured of it."""
    rows = _csv(folder / "head.csv")
    at = [row for row in rows if (row["hidden"], row["vocabulary"], row["tokens"]) == ("4096", "131072", "8192")]
    shape = "8,192 tokens, 4,096 x 131,072, bfloat16"
    for which, what, aim in (
        ("forward", "all four statistics, forward", 13.5),
        ("backward", "surprisal and entropy, forward and backward, trained head", 55.0),
    ):
        ours = [row for row in at if row["pass"] == which and row["variant"].startswith("ours") and row["seconds"]]
        times = ", ".join(f"{row['variant']} {1e3 * float(row['seconds']):.1f} ms" for row in ours)
        yield f"{what} ({shape})", f"at most {aim} ms", times or "not measured"
    ours = [row for row in rows if row["variant"].startswith("ours") and row["difference"]]
    worst = max((float(row["difference"]) for row in ours), default=None)
    yield "largest difference of a surprisal from float64", "1e-3", "not measured" if worst is None else f"{worst:.1e}"
    shares = [f"{row['variant']} {float(row['share_of_logits']):.1%}" for row in at if _ours_forward(row)]
    yield f"memory of the logits' ({shape})", "flat in the vocabulary", ", ".join(shares) or "not measured"
    step = _json(folder / "sampler.json").get("step_seconds", {}).get("64")
    share = "not measured" if step is None else f"{100 * step['ugap'] / step['model']:.1f}%"
    yield "sampler's share of a decoding step of 64 sequences", "at most 2%", share
    variants = _json(folder / "training.json").get("variants", {})
    peaks = [variants[name]["peak_bytes"] for name in ("trl", "shared") if "peak_bytes" in variants.get(name, {})]
    ratio = f"{peaks[1] / peaks[0]:.2f}" if len(peaks) == 2 else "not measured"
    yield "GRPO's peak memory over TRL's with a trivial reward", "at most 1.05", ratio


def _ours_forward(row: dict[str, str]) -> bool:
    return row["pass"] == "forward" and row["variant"].startswith("ours") and bool(row["share_of_logits"])


def _csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


if __name__ == "__main__":
    sys.exit(main(["eval", "bench_gpu", *sys.argv[1:]]))
