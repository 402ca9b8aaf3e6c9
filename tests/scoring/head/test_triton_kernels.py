"""The kernels against float64: in Triton's interpreter on a CPU, or compiled on a device where there is one."""

import logging
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ugap.errors import InputError
from ugap.scoring.head import dispatch
from ugap.scoring.head.autograd import surprisal_entropy
from ugap.scoring.head.lm_head import LMHead
from ugap.scoring.head.statistics import HeadStatistics, head_statistics

triton = pytest.importorskip("triton", reason="Triton is not installed")
from ugap.scoring.head import triton_kernels as kernels  # noqa: E402

VOCABULARY, HIDDEN = 101, 24  # neither is a multiple of a block
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
RECIPES = {
    "plain": {},
    "softcap": {"softcap": 2.0},
    "scale": {"logit_scale": 0.3},
    "bias": {"bias": True},
    "all": {"bias": True, "softcap": 5.0, "logit_scale": 1.7},
}


@pytest.fixture(
    autouse=True, params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)], ids=["interpreted", "compiled"]
)
def device(request):
    if request.param == "cpu" and not kernels.INTERPRETED:
        pytest.skip("there is a device: the kernels are compiled")
    with torch.device(request.param):
        yield request.param


@pytest.fixture(autouse=True, params=["fused", "tiles"])
def way(request, monkeypatch):
    """Both ways, with blocks so small that there are several of them, and several splits."""
    monkeypatch.setattr(dispatch, "_given_up", {})
    set_way(monkeypatch, request.param)
    return request.param


def set_way(monkeypatch, way, words=32):
    monkeypatch.setattr(kernels, "FUSED_UP_TO", 1 << 30 if way == "fused" else 0)
    monkeypatch.setattr(kernels, "WAVES", 8)
    for name in ("WIDE", "NARROW"):
        monkeypatch.setattr(kernels, name, kernels.Blocks(16, words, 16, 2))
    for name, size in {"TILE_TOKENS": 16, "GRADIENT_TOKENS": 16, "TILE_WORDS": 60, "COLUMNS": 32, "ROWS": 8}.items():
        monkeypatch.setattr(kernels, name, size)


def random(*shape, seed, dtype=torch.float32, scale=1.0):
    values = torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")
    return (values * scale).to(dtype).to(torch.get_default_device())


def inputs(n=21, vocabulary=VOCABULARY, hidden=HIDDEN, dtype=torch.float32, scale=1.0, bias=False):
    states, weight = (
        random(n, hidden, seed=0, dtype=dtype, scale=scale),
        random(vocabulary, hidden, seed=1, dtype=dtype),
    )
    targets = torch.linspace(0, vocabulary - 1, n).long()  # the first word and the last among them
    return states, weight, targets, random(vocabulary, seed=2, dtype=dtype) if bias else None


def logits64(hidden, weight, bias=None, softcap=None, logit_scale=1.0):
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * logit_scale
    return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).cpu()


def assert_close(got, expected, atol=1e-4):
    """`expected` is `(4, N)` in float64; ranks agree exactly."""
    for name, mine, theirs in zip(got._fields, got, torch.as_tensor(expected, device="cpu"), strict=True):
        tolerance = 0.0 if name == "rank" else atol
        torch.testing.assert_close(mine.cpu().double(), theirs, rtol=0, atol=tolerance, equal_nan=True, msg=name)


def run(*arguments, **options):
    """The kernels' results, and no other's."""
    assert not dispatch._given_up
    got = head_statistics(*arguments, **options, impl="triton")
    assert not dispatch._given_up
    return got


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@dtypes
def test_matches_float64(recipe, dtype, statistics_of):
    hidden, weight, targets, bias = inputs(dtype=dtype, bias="bias" in recipe)
    options = {"bias": bias, "softcap": recipe.get("softcap"), "logit_scale": recipe.get("logit_scale", 1.0)}
    got = run(hidden, weight, targets, **options)
    assert all(column.dtype == torch.float32 for column in got)
    expected = statistics_of(logits64(hidden, weight, **options), targets.cpu())
    atol = 1e-4 if dtype == torch.float32 else 1e-3  # float32 sums either way, of logits that are larger
    assert_close(got, expected, atol)


@pytest.mark.parametrize(
    ("n", "vocabulary", "hidden"),
    [(1, 101, 24), (16, 32, 16), (17, 33, 17), (15, 31, 15), (2, 2, 1), (1, 1, 1), (33, 96, 40), (5, 161, 3)],
    ids=str,
)
def test_odd_sizes(n, vocabulary, hidden, statistics_of):
    states, weight, targets, _ = inputs(n, vocabulary, hidden)
    assert_close(run(states, weight, targets), statistics_of(logits64(states, weight), targets.cpu()))


def test_each_target_in_each_tile(statistics_of):
    hidden, weight, _, _ = inputs(VOCABULARY)
    targets = torch.arange(VOCABULARY)
    assert_close(run(hidden, weight, targets), statistics_of(logits64(hidden, weight), targets.cpu()))


def test_agrees_with_torch_on_skipped_targets():
    hidden, weight, targets, bias = inputs(bias=True)
    targets[::3] = -100
    got, expected = run(hidden, weight, targets, bias), head_statistics(hidden, weight, targets, bias, impl="torch")
    for name, mine, theirs in zip(got._fields, got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5, equal_nan=True, msg=name)
    assert all(column.isnan().all() for column in run(hidden, weight, torch.full_like(targets, -100)))


def test_strided_arguments():
    hidden, weight, targets, bias = inputs(bias=True)
    expected = run(hidden, weight, targets, bias)
    wide = torch.stack([hidden, hidden + 1], dim=1)[:, 0]
    every_other = torch.stack([targets, targets * 0], dim=1)[:, 0]
    got = run(wide, weight.T.contiguous().T, every_other, torch.stack([bias, bias + 1], dim=1)[:, 0])
    assert not wide.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_ties_go_to_the_lower_id(statistics_of):
    # Whole numbers are multiplied exactly, in whatever order: many ties, and copies of one word up to the very last.
    hidden, weight = (random(n, 3, seed=n, scale=2.0).round() for n in (48, VOCABULARY))
    copies = [3, 9, 50, 51, 70, VOCABULARY - 1]
    weight[copies] = weight[70].clone()
    targets = torch.tensor(copies * 8)
    expected = statistics_of(logits64(hidden, weight), targets.cpu())
    assert_close(run(hidden, weight, targets), expected)
    assert len(set(expected[3])) > 24


def test_all_logits_equal():
    got = run(torch.zeros(3, HIDDEN), inputs()[1], torch.tensor([0, 50, 100]))
    assert got.rank.tolist() == [1.0, 51.0, 101.0]
    torch.testing.assert_close(got.surprisal, torch.full((3,), math.log(VOCABULARY)))
    torch.testing.assert_close(got.entropy, torch.full((3,), math.log(VOCABULARY)))
    assert got.varentropy.abs().max() < 1e-5


def test_minus_infinite_logits(statistics_of):
    hidden, weight, _, _ = inputs(9)
    bias = torch.zeros(VOCABULARY)
    bias[:40] = -math.inf  # a whole tile and a part of the next
    bias[99] = -math.inf
    targets = torch.tensor([40, 41, 60, 77, 98, 100, 40, 55, 63])
    assert_close(run(hidden, weight, targets, bias), statistics_of(logits64(hidden, weight, bias), targets.cpu()))


def test_a_target_without_probability():
    hidden, weight, _, _ = inputs(2)
    bias = torch.zeros(VOCABULARY)
    bias[[5, 90]] = -math.inf
    got = run(hidden, weight, torch.tensor([5, 90]), bias)
    assert got.surprisal.tolist() == [math.inf, math.inf]
    assert got.rank.tolist() == [100.0, 101.0]
    assert got.entropy.isfinite().all()
    nothing = run(hidden, weight, torch.tensor([5, 90]), torch.full((VOCABULARY,), -math.inf))
    assert nothing.surprisal.isnan().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_and_infinite_logits_are_never_finite_surprisal(value):
    hidden, weight, _, _ = inputs(4)
    weight[40] = value
    assert not run(hidden, weight, torch.tensor([0, 40, 99, 100])).surprisal.isfinite().any()


@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_maximum_that_moves_in_every_tile(order, statistics_of):
    weight = order * torch.linspace(-60, 60, VOCABULARY).unsqueeze(1)
    hidden, targets = torch.tensor([[1.0], [0.1], [-0.1], [-1.0]]), torch.tensor([0, 33, 66, 100])
    assert_close(run(hidden, weight, targets), statistics_of(logits64(hidden, weight), targets.cpu()))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 30.0, 1e3, 1e6, 1e15]),
    spread=st.sampled_from([0.0, 1e-6, 1.0]),
    softcap=st.sampled_from([None, 1e-3, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_bounds(device, way, seed, scale, spread, softcap, dtype):
    hidden, weight = random(12, 4, seed=seed, scale=scale), 1 + random(50, 4, seed=seed + 1, scale=spread)
    targets = torch.arange(0, 48, 4)
    with torch.device(device), pytest.MonkeyPatch.context() as patch:
        set_way(patch, way, words=16)
        got = run(hidden.to(dtype), weight.to(dtype), targets, softcap=softcap)
    assert all(column.isfinite().all() for column in got)
    assert (got.surprisal >= 0).all()
    assert (got.entropy >= 0).all()
    assert (got.entropy <= math.log(50)).all()
    assert (got.varentropy >= 0).all()
    assert ((got.rank >= 1) & (got.rank <= 50) & (got.rank % 1 == 0)).all()


def slopes(impl, hidden, targets, head, temperature=1.0):
    """Surprisal, entropy, and the gradients of a mixture of both to everything that has one."""
    copies = [x.detach().clone().requires_grad_(x.requires_grad) for x in (hidden, head.weight)]
    bias = None if head.bias is None else head.bias.detach().clone().requires_grad_(head.bias.requires_grad)
    copy = LMHead(copies[1], bias, head.softcap, head.logit_scale)
    surprisal, entropy = surprisal_entropy(copies[0], targets, copy, temperature=temperature, impl=impl)
    steps = torch.linspace(-1, 1, len(targets)).to(surprisal)
    (surprisal * (1 + steps) + entropy * steps).sum().backward()
    made = [None if x is None else x.grad for x in (*copies, bias)]
    return surprisal.detach(), entropy.detach(), *made


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
@dtypes
def test_gradients_match_float64(recipe, dtype):
    hidden, weight, targets, bias = inputs(dtype=dtype, bias="bias" in recipe)
    targets[[4, 19]] = -100
    arguments = [hidden, weight, *([] if bias is None else [bias])]
    for x in arguments:
        x.requires_grad_()
    options = recipe.get("softcap"), recipe.get("logit_scale", 1.0)
    got = slopes("triton", hidden, targets, LMHead(weight, bias, *options), temperature=0.8)
    doubles = [x.detach().double().requires_grad_() for x in arguments]
    head64 = LMHead(doubles[1], doubles[2] if bias is not None else None, *options)
    expected = slopes("torch", doubles[0], targets, head64, temperature=0.8)
    assert not dispatch._given_up
    for mine, theirs in zip(got, expected, strict=True):
        if theirs is None:
            assert mine is None
            continue
        close = 1e-4 if mine.dtype == torch.float32 else 0.02
        torch.testing.assert_close(mine.double(), theirs, rtol=close, atol=close * float(theirs.abs().amax()))


@pytest.mark.parametrize("kept", ["surprisal", "entropy"])
def test_a_frozen_head_and_one_value_alone(kept):
    hidden, weight, targets, _ = inputs()
    hidden.requires_grad_()
    found = []
    for impl in ("triton", "torch"):
        values = dict(
            zip(
                ("surprisal", "entropy"),
                surprisal_entropy(hidden, targets, LMHead(weight, None, None, 1.0), impl=impl),
                strict=True,
            )
        )
        found.append(torch.autograd.grad(values[kept].sum(), hidden)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert found[0].abs().max() > 0.1


def test_gradients_of_impossible_words_are_finite():
    hidden, weight, targets, _ = inputs(8)
    hidden.requires_grad_()
    bias = torch.zeros(VOCABULARY)
    bias[3:70] = -math.inf
    made = slopes("triton", hidden, targets.clamp(min=70), LMHead(weight, bias, None, 1.0))
    assert made[2].isfinite().all()
    assert made[2].abs().max() > 0.1


class TestFallback:
    @pytest.mark.parametrize(
        "error",
        [
            triton.OutOfResources(300000, 232448, "shared memory"),
            RuntimeError("0 active drivers ([]). There should only be one. Triton needs one"),
            FileNotFoundError("no C compiler"),
            ImportError("no module"),
        ],
        ids=["resources", "driver", "compiler", "import"],
    )
    def test_a_kernel_that_cannot_be_built_is_replaced_with_one_warning(self, error, monkeypatch, caplog):
        tried = []

        def fail(*arguments):
            tried.append(1)
            raise error

        monkeypatch.setattr(kernels, "fold", fail)
        hidden, weight, targets, _ = inputs()
        with caplog.at_level(logging.WARNING):
            got = head_statistics(hidden, weight, targets, impl="triton")
            slopes("triton", hidden.requires_grad_(), targets, LMHead(weight, None, None, 1.0))
        assert tried == [1]
        assert [record.getMessage().count("torch does their work") for record in caplog.records] == [1]
        expected = head_statistics(hidden.detach(), weight, targets, impl="torch")
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("shapes"), ValueError("wrong")])
    def test_other_errors_are_raised(self, error, monkeypatch):
        def fail(*arguments):
            raise error

        monkeypatch.setattr(kernels, "fold", fail)
        hidden, weight, targets, _ = inputs()
        with pytest.raises(type(error), match=str(error)):
            head_statistics(hidden, weight, targets, impl="triton")


class TestRefusals:
    def test_a_dtype_that_the_kernels_do_not_take(self, monkeypatch):
        hidden, weight, targets, _ = inputs(dtype=torch.float64)
        with pytest.raises(ValueError, match="impl is 'triton', which takes bfloat16, float16 and float32"):
            head_statistics(hidden, weight, targets, impl="triton")
        monkeypatch.setenv("UGAP_HEAD", "triton")
        with pytest.raises(InputError, match="UGAP_HEAD is 'triton', which takes"):
            head_statistics(hidden, weight, targets)

    def test_a_cpu_without_the_interpreter(self, monkeypatch):
        monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
        arguments = [x.cpu() for x in inputs()[:3]]
        with pytest.raises(ValueError, match="impl is 'triton', which needs tensors on CUDA"):
            head_statistics(*arguments, impl="triton")
        assert isinstance(head_statistics(*arguments), HeadStatistics)

    def test_the_environment_chooses_the_kernels(self, monkeypatch):
        asked = []
        real = kernels.fold

        def watched(*arguments):
            asked.append(1)
            return real(*arguments)

        monkeypatch.setattr(kernels, "fold", watched)
        monkeypatch.setenv("UGAP_HEAD", "triton")
        hidden, weight, targets, _ = inputs(4)
        head_statistics(hidden, weight, targets)
        assert asked
        asked.clear()
        head_statistics(hidden, weight, targets, impl="torch")
        assert not asked


@pytest.mark.gpu
@dtypes
def test_auto_is_torch_on_a_device(dtype):
    """Until a GPU has timed the kernels."""
    arguments = [x.cuda() for x in inputs(dtype=dtype)[:3]]
    expected = head_statistics(*arguments, impl="torch")
    assert all(torch.equal(a, b) for a, b in zip(head_statistics(*arguments), expected, strict=True))
