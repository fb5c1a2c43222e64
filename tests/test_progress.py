"""Is progress shown as a bar on a terminal, logged once a minute elsewhere, and cleaned up afterwards?"""

import io

import pytest

from interp import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that advances only when told."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_last_step", -progress._EVERY)

    def passes(seconds):
        now[0] += seconds

    return passes


def test_a_terminal_shows_a_bar_that_disappears(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress.track("abc", "letters", total=5, done=2)) == ["a", "b", "c"]
    assert "letters" in terminal.getvalue()
    assert "2/5" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r")


def test_a_notebook_shows_a_bar(monkeypatch, capfd):
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    assert list(progress.track("abc", "letters", total=3)) == ["a", "b", "c"]
    assert "letters" in capfd.readouterr().err


def test_an_interrupted_bar_disappears(monkeypatch):
    def fails():
        yield 1
        raise KeyboardInterrupt

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with pytest.raises(KeyboardInterrupt):
        list(progress.track(fails(), "things"))
    assert terminal.getvalue().endswith("\r")


def test_logs_stay_clean_for_a_minute(clock, capfd):
    for _ in progress.track(range(59), "things", total=59):
        clock(1)
    assert capfd.readouterr() == ("", "")


def test_a_log_gets_a_line_a_minute(clock, capfd):
    for _ in progress.track(range(100), "things", total=110, done=10):
        clock(10)
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "things: about 17 min"  # after the first step
    assert len(lines) == 17  # in 1,000 seconds
    assert lines[1:3] == ["things: 16 of 110, 15:40 left", "things: 22 of 110, 14:40 left"]


def test_uneven_steps_get_no_time_estimate(clock, capfd):
    for _ in progress.track("abc", "sections", total=3, even=False):
        clock(100)
    assert capfd.readouterr().err.splitlines() == ["sections: 1 of 3, 03:20 left", "sections: 2 of 3, 01:40 left"]


def test_a_line_names_all_running_loops(clock, capfd):
    """Also where no single inner loop lasts a minute."""
    for _ in progress.track("ab", "sections", total=2):
        for _ in range(3):
            for _ in progress.track(range(4), "layers"):
                clock(10)
    lines = capfd.readouterr().err.splitlines()
    assert lines == [
        "sections: 0 of 2, ? left; layers: 2",
        "sections: about 4 min",
        "sections: 1 of 2, 02:00 left",
        "sections: 1 of 2, 02:00 left; layers: 2",
    ]
    assert progress._running == []


def test_many_short_pieces_of_one_work_are_not_silent(clock, capfd):
    """Defect: each began a new minute, so that minutes of pieces of 40 seconds said nothing."""
    for _ in range(4):
        for _ in progress.track(range(4), "layers"):
            clock(10)
    assert capfd.readouterr().err.splitlines() == ["layers: 2", "layers: 0"]
    clock(3600)  # other work, long after: clean for a minute
    for _ in progress.track(range(4), "layers"):
        clock(10)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (90_000, "25.0 h")],
)
def test_a_duration_is_told_in_the_unit_that_suits_it(seconds, said):
    assert progress.duration(seconds) == said
