"""Decodings: what a person may type, and what generate() then really does, told from the tokens that it takes."""

import pytest
import torch

from ugap.errors import InputError
from ugap.study.decodings import DECODINGS, STUDIED, decoder, generation_config, is_human, parse_decodings
from ugap.study.generation import generate_continuations

WARPERS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
PREFIXES = ["Once upon a time", "The youngest went into the forest, and the old man", "A function"]


def test_the_studied_decodings():
    assert list(parse_decodings(STUDIED)) == [
        "ancestral",
        "top-p-0.9",
        "temperature-0.7",
        "top-k-50",
        "min-p-0.1",
        "typical-p-0.95",
        "greedy",
    ]
    assert set(DECODINGS) - set(STUDIED) == {"eta-0.0009", "top-h-0.4", "ugap-creative", "ugap-balanced", "ugap-own"}
    assert parse_decodings(list(DECODINGS)) == DECODINGS


def test_a_custom_decoding_keeps_the_types_of_its_values():
    parsed = parse_decodings(["warm=temperature:2,top_k:20", "beam=do_sample:false, num_beams:3", "greedy"])
    assert isinstance(parsed["warm"]["temperature"], float)  # transformers takes no other
    assert parsed == {
        "warm": {"temperature": 2.0, "top_k": 20},
        "beam": {"do_sample": False, "num_beams": 3},
        "greedy": {"do_sample": False},
    }


def test_what_a_decoding_leaves_unset_is_off():
    config = generation_config({"temperature": 1.1}, max_new_tokens=5)
    assert [getattr(config, name) for name in WARPERS] == [1.1, 0, 1.0, None, 1.0]
    assert config.do_sample
    assert config.max_new_tokens == 5
    greedy = generation_config({"do_sample": False}, max_new_tokens=5)
    assert not greedy.do_sample
    assert [getattr(greedy, name) for name in WARPERS] == [1.0, 50, 1.0, None, 1.0]  # transformers warns of others


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["gredy"], "unknown decoding 'gredy': choose of ancestral, "),
        (["greedy", "greedy"], "'greedy' is taken"),
        (["human=top_k:5"], "'human' is taken"),
        (["given=top_k:5"], "'given' is taken"),
        (["=top_k:5"], "'' is taken"),
        (["hot=heat:5"], "'heat:5' is not a generate\\(\\) setting"),
        (["hot=top_k"], "'top_k' is not a generate\\(\\) setting"),
        (["hot="], "unknown decoding|not a generate"),
        (["hot=temperature:["], "'\\[' is not a value"),
        (["hot=temperature:2026-02-30"], "'2026-02-30' is not a value: day is out of range"),
        (["hot=temperature:!!int abc"], "is not a value: invalid literal"),
        (["hot=temperature:" + "[" * 20_000], "is not a value"),
        (["hot=temperature:warm"], "temperature"),
        (["hot=typical_p:1.5"], "typical_p"),
        (["hot=repetition_penalty:-1"], "penalty"),
        (["hot=temperature:0"], "temperature"),
        (["hot=temperature:-1.0"], "temperature"),
        (["hot=top_p:1.5"], "top_p"),
        (["hot=top_k:-3"], "top_k"),
        (["hot=min_p:2"], "min_p"),
        (["hot=typical_p:0"], "typical_p"),
        (["many=num_return_sequences:3"], "num_return_sequences"),
        (["long=max_new_tokens:3"], "max_new_tokens"),
        (["odd=return_dict_in_generate:true"], "return_dict_in_generate"),
    ],
)
def test_what_is_no_decoding(words, cause):
    with pytest.raises(InputError, match=cause) as caught:
        parse_decodings(words)
    assert "\n" not in str(caught.value)


@pytest.fixture
def taken(make_model, tokenizer, monkeypatch):
    """`taken(decoding)`: the distributions `(N, V)` that a continuation of 200 tokens met, and the tokens `(N,)`."""
    # As an asset's: generate() would fill what a decoding leaves unset from here, or with its own top_k of 50.
    model = make_model("llama", initializer_range=0.15)
    model.generation_config.top_k = 50
    model.generation_config.do_sample = True

    @torch.no_grad()
    def run(decoding: str) -> tuple[torch.Tensor, torch.Tensor]:
        whole: list[torch.Tensor] = []
        generate = type(model).generate

        def spy(self, **kwargs):
            whole.append(generate(self, **kwargs))
            return whole[-1]

        with monkeypatch.context() as patch:
            patch.setattr(type(model), "generate", spy)
            context = [tokenizer.bos_token_id]
            settings = DECODINGS[decoding]
            generate_continuations(model, tokenizer, [context], settings, max_new_tokens=200, seed=3)
        ids = whole[0]
        assert ids.shape == (1, 201)
        return model(input_ids=ids).logits[0, :-1].double().softmax(-1), ids[0, 1:]

    return run


def ranks(p: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return 1 + (p > p.gather(1, tokens[:, None])).sum(-1)


def test_ancestral_is_not_cut(taken):
    p, tokens = taken("ancestral")
    assert ranks(p, tokens).max() > 200


def test_greedy_takes_the_first(taken):
    p, tokens = taken("greedy")
    assert (ranks(p, tokens) == 1).all()


def test_top_k_takes_one_of_fifty(taken):
    p, tokens = taken("top-k-50")
    assert 25 < ranks(p, tokens).max() <= 50


def test_top_p_stays_in_the_nucleus(taken):
    p, tokens = taken("top-p-0.9")
    own = p.gather(1, tokens[:, None])
    above = torch.where(p > own, p, 0).sum(-1)
    assert above.max() < 0.9 + 1e-6
    assert above.max() > 0.8
    assert ranks(p, tokens).max() > 50  # its own top_k is off


def test_min_p_is_a_share_of_the_highest(taken):
    p, tokens = taken("min-p-0.1")
    share = p.gather(1, tokens[:, None]).squeeze(1) / p.max(-1).values
    assert 0.1 - 1e-6 <= share.min() < 0.3


def test_typical_takes_the_tokens_nearest_to_the_entropy(taken):
    p, tokens = taken("typical-p-0.95")
    distance = (-p.log() + (p * p.log()).sum(-1, keepdim=True)).abs()
    own = distance.gather(1, tokens[:, None])
    nearer = torch.where(distance < own, p, 0).sum(-1)
    assert 0.8 < nearer.max() < 0.95 + 1e-6


def test_temperature_lowers_the_surprisal(taken):
    def mean_surprisal(decoding: str) -> float:
        p, tokens = taken(decoding)
        return float(-p.gather(1, tokens[:, None]).log().mean())

    assert mean_surprisal("temperature-0.7") < mean_surprisal("ancestral") - 0.2


@pytest.mark.parametrize("name", [name for name, how in DECODINGS.items() if name != "greedy" and not is_human(how)])
def test_what_is_drawn_from_is_what_generate_would_draw_from(name, make_model, tokenizer):
    model = make_model("llama", initializer_range=0.15)
    ids = torch.tensor([tokenizer(prefix)["input_ids"][:2] for prefix in PREFIXES])
    settings = DECODINGS[name]
    stock = generation_config(settings, max_new_tokens=1, eos_token_id=None, pad_token_id=0)
    stock.output_scores = stock.return_dict_in_generate = True
    expected = model.generate(ids, generation_config=stock).scores[0]
    _, [*shapers, draw] = decoder(settings, model, None, generator=torch.Generator(), max_new_tokens=1)
    with torch.no_grad():
        scores = model(input_ids=ids).logits[:, -1]
    for shaper in shapers:
        scores = shaper(ids, scores)
    torch.testing.assert_close(scores, expected)
    assert type(draw).__name__ == "DrawLogitsProcessor"


def test_beams_are_left_to_generate(make_model):
    config, processors = decoder({"num_beams": 3}, make_model("llama"), None, generator=torch.Generator())
    assert config.do_sample
    assert config.num_beams == 3
    assert processors == []


class TestHumanUncertainty:
    @pytest.fixture
    def profile(self, make_model, make_profile, tmp_path):
        make_profile(make_model("llama")).save(tmp_path / "profile.json")
        return str(tmp_path / "profile.json")

    def test_a_decoding_of_ours(self, make_model, tokenizer, profile):
        words = [f"half=human_weight:0.5,human_profile:{profile}"]
        settings = parse_decodings(words)["half"]
        config, (processor,) = decoder(settings, make_model("llama"), "functional", generator=torch.Generator())
        assert (processor.prompts.kind, processor.weight, processor.draw) == ("auto", 0.5, True)
        # A prompt of one token tells nothing: the domain of the text is taken.
        assert processor.prompts.target([0]).weights == {"functional": 1.0}
        assert not config.do_sample
        other = {**settings, "human_kind": "creative"}
        assert (
            decoder(other, make_model("llama"), "functional", generator=torch.Generator())[1][0].prompts.kind
            == "creative"
        )
        context = [[tokenizer.bos_token_id]]
        runs = [
            generate_continuations(
                make_model("llama"), tokenizer, context, settings, max_new_tokens=5, seed=seed, domain="creative"
            )
            for seed in (1, 1)
        ]
        assert runs[0] == runs[1]

    def test_a_model_without_a_profile(self, make_model):
        with pytest.raises(InputError, match="no shipped human profile fits"):
            decoder({"human_weight": 1.0}, make_model("llama"), "creative", generator=torch.Generator())

    @pytest.mark.parametrize("domain", [None, "sermons"])
    def test_a_text_of_no_domain_that_the_profile_knows(self, make_model, profile, domain):
        settings = {"human_weight": 1.0, "human_profile": profile}
        _, (processor,) = decoder(settings, make_model("llama"), domain, generator=torch.Generator())
        assert processor.prompts.target([0]).weights == {"creative": 1.0}

    @pytest.mark.parametrize(
        ("words", "cause"),
        [
            ("x=human_weight:1.5", r"expected a number in \[0, 1\]"),
            ("x=human_weight:high", r"expected a number in \[0, 1\]"),
            ("x=human_weight:1.0,temperature:0.7", "human_weight and temperature exclude each other"),
            ("x=human_weight:1.0,num_beams:2", "human_weight and num_beams exclude each other"),
            ("x=human_kind:creative", "human_mode or human_weight is missing"),
        ],
    )
    def test_what_is_no_decoding_of_ours(self, words, cause):
        with pytest.raises(InputError, match=cause):
            parse_decodings([words])
