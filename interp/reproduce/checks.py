"""Which published values are reproduced? Runs each experiment once and compares every value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import xarray as xr

from interp import cache, results
from interp.errors import InterpError
from interp.files import writable
from interp.models import origin
from interp.reproduce.readers import READERS
from interp.reproduce.values import Check, Source, read_values
from interp.runner import load_as_asked, run_request

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ROUNDING = 1e-9  # relative to the larger number: decimal fractions are not exact


def no_log(line: str) -> None:
    """Tell nobody."""


def reproduce(
    values: str | Path = "gpt2",
    *,
    out: str | Path,
    model: TransformerBridge | str | None = None,
    seed: int = 0,
    fresh: bool = False,
    log: cache.Log = no_log,
    **loading: Any,
) -> xr.Dataset:
    """Run the published experiments on a model and compare the results with the published values.

    Each experiment is run once and kept in `out/RUN`, so that the same command resumes after an interruption; stored
    results are reused as long as model, code and parameters are the same.

    Args:
        values: the name of a bundled file (gpt2), or the path of one.
        out: the folder for `result.nc`, with a subfolder for each run.
        model: a loaded model, or the name of one, instead of the file's.
        seed: determines every random draw that the file leaves open.
        fresh: run again what is stored in `out`.
        log: receives one line for each experiment being run.
        **loading: loading options as in `interp.load`, if the model is loaded here: `dtype="bfloat16"`.

    Returns:
        `published`, `ours`, their `difference` (ours minus published), its `tolerance`, and whether ours `passed`
        [check]. A published value is `reproduced` [check] if it passed, or if its source allows another reading for
        which all dependent checks passed. For a list of heads or tokens, `published` is the number it names, `ours` the
        number of these found, and `tolerance` the number that may be missing; `published_text` and `ours_text` name
        them. On the scale `log10`, difference and tolerance are in decades. What cannot be measured is NaN and does not
        pass.

    Raises:
        InterpError: there is a mistake in the file (before anything is run), or the model is not available.
    """
    published = read_values(values)
    asked = published.model if model is None else model
    if loading and not isinstance(asked, str | Path):
        raise InterpError(f"this model is loaded already: leave {min(loading)} out, or give a name instead")
    bridge = load_as_asked(str(asked), **loading) if isinstance(asked, str | Path) else asked
    folder = writable(out)
    needed = [name for name in published.runs if any(check.run == name for check in published.checks)]
    found: dict[str, _Read] = {}
    for i, name in enumerate(needed, start=1):
        request = published.runs[name]
        if request.seed is None and request.drawing.protocol == "default":  # other protocols set their own
            request = request.model_copy(update={"seed": seed})
        log(f"{i} of {len(needed)}, {name} ({request.experiment})")
        try:
            with cache.runs_below(folder):
                result = run_request(request, bridge, out=folder / name, fresh=fresh, log=log)
        except InterpError as error:
            raise InterpError(f"run '{name}': {error}") from error
        for check in published.checks:  # immediately, so that results need not be kept in memory
            if check.run == name:
                found[check.id] = _compared(check, result)
    dataset = _dataset(published.checks, [found[check.id] for check in published.checks], published.sources)
    record = {
        "experiment": "reproduce",
        "parameters": {"values": published.name, "seed": seed},
        "model": origin(bridge),
        "seed": seed,
        "versions": results.versions(),
        "title": published.title,
        "values": published.name,
        "values_sha256": published.sha256,
        "runs": {name: published.runs[name].to_json() for name in needed},
        "sources": {key: [source.citation, source.url] for key, source in published.sources.items()},
        "left_out": published.left_out,
        "regression": published.regression,
    }
    dataset = results.stamp(dataset, record)
    results.save(dataset, folder / "result.nc")
    return dataset


class _Read(NamedTuple):
    """Our value next to the published one."""

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
            f"check '{check.id}': '{check.read}' cannot read run '{check.run}' ({type(error).__name__}: {said}): fix "
            "its arguments, or read another run"
        ) from error
    wanted = check.published
    if isinstance(wanted, tuple):
        hits = len(set(wanted) & set(ours))
        missing = float(hits - len(wanted))
        passed = -missing <= check.allowed
        return _Read(len(wanted), hits, missing, passed, " ".join(wanted), " ".join(ours) or "none")
    difference = ours - wanted
    if check.scale == "log10":
        difference = float(np.log10(ours) - np.log10(wanted)) if ours > 0 else float("nan")
    slack = check.allowed + _ROUNDING * max(abs(ours), abs(wanted))
    return _Read(wanted, ours, difference, bool(abs(difference) <= slack), f"{wanted:.8g}", f"{ours:.4g}")


def _reproduced(checks: tuple[Check, ...], passed: list[bool]) -> np.ndarray:
    """Whether each value [check] is reproduced: its check passed, or all checks of another reading did."""
    of_reading: dict[tuple[str | None, str | None], list[bool]] = {}
    for check, one in zip(checks, passed, strict=True):
        of_reading.setdefault((check.question, check.reading), []).append(one)
    settled = {question for (question, _), those in of_reading.items() if question is not None and all(those)}
    return np.array([one or check.question in settled for check, one in zip(checks, passed, strict=True)])


def _dataset(checks: tuple[Check, ...], read: list[_Read], sources: Mapping[str, Source]) -> xr.Dataset:
    # float64: values published with ten digits must not be rounded before the comparison
    kinds: dict[str, Any] = {"passed": bool, "published_text": object, "ours_text": object}
    data = {
        name: ("check", np.array([getattr(one, name) for one in read], dtype=kinds.get(name, np.float64)))
        for name in _Read._fields
    }
    data["tolerance"] = ("check", np.array([check.allowed for check in checks]))
    coords: dict[str, Any] = {
        name: ("check", np.array([getattr(check, name) for check in checks], dtype=object))
        for name in ("what", "why", "source", "scale", "run")
    }
    coords["citation"] = ("check", np.array([sources[check.source].citation for check in checks], dtype=object))
    for name in ("question", "reading"):
        texts = [getattr(check, name) or "" for check in checks]
        coords[name] = ("check", np.array(texts, dtype=object))
    data["reproduced"] = ("check", _reproduced(checks, [one.passed for one in read]))
    coords["several"] = ("check", np.array([isinstance(check.published, tuple) for check in checks]))
    return xr.Dataset(data, {"check": [check.id for check in checks], **coords})
