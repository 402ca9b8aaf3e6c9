"""The benchmark of whole texts on a tiny model: it measures what it says, in that order, and reports what it cannot."""

import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from eval.benchmarks import bench_texts as bench
from ugap.cli.arguments import parse
from ugap.errors import InputError
from ugap.scoring import Scorer, batching
from ugap.scoring.batching import Batch
from ugap.scoring.head import bfloat16, cpu, dispatch

EAGER = ["backbone", "gemm", "head-eager", "ours-eager", "trl", "naive"]
SENTENCES = (
    "Once upon a time there was a tailor who had three sons, and the youngest was called Simpleton. ",
    "The youngest went into the forest, and the old man said: give me a piece of your cake. ",
    "A function returns a value; the value of the expression is the value of the function. ",
)


def no_compiler() -> None:
    raise RuntimeError("no compiler")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    rows = [{"text": "".join(rng.choice(SENTENCES, 100)).strip()} for _ in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def save(
    tmp_path_factory: pytest.TempPathFactory,
    make_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    tokenizer_without_bos: PreTrainedTokenizerFast,
) -> Callable[..., Path]:
    """`save(bos=..., **config)`: the folder of a tiny model."""

    def make(bos: bool = True, **changes: int) -> Path:
        folder = tmp_path_factory.mktemp("model")
        make_model("llama", **changes).save_pretrained(folder)
        (tokenizer if bos else tokenizer_without_bos).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def folder(save: Callable[..., Path]) -> Path:
    return save()


@pytest.fixture
def words(folder: Path, texts: Path) -> list[str]:
    sizes = ["--tokens", "96", "--length", "48", "--threads", "1"]
    return ["--model", str(folder), "--texts", str(texts), "--device", "cpu", *sizes]


def load(words: list[str], dtype: str = "float32") -> tuple[bench.Case, list[str]]:
    return bench.load_case(parse(bench.Arguments, "bench", "", words), dtype)


@pytest.mark.parametrize("bos", [True, False])
def test_report(
    bos: bool, save: Callable[..., Path], texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bench.json"
    words = ["--model", str(save(bos=bos)), "--texts", str(texts), "--tokens", "96", "--length", "48", "--threads", "1"]
    words += ["--variants", *EAGER, "ours-split", "ours-triton", "head-triton", "--memory", "no"]
    words += ["--device", "cpu", "--output", str(output)]
    assert bench.main(words) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["settings"]["tokens"] == 96
    assert report["settings"]["device"] == report["environment"]["device"] == "cpu"
    assert report["environment"]["device_name"] == report["environment"]["cpu"]
    assert report["environment"]["threads"] == 1
    assert torch.__version__.startswith(report["environment"]["torch"])
    assert [run["dtype"] for run in report["runs"]] == ["float32", "bfloat16"]
    printed = capsys.readouterr().out
    for run, tolerance in zip(report["runs"], (1e-4, 0.3), strict=True):
        rows = {row["variant"]: row for row in run["rows"]}
        assert list(rows) == EAGER
        assert run["shapes"]["predicted_tokens"] == (96 if bos else 94)
        yardstick = rows["backbone"]["seconds"] + rows["gemm"]["seconds"]
        for name, row in rows.items():
            assert len(row["rounds"]) == 3
            assert row["seconds"] == statistics.median(row["rounds"]) > 0
            assert row["ratio"] == pytest.approx(row["seconds"] / yardstick)
            assert row["tokens_per_second"] == pytest.approx(run["shapes"]["predicted_tokens"] / row["seconds"])
            assert row["peak_extra_bytes"] is None
            if name in ("ours-eager", "trl", "naive"):
                assert row["difference"] < tolerance
                assert row["speedup"] == pytest.approx(rows["naive"]["seconds"] / row["seconds"])
            else:
                assert row["speedup"] is None
        assert any("ours-split" in note and "not measured" in note for note in run["notes"])
        for name in ("ours-triton", "head-triton"):
            assert f"`{name}` was not measured: its Triton kernels need a GPU." in run["notes"]
        assert any("`backbone`, `trl` and `naive` take 1 text," in note for note in run["notes"])
        assert any("16 continuations of 3 tokens" in note for note in run["notes"])
        for name, row in rows.items():
            cells = [f"`{name}`", row["computes"], f"{row['seconds']:.4g}", f"{row['tokens_per_second']:,.0f}"]
            assert f"| {' | '.join(cells)} |" in printed


def test_a_wrong_variant_shows_its_difference() -> None:
    found = {"ours-eager": np.array([1.0, 2.0]), "naive": np.array([1.0, 2.5])}
    rows = bench.table_rows({"ours-eager": [1.0, 3.0, 2.0], "naive": [8.0]}, found, {}, tokens=100)
    assert [row["difference"] for row in rows] == [0.0, 0.5]
    assert [row["seconds"] for row in rows] == [2.0, 8.0]
    assert [row["tokens_per_second"] for row in rows] == [50.0, 12.5]
    assert [row["speedup"] for row in rows] == [4.0, 1.0]
    assert [row["ratio"] for row in rows] == [None, None]


def test_timings_are_interleaved_after_a_short_warm_up() -> None:
    calls: list[tuple[str, int]] = []

    def recorder(name: str) -> bench.Run:
        return lambda n: calls.append((name, n))

    seconds, found, why_not = bench.time_interleaved({"a": recorder("a"), "b": recorder("b")}, n_texts=5, repeats=2)
    assert calls == [("a", 2), ("b", 2), ("a", 5), ("b", 5), ("a", 5), ("b", 5)]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert not found
    assert not why_not


def test_on_a_gpu_all_texts_warm_it_up_and_the_clock_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[object] = []

    def clock() -> float:
        events.append("clock")
        return 0.0

    monkeypatch.setattr("eval.benchmarks.bench_texts.bench_utils.synchronize", events.append)
    monkeypatch.setattr("time.perf_counter", clock)
    bench.time_interleaved({"a": lambda n: events.append(n)}, n_texts=5, repeats=1, device="cuda")
    assert events == ["cuda", "clock", 5, "cuda", "clock"] * 2


def test_a_run_that_fails_is_left_out_and_the_others_go_on() -> None:
    def fail(call: int, error: Exception) -> bench.Run:
        """A run that fails at its `call`-th call, and must not be called again."""
        calls: list[int] = []

        def run(n_texts: int) -> np.ndarray:
            calls.append(n_texts)
            assert len(calls) <= call
            if len(calls) == call:
                raise error
            return np.zeros(n_texts)

        return run

    runs = {
        "first": fail(1, RuntimeError("no such\nthing")),
        "good": lambda n: np.ones(n),
        "late": fail(3, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has ...")),
    }
    seconds, found, why_not = bench.time_interleaved(runs, n_texts=2, repeats=3)
    assert list(seconds) == list(found) == ["good"]
    assert len(seconds["good"]) == 3
    assert why_not == {"first": "RuntimeError: no such thing", "late": "out of memory"}
    with pytest.raises(InputError, match="bad"):
        bench.time_interleaved({"user": fail(1, InputError("bad"))}, n_texts=2, repeats=1)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU passes for a GPU, as far as the benchmark can tell."""

    def peak(work: Callable[[], object]) -> dict[str, int]:
        work()
        return {"peak_extra_bytes": 10**9}

    monkeypatch.setattr(bench.Case, "device", "cuda")
    monkeypatch.setattr("eval.benchmarks.bench_texts.bench_utils.synchronize", lambda device: None)
    monkeypatch.setattr("eval.benchmarks.bench_texts.bench_utils.peak_extra_on_gpu", peak)


@pytest.mark.usefixtures("as_on_a_gpu")
def test_baselines_take_several_texts_on_a_gpu(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "GPU_TOKENS", 2 * 48)
    arguments = parse(bench.Arguments, "bench", "", [*words, "--tokens", "144", "--repeats", "1"])
    arguments.variants = [*EAGER, "ours", "head", "ours-split"]
    case, _ = bench.load_case(arguments, "float32")
    assert [ids.tolist() for ids in case.batches(3)] == [
        [row.tolist() for row in case.rows[:2]],
        [row.tolist() for row in case.rows[2:]],
    ]
    arguments.device = None  # no process for memory
    run = bench.measure(arguments, "float32")
    rows = {row["variant"]: row for row in run["rows"]}
    assert list(rows) == EAGER
    assert all(rows[name]["difference"] < 1e-4 for name in ("head-eager", "trl", "naive"))
    assert all(row["peak_extra_bytes"] == 10**9 for row in rows.values())
    for name in ("ours", "head", "ours-split"):
        assert f"`{name}` was not measured: it is a kernel for CPUs." in run["notes"]
    assert any("`backbone`, `trl` and `naive` take 2 texts" in note for note in run["notes"])
    assert "Peak extra memory of `ours-eager, 4 times the tokens`: 1.00 GB." in run["notes"]


@pytest.mark.usefixtures("as_on_a_gpu")
def test_why_memory_was_not_measured_is_said(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(work: Callable[[], object]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("eval.benchmarks.bench_texts.bench_utils.peak_extra_on_gpu", full)
    arguments = parse(bench.Arguments, "bench", "", [*words, "--dtype", "float32"])
    assert bench.measure_alone(arguments, "naive") == {"why_not": "out of memory"}
    assert bench.measure_alone(arguments, "ours") == {"why_not": "it is a kernel for CPUs"}


@pytest.mark.parametrize("prepare", [bench.run_ours, bench.run_our_head])
def test_what_torch_does_in_place_of_a_kernel_is_not_measured(
    prepare: Callable[..., bench.Run], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(chosen: str) -> None:
        raise OSError("no\nassembler")

    monkeypatch.setattr(dispatch, "_given_up", {})
    monkeypatch.setattr(dispatch, "_module", broken)
    monkeypatch.setattr(cpu, "check", lambda: None)
    case, _ = load(words)
    with torch.no_grad():
        runs = {"kernel": prepare(case, "compiled"), "eager": prepare(case, "torch")}
    seconds, found, why_not = bench.time_interleaved(runs, n_texts=2, repeats=1)
    assert list(seconds) == list(found) == ["eager"]
    assert why_not == {"kernel": "its kernels cannot run here (OSError: no assembler)"}


@pytest.mark.parametrize(("there_is_one", "device"), [(True, "cuda"), (False, "cpu")])
def test_defaults_follow_from_the_device(there_is_one: bool, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    arguments = parse(bench.Arguments, "bench", "", [])
    arguments.settle()
    assert arguments.device == device
    assert arguments.dtype == {"cuda": ["bfloat16"], "cpu": ["float32", "bfloat16"]}[device]
    assert set(bench.VARIANTS) - set(arguments.variants) == ({"minicons"} if there_is_one else set())
    given = parse(bench.Arguments, "bench", "", ["--device", "cpu", "--dtype", "float16", "--variants", "minicons"])
    given.settle()
    assert (given.device, given.dtype, given.variants) == ("cpu", ["float16"], ["minicons"])


def test_peak_memory_of_a_variant_alone(
    save: Callable[..., Path], texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The naive way holds the logits of a text several times over, ours a tile of them."""
    vocabulary, n_tokens = 100_000, 256
    words = ["--model", str(save(vocab_size=vocabulary)), "--texts", str(texts), "--dtype", "float32"]
    words += ["--device", "cpu"]
    words += ["--tokens", str(n_tokens), "--length", str(n_tokens)]
    peak = {}
    for name in ("naive", "ours-eager"):
        assert bench.main([*words, "--only", name]) == 0
        peak[name] = json.loads(capsys.readouterr().out)["peak_extra_bytes"]
    logits = 4 * vocabulary * n_tokens
    assert peak["naive"] > 3 * logits
    assert 0 < peak["ours-eager"] < peak["naive"] / 2


def test_pieces_are_tokenised_to_exactly_their_length(words: list[str]) -> None:
    case, continuations = load(words)
    assert [len(row) for row in case.rows] == [49, 49]  # with BOS
    assert len(set(case.texts)) == 2
    assert len(continuations) == bench.N_CONTINUATIONS
    assert all(len(scores.token_ids) == 3 for scores in case.scorer.score(continuations))
    with pytest.raises(InputError, match=r"hold \d+ pieces of 48 tokens, and 9999 are needed"):
        bench.cut(case.texts, case.tokenizer, 48, 9999)


def test_sharing_is_compared_with_no_sharing(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    case, continuations = load(words)
    shares: list[int] = []
    plain = Scorer._run

    def spy(self: Scorer, batch: Batch) -> list[np.ndarray]:
        shares.append(batch.n_shared)
        return plain(self, batch)

    monkeypatch.setattr(Scorer, "_run", spy)
    runs = bench.prepare_sharing(case, continuations)
    at_first = batching.MIN_SHARED
    shared, apart = runs["shared"](16), runs["apart"](16)
    assert set(shares) == {49 * 3 // 4 - 1, 0}
    assert at_first == batching.MIN_SHARED
    assert shared is not None
    assert apart is not None
    np.testing.assert_allclose(shared, apart, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_measured_is_said(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = load(words)
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "minicons.scorer", None)
        with pytest.raises(bench.NotMeasuredError, match=r"ugap\[bench\]"):
            bench.run_minicons(case)
    monkeypatch.setattr(bfloat16, "has_bfloat16_units", lambda: False)
    with pytest.raises(bench.NotMeasuredError, match="no bfloat16 units"):
        bench.require(case, "torch", "split")
    monkeypatch.setattr(bfloat16, "has_bfloat16_units", lambda: True)
    with pytest.raises(bench.NotMeasuredError, match="round_weights"):
        bench.require(case, "torch", "split")
    rounded, _ = load([*words, "--round_weights"])
    bench.require(rounded, "torch", "split")
    half, _ = load(words, "bfloat16")
    with pytest.raises(bench.NotMeasuredError, match="float32"):
        bench.require(half, "torch", "split")
    monkeypatch.setattr(cpu, "check", no_compiler)
    with pytest.raises(bench.NotMeasuredError, match="cannot be compiled here"):
        bench.require(case, "compiled")
    with pytest.raises(bench.NotMeasuredError, match="need a GPU"):
        bench.require(case, "triton")
    monkeypatch.setattr(bench.Case, "device", "cuda")
    with pytest.raises(bench.NotMeasuredError, match="a kernel for CPUs"):
        bench.require(case, "compiled")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(bench.NotMeasuredError, match="Triton, which is not installed"):
        bench.require(case, "triton")


def test_minicons_agrees(words: list[str]) -> None:
    pytest.importorskip("minicons")
    case, _ = load(words)
    theirs, ours = bench.run_minicons(case)(2), bench.run_ours(case, "torch")(2)
    assert theirs is not None
    assert ours is not None
    np.testing.assert_allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--variants", "navie"], "unknown variant 'navie'"),
        (["--only", "our"], "unknown variant 'our'"),
        (["--length", "8"], "--length must be"),
        (["--tokens", "32"], "--tokens as much as one text"),
        (["--repeats", "0"], "must be at least 1"),
        (["--dtype", "float31"], "float31"),
        (["--device", "tpu"], "--device: invalid choice: 'tpu'"),
        (["--tokens", "960000"], "are needed"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main([*words, *more]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("ugap: error: ")
    assert message in last


def test_a_gpu_that_is_not_there_is_refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--device: torch finds no CUDA device here"):
        parse(bench.Arguments, "bench", "", [*words, "--device", "cuda"]).settle()


@pytest.mark.slow
def test_as_a_program_with_memory_and_the_compiled_fold(words: list[str], tmp_path: Path) -> None:
    output, variants = tmp_path / "bench.json", ["head", "ours-eager", "ours"]
    command = [sys.executable, bench.__file__, *words, "--dtype", "float32", "--repeats", "1", "--output", str(output)]
    done = subprocess.run([*command, "--variants", *variants], capture_output=True, encoding="utf-8", check=True)
    (run,) = json.loads(output.read_text(encoding="utf-8"))["runs"]
    assert [row["variant"] for row in run["rows"]] == variants
    assert all(row["peak_extra_bytes"] > 0 and row["difference"] < 1e-4 for row in run["rows"])
    assert run["memory"]["ours, 384 tokens"]["peak_extra_bytes"] > 0
    assert done.stdout.count("| `ours` |") == 1


@pytest.mark.gpu
def test_on_a_gpu(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every variant that is installed runs, agrees, and has its memory counted."""
    output, measured = tmp_path / "bench.json", [*EAGER, "ours-triton", "head-triton"]
    words = [*words, "--device", "cuda", "--output", str(output), "--variants", *measured, "ours", "head"]
    assert bench.main(words) == 0
    report = json.loads(output.read_text(encoding="utf-8"))
    assert report["environment"]["device_name"] == torch.cuda.get_device_name()
    assert report["environment"]["device_name"] in capsys.readouterr().out
    (run,) = report["runs"]
    assert run["dtype"] == "bfloat16"
    rows = {row["variant"]: row for row in run["rows"]}
    assert list(rows) == measured, run["notes"]
    assert all(row["peak_extra_bytes"] > 0 for row in rows.values())
    assert all(row["difference"] < 0.3 for row in rows.values() if row["difference"] is not None)
    for name in ("ours-triton", "ours-eager"):
        assert run["memory"][f"{name}, 4 times the tokens"]["peak_extra_bytes"] > 0
    for name in ("ours", "head"):
        assert f"`{name}` was not measured: it is a kernel for CPUs." in run["notes"]
    assert bench.main([*words, "--only", "ours-triton"]) == 0
    assert json.loads(capsys.readouterr().out)["peak_extra_bytes"] > 0
