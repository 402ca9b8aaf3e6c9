"""From the texts and answers of a base and its tuned models to rows: gaps, distances, shares closed, comparisons."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ugap.profile import KindProfile
from ugap.profile.plain import FloatArray
from ugap.profile.texts import FEATURES, FEWEST_TOKENS
from ugap.scoring import ScorerId, TokenScores
from ugap.statistics.gap import paired_gap
from ugap.statistics.quantiles import wasserstein_to_quantiles
from ugap.statistics.share import share_closed
from ugap.study.analysis.variety import VARIETY, spread, variety
from ugap.study.contrasts import corrected
from ugap.study.gap.table import cell_tests
from ugap.study.measures import text_value, token_values
from ugap.study.pairs import Cell, ScoredText, pair
from ugap.study.probes.facts import FactResult, accuracies, compare

BASE, MATCHED, CONTRASTIVE = "base", "temperature-matched", "contrastive"
MEASURES = ("nll", "entropy", "pmi", "deviation")
# Measures whose distribution a human profile holds, by their names there.
PROFILED = {"surprisal": "nll", "deviation": "deviation", "pmi": "pmi"}
_FIGURES = ("n", "human", "model_value", "gap", "ratio", "ci95", "p_value", "p_adjusted", "wasserstein")

Origin = tuple[str, str]  # who wrote or answered, and under which decoding or in which test


@dataclass(frozen=True)
class Reading:
    """The texts that one scorer read, and its numbers.

    Args:
        label (`str`): The scorer as it was named, `"self"` for the frozen base.
        scorer (`ScorerId`): The model behind it.
        profile (`KindProfile`): What human text of the domain looks like to it.
        human (`list[ScoredText]`): How people went on.
        written (`Mapping[tuple[str, str], list[list[ScoredText]]]`): By writer and decoding, the texts of each seed.
    """

    label: str
    scorer: ScorerId
    profile: KindProfile
    human: list[ScoredText]
    written: Mapping[Origin, list[list[ScoredText]]]

    def cell(self, origin: Origin) -> Cell:
        """The pairs with human texts, of all seeds."""
        (cell,) = pair([*self.human, *(text for seed in self.written[origin] for text in seed)])
        return cell

    def record(self) -> dict[str, Any]:
        """The scorer, and what people's own texts are to it."""
        texts = [text.scores for text in self.human]
        return {
            "scorer": self.label,
            "model": self.scorer.name,
            "weight_hash": self.scorer.weight_hash,
            "human": {
                "n": len(texts),
                "n_sources": len({text.source for text in self.human}),
                **{name: float(np.nanmean([text_value(scores, name) for scores in texts])) for name in MEASURES},
                **variety(texts),
                "to_profile": distances_to_profile(texts, self.profile),
                "reward": _mean(self._closeness(self.human)),
                "spread": self._spread([self.human])["total"],
            },
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """The texts of every writer and decoding compared with human ones, pair by pair cut to one length.

        The p-values are corrected over all rows of this scorer.
        """
        cells = {origin: self.cell(origin) for origin in self.written}
        tests = [(origin, test) for origin, cell in cells.items() for test in cell_tests(cell, seed=0)]
        kept = [(origin, test) for origin, test in tests if test.row["n"] and test.row["measure"] in MEASURES]
        tables: dict[Origin, dict[str, dict[str, Any]]] = {origin: {} for origin in cells}
        for (origin, _), row in zip(kept, corrected((test for _, test in kept), seed=0), strict=True):
            tables[origin][row["measure"]] = row
        for origin, seeds in self.written.items():
            writer, decoding = origin
            named = {"writer": writer, "decoding": decoding, "scorer": self.label}
            cell, table = cells[origin], tables[origin]
            yield {
                **named,
                "n": len(cell.human),
                "n_sources": len(set(cell.sources)),
                "n_dropped": cell.n_dropped,
                "measures": {
                    name: {figure: table[name][figure] for figure in _FIGURES} for name in MEASURES if name in table
                },
                "to_profile": distances_to_profile(cell.generated, self.profile),
                **self._variety(seeds),
                "spread": self._spread(seeds),
            }

    def shares(self, decodings: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The share closed of the base's absolute gap in surprisal under each decoding: by the tuned models under the
        same one, and by the base at the matched temperature.
        """
        gaps = {origin: self.cell(origin).gaps("nll") for origin in self.written}
        for named, base, compared in self._compared(decodings):
            before, after = gaps[base], gaps[compared]
            if {source for _, source in before} & {source for _, source in after}:
                yield {**named, **asdict(share_closed(*zip(*before, strict=True), *zip(*after, strict=True)))}

    def rewards(self, decodings: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The closeness of continuations less the base's, for the same prefixes under the same decoding.

        Closeness is that of [`UncertaintyReward`][ugap.training.UncertaintyReward] with `pointwise`. There are rows of
        the tuned models, and of the base at the matched temperature.
        """
        rewards = {
            origin: [value for seed in seeds for value in self._closeness(seed)]
            for origin, seeds in self.written.items()
        }
        for named, base, compared in self._compared(decodings):
            before, after = rewards[base], rewards[compared]
            both = [i for i in range(len(after)) if math.isfinite(after[i]) and math.isfinite(before[i])]
            if both:
                # Every seed continues all prefixes in their order, so the texts of a seed repeat the sources.
                sources = [self.human[i % len(self.human)].source for i in both]
                gain = paired_gap([after[i] for i in both], [before[i] for i in both], sources)
                figures = {"before": gain.model_value, "after": gain.human, "rise": gain.gap, "ci95": gain.ci95}
                yield {**named, "n": gain.n, "n_sources": gain.n_sources, **figures, "p_value": gain.p_value}

    def _compared(self, decodings: Sequence[str]) -> Iterator[tuple[dict[str, str], Origin, Origin]]:
        """The rivals of the base under each decoding: the tuned models, and the base at the matched temperature."""
        for decoding in decodings:
            for writer, written_under in self.written:
                if (written_under, writer == BASE) in ((decoding, False), (MATCHED, True)):
                    named = {
                        "writer": writer,
                        "decoding": written_under,
                        "base_decoding": decoding,
                        "scorer": self.label,
                    }
                    yield named, (BASE, decoding), (writer, written_under)

    def _closeness(self, texts: Sequence[ScoredText]) -> list[float]:
        """How near each text is to people's; NaN where the human profile is not of whole texts."""
        if self.profile.texts is None:
            return [math.nan] * len(texts)
        features = [self.profile.text_features(text.scores) for text in texts]
        return [
            self.profile.texts.closeness(values, len(text.scores)) for values, text in zip(features, texts, strict=True)
        ]

    def _spread(self, seeds: Sequence[Sequence[ScoredText]]) -> dict[str, float]:
        """The `spread` of whole texts; NaN where the human profile is not of whole texts."""
        reference, nothing = self.profile.texts, np.full(len(FEATURES), np.nan)

        def point(text: ScoredText) -> FloatArray:
            n = len(text.scores)
            if reference is None or n < FEWEST_TOKENS:
                return nothing
            return reference.whitened(self.profile.text_features(text.scores), n)

        return spread(np.array([[point(text) for text in texts] for texts in seeds]))

    def _variety(self, seeds: list[list[ScoredText]]) -> dict[str, dict[str, float]]:
        """Means over seeds: each sample is as large as people's."""
        sides: list[tuple[dict[str, float], dict[str, float]]] = []
        for texts in seeds:
            # Distinct-n falls with the number of texts: a sample is as large as the human one, so seed by seed.
            (cell,) = pair([*self.human, *texts])
            sides.append((variety(cell.human), variety(cell.generated)))
        return {
            name: {
                side: _mean([both[side_index][name] for both in sides])
                for side_index, side in enumerate(("human", "model_value"))
            }
            for name in VARIETY
        }


def distances_to_profile(texts: Sequence[TokenScores], profile: KindProfile) -> dict[str, float] | None:
    """1-Wasserstein distances of the pooled tokens of texts from a human profile's quantiles.

    A profile is of other texts, and mostly of longer ones, in which the prefix tells less about each token. So people's
    own continuations have a distance too, of PMI above all. Compare the distance of a model with theirs.

    Args:
        texts (`Sequence[TokenScores]`): Texts, scored by the profile's scorer.
        profile (`KindProfile`): The profile of their domain.

    Returns:
        `dict[str, float]` or `None`: In nats for `surprisal` and `pmi`, in standard deviations for `deviation`; a
        measure that the profile or the texts lack is left out. `None` without a text.
    """
    if not texts:
        return None
    out = {}
    for name, measure in PROFILED.items():
        tokens = [token_values(scores, measure) for scores in texts]
        if name in profile.quantiles and any(len(values) > 0 for values in tokens):
            out[name] = wasserstein_to_quantiles(np.concatenate(tokens), profile.levels, profile.quantiles[name])
    return out


def probe_record(results: Mapping[Origin, FactResult], decodings: Sequence[str]) -> dict[str, Any] | None:
    """Accuracies, comparisons with the base on the same items, and what was said.

    Args:
        results (`Mapping[tuple[str, str], FactResult]`): By writer and test.
        decodings (`Sequence[str]`): The decodings that are among the tests; the base at the matched temperature is
            compared with itself under each.

    Returns:
        `dict` or `None`: `None` where nothing was asked.
    """
    if not results:
        return None
    compared = [((writer, test), (BASE, test)) for writer, test in results if writer != BASE]
    compared += [((BASE, MATCHED), (BASE, name)) for name in decodings if {(BASE, MATCHED), (BASE, name)} <= {*results}]
    return {
        "n": len(next(iter(results.values())).ids),
        "accuracies": [
            {"writer": writer, "test": test, **asdict(row)}
            for (writer, test), result in results.items()
            for row in accuracies([result])
            if row.kind is None or len(set(result.kinds)) > 1
        ],
        "comparisons": [
            {
                **dict(zip(("a_writer", "a_test", "b_writer", "b_test"), (*a, *b), strict=True)),
                **asdict(compare([results[a]], [results[b]])),
            }
            for a, b in compared
        ],
        "answers": [
            {
                "writer": writer,
                "test": test,
                "items": [
                    {"id": name, "right": right, "said": said}
                    for name, right, said in zip(result.ids, result.right.tolist(), result.said, strict=True)
                ],
            }
            for (writer, test), result in results.items()
        ],
    }


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return float(np.mean(finite)) if finite else math.nan
