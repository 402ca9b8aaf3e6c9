import copy
import itertools
import math

import pytest
import torch

from ugap.errors import InputError
from ugap.scoring.head.autograd import gem, kl_divergence, surprisal_entropy
from ugap.scoring.head.lm_head import LMHead, backbone
from ugap.training.losses import Loss, creativity_loss, creativity_reality_loss, gem_loss, reality_loss

MODES = {"creative": 1.0, "balanced": 0.5, "precise": 0.0}


def tokens(*shape, seed, vocabulary=300):
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def values(n, seed, low=0.0, high=6.0):
    drawn = torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (low + (high - low) * drawn).requires_grad_()


def fused(model, ids):
    """Final states, targets and head of every token of `ids` `(B, T)` but the first ones."""
    hidden = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state
    return hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), LMHead.of(model, "m")


def whole(model, ids):
    """Log-probabilities `(N, V)`, surprisal and entropy from the model's own logits."""
    log_p = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1).log_softmax(-1)
    surprisal = -log_p.gather(1, ids[:, 1:].flatten().unsqueeze(1)).squeeze(1)
    return log_p, surprisal, -(log_p.exp() * log_p).sum(-1)


def calibration(entropy, surprisal, bins, share=1.0):
    """As the formula says, bin by bin; entropies that are equal to 1e-4 stand where the middle one of them does."""
    n = len(entropy)
    order = sorted(range(n), key=lambda t: entropy[t].item())
    size, rest = divmod(n, bins)
    members: list[list[int]] = [[] for _ in range(bins)]
    begin = 0
    numbers = [b for b in range(bins) for _ in range(size + (b < rest))]
    groups = itertools.groupby(order, key=lambda t: round(entropy[t].item() * 1e4))
    for tied in [list(group) for _, group in groups]:
        members[numbers[begin + (len(tied) - 1) // 2]] += tied
        begin += len(tied)
    total = entropy.new_zeros(())
    for own in filter(None, members):
        h = torch.stack([entropy[t] for t in own]).mean()
        s = torch.stack([surprisal[t] for t in own]).mean().detach()
        total = total + len(own) / n * (h - share * s) ** 2
    return total


def assert_same_training(ours: Loss, theirs, model, other):
    """Values, and the gradients of all parameters."""
    torch.testing.assert_close(ours.total, theirs, rtol=1e-10, atol=1e-12)
    parameters = list(model.parameters())
    mine = torch.autograd.grad(ours.total, parameters)
    expected = torch.autograd.grad(theirs, list(other.parameters()))
    assert max(slope.abs().max() for slope in mine) > 1e-3
    for a, b in zip(mine, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.fixture(name="models", params=["llama", "gemma2", "phi"])
def _models(request, make_model):
    """A model and its copy in float64, plain, with a soft cap and tied weights, and with a biased head."""
    model = make_model(request.param).double().requires_grad_(True)
    return model, copy.deepcopy(model)


@pytest.mark.parametrize("share", [1.0, 0.8])
def test_creativity_trains_as_whole_logits_would(share, models):
    model, other = models
    ids = tokens(3, 40, seed=0)
    surprisal, entropy = surprisal_entropy(*fused(model, ids))
    _, s, h = whole(other, ids)
    assert len(h) == 117
    loss = creativity_loss(surprisal, entropy, share=share)
    assert_same_training(loss, calibration(h, s, bins=7, share=share), model, other)


def test_reality_trains_as_whole_logits_would(models, make_model):
    model, other = models
    base = copy.deepcopy(other)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter += 0.02
    references, functional = tokens(2, 20, seed=0), tokens(3, 15, seed=1)
    surprisal, _ = surprisal_entropy(*fused(model, references))
    with torch.no_grad():
        base_hidden, _, base_head = fused(base, functional)
    hidden, _, head = fused(model, functional)
    loss = reality_loss(surprisal, kl_divergence(hidden, base_hidden, head, base_head), kl_weight=3.0)
    log_base, log_p = whole(base, functional)[0].detach(), whole(other, functional)[0]
    kl = (log_base.exp() * (log_base - log_p)).sum(-1).mean()
    nll = whole(other, references)[1].mean()
    torch.testing.assert_close(loss.parts["kl"], kl.detach())
    torch.testing.assert_close(loss.parts["cross_entropy"], nll.detach())
    assert_same_training(loss, nll + 3.0 * kl, model, other)


def test_the_trade_off_trains_as_whole_logits_would(models):
    model, other = models
    creative, references = tokens(2, 30, seed=0), tokens(2, 20, seed=1)
    surprisal, entropy = surprisal_entropy(*fused(model, creative))
    reality = reality_loss(surprisal_entropy(*fused(model, references))[0])
    loss = creativity_reality_loss(0.3, creativity_loss(surprisal, entropy), reality)
    _, s, h = whole(other, creative)
    expected = 0.3 * calibration(h, s, bins=3) + 0.7 * whole(other, references)[1].mean()
    assert_same_training(loss, expected, model, other)


def test_gem_trains_as_whole_logits_would(models):
    model, other = models
    ids = tokens(2, 30, seed=0)
    loss = gem_loss(gem(*fused(model, ids)))
    logits = other(input_ids=ids).logits[:, :-1].flatten(0, 1)
    q, log_p = (logits / 0.7).softmax(-1).detach(), logits.log_softmax(-1)
    own = log_p.gather(1, ids[:, 1:].flatten().unsqueeze(1))
    assert_same_training(loss, -(q * (own - log_p)).sum(-1).mean(), model, other)


@pytest.mark.parametrize(("text", "sign"), [("surprising", 1), ("certain", -1)])
def test_training_moves_the_entropy_to_the_text(text, sign, make_model):
    """Up where the text is more surprising than the model expects, down where it is less."""
    model = make_model("llama", initializer_range=0.15).requires_grad_(True)
    ids = tokens(4, 40, seed=0)
    if text == "certain":
        with torch.no_grad():
            for t in range(1, 40):
                ids[:, t] = model(input_ids=ids[:, :t]).logits[:, -1].argmax(-1)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    means, gaps = [], []
    for _ in range(20):
        surprisal, entropy = surprisal_entropy(*fused(model, ids))
        means.append(entropy.mean().item())
        loss = creativity_loss(surprisal, entropy)
        gaps.append(loss.total.item())
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert sign * (means[3] - means[0]) > 0.05
    assert sign * (means[-1] - means[0]) > 0.2
    assert gaps[-1] < 0.2 * gaps[0]


@pytest.mark.parametrize(("temperature", "sign"), [(1.0, 0), (2.0, -1), (0.5, 1)])
def test_a_calibrated_model_is_left_alone(temperature, sign):
    """Texts drawn from the model itself have no gradient on average; hotter ones raise its entropy, cooler lower it."""
    generator = torch.Generator().manual_seed(0)
    sharpness = torch.linspace(0.2, 4.0, 160, dtype=torch.float64).unsqueeze(1)
    logits = sharpness * torch.randn(160, 30, generator=generator, dtype=torch.float64)
    log_p = logits.log_softmax(-1)
    entropy = (-(log_p.exp() * log_p).sum(-1)).requires_grad_()
    varentropy = (log_p.exp() * (log_p + entropy.detach().unsqueeze(1)) ** 2).sum(-1)
    p = (logits / temperature).softmax(-1)
    drawn = torch.multinomial(p, 400, replacement=True, generator=generator)
    slopes, losses = [], []
    for surprisal in -log_p.gather(1, drawn).T:
        loss = creativity_loss(surprisal, entropy).total
        slopes.append(torch.autograd.grad(loss, entropy)[0])
        losses.append(loss.item())
    slope = torch.stack(slopes)
    scores = slope.mean(0) / (slope.std(0) / len(slopes) ** 0.5)
    mean = sum(losses) / len(losses)
    floor = 8 * varentropy.mean().item() / 160
    if sign == 0:
        assert scores.abs().max() < 4
        assert mean == pytest.approx(floor, rel=0.1)
    else:
        assert (sign * scores).median() > 10
        assert mean > 1.5 * floor


def test_bins_of_opposite_sign_do_not_cancel():
    entropy = torch.tensor([1.0] * 16 + [3.0] * 16, dtype=torch.float64, requires_grad=True)
    surprisal = torch.full((32,), 2.0, dtype=torch.float64)
    assert creativity_loss(surprisal, entropy, bins=1).total.item() == 0
    loss = creativity_loss(surprisal, entropy, bins=2)
    assert loss.total.item() == 1
    loss.total.backward()
    assert entropy.grad is not None
    assert entropy.grad.tolist() == [-1 / 16] * 16 + [1 / 16] * 16


def test_the_surprisal_is_not_taught():
    entropy, surprisal = values(64, 0), values(64, 1)
    creativity_loss(surprisal, entropy).total.backward()
    assert surprisal.grad is None
    assert entropy.grad is not None


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (31, 1), (32, 2), (127, 7), (128, 8), (1000, 8)])
def test_few_tokens_make_few_bins(n, expected):
    entropy, surprisal = values(n, 0), values(n, 1)
    got = creativity_loss(surprisal, entropy).total
    torch.testing.assert_close(got, calibration(entropy, surprisal, expected))
    if n > 1:
        assert abs(got.item() - calibration(entropy, surprisal, expected + 1).item()) > 1e-6


def test_equal_entropies_are_of_one_bin():
    """The first tokens of all texts are: which of them is where must not hang on the order of the rows."""
    entropy, surprisal = values(100, 0), values(100, 1)
    with torch.no_grad():
        entropy[10:60] = entropy[0] + 1e-7 * torch.rand(50)
    loss = creativity_loss(surprisal, entropy).total
    torch.testing.assert_close(loss, calibration(entropy, surprisal, 6))
    for seed in range(4):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(creativity_loss(surprisal[order], entropy[order]).total, loss)


def test_order_of_tokens_does_not_matter():
    entropy, surprisal = values(100, 0), values(100, 1)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        creativity_loss(surprisal[order], entropy[order]).total, creativity_loss(surprisal, entropy).total
    )


@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_add_up(as_tensor):
    """Each divides by the tokens of the whole step."""

    def count(n):
        return torch.tensor(n) if as_tensor else n

    nll, kl, entropy = values(100, 0), values(60, 1), values(100, 2)
    expected = reality_loss(nll, kl, 2.0)
    halves = [
        reality_loss(nll[a], kl[b], 2.0, n_tokens=count(100), n_kl_tokens=count(60))
        for a, b in ((slice(0, 30), slice(0, 50)), (slice(30, 100), slice(50, 60)))
    ]
    torch.testing.assert_close(halves[0].total + halves[1].total, expected.total)
    for name in ("cross_entropy", "kl"):
        torch.testing.assert_close(halves[0].parts[name] + halves[1].parts[name], expected.parts[name])
    torch.testing.assert_close(gem_loss(nll[:30], n_tokens=count(100)).total, nll[:30].sum() / 100)
    # The calibrations of the micro-batches are averaged by their tokens.
    parts = [creativity_loss(nll[a], entropy[a], n_tokens=count(100)) for a in (slice(0, 30), slice(30, 100))]
    alone = [creativity_loss(nll[a], entropy[a]).total for a in (slice(0, 30), slice(30, 100))]
    torch.testing.assert_close(parts[0].total + parts[1].total, 0.3 * alone[0] + 0.7 * alone[1])
    torch.testing.assert_close(parts[1].parts["creativity"], parts[1].total.detach())


@pytest.mark.parametrize("mode", MODES)
def test_modes_are_weights(mode):
    entropy, surprisal, kl = (values(40, seed) for seed in range(3))
    creativity, reality = creativity_loss(surprisal, entropy), reality_loss(surprisal, kl)
    by_mode = creativity_reality_loss(mode, creativity, reality)
    weight = MODES[mode]
    by_weight = creativity_reality_loss(weight, creativity, reality)
    assert by_mode.total == by_weight.total
    torch.testing.assert_close(by_mode.total, weight * creativity.total + (1 - weight) * reality.total)
    assert by_mode.parts == {**creativity.parts, **reality.parts}
    assert not any(part.requires_grad for part in by_mode.parts.values())


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_ends_are_exactly_the_parts(weight):
    entropy, surprisal, kl = (values(40, seed) for seed in range(3))
    creativity, reality = creativity_loss(surprisal, entropy), reality_loss(surprisal, kl)
    only, other = (creativity, reality) if weight == 1 else (reality, creativity)
    # Not even an infinite value of the other one shows.
    broken = Loss(other.total * math.inf, other.parts)
    pair = (only, broken) if weight == 1 else (broken, only)
    loss = creativity_reality_loss(weight, *pair)
    assert loss.total == only.total
    inputs = (entropy, surprisal, kl)
    got = torch.autograd.grad(loss.total, inputs, allow_unused=True, retain_graph=True)
    expected = torch.autograd.grad(only.total, inputs, allow_unused=True)
    for a, b in zip(got, expected, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_a_batch_of_one_domain():
    entropy, surprisal, kl = (values(40, seed) for seed in range(3))
    creativity = creativity_loss(surprisal, entropy)
    loss = creativity_reality_loss("balanced", creativity)
    assert loss.total == 0.5 * creativity.total
    assert set(loss.parts) == {"creativity"}
    functional = reality_loss(kl=kl, kl_weight=2.0)
    assert functional.total == 2 * kl.mean()
    assert set(functional.parts) == {"kl"}
    # The only loss there is has no weight: the step goes on, and does nothing.
    nothing = creativity_reality_loss("creative", reality=functional)
    nothing.total.backward()
    assert nothing.total == 0
    assert kl.grad is not None
    assert (kl.grad == 0).all()


def test_no_tokens_keep_the_graph():
    leaf = values(40, 0)
    none = leaf[:0]
    loss = creativity_reality_loss(0.5, creativity_loss(none, none), reality_loss(none, none))
    assert loss.parts == {}
    # Nor has the whole step any.
    totals = [loss.total, gem_loss(none, n_tokens=0).total, creativity_loss(none, none, n_tokens=torch.tensor(0)).total]
    assert all(total == 0 for total in totals)
    torch.stack(totals).sum().backward()
    assert leaf.grad is not None
    assert (leaf.grad == 0).all()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda x: creativity_loss(x, x[1:]), "entropy"),
        (lambda x: creativity_loss(x.view(2, 2), x), "surprisal"),
        (lambda x: creativity_loss(x, x.view(2, 2)), "entropy"),
        (lambda x: creativity_loss(x, x, bins=0), "bins"),
        (lambda x: reality_loss(), "surprisal and kl"),
        (lambda x: reality_loss(x.view(2, 2)), "surprisal"),
        (lambda x: reality_loss(kl=x.view(2, 2)), "kl"),
        (lambda x: reality_loss(x, x, kl_weight=-1.0), "kl_weight"),
        (lambda x: reality_loss(x, x, kl_weight=math.nan), "kl_weight"),
        (lambda x: creativity_loss(x, x, share=0.0), "share"),
        (lambda x: creativity_loss(x, x, differences=x[:2]), "differences"),
        (lambda x: gem_loss(x.view(2, 2)), "gem"),
        (lambda x: creativity_reality_loss(0.5), "creativity and reality"),
    ],
)
def test_wrong_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        call(torch.zeros(4))


@pytest.mark.parametrize("weight", [-0.1, 1.5, math.nan, "wild"])
def test_a_wrong_weight_is_bad_input(weight):
    with pytest.raises(InputError, match=r"weight: expected a number|unknown mode 'wild'"):
        creativity_reality_loss(weight, gem_loss(torch.zeros(4)))
