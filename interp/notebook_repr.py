"""How does an object of a foreign class show itself in a notebook? As a small table of what is known of it."""

import html
import sys
from collections.abc import Callable, Mapping
from typing import Any


def as_html(facts: Mapping[str, str]) -> str:
    """A small table."""
    rows = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in facts.items())
    return f'<table style="text-align:left">{rows}</table>'


def as_text(facts: Mapping[str, str]) -> str:
    """The same in lines."""
    return "\n".join(f"{name:14}{value}" for name, value in facts.items())


def register(kind: type, facts: Callable[[Any], Mapping[str, str]]) -> None:
    """Tell IPython, where it runs, how objects of a class are shown; the class is left as it is.

    Args:
        kind: the class.
        facts: from an object to what its table says.
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
