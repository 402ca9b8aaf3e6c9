import logging
import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from ugap.errors import InputError
from ugap.scoring.head import cpu, dispatch, tiles, torch_tiles
from ugap.scoring.head.autograd import surprisal_entropy
from ugap.scoring.head.bfloat16 import has_bfloat16_units, split_bfloat16
from ugap.scoring.head.lm_head import LMHead
from ugap.scoring.head.statistics import HeadStatistics, head_statistics

VOCABULARY, HIDDEN = 101, 16  # 101 is no multiple of a tile


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setitem(torch_tiles.TILES, "cpu", (8, 32))


@pytest.fixture(autouse=True, params=["torch", "compiled"])
def way(request, monkeypatch):
    """Both implementations for CPUs, chosen by the environment; the kernel does not take float64."""
    monkeypatch.setattr(dispatch, "_given_up", {})
    monkeypatch.setenv("UGAP_HEAD", request.param)
    yield request.param
    assert not dispatch._given_up


def without_float64(dtype, way):
    if dtype == torch.float64 and way == "compiled":
        pytest.skip("the kernel does not take float64")


def inputs(n=37, vocabulary=VOCABULARY, scale=1.0, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, HIDDEN, generator=generator) * scale
    weight = torch.randn(vocabulary, HIDDEN, generator=generator)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), targets


def logits64(hidden, weight, bias=None, softcap=None, logit_scale=1.0):
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * logit_scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def assert_close(got: HeadStatistics, expected, atol=1e-4):
    """`expected` is `(4, N)` in float64; ranks agree exactly."""
    expected = torch.as_tensor(expected)
    for name, mine, theirs in zip(got._fields, got, expected, strict=True):
        tolerance = 0.0 if name == "rank" else atol
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=tolerance, equal_nan=True, msg=name)


def bias_of(n=VOCABULARY):
    return torch.linspace(-3, 3, n)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"softcap": 2.0},
        {"logit_scale": 0.3},
        {"bias": bias_of()},
        {"bias": bias_of(), "softcap": 5.0, "logit_scale": 1.7},
    ],
    ids=["plain", "softcap", "scale", "bias", "all"],
)
@pytest.mark.parametrize("n", [1, 8, 37], ids=["one_token", "one_tile", "many"])
def test_matches_float64(options, n, statistics_of):
    hidden, weight, targets = inputs(n)
    got = head_statistics(hidden, weight, targets, **options)
    assert_close(got, statistics_of(logits64(hidden, weight, **options), targets))


@pytest.mark.parametrize("vocabulary", [2, 31, 32, 33, 96])
def test_vocabulary_around_the_tile(vocabulary, statistics_of):
    hidden, weight, targets = inputs(20, vocabulary)
    got = head_statistics(hidden, weight, targets)
    assert_close(got, statistics_of(logits64(hidden, weight), targets))


def test_each_target_in_each_tile(statistics_of):
    hidden, weight, _ = inputs(VOCABULARY)
    targets = torch.arange(VOCABULARY)
    got = head_statistics(hidden, weight, targets)
    assert_close(got, statistics_of(logits64(hidden, weight), targets))


def test_every_target_of_one_row_sums_to_one():
    hidden, weight, _ = inputs(1)
    got = head_statistics(hidden.expand(VOCABULARY, -1).contiguous(), weight, torch.arange(VOCABULARY))
    p = got.surprisal.double().neg().exp()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert (p * got.surprisal).sum().item() == pytest.approx(got.entropy[0].item(), abs=1e-5)
    assert sorted(got.rank.tolist()) == list(range(1, VOCABULARY + 1))


@pytest.mark.parametrize("vocabulary", [101, 129, 160])
def test_ties_go_to_the_lower_id(vocabulary, monkeypatch):
    monkeypatch.setitem(torch_tiles.TILES, "cpu", (8, 64))
    hidden, weight, _ = inputs(48, vocabulary)
    # Copies of one row, in one tile and across tiles, up to the very last row.
    copies = [3, 9, 50, 51, 70, vocabulary - 1]
    weight[copies] = weight[70].clone()
    got = head_statistics(hidden, weight, torch.tensor(copies * 8))
    logits = logits64(hidden, weight)
    expected = 1 + (logits > logits[:, 70:71] + 1e-9).sum(1) + torch.arange(6).repeat(8)
    assert got.rank.tolist() == expected.tolist()


def test_all_logits_equal():
    got = head_statistics(torch.zeros(3, HIDDEN), inputs()[1], torch.tensor([0, 50, 100]))
    assert got.rank.tolist() == [1.0, 51.0, 101.0]
    torch.testing.assert_close(got.surprisal, torch.full((3,), math.log(VOCABULARY)))
    torch.testing.assert_close(got.entropy, torch.full((3,), math.log(VOCABULARY)))
    assert got.varentropy.abs().max() < 1e-5


def test_minus_infinite_logits(statistics_of):
    hidden, weight, _ = inputs(9)
    bias = torch.zeros(VOCABULARY)
    bias[:40] = -math.inf  # a whole tile and a part of the next
    bias[99] = -math.inf
    targets = torch.tensor([40, 41, 60, 77, 98, 100, 40, 55, 63])
    got = head_statistics(hidden, weight, targets, bias)
    assert_close(got, statistics_of(logits64(hidden, weight, bias), targets))


def test_a_target_without_probability():
    hidden, weight, _ = inputs(2)
    bias = torch.zeros(VOCABULARY)
    bias[[5, 90]] = -math.inf
    got = head_statistics(hidden, weight, torch.tensor([5, 90]), bias)
    assert got.surprisal.tolist() == [math.inf, math.inf]
    assert got.rank.tolist() == [100.0, 101.0]
    assert got.entropy.isfinite().all()


def test_nothing_but_minus_infinity_is_nan():
    hidden, weight, targets = inputs(2)
    got = head_statistics(hidden, weight, targets, torch.full((VOCABULARY,), -math.inf))
    assert got.surprisal.isnan().all()


def test_nan_and_infinite_logits_are_never_finite_surprisal():
    hidden, weight, _ = inputs(4)
    targets = torch.tensor([0, 40, 99, 100])
    for value in (math.nan, math.inf):
        broken = weight.clone()
        broken[40] = value
        assert not head_statistics(hidden, broken, targets).surprisal.isfinite().any()


def test_skipped_targets_are_nan_and_change_nothing():
    hidden, weight, targets = inputs(20)
    whole = head_statistics(hidden, weight, targets)
    some = targets.clone()
    some[::3] = -100
    got = head_statistics(hidden, weight, some)
    for mine, theirs in zip(got, whole, strict=True):
        assert mine[::3].isnan().all()
        torch.testing.assert_close(mine[some != -100], theirs[some != -100], rtol=0, atol=1e-6)


def test_nothing_to_score():
    hidden, weight, targets = inputs(3)
    assert all(column.isnan().all() for column in head_statistics(hidden, weight, torch.full_like(targets, -100)))
    assert all(column.shape == (0,) for column in head_statistics(hidden[:0], weight, targets[:0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_half_precision_adds_nothing(dtype, scale, statistics_of):
    hidden, weight, targets = inputs(scale=scale, dtype=dtype)
    bias = bias_of().to(dtype)
    got = head_statistics(hidden, weight, targets, bias)
    assert got.surprisal.dtype == torch.float32
    assert_close(got, statistics_of(logits64(hidden, weight, bias), targets), atol=1e-3)


def test_float64_stays_float64(way, statistics_of):
    without_float64(torch.float64, way)
    hidden, weight, targets = inputs(dtype=torch.float64)
    got = head_statistics(hidden, weight, targets)
    assert got.entropy.dtype == torch.float64
    assert_close(got, statistics_of(logits64(hidden, weight), targets), atol=1e-12)


def test_peaked_distributions(statistics_of):
    """Logits that span hundreds: most probabilities vanish, the sums move with every new maximum."""
    hidden, weight, targets = inputs(200, scale=20.0)
    got = head_statistics(hidden, weight, targets)
    expected = statistics_of(logits64(hidden, weight), targets)
    torch.testing.assert_close(got.surprisal.double(), torch.as_tensor(expected[0]), rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(got.entropy.double(), torch.as_tensor(expected[1]), rtol=0, atol=2e-4)
    assert (got.rank.double() == torch.as_tensor(expected[3])).all()


@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_maximum_that_moves_in_every_tile(order, statistics_of):
    weight = order * torch.linspace(-60, 60, VOCABULARY).unsqueeze(1)
    hidden = torch.tensor([[1.0], [0.1], [-0.1], [-1.0]])
    targets = torch.tensor([0, 33, 66, 100])
    assert_close(head_statistics(hidden, weight, targets), statistics_of(logits64(hidden, weight), targets))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 30.0, 1e3, 1e6, 1e15]),
    spread=st.sampled_from([0.0, 1e-6, 1.0]),
    softcap=st.sampled_from([None, 1e-3, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_bounds(way, seed, scale, spread, softcap, dtype):
    if dtype == torch.float64 and way == "compiled":
        return
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(12, 4, generator=generator) * scale
    weight = torch.ones(50, 4) + spread * torch.randn(50, 4, generator=generator)
    targets = torch.randint(50, (12,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(torch_tiles.TILES, "cpu", (8, 16))
        got = head_statistics(hidden.to(dtype), weight.to(dtype), targets, softcap=softcap)
    assert all(column.isfinite().all() for column in got)
    assert (got.surprisal >= 0).all()
    assert (got.entropy >= 0).all()
    assert (got.entropy <= math.log(50)).all()
    assert (got.varentropy >= 0).all()
    assert ((got.rank >= 1) & (got.rank <= 50) & (got.rank % 1 == 0)).all()


def _bad(**changes):
    hidden, weight, targets = inputs(3)
    return {"hidden": hidden, "weight": weight, "targets": targets, **changes}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (_bad(hidden=torch.zeros(3, 5)), "hidden"),
        (_bad(hidden=torch.zeros(1, 3, HIDDEN)), "hidden"),
        (_bad(hidden=torch.zeros(3, HIDDEN, dtype=torch.int64)), "hidden"),
        (_bad(weight=torch.zeros(VOCABULARY, HIDDEN, dtype=torch.bfloat16)), "weight"),
        (_bad(weight=torch.zeros(VOCABULARY)), "weight"),
        (_bad(targets=torch.zeros(4, dtype=torch.int64)), "targets"),
        (_bad(targets=torch.zeros(3, dtype=torch.int32)), "targets"),
        (_bad(targets=torch.tensor([0, 1, VOCABULARY])), f"targets holds {VOCABULARY}"),
        (_bad(targets=torch.tensor([0, -1, 1])), "targets holds -1"),
        (_bad(bias=torch.zeros(5)), "bias"),
        (_bad(bias=torch.zeros(VOCABULARY, dtype=torch.int64)), "bias"),
        (_bad(softcap=0.0), "softcap"),
        (_bad(softcap=-30.0), "softcap"),
        (_bad(logit_scale=math.nan), "logit_scale"),
        (_bad(impl="cuda"), "impl"),
        (_bad(impl="cuda", targets=torch.full((3,), -100)), "impl"),
        (_bad(precision="half"), "precision"),
    ],
)
def test_wrong_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        head_statistics(**arguments)


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, torch.Tensor)}
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, torch.Tensor) and made.untyped_storage().data_ptr() not in known:
                self.elements = max(self.elements, made.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_never_built(dtype, monkeypatch):
    monkeypatch.setitem(torch_tiles.TILES, "cpu", (64, 256))
    monkeypatch.setattr(cpu, "TILE_TOKENS", 64)
    monkeypatch.setattr(cpu, "TILE_WORDS", 256)
    vocabulary, hidden_size, tile = 2000, 2, 64 * 256
    for n in (256, 1024):
        hidden, weight = torch.randn(n, hidden_size).to(dtype), torch.randn(vocabulary, hidden_size).to(dtype)
        with LargestTensor() as mode:
            head_statistics(hidden, weight, torch.randint(vocabulary, (n,)))
        assert mode.elements <= tile < 256 * vocabulary


def test_split_precision_is_within_a_ten_thousandth(way, monkeypatch, statistics_of):
    """The arithmetic of the split; torch multiplies on whatever unit there is, the kernel on its own."""
    if way == "compiled" and not has_bfloat16_units():
        pytest.skip("this CPU has no bfloat16 units")
    monkeypatch.setattr(tiles, "has_bfloat16_units", lambda: True)
    hidden, weight, targets = inputs(100)
    weight = weight.bfloat16().float()
    parts = []
    real = split_bfloat16

    def watched(values):
        parts.extend(real(values))
        return real(values)

    monkeypatch.setattr(tiles, "split_bfloat16", watched)
    got = head_statistics(hidden, weight, targets, bias_of(), precision="split")
    assert len(parts) >= 2
    expected = statistics_of(logits64(hidden, weight, bias_of()), targets)
    assert_close(HeadStatistics(*got[:3], torch.as_tensor(expected[3])), expected)
    # A product of the upper part alone would not do.
    rough = head_statistics(hidden.bfloat16().float(), weight, targets, bias_of())
    assert (rough.surprisal.double() - torch.as_tensor(expected[0])).abs().max() > 1e-3
    backend: Any = torch.backends.mkldnn
    assert backend.matmul.fp32_precision != "bf16"


def test_split_precision_refuses_weights_that_bfloat16_cannot_hold(monkeypatch):
    monkeypatch.setattr(tiles, "has_bfloat16_units", lambda: True)
    hidden, weight, targets = inputs()
    with pytest.raises(ValueError, match="precision 'split' needs a weight"):
        head_statistics(hidden, weight, targets, precision="split")


def test_split_precision_is_exact_without_units(monkeypatch):
    monkeypatch.setattr(tiles, "has_bfloat16_units", lambda: False)
    hidden, weight, targets = inputs()
    exact = head_statistics(hidden, weight, targets)
    split = head_statistics(hidden, weight, targets, precision="split")
    assert all(torch.equal(a, b) for a, b in zip(exact, split, strict=True))


@pytest.fixture
def broken(monkeypatch):
    """A machine without a C++ compiler."""

    def fail():
        raise RuntimeError("no compiler")

    dispatch._module.cache_clear()
    monkeypatch.setattr(cpu, "library", fail)
    yield
    dispatch._module.cache_clear()
    dispatch._given_up.clear()


def test_torch_steps_in_where_the_kernel_cannot_be_compiled(broken, caplog):
    hidden, weight, targets = inputs()
    hidden.requires_grad_()
    eager = head_statistics(hidden, weight, targets, impl="torch")
    with caplog.at_level(logging.WARNING):
        got = [head_statistics(hidden, weight, targets, impl="compiled") for _ in range(2)]
        surprisal_entropy(hidden, targets, LMHead(weight, None, None, 1.0), impl="compiled")[0].sum().backward()
    assert all(torch.equal(a, b) for one in got for a, b in zip(one, eager, strict=True))
    assert [record.getMessage() for record in caplog.records] == [
        "the compiled kernels of the scoring head cannot run here, torch does their work: no compiler"
    ]


def test_a_kernel_with_wrong_sums_is_not_used(monkeypatch, caplog):
    real = cpu.fold
    monkeypatch.setattr(cpu, "fold", lambda *arguments: real(*arguments)._replace(s0=torch.ones(5)))
    dispatch._module.cache_clear()
    hidden, weight, targets = inputs()
    with caplog.at_level(logging.WARNING):
        got = head_statistics(hidden, weight, targets, impl="compiled")
    eager = head_statistics(hidden, weight, targets, impl="torch")
    assert all(torch.equal(a, b) for a, b in zip(got, eager, strict=True))
    assert caplog.records[0].getMessage().endswith("its sums are not those of torch")
    dispatch._module.cache_clear()
    dispatch._given_up.clear()


def test_auto_is_the_kernel_where_it_is_worth_it(monkeypatch):
    monkeypatch.delenv("UGAP_HEAD")
    hidden, weight, _ = inputs()
    logits = len(hidden) * VOCABULARY
    assert dispatch.choose("auto", weight, logits) == "torch"
    monkeypatch.setattr(dispatch, "COMPILE_FROM", logits)
    assert dispatch.choose("auto", weight, logits) == "compiled"
    assert dispatch.choose("auto", weight, logits - 1) == "torch"
    assert dispatch.choose("auto", weight.double(), logits) == "torch"


def test_auto_is_torch_on_another_device(monkeypatch):
    """No GPU has timed the Triton kernels yet."""
    monkeypatch.delenv("UGAP_HEAD")
    assert dispatch.choose("auto", torch.empty(2, 2, device="meta"), 2**40) == "torch"


def test_the_environment_decides_where_the_argument_does_not(way):
    weight = torch.zeros(2, 2)
    assert dispatch.choose("auto", weight, 1) == way
    assert dispatch.choose("torch", weight, 1) == "torch"
    assert dispatch.choose("compiled", weight, 1) == "compiled"


def test_the_kernel_is_refused_where_it_cannot_be_tried(monkeypatch):
    hidden, weight, targets = inputs(dtype=torch.float64)
    with pytest.raises(ValueError, match="impl is 'compiled', which takes bfloat16, float16 and float32"):
        head_statistics(hidden, weight, targets, impl="compiled")
    with pytest.raises(ValueError, match="impl is 'compiled', which needs tensors on a CPU; they are on meta"):
        dispatch.choose("compiled", torch.empty(2, 2, device="meta"), 1)
    monkeypatch.setenv("UGAP_HEAD", "compiled")
    with pytest.raises(InputError, match="UGAP_HEAD is 'compiled', which takes"):
        head_statistics(hidden, weight, targets)


@pytest.mark.parametrize("impl", ["cuda", "Triton", ""])
def test_a_wrong_environment_is_bad_input(impl, monkeypatch):
    monkeypatch.setenv("UGAP_HEAD", impl)
    with pytest.raises(InputError, match=f"UGAP_HEAD is {impl!r}, not one of auto, torch, compiled, triton"):
        head_statistics(*inputs())


def test_autocast_changes_nothing():
    hidden, weight, targets = inputs()
    whole = head_statistics(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = head_statistics(hidden, weight, targets)
    assert all(torch.equal(a, b) for a, b in zip(got, whole, strict=True))


@pytest.mark.parametrize("shift", [1e-3, -1e-3])
def test_a_rank_is_exact_however_badly_the_target_was_known_before(shift, monkeypatch, statistics_of):
    """The estimate only says whom to count again."""
    for module in (torch_tiles, cpu):

        def shifted(*arguments, real=module.window):
            return tuple(edge + shift for edge in real(*arguments))

        monkeypatch.setattr(module, "window", shifted)
    hidden, weight, targets = inputs(200)
    weight[1::2] = weight[::2][: len(weight[1::2])] * 1.0001  # neighbours between the target and its estimate
    assert_close(head_statistics(hidden, weight, targets), statistics_of(logits64(hidden, weight), targets))


@pytest.mark.slow
def test_says_one_line_without_a_compiler(tmp_path):
    code = (
        "import torch; from ugap.scoring import head_statistics as f; a = torch.ones(3, 4), torch.ones(9, 4), "
        "torch.arange(3); f(*a, impl='compiled'); print(f(*a, impl='compiled').rank.tolist())"
    )
    environment = {**os.environ, "CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[1.0, 2.0, 3.0]"
    assert done.stderr.count("\n") == 1
    assert "cannot run here, torch does their work" in done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_matches_float64_on_a_gpu(dtype, statistics_of):
    hidden, weight, targets = inputs(dtype=dtype)
    got = head_statistics(hidden.cuda(), weight.cuda(), targets.cuda(), bias_of().to(dtype).cuda(), softcap=5.0)
    expected = statistics_of(logits64(hidden, weight, bias_of().to(dtype), softcap=5.0), targets)
    assert_close(HeadStatistics(*(column.cpu() for column in got)), expected, atol=1e-3)
