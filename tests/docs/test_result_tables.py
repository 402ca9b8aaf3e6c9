"""The tables of results that rest on kept numbers are those that the numbers give."""

import subprocess
import sys

import pytest

from tests.docs.pages import ROOT

TABLES = ROOT / "docs" / "results" / "data" / "tables.py"


@pytest.mark.slow
def test_tables_are_made_again():
    made = subprocess.run([sys.executable, str(TABLES)], capture_output=True, text=True, check=True).stdout.splitlines()
    for page in ("strong_writers.md", "edits.md"):
        lines = (ROOT / "docs" / "results" / page).read_text(encoding="utf-8").splitlines()
        rows = [line for line in lines[lines.index("## All numbers") :] if line.startswith("|")]
        assert len(rows) > 10
        assert [row for row in rows if row not in made] == []
