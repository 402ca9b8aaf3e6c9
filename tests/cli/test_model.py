"""`--adapter` in the commands that name models one by one: the model is the adapted one, and a bad use is one line."""

import json

import pytest

from ugap.cli.main import main
from ugap.models import load_model
from ugap.models.adapter import adapted_name
from ugap.profile import HumanProfile
from ugap.profile.fitting import BESIDE
from ugap.scoring import Scorer

SIZES = ["--limit", "2", "--per_text", "1", "--prefix_tokens", "8", "--max_new_tokens", "12"]


@pytest.fixture
def texts(write_rows, text_rows):
    return write_rows(text_rows)


@pytest.fixture
def adapted(tiny_folder, adapter):
    return Scorer.from_pretrained(str(tiny_folder), adapter=adapter).id


def test_measure(texts, tiny_folder, adapter, adapted, make_profile, tmp_path):
    make_profile(load_model(str(tiny_folder))[0]).save(adapter / BESIDE)
    words = ["measure", "--data", texts, "--model", str(tiny_folder), "--adapter", str(adapter), *SIZES]
    words += ["--scorer", "self", str(tiny_folder), "--stage", f"{tiny_folder}=instruct"]
    words += ["--decoding", "ancestral", "ugap-own", "--output", str(tmp_path / "out")]
    assert main(words) == 0
    record = json.loads((tmp_path / "out" / "gap.json").read_text())
    name = adapted_name(str(tiny_folder), adapter)
    assert {(row["model"], row["scorer"]) for row in record["gaps"]} == {(name, "self"), (name, str(tiny_folder))}
    # The base reads, too, and is another model.
    base = Scorer.from_pretrained(str(tiny_folder)).id
    assert record["settings"]["weight_hashes"] == {name: adapted.weight_hash, str(tiny_folder): base.weight_hash}
    assert record["settings"]["stages"] == {name: "instruct"}


def test_decoding(texts, tiny_folder, adapter, adapted, make_profile, tmp_path):
    make_profile(load_model(str(tiny_folder))[0]).save(adapter / BESIDE)
    words = ["eval", "decoding", "--data", texts, "--model", str(tiny_folder), *SIZES, "--seeds", "1"]
    words += ["--output", str(tmp_path / "out")]
    assert main([*words, "--decoding", "ugap-own", "--adapter", str(adapter)]) == 0
    (model,) = json.loads((tmp_path / "out" / "decoding.json").read_text())["models"]
    assert (model["model"], model["weight_hash"]) == adapted
    # The base can be added to the folder.
    assert main([*words, "--decoding", "ancestral", "--resume"]) == 0
    (model,) = json.loads((tmp_path / "out" / "decoding.json").read_text())["models"]
    assert model["model"] == str(tiny_folder)


@pytest.mark.parametrize("command", [["measure"], ["eval", "decoding"]])
def test_it_needs_one_model(command, texts, tiny_folder, chat_folder, adapter, tmp_path, refused):
    words = [*command, "--data", texts, "--adapter", str(adapter), "--output", str(tmp_path / "out")]
    words += ["--decoding", "ancestral"]
    two = refused(*words, "--model", str(tiny_folder), str(chat_folder))
    assert f"--adapter {adapter} needs one --model, and there are 2: name the adapter's folder as a model" in two
    line = refused(*words, "--model", str(tiny_folder), "--engine", "vllm")
    assert "--engine vllm takes no adapter: merge it into its base first" in line


def test_reward_auc(texts, tiny_folder, adapter, adapted, tmp_path):
    HumanProfile.for_model(*load_model(str(tiny_folder))).save(adapter / BESIDE)
    words = ["eval", "reward_auc", "--data", texts, "--model", str(tiny_folder), "--adapter", str(adapter)]
    words += [*SIZES, "--decoding", "ancestral", "--best_of", "0"]
    base = list(Scorer.from_pretrained(str(tiny_folder)).id)
    given = ["--profile", str(adapter / BESIDE)]
    for options, scorer in ((["--scorer", str(tiny_folder)], base), ([], list(adapted)), (given, list(adapted))):
        output = tmp_path / str(len(options)) / str(options == given)
        assert main([*words, *options, "--output", str(output)]) == 0
        settings = json.loads((output / "reward_auc.json").read_text())["settings"]
        assert (settings["writer"], settings["scorer"]) == (list(adapted), scorer)


def test_quality(write_rows, text_rows, tiny_folder, adapter, make_profile, tmp_path):
    make_profile(load_model(str(tiny_folder))[0]).save(tmp_path / "profile.json")
    data = write_rows([{**row, "stars": i % 5} for i, row in enumerate(text_rows)], "rated.jsonl")
    words = ["eval", "quality", "--data", data, "--rating", "stars", "--model", str(tiny_folder), "--resamples", "100"]
    words += ["--profile", str(tmp_path / "profile.json")]
    for output, options in (("base", []), ("adapted", ["--adapter", str(adapter)])):
        assert main([*words, *options, "--output", str(tmp_path / output)]) == 0
    base, adapted = (json.loads((tmp_path / name / "quality.json").read_text()) for name in ("base", "adapted"))
    assert base["settings"]["scorer"] != adapted["settings"]["scorer"]
