"""GGUF files: read into a transformers model in float32, and convert to a folder that loads in seconds.

transformers parses the metadata of a GGUF file in Python several times over, which takes tens of seconds for a
vocabulary of 262,144; a converted folder holds the dequantised weights as safetensors beside the tokenizer.

A byte-level vocabulary was learned on text that was cut into words first. `tokenizer.ggml.pre` names the cut.
transformers knows some names and cuts as GPT-2 does at all others. `tests/models/test_gguf.py` compares the tokens with
those of llama.cpp.
"""

import io
import logging
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast

from ugap.errors import reading
from ugap.models.cache import cache_dir, ensure_entry
from ugap.models.console import announced, quiet_transformers
from ugap.models.sizes import HIDDEN, LAYERS, check_sizes
from ugap.models.wheels import file_sha256

# Sizes in the metadata, behind the name of the architecture, and what transformers' configs call them.
_SIZES = {
    "block_count": LAYERS,
    "embedding_length": HIDDEN,
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
}

# What `tokenizer.ggml.pre` calls the cut of GPT-2, and that cut after one around every digit: the names that
# transformers does not know and for which llama.cpp gives the same tokens.
GPT2_CUTS = {
    *("gpt-2", "phi-2", "mpt", "olmo", "jais", "modern-bert", "roberta-bpe", "gigachat", "exaone4", "trillion"),
    *("granite-docling", "a.x-4.0", "mellum"),
    *("jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de", "jina-v2-code"),
}
DIGIT_CUTS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}
# Part of the names of the folders: to be raised when the conversion changes what it writes.
_RECIPE = 3

logger = logging.getLogger(__name__)


def read_gguf(path: Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Read the model and the tokenizer of a GGUF file, dequantised.

    Args:
        path (`Path`): The file.
        dtype (`torch.dtype`, *optional*, defaults to `torch.float32`): Type of the weights.

    Raises:
        InputError: It is no GGUF file, or of an architecture that transformers does not read.
    """
    from ugap.models.gguf_header import read_numbers  # an extra: see `ugap.errors.EXTRAS`

    source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name, "local_files_only": True}
    what = f"{path}: cannot be read as a GGUF language model"
    with reading(what), quiet_transformers(), redirect_stderr(io.StringIO()):  # the reader's own bar heeds no setting
        _check_metadata(path, *read_numbers(path))
        tokenizer = AutoTokenizer.from_pretrained(**source)
        plain = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=dtype, quantization_config=plain)
    # transformers names a model by its folder, and several models may share the folder of a GGUF file.
    model.config.name_or_path = str(path)
    return model, tokenizer


def converted(path: Path) -> Path:
    """The folder that a GGUF file was converted to: made once, and kept in the cache folder by the file's SHA-256.

    Raises:
        InputError: As `read_gguf`, or the disk is full.
    """
    with reading(f"{path}: cannot be read as a GGUF language model"):
        sha256 = file_sha256(path)

    def build(folder: Path) -> None:
        with announced(f"converting {path.name} to safetensors (a minute or so, once)"):
            convert_gguf(path, folder)

    # Four bits a weight become 32.
    room = 8 * path.stat().st_size
    return ensure_entry(cache_dir() / "gguf" / f"{sha256[:32]}-{_RECIPE}", build, room=room)


def _check_metadata(path: Path, numbers: Mapping[str, Any], n_tensors: int) -> None:
    named = ((_SIZES.get(key.partition(".")[2]), number) for key, number in numbers.items())
    sizes = {name: number for name, number in named if name is not None}
    check_sizes(str(path), sizes, n_tensors=n_tensors, n_bytes=path.stat().st_size)


def convert_gguf(path: Path, folder: Path, *, bos_token: str | None = None) -> None:
    """Write the model of a GGUF file into `folder` as float32 safetensors with its tokenizer.

    The tokenizer cuts text around every digit first where the file says so. Without it, white space before a digit, as
    in a numbered list, comes out in pieces that the model never saw. It has no BOS where the file says that texts start
    without one, though such a file can name one. After it, Qwen2.5-Coder-0.5B finds human text far more surprising.

    Args:
        path (`Path`): The GGUF file.
        folder (`Path`): Where to write; made where it is missing.
        bos_token (`str`, *optional*): The token that starts a document, whatever the file says.

    Raises:
        InputError: As `read_gguf`.
    """
    from ugap.models.gguf_header import read_numbers  # an extra: see `ugap.errors.EXTRAS`

    model, tokenizer = read_gguf(path)
    numbers, _ = read_numbers(path)
    if numbers.get("tokenizer.ggml.add_bos_token") is False:
        tokenizer.bos_token = None
    if bos_token is not None:
        tokenizer.bos_token = bos_token
        model.config.bos_token_id = model.generation_config.bos_token_id = tokenizer.bos_token_id
    settle_cuts(path, tokenizer)
    with quiet_transformers():
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)


def settle_cuts(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Have the tokenizer that transformers read from a GGUF file cut around every digit where the file says so."""
    if _cuts_as_gpt2(tokenizer) and _named_cut(path) in DIGIT_CUTS:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        digits = pre_tokenizers.Digits(individual_digits=True)
        # Digits first: the byte-level split would join a digit with the space before it.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])


def check_cuts(path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Warn where the tokenizer of a converted GGUF file may not cut text into words as the file says.

    Args:
        path (`Path`): The GGUF file.
        tokenizer (`PreTrainedTokenizerFast`): The tokenizer of its folder.
    """
    cut = _named_cut(path)
    if _cuts_as_gpt2(tokenizer) and cut not in GPT2_CUTS:
        named = "does not say how text is cut into words" if cut is None else f"cuts text into words by {cut!r}"
        line = "%s %s, and ugap cuts it as GPT-2 does: tokens can be wrong at digits, white space and punctuation"
        logger.warning(line, path.name, named)


def _cuts_as_gpt2(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a tokenizer cuts as GPT-2 does: by the default of byte-level ones, which transformers left in place."""
    return isinstance(tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel)


def _named_cut(path: Path) -> str | None:
    from ugap.models.gguf_header import read_pre_tokenizer  # an extra: see `ugap.errors.EXTRAS`

    return read_pre_tokenizer(path)
