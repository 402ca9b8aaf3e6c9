"""Progress: a bar on a terminal, lines in a log."""

from ugap.progress import progress_bar, span


def test_a_log_gets_a_line_a_minute_and_one_at_the_end(capsys):
    now = 100.0
    with progress_bar() as bar:
        bar.get_time = lambda: now
        task = bar.add_task("gemma writes", total=1200)
        for seconds in range(10, 121, 10):
            now = 100.0 + seconds
            bar.advance(task, 100)
        assert capsys.readouterr().out.splitlines() == [
            "gemma writes: 600 of 1,200 in 0:01:00, about 0:01:00 left",
            "gemma writes: 1,200 of 1,200 in 0:02:00",
        ]
        # What is found finished has its line, too, and nothing is said twice.
        bar.update(bar.add_task("gemma read by itself", total=5), completed=5)
        bar.update(task, description="again")
    assert capsys.readouterr().out == "gemma read by itself: 5 of 5 in 0:00:00\n"


def test_nothing_to_do_and_nothing_asked_for_is_no_line(capsys):
    with progress_bar() as bar:
        bar.advance(bar.add_task("empty", total=0))
        bar.advance(bar.add_task("endless", total=None))
    with progress_bar(disable=True) as bar:
        bar.advance(bar.add_task("silent", total=1))
    assert capsys.readouterr() == ("", "")


def test_stdout_may_be_for_results(capsys):
    with progress_bar(stderr=True) as bar:
        bar.advance(bar.add_task("writing", total=1))
    assert capsys.readouterr() == ("", "writing: 1 of 1 in 0:00:00\n")


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar() as bar:
        bar.advance(bar.add_task("writing", total=1))
    out = capsys.readouterr().out
    assert "━" in out
    assert "writing: 1 of 1" not in out


def test_span():
    assert [span(seconds) for seconds in (0.4, 61, 86400)] == ["0:00:00", "0:01:01", "1 day, 0:00:00"]
