"""The exported folder: whole, without `ugap`, and in agreement with what the package writes."""

import ast
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from importlib import resources

import pytest
import torch
import yaml
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
)

from ugap.errors import InputError
from ugap.sampling import generation_kwargs, human_params
from ugap.sampling.export import MODULES, export_custom_generate
from ugap.sampling.portable.hub_generate import generate as hub_generate

NEW = {"max_new_tokens": 12, "pad_token_id": 0}


@pytest.fixture(scope="module")
def folder(profile, tmp_path_factory):
    return export_custom_generate(tmp_path_factory.mktemp("export") / "ugap-tiny", profile, base_model="owner/tiny")


@pytest.fixture
def inputs():
    """Two prompts, one of them padded on the left."""
    ids = torch.tensor([[0, 0, 5, 9, 11], [7, 21, 33, 4, 60]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}


@pytest.fixture
def run(tiny_model, tokenizer, folder, inputs):
    def run(**options):
        options = {**NEW, "seed": 5, "tokenizer": tokenizer, **options}
        return tiny_model.generate(**inputs, custom_generate=str(folder), trust_remote_code=True, **options)

    return run


class TestFolder:
    def test_it_holds_copies_and_the_params_of_every_domain(self, folder, profile):
        code = folder / "custom_generate"
        assert {path.name for path in code.iterdir()} == {*MODULES, "hub_params.py"}
        for name, own in MODULES.items():
            assert (code / name).read_bytes() == (resources.files("ugap.sampling.portable") / own).read_bytes()
        values: dict = {}
        exec((code / "hub_params.py").read_text(), values)  # noqa: S102
        kinds = ("auto", *profile.kinds, *profile.domains)
        assert values["PARAMS"] == {kind: human_params(profile, kind) for kind in kinds}
        assert values["PARAMS"]["auto"] == values["PARAMS"]["creative"]
        assert values["SCORER"] == ("tiny", profile.weight_hash)

    def test_it_imports_what_transformers_stands_on_alone(self, folder):
        for path in (folder / "custom_generate").iterdir():
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    assert node.level in (0, 1)
                    names = [node.module or ""] if node.level == 0 else []
                    assert node.level == 0 or f"{node.module}.py" in {p.name for p in path.parent.iterdir()}
                tops = {name.split(".")[0] for name in names}
                assert tops <= {*sys.stdlib_module_names, "numpy", "torch", "transformers"}

    def test_its_readme_is_a_model_card(self, folder):
        front, text = (folder / "README.md").read_text().removeprefix("---\n").split("---\n", 1)
        assert yaml.safe_load(front) == {
            "library_name": "transformers",
            "license": "apache-2.0",
            "tags": ["custom_generate"],
            "base_model": "owner/tiny",
        }
        assert "| `creative` | 12 | 3,000 |" in text
        assert "made up" in text
        assert "99.9%" in text
        assert "$" not in text

    @pytest.mark.parametrize(
        "name",
        [
            'm")\nimport os\nos.system("x")  # ',
            "m\n---\nlicense: other\n---\n```\n# Title",
            "`a` ``b|c`",
            "m\x1b[2J\u202e\u2028",
            "$name ${rows} <script>",
            "C:\\models\\new",
        ],
    )
    def test_a_name_stays_a_name(self, profile, tmp_path, name):
        """The scorer's, the domains' and the source's: no line of the card or of the code is of their making."""
        plain, odd = (
            dataclasses.replace(
                profile,
                scorer_name=scorer,
                source=scorer,
                kinds={scorer: dataclasses.replace(profile.kind("creative"), domain=scorer)},
            )
            for scorer in ("plain", name)
        )
        cards = [
            (export_custom_generate(tmp_path / folder, one) / "README.md").read_text(encoding="utf-8")
            for folder, one in (("plain", plain), ("odd", odd))
        ]
        plain_lines, lines = (card.split("\n") for card in cards)
        assert len(lines) == len(plain_lines)
        assert not set(cards[1]) & set("\x1b\u202e\u2028")
        for line, plain_line in zip(lines, plain_lines, strict=True):
            assert line == plain_line or "plain" in plain_line
        code = ast.parse(cards[1].split("```python\n")[1].split("\n```")[0])
        strings = {node.value for node in ast.walk(code) if isinstance(node, ast.Constant)}
        assert name in strings
        (row,) = [line for line in lines if line.endswith(f"{profile.kind('creative').positions.surprisal[4]:.3f} |")]
        assert len(re.findall(r"(?<!\\)\|", row)) == 5
        values: dict = {}
        exec((tmp_path / "odd" / "custom_generate" / "hub_params.py").read_text(encoding="utf-8"), values)  # noqa: S102
        assert values["PARAMS"].keys() == {"auto", name}
        assert values["SCORER"] == (name, profile.weight_hash)

    def test_the_tail_is_fixed_at_export(self, profile, tmp_path):
        text = (export_custom_generate(tmp_path / "a", profile, tail=None) / "README.md").read_text()
        assert "Nothing is cut" in text
        assert "base_model" not in text
        assert "'ranks': []" in (tmp_path / "a" / "custom_generate" / "hub_params.py").read_text()

    def test_it_is_written_again_over_an_export_or_hidden_files(self, profile, tmp_path):
        (tmp_path / ".gitattributes").touch()
        export_custom_generate(tmp_path, profile)
        (tmp_path / "README.md").unlink()
        export_custom_generate(tmp_path, profile)
        assert (tmp_path / "README.md").exists()
        assert not list((tmp_path / "custom_generate").glob(".*"))

    def test_what_another_made_is_left_alone(self, profile, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(InputError, match="is there already"):
            export_custom_generate(tmp_path, profile)
        with pytest.raises(InputError, match="is there already"):
            export_custom_generate(tmp_path / "config.json", profile)
        with pytest.raises(InputError, match="cannot be written"):
            export_custom_generate(tmp_path / "config.json" / "below", profile)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"tail": 0.123}, "tail 0.123"), ({"base_model": "no id at all"}, "no Hub id")],
    )
    def test_bad_arguments_leave_nothing(self, profile, tmp_path, options, message):
        with pytest.raises(InputError, match=message):
            export_custom_generate(tmp_path / "a", profile, **options)
        with pytest.raises(InputError, match="neither a file nor a shipped profile"):
            export_custom_generate(tmp_path / "a", "no such profile")
        assert not (tmp_path / "a").exists()


class TestGenerate:
    @pytest.mark.parametrize("kind", ["creative", "functional"])
    @pytest.mark.parametrize(
        "share", [{"mode": "creative"}, {"mode": "balanced"}, {"mode": "precise"}, {"weight": 0.7}]
    )
    def test_it_writes_what_the_package_writes(self, run, tiny_model, tokenizer, profile, inputs, kind, share):
        own = generation_kwargs(tiny_model, kind, profile=profile, tokenizer=tokenizer, seed=5, **share)
        expected = tiny_model.generate(**inputs, **NEW, **own)
        assert run(kind=kind, **share).tolist() == expected.tolist()

    def test_a_profile_without_creative_kinds(self, profile, tmp_path):
        functional = dataclasses.replace(profile, kinds={"functional": profile.kind("functional")})
        folder = export_custom_generate(tmp_path / "folder", functional)
        values: dict = {}
        exec((folder / "custom_generate" / "hub_params.py").read_text(), values)  # noqa: S102
        assert values["PARAMS"]["auto"] == human_params(profile, "functional")
        assert 'kind="functional"' in (folder / "README.md").read_text()

    def test_seeds_and_rows_differ(self, run):
        assert run().tolist() != run(seed=6).tolist()
        assert run().tolist() == run(do_sample=True, temperature=0.1, top_k=1).tolist()

    @pytest.mark.parametrize("where", ["the call", "a config", "the model's own config"])
    def test_several_texts_of_a_prompt(self, run, tiny_model, inputs, monkeypatch, where):
        """Drawn row by row, as if the prompt were repeated; no warper of the model's own config has a say."""
        options = {"num_return_sequences": 3} if where == "the call" else {}
        if where == "a config":
            options = {"generation_config": GenerationConfig(num_return_sequences=3, do_sample=True, **NEW)}
        if where == "the model's own config":
            monkeypatch.setattr(tiny_model.generation_config, "do_sample", True)
            monkeypatch.setattr(tiny_model.generation_config, "num_return_sequences", 3)
        monkeypatch.setattr(tiny_model.generation_config, "top_k", 1)
        several = run(**options)
        assert several.shape == (6, 17)
        assert len(set(map(tuple, several.tolist()))) == 6
        monkeypatch.undo()
        inputs.update({name: value.repeat_interleave(3, 0) for name, value in inputs.items()})
        assert several.tolist() == run().tolist()

    def test_other_arguments_pass_through(self, run, inputs):
        out = run(return_dict_in_generate=True, output_scores=True, max_new_tokens=3, min_new_tokens=3)
        assert out.sequences.shape == (2, 8)
        assert len(out.scores) == 3
        assert (out.scores[0].isfinite().sum(1) == 1).all()

        taken = set(run()[:, 5:].flatten().tolist())
        others = LogitsProcessorList([SuppressTokensLogitsProcessor(sorted(taken), device="cpu")])
        assert not taken & set(run(logits_processor=others)[:, 5:].flatten().tolist())

        class Streamer:
            tokens: list = []  # noqa: RUF012

            def put(self, value):
                self.tokens += value.flatten().tolist()

            def end(self):
                self.tokens += ["end"]

        ids = inputs["input_ids"][1:]
        inputs["input_ids"], inputs["attention_mask"] = ids, torch.ones_like(ids)
        assert Streamer.tokens == []
        out = run(streamer=Streamer())
        assert Streamer.tokens == [*out[0].tolist(), "end"]

    def test_inside_a_models_repository(self, save_model, tiny_model, folder, inputs, run):
        """transformers then puts the function in the place of the model's own `generate`."""
        home = save_model("with code", tiny_model)
        shutil.copytree(folder / "custom_generate", home / "custom_generate")
        model = LlamaForCausalLM.from_pretrained(home, trust_remote_code=True)
        assert model.generate(**inputs, **NEW, seed=5).tolist() == run().tolist()
        first = inputs["input_ids"][1:]
        assert model.generate(first, **NEW, seed=5).shape == (1, 17)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"kind": "sermons"}, "unknown kind 'sermons': there are auto, creative, functional"),
            ({"mode": "wild"}, "unknown mode 'wild'"),
            ({"weight": 1.5}, "weight: expected a number"),
            ({"mode": "creative", "weight": 1.0}, "not both"),
            ({"num_beams": 2}, "num_beams=2"),
            ({"generation_config": GenerationConfig(num_beams=3)}, "num_beams=3"),
            ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
            ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
            ({"assistant_early_exit": 1}, "assistant_early_exit=1"),
        ],
    )
    def test_bad_arguments_are_refused_before_the_model_runs(self, run, tiny_model, monkeypatch, options, message):
        monkeypatch.setattr(tiny_model, "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
        with pytest.raises(ValueError, match=message):
            run(**options)

    def test_a_small_vocabulary_is_refused_before_the_model_runs(self, make_model, folder, inputs, monkeypatch):
        model = make_model("llama", vocab_size=50)
        monkeypatch.setattr(model, "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
        with pytest.raises(ValueError, match="the vocabulary has 50 tokens"):
            model.generate(**inputs, custom_generate=str(folder), trust_remote_code=True, **NEW)

    def test_the_package_itself_has_no_params(self, tiny_model, inputs):
        with pytest.raises(ValueError, match="there are none"):
            hub_generate(**inputs, model=tiny_model)

    @pytest.mark.slow
    def test_where_ugap_cannot_be_imported(self, run, save_model, tiny_model, folder, inputs, tmp_path):
        home = save_model("apart", tiny_model)
        code = f"""
import sys
class NoUgap:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ugap":
            raise ImportError("ugap is not here")
sys.meta_path.insert(0, NoUgap())
try:
    import ugap
except ImportError:
    print("no ugap")
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(home)!r})
out = model.generate(
    input_ids=torch.tensor({inputs["input_ids"].tolist()}),
    attention_mask=torch.tensor({inputs["attention_mask"].tolist()}),
    custom_generate={str(folder)!r}, trust_remote_code=True, seed=5, **{NEW!r},
)
print(out.tolist())
"""
        done = subprocess.run(
            [sys.executable, "-I", "-c", code],
            env={"HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        first, second = done.stdout.splitlines()
        assert first == "no ugap"
        assert json.loads(second) == run().tolist()
