"""The shell of the command line: which command, which exit status, and one line where something is wrong."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ugap.cli.assets
from ugap.cli.main import COMMANDS, main
from ugap.errors import InputError
from ugap.models import ASSETS

OUT_OF_MEMORY = (
    "ugap: error: out of memory: take fewer or shorter texts, a smaller model, or a machine with more memory\n"
)


@pytest.fixture
def failing(monkeypatch):
    """Make `ugap assets` raise."""

    def arrange(error: BaseException) -> None:
        def run(arguments: object) -> None:
            raise error

        monkeypatch.setattr(ugap.cli.assets, "run", run)

    return arrange


def status_and_error(capsys, *words: str) -> tuple[int, str]:
    status = main(words)
    captured = capsys.readouterr()
    assert captured.out == ""
    return status, captured.err


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_the_overview_names_every_command(words, capsys):
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("usage: ugap <command>")
    for name, summary in COMMANDS.items():
        assert name in printed
        assert summary in printed


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ugap {ugap.__version__}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mesure"], "ugap: error: unknown command 'mesure'; did you mean measure? (see ugap --help)\n"),
        (["--versoin"], "ugap: error: unknown option '--versoin'; did you mean --version? (see ugap --help)\n"),
        (["quux"], "ugap: error: unknown command 'quux' (see ugap --help)\n"),
        (["assets", "--pth"], "ugap: error: unknown option --pth; did you mean --path? (see ugap assets --help)\n"),
        (
            ["assets", "gema-3-270m"],
            "ugap: error: unknown asset 'gema-3-270m'; did you mean gemma-3-270m? (see ugap assets)\n",
        ),
    ],
)
def test_a_wrong_word_gets_one_line(words, line, capsys):
    assert status_and_error(capsys, *words) == (2, line)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("texts.jsonl, row 3: no text"), 2, "ugap: error: texts.jsonl, row 3: no text\n"),
        (InputError("two\nlines"), 2, "ugap: error: two\\nlines\n"),
        (KeyboardInterrupt(), 130, "ugap: error: interrupted\n"),
        (OSError(errno.ENOSPC, "", "out.json"), 2, "ugap: error: out.json: No space left on device\n"),
        (OSError(errno.EACCES, "Permission denied", "out.json"), 2, "ugap: error: out.json: Permission denied\n"),
        (NotADirectoryError(errno.ENOTDIR, "", "a/b"), 2, "ugap: error: a/b: Not a directory\n"),
        (InputError("a \x1b[2J\u202eb \udcff"), 2, "ugap: error: a \\x1b[2J\\u202eb \\udcff\n"),
        (MemoryError(), 2, OUT_OF_MEMORY),
        (
            ModuleNotFoundError("No module named 'plotly'", name="plotly"),
            2,
            'ugap: error: plotly is not installed: pip install "ugap[report]"\n',
        ),
        (torch.OutOfMemoryError("CUDA out of memory."), 2, OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, OUT_OF_MEMORY),
    ],
)
def test_what_ends_a_command_in_one_line(error, status, line, failing, capsys):
    failing(error)
    ended, printed = status_and_error(capsys, "assets")
    assert (ended, printed) == (status, line)


def test_a_message_of_any_length_is_a_short_line(failing, capsys):
    failing(InputError("a.jsonl: " + "\x1b" * 50_000_000 + " is no domain"))
    _, printed = status_and_error(capsys, "assets")
    assert len(printed) < 5000
    assert printed.startswith("ugap: error: a.jsonl: \\x1b")
    assert printed.endswith("\\x1b is no domain\n")


def test_a_word_that_is_no_utf8_is_refused(capsys):
    line = "ugap: error: the argument 'a\\udcff.jsonl' is not UTF-8\n"
    assert status_and_error(capsys, "score", "--input", "a\udcff.jsonl") == (2, line)


def test_warnings_reach_the_terminal_spelt_out():
    code = (
        "import logging, ugap.cli.assets\n"
        "def run(arguments):\n"
        "    logging.getLogger('ugap').warning('%s', 'a\\x1b[2J\\nb' + 'x' * 10**6)\n"
        "    print('\\udcff')\n"
        "ugap.cli.assets.run = run\n"
        "from ugap.cli.main import main\n"
        "raise SystemExit(main(['assets']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\\udcff\n")
    assert done.stderr.startswith("a\\x1b[2J\\nbxxx")
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 2000


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a bug"),
        ValueError("a bug"),
        OSError(errno.EBADF, "a bug"),
        ModuleNotFoundError("a bug", name="numpy"),
    ],
)
def test_a_bug_shows_itself(error, failing):
    failing(error)
    with pytest.raises(type(error), match="a bug"):
        main(["assets"])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the machine has no /dev/full")
def test_a_full_disk_behind_stdout():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ugap.cli.main", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == "ugap: error: No space left on device\n"


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes on Windows")
@pytest.mark.parametrize("words", [["--help"], ["assets", "--help"]])
def test_a_reader_that_leaves(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ugap.cli.main", *words]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, env=buffered, text=True, check=False)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert done.stderr == ""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send on Windows")
def test_control_c():
    code = (
        # A shell starts what runs in its background with SIGINT ignored.
        "import signal, time, ugap.cli.assets\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def run(arguments):\n    print('running', flush=True)\n    time.sleep(60)\n"
        "ugap.cli.assets.run = run\n"
        "from ugap.cli.main import main\n"
        "raise SystemExit(main(['assets']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, printed = process.communicate(timeout=30)
    assert process.returncode == 130
    assert printed == "ugap: error: interrupted\n"


class TestAssets:
    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("UGAP_CACHE", str(tmp_path))
        return tmp_path

    def test_the_list(self, cache, capsys):
        assert main(["assets"]) == 0
        printed = capsys.readouterr().out
        for name, asset in ASSETS.items():
            (line,) = [line for line in printed.splitlines() if line.startswith(name)]
            assert asset.licence in line
            assert f"{asset.megabytes} MB" in line
            assert line.split()[-1] == "no"
        assert f"cache: {cache}" in printed

    def test_the_folder_of_the_cache(self, cache, capsys):
        assert main(["assets", "--path"]) == 0
        assert capsys.readouterr().out == f"{cache}\n"


@pytest.mark.parametrize("words", [["--model", "x", "--decoding", "gredy"], [], ["--model", "x", "--output", "."]])
def test_wrong_arguments_of_measure_are_answered_without_torch(words, tmp_path):
    """A decoding that is unknown, no model, and a study that is there."""
    (tmp_path / "parts").mkdir()
    code = "import sys\nfrom ugap.cli.main import main\nprint(main(sys.argv[1:]), 'torch' in sys.modules)"
    command = [sys.executable, "-c", code, "measure", "--output", str(tmp_path / "out"), *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "2 False\n"
    assert done.stderr.count("\n") == 1
