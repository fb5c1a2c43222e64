"""How is an object of a foreign class displayed in a notebook? As a small table of facts about it."""

import html
import sys
from collections.abc import Callable, Mapping
from typing import Any


def as_html(facts: Mapping[str, str]) -> str:
    """A small table."""
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    return f'<table style="text-align:left">{rows}</table>'


def as_text(facts: Mapping[str, str]) -> str:
    """The same as lines of text."""
    return "\n".join(f"{name:14}{value}" for name, value in facts.items())


def register(kind: type, facts: Callable[[Any], Mapping[str, str]]) -> None:
    """Tell IPython, if it is running, how to display objects of a class; the class is unchanged.

    Args:
        kind: the class.
        facts: maps an object to the entries of its table.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None:
        return

    def pretty(shown: Any, printer: Any, cycle: bool) -> None:
        printer.text(as_text(facts(shown)))

    formatters = shell.display_formatter.formatters
    formatters["text/html"].for_type(kind, lambda shown: as_html(facts(shown)))
    formatters["text/plain"].for_type(kind, pretty)
