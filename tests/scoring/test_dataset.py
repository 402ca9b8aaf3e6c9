import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, disable_progress_bars, enable_progress_bars

from ugap.errors import InputError
from ugap.scoring import Scorer

TEXTS = [
    "Once upon a time there was a tailor who had three sons.",
    "youngest went into the forest.",
    "A function returns a value; the value of the expression is the value of the function.",
    "naß 🦊",
    "Give me a piece of your cake.",
]
PREFIXES = ["", "the ", None, "the", "He said: "]
FLOATS = ["surprisal", "entropy", "varentropy", "rank"]
ADDED = ["token_ids", "offsets", *FLOATS, "straddles"]


@pytest.fixture
def rows():
    return Dataset.from_dict({"id": list("abcde"), "text": TEXTS, "before": PREFIXES})


@pytest.fixture
def on_disk(rows, tmp_path):
    """A data set with files, whose results `datasets` caches beside them."""
    rows.save_to_disk(tmp_path / "rows")
    return Dataset.load_from_disk(tmp_path / "rows")


@pytest.fixture
def counted(tiny_scorer, monkeypatch):
    """A scorer and the list of how many texts each of its calls got."""
    calls, real = [], tiny_scorer.score

    def watched(texts, *args, **kwargs):
        calls.append(len(texts))
        return real(texts, *args, **kwargs)

    monkeypatch.setattr(tiny_scorer, "score", watched)
    return tiny_scorer, calls


def assert_equals_score(scored, scorer, prefixes=None, pmi=False):
    expected = scorer.score(TEXTS, prefixes, pmi)
    assert len(scored) == len(expected)
    for row, scores in zip(scored, expected, strict=True):
        assert row["text"] == scores.text
        assert row["token_ids"] == scores.token_ids.tolist()
        assert np.reshape(row["offsets"], (-1, 2)).tolist() == scores.offsets.tolist()
        assert row["straddles"] is scores.straddles
        for name in [*FLOATS, *(["marginal_surprisal"] if pmi else [])]:
            assert (row[name] is None) == (getattr(scores, name) is None)
            if row[name] is not None:
                np.testing.assert_allclose(row[name], getattr(scores, name), rtol=1e-5, atol=1e-5)


def test_adds_columns(rows, tiny_scorer):
    scored = tiny_scorer.score_dataset(rows, batch_size=2)
    assert isinstance(scored, Dataset)
    assert scored.column_names == ["id", "text", "before", *ADDED]
    assert scored["id"][:] == list("abcde")
    assert_equals_score(scored, tiny_scorer)
    types = scored.data.schema
    assert str(types.field("token_ids").type.value_type) == str(types.field("offsets").type.value_type) == "int32"
    assert {str(types.field(name).type.value_type) for name in FLOATS} == {"float"}


def test_prefixes_and_marginals(rows, tiny_scorer):
    scored = tiny_scorer.score_dataset(rows, prefix_column="before", pmi=True)
    assert scored.column_names == ["id", "text", "before", *ADDED[:-1], "marginal_surprisal", "straddles"]
    assert_equals_score(scored, tiny_scorer, [prefix or "" for prefix in PREFIXES], pmi=True)
    assert scored["straddles"][:] == [False, True, False, False, False]


def test_prefixes_of_token_ids_and_other_column_names(tiny_scorer):
    rows = Dataset.from_dict({"story": TEXTS, "ids": [[7, 8]] * 5})
    scored = tiny_scorer.score_dataset(rows, text_column="story", prefix_column="ids")
    assert_equals_score(scored.rename_column("story", "text"), tiny_scorer, [[7, 8]] * 5)


def test_nan_is_kept(rows, tiny_model, tokenizer_without_bos):
    scored = Scorer(tiny_model, tokenizer_without_bos).score_dataset(rows)
    assert np.isnan([row["surprisal"][0] for row in scored]).all()
    assert np.isfinite([row["surprisal"][1] for row in scored]).all()


def test_special_tokens(tiny_scorer, tokenizer):
    rows = Dataset.from_dict({"text": ["a <|im_end|> b"]})
    plain = tiny_scorer.score_dataset(rows)["token_ids"][0]
    meant = tiny_scorer.score_dataset(rows, special_tokens=True)["token_ids"][0]
    assert len(meant) < len(plain)


@pytest.mark.parametrize("typed", [True, False], ids=["known_columns", "unknown_columns"])
def test_streams_lazily(typed, rows, counted):
    scorer, calls = counted
    stream = rows.to_iterable_dataset() if typed else IterableDataset.from_generator(lambda: iter(rows.to_list()))
    scored = scorer.score_dataset(stream, prefix_column="before", batch_size=2, pmi=True)
    assert isinstance(scored, IterableDataset)
    assert calls == []
    assert scored.column_names == (
        ["id", "text", "before", *ADDED[:-1], "marginal_surprisal", "straddles"] if typed else None
    )
    assert next(iter(scored))["text"] == TEXTS[0]
    assert calls == [2]
    assert_equals_score(list(scored), scorer, [prefix or "" for prefix in PREFIXES], pmi=True)


# --- the cache of `datasets` ---


def test_scoring_again_reads_the_cached_file(on_disk, counted):
    scorer, calls = counted
    first = scorer.score_dataset(on_disk)
    assert calls == [5]
    again = scorer.score_dataset(on_disk)
    assert calls == [5]
    assert again.to_list() == first.to_list()


def test_nothing_stale_is_read(on_disk, tiny_scorer, tiny_model, make_model, tokenizer):
    scorers = {
        "first": tiny_scorer,
        "other weights": Scorer(make_model("llama"), tokenizer, name="tiny"),
        "half precision": Scorer(make_model("llama").bfloat16(), tokenizer, name="tiny"),
        "no bos": Scorer(tiny_model, tokenizer, name="tiny", bos=False),
        "short windows": Scorer(tiny_model, tokenizer, name="tiny", max_length=8),
    }
    scorers["other weights"].model.lm_head.weight.data.mul_(0.5)
    results = {name: json.dumps(scorer.score_dataset(on_disk).to_list()) for name, scorer in scorers.items()}
    results["prefix"] = json.dumps(tiny_scorer.score_dataset(on_disk, prefix_column="before").to_list())
    results["pmi"] = json.dumps(tiny_scorer.score_dataset(on_disk, prefix_column="before", pmi=True).to_list())
    results["other text"] = json.dumps(tiny_scorer.score_dataset(on_disk, text_column="id", skip_bad=True).to_list())
    results["other rows"] = json.dumps(tiny_scorer.score_dataset(on_disk.select([1, 0, 2])).to_list())
    assert len(set(results.values())) == len(results)


def test_weights_that_were_trained_meanwhile(on_disk, make_model, tokenizer):
    scorer = Scorer(make_model("llama"), tokenizer)
    before = scorer.score_dataset(on_disk)["entropy"][0]
    scorer.model.lm_head.weight.data.mul_(0.5)
    assert scorer.score_dataset(on_disk)["entropy"][0] != before


def test_the_model_is_never_hashed_or_pickled(on_disk, tiny_scorer, monkeypatch):
    def refuse(self, *args):
        raise AssertionError("pickled")

    monkeypatch.setattr(Scorer, "__reduce_ex__", refuse)
    monkeypatch.setattr(type(tiny_scorer.model), "__reduce_ex__", refuse)
    tiny_scorer.score_dataset(on_disk)
    list(tiny_scorer.score_dataset(on_disk.to_iterable_dataset()))


# --- bad input ---


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("text", "cause"),
    [("", "the text is empty"), (None, "the text is empty"), ("nul\0", "NUL byte"), ("a", "a single token")],
)
def test_a_bad_row_is_named(text, cause, lazy, tiny_scorer):
    rows = Dataset.from_dict({"text": [*TEXTS, text, "fine text"]})
    data = rows.to_iterable_dataset() if lazy else rows
    with pytest.raises(InputError, match=rf"^row 5: .*{cause}"):
        list(tiny_scorer.score_dataset(data, batch_size=4))


def test_skipped_rows_are_null(tiny_scorer, caplog):
    rows = Dataset.from_dict({"text": [TEXTS[0], "", TEXTS[1]]})
    scored = tiny_scorer.score_dataset(rows, skip_bad=True)
    assert [row["surprisal"] is None for row in scored] == [False, True, False]
    assert scored[1] == {"text": "", **dict.fromkeys(ADDED)}
    assert "row 1: the text is empty" in caplog.text
    nothing = tiny_scorer.score_dataset(rows.select([1]), skip_bad=True)
    assert nothing.features == scored.features


def test_columns_that_do_not_fit(rows, tiny_scorer):
    with pytest.raises(InputError, match=r"^the data set has no column 'story', it has id, text, before$"):
        tiny_scorer.score_dataset(rows, text_column="story")
    with pytest.raises(InputError, match="no column 'context'"):
        tiny_scorer.score_dataset(rows, prefix_column="context")
    with pytest.raises(InputError, match="already has rank, straddles"):
        tiny_scorer.score_dataset(rows.add_column("rank", range(5)).add_column("straddles", range(5)))
    with pytest.raises(InputError, match="row 0: column 'id' holds int"):
        tiny_scorer.score_dataset(Dataset.from_dict({"id": [1]}), text_column="id")
    stream = IterableDataset.from_generator(lambda: iter([{"story": "one two"}]))
    with pytest.raises(InputError, match="no column 'text', it has story"):
        list(tiny_scorer.score_dataset(stream))


def test_wrong_arguments(rows, tiny_scorer):
    with pytest.raises(TypeError, match="DatasetDict"):
        tiny_scorer.score_dataset(DatasetDict({"train": rows}))
    with pytest.raises(ValueError, match="batch_size is 0"):
        tiny_scorer.score_dataset(rows, batch_size=0)


def test_no_rows(rows, tiny_scorer):
    scored = tiny_scorer.score_dataset(rows.select([]))
    assert len(scored) == 0
    assert scored.features == tiny_scorer.score_dataset(rows).features


def test_progress_bar(rows, tiny_scorer, capsys):
    enable_progress_bars()
    tiny_scorer.score_dataset(rows)
    assert "scoring with tiny" in capsys.readouterr().err
    tiny_scorer.score_dataset(rows, progress=False)
    assert capsys.readouterr().err == ""
    # What a user turned off stays off; what was on is on again.
    tiny_scorer.score_dataset(rows)
    assert "scoring with tiny" in capsys.readouterr().err
    disable_progress_bars()
    tiny_scorer.score_dataset(rows)
    enable_progress_bars()
    assert capsys.readouterr().err == ""


# --- processes ---


@pytest.fixture
def launched(monkeypatch):
    """`launched(rank, n)`: the environment of one of `n` processes of a launcher."""

    def set_environment(rank: int, n: int) -> None:
        for name, value in {"RANK": rank, "WORLD_SIZE": n, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": n}.items():
            monkeypatch.setenv(name, str(value))

    return set_environment


def parts(scorer, data, n, launched, **kwargs):
    out = []
    for rank in range(n):
        launched(rank, n)
        out.append(list(scorer.score_dataset(data, **kwargs)))
    return out


@pytest.mark.parametrize("n", [2, 3, 7])
def test_parts_of_a_dataset_join_to_the_whole(n, rows, counted, launched):
    scorer, calls = counted
    pieces = parts(scorer, rows, n, launched)
    assert sum(calls) == len(TEXTS)
    assert_equals_score([row for piece in pieces for row in piece], scorer)


@pytest.mark.parametrize("num_shards", [1, 2, 4])
def test_no_row_of_a_stream_is_scored_twice(num_shards, rows, counted, launched):
    scorer, calls = counted
    pieces = parts(scorer, rows.to_iterable_dataset(num_shards=num_shards), 2, launched, batch_size=2)
    assert sum(calls) == len(TEXTS)
    assert sorted(row["id"] for piece in pieces for row in piece) == list("abcde")
    assert all(pieces)
    assert_equals_score(sorted((row for piece in pieces for row in piece), key=lambda row: row["id"]), scorer)


def test_rows_are_named_by_their_place_in_the_whole(tiny_scorer, launched):
    rows = Dataset.from_dict({"text": [*TEXTS, "", TEXTS[0]]})
    launched(1, 2)
    with pytest.raises(InputError, match=r"^row 5: the text is empty"):
        tiny_scorer.score_dataset(rows)
    with pytest.raises(InputError, match=r"^row 5: the text is empty"):
        list(tiny_scorer.score_dataset(rows.to_iterable_dataset()))
    with pytest.raises(InputError, match=r"^row 1 of part 1: the text is empty"):
        list(tiny_scorer.score_dataset(rows.to_iterable_dataset(num_shards=2)))


SCRIPT = """
    import json
    import os
    import sys

    from datasets import load_dataset

    from ugap import Scorer

    folder = sys.argv[1]
    scorer = Scorer.from_pretrained(f"{folder}/model")
    for kind in ("block", "stream"):
        rows = load_dataset("json", data_files=f"{folder}/rows.jsonl", split="train", streaming=kind == "stream")
        scored = list(scorer.score_dataset(rows, batch_size=2))
        with open(f"{folder}/{kind}-{os.environ['RANK']}.json", "w") as out:
            json.dump(scored, out)
"""


@pytest.mark.slow
def test_two_launched_processes_share_the_rows(rows, tiny_model, tiny_scorer, tokenizer, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows.to_json(tmp_path / "rows.jsonl")
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    # Without GPUs, `--multi_gpu` is how accelerate starts several processes without MPI.
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    ids = {"block": ["abc", "de"], "stream": ["ace", "bd"]}
    for kind, expected in ids.items():
        pieces = [json.loads((tmp_path / f"{kind}-{rank}.json").read_text()) for rank in range(2)]
        assert ["".join(row["id"] for row in piece) for piece in pieces] == expected
        assert_equals_score(sorted((row for piece in pieces for row in piece), key=lambda row: row["id"]), tiny_scorer)
    # One bar, from the first process.
    assert "scoring with" in done.stderr
