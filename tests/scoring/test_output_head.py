import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)

from ugap.errors import InputError
from ugap.scoring import Scorer
from ugap.scoring.output_head import OutputHead, backbone

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


class DoubledLogits(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


class LooksAhead(LlamaModel):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.last_hidden_state = out.last_hidden_state + out.last_hidden_state.mean(1, keepdim=True)
        return out


def refused(model, tokenizer):
    with pytest.raises(InputError) as caught:
        Scorer(model.eval(), tokenizer, name="the-model")
    message = str(caught.value)
    assert message.startswith("the-model: ")
    assert "\n" not in message
    return message


def test_reads_every_kind_of_head(any_model):
    head = OutputHead.of(any_model, "m")
    ids = torch.arange(3, 30).unsqueeze(0)
    with torch.no_grad():
        hidden = backbone(any_model)(input_ids=ids, use_cache=False).last_hidden_state[0]
        expected = torch.log_softmax(any_model(input_ids=ids).logits[0, :-1].double(), -1)
    got = head.statistics(hidden[:-1], ids[0, 1:]).surprisal
    torch.testing.assert_close(got.double(), -expected.gather(1, ids[0, 1:, None]).squeeze(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "bias", "softcap", "scale"),
    [("llama", False, None, 1), ("gemma2", False, 5, 1), ("cohere", False, None, 0.25), ("granite", False, None, 0.25),
     ("phi", True, None, 1)],
)  # fmt: skip
def test_recipe(architecture, bias, softcap, scale, make_model):
    head = OutputHead.of(make_model(architecture), "m")
    assert (head.bias is not None, head.softcap, head.logit_scale) == (bias, softcap, scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_pass_the_probe(dtype, any_model, make_model, tmp_path):
    any_model.save_pretrained(tmp_path)
    OutputHead.of(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype), "m")


def test_an_unknown_head_is_refused(tokenizer, tiny_model):
    model = DoubledLogits(tiny_model.config)
    model.load_state_dict(tiny_model.state_dict())
    assert "DoubledLogits is of a kind that the scorer does not know" in refused(model, tokenizer)


def test_a_model_without_a_head_is_refused(tokenizer, tiny_model):
    assert "LlamaModel has no causal language-model head" in refused(LlamaModel(tiny_model.config), tokenizer)


def test_a_model_that_reads_both_ways_is_refused(tokenizer, tiny_model):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=400, max_position_embeddings=64, **SMALL)
    assert "not causal" in refused(BertLMHeadModel(config), tokenizer)
    model = LlamaForCausalLM(tiny_model.config)
    model.model = LooksAhead(tiny_model.config)
    assert "not causal" in refused(model, tokenizer)


def test_an_encoder_decoder_is_refused(tokenizer):
    config = T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, decoder_start_token_id=0)
    refused(T5ForConditionalGeneration(config), tokenizer)


def test_a_vocabulary_smaller_than_the_probe(tokenizer):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=3, **SMALL)).eval()
    assert OutputHead.of(model, "m").weight.shape == (3, 32)
