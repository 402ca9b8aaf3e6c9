"""The option `--dry_run`, and what it prints."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ugap.cli.arguments import option

if TYPE_CHECKING:
    from ugap.study.gap.plan import Step


def dry_run_option() -> Any:
    """The option `--dry_run`."""
    return option(
        "load the models, and print the texts and tokens of the study and about how long it takes here",
        default=False,
        group="study",
    )


def print_plan(steps: "Sequence[Step]") -> None:
    """Print the steps of a study and their sum."""
    from ugap.progress import span
    from ugap.report.terminal import text_table
    from ugap.study.gap.plan import Step
    from ugap.terminal import Terminal

    sums = (sum(step.n_texts for step in steps), sum(step.n_tokens for step in steps))
    everything = [*steps, Step("in all", *sums, sum(step.seconds for step in steps))]
    rows = [
        [
            step.name,
            f"{step.n_texts:,}",
            f"{step.n_tokens:,}",
            "not timed" if math.isnan(step.seconds) else span(step.seconds),
        ]
        for step in everything
    ]
    Terminal().print(text_table("", ["step", "texts", "tokens", "about"], rows, words=1))
    print("Nothing was written. Times are estimated from one batch on this machine. Finished parts are counted, too.")
