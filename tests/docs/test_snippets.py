"""Every snippet of the README and the guides runs as it is typed, but for those that say why not."""

import os
import shlex
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from tests.docs.pages import GUIDES, ROOT, Snippet, snippets

# How many blocks of a page are not run. A page that hides one more has to say so here.
NOT_RUN = {
    "README.md": 1,
    "docs/quickstart.md": 3,
    "docs/guides/decode.md": 4,
    "docs/guides/engines.md": 11,
    "docs/guides/train.md": 2,
}
_MARK = "start of the block in line"


def _name(page) -> str:
    return str(page.relative_to(ROOT))


def _commands(snippet: Snippet) -> list[list[str]]:
    """The words behind `ugap` of each command of a block, without a shell."""
    lines = snippet.text.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in commands if words]


def _program(page) -> str:
    """The blocks of a page as one Python program, which prints a mark before each of them.

    Commands run in its process too: a process of its own would take each some ten seconds to import torch and the rest.
    """
    parts = ["from ugap.cli.main import main"]
    for snippet in snippets(page):
        if snippet.not_run is None and snippet.language in ("python", "bash"):
            parts.append(f"print({f'{_MARK} {snippet.line}'!r}, flush=True)")
            if snippet.language == "python":
                parts.append(snippet.text)
            else:
                parts += [f"assert main({words!r}) == 0" for words in _commands(snippet)]
    return "\n".join(parts)


@pytest.mark.parametrize("page", GUIDES, ids=_name)
def test_blocks_are_python_commands_of_ugap_or_outputs(page):
    for snippet in snippets(page):
        where = f"{_name(page)}, line {snippet.line}"
        assert snippet.note in ("", "output") or snippet.not_run, where
        if snippet.not_run is None and snippet.language == "bash":
            assert all(line.startswith(("ugap ", " ", "#")) for line in snippet.text.splitlines()), where
        assert snippet.language in ("python", "bash", "text", "bibtex", ""), where
        if snippet.language == "":
            # The commands of the Makefile, which other tests and the continuous integration run.
            assert all(line.startswith("make ") for line in snippet.text.splitlines()), where


def test_blocks_that_are_not_run_are_counted():
    reasons = [
        (_name(page), snippet.line, snippet.not_run) for page in GUIDES for snippet in snippets(page) if snippet.not_run
    ]
    print(*(f"{page}, line {line}: not run: {why}" for page, line, why in reasons), sep="\n")
    assert Counter(page for page, _, _ in reasons) == NOT_RUN


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=_name)
def test_the_snippets_of_a_page_run_one_after_another(page, tmp_path):
    (tmp_path / "page.py").write_text(_program(page), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-3000:]}"
    blocks = dict(part.split("\n", 1) for part in done.stdout.split(f"{_MARK} ")[1:])
    for before, snippet in pairwise(snippets(page)):
        if snippet.note == "output":
            assert blocks[str(before.line)].strip() == snippet.text.strip()
