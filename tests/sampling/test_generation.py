"""`ugap.generate` and `generation_kwargs`: texts, their numbers, and what is refused before anything is written."""

import copy
import math

import numpy as np
import pytest
import torch
from transformers import pipeline

from ugap.errors import InputError
from ugap.models import load_model
from ugap.sampling import generation_kwargs
from ugap.sampling.generation import Generation, generate

PROMPTS = ["Once upon a time", "The youngest went into the forest, and the old man", "A function"]


@pytest.fixture
def write(tiny_model, tokenizer, profile):
    """`write(prompts=PROMPTS, model=tiny_model, **options)`: what `ugap.generate` gives, 16 tokens long."""

    def run(prompts=PROMPTS, model=tiny_model, **options) -> list[Generation]:
        options = {"profile": profile, "max_new_tokens": 16, "seed": 0, **options}
        return generate(model, tokenizer, prompts, **options)

    return run


def ids_of(texts: list[Generation]) -> list[list[int]]:
    return [one.token_ids for one in texts]


class TestTexts:
    def test_the_order_is_that_of_the_prompts(self, write):
        """Whatever the batches: greedily, so that every text of a prompt is the same."""
        alone = {prompt: write([prompt], mode="precise")[0].token_ids for prompt in PROMPTS}
        assert len({tuple(ids) for ids in alone.values()}) == 3
        for batch_size in (2, 4, 16):
            texts = write(mode="precise", num_return_sequences=3, batch_size=batch_size)
            assert [one.prompt for one in texts] == [prompt for prompt in PROMPTS for _ in range(3)]
            assert ids_of(texts) == [alone[prompt] for prompt in PROMPTS for _ in range(3)]

    def test_texts_of_one_prompt_are_different(self, write):
        texts = write(PROMPTS[:1], num_return_sequences=4)
        assert len({tuple(one.token_ids) for one in texts}) == 4

    def test_the_seed_decides_and_the_generator_of_others_is_left_alone(self, write):
        before = torch.get_rng_state()
        first = write(seed=1, num_return_sequences=2, batch_size=4)
        assert torch.equal(torch.get_rng_state(), before)
        assert ids_of(first) == ids_of(write(seed=1, num_return_sequences=2, batch_size=4))
        other = ids_of(write(seed=2, num_return_sequences=2, batch_size=4))
        assert all(a != b for a, b in zip(ids_of(first), other, strict=True))

    def test_without_a_seed_the_draws_are_torchs(self, write):
        torch.manual_seed(5)
        first = write(seed=None)
        second = write(seed=None)
        torch.manual_seed(5)
        assert ids_of(write(seed=None)) == ids_of(first) != ids_of(second)

    def test_one_prompt_is_a_list_of_one(self, write):
        assert ids_of(write(PROMPTS[0])) == ids_of(write(PROMPTS[:1]))

    def test_a_text_continues_its_prompt(self, write, tokenizer):
        for one in write(num_return_sequences=2, max_new_tokens=40):
            assert len(one.token_ids) == 40
            whole = tokenizer.decode([*tokenizer(one.prompt)["input_ids"], *one.token_ids], skip_special_tokens=True)
            assert (one.prompt + one.text).rstrip("\ufffd") == whole.rstrip("\ufffd")

    def test_special_tokens_in_a_prompt_are_characters(self, write, tokenizer):
        assert write(["a <eos> b"])[0].prompt == "a <eos> b"
        (context,) = {tuple(tokenizer("a <eos> b", split_special_tokens=True)["input_ids"])}
        assert tokenizer.eos_token_id not in context
        assert ids_of(write(["a <eos> b"], mode="precise")) != ids_of(write(["a  b"], mode="precise"))

    def test_an_end_token_is_no_part_of_the_text(self, write, make_model):
        plain = write(PROMPTS[:1], mode="precise")[0]
        model = make_model("llama")
        model.generation_config.eos_token_id = plain.token_ids[6]
        (ended,) = write(PROMPTS[:1], model=model, mode="precise")
        place = plain.token_ids.index(plain.token_ids[6])
        assert ended.token_ids == plain.token_ids[:place]
        assert len(ended.surprisal) == len(ended.entropy) == place

    def test_a_text_without_a_token(self, write, make_model):
        model = make_model("llama")
        model.generation_config.eos_token_id = write(PROMPTS[:1], mode="precise")[0].token_ids[0]
        (nothing,) = write(PROMPTS[:1], model=model, mode="precise")
        assert (nothing.text, nothing.token_ids, nothing.surprisal, nothing.entropy) == ("", [], [], [])
        assert math.isnan(nothing.nll)

    def test_no_prompts_give_no_texts(self, write):
        assert write([]) == []


class TestFigures:
    @pytest.mark.parametrize("mode", ["creative", "balanced", "precise"])
    def test_they_are_those_of_the_scorer(self, write, tiny_model, tokenizer, reference, mode):
        """Against float64, of texts in a batch of prompts of different lengths."""
        for one in write(mode=mode, num_return_sequences=2, batch_size=4):
            context = [tokenizer.bos_token_id, *tokenizer(one.prompt)["input_ids"]]
            surprisal, entropy, *_ = reference(tiny_model, context, one.token_ids)
            np.testing.assert_allclose(one.surprisal, surprisal, atol=2e-4)
            np.testing.assert_allclose(one.entropy, entropy, atol=2e-4)
            assert one.nll == pytest.approx(np.mean(surprisal), abs=2e-4)

    def test_nll_is_the_mean(self, profile):
        one = Generation("a", "b", [1, 2], [1.0, 4.0], [2.0, 2.0], profile.target("creative"))
        assert one.nll == 2.5

    def test_the_level_is_that_of_the_domain(self, write, profile):
        for kind in ("creative", "functional"):
            one = write(kind=kind)[0]
            assert one.target.weights == {kind: 1.0}
            expected = profile.kind(kind).positions.mean_surprisal(one.target.position, len(one.token_ids))
            assert one.human_level == expected

    @pytest.mark.parametrize(
        ("setting", "share"),
        [({"mode": "creative"}, 1), ({"mode": "balanced"}, 0.5), ({"mode": "precise"}, 0), ({"weight": 0.3}, 0.3)],
    )
    def test_the_aim_is_a_share_of_the_level(self, write, setting, share):
        (one,) = write(PROMPTS[:1], **setting)
        assert one.aim == pytest.approx(share * one.human_level)

    def test_more_weight_is_more_surprising(self, write):
        """The means are far apart: 8 texts of 32 tokens each."""
        means = [
            np.mean([one.nll for one in write(num_return_sequences=3, weight=weight, max_new_tokens=32)])
            for weight in (0.0, 1.0)
        ]
        assert means[1] > means[0] + 0.3


class TestModelsOwnConfig:
    def test_it_changes_nothing(self, write, make_model):
        other = make_model("llama")
        other.generation_config.update(do_sample=True, top_k=5, temperature=0.3, top_p=0.5, repetition_penalty=1.5)
        before = copy.deepcopy(other.generation_config.to_dict())
        for mode in ("creative", "precise"):
            assert ids_of(write(model=other, mode=mode)) == ids_of(write(mode=mode))
        assert other.generation_config.to_dict() == before

    def test_nor_with_generation_kwargs(self, tiny_model, make_model, profile):
        other = make_model("llama")
        other.generation_config.update(
            do_sample=True, top_k=5, temperature=0.3, repetition_penalty=1.5, no_repeat_ngram_size=2
        )
        ids = torch.tensor([[5, 300, 17]] * 4)
        outputs = [
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=12,
                pad_token_id=0,
                **generation_kwargs(model, profile=profile, seed=0),
            )
            for model in (tiny_model, other)
        ]
        assert torch.equal(*outputs)


class TestKwargs:
    def test_they_write_what_generate_writes(self, write, tiny_model, tokenizer, profile):
        for options in ({}, {"mode": "balanced"}, {"weight": 0.25, "kind": "functional", "tail": None}):
            ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(PROMPTS[0])["input_ids"]]] * 3)
            out = tiny_model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=16,
                pad_token_id=0,
                **generation_kwargs(tiny_model, profile=profile, tokenizer=tokenizer, seed=4, **options),
            )
            expected = write(PROMPTS[:1] * 3, seed=4, **options)
            assert out[:, ids.shape[1] :].tolist() == ids_of(expected)

    def test_a_pipeline(self, write, tiny_model, tokenizer, profile):
        """One prompt after another through one set of arguments, the first prompt twice."""
        generator = pipeline("text-generation", model=tiny_model, tokenizer=tokenizer)
        prompts = [PROMPTS[0], *PROMPTS]
        arguments = generation_kwargs(tiny_model, profile=profile, mode="precise")
        answers = generator(prompts, max_new_tokens=16, return_tensors=True, **arguments)
        plain = generator(prompts, max_new_tokens=16, return_tensors=True, do_sample=False)
        got, expected = ([answer[0]["generated_token_ids"] for answer in each] for each in (answers, plain))
        assert got == expected
        (one,) = generator(PROMPTS[0], max_new_tokens=16, **generation_kwargs(tiny_model, profile=profile, seed=0))
        assert one["generated_text"].startswith(PROMPTS[0])
        assert len(one["generated_text"]) > len(PROMPTS[0])

    def test_a_pipeline_in_batches(self, tiny_model, tokenizer, profile):
        generator = pipeline("text-generation", model=tiny_model, tokenizer=copy.deepcopy(tokenizer))
        generator.tokenizer.padding_side = "left"
        arguments = generation_kwargs(tiny_model, profile=profile, mode="precise")
        arguments |= {"max_new_tokens": 8, "return_full_text": False, "batch_size": 2}
        prompts = [*PROMPTS, PROMPTS[0], PROMPTS[0]]
        texts = [answer[0]["generated_text"] for answer in generator(prompts, **arguments)]
        assert texts[0] == texts[3] == texts[4]

    def test_one_set_of_arguments_for_turn_after_turn(self, tiny_model, tokenizer, profile):
        """What was written, and more, is the next prompt."""
        generator = pipeline("text-generation", model=tiny_model, tokenizer=tokenizer)
        arguments = generation_kwargs(tiny_model, profile=profile, tokenizer=tokenizer, mode="precise")
        text, expected = PROMPTS[0], PROMPTS[0]
        for _ in range(3):
            text = generator(f"{text} and the old man", max_new_tokens=6, **arguments)[0]["generated_text"]
            expected = generator(f"{expected} and the old man", max_new_tokens=6, do_sample=False)[0]["generated_text"]
        assert text == expected

    def test_a_seed_is_a_generator_of_its_own(self, tiny_model, profile):
        assert generation_kwargs(tiny_model, profile=profile)["logits_processor"][0].generator is None
        assert (
            generation_kwargs(tiny_model, profile=profile, seed=3)["logits_processor"][0].generator.initial_seed() == 3
        )


class TestChats:
    @pytest.fixture
    def chat(self, chat_folder, make_profile):
        """`chat(prompts)`: greedy answers of the tiny chat model."""
        model, own = load_model(str(chat_folder))
        profile = make_profile(model)

        def run(prompts, **options) -> list[Generation]:
            return generate(model, own, prompts, profile=profile, mode="precise", max_new_tokens=8, **options)

        return run, model, own

    def test_they_go_through_the_template(self, chat, reference):
        run, model, own = chat
        messages = [{"role": "user", "content": "Tell me of the tailor."}]
        (one,) = run(messages)
        assert one.prompt == messages
        rendered = "<|im_end|>Tell me of the tailor.<eos><|im_end|>"
        context = own(rendered, add_special_tokens=False)["input_ids"]
        assert context[0] == own.convert_tokens_to_ids("<|im_end|>")
        np.testing.assert_allclose(one.surprisal, reference(model, context, one.token_ids)[0], atol=2e-4)

    def test_chats_and_texts_side_by_side(self, chat):
        run, *_ = chat
        chats = [[{"role": "user", "content": "Once"}], [{"role": "user", "content": "Tell me of the old man."}]]
        together = run([chats[0], "Once", chats[1]], num_return_sequences=2)
        alone = [run(prompt)[0] for prompt in (chats[0], "Once", chats[1])]
        assert ids_of(together) == [one.token_ids for one in alone for _ in range(2)]

    def test_without_a_template(self, write):
        with pytest.raises(InputError, match=r"^prompt 1 is a chat, and the tokenizer has no chat template$"):
            write(["Once", [{"role": "user", "content": "Once"}]])


class TestRefused:
    @pytest.fixture(autouse=True)
    def suppress_tokens(self, tiny_model, monkeypatch):
        """Nothing may be generated before an error."""

        def refuse(*arguments, **options):
            raise AssertionError("generate() was called")

        monkeypatch.setattr(type(tiny_model), "generate", refuse)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_new_tokens": 0}, "max_new_tokens: expected a positive number, got 0"),
            ({"num_return_sequences": 0}, "num_return_sequences: expected a positive number, got 0"),
            ({"batch_size": -1}, "batch_size: expected a positive number, got -1"),
            ({"mode": "creative", "weight": 1.0}, "give mode or weight, not both"),
            ({"mode": "wild"}, "unknown mode 'wild'"),
            ({"weight": 2.0}, r"weight: expected a number in \[0, 1\], got 2.0"),
            ({"kind": "poems"}, "no kind 'poems'; it has creative, functional"),
            ({"tail": 0.42}, "tail 0.42: the human profile has the rank levels"),
            ({"profile": "nobody"}, "nobody: neither a file nor a shipped profile"),
            ({"profile": "gemma-3-270m"}, "fitted with 'gemma-3-270m'"),
        ],
    )
    def test_options(self, write, options, message):
        with pytest.raises(InputError, match=message) as caught:
            write(**options)
        assert "\n" not in str(caught.value)

    def test_a_prompt_of_nothing(self, tiny_model, tokenizer_without_bos, profile):
        with pytest.raises(InputError, match=r"^prompt 1 is empty, and the tokenizer has no BOS$"):
            generate(tiny_model, tokenizer_without_bos, ["Once", ""], profile=profile)

    def test_a_tokenizer_of_another_model(self, tiny_model, tokenizer, profile):
        other = copy.deepcopy(tokenizer)
        other.add_tokens(["another", "and another"])
        with pytest.raises(InputError, match="the tokenizer has 402 tokens and the model 400: they do not belong"):
            generate(tiny_model, other, "Once", profile=profile)

    def test_generation_kwargs(self, tiny_model, make_model, profile):
        with pytest.raises(InputError, match="unknown mode"):
            generation_kwargs(tiny_model, profile=profile, mode="wild")
        with pytest.raises(InputError, match="no kind 'poems'"):
            generation_kwargs(tiny_model, "poems", profile=profile)
        with pytest.raises(InputError, match="fitted with 'tiny'"):
            generation_kwargs(make_model("llama", initializer_range=0.2), profile=profile)


REAL_PROMPTS = [
    "The ferry left the island a little before dawn, with eleven passengers and",
    "My grandmother kept every key she had ever owned, and",
    "Nobody in the village could say when the clock had stopped, but",
    "It was the third winter without snow, and the old people",
    "The letter arrived on a Tuesday, forty years late, and",
    "He had been a lighthouse keeper for so long that",
    "When the circus left town, the elephant",
    "She counted the stairs on the way down, as she had done every",
]


@pytest.mark.slow
class TestRealModels:
    @pytest.fixture(params=["gemma", "smollm2"])
    def scorer(self, request):
        return request.getfixturevalue(request.param)

    @pytest.mark.parametrize("setting", [{"mode": "creative"}, {"weight": 1}], ids=["creative", "weight 1"])
    def test_text_lands_on_its_aim(self, scorer, setting):
        """By the scorer's numbers: 8 texts of 64 tokens, which alone scatter by some percent."""
        texts = generate(scorer.model, scorer.tokenizer, REAL_PROMPTS, max_new_tokens=64, seed=0, **setting)
        values = np.concatenate([one.surprisal for one in texts])
        assert len(values) > 256
        assert values.mean() == pytest.approx(texts[0].aim, rel=0.08)
        # The shipped profiles are calibrated for a reader, and a weight is a share of the writer's own level.
        assert texts[0].aim < texts[0].human_level if "mode" in setting else texts[0].aim == texts[0].human_level

    def test_precise_is_greedy(self, scorer):
        texts = generate(
            scorer.model, scorer.tokenizer, REAL_PROMPTS[:2], mode="precise", max_new_tokens=24, batch_size=1
        )
        for one in texts:
            bos = [] if scorer.tokenizer.bos_token_id is None else [scorer.tokenizer.bos_token_id]
            ids = torch.tensor([[*bos, *scorer.tokenizer(one.prompt, add_special_tokens=False)["input_ids"]]])
            out = scorer.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, top_k=None
            )[0, ids.shape[1] :].tolist()
            assert out[: len(one.token_ids)] == one.token_ids
            assert len(one.token_ids) == 24 or out[len(one.token_ids)] in np.atleast_1d(
                scorer.model.generation_config.eos_token_id
            )
