"""The benchmark of the head alone, on a tiny shape: its figures, its files, and what it says it could not measure."""

import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from eval.benchmarks import bench_scoring as bench
from ugap.cli.arguments import parse
from ugap.errors import InputError
from ugap.scoring.head import cpu
from ugap.scoring.head.statistics import head_statistics

heads = bench._heads()
HIDDEN, VOCABULARY, TOKENS = 24, 700, 40
ON_CPU = ["gemm", "naive", "trl", "ours-torch"]
ON_GPU = ["cce", "ours-triton-fused", "ours-triton-tiles"]


@pytest.fixture
def words() -> list[str]:
    words = ["--shapes", f"{HIDDEN}x{VOCABULARY}", "--tokens", str(TOKENS), "--device", "cpu", "--memory", "no"]
    return [*words, "--threads", "1"]


def no_compiler() -> None:
    raise RuntimeError("no compiler")


def run(words: list[str]) -> None:
    bench.run(parse(bench.Arguments, "eval bench_scoring", "", words))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw(dtype: torch.dtype = torch.float32, tokens: int = TOKENS, **options: Any) -> Any:
    return heads.Case.draw(heads.Shape("tiny", HIDDEN, VOCABULARY), tokens, dtype, "cpu", **options)


@pytest.mark.slow
def test_rows_and_table(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "check", no_compiler)
    run([*words, "--dtype", "float32", "bfloat16", "--tokens", "9", "--output", str(tmp_path / "head")])
    rows, printed = read(tmp_path / "head.csv"), capsys.readouterr().out
    by_case: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
    for row in rows:
        assert tuple(row) == bench.COLUMNS
        by_case.setdefault((row["dtype"], row["tokens"], row["pass"]), {})[row["variant"]] = row
    passes = [(n, which) for n in (str(TOKENS), "9") for which in bench.PASSES]
    assert list(by_case) == [(dtype, *one) for dtype in ("float32", "bfloat16") for one in passes]
    for (dtype, tokens, which), case in by_case.items():
        assert list(case) == list(heads.HEADS)
        for name in ON_CPU:
            row = case[name]
            rounds = [float(value) for value in row["rounds"].split()]
            assert len(rounds) == 3
            seconds = statistics.median(rounds)
            assert float(row["seconds"]) == seconds > 0
            assert float(row["tokens_per_second"]) == pytest.approx(int(tokens) / seconds)
            products = 1 if which == "forward" else 2 if name in ("gemm", "naive") else 3  # and the logits again
            operations = products * 2 * int(tokens) * HIDDEN * VOCABULARY
            assert float(row["teraflops"]) == pytest.approx(operations / seconds / 1e12)
            assert float(row["ratio_to_gemm"]) == pytest.approx(seconds / float(case["gemm"]["seconds"]))
            assert row["why_not"] == row["peak_extra_bytes"] == row["share_of_logits"] == ""
            exact = dtype == "float32" or name == "ours-torch"  # the others round their logits
            if name == "gemm":
                assert row["difference"] == row["gradient_difference"] == ""
            else:
                assert float(row["difference"]) < (1e-4 if exact else 0.1)
                assert (row["gradient_difference"] == "") == (which == "forward")
                assert float(row["gradient_difference"] or 0) < (1e-5 if dtype == "float32" else 0.02)
        for name in ON_GPU:
            assert case[name]["why_not"] == "its Triton kernels need a GPU"
            assert case[name]["seconds"] == case[name]["difference"] == ""
        for row in case.values():
            assert (row["hidden"], row["vocabulary"]) == (str(HIDDEN), str(VOCABULARY))
            assert row["device"] == "cpu"
            assert row["device_name"]
            assert row["threads"] == "1"
            assert torch.__version__.startswith(row["torch"])
            assert row["trl"]
    for dtype in ("float32", "bfloat16"):
        for which in bench.PASSES:
            assert printed.count(f"## 24x700 (24 x 700), {dtype}, {which}\n") == 1
            assert (tmp_path / f"head-{dtype}-{which}.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert printed.count("| 9 | `naive` | surprisal, entropy, varentropy, rank |") == 2
    assert printed.count("| 9 | `naive` | surprisal, entropy and their gradient |") == 2
    assert printed.count("- `ours-compiled` was not measured: its kernel cannot be compiled here (no compiler).") == 4
    assert printed.count("- `cce` was not measured: its Triton kernels need a GPU.") == 4


@pytest.mark.slow
def test_what_is_wrong_shows(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head with surprisals that are half a nat off, and one whose gradients have the wrong sign."""
    naive = heads.HEADS["naive"]

    def off(which: str, case: Any) -> Any:
        return heads.Computed(naive.run(case, which).surprisal + 0.5, naive.run(case, which).gradients)

    def turned(case: Any) -> Any:
        found = naive.run(case, "backward")
        return heads.Computed(found.surprisal, tuple(-gradient for gradient in found.gradients))

    wrong = {"off": heads.Head("", partial(off, "forward"), partial(off, "backward"), "")}
    wrong["turned"] = heads.Head("", naive.forward, turned, "")
    for name, head in wrong.items():
        monkeypatch.setitem(heads.HEADS, name, head)
    run([*words, "--variants", "naive", *wrong, "--output", str(tmp_path / "head")])
    found = {(row["variant"], row["pass"]): row for row in read(tmp_path / "head.csv")}
    for which in bench.PASSES:
        assert float(found["off", which]["difference"]) == pytest.approx(0.5, abs=1e-4)
        assert float(found["naive", which]["difference"]) < 1e-4
    assert float(found["turned", "backward"]["gradient_difference"]) == pytest.approx(2, abs=1e-4)
    assert float(found["off", "backward"]["gradient_difference"]) < 1e-5


@pytest.mark.slow
def test_a_head_that_fails_does_not_stop_the_others(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    naive, calls = heads.HEADS["naive"], iter(range(100))

    def too_large(case: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 128.00 GiB. GPU 0 has 79.10 GiB in all.")

    def at_times(case: Any) -> Any:
        if next(calls) == 2:
            raise RuntimeError("illegal\naddress")
        return naive.forward(case)

    monkeypatch.setitem(heads.HEADS, "too-large", heads.Head("", too_large, too_large, ""))
    monkeypatch.setitem(heads.HEADS, "at-times", heads.Head("", at_times, at_times, ""))
    variants = ["--variants", "too-large", "at-times", "gemm", "naive"]
    run([*words, *variants, "--passes", "forward", "--output", str(tmp_path / "head")])
    printed = capsys.readouterr().out
    reason = "out of memory (CUDA out of memory. Tried to allocate 128.00 GiB.)"
    assert f"- `too-large` was not measured: {reason}.\n" in printed
    assert "- `at-times` was not measured: RuntimeError: illegal address.\n" in printed
    found = {row["variant"]: row for row in read(tmp_path / "head.csv")}
    assert float(found["naive"]["ratio_to_gemm"]) > 0
    assert found["at-times"]["seconds"] == found["at-times"]["difference"] == ""


@pytest.mark.slow
def test_resume_measures_what_is_missing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, int, int]] = []
    whole = bench.measure

    def spy(row: dict[str, str], names: list[str], arguments: bench.Arguments) -> list[dict[str, Any]]:
        calls.append((row["pass"], int(row["tokens"]), len(names)))
        return whole(row, names, arguments)

    monkeypatch.setattr(bench, "measure", spy)
    output = [*words, "--passes", "forward", "--output", str(tmp_path / "head")]
    run([*output, "--variants", "gemm", "naive"])
    first = read(tmp_path / "head.csv")
    with pytest.raises(InputError, match=r"head\.csv is there already: --resume"):
        run([*output, "--variants", "gemm", "naive"])
    calls.clear()
    run([*output, "--variants", "naive", "--resume"])
    assert not calls
    assert read(tmp_path / "head.csv") == first
    run([*output, "--variants", "gemm", "naive", "--tokens", "9", "--resume"])
    assert calls == [("forward", 9, 2)]
    assert [row for row in read(tmp_path / "head.csv") if row["tokens"] != "9"] == first
    # A new variant is measured beside those that are there; another option is another case.
    calls.clear()
    run([*output, "--variants", "trl", "--resume"])
    run([*output, "--variants", "trl", "--softcap", "7", "--resume"])
    assert calls == [("forward", TOKENS, 3), ("forward", TOKENS, 1)]
    rows = read(tmp_path / "head.csv")
    assert [(row["tokens"], row["softcap"], row["variant"]) for row in rows] == [
        ("9", "", "gemm"),
        ("9", "", "naive"),
        (str(TOKENS), "", "gemm"),
        (str(TOKENS), "", "naive"),
        (str(TOKENS), "", "trl"),
        (str(TOKENS), "7.0", "trl"),
    ]
    capsys.readouterr()
    for row in rows:  # of another machine
        row["cpu"] = "another"
    with (tmp_path / "head.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, bench.COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    run([*output, "--variants", "gemm", "--resume"])
    assert read(tmp_path / "head.csv")[:-1] == rows
    assert "naive" not in capsys.readouterr().out


def test_an_interrupted_run_keeps_the_cases_it_has_done(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench.measure

    def interrupted(row: dict[str, str], names: list[str], arguments: bench.Arguments) -> list[dict[str, Any]]:
        if row["tokens"] == "9":
            raise KeyboardInterrupt
        return whole(row, names, arguments)

    monkeypatch.setattr(bench, "measure", interrupted)
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        run([*words, "--tokens", "9", "--passes", "forward", "--variants", "gemm", "naive", "--output", str(folder)])
    assert [(row["tokens"], row["variant"]) for row in read(folder / "bench_scoring.csv")] == [
        (str(TOKENS), "gemm"),
        (str(TOKENS), "naive"),
    ]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("trained_head", [False, True])
def test_gradients_of_every_head(trained_head: bool, softcap: float | None) -> None:
    """Of the states against the reference, and of a trained head's weight against autograd in float64."""
    case = draw(trained_head=trained_head, softcap=softcap)
    right = heads.reference(case, gradients=True)
    weight, hidden = case.weight.detach().double().requires_grad_(), case.hidden.double()
    logits = hidden @ weight.T
    log_p = (logits if softcap is None else softcap * torch.tanh(logits / softcap)).log_softmax(-1)
    surprisal = -log_p[torch.arange(TOKENS), case.targets]
    entropy = -(log_p.exp() * log_p).sum(-1)
    (expected,) = torch.autograd.grad([surprisal, entropy], [weight], [one.double() for one in case.upstream])
    torch.testing.assert_close(right.surprisal, surprisal.detach()[case.checked()])
    for name in ("naive", "trl", "liger", "ours-torch", "ours-compiled"):
        head = heads.HEADS[name]
        if name == "liger" and head.needs(case, "backward"):
            continue  # it is not among what the tests need, and has no soft cap
        for which in bench.PASSES:
            found = head.run(case, which)
            assert len(found.gradients) == (0 if which == "forward" else 2 if trained_head else 1)
            difference, of_gradient = head.differences(case, found, right)
            assert difference < 1e-4
            assert of_gradient is None if which == "forward" else of_gradient < 1e-5
        if trained_head:
            torch.testing.assert_close(found.gradients[1].double(), expected, rtol=1e-4, atol=1e-4)


def test_the_bare_product_does_the_products_of_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads.GEMM_ROWS, "cpu", 16)
    for trained_head, backward in ((False, 2), (True, 3)):
        case = draw(trained_head=trained_head)
        for which, products in (("forward", 1), ("backward", backward)):
            with torch.profiler.profile() as profile:
                heads.HEADS["gemm"].run(case, which)
            count = {event.key: event.count for event in profile.key_averages()}
            assert count["aten::mm"] + count.get("aten::addmm_", 0) == products * 3  # blocks of 16, 16 and 8 tokens


def test_inputs_look_like_a_language_model() -> None:
    case = heads.Case.draw(heads.Shape("", 64, 20_000), 512, torch.float32, "cpu")
    logits = case.hidden @ case.weight.T
    assert logits.std().item() == pytest.approx(3, abs=0.1)
    statistics_ = head_statistics(case.hidden, case.weight, case.targets, impl="torch")
    assert statistics_.surprisal.mean().item() == pytest.approx(statistics_.entropy.mean().item(), abs=0.3)
    quartiles = statistics_.rank.quantile(torch.tensor([0.25, 0.75]))
    assert quartiles[0] < 20
    assert quartiles[1] > 50
    again = heads.Case.draw(heads.Shape("", 64, 20_000), 512, torch.float32, "cpu")
    other = heads.Case.draw(heads.Shape("", 64, 20_000), 512, torch.float32, "cpu", seed=1)
    assert torch.equal(case.hidden, again.hidden)
    assert torch.equal(case.targets, again.targets)
    assert not torch.equal(case.hidden, other.hidden)


def test_timings_are_interleaved_after_the_warm_up(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def recorder(name: str) -> Callable[[Any], Any]:
        def forward(case: Any) -> Any:
            calls.append(name)
            return heads.Computed()

        return forward

    for name in "ab":
        monkeypatch.setitem(heads.HEADS, name, heads.Head("", recorder(name), recorder(name), ""))
    run([*words, "--variants", "b", "a", "--passes", "forward", "--repeats", "2"])
    assert "".join(calls) == "ab" + "abab"


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw()
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "trl.trainer.utils", None)
        assert heads.HEADS["trl"].needs(case, "forward").startswith("this needs TRL (")
    with monkeypatch.context() as patched:
        patched.setattr(cpu, "check", no_compiler)
        assert "no compiler" in heads.HEADS["ours-compiled"].needs(case, "forward")
    for name in ON_GPU:
        for which in bench.PASSES:
            assert heads.HEADS[name].needs(case, which) == "its Triton kernels need a GPU"


INTERPRETED = """
import sys, torch
from eval.benchmarks import bench_scoring as bench
from ugap.scoring.head import dispatch, triton_kernels
heads, fused = bench._heads(), []
whole = triton_kernels._fused
triton_kernels._fused = lambda *arguments: (fused.append(True), whole(*arguments))[1]
case = heads.Case.draw(heads.Shape("", 24, 300), 20, torch.float32, "cpu", trained_head=True)
right = heads.reference(case, gradients=True)
for name in ("ours-triton-fused", "ours-triton-tiles"):
    fused.clear()
    for which in bench.PASSES:
        difference, of_gradient = heads.HEADS[name].differences(case, heads.HEADS[name].run(case, which), right)
        assert difference < 1e-4 and (of_gradient or 0) < 1e-4, (name, which, difference, of_gradient)
    assert bool(fused) == (name == "ours-triton-fused")
def fails(*arguments):
    raise OSError("no assembler")
triton_kernels._by_tiles = fails
try:
    heads.HEADS["ours-triton-tiles"].run(case, "forward")
except OSError as error:
    print(error, dispatch._given_up)
"""


@pytest.mark.slow
def test_our_kernels_under_the_interpreter() -> None:
    """Each variant takes its own way, and where torch would step in for the kernels there is no figure."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    root = Path(bench.__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "no assembler {}\n"


@pytest.mark.slow
def test_peak_memory(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The naive head holds the logits several times over, ours a tile of them."""
    vocabulary, tokens = 60_000, 256
    size = 4 * vocabulary * tokens
    words = ["--shapes", f"8x{vocabulary}", "--tokens", str(tokens), "--device", "cpu", "--threads", "1"]
    peak = {}
    for name in ("naive", "ours-torch"):
        run([*words, "--passes", "forward", "--only", name])
        peak[name] = json.loads(capsys.readouterr().out)["peak_extra_bytes"]
    assert peak["naive"] > 2 * size
    assert 0 < peak["ours-torch"] < peak["naive"] / 2
    run([*words, "--only", "cce"])
    assert json.loads(capsys.readouterr().out) == {"why_not": "its Triton kernels need a GPU"}

    children: list[list[str]] = []

    def in_child(program: str, child: list[object]) -> dict[str, Any]:
        assert program == bench.__file__
        children.append(list(map(str, child)))
        if "trl" in child:
            return {"why_not": "its process ended with status -9", "status": -9}
        return {"peak_extra_bytes": size // 4}

    monkeypatch.setattr(vars(bench)["bench_utils"], "in_child", in_child)
    options = ["--passes", "backward", "--trained_head", "--softcap", "30", "--repeats", "1"]
    run([*words, *options, "--variants", "naive", "trl", "--output", str(tmp_path / "head")])
    child = parse(bench.Arguments, "", "", children[0])
    assert (child.only, child.shapes, child.tokens, child.passes) == (
        "naive",
        [f"8x{vocabulary}"],
        [tokens],
        ["backward"],
    )
    assert (child.trained_head, child.softcap, child.dtype, child.threads) == (True, 30.0, ["float32"], 1)
    naive, trl = read(tmp_path / "head.csv")
    assert float(naive["share_of_logits"]) == 0.25
    assert trl["why_not"] == "its process ended with status -9"
    assert trl["seconds"] == ""


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--shapes", "gemma-3-270"], "unknown shape 'gemma-3-270'; did you mean gemma-3-270m?"),
        (["--shapes", "0x100"], "unknown shape '0x100' (there are gemma-3-270m,"),
        (["--variants", "navie"], "unknown variant 'navie'; did you mean naive?"),
        (["--only", "our-torch"], "unknown variant 'our-torch'; did you mean ours-torch?"),
        (["--passes", "backwards"], "unknown pass 'backwards'; did you mean backward?"),
        (["--dtype", "float31"], "unknown dtype 'float31'; did you mean float32?"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--tokens", "0"], "--tokens: expected a positive number, got 0"),
        (["--repeats", "-1"], "--repeats: expected a positive number, got -1"),
        (["--threads", "0"], "--threads: expected a positive number, got 0"),
        (["--softcap", "0"], "--softcap: expected a positive number, got 0.0"),
        (["--resume"], "--resume needs the --output"),
        (["--token", "3"], "unknown option --token; did you mean --tokens?"),
    ],
)
def test_bad_input_is_one_line(more: list[str], message: str, refused: Callable[..., str]) -> None:
    assert message in refused("eval", "bench_scoring", *more)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(refused: Callable[..., str]) -> None:
    assert "torch finds no CUDA device" in refused("eval", "bench_scoring", "--device", "cuda")


def test_a_file_that_is_not_ours(words: list[str], tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    line = refused("eval", "bench_scoring", *words, "--output", str(tmp_path / "other.csv"), "--resume")
    assert "other.csv is not a CSV of this benchmark" in line


def test_help_needs_no_torch() -> None:
    code = "from ugap.cli.main import main\nassert main(['eval', 'bench_scoring', '--help']) == 0"
    code += "\nimport sys\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert "ugap eval bench_scoring --device cpu" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.slow
def test_as_a_program_with_memory_and_the_compiled_fold(tmp_path: Path) -> None:
    words = ["--shapes", "32x40000", "--tokens", "64", "--device", "cpu", "--threads", "1", "--passes", "forward"]
    words += ["--variants", "naive", "ours-compiled", "--output", f"{tmp_path}/"]
    subprocess.run([sys.executable, bench.__file__, *words], capture_output=True, check=True)
    rows = read(tmp_path / "bench_scoring.csv")
    assert [row["variant"] for row in rows] == ["naive", "ours-compiled"]
    for row in rows:
        assert row["why_not"] == row["ratio_to_gemm"] == ""  # without the bare product there is no ratio to it
        assert float(row["difference"]) < 1e-4
        share = float(row["peak_extra_bytes"]) / (64 * 40_000 * 4)
        assert float(row["share_of_logits"]) == pytest.approx(share)
        assert share > 0


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    """Every head that is installed runs, forward and backward, and is near the reference."""
    words = ["--shapes", "128x5000", "--tokens", "64", "1024", "--trained_head", "--output", f"{tmp_path}/"]
    run(words)
    rows = read(tmp_path / "bench_scoring.csv")
    assert len(rows) == 2 * 2 * len(heads.HEADS)
    needed = {"gemm", "naive", "trl", "ours-torch", "ours-triton-fused", "ours-triton-tiles"}
    for row in rows:
        assert row["device"] == "cuda"
        assert row["dtype"] == "bfloat16"
        if row["variant"] in needed:
            assert row["why_not"] == "", row
        if row["why_not"] or row["variant"] == "gemm":
            continue
        ours = row["variant"].startswith("ours")
        assert float(row["difference"]) < (1e-3 if ours else 0.2), row
        assert float(row["gradient_difference"] or 0) < 0.05, row
        assert float(row["seconds"]) > 0
        assert float(row["peak_extra_bytes"]) > 0
    assert len(list(tmp_path.glob("*.png"))) == 2
