"""The measured gap before and after training, in a model card."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ugap.files import replacing
from ugap.training.evaluation.callback import UncertaintyGapCallback

MEASURES = {"nll": "surprisal", "entropy": "entropy", "pmi": "PMI", "deviation": "deviation z"}

Evaluation = Mapping[str, float]


class MeasuredCard:
    """A mixin for TRL's trainers: the model card ends with the first and the last evaluation of the gap callback.

    Put it before the trainer among the bases. Without an [`UncertaintyGapCallback`][], or before its first
    evaluation, the card is TRL's.
    """

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> None:
        """Write `README.md` into the output folder, as TRL does, and append the measured gap."""
        trainer: Any = self
        super().create_model_card(model_name=model_name, **kwargs)  # type: ignore[misc]
        callbacks = trainer.callback_handler.callbacks
        gap = next((one for one in callbacks if isinstance(one, UncertaintyGapCallback)), None)
        if gap is None or not gap.evaluations or not trainer.is_world_process_zero():
            return
        path = Path(trainer.args.output_dir) / "README.md"
        card = path.read_text(encoding="utf-8")
        # TRL names a base model only if it comes from the Hub.
        base = Path(trainer.model.config.name_or_path).name
        card = card.replace("[None](https://huggingface.co/None)", base)
        with replacing(path) as temporary:
            temporary.write_text(f"{card.rstrip()}\n\n{measured_section(gap)}", encoding="utf-8")


def measured_section(gap: UncertaintyGapCallback) -> str:
    """The section of the card: the settings of the evaluations, and the table of `before_and_after`."""
    # A profile can be a path of the machine that trained, so the card leaves it out.
    settings = ", ".join(f"{name} {value}" for name, value in gap.decoding.items() if name != "human_profile")
    n = len({excerpt.source for excerpt in gap.excerpts})
    return f"""\
## Human uncertainty, before and after

On {len(gap.excerpts)} held-out prefixes from {n} texts: the policy's continuations ({settings or "ancestral sampling"},
at most {gap.max_new_tokens} tokens) compared with those of people. One frozen scorer read both. Gaps are human less
policy, in nats per token, with 95% bootstrap intervals over texts. Distances are Wasserstein distances between tokens.

{before_and_after(gap.evaluations[0], gap.evaluations[-1])}
"""


def before_and_after(first: Evaluation, last: Evaluation) -> str:
    """Two evaluations side by side as a table in Markdown, without rows that neither could estimate.

    Example:
        >>> first = {"step": 0, "ugap/creative/nll_gap": 0.8, "ugap/creative/nll_gap_low": 0.7,
        ...          "ugap/creative/nll_gap_high": 0.9}
        >>> print(before_and_after(first, {"step": 60, "ugap/creative/nll_gap": 0.1}))
        | | step 0 | step 60 |
        |---|---|---|
        | creative: gap in surprisal | +0.80 [+0.70, +0.90] | +0.10 |
    """
    # A dict keeps the order of the domains.
    domains = dict.fromkeys(name.split("/")[1] for name in (*first, *last) if name.endswith("/nll_gap"))
    rows: list[tuple[str, ...]] = []
    for domain in domains:
        start = f"ugap/{domain}"
        for measure, named in MEASURES.items():
            name = f"{start}/{measure}"
            rows.append(
                (
                    f"{domain}: gap in {named}",
                    *(_interval(evaluation, f"{name}_gap", "+.2f") for evaluation in (first, last)),
                )
            )
            rows.append((f"{domain}: distance in {named}", *_plain((first, last), f"{name}_wasserstein")))
        for name, named in (("repetition", "repetition"), ("distinct_4", "distinct-4")):
            human = first.get(f"{start}/{name}_human", last.get(f"{start}/{name}_human"))
            of_people = "" if human is None else f" (people {human:.3f})"
            rows.append((f"{domain}: {named}{of_people}", *_plain((first, last), f"{start}/{name}")))
        closed = last.get(f"{start}/gap_closed")
        rows.append((f"{domain}: share of the surprisal gap closed", "", "" if closed is None else f"{closed:.0%}"))
    rows.append(("facts right", *(_interval(evaluation, "ugap/facts/accuracy", ".1%") for evaluation in (first, last))))
    lines = [f"| | step {first['step']:.0f} | step {last['step']:.0f} |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows if row[1] or row[2])])


def _plain(evaluations: Sequence[Evaluation], name: str) -> tuple[str, ...]:
    return tuple(f"{evaluation[name]:.3f}" if name in evaluation else "" for evaluation in evaluations)


def _interval(evaluation: Evaluation, name: str, form: str) -> str:
    if name not in evaluation:
        return ""
    value, ends = format(evaluation[name], form), [evaluation.get(f"{name}_{end}") for end in ("low", "high")]
    return f"{value} [{', '.join(format(end, form) for end in ends if end is not None)}]" if None not in ends else value
