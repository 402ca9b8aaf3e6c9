"""The tables of a human profile for a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from ugap.profile import HumanProfile
from ugap.profile.positions import BANDS
from ugap.report.terminal import figure, text_table
from ugap.terminal import one_line

_MEASURES = ("surprisal", "entropy", "deviation", "pmi")
_ENTROPIES = (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def profile_tables(profile: HumanProfile) -> Iterator[Text | Table]:
    """Scorer and source of a profile, and by kind: means, means by position, the curve, and the shares of readers."""
    yield Text(one_line(f"scorer {profile.scorer.name} ({profile.scorer.weight_hash}); {profile.source}"))
    kinds = profile.kinds.items()
    yield text_table(
        "",
        ["kind", "domain", "texts", "tokens", *_MEASURES],
        [
            [name, kind.domain, str(kind.n_texts), str(kind.n_tokens)]
            + [figure(kind.means.get(measure), ".3f") for measure in _MEASURES]
            for name, kind in kinds
        ],
        words=2,
    )
    yield from _titled(
        "mean surprisal of people by the tokens before (nats):",
        ["by position", *(f"{start}-" for start in (0, *BANDS))],
        ([name, *(f"{value:.2f}" for value in kind.positions.surprisal)] for name, kind in kinds),
    )
    yield from _titled(
        "mean surprisal of people where the model's entropy is h (nats):",
        ["calibration", *(f"g({entropy:g})" for entropy in _ENTROPIES)],
        ([name, *(f"{value:.2f}" for value in kind.curve(_ENTROPIES))] for name, kind in kinds),
    )
    if profile.prompt is not None and profile.prompt.kinds:
        yield from _titled(
            "root mean square error of the level after a prompt, for a kind that was left out (nats):",
            ["tokens of the prompt", *(f"{length:g}" for length in profile.prompt.lengths)],
            [["error", *(f"{value:.2f}" for value in profile.prompt.kind_deviation)]],
        )
    for reading in profile.readings.values():
        yield from _titled(
            f"share of the human level that is human to {reading.reader}, and people to it (nats):",
            ["kind", "share", "error", "people", "texts"],
            (
                [name, f"{one.share:.3f}", f"{one.error:.3f}", f"{one.people:.2f}", str(one.n_texts)]
                for name, one in reading.shares.items()
            ),
        )


def _titled(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[Text | Table]:
    # The title is a line of its own: that of a table wraps at the width of its columns.
    yield Text(f"\n{one_line(title)}")
    yield text_table("", header, rows, words=1)
