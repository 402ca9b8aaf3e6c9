"""A model before and after fine-tuning, on the same prompts with the same seeds: gap, share closed, variety, facts.

Design choices:

- One ruler. The same frozen scorers read the texts of the base and of the tuned models. No writer reads itself: its
  texts would be compared with human ones on a scale of its own. `"self"` is the frozen base.
- The same draws. The seed of a batch comes from its prefixes and not from the writer, so the difference between two
  models is theirs.
- The base at the temperature that matches the human mean surprisal (on other texts) is compared with the tuned models
  where it is asked for: a fine-tuning that does no better than that temperature was not needed.
- Batches of texts, their scores and runs of the probe are parts, which are named by what made them (weights, adapter,
  settings): a run can be resumed, and models, decodings or scorers can be added to it.
- Models are loaded one after another; the base and the ruler stay in memory until the base has written.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from rich.progress import Progress

from ugap.data import PartStore, TextRow, content_hash, part_key
from ugap.data.facts import Fact, load_facts, split_facts
from ugap.environment import environment
from ugap.errors import InputError
from ugap.files import locked, without_nan
from ugap.models import adapter_hash, load_model
from ugap.profile import HumanProfile, KindProfile
from ugap.progress import progress_bar
from ugap.scoring import Scorer, ScorerId
from ugap.study.compare.matched import matched_setting
from ugap.study.compare.table import BASE, CONTRASTIVE, MATCHED, Origin, Reading, probe_record
from ugap.study.continuations import Continuations, Text, batches, check_writer
from ugap.study.decodings import Settings
from ugap.study.excerpts import Excerpt, cut_excerpts
from ugap.study.generation import seed_of
from ugap.study.options import BeforeAfterOptions
from ugap.study.pairs import HUMAN, MIN_TOKENS, SELF, ScoredText
from ugap.study.probes.facts import FactResult, contrastive, generative
from ugap.study.probes.questions import KIND as QUESTIONS
from ugap.study.probes.questions import Question, ask_questions

VERSION = 2
ANSWERS = pa.schema([("said", pa.string()), ("right", pa.bool_())])


@dataclass(frozen=True)
class Tuned:
    """A tuned model.

    Args:
        name (`str`): Name in tables.
        model (`str`): Folder of a PEFT adapter of the base; or a whole model: asset, folder or Hub id.
        is_adapter (`bool`): Which of the two.
    """

    name: str
    model: str
    is_adapter: bool

    @classmethod
    def parse(cls, word: str, *, is_adapter: bool) -> "Tuned":
        """Read `MODEL`, which is then its own name, or `NAME=MODEL`.

        Example:
            >>> Tuned.parse("ours=runs/sft", is_adapter=True)
            Tuned(name='ours', model='runs/sft', is_adapter=True)
        """
        name, custom, model = word.partition("=")
        return cls(word, word, is_adapter) if not custom or Path(word).exists() else cls(name, model, is_adapter)


@dataclass(frozen=True, kw_only=True)
class BeforeAfterSettings(BeforeAfterOptions):
    """The models of the comparison, and the texts that it is on.

    Args:
        model (`str`): The base: asset, folder, `.gguf` file or Hub id.
        decodings (`Mapping[str, Mapping]`): `generate()` settings by name, for the base and the tuned models alike.
        tuned (`Sequence[Tuned]`, *optional*): The tuned models.
        base_scorer (`str`, *optional*): The frozen model behind `"self"`; by default the base.
        scorers (`Sequence[str]`, *optional*, defaults to `("self",)`): Who reads: `"self"`, and other models by name.
        profiles (`Sequence[HumanProfile]`, *optional*): Human profiles of scorers; a scorer that has none among them
            takes its own, see [`profile_for`][ugap.profile.profile_for].
        domain (`str`, *optional*, defaults to `"creative"`): Domain of the texts.
        prefix_tokens (`int`, *optional*, defaults to `64`): Tokens of a prefix, by the base's tokenizer.
        max_new_tokens (`int`, *optional*, defaults to `128`): Tokens of a continuation.
        limit (`int`, *optional*): Prefixes.
        per_text (`int`, *optional*, defaults to `2`): Prefixes of one text.
        seeds (`int`, *optional*, defaults to `1`): Continuations of every prefix under a decoding.
        batch_size (`int`, *optional*, defaults to `16`): Prefixes that are continued side by side.
        facts (`Sequence[Fact]`, *optional*): Facts of the probe, see `probe_facts`.
        questions (`Sequence[Question]`, *optional*): Questions whose answer is a number.
        question_tokens (`int`, *optional*, defaults to `256`): Longest answer to a question, in tokens.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of the weights.
        device (`str`, *optional*): Where models run.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run the code that a repository brings along.
    """

    model: str
    decodings: Mapping[str, Settings]
    tuned: Sequence[Tuned] = ()
    scorers: Sequence[str] = (SELF,)
    profiles: Sequence[HumanProfile] = ()
    facts: Sequence[Fact] = ()
    questions: Sequence[Question] = ()
    question_tokens: int = 256


def probe_facts(which: Literal["held-out", "all", "none"] = "held-out", *, limit: int | None = None) -> list[Fact]:
    """Facts of the probe: the half that the trainings of this package do not use, or all.

    Args:
        which (`str`, *optional*, defaults to `"held-out"`): `"held-out"`, `"all"` or `"none"`.
        limit (`int`, *optional*): So many of them, taken from each kind in turn.

    Raises:
        InputError: If the limit is not positive.

    Example:
        >>> len(probe_facts()), [fact.kind for fact in probe_facts(limit=3)]
        (324, ['animals', 'arithmetic', 'calendar'])
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit of facts is {limit}, and at least 1 is needed")
    if which == "none":
        return []
    facts = load_facts() if limit is None else load_facts(limit=len(load_facts()))  # with a limit, kinds take turns
    return (split_facts(facts)[1] if which == "held-out" else facts)[:limit]


def measure_before_after(
    rows: Sequence[TextRow],
    settings: BeforeAfterSettings,
    folder: str | Path,
    *,
    tune: Sequence[TextRow] = (),
    progress: bool = False,
) -> dict[str, Any]:
    """Let the base and the tuned models write and answer, let the scorers read, and compare.

    Args:
        rows (`Sequence[TextRow]`): Human texts of the domain.
        settings (`BeforeAfterSettings`): What to compare.
        folder (`str` or `Path`): Folder of the parts; those that are there are used.
        tune (`Sequence[TextRow]`, *optional*): Other human texts of the domain, to match the temperature of the base
            on; without them there is no base at the matched temperature.
        progress (`bool`, *optional*, defaults to `False`): Show progress bars.

    Returns:
        `dict`: In the types of JSON, `None` for numbers that cannot be estimated:

        - `version`, `settings`, `models`, and `matched`: the matched temperature and those that were tried;
        - `scorers`, each with its numbers of people's texts;
        - `rows`: a writer and decoding under a scorer;
        - `shares`: what is closed of the base's absolute gap in surprisal;
        - `rewards`: before, after and their difference; empty where the human profile is not of whole texts;
        - `facts` and `questions`: accuracies, comparisons with the base and answers; `None` where none were asked.

    Raises:
        InputError: If a model, adapter, text or profile cannot be used, or the folder holds parts of other texts or
            sizes.
    """
    _check(settings)
    names = ("model", "domain", "prefix_tokens", "max_new_tokens", "limit", "per_text", "batch_size", "dtype")
    shared = {
        **{name: getattr(settings, name) for name in names},
        "data_hash": content_hash([row.text for row in rows]),
        "tune_hash": content_hash([row.text for row in tune]) if tune else None,
    }
    # The texts of the matched temperature change no other part.
    kept = {name: value for name, value in shared.items() if name != "tune_hash"}
    folder = Path(folder)
    with locked(folder):
        work = Continuations(folder, kept)
        answers = PartStore(folder / "answers", ANSWERS, kept)
        try:
            with progress_bar(disable=not progress) as bar:
                tables = _Work(settings, work, answers, bar).run(rows, tune)
        except InputError:
            if not work.begun():  # the answers are parts below the folder too
                answers.clear()
                work.clear_if_unused()
            raise
    return without_nan(
        {
            "version": VERSION,
            "settings": {
                **shared,
                "decodings": {name: dict(how) for name, how in settings.decodings.items()},
                "base_scorer": settings.base_scorer or settings.model,
                "seeds": settings.seeds,
                "facts_hash": content_hash(list(settings.facts)),
                "questions_hash": content_hash(list(settings.questions)),
                "question_tokens": settings.question_tokens,
                "environment": environment(),
            },
            **tables,
        }
    )


@dataclass(frozen=True)
class _Writer:
    """A loaded model, by the name that tables have for it."""

    name: str
    scorer: Scorer

    @property
    def weights(self) -> str:
        """The hash of its weights, an adapter's among them."""
        return self.scorer.id.weight_hash


@dataclass(frozen=True)
class _Work:
    settings: BeforeAfterSettings
    work: Continuations
    answers: PartStore
    bar: Progress

    def run(self, rows: Sequence[TextRow], tune: Sequence[TextRow]) -> dict[str, Any]:
        s = self.settings
        for tuned in s.tuned:
            if tuned.is_adapter:
                adapter_hash(tuned.model)  # a folder that is none is found before anything is done
        base = self._base()
        ruler = base.scorer if s.base_scorer in (None, s.model) else self._load(str(s.base_scorer))
        # All scorers are known already: a profile of another is refused before hours of writing.
        if list(s.scorers) == [SELF]:
            self._refuse_unused_profiles([ruler.id])
        profile = self._profile(ruler)
        excerpts = self._cut(base, rows)
        matched = self._match(base, ruler, self._cut(base, tune)) if tune else None
        decodings = {**s.decodings, **({MATCHED: {"temperature": matched["temperature"]}} if matched else {})}
        models = [{"name": BASE, "model": s.model, "is_adapter": False, "weights": base.weights}]
        written = self._written(base, excerpts, decodings)
        facts, questions = self._asked(base, decodings)
        # The base leaves memory before the first tuned model is loaded.
        del base
        for tuned in s.tuned:
            writer = self._tuned(tuned)
            models.append({**asdict(tuned), "weights": writer.weights})
            written |= self._written(writer, excerpts, s.decodings)
            for kept, answered in zip((facts, questions), self._asked(writer, s.decodings), strict=True):
                kept.update(answered)
            del writer
        readings = []
        for label in s.scorers:
            scorer = ruler if label == SELF else self._load(label)
            scorer_profile = profile if label == SELF else self._profile(scorer)
            readings.append(self._reading(label, scorer, scorer_profile, excerpts, written))
        self._refuse_unused_profiles([ruler.id, *(reading.scorer for reading in readings)])
        return {
            "models": models,
            "matched": matched,
            "scorers": [reading.record() for reading in readings],
            "rows": [
                {**row, "settings": dict(decodings[row["decoding"]])} for reading in readings for row in reading.rows()
            ],
            "shares": [row for reading in readings for row in reading.shares(list(s.decodings))],
            "rewards": [row for reading in readings for row in reading.rewards(list(s.decodings))],
            "facts": probe_record(facts, list(s.decodings)),
            "questions": probe_record(questions, []),
        }

    def _load(self, name: str) -> Scorer:
        s = self.settings
        return Scorer.from_pretrained(name, dtype=s.dtype, device=s.device, trust_remote_code=s.trust_remote_code)

    def _base(self) -> _Writer:
        base = _Writer(BASE, self._load(self.settings.model))
        check_writer(base.scorer, self.settings.decodings.values(), [self.settings.domain])
        return base

    def _tuned(self, tuned: Tuned) -> _Writer:
        s = self.settings
        if not tuned.is_adapter:
            return _Writer(tuned.name, self._load(tuned.model))
        model, tokenizer = load_model(
            s.model, adapter=tuned.model, dtype=s.dtype, device=s.device, trust_remote_code=s.trust_remote_code
        )
        return _Writer(tuned.name, Scorer(model, tokenizer, name=tuned.name))

    def _cut(self, base: _Writer, rows: Sequence[TextRow]) -> list[Excerpt]:
        s = self.settings
        return cut_excerpts(
            rows,
            base.scorer.tokenizer,
            prefix_tokens=s.prefix_tokens,
            max_new_tokens=s.max_new_tokens,
            limit=s.limit,
            per_text=s.per_text,
        )

    def _match(self, base: _Writer, ruler: Scorer, excerpts: Sequence[Excerpt]) -> dict[str, Any]:
        """The temperature of the base at which the ruler reads people's mean surprisal, and what was tried."""
        tried: dict[str, float] = {}

        def mean_surprisal(scored: Sequence[ScoredText]) -> float:
            return float(np.mean([text.scores.nll for text in scored if len(text.scores)]))

        def surprisal_at(temperature: float) -> float:
            how = {"temperature": temperature}
            texts = self._texts(base, excerpts, f"temperature {temperature:g}", how, 0, use="tune")
            tried[f"{temperature:g}"] = mean_surprisal(self._scored(ruler, excerpts, texts, BASE, f"T={temperature:g}"))
            return tried[f"{temperature:g}"]

        human = mean_surprisal(self._scored(ruler, excerpts, [excerpt.human for excerpt in excerpts], HUMAN, HUMAN))
        return {"temperature": matched_setting(human, surprisal_at), "human": human, "tried": tried}

    def _written(
        self, writer: _Writer, excerpts: Sequence[Excerpt], decodings: Mapping[str, Settings]
    ) -> dict[Origin, list[list[str]]]:
        """The texts of a model under every decoding, by every seed."""
        return {
            (writer.name, decoding): [
                self._texts(writer, excerpts, decoding, how, seed) for seed in range(self.settings.seeds)
            ]
            for decoding, how in decodings.items()
        }

    def _texts(
        self,
        writer: _Writer,
        excerpts: Sequence[Excerpt],
        decoding: str,
        how: Settings,
        seed: int,
        *,
        use: str = "test",
    ) -> list[str]:
        s, out = self.settings, list[str]()
        label = f"{writer.name} writes: {decoding}" + (f", seed {seed}" if s.seeds > 1 else "")
        task = self.bar.add_task(label, total=len(excerpts))
        for number, batch in batches(excerpts, s.batch_size):
            out += self.work.write(
                writer.scorer,
                batch,
                decoding,
                how,
                writer.name,
                use,
                max_new_tokens=s.max_new_tokens,
                # Without the writer's name: base and tuned models draw with the same random numbers.
                seed=seed_of(seed, use, number),
                domain=s.domain,
            )
            self.bar.update(task, completed=len(out))
        return out

    def _reading(
        self,
        label: str,
        scorer: Scorer,
        profile: KindProfile,
        excerpts: Sequence[Excerpt],
        written: Mapping[Origin, list[list[str]]],
    ) -> Reading:
        human = self._scored(scorer, excerpts, [excerpt.human for excerpt in excerpts], HUMAN, HUMAN)
        scored = {
            (writer, decoding): [self._scored(scorer, excerpts, texts, writer, decoding) for texts in seeds]
            for (writer, decoding), seeds in written.items()
        }
        return Reading(label, scorer.id, profile, human, scored)

    def _scored(
        self, scorer: Scorer, excerpts: Sequence[Excerpt], texts: Sequence[str], writer: str, decoding: str
    ) -> list[ScoredText]:
        """Texts with the numbers of a scorer."""
        out: list[ScoredText] = []
        label = f"{scorer.name} reads {writer}" + ("" if writer == HUMAN else f": {decoding}")
        task = self.bar.add_task(label, total=len(texts))
        pairs = [Text(one, writer, decoding, text) for one, text in zip(excerpts, texts, strict=True)]
        for _, batch in batches(pairs, self.settings.batch_size):
            out += self.work.scores(self.work.read(scorer, batch, writer, decoding))
            self.bar.update(task, completed=len(out))
        return out

    def _asked(
        self, writer: _Writer, decodings: Mapping[str, Settings]
    ) -> tuple[dict[Origin, FactResult], dict[Origin, FactResult]]:
        """The answers of a model to the facts, in itself and under every decoding, and to the questions."""
        s, scorer = self.settings, writer.scorer
        facts: dict[Origin, FactResult] = {}
        questions: dict[Origin, FactResult] = {}
        if s.facts:
            about = list(s.facts)

            def choose(advance: Callable[[int], object]) -> FactResult:
                return contrastive(scorer, s.facts, advance=advance)

            key = part_key(writer.name, CONTRASTIVE, weights=writer.weights, content=about)
            facts[writer.name, CONTRASTIVE] = self._answered(writer, CONTRASTIVE, key, s.facts, choose)
            for decoding, how in decodings.items():
                # `how` is bound as a default: a closure would see the last decoding of the loop.
                def say(advance: Callable[[int], object], how: Settings = how) -> FactResult:
                    model, tokenizer = scorer.model, scorer.tokenizer
                    return generative(model, tokenizer, s.facts, how, bos=scorer.bos, seed=0, advance=advance)

                key = part_key(writer.name, decoding, weights=writer.weights, content=(dict(how), about))
                facts[writer.name, decoding] = self._answered(writer, decoding, key, s.facts, say)
        if s.questions:

            def solve(advance: Callable[[int], object]) -> FactResult:
                return ask_questions(
                    scorer.model,
                    scorer.tokenizer,
                    s.questions,
                    bos=scorer.bos,
                    max_new_tokens=s.question_tokens,
                    advance=advance,
                )

            content = (s.question_tokens, list(s.questions))
            key = part_key(writer.name, QUESTIONS, weights=writer.weights, content=content)
            questions[writer.name, QUESTIONS] = self._answered(writer, QUESTIONS, key, s.questions, solve)
        return facts, questions

    def _answered(
        self,
        writer: _Writer,
        test: str,
        key: str,
        items: Sequence[Fact] | Sequence[Question],
        ask: Callable[[Callable[[int], object]], FactResult],
    ) -> FactResult:
        # Answers alone are kept: ids and kinds come from the items, whose content is in the key.
        if not self.answers.done(key):
            task = self.bar.add_task(f"{writer.name} answers: {test}", total=len(items))
            answered = ask(lambda n: self.bar.advance(task, n))
            rows = zip(answered.said, answered.right.tolist(), strict=True)
            self.answers.write(key, [{"said": said, "right": right} for said, right in rows])
        kept = self.answers.read(key)
        return FactResult(
            tuple(item.id for item in items),
            tuple(item.kind for item in items),
            tuple(row["said"] for row in kept),
            np.array([row["right"] for row in kept], np.bool_),
        )

    def _profile(self, scorer: Scorer) -> KindProfile:
        """The human profile of a scorer: one that was given, else its own."""
        given = (one for one in self.settings.profiles if one.weight_hash == scorer.id.weight_hash)
        profile = next(given, None) or HumanProfile.for_scorer(scorer)
        return profile.kind(self.settings.domain)

    def _refuse_unused_profiles(self, scorers: Sequence[ScorerId]) -> None:
        hashes = {scorer.weight_hash for scorer in scorers}
        for profile in self.settings.profiles:
            if profile.weight_hash not in hashes:
                profile.check(scorers[0])


def _check(settings: BeforeAfterSettings) -> None:
    least = {
        "prefix_tokens": 1,
        "max_new_tokens": MIN_TOKENS,
        "limit": 1,
        "per_text": 1,
        "seeds": 1,
        "batch_size": 1,
        "question_tokens": 1,
    }
    for name, value in least.items():
        given = getattr(settings, name)
        if given is not None and given < value:
            raise InputError(f"{name} is {given}, and at least {value} is needed")
    if not settings.decodings:
        raise InputError("there is nothing to compare: name a decoding")
    for decoding in settings.decodings:
        if decoding in (MATCHED, CONTRASTIVE):
            raise InputError(f"decoding {decoding!r}: the name is taken")
    if not settings.scorers:
        raise InputError("there is nobody to read: name a scorer")
    for kind, given in (("tuned model", [one.name for one in settings.tuned]), ("scorer", list(settings.scorers))):
        twice = next((name for i, name in enumerate(given) if name in given[:i]), None)
        if twice is not None:
            raise InputError(f"{kind} {twice!r} is named twice")
    for one in settings.tuned:
        if one.name in (BASE, HUMAN, ""):
            raise InputError(f"tuned model {one.name!r}: the name is taken")
