"""What does the page say that shows every figure of the gallery?"""

from __future__ import annotations

from collections.abc import Sequence

from interp.gallery.comparing import USUAL
from interp.gallery.entries import GALLERY, MOST, NONE, SOURCES, Entry


def readme(entries: Sequence[Entry] = GALLERY) -> str:
    """The page that shows every figure: what it shows, what was published like it, the command."""
    lines = [
        "# Figures",
        "",
        "Every picture is drawn from the result beside it: `result.nc` opens in xarray, and its attribute `provenance` has the "
        "seed, the model's hash and all versions. `NAME.json` beside `NAME.png` is the same figure for plotly "
        f"(`plotly.io.read_json`); above {MOST // 1000} kB it is left out.",
        "",
        "`interp figures` makes all of them again on the bundled models, `interp figures --only NAME` one folder, "
        "`interp figures --drawn` the pictures alone. `interp figures --check` makes every result again and compares it "
        "with what is here; `interp figures --check --drawn` asks, in seconds, whether the pictures are those of these results.",
        "",
        *_allowances(entries),
        "This page is written by `interp figures`.",
    ]
    for entry in entries:
        lines += ["", f"## {entry.folder}", ""]
        for figure in entry.figures:
            published = figure.published[0].upper() + figure.published[1:]
            if not figure.published.startswith(NONE):
                published = f"Corresponds to {figure.published}"
            lines += [f"![{figure.name}]({entry.folder}/{figure.name}.png)", "", f"{figure.shows} {published}.", ""]
        lines += ["```sh", f"interp {entry.command} --out results/{entry.folder}", "```"]
    said = " ".join(figure.published for entry in entries for figure in entry.figures)
    cited = [f"- {name}: {title}" for name, title in SOURCES.items() if name in said]
    return "\n".join(lines + (["", "## Published", "", *cited] if cited else [])) + "\n"


def _allowances(entries: Sequence[Entry]) -> list[str]:
    """What is allowed to differ, and why, for the page."""
    lines = ["Texts and whole-number coordinates must be equal. Of other numbers, the check allows:", ""]
    for allowed in dict.fromkeys(entry.tolerance for entry in entries):
        names = "all others" if allowed == USUAL else ", ".join(e.folder for e in entries if e.tolerance == allowed)
        ties = f", and {allowed.ties:.1%} of a variable's ranks, arg-maxes and truth values" if allowed.ties else ""
        lines.append(f"- {allowed.atol:g} + {allowed.rtol:g} of the number{ties}, for {names}: {allowed.why}")
    return [*lines, ""]
