"""The few parameters that a sampler takes from a human profile, as plain lists.

SciPy and the models of transformers take seconds to import: only the functions that need them import them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ugap.errors import InputError
from ugap.profile import HumanProfile
from ugap.sampling.portable.params_processor import mode_weight
from ugap.scoring import ScorerId
from ugap.scoring.fingerprint import weight_hash

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TAIL = 0.999


def human_params(profile: HumanProfile | str | Path, domain: str, tail: float | None = TAIL) -> dict[str, Any]:
    """The sampler's parameters for one domain: calibration curve, mean surprisal, and the last human rank by entropy.

    Args:
        profile (`HumanProfile`, `str` or `Path`): The profile, its file, or the name of a shipped one.
        domain (`str`): Domain of the profile.
        tail (`float`, *optional*, defaults to `0.999`): Share of human tokens within the last rank of their entropy
            bin, one of the rank levels of the profile; `None` for no limit.

    Returns:
        `dict`: `h` and `g` (nats) of the curve; `entropy_quantiles` (nats) of human text, and the `cdf` there; `edges`
            (nats) of the entropy bins, and the last `ranks` in them; `mean_surprisal` (nats per token).

    Raises:
        InputError: If the profile cannot be read, lacks the domain or the tail, or has no mean surprisal.

    Example:
        >>> params = human_params("gemma-3-270m", "creative")
        >>> round(params["mean_surprisal"], 2), len(params["ranks"]) == len(params["edges"]) + 1
        (3.03, True)
    """
    from scipy.optimize import isotonic_regression

    loaded = profile if isinstance(profile, HumanProfile) else HumanProfile.load(profile)
    human = loaded.domain(domain)
    mean_surprisal = human.means.get("surprisal", float("nan"))
    if not (np.isfinite(mean_surprisal) and mean_surprisal > 0):
        raise InputError(f"the human profile of {domain!r} has no mean surprisal above 0")
    ranks: list[int] = []
    if tail is not None:
        levels = human.bins.rank_levels.tolist()
        if tail not in levels:
            raise InputError(f"tail {tail!r}: the human profile has the rank levels {', '.join(map(str, levels))}")
        # Deep ranks are rare, so their quantiles are noisy: smoothed, as the last rank cannot fall where entropy rises.
        quantiles = np.log(np.maximum(human.bins.rank[:, levels.index(tail)], 1))
        smooth = isotonic_regression(quantiles, weights=human.bins.n_tokens).x
        ranks = np.ceil(np.exp(smooth)).astype(int).tolist()
    entropy = loaded.quantiles(domain, "entropy")
    return {
        "h": human.curve.h.tolist(),
        "g": human.curve.g.tolist(),
        "entropy_quantiles": [0.0, *entropy.values.tolist()],
        # Scaled, as the profile knows no maximum: its highest quantile is taken for it.
        "cdf": [0.0, *(entropy.levels / entropy.levels[-1]).tolist()],
        "edges": human.bins.edges.tolist(),
        "ranks": ranks,
        "mean_surprisal": mean_surprisal,
    }


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


def profile_of(model: "PreTrainedModel", profile: HumanProfile | str | Path | None = None) -> HumanProfile:
    """The human profile of a model: the given one, checked against its weights, or else the shipped one.

    Raises:
        InputError: If the profile was fitted with another model, or no profile is shipped for this one.
    """
    scorer = ScorerId(model.config.name_or_path or type(model).__name__, weight_hash(model))
    if profile is None:
        return HumanProfile.shipped_for(scorer)
    loaded = profile if isinstance(profile, HumanProfile) else HumanProfile.load(profile)
    loaded.check(scorer)
    return loaded
