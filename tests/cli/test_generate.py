"""`ugap generate`."""

import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from rich.progress import Progress

import ugap.cli.writer
import ugap.models
import ugap.profile.fitting
from ugap.cli.generate import Arguments
from ugap.cli.main import main
from ugap.models import load_model
from ugap.profile import HumanProfile
from ugap.profile.reading import Reading, Share
from ugap.report.heatmap import STEPS
from ugap.sampling.generation import generate, generate_batches
from ugap.sampling.params import TAIL
from ugap.terminal import visible

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def profile_file(make_profile, tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("profiles") / "tiny.json"
    make_profile(load_model(str(tiny_folder))[0]).save(path)
    return path


@pytest.fixture
def words(tiny_folder, profile_file):
    """The start of a command line."""
    return [
        *("generate", "--model", str(tiny_folder), "--profile", str(profile_file)),
        *("--max_new_tokens", "12", "--seed", "0"),
    ]


@pytest.fixture
def written(words, tmp_path):
    """`written(*words)`: the rows that the command writes."""

    def run(*more: str) -> list[dict]:
        output = tmp_path / "texts.jsonl"
        assert main([*words, "--output", str(output), *more]) == 0
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

    return run


@pytest.fixture
def terminal(monkeypatch):
    """Let rich take what it writes to for a terminal with all colours."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_the_defaults():
    arguments = Arguments(model="m")
    assert (arguments.mode, arguments.weight, arguments.kind) == (None, None, ["auto"])
    assert (arguments.num_return_sequences, arguments.max_new_tokens, arguments.tail) == (1, 128, TAIL)


def test_texts_and_their_figures_are_printed(written, words, capsys, profile_file):
    rows = written("--prompt", "Once upon a time", "The old man", "--num_return_sequences", "2")
    first = capsys.readouterr()
    assert first.err == f"loading {words[2]}\n"
    assert [row["prompt"] for row in rows] == ["Once upon a time"] * 2 + ["The old man"] * 2
    positions = HumanProfile.load(profile_file).kind("creative").positions
    figures = re.findall(r"^([\d.]+) nats per token; people: ([\d.]+) \(kind: creative\)$", first.out, re.MULTILINE)
    assert figures == [(f"{row['nll']:.2f}", f"{row['human_level']:.2f}") for row in rows]
    for row in rows:
        assert first.out.count(row["prompt"]) == 2
        assert list(row) == [
            *("prompt", "decoding", "text", "token_ids", "surprisal", "entropy", "nll", "human_level", "aim")
        ]
        assert row["human_level"] == positions.mean_surprisal(20, len(row["token_ids"]))
    assert "4 texts written to " in first.out
    # The same without a file.
    assert main([*words, "--prompt", "Once upon a time", "The old man", "--num_return_sequences", "2"]) == 0
    assert capsys.readouterr().out == first.out[: first.out.index("4 texts")]


@pytest.mark.parametrize(
    ("more", "options"),
    [
        ("--seed 3 --num_return_sequences 3 --batch_size 2", {"seed": 3, "num_return_sequences": 3, "batch_size": 2}),
        ("--mode balanced", {"mode": "balanced"}),
        ("--weight 0.2 --kind functional --tail 1", {"weight": 0.2, "kind": "functional", "tail": None}),
        ("--tail 0.9", {"tail": 0.9}),
        ("--kind functional=1 creative=3", {"kind": {"functional": 1, "creative": 3}}),
    ],
)
def test_rows_are_what_the_library_gives(written, tiny_folder, profile_file, more, options):
    model, tokenizer = load_model(str(tiny_folder))
    rows = written("--prompt", "Once", "A function", *more.split())
    options = {"seed": 0, "profile": profile_file, "max_new_tokens": 12, **options}
    texts = generate(model, tokenizer, ["Once", "A function"], **options)
    assert rows == [
        {
            "prompt": one.prompt,
            "decoding": f"ugap-{options.get('mode', options.get('weight', 'creative'))}",
            "text": one.text,
            "token_ids": one.token_ids,
            "surprisal": one.surprisal,
            "entropy": one.entropy,
            "nll": one.nll,
            "human_level": one.human_level,
            "aim": one.aim,
        }
        for one in texts
    ]


def test_a_model_that_nobody_prepared(words, tmp_path, monkeypatch, capsys):
    """Its profile is fitted to the embedded texts, once."""
    monkeypatch.setattr(ugap.profile.fitting, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(ugap.profile.fitting, "EMBEDDED_TEXTS", 4)
    at = words.index("--profile")
    plain = [*words[:at], *words[at + 2 :], "--prompt", "Once upon a time"]
    assert main(plain) == 0
    first = capsys.readouterr()
    assert "has no human profile: one is fitted to embedded tales and manuals, once" in first.err
    assert "(kind: fairy-tale)" in first.out
    assert main(plain) == 0
    again = capsys.readouterr()
    assert (again.out, again.err) == (first.out, f"loading {words[2]}\n")


def test_whose_profile_an_adapted_model_has(tiny_folder, make_profile, tmp_path, monkeypatch, capsys):
    model, _ = load_model(str(tiny_folder))
    people = replace(make_profile(model), scorer_name="the-base")
    monkeypatch.setattr(HumanProfile, "find_shipped", classmethod(lambda cls, scorer: people))
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    common = ("--prompt", "Once upon a time", "--kind", "creative", "--max_new_tokens", "2", "--seed", "0")
    assert main(["generate", "--model", str(tmp_path / "adapter"), *common]) == 0
    named = capsys.readouterr()
    assert named.err == f"loading {tmp_path / 'adapter'}\nhuman profile: that of the-base\n"
    assert main(["generate", "--model", str(tiny_folder), "--adapter", str(tmp_path / "adapter"), *common]) == 0
    assert capsys.readouterr().out == named.out


def test_texts_to_write_like(
    words, make_profile, tiny_folder, write_rows, text_rows, tmp_path, monkeypatch, capsys, refused
):
    # Of the level that texts of random words have to a random model.
    make_profile(load_model(str(tiny_folder))[0], level=3.0).save(tmp_path / "profile.json")
    words = [*words, "--profile", str(tmp_path / "profile.json")]
    monkeypatch.setattr(ugap.profile.fitting, "cache_dir", lambda: tmp_path / "cache")
    rows = [{"text": f"{row['text']} {row['text']} {i}"} for i, row in enumerate(text_rows)]
    file = write_rows(rows, "mine.jsonl")
    like = [*words, "--prompt", "Once upon a time", "--like"]
    assert main([*like, file]) == 0
    printed = capsys.readouterr()
    certainty = re.search(
        r"(\d+) texts: human level ([\d.]+) \+- ([\d.]+); \d+ would give about \+- ([\d.]+)", printed.err
    )
    assert certainty is not None
    assert int(certainty[1]) == len(rows)
    assert float(certainty[4]) == pytest.approx(float(certainty[3]) / np.sqrt(2), abs=0.006)
    assert "(kind: like)" in printed.out
    plain = tmp_path / "mine.txt"
    plain.write_text("\r\n\r\n".join(row["text"] for row in rows), encoding="utf-8", newline="")
    assert main([*like, str(plain)]) == 0
    assert capsys.readouterr().out == printed.out
    few = write_rows(rows[:1], "few.jsonl")
    assert re.search(
        r"the texts to write like have \d+ tokens to learn from, and 400 is the least", refused(*like, few)
    )
    assert "not both" in refused(*like, file, "--kind", "creative")
    # Far above what the other profile of the model knows.
    other = [*words[: words.index("--max_new_tokens")], "--prompt", "Once", "--like", file]
    assert "the model may not read their language" in refused(*other)
    texts = [row["text"] for row in rows]
    assert "all 12 texts to write like are texts to continue" in refused(*words, "--like", file, "--prompt", *texts)


def test_few_texts_to_write_like(words, make_profile, tiny_folder, write_rows, text_rows, tmp_path, caplog):
    make_profile(load_model(str(tiny_folder))[0], level=3.0).save(tmp_path / "profile.json")
    rows = [{"text": f"{row['text']} {row['text']}"} for row in text_rows[:7]]
    held = write_rows([*rows[:6], {"text": f"{rows[6]['text'][:80]} and more"}])
    given = ["--profile", str(tmp_path / "profile.json"), "--prompt", rows[6]["text"][:80], "--like", held]
    assert main([*words, *given]) == 0
    assert [record.getMessage() for record in caplog.records] == [
        "1 of 7 texts to write like are texts to continue, or hold one",
        "6 texts to write like are few: take their human level as a guess, or give 8",
    ]


def test_an_unknown_kind_is_refused_before_the_model_is_loaded(refused, monkeypatch):
    monkeypatch.setattr(ugap.models, "load_model", None)
    line = refused("generate", "--model", "gemma-3-270m", "--prompt", "Once", "--kind", "sermon")
    assert "the human profile has no kind 'sermon'; it has academic, story" in line


def test_modes_are_weights(written):
    for mode, weight in (("creative", "1"), ("balanced", "0.5"), ("precise", "0")):
        texts = [written("--prompt", "Once", *how)[0]["text"] for how in (["--mode", mode], ["--weight", weight])]
        assert texts[0] == texts[1]
    assert written("--prompt", "Once") == written("--prompt", "Once", "--mode", "creative")


def test_prompts_from_files(written, tmp_path, write_rows):
    given = written("--prompt", "Once upon", "  A function, naß", "--mode", "precise")
    plain = tmp_path / "prompts.txt"
    plain.write_bytes(b"\xef\xbb\xbfOnce upon\r\n\n" + "  A function, naß\n".encode())
    assert written("--input", str(plain), "--mode", "precise") == given
    table = write_rows([{"prompt": row["prompt"], "other": 1} for row in given], "prompts.jsonl")
    assert written("--input", table, "--mode", "precise") == given


def test_a_chat(chat_folder, make_profile, tmp_path, capsys):
    model, tokenizer = load_model(str(chat_folder))
    make_profile(model).save(tmp_path / "chat.json")
    output = tmp_path / "texts.jsonl"
    words = ["generate", "--model", str(chat_folder), "--profile", str(tmp_path / "chat.json"), "--chat"]
    words += ["--mode", "precise", "--max_new_tokens", "8", "--prompt", "Tell me.", "--output", str(output)]
    assert main(words) == 0
    (row,) = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    (one,) = generate(
        model,
        tokenizer,
        [[{"role": "user", "content": "Tell me."}]],
        profile=tmp_path / "chat.json",
        mode="precise",
        max_new_tokens=8,
    )
    assert (row["prompt"], row["token_ids"]) == ("Tell me.", one.token_ids)
    assert capsys.readouterr().out.startswith("Tell me.\n")


def test_a_text_of_nothing(words, written, save_model, make_model, tmp_path, capsys):
    (row,) = written("--prompt", "Once", "--mode", "precise")
    ends = make_model("llama", eos_token_id=row["token_ids"][0])
    words[2] = str(save_model("ends", ends))
    assert main([*words, "--prompt", "Once", "--mode", "precise", "--output", str(tmp_path / "none.jsonl")]) == 0
    assert "the model ended the text at once; people: " in capsys.readouterr().out
    nothing = json.loads((tmp_path / "none.jsonl").read_text())
    assert (nothing["text"], nothing["token_ids"], nothing["nll"]) == ("", [], None)
    assert math.isfinite(nothing["human_level"])


class TestHeatMap:
    def test_tokens_in_colours(self, words, capsys, terminal):
        words += ["--prompt", "Once [b]upon", "--mode", "creative", "--max_new_tokens", "40"]
        assert main([*words, "--heatmap"]) == 0
        coloured = capsys.readouterr()
        assert coloured.out.startswith("\x1b[2mOnce [b]upon\x1b[0m")
        assert "48;2;" in coloured.out
        assert "heat map" not in coloured.err
        plain = ESCAPES.sub("", coloured.out)
        *_, last = plain.strip().splitlines()
        assert last.split() == ["surprisal", "in", "nats:", "below", "1"] + [
            word for start, _ in STEPS for word in ("from", f"{start:g}")
        ]
        assert main(words) == 0
        without = ESCAPES.sub("", capsys.readouterr().out)
        assert "48;2;" not in without
        assert plain.replace("↵\n", "\n").startswith(without)

    @pytest.mark.parametrize("reason", ["no terminal", "NO_COLOR", "a dumb terminal"])
    def test_where_there_are_no_colours(self, words, capsys, monkeypatch, reason, request):
        if reason != "no terminal":
            request.getfixturevalue("terminal")
            name, value = ("NO_COLOR", "1") if reason == "NO_COLOR" else ("TERM", "dumb")
            monkeypatch.setenv(name, value)
        words += ["--prompt", "Once upon"]
        assert main(words) == 0
        expected = capsys.readouterr().out
        assert main([*words, "--heatmap"]) == 0
        printed = capsys.readouterr()
        assert printed.out == expected
        assert "no heat map: colours need a terminal that shows them" in printed.err


def test_nothing_in_a_prompt_steers_the_terminal(words, capsys):
    assert main([*words, "--prompt", "Once \x1b[2Jupon [red]"]) == 0
    assert capsys.readouterr().out.startswith(r"Once \x1b[2Jupon [red]")


class TestStream:
    """A single text appears token by token."""

    @pytest.fixture
    def steps(self, monkeypatch, capsys):
        """What had been printed before each token, and the end."""
        printed = []
        original = ugap.cli.writer.Screen.token

        def token(self, *arguments):
            printed.append(capsys.readouterr().out)
            original(self, *arguments)

        monkeypatch.setattr(ugap.cli.writer.Screen, "token", token)
        return printed

    def test_token_by_token(self, words, steps, capsys, tmp_path):
        output = tmp_path / "out.jsonl"
        assert main([*words, "--prompt", "Once upon", "--output", str(output)]) == 0
        row = json.loads(output.read_text(encoding="utf-8"))
        assert len(steps) == len(row["token_ids"]) == 12
        assert steps[0] == "Once upon"
        assert sum(map(bool, steps)) > 6
        printed = "".join(steps) + capsys.readouterr().out
        assert printed.startswith(f"Once upon{visible(row['text'])}\n{row['nll']:.2f} nats per token")

    def test_the_end_token_is_not_shown(self, words, steps, written, save_model, make_model):
        (row,) = written("--prompt", "Once", "--mode", "precise")
        words[2] = str(save_model("early", make_model("llama", eos_token_id=row["token_ids"][3])))
        steps.clear()
        assert main([*words, "--prompt", "Once", "--mode", "precise"]) == 0
        assert len(steps) == row["token_ids"].index(row["token_ids"][3])

    def test_texts_of_a_batch_do_not_mix(self, words, steps):
        assert main([*words, "--prompt", "Once", "The old"]) == 0
        assert steps == []
        assert main([*words, "--prompt", "Once", "The old", "--batch_size", "1"]) == 0
        assert len(steps) > 12


def test_a_random_seed_is_printed(words, written, capsys):
    at = words.index("--seed")
    plain = [*words[:at], "--prompt", "Once upon a time", "--max_new_tokens", "12"]
    assert main(plain) == 0
    first = capsys.readouterr()
    (seed,) = re.findall(r"^seed: a random one; --seed (\d+) gives the same again$", first.err, re.MULTILINE)
    assert main([*plain, "--seed", seed]) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "seed" not in again.err
    assert main([*plain, "--mode", "precise"]) == 0
    assert "seed" not in capsys.readouterr().err


class TestCompare:
    def test_three_decodings_of_one_prompt(self, words, written, capsys):
        rows = written("--prompt", "Once upon", "The old", "--compare")
        names = ["temperature-0.7", "top-p-0.95", "ugap-creative"]
        assert [(row["prompt"], row["decoding"]) for row in rows] == [
            (prompt, name) for prompt in ("Once upon", "The old") for name in names
        ]
        out = capsys.readouterr().out
        for row in rows:
            share = row["nll"] / row["human_level"]
            assert f"{row['nll']:.2f} nats per token, {share:.0%} of people" in out
        assert [out.count(name) for name in names] == [2, 2, 2]
        # Ours is what the command writes without the others.
        plain = written("--prompt", "Once upon", "The old")
        assert rows[2::3] == plain
        assert "6 texts written to" in out

    @pytest.mark.parametrize(("width", "beside"), [("100", True), ("99", False)])
    def test_beside_each_other_where_there_is_room(self, words, capsys, monkeypatch, width, beside):
        monkeypatch.setenv("COLUMNS", width)
        assert main([*words, "--prompt", "Once upon", "--compare"]) == 0
        lines = capsys.readouterr().out.splitlines()
        (first,) = [line for line in lines if "temperature-0.7" in line]
        assert ("ugap-creative" in first) == beside
        assert max(map(len, lines)) <= int(width) or not beside

    def test_a_page(self, words, tmp_path, capsys):
        page = tmp_path / "texts.html"
        assert main([*words, "--prompt", "Once <b>", "--compare", "--html", str(page)]) == 0
        assert f"page written to {page}" in capsys.readouterr().out
        html = page.read_text(encoding="utf-8")
        assert "Once &lt;b&gt;" in html
        assert html.count('class="level"') == 3
        assert len(re.findall(r'<i style="--s:\d+" title="[\d.]+ nats">', html)) > 12


class TestInteractive:
    @pytest.fixture
    def session(self, words, monkeypatch, tmp_path):
        """`session(*lines)`: the rows of a session that these lines drive."""

        def run(*lines: str, more: tuple[str, ...] = ()) -> list[dict]:
            monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
            output = tmp_path / "session.jsonl"
            assert main([*words, "--prompt", "Once upon", "--interactive", "--output", str(output), *more]) == 0
            return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]

        return run

    def test_it_goes_on(self, session, written):
        first, second = session("", "quit", "")
        assert [first] == written("--prompt", "Once upon")
        assert [second] == written("--prompt", "Once upon" + first["text"], "--seed", "1")
        assert session() == [first]  # the end of the input is an end

    def test_again_and_undo(self, session, written):
        (first,) = session("again")
        assert [first] == written("--prompt", "Once upon", "--seed", "1")
        assert session("", "undo") == session()
        assert session("undo", "undo") == []
        before, after = session("undo", "", "", more=("--seed", "4"))
        assert [before] == written("--prompt", "Once upon", "--seed", "5")
        assert after["prompt"] == "Once upon" + before["text"]

    def test_the_mode_changes(self, session, written, capsys):
        rows = session("mode precise", "", "mode 0.5", "", "mode wild", "mode 7")
        assert [row["decoding"] for row in rows] == ["ugap-creative", "ugap-precise", "ugap-0.5"]
        assert written("--prompt", rows[1]["prompt"], "--mode", "precise") == [rows[1]]
        out = capsys.readouterr().out
        assert "unknown mode 'wild': choose of creative, balanced, precise" in out
        assert "weight: expected a number in [0, 1], got 7.0" in out

    def test_own_words(self, session, tmp_path):
        page = tmp_path / "page.html"
        first, second = session("+ But <no>.", "", more=("--html", str(page)))
        assert second["prompt"] == f"Once upon{first['text']} But <no>."
        assert " But &lt;no&gt;." in page.read_text(encoding="utf-8")
        assert page.read_text(encoding="utf-8").count('class="level"') == 1

    def test_ctrl_c_leaves_the_passage_out(self, session, monkeypatch, capsys):
        original = ugap.cli.writer.Screen.token
        calls = []

        def token(self, *arguments):
            calls.append(1)
            if len(calls) == 15:
                raise KeyboardInterrupt
            original(self, *arguments)

        monkeypatch.setattr(ugap.cli.writer.Screen, "token", token)
        assert len(session("")) == 1
        assert "stopped: the passage is left out" in capsys.readouterr().out

    def test_nothing_steers_the_terminal(self, session, capsys):
        session("+ \x1b[2J", "undo", "\x1b]0;title\x07", "mode \x1b[31m")
        assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("how", ["always", "never"])
def test_colours_as_asked(words, capsys, terminal, monkeypatch, how):
    """Against what the terminal says."""
    monkeypatch.setenv("NO_COLOR" if how == "always" else "FORCE_COLOR", "1")
    assert main([*words, "--prompt", "Once upon", "--heatmap", "--color", how]) == 0
    assert ("48;2;" in capsys.readouterr().out) == (how == "always")


def test_every_batch_is_printed_when_it_is_finished(words, capsys, monkeypatch, tmp_path):
    """What was printed before the second batch began; the file appears at the end."""
    printed: list[str] = []
    output = tmp_path / "out.jsonl"
    original = generate_batches

    def spy(*arguments, **options):
        for batch in original(*arguments, **options):
            printed.append(capsys.readouterr().out)
            assert not output.exists()
            yield batch

    monkeypatch.setattr("ugap.cli.writer.generate_batches", spy)
    assert main([*words, "--prompt", "Once", "The old", "A", "--batch_size", "1", "--output", str(output)]) == 0
    assert [text.count("nats per token") for text in printed] == [0, 1, 1]
    assert output.exists()


def test_a_bar_for_more_than_one_batch(words, capsys, terminal, monkeypatch):
    shown: list[bool] = []
    original = Progress.start

    def start(self):
        shown.append(not self.disable)
        original(self)

    monkeypatch.setattr(Progress, "start", start)
    assert main([*words, "--prompt", "Once", "The old"]) == 0
    assert main([*words, "--prompt", "Once", "The old", "--batch_size", "1"]) == 0  # a stream shows itself
    assert not any(shown)
    assert "writing" not in capsys.readouterr().err
    assert main([*words, "--prompt", "Once", "The old", "A", "--batch_size", "2"]) == 0
    assert all(shown[-3:])
    printed = capsys.readouterr()
    assert "writing" in printed.err
    assert "writing" not in printed.out


class TestRefused:
    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ([], "nothing to continue: give --prompt TEXT or --input FILE"),
            (["--prompt", "a", "--input", "b.txt"], "give --prompt or --input, not both"),
            (["--prompt", "a", "--temperature", "0.7"], "--temperature is not taken: the sampler shapes every step"),
            (["--prompt", "a", "--top-p=0.9"], "--top_p is not taken: the sampler shapes every step itself"),
            (["--prompt", "a", "--compare", "--interactive"], "give --compare or --interactive, not both"),
            (["--prompt", "a", "b", "--interactive"], "--interactive writes one text: give one prompt"),
            (["--prompt", "a", "--interactive", "--chat"], "--interactive continues a text: leave out --chat"),
            (["--prompt", "a", "--html", "."], ".: a folder, not a file; choose another output"),
            (["--prompt", "a", "--mode", "wild"], "--mode: invalid choice: 'wild'"),
            (["--prompt", "a", "--mode", "creative", "--weight", "1"], "give mode or weight, not both"),
            (["--prompt", "a", "--weight", "1.5"], "weight: expected a number in [0, 1], got 1.5"),
            (["--prompt", "a", "--weight", "nan"], "weight: expected a number in [0, 1], got nan"),
            (["--prompt", "a", "--kind", "poems"], "no kind 'poems'; it has creative, functional"),
            (["--prompt", "a", "--tail", "0.3"], "tail 0.3: the human profile has the rank levels"),
            (["--prompt", "a", "--profile", "nobody"], "nobody: neither a file nor a shipped profile"),
            (["--prompt", "a", "--profile", "gemma-3-270m"], "the human profile was fitted with 'gemma-3-270m'"),
            (["--prompt", "a", "--max_new_tokens", "0"], "max_new_tokens: expected a positive number, got 0"),
            (["--prompt", "a", "--num_return_sequences", "0"], "num_return_sequences: expected a positive number"),
            (["--prompt", "a", "--batch_size", "0"], "batch_size: expected a positive number, got 0"),
            (["--prompt", "a", "--chat"], "has no chat template: leave out --chat"),
            (["--prompt", "a", ""], "--prompt 2: the prompt is empty"),
            (["--prompt", "  \n"], "--prompt 1: the prompt is empty"),
            (["--prompt", "a\udcff"], "the argument 'a\\udcff' is not UTF-8"),
            (["--input", "none.txt"], "none.txt: no such file"),
            (["--input", "none.jsonl"], "none.jsonl: no such file"),
            (["--input", "."], ".: a folder, not a file"),
            (["--prompt", "a", "--output", "."], ".: a folder, not a file; choose another output"),
        ],
    )
    def test_in_one_line(self, words, refused, more, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert message in refused(*words, *more)
        assert list(tmp_path.iterdir()) == []

    def test_a_file_without_prompts(self, words, refused, tmp_path, write_rows):
        path = tmp_path / "prompts.txt"
        path.write_bytes(b"\n \r\n")
        assert f"{path}: there is no text" in refused(*words, "--input", str(path))
        path.write_bytes(b"Once\n\xff\n")
        assert f"{path}, row 2: invalid UTF-8 at byte 1" in refused(*words, "--input", str(path))
        path.write_bytes(b"Once\nup\0on\n")
        assert f"{path}, row 2: a NUL byte at character 3" in refused(*words, "--input", str(path))
        rows = write_rows([{"prompt": "Once"}, {"prompt": ""}])
        assert f"{rows}, row 2: column 'prompt' is empty" in refused(*words, "--input", rows)
        rows = write_rows([{"text": "Once"}])
        assert "no column 'prompt'" in refused(*words, "--input", rows)

    def test_a_profile_file(self, words, refused, tmp_path, profile_file):
        path = tmp_path / "profile.json"
        words[words.index("--profile") + 1] = str(path)
        path.write_text("{")
        assert f"{path}: not a human profile" in refused(*words, "--prompt", "a")
        document = HumanProfile.load(profile_file).to_dict()
        path.write_text(json.dumps({**document, "version": 7}))
        assert f"{path}: a human profile of version 7" in refused(*words, "--prompt", "a")

    def test_before_a_model_is_loaded(self, refused):
        """What the command line alone tells is not told after minutes of loading."""
        for more in (["--weight", "2"], ["--profile", "nobody"], ["--profile", "gemma-3-270m", "--kind", "poems"]):
            assert "no-such-model" not in refused("generate", "--model", "./no-such-model", "--prompt", "a", *more)
        assert "no-such-model" in refused("generate", "--model", "./no-such-model", "--prompt", "a")

    def test_logits_that_are_not_finite(self, words, refused, broken_folder, make_profile, tmp_path):
        model, _ = load_model(str(broken_folder))
        make_profile(model).save(tmp_path / "broken.json")
        output = tmp_path / "out.jsonl"
        words[2], words[4] = str(broken_folder), str(tmp_path / "broken.json")
        line = refused(*words, "--prompt", "A Q", "--output", str(output))
        assert f"{broken_folder}: the scores of row 0 are not finite" in line
        assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json"]


def test_creative_aims_at_the_reader_of_the_profile(words, capsys, profile_file, tmp_path):
    """A mode aims at the reader, as in `ugap.generate`, and a weight at the model's own level."""
    shares = {name: Share(0.6, 0.03, 3.2, 32) for name in ("creative", "functional")}
    read = replace(HumanProfile.load(profile_file), readings={"strong": Reading("strong", "abc", shares)})
    read.save(tmp_path / "read.json")
    words[words.index("--profile") + 1] = str(tmp_path / "read.json")
    for more, aims in (([], True), (["--mode", "creative"], True), (["--weight", "1"], False)):
        assert main([*words, "--prompt", "Once", *more]) == 0
        assert ("to the reader strong" in capsys.readouterr().out) == aims


def test_the_generator_of_others_is_left_alone(words):
    before = torch.get_rng_state()
    assert main([*words, "--prompt", "Once"]) == 0
    assert torch.equal(torch.get_rng_state(), before)
