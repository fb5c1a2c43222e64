"""Several models side by side: what they copy, which heads do it, why the rest is not copied. Checkpoints of one training run, too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from interp import results
from interp.errors import InterpError
from interp.files import writable
from interp.heads import called
from interp.progress import track
from interp.report.run import kept
from interp.report.sections import sections

ASKED = ("gap", "heads", "causes")


def compare(models: Sequence[str], out: str | Path = "results/compare", *, seed: int = 0) -> xr.Dataset:
    """Run the report's gap, heads and causes on each model, and put them side by side.

    A model is a name as elsewhere, or `name@revision` for a checkpoint on the hub. `copied` [model pool] is the mean log-prob (nats) in the second copy where context
    can tell, `deficit` [model pool] and `share` [model pool stage] are those of `glitch_attribution`, `heads` [model kind] says which are called.
    Pools are compared by name. What is in `out` already is not run again. Raises `InterpError` for fewer than two models, or the same one twice.
    """
    from interp import load
    from interp.models import origin

    if len(models) < 2 or len(set(models)) < len(models):
        raise InterpError("give two models or more, each once: interp compare organism organism-llama")
    folder = writable(out)
    parts = []
    for name in track(list(models), "models", total=len(models)):
        plain, _, revision = name.partition("@")
        model = load(plain, revision=revision or None)
        here = folder / name.replace("/", "--")
        found = {s.name: kept(s, model, here / s.name, seed, origin(model)) for s in sections(model) if s.name in ASKED}
        parts.append(_summary(found))
    data = xr.concat(parts, xr.DataArray(list(models), dims="model", name="model"), join="outer")
    record = {"experiment": "compare", "models": list(models), "seed": seed, "versions": results.versions()}
    result = results.stamp(data, record)
    results.save(result, folder / "result.nc")
    return result


def _summary(found: dict[str, xr.Dataset]) -> xr.Dataset:
    gap, heads, causes = (found[name] for name in ASKED)
    second = gap["log_prob"].where((gap["half"] >= 2) & (gap["offset"] > 0))
    kinds = list(map(str, heads["kind"].values))
    ordinary = heads.isel(pool=-1)
    names = [", ".join(f"L{la}H{h}" for la, h in called(ordinary, kind)) or "-" for kind in kinds]
    return xr.Dataset(
        {
            "copied": second.mean(["batch", "position"]).drop_vars([c for c in second.coords if c not in ("pool",)], errors="ignore"),
            "deficit": causes["deficit"], "share": causes["share"],
            "heads": xr.DataArray(np.array(names), dims="kind", coords={"kind": kinds}),
        }
    ).drop_attrs()  # fmt: skip
