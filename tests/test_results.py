"""Do results survive storage, carry their origin, and cannot be mistaken for others?"""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp import results
from interp.errors import InterpError


@pytest.fixture(scope="module")
def result(wired, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    made = interp.run("repeated_tokens", wired, ["1:40", "30:60"], length=10, batch=6, seed=3, out=folder)
    return made, folder


def test_opens_in_plain_xarray(result):
    made, folder = result
    with xr.open_dataset(folder / "result.nc") as plain:
        plain.load()
    assert plain.log_prob.dims == ("pool", "batch", "position")
    assert plain.pool.values.tolist() == ["1:40", "30:60"]
    for name in ("half", "offset", "token_id"):
        assert name in plain.log_prob.coords
    xr.testing.assert_equal(plain.drop_attrs(), made.drop_attrs())
    assert plain.log_prob.dtype == np.float32
    assert plain.log_prob.isel(position=0).isnull().all()


def test_provenance(result):
    record = results.provenance(result[0])
    assert record["experiment"] == "repeated_tokens"
    assert record["model"]["name"] == "wired"
    assert record["model"]["weights"] == "raw"
    assert record["pools"]["1:40"] == {"size": 39, "ids": "1:40", "replacement": False}
    assert record["sequences"] | {"among": 0} == {
        "seed": 3, "batch": 6, "length": 10, "copies": 2, "mixed": False, "bos": 0, "protocol": "default", "among": 0,
        "replacement": None,
    }  # fmt: skip
    assert record["versions"]["torch"] == torch.__version__
    assert len(result[0].attrs) == 1
    json.loads(result[0].attrs["provenance"])


def test_only_the_result_and_its_request_are_left(result):
    assert sorted(p.name for p in result[1].iterdir()) == ["request.json", "result.nc"]


def test_label():
    made = results.label("x", torch.ones(2, 3, dtype=torch.float64, requires_grad=True), "layer head")
    assert made.dtype == np.float32
    assert made.coords["layer"].values.tolist() == [0, 1]
    with pytest.raises(InterpError, match="unknown dimension 'pos': use 'position'"):
        results.label("x", torch.ones(2), "pos")
    with pytest.raises(InterpError, match="name each one"):
        results.label("x", torch.ones(2, 2), "layer")


def test_a_users_dimension_is_declared_by_label_and_a_misspelt_one_refused():
    """Docstrings decide nothing."""
    results.check_dimensions(results.label("x", [1.0], "flavour").to_dataset())
    for name, said in (("layers", "use 'layer'"), ("layr", "did you mean 'layer'"), ("dim_0", "has no name")):
        with pytest.raises(InterpError, match=said):
            results.check_dimensions(xr.Dataset({"x": (name, [1])}))
    with pytest.raises(InterpError, match="did you mean 'position'"):
        results.label("x", [1.0], "positon")


def test_damaged_and_foreign_files(result, tmp_path):
    with pytest.raises(InterpError, match="no result at"):
        results.load(tmp_path)
    whole = (result[1] / "result.nc").read_bytes()
    (tmp_path / "result.nc").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InterpError, match="damaged, or not a result"):
        results.load(tmp_path)
    (tmp_path / "result.nc").write_text("log_prob: high")
    with pytest.raises(InterpError, match="damaged, or not a result"):
        results.load(tmp_path)
    xr.Dataset({"x": 1}).to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    with pytest.raises(InterpError, match="interp did not write"):
        results.load(tmp_path / "foreign.nc")


def test_a_failed_write_leaves_the_old_file(result, tmp_path, monkeypatch):
    path = tmp_path / "result.nc"
    results.save(result[0], path)
    before = path.read_bytes()

    def half(self, target, **_):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", half)
    with pytest.raises(InterpError, match=r"No space left on device.*choose another --out"):
        results.save(result[0], path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["result.nc"]


@pytest.mark.experiment
def test_figures_need_no_torch(result):
    code = f"""
import sys
from interp import results, views
drawn = views.figures(results.load({str(result[1])!r}))
assert list(drawn) == ["log_prob_by_position", "halves"], list(drawn)
list(views.tables(results.load({str(result[1])!r})))
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_texts_of_joined_results_are_not_cut(tmp_path):
    """Defect: joined from loaded parts, all texts were stored as long as those of the first part."""
    parts = []
    for i, text in enumerate(("", "L1H3, L1H1")):
        part = results.stamp(xr.Dataset({"heads": xr.DataArray(np.array(text, dtype=object))}), {"experiment": "x"})
        parts.append(results.load(results.save(part, tmp_path / f"{i}.nc")).drop_attrs())
    both = xr.concat(parts, xr.DataArray([0, 1], dims="checkpoint", name="checkpoint"))
    path = results.save(results.stamp(both, {"experiment": "x"}), tmp_path / "both.nc")
    assert results.load(path)["heads"].values.tolist() == ["", "L1H3, L1H1"]
