"""The one command for a GPU: rehearsed whole on a CPU, and what it does with steps that fail or take too long."""

import csv
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.benchmarks import bench_gpu as bench
from eval.benchmarks import random_model
from ugap.cli.arguments import parse
from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.sampling.params import human_params

STEPS = ["tests", "agreement", "head", "model", "sampler", "scorer", "training", "blocks"]


def python(name: str, code: str, limit: float = 60, **options: bool) -> bench.Step:
    return bench.Step(name, limit, [sys.executable, "-c", code], **options)


def run(folder: Path, *more: str) -> None:
    bench.run(parse(bench.Arguments, "eval bench_gpu", "", ["--device", "cpu", "--output", str(folder), *more]))


def rows(folder: Path) -> dict[str, dict[str, object]]:
    found = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in found}


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def replace(*steps: bench.Step) -> None:
        monkeypatch.setattr(bench, "steps", lambda *arguments: iter(steps))

    return replace


def test_the_gpu_tests_are_found() -> None:
    """Every file with tests for a GPU is among those that the command runs."""
    marked = [path for path in (bench.ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text()]
    named = [bench.ROOT / name for name in bench.TESTS]
    assert all(path.exists() for path in named)
    assert marked
    for path in marked:
        assert any(path == name or name in path.parents for name in named), path


@pytest.mark.slow
def test_the_rehearsal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every step runs to its end on tiny shapes, the kernels in their interpreter."""
    run(tmp_path)
    found = rows(tmp_path)
    assert list(found) == STEPS
    assert {name: row["status"] for name, row in found.items()} == dict.fromkeys(STEPS, "done")
    assert len(list(tmp_path.iterdir())) <= 8  # what comes back from a lent machine
    summary = (tmp_path / "summary.md").read_text()
    for line in ("triton-fused` |", "triton-tiles` | backward |", "ours-torch` |", "naive` |", "sft-ours` |", "ugap |"):
        assert f"| {line}" in summary or f"| `{line}" in summary, line
    assert "nan" not in summary
    printed = capsys.readouterr().out
    assert printed.index("# Steps") < printed.index("# Aims")
    sampler, training = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("sampler", "training"))
    assert set(sampler["step_seconds"]) == {"2", "3"}
    assert training["variants"]["trl"]["peak_bytes"] > 0
    assert training["variants"]["shared"]["peak_bytes"] > 0


def test_a_step_that_fails_costs_the_others_nothing(use: Callable[..., None], tmp_path: Path) -> None:
    use(python("a", "print('first')"), python("b", "import sys; sys.exit('no')"), python("c", "print('last')"))
    run(tmp_path)
    found = rows(tmp_path)
    assert {name: row["status"] for name, row in found.items()} == {"a": "done", "b": "failed", "c": "done"}
    assert found["c"]["printed"] == "last\n"
    log = (tmp_path / "log.txt").read_text()
    assert "=== b: " in log
    assert "\nno\n" in log


@pytest.mark.slow
def test_a_step_that_takes_too_long_ends_with_all_its_processes(
    use: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "LEAST", 0.1)
    started = tmp_path / "started"
    child = f"import pathlib, time; pathlib.Path({str(started)!r}).write_text('x'); time.sleep(600)"
    code = f"import subprocess, sys; print('half', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    use(python("slow", code, limit=5), python("after", "print('after')"))
    begin = time.monotonic()
    run(tmp_path / "out")
    assert time.monotonic() - begin < 60
    found = rows(tmp_path / "out")
    assert (found["slow"]["status"], found["slow"]["printed"]) == ("too long", "half\n")
    assert found["after"]["status"] == "done"
    assert started.exists()
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(started) not in running


def test_no_time_is_left(use: Callable[..., None], tmp_path: Path) -> None:
    use(python("a", "import time; time.sleep(2)"), python("b", "print(1)"))
    run(tmp_path, "--minutes", str((bench.LEAST + 1) / 60))
    assert {name: row["status"] for name, row in rows(tmp_path).items()} == {"a": "done", "b": "no time"}


def test_steps_of_an_earlier_run_are_kept(use: Callable[..., None], tmp_path: Path) -> None:
    use(python("a", "print('old a')"), python("b", "print('old b')"))
    run(tmp_path)
    use(python("a", "print('new a')"), python("b", "print('new b')"))
    run(tmp_path, "--steps", "b")
    assert [row["printed"] for row in rows(tmp_path).values()] == ["old a\n", "new b\n"]
    assert "old a" in (tmp_path / "summary.md").read_text()


def test_a_step_that_reads_the_model_has_it_made(use: Callable[..., None], tmp_path: Path) -> None:
    use(python("model", "print('made')"), python("a", "1"), python("scorer", "print('read')", needs_model=True))
    run(tmp_path, "--steps", "scorer")
    assert list(rows(tmp_path)) == ["model", "scorer"]


def test_aims(tmp_path: Path) -> None:
    assert all(found == "not measured" for _, _, found in bench.aims(tmp_path))
    row = {
        "hidden": "4096",
        "vocabulary": "131072",
        "tokens": "8192",
        "pass": "forward",
        "variant": "ours-triton-tiles",
    }
    row |= {"seconds": "0.0131", "difference": "2e-5", "share_of_logits": "0.016"}
    with (tmp_path / "head.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        writer.writeheader()
        writer.writerows([row, {**row, "variant": "trl", "seconds": "0.5", "difference": "0.1"}])
    (tmp_path / "sampler.json").write_text(json.dumps({"step_seconds": {"64": {"model": 0.02, "ugap": 0.0003}}}))
    peaks = {"trl": {"peak_bytes": 4e9}, "shared": {"peak_bytes": 4.1e9}}
    (tmp_path / "training.json").write_text(json.dumps({"variants": peaks}))
    found = [measured for _, _, measured in bench.aims(tmp_path)]
    assert found == ["ours-triton-tiles 13.1 ms", "not measured", "2.0e-05", "ours-triton-tiles 1.6%", "1.5%", "1.02"]


def test_bad_input(use: Callable[..., None], tmp_path: Path) -> None:
    use(python("head", "raise SystemExit(1)"))
    with pytest.raises(InputError, match="unknown step 'haed'; did you mean head"):
        run(tmp_path, "--steps", "haed")
    with pytest.raises(InputError, match=r"--minutes: expected a positive number, got 0\.0"):
        run(tmp_path, "--minutes", "0")
    with pytest.raises(InputError, match=r"no step ended well: see .*log\.txt"):
        run(tmp_path)
    (tmp_path / "results.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match=r"results\.jsonl is not of this benchmark"):
        run(tmp_path)


@pytest.mark.slow
def test_the_random_model_has_people_that_a_sampler_can_follow(tmp_path: Path) -> None:
    random_model.make(tmp_path, "tiny", "cpu")
    profile = HumanProfile.load(tmp_path / random_model.PROFILE)
    vocabulary = random_model.SIZES["tiny"]["vocab_size"]
    assert max(human_params(profile, "creative")["ranks"]) <= 1 + vocabulary // random_model.DEEPEST
    means = profile.kind("creative").means
    assert means["surprisal"] == pytest.approx(means["entropy"], rel=0.05)
    assert 1 < means["entropy"] < 5  # as uncertain as a real model, not as a flat distribution
