import pytest
import torch
from accelerate import cpu_offload, disk_offload
from peft import IA3Config, LoraConfig, get_peft_model
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
from ugap.scoring.head.autograd import surprisal_entropy
from ugap.scoring.head.lm_head import LMHead, backbone

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
    head = LMHead.of(any_model, "m")
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
    head = LMHead.of(make_model(architecture), "m")
    assert (head.bias is not None, head.softcap, head.logit_scale) == (bias, softcap, scale)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_pass_the_probe(dtype, any_model, make_model, tmp_path):
    any_model.save_pretrained(tmp_path)
    LMHead.of(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype), "m")


def test_an_unknown_head_is_refused(tokenizer, tiny_model):
    model = DoubledLogits(tiny_model.config)
    model.load_state_dict(tiny_model.state_dict())
    assert "the scorer does not know the kind of head of DoubledLogits" in refused(model, tokenizer)


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
    assert LMHead.of(model, "m").weight.shape == (3, 32)


def log_p(model, ids):
    """Log-probabilities `(T - 1, V)` of the model's own logits."""
    return torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1], -1)


def mixture(model, head, ids):
    """A loss of surprisal and entropy, through the fused head and through the model's logits."""
    states = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    with head.live(model) as live:
        surprisal, entropy = surprisal_entropy(states, ids[0, 1:], live)
    whole = log_p(model, ids)
    expected = -whole.gather(1, ids[0, 1:, None]).squeeze(1)
    return (surprisal - 0.3 * entropy).sum(), (expected + 0.3 * (whole.exp() * whole).sum(-1)).sum()


def assert_same_gradients(model, head, ids):
    """Value and gradients of the loss agree both ways, for every parameter that is trained."""
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    ours, theirs = mixture(model, head, ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for mine, expected in zip(*(torch.autograd.grad(loss, trained) for loss in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().amax()))
        assert expected.abs().amax() > 0


IDS = torch.arange(3, 30).unsqueeze(0)


@pytest.fixture(name="with_adapter")
def _with_adapter(make_model):
    def make(config, **changes):
        return get_peft_model(make_model("llama", **changes), config)

    return make


def shaken(model):
    """The model with every trained parameter moved: a fresh LoRA does nothing."""
    torch.manual_seed(0)
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_lora_on_the_head(tied, with_adapter, recwarn):
    peft = with_adapter(LoraConfig(target_modules=["lm_head", "q_proj"], r=4), tie_word_embeddings=tied)
    model = peft.get_base_model()
    head = LMHead.of(model, "m")  # read off before the adapter says anything
    shaken(peft)
    assert_same_gradients(model, head, IDS)
    with torch.no_grad(), peft.disable_adapter():
        torch.testing.assert_close(*mixture(model, head, IDS), rtol=1e-4, atol=1e-4)
        with head.live(model) as live:
            assert live.weight is model.get_output_embeddings().base_layer.weight
    peft.merge_adapter()
    with torch.no_grad():
        torch.testing.assert_close(*mixture(model, head, IDS), rtol=1e-4, atol=1e-4)


def test_a_scorer_follows_a_lora_on_its_head(with_adapter, tokenizer):
    peft = with_adapter(LoraConfig(target_modules=["lm_head"], r=4)).eval()
    scorer = Scorer(peft.get_base_model(), tokenizer, name="m")
    before = scorer.score(["The youngest went into the forest"])[0]
    shaken(peft)
    after = scorer.score(["The youngest went into the forest"])[0]
    expected = Scorer(peft.merge_and_unload(), tokenizer, name="m").score(["The youngest went into the forest"])[0]
    assert abs(before.surprisal - after.surprisal).max() > 0.1
    torch.testing.assert_close(torch.tensor(after.surprisal), torch.tensor(expected.surprisal), rtol=0, atol=1e-4)


def test_small_updates_of_a_bfloat16_head_are_not_rounded_away(with_adapter):
    model = with_adapter(LoraConfig(target_modules=["lm_head"], r=4), dtype=torch.bfloat16).get_base_model()
    head = LMHead.of(model, "m")
    projection = model.get_output_embeddings()
    for name in ("lora_A", "lora_B"):
        torch.nn.init.constant_(getattr(projection, name)["default"].weight, 0.001)
    with torch.no_grad(), head.live(model) as live:
        moved = live.weight - projection.base_layer.weight
    torch.testing.assert_close(moved, torch.full_like(moved, projection.scaling["default"] * 4e-6), rtol=0.1, atol=0)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (LoraConfig(target_modules=["lm_head"], lora_dropout=0.1), "lora_dropout cannot be fused"),
        (LoraConfig(target_modules=["lm_head"], use_dora=True), "variant of LoRA"),
        (LoraConfig(target_modules=["lm_head"], lora_bias=True), "variant of LoRA"),
        (IA3Config(target_modules=["lm_head"], feedforward_modules=[]), "cannot be fused: Linear"),
    ],
    ids=["dropout", "dora", "bias", "ia3"],
)
def test_an_adapter_that_cannot_be_fused_is_refused(config, told, with_adapter):
    model = with_adapter(config).train().get_base_model()
    if isinstance(config, LoraConfig) and config.lora_bias:
        model.get_output_embeddings().base_layer.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))
    with pytest.raises(InputError, match=told):
        LMHead.of(model, "m")


def test_dropout_does_not_matter_outside_of_training(with_adapter):
    model = with_adapter(LoraConfig(target_modules=["lm_head"], lora_dropout=0.1)).eval().get_base_model()
    LMHead.of(model, "m")


def test_a_head_that_is_trained_whole_beside_an_adapter(with_adapter):
    peft = with_adapter(LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], r=4))
    head = LMHead.of(peft.get_base_model(), "m")
    assert_same_gradients(shaken(peft).get_base_model(), head, IDS)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_get_both_gradients(tied, make_model):
    model = make_model("llama", tie_word_embeddings=tied).requires_grad_(True)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert_same_gradients(model, LMHead.of(model, "m"), IDS)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("offload", [cpu_offload, disk_offload], ids=["memory", "disk"])
def test_an_offloaded_model(offload, tied, make_model, tokenizer, tmp_path):
    model = make_model("llama", tie_word_embeddings=tied)
    [expected] = Scorer(model, tokenizer, name="m").score(["Once upon a time"])
    options = {"offload_dir": str(tmp_path)} if offload is disk_offload else {}
    offload(model, execution_device=torch.device("cpu"), **options)
    assert model.get_output_embeddings().weight.is_meta
    got = Scorer(model, tokenizer, name="m").score(["Once upon a time"])[0]
    torch.testing.assert_close(torch.tensor(got.surprisal), torch.tensor(expected.surprisal), rtol=0, atol=1e-5)
    assert got.scorer == expected.scorer
    assert model.get_output_embeddings().weight.is_meta


@pytest.mark.slow
@pytest.mark.parametrize("how", ["wrapped", "in_place"])
def test_a_compiled_model(how, make_model, tokenizer, tiny_scorer):
    model = make_model("llama")
    if how == "wrapped":
        compiled = torch.compile(model)
    else:
        model.compile()
        compiled = model
    got = Scorer(compiled, tokenizer, name="m").score(["Once upon a time", "The youngest"], pmi=False)
    expected = tiny_scorer.score(["Once upon a time", "The youngest"])
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(torch.tensor(mine.surprisal), torch.tensor(theirs.surprisal), rtol=0, atol=1e-4)


@pytest.mark.gpu
def test_a_head_on_another_device(make_model):
    model = make_model("llama")
    head = LMHead.of(model, "m")
    hidden = torch.randn(5, 32)
    targets = torch.arange(5)
    expected = head.statistics(hidden, targets)
    got = head.statistics(hidden.cuda(), targets.cuda())
    assert got.surprisal.device.type == "cpu"
    torch.testing.assert_close(got, expected)
