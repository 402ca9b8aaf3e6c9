import io

import pytest
import yaml
from markdown_it import MarkdownIt
from rich.console import Console

from ugap.report import console_table, findings, markdown
from ugap.report.tables import escape_markdown, p_value, stars

NASTY = [
    "a|b",
    "[x](https://example.org)",
    "*bold* _it_ __b__ `code` ~~gone~~",
    "<b>tag</b> &amp; <!-- c -->",
    r"C:\models\|x",
    "snake_case_name",
    "![i](j) [r]: k",
    "[bold red]text[/]",
    r"ends with \ ",
]


def tables(text):
    """The tables of a Markdown document as a GitHub reader shows them: lists of rows of plain text."""
    found: list[list[list[str]]] = []
    inside = False
    for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
        if token.type == "table_open":
            found.append([])
        elif token.type in ("tr_open", "tr_close"):
            inside = token.type == "tr_open"
            if inside:
                found[-1].append([])
        elif token.type == "inline" and inside:
            children = token.children or []
            assert all(child.type in ("text", "text_special") for child in children), token.content
            found[-1][-1].append("".join(child.content for child in children))
    return found


def fences(text):
    return {token.info: token.content for token in MarkdownIt().parse(text) if token.type == "fence"}


def shown(renderable, width=100):
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(renderable)
    return file.getvalue()


def test_markdown_holds_every_row_with_its_values(study, contrast_row, gap_row):
    gaps = [*study(measure="entropy"), *study(), gap_row(measure="ppl", gap=12.5, human=41.25, ci95=(10, 15))]
    contrasts = [contrast_row(), contrast_row(contrast="stage", measure="entropy")]
    text = markdown(gaps, contrasts, {"seed": 0}, "ugap demo")
    nll, entropy, ppl, contrast = tables(text)
    assert [len(table) - 1 for table in (nll, entropy, ppl, contrast)] == [12, 12, 1, 2]
    for row, source in zip(nll[1:], study(), strict=True):
        cells = dict(zip(nll[0], row, strict=True))
        assert [cells[name] for name in ("domain", "model", "decoding", "scorer")] == [
            source[name] for name in ("domain", "model", "decoding", "scorer")
        ]
        assert float(cells["human"]) == source["human"]
        assert float(cells["model value"]) == pytest.approx(source["model_value"], abs=5e-4)
        gap, low, high = (float(word.strip("[,]")) for word in cells["gap [95% interval]"].split())
        assert (gap, low, high) == pytest.approx((source["gap"], *source["ci95"]), abs=5e-4)
        assert float(cells["ratio"]) == pytest.approx(source["ratio"], abs=5e-3)
        assert [cells[name] for name in ("d_z", "p", "p (adjusted)", "W1")] == ["1.25", "0.001", "0.008", "0.510"]
        assert cells["prefixes (sources)"] == "16 (8)"
    assert ppl[1][5:8] == ["41.25", "28.75", "12.50 [10.00, 15.00]"]
    assert contrast[1][:4] == ["nll", "creative", "functional", "gemma-3-270m"]
    assert contrast[2][:4] == ["entropy", "smol (instruct)", "gemma-3-270m (base)", "creative"]
    assert [row[6:] for row in contrast[1:]] == [
        ["16, 40", "0.900", "0.600", "0.300 [0.100, 0.500]", "0.001", "0.010"],
        ["16", "0.900", "0.600", "0.300 [0.100, 0.500]", "0.001", "0.010"],
    ]


def test_markdown_is_in_the_order_of_reading(study, contrast_row):
    text = markdown([*study(measure="entropy"), *study()], [contrast_row()], {"seed": 0}, "ugap demo --seed 0")
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Findings", "Surprisal, NLL (nats per token)", "Entropy (nats per token)", "Contrasts", "Definitions",
        "Settings", "Command",
    ]  # fmt: skip
    for sentence in findings(study(), [contrast_row()]):
        assert f"- {sentence}\n" in text
    assert "## Contrasts" not in markdown(study(), [], {}, "ugap demo")


def test_settings_and_command_come_back_as_they_were():
    settings = {"model": ["gemma-3-270m", "x"], "seed": 0, "note": "```\nnot the end", "limit": None, "path": "Märchen"}
    command = "ugap measure --data 'a ```` b.jsonl' --candidate gpt=$COLUMN"
    blocks = fences(markdown([], [], settings, command))
    assert yaml.safe_load(blocks["yaml"]) == settings
    assert list(yaml.safe_load(blocks["yaml"])) == list(settings)
    assert blocks["sh"] == command + "\n"


def test_markdown_without_numbers_shows_dashes(gap_row):
    missing = dict.fromkeys(("gap", "ci95", "p_value", "p_adjusted", "wasserstein"))
    nothing = gap_row(**missing, effect_size=float("nan"))
    text = markdown([nothing, gap_row(p_adjusted=1e-9), gap_row(p_adjusted=None)], [], {}, "ugap demo")
    assert "- No difference" not in text
    _, empty, full, few = tables(text)[0]
    assert empty[4:] == ["16 (8)", "2.970", "–", "–", "–", "–", "–", "–", "–"]
    assert full[10:12] == ["0.001", "<0.001"]
    assert few[10:12] == ["0.001", "cannot be significant"]
    assert "nan" not in text.lower().split("## definitions")[0]
    assert "No gap in surprisal could be estimated." in markdown([nothing], [], {}, "ugap demo")


@pytest.mark.parametrize("name", NASTY)
def test_markdown_shows_names_letter_by_letter(gap_row, name):
    text = markdown([gap_row(model=name, decoding=name)], [], {}, "ugap demo")
    (table,) = tables(text)
    plain = " ".join(name.split())
    assert table[1][1:3] == [plain, plain]
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)
    escaped = plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    assert f"more surprising than {escaped} with" in rendered


def test_a_name_with_line_breaks_stays_in_its_cell(gap_row):
    assert tables(markdown([gap_row(model="a\n\n# b\tc")], [], {}, "ugap demo"))[0][1][1] == r"a\n\n# b\tc"


def test_what_needs_no_escape_has_none():
    sentence = "gemma-3-270m (d_z 1.2) is 0.48 [0.41, 0.55], p <0.001"
    assert escape_markdown(sentence) == sentence


def test_console_table_fits_a_terminal_and_holds_the_values(study, gap_row):
    gaps = [*study(), *study(measure="entropy"), gap_row(scorer="judge", gap=-0.15, ci95=(-0.27, -0.03))]
    text = shown(console_table(gaps), width=80)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("ancestral" in line for line in lines) == 8
    (line,) = [line for line in lines if "-0.15 [-0.27, -0.03]" in line]
    assert line.split()[:3] == ["top-p-0.9", "2.97", "3.12"]
    assert line.split()[-2:] == ["0.95", "**"]
    assert {line.strip() for line in lines if ", gemma" in line or ", smol" in line} == {
        f"{row['domain']}, {row['model']}" for row in gaps
    }
    headings = [line.strip() for line in lines if "scored by" in line]
    assert headings == [
        "Surprisal, NLL (nats per token), each model scored by itself",
        "Surprisal, NLL (nats per token), scored by judge",
        "Entropy (nats per token), each model scored by itself",
    ]
    assert "gap [95% CI]" in text


def test_console_table_folds_long_names_and_keeps_numbers_whole(gap_row):
    long = "organisation/a-model-with-a-very-long-name-2026-10-01-step-12000"
    text = shown(console_table([gap_row(model=long, decoding="beam-search-4-repetition-penalty-1.2")]), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "0.48 [0.41, 0.55]" in text
    lines = [line.strip() for line in text.splitlines()[3:]]
    assert "".join(lines).startswith(f"creative, {long}beam-search-4-")
    assert lines[0].endswith("-")


@pytest.mark.parametrize("name", ["[x]", "[bold red]text[/]", "[/]", "a[link=x]b"])
def test_console_table_shows_markup_in_names(gap_row, name):
    row = gap_row(model=name, domain=name, decoding=name, scorer=name + "2")
    text = shown(console_table([row]), width=140)
    assert text.count(name) == 4


def test_console_table_without_rows(gap_row):
    assert "No gap could be estimated." in shown(console_table([]))
    assert "No gap could be estimated." in shown(console_table([gap_row(gap=None)]))
    assert "No gap" not in shown(console_table([gap_row(ratio=None, p_adjusted=None)]))


@pytest.mark.parametrize(
    ("p", "text", "mark"),
    [(0.0005, "<0.001", "***"), (0.001, "0.001", "**"), (0.01, "0.010", "*"), (0.05, "0.050", ""), (1.0, "1.000", "")],
)
def test_p_values(p, text, mark):
    assert p_value(p) == text
    assert stars(p) == mark


def test_no_test_is_a_dash():
    assert p_value(float("nan")) == stars(float("nan")) == "–"
