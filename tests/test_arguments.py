"""Does Python accept what the command line accepts, and does every wrong argument get a one-line message? Cases of users, and a property."""

import contextlib
import importlib
import inspect

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings, strategies as st

import interp
from interp import catalog, edges, hooks, plots, results, variables, views
from interp.arguments import takes_what_it_says
from interp.errors import InterpError
from interp.pool_names import pools
from interp.sweep import sweep
from interp.tokens import Pool, Repeated

# modules whose public functions are held to their annotations
MODULES = (
    "blocks", "catalog", "circuits", "edges", "final_norm", "heads", "hooks", "identities.tested", "models.loading", "plots",
    "pool_names", "residual", "results", "runner", "scores", "statistics", "sweep", "texts", "views",
)  # fmt: skip


def checked_functions():
    """Every function with `takes_what_it_says` above it."""
    found = []
    for name in MODULES:
        module = importlib.import_module(f"interp.{name}")
        found += [
            (f"{name}.{n}", f)
            for n, f in vars(module).items()
            if inspect.isfunction(f) and hasattr(f, "__wrapped__") and f.__module__ == module.__name__ and n[0] != "_"
        ]
    return found


@pytest.fixture(scope="module")
def tokens(organism):
    return interp.repeated(organism, "ordinary", batch=2, length=6)


# --- cases -------------------------------------------------------------------------------------------------------------


def test_p1_heads_have_one_parser(organism):
    """Text, lists and pairs are the same heads, wherever heads are asked for."""
    for heads in ("L1H1", "l1h1", ["L1H1"], [(1, 1)], [[1, 1]], np.array([[1, 1]]), {(1, 1): "induction"}):
        assert hooks.parse_heads(organism, heads) == [(1, 1)]
        assert [name for name, _ in hooks.ablate_heads(organism, heads)] == ["blocks.1.attn.hook_z"]
    asked = {"batch": 2, "length": 6, "reference": "20:200"}
    for heads in ("L1H1", ["L1H1"], [(1, 1)]):
        for experiment in ("attention_pattern", "score_attribution"):
            found = interp.run(experiment, organism, "ordinary", heads=heads, **asked)
            assert found.sizes[{"attention_pattern": "component", "score_attribution": "attending"}[experiment]] == 1


def test_p1_hooks_have_one_parser(organism, tokens):
    names = ["blocks.0.attn.hook_z", "blocks.1.attn.hook_z"]
    for given_names in (names, tuple(names), ",".join(names), ", ".join(names)):
        assert hooks.parse_hooks(organism, given_names) == names
        assert list(hooks.record(organism, tokens, given_names)) == names
    with pytest.raises(InterpError, match=r"no hook 'blocks\.0\.attn\.hook_zz': did you mean blocks\.0\.attn\.hook_z"):
        hooks.record(organism, tokens, "blocks.0.attn.hook_zz")


def test_p2_pools_are_taken_in_every_form(organism):
    three = (5, 6, 7)
    for given_pool in (
        [5, 6, 7],
        (5, 6, 7),
        np.array([5, 6, 7]),
        torch.tensor([5, 6, 7]),
        range(5, 8),
        "5:8",
        Pool("x", three),
    ):
        assert pools(given_pool, organism)[0].ids == three
    named = pools({"a": [5, 6, 7], "b": [" the"], "c": "5:8"}, organism)
    assert [pool.name for pool in named] == ["a", "b", "c"]
    found = interp.run("repeated_tokens", organism, {"a": [5, 6, 7], "b": "20:40"}, batch=2, length=3)
    assert found.pool.values.tolist() == ["a", "b"]


def test_p3_own_types_are_taken_by_own_functions(organism, tokens):
    assert isinstance(tokens, Repeated)
    right = sweep(organism, tokens.ids, [[]], torch.from_numpy(tokens.inducible))
    for sequences in (tokens, tokens.ids):
        for read in (tokens.inducible, torch.from_numpy(tokens.inducible), tokens.inducible.tolist()):
            assert torch.equal(sweep(organism, sequences, [[]], read).isnan(), right.isnan())
        assert torch.equal(
            hooks.record(organism, sequences, ["hook_embed"])["hook_embed"],
            hooks.record(organism, tokens.ids, ["hook_embed"])["hook_embed"],
        )


def test_p4_experiments_are_reached_and_run_in_one_way(organism, tokens):
    """By name or as a function, through `run` or called directly, with gradients on."""
    for name in catalog.names():
        assert callable(catalog.find(name))
    assert interp.repeated_tokens is catalog.find("repeated_tokens")
    with torch.enable_grad():
        for name in catalog.names():
            function = catalog.find(name)
            positional = [
                n for n, p in inspect.signature(function).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD
            ]
            if positional[:2] == ["model", "tokens"]:
                called = function(organism, tokens)
                assert isinstance(called, xr.Dataset | xr.DataArray), name
    by_name = interp.run("logit_lens", organism, "ordinary", batch=2, length=6)
    by_function = interp.run(catalog.find("logit_lens"), organism, "ordinary", batch=2, length=6)
    xr.testing.assert_identical(by_name, by_function)


def test_p5_blocks_are_drawn_for_a_model(organism, tiny_gpt2):
    found = interp.repeated(organism, "ordinary", batch=3, length=6)
    assert found.bos == interp.models.bos_id(organism)
    assert found.text is not None
    one = pools("ordinary", organism)[0]
    assert torch.equal(interp.repeated(organism, one, batch=3, length=6).ids, found.ids)
    assert torch.equal(interp.repeated(one, batch=3, length=6, bos=found.bos).ids, found.ids)  # of a pool alone
    assert interp.repeated(organism, one, bos="none", batch=1, length=6).bos is None
    ran = interp.run("repeated_tokens", organism, "ordinary", batch=3, length=6)
    assert (ran.token_id.values[0] == found.ids.numpy()).all()
    for wrong, said in (
        ((one,), "give a model first"),
        ((organism, ["1:5", "5:9"]), "2 are named"),
        ((organism, "nonsense"), "unknown pool 'nonsense'"),
        ((None, "1:5"), "model cannot be None: give a model"),
    ):
        with pytest.raises(InterpError, match=said):
            interp.repeated(*wrong)


def test_p6_pool_names_are_understood_or_the_allowed_characters_are_listed(organism, tmp_path):
    (tmp_path / "mine.txt").write_text("500 501")
    file = str(tmp_path / "mine.txt")
    found = pools([file, f"control({file})", "my-pool=3:9", "control(my-pool)"], organism)
    assert [len(pool) for pool in found] == [2, 2, 6, 6]
    for wrong, said in (("/nonexistent.txt", "no such file"), ("a b=3:9", "a name before '=' has letters")):
        with pytest.raises(InterpError, match=said):
            pools(wrong, organism)


def test_p7_heatmaps_take_one_row_one_column_or_both():
    values = interp.label(
        "x", np.ones((2, 3, 4, 5)), "pool kind layer head", {"pool": ["a", "b"], "kind": ["x", "y", "z"]}
    )
    size = {"title": "t", "low": 0, "high": 1}
    assert len(plots.heatmaps(values, row="pool", column="kind", **size).data) == 6
    assert len(plots.heatmaps(values.isel(kind=0), row="pool", **size).data) == 2
    assert len(plots.heatmaps(values.isel(pool=0), column="kind", **size).data) == 3
    assert len(plots.heatmaps(values.isel(pool=0, kind=0), **size).data) == 1
    for wrong, said in (
        ({"row": "pools"}, "'x' has no dimension 'pools': it has pool, kind, layer, head"),
        ({"row": "pool"}, "'x' has a dimension 'kind' that is not drawn"),
    ):
        with pytest.raises(InterpError, match=said):
            plots.heatmaps(values, **wrong, **size)


@pytest.mark.experiment
def test_p8_every_variable_has_a_description_and_a_unit(organism, tmp_path):
    found = interp.run("attention_scores", organism, "ordinary", batch=2, length=6, out=tmp_path)
    for result in (found, results.load(tmp_path), xr.open_dataset(tmp_path / "result.nc")):
        assert result.score.attrs == {"long_name": "attention to a kind of key", "units": "1"}
        for name, variable in result.variables.items():
            assert variable.attrs["long_name"], name
            assert ("units" in variable.attrs) == (variable.dtype.kind in "fiub"), name
    own = interp.run(
        lambda model, tokens: interp.label("my_size", tokens.ids[:, 0].float(), "batch"), organism, "1:30", batch=2
    )
    assert own.my_size.attrs == {"long_name": "my size", "units": "1"}
    said = found.assign(score=found.score.assign_attrs(units="apples"))
    assert variables.described(said, "attention_scores").score.attrs["units"] == "apples"


@pytest.mark.experiment
def test_p8_every_variable_of_the_gallery_is_described():
    """All that the experiments of this package store is described by name."""
    root = importlib.resources.files("interp").joinpath("..", "figures")
    undescribed = set()
    for path in sorted(root.iterdir()):
        if path.is_dir() and (path / "result.nc").is_file():
            found = results.load(path)
            experiment = str(results.provenance(found).get("experiment", ""))
            undescribed |= {
                (path.name, name)
                for name in found.variables
                if f"{experiment}.{name}" not in variables.VARIABLES and name not in variables.VARIABLES
            }
    assert not undescribed


@pytest.mark.process
def test_p9_an_image_is_as_large_as_its_figure(organism, tmp_path):
    found = interp.run("attention_scores", organism, "ordinary", batch=2, length=6)
    figure = views.figures(found)["head_scores"]
    assert isinstance(figure, plots.Figure)
    try:
        figure.write_image(tmp_path / "figure.svg")
    except Exception as error:
        pytest.skip(f"no browser: {type(error).__name__}")
    text = (tmp_path / "figure.svg").read_text()
    assert f'width="{plots.WIDTH}"' in text
    assert f'height="{figure.layout.height}"' in text
    assert 'width="500"' in figure.to_image("svg", width=500).decode()


# --- the property ------------------------------------------------------------------------------------------------------


class Odd:
    """An object of an unknown type."""

    def __repr__(self):
        return "odd\nobject"


WRONG = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 999), st.floats(allow_nan=True), st.text(max_size=8), st.binary(max_size=3),
    st.lists(st.integers(-2, 3), max_size=3), st.lists(st.text(max_size=3), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.builds(Odd), st.just(np.zeros((2, 2))), st.just(torch.zeros(2, 3)), st.just(torch.zeros(2, 3, dtype=torch.long)), st.just(xr.Dataset()), st.just(xr.DataArray([1.0])), st.just(object),
)  # fmt: skip


def right_arguments(organism, tokens):
    """An argument of the right kind for each name; functions with others are called with wrong ones alone."""
    values = interp.label("x", np.ones((2, 3)), "layer head")
    plain = interp.run("attention_scores", organism, "ordinary", batch=2, length=6)
    return {
        "graph": edges.Graph.of(organism), "edge": 3, "kept": torch.ones(len(edges.Graph.of(organism).edges), dtype=torch.bool),
        "model": organism, "tokens": tokens, "ids": tokens.ids, "layer": 1, "what": "z", "heads": "L1H0", "names": ["hook_embed"], "name": "hook_embed",
        "record": {}, "interventions": [[]], "read": tokens.inducible, "values": values, "result": plain, "dataset": plain, "specs": "1:9", "pool": Pool("p", (1, 2, 3)),
        "pools": [Pool("p", (1, 2, 3))], "dims": "batch", "head": (1, 0), "senders": "L0H0", "other": {}, "rows": {}, "experiment": "logit_lens", "mean": values, "low": 0.0, "high": 1.0,
        "title": "t", "over": "layer", "x": "head", "samples": 4, "folded": organism, "kind": "induction", "found": plain, "seen": {}, "distance": 2, "function": len, "text": "a text",
    }  # fmt: skip


@pytest.fixture(scope="module")
def known(organism, tokens, tmp_path_factory):
    """In a folder of its own: wrong names of files are right ones for what writes."""
    with contextlib.chdir(tmp_path_factory.mktemp("arguments")):
        yield right_arguments(organism, tokens)


SLOW = {
    "runner.run",
    "runner.run_request",
    "loading.load",
    "views.show",
    "plots.titled",
}  # tried below with kinds alone


def refuse_or_run(name, function, arguments):
    """Call it: a value, an `InterpError` of one line, or a TypeError of a missing argument. Nothing else."""
    said, missing = "one line", "missing a required argument"
    try:
        with torch.no_grad():
            found = function(**arguments)
            if inspect.isgenerator(found):
                list(found)
    except InterpError as error:
        said = str(error)
    except TypeError as error:
        missing = str(error)
    assert said, name
    assert "\n" not in said, (name, said)
    assert "missing a required argument" in missing, (name, arguments, missing)


FUNCTIONS = checked_functions()


def test_the_public_functions_are_checked():
    names = {name for name, _ in FUNCTIONS}
    assert {
        "hooks.record",
        "hooks.patch",
        "sweep.sweep",
        "runner.run",
        "models.loading.load",
        "edges.written",
        "scores.score_terms",
    } <= names
    assert len(FUNCTIONS) > 100
    for name, function in FUNCTIONS:
        assert function.__doc__, name


@pytest.mark.experiment
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_wrong_argument_is_a_raw_exception(known, data):
    """One argument of a public function is wrong, or all of them are."""
    name, function = data.draw(
        st.sampled_from([f for f in FUNCTIONS if not f[0].startswith(("runner", "models", "identities"))])
    )
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    arguments = {p.name: known[p.name] for p in parameters if p.name in known and p.default is p.empty}
    for parameter in (
        data.draw(st.lists(st.sampled_from(parameters), min_size=1, max_size=2, unique_by=lambda p: p.name))
        if parameters
        else ()
    ):
        arguments[parameter.name] = data.draw(WRONG)
    refuse_or_run(name, function, arguments)


@pytest.mark.parametrize("argument", [None, 3, 1.5, [], {}, b"x", object(), Odd()])
def test_run_and_load_refuse_in_one_line(organism, argument):
    for call in (
        lambda: interp.run(argument, organism, "1:9"),
        lambda: interp.run("logit_lens", argument, "1:9"),
        lambda: interp.load(argument),
        lambda: interp.show(argument),
        lambda: interp.run(
            "logit_lens", organism, "1:9", batch=2, length=argument if argument is not None and argument != 3 else "x"
        ),
        lambda: interp.run(
            "logit_lens", organism, "1:9", seed=argument if argument is not None and argument != 3 else "x"
        ),
    ):
        with pytest.raises(InterpError) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_missing_argument_is_a_type_error():
    @takes_what_it_says
    def add(one: int, other: "int | None" = None, *, names: "list[str] | tuple[str, ...]" = ()) -> int:
        """Add."""
        return one + (other or 0)

    assert add(1) == 1
    assert add(np.int64(1), other=2) == 3
    for call in (lambda: add(), lambda: add(1, third=3)):
        with pytest.raises(TypeError):
            call()
    for call, said in (
        (lambda: add("1"), "add: one cannot be '1': give a whole number"),
        (lambda: add(True), "add: one cannot be True: give a whole number"),
        (lambda: add(1, Odd()), "add: other cannot be an Odd: give a whole number"),
        (lambda: add(1, names=["a", 3]), r"add: names cannot be \['a', 3\]: give a list of texts"),
        (lambda: add(1, names="a"), "add: names cannot be 'a': give a list of texts"),
    ):
        with pytest.raises(InterpError, match=said):
            call()
