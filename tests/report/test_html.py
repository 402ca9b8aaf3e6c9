"""The HTML report without a browser: what is read from a folder, what the page holds, and that text stays text."""

import dataclasses
import json
import math
import re
import shutil
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pyarrow.parquet as pq
import pytest

from ugap.errors import InputError
from ugap.report.page import read_run, write_page
from ugap.report.page.page import content, headline, render
from ugap.report.page.reader import entry, reading
from ugap.report.page.runs import Run
from ugap.report.page.series import panels
from ugap.report.plots import bin_means, finite
from ugap.scoring import ScorerId, TokenScores
from ugap.study.gap.run import VERSION
from ugap.study.measures import text_value


@pytest.fixture(scope="module")
def run(evil_folder):
    return read_run(evil_folder)


@pytest.fixture
def copied(evil_folder, tmp_path):
    """A copy of the study's folder that a test may damage."""
    return shutil.copytree(evil_folder, tmp_path / "copy")


class Page(HTMLParser):
    """The scripts and the text of a page, as a browser splits them."""

    def __init__(self, html):
        super().__init__()
        self.scripts, self.words, self.stack = [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "style"):
            self.stack.append(tag)
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        if self.stack and tag == self.stack[-1]:
            self.stack.pop()

    def handle_data(self, data):
        if self.stack:
            attrs, before = self.scripts[-1]
            self.scripts[-1] = (attrs, before + data)
        else:
            self.words.append(data)

    @property
    def data(self):
        (found,) = (text for attrs, text in self.scripts if attrs.get("id") == "data")
        return json.loads(found)


def scores(text, ends, surprisal, marginal=None):
    """Made-up scores of a text whose tokens end at these characters."""
    n = len(ends)
    offsets = np.stack([[0, *ends[:-1]], ends], 1).astype(np.int32)
    values = np.asarray(surprisal, np.float32)
    fixed = np.full(n, 2.0, np.float32)
    marginal = None if marginal is None else np.asarray(marginal, np.float32)
    return TokenScores(
        text, np.zeros(n, np.int32), offsets, values, fixed, fixed**2, fixed, marginal, ScorerId("m", "0"), False
    )


class TestReadRun:
    def test_a_finished_study(self, run, evil_folder):
        record = json.loads((evil_folder / "gap.json").read_text())
        assert run.name == "study"
        assert (run.gaps, run.contrasts, run.settings) == (record["gaps"], record["contrasts"], record["settings"])
        assert run.command == 'ugap measure --data "<b>.jsonl" ````'
        assert not run.unfinished
        assert len(run.texts) == 12 * 3
        # The pairs are those of the study: their means are its numbers.
        for cell in run.cells:
            (row,) = (
                row
                for row in run.gaps
                if (row["domain"], row["decoding"], row["measure"]) == (cell.domain, cell.decoding, "nll")
            )
            assert np.mean([text_value(text, "nll") for text in cell.human]) == pytest.approx(row["human"])

    def test_a_study_that_still_runs(self, copied, run):
        (copied / "gap.json").unlink()
        (copied / "scores.parquet").unlink()
        parts = sorted((copied / "parts" / "scored").glob("*.part.parquet"))
        assert len(parts) == 2
        damaged = next(part for part in parts if pq.read_table(part)["domain"][0].as_py() == "creative")
        damaged.write_bytes(damaged.read_bytes()[:-20])  # not whole: not done
        partial = read_run(copied)
        assert partial.unfinished
        assert partial.command is None
        assert {text.domain for text in partial.texts} == {"functional"}
        expected = [row["gap"] for row in run.gaps if row["domain"] == "functional"]
        assert [row["gap"] for row in partial.gaps] == pytest.approx(expected)
        page = render([partial])
        assert "This study has not ended" in page
        assert "18 texts" in page

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"gone: no such folder$"):
            read_run(tmp_path / "gone")

    def test_a_file(self, evil_folder):
        with pytest.raises(InputError, match=r"gap\.md: not the folder of a study$"):
            read_run(evil_folder / "gap.md")

    def test_no_scores(self, copied):
        (copied / "scores.parquet").unlink()
        shutil.rmtree(copied / "parts")
        with pytest.raises(InputError, match="copy: no scores in it"):
            read_run(copied)

    @pytest.mark.parametrize(
        ("version", "age", "remedy"),
        [(VERSION + 1, "a newer", "install a newer ugap"), (1, "an older", "repeat its command with --resume")],
    )
    def test_another_version(self, copied, version, age, remedy):
        record = json.loads((copied / "gap.json").read_text())
        (copied / "gap.json").write_text(json.dumps({**record, "version": version}))
        with pytest.raises(
            InputError, match=rf"gap\.json: made by {age} ugap \(format {version}, this one reads {VERSION}\); {remedy}"
        ):
            read_run(copied)

    @pytest.mark.parametrize("text", ['{"version": 1', "[]", '{"version": 1}', '{"version": "1", "gaps": []}'])
    def test_a_damaged_record(self, copied, text):
        (copied / "gap.json").write_text(text)
        with pytest.raises(InputError, match=r"gap\.json: (invalid JSON|not the record of a study)"):
            read_run(copied)

    def test_damaged_scores(self, copied):
        (copied / "scores.parquet").write_bytes(b"PAR1")
        with pytest.raises(InputError, match=r"scores\.parquet: not the scores of a study"):
            read_run(copied)

    def test_a_folder_named_twice(self, evil_folder, tmp_path):
        with pytest.raises(InputError, match="named twice"):
            write_page([evil_folder, evil_folder / ".." / "study"], tmp_path / "page.html")


@pytest.fixture(scope="module")
def html(run, evil):
    """The page of a run whose name and settings try to be markup, too."""
    return render([dataclasses.replace(run, name=evil, settings={**run.settings, "models": [evil]})])


class TestPage:
    def test_text_is_no_markup(self, html, evil):
        page = Page(html)
        # The theme, the data, plotly and the page's own script, and nothing that a text brought along.
        assert len([attrs for attrs, _ in page.scripts]) == 5  # with the style
        assert "<script>window" not in html
        assert html.count(r"\u003cscript\u003ewindow") == 2  # the name of the run and the prefix
        assert html.count("&lt;script&gt;window") == 2  # its name and its settings
        # And nothing is lost.
        reader = page.data["reader"]
        assert any(evil in prefix for prefix in reader["prefixes"])
        assert any("".join(text["pieces"]).startswith("<script>w") for text in reader["texts"])
        assert page.data["runs"][0]["name"] == evil

    def test_names_that_no_file_could_hold_are_spelt_out(self, run):
        name = "a\ud800\x1b\u202e\u2028</script>"
        html = render([dataclasses.replace(run, name=name, settings={"data": name}, command=name)])
        assert not set(html.encode("utf-8").decode().split("<script>")[1]) & set("\ud800\x1b\u202e\u2028")
        assert r"a\ud800\x1b\u202e\u2028&lt;/script&gt;" in html
        assert Page(html).data["runs"][0]["name"] == name

    def test_nothing_is_asked_of_the_network(self, html):
        head = html[: html.index('<script id="data"')]
        assert re.findall(r'(?:src|href)="([^"#]+)"', head) == ["data:,"]
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', unescape(html))
        assert policy
        assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
        assert "'unsafe-inline'" not in policy[1].split(";")[1]

    def test_the_record_is_there(self, html, run, evil):
        words = " ".join("".join(Page(html).words).split())
        assert run.command in words
        assert run.settings["environment"]["torch"] in words
        assert "seed: 3" in words
        assert headline(run).replace(evil, "") in words

    def test_every_row_with_every_figure(self, html, run):
        data = Page(html).data
        assert len(data["rows"]) == len(run.gaps)
        for row, expected in zip(data["rows"], run.gaps, strict=True):
            found = dict(zip(data["columns"], row, strict=True))
            assert (found["gap"], [found["low"], found["high"]]) == (expected["gap"], expected["ci95"])
            assert (found["measure"], found["p_adjusted"]) == (expected["measure"], expected["p_adjusted"])
            assert found["scorer"] == "self"

    def test_it_is_written_as_a_whole(self, evil_folder, tmp_path):
        write_page([evil_folder], tmp_path / "new" / "page.html")
        html = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
        assert html.startswith("<!doctype html>")
        assert html.rstrip().endswith("</html>")
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]

    def test_several_runs(self, run):
        html = render([run, dataclasses.replace(run, unfinished=True)])
        data = Page(html).data
        assert [one["name"] for one in data["runs"]] == ["study (1)", "study (2)"]
        assert {row[0] for row in data["rows"]} == {0, 1}
        assert {item[0] for item in data["reader"]["items"]} == {0, 1}
        assert html.count('class="hero"') == 2

    def test_many_runs(self, run):
        runs = [dataclasses.replace(run, name=f"model {i}", unfinished=i == 2) for i in range(4)]
        html = render(runs)
        assert html.count('class="hero"') == 1
        assert f"of {4 * len(run.cells)} comparisons" in html
        assert "<strong>model 2 has not ended.</strong>" in html
        words = " ".join("".join(Page(html).words).split())
        assert words.count(headline(run)) == 4

    def test_nothing_was_found(self, run):
        empty = dataclasses.replace(run, gaps=[], contrasts=[], cells=[])
        assert "No gap in surprisal could be estimated." in render([empty])
        assert content([empty])["panels"] == []


class TestHeadline:
    @pytest.fixture
    def said(self, study):
        def say(rows):
            return headline(Run("r", rows, [], {}, None, False, [], []))

        return say

    def test_the_largest_gap_and_ancestral_sampling(self, said, study):
        assert said(study()) == (
            "In creative text, people are 1.90 nats per token [1.75, 2.05] more surprising than gemma-3-270m with "
            "greedy decoding; gemma-3-270m with ancestral sampling (T=1) is 0.20 nats per token [0.05, 0.35] more "
            "surprising than people."
        )

    def test_one_decoding(self, said, gap_row):
        row = gap_row(gap=0.1, ci95=(-0.2, 0.4), domain="news", decoding="ancestral")
        assert said([row]) == (
            "In news text, no difference can be told between people and gemma-3-270m with ancestral sampling (T=1): "
            "the gap is 0.10 nats per token [-0.20, 0.40]."
        )

    def test_given_texts(self, said, gap_row):
        rows = [gap_row(gap=gap, ci95=(gap - 0.1, gap + 0.1), model=f"m{gap}", decoding="given") for gap in (0.3, 0.8)]
        assert said(rows).startswith(
            "In creative text, people are 0.80 nats per token [0.70, 0.90] more surprising than"
        )

    def test_another_scorer(self, said, gap_row):
        assert said([gap_row(scorer="judge")]).endswith("with top-p-0.9 decoding (scored by judge).")

    def test_no_interval(self, said, gap_row):
        assert said([gap_row(ci95=None)]) == "No gap in surprisal could be estimated."


class TestPanels:
    def test_they_are_the_numbers_of_the_plots(self, run):
        found = panels(run, 0, both=False)
        assert [panel["domain"] for panel in found] == ["creative", "functional"]
        for panel in found:
            cells = [cell for cell in run.cells if cell.domain == panel["domain"]]
            assert list(panel["calibration"]) == ["human", *(cell.decoding for cell in cells)]
            surprisal, entropy = (
                np.concatenate([getattr(text, name) for text in cells[0].human]) for name in ("surprisal", "entropy")
            )
            h, s = bin_means(*finite(entropy, surprisal))
            np.testing.assert_allclose(panel["calibration"]["human"], [h, s], atol=6e-4)
            human = panel["distributions"]["nll"]["series"]["human"]
            assert human["mean"] == pytest.approx(surprisal.mean(), abs=1e-4)
            x = panel["distributions"]["nll"]["x"]
            share = [100 * np.mean(surprisal > value) for value in x]
            # The page has three digits of x: a token or two may lie between it and what it was.
            np.testing.assert_allclose(human["y"], share, atol=200.5 / len(surprisal))
            # The places add up to all tokens, and their means to the mean.
            places = panel["positions"]["series"]["human"]
            assert sum(places["n"]) == len(surprisal)
            assert np.average(places["y"], weights=places["n"]) == pytest.approx(surprisal.mean(), abs=1e-3)
            assert all(
                low <= mean <= high for low, mean, high in zip(places["low"], places["y"], places["high"], strict=True)
            )

    def test_no_token_of_a_measure(self, run):
        """Where the model is certain of everything there is no deviation; the page still is made."""
        certain = [
            dataclasses.replace(
                cell,
                human=[dataclasses.replace(text, varentropy=0 * text.varentropy) for text in cell.human],
                generated=[dataclasses.replace(text, varentropy=0 * text.varentropy) for text in cell.generated],
            )
            for cell in run.cells
        ]
        found = panels(dataclasses.replace(run, cells=certain), 0, both=False)
        assert found[0]["distributions"]["deviation"] == {"x": [], "series": {}}


class TestReading:
    def test_all_pairs_of_a_small_study(self, run):
        found = reading([run], [False])
        assert found["total"] == len(found["items"]) == sum(len(cell.human) for cell in run.cells)
        texts, prefixes = found["texts"], found["prefixes"]
        by_id = {(text.id, text.decoding): text for text in run.texts}
        for _, _, scorer, domain, series, name, prefix, human, model in found["items"]:
            assert scorer == "self"
            for place, decoding in ((human, "human"), (model, series)):
                text, expected = texts[place], by_id[name, decoding]
                assert text["lead"] + "".join(text["pieces"]) + text["rest"] == expected.scores.text
                assert expected.domain == domain
            assert prefixes[prefix] == by_id[name, series].prefix
        # A human text that is cut to one length is there once.
        assert len(texts) < 2 * len(found["items"])

    def test_a_sample(self, run):
        found = reading([run], [False], most_tokens=100)
        assert 0 < len(found["items"]) < found["total"]
        ids = list(dict.fromkeys(item[5] for item in found["items"]))
        assert {item[3] for item in found["items"]} == {"creative", "functional"}
        # A prefix comes with all that was written for it, and the sample is the same every time.
        everything = reading([run], [False])["items"]
        assert len(found["items"]) == len([item for item in everything if item[5] in ids])
        assert reading([run], [False], most_tokens=100) == found

    def test_at_least_one_prefix_of_every_domain(self, run):
        assert {item[3] for item in reading([run], [False], most_tokens=1)["items"]} == {"creative", "functional"}


class TestEntry:
    def test_the_numbers(self):
        found = entry(scores("so it was", [2, 5], [1.236, math.nan], [2.0, 3.0]))
        assert found["pieces"] == ["so", " it"]
        assert found["rest"] == " was"
        assert found["s"] == [124, None]
        assert found["h"] == [200, 200]
        assert found["z"] == [-38, None]
        assert found["m"] == [76, None]
        assert found["r"] == [2, 2]
        assert found["means"] == pytest.approx([1.236, 2.0, -0.382, 0.764])

    def test_without_marginals(self):
        found = entry(scores("so", [2], [1.0]))
        assert found["m"] is None
        assert len(found["means"]) == 3

    def test_a_character_of_several_tokens(self):
        found = entry(scores("a🦊b", [1, 2, 2, 2, 3], [0.5, 1.0, 4.0, 2.0, 0.25]))
        assert found["pieces"] == ["a", "🦊", "b"]
        assert found["s"] == [50, 400, 25]
        assert found["k"] == {"1": 3}

    def test_a_long_rest(self):
        assert entry(scores("ab" + "c" * 5000, [1, 2], [1.0, 1.0]))["rest"] == "c" * 600 + " …"
