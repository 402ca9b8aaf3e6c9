"""The engine of a study: decodings become vLLM's, or are refused; a stand-in for vLLM shows what is asked of it.

`tests/sampling/engines/test_vllm_engine.py` runs vLLM itself.
"""

import dataclasses
import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import TopPLogitsWarper

from ugap.cli.main import main
from ugap.errors import InputError
from ugap.models import load_model
from ugap.sampling import HumanEntropyLogitsProcessor
from ugap.sampling.portable.params_processor import ParamsLogitsProcessor
from ugap.sampling.portable.special import suppressed_tokens
from ugap.scoring import Scorer
from ugap.study import parse_decodings
from ugap.study.decodings import DECODINGS, STUDIED
from ugap.study.engine import check_engine, default_decodings, open_engine
from ugap.study.generation import generate_continuations
from ugap.study.vllm_engine import check_decodings, sampling_settings


@dataclasses.dataclass
class EngineArgs:
    """Some of vLLM's options."""

    model: str = ""
    dtype: str = "auto"
    revision: str | None = None
    tokenizer_revision: str | None = None
    trust_remote_code: bool = False
    generation_config: str = "auto"
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    enforce_eager: bool = False
    logits_processors: list[str] | None = None


class LLM:
    """As vLLM's: every text is drawn alone, with a seed of its own; cuts and penalties are left out."""

    def __init__(self, **options: Any):
        EngineArgs(**options)
        if options.get("tensor_parallel_size", 1) > 8:
            raise RuntimeError("World size is larger than the number of GPUs\nsecond line")
        self.options, self.is_shut = options, False
        self.asked: list[tuple[list[int], SimpleNamespace]] = []  # contexts and parameters
        self.model, self.tokenizer = load_model(options["model"])
        self.llm_engine = SimpleNamespace(engine_core=SimpleNamespace(shutdown=self.shutdown))

    def shutdown(self) -> None:
        self.is_shut = True

    def generate(self, prompts: list[dict], params: list[SimpleNamespace], *, use_tqdm: bool) -> list[SimpleNamespace]:
        assert not self.is_shut
        assert not use_tqdm
        self.asked += zip([prompt["prompt_token_ids"] for prompt in prompts], params, strict=True)
        rows = [self.one(prompt["prompt_token_ids"], one) for prompt, one in zip(prompts, params, strict=True)]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(row))]) for row in rows]

    def one(self, prompt: list[int], params: SimpleNamespace) -> list[int]:
        if len(prompt) > 200:
            raise ValueError("the prompt is\nlonger than max_model_len")
        generator, human = torch.Generator().manual_seed(params.seed), None
        if params.extra_args:
            assert params.temperature == 1.0
            extra = json.loads(params.extra_args["ugap_params"]), params.extra_args["ugap_weight"]
            barred = suppressed_tokens(self.model, self.tokenizer)
            human = ParamsLogitsProcessor(*extra, suppress_tokens=barred)
        ids = list(prompt)
        for _ in range(params.max_tokens):
            row = torch.tensor([ids])
            logits = self.model(input_ids=row).logits[:, -1]
            logits = logits if human is None else human(row, logits)
            temperature = getattr(params, "temperature", 1.0)
            greedy = logits.argmax(-1)
            p = (logits / temperature).softmax(-1) if temperature else None
            ids.append(int(greedy if p is None else p.multinomial(1, generator=generator)))
            if ids[-1] in params.stop_token_ids:
                break
        return ids[len(prompt) :]


@pytest.fixture
def started(monkeypatch) -> list[LLM]:
    """The stand-in for vLLM; the list of the engines that were started."""
    engines: list[LLM] = []

    def start(**options: Any) -> LLM:
        engines.append(LLM(**options))
        return engines[-1]

    module = ModuleType("vllm")
    module.__spec__ = ModuleSpec("vllm", None)
    vars(module).update(LLM=start, EngineArgs=EngineArgs, SamplingParams=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return engines


@pytest.fixture
def writer(tiny_folder, started) -> SimpleNamespace:
    """A model, `write(contexts, settings, seed)` by the stand-in, and the engine."""
    model, tokenizer = load_model(str(tiny_folder))
    engine = open_engine("vllm", [], model, tokenizer, str(tiny_folder))

    def write(contexts: list[list[int]], settings: dict, seed: int = 0, **more: Any) -> list[list[int]]:
        return engine.continue_contexts(contexts, settings, max_new_tokens=8, seed=seed, **more)

    return SimpleNamespace(model=model, tokenizer=tokenizer, engine=engine, write=write)


@pytest.fixture(scope="module")
def profile_file(make_profile, tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("profiles") / "tiny.json"
    make_profile(load_model(str(tiny_folder))[0]).save(path)
    return path


CONTEXTS = [[1, 9, 30], [1, 12], [1, 40, 41, 42, 43]]


class TestDecodings:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("ancestral", {}),
            ("greedy", {"temperature": 0.0}),
            ("temperature-0.7", {"temperature": 0.7}),
            ("top-p-0.9", {"top_p": 0.9}),
            ("top-k-50", {"top_k": 50}),
            ("min-p-0.1", {"min_p": 0.1}),
            ("ugap-creative", {"temperature": 1.0}),
            ("ugap-balanced", {"temperature": 1.0}),
            ("ugap-own", {"temperature": 1.0}),
            ("a=repetition_penalty:1.2,temperature:1", {"repetition_penalty": 1.2}),
            ("a=repetition_penalty:1.2,do_sample:false", {"repetition_penalty": 1.2, "temperature": 0.0}),
            ("a=top_k:20,top_p:0.9,typical_p:1,num_beams:1", {"top_k": 20, "top_p": 0.9}),
            ("a=human_weight:0.5,human_kind:story", {"temperature": 1.0}),
        ],
    )
    def test_those_that_vllm_has(self, name, expected):
        (settings,) = parse_decodings([name]).values()
        assert sampling_settings(settings) == expected

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("typical-p-0.95", "vLLM has no typical_p"),
            ("eta-0.0009", "vLLM has no eta_cutoff"),
            ("top-h-0.4", "vLLM has no top_h"),
            ("beams=num_beams:3", "vLLM has no num_beams"),
            ("grams=no_repeat_ngram_size:3", "vLLM has no no_repeat_ngram_size"),
            ("cold=temperature:0.005", "vLLM draws at no temperature below 0.01"),
            ("both=min_p:0.1,top_p:0.9", "vLLM cuts by min_p before top_p, and transformers after it"),
            ("own=human_weight:1,repetition_penalty:1.2", "vLLM has no repetition_penalty before the sampler"),
        ],
    )
    def test_those_that_it_lacks(self, name, reason):
        (settings,) = parse_decodings([name]).values()
        with pytest.raises(InputError, match=f"^{reason}"):
            sampling_settings(settings)

    def test_the_default_ones_are_those_that_it_has(self):
        check_decodings({name: DECODINGS[name] for name in default_decodings("vllm")})
        assert set(STUDIED) - set(default_decodings("vllm")) == {"typical-p-0.95"}
        assert default_decodings("transformers") == list(STUDIED)

    def test_all_of_them_are_named(self):
        with pytest.raises(InputError) as caught:
            check_decodings(DECODINGS)
        assert str(caught.value) == (
            "not with --engine vllm: typical-p-0.95 (vLLM has no typical_p), eta-0.0009 (vLLM has no eta_cutoff), "
            "top-h-0.4 (vLLM has no top_h); leave out these decodings"
        )


class TestOptions:
    def test_types_are_those_of_yaml(self, tiny_folder, started):
        words = ["tensor_parallel_size=4", "enforce_eager=true", "dtype=bfloat16"]
        model, tokenizer = load_model(str(tiny_folder))
        engine = open_engine("vllm", words, model, tokenizer, str(tiny_folder))
        assert not started  # nothing is started for a study whose texts are all there
        engine.continue_contexts(CONTEXTS, {}, max_new_tokens=1, seed=0)
        options = started[0].options
        assert [options[word.partition("=")[0]] for word in words] == [4, True, "bfloat16"]

    def test_what_is_set_by_default(self, writer, started, tiny_folder):
        writer.write(CONTEXTS, {})
        assert started[0].options == {
            "model": str(tiny_folder),
            "dtype": "float32",
            "gpu_memory_utilization": 0.5,
            "revision": None,
            "tokenizer_revision": None,
            "trust_remote_code": False,
            "generation_config": "vllm",
            "logits_processors": ["ugap.sampling.engines.vllm:HumanEntropyProcessor"],
        }
        writer.write(CONTEXTS, {})
        assert len(started) == 1
        writer.engine.close()
        assert started[0].is_shut

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["tensor_parallel"], "--engine_args tensor_parallel: give KEY=VALUE, every key once"),
            (["dtype=auto", "dtype=half"], "--engine_args dtype=half: give KEY=VALUE, every key once"),
            (["tensor_size=4"], "--engine_args tensor_size=4: vLLM has no option tensor_size"),
            (["model=other"], "--engine_args model=other: model is not yours to set: it follows from the model"),
            (["dtype=[half"], r"--engine_args dtype: '\[half' is not a value: while parsing a flow sequence"),
            (["dtype=2026-02-30"], "--engine_args dtype: '2026-02-30' is not a value: day is out of range for month"),
        ],
    )
    def test_wrong_ones(self, started, words, message):
        with pytest.raises(InputError, match=f"^{message}$"):
            check_engine("vllm", words, {})

    def test_options_of_transformers(self):
        with pytest.raises(InputError, match="options of vLLM: add --engine vllm"):
            check_engine("transformers", ["dtype=auto"], {})
        check_engine("transformers", [], DECODINGS)

    def test_vllm_is_not_installed(self, monkeypatch):
        monkeypatch.setattr("ugap.errors.find_spec", lambda name: None)
        with pytest.raises(InputError, match=r'^vllm is not installed: pip install "ugap\[vllm\]"$'):
            check_engine("vllm", [], {})

    def test_an_engine_that_does_not_start(self, tiny_folder, started):
        model, tokenizer = load_model(str(tiny_folder))
        engine = open_engine("vllm", ["tensor_parallel_size=9"], model, tokenizer, str(tiny_folder))
        with pytest.raises(InputError, match=r": vLLM cannot be started: World size is larger than the number"):
            engine.continue_contexts(CONTEXTS, {}, max_new_tokens=1, seed=0)
        engine.close()

    def test_an_adapter(self, tiny_folder, started):
        from peft import LoraConfig, get_peft_model

        model, tokenizer = load_model(str(tiny_folder))
        adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        for one in (adapted, Scorer(adapted, tokenizer).model):
            with pytest.raises(InputError, match="takes no adapter: merge it into its base first"):
                open_engine("vllm", [], one, tokenizer, "base")


class TestTexts:
    def test_greedy_is_that_of_transformers(self, writer):
        settings = DECODINGS["greedy"]
        rows = writer.write(CONTEXTS, settings)
        assert [len(row) for row in rows] == [8, 8, 8]
        pair = writer.model, writer.tokenizer
        expected = open_engine("transformers", [], *pair, "").continue_contexts(
            CONTEXTS, settings, max_new_tokens=8, seed=0, names=list("abc")
        )
        assert rows == expected

    def test_every_request_has_its_seed(self, writer, started):
        first = writer.write([CONTEXTS[0]] * 3, {}, seed=1)
        assert len({tuple(row) for row in first}) == 3
        assert writer.write([CONTEXTS[0]] * 3, {}, seed=1) == first
        assert writer.write([CONTEXTS[0]] * 3, {}, seed=2) != first
        assert [ids for ids, _ in started[0].asked] == [CONTEXTS[0]] * 9

    def test_a_text_ends_before_the_end_token(self, writer, started):
        (whole,) = writer.write(CONTEXTS[:1], DECODINGS["greedy"])
        writer.model.generation_config.eos_token_id = [whole[3], 0]
        (cut,) = writer.write(CONTEXTS[:1], DECODINGS["greedy"])
        assert cut == whole[: whole.index(whole[3])]
        _, params = started[0].asked[-1]
        assert params.stop_token_ids == sorted({whole[3], 0})
        assert params.ignore_eos

    def test_ours_carries_its_parameters(self, writer, started, profile_file):
        """Those of the prompt, as in transformers; nothing else of the request changes the distribution."""
        settings = {"human_mode": "balanced", "human_profile": str(profile_file)}
        rows = writer.write(CONTEXTS, settings, domain="creative")
        assert len({tuple(row) for row in rows}) == 3
        barred = suppressed_tokens(writer.model, writer.tokenizer)
        processor = HumanEntropyLogitsProcessor(
            profile_file, mode="balanced", model=writer.model, suppress_tokens=barred, otherwise="creative"
        )
        for (ids, params), context in zip(started[0].asked, CONTEXTS, strict=True):
            assert ids == context
            assert json.loads(params.extra_args["ugap_params"]) == processor.prompts(context)
            assert params.extra_args["ugap_weight"] == 0.5

    def test_precise_is_greedy(self, writer, profile_file):
        precise = {"human_mode": "precise", "human_profile": str(profile_file)}
        assert writer.write(CONTEXTS, precise) == writer.write(CONTEXTS, DECODINGS["greedy"])

    def test_what_is_refused(self, writer):
        with pytest.raises(InputError, match="nothing to continue"):
            writer.write([[]], {})
        with pytest.raises(InputError, match="vLLM cannot run TopPLogitsWarper"):
            writer.write(CONTEXTS, {}, processors=[TopPLogitsWarper(0.5)])
        with pytest.raises(InputError, match=r": vLLM: the prompt is longer than max_model_len$"):
            writer.write([[5] * 300], {})

    def test_the_tokens_become_text(self, writer):
        texts = generate_continuations(
            writer.model, writer.tokenizer, CONTEXTS, {}, max_new_tokens=8, seed=0, engine=writer.engine
        )
        assert all(texts)


class TestCommands:
    @pytest.fixture
    def words(self, tiny_folder, text_rows, write_rows, profile_file, monkeypatch) -> list[str]:
        monkeypatch.setattr("ugap.report.write_report", lambda *args, **kwargs: None)
        words = ["measure", "--model", str(tiny_folder), "--data", write_rows(text_rows), "--limit", "3", "--no_pmi"]
        words += ["--prefix_tokens", "8", "--max_new_tokens", "12", "--profile", str(profile_file)]
        return [*words, "--decoding", "greedy", "ancestral", "ugap-own"]

    def test_a_study(self, words, tmp_path, started):
        for engine in ("transformers", "vllm"):
            assert main([*words, "--output", str(tmp_path / engine), "--engine", engine]) == 0
        (engine,) = started
        assert engine.is_shut
        texts = {
            name: {
                (row["id"], row["decoding"]): row["text"]
                for row in pq.read_table(tmp_path / name / "scores.parquet").to_pylist()
            }
            for name in ("transformers", "vllm")
        }
        assert texts["transformers"].keys() == texts["vllm"].keys()
        for key, one in texts["transformers"].items():
            if key[1] in ("human", "greedy"):
                assert one == texts["vllm"][key]
        drawn = [key for key in texts["vllm"] if key[1] in ("ancestral", "ugap-own")]
        assert all(texts["transformers"][key] != texts["vllm"][key] for key in drawn)
        assert json.loads((tmp_path / "vllm" / "gap.json").read_text())["settings"]["engine"] == "vllm"

    def test_a_resumed_study_starts_no_engine(self, words, tmp_path, started, refused, caplog):
        words = [*words, "--output", str(tmp_path / "out")]
        assert main([*words, "--engine", "vllm"]) == 0
        record = (tmp_path / "out" / "gap.json").read_text()
        assert main([*words, "--engine", "vllm", "--resume"]) == 0
        assert len(started) == 1
        assert (tmp_path / "out" / "gap.json").read_text() == record
        caplog.clear()  # a text of the tiny model can be one that no scorer takes, which is logged
        assert "engine" in refused(*words, "--resume")

    def test_texts_of_an_engine_are_not_those_of_another(self, words, tmp_path, started):
        """`ugap eval decoding` keeps both in one folder; the human text is read once."""
        words = ["eval", "decoding", *words[1:]]
        words.remove("--no_pmi")
        words += ["--seeds", "1", "--output", str(tmp_path / "out")]
        counts = []
        for more in ([], ["--engine", "vllm", "--resume"], ["--engine", "vllm", "--resume"]):
            assert main([*words, *more]) == 0
            parts = (tmp_path / "out" / "parts").glob
            counts.append([len(list(parts(f"{kind}/*.part.parquet"))) for kind in ("generated", "scored")])
        (written, read), (both, both_read), last = counts
        assert both == 2 * written
        # Greedy texts are the same, and so are people's.
        assert both_read == read + 2
        assert last == [both, both_read]
        assert len(started) == 1
        record = json.loads((tmp_path / "out" / "decoding.json").read_text())
        assert record["settings"]["engine"] == "vllm"

    def test_refused_before_a_model_is_loaded(self, words, tmp_path, started, refused, monkeypatch):
        monkeypatch.setattr("ugap.scoring.scorer.load_model", None)
        output = ["--output", str(tmp_path / "out"), "--engine", "vllm"]
        for command in (words, ["eval", "decoding", *(word for word in words[1:] if word != "--no_pmi")]):
            assert "typical-p-0.95 (vLLM has no typical_p)" in refused(*command, "typical-p-0.95", *output)
            assert "vLLM has no option x" in refused(*command, *output, "--engine_args", "x=1")
        more = ["mirostat-2", *output]
        line = refused("eval", "decoding", *(word for word in words[1:] if word != "--no_pmi"), *more)
        assert "not with --engine vllm: mirostat-2; leave out this decoding" in line

    def test_generate(self, tiny_folder, profile_file, tmp_path, started, capsys):
        output = tmp_path / "texts.jsonl"
        words = ["generate", "--model", str(tiny_folder), "--profile", str(profile_file), "--max_new_tokens", "12"]
        words += ["--prompt", "Once upon a time", "The old man", "--num_return_sequences", "2", "--batch_size", "3"]
        assert main([*words, "--output", str(output), "--engine", "vllm"]) == 0
        assert capsys.readouterr().out.count("nats per token; people: ") == 4
        (engine,) = started
        assert engine.is_shut
        rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        assert len({row["text"] for row in rows}) == 4
        model, _ = load_model(str(tiny_folder))
        for row, (context, _) in zip(rows, engine.asked, strict=True):
            ids = torch.tensor([[*context, *row["token_ids"]]])
            log_p = model(input_ids=ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
            surprisal = -log_p.gather(1, ids[0, len(context) :, None])[:, 0]
            np.testing.assert_allclose(row["surprisal"], surprisal, atol=1e-4)
            np.testing.assert_allclose(row["entropy"], -(log_p.exp() * log_p).sum(-1), atol=1e-4)

    def test_generate_with_an_adapter(self, refused, started):
        words = ["generate", "--model", "gemma-3-270m", "--prompt", "Once", "--engine", "vllm", "--adapter", "folder"]
        assert "--engine vllm takes no adapter" in refused(*words)
