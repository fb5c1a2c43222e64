"""How often does each token occur in a text, and do those that are detected as under-trained occur at all?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from interp.errors import InterpError
from interp.experiments.occurrences import streaming
from interp.experiments.occurrences.streaming import Place
from interp.models import exposure_of, needed_tokenizer
from interp.organisms.corpus import corpus
from interp.pool_names import pools, vocabulary_size
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.statistics import BOUNDS, binomial_interval
from interp.undertrained import DEFAULT, detected, model_indicators, populations
from interp.vocabulary import census

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

GROUPS = ("detected", "control", "other text", "no text")
HELD_OUT = "the held-out part of the Python standard library"
_PART = 1 << 25  # characters after which counts are stored
_COMMON = 0.5  # share of the control that must occur for a text to be long enough


def occurrences(
    model: TransformerBridge,
    keep: Keep = at_once,
    *,
    text: list[str] | str = "",
    indicator: str = DEFAULT,
    seed: int = 0,
) -> xr.Dataset:
    """Count every token of the vocabulary in a text, and compare detected tokens with size-matched controls.

    Files are counted as if each were tokenized whole. The control is as many ordinary tokens with texts of equal
    length.

    Args:
        model: any loaded model with a tokenizer and raw weights.
        keep: stores what is counted, file by file and within large ones.
        text: UTF-8 files (default: a part of the Python standard library that no bundled model was trained on).
        indicator: what decides which tokens are detected as under-trained; low values are suspicious.
        seed: decides which tokens are the control.

    Returns:
        `count` [token]; `value` [token], the indicator (NaN where nothing can be detected: attribute `not_tested`).
        Coordinates `text`, `group_of` (detected, control, other text, no text) and, if known, `exposure`. `occurring`
        [group bound], the share of a group's tokens that occur, with an exact 95% interval; `group_size` [group];
        `of_text` [group], the share of the text. The attribute `frequency_limit` bounds the frequency of a token that
        does not occur.

    Raises:
        InterpError: a file cannot be read or is not UTF-8, the text is empty, or the model has no tokenizer or no rows
            for the text's tokens.

    Source:
        Clopper and Pearson 1934, The Use of Confidence or Fiducial Limits, for the intervals.

    Example:
        >>> result = interp.run("occurrences", "organism", text=interp.__file__)
        >>> int(result["count"].sum()) == int(result.attrs["tokens"])
        True
    """
    tokenizer = needed_tokenizer(model, "counting tokens in a text")
    rows = vocabulary_size(model)
    files = [text] if isinstance(text, str) else list(text)
    if files in ([""], []):
        files = []
        parts = [keep(HELD_OUT, partial(_held_out, tokenizer, rows))]
    else:
        parts = [part for file in files for part in _of_file(tokenizer, file, rows, keep)]
    count = np.sum([part["count"].values for part in parts], axis=0)
    if not count.sum():
        raise InterpError(f"{', '.join(files) or 'the text'} holds no token: give a text that is not empty")
    table = census(model)
    group, value, unknown = _groups(model, indicator, seed)
    coords: dict[str, Any] = {"token": np.arange(rows), "group_of": ("token", group)}
    coords["text"] = ("token", table["text"].to_numpy(dtype=object)[:rows])
    known = exposure_of(model)
    if known is not None:
        coords["exposure"] = ("token", np.array(known.total))
    sizes = np.array([(group == name).sum() for name in GROUPS])
    seen = np.array([((group == name) & (count > 0)).sum() for name in GROUPS])
    of_text = np.array([count[group == name].sum() / count.sum() for name in GROUPS])
    by_group = {"group": list(GROUPS), "bound": list(BOUNDS)}
    occurring = binomial_interval(seen, sizes).T
    data = {
        "count": label("count", count, "token", coords),
        "value": label("value", value, "token", coords),
        "occurring": label("occurring", occurring, "group bound", by_group),
        "group_size": label("group_size", sizes, "group", by_group),
        "of_text": label("of_text", of_text, "group", by_group),
    }
    return xr.Dataset(data).assign_attrs(
        tokens=int(count.sum()),
        bytes=sum(map(_size, files)) if files else _held_out_size(),
        files=", ".join(files) or HELD_OUT,
        indicator=indicator,
        not_tested=unknown,
        frequency_limit=float(-np.log(0.05) / count.sum()),
        verdict=verdict(occurring[0], occurring[1], unknown),
    )


def verdict(found: Sequence[float] | np.ndarray, control: Sequence[float] | np.ndarray, unknown: str = "") -> str:
    """Do detected tokens occur less often than their control? In words, where the text is long enough to decide.

    Args:
        found: of the detected tokens, the share that occurs, and its interval.
        control: the same of as many ordinary tokens.
        unknown: why none could be detected.
    """
    if unknown:
        return f"not testable: {unknown}"
    if not np.isfinite(found[0]):
        return "no token is detected, so there is nothing to look for"
    if not control[1] > _COMMON:
        shown = f"{control[0]:.0%} ({control[1]:.0%} .. {control[2]:.0%})" if np.isfinite(control[0]) else "none known"
        few = f"too few ordinary tokens of matched length occur in this text ({shown})"
        return f"not testable: {few}; give a longer one"
    shown = f"{found[0]:.0%} of the detected tokens occur ({found[1]:.0%} .. {found[2]:.0%})"
    against = f"{control[0]:.0%} of matched ordinary ones ({control[1]:.0%} .. {control[2]:.0%})"
    if found[2] < control[1]:
        return f"{shown}, and {against}: detected tokens occur less often"
    if found[1] > control[2]:
        return f"{shown}, and {against}: detected tokens occur more often"
    return f"{shown}, and {against}: no significant difference"


def _groups(model: TransformerBridge, indicator: str, seed: int) -> tuple[np.ndarray, np.ndarray, str]:
    """The group and the indicator's value of each token, and why nothing could be detected, or ""."""
    text, _ = populations(census(model))
    rows = vocabulary_size(model)
    group = np.where(text[:rows], GROUPS[2], GROUPS[3]).astype(object)
    try:
        values = model_indicators(model)
        if indicator not in values:
            raise InterpError(f"unknown indicator '{indicator}': this model has {', '.join(values)}")
        found = detected(model, indicator)
    except InterpError as error:
        if "unknown indicator" in str(error):
            raise
        return group, np.full(rows, np.nan), str(error)
    if found:
        spec = ",".join(map(str, found))
        try:
            control = pools(f"control({spec})", model, seed=seed)[0].ids
        except InterpError:  # too few others: the verdict says that none are known
            control = ()
        group[list(control)] = GROUPS[1]
        group[list(found)] = GROUPS[0]
    return group, np.asarray(values[indicator])[:rows], ""


def _held_out(tokenizer: Any, rows: int) -> xr.Dataset:
    """The tokens of all held-out files."""
    counts = np.zeros(rows, dtype=np.int64)
    for text in track(corpus().heldout, "counting tokens"):
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        streaming.add(counts, np.array(ids, dtype=np.int64))
    return _part(counts, None)


def _held_out_size() -> int:
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in corpus().heldout)


def _of_file(tokenizer: Any, file: str, rows: int, keep: Keep) -> list[xr.Dataset]:
    """The counts of a file, part by part."""
    place: Place | None = Place()
    size = _size(file)
    found: list[xr.Dataset] = []
    while place is not None:
        what = f"{file} from byte {place.byte}"
        found.append(keep(what, partial(_count_part, tokenizer, file, place, rows, size)))
        byte, skip = (int(found[-1][name]) for name in ("next_byte", "next_skip"))
        place = None if byte < 0 else Place(byte, skip)
    return found


def _size(file: str) -> int:
    try:
        return Path(file).stat().st_size
    except OSError as error:
        raise InterpError(f"cannot read {file} ({error.strerror or error}): give a UTF-8 text file") from error


def _count_part(tokenizer: Any, file: str, place: Place, rows: int, size: int) -> xr.Dataset:
    windows = -(-min(size - place.byte, 4 * _PART) // streaming.WINDOW)  # a part has up to four bytes a character
    texts = track(streaming.pieces(file, place.byte), f"counting tokens of {file}", total=windows)
    encode = streaming.encoder(tokenizer)
    if encode is None:  # a Python tokenizer, which does not report offsets: a whole file at once
        text = "".join(texts)
        ids = np.array(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
        counts, after = np.zeros(rows, dtype=np.int64), None
        streaming.add(counts, ids)
    else:
        counts, after = streaming.counted(encode, texts, place, rows=rows, most=_PART)
    return _part(counts, after)


def _part(counts: np.ndarray, after: Place | None) -> xr.Dataset:
    """The counts of a part of a text, and where to continue."""
    values = {"next_byte": -1, "next_skip": -1}
    if after is not None:
        values = {"next_byte": after.byte, "next_skip": after.skip}
    scalars = {name: label(name, np.int64(value), "") for name, value in values.items()}
    return xr.Dataset({"count": label("count", counts, "token"), **scalars})
