"""One evaluation of a policy: its continuations of held-out prefixes, compared with those of people.

Design choices:

- The unit of work is a batch of one domain's prefixes. Its seed comes from the batch and not from the step. So
  evaluations at two steps draw with the same random numbers, and the difference between them is the policy's.
- Processes share whole units, so the texts and the numbers do not depend on the number of processes. All processes run
  equally many units, because the forward passes of a sharded policy wait for each other. Units that are run twice for
  that are kept once.
- A continuation that is empty or too short for a pair is left out and counted. Logits that are not finite end the run.
- Nothing is kept on disk, as `ugap.study.continuations` does: the weights of a step never come back.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ugap.data.facts import Fact
from ugap.errors import InputError
from ugap.profile import KindProfile
from ugap.profile.plain import FloatArray
from ugap.profile.texts import closeness
from ugap.scoring import Scorer, TokenScores
from ugap.scoring.tokenise import bos_ids, encode
from ugap.statistics import distinct_n, repetition
from ugap.statistics.energy import energy_distance
from ugap.study.continuations import RAW
from ugap.study.decodings import Settings
from ugap.study.excerpts import Excerpt
from ugap.study.gap.table import gap_table
from ugap.study.generation import generate_continuations, seed_of
from ugap.study.pairs import HUMAN, MIN_TOKENS, Cell, ScoredText, pair
from ugap.study.probes.facts import FactResult, accuracies, contrastive

POLICY = "policy"
# The logged measures of a study. The others follow from these, or compare texts of several tokenizers.
MEASURES = ("nll", "entropy", "pmi", "deviation")

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation.

    Args:
        texts (`list[ScoredText]`): The policy's continuations that could be scored, in the order of the excerpts.
        cells (`list[Cell]`): Their pairs with the human ones, by domain.
        n_dropped (`dict[str, int]`): Excerpts of every domain that are in no pair.
        facts (`FactResult`, *optional*): The factual probe.
        people (`Mapping[str, KindProfile]`, *optional*): The human texts that a text is compared with, by its source.
    """

    texts: list[ScoredText]
    cells: list[Cell]
    n_dropped: dict[str, int]
    facts: FactResult | None
    people: Mapping[str, KindProfile] = field(default_factory=dict)

    def scalars(self, seed: int) -> dict[str, float]:
        """The numbers of this evaluation by their names in the log, without those that could not be estimated.

        Args:
            seed (`int`): Seed of the bootstrap.
        """
        scalars: dict[str, float] = {}
        for row in gap_table(self.cells, seed=seed):
            if row["measure"] not in MEASURES:
                continue
            name = f"ugap/{row['domain']}/{row['measure']}"
            scalars[f"{name}_gap"] = row["gap"]
            scalars[f"{name}_gap_low"], scalars[f"{name}_gap_high"] = row["ci95"]
            scalars[f"{name}_wasserstein"] = float(row["wasserstein"])
        for cell in self.cells:
            for of, side in (("", cell.generated), ("_human", cell.human)):
                # Pairs are cut to one number of tokens: measure the same part of the text.
                shown = [scores.text[: int(scores.offsets[-1, 1])] for scores in side]
                for n in (2, 4):
                    scalars[f"ugap/{cell.domain}/distinct_{n}{of}"] = distinct_n(shown, n)
                repeated = repetition([scores.token_ids.tolist() for scores in side])
                scalars[f"ugap/{cell.domain}/repetition{of}"] = repeated
            if all(source in self.people for source in cell.sources):
                scalars |= _nearness(cell, [self.people[source] for source in cell.sources])
        for domain, n in self.n_dropped.items():
            scalars[f"ugap/{domain}/n_dropped"] = n
        if self.facts is not None:
            overall = accuracies([self.facts])[0]
            scalars["ugap/facts/accuracy"] = overall.accuracy
            scalars["ugap/facts/accuracy_low"], scalars["ugap/facts/accuracy_high"] = overall.ci95
        return {name: value for name, value in scalars.items() if math.isfinite(value)}


def _nearness(cell: Cell, people: Sequence[KindProfile]) -> dict[str, float]:
    """How near texts are to people: one by one, and all together to the human continuations of the same prefixes.

    Closeness is the mean over texts of the part of the reward that is 1 inside the human region, in [0, 1]. Energy
    distance is about the whole: 0 where policy and people are alike, in human standard deviations. It sees texts that
    are all close to people and too much like each other, which closeness does not.
    """
    points = {
        of: np.array([_point(scores, kind) for scores, kind in zip(side, people, strict=True)])
        for of, side in (("", cell.generated), ("_human", cell.human))
    }
    out = {f"ugap/{cell.domain}/closeness{of}": float(closeness(rows).mean()) for of, rows in points.items()}
    known = np.isfinite(np.concatenate(list(points.values()))).all(0)
    out[f"ugap/{cell.domain}/energy_distance"] = energy_distance(points[""][:, known], points["_human"][:, known])
    return out


def _point(scores: TokenScores, kind: KindProfile) -> FloatArray:
    assert kind.texts is not None
    return kind.texts.whitened(kind.text_features(scores), len(scores))


@dataclass(frozen=True)
class _Unit:
    number: int
    domain: str
    excerpts: Sequence[Excerpt]


class HeldOut:
    """Held-out prefixes with their human continuations, and the frozen scorer of both sides.

    Args:
        excerpts (`Sequence[Excerpt]`): Prefixes and human continuations, of any number of domains.
        scorer (`Scorer`): The frozen scorer.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the policy.
        facts (`Sequence[Fact]`): Facts to ask the policy; may be empty.
        decoding (`Mapping[str, Any]`): Decoding of the policy, see `ugap.study.decodings.DECODINGS`.
        max_new_tokens (`int`): Longest continuation in tokens.
        batch_size (`int`): Prefixes continued at once.
        seed (`int`): Seed of the draws, the same at every evaluation.
        people (`Mapping[str, KindProfile]`): The human texts that a text is compared with, by its source; may be empty.

    Attributes:
        human (`dict[str, ScoredText]`): The human continuations by the id of their excerpt.

    Raises:
        InputError: If a human continuation cannot be scored, or all of a domain are too short.
    """

    def __init__(
        self,
        excerpts: Sequence[Excerpt],
        scorer: Scorer,
        tokenizer: PreTrainedTokenizerBase,
        *,
        facts: Sequence[Fact],
        decoding: Settings,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        people: Mapping[str, KindProfile],
    ):
        self.excerpts, self.scorer, self.tokenizer, self.facts = excerpts, scorer, tokenizer, facts
        self.decoding, self.max_new_tokens, self.seed, self.people = decoding, max_new_tokens, seed, people
        self.domains = list(dict.fromkeys(excerpt.domain for excerpt in excerpts))
        self._units: list[_Unit] = []
        for domain in self.domains:
            members = [excerpt for excerpt in excerpts if excerpt.domain == domain]
            # A unit has one domain, because decodings can aim at the level of one.
            for number, begin in enumerate(range(0, len(members), batch_size)):
                self._units.append(_Unit(number, domain, members[begin : begin + batch_size]))
        self.human: Mapping[str, ScoredText] = {text.id: text for text in self._together(self._read_people)}
        for domain in self.domains:
            if all(len(text.scores) < MIN_TOKENS for text in self.human.values() if text.domain == domain):
                raise InputError(f"domain {domain!r}: no human continuation has {MIN_TOKENS} tokens")

    def evaluation(self, policy: PreTrainedModel, advance: Advance | None = None) -> Evaluation:
        """Let the policy continue the prefixes and answer the facts. Every process gets the same result.

        Args:
            policy (`PreTrainedModel`): The policy in eval mode; for a PEFT model, its base with the adapter layers.
            advance (`Callable[[int], object]`, *optional*): Called with the number of prefixes and facts done since
                the last call.

        Raises:
            InputError: If logits of the policy or the scorer are not finite; the message names the text.
        """

        def work(unit: _Unit) -> list[ScoredText]:
            texts = self._read_policy(unit, policy)
            if advance is not None:
                advance(len(unit.excerpts))
            return texts

        texts = self._together(work)
        cells = pair([*self.human.values(), *texts])
        # A domain whose excerpts were all dropped has no cell.
        paired = {cell.domain: len(cell.human) for cell in cells}
        n_dropped = {
            domain: sum(excerpt.domain == domain for excerpt in self.excerpts) - paired.get(domain, 0)
            for domain in self.domains
        }
        facts = self._ask(policy, advance) if self.facts else None
        return Evaluation(texts, cells, n_dropped, facts, self.people)

    @property
    def n_local(self) -> int:
        """Number of prefixes and facts of this process at an evaluation."""
        state = PartialState()
        facts = self.facts[state.process_index :: state.num_processes]
        return sum(len(unit.excerpts) for unit, _ in self._local_units()) + len(facts)

    def _local_units(self) -> list[tuple[_Unit, bool]]:
        """Units of this process, equally many in all processes, and whether their texts count."""
        state = PartialState()
        # Rounded up; the modulo below gives idle processes a unit that others have too.
        rounds = -(-len(self._units) // state.num_processes)
        numbers = [state.process_index + k * state.num_processes for k in range(rounds)]
        return [(self._units[number % len(self._units)], number < len(self._units)) for number in numbers]

    def _together(self, work: Callable[[_Unit], list[ScoredText]]) -> list[ScoredText]:
        """The texts of all processes' units, in the order of the excerpts."""
        local: list[ScoredText] = []
        for unit, kept in self._local_units():
            texts = work(unit)
            local += texts if kept else []
        order = {excerpt.id: i for i, excerpt in enumerate(self.excerpts)}
        return sorted(gather_object(local), key=lambda text: order[text.id])

    def _read_people(self, unit: _Unit) -> list[ScoredText]:
        return self._scored(unit.excerpts, [excerpt.human for excerpt in unit.excerpts], HUMAN)

    def _read_policy(self, unit: _Unit, policy: PreTrainedModel) -> list[ScoredText]:
        prefixes = [excerpt.prefix for excerpt in unit.excerpts]
        plain = self.tokenizer(prefixes, add_special_tokens=False, split_special_tokens=True)
        # The BOS of the policy's tokenizer: a scorer of another family has another BOS.
        bos = bos_ids(self.tokenizer)
        written = generate_continuations(
            policy,
            self.tokenizer,
            [[*bos, *ids] for ids in plain["input_ids"]],
            self.decoding,
            max_new_tokens=self.max_new_tokens,
            seed=seed_of(self.seed, unit.domain, unit.number),
            domain=unit.domain,
            names=[_name(excerpt, POLICY) for excerpt in unit.excerpts],
        )
        pairs = list(zip(unit.excerpts, written, strict=True))
        # The scorer's own errors would end the run.
        kept = [(excerpt, text) for excerpt, text in pairs if self._can_be_scored(text, excerpt)]
        return self._scored([excerpt for excerpt, _ in kept], [text for _, text in kept], POLICY)

    def _can_be_scored(self, text: str, excerpt: Excerpt) -> bool:
        try:
            encode(self.scorer.tokenizer, text, excerpt.prefix, bos=self.scorer.bos)
        except InputError:
            return False
        return True

    def _scored(self, excerpts: Sequence[Excerpt], texts: Sequence[str], author: str) -> list[ScoredText]:
        scores: Sequence[TokenScores] = self.scorer.score(
            texts,
            [excerpt.prefix for excerpt in excerpts],
            True,
            names=[_name(excerpt, author) for excerpt in excerpts],
        )
        return [
            ScoredText(
                id=excerpt.id,
                source=excerpt.source,
                domain=excerpt.domain,
                model=POLICY,
                prompting=RAW,
                decoding=author,
                scorer=self.scorer.name,
                prefix=excerpt.prefix,
                scores=score,
            )
            for excerpt, score in zip(excerpts, scores, strict=True)
        ]

    def _ask(self, policy: PreTrainedModel, advance: Advance | None) -> FactResult:
        state = PartialState()
        local = self.facts[state.process_index :: state.num_processes]
        result = contrastive(Scorer(policy, self.tokenizer), local, advance=advance)
        # By id, because processes took every n-th fact.
        answers = gather_object(list(zip(result.ids, result.said, result.right.tolist(), strict=True)))
        by_id = {name: (said, right) for name, said, right in answers}
        said, right = zip(*(by_id[fact.id] for fact in self.facts), strict=True)
        return FactResult.of(self.facts, said, right)


def _name(excerpt: Excerpt, author: str) -> str:
    return f"{excerpt.where}, text {excerpt.id!r} ({author})"
