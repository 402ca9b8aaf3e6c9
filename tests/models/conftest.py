"""A cache folder of its own, wheels that real pip finds in a local folder, and models of a few kilobytes."""

import hashlib
import os
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ugap.models import Wheel

HIDDEN, HEADS, HEAD_SIZE, MIDDLE = 64, 4, 16, 32
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("UGAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that pip takes for its only registry."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def make_wheel(mirror):
    """Write a wheel with the given members into the mirror; it depends on a project that exists nowhere."""

    def make(project: str, members: dict[str, bytes]) -> Wheel:
        stem = project.replace("-", "_")
        path = mirror / f"{stem}-1.0-py3-none-any.whl"
        info = f"{stem}-1.0.dist-info"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
            archive.writestr(
                f"{info}/METADATA",
                f"Metadata-Version: 2.1\nName: {project}\nVersion: 1.0\nRequires-Dist: no-such-project-anywhere\n",
            )
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        return Wheel(project, "1.0", hashlib.sha256(path.read_bytes()).hexdigest())

    return make


def byte_level_words() -> list[str]:
    """The special tokens, then the 256 characters that stand for the bytes, then one merged word."""
    return [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ"]


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory):
    """A Llama of one layer in a GGUF file: float32 norms and embeddings, the other weights quantised to 8 bits."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    words = byte_level_words()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_vocab_size(len(words))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * (len(words) - 3))
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    rng = np.random.default_rng(0)
    inner = {
        "attn_q": HIDDEN,
        "attn_k": HIDDEN,
        "attn_v": HIDDEN,
        "attn_output": HIDDEN,
        "ffn_gate": MIDDLE,
        "ffn_up": MIDDLE,
    }
    writer.add_tensor("token_embd.weight", rng.normal(size=(len(words), HIDDEN)).astype(np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for norm in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{norm}.weight", rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32))
    for name, rows in inner.items():
        weight = rng.normal(size=(rows, HIDDEN)).astype(np.float32)
        packed = gguf.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"blk.0.{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    down = gguf.quantize(rng.normal(size=(HIDDEN, MIDDLE)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_down.weight", down, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def tiny_config():
    """The config of a Llama of one layer, with changes."""

    def config(**changes) -> LlamaConfig:
        sizes = {"vocab_size": 260, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 2}
        return LlamaConfig(**(sizes | heads | changes))

    return config


@pytest.fixture
def save_tiny(tmp_path, tiny_config):
    """Save a model (by default a random Llama) with a byte-level tokenizer as a folder, and return the folder."""

    def save(
        model=None, *, pad_token: str | None = None, bos_token: str | None = "<|endoftext|>", **save_options
    ) -> Path:
        torch.manual_seed(0)
        if model is None:
            model = LlamaForCausalLM(tiny_config())
        words = {word: index for index, word in enumerate(byte_level_words())}
        backend = Tokenizer(models.BPE(vocab=words, merges=[("Ċ", "Ċ")]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=bos_token, eos_token="<|im_end|>", pad_token=pad_token
        )
        folder = tmp_path / "tiny"
        model.save_pretrained(folder, **save_options)
        tokenizer.save_pretrained(folder)
        return folder

    return save
