"""Does every result get the table and figures of the experiment that made it? Made-up datasets, and users' views."""

import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from hypothesis import HealthCheck, example, given, settings, strategies as st
from rich.console import Console
from rich.text import Text
from typer.testing import CliRunner

import interp
from interp import plots, results, views
from interp.catalog import names
from interp.cli import app
from interp.tables import shortened, table_of
from interp.tokens import Pool

IDS = "444,554,664,774,884,994,1104,1214,1324,1434,1544,1654,1764,1874,1984,2011"


def printed(parts, width=80):
    console = Console(width=width, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.file.getvalue()


def said(dataset, experiment):
    return results.stamp(dataset, {"experiment": experiment, "model": {"name": "mine"}})


# --- any dataset whatever ---------------------------------------------------------------------------------------------

DIMS = ("pool", "batch", "layer", "head", "position", "sender", "odd <b>")
KNOWN = [*names(), *views._ELSEWHERE, "census", "unknown", "os.path", "", None, 3]
VALUES = st.sampled_from(["float", "nan", "inf", "int", "bool", "text", "object", "time", "complex"])
LABELS = st.sampled_from(["none", "range", "float", "same", "text", "mixed", "time"])
VARIABLES = ("effect", "share", "deficit", "pattern", "lost", "score", "count", "verdict", "model", "missing", "a/b c")


def _values(kind, shape, rng):
    size = int(np.prod(shape))
    flat = {
        "float": lambda: rng.normal(size=size),
        "nan": lambda: np.full(size, np.nan),
        "inf": lambda: np.where(rng.random(size) < 0.5, np.inf, -np.inf),
        "int": lambda: rng.integers(-5, 5, size),
        "bool": lambda: rng.random(size) < 0.5,
        "text": lambda: np.array(["<b>[red]\n"] * size, dtype=str),
        "object": lambda: np.array([None, 1, "a", 2.5] * size, dtype=object)[:size],
        "time": lambda: np.datetime64("2024-01-01", "ns") + np.arange(size) * np.timedelta64(1, "D"),
        "complex": lambda: rng.normal(size=size) * 1j,
    }[kind]()
    return flat.reshape(shape)


def _labels(kind, size):
    return {
        "range": lambda: np.arange(size),
        "float": lambda: np.linspace(0, 1, size),
        "same": lambda: ["[/x] the same"] * size,
        "text": lambda: [f"{IDS},{i}" for i in range(size)],
        "mixed": lambda: np.array([None, 1, "a", 2.5] * size, dtype=object)[:size],
        "time": lambda: np.datetime64("2024-01-01", "ns") + np.arange(size) * np.timedelta64(1, "D"),
    }[kind]()


@st.composite
def datasets(draw):
    sizes = draw(st.dictionaries(st.sampled_from(DIMS), st.integers(0, 4), max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    found = {}
    for name in draw(st.lists(st.sampled_from(VARIABLES), max_size=4, unique=True)):
        dims = draw(st.lists(st.sampled_from(sorted(sizes)), unique=True)) if sizes else []
        found[name] = (dims, _values(draw(VALUES), tuple(sizes[d] for d in dims), rng))
    used = {d: sizes[d] for d in sizes if any(d in dims for dims, _ in found.values())}
    kinds = {d: draw(LABELS) for d in used}
    data = xr.Dataset(found, coords={d: _labels(kind, used[d]) for d, kind in kinds.items() if kind != "none"})
    if draw(st.booleans()):
        data = results.stamp(data, {"experiment": draw(st.sampled_from(KNOWN)), "census": draw(st.booleans())})
    return data


@pytest.mark.experiment
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(datasets())
@example(said(xr.Dataset({"effect": (("sender", "batch"), np.ones((2, 3)))}), "path_patching"))
@example(said(xr.Dataset({"share": ("pool", [1.0]), "deficit": ("pool", [1.0])}), "glitch_attribution"))
@example(said(xr.Dataset({"pattern": (("batch", "position"), np.ones((2, 3)))}), "attention_pattern"))
@example(xr.Dataset({"model": 1.0, "missing": 2.0}))
@example(xr.Dataset(attrs={"provenance": "[1, 2"}))
@example(xr.Dataset(attrs={"provenance": "[[1, 2]]"}))
def test_no_dataset_raises(data):
    text = printed(views.tables(data))
    assert max(map(len, text.splitlines()), default=0) <= 80
    for name, figure in views.figures(data).items():
        assert re.fullmatch(r"\w+", name)
        figure.to_json()


@pytest.mark.parametrize(
    "variables", [{"effect": ("sender", "batch")}, {"share": (), "deficit": ()}, {"pattern": ("batch", "position")}]
)
def test_a_users_variable_names_mean_nothing(variables):
    """Defect 1: these were taken for results of path patching, of attribution, and of patterns."""
    sizes = {"sender": 2, "batch": 3, "position": 4}
    result = xr.Dataset({n: (dims, np.ones([sizes[d] for d in dims])) for n, dims in variables.items()})
    result = said(result.expand_dims(pool=["1:65"]), "my_experiment")
    text = printed(views.tables(result))
    assert "not available" not in text
    for name in variables:
        assert f"{name}: mean by pool" in text
        assert "1.0000" in text
    assert set(views.figures(result)) == set(variables)


def test_a_known_view_that_fails_says_why_and_the_plain_one_follows():
    result = said(xr.Dataset({"lost": ("pool", [0.25, 0.5])}, coords={"pool": ["a", "b"]}), "head_ablation")
    lines = printed(views.tables(result)).splitlines()
    assert lines[0].startswith("The table of 'head_ablation' is not available for this result (KeyError")
    assert [line.split() for line in lines if line.strip().startswith(("a ", "b "))] == [
        ["a", "0.2500"],
        ["b", "0.5000"],
    ]
    told = []
    assert list(views.figures(result, log=told.append)) == ["lost"]
    assert len(told) == 1
    assert "'head_ablation'" in told[0]


@pytest.mark.parametrize(
    ("record", "module"),
    [
        ({"experiment": "head_ablation"}, "interp.experiments.head_ablation.view"),
        ({"census": True, "rows": 3}, "interp.experiments.census.view"),
        ({"experiment": "argmaxable"}, "interp.experiments.argmaxability.view"),
        ({"experiment": "organism train"}, "interp.organisms.view"),
        ({"experiment": "compare"}, "interp.compare.view"),
        ({"experiment": "reproduce"}, "interp.reproduce.view"),
        ({"experiment": "my_experiment"}, None),
        ({"experiment": "os"}, None),
        ({"experiment": ["head_ablation"]}, None),
        ({}, None),
    ],
)
def test_the_provenance_names_the_view(record, module):
    """Also that of a result of the first schema, with the names of its time."""
    found = views.view_of(results.upgraded(xr.Dataset(attrs={"provenance": json.dumps(record)})))
    assert getattr(found, "__name__", None) == module


def test_every_experiment_has_a_view():
    for name in names():
        view = views.view_of(said(xr.Dataset(), name))
        assert callable(view.table)
        assert view.FIGURES or name == "check"  # a table alone
        assert all(figure.__doc__ for figure in view.FIGURES)


# --- a user's own view ------------------------------------------------------------------------------------------------

MINE = '''
"""What is mine?"""
import plotly.graph_objects as go
import xarray as xr


def mine(model, tokens):
    """One number."""
    return xr.Dataset({"effect": ("batch", [1.0, 2.0])})


def table(result):
    yield f"the effect is {float(result.effect.mean())} [as it is]"


def my_figure(result):
    return go.Figure(go.Bar(y=result.effect.values.ravel()))


FIGURES = [my_figure, lambda result: None]
'''


@pytest.mark.experiment
def test_a_users_file_brings_its_view_along(tmp_path):
    (tmp_path / "my_file.py").write_text(MINE)
    asked = ["run", f"{tmp_path}/my_file.py:mine", "--model", "wired", "--pool", "1:65", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "the effect is 1.5" in done.output
    assert "mean by pool" not in done.output
    assert 'id="my_figure"' in (tmp_path / "out" / "figure.html").read_text()


def test_a_users_view_that_fails_gives_the_plain_one(tmp_path):
    def broken(result):
        yield "half of it"
        raise ValueError("on purpose")

    result = said(xr.Dataset({"effect": ("batch", [1.0, 2.0])}), "mine")
    text = printed(views.tables(result, SimpleNamespace(table=broken)))
    assert "half of it" not in text
    assert "ValueError: on purpose" in " ".join(text.split())
    assert "1.5000" in text
    told = []
    drawn = views.figures(result, SimpleNamespace(FIGURES=[lambda result: 1 / 0]), log=told.append)
    assert list(drawn) == ["effect"]
    assert "ZeroDivisionError" in told[0]
    # a column that the view lacks comes from the result
    assert "1.5000" in printed(views.tables(result, SimpleNamespace(FIGURES=[go.Figure])))
    assert list(views.figures(result, SimpleNamespace(FIGURES=[lambda result: go.Figure(), lambda result: None]))) == [
        "figure_1"
    ]


def test_functions_of_a_package_view_are_not_a_users_view():
    from interp.catalog import find

    assert views.own_view(find("repeated_tokens")) is None
    assert views.own_view("repeated_tokens") is None


# --- tables are never truncated ---------------------------------------------------------------------------------------


def _row(name):
    return [f"{name}{i}.{i:03d}" for i in range(3)]


def test_a_pool_named_by_sixteen_ids_leaves_room_for_numbers(organism):
    """Defect 5: on 80 columns every number was cut away."""
    result = interp.run("repeated_tokens", organism, [IDS, "ordinary"], batch=4, length=5)
    text = printed(views.tables(result))
    assert max(map(len, text.splitlines())) <= 80
    mean, low, high = (
        float(result.summary.sel(pool=IDS, measure="log_prob", part="second", definition="inducible", bound=b))
        for b in ("mean", "low", "high")
    )
    assert f"{mean:.2f} ({low:.2f} .. {high:.2f})" in text
    assert "(16 ids)" in " ".join(text.split())


def test_thirty_layers_at_eighty_columns():
    layers = [f"layer {i}" for i in range(30)]
    table = table_of("pool", *layers)
    for pool in ("unexposed", "ordinary", IDS):
        table.add_row(pool, *(f"-{i:02d}.{i:02d}" for i in range(30)))
    text = printed([table])
    assert max(map(len, text.splitlines())) <= 80
    words = text.split()
    for i in range(30):
        assert words.count(f"-{i:02d}.{i:02d}") == 3
    assert words.count("unexposed") == words.count("ordinary") > 2  # the labels stand in every part


def test_shortened_names_stay_distinct():
    pools = [f"a_very_long_name_of_a_pool_{middle}_with_the_same_end_as_others" for middle in ("one", "two", "six")]
    table = table_of("pool", "mean, with a long heading", "low", "high")
    for i, pool in enumerate([*pools, pools[0]]):
        table.add_row(pool, *(f"{i}.{k}234567890123" for k in range(3)))
    text = printed([table])
    assert max(map(len, text.splitlines())) <= 80
    for i in range(4):
        assert all(f"{i}.{k}234567890123" in text for k in range(3))
    short = shortened([*pools, pools[0], "plain"], 20)
    assert len(set(short)) == 4
    assert short[0] == short[3]
    assert short[4] == "plain"
    assert len({label for label in plots.labels(pools)}) == 3


def test_lists_of_ids_say_how_many():
    assert shortened([IDS], 30) == ["444,554,…,2011 (16 ids)"]
    assert shortened(["control(" + IDS + ")"], 34) == ["control(444,554,…,2011 (16 ids))"]
    assert shortened(["1,2:12,14,15,300000:300010,7"], 24) == ["1,2:12,…,7 (24 ids)"]
    assert shortened(["1:40"], 3) == ["1…0"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.text(max_size=60), min_size=3, max_size=3), min_size=1, max_size=4),
    st.integers(1, 12),
    st.integers(30, 120),
)
def test_no_number_is_ever_truncated(labels, columns, width):
    table = table_of("a", "b", *(f"measured {i}" for i in range(columns)), "text", words=("b", "text"))
    numbers = []
    for row, (first, second, text) in enumerate(labels):
        cells = [f"{row}{i:02d}.{row}{i:02d}" for i in range(columns)]
        numbers += cells
        table.add_row(first, second, *cells, text)
    shown = printed([table], width)
    assert all(Text(line).cell_len <= width for line in shown.splitlines())
    assert all(number in shown for number in numbers)


def test_tables_narrower_than_a_number_still_show_everything():
    table = table_of("pool", "mean")
    table.add_row("unexposed", "123456789.123456789")
    assert "".join(printed([table], 12).split()) == "pool:unexposedmean:123456789.123456789"


# --- panels in one row, one column, or both ---------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "column"), [("pool", None), (None, "pool"), ("pool", "kind"), (None, None)])
def test_heatmaps_in_one_row_or_one_column(row, column):
    values = interp.label(
        "lost", np.arange(24).reshape(2, 2, 2, 3), "pool kind layer head", {"pool": ["a", "b"], "kind": ["k", "l"]}
    )
    for dim in {"pool", "kind"} - {row, column}:
        values = values.isel({dim: 1})
    figure = plots.heatmaps(values, row=row, column=column, title="", low=0, high=1)
    assert len(figure.data) == int(np.prod([2 for dim in (row, column) if dim]))
    last = values.isel({dim: 1 for dim in (row, column) if dim})
    assert np.array(figure.data[-1].z) == pytest.approx(last.values)
    titles = {a.text for a in figure.layout.annotations} - {"head", "layer"}
    assert titles == {name for dim, pair in (("pool", "ab"), ("kind", "kl")) if dim in (row, column) for name in pair}


@pytest.mark.process
def test_views_load_without_torch():
    modules = ["interp.views", "interp.compare.view", "interp.reproduce.view", "interp.organisms.view"]
    modules += [f"interp.experiments.{name}.view" for name in names()]
    code = f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "loaded = {'torch', 'transformers', 'interp.hooks'} & set(sys.modules)\nassert not loaded, loaded"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_census_is_an_experiment(organism):
    from interp import vocabulary

    result = interp.run("census", organism)
    stored = vocabulary.summary(vocabulary.census(organism))
    xr.testing.assert_equal(result, stored)
    assert list(views.figures(result)) == list(views.figures(stored)) == ["census"]
    for shown in (result, stored):
        text = printed(views.tables(shown), 100)
        assert "The 2,048 tokens of 'organism' (byte-level BPE): can any text produce them?" in text
    assert json.loads(result.attrs["provenance"])["experiment"] == "census"
    with pytest.raises(interp.InterpError, match="leave pools out"):
        interp.run("census", organism, [Pool("a", (1,))])
