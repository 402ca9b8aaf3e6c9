"""Training sets: pieces of texts behind BOS, facts as statements or questions, and the share of functional rows."""

import copy
import dataclasses

import pytest

from ugap.data import TextRow
from ugap.data.facts import load_facts
from ugap.errors import InputError
from ugap.training import grpo_dataset, sft_dataset, start_with_bos


@pytest.fixture
def own(tokenizer):
    """A tokenizer that may be changed."""
    made = copy.deepcopy(tokenizer)
    start_with_bos(made)
    return made


@pytest.fixture
def texts(text_rows):
    return [TextRow(row["id"], row["domain"], row["text"]) for row in text_rows]


@pytest.fixture
def facts():
    return load_facts(limit=24)


def domains(dataset):
    return [row["domain"] for row in dataset]


class TestBos:
    def test_a_tokenizer_is_told_to_add_it_once(self, tokenizer, tmp_path):
        own = copy.deepcopy(tokenizer)
        assert own("a b")["input_ids"][0] != own.bos_token_id
        assert start_with_bos(own) == [own.bos_token_id]
        assert own("a b")["input_ids"][:2].count(own.bos_token_id) == 1
        assert start_with_bos(own) == [own.bos_token_id]
        assert own("a b")["input_ids"][:2].count(own.bos_token_id) == 1
        assert own("a b", add_special_tokens=False)["input_ids"][0] != own.bos_token_id

    def test_a_tokenizer_without_one_stays_as_it_is(self, tokenizer_without_bos):
        before = tokenizer_without_bos("a b")["input_ids"]
        assert start_with_bos(tokenizer_without_bos) == []
        assert tokenizer_without_bos("a b")["input_ids"] == before


class TestSft:
    def test_pieces_are_the_texts(self, texts, own):
        made = sft_dataset(texts, [], own, max_tokens=48, functional_share=0.5)
        for row in made:
            assert row["input_ids"][0] == own.bos_token_id
            assert row["labels"][0] == -100
            assert row["labels"][1:] == row["input_ids"][1:]
            assert 16 < len(row["input_ids"]) <= 50
        whole = {text.domain: " ".join(t.text for t in texts if t.domain == text.domain) for text in texts}
        for row in made:
            assert own.decode(row["input_ids"], skip_special_tokens=True) in whole[row["domain"]]

    def test_the_end_token_stands_where_a_text_ends(self, texts, own):
        made = sft_dataset(texts, [], own, max_tokens=4000, functional_share=0.0)
        assert len(made) == 6
        assert all(row["input_ids"][-1] == own.eos_token_id for row in made)
        cut = sft_dataset(texts, [], own, max_tokens=48, functional_share=0.0)
        ended = [row for row in cut if row["input_ids"][-1] == own.eos_token_id]
        assert 0 < len(ended) <= 6

    def test_the_share_of_functional_rows(self, texts, facts, own):
        for share in (0.0, 0.25, 0.6):
            made = sft_dataset(texts, facts, own, max_tokens=32, functional_share=share)
            assert domains(made).count("functional") / len(made) == pytest.approx(share, abs=0.02)
        only = sft_dataset([text for text in texts if text.domain == "creative"], facts, own, functional_share=0.5)
        said = {own.decode(row["labels"][1:]) for row in only if row["domain"] == "functional"}
        assert said <= {f"{fact.prompt} {fact.answer}." for fact in facts}

    def test_the_seed_says_the_order(self, texts, facts, own):
        one, same, other = (sft_dataset(texts, facts, own, seed=seed)["input_ids"] for seed in (1, 1, 2))
        assert one == same != other

    def test_what_cannot_be_trained_on_is_refused(self, texts, own):
        with pytest.raises(InputError, match="no creative domain"):
            sft_dataset([text for text in texts if text.domain == "functional"], [], own)
        with pytest.raises(InputError, match="functional_share is 1"):
            sft_dataset(texts, [], own, functional_share=1.0)


class TestGrpo:
    def test_prompts_and_what_people_wrote(self, texts, facts, own):
        made = grpo_dataset(texts, facts, own, prefix_tokens=12, max_tokens=8, per_text=2, functional_share=0.5)
        creative = [row for row in made if row["domain"] == "creative"]
        functional = [row for row in made if row["domain"] == "functional"]
        assert len(creative) == len(functional) == 12
        for row in creative:
            assert row["kind"] == "creative"
            assert any(row["prompt"] + row["human_completion"] in text.text for text in texts)
            assert len(own(row["prompt"], add_special_tokens=False)["input_ids"]) == 12
        asked = {fact.prompt: fact for fact in facts}
        for row in functional:
            fact = asked[row["prompt"]]
            assert (row["answer"], row["wrong"]) == ([fact.answer, *fact.accept], list(fact.wrong))
            assert row["human_completion"] is None
            assert row["kind"] is None

    def test_the_kind_of_a_text_is_that_of_its_prompts(self, texts, facts, own):
        tales = [dataclasses.replace(text, kind="fairy-tale") for text in texts]
        made = grpo_dataset(tales, facts, own, prefix_tokens=12, max_tokens=8)
        assert {row["kind"] for row in made if row["domain"] == "creative"} == {"fairy-tale"}

    def test_no_creative_text_is_refused(self, texts, facts, own):
        with pytest.raises(InputError, match="creative"):
            grpo_dataset([text for text in texts if text.domain == "functional"], facts, own)
