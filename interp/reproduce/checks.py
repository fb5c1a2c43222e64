"""What comes out here of what was published? Runs each experiment once and compares every value."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from interp import kept, results
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
    goes on after an interruption; kept results are used as long as model, code and parameters are the same.
    Writes `out/result.nc`. `said` is told what is being run. Raises `InterpError` for a mistake in the file, before
    anything is run, and for a model that cannot be had.
    """
    published = read_values(values)
    asked = published.model if model is None else model
    bridge = load(asked, device=device, dtype=dtype) if isinstance(asked, str | Path) else asked
    folder = writable(out)
    needed = [name for name in published.runs if any(check.run == name for check in published.checks)]
    found: dict[str, _Read] = {}
    for i, name in enumerate(needed):
        one = published.runs[name]
        question = kept.about(one.experiment, bridge, pools=one.pools, options={"seed": seed, **one.parameters})
        there = kept.answered(folder / name, question) is not None
        said(
            f"{i + 1} of {len(needed)}, {name} ({one.experiment}): {'kept from an earlier run' if there else 'running'}"
        )
        result = kept.answer(folder / name, question, partial(_run, name, one, bridge, folder / name, seed))
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


def _run(name: str, one: Run, model: TransformerBridge, folder: Path, seed: int) -> None:
    pools = list(one.pools) if one.pools is not None else None
    try:
        run(one.experiment, model, pools, out=folder, **{"seed": seed, **one.parameters})
    except InterpError as error:
        raise InterpError(f"run '{name}': {error}") from error
