"""Are tables and figures exported in formats that others read: CSV, SVG, PDF?"""

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.io
import pytest
import xarray as xr
from hypothesis import given, strategies as st
from rich.table import Table
from typer.testing import CliRunner

import interp
from interp import pages, results, views
from interp.cli import app
from interp.errors import InterpError
from interp.tables import csv_text, interval, is_table, number, printable, ranked, table_of

HERE = Path(__file__).parent
STORED = sorted((HERE / "data" / "results_of_0.1").glob("*.nc"))
GAP = HERE.parent / "figures" / "repeated_tokens"
NO_BROWSER = not any(shutil.which(name) for name in ("chromium", "google-chrome", "chrome", "chromium-browser"))


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


@pytest.fixture
def stored(tmp_path):
    """A folder with a result, as a run leaves one."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(GAP / "result.nc", folder)
    return folder


# --- a table as CSV ---------------------------------------------------------------------------------------------------


def test_csv_holds_every_digit_and_the_ends_of_intervals_apart():
    table = table_of("pool", "nats", "right", "tokens")
    table.add_row("a", interval(1 / 3, 0.1, 2 / 3), number(2 / 3, ".0%"), number(1234567, ",d"))
    table.add_row("b", interval(np.pi, np.nan, np.nan), number(np.float64(np.nan)), "-")
    first, second = rows_of(csv_text(table))
    assert list(first) == ["pool", "nats", "nats low", "nats high", "right", "tokens"]
    assert [float(first[name]) for name in list(first)[1:]] == [1 / 3, 0.1, 2 / 3, 2 / 3, 1234567]
    assert float(second["nats"]) == np.pi
    # not measured: an empty field, as every reader of CSV takes it
    assert {name for name, text in second.items() if not text} == {"nats low", "nats high", "right", "tokens"}


def test_names_with_numbers_are_columns_of_their_own():
    table = table_of("pool", "heads", words=("heads",))
    table.add_row("a", ranked([("L1H2", 1 / 3), ("L0H0", -0.25)], "+.2f"))
    table.add_row("b", ranked([], "+.2f"))
    assert csv_text(table).splitlines() == [
        "pool,heads 1,heads 1 value,heads 2,heads 2 value",
        f"a,L1H2,{1 / 3!r},L0H0,-0.25",
        "b,,,,",
    ]


def test_an_empty_label_is_that_of_the_row_above():
    table = table_of("pool", "cause", "nats", words=("cause",))
    for pool, cause in (("a", "all"), ("", "identity"), ("b", "all")):
        table.add_row(pool, cause, number(1.0))
    assert [row["pool"] for row in rows_of(csv_text(table))] == ["a", "a", "b"]


def test_output_of_a_users_view_is_read_as_numbers():
    """Plain text, in our tables and in rich's own: nothing is known about it beyond what is printed."""
    ours = table_of("pool", "tokens", "right", "nats")
    theirs = Table("pool", "tokens", "[b]right[/b]", "nats")
    for table in (ours, theirs):
        table.add_row("a", "1,234", "35%", "-0.50")
        assert csv_text(table) == "pool,tokens,right,nats\na,1234,0.35,-0.50\n"


def test_a_table_without_rows_keeps_its_headings():
    assert csv_text(table_of("dose", "rank")) == "dose,rank\n"


@pytest.mark.process
@given(st.lists(st.text(min_size=1), min_size=1, max_size=5))
def test_any_name_comes_back_from_csv(names):
    """Commas, quotation marks, line ends: what cannot be printed is escaped, as in a table."""
    table = table_of("pool", "nats")
    for i, name in enumerate(names):
        table.add_row(name, number(i))
    rows = rows_of(csv_text(table))
    assert [row["pool"] for row in rows] == [printable(name) for name in names]
    assert [row["nats"] for row in rows] == [str(i) for i in range(len(names))]


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_every_table_of_every_experiment_is_csv(path):
    """As many rows as are printed, and nothing but numbers where numbers are printed."""
    found = [line for line in views.tables(results.load(path)) if is_table(line)]
    assert found
    for table in found:
        frame = pd.read_csv(io.StringIO(csv_text(table)))
        assert len(frame) == table.row_count
        assert len(set(frame.columns)) == len(frame.columns)
        for column in table.columns[1:]:
            name = str(column.header)
            if len(frame) and not column.words and name in frame and path.stem not in ("compare", "reproduce"):
                assert frame[name].dtype.kind in "iuf", (name, frame[name])


def test_csv_of_a_run_is_its_result_to_the_last_digit():
    result = results.load(GAP)
    (table,) = filter(is_table, views.tables(result))
    rows = {row["tokens"]: row for row in rows_of(csv_text(table))}
    for pool in ("unexposed", "ordinary"):
        at = result.summary.sel(pool=pool, definition="inducible", part="second", measure="log_prob")
        row = rows[f"blocks of {pool}"]
        heading = "second half, 95% interval"
        for bound, name in (("mean", heading), ("low", f"{heading} low"), ("high", f"{heading} high")):
            assert float(row[name]) == float(at.sel(bound=bound))


def test_csv_rows_of_a_comparison_name_their_heading():
    """Also where the line above it holds nothing: two lines of the same words could not be distinguished."""
    result = results.load(HERE / "data" / "results_of_0.1" / "compare.nc")
    result["heads"][:] = "-"
    (table,) = filter(is_table, views.tables(result))
    assert [cell.plain for cell in table.columns[0].cells].count("    score of the best") == 2
    quantities = [row["quantity"] for row in rows_of(csv_text(table))]
    assert len(set(quantities)) == len(quantities)
    assert {"induction heads: score of the best", "previous heads: score of the best"} < set(quantities)
    printed = [cell.plain for cell in table.columns[0].cells]
    assert printed[printed.index("    score of the best") - 1] == "induction heads"


# --- the command line -------------------------------------------------------------------------------------------------


def test_show_prints_csv_and_nothing_else_and_writes_nothing(stored):
    before = sorted(stored.iterdir())
    done = CliRunner().invoke(app, ["show", str(stored), "--csv"])
    assert done.exit_code == 0, done.output
    (table,) = filter(is_table, views.tables(results.load(stored)))
    assert done.stdout == csv_text(table)
    assert "Ordinary tokens" in done.stderr
    assert sorted(stored.iterdir()) == before


def test_several_tables_are_separated_by_an_empty_line():
    stored = HERE / "data" / "results_of_0.1" / "undertrained.nc"
    done = CliRunner().invoke(app, ["show", str(stored), "--csv"])
    parts = done.stdout.split("\n\n")
    assert [part.split(",")[0] for part in parts] == ["tokens", "detector", "token"]
    assert all(len(rows_of(part)) > 1 for part in parts)


def test_show_writes_tables_to_the_out_folder(stored, tmp_path):
    done = command("show", stored, "--csv", "--format", "html", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["figure.html", "table_1.csv"]
    assert f"table:  {tmp_path / 'out' / 'table_1.csv'}" in done.output


@pytest.mark.experiment
def test_every_verb_that_prints_a_table_writes_it_as_csv(tmp_path):
    """Also with options before the experiment's name."""
    for words, heading in (
        (["run", "--csv", "--format", "html", "attention_scores", "--model", "wired", "--pool", "1:40"], "pool"),
        (["census", "--csv", "--format", "html", "--model", "wired"], "kind"),
        (["check", "wired", "--csv", "--format=html"], "identity"),
        (["argmaxability", "--model", "wired", "--csv", "--format", "html"], "tokens"),
    ):
        out = tmp_path / words[0]
        done = command(*words, "--out", out)
        assert done.exit_code == 0, done.output
        assert (out / "table_1.csv").read_text().partition(",")[0] == heading
        assert not list(out.glob("*.png"))


@pytest.mark.browser
@pytest.mark.skipif(NO_BROWSER, reason="no browser is installed")
def test_figures_as_svg_and_pdf(stored):
    done = command("show", stored, "--format", "svg", "--format", "pdf")
    assert done.exit_code == 0, done.output
    for name in ("log_prob_by_position", "halves"):
        svg = (stored / f"{name}.svg").read_text()
        assert svg.startswith("<svg")
        assert "second half" in svg  # text that can be searched and edited, not outlines
        assert (stored / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert f"{stored / name}.svg" in done.output
        assert not (stored / f"{name}.png").exists()


def _no_browser(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("\nKaleido requires Google Chrome to be installed.\n\nEither ...")

    monkeypatch.setattr(plotly.io, "write_images", missing)


@pytest.mark.process
def test_requested_images_that_cannot_be_drawn_get_a_one_line_message(stored, monkeypatch):
    _no_browser(monkeypatch)
    done = command("show", stored, "--format", "svg", "--csv", "--out", stored)
    assert done.exit_code == 1
    assert (
        "interp: no svg (Kaleido requires Google Chrome to be installed): pip install 'interp[figures]' and install "
        "Chrome or Chromium, or ask for --format html" in done.output
    )
    assert "Traceback" not in done.output
    # all else is there
    assert {path.name for path in stored.iterdir()} == {"result.nc", "figure.html", "table_1.csv"}
    assert f"result: {stored}" in done.output
    # and where no format was requested, images are left out as before
    done = command("show", stored)
    assert done.exit_code == 0
    assert not list(stored.glob("*.png"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", GAP, "--format", "bmp"], "'bmp': use html, png, svg, pdf"),
        (["run", "repeated_tokens", "--format", "bmp"], "--format 'bmp': use html, png, svg, pdf"),
        (["run", "repeated_tokens", "--format"], "--format needs a format"),
        (["show", GAP, "--json", "--csv"], "use only one of them"),
        (["show", GAP, "--csv", "--format", "svg"], "use only one of them, or give an --out"),
    ],
)
def test_invalid_formats_are_refused_before_anything_runs(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = command(*words)
    assert done.exit_code not in (0, None)
    assert said in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_a_result_without_a_table_is_reported_as_such(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(views, "tables", lambda *_: iter(["a sentence"]))
    done = CliRunner().invoke(app, ["show", str(stored), "--csv"])
    assert (done.exit_code, done.stdout) == (0, "")
    assert "no CSV" in done.stderr


def test_tables_cannot_be_written_below_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InterpError, match=r"cannot write to .*: choose another --out"):
        pages.write_tables([table_of("pool")], tmp_path / "file" / "below")


def test_a_parameter_named_like_an_option_of_run_is_refused(wired):
    def mine(model, tokens, *, format="text"):
        """An experiment."""

    with pytest.raises(InterpError, match="'format' is a parameter of run itself"):
        interp.run(mine, wired, ["1:40"])


# --- files next to a result -------------------------------------------------------------------------------------------


def _export(folder, names=("halves.pdf", "halves.svg", "table_1.csv", "table_2.csv")):
    for name in names:
        (folder / name).write_text("exported")
    return {*names}


@pytest.mark.process
def test_exports_stay_next_to_their_result(stored):
    assert command("show", stored, "--format", "html").exit_code == 0
    made = _export(stored)
    assert command("show", stored, "--format", "html").exit_code == 0
    assert made <= set(os.listdir(stored))


@pytest.mark.process
def test_exports_are_removed_next_to_another_result(stored):
    assert command("show", stored, "--format", "html").exit_code == 0
    made = _export(stored)
    mine = _export(stored, ["table_4.csv", "table_of_mine.csv", "mine.pdf"])
    record = results.provenance(results.load(stored)) | {"seed": 7}
    results.save(results.load(stored).assign_attrs(provenance=json.dumps(record)), stored / "result.nc")
    assert command("show", stored, "--format", "html").exit_code == 0
    left = set(os.listdir(stored))
    assert not made & left
    assert mine <= left


def test_fewer_tables_than_before_leave_no_stale_files(tmp_path):
    tables = [table_of("pool"), table_of("head")]
    assert [path.name for path in pages.write_tables(tables, tmp_path)] == ["table_1.csv", "table_2.csv"]
    pages.write_tables(tables[1:], tmp_path)
    assert os.listdir(tmp_path) == ["table_1.csv"]
    assert (tmp_path / "table_1.csv").read_text() == "head\n"


# --- how long results stay readable -----------------------------------------------------------------------------------


@pytest.mark.experiment
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_results_open_in_plain_xarray(path):
    with xr.open_dataset(path, engine="h5netcdf") as plain:
        plain.load()
    record = json.loads(plain.attrs["provenance"])
    assert "schema" not in record  # the first has no such entry
    assert not any(re.fullmatch(r"dim_\d+", str(dim)) for dim in plain.dims)


@pytest.mark.parametrize("folder", ["repeated_tokens", "induction_heads", "undertrained", "census", "argmaxability"])
def test_stored_results_of_the_gallery_are_shown(folder, tmp_path):
    """Most were stored by version 0.1, with the first schema."""
    done = command("show", HERE.parent / "figures" / folder, "--format", "html", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert "not available for this result" not in done.output
    assert (tmp_path / "figure.html").is_file()


@pytest.mark.process
@pytest.mark.parametrize("schema", [results.SCHEMA + 1, "next"])
def test_a_result_of_a_newer_schema_is_refused_in_a_line_that_names_the_remedy(schema, stored):
    record = results.provenance(results.load(stored)) | {"schema": schema, "versions": {"interp": "9.1.0"}}
    results.save(results.load(stored).assign_attrs(provenance=json.dumps(record)), stored / "result.nc")
    done = command("show", stored)
    assert done.exit_code == 1
    (line,) = done.output.splitlines()
    assert line.startswith(f"interp: {stored / 'result.nc'} has schema {schema}, of interp 9.1.0, and this release")
    assert f"reads up to {results.SCHEMA}: pip install --upgrade interp, or open it with xarray.open_dataset" in line
