"""Every reader on files that are damaged a little, anywhere: what is read, or one line that says what is wrong."""

import contextlib
import copy
import json
import random
import shutil
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from peft import LoraConfig, get_peft_model

from tests.models.conftest import tiny_gguf as tiny_gguf  # a fixture
from tests.robustness.mutation import mutated_bytes, mutated_json
from ugap.cli.config import read_config
from ugap.data import load_texts
from ugap.errors import InputError
from ugap.models import chat_ids, load_model
from ugap.profile import HumanProfile
from ugap.scoring import Scorer

SECONDS = 20
N_TABLES, N_MODELS, N_GGUF = 300, 100, 100  # mutations of each kind of table, of each file of a model, of a GGUF file
CONFIG = {"model": ["a", "b"], "limit": 3, "weight": 0.5, "pmi": True, "since": "2026-02-28", "models": [{"name": "x"}]}


def attempt(read: Callable[[], object], case: str) -> None:
    """Read; an `InputError` of one line is an answer too."""
    begin = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except InputError as error:
        assert "\n" not in str(error), case  # noqa: PT017
    except BaseException as error:
        raise AssertionError(case) from error
    assert time.monotonic() - begin < SECONDS, case


def damaged(content: bytes, rng: random.Random, parse: Callable = json.loads, write: Callable = json.dumps) -> bytes:
    """Half of the time other bytes, half of the time other values."""
    if rng.random() < 0.5:
        return mutated_bytes(content, rng)
    with contextlib.suppress(ValueError, UnicodeEncodeError):  # not every odd value can be written
        return write(mutated_json(parse(content), rng)).encode("utf-8", "surrogatepass")
    return mutated_bytes(content, rng)


def lines(content: bytes) -> list:
    return [json.loads(line) for line in content.splitlines()]


def joined(rows: object) -> str:
    return "\n".join(map(json.dumps, rows)) if isinstance(rows, list) else json.dumps(rows)


@pytest.fixture
def tables(tmp_path: Path, text_rows: list[dict[str, str]], make_profile: Callable, tiny_model) -> dict[str, bytes]:
    rows = text_rows[:4]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    make_profile(tiny_model, n_texts=3).save(tmp_path / "x.json")
    head = ",".join(rows[0]) + "\n"
    return {
        "x.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "x.csv": (head + "\n".join(",".join(f'"{value}"' for value in row.values()) for row in rows)).encode(),
        "x.parquet": (tmp_path / "x.parquet").read_bytes(),
        "x.yaml": yaml.safe_dump(CONFIG).encode(),
        "x.json": (tmp_path / "x.json").read_bytes(),
    }


READERS: dict[str, Callable[[Path], object]] = {
    "x.jsonl": lambda path: load_texts(str(path)),
    "x.csv": lambda path: load_texts(str(path)),
    "x.parquet": lambda path: load_texts(str(path)),
    "x.yaml": read_config,
    "x.json": HumanProfile.load,
}
VALUES: dict[str, tuple[Callable, Callable]] = {
    "x.jsonl": (lines, joined),
    "x.yaml": (yaml.safe_load, yaml.safe_dump),
    "x.json": (json.loads, json.dumps),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_tables_configs_and_profiles(tables: dict[str, bytes], tmp_path: Path, name: str) -> None:
    for seed in range(N_TABLES):
        rng = random.Random(seed)
        path = tmp_path / name
        content = tables[name]
        path.write_bytes(damaged(content, rng, *VALUES[name]) if name in VALUES else mutated_bytes(content, rng))
        attempt(partial(READERS[name], path), f"{name}, seed {seed}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]
)
def test_folders_of_models(chat_folder: Path, tmp_path: Path, name: str) -> None:
    def read(folder: Path) -> None:
        model, tokenizer = load_model(str(folder), device="cpu")
        Scorer(model, tokenizer, name="x").score(["Once upon a time there was a tailor."])

    folder = shutil.copytree(chat_folder, tmp_path / "model")
    whole = (folder / name).read_bytes()
    for seed in range(N_MODELS):
        rng = random.Random(seed)
        (folder / name).write_bytes(mutated_bytes(whole, rng) if name.endswith("tensors") else damaged(whole, rng))
        attempt(lambda: read(folder), f"{name}, seed {seed}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "ugap_profile.json"])
def test_folders_of_adapters(chat_folder: Path, make_profile: Callable, tmp_path: Path, name: str) -> None:
    def read(folder: Path) -> None:
        scorer = Scorer.from_pretrained(str(folder), device="cpu")
        HumanProfile.for_scorer(scorer)
        scorer.score(["Once upon a time there was a tailor."])

    folder = tmp_path / "adapter"
    base = load_model(str(chat_folder), device="cpu")[0]
    make_profile(base, n_texts=3).save(tmp_path / "ugap_profile.json")
    get_peft_model(base, LoraConfig(target_modules="all-linear", r=2)).save_pretrained(str(folder))
    shutil.move(tmp_path / "ugap_profile.json", folder)
    read(folder)  # undamaged
    whole = (folder / name).read_bytes()
    for seed in range(N_MODELS):
        rng = random.Random(seed)
        (folder / name).write_bytes(mutated_bytes(whole, rng) if name.endswith("tensors") else damaged(whole, rng))
        attempt(lambda: read(folder), f"{name}, seed {seed}")


@pytest.mark.slow
def test_gguf_files(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    whole = tiny_gguf.read_bytes()
    for seed in range(N_GGUF):
        rng = random.Random(seed)
        head = rng.choice([64, 2000, 20_000, len(whole)])  # what is described comes before the weights
        path.write_bytes(mutated_bytes(whole[:head], rng) + whole[head:])
        attempt(lambda: load_model(str(path), device="cpu"), f"gguf, seed {seed}")


@pytest.mark.slow
def test_chat_templates(chat_folder: Path, tokenizer) -> None:
    whole = (chat_folder / "chat_template.jinja").read_bytes()
    for seed in range(150):
        own = copy.deepcopy(tokenizer)
        own.chat_template = mutated_bytes(whole, random.Random(seed)).decode("utf-8", "replace")
        attempt(partial(chat_ids, own, [{"role": "user", "content": "Hello."}], "x"), f"template, seed {seed}")
