import json
import os
import time

import pytest
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

from ugap.errors import InputError
from ugap.models import load_model

SIZES = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
T5_SIZES = {"vocab_size": 260, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}


@pytest.fixture
def refused():
    """The one line that `load_model` refuses something with."""

    def refuse(name, **options) -> str:
        with pytest.raises(InputError) as caught:
            load_model(str(name), **options)
        message = str(caught.value)
        assert message.startswith(str(name)) or options
        assert "\n" not in message
        return message

    return refuse


@pytest.fixture
def llama(tiny_config):
    return lambda **changes: LlamaForCausalLM(tiny_config(**changes))


def test_a_folder_loads_ready_to_measure(save_tiny, llama, capfd):
    stored = llama()
    folder = save_tiny(stored)
    capfd.readouterr()
    model, tokenizer = load_model(str(folder))
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.float32
    tokens = torch.tensor([tokenizer("hello").input_ids])
    torch.testing.assert_close(model.cpu()(tokens).logits, stored.eval()(tokens).logits)


def test_loading_leaves_the_logging_of_transformers_as_it_was(save_tiny):
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    folder = save_tiny()
    load_model(str(folder))
    with pytest.raises(InputError):
        load_model(str(folder / "absent"))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(("pad", "expected"), [(None, "<|im_end|>"), ("<|im_start|>", "<|im_start|>")])
def test_the_tokenizer_pads_on_the_left_with_a_token_it_has(save_tiny, pad, expected):
    _, tokenizer = load_model(str(save_tiny(pad_token=pad)))
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token == expected
    assert len(tokenizer) == 260
    assert tokenizer(["a", "bcd"], padding=True).attention_mask == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize("bos", [None, "<|endoftext|>"])
def test_the_bos_of_a_folder_is_left_as_it_is(save_tiny, bos):
    _, tokenizer = load_model(str(save_tiny(bos_token=bos)))
    assert tokenizer.bos_token_id == (None if bos is None else 0)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float16, torch.float16),
        ("auto", torch.bfloat16),
    ],
)
def test_the_dtype_is_the_one_asked_for(save_tiny, llama, asked, expected):
    model, _ = load_model(str(save_tiny(llama().to(torch.bfloat16))), dtype=asked)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}


def test_the_device_defaults_to_the_gpu_where_there_is_one(save_tiny):
    folder = save_tiny()
    assert load_model(str(folder))[0].device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert load_model(str(folder), device="cpu")[0].device.type == "cpu"


def test_sampling_habits_of_a_repository_are_dropped(save_tiny, llama, tmp_path):
    stored = llama()
    stored.generation_config.update(do_sample=True, temperature=0.1, top_k=3, top_p=0.5, repetition_penalty=2.0)
    stored.generation_config.eos_token_id = [2, 7]
    model, tokenizer = load_model(str(save_tiny(stored)), device="cpu")
    settings = model.generation_config
    assert settings.eos_token_id == [2, 7]
    assert (settings.temperature, settings.top_p, settings.repetition_penalty) == (None, None, None)
    torch.manual_seed(0)
    tokens = torch.tensor([tokenizer("a").input_ids] * 400)
    options = {"min_new_tokens": 1, "max_new_tokens": 1, "attention_mask": torch.ones_like(tokens)}
    drawn = model.generate(tokens, **options)
    # A random model is nearly uniform over 260 tokens; top-k 50 or greedy decoding could draw at most 50.
    assert len(set(drawn[:, -1].tolist())) > 150
    assert len(set(model.generate(tokens, **options, do_sample=False)[:, -1].tolist())) == 1
    model.save_pretrained(tmp_path / "again")


@pytest.mark.parametrize("tied", [True, False])
def test_tied_and_separate_heads_load(save_tiny, llama, tied):
    model, _ = load_model(str(save_tiny(llama(tie_word_embeddings=tied))))
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == tied


@pytest.mark.parametrize(
    "make",
    [
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=16, n_layer=1, n_head=2)),
        lambda: BertLMHeadModel(BertConfig(is_decoder=True, **SIZES)),
    ],
    ids=["gpt2", "bert as decoder"],
)
def test_other_causal_models_load(save_tiny, make):
    assert load_model(str(save_tiny(make())))[0].get_output_embeddings() is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda: BertForMaskedLM(BertConfig(**SIZES)),
        lambda: T5ForConditionalGeneration(T5Config(**T5_SIZES)),
    ],
    ids=["encoder", "encoder-decoder"],
)
def test_models_that_are_not_causal_are_refused(save_tiny, refused, make):
    assert "not a causal language model" in refused(save_tiny(make()))


@pytest.mark.parametrize("kind", [LlamaModel, LlamaForSequenceClassification])
def test_weights_without_the_head_are_refused(save_tiny, refused, tiny_config, kind):
    folder = save_tiny(kind(tiny_config(pad_token_id=2)))
    assert "not a causal language model: its weights lack lm_head.weight" in refused(folder)


def test_pickled_weights_are_refused_and_not_opened(save_tiny, refused, tmp_path):
    folder = save_tiny()
    (folder / "model.safetensors").unlink()
    trap = tmp_path / "executed"
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(trap).encode() + b"'\ntR.")
    assert "only pickled weights" in refused(folder)
    assert not trap.exists()


def test_code_of_a_repository_runs_only_where_asked_for(save_tiny, refused, tmp_path):
    folder = save_tiny()
    trap = tmp_path / "executed"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(trap)!r}, 'w')\n")
    assert "custom code" in refused(folder)
    assert not trap.exists()


def test_weights_that_do_not_fit_the_config_are_refused(save_tiny, refused):
    folder = save_tiny()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 32}))
    assert "of another shape" in refused(folder)


def test_truncated_weights_are_refused(save_tiny, refused):
    folder = save_tiny()
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be loaded" in refused(folder)


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "no such type"}', "[]"])
def test_a_config_that_says_nothing_is_refused(save_tiny, refused, content):
    folder = save_tiny()
    (folder / "config.json").write_text(content)
    assert "cannot be loaded" in refused(folder)


def test_a_folder_without_a_tokenizer_is_refused(save_tiny, refused):
    folder = save_tiny()
    for path in folder.glob("tokenizer*"):
        path.unlink()
    assert "cannot be loaded" in refused(folder)


def test_what_is_no_model_is_refused(refused, tmp_path):
    (tmp_path / "text.txt").write_text("x")
    assert "no config.json" in refused(tmp_path)
    for name in (tmp_path / "text.txt", tmp_path / "absent", tmp_path / "absent.gguf", "a b", "./absent", "a/b/c"):
        assert "neither a folder" in refused(name)


def test_a_wrong_option_is_refused(save_tiny, refused):
    folder = save_tiny()
    assert "not one of float32" in refused(folder, dtype="float8")
    assert "device 'nowhere'" in refused(folder, device="nowhere")
    assert "only be chosen for a Hub id" in refused(folder, revision="main")
    if not torch.cuda.is_available():
        assert "finds no GPU" in refused(folder, device="cuda")


def test_a_hub_id_without_a_network_is_told_at_once(refused, monkeypatch):
    # A real client at a port where nobody listens.
    monkeypatch.setattr("ugap.models.hub.model_info", HfApi(endpoint="http://127.0.0.1:9").model_info)
    assert "the Hub cannot be reached" in refused("nobody/no-such-model")


def test_the_offline_mode_of_the_hub_is_heeded(refused, monkeypatch):
    def offline(*args, **options):
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr("ugap.models.hub.model_info", offline)
    assert "offline mode is enabled" in refused("nobody/no-such-model")


def test_without_a_network_a_cached_hub_model_loads(save_tiny, monkeypatch, tmp_path):
    folder = save_tiny()
    hub = tmp_path / "hub"
    repository = hub / "models--somebody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("ugap.models.hub.model_info", HfApi(endpoint="http://127.0.0.1:9").model_info)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("a request was tried again"))
    model, _ = load_model("somebody/tiny")
    assert model.config.vocab_size == 260


DAMAGES = {
    "config.json": [b"", b"[]", b'{"model_type": "llama"', b"\xff\xfe", b"[" * 100_000, b"\0", b'{"model_type": []}'],
    "tokenizer.json": [b"", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"model": {"type": "BPE", "vocab": -1}}'],
    "tokenizer_config.json": [b"", b"[]", b"3", b'{"tokenizer_class": 3}', b'{"model_max_length": "x"}'],
    "generation_config.json": [b"[]", b'{"eos_token_id": {}}', b"[" * 100_000],
    "model.safetensors": [b"", b"abcd", b"\xff" * 8 + b"{}", b"\2\0\0\0\0\0\0\0{}"],
}


@pytest.mark.parametrize(("file", "content"), [(file, content) for file in DAMAGES for content in DAMAGES[file]])
def test_a_damaged_file_is_one_line_that_names_the_folder_or_loads(save_tiny, refused, file, content):
    folder = save_tiny()
    (folder / file).write_bytes(content)
    try:
        load_model(str(folder))  # some files have defaults
    except InputError:
        refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": None},
        {"hidden_size": 0},
        {"hidden_size": "x"},
        {"num_attention_heads": -1},
        {"vocab_size": None},
        {"rope_parameters": []},
        {"torch_dtype": [[]], "dtype": [[]]},
        {"num_hidden_layers": 1e999},
        {"hidden_act": 7},
        {"architectures": {}},
    ],
    ids=str,
)
def test_a_config_of_odd_values_is_one_line_or_loads(save_tiny, refused, changes):
    folder = save_tiny()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    try:
        load_model(str(folder))
    except InputError:
        refused(folder)


def test_the_cause_of_a_refusal_is_kept(save_tiny):
    folder = save_tiny()
    (folder / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(InputError) as caught:
        load_model(str(folder))
    assert caught.value.__cause__ is not None


def test_memory_that_cannot_be_had_is_no_fault_of_the_folder(save_tiny, monkeypatch):
    def take_all(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes")

    monkeypatch.setattr("ugap.models.load.AutoTokenizer.from_pretrained", take_all)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_model(str(save_tiny()))


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "model.safetensors", "generation_config.json"])
def test_a_pipe_in_a_folder_is_not_opened(save_tiny, refused, file):
    folder = save_tiny()
    (folder / file).unlink()
    os.mkfifo(folder / file)
    assert "has no config.json" in refused(folder) or "a pipe, not a regular file" in refused(folder)


@pytest.mark.parametrize("name", ["", "a\0b", "\udcff"])
def test_a_name_that_no_folder_can_have(name):
    with pytest.raises(InputError, match="names no model"):
        load_model(name)


@pytest.mark.parametrize("size", ["num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "head_dim"])
def test_sizes_that_the_weights_do_not_have_are_refused_soon(save_tiny, refused, size):
    folder = save_tiny()
    config = json.loads((folder / "config.json").read_text())
    for number in (2**30, 10**400):
        (folder / "config.json").write_text(json.dumps({**config, size: number}))
        begin = time.monotonic()
        said = number if number == 2**30 else "a number of many digits"
        assert f"its config says {size} {said}, far more than its weights have" in refused(folder)
        assert time.monotonic() - begin < 5
