"""Uncertainty against factuality: a point for a base and each tuned model, and the Pareto frontier."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from ugap.statistics.pareto import pareto_optimal
from ugap.statistics.share import folded
from ugap.study.compare.table import BASE, CONTRASTIVE, MATCHED

Probe = Literal["contrastive", "generative"]


def tradeoff_points(record: Mapping[str, Any], probe: Probe = "contrastive") -> list[dict[str, Any]]:
    """A point for every model, scorer and decoding: the size of its gap in surprisal, and its accuracy on the facts.

    The base at the matched temperature, where it was measured, is a point under each decoding. A model whose gap could
    not be estimated has no point.

    Args:
        record (`Mapping`): What `ugap.study.compare.run.measure_before_after` gave, facts included.
        probe (`str`, *optional*, defaults to `"contrastive"`): `"contrastive"`, or `"generative"`: what the model says
            under the decoding.

    Returns:
        `list[dict]`: `scorer`, `decoding` (of the comparison), `model`, `own_decoding`, `gap` with `ci95`, `size` (the
        absolute gap) with `size_ci95`, `accuracy` with `accuracy_ci95`, and `pareto`: whether no other point of the
        same scorer and decoding is as near to people and as accurate, and better in one.
    """
    accuracies = {(row["writer"], row["test"]): row for row in record["facts"]["accuracies"] if row["kind"] is None}
    out: list[dict[str, Any]] = []
    for scorer in (one["scorer"] for one in record["scorers"]):
        for decoding in record["settings"]["decodings"]:
            panel = []
            for row in record["rows"]:
                beside = (row["writer"], row["decoding"]) == (BASE, MATCHED)
                estimate = row["measures"].get("nll")
                if row["scorer"] != scorer or not (row["decoding"] == decoding or beside) or estimate is None:
                    continue
                test = CONTRASTIVE if probe == "contrastive" else row["decoding"]
                accuracy = accuracies[row["writer"], test]
                low, high = (math.nan if end is None else end for end in estimate["ci95"])
                # The size of a gap cannot be negative: an interval that covers 0 starts at 0.
                size_ci95 = folded((low, high)) if math.isfinite(low) else (None, None)
                panel.append(
                    {
                        "scorer": scorer,
                        "decoding": decoding,
                        "model": row["writer"],
                        "own_decoding": row["decoding"],
                        "gap": estimate["gap"],
                        "ci95": list(estimate["ci95"]),
                        "size": abs(estimate["gap"]),
                        "size_ci95": list(size_ci95),
                        "accuracy": accuracy["accuracy"],
                        "accuracy_ci95": list(accuracy["ci95"]),
                    }
                )
            if panel:
                best = pareto_optimal([point["size"] for point in panel], [point["accuracy"] for point in panel])
                out += [{**point, "pareto": bool(on)} for point, on in zip(panel, best, strict=True)]
    return out
