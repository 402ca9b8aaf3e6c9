"""Tables of edits: what moved, what points at the changes, and what goes with the ratings."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from ugap.report.terminal import figure, text_table, with_interval

_FORMS = {"share": "+.2f", "closeness": "+.3f", "bits_per_byte": "+.3f"}
_TOGETHER = (("nll", "entropy", "deviation"), ("pmi", "bits_per_byte", "closeness", "score"))  # in one table

Record = Mapping[str, Any]


def edits_tables(record: Record) -> Iterator[Table]:
    """The tables of `edits.json`.

    Args:
        record (`Mapping`): The content of `edits.json`.
    """
    cells = {(row["scope"], row["measure"]): row for row in record["moves"]}
    scopes = list(dict.fromkeys(row["scope"] for row in record["moves"]))
    for measures in _TOGETHER:
        shown = [measure for measure in measures if any((scope, measure) in cells for scope in scopes)]
        if not shown:
            continue
        yield text_table(
            "After less before [95%]",
            ["edits", "n (texts)", "changed", *shown],
            [
                [
                    scope,
                    f"{cells[scope, 'nll']['n']} ({cells[scope, 'nll']['n_texts']})",
                    figure(cells[scope, "nll"]["share"], ".0%"),
                    *(_change(cells.get((scope, measure), {}), measure) for measure in shown),
                ]
                for scope in scopes
                if (scope, "nll") in cells
            ],
            words=1,
        )
    pointers = list(dict.fromkeys(row["pointer"] for row in record["pointers"]))
    found = {(row["scope"], row["tokens"], row["pointer"]): row for row in record["pointers"]}
    yield text_table(
        "AUC of changed against kept tokens of the same text [95%]",
        ["edits", "tokens", "n (texts)", *pointers],
        [
            [
                scope,
                tokens,
                f"{found[scope, tokens, pointers[0]]['n']} ({found[scope, tokens, pointers[0]]['n_texts']})",
                *(
                    with_interval(found[scope, tokens, pointer]["auc"], found[scope, tokens, pointer]["ci95"], ".3f")
                    for pointer in pointers
                ),
            ]
            for scope, tokens in dict.fromkeys((row["scope"], row["tokens"]) for row in record["pointers"])
        ],
        words=2,
    )
    if record["scores"]:
        yield text_table(
            "Spearman's correlation of a change with the change of the rating, within groups [95%]",
            ["measure", "texts", "correlation"],
            [[row["measure"], str(row["n"]), with_interval(row["r"], row["ci95"], "+.2f")] for row in record["scores"]],
            words=1,
        )


def _change(row: Record, measure: str) -> str:
    return with_interval(row.get("change"), row.get("ci95"), _FORMS.get(measure, "+.2f"))
