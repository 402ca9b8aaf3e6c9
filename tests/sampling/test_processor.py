"""The sampler inside `generate()`: its scores, its state row by row, and what it refuses."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LogitsProcessor, LogitsProcessorList

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.sampling import MODES, HumanEntropyLogitsProcessor, HumanSampler, human_params
from ugap.sampling.portable.human import State
from ugap.sampling.portable.temperature import FAR

IDS = torch.tensor([[5, 300, 17], [8, 9, 10], [5, 5, 5]])
PLAIN = {"top_k": 0, "top_p": 1.0, "temperature": 1.0}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made_up_scores(tokenizer, rows: int = 3, seed: int = 0) -> torch.Tensor:
    noise = torch.randn(rows, len(tokenizer), generator=generator(seed))
    scores = noise * torch.linspace(4, 0.7, rows).unsqueeze(1)
    scores[:, 50:60] = -torch.inf
    return scores


@pytest.fixture
def make(profile):
    """`make(**options)`: a processor for the creative domain of the tiny model."""

    def build(kind="creative", weight=None, **options) -> HumanEntropyLogitsProcessor:
        return HumanEntropyLogitsProcessor(options.pop("profile", profile), kind, weight, **options)

    return build


class Listener(LogitsProcessor):
    """Keeps what `generate()` shows its processors."""

    def __init__(self):
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, input_ids, scores):
        self.calls.append((input_ids.clone(), scores.clone()))
        return scores


@pytest.fixture
def write(tiny_model):
    """`write(*processors, ids=IDS, model=tiny_model, **options)`: the new tokens of `generate()`."""

    def run(*processors, ids=IDS, model=tiny_model, max_new_tokens=12, **options) -> torch.Tensor:
        options = {"do_sample": False, "pad_token_id": 0, **options}
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=LogitsProcessorList(processors),
            max_new_tokens=max_new_tokens,
            **options,
        )
        return out[:, ids.shape[1] :]

    return run


class TestScores:
    @pytest.mark.parametrize("draw", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_their_form(self, make, tokenizer, dtype, draw):
        scores = made_up_scores(tokenizer).to(dtype)
        kept, ids = scores.clone(), IDS.clone()
        out = make(draw=draw, generator=generator())(ids, scores)
        assert torch.equal(scores, kept)
        assert torch.equal(ids, IDS)
        assert out.shape == scores.shape
        assert out.dtype == dtype
        assert (out[:, 50:60] == -torch.inf).all()
        assert not out.isnan().any()
        assert (out.isfinite().sum(-1) == 1 if draw else out.isfinite().sum(-1) > 1).all()

    def test_they_are_those_of_the_solved_distribution(self, make, tokenizer, profile):
        """`log p / temperature` up to the rank that people reach, to a constant."""
        scores = made_up_scores(tokenizer)
        out = make()(IDS, scores)
        step = HumanSampler.of(human_params(profile, "creative"), 1.0).step(scores, State.start([IDS.shape[1]] * 3))
        for row, kept, surprisal, temperature in zip(out, *step.candidates, step.temperature, strict=True):
            ids = kept[surprisal < FAR]
            assert set(row.isfinite().nonzero()[:, 0].tolist()) == set(ids.tolist())
            expected = torch.log_softmax(-surprisal[surprisal < FAR].double() / temperature.double(), -1)
            torch.testing.assert_close(torch.log_softmax(row.double(), -1)[ids], expected, rtol=1e-4, atol=1e-5)

    def test_token_0_may_be_cut_where_rows_are_filled_up(self, make, tokenizer):
        """Rows with fewer candidates than others must not be given another token by it."""
        scores = torch.full((2, len(tokenizer)), -torch.inf)
        scores[0, [3, 4]], scores[1, :300] = torch.tensor([1.0, 0.5]), torch.linspace(1, 0, 300)
        out = make(tail=None)(IDS[:2], scores)
        assert out[0].isfinite().nonzero()[:, 0].tolist() == [3, 4]
        assert out[1].isfinite().sum() == 300

    def test_a_draw_follows_the_scores_that_are_returned_otherwise(self, make, tokenizer):
        rows = 3000
        scores = made_up_scores(tokenizer, 2)[1:].expand(rows, -1)
        ids = IDS[:1].expand(rows, -1)
        probability = torch.softmax(make()(ids[:1], scores[:1]).double(), -1)[0].numpy()
        drawn = make(draw=True, generator=generator(3))(ids, scores).argmax(-1)
        observed = np.bincount(drawn.numpy(), minlength=len(probability))
        expected = probability * rows
        assert observed[expected == 0].sum() == 0
        rare = expected < 10
        classes = [np.append(values[~rare], values[rare].sum()) for values in (observed, expected)]
        assert chisquare(*classes).pvalue > 1e-3

    def test_the_tail_is_a_matter_of_choice(self, make, tokenizer):
        counts = [make(tail=tail)(IDS, made_up_scores(tokenizer)).isfinite().sum(-1) for tail in (0.5, 0.999, None)]
        assert (counts[0] < counts[1]).all()
        assert (counts[1] <= counts[2]).all()
        assert (counts[2] == len(tokenizer) - 10).all()

    def test_a_mode_is_a_weight(self, make, tokenizer):
        scores = made_up_scores(tokenizer)
        for mode, weight in MODES.items():
            assert make(mode=mode).weight == weight
            assert torch.equal(make(mode=mode)(IDS, scores), make(weight=weight)(IDS, scores))
        assert torch.equal(make()(IDS, scores), make(mode="creative")(IDS, scores))


class TestGreedy:
    @pytest.mark.parametrize("draw", [False, True])
    @pytest.mark.parametrize("sampled", [False, True])
    def test_weight_0_is_greedy_token_by_token(self, make, write, sampled, draw):
        expected = write()
        options = {"do_sample": True, **PLAIN} if sampled else {}
        torch.manual_seed(3)
        assert torch.equal(write(make(weight=0, draw=draw), **options), expected)
        assert torch.equal(write(make(mode="precise", draw=draw, tail=None), **options), expected)


def replay(profile: HumanProfile, calls, output, weight=1.0) -> State:
    """The state after the last call, from the scores that were seen and the tokens that were taken."""
    params = human_params(profile, "creative")
    sampler = HumanSampler.of(params, weight)
    history = State.start([calls[0][0].shape[1]] * len(output))
    for i, (_, scores) in enumerate(calls[:-1]):
        step = sampler.step(scores, history)
        surprisal = -torch.log_softmax(scores.double(), -1).gather(1, output[:, i : i + 1])[:, 0].float()
        history = sampler.observe(history, step, surprisal)
    return history


class TestState:
    @pytest.mark.parametrize(("draw", "sampled"), [(True, False), (True, True), (False, True), (False, False)])
    def test_it_is_what_the_tokens_say(self, make, write, profile, draw, sampled):
        listener, processor = Listener(), make(draw=draw, generator=generator(1))
        torch.manual_seed(0)
        output = write(listener, processor, **({"do_sample": True, **PLAIN} if sampled else {}))
        assert processor._state.n_tokens.tolist() == [11, 11, 11]
        for got, expected in zip(processor._state, replay(profile, listener.calls, output), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    def test_a_row_does_not_feel_its_neighbours(self, make, write, profile):
        """Without draws: the tokens and the state of a row are those that it has alone or beside another."""
        whole = make()
        together = write(whole)
        for rows in ([0], [1], [2, 0], [1, 2]):
            part = make()
            assert torch.equal(write(part, ids=IDS[rows]), together[rows])
            for got, expected in zip(part._state, whole._state, strict=True):
                torch.testing.assert_close(got, expected[rows], rtol=1e-4, atol=1e-4)

    def test_a_row_that_ends_early_leaves_the_others_alone(self, make, write, make_model, profile):
        plain = write(make())
        row, place = next(
            (row, place)
            for row in range(3)
            for place in range(2, 9)
            if (plain == plain[row, place]).sum() == (plain[row] == plain[row, place]).sum() == 1
        )
        others = [i for i in range(3) if i != row]
        model = make_model("llama")
        model.generation_config.eos_token_id = int(plain[row, place])
        listener, processor = Listener(), make()
        output = write(listener, processor, model=model)
        assert torch.equal(output[others], plain[others])
        assert output[row, : place + 1].tolist() == plain[row, : place + 1].tolist()
        assert (output[row, place + 1 :] == 0).all()
        for got, expected in zip(processor._state, replay(profile, listener.calls, output), strict=True):
            torch.testing.assert_close(got[others], expected[others], rtol=1e-4, atol=1e-4)

    def test_tokens_that_could_not_be_drawn_are_not_counted(self, make, tokenizer):
        """What another processor put in place of the draw, or a row that has ended."""
        scores = made_up_scores(tokenizer)
        processor = make()
        first = processor(IDS, scores)
        taken = first.argmax(-1)
        taken[1] = 55  # ruled out in the scores
        processor(torch.cat([IDS, taken.unsqueeze(1)], 1), scores)
        assert processor._state.n_tokens.tolist() == [1, 0, 1]
        assert processor._state.debt[1] == 0

    def test_every_call_of_generate_begins_anew(self, make, write):
        used = make(draw=True, generator=generator(1))
        used(IDS, torch.zeros(3, 400))
        used.generator.manual_seed(1)
        first = write(used)
        state = used._state
        used.generator.manual_seed(1)
        assert torch.equal(write(used), first)
        for got, expected in zip(used._state, state, strict=True):
            assert torch.equal(got, expected)
        # Fewer rows, more rows, and a prompt of another length.
        for ids in (IDS[:1], IDS.repeat(2, 1), IDS[:, :2], torch.cat([IDS, IDS], 1)):
            used.generator.manual_seed(2)
            fresh = make(draw=True, generator=generator(2))
            assert torch.equal(write(used, ids=ids), write(fresh, ids=ids))

    @pytest.mark.parametrize("more", [1, 2, 9])
    def test_the_next_turn_begins_anew(self, make, write, more):
        """With what was written before, and more, as the prompt."""
        used = make(draw=True, generator=generator(1))
        ids = torch.cat([IDS, write(used, max_new_tokens=5), IDS.repeat(1, 3)[:, :more]], 1)
        used.generator.manual_seed(2)
        again = write(used, ids=ids, max_new_tokens=4)
        assert torch.equal(again, write(make(draw=True, generator=generator(2)), ids=ids, max_new_tokens=4))
        assert used._state.n_tokens.tolist() == [3, 3, 3]

    def test_reset_lets_a_text_go_on(self, make, write):
        processor = make()
        ids = torch.cat([IDS, write(processor, max_new_tokens=3)], 1)
        processor.reset()
        expected = write(make(), ids=ids, max_new_tokens=3)
        assert torch.equal(write(processor, ids=ids, max_new_tokens=3), expected)
        assert processor._state.n_tokens.tolist() == [2, 2, 2]

    def test_prompts_of_many_lengths_padded_on_the_left(self, make, tiny_model):
        ids = torch.tensor([[0, 0, 5, 300, 17], [4, 8, 9, 10, 11]])
        processor = make()
        tiny_model.generate(
            ids,
            attention_mask=torch.tensor([[0, 0, 1, 1, 1], [1] * 5]),
            logits_processor=LogitsProcessorList([processor]),
            max_new_tokens=6,
            pad_token_id=0,
            do_sample=False,
        )
        assert processor._state.n_tokens.tolist() == [5, 5]


class TestRefused:
    def test_beam_search(self, make, write):
        with pytest.raises(ValueError, match="rows changed places since the last step: beam search is not supported"):
            write(make(), num_beams=3, max_new_tokens=30)

    def test_assisted_decoding(self, make, write):
        """Candidates of a prompt that repeats itself are looked up in it, and most of them are not taken."""
        ids = torch.tensor([[5, 6, 7, 8] * 6])
        with pytest.raises(ValueError, match="assisted decoding is not supported"):
            write(make(weight=0), ids=ids, prompt_lookup_num_tokens=4, max_matching_ngram_size=1, max_new_tokens=40)

    @pytest.mark.parametrize("weight", [0, 1])
    @pytest.mark.parametrize("draw", [True, False])
    @pytest.mark.parametrize("same", [True, False])
    def test_an_assistant_model(self, make, write, make_model, tiny_model, weight, draw, same):
        """Whether its candidates are all taken, as greedily with the same model, or hardly any."""
        assistant = tiny_model if same else make_model("llama", initializer_range=0.25)
        options = {"assistant_model": assistant, "ids": IDS[:1], "do_sample": not draw}
        with pytest.raises(ValueError, match=r"^assisted decoding is not supported: .*leave out assistant_model"):
            write(make(weight=weight, draw=draw, generator=generator(6)), **options)

    def test_going_back(self, make, tokenizer):
        scores = made_up_scores(tokenizer)
        processor = make()
        ids = torch.cat([IDS, IDS, IDS], 1)
        for length in range(3, 8):
            processor(ids[:, :length], scores)
        with pytest.raises(ValueError, match="changed since the last step, from 7 to 5 tokens"):
            processor(ids[:, :5], scores)

    def test_a_token_that_was_taken_back(self, make, tokenizer):
        """As long as before, or one longer, but with another past: a candidate that was refused."""
        scores = made_up_scores(tokenizer)
        for length in (7, 8):
            processor = make()
            ids = torch.cat([IDS, IDS, IDS], 1)
            for known in range(3, 8):
                processor(ids[:, :known], scores)
            other = ids[:, :length].clone()
            other[:, 6] += 1
            with pytest.raises(ValueError, match=f"changed since the last step, from 7 to {length} tokens"):
                processor(other, scores)

    def test_rows_that_changed_places(self, make, tokenizer):
        scores = made_up_scores(tokenizer)
        processor = make()
        processor(IDS, scores)
        ids = torch.cat([IDS, torch.tensor([[1], [2], [3]])], 1)
        processor(ids, scores)
        with pytest.raises(ValueError, match="rows changed places"):
            processor(torch.cat([ids[[1, 0, 2]], torch.tensor([[4], [5], [6]])], 1), scores)

    def test_a_vocabulary_smaller_than_the_ranks_of_the_profile(self, make):
        with pytest.raises(ValueError, match=r"the vocabulary has 100 tokens and the human profile ranks up to \d+"):
            make()(IDS, torch.zeros(3, 100))

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_scores_that_are_not_finite(self, make, tokenizer, bad):
        scores = made_up_scores(tokenizer)
        scores[1, 7] = bad
        with pytest.raises(ValueError, match="the scores of row 1 are not finite"):
            make()(IDS, scores)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mode": "wild"}, "unknown mode 'wild': choose of creative, balanced, precise"),
            ({"mode": "creative", "weight": 0.5}, "give mode or weight, not both: mode='creative', weight=0.5"),
            ({"weight": -0.01}, r"weight: expected a number in \[0, 1\], got -0.01"),
            ({"weight": 1.01}, r"weight: expected a number in \[0, 1\], got 1.01"),
            ({"weight": float("nan")}, r"weight: expected a number in \[0, 1\], got nan"),
            ({"weight": "much"}, r"weight: expected a number in \[0, 1\], got 'much'"),
            ({"kind": "poems"}, "no kind 'poems'; it has creative, functional"),
            ({"tail": 0.97}, "tail 0.97: the human profile has the rank levels 0.5, .*0.999"),
            ({"profile": "nobody"}, "nobody: neither a file nor a shipped profile; shipped: "),
        ],
    )
    def test_at_construction(self, make, options, message):
        with pytest.raises(InputError, match=message) as caught:
            make(**options)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda document: document.update(version=9), "version 9; this ugap reads version 3"),
            (lambda document: document["kinds"]["creative"]["curve"]["g"].pop(), "damaged"),
            (lambda document: document.pop("scorer"), "'scorer' is missing"),
            (
                lambda document: document["kinds"]["creative"]["means"].pop("surprisal"),
                "no mean entropy and surprisal above 0",
            ),
        ],
    )
    def test_a_profile_file_that_cannot_be_used(self, make, profile, tmp_path, change, message):
        document = json.loads(json.dumps(profile.to_dict()))
        change(document)
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(document))
        with pytest.raises(InputError, match=message):
            make(profile=path)
        path.write_text("{")
        with pytest.raises(InputError, match="not a human profile"):
            make(profile=str(path))

    def test_a_file_and_a_profile_are_the_same(self, make, profile_file, tokenizer):
        scores = made_up_scores(tokenizer)
        assert torch.equal(make(profile=str(profile_file))(IDS, scores), make()(IDS, scores))


class TestNever:
    def test_tokens_that_no_person_writes_are_not_drawn(self, make, tokenizer):
        scores = made_up_scores(tokenizer)
        favourites = scores.topk(3).indices.flatten().unique().tolist()
        free, barred = make(tail=None), make(tail=None, suppress_tokens=favourites)
        open_, shut = free(IDS, scores), barred(IDS, scores)
        barred_now = torch.zeros_like(scores, dtype=torch.bool)
        barred_now[:, favourites] = True
        assert torch.equal(open_.isfinite(), scores.isfinite())
        assert torch.equal(shut.isfinite(), scores.isfinite() & ~barred_now)
        assert barred(torch.cat([IDS, IDS[:, :1]], 1), scores).isfinite().any(1).all()

    def test_not_even_where_peoples_ranks_hold_nothing_else(self, make, tokenizer):
        """The model is certain of a special token, and people take its first tokens there: the next one is left."""
        scores = made_up_scores(tokenizer)
        likeliest = scores.argsort(1, descending=True)
        scores[0, likeliest[0, 0]] += 60
        processor = make(tail=0.5, suppress_tokens=likeliest[0, :1].tolist())
        params = processor._params(IDS[0].tolist())
        processor._params = {**params, "ranks": [1] * len(params["ranks"])}
        out = processor(IDS, scores)
        assert out[0].isfinite().nonzero().flatten().tolist() == [likeliest[0, 1]]
        assert out.isfinite().sum(1).tolist() == [1, 1, 1]
        processor(torch.cat([IDS, out.argmax(1, keepdim=True)], 1), scores)
        expected = -torch.log_softmax(scores[0].double(), -1)[likeliest[0, 1]]
        assert params["mean_surprisal"][0] - processor._state.debt[0].item() == pytest.approx(expected.item(), rel=1e-5)

    def test_ids_beyond_the_logits_are_no_matter(self, make, tokenizer):
        scores = made_up_scores(tokenizer)
        expected = make(suppress_tokens=[5])(IDS, scores)
        assert torch.equal(make(suppress_tokens=[5, len(tokenizer), 10**5])(IDS, scores), expected)

    def test_unless_nothing_else_is_left(self, make, tokenizer):
        scores = torch.full((3, len(tokenizer)), -torch.inf)
        scores[:, 5] = 1.0
        assert make(suppress_tokens=[5])(IDS, scores).argmax(1).tolist() == [5, 5, 5]
