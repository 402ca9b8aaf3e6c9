"""The few parameters that a sampler takes from a human profile, as plain lists.

SciPy and the models of transformers take seconds to import: only the functions that need them import them.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ugap.errors import InputError
from ugap.models.adapter import without_wrapper
from ugap.models.fingerprint import weight_hash
from ugap.profile import HumanProfile, Target
from ugap.profile.calibration import CalibrationCurve
from ugap.profile.positions import BANDS
from ugap.profile.profile import AUTO, Selection
from ugap.sampling.portable.human import MODES
from ugap.sampling.portable.params_processor import mode_weight
from ugap.scoring import ScorerId

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ugap.scoring import Scorer

TAIL = 0.999
# For a reader, the curve is raised to the power of 1 + CONTRAST: certain steps give way before uncertain ones.
CONTRAST = 0.8
MOST = 1_000_000_000  # of any parameter: float32 and vocabularies are far from it
# The lists of `human_params`.
_RISING, _POSITIVE = ("h", "entropy_quantiles", "cdf", "edges", "bands"), ("entropy_scale", "gain", "mean_surprisal")
_SCALES = (0.02, 8.0)  # of the human entropy: far beyond any kind of text


def human_params(
    profile: HumanProfile | str | Path, kind: Selection = AUTO, tail: float | None = TAIL
) -> dict[str, Any]:
    """The sampler's parameters for one kind of text, at every position of a text.

    Args:
        profile (`HumanProfile`, `str` or `Path`): The profile, its file, or the name of a shipped one.
        kind (`str` or `Mapping[str, float]`, *optional*, defaults to `"auto"`): Kind, domain or mixture of kinds of the
            profile; `auto` is the creative kinds, as no prompt is known here.
        tail (`float`, *optional*, defaults to `0.999`): Share of human tokens within the last rank of their entropy
            bin, one of the rank levels of the profile; `None` for no limit.

    Returns:
        `dict`: `h` and `g` (nats) of the curve; `entropy_quantiles` (nats) of human text, and the `cdf` there; `edges`
            (nats) of the entropy bins, and the last `ranks` in them; by band of positions, which start at `bands`: the
            `entropy_scale` of the quantiles, the `gain` of the curve, and `mean_surprisal` (nats per token).

    Raises:
        InputError: If the profile cannot be read, lacks the kind or the tail, or has no mean surprisal.

    Example:
        >>> params = human_params("gemma-3-270m", "story")
        >>> len(params["ranks"]) == len(params["edges"]) + 1, len(params["gain"]) == len(params["bands"]) + 1
        (True, True)
    """
    loaded = profile if isinstance(profile, HumanProfile) else HumanProfile.load(profile)
    return target_params(loaded.target(kind), tail)


def target_params(target: Target, tail: float | None = TAIL) -> dict[str, Any]:
    """The sampler's parameters for the human text that a prompt calls for; returns and raises as `human_params`.

    The prompt moves the level of its kind: the human entropy is scaled until the curve's mean over its quantiles moves
    by the same factor. At each position the gain makes that mean the human mean surprisal there.

    For a reader, the aim is a share of that mean, and the curve is steeper: it falls most where the writer is certain.
    At the same level for the reader, the surprisals are nearer to people's.
    """
    from scipy.optimize import brentq, isotonic_regression

    kind = target.kind
    entropy, surprisal = (kind.means.get(name, float("nan")) for name in ("entropy", "surprisal"))
    if not (np.isfinite([entropy, surprisal]).all() and entropy > 0 and surprisal > 0):
        raise InputError("the human profile has no mean entropy and surprisal above 0")
    ranks: list[int] = []
    if tail is not None:
        levels = kind.bins.rank_levels.tolist()
        if tail not in levels:
            raise InputError(f"tail {tail!r}: the human profile has the rank levels {', '.join(map(str, levels))}")
        # Deep ranks are rare, so their quantiles are noisy: smoothed, as the last rank cannot fall where entropy rises.
        quantiles = np.log(np.maximum(kind.bins.rank[:, levels.index(tail)], 1))
        smooth = isotonic_regression(quantiles, weights=np.maximum(kind.bins.n_tokens, 1)).x
        ranks = np.ceil(np.exp(smooth)).astype(int).tolist()
    quantiles = np.array([0.0, *kind.quantiles["entropy"]])
    # Scaled, as the profile knows no maximum: its highest quantile is taken for it.
    cdf = np.array([0.0, *(kind.levels / kind.levels[-1])])

    def mean_of_curve(scale: float, curve: CalibrationCurve = kind.curve) -> float:
        """Mean of a curve over the scaled quantiles, nats: the sampler's aim is linear between them."""
        values = curve(scale * quantiles)
        return float(((values[1:] + values[:-1]) / 2 * np.diff(cdf)).sum())

    goal = target.factor * mean_of_curve(1.0)
    low, high = _SCALES
    scale = float(np.clip(goal, mean_of_curve(low), mean_of_curve(high)))
    scale = 1.0 if target.factor == 1 else brentq(lambda x: mean_of_curve(x) - scale, low, high)
    scales = scale * kind.positions.entropy / entropy
    means = target.share * target.factor * kind.positions.surprisal
    curve = kind.curve
    if target.reading is not None:
        # In units of the mean, so that the curve keeps its height.
        steeper = curve.g * (curve.g / surprisal) ** CONTRAST
        curve = replace(curve, g=steeper, low=steeper, high=steeper)
    return {
        "h": curve.h.tolist(),
        "g": curve.g.tolist(),
        "entropy_quantiles": quantiles.tolist(),
        "cdf": cdf.tolist(),
        "edges": kind.bins.edges.tolist(),
        "ranks": ranks,
        "bands": list(BANDS),
        "entropy_scale": scales.tolist(),
        "gain": [float(mean) / mean_of_curve(float(one), curve) for mean, one in zip(means, scales, strict=True)],
        "mean_surprisal": means.tolist(),
    }


def checked_params(params: Any) -> dict[str, Any]:
    """The sampler's parameters from another program, checked: a step with wrong ones would fail for its whole batch.

    Args:
        params (`Any`): What should be a result of `human_params`.

    Raises:
        ValueError: If they are none; the message names what is wrong.

    Example:
        >>> checked_params({"h": []})
        Traceback (most recent call last):
            ...
        ValueError: the keys are not those of human_params
    """
    if not isinstance(params, dict) or set(params) != {*_RISING, *_POSITIVE, "g", "ranks"}:
        raise ValueError("the keys are not those of human_params")
    for name, values in params.items():
        kind = int if name == "ranks" else int | float
        if not isinstance(values, list) or any(isinstance(one, bool) or not isinstance(one, kind) for one in values):
            raise ValueError(f"{name} is no list of numbers")
        # NaN is not below the bound either.
        if not all(0 <= one <= MOST for one in values):
            raise ValueError(f"{name} has a number outside of [0, {MOST}]")
    for name in _RISING:
        if any(b < a for a, b in pairwise(params[name])):
            raise ValueError(f"{name} falls")
    for name in _POSITIVE:
        if not all(one > 0 for one in params[name]):
            raise ValueError(f"{name} has a number that is not above 0")
    n = {name: len(values) for name, values in params.items()}
    bands = {n[name] for name in _POSITIVE}
    if not (n["h"] == n["g"] > 0 and n["entropy_quantiles"] == n["cdf"] > 0 and bands == {n["bands"] + 1}):
        raise ValueError("the lists are not of lengths that belong together")
    if n["ranks"] not in (0, n["edges"] + 1) or 0 in params["ranks"] or params["cdf"][-1] > 1:
        raise ValueError("ranks or cdf are none")
    return params


def weight_of(mode: str | None, weight: float | None) -> float:
    """The weight of a mode, or the weight itself, checked; 1 (`creative`) where neither is given.

    Raises:
        InputError: If the mode is unknown, the weight is outside [0, 1], or both are given.

    Example:
        >>> weight_of("balanced", None)
        0.5
    """
    try:
        return mode_weight(mode, weight)
    except ValueError as error:
        raise InputError(str(error)) from error


def aimed(profile: HumanProfile, mode: str | None = None, weight: float | None = None) -> tuple[HumanProfile, float]:
    """The profile that a sampler aims by, and its weight.

    `creative` aims at text that is human to the reader that the profile was calibrated for, if there is one. The other
    modes and weights are shares of the writer's own human level, unless `HumanProfile.read_by` set a reader.

    Args:
        profile (`HumanProfile`): The profile of the writer.
        mode (`str`, *optional*): `"creative"` (the default), `"balanced"` or `"precise"`.
        weight (`float`, *optional*): Share of the level in [0, 1], instead of a mode.

    Raises:
        InputError: If mode or weight is unknown or out of range.
    """
    share = weight_of(mode, weight)
    to_reader = share == MODES["creative"] and weight is None
    return (profile.read_by() if to_reader and profile.reader is None else profile), share


def profile_of(
    model: "PreTrainedModel",
    profile: HumanProfile | str | Path | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    like: Sequence[str] | None = None,
    reader: "str | Scorer | None" = None,
) -> HumanProfile:
    """The human profile of a model: the given one, checked against its weights, or else its own.

    Args:
        model (`PreTrainedModel`): A causal language model.
        profile (`HumanProfile`, `str` or `Path`, *optional*): A profile of the model, or its file.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The model's. With it, a model without a profile gets one
            fitted to the embedded texts.
        like (`Sequence[str]`, *optional*): A user's texts, which become the kind `like`; needs the tokenizer.
        reader (`str` or `Scorer`, *optional*): A model that continuations should be human to: one that the profile was
            calibrated for, or any other, which needs the tokenizer. See
            [`profile_read_by`][ugap.sampling.reading.profile_read_by].

    Raises:
        InputError: If the profile was fitted with another model, none is there for this one and none can be fitted, or
            the texts are too few.
    """
    base = without_wrapper(model)
    scorer = ScorerId(base.config.name_or_path or type(base).__name__, weight_hash(base))
    if profile is None:
        own = HumanProfile.shipped_for(scorer) if tokenizer is None else HumanProfile.for_model(model, tokenizer)
    else:
        from ugap.profile.fitting import under_base  # loads scipy, which a processor does without

        own = profile if isinstance(profile, HumanProfile) else HumanProfile.load(profile)
        own = under_base(own, base)
        own.check(scorer)
    if own.reader is not None:
        reader = None  # The given profile has one.
    # Without a tokenizer. A folder may hold other weights than when it read the writer.
    if isinstance(reader, str) and reader in own.readings and like is None and not Path(reader).exists():
        return own.read_by(reader)
    if like is None and reader is None:
        return own
    if tokenizer is None:
        wish = "write like given texts" if like is not None else "calibrate a reader"
        raise InputError(f"to {wish}, the tokenizer of the model is needed")
    from ugap.profile.fitting import like_texts
    from ugap.scoring import Scorer

    writer = Scorer(base, tokenizer)
    if like is not None:
        own = like_texts(own, writer, like)
    if reader is None:
        return own
    from ugap.sampling.reading import profile_read_by

    return profile_read_by(own, writer, reader, like)
