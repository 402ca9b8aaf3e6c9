"""Continuations: seeded, cut at the end token, the same in a batch as alone, with or without a chat template."""

import pytest
import torch

from ugap.errors import InputError
from ugap.models import load_model
from ugap.study.decodings import DECODINGS
from ugap.study.generation import REQUEST, chat_context, generate_continuations, seed_of

PREFIXES = ["Once upon a time", "The youngest went into the forest, and the old man", "A function"]


@pytest.fixture
def contexts(tokenizer):
    return [[tokenizer.bos_token_id, *tokenizer(prefix)["input_ids"]] for prefix in PREFIXES]


@pytest.fixture
def write(tiny_model, tokenizer, contexts):
    def run(decoding: str = "ancestral", seed: int = 0, contexts=contexts, model=tiny_model) -> list[str]:
        settings = DECODINGS[decoding]
        return generate_continuations(model, tokenizer, contexts, settings, max_new_tokens=20, seed=seed)

    return run


def test_the_seed_decides(write):
    assert write(seed=1) == write(seed=1)
    assert all(a != b for a, b in zip(write(seed=1), write(seed=2), strict=True))


def test_the_generator_of_others_is_left_alone(write):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    write()
    assert torch.rand(1) == expected


def test_greedy_is_the_argmax_whatever_the_seed_and_the_batch(write, contexts, tiny_model, tokenizer):
    together = write("greedy", seed=1)
    assert together == write("greedy", seed=2)
    for prefix, context, text in zip(PREFIXES, contexts, together, strict=True):
        assert write("greedy", contexts=[context]) == [text]
        ids = list(context)
        for _ in range(20):
            ids.append(int(tiny_model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        assert (prefix + text).rstrip("\ufffd") == whole.rstrip("\ufffd")


def test_a_text_ends_before_the_end_token(write, tiny_model, make_model, tokenizer):
    plain = write("greedy")
    ends = make_model("llama")
    # What the model writes as its fifth token shall mean the end.
    first = tokenizer(plain[0], add_special_tokens=False)["input_ids"]
    ends.generation_config.eos_token_id = [first[4], tokenizer.eos_token_id]
    ended = write("greedy", model=ends)
    assert ended[0] == plain[0][: len(ended[0])]
    assert len(tokenizer(ended[0])["input_ids"]) <= 4
    assert len(ended[0]) < len(plain[0])


def test_nothing_to_continue(write):
    with pytest.raises(InputError, match="nothing to continue"):
        write(contexts=[[5, 6], []])


def test_seeds_come_from_what_is_made():
    seeds = {seed_of(0, "a"), seed_of(1, "a"), seed_of(0, "b"), seed_of("0", "a")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
    # A study that was begun by an earlier version goes on with the same seeds.
    assert seed_of(0, "gemma|raw|ancestral|creative|0") == 2435267324788725095


def test_a_request_through_the_chat_template(chat_folder, tokenizer):
    _, own = load_model(str(chat_folder))
    ids = chat_context(own, "Once upon a time", "chat")
    request = REQUEST.format(prefix="Once upon a time")
    assert own.decode(ids) == f"<|im_end|>{request}<eos><|im_end|>"
    assert ids[0] == ids[-1] == own.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(InputError, match=r"base has no chat template: use --prompting raw"):
        chat_context(tokenizer, "Once", "base")
