"""A study that is killed at any instant goes on from what is finished, and ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
KILLS = 3
# More threads would only wait for each other on models of this size.
QUIET: dict[str, Any] = {"cwd": ROOT, "stdout": subprocess.DEVNULL, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}


def finished(folder: Path) -> dict[Path, tuple[int, int, bytes]]:
    """The units that are done: inode, time of the last change, and content."""
    return {
        path: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.glob("parts/*/*.part.parquet")
        if not path.name.startswith(".")
    }


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, tiny_folder, chat_folder, text_rows, write_rows):
    words = [sys.executable, "-m", "ugap.cli.main", "measure", "--data", write_rows(text_rows)]
    words += ["--model", str(tiny_folder), "--model", str(chat_folder), "--scorer", "self", str(tiny_folder)]
    words += ["--decoding", "ancestral", "top-p-0.9", "--limit", "8", "--batch_size", "2", "--no_pmi"]
    words += ["--prefix_tokens", "8", "--max_new_tokens", "16", "--output"]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*words, str(whole)], check=True, **QUIET)
    n_units = len(finished(whole))
    assert n_units == 2 * 2 * 8 + 3 * 8

    rng = random.Random(0)
    before: dict[Path, tuple[int, int, bytes]] = {}
    for kill in range(KILLS):
        resume = ["--resume"] if kill else []
        process = subprocess.Popen([*words, str(folder), *resume], **QUIET)
        enough = len(before) + rng.randint(1, 8)
        while len(list(folder.glob("parts/*/*.part.parquet"))) < enough and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        after = finished(folder)
        assert len(before) < len(after) < n_units
        assert {path: after[path] for path in before} == before
        before = after
        assert not (folder / "gap.json").exists()
    subprocess.run([*words, str(folder), "--resume"], check=True, **QUIET)
    after = finished(folder)
    assert len(after) == n_units
    assert {path: after[path] for path in before} == before

    assert json.loads((folder / "gap.json").read_text()) == json.loads((whole / "gap.json").read_text())
    assert pq.read_table(folder / "scores.parquet").equals(pq.read_table(whole / "scores.parquet"))
