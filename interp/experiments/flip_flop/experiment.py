"""How often does a model misread a register, and why? Errors on the flip-flop language, each with its cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.errors import InterpError
from interp.languages.register import BITS, LENGTH, TRAINED_ON, FlipFlop, flip_flop as drawn
from interp.organisms import flip_flop_lstm
from interp.progress import track
from interp.repairs.last_write import (
    KEYS,
    Contents,
    LastWriteHeads,
    causes,
    check_length,
    last_write_heads,
    looks,
    probabilities,
    register_values,
    repaired,
)
from interp.results import label

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUDGETS = {
    "quick": {"sequences": 512, "examined": 16, "calibration": 32},
    "thorough": {"sequences": 16_384, "examined": 512},
}
NETWORKS = ("transformer", "lstm")
DISTANCES = (2, 4, 16, 64, 128, 256, 384)  # tokens from the last written value: lower edges of bins
WRITES = (1, 2, 4, 8, 16, 32, 64)  # writes so far: lower edges of bins
KEPT = 0.95  # share of right reads that a repair must leave right
_APART = 1_000_000  # number of the first sequence that heads and contents are calibrated on
_ROWS = 8


def flip_flop(
    model: TransformerBridge,
    *,
    p: str = "0.8,0.98,0.1",
    sequences: int = 2048,
    tokens_each: int = 0,
    loss: Literal["clean", "everything"] = "clean",
    examined: int = 64,
    calibration: int = 64,
    least: float = 0.05,
    seed: int = 0,
) -> xr.Dataset:
    """Count the wrong reads of the flip-flop language FFL(p), and find the cause of each.

    A read is wrong where the most likely token is not the last value written. Repairs of matching, content and read-out
    (`interp.repairs.last_write`) say where it fails. The bundled LSTM is the control.

    Args:
        model: a model of the flip-flop language.
        p: which languages, the probabilities of ignore with commas: 0.8 as in training, 0.98 sparse, 0.1 dense.
        sequences: how many of each language.
        tokens_each: tokens in a sequence; 0: 512, or as many as the context has room for.
        loss: what the mean loss is taken over: the values after reads ("clean", as published), or "everything".
        examined: in how many sequences with a wrong read, of each language, causes are sought.
        calibration: how many other sequences, of FFL(0.8), last-write heads and contents are found on.
        least: by how much attention to the last write must exceed that to similar positions for a head to be detected.
        seed: decides the sequences.

    Returns:
        Counts: `reads` [language], `wrong` [language network], and the same by distance to the last write and by number
        of writes. `loss` [language], nats. `attention` and `null` [layer head], from reads to the last write and to
        similar positions. Of every examined read [read]: `margin` (nats, of the register's score over all others), the
        outcome of each repair (1: right), `cause` or `reason`.

    Raises:
        InterpError: the model has another vocabulary, p is not a probability, or sequences do not fit its context.

    Source:
        Liu et al. 2023, Exposing Attention Glitches with Flip-Flop Language Modeling, arXiv 2306.00946.

    Example:
        >>> few = dict(sequences=16, tokens_each=32, examined=4, calibration=8)
        >>> result = interp.run("flip_flop", "wired-flipflop", **few)
        >>> result["wrong"].sum().item()  # the hand-wired model reads every register right
        0.0
    """
    values = register_values(model)
    length = tokens_each or min(LENGTH, int(model.cfg.n_ctx))
    check_length(model, length)
    for name, count in (("sequences", sequences), ("examined", examined), ("calibration", calibration)):
        if count < 1:
            raise InterpError(f"{name} {count}: use a positive integer")
    languages = [drawn(each, batch=sequences, length=length, values=values, seed=seed) for each in probabilities(p)]
    apart = drawn(TRAINED_ON, batch=calibration, length=length, values=values, seed=seed, start=_APART)
    half = max(1, calibration // 2)
    found = last_write_heads(model, replace(apart, ids=apart.ids[:half]), least)
    contents = None
    if found.heads:
        others = replace(apart, ids=apart.ids[half:]) if calibration > 1 else apart
        contents = Contents.of(model, found.heads, others, others.read)
    lstm = flip_flop_lstm() if values == BITS else None
    counted, of_reads = [], []
    for tokens in languages:
        wrong, mean = _wrong_reads(tokens, _of_transformer(model), loss, "reads of the transformer")
        of_lstm = None
        if lstm is not None:
            of_lstm, _ = _wrong_reads(tokens, lstm, loss, "reads of the LSTM")
        counted.append(_counts(tokens, wrong, of_lstm).assign(loss=((), mean)))
        of_reads.append(_examined(model, tokens, wrong, examined, found, contents, seed))
    names = xr.DataArray([tokens.pool for tokens in languages], dims="language", name="language")
    result = xr.merge([xr.concat(counted, names), _heads(model, found), xr.concat(of_reads, "read")])
    result = result.assign_attrs(sequences=sequences, tokens_each=length, values=values, loss=loss)
    result["read"] = np.arange(result.sizes["read"])
    return _judged(result, bool(found.heads))


# --- counting ---------------------------------------------------------------------------------------------------------


def _of_transformer(model: TransformerBridge) -> Callable[[Tensor], Tensor]:
    return lambda ids: model(ids.to(model.cfg.device), return_type="logits", prepend_bos=False)


def _wrong_reads(tokens: FlipFlop, logits_of: Callable[[Tensor], Tensor], loss: str, what: str) -> tuple[Tensor, float]:
    """Which reads are wrong [batch position], and the mean loss (nats)."""
    kept, lost, count = [], 0.0, 0
    size = max(_ROWS, 4096 // tokens.ids.shape[1])
    for part in track(tokens.split(size), f"{tokens.pool}: {what}", total=-(-len(tokens) // size)):
        with torch.no_grad():
            logits = logits_of(part.ids[:, :-1]).float().cpu()
        wrong = torch.zeros_like(part.read)
        wrong[:, 1:] = (logits.argmax(-1) != part.ids[:, 1:]) & part.read[:, 1:]
        kept.append(wrong)
        chosen = part.read[:, 1:] if loss == "clean" else torch.ones_like(part.read[:, 1:])
        lost -= float(logits.log_softmax(-1).gather(-1, part.ids[:, 1:, None])[..., 0][chosen].double().sum())
        count += int(chosen.sum())
    return torch.cat(kept), lost / count


def _counts(tokens: FlipFlop, wrong: Tensor, of_lstm: Tensor | None) -> xr.Dataset:
    """Reads and wrong reads: all, by distance and by number of writes. NaN where there is no LSTM."""
    read = tokens.read
    networks = [wrong[read].numpy(), None if of_lstm is None else of_lstm[read].numpy()]

    def binned(bins: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        return np.bincount(bins, minlength=size), np.array(
            [np.full(size, np.nan) if x is None else np.bincount(bins, weights=x, minlength=size) for x in networks]
        )

    found: dict[str, Any] = {
        "reads": ((), int(read.sum())),
        "wrong": ("network", [np.nan if x is None else float(x.sum()) for x in networks]),
    }
    for name, values, edges in (("distance", tokens.distance, DISTANCES), ("writes", tokens.writes, WRITES)):
        bins = np.digitize(values[read].numpy(), edges) - 1
        reads, by = binned(bins, len(edges))
        found |= {f"reads_by_{name}": (f"{name}_from", reads), f"wrong_by_{name}": (("network", f"{name}_from"), by)}
    coords = {"network": list(NETWORKS), "distance_from": list(DISTANCES), "writes_from": list(WRITES)}
    return xr.Dataset(found, coords)


# --- causes -----------------------------------------------------------------------------------------------------------


def _heads(model: TransformerBridge, found: LastWriteHeads) -> xr.Dataset:
    role = np.full(found.attention.shape, "other", dtype=object)
    for kind, heads in (("last write", found.heads), ("control", found.controls)):
        for layer, head in heads:
            role[layer, head] = kind
    arrays = {"attention": found.attention, "null": found.null, "head_role": role}
    return xr.Dataset({name: label(name, values, "layer head") for name, values in arrays.items()})


@dataclass
class _Chosen:
    tokens: FlipFlop
    rows: np.ndarray
    where: Tensor


def _chosen(tokens: FlipFlop, wrong: Tensor, examined: int, seed: int) -> _Chosen:
    """Wrong reads of the first sequences that have one, and equally many right reads, of the same ones if possible."""
    has = wrong.any(1)
    rows = has.nonzero()[:examined, 0]
    lacking = 2 * int(wrong[rows].sum()) - int(tokens.read[rows].sum())
    if lacking > 0:
        more = (~has).nonzero()[:, 0]
        enough = int((tokens.read[more].sum(1).cumsum(0) < lacking).sum()) + 1
        rows = torch.cat([rows, more[:enough]])
    part, where = replace(tokens, ids=tokens.ids[rows]), wrong[rows].clone()
    right = (part.read & ~where).flatten().nonzero()[:, 0].numpy()
    some = np.random.default_rng(seed).permutation(right)[: int(where.sum())]
    where.view(-1)[torch.from_numpy(some)] = True
    return _Chosen(part, rows.numpy(), where)


def _examined(
    model: TransformerBridge,
    tokens: FlipFlop,
    wrong: Tensor,
    examined: int,
    found: LastWriteHeads,
    contents: Contents | None,
    seed: int,
) -> xr.Dataset:
    """What was found for each wrong read, and for equally many right ones."""
    chosen = _chosen(tokens, wrong, examined, seed)
    row, position = (where.numpy() for where in chosen.where.nonzero(as_tuple=True))
    at = (chosen.where.nonzero(as_tuple=True)[0], chosen.where.nonzero(as_tuple=True)[1])
    size = len(row)
    is_wrong = wrong[torch.from_numpy(chosen.rows)][at].numpy() if size else np.zeros(0, bool)
    columns: dict[str, Any] = {
        "read_language": np.array([tokens.pool] * size, dtype=object),
        "read_sequence": chosen.rows[row] if size else row,
        "read_position": position,
        "read_distance": chosen.tokens.distance[at].numpy(),
        "read_writes": chosen.tokens.writes[at].numpy(),
        "is_wrong": is_wrong,
    }
    blank = np.full(size, np.nan, dtype=np.float32)
    names = ("margin", "on_last", "on_register")
    repairs = ("matching_repaired", "control_repaired", "content_repaired", "readout_repaired")
    text = np.full(size, "", dtype=object)
    if contents is None or not size:
        why = np.where(is_wrong, "no head attends to the last write", "").astype(object)
        columns |= {name: blank for name in (*names, *repairs)}
        columns |= {"largest_key": text, "cause": text, "reason": why}
    else:
        seen = looks(model, chosen.tokens, chosen.where, found.heads)
        after = repaired(model, chosen.tokens, chosen.where, found, contents)
        cause, reason = causes(replace(seen, right=~is_wrong), after)
        columns |= {name: getattr(seen, name).astype(np.float32) for name in names}
        columns |= {name: getattr(after, name.removesuffix("_repaired")).astype(np.float32) for name in repairs}
        columns |= {"largest_key": np.array(KEYS, dtype=object)[seen.largest], "cause": cause, "reason": reason}
    return xr.Dataset({name: ("read", values) for name, values in columns.items()})


def _judged(result: xr.Dataset, called: bool) -> xr.Dataset:
    """No causes for a language in which a repair harms right reads: it would say nothing about wrong ones.

    A working repair leaves right reads right; where fewer than 95% stay right, the reason is given, and no cause.
    """
    if not called:
        return result.assign_attrs(not_tested="no head attends to the last write: errors have no known cause")
    right = ~result["is_wrong"].values
    cause, reason = result["cause"].values.copy(), result["reason"].values.copy()
    for language in result["language"].values:
        here = result["read_language"].values == language
        for name, said in (("matching", "hard attention"), ("content", "mean content")):
            kept = result[f"{name}_repaired"].values[here & right]
            kept = kept[np.isfinite(kept)]
            if len(kept) and kept.mean() < KEPT:
                told = (
                    here & ~right & ((cause != "") if name == "matching" else np.isin(cause, ("content", "read-out")))
                )
                cause[told] = ""
                reason[told] = f"{said} leaves only {kept.mean():.0%} of correct reads correct"
    return result.assign(cause=("read", cause), reason=("read", reason))
