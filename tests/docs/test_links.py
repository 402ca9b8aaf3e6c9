"""Links of the pages that no site builder checks, and all files, modules and options that a page names, exist."""

import importlib.util
import re
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest

from tests.docs.pages import PROSE, ROOT, snippets
from ugap.cli.main import main


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if "://" not in link and not (page.parent / link).exists()]


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_modules_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    files = re.findall(r"\b(?:tests|eval|train|configs|ugap|docs)/[\w./]+\.(?:py|yaml|md|jinja)\b", text)
    assert not [name for name in files if not (ROOT / name).exists()]
    configs = re.findall(r"--(?:train_)?config (\w+\.yaml)", text)
    assert not [name for name in configs if not (ROOT / "configs" / name).exists()]
    modules = re.findall(r"^from (ugap[\w.]*) import", text, flags=re.M)
    assert not [name for name in modules if importlib.util.find_spec(name) is None]


def test_docstrings_write_links_as_the_site_resolves_them():
    # mkdocstrings shows [`name`] alone as it is; `make docs` finds a target that does not exist.
    modules = [path for folder in ("ugap", "eval", "train") for path in (ROOT / folder).rglob("*.py")]
    assert not [path for path in modules if re.search(r"\[`~?[\w.]+`\](?!\[)", path.read_text(encoding="utf-8"))]


@pytest.mark.slow
def test_options_of_the_commands_on_the_pages_exist(capsys):
    from ugap.training import UncertaintyGRPOConfig, UncertaintySFTConfig

    # The help of the training programs leaves out most of TRL's options.
    trainers = {field.name for config in (UncertaintyGRPOConfig, UncertaintySFTConfig) for field in fields(config)}
    options = defaultdict(set)
    for snippet in (snippet for page in PROSE for snippet in snippets(page) if snippet.language in ("", "bash")):
        for line in snippet.text.replace("\\\n", " ").splitlines():
            if match := re.match(r"(?:\w+=\S+ )*(ugap(?: eval| train)? \w+|python eval/\S+)", line):
                options[match[1]].update(re.findall(r"\s--(\w+)", line))
    assert len(options) > 15
    for command, names in options.items():
        words = command.split()[1:] if command.startswith("ugap ") else ["eval", Path(command).stem]
        assert main([*words, "--help"]) == 0
        shown = set(re.findall(r"--(\w+)", capsys.readouterr().out)) | (trainers if words[0] == "train" else set())
        assert names <= shown, f"{command}: {names - shown}"
