"""Commands on damaged inputs, in one process: each is done or says in one line what is wrong, and none takes long."""

import io
import json
import random
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.robustness.mutation import mutated_bytes, mutated_json
from ugap.cli.main import main
from ugap.profile import HumanProfile
from ugap.scoring import Scorer

pytestmark = pytest.mark.slow

EACH = 30
SECONDS = 20
SHORT = ["--prefix_tokens", "8", "--max_new_tokens", "10", "--limit", "2", "--decoding", "greedy", "--no_pmi"]
ODD_WORDS = [
    "",
    " ",
    "-1",
    "0",
    "1e999",
    "nan",
    "9" * 5000,
    "\x1b[2J",
    "a\nb",
    "\0",
    "../..",
    "/dev/null",
    "[",
    "{}",
    "é",
]


def attempt(words: list[str]) -> int:
    """The exit status of a command, which ends in time, with one line where it is not 0."""
    out, errors = io.StringIO(), io.StringIO()
    begin, busy = time.monotonic(), time.process_time()
    with redirect_stdout(out), redirect_stderr(errors):
        try:
            status = main(words)
        except BaseException as error:
            raise AssertionError(f"{[word[:80] for word in words]}: {type(error).__name__}") from error
    assert time.process_time() - busy < SECONDS, [word[:80] for word in words]
    assert time.monotonic() - begin < 4 * SECONDS, [word[:80] for word in words]  # a busy machine is slow; none hangs
    assert status in (0, 2), [word[:80] for word in words]
    if status == 2:
        last = errors.getvalue().rstrip("\n").split("\n")[-1]
        assert last.startswith("ugap: error: "), last[:300]
        assert len(last) < 3000, last[:300]
        assert "\x1b[2J" not in last
    return status


@pytest.fixture(scope="module")
def profile_file(tmp_path_factory, tiny_folder) -> Path:
    words = ["once", "upon", "a", "time", "there", "was", "the", "old", "man"]
    texts = [" ".join(random.Random(i).choices(words, k=40)) for i in range(20)]
    scores = Scorer.from_pretrained(str(tiny_folder), device="cpu").score(texts, ["Once upon"] * 20, pmi=True)
    path = tmp_path_factory.mktemp("profile") / "tiny.json"
    HumanProfile.fit({"creative": scores, "functional": scores}, resamples=2).save(path)
    return path


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("command", ["score", "measure", "profile"])
def test_damaged_texts(command, tmp_path, text_rows, tiny_folder):
    table = tmp_path / "good.parquet"
    pq.write_table(pa.Table.from_pylist(text_rows), table)
    options = {"score": "--input", "measure": "--data", "profile": "--data"}
    done = 0
    for seed in range(EACH):
        rng = random.Random(seed)
        kind = rng.choice(["rows", "jsonl", "csv", "parquet"])
        if kind == "rows":
            content = jsonl([mutated_json(row, rng) if rng.random() < 0.2 else row for row in text_rows])
        elif kind == "jsonl":
            content = mutated_bytes(jsonl(text_rows), rng)
        elif kind == "csv":
            lines = ["id,domain,text", *(f'{row["id"]},{row["domain"]},"{row["text"]}"' for row in text_rows)]
            content = mutated_bytes("\n".join(lines).encode(), rng)
        else:
            content = mutated_bytes(table.read_bytes(), rng)
        path = tmp_path / f"texts-{seed}.{'jsonl' if kind == 'rows' else kind}"
        path.write_bytes(content)
        words = [command, "--model", str(tiny_folder), options[command], str(path)]
        words += ["--output", str(tmp_path / f"out-{seed}")]
        words += SHORT if command == "measure" else ["--prefix_tokens", "8"] if command == "profile" else []
        words += ["--skip_bad"] if rng.random() < 0.5 else []
        done += attempt(words) == 0
    assert done


def test_damaged_configs(tmp_path, text_rows, tiny_folder, write_rows):
    good = {"model": [str(tiny_folder)], "data": [write_rows(text_rows)], "limit": 2, "prefix_tokens": 8, "pmi": False}
    good |= {"max_new_tokens": 10, "decoding": ["greedy"], "batch_size": 2, "seed": 0}
    for seed in range(EACH):
        rng = random.Random(seed)
        path = tmp_path / f"config-{seed}.yaml"
        if rng.random() < 0.5:
            path.write_bytes(mutated_bytes(yaml.safe_dump(good).encode(), rng))
        else:
            path.write_bytes(json.dumps(mutated_json(good, rng)).encode("utf-8", "surrogatepass"))  # JSON is YAML
        attempt(["measure", "--config", str(path), "--output", str(tmp_path / f"out-{seed}")])


def test_damaged_records_of_a_study(tmp_path, text_rows, tiny_folder, write_rows, monkeypatch):
    """A study of many models that goes on where its own records are damaged."""
    monkeypatch.setattr("ugap.report.multi.write_multi", lambda *args, **kwargs: [])
    monkeypatch.setattr("ugap.report.page.write_page", lambda *args: None)
    models = json.dumps([{"name": str(tiny_folder), "family": "tiny", "stage": "base", "label": "tiny"}])
    words = ["study", "--models", models, "--data", write_rows(text_rows), "--output", str(tmp_path / "out")]
    words += SHORT[:-1]  # a study measures no PMI unless asked
    assert attempt(words) == 0
    good = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.json")}
    assert {path.name for path in good} == {"study.json", "gap.json", "files.json", "settings.json"}
    lock = tmp_path / "lock.yaml"
    commits = yaml.safe_dump({"some/model": "a" * 40}).encode()
    for seed in range(EACH):
        rng = random.Random(seed)
        for path, content in good.items():
            path.write_bytes(content)
        path = rng.choice([*good])
        content = good[path]
        damaged = json.dumps(mutated_json(json.loads(content), rng)).encode("utf-8", "surrogatepass")
        path.write_bytes(damaged if rng.random() < 0.5 else mutated_bytes(content, rng))
        lock.write_bytes(mutated_bytes(commits, rng))
        attempt([*words, "--resume", *(["--lock", str(lock)] if rng.random() < 0.3 else [])])


def test_damaged_profiles_and_words(tmp_path, tiny_folder, profile_file):
    good = json.loads(profile_file.read_text())
    for seed in range(EACH):
        rng = random.Random(seed)
        path = tmp_path / f"profile-{seed}.json"
        damaged = mutated_bytes(profile_file.read_bytes(), rng) if rng.random() < 0.5 else None
        path.write_bytes(damaged or json.dumps(mutated_json(good, rng)).encode("utf-8", "surrogatepass"))
        words = ["generate", "--model", str(tiny_folder), "--profile", str(path), "--prompt", "Once upon"]
        attempt([*words, "--max_new_tokens", "3", "--seed", "1"])


def test_odd_words(tmp_path, text_rows, tiny_folder, profile_file, write_rows, monkeypatch):
    """Every option of a command with a word that nobody meant."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")  # where a word is taken for the name of an output
    data = write_rows(text_rows)
    base = {
        "measure": ["--model", str(tiny_folder), "--data", data, *SHORT],
        "score": ["--model", str(tiny_folder), "--input", data, "--limit", "2"],
        "profile": ["--model", str(tiny_folder), "--data", data, "--prefix_tokens", "8"],
        "generate": ["--model", str(tiny_folder), "--profile", str(profile_file), "--prompt", "Once"],
    }
    options = {
        "measure": "model scorer stage prompting data candidate text_column domain decoding prefix_tokens "
        "max_new_tokens limit per_text batch_size seed output prompt_separator",
        "score": "model input text_column id_column prompt_column limit device dtype output",
        "profile": "model data source max_tokens min_tokens domain limit seed output",
        "generate": "model profile prompt mode weight domain max_new_tokens seed n",
    }
    rng = random.Random(0)
    for number in range(4 * EACH):
        command = rng.choice([*base])
        words = [command, *base[command], f"--{rng.choice(options[command].split())}", rng.choice(ODD_WORDS)]
        if command != "generate" and "--output" not in words:
            words += ["--output", str(tmp_path / f"out-{number}")]
        attempt(words)
