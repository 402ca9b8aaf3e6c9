import os
import shutil
import struct
import time

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ugap.errors import InputError
from ugap.models import convert_gguf, load_model
from ugap.models.gguf import read_gguf
from ugap.models.gguf_header import read_pre_tokenizer


def test_reading_dequantises_every_weight(tiny_gguf):
    model, _ = read_gguf(tiny_gguf)
    stored = {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(tiny_gguf).tensors
    }
    layer = model.model.layers[0]
    for name, weight in {
        "token_embd": model.lm_head.weight,
        "blk.0.ffn_gate": layer.mlp.gate_proj.weight,
        "blk.0.ffn_down": layer.mlp.down_proj.weight,
        "blk.0.attn_v": layer.self_attn.v_proj.weight,
    }.items():
        np.testing.assert_array_equal(weight.detach().numpy(), stored[f"{name}.weight"].reshape(weight.shape))
    assert type(layer.mlp.gate_proj) is torch.nn.Linear
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_the_converted_folder_gives_the_same_logits(tiny_gguf, tmp_path):
    fresh, _ = read_gguf(tiny_gguf)
    convert_gguf(tiny_gguf, tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", use_safetensors=True, local_files_only=True)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, fresh(tokens).logits, rtol=0, atol=0)


def test_conversion_settles_bos_and_digits(tiny_gguf, tmp_path):
    convert_gguf(tiny_gguf, tmp_path / "plain")
    convert_gguf(tiny_gguf, tmp_path / "out", bos_token="<|endoftext|>", single_digits=True)
    plain, tokenizer = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("plain", "out"))
    assert (plain.bos_token, tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", "<|endoftext|>", 0)
    assert plain.tokenize("a\n\n1") == ["a", "Ċ", "Ċ", "1"]
    assert tokenizer.tokenize("a\n\n1") == ["a", "ĊĊ", "1"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.bos_token_id == model.generation_config.bos_token_id == 0


def test_special_tokens_in_a_text_can_be_read_as_characters(tiny_gguf, tmp_path):
    convert_gguf(tiny_gguf, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "a <|im_end|> b"
    assert tokenizer.tokenize(text, split_special_tokens=True) == [character.replace(" ", "Ġ") for character in text]
    assert "<|im_end|>" in tokenizer.tokenize(text)


def test_the_chat_template_survives(tiny_gguf, tmp_path):
    convert_gguf(tiny_gguf, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_start|>hi<|im_end|>"


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """Nothing is converted yet."""
    monkeypatch.setattr("ugap.models.gguf.cache_dir", lambda: tmp_path / "cache")


def test_load_model_takes_a_gguf_file(tiny_gguf, capfd, no_cache):
    model, tokenizer = load_model(str(tiny_gguf), dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert tokenizer("ab").input_ids
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["converting tiny.gguf to safetensors (a minute or so, once)"]
    assert model.config.name_or_path == str(tiny_gguf)


def test_a_gguf_file_is_converted_once_whatever_its_name(tiny_gguf, tmp_path, monkeypatch, capfd, no_cache):
    model, _ = load_model(str(tiny_gguf))
    monkeypatch.setattr("ugap.models.gguf.convert_gguf", None)
    shutil.copy(tiny_gguf, tmp_path / "copy.gguf")
    again, _ = load_model(str(tmp_path / "copy.gguf"))
    assert torch.equal(model.lm_head.weight, again.lm_head.weight)
    assert again.config.name_or_path == str(tmp_path / "copy.gguf")
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_digits_are_cut_as_the_file_says(tiny_gguf, tmp_path):
    assert read_pre_tokenizer(tiny_gguf) == "smollm"
    assert load_model(str(tiny_gguf))[1].tokenize("a\n\n1") == ["a", "ĊĊ", "1"]
    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.read_bytes().replace(b"smollm", b"gpt--2"))
    assert read_pre_tokenizer(other) == "gpt--2"
    assert load_model(str(other))[1].tokenize("a\n\n1") == ["a", "Ċ", "Ċ", "1"]


def test_a_file_that_is_no_gguf_is_named(tmp_path):
    path = tmp_path / "text.gguf"
    path.write_text("this is a text\n" * 100)
    with pytest.raises(InputError, match=r"text\.gguf: cannot be read as a GGUF") as caught:
        load_model(str(path))
    assert "\n" not in str(caught.value)


def test_a_truncated_gguf_is_named(tiny_gguf, tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"short\.gguf: cannot be read as a GGUF"):
        load_model(str(path))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**62, 2**62),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40) + b"\0" * 64,
        b"GGUF" + struct.pack("<IQQ", 2**31, 1, 1),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + b"name",
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 4) + b"name" + struct.pack("<IIQ", 9, 4, 2**50),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 4) + b"name" + struct.pack("<IIQ", 9, 8, 2**50),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 4) + b"name" + struct.pack("<IIQ", 9, 9, 2**50) * 5000,
        b"GGUF" + struct.pack("<IQQQI", 3, 0, 1, 0, 77),
    ],
    ids=range(11),
)
def test_a_header_that_promises_too_much_is_named_soon(tmp_path, content):
    path = tmp_path / "odd.gguf"
    path.write_bytes(content)
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"odd\.gguf: cannot be read as a GGUF") as caught:
        load_model(str(path))
    assert time.monotonic() - begin < 5
    assert "\n" not in str(caught.value)


def test_a_pipe_is_no_gguf(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(InputError, match="neither a folder, nor a"):
        load_model(str(tmp_path / "pipe.gguf"))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("block_count", "num_hidden_layers"),
        ("embedding_length", "hidden_size"),
        ("feed_forward_length", "intermediate_size"),
        ("attention.head_count", "num_attention_heads"),
        ("vocab_size", "vocab_size"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_soon(tiny_gguf, tmp_path, key, said):
    content = tiny_gguf.read_bytes()
    word = f"llama.{key}".encode()
    at = content.index(word) + len(word) + 4  # behind the name stands its type
    path = tmp_path / "large.gguf"
    path.write_bytes(content[:at] + struct.pack("<I", 2**31 - 1) + content[at + 4 :])
    begin = time.monotonic()
    with pytest.raises(InputError, match=rf"large\.gguf: its config says {said} 2147483647, far more"):
        load_model(str(path))
    assert time.monotonic() - begin < 5
