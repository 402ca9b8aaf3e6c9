"""Print the tables of the strong writers and of the expert edits, in Markdown, from the numbers beside this file.

    python docs/results/data/tables.py

The two CSV files hold numbers and names, and no text. The pages say which commands made them.
"""

import csv
import gzip
import math
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np

from ugap.data import TextRow
from ugap.statistics import contrast_independent, correlation, paired_gap
from ugap.study.analysis.edits import MEASURES, POINTERS, Edit, Measured, summary

HERE = Path(__file__).parent
GENRES = ("writing", "xsum", "pubmed", "hanna")
OTHERS = ("entropy", "deviation", "pmi", "bits_per_byte")
BASE = "davinci"
WRITERS = (BASE, "gpt-3.5-turbo", "gpt-4")


def read(name):
    """The rows of a file."""
    with gzip.open(HERE / name, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(text):
    """The number in a cell; NaN for an empty one."""
    return float(text) if text else math.nan


def shown(value, ends, form="+.2f"):
    """A value with its interval."""
    return f"{value:{form}} [{ends[0]:{form}}, {ends[1]:{form}}]"


def table(title, header, rows):
    """A table in Markdown."""
    print(f"\n**{title}**\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def gap_of(rows, measure):
    """The gap of a measure over pairs; `None` where no pair has it."""
    sides = [[number(row[f"{side}_{measure}"]) for row in rows] for side in ("human", "model")]
    keep = np.isfinite(sides).all(axis=0)
    if not keep.any():
        return None
    human, model = (np.array(side)[keep] for side in sides)
    return paired_gap(human, model, [row["id"] for row, kept in zip(rows, keep, strict=True) if kept])


def contrast(a, b):
    """How much larger the NLL gap of the pairs `a` is than that of `b`."""
    gaps = [[number(row["human_nll"]) - number(row["model_nll"]) for row in rows] for rows in (a, b)]
    made = contrast_independent(gaps[0], [row["id"] for row in a], gaps[1], [row["id"] for row in b])
    return shown(made.difference, made.ci95)


def strong_writers():
    """The gap of each writer, and the contrasts."""
    cells = defaultdict(list)
    for row in read("strong_writers.csv.gz"):
        cells[row["reader"], row["genre"], row["writer"]].append(row)
    readers = list(dict.fromkeys(reader for reader, _, _ in cells))

    def place(cell):
        reader, genre, writer = cell
        return readers.index(reader), GENRES.index(genre), WRITERS.index(writer) if writer in WRITERS else 0

    order = sorted(cells, key=place)
    rows = []
    for cell in order:
        nll = gap_of(cells[cell], "nll")
        others = [gap_of(cells[cell], measure) for measure in OTHERS]
        rows.append(
            [
                *cell,
                str(nll.n),
                f"{nll.human:.2f}",
                f"{nll.model_value:.2f}",
                shown(nll.gap, nll.ci95),
                f"{nll.ratio:.2f}",
            ]
            + ["" if one is None else shown(one.gap, one.ci95) for one in others]
        )
    header = ["reader", "texts", "writer", "pairs", "NLL people", "NLL model", "gap [95%]", "ratio"]
    table("People less model", [*header, "entropy", "deviation", "PMI", "bits per byte"], rows)

    table(
        "Gap in stories less gap in functional text, and aligned less base",
        [
            "reader",
            "writer",
            "stories - news",
            "stories - biomedical",
            *(f"{genre}: less {BASE}" for genre in GENRES[:3]),
        ],
        [
            [reader, writer]
            + [contrast(cells[reader, "writing", writer], cells[reader, genre, writer]) for genre in ("xsum", "pubmed")]
            + [
                "" if writer == BASE else contrast(cells[reader, genre, writer], cells[reader, genre, BASE])
                for genre in GENRES[:3]
            ]
            for reader in readers
            for writer in WRITERS
        ],
    )

    # A text with several writers counts once: its gaps are not independent.
    gaps = defaultdict(list)
    for (reader, _, _), members in cells.items():
        for row in members:
            gaps[reader, row["id"]].append(number(row["human_nll"]) - number(row["model_nll"]))
    rows = []
    for a, b in combinations(readers, 2):
        both = [text for reader, text in gaps if reader == a and (b, text) in gaps]
        sides = [np.array([np.mean(gaps[reader, text]) for text in both]) for reader in (a, b)]
        found = correlation(*sides)
        agree = np.mean(np.sign(sides[0]) == np.sign(sides[1]))
        difference = paired_gap(*sides, both)
        rows.append(
            [a, b, str(len(both)), shown(found.r, found.ci95), f"{agree:.0%}", shown(difference.gap, difference.ci95)]
        )
    table("Do readers agree on a text?", ["reader", "other", "texts", "Spearman", "same sign", "gap less gap"], rows)


def estimates(rows):
    """The estimates over edits, of their numbers."""
    edits = [
        Edit(
            TextRow(row["id"], "", row["text"]),
            "",
            row["group"],
            (number(row["score_before"]), number(row["score_after"])),
        )
        for row in rows
    ]
    measured = [
        Measured(
            number(row["share"]),
            int(row["n_tokens"]),
            *({name: number(row[f"{side}_{name}"]) for name in MEASURES} for side in ("before", "after")),
            *({name: number(row[f"{side}_{name}"]) for name in POINTERS} for side in ("removed", "added")),
        )
        for row in rows
    ]
    return summary(edits, measured, resamples=2000, seed=0)


def expert_edits():
    """What editing moves, and what points at the changes."""
    by_reader = defaultdict(list)
    for row in read("edits.csv.gz"):
        by_reader[row["reader"]].append(row)
    for reader, rows in by_reader.items():
        found = estimates(rows)
        moves = {(row["scope"], row["measure"]): row for row in found["moves"]}
        scopes = list(dict.fromkeys(scope for scope, _ in moves))
        names = [name for name in (*MEASURES, "score") if ("all", name) in moves]
        table(
            f"After less before, read by {reader}",
            ["edits", "n (texts)", "changed", *names],
            [
                [scope, f"{first['n']} ({first['n_texts']})", f"{first['share']:.0%}"]
                + [
                    shown(
                        moves[scope, name]["change"],
                        moves[scope, name]["ci95"],
                        "+.3f" if name == "closeness" else "+.2f",
                    )
                    for name in names
                ]
                for scope in scopes
                for first in [moves[scope, "nll"]]
            ],
        )
        pointers = {(row["scope"], row["tokens"], row["pointer"]): row for row in found["pointers"]}
        table(
            f"AUC of changed against kept tokens, read by {reader}",
            ["edits", "tokens", *POINTERS],
            [
                [scope, tokens]
                + [
                    shown(pointers[scope, tokens, name]["auc"], pointers[scope, tokens, name]["ci95"], ".3f")
                    for name in POINTERS
                ]
                for scope in scopes
                for tokens in ("removed", "added")
            ],
        )
        table(
            f"Spearman's correlation of a change with the change of the score, read by {reader}",
            ["measure", "texts", "correlation"],
            [[row["measure"], str(row["n"]), shown(row["r"], row["ci95"])] for row in found["scores"]],
        )

    common = set.intersection(*({row["id"] for row in rows} for rows in by_reader.values()))
    both = {reader: estimates([row for row in rows if row["id"] in common]) for reader, rows in by_reader.items()}
    table(
        f"The {len(common)} edits that all readers read: change of surprisal, and its correlation with the score",
        ["reader", "change", "texts", "correlation"],
        [
            [reader, shown(found["moves"][0]["change"], found["moves"][0]["ci95"])]
            + [cell for row in found["scores"][:1] for cell in (str(row["n"]), shown(row["r"], row["ci95"]))]
            for reader, found in both.items()
        ],
    )


if __name__ == "__main__":
    strong_writers()
    expert_edits()
