"""Collect the numbers of finished runs into the CSV files that `tables.py` reads: numbers and names, no text.

    python docs/results/data/collect.py runs/strong_smollm2 runs/strong_gemma runs/edits_smollm2 runs/edits_gemma

A folder of `ugap measure --candidate` gives rows of strong_writers.csv.gz. One of `ugap eval edits` gives rows of
edits.csv.gz.
"""

import csv
import gzip
import io
import json
import math
import sys
from pathlib import Path

from ugap.report.page.scores import read_scores
from ugap.study.measures import text_value
from ugap.study.pairs import pair

HERE = Path(__file__).parent
MEASURES = ("nll", "entropy", "deviation", "pmi", "bits_per_byte")


def pairs(folder):
    """A row for each pair of a study, cut as for the gap."""
    for cell in pair(read_scores(folder)):
        for text, human, model in zip(cell.sources, cell.human, cell.generated, strict=True):
            sides = {"human": human, "model": model}
            values = {f"{side}_{name}": text_value(one, name) for side, one in sides.items() for name in MEASURES}
            labels = {
                "reader": Path(cell.scorer).name,
                "writer": cell.model,
                "genre": text.partition("-")[0],
                "id": text,
            }
            yield {**labels, "n_tokens": len(human), **values}


def edits(folder):
    """A row for each edit."""
    record = json.loads((folder / "edits.json").read_text(encoding="utf-8"))
    for one in record["edits"]:
        score_before, score_after = one.pop("scores")
        row = {
            "reader": Path(record["settings"]["scorer"][0]).name,
            "score_before": score_before,
            "score_after": score_after,
        }
        for name, value in one.items():
            row |= (
                {f"{name}_{key}": figure for key, figure in value.items()} if isinstance(value, dict) else {name: value}
            )
        yield row


def cell(value):
    """A number with four decimals, empty where there is none."""
    if isinstance(value, float):
        return f"{value:.4f}" if math.isfinite(value) else ""
    return value


def write(name, rows):
    """Write a compressed CSV file, the same bytes each time."""
    if not rows:
        return
    path = HERE / name
    with (
        open(path, "wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as file,
    ):
        # The first row has all columns: a reader without PMI or closeness comes later.
        writer = csv.DictWriter(file, list(rows[0]), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    print(f"{path}: {len(rows)} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    folders = [Path(name) for name in sys.argv[1:]]
    edited = [folder for folder in folders if (folder / "edits.json").exists()]
    write("strong_writers.csv.gz", [row for folder in folders if folder not in edited for row in pairs(folder)])
    write("edits.csv.gz", [row for folder in edited for row in edits(folder)])
