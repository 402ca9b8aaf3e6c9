"""The scored texts of a study and their pairs: what every kind of study shares.

Human and model text of one prefix are a pair, scored by one scorer and cut to the same number of tokens.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ugap.scoring import TokenScores
from ugap.study.measures import text_value

# A scorer that is the writer itself.
SELF = "self"
# The decoding of what a person wrote.
HUMAN = "human"
# The decoding of a text that came with the text set: its model is the candidate's name.
GIVEN = "given"
# A pair shorter than this says little and adds noise.
MIN_TOKENS = 8


@dataclass(frozen=True)
class ScoredText:
    """One scored text of a study: human (`decoding == "human"`), sampled, or given."""

    id: str
    source: str
    domain: str
    model: str
    prompting: str
    decoding: str
    scorer: str
    prefix: str
    scores: TokenScores


@dataclass(frozen=True)
class Cell:
    """All pairs of one cell of the table: `human[i]` and `model[i]` continue one prefix."""

    domain: str
    model: str
    prompting: str
    decoding: str
    scorer: str
    sources: list[str]
    human: list[TokenScores]
    generated: list[TokenScores]
    n_dropped: int

    def gaps(self, measure: str) -> list[tuple[float, str]]:
        """Gap, human less model, and source text of every pair that has the measure."""
        both = zip(self.human, self.generated, self.sources, strict=True)
        gaps = [(text_value(human, measure) - text_value(model, measure), source) for human, model, source in both]
        return [(gap, source) for gap, source in gaps if math.isfinite(gap)]


def pair(texts: Iterable[ScoredText]) -> list[Cell]:
    """Pair the model texts with the human texts of their prefixes, both cut to the shorter one's tokens.

    A human text is found by prefix, scorer, prompting and the model whose tokens the prefix was cut by; given
    continuations carry that model in `model` as `NAME`, so they are matched by scorer and prefix alone.
    """
    texts = list(texts)
    human: dict[tuple[str, ...], ScoredText] = {}
    for text in texts:
        if text.decoding == HUMAN:
            human[(text.model, text.prompting, text.scorer, text.id)] = text
            # Several models may cut the same prefix: for given texts the first human text with it will do.
            human.setdefault(("", text.prompting, text.scorer, text.id, text.prefix), text)
    # A cell whose pairs are all too short is there too, with none: its texts are counted.
    groups: dict[tuple[str, str, str, str, str], list[tuple[ScoredText, ScoredText]]] = {}
    dropped: dict[tuple[str, ...], int] = defaultdict(int)
    for text in texts:
        if text.decoding == HUMAN:
            continue
        key = (text.domain, text.model, text.prompting, text.decoding, text.scorer)
        groups.setdefault(key, [])
        given = ("", text.prompting, text.scorer, text.id, text.prefix)
        partner = human.get((text.model, text.prompting, text.scorer, text.id)) or human.get(given)
        if partner is None or min(len(partner.scores), len(text.scores)) < MIN_TOKENS:
            dropped[key] += 1
        else:
            groups[key].append((partner, text))
    cells = []
    for key, pairs in groups.items():
        # Surprisal falls along a text: the sides are compared over the same number of tokens.
        lengths = [min(len(a.scores), len(b.scores)) for a, b in pairs]
        cells.append(
            Cell(
                *key,
                sources=[b.source for _, b in pairs],
                human=[a.scores.first(n) for (a, _), n in zip(pairs, lengths, strict=True)],
                generated=[b.scores.first(n) for (_, b), n in zip(pairs, lengths, strict=True)],
                n_dropped=dropped[key],
            )
        )
    return cells
