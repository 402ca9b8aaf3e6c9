"""`ugap score`, `profile`, `demo` and `measure` from the outside: what they write, and the one line for bad input."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaModel

import ugap.cli.demo
import ugap.data.texts
import ugap.study.job
from ugap.cli import measure, profile, score
from ugap.cli.arguments import parse
from ugap.cli.main import main
from ugap.cli.programs import configs_folder
from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.scoring import Scorer

ROOT = Path(__file__).parents[2]
FLOATS = ("surprisal", "entropy", "varentropy", "rank")
SHORT_STUDY = ("--prefix_tokens", "8", "--max_new_tokens", "10", "--decoding", "ancestral", "--limit", "2", "--no_pmi")


@pytest.fixture
def refused(capsys, caplog):
    """`refused(*words)`: the only line on stderr of a command that ends with status 2."""

    def run(*words: str) -> str:
        capsys.readouterr()
        assert main(words) == 2
        line = capsys.readouterr().err
        assert line.startswith("ugap: error: ")
        assert line.count("\n") == 1
        assert line.endswith("\n")
        assert "Traceback" not in line
        assert not caplog.records  # outside of pytest, a warning would be a line of its own
        return line

    return run


@pytest.fixture
def scored(tmp_path, tiny_folder):
    """`scored(source, *options)`: the rows that `ugap score` writes."""
    number = 0

    def run(source: str, *options: str) -> list[dict]:
        nonlocal number
        number += 1
        output = tmp_path / f"scores-{number}.parquet"
        words = ["score", "--model", str(tiny_folder), "--input", source, "--output", str(output), *options]
        assert main(words) == 0
        assert not output.with_name(output.name + ".parts").exists()
        return pq.read_table(output).to_pylist()

    return run


@pytest.fixture(scope="session")
def broken_folder(save_model, make_model, tokenizer):
    """A tiny Llama that has no finite logits behind a capital Q."""
    model = make_model("llama", eos_token_id=0)
    model.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids("Q")] = float("nan")
    return save_model("broken", model)


def assert_scores(row: dict, scores) -> None:
    assert row["text"] == scores.text
    assert row["token_ids"] == scores.token_ids.tolist()
    assert row["offsets"] == scores.offsets.reshape(-1).tolist()
    assert row["straddles"] == scores.straddles
    for name in FLOATS:
        assert np.array_equal(np.float32(row[name]), getattr(scores, name), equal_nan=True)


# ugap score


def test_score_writes_what_the_scorer_says(scored, write_rows, text_rows, tiny_folder, capsys):
    rows = scored(write_rows(text_rows))
    assert list(rows[0]) == [
        *("id", "text", "token_ids", "offsets", "surprisal", "entropy", "varentropy", "rank", "straddles")
    ]
    assert [row["id"] for row in rows] == [row["id"] for row in text_rows]
    scorer = Scorer.from_pretrained(str(tiny_folder))
    for row, scores in zip(rows, scorer.score([row["text"] for row in text_rows]), strict=True):
        assert_scores(row, scores)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "12 texts scored" in printed.out


def test_score_after_a_prompt_and_without_it(scored, write_rows, text_rows, tiny_folder):
    prompts = ["Tell me of the tailor. ", "", None, "Once"]
    given = [{**row, "prompt": prompt} for row, prompt in zip(text_rows, prompts, strict=False)]
    rows = scored(write_rows(given), "--pmi")
    assert list(rows[0]) == [
        *("id", "text", "token_ids", "offsets", "surprisal", "entropy", "varentropy", "rank", "marginal_surprisal"),
        "straddles",
    ]
    texts = [row["text"] for row in given]
    scorer = Scorer.from_pretrained(str(tiny_folder))
    after = scorer.score(texts, [prompt or "" for prompt in prompts], pmi=True)
    for row, scores in zip(rows, after, strict=True):
        assert_scores(row, scores)
        assert scores.marginal_surprisal is not None
        assert row["marginal_surprisal"] == scores.marginal_surprisal.tolist()
    assert rows[0]["surprisal"] != rows[0]["marginal_surprisal"]
    assert rows[1]["surprisal"] == rows[1]["marginal_surprisal"]
    other = scored(write_rows([{"id": r["id"], "text": r["text"], "before": r["prompt"]} for r in given], "b.jsonl"))
    assert other[0]["surprisal"] != rows[0]["surprisal"]
    assert "marginal_surprisal" not in other[0]
    named = scored(str(Path(write_rows([])).with_name("b.jsonl")), "--prompt_column", "before")
    assert named[0]["surprisal"] == rows[0]["surprisal"]


def test_score_reads_a_compressed_file(scored, write_rows, text_rows, tmp_path):
    plain = write_rows(text_rows)
    packed = tmp_path / "texts.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(plain).read_bytes()))
    assert scored(str(packed)) == scored(plain)


def test_score_stops_at_the_limit(scored, write_rows, text_rows):
    rows = scored(write_rows(text_rows), "--limit", "3")
    assert [row["id"] for row in rows] == ["c0", "c1", "c2"]


def test_score_gives_row_numbers_and_takes_other_columns(scored, write_rows, text_rows):
    rows = scored(write_rows([{"body": row["text"]} for row in text_rows[:2]]), "--text_column", "body")
    assert [row["id"] for row in rows] == ["1", "2"]


def test_special_tokens_are_characters_unless_asked(scored, write_rows, tokenizer):
    path = write_rows([{"text": "Once upon <eos> a time"}])
    assert tokenizer.eos_token_id not in scored(path)[0]["token_ids"]
    assert tokenizer.eos_token_id in scored(path, "--special_tokens")[0]["token_ids"]


def test_score_skips_what_is_bad_where_asked(write_rows, text_rows, tmp_path, broken_folder, caplog, capsys):
    rows = [text_rows[0], {"id": "empty", "text": ""}, {"id": "one", "text": "a"}, {"id": "odd", "text": "A Q is odd."}]
    output = tmp_path / "out.parquet"
    path = write_rows([*rows, text_rows[1]])
    words = ["score", "--model", str(broken_folder), "--input", path, "--output", str(output), "--skip_bad"]
    assert main(words) == 0
    assert pq.read_table(output)["id"].to_pylist() == ["c0", "c1"]
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 3
    for message, cause in zip(
        logged, ("row 2: column 'text' is empty", "'one': .*single token", "'odd': .*finite"), strict=True
    ):
        assert re.search(f"{re.escape(path)}.*{cause}", message)
    assert "2 texts scored" in capsys.readouterr().out


@pytest.fixture
def seen(monkeypatch):
    """The texts that any scorer is given."""
    texts: list[str] = []
    original = Scorer.score

    def spy(self, batch, *args, **kwargs):
        texts.extend(batch)
        return original(self, batch, *args, **kwargs)

    monkeypatch.setattr(Scorer, "score", spy)
    return texts


def test_score_goes_on_where_it_stopped(write_rows, text_rows, tmp_path, broken_folder, refused, seen, monkeypatch):
    monkeypatch.setattr(ugap.study.job, "TEXTS_PER_PART", 2)
    rows = text_rows[:7]
    path = write_rows([*rows[:5], {"id": "odd", "text": "A Q is odd."}, *rows[5:]])
    output = tmp_path / "out.parquet"
    parts = tmp_path / "out.parquet.parts"
    words = ["score", "--model", str(broken_folder), "--input", path, "--output", str(output)]

    line = refused(*words)
    assert line.startswith(
        f"ugap: error: {path}, row 6, text 'odd': the logits of {broken_folder} are not finite at token "
    )
    assert not output.exists()
    assert len(list(parts.glob("*.parquet"))) == 2
    assert "add --resume" in refused(*words)
    assert "'pmi' was false and is true now" in refused(*words, "--resume", "--pmi")
    assert '\'text_column\' was "text" and is "id" now' in refused(*words, "--resume", "--text_column", "id")

    write_rows([*rows[:5], {"id": "even", "text": "A zero is even."}, *rows[5:]])
    seen.clear()
    assert main([*words, "--resume"]) == 0
    assert not parts.exists()
    assert seen == [rows[4]["text"], "A zero is even.", rows[5]["text"], rows[6]["text"]]
    resumed = pq.read_table(output)
    assert main(words) == 0
    assert pq.read_table(output).equals(resumed)


def test_what_fails_at_once_leaves_nothing_behind(write_rows, tmp_path, tiny_folder, refused, text_rows):
    words = ["score", "--model", str(tiny_folder), "--output", str(tmp_path / "out.parquet"), "--input"]
    refused(*words, write_rows([{"id": "one", "text": "a"}]))
    assert main([*words, write_rows(text_rows)]) == 0

    words = ["measure", "--data", write_rows(text_rows), "--output", str(tmp_path / "study"), *SHORT_STUDY, "--model"]
    refused(*words, str(tmp_path / "no-such-model"))
    assert main([*words, str(tiny_folder)]) == 0


@pytest.mark.slow
def test_two_processes_write_the_same_file(write_rows, text_rows, tmp_path, tiny_folder, monkeypatch):
    rows = [{"id": f"{row['id']}-{k}", "text": row["text"][k:]} for k in range(12) for row in text_rows]
    path = write_rows(rows)
    words = ["score", "--model", str(tiny_folder), "--input", path, "--output"]
    # Without GPUs, `--multi_gpu` is how accelerate starts several processes without MPI.
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    launch += ["-m", "ugap.cli.main"]
    together = tmp_path / "together.parquet"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *words, str(together)], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("texts scored by") == 1
    assert not together.with_name("together.parquet.parts").exists()
    assert main([*words, str(tmp_path / "alone.parquet")]) == 0
    alone = pq.read_table(tmp_path / "alone.parquet")
    assert alone.num_rows == 144
    assert pq.read_table(together).equals(alone)


# Bad input, for both commands that read texts.


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
    assert "nobody/no-model: no folder here, no asset, and the Hub cannot be reached" in refused(
        *with_model, "nobody/no-model"
    )
    assert not list(tmp_path.rglob("*parts*"))


def test_a_model_that_is_not_there(with_model, refused, tmp_path):
    path = str(tmp_path / "no" / "such" / "model")
    assert f"{path}: neither a folder, nor a .gguf file, nor a Hub id, nor an asset" in refused(*with_model, path)


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
    words[words.index("ancestral")] = "greedy"  # which draws no odd token by chance
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
        (["--tag", "base"], "--tag base: give NAME=VALUE"),
        (["--tag", "{model}=wise"], "'wise' is none of base, instruct, reasoning"),
        (["--tag", "other=base"], "tag of 'other': there is no such model"),
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
    assert "there is nobody to score" in refused(*measured)
    assert "there is nothing to compare" in refused(*measured, "--scorer", "gemma-3-270m")


# ugap profile


@pytest.fixture
def fit(tiny_folder, tmp_path):
    short = ["--prefix_tokens", "8", "--max_tokens", "40", "--min_tokens", "8"]
    return ["profile", "--model", str(tiny_folder), "--output", str(tmp_path / "profile.json"), *short, "--data"]


def test_profile_fits_and_shows(fit, write_rows, text_rows, tmp_path, tiny_folder, capsys, tokenizer):
    path = write_rows(text_rows)
    assert main([*fit, path]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    fitted = HumanProfile.load(tmp_path / "profile.json")
    assert fitted.domains == ("creative", "functional")
    assert fitted.source == "texts.jsonl"
    scorer = Scorer.from_pretrained(str(tiny_folder))
    fitted.check(scorer.id)
    # The profile is that of the tokens behind the prefix.
    surprisals = []
    for row in text_rows[:6]:
        ends = [end for _, end in tokenizer(row["text"], return_offsets_mapping=True)["offset_mapping"]]
        (scores,) = scorer.score([row["text"][ends[7] : ends[47]]], [row["text"][: ends[7]]])
        surprisals.append(scores.surprisal)
    creative = fitted.domain("creative")
    assert (creative.n_texts, creative.n_tokens) == (6, 240)
    assert creative.means["surprisal"] == pytest.approx(np.concatenate(surprisals).mean(), rel=1e-4)
    assert main(["profile", "--show", str(tmp_path / "profile.json")]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^creative +6 +240 ", shown, re.MULTILINE)
    assert shown.strip() in printed.out
    with pytest.raises(InputError, match="no domain 'poems'; it has creative, functional"):
        fitted.curve("poems")


def test_profile_goes_on_where_it_stopped(
    fit, write_rows, text_rows, tmp_path, broken_folder, refused, seen, monkeypatch
):
    monkeypatch.setattr(ugap.study.job, "TEXTS_PER_PART", 4)
    fit[fit.index("--model") + 1] = str(broken_folder)
    odd = dict(text_rows[9], text=text_rows[9]["text"][:50] + "Q" + text_rows[9]["text"][50:])
    path = write_rows([*text_rows[:9], odd, *text_rows[10:]])
    assert re.search(
        rf"error: {re.escape(path)}, row 10, text 'f3': the logits of .* are not finite", refused(*fit, path)
    )
    assert len(list((tmp_path / "profile.json.parts").glob("*.parquet"))) == 2
    write_rows(text_rows)
    assert "add --resume" in refused(*fit, path)
    seen.clear()
    assert main([*fit, path, "--resume"]) == 0
    assert len(seen) == 4
    assert not (tmp_path / "profile.json.parts").exists()
    resumed = HumanProfile.load(tmp_path / "profile.json").to_dict()
    assert main([*fit, path]) == 0
    assert HumanProfile.load(tmp_path / "profile.json").to_dict() == resumed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--model", "m", "--data", "d"], "--output is needed to fit a profile, or --show NAME to see one"),
        (["--model", "m", "--output", "o"], "--data is needed"),
        (["--show", "no-such-profile"], "no-such-profile: neither a file nor a shipped profile"),
    ],
)
def test_profile_refuses(refused, words, line):
    assert refused("profile", *words).startswith(f"ugap: error: {line}")


# ugap demo


def test_demo(tiny_folder, chat_folder, text_rows, monkeypatch, tmp_path, capsys):
    models = {str(tiny_folder): "base", str(chat_folder): "instruct"}
    monkeypatch.setattr(ugap.cli.demo, "MODELS", models)
    monkeypatch.setattr(ugap.data.texts, "read_demo", lambda required: iter(text_rows))
    folder = tmp_path / "demo"
    assert main(["demo", "--output", str(folder), "--limit", "3", "--max_new_tokens", "16"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert f"plots and per-token scores are in {folder}" in " ".join(printed.out.split())
    record = json.loads((folder / "gap.json").read_text())
    assert record["settings"]["tags"] == models
    assert {(row["domain"], row["model"], row["decoding"], row["n"] + row["n_dropped"]) for row in record["gaps"]} == {
        (domain, model, decoding, 3)
        for domain in ("creative", "functional")
        for model in models
        for decoding in ugap.cli.demo.DECODINGS
    }
    assert {row["kind"] for row in record["contrasts"]} == {"domain", "model"}
    assert {path.name for path in folder.iterdir()} == {
        *("gap.json", "gap.md", "scores.parquet", "gap.png", "distributions.png", "calibration.png", "parts")
    }
    assert main(["demo", "--output", str(folder)]) == 2
    assert "there is a study already" in capsys.readouterr().err


# configs/


@pytest.mark.parametrize("path", sorted(configs_folder().rglob("*.yaml")), ids=lambda path: path.name)
def test_a_config_goes_with_the_command_in_its_header(path):
    launch = re.search(r"^#   ugap (\w+) --config (\S+)((?:.*\\\n#)*.*)$", path.read_text(), re.MULTILINE)
    assert launch, f"{path.name} names no command"
    command, name, options = launch.groups()
    assert name == str(path.relative_to(configs_folder()))
    module = {"measure": measure, "profile": profile, "score": score}[command]
    arguments = parse(module.Arguments, command, "", ["--config", name, *re.sub(r"\\\n#", " ", options).split()])
    assert arguments.output


# In a process of its own, where nothing but the command writes to stderr.


@pytest.mark.slow
@pytest.mark.parametrize("command", ["score", "measure"])
def test_stderr_has_the_one_line_and_nothing_else(command, tmp_path, broken_folder, text_rows, write_rows):
    good, bad = write_rows(text_rows), write_rows([text_rows[0], {**text_rows[1], "text": ""}], "bad.jsonl")
    odd = write_rows([text_rows[0], dict(text_rows[1], text="A Q " + text_rows[1]["text"])], "odd.jsonl")
    runs = {
        "row 2: column 'text' is empty": (str(broken_folder), bad),
        "not finite": (str(broken_folder), odd),
        "nobody/no-model: no folder here": ("nobody/no-model", good),
    }
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    for number, (cause, (model, path)) in enumerate(runs.items()):
        texts = ["--input", path] if command == "score" else ["--data", path, *SHORT_STUDY]
        words = [sys.executable, "-m", "ugap.cli.main", command, "--model", model, *texts]
        words += ["--output", str(tmp_path / f"out-{number}")]
        done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
        assert done.returncode == 2
        assert re.fullmatch(rf"ugap: error: .*{re.escape(cause)}.*\n", done.stderr)
