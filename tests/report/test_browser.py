"""The HTML report in a real browser: a headless Chromium that opens the page from disk.

Screenshots go to the folder that the environment variable `UGAP_SCREENSHOTS` names, or to the test's own.
"""

import csv
import dataclasses
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from ugap.report.page import read_run, write_page
from ugap.report.page.page import render
from ugap.report.page.writing import write_texts
from ugap.report.written import Block, Written

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EXECUTABLE = next((found for name in BROWSERS if (found := shutil.which(name))), None)
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    if EXECUTABLE is None:
        pytest.skip("there is no Chromium here (Debian: apt-get install chromium)")
    # Chromium's sandbox does not work for root.
    options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=EXECUTABLE, args=options)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def path(evil_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page([evil_folder], path)
    return path


@pytest.fixture
def opened(browser):
    """Open a page from disk; in the end there was no message, no error, and no request but the page's own."""
    troubles, contexts = [], []

    def open_(path, **options):
        context = browser.new_context(**{"viewport": DESK, "color_scheme": "light", **options})
        contexts.append(context)
        page = context.new_page()
        url = Path(path).as_uri()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: None if request.url == url else troubles.append(request.url[:200]))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    # A blob is no request to the network: the CSV is handed to the browser as one.
    assert [trouble for trouble in troubles if not trouble.startswith("blob:")] == []


@pytest.fixture
def page(opened, path):
    return opened(path)


def data_of(page):
    return json.loads(page.locator("#data").text_content())


def background(token):
    return token.evaluate("node => getComputedStyle(node).backgroundColor")


def shown(value):
    """Hundredths as the page writes them."""
    return "–" if value is None else f"{value / 100:.2f}".replace("-", "−")


def test_a_token_shows_its_numbers(page):
    reader = data_of(page)["reader"]
    text = reader["texts"][reader["items"][0][8]]
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.locator("#model .t").nth(2).hover()
    assert tip.is_visible()
    words = tip.inner_text()
    for name, column in (("Surprisal", "s"), ("Entropy", "h"), ("Deviation", "z"), ("PMI", "m")):
        assert f"{name}\n{shown(text[column][2])}" in re.sub(r"\s*\n\s*", "\n", words)
    assert f"{text['r'][2]:,}" in words
    # And by keyboard, from token to token, until it is sent away.
    page.locator("#human .t").first.focus()
    page.keyboard.press("ArrowRight")
    human = reader["texts"][reader["items"][0][7]]
    assert page.locator(":focus").get_attribute("data-i") == "1"
    assert shown(human["s"][1]) in tip.inner_text()
    assert page.locator(":focus").get_attribute("aria-describedby") == "tip"
    page.keyboard.press("Escape")
    assert tip.is_hidden()


def test_the_measure_changes_the_tint(page):
    reader = data_of(page)["reader"]
    text = reader["texts"][reader["items"][0][8]]
    colours = {}
    for name, column in (("Surprisal", "s"), ("Entropy", "h"), ("Deviation", "z"), ("PMI", "m")):
        button = page.get_by_role("radiogroup", name="Tint by").get_by_role("radio", name=name)
        button.click()
        assert button.get_attribute("aria-checked") == "true"
        tokens = page.locator("#model .t").all()
        found = [background(token) for token in tokens]
        colours[name] = found
        low, high = (pick(range(len(found)), key=lambda i: abs(text[column][i] or 0)) for pick in (min, max))
        assert found[low] != found[high]
        assert name.lower() in page.locator("#model-mean").inner_text().lower()
    assert len({tuple(found) for found in colours.values()}) == 4
    # The arrows do what a click does.
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("radio", name="Deviation").last.get_attribute("aria-checked") == "true"


def test_next_previous_and_filters(page):
    items = data_of(page)["reader"]["items"]
    count, name = page.locator("#count"), page.locator("#model-name")
    assert count.inner_text() == f"1 of {len(items)}"
    assert page.locator("#previous").is_disabled()
    page.keyboard.press("n")
    assert count.inner_text() == f"2 of {len(items)}"
    assert name.inner_text().endswith(items[1][4])
    page.keyboard.press("p")
    page.keyboard.press("p")
    assert count.inner_text() == f"1 of {len(items)}"
    page.locator("#filter-domain").select_option("functional")
    page.locator("#filter-series").select_option("top-p-0.9")
    left = [item for item in items if (item[3], item[4]) == ("functional", "top-p-0.9")]
    assert count.inner_text() == f"1 of {len(left)}"
    reader = data_of(page)["reader"]
    for i, item in enumerate(left):
        assert page.locator("#prefix").text_content() == reader["prefixes"][item[6]]
        assert name.inner_text().endswith("top-p-0.9")
        text = reader["texts"][item[8]]
        lines = page.locator("#model").text_content().replace("↵", "")
        assert lines == text["lead"] + "".join(text["pieces"]) + text["rest"]
        if i + 1 < len(left):
            page.locator("#next").click()
    assert page.locator("#next").is_disabled()
    page.keyboard.press("n")
    assert count.inner_text() == f"{len(left)} of {len(left)}"


def test_a_script_in_a_story_is_text(page, evil):
    items = data_of(page)["reader"]["items"]
    place = next(i for i, item in enumerate(items) if item[5].startswith("c0"))
    for _ in range(place):
        page.keyboard.press("n")
    assert evil in page.locator("#prefix").text_content()
    assert page.locator("#human").text_content().startswith("<script>w")
    assert page.evaluate("window.hacked") is None
    assert page.locator("#reader script").count() == 0


def column(page, name):
    place = page.locator("#rows thead tr > *").all_inner_texts().index(name)
    return page.locator(f"#rows tbody tr td:nth-child({place + 1})").all_inner_texts()


def test_the_table_sorts(page):
    rows = [dict(zip(data_of(page)["columns"], row, strict=True)) for row in data_of(page)["rows"]]
    gaps = [row["gap"] for row in rows if row["measure"] == "nll"]
    head = page.locator("#rows thead")
    for key, order in (("Enter", sorted(gaps, reverse=True)), ("Space", sorted(gaps))):
        head.get_by_role("button", name="gap").focus()
        page.keyboard.press(key)
        found = [float(cell.split()[0].replace("−", "-")) for cell in column(page, "gap [95%]")]
        assert found == pytest.approx(order, abs=0.0051)
        assert page.locator(":focus").inner_text() == "gap [95%]"
    assert page.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    head.get_by_role("button", name="decoding").click()
    assert column(page, "decoding") == sorted(row["series"] for row in rows if row["measure"] == "nll")
    page.locator("#table-measure").select_option("")
    assert len(column(page, "measure")) == len(rows)


def test_the_csv_is_the_table(page, evil_folder, tmp_path):
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    assert download.value.suggested_filename == "gap.csv"
    download.value.save_as(tmp_path / "gap.csv")
    with open(tmp_path / "gap.csv", newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    expected = json.loads((evil_folder / "gap.json").read_text())["gaps"]
    assert len(found) == len(expected)
    for row, own in zip(found, expected, strict=True):
        assert [row[name] for name in ("domain", "model", "decoding", "scorer", "measure")] == [
            own[name] for name in ("domain", "model", "decoding", "scorer", "measure")
        ]
        assert float(row["gap"]) == own["gap"]
        assert [float(row["low"]), float(row["high"])] == own["ci95"]
        assert row["p_adjusted"] == "" if own["p_adjusted"] is None else float(row["p_adjusted"]) == own["p_adjusted"]


NASTY = [
    "=HYPERLINK(1)|<b>",
    "constructor",
    "</script><!--<script>\u2028\x1b[2J",
    "\"onmouseover='window.hacked=1' x=\"",
    '@a,"b"\r\nc',
    "-1+1",
    "__proto__",
    "+\u202eafter\ud800",
    "\tjavascript:alert(1)",
]


@pytest.mark.parametrize("name", NASTY)
def test_a_hostile_name_is_a_name(opened, evil_folder, tmp_path, name):
    """It is the name of the run, a domain, a model, a decoding and a text; it runs nowhere, and in no spreadsheet."""

    def renamed(row):
        return {**row, "domain": name if row["domain"] == "creative" else row["domain"], "model": name}

    run = read_run(evil_folder)
    texts = [
        dataclasses.replace(text, id=name if text.id == run.texts[0].id else text.id, model=name) for text in run.texts
    ]
    cells = [
        dataclasses.replace(
            cell,
            domain=name if cell.domain == "creative" else cell.domain,
            model=name,
            decoding=name if cell.decoding == "ancestral" else cell.decoding,
        )
        for cell in run.cells
    ]
    gaps = [
        {**renamed(row), "decoding": name if row["decoding"] == "ancestral" else row["decoding"]} for row in run.gaps
    ]
    nasty = dataclasses.replace(
        run, name=name, gaps=gaps, contrasts=[], texts=texts, cells=cells, settings={name: name}, command=name
    )
    path = tmp_path / "page.html"
    path.write_text(render([nasty, run]), encoding="utf-8")
    page = opened(path)
    for host in ("gap", "distribution", "calibration", "position"):
        page.locator(f"#{host}-plots").scroll_into_view_if_needed()
        page.locator(f"#{host}-plots .plot .main-svg").first.wait_for()
    page.keyboard.press("n")
    page.locator("#human .t").first.hover()
    assert not page.evaluate("Boolean(window.hacked) || document.querySelectorAll('script').length !== 4")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = {row[column] for row in rows for column in ("run", "domain", "model", "decoding")}
    shown = name.replace("\ud800", "\ufffd")
    assert (f"'{shown}" if name[0] in "=+-@\t\r" else shown) in names
    assert not [name for name in names if name[0] in "=+-@\t\r"]
    assert {float(row["gap"]) for row in rows} == {row["gap"] for row in run.gaps}


def test_the_plots(page):
    assert page.locator("h1").inner_text().startswith("In creative text, ")
    for name, number in (("gap", 1), ("distribution", 2), ("calibration", 2), ("position", 2)):
        host = page.locator(f"#{name}-plots")
        host.scroll_into_view_if_needed()
        host.locator(".plot .main-svg").first.wait_for()
        assert host.locator(".plot").count() == number
    axis = page.locator("#gap-plots .xtitle").first
    assert axis.text_content() == "gap, nats per token"
    page.locator("#gap-measure").select_option("ppl")
    page.locator("#gap").scroll_into_view_if_needed()  # what is far from the window is not drawn
    page.locator("#gap-plots .xtitle", has_text="gap, log ratio").wait_for()
    # Points have their numbers.
    page.locator("#gap-plots .points path").first.hover(force=True)
    page.locator("#gap-plots .hoverlayer text", has_text="source texts").wait_for()
    page.locator("#tokens").scroll_into_view_if_needed()
    page.get_by_role("radiogroup", name="Measure of the distribution").get_by_role("radio", name="Entropy").click()
    page.locator("#distribution-plots .xtitle", has_text="x: entropy, nats").first.wait_for()
    # A series can be hidden; its line goes.
    lines = page.locator("#distribution-plots .plot").first.locator("path.js-line")
    before = lines.count()
    chip = page.locator("#series").get_by_role("button", name="ancestral")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    assert lines.count() == before - 1


def test_themes_and_a_phone(opened, path, tmp_path):
    folder = Path(os.environ.get("UGAP_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    paper = {}
    ways: dict[str, dict[str, Any]] = {
        "light": {},
        "dark": {"color_scheme": "dark"},
        "phone": {"viewport": PHONE, "has_touch": True, "is_mobile": True},
    }
    for name, options in ways.items():
        page = opened(path, **options)
        paper[name] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
        for plot in page.locator(".plot").all():
            plot.scroll_into_view_if_needed()
            plot.locator(".main-svg").first.wait_for()
        page.evaluate("scrollTo(0, 0)")
        page.screenshot(path=folder / f"{name}.png", full_page=True)
        assert (folder / f"{name}.png").stat().st_size > 50_000
    assert paper["light"] == paper["phone"] != paper["dark"]
    # The switch goes against the system, and is remembered.
    page = opened(path)
    page.get_by_role("button", name="Light or dark theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper["dark"]
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper["dark"]


def test_a_tap_shows_the_numbers_on_a_phone(opened, path):
    page = opened(path, viewport=PHONE, has_touch=True, is_mobile=True)
    page.locator("#model .t").nth(1).tap()
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= PHONE["width"]


def test_several_studies(opened, evil_folder, tmp_path):
    other = shutil.copytree(evil_folder, tmp_path / "other")
    write_page([evil_folder, other], tmp_path / "page.html")
    page = opened(tmp_path / "page.html")
    assert page.locator("#gap-plots figcaption").all_inner_texts()[1].startswith("other: ")
    assert {text.split()[0] for text in column(page, "run")} == {"study", "other"}
    page.locator("#filter-run").select_option("1")
    assert page.locator("#model-name").inner_text().startswith("other: ")


@pytest.mark.parametrize("view", ["desk", "phone", "print"])
def test_decodings_side_by_side(opened, tmp_path, view):
    """The page of `ugap generate --compare --html`."""
    pieces = [("Once", 9.0), (" upon", 0.4), ("<script>alert(1)</script>", 4.0), (" word", 2.0)] * 20
    texts = [Written(name, level, pieces) for name, level in (("temperature-0.7", 1.0), ("ours", 2.0), ("wild", 6.0))]
    path = tmp_path / "texts.html"
    write_texts([Block("A prompt", 2.0, "people: 2.00", texts)], "gemma-3-270m", "ugap generate", path)
    page = opened(path, viewport=PHONE if view == "phone" else DESK)
    if view == "print":
        page.emulate_media(media="print")
    page.screenshot(path=Path(os.environ.get("UGAP_SCREENSHOTS", tmp_path)) / f"compare-{view}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [page.locator(".side").nth(i).bounding_box() for i in range(3)]
    assert len({round(box["y"]) for box in boxes}) == (3 if view == "phone" else 1)
    bars = [page.locator(".level i").nth(i).bounding_box()["width"] for i in range(3)]
    mark = page.locator(".level b").first.bounding_box()["x"] - page.locator(".level").first.bounding_box()["x"]
    assert bars[1] == pytest.approx(mark, abs=2)
    assert 2 * bars[0] == pytest.approx(bars[1], rel=0.02)  # widths are whole per cent
    assert bars[2] == pytest.approx(page.locator(".level").first.bounding_box()["width"], abs=1)
    # The more surprising, the more tint; what a model wrote is text.
    colours = [
        page.locator(".text i").nth(i).evaluate("one => getComputedStyle(one).backgroundColor") for i in range(4)
    ]
    # Without a slash there is no transparency.
    alphas = [float(colour.partition("/")[2].rstrip(")") or 1) for colour in colours]
    assert alphas[0] > alphas[2] > alphas[3] > alphas[1]
    assert "<script>alert(1)</script>" in page.locator(".text").first.inner_text()


def test_ten_thousand_items_do_not_freeze_it(opened, evil_folder, tmp_path):
    run = read_run(evil_folder)
    copies = 10_000 // sum(len(cell.human) for cell in run.cells) + 1
    texts = [dataclasses.replace(text, id=f"{text.id}-{i}") for i in range(copies) for text in run.texts]
    cells = [
        dataclasses.replace(
            cell, sources=cell.sources * copies, human=cell.human * copies, generated=cell.generated * copies
        )
        for cell in run.cells
    ]
    # So that no text is another's copy: the page keeps each once.
    texts = [
        dataclasses.replace(text, scores=dataclasses.replace(text.scores, text=f"{text.scores.text} {i}"))
        for i, text in enumerate(texts)
    ]
    path = tmp_path / "large.html"
    path.write_text(render([dataclasses.replace(run, texts=texts, cells=cells)]), encoding="utf-8")
    assert path.stat().st_size < 15e6
    start = time.perf_counter()
    page = opened(path)
    assert re.search(r"a sample: [\d,]+ of 1\d,\d{3} pairs", page.locator("#reader").inner_text())
    page.keyboard.press("n")
    assert page.locator("#count").inner_text().startswith("2 of ")
    assert time.perf_counter() - start < 30  # it is about 2 s on two idle cores
