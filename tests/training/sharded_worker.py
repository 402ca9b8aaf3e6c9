"""One of two processes that train a sharded model: its gradients beside those of the whole model, on a CPU.

`python sharded_worker.py KIND RANK STORE PORT` prints, by parameter, the relative difference of the gradients.
"""

import copy
import functools
import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

from ugap.scoring.head.lm_head import LMHead
from ugap.training.token_forward import TokenRequest, add_token_forward, with_live_head

WORLD = 2
SHAPE = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def make_model(tied: bool, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.3, tie_word_embeddings=tied)).eval()


def loss_of(model: Any, base: Any, within_base: Any, rank: int) -> torch.Tensor:
    """A loss of everything that the head gives, on other text in each process."""
    ids = torch.randint(101, (3, 17), generator=torch.Generator().manual_seed(rank))
    labels = ids.clone()
    labels[:, :4] = -100
    with torch.no_grad():
        base_hidden = base(input_ids=ids, labels=labels, tokens=TokenRequest(hidden=True))["hidden"]
    extra = {"base_hidden": base_hidden, "within_base": within_base, "compared": torch.ones(3, dtype=torch.bool)}
    out = model(input_ids=ids, labels=labels, tokens=TokenRequest(gem_beta=0.7), **extra)
    return (out["surprisal"] - 0.3 * out["entropy"] + 0.5 * out["kl"] + 0.1 * out["gem"]).mean()


def expected_gradients(tied: bool) -> dict[str, torch.Tensor]:
    """Mean over the processes of the gradients of the whole model."""
    model, base = make_model(tied, 0), make_model(tied, 1)
    add_token_forward(model, "policy")
    within = functools.partial(with_live_head, add_token_forward(base, "base"), base)
    for rank in range(WORLD):
        (loss_of(model, base, within, rank) / WORLD).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def by_fsdp(model: Any, base: Any, within: Any, rank: int, apart: bool) -> dict[str, torch.Tensor]:
    """Gradients of FSDP2, with the head in the group of the whole model or sharded by itself."""
    mesh = init_device_mesh("cpu", (WORLD,))
    for one in (model, base):
        if apart:
            fully_shard(one.lm_head, mesh=mesh)
        fully_shard(one, mesh=mesh)
    loss_of(model, base, within, rank).backward()
    return {name: p.grad.full_tensor() for name, p in model.named_parameters()}


def by_zero(model: Any, base: Any, within: Any, rank: int) -> dict[str, torch.Tensor]:
    """Gradients of DeepSpeed's ZeRO-3; a head can also be read off the sharded model, and scored with."""
    import deepspeed
    from deepspeed.utils import safe_get_full_grad

    stage = {"stage": 3, "stage3_param_persistence_threshold": 0}
    config = {"train_micro_batch_size_per_gpu": 3, "zero_optimization": stage, "zero_allow_untested_optimizer": True}
    whole = copy.deepcopy(model)
    policy, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), config=copy.deepcopy(config)
    )
    frozen, *_ = deepspeed.initialize(model=base.requires_grad_(False), config=copy.deepcopy(config))
    policy.backward(loss_of(policy, frozen, within, rank))
    gradients = {name: safe_get_full_grad(p) for name, p in model.named_parameters()}
    hidden, targets = torch.randn(5, 32, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    with torch.no_grad():
        head = LMHead.of(model, "policy")
        with head.live(model) as live:
            got = live.statistics(hidden, targets)
    torch.testing.assert_close(got, LMHead.of(whole, "whole").statistics(hidden, targets))
    return gradients


def main(kind: str, rank: int, store: str, port: str) -> None:
    torch.set_num_threads(1)
    how, _, tied = kind.partition("-")
    expected = expected_gradients(bool(tied))
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ.update(address, WORLD_SIZE=str(WORLD), DS_ACCELERATOR="cpu")
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    model, base = make_model(bool(tied), 0), make_model(bool(tied), 1)
    add_token_forward(model, "policy")
    within = functools.partial(with_live_head, add_token_forward(base, "base"), base)
    found = by_zero(model, base, within, rank) if how == "zero" else by_fsdp(model, base, within, rank, how == "apart")
    differences = {
        name: float((found[name].float() - theirs).abs().max() / theirs.abs().max())
        for name, theirs in expected.items()
    }
    print(json.dumps(differences), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
