"""The study from the text file to gap.json: every number computed once more, by hand, from scores.parquet."""

import csv
import json
import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import false_discovery_control, wasserstein_distance

from ugap.cli.main import main
from ugap.files import locked
from ugap.models import load_model
from ugap.scoring import Scorer
from ugap.statistics import contrast_independent, contrast_paired, paired_gap, step_down
from ugap.statistics.gap import gap_groups
from ugap.study.generation import chat_context

TAU, LAMBDA = 3.5987, 0.0656
PREFIX, NEW = 8, 16
ROW = {
    *("domain", "model", "prompting", "decoding", "scorer", "measure", "n", "n_sources", "n_dropped", "human"),
    *("model_value", "gap", "ratio", "ci95", "effect_size", "p_value", "p_adjusted", "wasserstein"),
}
MEASURES = ["nll", "ppl", "entropy", "pmi", "cpmi", "bits_per_byte", "deviation"]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """`study(rows, *options)`: what `ugap measure` wrote."""

    def run(rows, *options: str) -> SimpleNamespace:
        folder = tmp_path_factory.mktemp("study")
        data = folder / "texts.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        words = ["measure", "--data", str(data), "--output", str(folder / "out"), "--batch_size", "3", *options]
        if "--prefix_tokens" not in options:
            words += ["--prefix_tokens", str(PREFIX)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ugap.report.write_report", lambda *args, **kwargs: None)  # plots have tests of their own
            assert main([*words, "--max_new_tokens", str(NEW)]) == 0
        record = json.loads((folder / "out" / "gap.json").read_text())
        with open(folder / "out" / "gap.csv", encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        texts = pq.read_table(folder / "out" / "scores.parquet").to_pylist()
        for text in texts:
            for name in ("surprisal", "entropy", "varentropy", "rank", "marginal_surprisal"):
                if text[name] is not None:
                    text[name] = np.array(text[name], np.float64)
        return SimpleNamespace(
            record=record, gaps=record["gaps"], contrasts=record["contrasts"], texts=texts, table=table
        )

    return run


@pytest.fixture(scope="module")
def endful_folder(save_model, make_model):
    """A model for which every twelfth token is an end token, so that its texts are short."""
    model = make_model("llama", eos_token_id=0)
    model.generation_config.eos_token_id = list(range(0, len(model.get_input_embeddings().weight), 12))
    return save_model("endful", model)


@pytest.fixture(scope="module")
def two_models(study, text_rows, tiny_folder, chat_folder):
    """Two tagged models, two decodings, read by themselves and by the base model."""
    options = ["--model", str(tiny_folder), "--model", str(chat_folder), "--scorer", "self", str(tiny_folder)]
    options += ["--stage", f"{tiny_folder}=base", "--stage", f"{chat_folder}=instruct", "--limit", "7"]
    return study(text_rows, *options, "--decoding", "ancestral", "warm=temperature:1.1")


def value(text: dict, n: int, measure: str) -> tuple[float, np.ndarray]:
    """A measure of the first `n` tokens, and what is pooled for the distance of distributions."""
    s, h, v = (text[name][:n] for name in ("surprisal", "entropy", "varentropy"))
    if measure in ("nll", "ppl", "bits_per_byte"):
        nll = s.mean()
        if measure == "nll":
            return nll, s
        if measure == "bits_per_byte":
            begin, end = text["offsets"][0], text["offsets"][2 * n - 1]
            nll = s.sum() / math.log(2) / len(text["text"][begin:end].encode())
        else:
            nll = math.exp(nll)
        return nll, np.array([nll])
    tokens = {
        "entropy": lambda: h,
        "deviation": lambda: (s - h) / np.sqrt(v),
        "pmi": lambda: text["marginal_surprisal"][:n] - s,
        "cpmi": lambda: s - LAMBDA * (h >= TAU) * text["marginal_surprisal"][:n],
    }[measure]()
    return tokens.mean(), tokens


def pairs_of(result: SimpleNamespace, row: dict) -> tuple[list[tuple[dict, dict, int]], int]:
    """Human and model text of every prefix of a row and their common length, and how many are too short."""
    scorer = row["model"] if row["scorer"] == "self" else row["scorer"]
    same = [t for t in result.texts if t["scorer"] == scorer and t["prompting"] == row["prompting"]]
    reader = row["model"] if row["decoding"] != "given" else scorer
    human = {t["id"]: t for t in same if t["decoding"] == "human" and t["model"] == reader}
    pairs, dropped = [], 0
    for text in same:
        if [text[k] for k in ("model", "decoding", "domain")] == [row[k] for k in ("model", "decoding", "domain")]:
            n = min(len(text["surprisal"]), len(human[text["id"]]["surprisal"]))
            if n < 8:
                dropped += 1
            else:
                pairs.append((human[text["id"]], text, n))
    return pairs, dropped


def gaps_of(result: SimpleNamespace, row: dict, measure: str) -> tuple[list[float], list[str]]:
    pairs, _ = pairs_of(result, row)
    return [value(a, n, measure)[0] - value(b, n, measure)[0] for a, b, n in pairs], [a["source"] for a, _, _ in pairs]


def assert_by_hand(result: SimpleNamespace, seed: int = 0) -> None:
    for row in result.gaps:
        assert set(row) == ROW
        pairs, dropped = pairs_of(result, row)
        assert (row["n"], row["n_dropped"]) == (len(pairs), dropped)
        human = np.array([value(a, n, row["measure"])[0] for a, _, n in pairs])
        model = np.array([value(b, n, row["measure"])[0] for _, b, n in pairs])
        if row["measure"] == "ppl":  # geometric means, and the logarithm of their ratio
            human, model = np.log(human), np.log(model)
            assert np.log([row["human"], row["model_value"]]) == pytest.approx([human.mean(), model.mean()], rel=1e-5)
            assert row["gap"] == pytest.approx(math.log(row["human"] / row["model_value"]), rel=1e-5, abs=1e-9)
            assert row["ratio"] == pytest.approx(row["human"] / row["model_value"])
        else:
            assert row["human"] == pytest.approx(human.mean(), rel=1e-5)
            assert row["model_value"] == pytest.approx(model.mean(), rel=1e-5)
            assert row["gap"] == row["human"] - row["model_value"]
            assert row["ratio"] == (row["human"] / row["model_value"] if row["model_value"] else None)
        pooled = [
            np.concatenate([value(text, n, row["measure"])[1] for text, n in texts])
            for texts in ([(a, n) for a, _, n in pairs], [(b, n) for _, b, n in pairs])
        ]
        assert row["wasserstein"] == pytest.approx(wasserstein_distance(*pooled), rel=1e-4)
        if row["measure"] not in ("ppl", "pmi", "deviation"):  # a bootstrap takes its time
            continue
        estimate = paired_gap(human, model, [a["source"] for a, _, _ in pairs], seed=seed)
        assert row["n_sources"] == estimate.n_sources == len({a["source"] for a, _, _ in pairs})
        for name in ("effect_size", "p_value"):
            expected = getattr(estimate, name)
            close = pytest.approx(expected, rel=1e-3, abs=1e-3)
            assert row[name] is None if math.isnan(expected) else row[name] == close
        if math.isnan(estimate.ci95[0]):
            assert row["ci95"] == [None, None]
        else:
            assert row["ci95"] == pytest.approx(list(estimate.ci95), rel=1e-3, abs=1e-5)
    for table in (result.gaps, result.contrasts):
        able = [row for row in table if row["p_adjusted"] is not None]
        assert all(row["p_adjusted"] >= row["p_value"] for row in able)
        secondary = [row for row in able if row["measure"] not in ("nll", "ppl")]
        if secondary:
            expected = false_discovery_control([row["p_value"] for row in secondary])
            assert [row["p_adjusted"] for row in secondary] == pytest.approx(list(expected))
    primary = [row for row in result.gaps if row["measure"] == "nll"]
    tests = [gap_groups(*gaps_of(result, row, "nll")) for row in primary]
    found = step_down(tests, [math.nan if row["p_value"] is None else row["p_value"] for row in primary], seed=seed)
    for row, expected in zip(primary, found, strict=True):
        assert (row["p_adjusted"] is None) == math.isnan(expected) == (row["n_sources"] < 6)
        assert math.isnan(expected) or row["p_adjusted"] == pytest.approx(expected, abs=1e-3)
    # The same hypothesis on another scale.
    rows = [row for row in result.gaps if row["measure"] == "ppl"]
    for one, other in zip(primary, rows, strict=True):
        assert other["gap"] == pytest.approx(one["gap"], rel=1e-4, abs=1e-6)
        assert other["p_adjusted"] == (one["p_adjusted"] and pytest.approx(one["p_adjusted"], abs=1e-3))


def test_the_spreadsheet_has_the_rows(two_models):
    assert len(two_models.table) == len(two_models.gaps) > 0
    for cells, row in zip(two_models.table, two_models.gaps, strict=True):
        low, high = row["ci95"]
        expected = {**row, "low": low, "high": high}
        del expected["ci95"]
        assert cells == {name: "" if value is None else str(value) for name, value in expected.items()}


def test_every_cell_has_every_measure(two_models, tiny_folder, chat_folder):
    base, chat = str(tiny_folder), str(chat_folder)
    keys = [
        tuple(row[k] for k in ("domain", "model", "prompting", "decoding", "scorer", "measure"))
        for row in two_models.gaps
    ]
    assert len(set(keys)) == len(keys)
    # The base model reads itself already: it is not there as its own cross-scorer again.
    assert set(keys) == {
        (domain, model, "raw", decoding, scorer, measure)
        for domain in ("creative", "functional")
        for model, scorer in ((base, "self"), (chat, "self"), (chat, base))
        for decoding in ("ancestral", "warm")
        for measure in MEASURES
    }
    assert {row["n"] + row["n_dropped"] for row in two_models.gaps} == {7}


def test_every_gap_by_hand(two_models):
    assert_by_hand(two_models)


def test_the_settings_are_on_record(two_models, tiny_folder, chat_folder):
    record = two_models.record
    assert set(record) == {"version", "settings", "gaps", "contrasts"}
    assert record["version"] == 2
    settings = record["settings"]
    assert settings["models"] == [str(tiny_folder), str(chat_folder)]
    assert settings["decodings"] == {"ancestral": {}, "warm": {"temperature": 1.1}}
    assert settings["promptings"] == ["raw"]
    assert settings["stages"] == {str(tiny_folder): "base", str(chat_folder): "instruct"}
    for name in (str(tiny_folder), str(chat_folder)):
        assert settings["weight_hashes"][name] == Scorer.from_pretrained(name).id.weight_hash


def test_the_stored_scores_are_those_of_the_scorer(two_models, tiny_folder):
    scorer = Scorer.from_pretrained(str(tiny_folder))
    texts = [text for text in two_models.texts if text["scorer"] == scorer.name and text["token_ids"]]
    again = scorer.score([t["text"] for t in texts], [t["prefix"] for t in texts], pmi=True)
    for text, scores in zip(texts, again, strict=True):
        assert text["weight_hash"] == scorer.id.weight_hash
        assert text["token_ids"] == scores.token_ids.tolist()
        for name in ("surprisal", "entropy", "varentropy", "marginal_surprisal"):
            assert text[name] == pytest.approx(getattr(scores, name), rel=1e-4, abs=1e-4)


def test_the_human_text_goes_on_where_the_prefix_ends(two_models, text_rows):
    source = {row["id"]: row["text"] for row in text_rows}
    human = [text for text in two_models.texts if text["decoding"] == "human"]
    assert len({text["id"] for text in human}) == 14
    for text in human:
        assert text["prefix"] + text["text"] in source[text["source"]]


def test_contrasts_of_domains(two_models):
    rows = [row for row in two_models.contrasts if row["contrast"] == "domain"]
    assert Counter(row["measure"] for row in rows) == dict.fromkeys(("nll", "entropy", "bits_per_byte", "deviation"), 6)
    for row in rows[::3]:
        assert (row["a"], row["b"]) == ("creative", "functional")
        one = gaps_of(two_models, {**row, "prompting": row["prompting_a"], "domain": "creative"}, row["measure"])
        two = gaps_of(two_models, {**row, "prompting": row["prompting_b"], "domain": "functional"}, row["measure"])
        assert_contrast(row, contrast_independent(*one, *two, seed=0))
        assert (row["gap_a"], row["gap_b"]) == pytest.approx((np.mean(one[0]), np.mean(two[0])), abs=1e-5)


def test_contrasts_of_models(two_models, tiny_folder, chat_folder):
    rows = [row for row in two_models.contrasts if row["contrast"] == "stage"]
    # Both read by themselves, and both by the base model, in two domains and two decodings.
    assert Counter((row["measure"], row["scorer"]) for row in rows) == {
        (measure, scorer): 4
        for measure in ("nll", "entropy", "bits_per_byte", "deviation")
        for scorer in ("self", str(tiny_folder))
    }
    for row in rows[::3]:
        assert (row["a"], row["stage_a"]) == (str(chat_folder), "instruct")
        assert (row["b"], row["stage_b"]) == (str(tiny_folder), "base")
        one = gaps_of(two_models, {**row, "prompting": row["prompting_a"], "model": row["a"]}, row["measure"])
        two = gaps_of(two_models, {**row, "prompting": row["prompting_b"], "model": row["b"]}, row["measure"])
        assert_contrast(row, contrast_paired(*one, *two, seed=0))


def assert_contrast(row: dict, expected) -> None:
    assert row["difference"] == pytest.approx(expected.difference, rel=1e-3, abs=1e-5)
    assert row["n_sources"] == list(expected.n_sources)
    assert row["p_value"] == (None if math.isnan(expected.p_value) else pytest.approx(expected.p_value, abs=1e-3))
    assert row["ci95"] == pytest.approx(list(expected.ci95), rel=1e-3, abs=1e-4)


def test_greedy_does_not_depend_on_the_seed_and_sampling_does(study, text_rows, tiny_folder, two_models):
    options = ["--model", str(tiny_folder), "--limit", "7", "--decoding", "greedy", "ancestral", "--no_pmi"]
    again, other = study(text_rows, *options), study(text_rows, *options, "--seed", "1")

    def texts(result, decoding):
        own = str(tiny_folder)
        return {
            t["id"]: t["text"] for t in result.texts if (t["decoding"], t["scorer"], t["model"]) == (decoding, own, own)
        }

    for decoding in ("human", "ancestral"):
        # Neither the other decodings nor the other models of a study change what is written.
        assert texts(again, decoding) == texts(two_models, decoding)
    assert texts(other, "greedy") == texts(again, "greedy")
    assert all(texts(other, "ancestral")[name] != text for name, text in texts(again, "ancestral").items())
    assert other.record["settings"]["seed"] == 1
    assert {row["measure"] for row in again.gaps} == set(MEASURES) - {"pmi", "cpmi"}
    assert_by_hand(again)
    assert_by_hand(other, seed=1)


def test_texts_that_end_early(study, text_rows, endful_folder):
    result = study(text_rows, "--model", str(endful_folder), "--decoding", "ancestral", "--no_pmi", "--limit", "24")
    assert_by_hand(result)
    lengths = [len(text["surprisal"]) for text in result.texts if text["decoding"] == "ancestral"]
    assert any(8 <= length < NEW for length in lengths)
    dropped = {row["domain"]: row["n_dropped"] for row in result.gaps}
    assert sum(dropped.values()) == sum(length < 8 for length in lengths) > 0
    assert sum({row["domain"]: row["n"] for row in result.gaps}.values()) + sum(dropped.values()) == len(lengths)


def test_a_model_that_writes_nothing(text_rows, save_model, make_model, tokenizer, tmp_path, capsys):
    model = make_model("llama", eos_token_id=0)
    model.generation_config.eos_token_id = list(range(len(tokenizer)))
    folder = save_model("silent", model)
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in text_rows))
    words = ["measure", "--model", str(folder), "--data", str(data), "--output", str(tmp_path / "out"), "--limit", "2"]
    words += ["--decoding", "greedy", "--prefix_tokens", "8", "--max_new_tokens", "16"]
    assert main(words) == 0
    assert "No gap could be estimated" in capsys.readouterr().out
    gaps = json.loads((tmp_path / "out" / "gap.json").read_text())["gaps"]
    # Its texts are counted, though there is nothing to compare.
    assert [(row["domain"], row["measure"], row["n"], row["n_dropped"]) for row in gaps] == [
        ("creative", "nll", 0, 2),
        ("functional", "nll", 0, 2),
    ]
    assert all(row[name] is None for row in gaps for name in ("human", "model_value", "gap", "p_value", "p_adjusted"))
    texts = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert [text["text"] for text in texts if text["decoding"] == "greedy"] == [""] * 4


# Given continuations


@pytest.mark.parametrize("prompted", [True, False])
def test_given_continuations(study, text_rows, tiny_folder, prompted):
    rows = [
        {"id": str(i), "domain": row["domain"], "text": row["text"], "gpt": other["text"], "claude": other["text"][9:]}
        for i, (row, other) in enumerate(zip(text_rows, text_rows[1:] + text_rows[:1], strict=True))
    ]
    if prompted:
        rows = [{**row, "prompt": f"Tell me tale {row['id']}."} for row in rows]
    options = ["--scorer", str(tiny_folder), "--candidate", "gpt=gpt", "--candidate", "claude=claude"]
    result = study(rows, *options, "--prefix_tokens", "64" if prompted else "0")
    assert_by_hand(result)
    cells = {(row["model"], row["decoding"], row["scorer"], row["n"], row["n_dropped"]) for row in result.gaps}
    assert cells == {(name, "given", str(tiny_folder), 6, 0) for name in ("gpt", "claude")}
    assert {text["prefix"] for text in result.texts} == (
        {f"Tell me tale {i}.\n\n" for i in range(12)} if prompted else {""}
    )
    # Without a prefix there is nothing that it could tell.
    assert ("pmi" in {row["measure"] for row in result.gaps}) == prompted
    assert ("cpmi" in {row["measure"] for row in result.gaps}) == prompted
    # A given text is compared over as many tokens as a human one has.
    assert all(n in (NEW, NEW + 1) for row in result.gaps for *_, n in pairs_of(result, row)[0])


def test_human_and_model_text_are_cut_to_one_length(study, text_rows, tiny_folder):
    # Given texts, since what is drawn (and with it how long a text is) differs from one kind of CPU to another.
    rows = [{**row, "short": row["text"][:32], "long": row["text"]} for row in text_rows]
    options = ["--scorer", str(tiny_folder), "--candidate", "short=short", "--candidate", "long=long"]
    result = study(rows, *options, "--prefix_tokens", "0", "--no_pmi")
    assert_by_hand(result)
    lengths: dict[str, list[tuple[int, int, int]]] = {"short": [], "long": []}
    for row in result.gaps:
        lengths[row["model"]] += [(len(a["surprisal"]), len(b["surprisal"]), n) for a, b, n in pairs_of(result, row)[0]]
    assert all(8 <= model == n < human <= NEW + 1 for human, model, n in lengths["short"])
    assert all(human == n < model for human, model, n in lengths["long"])
    assert lengths["short"]
    assert lengths["long"]


def test_given_continuations_beside_models(study, text_rows, tiny_folder, chat_folder):
    rows = [{**row, "prompt": "Tell me a tale.", "gpt": row["text"][40:]} for row in text_rows]
    options = ["--model", str(tiny_folder), "--candidate", "gpt=gpt", "--scorer", "self", str(chat_folder)]
    result = study(rows, *options, "--decoding", "greedy", "--no_pmi")
    assert_by_hand(result)
    cells = {(row["model"], row["decoding"], row["scorer"]) for row in result.gaps}
    assert cells == {
        ("gpt", "given", str(tiny_folder)),
        ("gpt", "given", str(chat_folder)),
        (str(tiny_folder), "greedy", "self"),
        (str(tiny_folder), "greedy", str(chat_folder)),
    }


# Chat prompting


def test_chat_prompting(study, text_rows, chat_folder, tiny_folder):
    options = ["--model", str(chat_folder), "--prompting", "raw", "chat", "--scorer", "self", str(tiny_folder)]
    result = study(text_rows, *options, "--decoding", "greedy", "--limit", "2")
    assert_by_hand(result)
    name = str(chat_folder)
    assert {(row["prompting"], row["scorer"]) for row in result.gaps} == {
        (prompting, scorer) for prompting in ("raw", "chat") for scorer in ("self", str(tiny_folder))
    }
    assert {row["prompting_a"] for row in result.contrasts} == {"raw", "chat"}

    _, tokenizer = load_model(name)
    scorer = Scorer.from_pretrained(name)
    reader = Scorer.from_pretrained(str(tiny_folder))
    for text in result.texts:
        if text["prompting"] != "chat":
            continue
        if text["scorer"] == name:
            # The model reads a text where it would have written it: behind the request in its template.
            assert text["text"] == text["text"].lstrip()
            context = chat_context(tokenizer, text["prefix"], name)
            (scores,) = scorer.score([text["text"]], [context])
        else:
            # Another reader knows no template: it reads the text as the prefix's continuation.
            assert text["decoding"] == "human" or text["text"][0].isspace() or text["prefix"][-1].isspace()
            (scores,) = reader.score([text["text"]], [text["prefix"]])
        assert text["surprisal"] == pytest.approx(scores.surprisal, rel=1e-4, abs=1e-4)
    raw, chat = (
        [text["text"] for text in result.texts if text["decoding"] == "greedy" and text["prompting"] == prompting]
        for prompting in ("raw", "chat")
    )
    assert raw != chat


# Going on


def test_a_study_is_not_written_over(study_words, capsys):
    words, _ = study_words
    assert main(words) == 0
    capsys.readouterr()
    assert main(words) == 2
    line = capsys.readouterr().err
    assert line.startswith("ugap: error: ")
    assert line.endswith(
        ": there are results already; add --resume to continue, or choose another folder (see ugap measure --help)\n"
    )
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--seed", "5"], "seed"),
        (["--max_new_tokens", "12"], "max_new_tokens"),
        (["--decoding", "ancestral"], "decodings"),
        (["--batch_size", "3"], "batch_size"),
        (["--no_pmi"], "pmi"),
        (["--scorer", "self", "gemma-3-270m"], "scorers"),
    ],
)
def test_a_study_does_not_go_on_with_other_settings(study_words, capsys, options, name):
    words, _ = study_words
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--resume", *options]) == 2
    line = capsys.readouterr().err
    assert f"the setting '{name}' was " in line
    assert line.count("\n") == 1


def test_a_study_does_not_go_on_with_other_texts(study_words, capsys):
    words, data = study_words
    assert main(words) == 0
    data.write_text(data.read_text().replace("tailor", "sailor"))
    capsys.readouterr()
    assert main([*words, "--resume"]) == 2
    assert "the setting 'data_hash' was " in capsys.readouterr().err


@pytest.fixture
def study_words(tmp_path, text_rows, tiny_folder):
    """The words of a small study, and its file of texts."""
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in text_rows if row["domain"] == "creative"))
    words = ["measure", "--model", str(tiny_folder), "--data", str(data), "--output", str(tmp_path / "out")]
    words += ["--prefix_tokens", "8", "--max_new_tokens", "10", "--limit", "2", "--decoding", "greedy"]
    return words, data


@pytest.mark.slow
def test_a_model_that_was_trained_further_is_another(text_rows, save_model, make_model, tmp_path, write_rows):
    """What its old weights wrote and read is not taken for what its new ones would."""
    folder = save_model("trained", make_model("llama", eos_token_id=0))
    words = ["measure", "--model", str(folder), "--data", write_rows(text_rows), "--limit", "2", "--batch_size", "2"]
    words += ["--decoding", "ancestral", "--prefix_tokens", "8", "--max_new_tokens", "16", "--output"]
    assert main([*words, str(tmp_path / "out")]) == 0
    old = json.loads((tmp_path / "out" / "gap.json").read_text())
    model, _ = load_model(str(folder))
    for parameter in model.parameters():
        parameter.data.mul_(1.1)
    model.save_pretrained(folder)
    assert main([*words, str(tmp_path / "out"), "--resume"]) == 0
    assert main([*words, str(tmp_path / "fresh")]) == 0
    resumed, fresh = (json.loads((tmp_path / name / "gap.json").read_text()) for name in ("out", "fresh"))
    assert resumed["gaps"] == fresh["gaps"] != old["gaps"]
    assert resumed["settings"]["weight_hashes"] == fresh["settings"]["weight_hashes"]
    kept = [pq.read_table(tmp_path / name / "scores.parquet") for name in ("out", "fresh")]
    assert kept[0].equals(kept[1])
    assert len(list((tmp_path / "out" / "parts" / "scored").glob("*.parquet"))) == 2


def test_what_a_decoding_needs_is_looked_for_before_a_text_is_written(study_words, tmp_path, monkeypatch, capsys):
    words, _ = study_words
    monkeypatch.setattr("ugap.study.continuations.generate_continuations", None)
    assert main([*words, "--decoding", "ancestral", "ours=human_weight:1,human_profile:gemma-3-270m"]) == 2
    assert "the human profile was fitted with 'gemma-3-270m'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "parts").exists()


def test_a_second_model_is_looked_for_before_a_text_is_written(study_words, tmp_path, monkeypatch, capsys):
    words, _ = study_words
    monkeypatch.setattr("ugap.study.continuations.generate_continuations", None)
    assert main([*words, "--model", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: neither a folder" in capsys.readouterr().err


def test_a_folder_in_which_another_process_writes_is_refused(study_words, tmp_path, capsys):
    words, _ = study_words
    with locked(tmp_path / "out"):
        assert main(words) == 2
    line = f"{tmp_path / 'out'}: another process is writing there; wait, or choose another output"
    assert capsys.readouterr().err == f"ugap: error: {line}\n"


def test_a_prompt_and_a_text_that_goes_on_in_its_line(study, text_rows, tiny_folder):
    rows = [{**row, "prompt": row["text"][:20], "text": row["text"][20:]} for row in text_rows]
    options = ["--model", str(tiny_folder), "--decoding", "greedy", "--no_pmi", "--limit", "6"]
    apart = study(rows, *options, "--prompt_separator", "\n")
    assert all(text["prefix"].endswith("\n") for text in apart.texts)
    plain = study(rows, *options)
    for text in plain.texts:
        if text["decoding"] == "human":
            border = text["text"][:1].isspace() or text["prefix"].removesuffix("\n\n")[-1:].isspace()
            assert text["prefix"].endswith("\n\n") != border


class TestLike:
    """`--like`: the decodings at human uncertainty follow given texts."""

    @pytest.fixture
    def words(self, write_rows, text_rows, tiny_folder, make_profile, tmp_path):
        # Of the level that texts of random words have to a random model.
        make_profile(load_model(str(tiny_folder))[0], level=3.0).save(tmp_path / "profile.json")
        sizes = ["--prefix_tokens", "8", "--max_new_tokens", "16", "--limit", "2"]
        data = ["--data", write_rows(text_rows), "--profile", str(tmp_path / "profile.json")]
        return ["measure", "--model", str(tiny_folder), *data, *sizes, "--decoding", "ancestral", "ours=human_weight:1"]

    @pytest.fixture
    def mine(self, write_rows, text_rows):
        return write_rows([{"text": " ".join(row["text"].split()[::-1] * 2)} for row in text_rows], "mine.jsonl")

    def test_the_report_says_what_was_followed(
        self, words, mine, text_rows, write_rows, refused, tmp_path, capsys, caplog
    ):
        named = "named=human_weight:1,human_kind:creative"
        assert main([*words, named, "--like", mine, "--output", str(tmp_path / "like")]) == 0
        said = "writes like 12 texts: human level "
        # The terminal wraps it, at a width that depends on the length of the path.
        assert said.strip() in " ".join(capsys.readouterr().out.split())
        assert said in (tmp_path / "like" / "gap.md").read_text()
        assert said in (tmp_path / "like" / "report.html").read_text()
        record = json.loads((tmp_path / "like" / "gap.json").read_text())
        assert len(record["settings"]["like"]) == 16
        assert "tailor" not in json.dumps(record)  # a fingerprint, no text
        rows = pq.read_table(tmp_path / "like" / "scores.parquet").to_pylist()
        followed, creative = ([row["text"] for row in rows if row["decoding"] == name] for name in ("ours", "named"))
        assert len(followed) == len(creative) == 4
        assert followed != creative
        # Resumed with other texts it would be another study.
        caplog.clear()  # the tiny model writes bytes that are no text
        other = write_rows([{"text": row["text"] * 2 + "!"} for row in text_rows], "mine.jsonl")
        assert "like" in refused(*words, named, "--like", other, "--output", str(tmp_path / "like"), "--resume")

    def test_what_is_refused_before_a_model_is_loaded(self, words, mine, refused, tmp_path, monkeypatch):
        monkeypatch.setattr(Scorer, "from_pretrained", None)
        output = ["--output", str(tmp_path / "out")]
        data = words[words.index("--data") + 1]
        assert "all 12 texts to write like are texts to continue" in refused(*words, *output, "--like", data)
        at = words.index("--decoding")
        assert "no decoding follows the texts to write like" in refused(*words[: at + 2], *output, "--like", mine)
        unknown = "x=human_weight:1,human_kind:sermon"
        line = refused(*words[: at + 1], unknown, *output)
        assert "decoding 'x': the human profile has no kind 'sermon'; it has creative, functional" in line
        at = words.index("--profile")
        shipped = [*words[:at], *words[at + 2 : -2], unknown, *output, "--model", "gemma-3-270m"]
        assert "has no kind 'sermon'; it has academic" in refused(*shipped)
