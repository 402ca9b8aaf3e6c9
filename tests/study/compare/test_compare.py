"""Comparing a base with its tuned models: what `tests/eval/test_before_after.py` does not see from outside."""

import numpy as np
import pytest

from ugap.data import TextRow
from ugap.errors import InputError
from ugap.study.compare.run import BeforeAfterSettings, Tuned, measure_before_after, probe_facts
from ugap.study.compare.table import distances_to_profile, probe_record
from ugap.study.compare.tradeoff import tradeoff_points
from ugap.study.probes.facts import FactResult


def test_what_a_person_types(tmp_path, monkeypatch):
    assert Tuned.parse("runs/sft", is_adapter=True) == Tuned("runs/sft", "runs/sft", True)
    assert Tuned.parse("ours=runs/a=b", is_adapter=False) == Tuned("ours", "runs/a=b", False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-4").mkdir()
    assert Tuned.parse("lr=1e-4", is_adapter=True) == Tuned("lr=1e-4", "lr=1e-4", True)


def test_facts_that_are_held_out():
    every, held = probe_facts("all"), probe_facts()
    assert {fact.id for fact in held} < {fact.id for fact in every}
    assert len(held) == pytest.approx(len(every) / 2, abs=6)
    few = probe_facts(limit=24)
    assert {fact.id for fact in few} < {fact.id for fact in held}
    assert len({fact.kind for fact in few}) == len({fact.kind for fact in every})
    assert probe_facts("none", limit=3) == []


def test_a_model_that_writes_nothing_has_a_row_and_no_gap(save_model, make_model, text_rows, tmp_path):
    """It ends every text at once: there is nothing to compare, and nothing breaks."""
    model = make_model("llama", eos_token_id=0, tie_word_embeddings=False)
    model.lm_head.weight[:] = 0
    model.lm_head.weight[0] = 1
    model.model.norm.weight[:] = 0.0  # all logits are 0: greedily it is the end token, which comes first
    silent, base = save_model("silent", model), save_model("speaking", make_model("llama", eos_token_id=0))
    rows = [TextRow(row["id"], row["domain"], row["text"]) for row in text_rows if row["domain"] == "creative"]
    settings = BeforeAfterSettings(
        model=str(base),
        decodings={"greedy": {"do_sample": False}},
        tuned=[Tuned("silent", str(silent), False)],
        prefix_tokens=8,
        max_new_tokens=12,
        facts=probe_facts(limit=2),
    )
    record = measure_before_after(rows, settings, tmp_path / "parts")
    spoken, nothing = record["rows"]
    assert (spoken["writer"], nothing["writer"]) == ("base", "silent")
    assert (nothing["n"], nothing["measures"], nothing["to_profile"]) == (0, {}, None)
    assert nothing["n_dropped"] == spoken["n"] + spoken["n_dropped"]
    assert record["shares"] == []
    assert [point["model"] for point in tradeoff_points(record)] == ["base"]


def test_a_failure_before_the_first_part_leaves_nothing(tmp_path, text_rows):
    rows = [TextRow(row["id"], row["domain"], row["text"]) for row in text_rows]
    settings = BeforeAfterSettings(model="nowhere/", decodings={"ancestral": {}})
    with pytest.raises(InputError, match="nowhere/: neither a folder"):
        measure_before_after(rows, settings, tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_comparisons_of_a_probe():
    def result(right):
        n = len(right)
        return FactResult(tuple("abcd"[:n]), ("k", "k", "l", "l")[:n], ("",) * n, np.array(right, np.bool_))

    yes, no = result([1, 1, 1, 1]), result([1, 0, 0, 1])
    results = {("base", "contrastive"): no, ("base", "greedy"): no, ("base", "temperature-matched"): yes}
    results |= {("ours", "contrastive"): yes, ("ours", "greedy"): no}
    record = probe_record(results, ["greedy"])
    assert record is not None
    named = [tuple(row[name] for name in ("a_writer", "a_test", "b_writer", "b_test")) for row in record["comparisons"]]
    assert named == [
        ("ours", "contrastive", "base", "contrastive"),
        ("ours", "greedy", "base", "greedy"),
        ("base", "temperature-matched", "base", "greedy"),
    ]
    assert [(row["difference"], row["a_only"], row["b_only"]) for row in record["comparisons"]] == [
        (0.5, 2, 0),
        (0.0, 0, 0),
        (0.5, 2, 0),
    ]
    accuracy = {(row["writer"], row["test"], row["kind"]): row["accuracy"] for row in record["accuracies"]}
    assert accuracy["base", "greedy", None] == accuracy["base", "greedy", "k"] == 0.5
    assert probe_record({}, []) is None


def test_the_distance_from_a_profile_that_lacks_a_measure(make_profile, tiny_scorer, make_model):
    domain = make_profile(make_model("llama")).kind("creative")  # fitted without marginals
    scores = tiny_scorer.score([" once upon a time there was a tailor"] * 2, ["Once"] * 2, True)
    found = distances_to_profile(scores, domain)
    assert found is not None
    assert found.keys() == {"surprisal", "deviation"}
    assert all(value > 0 for value in found.values())
    assert distances_to_profile([], domain) is None
