"""Tests of a reward before any training: human against other texts, texts that stop early, and what it selects.

All of it is computed from the features of texts that a judge has read, so that each text is read once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ugap.profile import KindProfile
from ugap.profile.plain import FloatArray
from ugap.profile.texts import FEATURES, closeness
from ugap.statistics.auc import auc
from ugap.study.analysis.variety import spread
from ugap.training.matching import WHOLE, match, with_length_rule

HUMAN, DRAWN, SELECTED = "human", "drawn", "selected"
ALL = "uncertainty"  # the whole reward, among the measures


@dataclass(frozen=True)
class ReadText:
    """A text as the scorer reads it: its source and prefix, and its features, `None` where it could not be scored."""

    source: str
    prefix: str
    n_tokens: int
    features: Sequence[float] | None


@dataclass(frozen=True, eq=False)
class Matching:
    """The texts of one kind as a policy's completions, at their nominal length.

    Args:
        texts (`Sequence[ReadText]`): The texts.
        points (`np.ndarray` of shape `(n, 8)`): Whitened features; NaN where a text could not be scored.
        standardised (`np.ndarray` of shape `(n, 8)`): Features in human standard deviations.
        rewards (`np.ndarray` of shape `(n,)`): Their rewards.
        closeness (`np.ndarray` of shape `(n,)`): Their closeness; 0 where a text could not be scored.
        energy_distance (`float`): From human texts.
    """

    texts: Sequence[ReadText]
    points: FloatArray
    standardised: FloatArray
    rewards: FloatArray
    closeness: FloatArray
    energy_distance: float

    @classmethod
    def of(cls, texts: Sequence[ReadText], kind: KindProfile, n: int) -> "Matching":
        """Match texts of nominally `n` tokens. A text of other length has been made so, and is not short for it."""
        points, standardised = (np.full((len(texts), 8), np.nan) for _ in range(2))
        assert kind.texts is not None
        for i, text in enumerate(texts):
            if text.features is not None:
                features = np.array(text.features, dtype=np.float64)
                points[i] = kind.texts.whitened(features, max(n, text.n_tokens))
                standardised[i] = kind.texts.standardised(features, text.n_tokens)
        keys = [text.prefix for text in texts]
        matched = match(points, keys)
        scored = np.isfinite(matched.closeness)
        rewards = with_length_rule(matched.rewards, keys, scored.astype(float))
        closeness = np.where(scored, matched.closeness, 0)
        return cls(texts, points, standardised, rewards, closeness, matched.energy_distance)


def compare(name: str, people: Matching, texts: Matching) -> dict[str, Any]:
    """One kind of text: its mean rewards, its distances from people, and the AUC of human texts against it."""

    def single(matching: Matching) -> dict[str, FloatArray]:
        """The closeness by each measure alone; 0 for a text that could not be scored."""
        scored, z = np.isfinite(matching.points).any(1), matching.standardised
        return {feature: np.where(scored, closeness(z[:, i : i + 1]), 0.0) for i, feature in enumerate(FEATURES)}

    scored = np.isfinite(texts.points).any(1)
    rewards = {ALL: texts.rewards, **single(texts)}
    row: dict[str, Any] = {
        "kind": name,
        "n": len(texts.texts),
        "n_sources": len({text.source for text in texts.texts}),
        "n_not_scored": int((~scored).sum()),
        "reward": {measure: float(values.mean()) for measure, values in rewards.items()},
        "closeness": float(texts.closeness.mean()),
        "energy_distance": texts.energy_distance,
        "standardised": None,
        "deviations": None,
    }
    if scored.any():
        mean, deviation = texts.standardised[scored].mean(0), texts.standardised[scored].std(0)
        row["standardised"] = dict(zip(FEATURES, mean.tolist(), strict=True))
        row["deviations"] = dict(zip(FEATURES, deviation.tolist(), strict=True))
    if name == HUMAN:
        return row
    sides = [[text.source for text in side.texts] for side in (people, texts)]
    areas = {}
    for measure, values in {ALL: people.rewards, **single(people)}.items():
        if np.isfinite([*values, *rewards[measure]]).all():  # NaN where the profile lacks a measure
            area = auc(values, sides[0], rewards[measure], sides[1])
            areas[measure] = {"auc": area.auc, "ci95": list(area.ci95)}
    return {**row, "auc": areas}


def stopping_early(
    judged: Mapping[str, Sequence[ReadText]], early: Mapping[str, Sequence[ReadText]], kind: KindProfile, n: int
) -> list[dict[str, Any]]:
    """What a human text gains in reward when it ends early, in a group with the whole text and two like it.

    The group of each prefix is the human text, two more of people, and one that ends at a share of its length.
    """
    assert kind.texts is not None
    people = judged[HUMAN]
    whole_points = Matching.of(people, kind, n).points
    rows = []
    for name, texts in early.items():
        shares = [text.n_tokens / own.n_tokens for text, own in zip(texts, people, strict=True)]
        points = np.array(
            [
                kind.texts.whitened(np.array(text.features), n)
                if text.features is not None and share >= WHOLE
                else np.full(8, np.nan)
                for text, share in zip(texts, shares, strict=True)
            ]
        )
        m = len(people)
        members = np.concatenate([whole_points, np.roll(whole_points, 1, 0), np.roll(whole_points, 2, 0), points])
        keys = list(range(m)) * 4
        rewards = with_length_rule(match(members, keys).rewards, keys, np.array([1.0] * 3 * m + shares))
        rows.append({"kind": name, "gain": float(np.mean(rewards[3 * m :] - rewards[:m]))})
    return rows


def selection_of(
    drawn: Mapping[str, Sequence[ReadText]], people: Matching, kind: KindProfile, n: int
) -> dict[str, Any]:
    """What the reward selects for each prefix, all drawn texts together, and people's texts: their match and spread."""
    columns = list(drawn.values())
    matched = Matching.of([text for column in columns for text in column], kind, n)
    rewards = matched.rewards.reshape(len(columns), -1)  # (texts of a prefix, prefixes)
    best = rewards.argmax(0)
    chosen = Matching.of([columns[number][i] for i, number in enumerate(best)], kind, n)

    def described(matching: Matching) -> dict[str, float]:
        points = matching.points[np.isfinite(matching.points).all(1)]
        return {
            "n": len(points),
            "closeness": float(matching.closeness.mean()),
            "energy_distance": matching.energy_distance,
            "spread": spread(points[None])["total"],
        }

    return {HUMAN: described(people), DRAWN: described(matched), SELECTED: described(chosen)}
