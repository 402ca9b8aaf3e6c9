"""A language model of random weights, with tokenizer, texts and human profile: for timings where there is none.

Design choices:
- Its logits have the standard deviation of a real model's, about 3: the head is drawn with `LOGIT_SPREAD / sqrt(H)`,
  and the final norm makes states of unit size. A flat distribution would send samplers and rewards to their limits.
- The texts are the Python language reference that ships with every CPython. The tokenizer is trained on them.
- To such a model any text is noise. So the people of its profile are made up: on average they are as surprising as the
  model is uncertain.
"""

import json
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ugap.data.topics import reference_texts
from ugap.files import replacing
from ugap.models import load_model
from ugap.profile import HumanProfile
from ugap.scoring import Scorer, TokenScores

LOGIT_SPREAD = 3.0
# People's tokens rank up to this part of the vocabulary, as in the shipped profiles.
DEEPEST = 16
# "1b" has the shape of Llama 3.2 1B, with a head of its own.
SIZES: dict[str, dict[str, int]] = {
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
SPECIAL = ["<bos>", "<eos>"]
MODEL, PROFILE, TEXTS = "model", "profile.json", "texts.jsonl"


def make(folder: Path, size: str, device: str) -> None:
    """Write the model (bfloat16), its profile and the texts to a folder.

    Args:
        folder (`Path`): Where `MODEL`, `PROFILE` and `TEXTS` go.
        size (`str`): One of `SIZES`.
        device (`str`): Where the weights are drawn and the texts are scored.
    """
    texts = reference_texts(topics)
    rows = [
        {"id": f"{domain}/{name}", "domain": domain, "text": text}
        for domain in ("creative", "functional")
        for name, text in texts.items()
    ]
    with replacing(folder / TEXTS) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    _tokenizer(list(texts.values())).save_pretrained(folder / MODEL)
    _model(SIZES[size], device).save_pretrained(folder / MODEL)
    model, tokenizer = load_model(str(folder / MODEL), dtype="bfloat16", device=device)
    deepest = SIZES[size]["vocab_size"] // DEEPEST
    scores = [_people(one, deepest) for one in Scorer(model, tokenizer).score(list(texts.values()))]
    HumanProfile.fit({"creative": scores, "functional": scores}, source="made up", resamples=2).save(folder / PROFILE)


def _people(scores: TokenScores, deepest: int) -> TokenScores:
    """The entropies of a text, with the surprisals and ranks of people who are as surprising as the model expects."""
    rng = np.random.default_rng(0)
    # Gamma(2, 1/2) has the mean 1 and a long upper tail, like surprisal over entropy.
    surprisal = (scores.entropy * rng.gamma(2.0, 0.5, len(scores.entropy))).astype(np.float32)
    rank = np.minimum(1 + np.floor(np.exp(surprisal)), deepest).astype(np.float32)
    return replace(scores, surprisal=surprisal, rank=rank, marginal_surprisal=surprisal * np.float32(1.1))


def _model(shape: dict[str, int], device: str) -> LlamaForCausalLM:
    torch.manual_seed(0)
    special: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = LlamaConfig(**shape, **special, max_position_embeddings=4096, tie_word_embeddings=False)
    with torch.device(device):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    torch.nn.init.normal_(model.lm_head.weight, std=LOGIT_SPREAD / config.hidden_size**0.5)
    return model


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[1]
    )
