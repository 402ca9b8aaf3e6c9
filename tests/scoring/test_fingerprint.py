import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from ugap.scoring.fingerprint import weight_hash


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
