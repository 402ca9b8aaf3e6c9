import json
import os
import shutil
import struct
import time

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from ugap.errors import InputError
from ugap.models import convert_gguf, load_model
from ugap.models.gguf import DIGIT_CUTS, GPT2_CUTS, read_gguf, settle_cuts
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


def test_conversion_settles_bos(tiny_gguf, tmp_path):
    convert_gguf(tiny_gguf, tmp_path / "plain")
    convert_gguf(tiny_gguf, tmp_path / "out", bos_token="<|endoftext|>")
    plain, tokenizer = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("plain", "out"))
    # The file names <|im_start|>, and says that texts start without it.
    assert (plain.bos_token, tokenizer.bos_token, tokenizer.bos_token_id) == (None, "<|endoftext|>", 0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.bos_token_id == model.generation_config.bos_token_id == 0


def test_texts_start_with_bos_where_the_file_says_so(tiny_gguf, tmp_path):
    content = tiny_gguf.read_bytes()
    at = content.index(b"tokenizer.ggml.add_bos_token") + len("tokenizer.ggml.add_bos_token") + 4  # behind the type
    assert content[at] == 0
    path = tmp_path / "with.gguf"
    path.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    for file, bos in ((path, "<|im_start|>"), (tiny_gguf, None)):
        assert load_model(str(file))[1].bos_token == bos


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


def test_text_is_cut_as_the_file_says(tiny_gguf, tmp_path, caplog, no_cache):
    def tokens(pre: bytes) -> list[str]:
        path = tmp_path / f"{pre.decode()}.gguf"
        path.write_bytes(tiny_gguf.read_bytes().replace(b"smollm", pre))
        assert read_pre_tokenizer(path) == pre.decode()
        return load_model(str(path))[1].tokenize("a\n\n1")

    assert tokens(b"refact") == ["a", "ĊĊ", "1"]
    assert tokens(b"llama3") == ["a", "ĊĊ", "1"]  # by transformers
    assert not caplog.records
    for _ in range(2):  # at every load, as the texts are wrong at every one
        assert tokens(b"falcon") == ["a", "Ċ", "Ċ", "1"]
        (record,) = caplog.records
        assert "falcon.gguf cuts text into words by 'falcon', and ugap cuts it as GPT-2 does" in record.message
        caplog.clear()


@pytest.fixture(scope="module")
def every_border(tmp_path_factory):
    """`every_border(pre)`: a GGUF file without weights, in whose vocabulary the texts are single tokens if not cut."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1200, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(BORDERS * 3, trainer)
    learned = json.loads(core.to_str())["model"]
    words = sorted(learned["vocab"], key=learned["vocab"].get)

    def write(pre: str):
        path = tmp_path_factory.mktemp("borders") / "borders.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_block_count(1)
        writer.add_context_length(128)
        writer.add_embedding_length(32)
        writer.add_feed_forward_length(32)
        writer.add_head_count(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_vocab_size(len(words))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(words)
        writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(words) - 1))
        writer.add_token_merges([" ".join(pair) for pair in learned["merges"]])
        writer.add_eos_token_id(0)
        writer.add_add_bos_token(False)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


BORDERS = [
    "In 1999 there were 12345 men",
    "a\n\n1. b\n  2.  c",
    "I'LL don't we're",
    "  \n\n   x\t\ty",
    "Être naïve 東京の夜",
    "x=1;\r\n\r\n}  // é",
    'he "said" (it)',
    "a  b   c    ",
    "HelloWorld fooBar",
    "1 22 333",
    "Hello, world!\n\nYes",
    "under_score --dash /path/x",
]


@pytest.mark.slow
@pytest.mark.parametrize("pre", [*sorted(GPT2_CUTS | DIGIT_CUTS), "llama-bpe", "qwen2", "tekken", "gpt-4o", "falcon"])
def test_tokens_are_those_of_llama_cpp(every_border, pre):
    llama_cpp = pytest.importorskip("llama_cpp")
    path = every_border(pre)
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    settle_cuts(path, tokenizer)
    same = [
        tokenizer(text, add_special_tokens=False).input_ids == theirs.tokenize(text.encode(), add_bos=False)
        for text in BORDERS
    ]
    assert all(same) == (pre != "falcon")


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
