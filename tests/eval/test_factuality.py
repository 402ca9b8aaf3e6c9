"""The factual probe as a program, on tiny models: its record, its table, resuming, adapters, comparisons, bad input."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import PreTrainedModel

from eval import factuality
from ugap.cli.main import main
from ugap.data.facts import fact_kinds, load_facts
from ugap.models import with_adapter
from ugap.statistics import wilson
from ugap.study.probes.facts import FactResult

N = 14


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "factuality.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def words(tiny_folder: Path) -> list[str]:
    return ["eval", "factuality", "--model", str(tiny_folder), "--limit", str(N), "--device", "cpu"]


@pytest.fixture(scope="module")
def finished(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of two decodings with two seeds."""
    folder = tmp_path_factory.mktemp("facts") / "two"
    assert main([*words, "--decoding", "greedy", "ancestral", "--seeds", "2", "--output", str(folder)]) == 0
    return folder


@pytest.fixture
def save_adapter(make_model: Callable[..., PreTrainedModel], tmp_path: Path) -> Callable[..., Path]:
    """`save_adapter(model=..., config=...)`: the folder of a PEFT adapter with random weights."""

    def save(model: PreTrainedModel | None = None, config: Any = None) -> Path:
        torch.manual_seed(1)
        config = config or LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        folder = tmp_path / "adapter"
        get_peft_model(model or make_model("llama"), config).save_pretrained(str(folder))
        return folder

    return save


def test_the_record(finished: Path, tiny_folder: Path) -> None:
    record, facts = read(finished), load_facts(limit=N)
    assert record["version"] == 1
    assert record["settings"]["model"] == str(tiny_folder)
    assert (record["settings"]["decodings"], record["settings"]["seeds"]) == (["greedy", "ancestral"], 2)
    assert [row["test"] for row in record["results"]] == ["contrastive", "greedy", "ancestral"]
    # Greedy says the same by every seed: it is run once.
    for row, runs in zip(record["results"], (1, 1, 2), strict=True):
        assert [fact["id"] for fact in row["facts"]] == [fact.id for fact in facts]
        assert all(len(fact["right"]) == len(fact["said"]) == runs for fact in row["facts"])
        right = np.array([fact["right"] for fact in row["facts"]], dtype=float)
        accuracies = [one for one in record["accuracies"] if one["test"] == row["test"]]
        assert {one["kind"] for one in accuracies} == {None, *fact_kinds()}
        (overall,) = [one for one in accuracies if one["kind"] is None]
        assert overall["accuracy"] == pytest.approx(right.mean())
        assert overall["ci95"] == pytest.approx(wilson(right.mean(1).sum(), N))
    (comparison,) = record["comparisons"]
    assert (comparison["a_test"], comparison["b_test"], comparison["test"]) == ("ancestral", "greedy", "bootstrap-t")
    preferred = record["results"][0]["facts"]
    for fact, row in zip(facts, preferred, strict=True):
        assert row["right"] == [row["said"] == [fact.answer]]


def test_the_tables(finished: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main([*words, "--decoding", "greedy", "ancestral", "--seeds", "2", "--output", str(finished), "--resume"]) == 0
    )
    printed = capsys.readouterr().out
    (overall,) = [row for row in read(finished)["accuracies"] if row["kind"] is None and row["test"] == "contrastive"]
    share, (low, high) = 100 * overall["accuracy"], (100 * end for end in overall["ci95"])
    assert f"{share:.1f} [{low:.1f}, {high:.1f}]" in printed
    for text in (f"all ({N})", "capitals (", "contrastive", "greedy", "ancestral", "a - b, points", str(finished)):
        assert text in printed.replace("\n", "")


def test_resuming_reads_what_is_there_and_makes_the_rest(
    finished: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that broke off goes on; more decodings and seeds may be added; the end is that of one run."""
    import ugap.study.probes.facts as library

    made: list[str] = []
    contrastive, generative = library.contrastive, library.generative

    def counting_contrastive(*arguments: Any, **options: Any) -> FactResult:
        made.append("contrastive")
        return contrastive(*arguments, **options)

    def breaking(*arguments: Any, **options: Any) -> FactResult:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(f"{'ancestral' if not arguments[3] else 'greedy'} {options['seed']}")
        return generative(*arguments, **options)

    monkeypatch.setattr(library, "contrastive", counting_contrastive)
    monkeypatch.setattr(library, "generative", breaking)
    run = [*words, "--output", str(tmp_path / "out")]
    assert main([*run, "--decoding", "greedy", "ancestral"]) == 130
    assert made == ["contrastive", "greedy 0"]
    assert not (tmp_path / "out" / "factuality.json").exists()
    monkeypatch.setattr(library, "generative", generative)
    assert main([*run, "--decoding", "greedy", "ancestral", "--seeds", "2", "--resume"]) == 0
    assert made == ["contrastive", "greedy 0"]
    ours, theirs = read(tmp_path / "out"), read(finished)
    for part in ("accuracies", "comparisons", "results"):
        assert ours[part] == theirs[part]


def test_an_adapter_is_asked_beside_its_base(
    words: list[str], finished: Path, save_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    folder, output = save_adapter(), tmp_path / "out"
    assert main([*words, "--adapter", str(folder), "--output", str(output)]) == 0
    record, plain = read(output), read(finished)
    base, adapted = dict.fromkeys(row["model"] for row in record["results"])
    assert adapted == f"{base} + {folder}"
    # Without the adapter the model is what it was; with it, it is another.
    said = {(row["model"], row["test"]): [fact["said"][0] for fact in row["facts"]] for row in record["results"]}
    assert said[base, "contrastive"] == [fact["said"][0] for fact in plain["results"][0]["facts"]]
    assert said[base, "greedy"] == [fact["said"][0] for fact in plain["results"][1]["facts"]]
    assert said[base, "greedy"] != said[adapted, "greedy"]
    assert record["settings"]["weight_hash"] == plain["settings"]["weight_hash"]
    compared = [(row["a_model"], row["b_model"], row["a_test"], row["test"]) for row in record["comparisons"]]
    assert compared == [(adapted, base, "contrastive", "mcnemar"), (adapted, base, "greedy", "mcnemar")]


def test_an_adapter_does_what_it_does_in_peft(
    words: list[str], save_adapter: Callable[..., Path], make_model: Callable[..., PreTrainedModel], tokenizer: Any
) -> None:
    from ugap.scoring import Scorer
    from ugap.study.probes.facts import contrastive

    model = with_adapter(make_model("llama"), save_adapter(), "tiny").get_base_model()
    merged = with_adapter(make_model("llama"), save_adapter(), "tiny").merge_and_unload()
    facts = load_facts(limit=N)
    ours, theirs, plain = (Scorer(one, tokenizer) for one in (model, merged, make_model("llama")))
    assert contrastive(ours, facts).said == contrastive(theirs, facts).said
    text, prefix = [" Paris"], [facts[0].prompt]
    assert ours.score(text, prefix)[0].nll == pytest.approx(theirs.score(text, prefix)[0].nll, abs=1e-4)
    assert ours.score(text, prefix)[0].nll != pytest.approx(plain.score(text, prefix)[0].nll, abs=1e-3)


def test_compared_with_another_run(words: list[str], finished: Path, chat_folder: Path, tmp_path: Path) -> None:
    other = [*words[:3], str(chat_folder), *words[4:], "--decoding", "greedy", "ancestral"]
    assert main([*other, "--compare", str(finished), "--output", str(tmp_path)]) == 0
    within, *rows = read(tmp_path)["comparisons"]
    assert (within["a_test"], within["b_test"], within["test"]) == ("ancestral", "greedy", "mcnemar")
    assert [(row["a_test"], row["b_test"], row["n"]) for row in rows] == [
        ("contrastive", "contrastive", N),
        ("greedy", "greedy", N),
        ("ancestral", "ancestral", N),
    ]
    assert [row["test"] for row in rows] == ["mcnemar", "mcnemar", "bootstrap-t"]
    assert rows[0]["b_model"] == f"{words[3]} ({finished})"


def test_one_fact_alone_has_no_interval(words: list[str], tmp_path: Path) -> None:
    run = [*words, "--limit", "1", "--decoding", "greedy", "ancestral", "--output", str(tmp_path)]
    assert main(run) == 0
    (row,) = read(tmp_path)["comparisons"]
    assert row["ci95"] == [None, None]
    assert main([*run, "--seeds", "2", "--resume"]) == 0
    (row,) = read(tmp_path)["comparisons"]
    assert row["ci95"] == [None, None]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (["--decoding", "hottest"], "unknown decoding 'hottest': choose of ancestral"),
        (["--decoding", "contrastive=temperature:0.5"], "decoding 'contrastive': the name is taken"),
        (["--limit", "0"], "limit is 0, and at least 1 is needed"),
        (["--seeds", "0"], "seeds is 0, and at least 1 is needed"),
        (["--adapter", "nowhere"], "nowhere: not the folder of a PEFT adapter: it has no adapter_config.json"),
        (["--compare", "nowhere"], "factuality.json: No such file"),
        (["--model", "nowhere/"], "nowhere/: neither a folder"),
        (["--resme"], "unknown option --resme; did you mean --resume? (see ugap eval factuality --help)"),
    ],
)
def test_bad_input(
    options: list[str], cause: str, words: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert cause in refused(*words, "--output", str(tmp_path / "out"), *options)
    assert not (tmp_path / "out").exists()


def test_results_are_not_overwritten(finished: Path, words: list[str], refused: Callable[..., str]) -> None:
    assert "there are results already; add --resume" in refused(*words, "--output", str(finished))
    limited = [*words, "--limit", "3", "--output", str(finished), "--resume"]
    assert "the setting 'limit' was 14 and is 3 now" in refused(*limited)


def test_results_that_cannot_be_compared_with(
    finished: Path, words: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    run, other = [*words, "--output", str(tmp_path / "out"), "--compare", str(tmp_path)], tmp_path / "factuality.json"
    record = read(finished)
    record["settings"]["facts_hash"] = "other"
    for content, cause in (
        ("{", "not the results of ugap eval factuality"),
        ("[]", "not the results of ugap eval factuality"),
        (json.dumps({"settings": record["settings"]}), "other facts were asked there"),
        (json.dumps({**read(finished), "results": [{"model": "m"}]}), "not the results of ugap eval factuality"),
    ):
        other.write_text(content, encoding="utf-8")
        assert cause in refused(*run)


@pytest.mark.parametrize("change", ["layers", "width", "weights", "prompt"])
def test_adapters_that_do_not_fit(
    change: str,
    words: list[str],
    save_adapter: Callable[..., Path],
    make_model: Callable[..., PreTrainedModel],
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    match change:
        case "layers":
            folder, cause = (
                save_adapter(make_model("llama", num_hidden_layers=3)),
                "lacks base_model.model.model.layers.2",
            )
        case "width":
            folder, cause = save_adapter(make_model("llama", hidden_size=64)), "size mismatch for"
        case "prompt":
            config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
            folder, cause = save_adapter(config=config), "the adapter adds a prompt"
        case _:
            folder, cause = save_adapter(), "has no adapter_model.safetensors"
            (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    line = refused(*words, "--adapter", str(folder), "--output", str(tmp_path / "out"))
    assert cause in line
    assert str(folder) in line


def test_pairs() -> None:
    run = [FactResult(("a",), ("k",), ("",), np.array([True]))]

    def results(model: str, *tests: str) -> list[factuality.Result]:
        return [factuality.Result(model, test, run) for test in tests]

    here = [*results("base", "contrastive", "x", "y"), *results("adapter", "contrastive", "x", "y")]
    there = [*results("other", "x"), *results("other adapter", "contrastive", "y", "z")]
    named = [(a.model, a.test, b.model, b.test) for a, b in factuality.pairs(here, there)]
    assert named == [
        ("base", "y", "base", "x"),
        ("adapter", "y", "adapter", "x"),
        ("adapter", "contrastive", "base", "contrastive"),
        ("adapter", "contrastive", "other adapter", "contrastive"),
        ("adapter", "x", "base", "x"),
        ("adapter", "y", "base", "y"),
        ("adapter", "y", "other adapter", "y"),
    ]
    assert list(factuality.pairs(here[:2], [])) == []


@pytest.mark.slow
def test_as_a_script(words: list[str], tmp_path: Path) -> None:
    command = [sys.executable, factuality.__file__, *words[2:], "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert "contrastive" in done.stdout
    assert read(tmp_path)["settings"]["limit"] == N
    bad = subprocess.run([*command, "--resume", "--seeds", "0"], capture_output=True, encoding="utf-8", check=False)
    assert (bad.returncode, bad.stderr) == (2, "ugap: error: seeds is 0, and at least 1 is needed\n")
