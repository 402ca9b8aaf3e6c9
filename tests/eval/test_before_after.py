"""A base beside its tuned models as a program, on tiny models: its record, its tables, resuming, bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import wasserstein_distance

from ugap.cli.main import main
from ugap.data import load_texts
from ugap.profile import HumanProfile
from ugap.scoring import Scorer
from ugap.statistics import mcnemar
from ugap.study import continuations
from ugap.study.compare import run as comparison
from ugap.study.excerpts import cut_excerpts
from ugap.study.generation import generate_continuations, seed_of
from ugap.study.measures import token_values

DECODINGS = ["ancestral", "temperature-0.7"]
N_FACTS = 12


@pytest.fixture(scope="module")
def files(text_rows, tmp_path_factory):
    """Texts to compare with and to match on, and questions."""
    folder = tmp_path_factory.mktemp("texts")
    for name in ("test", "tune"):
        rows = [{**row, "id": f"{name}-{row['id']}"} for row in text_rows]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    questions = [{"question": f"What is {i} and {i}?", "answer": f"It is\n#### {2 * i}"} for i in range(3)]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def adapters(make_model, tmp_path_factory):
    """Two adapters of the base: one that changes nothing, and one that changes a lot."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, scale in (("same", 0.0), ("other", 0.3)):
        torch.manual_seed(1)
        adapted = get_peft_model(make_model("llama", eos_token_id=0), LoraConfig(r=4, target_modules="all-linear"))
        for parameter, weights in adapted.named_parameters():
            if "lora_B" in parameter:
                weights.data.normal_(std=scale)
        adapted.save_pretrained(str(folder / name))
    return folder


@pytest.fixture(scope="module")
def profile(tiny_folder, files, tmp_path_factory):
    scorer = Scorer.from_pretrained(str(tiny_folder))
    texts = [row.text for row in load_texts(str(files / "test.jsonl"))]
    scores = scorer.score(texts * 2, ["a "] * 12 + ["Once "] * 12, pmi=True)  # enough for features of whole texts
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    HumanProfile.fit({"creative": scores}, resamples=2).save(path)
    return path


@pytest.fixture(scope="module")
def words(tiny_folder, files):
    sizes = ["--prefix_tokens", "8", "--max_new_tokens", "16", "--per_text", "1", "--batch_size", "4"]
    few = ["--facts_limit", str(N_FACTS), "--question_tokens", "4"]
    return ["eval", "before_after", "--model", str(tiny_folder), "--data", str(files / "test.jsonl"), *sizes, *few]


@pytest.fixture(scope="module")
def command(words, files, adapters, chat_folder, profile):
    tuned = ["--adapter", f"same={adapters / 'same'}", f"other={adapters / 'other'}", "--tuned", f"full={chat_folder}"]
    cross = ["--scorer", "self", str(chat_folder), "--profile", str(profile), "--decoding", *DECODINGS]
    more = ["--match", "--tune", str(files / "tune.jsonl"), "--questions", str(files / "questions.jsonl")]
    return [*words, *tuned, *cross, *more]


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "compared"
    assert main([*command, "--output", str(folder)]) == 0
    return folder


def read(folder: Path):
    return json.loads((folder / "before_after.json").read_text(encoding="utf-8"))


def only(rows, **labels):
    (row,) = [row for row in rows if all(row[name] == value for name, value in labels.items())]
    return row


def test_the_record(finished, chat_folder, tiny_folder):
    record = read(finished)
    assert [model["name"] for model in record["models"]] == ["base", "same", "other", "full"]
    assert len({model["weights"] for model in record["models"]}) == 4
    assert [scorer["scorer"] for scorer in record["scorers"]] == ["self", str(chat_folder)]
    made = {(row["writer"], row["decoding"]) for row in record["rows"]}
    expected = {(writer, decoding) for writer in ("base", "same", "other", "full") for decoding in DECODINGS}
    assert made == expected | {("base", "temperature-matched")}
    assert len(record["rows"]) == 2 * len(made)
    for row in record["rows"]:
        assert (row["n"] + row["n_dropped"], row["n_sources"]) == (6, row["n"])
        assert row["measures"].keys() == {"nll", "entropy", "pmi", "deviation"}
        for found in row["measures"].values():
            assert found["gap"] == pytest.approx(found["human"] - found["model_value"])
            assert found["ci95"][0] <= found["gap"] <= found["ci95"][1]
        assert 0 < row["distinct_4"]["human"] <= 1
        assert 0 <= row["repetition"]["human"] <= 1
        assert row["spread"]["total"] > 0
        assert row["spread"]["within"] is None  # one seed
        # The base has the given profile, and the other scorer one that is fitted for it.
        assert row["to_profile"].keys() == {"surprisal", "deviation", "pmi"}
    assert 0.5 <= record["matched"]["temperature"] <= 2
    assert only(record["rows"], decoding="temperature-matched", scorer="self")["settings"] == {
        "temperature": record["matched"]["temperature"]
    }
    assert record["settings"]["base_scorer"] == str(tiny_folder)


def test_an_adapter_that_changes_nothing_closes_nothing(finished):
    """The prompts, the seeds and the ruler are the same, so the texts are, and so is every number."""
    record = read(finished)
    for scorer in {row["scorer"] for row in record["rows"]}:
        for decoding in DECODINGS:
            base, same, other = (
                only(record["rows"], writer=name, decoding=decoding, scorer=scorer)
                for name in ("base", "same", "other")
            )
            assert {**same, "writer": "base"} == base
            assert other["measures"]["nll"]["gap"] != base["measures"]["nll"]["gap"]
            share = only(record["shares"], writer="same", decoding=decoding, scorer=scorer)
            assert share["share"] == 0
    for test in ("contrastive", *DECODINGS):
        compared = only(record["facts"]["comparisons"], a_writer="same", a_test=test)
        assert (compared["difference"], compared["a_only"], compared["b_only"], compared["p_value"]) == (0, 0, 0, 1)


def test_shares_are_those_of_the_gaps(finished):
    record = read(finished)
    assert len(record["shares"]) == 2 * (3 * len(DECODINGS) + len(DECODINGS))  # the matched one for each decoding
    whole = 0
    for share in record["shares"]:
        named = {"scorer": share["scorer"]}
        before = only(record["rows"], writer="base", decoding=share["base_decoding"], **named)
        after = only(record["rows"], writer=share["writer"], decoding=share["decoding"], **named)
        assert share["share"] == pytest.approx(1 - abs(share["after"] / share["before"]))
        if share["ci95"][0] is not None:
            assert share["ci95"][0] <= share["share"] <= share["ci95"][1] <= 1
        if share["n_sources"] == before["n_sources"] == after["n_sources"]:  # a text may be too short to compare
            whole += 1
            assert share["before"] == pytest.approx(before["measures"]["nll"]["gap"])
            assert share["after"] == pytest.approx(after["measures"]["nll"]["gap"])
    assert whole


def test_rewards_are_beside_those_of_the_base(finished):
    record = read(finished)
    # The matched temperature stands beside each decoding.
    of = [row["scorer"] for row in record["rewards"]]
    assert of == [scorer["scorer"] for scorer in record["scorers"] for _ in range(4 * len(DECODINGS))]
    for scorer in record["scorers"]:
        assert 0 < scorer["human"]["reward"] <= 1
    for row in record["rewards"]:
        assert row["rise"] == pytest.approx(row["after"] - row["before"])
        assert row["ci95"][0] <= row["rise"] <= row["ci95"][1]
        assert row["rise"] == 0 or row["writer"] != "same"


def test_one_row_from_scratch(finished, files, tiny_folder, adapters, profile):
    """The other adapter under T = 0.7: its texts, their scores, the distances."""
    from ugap.models import load_model, with_adapter

    model, tokenizer = load_model(str(tiny_folder))
    adapted = with_adapter(model, adapters / "other", "tiny").get_base_model()
    rows = [row for row in load_texts(str(files / "test.jsonl")) if row.domain == "creative"]
    excerpts = cut_excerpts(rows, tokenizer, prefix_tokens=8, max_new_tokens=16, per_text=1)
    texts = []
    for number, begin in enumerate((0, 4)):
        batch = [excerpt.prefix for excerpt in excerpts[begin : begin + 4]]
        contexts = [[tokenizer.bos_token_id, *ids] for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]]
        how, seed = {"temperature": 0.7}, seed_of(0, "test", number)
        texts += generate_continuations(adapted, tokenizer, contexts, how, max_new_tokens=16, seed=seed)
    scorer = Scorer.from_pretrained(str(tiny_folder))
    prefixes = [excerpt.prefix for excerpt in excerpts]
    human = scorer.score([excerpt.human for excerpt in excerpts], prefixes, True)
    made = scorer.score(texts, prefixes, True)
    cut = [(h, m, min(len(h), len(m))) for h, m in zip(human, made, strict=True)]
    pairs = [(h.first(n), m.first(n)) for h, m, n in cut if n >= 8]
    row = only(read(finished)["rows"], writer="other", decoding="temperature-0.7", scorer="self")
    assert row["measures"]["nll"]["gap"] == pytest.approx(np.mean([h.nll - m.nll for h, m in pairs]), rel=1e-5)
    z = [np.concatenate([token_values(one, "deviation") for one in side]) for side in zip(*pairs, strict=True)]
    assert row["measures"]["deviation"]["wasserstein"] == pytest.approx(wasserstein_distance(*z), rel=1e-5)
    known = HumanProfile.load(profile).quantiles("creative", "deviation")
    fine = np.linspace(known.levels[0], known.levels[-1], 5001)
    expected = wasserstein_distance(z[1], np.interp(fine, known.levels, known.values))
    assert row["to_profile"]["deviation"] == pytest.approx(expected, rel=0.05)
    people = HumanProfile.load(profile).kind("creative")
    assert people.texts is not None
    near = [people.texts.closeness(people.text_features(one), len(one)) for one in made]
    risen = only(read(finished)["rewards"], writer="other", decoding="temperature-0.7", scorer="self")
    assert risen["after"] == pytest.approx(np.mean(near), rel=1e-4)


def test_the_probes(finished):
    record = read(finished)
    facts = record["facts"]
    assert (facts["n"], record["questions"]["n"]) == (N_FACTS, 3)
    for answers in facts["answers"]:
        overall = only(facts["accuracies"], writer=answers["writer"], test=answers["test"], kind=None)
        assert overall["accuracy"] == pytest.approx(np.mean([item["right"] for item in answers["items"]]))
    right = {
        writer: [item["right"] for item in only(facts["answers"], writer=writer, test="contrastive")["items"]]
        for writer in ("base", "full")
    }
    row, tested = (
        only(facts["comparisons"], a_writer="full", a_test="contrastive"),
        mcnemar(right["full"], right["base"]),
    )
    assert (row["a_only"], row["b_only"], row["p_value"]) == (tested.a_only, tested.b_only, tested.p_value)
    assert row["difference"] == pytest.approx(np.mean(right["full"]) - np.mean(right["base"]))
    matched = [row["b_test"] for row in facts["comparisons"] if row["a_test"] == "temperature-matched"]
    assert matched == DECODINGS
    assert [row["a_writer"] for row in record["questions"]["comparisons"]] == ["same", "other", "full"]


def test_going_on_makes_nothing_twice_and_adds(command, finished, monkeypatch, capsys):
    before, png = read(finished), (finished / "before_after.png").stat().st_size
    assert png > 10_000
    broken = "must not be called"
    monkeypatch.setattr(continuations, "generate_continuations", broken)
    monkeypatch.setattr(comparison, "contrastive", broken)
    monkeypatch.setattr(comparison, "ask_questions", broken)
    monkeypatch.setattr(Scorer, "score", broken)
    assert main([*command, "--output", str(finished), "--resume"]) == 0
    after = read(finished)
    for part in ("models", "matched", "scorers", "rows", "shares", "rewards", "facts", "questions"):
        assert after[part] == before[part]
    printed = capsys.readouterr().out
    row = only(before["rows"], writer="other", decoding="ancestral", scorer="self")["measures"]["nll"]
    assert f"{row['gap']:+.2f} [{row['ci95'][0]:+.2f}, {row['ci95'][1]:+.2f}]" in printed
    for text in (
        "Share of the base's absolute gap",
        "read by the frozen base",
        "Facts (12)",
        "Questions (3)",
        "people",
    ):
        assert text in printed


@pytest.mark.slow
def test_a_retrained_adapter_of_the_same_name_is_another(words, adapters, tmp_path, capsys):
    """What was made by the old weights is not taken for theirs."""
    import shutil

    folder, run = tmp_path / "adapter", [*words, "--facts", "none", "--decoding", "ancestral"]
    gaps = []
    for name in ("same", "other"):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(adapters / name, folder)
        assert main([*run, "--adapter", str(folder), "--output", str(tmp_path / "out"), "--resume"]) == 0
        gaps.append(only(read(tmp_path / "out")["rows"], writer=str(folder))["measures"]["nll"]["gap"])
    assert gaps[0] != gaps[1]
    assert read(tmp_path / "out")["facts"] is None
    capsys.readouterr()


@pytest.mark.slow
def test_the_ruler_may_be_another_model_than_the_base(words, tiny_folder, chat_folder, adapters, tmp_path, capsys):
    """As where the base was collapsed by training, and the frozen model is the one that it was trained from."""
    run = [*words, "--facts", "none", "--decoding", "ancestral", "--adapter", str(adapters / "other"), "--output"]
    assert main([*run, str(tmp_path / "own")]) == 0
    assert main([*run, str(tmp_path / "given"), "--base_scorer", str(chat_folder)]) == 0
    assert main([*run, str(tmp_path / "cross"), "--scorer", str(chat_folder)]) == 0
    own, given, cross = (read(tmp_path / name) for name in ("own", "given", "cross"))
    assert given["scorers"][0]["model"] == cross["scorers"][0]["model"] == str(chat_folder)
    gaps = [[row["measures"]["nll"]["gap"] for row in record["rows"]] for record in (own, given, cross)]
    assert gaps[1] == gaps[2] != gaps[0]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([], "there is nothing to compare the base with"),
        (["--match"], "--match needs --tune"),
        (["--adapter", "nowhere"], "nowhere: not the folder of a PEFT adapter"),
        (["--adapter", "base=ADAPTER"], "tuned model 'base': the name is taken"),
        (["--adapter", "ADAPTER", "--tuned", "ADAPTER"], "is named twice"),
        (["--adapter", "ADAPTER", "--scorer", "self", "self"], "scorer 'self' is named twice"),
        (["--adapter", "ADAPTER", "--decoding", "gredy"], "unknown decoding 'gredy'"),
        (["--adapter", "ADAPTER", "--decoding", "contrastive=top_k:5"], "decoding 'contrastive': the name is taken"),
        (["--adapter", "ADAPTER", "--max_new_tokens", "3"], "max_new_tokens is 3, and at least 8 is needed"),
        (["--adapter", "ADAPTER", "--facts_limit", "0"], "limit of facts is 0"),
        (["--adapter", "ADAPTER", "--domain", "poems"], "no text of the domain 'poems'"),
        (
            ["--adapter", "ADAPTER", "--profile", "PROFILE", "--base_scorer", "CHAT"],
            "the human profile was fitted with",
        ),
        (["--adapter", "ADAPTER", "--questions", "none.jsonl"], "none.jsonl: no such file"),
    ],
)
def test_bad_input(words, adapters, profile, chat_folder, tmp_path, refused, changes, message):
    given = {"ADAPTER": str(adapters / "same"), "PROFILE": str(profile), "CHAT": str(chat_folder)}
    for name, value in given.items():
        changes = [word.replace(name, value) for word in changes]
    assert message in refused(*words, "--output", str(tmp_path / "out"), *changes)
    assert not (tmp_path / "out" / "parts").exists()


def test_a_tuned_model_that_is_not_there(words, tmp_path, refused):
    """It is found when it is its turn; what the base wrote stays."""
    run = [*words, "--facts", "none", "--decoding", "ancestral", "--output", str(tmp_path / "out")]
    assert "nowhere/: neither a folder" in refused(*run, "--tuned", "nowhere/")
    assert any((tmp_path / "out" / "parts" / "generated").glob("*.parquet"))


def test_a_folder_with_results_is_not_overwritten(command, finished, refused):
    assert "add --resume to continue" in refused(*command, "--output", str(finished))
    other = [*command, "--per_text", "2", "--output", str(finished), "--resume"]
    assert "the setting 'per_text' was 1 and is 2 now" in refused(*other)
