"""The study: continuations of human prefixes by models, scored beside the human ones, and the gap between them.

Work is done in units of a few prefixes. A finished unit is a Parquet part; a study that was killed goes on from the
parts that are there. A unit's seed comes from what it makes and never from when it is made, so an interrupted study
ends with the table of an uninterrupted one. Models are loaded one after another, each once to generate and score itself
and once more for each other scorer.
"""

import hashlib
import json
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import ugap
from ugap.data import PartStore, TextRow
from ugap.errors import InputError
from ugap.files import replacing
from ugap.progress import progress_bar
from ugap.scoring import Scorer, TokenScores
from ugap.study.decodings import DECODINGS, STUDIED, Settings
from ugap.study.excerpts import Excerpt, cut_excerpts
from ugap.study.generation import chat_context, generate_continuations, seed_of
from ugap.study.store import GENERATED, SCORED, from_row, no_scores, to_row
from ugap.study.table import GIVEN, SELF, Cell, ScoredText, contrast_table, gap_table, pair

VERSION = 1
PROMPTINGS = ("raw", "chat")


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What a study measures.

    Args:
        models (`list[str]`): Models that continue the prefixes: paths, Hub ids or asset names.
        scorers (`list[str]`, *optional*, defaults to `["self"]`): Who scores: `"self"` is each model itself, a name is
            one fixed model for all.
        decodings (`dict[str, dict]`, *optional*): `generate()` settings by name; by default
            those of [`~ugap.study.decodings.STUDIED`].
        promptings (`list[str]`, *optional*, defaults to `["raw"]`): `"raw"` continues the bare prefix, `"chat"` asks
            for a continuation through the model's chat template.
        tags (`dict[str, str]`, *optional*): `"base"`, `"instruct"` or `"reasoning"` by model, for the contrasts.
        prefix_tokens (`int`, *optional*, defaults to `64`): Tokens of a prefix, where a text has no prompt.
        max_new_tokens (`int`, *optional*, defaults to `128`): Tokens of a continuation.
        limit (`int`, *optional*): Prefixes per domain.
        per_text (`int`, *optional*, defaults to `4`): Prefixes of one source text.
        batch_size (`int`, *optional*, defaults to `16`): Prefixes in a unit of work.
        seed (`int`, *optional*, defaults to `0`): Seed of sampling and bootstrap.
        pmi (`bool`, *optional*, defaults to `True`): Measure PMI and CPMI too; costs a second pass.
        skip_bad (`bool`, *optional*, defaults to `False`): Log a prefix whose logits are not finite and leave it out.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of the weights.
        device (`str`, *optional*): Where models run.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Run the code that a repository brings along.
        revisions (`dict[str, str]`, *optional*): Branch, tag or commit by Hub id; by default the main branch.
    """

    models: list[str]
    scorers: list[str] = field(default_factory=lambda: [SELF])
    decodings: Mapping[str, Settings] = field(default_factory=lambda: {name: DECODINGS[name] for name in STUDIED})
    promptings: list[str] = field(default_factory=lambda: ["raw"])
    tags: dict[str, str] = field(default_factory=dict)
    prefix_tokens: int = 64
    max_new_tokens: int = 128
    limit: int | None = None
    per_text: int = 4
    batch_size: int = 16
    seed: int = 0
    pmi: bool = True
    skip_bad: bool = False
    dtype: str = "float32"
    device: str | None = None
    trust_remote_code: bool = False
    revisions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResult:
    """What a study found.

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
    """Generate, score and compare; writes `scores.parquet` and `gap.json` to the folder `output`.

    Args:
        rows (`Sequence[TextRow]`): Human texts, with given continuations where there are any.
        settings (`StudySettings`): What to measure.
        output (`str` or `Path`): Folder of the study.
        data (`Sequence[str]`, *optional*): Names of the data, for the record.
        resume (`bool`, *optional*, defaults to `False`): Go on with a study that is in the folder already.
        progress (`bool`, *optional*, defaults to `False`): Show progress bars.

    Raises:
        InputError: If the folder holds another study, a model or text cannot be used, or a text is too short.
    """
    output = Path(output)
    candidates = sorted({name for row in rows for name in row.candidates})
    _check(settings, candidates)
    _check_ids(rows)
    parts = output / "parts"
    if parts.exists() and not resume:
        raise InputError(f"{output}: there is a study already; add --resume to go on with it, or choose another folder")
    recorded = {**asdict(settings), "data": list(data), "data_hash": _hash(rows)}
    study = _Study(
        settings,
        rows,
        PartStore(parts / "generated", GENERATED, recorded),
        PartStore(parts / "scored", SCORED, recorded),
    )
    try:
        with progress_bar(disable=not progress) as bar:
            keys, hashes = study.run(bar)
    except InputError:
        if not any(parts.glob("*/*.parquet")):  # nothing to go on with: a corrected command may start here
            study.clear()
            parts.rmdir()
        raise
    study.scored.merge(output / "scores.parquet", keys)
    cells = pair(from_row(row) for key in keys for row in study.scored.read(key))
    gaps = gap_table(cells, seed=settings.seed)
    record = without_nan(
        {
            "version": VERSION,
            "settings": {**recorded, "weight_hashes": hashes, "environment": environment()},
            "gaps": gaps,
            "contrasts": contrast_table(cells, settings.tags, seed=settings.seed),
        }
    )
    with replacing(output / "gap.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return StudyResult(record, cells)


def environment() -> dict[str, str | int]:
    """Versions and machine, as they stand beside the numbers."""
    names = ("torch", "transformers", "tokenizers", "numpy", "scipy")
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "ugap": ugap.__version__,
        **{name: version(name) for name in names},
        "python": platform.python_version(),
        "machine": machine,
        "threads": torch.get_num_threads(),
    }


@dataclass
class _Study:
    settings: StudySettings
    rows: Sequence[TextRow]
    generated: PartStore
    scored: PartStore

    def run(self, bar: Progress) -> tuple[list[str], dict[str, str]]:
        """Do what is not done; the keys of all scored parts in order, and the weight hash of every scorer."""
        keys: list[str] = []
        hashes: dict[str, str] = {}
        excerpts: dict[str, list[Excerpt]] = {}
        # A model lives in the call that uses it, so that two are never in memory together.
        for model in self.settings.models:
            excerpts[model], hashes[model] = self._write(model, keys, bar)
        for name in self.settings.scorers:
            if name != SELF:
                hashes[name] = self._read(name, excerpts, keys, bar)
        return keys, hashes

    def _write(self, model: str, keys: list[str], bar: Progress) -> tuple[list[Excerpt], str]:
        """Let a model continue its prefixes and, where asked, score itself and people; its prefixes and its hash."""
        scorer = self._load(model)
        excerpts = self._cut(scorer)
        self._generate(scorer, excerpts, bar)
        if SELF in self.settings.scorers:
            keys += self._score(scorer, model, excerpts, list(self.settings.decodings), given=True, bar=bar)
        return excerpts, scorer.id.weight_hash

    def _read(self, name: str, excerpts: Mapping[str, list[Excerpt]], keys: list[str], bar: Progress) -> str:
        """Let a fixed scorer read what all models wrote, and what was given; its hash."""
        scorer, settings = self._load(name), self.settings
        for model in settings.models:
            if not (model == name and SELF in settings.scorers):
                keys += self._score(scorer, model, excerpts[model], list(settings.decodings), given=False, bar=bar)
        if any(row.candidates for row in self.rows) and not (name in settings.models and SELF in settings.scorers):
            keys += self._score(scorer, name, self._cut(scorer), [], given=True, bar=bar)
        return scorer.id.weight_hash

    def clear(self) -> None:
        self.generated.clear()
        self.scored.clear()

    def _load(self, name: str) -> Scorer:
        s = self.settings
        return Scorer.from_pretrained(
            name,
            dtype=s.dtype,
            device=s.device,
            revision=s.revisions.get(name),
            trust_remote_code=s.trust_remote_code,
        )

    def _cut(self, scorer: Scorer) -> list[Excerpt]:
        s = self.settings
        return cut_excerpts(
            self.rows,
            scorer.tokenizer,
            prefix_tokens=s.prefix_tokens,
            max_new_tokens=s.max_new_tokens,
            limit=s.limit,
            per_text=s.per_text,
        )

    def _generate(self, scorer: Scorer, excerpts: list[Excerpt], bar: Progress) -> None:
        s = self.settings
        units = [
            (_generated_key(scorer.name, prompting, decoding, domain, number), prompting, decoding, batch)
            for prompting in s.promptings
            for decoding in s.decodings
            for domain, number, batch in _batches(excerpts, s.batch_size)
        ]
        task = bar.add_task(f"{scorer.name} writes", total=sum(len(unit[-1]) for unit in units))
        for key, prompting, decoding, batch in units:
            if not self.generated.done(key):
                if prompting == "chat":
                    contexts = [chat_context(scorer.tokenizer, excerpt.prefix, scorer.name) for excerpt in batch]
                else:
                    prefixes = [excerpt.prefix for excerpt in batch]
                    plain = scorer.tokenizer(prefixes, add_special_tokens=False, split_special_tokens=True)
                    contexts = [scorer.bos + ids for ids in plain["input_ids"]]
                texts = generate_continuations(
                    scorer.model,
                    scorer.tokenizer,
                    contexts,
                    s.decodings[decoding],
                    max_new_tokens=s.max_new_tokens,
                    seed=seed_of(s.seed, key),
                    domain=batch[0].domain,
                    names=[_name(excerpt, decoding) for excerpt in batch],
                    skip_bad=s.skip_bad,
                )
                written = [{"id": excerpt.id, "text": text} for excerpt, text in zip(batch, texts, strict=True)]
                self.generated.write(key, written)
            bar.advance(task, len(batch))

    def _score(
        self, scorer: Scorer, model: str, excerpts: list[Excerpt], decodings: list[str], *, given: bool, bar: Progress
    ) -> list[str]:
        """Score human and model texts of the prefixes that `model`'s tokens cut; the keys of the parts."""
        s, keys = self.settings, []
        by = "itself" if scorer.name == model else scorer.name
        task = bar.add_task(f"{model} read by {by}", total=len(excerpts) * len(s.promptings))
        for prompting in s.promptings:
            for domain, number, batch in _batches(excerpts, s.batch_size):
                key = "|".join((scorer.name, model, prompting, domain, str(number)))
                keys.append(key)
                if not self.scored.done(key):
                    texts = list(self._texts(model, prompting, domain, number, batch, decodings, given))
                    self.scored.write(key, [to_row(text) for text in self._scored(scorer, model, prompting, texts)])
                bar.advance(task, len(batch))
        return keys

    def _texts(
        self,
        model: str,
        prompting: str,
        domain: str,
        number: int,
        batch: list[Excerpt],
        decodings: list[str],
        given: bool,
    ) -> Iterator[tuple[Excerpt, str, str, str]]:
        """Excerpt, model, decoding and text of everything that is scored in one unit."""
        for excerpt in batch:
            yield excerpt, model, "human", excerpt.human
        for decoding in decodings:
            made = self.generated.read(_generated_key(model, prompting, decoding, domain, number))
            for excerpt, row in zip(batch, made, strict=True):
                yield excerpt, model, decoding, row["text"]
        # Given continuations know no prompting: they are scored once.
        if given and prompting == self.settings.promptings[0]:
            for excerpt in batch:
                for name, text in excerpt.candidates.items():
                    yield excerpt, name, GIVEN, text

    def _scored(
        self, scorer: Scorer, model: str, prompting: str, texts: list[tuple[Excerpt, str, str, str]]
    ) -> list[ScoredText]:
        s = self.settings
        own_chat = prompting == "chat" and scorer.name == model
        prefixes: list[str | list[int]] = []
        bodies = []
        for excerpt, _, decoding, text in texts:
            if own_chat:
                prefixes.append(chat_context(scorer.tokenizer, excerpt.prefix, scorer.name))
                bodies.append(text.lstrip())
            else:
                prefixes.append(excerpt.prefix)
                bodies.append(_joined(excerpt.prefix, text) if prompting == "chat" and decoding != "human" else text)
        names = [_name(excerpt, decoding) for excerpt, _, decoding, _ in texts]
        scores: Sequence[TokenScores | None]
        try:
            scores = scorer.score(bodies, prefixes, s.pmi, names=names)
        except InputError:
            # A model may write nothing, a human text has to be scored: say first what is wrong with that.
            if not s.skip_bad:
                human = [i for i, (_, _, decoding, _) in enumerate(texts) if decoding == "human"]
                scorer.score([bodies[i] for i in human], [prefixes[i] for i in human], names=[names[i] for i in human])
            scores = scorer.score(bodies, prefixes, s.pmi, names=names, skip_bad=True)
        made = [score for score in scores if score is not None]
        out = []
        for i, ((excerpt, author, decoding, _), score) in enumerate(zip(texts, scores, strict=True)):
            out.append(
                ScoredText(
                    excerpt.id,
                    excerpt.source,
                    excerpt.domain,
                    author,
                    prompting,
                    decoding,
                    scorer.name,
                    excerpt.prefix,
                    score or no_scores(bodies[i], scorer.id, made),
                )
            )
        return out


def _name(excerpt: Excerpt, decoding: str) -> str:
    return f"{excerpt.where}, text {excerpt.id!r} ({decoding})"


def _generated_key(model: str, prompting: str, decoding: str, domain: str, number: int) -> str:
    return "|".join((model, prompting, decoding, domain, str(number)))


def _batches(excerpts: Sequence[Excerpt], size: int) -> Iterator[tuple[str, int, list[Excerpt]]]:
    """Domain, number and excerpts of every unit."""
    for domain in dict.fromkeys(excerpt.domain for excerpt in excerpts):
        members = [excerpt for excerpt in excerpts if excerpt.domain == domain]
        for number, begin in enumerate(range(0, len(members), size)):
            yield domain, number, members[begin : begin + size]


def _joined(prefix: str, text: str) -> str:
    """A chat model starts without the space that a continuation needs."""
    return text if not prefix or prefix[-1].isspace() or text[:1].isspace() else " " + text


def _check(settings: StudySettings, candidates: Sequence[str]) -> None:
    positive = {
        "prefix_tokens": (settings.prefix_tokens, 0),
        "max_new_tokens": (settings.max_new_tokens, 8),
        "batch_size": (settings.batch_size, 1),
        "per_text": (settings.per_text, 1),
        "limit": (settings.limit if settings.limit is not None else 1, 1),
    }
    for name, (value, least) in positive.items():
        if value < least:
            raise InputError(f"{name} is {value}, and at least {least} is needed")
    for name, values in (("model", settings.models), ("scorer", settings.scorers), ("prompting", settings.promptings)):
        if len(set(values)) < len(values):
            raise InputError(f"a {name} is named twice: {', '.join(values)}")
    if not settings.scorers or (not settings.models and SELF in settings.scorers):
        raise InputError("there is nobody to score: name a model, or a scorer for given continuations")
    if not settings.models and not candidates:
        raise InputError("there is nothing to compare: name a model, or a column of given continuations")
    if settings.models and not settings.decodings and not candidates:
        raise InputError("there is nothing to compare: name a decoding, or a column of given continuations")
    for name in candidates:
        if name in settings.models or name in settings.scorers:
            raise InputError(f"candidate {name!r} has the name of a model")
    for prompting in settings.promptings:
        if prompting not in PROMPTINGS:
            raise InputError(f"prompting {prompting!r} is none of {', '.join(PROMPTINGS)}")
    for model in settings.tags:
        if model not in settings.models:
            raise InputError(f"tag of {model!r}: there is no such model in the study")


def _check_ids(rows: Sequence[TextRow]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise InputError(f"id {row.id!r} is in the data twice: every text needs an id of its own")
        seen.add(row.id)


def _hash(rows: Sequence[TextRow]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((row.id, row.domain, row.text, row.prompt, sorted(row.candidates.items()))).encode())
    return digest.hexdigest()[:16]


def without_nan(value: Any) -> Any:
    """JSON knows no NaN: `None` stands for what could not be estimated."""
    if isinstance(value, Mapping):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
