"""How is a result shown in a table that no terminal truncates? Labels on the left, unbroken numbers, several tables
where one is too wide. In a CSV file, in full precision.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count, takewhile
from typing import Any, TypeGuard

import numpy as np
import xarray as xr
from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from interp.statistics import binomial_interval, mean_interval

_IDS = re.compile(r"(.*?)(\d+(?::\d+)?(?:,\d+(?::\d+)?)+)(.*)", re.S)
_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_PERCENT = re.compile(r"[+-]?\d+(\.\d+)?%")
_FOLDED = 20  # characters above which a word in a text column may be broken


class Cell(str):
    """What a table prints, and what a CSV file holds instead: full precision, interval ends separately.

    The text is what is printed. `values` has the numbers by suffix of the column's name: "" for the column itself,
    "low" for `NAME low`.

    Example:
        >>> Cell("0.33 (0.1 .. 0.5)", {"": 1 / 3, "low": 0.1, "high": 0.5}).values["low"]
        0.1
    """

    values: dict[str, Any]

    def __new__(cls, text: str, values: Mapping[str, Any]) -> Cell:
        """A text with its values.

        Args:
            text: what is printed.
            values: by suffix of the column's name.
        """
        made = super().__new__(cls, text)
        made.values = dict(values)
        return made

    def __add__(self, more: str) -> Cell:
        """The same with more text to print."""
        return Cell(str(self) + more, self.values)


def table_of(first: str, *others: str, words: Iterable[str] = ()) -> LabelledTable:
    """An empty table that is never truncated: the first column and those in `words` hold words, the others numbers.

    Args:
        first: the heading of the first column.
        others: the headings of the other columns.
        words: which of the other columns hold words.

    Returns:
        A renderable to which `add_row` adds rows.
    """
    columns = [Column(first, words=True), *(Column(name, name in tuple(words)) for name in others)]
    leading = len(list(takewhile(lambda column: column.words, columns)))
    # where all are words, the last describes the others
    for column in columns[: max(1, leading - (leading == len(columns)))]:
        column.label = True
    return LabelledTable(columns)


@dataclass
class Column:
    """A heading and the cells below it."""

    header: str
    words: bool
    label: bool = False
    cells: list[Text] = field(default_factory=list)
    values: list[Mapping[str, Any]] = field(default_factory=list)  # for each cell, as in `Cell`

    def add(self, cell: str | Text) -> None:
        """Add a cell below the others."""
        text = cell if isinstance(cell, Text) else Text(printable(cell))
        plain = text.plain if self.words else _read(text.plain)
        self.cells.append(text)
        self.values.append(cell.values if isinstance(cell, Cell) else {"": plain})

    def most(self) -> int:
        """The width at which no cell is wrapped."""
        return max(cell_len(text) for text in (self.header, *(cell.plain for cell in self.cells)))

    def least(self) -> int:
        """The width below which a number or a word would be broken; very long words of text may be broken."""
        parts = [part for cell in self.cells for part in (cell.plain.split() if self.words else [cell.plain])]
        least = max((cell_len(part) for part in (*self.header.split(), *parts)), default=0)
        return min(least, _FOLDED) if self.words and not self.label else least


@dataclass
class LabelledTable:
    """A table whose leading columns of words are labels.

    Where it is too wide, headings and words wrap, over-long words in labels are shortened (and stay distinct), and a
    table that is still too wide is split into several that repeat the labels. Numbers are never broken, and no column
    is dropped.
    """

    columns: list[Column]

    def add_row(self, *cells: str | Text) -> None:
        """Add a row: plain text (no markup), `Cell` or `Text`; missing cells are empty."""
        padded = [*cells, *[""] * (len(self.columns) - len(cells))]
        for column, cell in zip(self.columns, padded, strict=True):
            column.add(cell)

    @property
    def row_count(self) -> int:
        """The number of rows."""
        return len(self.columns[0].cells)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        most = sum(column.most() for column in self.columns) + _frame(self.columns)
        return Measurement(min(most, options.max_width), most).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = options.max_width
        whole, rest = ([c for c in self.columns if c.label is label] for label in (True, False))
        shorter = [_shortened(column, max(12, int(0.3 * width))) for column in whole]
        for labels in (whole, shorter):
            if _least([*labels, *rest]) <= width:
                yield _table([*labels, *rest], width)
                return
        parts: list[list[Column]] = [[]]
        for column in rest:
            if parts[-1] and _least([*shorter, *parts[-1], column]) > width:
                parts.append([])
            parts[-1].append(column)
        if all(_least([*shorter, *part]) <= width for part in parts):
            yield from (_table([*shorter, *part], width) for part in parts)
        else:  # not even one number fits beside its labels: one line each
            for row in zip(*(column.cells for column in self.columns), strict=True):
                named = [Text.assemble(c.header, ": ", cell) for c, cell in zip(self.columns, row, strict=True)]
                yield Text("\n", overflow="fold").join([*named, Text()])


def _frame(columns: list[Column]) -> int:
    """The width of the space between and around columns."""
    return 3 * len(columns) - 1


def _least(columns: list[Column]) -> int:
    return sum(column.least() for column in columns) + _frame(columns)


def _shortened(column: Column, most: int) -> Column:
    texts = shortened([cell.plain for cell in column.cells], most, by_word=True)
    return Column(column.header, words=True, label=True, cells=[Text(text) for text in texts])


def _table(columns: list[Column], width: int) -> Table:
    """A table of at most this width, if possible; the widest columns shrink first."""
    least, most = [column.least() for column in columns], [column.most() for column in columns]
    widths, room = most, width - _frame(columns)
    for cap in range(max(most), 0, -1):
        if sum(widths) <= room:
            break
        widths = [max(low, min(high, cap)) for low, high in zip(least, most, strict=True)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, wide in zip(columns, widths, strict=True):
        justify = "left" if column.words else "right"
        table.add_column(Text(column.header), justify=justify, width=wide, overflow="fold")  # type: ignore[arg-type]
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


# --- CSV --------------------------------------------------------------------------------------------------------------


def is_table(line: object) -> TypeGuard[LabelledTable | Table]:
    """Is this output of a view a table rather than a sentence?"""
    return isinstance(line, LabelledTable | Table)


def csv_text(table: LabelledTable | Table) -> str:
    """A table as comma-separated values: a heading line, numbers in full precision, missing numbers empty.

    Args:
        table: one from `table_of`, or a rich table, of which only the printed text is known.

    Returns:
        The text, with newline-terminated lines. For an interval, `NAME` is the mean, `NAME low` and `NAME high` are its
        ends. Empty labels are filled from the row above.

    Example:
        >>> table = table_of("pool", "nats")
        >>> table.add_row("ordinary", number(1 / 3))
        >>> print(csv_text(table), end="")
        pool,nats
        ordinary,0.3333333333333333
    """
    columns = table.columns if isinstance(table, LabelledTable) else [_printed(column) for column in table.columns]
    headings: list[str] = []
    found: list[list[str]] = []
    for i, column in enumerate(columns):
        name = column.header.values[""] if isinstance(column.header, Cell) else column.header
        parts = dict.fromkeys(part for values in column.values for part in values) or [""]
        for part in sorted(parts, key=bool):
            headings.append(f"{name} {part}".strip())
            found.append([_written(values.get(part)) for values in column.values])
            if i == 0 and not part:
                found[0] = _filled(found[0])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([headings, *zip(*found, strict=True)])
    return file.getvalue()


def _printed(column: Any) -> Column:
    """A column of a rich table, as printed."""
    texts = [Text.from_markup(text) if isinstance(text, str) else Text(str(text)) for text in column.cells]
    header = Text.from_markup(column.header).plain if isinstance(column.header, str) else str(column.header)
    made = Column(header, words=False)
    for text in texts:
        made.add(text)
    return made


def _written(value: Any) -> str:
    """A value as written to a CSV file, in full precision; NaN is empty."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return "" if np.isnan(value) else repr(value)
    return "" if value is None else printable(value)


def _read(text: str) -> str:
    """A printed number in the form that programs read."""
    if text == "-":
        return ""
    if _PERCENT.fullmatch(text):
        return str(Decimal(text.removesuffix("%")) / 100)
    return text.replace(",", "") if _GROUPED.fullmatch(text) else text


def _filled(labels: list[str]) -> list[str]:
    """Labels, with each empty one filled from the row above."""
    found: list[str] = []
    for label in labels:
        found.append(label or (found[-1] if found else ""))
    return found


def shortened(names: Iterable[str], most: int, *, by_word: bool = False) -> list[str]:
    """The names, long ones shortened to about `most` characters, kept distinct.

    Args:
        names: of pools, models, or anything else that labels rows or panels.
        most: characters allowed in a name (with `by_word`, in each word of it).
        by_word: keep spaces, so that the name can wrap at them.

    Returns:
        A list of ids keeps its ends and states their number; other names lose their middle; names that would coincide
        are numbered.
    """
    names = list(names)
    found = {}
    for name in names:
        found[name] = " ".join(_short(word, most) for word in name.split(" ")) if by_word else _short(name, most)
    taken = {name for name in found if found[name] == name}
    for name, short in found.items():
        if short != name:
            numbered = (short if n == 1 else f"{short} #{n}" for n in count(1))
            found[name] = next(candidate for candidate in numbered if candidate not in taken)
            taken.add(found[name])
    return [found[name] for name in names]


def _short(text: str, most: int) -> str:
    if cell_len(text) <= most:
        return text
    if ids := _IDS.fullmatch(text):
        before, listed, after = ids.groups()
        entries = listed.split(",")
        ranges = [[int(end) for end in entry.split(":")] for entry in entries]
        size = f" ({sum(ends[1] - ends[0] if len(ends) == 2 else 1 for ends in ranges)} ids)"
        for kept in (",".join([*entries[:2], "\u2026", entries[-1]]), f"{entries[0]},\u2026,{entries[-1]}"):
            if len(entries) > 3 and cell_len(short := f"{before}{kept}{size}{after}") <= most:
                return short
    end = text[-(most - most // 2 - 1) :]
    while cell_len(end) > most - most // 2 - 1:
        end = end[1:]
    return f"{set_cell_size(text, most // 2)}\u2026{end}"


def printable(text: object) -> str:
    """A text on one line, with unprintable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def title(text: str) -> Text:
    """A line of its own: as a table's title it would be wrapped to the table's width."""
    return Text(text, style="bold")


def number(value: float | xr.DataArray, spec: str = ".2f") -> Cell:
    """A number, or a dash where there is none.

    Args:
        value: the number; a CSV file holds all of its digits.
        spec: how it is printed, as in `format`; `d` for integers only.
    """
    value = value.item() if hasattr(value, "item") else value
    return Cell(format(value, spec) if np.isfinite(float(value)) else "-", {"": value})


def interval(
    mean: float | xr.DataArray,
    low: float | xr.DataArray,
    high: float | xr.DataArray,
    *,
    spec: str = ".2f",
    to: str = " .. ",
) -> Cell:
    """A mean and the ends of its interval; the mean alone where it has none, a dash where nothing was measured."""
    ends = f" ({number(low, spec)}{to}{number(high, spec)})" if np.isfinite(float(low)) else ""
    text = number(mean, spec) + (ends if np.isfinite(float(mean)) else "")
    return Cell(text, {"": float(mean), "low": float(low), "high": float(high)})


def sampled(values: xr.DataArray) -> Cell:
    """The mean over samples and its interval."""
    return interval(*mean_interval(values.values))


def percent(count: float, size: float, spec: str) -> Cell:
    """The share that a count is of a size, in percent with its exact interval; a dash where the count is NaN."""
    if not np.isfinite(count):
        return number(np.nan)
    return interval(*100 * binomial_interval(count, size), spec=spec) + "%"


def strongest_heads(values: xr.DataArray, most: int = 3) -> Cell:
    """The heads with the largest absolute values, with sign; heads that could not be tested (NaN) are left out.

    In a CSV file, the first is `NAME 1` and its value `NAME 1 value`.
    """
    flat = values.transpose("layer", "head").values
    places = [np.unravel_index(i, flat.shape) for i in np.argsort(-np.abs(flat), axis=None)[:most]]
    return ranked([(f"L{la}H{h}", float(flat[la, h])) for la, h in places if np.isfinite(flat[la, h])], "+.2f")


def largest_head(values: xr.DataArray) -> Cell:
    """The head with the largest value, and that value: in a CSV file `NAME head` and `NAME`."""
    best = values.argmax(["layer", "head"])
    name, value = f"L{best['layer'].item()}H{best['head'].item()}", float(values.max())
    return Cell(f"{name} {value:.2f}", {"": value, "head": name})


def ranked(found: Iterable[tuple[str, float]], spec: str) -> Cell:
    """Names with a number each, in order; in a CSV file, the first is `NAME 1` and its number `NAME 1 value`."""
    found = list(found)
    values: dict[str, Any] = {}
    for place, (name, value) in enumerate(found, start=1):
        values |= {f"{place}": name, f"{place} value": float(value)}
    return Cell(", ".join(f"{name} {value:{spec}}" for name, value in found) or "not testable", values or {"1": ""})
