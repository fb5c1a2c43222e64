"""What does the page with every figure of the gallery say?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from interp.exhibits import NO_COUNTERPART, SOURCES, USUAL, GalleryEntry
from interp.gallery import collection

LARGEST_JSON = 300_000  # bytes of a figure's JSON: a larger one is left out
_HEAD = f"""\
# The gallery: every figure, how it is read and made

All figures, each with what it shows and the command that makes it. How to read one, its axes, bars and \
intervals, is said where its experiment is described: [the experiments](../docs/experiments.md).

Every picture is drawn from the result beside it: `result.nc` opens in xarray, and its attribute `provenance` has the \
seed, the model's hash and all versions. `NAME.json` beside `NAME.png` is the same figure for plotly \
(`plotly.io.read_json`); above {LARGEST_JSON // 1000} kB it is left out.

`interp figures` makes all of them again on the bundled models, `interp figures --model smollm2` those of the public \
model (`interp models fetch smollm2`), `interp figures --only NAME` one folder, \
`interp figures --drawn` the pictures alone. `interp figures --check` makes every result again and compares it with \
what is here; `interp figures --check --drawn` asks, in seconds, whether the pictures are those of these results.

Texts and whole-number coordinates must be equal. Of other numbers, the check allows:
"""


def readme(entries: Sequence[GalleryEntry] | None = None) -> str:
    """The page with every figure: what it shows, its published counterpart, the command.

    Args:
        entries: the gallery's entries, chapter by chapter; None: those of this package.

    Returns:
        Markdown.
    """
    every = entries or collection.entries()
    lines = [_HEAD, *_allowances(every), "", "This page is written by `interp figures`."]
    for chapter, group in groupby(every, key=lambda entry: entry.chapter):
        lines += ["", f"## {chapter[0].upper()}{chapter[1:]}"]
        for entry in group:
            lines += ["", f"### {entry.folder}", ""]
            for caption in entry.captions:
                lines += [f"![{caption.name}]({entry.folder}/{caption.name}.png)", ""]
                published = caption.published[0].upper() + caption.published[1:]
                if not caption.published.startswith(NO_COUNTERPART):
                    published = f"Corresponds to {caption.published}"
                lines += [f"{caption.shows} {published}.", ""]
            lines += ["```sh", f"{entry.command} --out results/{entry.folder}", "```"]
    named = " ".join(caption.published for entry in every for caption in entry.captions)
    cited = [f"- {name}: {title}" for name, title in SOURCES.items() if name in named]
    return "\n".join(lines + (["", "## Published", "", *cited] if cited else [])) + "\n"


def _allowances(entries: Sequence[GalleryEntry]) -> Iterator[str]:
    """The allowed differences, and why."""
    for allowed in dict.fromkeys(entry.tolerance for entry in entries):
        names = "all others" if allowed == USUAL else ", ".join(e.folder for e in entries if e.tolerance == allowed)
        ties = f", and {allowed.ties:.1%} of a variable's ranks, arg-maxes and truth values" if allowed.ties else ""
        outliers = f", and {allowed.outliers:.0%} of its numbers by more" if allowed.outliers else ""
        yield f"- {allowed.atol:g} + {allowed.rtol:g} of the number{outliers}{ties}, for {names}: {allowed.why}"
