"""Is progress shown where somebody watches, and nothing left behind?"""

import sys
import types

import pytest

from interp import progress


class Place:
    def __init__(self, said):
        self.said = said

    def update(self, value):
        self.said.append(value.data)


@pytest.fixture
def notebook(monkeypatch):
    """A shell with a kernel, and what its cell shows."""
    import IPython.display

    said = []
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: types.SimpleNamespace(kernel=object()))
    monkeypatch.setattr(IPython.display, "display", lambda value, display_id: Place(said))
    monkeypatch.setattr(progress, "_REDRAWN", 0.0)
    return said


def test_a_bar_below_the_cell(notebook):
    assert list(progress.track("abc", "letters <of>", total=5, done=2)) == ["a", "b", "c"]
    assert 'value="2" max="5"' in notebook[0]
    assert "letters &lt;of&gt; 2 of 5" in notebook[0]
    assert "s left" in notebook[2]
    assert notebook[-1] == ""


def test_an_interrupted_bar_goes_away(notebook):
    def fails():
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(progress.track(fails(), "things"))
    assert notebook[-1] == ""


def test_logs_stay_clean(capfd):
    assert list(progress.track(range(3), "things", total=3)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")
