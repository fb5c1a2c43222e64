"""What comes out here of what was published? Runs each experiment once and compares every value."""

from __future__ import annotations

import inspect
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from interp import experiments, results
from interp.errors import InterpError
from interp.files import writable
from interp.models import load, origin
from interp.reproduce.readers import READERS
from interp.reproduce.values import Check, Run, read_values
from interp.run import run

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ROUNDING = 1e-9  # of the larger number: decimal fractions are not exact


def reproduce(
    values: str | Path = "gpt2",
    *,
    out: str | Path,
    model: TransformerBridge | str | None = None,
    seed: int = 0,
    device: str | None = None,
    dtype: str = "float32",
    said: Callable[[str], None] = lambda line: None,
) -> xr.Dataset:
    """`published`, `ours`, their `difference`, its `tolerance` and whether ours `passed` [check], for each value.

    `values` is a bundled file (gpt2) or the path of one; `model` (a name, or a loaded model) takes the place of the
    file's. Of a list of heads or tokens, `published` is how many it names, `ours` how many of these were found, and
    `tolerance` how many may be missing; `published_text` and `ours_text` name them. On the scale `log10`, difference
    and tolerance are in decades. What cannot be measured is NaN and has not passed.

    Each experiment is run once, with `seed` where the file gives none, and kept in `out/RUN`, so that the same command
    goes on after an interruption; kept results are used as long as model, code, parameters and versions are the same.
    Writes `out/result.nc`. `said` is told what is being run. Raises `InterpError` for a mistake in the file, before
    anything is run, and for a model that cannot be had.
    """
    published = read_values(values)
    asked = published.model if model is None else model
    bridge = load(asked, device=device, dtype=dtype) if isinstance(asked, str | Path) else asked
    folder = writable(out)
    needed = [name for name in published.runs if any(check.run == name for check in published.checks)]
    checksum = _checksum(bridge)
    found: dict[str, _Read] = {}
    for i, name in enumerate(needed):
        one = published.runs[name]
        key = _key(one, bridge, checksum, seed)
        result = _kept(folder / name, key)
        where = f"{i + 1} of {len(needed)}, {name} ({one.experiment})"
        said(f"{where}: {'running' if result is None else 'kept from an earlier run'}")
        if result is None:
            result = _run(name, one, bridge, folder / name, seed, key)
        for check in published.checks:  # at once, so that a result need not be held
            if check.run == name:
                found[check.id] = _compared(check, result)
    dataset = _dataset(published.checks, [found[check.id] for check in published.checks], published.sources)
    record = {
        "experiment": "reproduce", "title": published.title,
        "values": published.name, "values_sha256": published.sha256,
        "model": origin(bridge), "seed": seed, "versions": results.versions(),
        "sources": {key: [s.citation, s.url] for key, s in published.sources.items()}, "left_out": published.left_out,
    }  # fmt: skip
    dataset = results.stamp(dataset, record)
    results.save(dataset, folder / "result.nc")
    return dataset


class _Read(NamedTuple):
    """Ours beside the published value."""

    published: float
    ours: float
    difference: float
    passed: bool
    published_text: str
    ours_text: str


def _compared(check: Check, result: xr.Dataset) -> _Read:
    try:
        ours: Any = READERS[check.read](result, **check.arguments)
    except InterpError as error:
        raise InterpError(f"check '{check.id}': {error}") from error
    except (KeyError, ValueError, TypeError, IndexError) as error:
        said = (str(error).splitlines() or [""])[0]
        raise InterpError(
            f"check '{check.id}': '{check.read}' cannot read run '{check.run}' ({type(error).__name__}: {said}): mend "
            "its arguments, or read another run"
        ) from error
    if isinstance(check.published, tuple):
        hits = [name for name in check.published if name in ours]
        missing = float(len(hits) - len(check.published))
        passed = len(hits) >= check.minimum
        return _Read(
            len(check.published), len(hits), missing, passed, " ".join(check.published), " ".join(ours) or "none"
        )
    wanted = check.published
    texts = f"{wanted:.8g}", f"{ours:.4g}"
    if check.scale == "log10":
        difference = float(np.log10(ours) - np.log10(wanted)) if ours > 0 else float("nan")
    else:
        difference = ours - wanted
    slack = check.tolerance + _ROUNDING * max(abs(ours), abs(wanted))
    return _Read(wanted, ours, difference, bool(abs(difference) <= slack), *texts)


def _dataset(checks: tuple[Check, ...], read: list[_Read], sources: dict[str, Any]) -> xr.Dataset:
    def words(texts: list[str]) -> tuple[str, np.ndarray]:
        return "check", np.array(texts, dtype=object)

    # float64: what was published with ten digits is not to be rounded before it is compared
    numbers = {
        name: ("check", np.array([getattr(one, name) for one in read], dtype=np.float64))
        for name in ("published", "ours", "difference")
    }
    data: dict[str, Any] = numbers | {
        "tolerance": ("check", np.array([check.tolerance for check in checks])),
        "passed": ("check", np.array([one.passed for one in read])),
        "published_text": words([one.published_text for one in read]),
        "ours_text": words([one.ours_text for one in read]),
    }
    coords: dict[str, Any] = {
        "check": [check.id for check in checks],
        "several": ("check", np.array([isinstance(check.published, tuple) for check in checks])),
        "citation": words([sources[check.source].citation for check in checks]),
    }
    for name in ("what", "why", "source", "scale", "run"):
        coords[name] = words([getattr(check, name) for check in checks])
    return xr.Dataset(data, coords)


def _run(
    name: str, one: Run, model: TransformerBridge, folder: Path, seed: int, key: dict[str, Any] | None
) -> xr.Dataset:
    pools = list(one.pools) if one.pools is not None else None
    try:
        result = run(one.experiment, model, pools, out=folder, **{"seed": seed, **one.parameters})
    except InterpError as error:
        raise InterpError(f"run '{name}': {error}") from error
    if key is not None:
        result = results.stamp(result, results.provenance(result) | {"reproduce": key})
        results.save(result, folder / "result.nc")
    return result


def _key(one: Run, model: TransformerBridge, checksum: str, seed: int) -> dict[str, Any] | None:
    """All that decides a run's numbers; None for a model with hooks, of which nothing can be kept."""
    if any(point.fwd_hooks for point in model.hook_dict.values()):
        return None
    file = inspect.getsourcefile(experiments.find(one.experiment))
    code = zlib.crc32(Path(file).read_bytes()) if file and Path(file).is_file() else one.experiment
    key = {
        "experiment": one.experiment, "code": code, "pools": one.pools, "parameters": {"seed": seed, **one.parameters},
        "model": origin(model), "weights": checksum, "versions": results.versions(),
    }  # fmt: skip
    return dict(json.loads(json.dumps(key)))  # as it will be read back


def _kept(folder: Path, key: dict[str, Any] | None) -> xr.Dataset | None:
    """An earlier run's result, if all that decides it is the same."""
    if key is None:
        return None
    try:
        result = results.load(folder)
    except InterpError:  # none there, or a damaged one
        return None
    return result if results.provenance(result).get("reproduce") == key else None


def _checksum(model: TransformerBridge) -> str:
    """A checksum of the weights as they are now: a model may have been edited since it was loaded."""
    import torch

    total = 0
    for parameter in model.original_model.parameters():
        total = zlib.crc32(parameter.detach().cpu().contiguous().view(torch.uint8).numpy(), total)
    return f"{total:08x}"
