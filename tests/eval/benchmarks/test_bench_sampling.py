"""The benchmark of the samplers runs whole on a tiny model, and says which numbers are whose."""

import json
from functools import partial

import pytest
import torch

from eval.benchmarks import bench_sampling as bench
from ugap.cli.main import main
from ugap.models import load_model
from ugap.profile import HumanProfile
from ugap.sampling import HumanEntropyLogitsProcessor

SPEED = ["stock", "draw", "ugap", "ugap-scores", "greedy"]
STEP = ["model", "argmax", "draw", "ugap", "ugap, later step", "ugap-scores", "ugap-scores, later step"]
STEP += ["softmax and multinomial"]


@pytest.fixture
def profile(tiny_folder, make_profile):
    return make_profile(load_model(str(tiny_folder), device="cpu")[0])


@pytest.fixture
def words(tiny_folder, profile, monkeypatch):
    monkeypatch.setattr(HumanProfile, "shipped_for", classmethod(lambda cls, scorer: profile))
    sizes = ["--batch_size", "3", "--step_batch_sizes", "2", "4", "--new_tokens", "4", "--repeats", "2"]
    return ["eval", "bench_sampling", "--model", str(tiny_folder), *sizes]


def check(record, printed):
    """All of it was timed, and all that was timed was printed."""
    assert list(record["tokens_per_second"]) == SPEED
    assert list(record["step_seconds"]) == ["2", "4"]
    for part in (record["tokens_per_second"], *record["step_seconds"].values()):
        assert all(value > 0 for value in part.values())
    _, speed, *steps = printed.split("|---|---:|---:|\n")
    assert all(f"| {name} | {value:,.1f} |" in speed for name, value in record["tokens_per_second"].items())
    for step, table in zip(record["step_seconds"].values(), steps, strict=True):
        assert list(step) == STEP
        assert all(f"| {name} | {1e3 * value:.3f} |" in table for name, value in step.items())
    assert [f"One step of {size} sequences:" in printed for size in (2, 3, 4)] == [True, False, True]


def test_all_variants_are_timed(words, tmp_path, capsys):
    output = tmp_path / "times.json"
    assert main([*words, "--device", "cpu", "--output", str(output)]) == 0
    record, printed = json.loads(output.read_text()), capsys.readouterr().out
    check(record, printed)
    assert record["settings"]["environment"]["threads"] >= 1
    assert f"{torch.get_num_threads()} threads: 3 sequences of 4 tokens" in printed


def test_shares_are_of_stock_and_of_the_models_step():
    assert "| draw | 3,000.0 | 1.50 |\n" in bench.speed_table({"stock": 2000.0, "draw": 3000.0})
    assert "| ugap | 0.500 | 5.0% |\n" in bench.step_table({"model": 0.01, "ugap": 0.0005})


def test_a_profile_can_be_given(words, profile, make_profile, make_model, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # none is shipped
    own, foreign = tmp_path / "own.json", tmp_path / "foreign.json"
    profile.save(own)
    make_profile(make_model("llama", initializer_range=0.2)).save(foreign)
    few = [*words, "--device", "cpu", "--step_batch_sizes", "1", "--repeats", "1"]
    assert main([*few, "--profile", str(own), "--dtype", "bfloat16"]) == 0
    assert "bfloat16" in capsys.readouterr().out
    for more in ([], ["--profile", str(foreign)], ["--profile", str(tmp_path / "none.json")]):
        assert main([*few, *more]) == 2
        assert "profile" in capsys.readouterr().err.splitlines()[-1]


def test_a_later_step_follows_the_sequences(tiny_model, make_profile):
    seen = []

    class Spy(HumanEntropyLogitsProcessor):
        def __call__(self, input_ids, scores):
            found = super().__call__(input_ids, scores)
            assert self._step is not None
            seen.append((self.draw, self._state.n_tokens.tolist(), self._step.entropy.unique().numel()))
            return found

    def human(draw):
        return Spy(make_profile(tiny_model), "creative", draw=draw)

    torch.manual_seed(0)
    bench.step_costs(tiny_model, torch.tensor([[5, 6, 7]] * 3), human, repeats=1)
    turn = [(draw, [tokens] * 3) for draw in (True, False) for tokens in (0.0, 0.0, 1.0)]
    assert [(draw, tokens) for draw, tokens, _ in seen] == turn * 2
    assert all(entropies > 1 for _, _, entropies in seen)  # the rows differ


def test_the_clock_is_read_when_the_device_is_done(monkeypatch):
    events = []

    def clock():
        events.append("clock")
        return len(events)

    monkeypatch.setattr("eval.benchmarks.bench_sampling.bench_utils.synchronize", events.append)
    monkeypatch.setattr("time.perf_counter", clock)
    assert bench.timed(partial(events.append, "work"), "cuda") == 3
    assert events == ["cuda", "clock", "work", "cuda", "clock"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repeats", "0"], "repeats: expected a positive number, got 0"),
        (["--threads", "0"], "threads: expected a positive number, got 0"),
        (["--step_batch_sizes", "8", "-1"], "step_batch_sizes: expected a positive number, got -1"),
    ],
)
def test_bad_input(words, more, message, capsys):
    assert main([*words, *more]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_on_a_gpu(words, tmp_path, capsys):
    output = tmp_path / "times.json"
    assert main([*words, "--device", "cuda", "--dtype", "bfloat16", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    check(json.loads(output.read_text()), printed)
    assert f"{torch.cuda.get_device_name()}: 3 sequences of 4 tokens" in printed
