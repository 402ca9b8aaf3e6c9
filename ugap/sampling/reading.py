"""Calibrate a writer for a reader: at which share of its own human level its text is human to another model."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ugap.data import DEMO, content_hash, load_texts
from ugap.errors import InputError
from ugap.files import write_json
from ugap.models.cache import cache_dir, ensure_entry
from ugap.models.console import announced
from ugap.profile import HumanProfile
from ugap.profile.fitting import EMBEDDED_KINDS, HumanText, cut_text, evenly
from ugap.profile.plain import FloatArray
from ugap.profile.profile import LIKE
from ugap.profile.reading import Reading, Share
from ugap.sampling.generation import generate

if TYPE_CHECKING:
    from ugap.scoring import Scorer

TOKENS = 64  # of a continuation
MOST_TEXTS = 32  # of a kind: the share is then known to some 0.03
FIRST_SHARES = (0.6, 0.8)
LEAST_SHARE, MOST_SHARE = 0.2, 1.0
FEWEST_TEXTS = 8
_LEAST_SLOPE = 0.5  # of the logarithm of the level per unit of the share: text at share 1 is far above that at 0
_RESAMPLES = 500
_FILE = "reading.json"


def profile_read_by(
    profile: HumanProfile, writer: "Scorer", reader: "str | Scorer", like: Sequence[str] | None = None
) -> HumanProfile:
    """The profile of a writer for continuations that are human to a reader; calibrated where it is not yet, and cached.

    The calibration continues the texts to write like, or else the embedded human texts. A strong reader partly knows
    these by heart: prefer `ugap profile --reader` with texts of your own.

    Args:
        profile (`HumanProfile`): The human profile of the writer.
        writer (`Scorer`): The model that writes.
        reader (`str` or `Scorer`): A reader that the profile knows, or a model: asset, folder, `.gguf` file or Hub id.
        like (`Sequence[str]`, *optional*): The texts that the kind `like` of the profile was fitted to.

    Raises:
        InputError: If the reader cannot be loaded or is the writer, or the texts to write like are too few.
    """
    from ugap.scoring import Scorer

    if isinstance(reader, str):
        # A folder may hold other weights than when it read the writer: it is known by its weights alone.
        if reader in profile.readings and not Path(reader).exists():
            return profile.read_by(reader)
        reader = Scorer.from_pretrained(reader, dtype="auto")
    for name, reading in profile.readings.items():
        if reading.weight_hash == reader.id.weight_hash:
            return profile.read_by(name)
    texts = {LIKE: cuts_of(writer, like)} if like else embedded_texts(writer, profile)
    key = content_hash([writer.id.weight_hash, reader.id.weight_hash, texts, profile.to_dict()])
    named = reader

    def build(folder: Path) -> None:
        with announced(f"{named.name} has not read {writer.name} yet: it is calibrated, once (minutes)"):
            reading = calibrate(writer, named, profile, texts)
        write_json(folder / _FILE, {"reader": reading.reader, **reading.to_dict()})

    entry = ensure_entry(cache_dir() / "profiles" / f"reader-{key}", build)
    document = json.loads((entry / _FILE).read_text(encoding="utf-8"))
    reading = Reading.from_dict(document["reader"], document)
    return replace(profile, readings={**profile.readings, reading.reader: reading}, reader=reading.reader)


def cuts_of(writer: "Scorer", texts: Sequence[str]) -> list[HumanText]:
    """The texts that are long enough, cut into a prefix and what follows it: `MOST_TEXTS` of them, evenly spaced."""
    found = (cut_text(writer.tokenizer, text, max_tokens=TOKENS, min_tokens=TOKENS // 4) for text in texts)
    return evenly([cut for cut in found if cut is not None], MOST_TEXTS)


def embedded_texts(writer: "Scorer", profile: HumanProfile) -> dict[str, list[HumanText]]:
    """The embedded human texts of the kinds that a profile has."""
    texts: dict[str, list[str]] = {}
    for row in load_texts(DEMO):
        if (kind := EMBEDDED_KINDS[row.domain]) in profile.kinds:
            texts.setdefault(kind, []).append(row.text)
    return {kind: cuts_of(writer, column) for kind, column in texts.items()}


def calibrate(
    writer: "Scorer",
    reader: "Scorer",
    profile: HumanProfile,
    texts: Mapping[str, Sequence[HumanText]],
    *,
    max_new_tokens: int = TOKENS,
    batch_size: int = 16,
    seed: int = 0,
    known: Mapping[str, Share] | None = None,
    done: Callable[[str, Share], None] | None = None,
) -> Reading:
    """The share of its human level at which a writer's text is as surprising to a reader as people's text.

    For each kind, the prefixes of human texts are continued at two shares, and then at a third. The logarithm of the
    level to the reader is taken to be linear in the share, and solved for people's level. The shares of all kinds are
    then shrunk toward their mean, by how certain each is (empirical Bayes).

    Args:
        writer (`Scorer`): The model that writes.
        reader (`Scorer`): The model that reads, better a stronger one of another family.
        profile (`HumanProfile`): The human profile of the writer.
        texts (`Mapping[str, Sequence[HumanText]]`): By kind, human texts behind their prefixes, better ones that the
            profile was not fitted to.
        max_new_tokens (`int`, *optional*, defaults to `64`): Longest continuation in tokens of the writer.
        batch_size (`int`, *optional*, defaults to `16`): Prefixes that are continued together.
        seed (`int`, *optional*, defaults to `0`): Seed of the continuations and of the resampling.
        known (`Mapping[str, Share]`, *optional*): Shares of an interrupted calibration, as `done` got them.
        done (`Callable[[str, Share], None]`, *optional*): Called with each new kind and its share, not shrunk yet.

    Raises:
        InputError: If writer and reader are the same model, the profile is of another writer, there is no kind, or
            a kind has fewer than 8 texts.
    """
    profile.check(writer.id)
    if reader.id.weight_hash == writer.id.weight_hash:
        raise InputError(f"{reader.name} is the writer itself: at weight 1 a model is human to itself")
    if not texts:
        raise InputError("no kind of text to calibrate a reader on")
    for kind, column in texts.items():
        profile.weights(kind)
        if len(column) < FEWEST_TEXTS:
            raise InputError(
                f"kind {kind!r}: {len(column)} texts to calibrate a reader on, {FEWEST_TEXTS} is the least"
            )
    shares = {kind: share for kind, share in (known or {}).items() if kind in texts}
    for kind, column in texts.items():
        if kind not in shares:
            shares[kind] = _share(writer, reader, profile, kind, column, max_new_tokens, batch_size, seed)
            if done is not None:
                done(kind, shares[kind])
    # A folder is named by its last part: the path is of one machine.
    name = Path(reader.name).name if Path(reader.name).exists() else reader.name
    return Reading(name, reader.id.weight_hash, shrunk({kind: shares[kind] for kind in texts}))


def _share(
    writer: "Scorer",
    reader: "Scorer",
    profile: HumanProfile,
    kind: str,
    texts: Sequence[HumanText],
    max_new_tokens: int,
    batch_size: int,
    seed: int,
) -> Share:
    prefixes = [text.prefix for text in texts]
    people = _read(reader, prefixes, [text.text for text in texts])
    tried: list[float] = []
    levels: list[FloatArray] = []

    def attempt(share: float) -> None:
        aimed = _aimed(profile, reader, kind, share)
        written = generate(
            writer.model,
            writer.tokenizer,
            prefixes,
            kind=kind,
            profile=aimed,
            mode="creative",
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            # Other draws at each share, so that one lucky seed does not count three times.
            seed=seed + len(tried),
        )
        tried.append(share)
        levels.append(_read(reader, prefixes, [one.text for one in written]))

    for share in FIRST_SHARES:
        attempt(share)
    attempt(_solve(tried, levels, people))
    share = _solve(tried, levels, people)
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(_RESAMPLES):
        drawn = rng.integers(len(texts), size=len(texts))
        resampled.append(_solve(tried, [column[drawn] for column in levels], people[drawn]))
    return Share(share, float(np.std(resampled)), float(np.nanmean(people)), len(texts))


def _solve(shares: Sequence[float], levels: Sequence[FloatArray], people: FloatArray) -> float:
    """The share at which the logarithm of the level, linear in the share, meets people's."""
    logs = np.array([math.log(np.nanmean(column)) for column in levels])
    centred = np.array(shares) - np.mean(shares)
    slope = max(float(centred @ logs / (centred @ centred)), _LEAST_SLOPE)
    share = np.mean(shares) + (math.log(np.nanmean(people)) - logs.mean()) / slope
    return float(np.clip(share, LEAST_SHARE, MOST_SHARE))


def shrunk(shares: Mapping[str, Share]) -> dict[str, Share]:
    """Shares of kinds, each drawn toward the mean of all as far as it is less certain than kinds differ.

    Example:
        >>> alike = {"news": Share(0.7, 0.1, 3.0, 32), "letter": Share(0.8, 0.1, 3.0, 32)}
        >>> [round(one.share, 2) for one in shrunk(alike).values()]
        [0.75, 0.75]
    """
    values = np.array([one.share for one in shares.values()])
    variances = np.maximum([one.error**2 for one in shares.values()], 1e-12)
    if len(values) < 2:
        return dict(shares)
    # Between kinds: what their spread has beyond their errors.
    between = max(float(values.var(ddof=1) - variances.mean()), 0.0)
    weights = 1 / (between + variances)
    mean = float(weights @ values / weights.sum())
    trust = between / (between + variances)
    errors = np.sqrt(trust * variances + (1 - trust) ** 2 / weights.sum())
    return {
        kind: one._replace(share=float(mean + part * (one.share - mean)), error=float(error))
        for (kind, one), part, error in zip(shares.items(), trust, errors, strict=True)
    }


def _aimed(profile: HumanProfile, reader: "Scorer", kind: str, share: float) -> HumanProfile:
    reading = Reading(reader.name, reader.id.weight_hash, {kind: Share(share, math.nan, math.nan, 1)})
    return replace(profile, readings={reader.name: reading}, reader=reader.name)


def _read(reader: "Scorer", prefixes: Sequence[str], texts: Sequence[str]) -> FloatArray:
    """Mean surprisal of each text to the reader, nats per token; NaN of a text without a token."""
    levels = np.full(len(texts), np.nan)
    rows = [i for i, text in enumerate(texts) if text.strip()]
    scores = reader.score([texts[i] for i in rows], [prefixes[i] for i in rows], skip_bad=True)
    for i, one in zip(rows, scores, strict=True):
        if one is not None and len(one):
            levels[i] = one.nll
    return levels
