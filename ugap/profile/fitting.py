"""Profiles fitted on demand: to a user's texts, and for a model without a profile.

Both are kept in the cache folder, by the fingerprint of the weights and that of the texts.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from ugap.data import DEMO, content_hash, load_texts
from ugap.errors import InputError
from ugap.models.adapter import adapter_of, adapters_off, without_wrapper
from ugap.models.cache import cache_dir, ensure_entry
from ugap.models.console import announced
from ugap.models.hub import file_beside
from ugap.profile.document import VERSION
from ugap.profile.profile import LIKE, HumanProfile
from ugap.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ugap.scoring import Scorer, ScorerId
    from ugap.scoring.records import TokenScores

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

PREFIX_TOKENS = 64
MAX_TOKENS = 256
MIN_TOKENS = 16
FEW_TEXTS = 8
BESIDE = "ugap_profile.json"  # in the folder of a model
EMBEDDED_TEXTS = 48  # of each kind
EMBEDDED_TOKENS = 128
EMBEDDED_KINDS = {"creative": "fairy-tale", "functional": "manual"}
_LENDER = "smollm2-135m-instruct"
_FILE = "profile.json"
# Digits, white space, contractions, punctuation and other scripts: what tokenizers of one vocabulary cut differently.
_PROBE = "It's 1999:\n\n  12. naïve 東京 (\"x\")\t= 3.14;\r\nI'LL"
_BATCH = 8
LIKE_TOKENS = 400  # in all: fewer say nothing of a level
LIKE_TEXTS = 256  # at most: more would change the level by less than 1%, and take minutes
_OVERLAP = 64  # characters: two texts do not share so many by chance


class HumanText(NamedTuple):
    """A human text in two parts.

    Args:
        prefix (`str`): The text before.
        text (`str`): The text to profile.
    """

    prefix: str
    text: str


def cut_text(
    tokenizer: "PreTrainedTokenizerBase",
    text: str,
    prompt: str | None = None,
    *,
    prefix_tokens: int = PREFIX_TOKENS,
    max_tokens: int = MAX_TOKENS,
    min_tokens: int = MIN_TOKENS,
) -> HumanText | None:
    """Cut a text into a prefix and the part to profile; the prefix of a short text is half of its tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the scorer.
        text (`str`): The text.
        prompt (`str`, *optional*): The prompt that the text answers: it becomes the prefix, uncut.
        prefix_tokens (`int`, *optional*, defaults to `64`): Tokens of the prefix, at most.
        max_tokens (`int`, *optional*, defaults to `256`): Most tokens to profile.
        min_tokens (`int`, *optional*, defaults to `16`): Fewest tokens to profile.

    Returns:
        `HumanText`, *optional*: `None` for a text that is too short.
    """
    wanted = max_tokens + (prefix_tokens if prompt is None else 0)
    # No token of English text is longer than 16 characters on average: no need to tokenise a whole book.
    offsets = tokenizer(
        text[: 16 * wanted + 64], add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )["offset_mapping"][:wanted]
    before = 0 if prompt is not None else min(prefix_tokens, len(offsets) // 2)
    if len(offsets) - before < min_tokens:
        return None
    border = offsets[before - 1][1] if before else 0
    return HumanText(text[:border] if prompt is None else prompt, text[border : offsets[-1][1]])


def evenly(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of the items, evenly spaced.

    Example:
        >>> evenly("abcdef", 3), evenly("ab", 3)
        (['a', 'c', 'e'], ['a', 'b'])
    """
    n = min(len(items), most)
    return [items[i * len(items) // n] for i in range(n)]


def like_texts(profile: HumanProfile, scorer: "Scorer", texts: Sequence[str], *, seed: int = 0) -> HumanProfile:
    """Add to a profile the kind `like`, fitted to a user's texts; the result is cached.

    See [`HumanProfile.like`][ugap.HumanProfile.like].

    Args:
        profile (`HumanProfile`): The profile of the scorer.
        scorer (`Scorer`): The scorer.
        texts (`Sequence[str]`): The texts. One of fewer than 32 tokens does not count, and a repeated one
            counts once. Of more than 256 texts, 256 count, evenly spaced.
        seed (`int`, *optional*, defaults to `0`): Seed of the curve's band.

    Raises:
        InputError: If the texts have fewer than 400 tokens to profile in all. Also if they are far more surprising to
            the scorer than every kind it knows, as text of another language is.
    """
    from ugap.models.fingerprint import weight_hash

    profile.check(scorer.id)
    cuts = [
        cut
        for text in evenly(list(dict.fromkeys(texts)), LIKE_TEXTS)
        if (cut := cut_text(scorer.tokenizer, text)) is not None
    ]
    # With the adapter's weights, as its profile bears the hash of the base. Also of the profile: a kind is held by what
    # its other kinds share.
    weights = weight_hash(scorer.model, adapters=True)
    key = content_hash([weights, list(map(tuple, cuts)), seed, profile.to_dict()])

    def build(folder: Path) -> None:
        _fit_like(profile, scorer, cuts, seed).save(folder / _FILE)

    fitted = HumanProfile.load(ensure_entry(cache_dir() / "profiles" / f"like-{key}", build) / _FILE)
    if (n := fitted.kinds[LIKE].n_texts) < FEW_TEXTS:
        _warn_of_few(key, n)
    return fitted


@cache
def _warn_of_few(key: str, n: int) -> None:
    # Once for the texts: a study asks for their profile again and again.
    logger.warning("%d texts to write like are few: take their human level as a guess, or give %d", n, FEW_TEXTS)


def check_like(texts: Sequence[str], continued: Iterable[str]) -> None:
    """Refuse to write like the texts that are continued: the sampler would know the level that it should predict.

    Args:
        texts (`Sequence[str]`): The texts to write like.
        continued (`Iterable[str]`): The prompts, or the human texts that they are cut from.

    Raises:
        InputError: If every text is or holds one that is continued. Where some do, a warning is logged.
    """
    starts = {text.strip() for text in continued}
    long = [start for start in starts if len(start) >= _OVERLAP]
    n = sum(text.strip() in starts or any(start in text for start in long) for text in texts)
    if texts and n == len(texts):
        raise InputError(
            f"all {n} texts to write like are texts to continue, or hold one: the sampler would copy their level; "
            "give other texts"
        )
    if n:
        logger.warning("%d of %d texts to write like are texts to continue, or hold one", n, len(texts))


def _fit_like(profile: HumanProfile, scorer: "Scorer", cuts: Sequence[HumanText], seed: int) -> HumanProfile:
    scores = scorer.score([cut.text for cut in cuts], [cut.prefix for cut in cuts], pmi=True) if cuts else []
    n_tokens = sum(len(one) for one in scores)
    if n_tokens < LIKE_TOKENS:
        raise InputError(
            f"the texts to write like have {n_tokens} tokens to learn from, and {LIKE_TOKENS} is the "
            "least: the first 64 tokens of a text, or half of a shorter one, only begin it"
        )
    level = float(np.nanmean(np.concatenate([one.surprisal for one in scores])))
    most = max(kind.means["surprisal"] + 3 * kind.texts_deviation for kind in profile.kinds.values())
    if level > most:
        raise InputError(
            f"the texts to write like have {level:.2f} nats a token, and no human text of this model's profile has "
            f"more than {most:.2f}: the model may not read their language"
        )
    return profile.like(scores, scorer.score([cut.prefix for cut in cuts]), seed=seed)


def profile_for(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> HumanProfile:
    """The human profile of any model: the one in its folder, the shipped one, or one fitted to the embedded texts.

    The profile in the folder is `ugap_profile.json`. The embedded texts are fairy tales and the Python language
    reference. They are old or public, so models know parts of them by heart, and a level fitted to them is low: prefer
    a profile of your own texts. The regression on the prompt comes from a shipped profile, as it hardly differs between
    models. A fitted profile is cached.

    A model with an adapter has the profile of its base: it should come to how the base reads people. A profile in the
    adapter's folder comes first. It may be of the adapted model, as `ugap profile` fits it to texts, or of the base.

    Args:
        model (`PreTrainedModel`): A causal language model, or a PEFT model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.

    Raises:
        InputError: If the embedded texts cannot be fetched, or the model cannot score text.
    """
    base = without_wrapper(model)
    own = adapter_profile(model)
    return own or _profile_of(base.config.name_or_path or type(base).__name__, base, tokenizer)


def scorer_profile(scorer: "Scorer") -> HumanProfile:
    """The human profile of a scorer; returns and raises as `profile_for`."""
    from ugap.models.fingerprint import weight_hash

    # The base of a policy scores with the adapter switched off.
    is_base = scorer.id.weight_hash == weight_hash(scorer.model)
    own = None if is_base else adapter_profile(scorer.model)
    profile = own or _profile_of(scorer.model.config.name_or_path or scorer.name, scorer.model, scorer.tokenizer)
    # The profile of the base serves the adapted model, whose records bear another hash.
    return replace(profile, weight_hash=scorer.id.weight_hash)


def adapter_profile(model: "PreTrainedModel") -> HumanProfile | None:
    """The profile in the folder of a model's adapter, under the weight hash of the base.

    Raises:
        InputError: If it is damaged, or of neither the adapted model nor its base.
    """
    from ugap.scoring import ScorerId

    adapter = adapter_of(model)
    if adapter is None or not (adapter.folder / BESIDE).is_file():
        return None
    profile = under_base(HumanProfile.load(adapter.folder / BESIDE), model)
    profile.check(ScorerId(f"the adapter {adapter.folder} or its base", adapter.base_hash))
    return profile


def under_base(profile: HumanProfile, model: "PreTrainedModel") -> HumanProfile:
    """A profile that was fitted with an adapted model, under the weight hash of the base; any other as it is."""
    from ugap.models.fingerprint import weight_hash

    base = without_wrapper(model)
    own = weight_hash(base)
    if profile.weight_hash == own or profile.weight_hash != weight_hash(base, adapters=True):
        return profile
    return replace(profile, weight_hash=own)


def known_profile(
    path: str, scorer_id: "ScorerId", tokenizer: "PreTrainedTokenizerBase", commit: str | None = None
) -> HumanProfile | None:
    """The human profile of a model where none has to be fitted.

    It is the one in the folder or Hub repository of the model, the shipped one, or one that was fitted before.

    Args:
        path (`str`): The model's folder, or its name.
        scorer_id (`ScorerId`): Its name and weight hash.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        commit (`str`, *optional*): The commit of a model of the Hub.

    Raises:
        InputError: If the profile in the folder is damaged, or of another model.
    """
    beside = file_beside(path, commit, BESIDE)
    if beside is not None:
        profile = HumanProfile.load(beside)
        profile.check(scorer_id)
        return profile
    shipped = HumanProfile.find_shipped(scorer_id)
    fitted = _fitted(scorer_id.weight_hash, tokenizer) / _FILE
    return HumanProfile.load(fitted) if shipped is None and fitted.is_file() else shipped


def _fitted(weights: str, tokenizer: "PreTrainedTokenizerBase") -> Path:
    """Where the profile is kept that was fitted to the embedded texts."""
    # The same weights read other tokens, or read without BOS, are as surprising as another model.
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    return cache_dir() / "profiles" / f"{weights}-{content_hash([VERSION, tokenizer.bos_token_id, ids])}"


def _profile_of(name: str, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> HumanProfile:
    from ugap.models.fingerprint import weight_hash
    from ugap.scoring import Scorer, ScorerId

    scorer_id = ScorerId(name, weight_hash(model))
    known = known_profile(name, scorer_id, tokenizer, getattr(model.config, "_commit_hash", None))
    if known is not None:
        return known

    def build(folder: Path) -> None:
        line = f"{scorer_id.name} has no human profile: one is fitted to embedded tales and manuals, once"
        # The hash is that of the base, so the base has to read.
        with announced(line), adapters_off(model):
            embedded_profile(Scorer(model, tokenizer, name=name)).save(folder / _FILE)

    # Where the adapter's embeddings took the place of the base's, what reads is not quite the base.
    adapter = adapter_of(model)
    weights = weight_hash(model, adapters=adapter is not None and adapter.has_embeddings)
    return HumanProfile.load(ensure_entry(_fitted(weights, tokenizer), build) / _FILE)


def named_profile(model: str, adapter: str | None = None) -> HumanProfile | None:
    """The profile of a model as far as its name tells: the one in its folder, or the shipped one of an asset.

    It serves to refuse an unknown kind before the model is loaded, which takes seconds.

    Args:
        model (`str`): Asset, folder, `.gguf` file or Hub id.
        adapter (`str`, *optional*): Folder or Hub id of an adapter on it, whose own profile comes first.

    Raises:
        InputError: If the profile in the folder is damaged.
    """
    from ugap.models.assets import ASSETS

    if adapter is not None and (not Path(adapter).is_dir() or (Path(adapter) / BESIDE).is_file()):
        return named_profile(adapter)
    beside = Path(model) / BESIDE
    if beside.is_file():
        return HumanProfile.load(beside)
    return HumanProfile.load(model) if model in ASSETS and not Path(model).exists() else None


def embedded_profile(scorer: "Scorer") -> HumanProfile:
    """A profile fitted to the embedded texts: `EMBEDDED_TEXTS` of each kind, 64 + 128 tokens of each."""
    kinds: dict[str, list[HumanText]] = {}
    for row in load_texts(DEMO):
        texts = kinds.setdefault(EMBEDDED_KINDS[row.domain], [])
        if len(texts) < EMBEDDED_TEXTS:
            cut = cut_text(scorer.tokenizer, row.text, max_tokens=EMBEDDED_TOKENS)
            if cut is not None:
                texts.append(cut)
    scores: dict[str, list[TokenScores]] = {kind: [] for kind in kinds}
    prefixes: dict[str, list[TokenScores]] = {kind: [] for kind in kinds}
    with progress_bar(stderr=True) as bar:
        task = bar.add_task("fitting", total=sum(map(len, kinds.values())))
        for kind, texts in kinds.items():
            for start in range(0, len(texts), _BATCH):
                batch = texts[start : start + _BATCH]
                scores[kind] += scorer.score([one.text for one in batch], [one.prefix for one in batch], pmi=True)
                prefixes[kind] += scorer.score([one.prefix for one in batch])
                bar.advance(task, len(batch))
    profile = HumanProfile.fit(
        scores,
        prefixes=prefixes,
        domains={kind: domain for domain, kind in EMBEDDED_KINDS.items()},
        source="embedded texts: fairy tales and the Python language reference",
    )
    borrowed = HumanProfile.load(_LENDER).prompt
    return replace(profile, prompt=None if borrowed is None else borrowed.without_names())


def certainty(profile: HumanProfile) -> str:
    """The level of the kind `like` in words: its standard error, and that of twice as many texts."""
    kind = profile.kinds[LIKE]
    n = kind.n_texts
    if n < 2:
        return f"1 text: human level {kind.means['surprisal']:.2f}; a single text does not show how far it is off"
    words = f"{n} texts: human level {kind.means['surprisal']:.2f} +- {kind.error:.2f}"
    return f"{words}; {2 * n} would give about +- {kind.error / np.sqrt(2):.2f}"


def by_kind(rows: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """The domain of each kind.

    Raises:
        InputError: If texts of one kind are of two domains.
    """
    domains: dict[str, str] = {}
    for kind, domain in rows:
        if domains.setdefault(kind, domain) != domain:
            raise InputError(f"kind {kind!r} has texts of two domains, {domains[kind]!r} and {domain!r}")
    return domains
