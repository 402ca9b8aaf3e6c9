"""Every causal architecture of transformers, tiny: its scores are those of its own logits, and the sampler runs in it.

Design choices:
- An architecture is shrunk from its default config: what goes by a name in `SMALL` gets that value, and of the layers
  one of each kind stays. `SPECIAL` holds what some of them need besides.
- What cannot take part is listed with its reason, and an entry that could take part fails.
"""

import re
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.sampling import HumanEntropyLogitsProcessor
from ugap.scoring import Scorer, TokenScores

pytestmark = pytest.mark.slow

# By name, because the classes would all be imported wherever tests are collected. One name for each class of config.
ARCHITECTURES = list({CONFIG_MAPPING_NAMES[name]: name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}.values())

# No model of these comes about, or it does not run on token ids alone; with what transformers says.
UNUSABLE = {
    "gemma3n": ("its vision part is in timm, which is not installed", "requires the timm library"),
    "gemma4_assistant": ("no config without that of the model that it assists", "hidden_size_per_layer_input must be"),
    "gemma4_unified_assistant": ("runs on the states of the model that it assists", "shared_kv_states cannot be None"),
    "musicgen": ("a decoder of audio codes, which takes another config than this", "no attribute 'dropout'"),
    "musicgen_melody": ("a decoder of audio codes, which takes another config than this", "no attribute 'dropout'"),
}

# The scorer says that it cannot score these: why, and what it says.
UNKNOWN_HEAD, NOT_CAUSAL = "the scorer does not know the kind of head", "is not causal"
DENSE_FIRST = ("a dense layer and a norm stand between the last state and the projection", UNKNOWN_HEAD)
REFUSED = {
    **dict.fromkeys(
        [
            "bert",
            "big_bird",
            "camembert",
            "data2vec-text",
            "electra",
            "ernie",
            "megatron-bert",
            "modernbert-decoder",
            "rembert",
            "roberta",
            "roberta-prelayernorm",
            "roc_bert",
            "roformer",
            "xlm-roberta",
            "xlm-roberta-xl",
            "xmod",
        ],
        DENSE_FIRST,
    ),
    "cpmant": ("attends to the whole row", NOT_CAUSAL),
    "prophetnet": ("predicts several tokens ahead, each from states of its own", UNKNOWN_HEAD),
    "xlnet": ("predicts tokens that a mask hides", "cannot be scored: it predicts tokens that a mask hides"),
}

# A plain `generate()` of transformers fails on these; with what it says.
NOT_GENERATED = {
    "blt": ("its cache wants layers of a config that has none", "no attribute 'num_hidden_layers'"),
    "xlstm": ("its cache has states of another shape at this size", "matC_old has wrong shape"),
}

SMALL: dict[str, Any] = {
    name: value
    for value, names in (
        (2, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_encoder_layers"),
        (2, "num_decoder_layers num_blocks"),
        (32, "hidden_size n_embd d_model embedding_dim emb_dim word_embed_proj_dim input_embedding_size lru_width"),
        (32, "output_embedding_size embedding_size attention_hidden_size pronunciation_embed_dim shape_embed_dim"),
        (32, "hidden_size_global dim_model_base ple_embed_dim adapter_in_dim adapter_input_size adapter_out_dim"),
        (4, "num_attention_heads n_head n_heads attention_heads num_heads decoder_attention_heads"),
        # The indexer ranks tokens by a sum over heads of what is positive: with few, many tie at nothing.
        (32, "index_n_heads"),
        (4, "encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads linear_num_heads"),
        (4, "swa_num_attention_heads linear_num_value_heads qk_rope_head_dim"),
        (2, "num_key_value_heads swa_num_key_value_heads num_kv_heads linear_num_key_heads heads_per_ngram"),
        (8, "head_dim attention_head_dim d_head attention_head_size dim_head swa_head_dim linear_head_dim kv_channels"),
        (8, "linear_key_head_dim linear_value_head_dim index_head_dim qk_nope_head_dim v_head_dim global_head_dim"),
        (8, "rotary_dim mamba_d_head mamba_head_dim mamba_headdim mamba_n_heads mamba_num_heads"),
        (8, "q_lora_rank kv_lora_rank o_lora_rank laurel_rank adapter_rank gated_norm_rank d_rel hc_lowrank"),
        (8, "state_size ssm_state_size mamba_d_state time_step_rank mamba_dt_rank hidden_size_per_layer_input"),
        (12, "qk_head_dim"),
        (48, "intermediate_size ffn_dim n_inner dff d_ff d_inner ffn_hidden_size feed_forward_size dim_ff"),
        (48, "decoder_ffn_dim encoder_ffn_dim moe_intermediate_size dense_intermediate_size expert_ffn_hidden_size"),
        (48, "intermediate_size_mlp shared_expert_intermediate_size shared_experts_intermediate_size"),
        (48, "shared_intermediate_size moe_shared_expert_intermediate_size router_hidden_size mamba_d_ssm"),
        (4, "num_experts n_routed_experts num_local_experts moe_num_experts"),
        (2, "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k"),
        (1, "n_group topk_group num_expert_group n_groups mamba_n_groups mamba_ngroups"),
        (1, "first_k_dense_replace num_dense_layers n_shared_experts"),
        (256, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions max_source_positions"),
        (256, "context_length model_max_length"),
        # Shorter than the texts, so that it matters what lies outside.
        (16, "sliding_window attention_window_size window_size sliding_window_size attention_chunk_size index_topk"),
        (16, "chunk_size mamba_chunk_size"),
        (0.3, "initializer_range init_std embed_init_std"),
        (2, "bos_token_id"),
        (None, "eos_token_id"),
        (0, "pad_token_id"),
        (True, "is_decoder causal"),
    )
    for name in names.split()
}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")

ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
WINDOWED = ["sliding_attention", "full_attention"]
RECURRENT = ["linear_attention", "full_attention"]
# The last two layers take the keys and values of the first two.
SHARED_KEYS = {"num_hidden_layers": 4, "layer_types": WINDOWED * 2, "num_kv_shared_layers": 2}
ZAMBA = {
    "num_hidden_layers": 5,
    "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "BambaConfig": {"attn_layer_indices": [1]},
    "BltConfig": {"encoder_hash_byte_group_vocab": 50, "encoder_hash_byte_group_size": [3, 4]},
    "CohereConfig": {"logit_scale": 0.5},
    "Cohere2Config": {"logit_scale": 0.5},
    "Cohere2MoeConfig": {"logit_scale": 0.5},
    "CohereCompassTextConfig": {"rope_parameters": {"full_attention": {**ROPE, "mrope_section": [2, 1, 1]}}},
    "DbrxAttentionConfig": {"rope_theta": 10_000.0, "clip_qkv": 8.0},
    "FalconH1Config": {"mamba_d_ssm": 64},
    "Gemma3nTextConfig": {
        **SHARED_KEYS,
        "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
        "intermediate_size": [48] * 4,
    },
    "Gemma4TextConfig": SHARED_KEYS,
    "Gemma4UnifiedTextConfig": SHARED_KEYS,
    "GraniteMoeHybridConfig": {"layer_types": RECURRENT},
    # It runs its layers over and over, and they would amplify a rounding error to more than the tests allow.
    "HrmTextConfig": {"initializer_range": 0.1},
    "JambaConfig": {"attn_layer_period": 2, "attn_layer_offset": 0},
    "LagunaConfig": {"num_attention_heads_per_layer": [4, 4]},
    "Lfm2Config": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"], "rope_parameters": ROPE},
    "Mamba2Config": {"num_heads": 8},
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 100,
        "make_ngram_vocab_size_divisible_by": 2,
        "split_ngram_parts": 2,
        "ple_layer_ids": [1],
        "eos_token_id": 0,
    },
    "RecurrentGemmaConfig": {"num_hidden_layers": 3},
    # Its hashes are random unless they have a seed.
    "ReformerConfig": {"axial_pos_embds_dim": (8, 24), "axial_pos_shape": (16, 16), "hash_seed": 0},
    "XmodConfig": {"default_language": "en_XX"},
    "ZambaConfig": ZAMBA,
    "Zamba2Config": ZAMBA,
    "ZayaConfig": {"num_experts_per_tok": 1},
}

PREFIX = "Once upon a time there was a tailor who had three sons, and the youngest was called Simpleton. "
TEXTS = [
    "The youngest went into the forest.",
    "He gave the old man a piece of his cake, and a cup of milk.",
    "A function returns a value; the value of the expression is the value.",
]


def one_layer_of_each_kind(config: PreTrainedConfig) -> dict[str, list[Any]]:
    """The lists of a config that say something of each layer, cut to the first layers of each kind, at least two."""
    found = vars(config)
    n = next((found[name] for name in LAYERS if name in found), None)
    lists = {key: value for key, value in found.items() if isinstance(value, (list, tuple)) and len(value) == n}
    kinds: dict[str, int] = {}
    for i, kind in enumerate(zip(*lists.values(), strict=True)):
        kinds.setdefault(str(kind), i)
    kept = sorted({0, 1, *kinds.values()})[:4]
    return {key: [value[i] for i in kept] for key, value in lists.items()}


def shrink(config: PreTrainedConfig, vocabulary: int) -> PreTrainedConfig:
    """A tiny config of the same class, and so its parts."""
    found = vars(config)
    sizes = {key: value for key, value in SMALL.items() if key in found}
    sizes |= {key: vocabulary for key in ("vocab_size", "vocab_size_per_layer_input") if key in found}
    lists = one_layer_of_each_kind(config)
    if lists:
        sizes |= {key: len(next(iter(lists.values()))) for key in LAYERS if key in found}
    if "kv_lora_rank" in found:
        sizes["num_key_value_heads"] = SMALL["num_attention_heads"]
    if "head_dim" in found and found["head_dim"] == found.get("qk_rope_head_dim"):
        sizes["head_dim"] = SMALL["qk_rope_head_dim"]
    parts = {key: shrink(found[key], vocabulary) for key in config.sub_configs if found.get(key) is not None}
    return type(config)(**{**sizes, **lists, **parts, **SPECIAL.get(type(config).__name__, {})})


def build(name: str, vocabulary: int) -> PreTrainedModel:
    """A tiny model of an architecture, always with the same weights, in which the next token is far from arbitrary."""
    config_class = CONFIG_MAPPING[name]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    config = shrink(config_class(), vocabulary)
    text = getattr(config, "text_config", None)
    # As `AutoModelForCausalLM` does where the class is for the text part alone.
    config = text if type(text) is model_class.config_class else config
    torch.manual_seed(0)
    model = model_class(config).eval().requires_grad_(False)
    assert model.dtype == torch.float32
    spread = model(input_ids=torch.arange(3, 19).unsqueeze(0), use_cache=False).logits.std()
    head = model.get_output_embeddings()
    # Some set the scale of their weights themselves.
    if head is not None and spread < 1:
        head.weight.mul_(2 / spread)
    return model


@torch.no_grad()
def agree(model: PreTrainedModel, scores: TokenScores, context: list[int], statistics_of: Any) -> None:
    """Whether scores are those of the model's own logits over the whole row without its last token."""
    row = [*context, *scores.token_ids.tolist()]
    logits = model(input_ids=torch.tensor([row[:-1]]), use_cache=False).logits[0, len(context) - 1 :].double()
    targets = torch.tensor(row[len(context) :])
    surprisal, entropy, varentropy, _ = statistics_of(logits, targets.tolist())
    np.testing.assert_allclose(scores.surprisal, surprisal, rtol=0, atol=1e-4)
    np.testing.assert_allclose(scores.entropy, entropy, rtol=0, atol=1e-4)
    np.testing.assert_allclose(scores.varentropy, varentropy, rtol=0, atol=1e-3)
    # The order of logits that are this close is not known.
    own = logits.gather(1, targets.unsqueeze(1))
    lowest, highest = 1 + (logits > own + 1e-5).sum(1), (logits >= own - 1e-5).sum(1)
    assert (lowest.numpy() <= scores.rank).all()
    assert (scores.rank <= highest.numpy()).all()


def check_scores(model: PreTrainedModel, scorer: Scorer, statistics_of: Any) -> None:
    alone, together = scorer.score(TEXTS[1:2]), scorer.score(TEXTS)
    for scores in [*alone, *together]:
        agree(model, scores, scorer.bos, statistics_of)
    context = scorer.tokenizer(PREFIX, add_special_tokens=False)["input_ids"]
    assert len(context) > 16
    for scores in scorer.score(TEXTS[:2], [context] * 2):
        agree(model, scores, context, statistics_of)


def check_sampler(model: PreTrainedModel, ids: torch.Tensor, profile: HumanProfile) -> None:
    def write(weight: float | None, **options: Any) -> Any:
        processors = [] if weight is None else [HumanEntropyLogitsProcessor(profile, "creative", weight)]
        return model.generate(ids, max_new_tokens=8, logits_processor=LogitsProcessorList(processors), **options)

    greedy = write(None, do_sample=False)
    assert greedy.shape[1] == ids.shape[1] + 8
    assert torch.equal(write(0.0, do_sample=False), greedy)
    torch.manual_seed(0)
    drawn = write(1.0, do_sample=True, top_k=0, output_scores=True, return_dict_in_generate=True)
    assert drawn.sequences.shape == greedy.shape
    assert all(scores.logsumexp(-1).isfinite().all() for scores in drawn.scores)
    for scores, token in zip(drawn.scores, drawn.sequences[0, ids.shape[1] :], strict=True):
        assert scores[0, token].isfinite()


@pytest.fixture(scope="module")
def profile(make_profile, tiny_model) -> HumanProfile:
    """Of another model: it says how surprising people are where a model is so uncertain, whatever the model."""
    return make_profile(tiny_model)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture(name, tokenizer, statistics_of, profile):
    if name in UNUSABLE:
        with pytest.raises(Exception, match=re.escape(UNUSABLE[name][1])):
            build(name, len(tokenizer))
        return
    model = build(name, len(tokenizer))
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name][1]):
            Scorer(model, tokenizer, name="tiny", token_budget=10_000)
        return
    check_scores(model, Scorer(model, tokenizer, name="tiny", token_budget=10_000), statistics_of)
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    if name in NOT_GENERATED:
        with pytest.raises(Exception, match=re.escape(NOT_GENERATED[name][1])):
            model.generate(ids, max_new_tokens=8, do_sample=False)
        return
    check_sampler(model, ids, profile)


def test_every_listed_architecture_is_tested():
    listed = [*UNUSABLE, *REFUSED, *NOT_GENERATED]
    assert len(set(listed)) == len(listed)
    assert set(listed) <= set(ARCHITECTURES)


def test_every_class_of_the_mapping_is_tested():
    found = {(config, model) for config, model in MODEL_FOR_CAUSAL_LM_MAPPING.items()}
    tested = {(CONFIG_MAPPING[name], MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]]) for name in ARCHITECTURES}
    assert tested == found
