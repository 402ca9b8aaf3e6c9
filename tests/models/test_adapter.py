"""Adapters as models: from a folder, with the base that its config names, and with the human profile of the base."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

import ugap.profile.profile
from ugap.errors import InputError
from ugap.models import ASSETS, load_model
from ugap.models.adapter import adapters_off, base_of
from ugap.models.fingerprint import weight_hash
from ugap.profile import HumanProfile
from ugap.profile.fitting import BESIDE, like_texts, named_profile
from ugap.sampling import generate, profile_of
from ugap.scoring import Scorer, SharedScorer
from ugap.training.policy import load_policy, save_merged

COMMIT = "0" * 40
TEXT = "Once upon a time there was a king"


@pytest.fixture
def as_hub(tmp_path, monkeypatch):
    """`as_hub(name, folder)`: copy a folder into the Hub's cache and return its snapshot there; there is no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    # A real client at a port where nobody listens.
    monkeypatch.setattr("ugap.models.hub.model_info", HfApi(endpoint="http://127.0.0.1:9").model_info)

    def put(name, folder):
        repository = cache / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        return shutil.copytree(folder, repository / "snapshots" / COMMIT)

    return put


@pytest.fixture
def make_base(save_model, make_model):
    """`make_base(tied)`: the folder of a tiny Llama whose head may be its embedding."""
    return lambda tied: save_model(f"tied-{tied}", make_model("llama", eos_token_id=0, tie_word_embeddings=tied))


@pytest.fixture
def add_tokens(tmp_path):
    """`add_tokens(base, **config)`: a changed adapter with two tokens, its tokenizer, and the folder of both."""

    def make(base, save_embedding_layers="auto", **config):
        torch.manual_seed(0)
        model, tokenizer = load_model(str(base))
        tokenizer.add_tokens(["<one>", "<two>"])
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        trained = get_peft_model(model, LoraConfig(r=2, **config)).eval().requires_grad_(False)
        for name, parameter in trained.named_parameters():
            if any(part in name for part in ("lora_B", "lora_embedding_B", "modules_to_save", "tokens_delta")):
                torch.nn.init.normal_(parameter, std=0.3)
        folder = tmp_path / "more-tokens"
        trained.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
        tokenizer.save_pretrained(folder)
        return trained, tokenizer, folder

    return make


class TestLoading:
    def test_a_folder_is_a_model_on_the_base_that_it_names(self, adapter, tiny_folder):
        named = Scorer.from_pretrained(str(adapter))
        given = Scorer.from_pretrained(str(tiny_folder), adapter=adapter)
        base = Scorer.from_pretrained(str(tiny_folder))
        (a,), (b,), (c,) = (one.score([TEXT]) for one in (named, given, base))
        assert a.nll == b.nll != pytest.approx(c.nll, abs=1e-3)
        assert named.id.weight_hash == given.id.weight_hash != base.id.weight_hash
        # As merged into the weights.
        merged = PeftModel.from_pretrained(load_model(str(tiny_folder))[0], adapter).merge_and_unload()
        (d,) = Scorer(merged, base.tokenizer).score([TEXT])
        assert a.nll == pytest.approx(d.nll, abs=1e-4)

    def test_a_base_beside_the_adapter(self, adapter, tiny_folder):
        shutil.copytree(tiny_folder, adapter / "base")
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
        assert isinstance(load_model(str(adapter))[0], PeftModel)

    @pytest.mark.parametrize(
        "folder", ["/home/somebody/.cache/ugap/assets/tiny-01234567-r1", r"C:\ugap\assets\tiny-01234567-r9"]
    )
    def test_a_base_in_the_cache_of_another_machine_is_the_asset(self, adapter, monkeypatch, folder):
        monkeypatch.setitem(ASSETS, "tiny", replace(ASSETS["gemma-3-270m"], sha256="01234567" * 8))
        config = json.loads((adapter / "adapter_config.json").read_text())
        changed = {**config, "base_model_name_or_path": folder, "revision": "main"}
        (adapter / "adapter_config.json").write_text(json.dumps(changed))
        assert base_of(adapter) == ("tiny", None)

    def test_one_of_the_hub(self, adapter, tiny_folder, as_hub):
        expected = Scorer.from_pretrained(str(adapter)).score([TEXT])[0].nll
        as_hub("somebody/adapter", adapter)
        assert Scorer.from_pretrained("somebody/adapter").score([TEXT])[0].nll == expected
        assert Scorer.from_pretrained(str(tiny_folder), adapter="somebody/adapter").score([TEXT])[0].nll == expected

    def test_one_of_the_hub_is_fetched_whole_at_one_commit(self, adapter, as_hub, monkeypatch):
        expected = Scorer.from_pretrained(str(adapter)).score([TEXT])[0].nll
        snapshot = as_hub("somebody/adapter", adapter)
        calls = []

        def download(name, *, revision, allow_patterns):
            calls.append((name, revision))
            wanted = [path.name for path in adapter.iterdir() if any(path.match(one) for one in allow_patterns)]
            assert {"adapter_config.json", "adapter_model.safetensors"} <= set(wanted)
            return str(snapshot)

        monkeypatch.setattr("ugap.models.hub.model_info", lambda *args, **options: SimpleNamespace(sha=COMMIT))
        monkeypatch.setattr("ugap.models.hub.snapshot_download", download)
        assert Scorer.from_pretrained("somebody/adapter").score([TEXT])[0].nll == expected
        assert calls == [("somebody/adapter", COMMIT)]

        def fail(*args, **options):
            raise OSError("no space left\nat all")

        monkeypatch.setattr("ugap.models.hub.snapshot_download", fail)
        with pytest.raises(InputError, match=r"^somebody/adapter: cannot be fetched from the Hub: no space left$"):
            load_model("somebody/adapter")

    def test_its_own_tokenizer_is_taken(self, adapter, tiny_folder):
        tokenizer = load_model(str(tiny_folder))[1]
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        tokenizer.save_pretrained(adapter)
        own = load_model(str(adapter))[1]
        assert own.chat_template == tokenizer.chat_template
        assert own.bos_token_id == tokenizer.bos_token_id

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (lambda folder: (folder / "adapter_model.safetensors").unlink(), "it has no adapter_model.safetensors"),
            (lambda folder: (folder / "adapter_config.json").write_text("{}"), "names no base model"),
            (lambda folder: (folder / "adapter_config.json").write_text("["), "names no base model"),
            (lambda folder: (folder / "adapter_config.json").write_text("[" * 100_000), "names no base model"),
            (
                lambda folder: (folder / "adapter_config.json").write_text(
                    json.dumps({"base_model_name_or_path": "x" * 5000})
                ),
                "names no base model",
            ),
        ],
    )
    def test_a_bad_one_is_refused_before_its_base_is_loaded(self, adapter, monkeypatch, change, fault):
        change(adapter)
        monkeypatch.setattr("ugap.models.load._from_pretrained", None)
        with pytest.raises(InputError, match=fault):
            load_model(str(adapter))

    def test_one_that_adds_a_prompt_is_refused_before_its_base_is_loaded(self, tiny_folder, tmp_path, monkeypatch):
        config = PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
        get_peft_model(load_model(str(tiny_folder))[0], config).save_pretrained(tmp_path / "prompt")
        monkeypatch.setattr("ugap.models.load._from_pretrained", None)
        for name, options in ((tmp_path / "prompt", {}), (tiny_folder, {"adapter": tmp_path / "prompt"})):
            with pytest.raises(InputError, match="adds a prompt"):
                load_model(str(name), **options)

    @pytest.mark.parametrize("own", [True, False])
    def test_one_on_another_adapter_is_refused(self, adapter, tmp_path, own):
        shutil.copytree(adapter, tmp_path / "second")
        config = json.loads((adapter / "adapter_config.json").read_text())
        base = adapter if own else tmp_path / "second"
        (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
        with pytest.raises(InputError, match="is an adapter, too"):
            load_model(str(adapter))

    def test_one_for_another_model_is_refused(self, adapter, save_model, make_model):
        other = save_model("other", make_model("gpt2"))
        with pytest.raises(InputError, match="does not fit"):
            load_model(str(other), adapter=adapter)
        with pytest.raises(InputError, match="takes neither another adapter nor a revision"):
            load_model(str(adapter), adapter=adapter)


class TestAddedTokens:
    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize(
        "config",
        [
            {"target_modules": ["q_proj", "v_proj"]},
            {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
            {"target_modules": ["q_proj"], "trainable_token_indices": [400, 401]},
        ],
        ids=["resized", "whole", "rows"],
    )
    def test_the_model_is_the_trained_one_and_so_is_the_merged(self, make_base, add_tokens, tmp_path, tied, config):
        base = make_base(tied)
        trained, tokenizer, folder = add_tokens(base, **config)
        ids = torch.tensor([tokenizer(f"{TEXT}<one> and<two>")["input_ids"]])
        assert {400, 401} <= set(ids[0].tolist())
        with torch.no_grad():
            expected = trained(ids).logits
            model, own = load_model(str(base), adapter=folder)
            assert own("<two>")["input_ids"][-1] == 401
            assert torch.equal(model(ids).logits, expected)
            save_merged(str(base), folder, tmp_path / "merged")
            merged, own = load_model(str(tmp_path / "merged"))
            assert own("<two>")["input_ids"][-1] == 401
            assert torch.allclose(merged(ids).logits, expected, atol=1e-4)
            # Trained further, it is as it was before the first step.
            policy = load_policy(str(base), adapter=folder)
            assert policy.tokenizer("<two>")["input_ids"][-1] == 401
            assert torch.equal(policy.model.eval()(ids).logits, expected)
        assert any(parameter.requires_grad for parameter in policy.model.parameters())

    def test_the_base_alone_has_average_embeddings_for_them(self, make_base, add_tokens):
        base = make_base(False)
        whole = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
        _, _, folder = add_tokens(base, save_embedding_layers=False, **whole)
        model = load_model(str(base), adapter=folder)[0].get_base_model()
        alone = load_model(str(base))[0]
        ids = torch.tensor([[2, 30, 40]])
        with torch.no_grad(), adapters_off(model):
            logits = model(ids).logits
        assert torch.allclose(logits[..., :400], alone(ids).logits, atol=1e-5)
        assert torch.allclose(logits[..., 401], logits[..., :400].mean(-1), atol=1e-4)

    def test_embeddings_that_the_adapter_lacks_are_refused(self, make_base, add_tokens, tmp_path):
        base = make_base(False)
        _, _, folder = add_tokens(base, save_embedding_layers=False, target_modules=["q_proj"])
        line = r"its tokenizer has 402 tokens, .* has embeddings of 400, and the adapter has none of the others"
        for load in (
            lambda: load_model(str(folder)),
            lambda: load_policy(str(base), adapter=folder),
            lambda: save_merged(str(base), folder, tmp_path / "merged"),
        ):
            with pytest.raises(InputError, match=line):
                load()
        assert not (tmp_path / "merged").exists()

    def test_a_shared_embedding_that_is_adapted_is_not_merged(self, make_base, add_tokens, tmp_path):
        base = make_base(True)
        trained, tokenizer, folder = add_tokens(base, target_modules=["q_proj", "embed_tokens", "lm_head"])
        ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
        assert torch.equal(load_model(str(folder))[0](ids).logits, trained(ids).logits)
        with pytest.raises(InputError, match=r"changes an embedding that .* shares with its output head"):
            save_merged(str(base), folder, tmp_path / "merged")

    def test_the_profile_is_that_of_the_base(self, make_base, add_tokens, make_profile, monkeypatch, tmp_path):
        base = make_base(True)
        profile = make_profile(load_model(str(base))[0], level=3.0)
        find = classmethod(lambda cls, scorer: profile if scorer.weight_hash == profile.weight_hash else None)
        monkeypatch.setattr(ugap.profile.profile.HumanProfile, "find_shipped", find)
        trained, _, folder = add_tokens(base, target_modules=["q_proj"])
        model, tokenizer = load_model(str(folder))
        assert profile_of(model, None, tokenizer) is profile
        scorer = Scorer(model, tokenizer)
        HumanProfile.for_scorer(scorer).check(scorer.id)
        save_merged(str(base), folder, tmp_path / "merged")
        assert HumanProfile.load(tmp_path / "merged" / BESIDE).to_dict()["kinds"] == profile.to_dict()["kinds"]
        # A model that the caller wrapped is known by its weights alone.
        assert weight_hash(trained) != profile.weight_hash

    def test_one_that_is_fitted_does_not_become_that_of_the_base(self, make_base, add_tokens, monkeypatch, tmp_path):
        monkeypatch.setattr("ugap.profile.fitting.cache_dir", lambda: tmp_path / "cache")
        base = make_base(False)
        trained, _, _ = add_tokens(base, target_modules=["q_proj"])
        torch.nn.init.normal_(trained.get_input_embeddings().weight, std=0.3)
        trained.save_pretrained(tmp_path / "adapter")
        of_adapted = HumanProfile.for_model(*load_model(str(tmp_path / "adapter")))
        of_base = HumanProfile.for_model(*load_model(str(base)))
        assert of_adapted.weight_hash == of_base.weight_hash
        assert of_adapted.to_dict()["kinds"] != of_base.to_dict()["kinds"]
        # From then on, the base has one.
        of_adapted = HumanProfile.for_model(*load_model(str(tmp_path / "adapter")))
        assert of_adapted.to_dict() == of_base.to_dict()


class TestProfile:
    @pytest.fixture
    def people(self, tiny_folder, make_profile, monkeypatch) -> HumanProfile:
        """The profile of the base, as a shipped one."""
        profile = make_profile(load_model(str(tiny_folder))[0], level=3.0)
        find = classmethod(lambda cls, scorer: profile if scorer.weight_hash == profile.weight_hash else None)
        monkeypatch.setattr(ugap.profile.profile.HumanProfile, "find_shipped", find)
        return profile

    def test_it_is_that_of_the_base(self, adapter, people):
        model, tokenizer = load_model(str(adapter))
        assert profile_of(model, None, tokenizer) is people
        scorer = Scorer(model, tokenizer)
        of_scorer = HumanProfile.for_scorer(scorer)
        of_scorer.check(scorer.id)
        assert of_scorer.to_dict()["kinds"] == people.to_dict()["kinds"]
        (text,) = generate(model, tokenizer, "Once upon", kind="creative", max_new_tokens=4, seed=0)
        assert text.token_ids

    def test_one_of_the_adapted_model_is_taken_where_it_is_given(self, adapter, people):
        model, tokenizer = load_model(str(adapter))
        own = replace(people, weight_hash=Scorer(model, tokenizer).id.weight_hash, source="of the adapted model")
        assert profile_of(model, own, tokenizer).source == "of the adapted model"
        with pytest.raises(InputError, match="was fitted with"):
            profile_of(model, replace(own, weight_hash="0" * 16), tokenizer)

    @pytest.mark.parametrize("of", ["the adapted model", "its base"])
    @pytest.mark.parametrize("named", ["folder", "option", "hub"])
    def test_one_in_its_folder_comes_first(self, adapter, people, tiny_folder, tmp_path, as_hub, of, named):
        adapted = Scorer.from_pretrained(str(adapter)).id.weight_hash
        own = replace(people, weight_hash=adapted if of == "the adapted model" else people.weight_hash, source="own")
        own.save(adapter / BESIDE)
        if named == "hub":
            as_hub("somebody/adapter", adapter)
        name, options = {
            "folder": (str(adapter), {}),
            "option": (str(tiny_folder), {"adapter": adapter}),
            "hub": ("somebody/adapter", {}),
        }[named]
        model, tokenizer = load_model(name, **options)
        assert profile_of(model, None, tokenizer).source == "own"
        scorer = Scorer(model, tokenizer)
        of_scorer = HumanProfile.for_scorer(scorer)
        of_scorer.check(scorer.id)
        assert of_scorer.source == "own"
        save_merged(str(tiny_folder), adapter, tmp_path / "merged")
        assert HumanProfile.load(tmp_path / "merged" / BESIDE).source == "own"
        # What a training compares with is the base.
        assert HumanProfile.for_scorer(SharedScorer(model, tokenizer)).source == people.source

    def test_one_in_its_folder_of_another_model_is_refused(self, adapter, people):
        replace(people, weight_hash="0" * 16).save(adapter / BESIDE)
        model, tokenizer = load_model(str(adapter))
        with pytest.raises(InputError, match=r"was fitted with .*, not with .the adapter .* or its base"):
            profile_of(model, None, tokenizer)

    def test_one_in_its_folder_is_known_before_the_model_is_loaded(self, adapter, people, tiny_folder):
        assert named_profile(str(tiny_folder), str(adapter)) is None
        people.save(adapter / BESIDE)
        for base in (str(tiny_folder), "gemma-3-270m"):
            own = named_profile(base, str(adapter))
            assert own is not None
            assert own.to_dict() == people.to_dict()
        (adapter / BESIDE).unlink()
        of_base = named_profile("gemma-3-270m", str(adapter))
        assert of_base is not None
        assert of_base.scorer_name == "gemma-3-270m"
        # It may have one of its own, which is not known yet.
        assert named_profile("gemma-3-270m", "somebody/adapter") is None

    def test_a_merged_model_without_one_gets_one_of_its_own(self, adapter, tiny_folder, monkeypatch, tmp_path):
        monkeypatch.setattr("ugap.profile.fitting.cache_dir", lambda: tmp_path / "cache")
        save_merged(str(tiny_folder), adapter, tmp_path / "merged")
        model, tokenizer = load_model(str(tmp_path / "merged"))
        own = profile_of(model, None, tokenizer)
        assert own.weight_hash == weight_hash(model)
        base = HumanProfile.for_model(*load_model(str(tiny_folder)))
        assert own.to_dict()["kinds"] != base.to_dict()["kinds"]

    def test_texts_to_write_like_are_kept_apart_from_those_of_the_base(
        self, adapter, people, tiny_folder, monkeypatch, tmp_path, text_rows
    ):
        monkeypatch.setattr("ugap.profile.fitting.LIKE_TOKENS", 50)
        monkeypatch.setattr("ugap.profile.fitting.cache_dir", lambda: tmp_path / "cache")
        texts = [row["text"] for row in text_rows]
        model, tokenizer = load_model(str(adapter))
        adapted = profile_of(model, None, tokenizer, like=texts)
        base = like_texts(people, Scorer.from_pretrained(str(tiny_folder)), texts)
        assert adapted.kinds["like"].means != base.kinds["like"].means

    def test_one_that_is_fitted_is_of_the_base_whoever_asks_first(self, adapter, tiny_folder, monkeypatch, tmp_path):
        caches = iter([tmp_path / "one", tmp_path / "two"])
        cache = next(caches)
        monkeypatch.setattr("ugap.profile.fitting.cache_dir", lambda: cache)
        adapted = Scorer.from_pretrained(str(adapter))
        first = profile_of(adapted.model, None, adapted.tokenizer)
        before = adapted.score([TEXT])[0].nll
        of_scorer = HumanProfile.for_scorer(adapted)
        cache = next(caches)
        base = HumanProfile.for_model(*load_model(str(tiny_folder)))
        assert first.to_dict()["kinds"] == of_scorer.to_dict()["kinds"] == base.to_dict()["kinds"]
        assert first.weight_hash == base.weight_hash
        # The adapter is on again.
        assert adapted.score([TEXT])[0].nll == before != Scorer.from_pretrained(str(tiny_folder)).score([TEXT])[0].nll

    def test_a_model_of_the_hub_has_the_one_in_its_repository(self, tiny_folder, make_profile, as_hub, monkeypatch):
        profile = make_profile(load_model(str(tiny_folder))[0], level=2.0)
        folder = as_hub("somebody/tiny", tiny_folder)
        profile.save(folder / BESIDE)
        model, tokenizer = load_model("somebody/tiny")
        assert profile_of(model, None, tokenizer).to_dict() == profile.to_dict()
        # Loaded over the network, a model bears its id and its commit.
        model.config.name_or_path, model.config._commit_hash = "somebody/tiny", folder.name
        assert profile_of(model, None, tokenizer).to_dict() == profile.to_dict()
        model.config._commit_hash = "1" * 40
        assert profile_of(model, None, tokenizer).to_dict() != profile.to_dict()

    def test_one_that_was_fitted_goes_into_a_merged_model(self, adapter, tiny_folder, tmp_path, monkeypatch):
        monkeypatch.setattr("ugap.profile.fitting.cache_dir", lambda: tmp_path / "cache")
        save_merged(str(tiny_folder), adapter, tmp_path / "merged")
        assert not (tmp_path / "merged" / BESIDE).exists()
        fitted = HumanProfile.for_model(*load_model(str(tiny_folder)))
        save_merged(str(tiny_folder), adapter, tmp_path / "merged")
        assert HumanProfile.load(tmp_path / "merged" / BESIDE).to_dict()["kinds"] == fitted.to_dict()["kinds"]

    def test_a_merged_model_carries_it(self, adapter, people, tiny_folder, tmp_path):
        save_merged(str(tiny_folder), adapter, tmp_path / "merged")
        model, tokenizer = load_model(str(tmp_path / "merged"))
        beside = HumanProfile.load(tmp_path / "merged" / BESIDE)
        assert beside.weight_hash == weight_hash(model)
        assert profile_of(model, None, tokenizer).to_dict() == beside.to_dict()
        assert beside.to_dict()["kinds"] == people.to_dict()["kinds"]


class TestAdaptersOff:
    def test_the_base_reads_and_all_is_as_it_was(self, adapter, tiny_folder):
        model, tokenizer = load_model(str(adapter))
        inner = model.get_base_model()
        scorer, base = Scorer(inner, tokenizer), Scorer.from_pretrained(str(tiny_folder))
        on, off = scorer.score([TEXT])[0].nll, base.score([TEXT])[0].nll
        with adapters_off(inner):
            assert scorer.score([TEXT])[0].nll == pytest.approx(off, abs=1e-6)
        assert scorer.score([TEXT])[0].nll == on
        # A loaded model has no gradients, and PEFT would switch them on with the adapter.
        assert not any(parameter.requires_grad for parameter in model.parameters())

    def test_what_was_off_stays_off(self, adapter, tiny_folder):
        model, tokenizer = load_model(str(adapter))
        inner = model.get_base_model()
        off = Scorer.from_pretrained(str(tiny_folder)).score([TEXT])[0].nll
        with model.disable_adapter():
            with adapters_off(inner):
                pass
            assert Scorer(inner, tokenizer).score([TEXT])[0].nll == pytest.approx(off, abs=1e-6)
