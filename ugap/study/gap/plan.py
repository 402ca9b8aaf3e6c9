"""What a study would do: its texts and tokens, and about how long they take on this machine.

Every model is loaded, and writes and reads one small batch against the clock. A model that cannot be used is refused
here as by the study.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ugap.data import TextRow
from ugap.scoring import Scorer
from ugap.study.continuations import contexts_of
from ugap.study.gap.run import StudySettings, Unit, Workload, check_settings
from ugap.study.generation import generate_continuations
from ugap.study.pairs import SELF

_TRIAL = 16  # tokens that a model writes to be timed


@dataclass(frozen=True)
class Step:
    """A part of a study.

    Args:
        name (`str`): Who does what.
        n_texts (`int`): Texts that are written or read.
        n_tokens (`int`): Tokens of these texts: as many as are written at the most, or are read at the least.
        seconds (`float`): About how long it takes; NaN where it was not timed.
    """

    name: str
    n_texts: int
    n_tokens: int
    seconds: float


def plan_study(rows: Sequence[TextRow], settings: StudySettings) -> list[Step]:
    """The steps of [`run_study`][ugap.study.run_study]; nothing is written to disk but the caches of models.

    Args:
        rows (`Sequence[TextRow]`): Human texts, with given continuations where there are any.
        settings (`StudySettings`): What to measure.

    Raises:
        InputError: As `run_study`, as far as it can be known without writing the texts.
    """
    check_settings(settings, rows)
    work = Workload(settings, rows)
    steps: list[Step] = []
    prefixes: dict[str, list[Unit]] = {}
    # As in the study, a model lives in the call that uses it, so that two are never in memory together.
    for name in settings.models:
        new, prefixes[name] = _of_writer(work, name)
        steps += new
    for name in settings.scorers:
        if name != SELF:
            steps += _of_reader(work, name, prefixes)
    return steps


def _of_writer(work: Workload, name: str) -> tuple[list[Step], list[Unit]]:
    scorer = work.load(name)
    units = work.units(scorer)
    steps = [_writing(work, scorer, units)]
    if SELF in work.settings.scorers:
        steps.append(_reading(work, scorer, scorer.name, units, given=True))
    return steps, units


def _of_reader(work: Workload, name: str, prefixes: Mapping[str, list[Unit]]) -> list[Step]:
    scorer, s = work.load(name), work.settings
    itself = name in s.models and SELF in s.scorers
    steps = [
        _reading(work, scorer, model, prefixes[model], given=False)
        for model in s.models
        if not (model == name and itself)
    ]
    if any(row.candidates for row in work.rows) and not itself:
        steps.append(_reading(work, scorer, "given texts", work.units(scorer), given=True, written=False))
    return steps


def _writing(work: Workload, scorer: Scorer, units: Sequence[Unit]) -> Step:
    s, unit = work.settings, units[0]
    n_texts = sum(len(one.batch) for one in units) * len(s.decodings)
    n_tokens = n_texts * s.max_new_tokens
    seconds = 0.0 if s.engine == "transformers" else math.nan  # starting vLLM takes longer than a trial is worth
    if s.engine == "transformers" and s.decodings:
        contexts = contexts_of(scorer, unit.batch, unit.prompting)
        how = next(iter(work.follow(scorer).values()))
        trial = min(_TRIAL, s.max_new_tokens)
        seconds = (
            n_tokens
            / (len(contexts) * trial)
            * _timed(
                lambda: generate_continuations(
                    scorer.model, scorer.tokenizer, contexts, how, max_new_tokens=trial, seed=0, domain=unit.domain
                )
            )
        )
    return Step(f"{scorer.name} writes", n_texts, n_tokens, seconds)


def _reading(
    work: Workload, scorer: Scorer, writer: str, units: Sequence[Unit], *, given: bool, written: bool = True
) -> Step:
    s, batch = work.settings, units[0].batch
    # Human text, that of each decoding, and what came with the data.
    n_texts = sum(len(one.batch) for one in units) * (1 + len(s.decodings) * written)
    if given:
        n_texts += sum(len(excerpt.candidates) for one in units for excerpt in one.batch)
    texts, before = [one.human for one in batch], [one.prefix for one in batch]
    seconds = n_texts / len(batch) * _timed(lambda: scorer.score(texts, before, pmi=s.pmi, skip_bad=s.skip_bad))
    name = f"{writer} read by {'itself' if writer == scorer.name else scorer.name}"
    return Step(name, n_texts, n_texts * s.max_new_tokens, seconds)


def _timed(work: Callable[[], object]) -> float:
    """Seconds that a piece of work takes when it is done for the second time: the first warms up."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
