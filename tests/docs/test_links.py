"""Links of the pages that no site builder checks, and the files and modules that any page names, exist."""

import importlib.util
import re

import pytest

from tests.docs.pages import PROSE, ROOT


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
