"""How long does a pass over all classes take, how far along is it, and what is kept when it is interrupted?"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from interp.argmax import verification
from interp.files import replacing
from interp.progress import announce, track

_PART = 2e12  # products in a part: a minute on one core
_TRIED = 256  # states that are timed to estimate the whole pass


def leads_in_parts(
    rows: np.ndarray, bias: np.ndarray | None, ids: np.ndarray, states: np.ndarray, what: str, parts: Path | None
) -> tuple[np.ndarray, np.ndarray]:
    """Measure leads as `verification.leads` does, part by part.

    A pass of several parts is announced with its expected duration, extrapolated from a few states.

    Args:
        rows: [class d_model].
        bias: [class], or None.
        ids: [n] the classes to measure.
        states: [n d_model].
        what: a description to show while it runs.
        parts: a folder in which the finished parts of a longer pass are kept, so that it can resume; None: not kept.

    Returns:
        The lead [n], and a bound on its rounding error [n].
    """
    size = max(_TRIED, int(_PART / rows.size))
    starts = range(0, len(ids), size)
    if len(starts) < 2:
        lead, error, _ = verification.leads(rows, bias, ids, states)
        return lead, error
    began = time.monotonic()
    verification.leads(rows, bias, ids[:_TRIED], states[:_TRIED])
    announce(what, (time.monotonic() - began) * len(ids) / _TRIED)
    key = key_of(rows, bias)
    found = np.empty((2, len(ids)))
    for start in track(starts, what, total=len(starts)):
        part = slice(start, start + size)
        path = None if parts is None else parts / f"leads-{key_of(ids[part], states[part])}-{key}.npy"
        known = None if path is None else _known(path, len(ids[part]))
        if known is None:
            known = np.stack(verification.leads(rows, bias, ids[part], states[part])[:2])
            if path is not None:
                with replacing(path) as temporary:
                    np.save(temporary, known)
        found[:, part] = known
    return found[0], found[1]


def _known(path: Path, count: int) -> np.ndarray | None:
    """What an earlier call measured; a damaged file is ignored."""
    with suppress(Exception):  # of many kinds
        known = np.load(path)
        return known if known.shape == (2, count) else None
    return None


def key_of(*arrays: np.ndarray | None) -> str:
    """A cache key for the contents of arrays."""
    digest = hashlib.sha256()
    for values in arrays:
        digest.update(b"" if values is None else np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()[:16]
