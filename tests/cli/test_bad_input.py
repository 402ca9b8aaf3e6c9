"""Bad input, for all commands that read texts: one line, exit status 2, nothing finished lost."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaModel

from ugap.cli.main import main

ROOT = Path(__file__).parents[2]
# Greedy, which draws no odd token by chance.
SHORT_STUDY = ("--prefix_tokens", "8", "--max_new_tokens", "10", "--decoding", "greedy", "--limit", "2", "--no_pmi")


@pytest.fixture(params=["score", "measure"])
def with_texts(request, tmp_path, tiny_folder):
    """The words of a command that reads the texts whose file comes last."""
    words = [request.param, "--model", str(tiny_folder), "--output", str(tmp_path / "out")]
    return [*words, *(["--input"] if request.param == "score" else [*SHORT_STUDY, "--data"])]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (b'{"id": "b", "domain": "creative", "body": "The end."}', "row 2: no column 'text'; the columns are "),
        (b'{"id": "b", "domain": "creative", "text": ""}', "row 2: column 'text' is empty"),
        (b'{"id": "b", "domain": "creative", "text": " \\n"}', "row 2: column 'text' is only whitespace"),
        (b'{"id": "b", "domain": "creative", "text": null}', "row 2: column 'text' holds null"),
        (b'{"id": "b", "domain": "creative", "text": "na\xefve"}', "row 2: invalid UTF-8 at byte 46"),
        (b'{"id": "b", "domain": "creative", "text": "a\\u0000b"}', "row 2: column 'text' holds a NUL byte"),
        (b'{"id": "b", "domain": "creative", "text": "a\0b"}', "row 2: NUL byte"),
        (b'{"id": "b", "domain": "creative", "text": "a\\ud83eb"}', "row 2: .* lone surrogate \\(U\\+D83E\\)"),
        (b'{"id": "b", "domain": "creative", "text": "The end."', "row 2: invalid JSON"),
        (b'{"id": "a", "domain": "creative", "text": "The end."}', "row 2: id 'a' is that of row 1"),
    ],
)
def test_a_bad_row(with_texts, refused, tmp_path, text_rows, line, cause):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(json.dumps({**text_rows[0], "id": "a"}).encode() + b"\n" + line + b"\n")
    assert re.match(f"ugap: error: {re.escape(str(path))}, {cause}", refused(*with_texts, str(path)))
    assert not (tmp_path / "out").exists()


def test_a_missing_file(with_texts, refused, tmp_path):
    path = str(tmp_path / "none.jsonl")
    assert refused(*with_texts, path) == f"ugap: error: {path}: no such file\n"


def test_a_missing_column_of_a_table(with_texts, refused, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("id,domain,body\na,creative,The end.\n")
    assert f"{path}: no column 'text'; the columns are 'id', 'domain', 'body'" in refused(*with_texts, str(path))


def test_a_text_of_one_token(with_texts, refused, write_rows):
    path = write_rows([{"id": "short", "domain": "creative", "text": "a"}])
    line = refused(*with_texts, path)
    if with_texts[0] == "score":
        assert (
            line
            == f"ugap: error: {path}, row 1, text 'short': the text is a single token, there is nothing to measure\n"
        )
    else:
        assert line == ("ugap: error: domain 'creative': no text has the 18 tokens of a prefix and its continuation\n")


def test_an_unknown_option(with_texts, refused):
    line = refused(*with_texts, "texts.jsonl", "--batchsize", "3")
    assert "unknown option --batchsize" in line
    assert f"(see ugap {with_texts[0]} --help)" in line


def test_a_data_set_without_a_network(with_texts, refused, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "nobody/no-texts: no such file, and no data set" in refused(*with_texts, "nobody/no-texts")


@pytest.fixture(params=["score", "measure"])
def with_model(request, tmp_path, write_rows, text_rows):
    """The words of a command that loads the model whose name comes last."""
    output, path = str(tmp_path / "out"), write_rows(text_rows)
    if request.param == "score":
        return ["score", "--input", path, "--output", output, "--model"]
    return ["measure", "--data", path, "--output", output, *SHORT_STUDY, "--model"]


def test_a_model_of_the_hub_without_a_network(with_model, refused, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refused(*with_model, "nobody/no-model")
    assert "nobody/no-model: no folder here, no asset (gemma-3-270m, smollm2-135m-instruct), and the Hub can" in line
    assert not list(tmp_path.rglob("*parts*"))


def test_a_model_that_is_not_there(with_model, refused, tmp_path):
    path = str(tmp_path / "no" / "such" / "model")
    line = refused(*with_model, path)
    assert f"{path}: neither a folder, nor a .gguf file, nor a Hub id, nor an asset (gemma-3-270m, " in line


def test_a_model_without_a_causal_head(with_model, refused, tmp_path, tokenizer):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for name, model in (
        ("bert", BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes))),
        ("headless", LlamaModel(LlamaConfig(vocab_size=len(tokenizer), **sizes))),
    ):
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        assert f"{tmp_path / name}: not a causal language model" in refused(*with_model, str(tmp_path / name))


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_model_without_finite_logits(with_model, refused, save_model, make_model, weight):
    model = make_model("llama", eos_token_id=0)
    model.lm_head.weight.data[7, 3] = weight
    folder = save_model(f"{with_model[0]}-{weight}", model)
    line = refused(*with_model, str(folder))
    assert re.search(r"\bc0\b.*: the logits of .* are not finite", line)


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"model_type": "llama", "tie_word_embeddings": null}'])
def test_a_model_of_a_damaged_folder(with_model, refused, tmp_path, tiny_folder, damage):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "config.json").write_bytes(damage)
    assert f"{folder}: " in refused(*with_model, str(folder))


def test_a_model_without_a_name(with_model, refused):
    assert "'' names no model" in refused(*with_model, "")


def test_texts_that_are_a_pipe_or_have_no_name(with_texts, refused, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "pipe.jsonl: a pipe, not a regular file" in refused(*with_texts, str(tmp_path / "pipe.jsonl"))
    assert "'' names no file" in refused(*with_texts, "")


# Bad input of measure alone.


@pytest.fixture
def measured(tmp_path, tiny_folder, text_rows, write_rows):
    return ["measure", "--data", write_rows(text_rows), "--output", str(tmp_path / "out"), *SHORT_STUDY]


def test_non_finite_logits_name_the_text(refused, tmp_path, broken_folder, text_rows, write_rows):
    words = ["measure", "--model", str(broken_folder), "--output", str(tmp_path / "out"), *SHORT_STUDY, "--data"]
    odd = dict(text_rows[1], text="A Q is odd, and " + text_rows[1]["text"])
    assert re.search(
        r"texts.jsonl, row 2, text 'c1' \(.*\): the logits of .*broken are not finite",
        refused(*words, write_rows([text_rows[0], odd])),
    )
    late = text_rows[1]["text"]
    odd = dict(text_rows[1], text=late[:24] + " A Q is odd." + late[24:])
    words[words.index("--output") + 1] += "-2"
    assert re.search(
        r"texts.jsonl, row 2, text 'c1' \(human\): the logits of .*broken are not finite",
        refused(*words, write_rows([text_rows[0], odd])),
    )


@pytest.mark.parametrize("place", ["prefix", "continuation"])
def test_measure_skips_texts_without_finite_logits(tmp_path, broken_folder, text_rows, write_rows, caplog, place):
    first, odd, last = text_rows[:3]
    cut = 0 if place == "prefix" else 24
    odd = dict(odd, text=odd["text"][:cut] + " A Q is odd. " + odd["text"][cut:])
    output = tmp_path / "out"
    words = ["measure", "--model", str(broken_folder), "--output", str(output), *SHORT_STUDY, "--skip_bad"]
    words[words.index("--limit") + 1] = "3"
    assert main([*words, "--data", write_rows([first, odd, last])]) == 0
    assert re.search(r"row 2, text 'c1' \(.*\): the logits of .*broken are not finite", caplog.text)
    (nll,) = [row for row in json.loads((output / "gap.json").read_text())["gaps"] if row["measure"] == "nll"]
    assert (nll["n"], nll["n_dropped"]) == (2, 1)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--decoding", "hottest"], "unknown decoding 'hottest': choose of ancestral, top-p-0.9"),
        (["--decoding", "hot=temperature:0"], "temperature"),
        (["--decoding", "hot=no_repeat_ngram_size:many"], "no_repeat_ngram_size"),
        (["--stage", "base"], "--stage base: give NAME=VALUE"),
        (["--stage", "{model}=wise"], "'wise' is none of base, instruct, reasoning"),
        (["--stage", "other=base"], "stage of 'other': there is no such model"),
        (["--candidate", "gpt=gpt_text"], "texts.jsonl, row 1: no column 'gpt_text'"),
        (["--candidate", "gpt"], "--candidate gpt: give NAME=VALUE"),
        (["--candidate", "{model}=text"], "has the name of a model"),
        (["--prompting", "sung"], "prompting 'sung' is none of raw, chat"),
        (["--prompting", "chat"], "has no chat template: use --prompting raw"),
        (["--max_new_tokens", "7"], "max_new_tokens is 7, and at least 8 is needed"),
        (["--limit", "0"], "limit is 0"),
        (["--batch_size", "0"], "batch_size is 0"),
        (["--per_text", "0"], "per_text is 0"),
        (["--prefix_tokens", "-1"], "prefix_tokens is -1"),
        (["--model", "{model}"], "a model is named twice"),
        (["--scorer", "self", "self"], "a scorer is named twice"),
        (["--prefix_tokens", "5000"], "domain 'creative': no text has the 5010 tokens"),
        (["--data", "{data}", "{data}"], "id 'c0' is in the data twice"),
        (["--scorer", "nowhere/"], "nowhere/: neither a folder"),
    ],
)
def test_measure_refuses(measured, refused, tiny_folder, options, cause):
    names = {"model": str(tiny_folder), "data": measured[2]}
    words = [word.format(**names) for word in options]
    assert cause in refused(*measured, "--model", str(tiny_folder), *words)


def test_measure_refuses_to_do_nothing(measured, refused):
    assert "there is nothing to compare" in refused(*measured)
    assert "there is nothing to compare" in refused(*measured, "--scorer", "gemma-3-270m")


# In a process of their own, where nothing but the commands writes to stderr.


@pytest.mark.slow
def test_stderr_has_one_line_a_command_and_nothing_else(tmp_path, broken_folder, text_rows, write_rows):
    good, bad = write_rows(text_rows), write_rows([text_rows[0], {**text_rows[1], "text": ""}], "bad.jsonl")
    odd = write_rows([text_rows[0], dict(text_rows[1], text="A Q " + text_rows[1]["text"])], "odd.jsonl")
    causes = {
        "row 2: column 'text' is empty": (str(broken_folder), bad),
        "not finite": (str(broken_folder), odd),
        "nobody/no-model: no folder here": ("nobody/no-model", good),
    }
    commands = [
        [command, "--model", model, *texts, "--output", str(tmp_path / f"{command}-{number}")]
        for number, (model, path) in enumerate(causes.values())
        for command, texts in (("score", ["--input", path]), ("measure", ["--data", path, *SHORT_STUDY]))
    ]
    code = "import json, sys\nfrom ugap.cli.main import main\nprint([main(words) for words in json.loads(sys.argv[1])])"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", code, json.dumps(commands)]
    done = subprocess.run(call, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.stdout.splitlines()[-1] == str([2] * len(commands))
    pattern = "".join(rf"ugap: error: .*{re.escape(cause)}.*\n" * 2 for cause in causes)
    assert re.fullmatch(pattern, done.stderr)
