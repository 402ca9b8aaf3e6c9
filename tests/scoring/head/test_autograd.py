import dataclasses
import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from ugap.scoring.head import autograd, dispatch, torch_tiles
from ugap.scoring.head.autograd import gem, kl_divergence, surprisal_entropy
from ugap.scoring.head.lm_head import LMHead

VOCABULARY, HIDDEN, TOKENS = 101, 16, 37  # 101 words are four tiles, 37 tokens five
OPTIONS = {
    "plain": {},
    "softcap": {"softcap": 5.0},
    "scale": {"logit_scale": 0.3},
    "bias": {"bias": True},
    "all": {"bias": True, "softcap": 6.0, "logit_scale": 1.7},
}
options = pytest.mark.parametrize("recipe", OPTIONS.values(), ids=OPTIONS.keys())
PRODUCTS = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setitem(torch_tiles.TILES, "cpu", (8, 32))


@pytest.fixture(autouse=True, params=["torch", "compiled"])
def way(request, monkeypatch):
    """Both implementations for CPUs, chosen by the environment; float64 is torch's alone."""
    monkeypatch.setattr(dispatch, "_given_up", {})
    real = dispatch.choose

    def choose(impl, weight, n_logits):
        return "torch" if weight.dtype == torch.float64 else real(impl, weight, n_logits)

    monkeypatch.setattr(autograd, "choose", choose)
    monkeypatch.setenv("UGAP_HEAD", request.param)
    yield request.param
    assert not dispatch._given_up


def random(*shape, seed, dtype=torch.float32, scale=1.0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return values.to(dtype).requires_grad_()


def make_head(recipe=None, dtype=torch.float32, seed=1, vocabulary=VOCABULARY, width=HIDDEN):
    recipe = {"bias": False, "softcap": None, "logit_scale": 1.0, **(recipe or {})}
    bias = random(vocabulary, seed=seed + 1, dtype=dtype) if recipe["bias"] else None
    weight = random(vocabulary, width, seed=seed, dtype=dtype)
    return LMHead(weight, bias, recipe["softcap"], recipe["logit_scale"])


def make_targets(n=TOKENS, vocabulary=VOCABULARY):
    """Words of all tiles, the very first and the very last among them, and two tokens to skip."""
    targets = torch.linspace(0, vocabulary - 1, n).long()
    targets[[n // 3, n // 2]] = -100
    return targets


def frozen(head):
    return dataclasses.replace(
        head, weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach()
    )


def leaves(hidden, head):
    return [x for x in (hidden, head.weight, head.bias) if x is not None and x.requires_grad]


def logits_of(hidden, head, temperature=1.0):
    """Whole logits in float64."""
    logits = hidden.double() @ head.weight.double().T
    if head.bias is not None:
        logits = logits + head.bias.double()
    logits = logits * head.logit_scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits / temperature


def reference(hidden, targets, head, temperature=1.0):
    log_p = logits_of(hidden, head, temperature).log_softmax(-1)
    keep = targets != -100
    surprisal = -log_p.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    finite = log_p.clamp(min=-1e4)
    return torch.where(keep, surprisal, 0.0), torch.where(keep, -(finite.exp() * finite).sum(-1), 0.0)


def reference_kl(hidden, base_hidden, head, base_head, temperature=1.0):
    base = logits_of(base_hidden, base_head, temperature).log_softmax(-1).detach()
    return (base.exp() * (base - logits_of(hidden, head, temperature).log_softmax(-1))).sum(-1)


def reference_gem(hidden, targets, head, beta=0.7):
    """The formula of the paper, word by word."""
    logits = logits_of(hidden, head)
    q, log_p = (logits / beta).softmax(-1).detach(), logits.log_softmax(-1)
    own = log_p.gather(1, targets.clamp(min=0).unsqueeze(1))
    return torch.where(targets != -100, -(q * (own - log_p)).sum(-1), 0.0)


def assert_same(got, expected, inputs, *, rtol=1e-4, atol=1e-5, seed=9):
    """Values `(N,)` and the gradients of all inputs, with a random slope at each of the values."""
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=rtol, atol=atol)
    slopes = [random(*one.shape, seed=seed + i).detach() for i, one in enumerate(got)]
    mine = torch.autograd.grad([(a * b).sum() for a, b in zip(got, slopes, strict=True)], inputs)
    theirs = torch.autograd.grad([(a * b).sum() for a, b in zip(expected, slopes, strict=True)], inputs)
    for ours, other in zip(mine, theirs, strict=True):
        assert ours.dtype == other.dtype
        torch.testing.assert_close(
            ours.double(), other.double(), rtol=rtol, atol=max(atol, rtol * other.abs().amax().item())
        )


@options
def test_gradcheck(recipe, monkeypatch):
    monkeypatch.setitem(torch_tiles.TILES, "cpu", (2, 3))
    head = make_head(recipe, torch.float64, vocabulary=7, width=3)
    hidden, base = (random(5, 3, seed=i, dtype=torch.float64) for i in (5, 6))
    base_head = frozen(make_head(recipe, torch.float64, seed=7, vocabulary=7, width=3))
    targets = torch.tensor([0, 6, -100, 3, 4])

    def with_head(function):
        def run(hidden, weight, bias):
            return function(hidden, dataclasses.replace(head, weight=weight, bias=bias))

        return run

    inputs = (hidden, head.weight, head.bias)
    assert gradcheck(with_head(lambda x, h: surprisal_entropy(x, targets, h, temperature=0.7)), inputs)
    assert gradcheck(with_head(lambda x, h: kl_divergence(x, base, h, base_head, temperature=0.7)), inputs)


@options
@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_surprisal_and_entropy_are_those_of_whole_logits(recipe, temperature):
    hidden, head, targets = random(TOKENS, HIDDEN, seed=0), make_head(recipe), make_targets()
    got = surprisal_entropy(hidden, targets, head, temperature=temperature)
    assert got[0].dtype == got[1].dtype == torch.float32
    inputs = leaves(hidden, head)
    expected = reference(hidden, targets, head, temperature)
    assert_same(got, expected, inputs)
    # Each alone takes another way back.
    for which in (0, 1):
        again = surprisal_entropy(hidden, targets, head, temperature=temperature)
        assert_same([again[which]], [reference(hidden, targets, head, temperature)[which]], inputs)


@options
def test_divergence_is_that_of_whole_logits(recipe):
    hidden, base = random(TOKENS, HIDDEN, seed=0), random(TOKENS, HIDDEN, seed=5)
    head, base_head = make_head(recipe), make_head(recipe, seed=11)
    for other in (base_head, None):
        got = kl_divergence(hidden, base, head, other, temperature=1.3)
        inputs = leaves(hidden, head)
        assert_same([got], [reference_kl(hidden, base, head, other or head, temperature=1.3)], inputs)
    kl_divergence(hidden, base, head, base_head).sum().backward()
    assert base.grad is None
    assert base_head.weight.grad is None


def test_divergence_from_a_base_of_another_width():
    head, base_head = make_head(), make_head({"softcap": 4.0, "bias": True}, seed=11, width=24)
    hidden, base = random(TOKENS, HIDDEN, seed=0), random(TOKENS, 24, seed=5)
    got = kl_divergence(hidden, base, head, base_head)
    assert_same([got], [reference_kl(hidden, base, head, base_head)], leaves(hidden, head))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_divergence_from_itself_is_exactly_nothing(dtype):
    hidden = random(TOKENS, HIDDEN, seed=0, dtype=dtype, scale=3.0)
    head = make_head({"bias": True, "softcap": 20.0}, dtype)
    kl = kl_divergence(hidden, hidden, head)
    assert kl.abs().max() == 0
    for slope in torch.autograd.grad(kl.sum(), leaves(hidden, head)):
        assert slope.abs().max() == 0


def test_a_small_divergence_is_not_lost_in_rounding():
    """A policy that has hardly moved: its logits are far larger than the divergence."""
    base = random(TOKENS, HIDDEN, seed=0, scale=5.0)
    hidden = (base.detach() + 1e-2 * random(TOKENS, HIDDEN, seed=3).detach()).requires_grad_()
    head = frozen(make_head())
    expected = reference_kl(hidden, base, head, head)
    assert expected.median() < 1e-3
    got = kl_divergence(hidden, base, head)
    assert (got >= 0).all()
    assert_same([got], [expected], [hidden], rtol=1e-3, atol=2e-6)


@options
@pytest.mark.parametrize("beta", [0.7, 1.0])
def test_gem_is_the_formula_of_the_paper(recipe, beta):
    hidden, head, targets = random(TOKENS, HIDDEN, seed=0), make_head(recipe), make_targets()
    got = gem(hidden, targets, head, beta=beta)
    assert_same([got], [reference_gem(hidden, targets, head, beta)], leaves(hidden, head))


def test_gem_at_beta_one_has_the_gradient_of_cross_entropy():
    hidden, head, targets = random(TOKENS, HIDDEN, seed=0), frozen(make_head()), make_targets()
    (mine,) = torch.autograd.grad(gem(hidden, targets, head, beta=1.0).sum(), hidden)
    (theirs,) = torch.autograd.grad(surprisal_entropy(hidden, targets, head)[0].sum(), hidden)
    torch.testing.assert_close(mine, theirs)


def test_skipped_tokens_are_nothing_and_change_nothing():
    hidden, head = random(TOKENS, HIDDEN, seed=0), make_head()
    some = make_targets()
    skipped = some == -100
    whole = surprisal_entropy(hidden, some.clamp(min=0), head)
    got = surprisal_entropy(hidden, some, head)
    for mine, theirs in zip(got, whole, strict=True):
        assert (mine[skipped] == 0).all()
        torch.testing.assert_close(mine[~skipped], theirs[~skipped])
    (slope,) = torch.autograd.grad(torch.cat(got).sum(), hidden)
    assert (slope[skipped] == 0).all()
    assert (slope[~skipped].abs().sum(1) > 0).all()


@pytest.mark.parametrize("n", [0, 3])
def test_nothing_to_score_keeps_the_graph(n):
    hidden, head = random(n, HIDDEN, seed=0), make_head({"bias": True})
    values = [*surprisal_entropy(hidden, torch.full((n,), -100), head), kl_divergence(hidden[:0], hidden[:0], head)]
    torch.cat(values).sum().backward()
    for leaf in leaves(hidden, head):
        assert leaf.grad.shape == leaf.shape
        assert (leaf.grad == 0).all()


@pytest.mark.parametrize("name", ["surprisal_entropy", "kl_divergence", "gem"])
def test_a_frozen_head_costs_no_work(name, monkeypatch):
    monkeypatch.setenv("UGAP_HEAD", "torch")  # the kernel has tiles of its own

    class Products(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += func.overloadpacket in PRODUCTS
            return func(*args, **(kwargs or {}))

    hidden, head, targets = random(TOKENS, HIDDEN, seed=0), make_head({"bias": True}), make_targets()
    runs = {
        "surprisal_entropy": lambda head: torch.cat(surprisal_entropy(hidden, targets, head)).sum(),
        "kl_divergence": lambda head: kl_divergence(hidden, hidden.detach() + 1, head).sum(),
        "gem": lambda head: gem(hidden, targets, head).sum(),
    }
    made = []
    for one in (head, frozen(head)):
        loss = runs[name](one)
        hidden.grad = None
        with Products() as products:
            loss.backward()
        made.append((products.n, hidden.grad.clone(), one.weight.grad))
    (trained, slope, weight_slope), (without, same_slope, nothing) = made
    tiles = 4 * math.ceil(TOKENS / 8)
    assert trained - without == tiles
    assert torch.equal(slope, same_slope)
    assert weight_slope is not None
    assert nothing is None


def test_hidden_states_without_gradient():
    """Only the head is trained."""
    hidden, head, targets = random(TOKENS, HIDDEN, seed=0).detach(), make_head({"bias": True}), make_targets()
    got = surprisal_entropy(hidden, targets, head)
    assert_same(got, reference(hidden, targets, head), [head.weight, head.bias])


@dtypes
def test_half_precision_rounds_the_gradients_alone(dtype):
    tolerance = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    hidden, base = (random(TOKENS, HIDDEN, seed=i, dtype=dtype) for i in (0, 5))
    head, targets = make_head({"bias": True, "softcap": 9.0}, dtype), make_targets()
    inputs = leaves(hidden, head)
    got = [*surprisal_entropy(hidden, targets, head), kl_divergence(hidden, base, head)]
    expected = [*reference(hidden, targets, head), reference_kl(hidden, base, head, head)]
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=1e-4)
    assert_same(got, expected, inputs, rtol=tolerance, atol=1e-3)


def test_autocast_changes_nothing():
    hidden, head, targets = random(TOKENS, HIDDEN, seed=0), make_head(), make_targets()
    runs = []
    for on in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
            values = [*surprisal_entropy(hidden, targets, head), kl_divergence(hidden, hidden.detach() + 1, head)]
            values += torch.autograd.grad(torch.cat(values).sum(), leaves(hidden, head))
        runs.append(values)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_hidden_states_of_another_dtype():
    """As they arrive under autocast."""
    hidden, head, targets = random(TOKENS, HIDDEN, seed=0, dtype=torch.bfloat16), make_head(), make_targets()
    got = surprisal_entropy(hidden, targets, head)
    (slope,) = torch.autograd.grad(got[0].sum(), hidden)
    assert slope.dtype == torch.bfloat16
    same = surprisal_entropy(hidden.float(), targets, head)
    assert all(torch.equal(a, b) for a, b in zip(got, same, strict=True))
    assert kl_divergence(hidden, hidden, head).abs().max() == 0


def test_peaked_distributions():
    """Logits that span hundreds: the running maximum moves by more than `exp` reaches."""
    hidden, base = (random(TOKENS, HIDDEN, seed=i, scale=20.0) for i in (0, 5))
    head, targets = make_head(), make_targets()
    assert_same(surprisal_entropy(hidden, targets, head), reference(hidden, targets, head), leaves(hidden, head))
    got, expected = kl_divergence(hidden, base, head), reference_kl(hidden, base, head, head)
    assert_same([got], [expected], leaves(hidden, head))


@pytest.mark.parametrize("scale", [1e3, 1e6, 1e15])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_huge_logits_stay_finite(scale, softcap):
    hidden, base = (random(TOKENS, HIDDEN, seed=i, scale=scale) for i in (0, 5))
    head, targets = make_head({"softcap": softcap}), make_targets()
    values = [*surprisal_entropy(hidden, targets, head), kl_divergence(hidden, base, head), gem(hidden, targets, head)]
    surprisal, entropy, kl, _ = values
    assert (surprisal >= 0).all()
    assert ((entropy >= 0) & (entropy <= math.log(VOCABULARY))).all()
    assert (kl >= 0).all()
    for value in (*values, *torch.autograd.grad(torch.cat(values).sum(), leaves(hidden, head))):
        assert value.isfinite().all()
    # The probabilities sum to 1, so the gradient of a shift of all logits is nothing, and of one logit at most 1.
    eye = LMHead(torch.eye(HIDDEN), None, None, 1.0)
    (slope,) = torch.autograd.grad(surprisal_entropy(hidden, targets.clamp(max=15), eye)[0].sum(), hidden)
    assert slope.abs().max() <= 1
    assert slope.sum(1).abs().max() < 1e-5


def test_huge_logits_keep_the_small_differences():
    """Two words share the largest logit, next to which log 2 is less than a rounding error."""
    hidden = torch.full((1, 1), 1e8, requires_grad=True)
    head = LMHead(torch.tensor([[1.0], [1.0], [0.5]]), None, None, 1.0)
    for value in surprisal_entropy(hidden, torch.tensor([1]), head):
        assert value.item() == pytest.approx(math.log(2))
    assert gem(hidden, torch.tensor([1]), head).item() == pytest.approx(0, abs=1e-6)


def test_words_that_are_ruled_out():
    hidden, base = (random(TOKENS, HIDDEN, seed=i) for i in (0, 5))
    plain = make_head()
    bias = torch.zeros(VOCABULARY)
    bias[:40] = -math.inf  # a whole tile and a part of the next
    bias[100] = -math.inf
    head = dataclasses.replace(plain, bias=bias)
    targets = torch.linspace(40, 99, TOKENS).long()
    rest = LMHead(plain.weight[40:100], None, None, 1.0)
    inputs = leaves(hidden, plain)
    got = [*surprisal_entropy(hidden, targets, head), kl_divergence(hidden, base, head)]
    assert_same(got, [*reference(hidden, targets - 40, rest), reference_kl(hidden, base, rest, rest)], inputs)
    # What the base alone rules out costs nothing, what the policy alone rules out everything.
    assert kl_divergence(hidden, base, plain, head).isfinite().all()
    kl = kl_divergence(hidden, base, head, plain)
    assert (kl == math.inf).all()
    impossible = surprisal_entropy(hidden, torch.full_like(targets, 100), head)[0]
    assert (impossible == math.inf).all()
    for value in (kl, impossible):
        (slope,) = torch.autograd.grad(value.sum(), hidden)
        assert slope.isfinite().all()
        assert slope.abs().max() > 0


def test_nan_is_not_hidden():
    hidden, head, targets = random(TOKENS, HIDDEN, seed=0), make_head(), make_targets().clamp(min=0)
    with torch.no_grad():
        head.weight[40] = math.nan
    values = [*surprisal_entropy(hidden, targets, head), kl_divergence(hidden, hidden, head)]
    assert all(value.isnan().all() for value in values)


class LargestTensor(TorchDispatchMode):
    """Notes the largest tensor that an operation makes, and how many products there are."""

    elements = products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.products += func.overloadpacket in PRODUCTS
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, torch.Tensor):
                self.elements = max(self.elements, made.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_are_never_built(dtype, monkeypatch):
    monkeypatch.setenv("UGAP_HEAD", "torch")  # what is in memory for the kernel is not made by torch
    monkeypatch.setitem(torch_tiles.TILES, "cpu", (64, 256))
    vocabulary, width, n = 2000, 4, 512
    head = make_head({"bias": True, "softcap": 5.0}, dtype, vocabulary=vocabulary, width=width)
    hidden, base = (random(n, width, seed=i, dtype=dtype) for i in (0, 5))
    targets = make_targets(n, vocabulary)
    with LargestTensor() as mode:
        values = [*surprisal_entropy(hidden, targets, head), kl_divergence(hidden, base, head)]
        forward = mode.products
        torch.cat(values).sum().backward()
    tiles = math.ceil(n / 64) * math.ceil(vocabulary / 256)
    assert forward >= 3 * tiles
    assert mode.products - forward == 7 * tiles  # the mode sees the backward pass: 3 and 4 products a tile
    assert mode.elements <= 64 * 256 < n * vocabulary


def test_little_is_kept_for_the_backward_pass():
    hidden, head, targets = random(TOKENS, HIDDEN, seed=0), make_head({"bias": True}), make_targets()
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        surprisal_entropy(hidden, targets, head)
        kl_divergence(hidden, hidden.detach() + 1, head)
    large = [n for n in kept if n > TOKENS]
    weights, states = VOCABULARY * HIDDEN, TOKENS * HIDDEN
    assert sorted(large, reverse=True)[:3] == [weights] * 3
    assert max(large[3:]) <= weights
    assert sum(large) <= 3 * weights + 4 * states + 3 * VOCABULARY


def test_a_second_derivative_is_refused():
    hidden, head, targets = random(TOKENS, HIDDEN, seed=0), make_head(), make_targets()
    for value in (surprisal_entropy(hidden, targets, head)[1], kl_divergence(hidden, hidden.detach() + 1, head)):
        (slope,) = torch.autograd.grad(value.square().sum(), hidden, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


def test_the_head_of_a_model_is_live(make_model):
    """An optimiser's step on the model is one on the head that was read off it before."""
    model = make_model("phi").requires_grad_(True)
    head = LMHead.of(model, "m")
    hidden, targets = random(5, 32, seed=0), torch.arange(5)
    before, _ = surprisal_entropy(hidden, targets, head)
    before.sum().backward()
    assert model.lm_head.bias.grad.abs().max() > 0
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after, _ = surprisal_entropy(hidden, targets, head)
    assert (after < before).all()
    expected, _ = reference(hidden, targets, LMHead(model.lm_head.weight, model.lm_head.bias, None, 1.0))
    torch.testing.assert_close(after.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x, y, h: surprisal_entropy(x[:, :5], y, h), "hidden"),
        (lambda x, y, h: surprisal_entropy(x, y[1:], h), "targets"),
        (lambda x, y, h: surprisal_entropy(x, y + 100, h), "targets holds"),
        (lambda x, y, h: surprisal_entropy(x, y, h, temperature=0.0), "temperature"),
        (lambda x, y, h: surprisal_entropy(x, y, dataclasses.replace(h, softcap=-1.0)), "softcap"),
        (lambda x, y, h: gem(x, y, h, beta=0.0), "beta"),
        (lambda x, y, h: gem(x, y, h, beta=math.nan), "beta"),
        (lambda x, y, h: kl_divergence(x, x[1:], h), "base_hidden"),
        (lambda x, y, h: kl_divergence(x, x[:, 1:], h), "base_hidden"),
        (lambda x, y, h: kl_divergence(x, x, h, make_head(vocabulary=99)), "base_head"),
        (lambda x, y, h: kl_divergence(x, x, h, temperature=math.inf), "temperature"),
    ],
)
def test_wrong_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=name):
        call(random(3, HIDDEN, seed=0), torch.tensor([1, 2, 3]), make_head())


@pytest.mark.gpu
@dtypes
def test_matches_float64_on_a_gpu(dtype):
    hidden, base = (random(TOKENS, HIDDEN, seed=i, dtype=dtype) for i in (0, 5))
    head, targets = make_head({"bias": True, "softcap": 9.0}, dtype), make_targets()
    assert head.bias is not None
    expected = [*reference(hidden, targets, head), reference_kl(hidden, base, head, head)]
    on_gpu = dataclasses.replace(head, weight=head.weight.cuda(), bias=head.bias.cuda())
    values = surprisal_entropy(hidden.cuda(), targets, on_gpu)
    got = [*values, kl_divergence(hidden.cuda(), base.cuda(), on_gpu)]
    tolerance = 1e-3 if dtype == torch.float32 else 2e-2
    assert_same([x.cpu() for x in got], expected, leaves(hidden, head), rtol=tolerance, atol=1e-3)
