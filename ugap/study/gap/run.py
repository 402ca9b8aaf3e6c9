"""The study: models continue human prefixes, scorers read both continuations, and the gap between them is estimated.

Work is done in units of a few prefixes. A finished unit is a Parquet part; a resumed study starts from the
parts that are there. A unit's seed comes from what it makes and never from when it is made, so an interrupted study
ends with the table of an uninterrupted one. Models are loaded one after another, each once to generate and score itself
and once more for each other scorer.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import Progress

from ugap.data import TextRow
from ugap.environment import environment
from ugap.errors import InputError
from ugap.files import locked, refuse_results, without_nan, write_csv, write_json
from ugap.progress import progress_bar
from ugap.scoring import Scorer
from ugap.study.continuations import CHAT, RAW, Continuations, Text, batches, check_writer
from ugap.study.decodings import DECODINGS, STUDIED, Settings
from ugap.study.engine import check_engine, open_engine
from ugap.study.excerpts import Excerpt, cut_excerpts
from ugap.study.following import check_kinds, check_texts, following, like_hash
from ugap.study.gap.table import contrast_table, flat_row, gap_table
from ugap.study.generation import Engine, seed_of
from ugap.study.options import GapOptions
from ugap.study.pairs import GIVEN, HUMAN, SELF, Cell, pair
from ugap.study.store import rows_hash

VERSION = 2
PROMPTINGS = (RAW, CHAT)
PARTS = "parts"


@dataclass(frozen=True, kw_only=True)
class StudySettings(GapOptions):
    """What a study measures.

    Args:
        models (`list[str]`): Models that continue the prefixes: paths, Hub ids or asset names.
        adapters (`dict[str, dict[str, str]]`, *optional*): For a model that is an adapter on a base, `name` and
            `adapter` as [`load_model`][] takes them. `ugap.models.adapter.adapted_name` names such a model.
        scorers (`list[str]`, *optional*, defaults to `["self"]`): Who scores: `"self"` is each model itself, a name is
            one fixed model for all.
        decodings (`dict[str, dict]`, *optional*): `generate()` settings by name; by default
            those of `ugap.study.decodings.STUDIED`.
        promptings (`list[str]`, *optional*, defaults to `["raw"]`): `"raw"` continues the bare prefix, `"chat"` asks
            for a continuation through the model's chat template.
        like (`Sequence[str]`, *optional*): Texts that decodings at human uncertainty without a kind write like.
        stages (`dict[str, str]`, *optional*): `"base"`, `"instruct"` or `"reasoning"` by model, for the contrasts.
        prefix_tokens (`int`, *optional*, defaults to `64`): Tokens of a prefix, where a text has no prompt.
        prompt_separator (`str`, *optional*): Text between a prompt and its text; by default that which
            `ugap.study.excerpts.after_prompt` chooses.
        max_new_tokens (`int`, *optional*, defaults to `128`): Tokens of a continuation.
        limit (`int`, *optional*): Prefixes per domain.
        per_text (`int`, *optional*, defaults to `4`): Prefixes of one source text.
        batch_size (`int`, *optional*, defaults to `16`): Prefixes in a unit of work.
        seed (`int`, *optional*, defaults to `0`): Seed of sampling and bootstrap.
        pmi (`bool`, *optional*, defaults to `True`): Measure PMI and CPMI too; costs a second pass.
        skip_bad (`bool`, *optional*, defaults to `False`): Log a prefix whose logits are not finite and leave it out.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of the weights.
        device (`str`, *optional*): Where models run.
        engine (`str`, *optional*, defaults to `"transformers"`): What generates; `"vllm"` needs the extra `vllm`.
        engine_args (`list[str]`, *optional*): Options of vLLM as `KEY=VALUE`.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run the code that a repository brings along.
        revisions (`dict[str, str]`, *optional*): Branch, tag or commit by Hub id; by default the main branch.
    """

    models: list[str]
    adapters: dict[str, dict[str, str]] = field(default_factory=dict)
    scorers: list[str] = field(default_factory=lambda: [SELF])
    decodings: Mapping[str, Settings] = field(default_factory=lambda: {name: DECODINGS[name] for name in STUDIED})
    promptings: list[str] = field(default_factory=lambda: ["raw"])
    like: Sequence[str] = ()
    stages: dict[str, str] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResult:
    """The result of a study.

    Args:
        record (`dict`): The content of `gap.json`.
        cells (`list[Cell]`): The pairs behind every row, with their per-token scores.
    """

    record: dict[str, Any]
    cells: list[Cell]


def run_study(
    rows: Sequence[TextRow],
    settings: StudySettings,
    output: str | Path,
    *,
    data: Sequence[str] = (),
    resume: bool = False,
    progress: bool = False,
) -> StudyResult:
    """Generate, score and compare; writes `scores.parquet`, `gap.csv` and `gap.json` to the folder `output`.

    Args:
        rows (`Sequence[TextRow]`): Human texts, with given continuations where there are any.
        settings (`StudySettings`): What to measure.
        output (`str` or `Path`): Folder of the study.
        data (`Sequence[str]`, *optional*): Names of the data, for the record.
        resume (`bool`, *optional*, defaults to `False`): Resume a study that is in the folder already.
        progress (`bool`, *optional*, defaults to `False`): Show progress bars.

    Raises:
        InputError: If the folder holds another study, another process works there, a model or text cannot be used, or
            a text is too short.
    """
    output = Path(output)
    with locked(output):
        refuse_results(output, resume, PARTS)
        return run_locked(rows, settings, output, data=data, progress=progress)


def run_locked(
    rows: Sequence[TextRow],
    settings: StudySettings,
    output: Path,
    *,
    data: Sequence[str],
    progress: bool,
) -> StudyResult:
    """[`run_study`][] in a folder whose lock the caller holds; the parts in it are used."""
    check_settings(settings, rows)
    # Of the texts to write like, the fingerprint alone: a resumed study must have the same.
    like = {"like": like_hash(settings.like)}
    recorded = {**asdict(settings), **like, "data": list(data), "data_hash": rows_hash(rows)}
    work = Continuations(output / PARTS, recorded)
    try:
        with progress_bar(disable=not progress) as bar:
            study = _Study(settings, rows, work, bar)
            keys, hashes = study.run()
    except InputError:
        work.clear_if_unused()
        raise
    # Parts of an earlier run, of weights that have changed since: they would stay in the folder for good.
    work.scored.prune(keys)
    work.scored.merge(output / "scores.parquet", keys)
    cells = pair(text for key in keys for text in work.scores(key))
    gaps = gap_table(cells, seed=settings.seed)
    record = without_nan(
        {
            "version": VERSION,
            "settings": {
                **recorded,
                **({"like_levels": study.like_levels} if study.like_levels else {}),
                "weight_hashes": hashes,
                "environment": environment(),
            },
            "gaps": gaps,
            "contrasts": contrast_table(cells, settings.stages, seed=settings.seed),
        }
    )
    write_csv(output / "gap.csv", [flat_row(row) for row in record["gaps"]])
    write_json(output / "gap.json", record)  # the last: a study with it is finished
    return StudyResult(record, [cell for cell in cells if cell.human])


@dataclass
class Workload:
    """The models of a study and their prefixes.

    Args:
        settings (`StudySettings`): What to measure.
        rows (`Sequence[TextRow]`): Human texts.
    """

    settings: StudySettings
    rows: Sequence[TextRow]
    # By model, how certain the human level of the texts to write like is.
    like_levels: dict[str, str] = field(default_factory=dict, init=False)

    def load(self, name: str) -> Scorer:
        """A model with which every decoding and prompting of the study was seen to work, where it is to write."""
        s = self.settings
        scorer = Scorer.from_pretrained(
            **s.adapters.get(name, {"name": name}),
            dtype=s.dtype,
            device=s.device,
            revision=s.revisions.get(name),
            trust_remote_code=s.trust_remote_code,
        )
        if name in s.models:
            domains = dict.fromkeys(row.domain for row in self.rows)
            check_writer(scorer, self.follow(scorer).values(), domains, s.promptings)
        return scorer

    def follow(self, scorer: Scorer) -> dict[str, Settings]:
        """The decodings of a model that writes; where they write like given texts, with the profile of these."""
        follow = following(self.settings.decodings, scorer.model, scorer.tokenizer, self.settings.like)
        if follow.certainty:
            self.like_levels[scorer.name] = follow.certainty
        return follow.decodings

    def units(self, scorer: Scorer) -> list["Unit"]:
        """The units of work: batches of prefixes of one domain, once for every prompting."""
        s = self.settings
        excerpts = cut_excerpts(
            self.rows,
            scorer.tokenizer,
            prefix_tokens=s.prefix_tokens,
            max_new_tokens=s.max_new_tokens,
            limit=s.limit,
            per_text=s.per_text,
            prompt_separator=s.prompt_separator,
        )
        domains = dict.fromkeys(excerpt.domain for excerpt in excerpts)
        return [
            Unit(prompting, domain, number, batch, {})
            for prompting in s.promptings
            for domain in domains
            for number, batch in batches([one for one in excerpts if one.domain == domain], s.batch_size)
        ]


@dataclass
class _Study(Workload):
    work: Continuations
    bar: Progress

    def run(self) -> tuple[list[str], dict[str, str]]:
        """Do the parts that are missing; the keys of all scored parts in order, and the weight hash of every scorer."""
        keys: list[str] = []
        hashes: dict[str, str] = {}
        # The prefixes of every model, and what it wrote, by unit.
        written: dict[str, list[Unit]] = {}
        names = list(dict.fromkeys([*self.settings.models, *(name for name in self.settings.scorers if name != SELF)]))
        # Every model is loaded once before a text is written: the last may lack what its decodings need. A single one
        # is checked when it is loaded to write.
        if len(names) > 1 and not self.work.begun():
            for name in names:
                self.load(name)
        # A model lives in the call that uses it, so that two are never in memory together.
        # Scoring by itself comes with writing, so that a model is loaded once.
        for model in self.settings.models:
            written[model], hashes[model] = self._write(model, keys)
        for name in self.settings.scorers:
            if name != SELF:
                hashes[name] = self._read(name, written, keys)
        return keys, hashes

    def _write(self, model: str, keys: list[str]) -> tuple[list["Unit"], str]:
        """Let a model continue its prefixes and, where asked, read itself and people; what it wrote, and its hash."""
        s, scorer = self.settings, self.load(model)
        decodings = self.follow(scorer)
        units = self.units(scorer)
        total = sum(len(unit.batch) for unit in units) * len(s.decodings)
        task = self.bar.add_task(f"{scorer.name} writes", total=total)
        with closing(self._engine(scorer, model)) as engine:
            for prompting in s.promptings:
                for decoding, how in decodings.items():
                    for unit in units:
                        if unit.prompting != prompting:
                            continue
                        labels = (scorer.name, prompting, decoding, unit.domain, str(unit.number))
                        unit.written[decoding] = self.work.write(
                            scorer,
                            unit.batch,
                            decoding,
                            how,
                            *labels,
                            max_new_tokens=s.max_new_tokens,
                            # Of the labels, never of the time: a resumed study draws what an uninterrupted one draws.
                            seed=seed_of(s.seed, "|".join(labels)),
                            domain=unit.domain,
                            prompting=prompting,
                            skip_bad=s.skip_bad,
                            engine=engine,
                        )
                        self.bar.advance(task, len(unit.batch))
        if SELF in s.scorers:
            keys += self._score(scorer, model, units, given=True)
        return units, scorer.id.weight_hash

    def _read(self, name: str, written: Mapping[str, list["Unit"]], keys: list[str]) -> str:
        """Let a fixed scorer read what all models wrote, and what was given; its hash."""
        scorer, settings = self.load(name), self.settings
        for model in settings.models:
            # A scorer that is among the models has read its own texts already.
            if not (model == name and SELF in settings.scorers):
                keys += self._score(scorer, model, written[model], given=False)
        if any(row.candidates for row in self.rows) and not (name in settings.models and SELF in settings.scorers):
            keys += self._score(scorer, name, self.units(scorer), given=True)
        return scorer.id.weight_hash

    def _engine(self, scorer: Scorer, model: str) -> Engine:
        s = self.settings
        revision, trusted = s.revisions.get(model), s.trust_remote_code
        named = (scorer.model, scorer.tokenizer, model)
        return open_engine(s.engine, s.engine_args, *named, revision=revision, trust_remote_code=trusted)

    def _score(self, scorer: Scorer, model: str, units: list["Unit"], *, given: bool) -> list[str]:
        """Score human and model texts of the prefixes that `model`'s tokens cut; the keys of the parts."""
        s, keys = self.settings, []
        by = "itself" if scorer.name == model else scorer.name
        task = self.bar.add_task(f"{model} read by {by}", total=sum(len(unit.batch) for unit in units))
        for unit in units:
            labels = (scorer.name, model, unit.prompting, unit.domain, str(unit.number))
            # Given continuations know no prompting: they are scored once.
            texts = list(unit.texts(model, scorer.name, given=given and unit.prompting == s.promptings[0]))
            keys.append(self.work.read(scorer, texts, *labels, pmi=s.pmi, skip_bad=s.skip_bad))
            self.bar.advance(task, len(unit.batch))
        return keys


@dataclass(frozen=True)
class Unit:
    """A batch of prefixes of one domain under one prompting, and what was written behind them, by decoding."""

    prompting: str
    domain: str
    number: int
    batch: Sequence[Excerpt]
    written: dict[str, list[str]]

    def texts(self, model: str, reader: str, *, given: bool) -> Iterator[Text]:
        """Everything that is read in one unit: people's texts, the model's, and those that came with the data."""
        # Another reader has another template, or none: it reads the bare prefix and text.
        in_template = self.prompting == CHAT and reader == model
        for excerpt in self.batch:
            yield Text(excerpt, model, HUMAN, excerpt.human, self.prompting, in_template)
        for decoding, texts in self.written.items():
            for excerpt, text in zip(self.batch, texts, strict=True):
                yield Text(excerpt, model, decoding, text, self.prompting, in_template)
        for excerpt in self.batch if given else ():
            for name, text in excerpt.candidates.items():
                yield Text(excerpt, name, GIVEN, text, self.prompting, in_template)


def check_settings(settings: StudySettings, rows: Sequence[TextRow]) -> None:
    """Refuse settings and texts that no model could be run with.

    Raises:
        InputError: The message names the setting or the text.
    """
    candidates = sorted({name for row in rows for name in row.candidates})
    positive = {
        "prefix_tokens": (settings.prefix_tokens, 0),
        # Pairs below MIN_TOKENS are dropped, so nothing would be left.
        "max_new_tokens": (settings.max_new_tokens, 8),
        "batch_size": (settings.batch_size, 1),
        "per_text": (settings.per_text, 1),
        "limit": (settings.limit if settings.limit is not None else 1, 1),
    }
    for name, (value, least) in positive.items():
        if value < least:
            raise InputError(f"{name} is {value}, and at least {least} is needed")
    for name, values in (("model", settings.models), ("scorer", settings.scorers), ("prompting", settings.promptings)):
        # Rows are found by these names.
        if len(set(values)) < len(values):
            raise InputError(f"a {name} is named twice: {', '.join(values)}")
    if not settings.scorers or (not settings.models and SELF in settings.scorers):
        raise InputError("there is nobody to score: name a model, or a scorer for given continuations")
    if not settings.models and not candidates:
        raise InputError("there is nothing to compare: name a model, or a column of given continuations")
    if settings.models and not settings.decodings and not candidates:
        raise InputError("there is nothing to compare: name a decoding, or a column of given continuations")
    # A candidate is a model of the table: a name that is used twice would merge two rows.
    for name in candidates:
        if name in settings.models or name in settings.scorers:
            raise InputError(f"candidate {name!r} has the name of a model")
    for prompting in settings.promptings:
        if prompting not in PROMPTINGS:
            raise InputError(f"prompting {prompting!r} is none of {', '.join(PROMPTINGS)}")
    for model in settings.stages:
        if model not in settings.models:
            raise InputError(f"stage of {model!r}: there is no such model in the study")
    check_engine(settings.engine, settings.engine_args, settings.decodings)
    check_kinds(settings.decodings, settings.models)
    check_texts(settings.like, settings.decodings, [row.text for row in rows])
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise InputError(f"id {row.id!r} is in the data twice: every text needs an id of its own")
        seen.add(row.id)
