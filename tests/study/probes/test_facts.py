"""The factual probe: what counts as right, by hand-made scores and texts; and that a real model knows some facts."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ugap.data.facts import Fact, load_facts
from ugap.errors import InputError
from ugap.statistics import wilson
from ugap.study.probes import facts as probe
from ugap.study.probes.facts import (
    FactResult,
    accuracies,
    answer_words,
    compare,
    contrastive,
    first_named,
    generative,
    is_answer,
    starts_with,
)

FACTS = [
    Fact("capitals/france", "capitals", "The capital of France is", "Paris", ("Lyon", "Marseille", "Bordeaux")),
    Fact("sums/5-3", "sums", "Five plus three equals", "eight", ("six", "seven", "nine"), ("8",)),
    Fact(
        "works/dracula",
        "works",
        "The author of Dracula is",
        "Bram Stoker",
        ("Mary Shelley", "Poe", "Wells"),
        ("Stoker",),
    ),
]


def result(*right: bool, ids: str = "abcdefghij", kinds: str | None = None) -> FactResult:
    n = len(right)
    return FactResult(tuple(ids[:n]), tuple((kinds or "k" * n)[:n]), ("",) * n, np.array(right))


class FakeScorer:
    """Gives every text the surprisals that `table` holds for it, 9 a token where it holds none."""

    name = "fake"

    def __init__(self, table: dict[str, list[float]], straddles: str | None = None):
        self.table, self.straddling = table, straddles
        self.asked: list[tuple[str, str]] = []

    def score(self, texts: list[str], prefixes: list[str], names: list[str]) -> list[Any]:
        self.asked += zip(prefixes, texts, strict=True)
        assert len(names) == len(texts)
        return [
            SimpleNamespace(nll=float(np.mean(self.table.get(text, [9.0]))), straddles=text == self.straddling)
            for text in texts
        ]


def ask(table: dict[str, list[float]], facts: list[Fact] = FACTS[:1]) -> FactResult:
    return contrastive(FakeScorer(table), facts)  # type: ignore[arg-type]


class TestContrastive:
    def test_the_lowest_mean_surprisal_wins(self):
        found = ask({" Paris": [1.0, 2.0], " Lyon": [1.6], " Marseille": [0.1, 4.0]})
        assert found.right.tolist() == [True]
        assert found.said == ("Paris",)
        found = ask({" Paris": [2.0], " Marseille": [1.0, 1.0, 3.5]})
        assert found.right.tolist() == [False]
        assert found.said == ("Marseille",)

    def test_long_answers_are_not_held_against(self):
        # In sum, the right answer is the least likely of the two.
        assert ask({" Paris": [1.0, 1.0, 1.0], " Lyon": [1.5]}).right.tolist() == [True]

    @pytest.mark.parametrize("rival", [" Lyon", " Marseille", " Bordeaux"])
    def test_a_tie_is_wrong(self, rival):
        found = ask({" Paris": [1.0], rival: [1.0]})
        assert found.right.tolist() == [False]
        assert found.said == (rival.strip(),)

    def test_every_answer_is_asked_after_its_prompt_with_a_space(self):
        scorer = FakeScorer({})
        contrastive(scorer, FACTS)  # type: ignore[arg-type]
        expected = {(fact.prompt, f" {answer}") for fact in FACTS for answer in (fact.answer, *fact.wrong)}
        assert len(scorer.asked) == 12
        assert set(scorer.asked) == expected

    def test_batches_and_progress(self, monkeypatch):
        monkeypatch.setattr(probe, "BATCH_SIZE", 2)
        steps: list[int] = []
        found = contrastive(FakeScorer({" eight": [1.0]}), FACTS, advance=steps.append)  # type: ignore[arg-type]
        assert steps == [2, 1]
        assert found.right.tolist() == [False, True, False]
        assert found.ids == ("capitals/france", "sums/5-3", "works/dracula")
        assert found.kinds == ("capitals", "sums", "works")
        assert found.accuracy == pytest.approx(1 / 3)

    def test_a_token_across_the_border_is_refused(self):
        with pytest.raises(
            InputError, match="fact 'capitals/france': to fake, the prompt's end and 'Lyon' are one token"
        ):
            contrastive(FakeScorer({}, straddles=" Lyon"), FACTS)  # type: ignore[arg-type]

    def test_with_a_scorer_it_is_the_mean_of_the_surprisals(self, tiny_scorer):
        found = contrastive(tiny_scorer, FACTS)
        for fact, said, right in zip(FACTS, found.said, found.right, strict=True):
            answers = [fact.answer, *fact.wrong]
            scores = tiny_scorer.score([f" {answer}" for answer in answers], [fact.prompt] * 4)
            means = [score.surprisal.mean() for score in scores]
            assert said == answers[int(np.argmin(means))]
            assert right == (said == fact.answer)


class TestIsAnswer:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (" Paris.", ["paris"]),
            ("\n\nThe Vatican!", ["vatican"]),
            (" a café, an ÉCOLE", ["cafe", "an", "ecole"]),
            ("1,000 metres", ["1000", "metres"]),
            ("10,5", ["10", "5"]),
            ("37.5°C", ["37.5", "c"]),
            ("1945.", ["1945"]),
            ("1914-1918", ["1914", "1918"]),
            ("forty-two", ["fortytwo"]),
            ("O'Neill’s", ["oneills"]),
            ("J. R. R. Tolkien", ["j", "r", "r", "tolkien"]),
            ("J.R.R. Tolkien", ["j", "r", "r", "tolkien"]),
            ("H₂O", ["h2o"]),
            (" H<sub>2</sub>O<start_of_image>", ["h2o"]),
            (" <em>agua</em>. It", ["agua", "it"]),
            (" 3 < 4 and 5 > 4", ["3", "4", "and", "5", "4"]),
            ("____ the", ["the"]),
            ("the a", ["a"]),
            ("A", ["a"]),
            ("", []),
            (" ...", []),
            ("+ -", []),
            ("-5", ["-5"]),
            (" \N{MINUS SIGN}1,000.5, (-.5) and +5", ["-1000.5", "-0.5", "and", "5"]),
            ("10-12 or (x)-3", ["10", "12", "or", "x", "3"]),
            ("- 5, ...5 and v.5", ["5", "5", "and", "v", "5"]),
            ("C++, C# or A+; C++11, x+y, 5+", ["c++", "c#", "or", "a+", "c++", "11", "x", "y", "5"]),
            ("東京都です。", ["東", "京", "都", "で", "す"]),
            ("ไทย, ROM東京", ["ไ", "ท", "ย", "rom", "東", "京"]),
            ("दिल्ली है।", ["दिल्ली", "है"]),
            ("서울 мой", ["서울", "мои"]),
        ],
    )
    def test_words(self, text, words):
        assert answer_words(text) == words

    @pytest.mark.parametrize(
        ("completion", "right"),
        [
            (" Bram Stoker, who wrote", True),
            (" the bram stoker", True),
            (" Stoker", True),
            (" Bram", False),
            (" Bram\nStoker", True),
            (" Abraham Stoker", False),
            (" not Bram Stoker", False),
            (" Stokers", False),
            ("", False),
        ],
    )
    def test_the_first_words_decide(self, completion, right):
        assert is_answer(completion, FACTS[2]) is right

    @pytest.mark.parametrize(
        ("completion", "right"), [(" 8", True), (" eight.", True), (" 8.5", False), (" 80", False), (" eighty", False)]
    )
    def test_other_spellings_count_and_longer_numbers_do_not(self, completion, right):
        assert is_answer(completion, FACTS[1]) is right


class TestMatching:
    @pytest.mark.parametrize(
        ("answer", "completion", "right"),
        [
            ("-5", " -5.", True),
            ("-5", " 5", False),
            ("5", " -5", False),
            ("5", " +5", True),
            ("0.5", " .5", True),
            ("5", " .5", False),
            ("C", " C++", False),
            ("C", " C.", True),
            ("C++", " C++.", True),
            ("東京", "東京都です", True),
            ("東京", "京都です", False),
            ("ばば", "はは", False),
            ("दिल्ली", " दाल ला", False),
        ],
    )
    def test_signs_and_scripts(self, answer, completion, right):
        assert starts_with(completion, [answer]) is right
        assert (first_named(completion, [answer]) == 0) is right

    @pytest.mark.parametrize("answer", ["", " ", "+", "-", "..."])
    def test_an_answer_without_words_matches_nothing(self, answer):
        for completion in ("Paris", "", answer):
            assert starts_with(completion, [answer]) is False
            assert first_named(completion, [answer]) is None


class TestGenerative:
    @pytest.fixture
    def calls(self, monkeypatch) -> list[dict[str, Any]]:
        """What is asked of the generator, which answers every second prompt right."""
        made: list[dict[str, Any]] = []

        def write(model, tokenizer, contexts, settings, **words):
            made.append({"contexts": contexts, "settings": settings, **words})
            return [" Paris." if i % 2 == 0 else " 8 and" for i in range(len(contexts))]

        monkeypatch.setattr(probe, "generate_continuations", write)
        return made

    def test_what_is_asked(self, calls, tiny_model, tokenizer):
        settings, steps = object(), list[int]()
        found = generative(
            tiny_model,
            tokenizer,
            FACTS,
            settings,  # type: ignore[arg-type]
            bos=[1],
            seed=3,
            max_new_tokens=5,
            batch_size=2,
            advance=steps.append,
        )
        assert steps == [2, 1]
        assert found.said == (" Paris.", " 8 and", " Paris.")
        assert found.right.tolist() == [True, True, False]
        assert [len(call["contexts"]) for call in calls] == [2, 1]
        assert all(
            call["settings"] is settings and call["max_new_tokens"] == 5 and call["domain"] == "functional"
            for call in calls
        )
        assert calls[0]["seed"] != calls[1]["seed"]
        assert calls[0]["contexts"][0] == [1, *tokenizer(FACTS[0].prompt, add_special_tokens=False)["input_ids"]]
        assert calls[1]["names"] == ["fact 'works/dracula'"]

    def test_seeds(self, calls, tiny_model, tokenizer):
        for seed in (0, 1, 0):
            generative(tiny_model, tokenizer, FACTS, {}, bos=[], seed=seed)
        seeds = [call["seed"] for call in calls]
        assert seeds[0] == seeds[2] != seeds[1]

    def test_what_a_model_writes(self, tiny_model, tokenizer):
        """The greedy completion of a random model, taken for the answer, is right."""
        settings, bos = {"do_sample": False}, [tokenizer.bos_token_id]
        said = generative(tiny_model, tokenizer, FACTS, settings, bos=bos, seed=0).said
        knowing = [
            Fact(fact.id, fact.kind, fact.prompt, text or "nothing", fact.wrong)
            for fact, text in zip(FACTS, said, strict=True)
        ]
        again = generative(tiny_model, tokenizer, knowing, settings, bos=bos, seed=1)
        assert again.said == said
        assert again.right.tolist() == [bool(answer_words(text)) for text in said]


class TestAccuracies:
    def test_all_then_by_kind(self):
        rows = accuracies([result(True, False, True, True, kinds="xyxx")])
        assert [(row.kind, row.n, row.accuracy) for row in rows] == [(None, 4, 0.75), ("x", 3, 1.0), ("y", 1, 0.0)]
        assert [row.ci95 for row in rows] == [wilson(3, 4), wilson(3, 3), wilson(0, 1)]

    def test_several_runs_count_each_fact_once(self):
        (row, _) = accuracies([result(True, False), result(True, True), result(True, False), result(True, False)])
        assert (row.n, row.accuracy) == (2, 0.625)
        assert row.ci95 == wilson(1.25, 2)

    @pytest.mark.parametrize("runs", [[], [result(True), result(True, False)], [result(True), result(True, ids="b")]])
    def test_what_is_no_set_of_runs(self, runs):
        with pytest.raises(ValueError, match=r"^runs: "):
            accuracies(runs)


class TestCompare:
    def test_one_run_a_side_is_mcnemar(self):
        a, b = result(*[True] * 8, False, False), result(*[True] * 2, *[False] * 6, True, False)
        found = compare([a], [b])
        assert (found.test, found.n, found.a_only, found.b_only) == ("mcnemar", 10, 6, 1)
        assert found.difference == pytest.approx(0.5)
        assert found.p_value == pytest.approx(2 * (1 + 7) / 2**7)
        assert found.ci95[0] < 0.5 < found.ci95[1]

    def test_several_runs_are_compared_by_the_means_of_facts(self):
        a = [result(*[True] * 6), result(*[True] * 6)]
        b = [result(*[True] * 2, *[False] * 4), result(*[False] * 6)]
        found = compare(a, b)
        assert (found.test, found.n, found.a_only, found.b_only) == ("bootstrap-t", 6, None, None)
        assert found.difference == pytest.approx(1 - 2 / 12)
        assert found.p_value < 0.05  # all six are above 0
        assert found.ci95[0] > 0
        assert found.ci95[0] < found.difference < found.ci95[1]
        assert compare(a, b[:1]).test == "bootstrap-t"

    def test_facts_are_joined_by_id(self):
        a, b = result(True, False, True, ids="abc"), result(False, True, True, ids="cbd")
        found = compare([a], [b])
        assert (found.n, found.a_only, found.b_only) == (2, 1, 1)

    def test_nothing_to_compare(self):
        with pytest.raises(ValueError, match=r"^b: no fact is shared"):
            compare([result(True, ids="a")], [result(True, ids="b")])
        with pytest.raises(ValueError, match=r"^a: no runs"):
            compare([], [result(True)])


@pytest.mark.slow
class TestRealModel:
    def test_it_knows_more_than_chance(self, smollm2):
        found = contrastive(smollm2, load_facts(limit=84))
        low, _ = wilson(int(found.right.sum()), 84)
        assert low > 0.4  # chance is 0.25

    def test_answers_fit_into_a_completion(self, smollm2, gemma):
        for scorer in (smollm2, gemma):
            answers = [f" {fact.answer}" for fact in load_facts()]
            ids = scorer.tokenizer(answers, add_special_tokens=False)["input_ids"]
            assert max(map(len, ids)) <= probe.MAX_NEW_TOKENS

    def test_greedy_says_capitals(self, smollm2):
        facts = load_facts(["capitals"])[:16]
        found = generative(smollm2.model, smollm2.tokenizer, facts, {"do_sample": False}, bos=smollm2.bos, seed=0)
        assert found.accuracy > 0.3
