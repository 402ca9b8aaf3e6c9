"""The forward pass without logits inside of what wraps a model: a compiler, autocast."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from ugap.training.token_forward import TokenRequest, add_token_forward

IDS = torch.arange(3, 63).reshape(3, 20)


def loss_of(model):
    out = model(input_ids=IDS, labels=IDS, tokens=TokenRequest(gem_beta=0.7))
    return (out["surprisal"] - 0.3 * out["entropy"] + 0.1 * out["gem"]).mean()


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wrapped", "in_place"])
def test_a_compiled_model_trains_as_before(how, make_model):
    model = make_model("llama").requires_grad_(True)
    add_token_forward(model, "m")
    expected = gradients(model, loss_of(model))
    counters.clear()
    if how == "in_place":
        model.compile()
    found = gradients(model, loss_of(torch.compile(model) if how == "wrapped" else model))
    for name, theirs in expected.items():
        torch.testing.assert_close(found[name], theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().amax()))
    # The label mask and the head itself: the head's own loops stay out of the graph.
    assert len(counters["graph_break"]) <= 2


def test_autocast_leaves_the_head_in_the_dtype_of_its_weight(make_model):
    model = make_model("llama").requires_grad_(True)
    add_token_forward(model, "m")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model(input_ids=IDS, labels=IDS, tokens=TokenRequest(hidden=True))["hidden"]
        out = model(input_ids=IDS, labels=IDS, tokens=TokenRequest())
    expected = torch.log_softmax(hidden.double() @ model.get_output_embeddings().weight.double().T, -1)
    own = -expected.gather(1, IDS[:, 1:].reshape(-1, 1)).squeeze(1)
    assert out["surprisal"].dtype == torch.float32
    torch.testing.assert_close(out["surprisal"].double(), own, rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_copy_runs_its_own_weights(make_model):
    model = make_model("llama")
    add_token_forward(model, "m")
    logits, request = model(input_ids=IDS).logits, {"input_ids": IDS, "labels": IDS, "tokens": TokenRequest()}
    surprisal = model(**request)["surprisal"]
    other = copy.deepcopy(model)
    torch.testing.assert_close(other(input_ids=IDS).logits, logits)
    for parameter in other.parameters():
        parameter.mul_(0.5)
    assert not torch.allclose(other(input_ids=IDS).logits, logits, atol=0.1)
    assert not torch.allclose(other(**request)["surprisal"], surprisal, atol=0.1)
    torch.testing.assert_close(model(input_ids=IDS).logits, logits)
