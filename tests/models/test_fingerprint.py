import warnings
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from ugap.models.fingerprint import weight_hash


def test_one_checkpoint_has_one_hash_in_every_dtype(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loads = [AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)]
    assert {weight_hash(model) for model in loads} == {weight_hash(tiny_model)}


def test_another_seed_or_one_other_row_gives_another_hash(make_model):
    model = make_model("llama")
    before = weight_hash(model)
    assert before == weight_hash(make_model("llama"))
    assert len(before) == 16
    model.lm_head.weight.data[7] += 1
    assert weight_hash(model) != before
    assert weight_hash(make_model("phi")) != before


def test_tied_weights_count_once(make_model):
    model = make_model("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert weight_hash(model) == weight_hash(make_model("gpt2"))


def test_a_base_inside_a_peft_model_keeps_its_hash(make_model):
    model = make_model("llama")
    before = weight_hash(model)
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert weight_hash(adapted.get_base_model()) == before
    # It is the base's own weights that count, under the adapter too.
    weights = dict(adapted.get_base_model().named_parameters())
    weights["model.layers.0.self_attn.q_proj.base_layer.weight"].data[3] += 1
    assert weight_hash(adapted.get_base_model()) != before


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # gpt2 has one weight as embedding and head
@pytest.mark.parametrize("whole", ["embedding", "head", "tokens"])
def test_the_hash_stays_where_layers_or_tokens_are_trained_as_a_whole(make_model, architecture, whole):
    model = make_model(architecture)
    before = weight_hash(model)
    embedding = "embed_tokens" if architecture == "llama" else "wte"
    options: dict[str, dict[str, Any]] = {
        "embedding": {"modules_to_save": [embedding]},
        "head": {"modules_to_save": ["lm_head"]},
        "tokens": {"trainable_token_indices": {embedding: [1, 2]}},
    }
    layers = "q_proj" if architecture == "llama" else "c_attn"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tied weights, and of the transposed layers of gpt2
        adapted = get_peft_model(model, LoraConfig(target_modules=[layers], **options[whole]))
    inner = adapted.get_base_model()
    assert weight_hash(inner) == before
    own = weight_hash(inner, adapters=True)
    added = dict(inner.named_parameters()).keys() - set(make_model(architecture).state_dict())
    changed = next(name for name in sorted(added) if "modules_to_save" in name or "tokens_delta" in name)
    inner.get_parameter(changed).data[0] += 1
    assert weight_hash(inner) == before
    assert weight_hash(inner, adapters=True) != own
