"""Is a model that is shown false demonstrations right in its middle layers, and which late heads override it?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.blocks import repeated
from interp.errors import InterpError
from interp.experiments.false_demonstrations.causes import (
    SKIPPED,
    Kind,
    answers_by_path,
    answers_without,
    called,
    class_weights,
    controls,
    head_scores,
    luckiest,
    replacement,
    right_and_margin,
)
from interp.experiments.false_demonstrations.reading import calibrated, readings
from interp.heads import classify_heads, reference_pool
from interp.hooks import Head, head_name
from interp.identities import require
from interp.models import model_name
from interp.progress import track
from interp.prompts.demonstrations import KINDS, Demonstrations, demonstrations
from interp.prompts.tasks import Task, tasks_of
from interp.results import Keep, at_once, label
from interp.statistics import BOUNDS, mean_interval, resampling_weights, wilson_interval

BUDGETS = {"quick": {"count": 24, "draws": 3}, "thorough": {"count": 128, "draws": 16}}
SHOTS = (0, 1, 2, 4, 8, 16)  # after which answers are kept
FALSE = ("true", "permuted")  # what is compared, and ablated
GROUPS = ("classified", "control")
MEASURES = ("gap", "restored", "restored log-odds")
_RESAMPLES = 2000


@dataclass(frozen=True)
class _Read:
    """One task as it was read: prompts and log-odds by kind of labels."""

    task: Task
    made: dict[str, Demonstrations]
    odds: dict[str, np.ndarray]  # [after place batch label]
    attention: np.ndarray  # [layer head batch demonstration], of permuted labels

    @property
    def chosen_on(self) -> np.ndarray:
        """[batch], bool: the half on which heads are classified; whole groups of classes keep halves balanced."""
        return np.arange(len(self.made["true"].classes)) // len(self.task.labels) % 2 == 0

    def false(self) -> np.ndarray:
        """[batch], the label that permuted demonstrations have for the query's class."""
        return self.made["permuted"].shown[:, -1]


def false_demonstrations(
    model: TransformerBridge,
    keep: Keep = at_once,
    *,
    tasks: str = "",
    count: int = 64,
    shots: int = 16,
    most: int = 5,
    kind: Kind = "zero",
    draws: int = 8,
    shuffles: int = 1000,
    reference: str = "",
    seed: int = 0,
) -> xr.Dataset:
    """Measure accuracy after true, permuted and random demonstrations; ablate the heads that attend to false labels.

    Args:
        model: a model with a tokenizer.
        keep: stores finished parts.
        tasks: names with commas, or a JSON file of tasks (default: the model's, or those of this project).
        count: how many prompts of each task and kind of labels.
        shots: how many demonstrations, 2 to 16, gaps are taken and heads are scored at.
        most: how many heads may be detected.
        kind: what replaces a head's output: "zero", or its "mean" over the other prompts with true demonstrations.
        draws: how many sets of control heads.
        shuffles: how many permutations of the demonstrations make the null of the heads' scores.
        reference: the pool of ordinary tokens on whose repeated blocks induction heads are classified.
        seed: decides prompts, permutations, control heads and the bootstrap.

    Returns:
        `right` [task labels after shots batch], calibrated accuracy (1, 0, or a guess) read after each depth. `gap`
        [after bound], accuracy after true less after permuted demonstrations; `critical_layer` [bound], from which on
        the gap is at least half of the last one; `overthought` [bound], the best depth's accuracy less the last one's.
        `head_score` [task layer head batch], `called` [layer head]; `closed` [group measure bound], the share of the
        gap that ablation closes (NaN: no head). docs/false_demonstrations.md lists the rest.

    Raises:
        InterpError: a number is out of range, the tokenizer cannot write a task, or true demonstrations do not bring
            the model above chance.

    Source:
        Halawi, Denain and Steinhardt 2023, Overthinking the Truth, arXiv 2307.09476.

    Example:
        >>> few = dict(count=8, shots=2, draws=2, shuffles=20)
        >>> result = interp.run("false_demonstrations", "demonstrations", **few)
        >>> result["labels"].values.tolist(), result["gap"].dims
        (['true', 'permuted', 'random'], ('after', 'bound'))
    """
    _check(shots=shots, most=most, draws=draws, shuffles=shuffles)
    require(model, "lens", "patterns", "heads")
    given = tasks_of(model, tasks)
    reads = [
        _read(model, task, keep, count=count, shots=shots, seed=seed)
        for task in track(given, "reading demonstrations", total=len(given))
    ]
    coords: dict[str, Any] = {
        "task": [read.task.name for read in reads],
        "labels": list(KINDS),
        "after": ["embed", *(f"layer {i}" for i in range(model.cfg.n_layers))],
        "shots": [n for n in sorted({*SHOTS, shots}) if n <= shots],
        "batch": np.arange(max(len(read.chosen_on) for read in reads)),
        "bound": list(BOUNDS),
        "group": list(GROUPS),
        "measure": list(MEASURES),
        "skip": list(SKIPPED),
    }
    data = _answers(reads, coords)
    counts = _above_chance(reads, data)
    data["above_chance"] = label("above_chance", counts, "task", coords)
    used = [read for read, count_it in zip(reads, counts, strict=True) if count_it]
    if not used:
        raise InterpError(_not_above(model, data))
    gaps = _pooled([_gap(read) for read in used])  # [after sample]
    data["gap"] = label("gap", np.moveaxis(mean_interval(gaps.T, seed=seed), 0, -1), "after bound", coords)
    best, data["overthought"] = _overthought(used, coords, seed)
    found = _causes(model, reads, used, gaps, keep, coords, most, kind, draws, shuffles, reference, seed)
    first = used[0].made["true"].tokens.bos
    return data.merge(found).assign_attrs(found.attrs, best_depth=best, first=-1 if first is None else first)


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1 or (name == "shots" and not 2 <= size <= max(SHOTS)):
            raise InterpError(f"{name} {size}: use {'2 to 16' if name == 'shots' else 'a positive integer'}")


# --- answers ----------------------------------------------------------------------------------------------------------


def _read(model: TransformerBridge, task: Task, keep: Keep, *, count: int, shots: int, seed: int) -> _Read:
    made = {
        kind: demonstrations(model, task, kind, shots=shots, count=max(count, 2 * len(task.labels)), seed=seed)
        for kind in KINDS
    }
    seen = {kind: keep(f"read: {one.tokens.pool}", partial(readings, model, one)) for kind, one in made.items()}
    odds = {kind: one["log_odds"].values for kind, one in seen.items()}
    return _Read(task, made, odds, seen["permuted"]["attention"].values)


def _answers(reads: list[_Read], coords: dict[str, Any]) -> xr.Dataset:
    """`right`, `plain`, `copied` and `chance`; prompts that a task lacks are NaN."""
    shape = [len(coords[dim]) for dim in ("task", "labels", "after", "shots", "batch")]
    right, copied = np.full(shape, np.nan, np.float32), np.full([shape[0], *shape[3:]], np.nan, np.float32)
    plain = np.full([*shape[:2], *shape[3:]], np.nan, np.float32)
    for t, read in enumerate(reads):
        size = len(read.chosen_on)
        for k, kind in enumerate(KINDS):
            made, odds = read.made[kind], read.odds[kind]
            for s, n in enumerate(coords["shots"]):
                true = made.classes[:, n]
                right[t, k, :, s, :size] = calibrated(odds[:, n], true)
                plain[t, k, s, :size] = odds[-1, n].argmax(-1) == true
                if kind == "permuted":
                    copied[t, s, :size] = calibrated(odds[-1, n], made.shown[:, n])
    return xr.Dataset(
        {
            "right": label("right", right, "task labels after shots batch", coords),
            "plain": label("plain", plain, "task labels shots batch", coords),
            "copied": label("copied", copied, "task shots batch", coords),
            "chance": label("chance", [read.task.chance for read in reads], "task", coords),
        }
    )


def _above_chance(reads: list[_Read], data: xr.Dataset) -> np.ndarray:
    """[task], bool: is the accuracy after true demonstrations significantly above chance?"""
    last = data["right"].sel(labels="true").isel(after=-1, shots=-1)
    found = []
    for read in reads:
        values = last.sel(task=read.task.name).values
        values = values[np.isfinite(values)]
        found.append(wilson_interval(round(float(values.sum())), len(values))[0] > read.task.chance)
    return np.array(found)


def _not_above(model: TransformerBridge, data: xr.Dataset) -> str:
    last = data["right"].sel(labels="true").isel(after=-1, shots=-1).mean("batch")
    said = ", ".join(
        f"{name} {float(value):.2f} (chance {float(chance):.2f})"
        for name, value, chance in zip(last["task"].values, last.values, data["chance"].values, strict=True)
    )
    return (
        f"{model_name(model)} is not above chance with true demonstrations, so that false ones cannot take anything "
        f"away: {said}; give other tasks, or another model"
    )


def _gap(read: _Read) -> np.ndarray:
    """[after batch], whether the true label is given after true demonstrations, minus the same after permuted ones."""
    true = read.made["true"].classes[:, -1]
    return calibrated(read.odds["true"][:, -1], true) - calibrated(read.odds["permuted"][:, -1], true)


def _overthought(used: list[_Read], coords: dict[str, Any], seed: int) -> tuple[str, xr.DataArray]:
    """The depth at which permuted demonstrations do least harm, and what is lost from there to the end."""
    right = [calibrated(r.odds["permuted"][:, -1], r.made["permuted"].classes[:, -1]) for r in used]
    by_depth = _pooled([one[:, r.chosen_on] for one, r in zip(right, used, strict=True)]).mean(1)
    best = int(np.flatnonzero(by_depth >= by_depth.max() - 1e-9)[-1])  # of equal ones the last, which loses least
    lost = _pooled([one[best, ~r.chosen_on] - one[-1, ~r.chosen_on] for one, r in zip(right, used, strict=True)])
    return coords["after"][best], label("overthought", mean_interval(lost, seed=seed), "bound", coords)


def _pooled(parts: list[np.ndarray]) -> np.ndarray:
    """Prompts of all tasks in one dimension, [... sample]."""
    return np.concatenate(parts, axis=-1)


def critical_layer(gap: np.ndarray) -> float:
    """The first layer from which on the gap is at least half of the last one; -1 is the embedding.

    Args:
        gap: [after], the embedding and each layer; the last must be above 0.

    Returns:
        The layer; NaN where the last gap is not above 0.

    Source:
        Halawi, Denain and Steinhardt 2023, arXiv 2307.09476: the critical layer; that the gap must stay is ours.
    """
    if not gap[-1] > 0:
        return np.nan
    below = np.flatnonzero(gap < gap[-1] / 2)
    return float(below[-1] + 1 if len(below) else 0) - 1


def _critical(gaps: np.ndarray, seed: int) -> np.ndarray:
    """[bound], the critical layer of all prompts, and its interval by the percentile bootstrap over them."""
    weights = resampling_weights(gaps.shape[1], resamples=_RESAMPLES, seed=seed)
    drawn = np.array([critical_layer(row) for row in weights @ gaps.T])
    if np.isnan(drawn).all():
        return np.full(3, np.nan)
    low, high = np.nanquantile(drawn, [0.025, 0.975], method="nearest")
    return np.array([critical_layer(gaps.mean(1)), low, high])


# --- why --------------------------------------------------------------------------------------------------------------


def _causes(
    model: TransformerBridge,
    reads: list[_Read],
    used: list[_Read],
    gaps: np.ndarray,
    keep: Keep,
    coords: dict[str, Any],
    most: int,
    kind: Kind,
    draws: int,
    shuffles: int,
    reference: str,
    seed: int,
) -> xr.Dataset:
    """Everything about heads: NaN, with the reason, where there is no gap or no head attends to labels."""
    scores = np.full((len(reads), *used[0].attention.shape[:2], len(coords["batch"])), np.nan, np.float32)
    for t, read in enumerate(reads):
        if read in used:
            own = head_scores(read.attention, class_weights(read.made["permuted"]))
            scores[t, ..., : own.shape[-1]] = np.where(read.chosen_on, own, np.nan)
    attention = np.concatenate([read.attention[:, :, read.chosen_on] for read in used], axis=2)
    weights = np.concatenate([class_weights(read.made["permuted"])[read.chosen_on] for read in used])
    null = luckiest(attention, weights, shuffles=shuffles, seed=seed)
    heads, threshold = called(head_scores(attention, weights).mean(-1), null, most)
    mean, low, high = mean_interval(gaps[-1], seed=seed)
    gap = f"{mean:.2f}" + (f" ({low:.2f} .. {high:.2f})" if np.isfinite(low) else "")
    reason = ""
    if not low > 0:
        reason = f"no gap: accuracy after true minus after permuted demonstrations is {gap}"
    elif not heads:
        reason = f"the gap is {gap}, but no head attends to labels of the query's class more than shuffles allow"
    critical = np.full(3, np.nan) if not low > 0 else _critical(gaps, seed)
    heads = [] if reason else heads
    marks = np.zeros(used[0].attention.shape[:2], bool)
    for head in heads:
        marks[head] = True
    data = xr.Dataset(
        {
            "head_score": label("head_score", scores, "task layer head batch", coords),
            "score_threshold": ((), threshold),
            "called": label("called", marks, "layer head", coords),
            "critical_layer": label("critical_layer", critical, "bound", coords),
        }
    )
    sets, said = controls(model, heads, draws=draws, seed=seed) if heads else ([[] for _ in range(draws)], "")
    start = model.cfg.n_layers if np.isnan(critical[0]) else max(0, int(critical[0]))
    effects = _effects(model, reads, used, heads, sets, start, keep, coords, kind)
    data = data.merge(effects).merge(_on_blocks(model, keep, reference, seed))
    data["closed"] = label("closed", _closed(data, seed), "group measure bound", coords)
    names = [",".join(map(head_name, one)) for one in sets]
    return data.assign_coords(
        draw=np.arange(draws), control_heads=("draw", np.array(names, dtype=object))
    ).assign_attrs(called_heads=", ".join(map(head_name, heads)), no_heads=reason, controls=said, ablation=kind)


def _effects(
    model: TransformerBridge,
    reads: list[_Read],
    used: list[_Read],
    heads: list[Head],
    sets: list[list[Head]],
    start: int,
    keep: Keep,
    coords: dict[str, Any],
    kind: Kind,
) -> xr.Dataset:
    """Accuracy and margins without heads and late layers, and by the path, on prompts not used to classify heads."""
    tasks, size = len(reads), len(coords["batch"])
    plans = [[], heads, *sets]
    right = np.full((len(plans) + len(SKIPPED), tasks, len(FALSE), size), np.nan, np.float32)
    margin = np.full_like(right, np.nan)
    direct, total = np.full((tasks, size), np.nan, np.float32), np.full((tasks, size), np.nan, np.float32)
    skips = start < model.cfg.n_layers
    for t, read in enumerate(track(reads, "ablating heads", total=tasks)):
        if read not in used:
            continue
        rows = np.flatnonzero(~read.chosen_on)
        false = read.false()[rows]
        made = {k: read.made[k].rows(rows) for k in FALSE}
        means = replacement(model, made["true"], kind)
        for k, which in enumerate(FALSE):
            odds = answers_without(model, made[which], plans, start, means=means, keep=keep)
            right[:, t, k, rows], margin[:, t, k, rows] = right_and_margin(odds, made[which], false)
        total[t, rows] = margin[0, t, 0, rows] - margin[0, t, 1, rows]
        if heads:
            odds = answers_by_path(model, made["permuted"], made["true"], heads, keep=keep)
            clean, patched = right_and_margin(odds, made["permuted"], false)[1]
            direct[t, rows] = patched - clean
    for i, one in enumerate(plans):
        if i and not one:  # nothing was ablated
            right[i], margin[i] = np.nan, np.nan
    if not skips:
        right[len(plans) :], margin[len(plans) :] = np.nan, np.nan
    found = {
        "direct": label("direct", direct, "task batch", coords),
        "total": label("total", total, "task batch", coords),
    }
    dims, inner = "task compared batch", coords | {"compared": list(FALSE)}
    for prefix, values in (("", right), ("margin_", margin)):
        parts = {
            "intact": (values[0], dims),
            "without": (values[1], dims),
            "without_control": (values[2 : len(plans)], f"draw {dims}"),
            "skipped": (values[len(plans) :], f"skip {dims}"),
        }
        for name, (array, of) in parts.items():
            found[prefix + name] = label(prefix + name, array, of, inner)
    return xr.Dataset(found)


def _on_blocks(model: TransformerBridge, keep: Keep, reference: str, seed: int) -> xr.Dataset:
    """Which heads are induction heads on repeated blocks of ordinary tokens; NaN where no null can be drawn."""
    pool = reference_pool(model, reference, seed=seed)
    length = min(25, max(3, len(pool) // 3), (int(model.cfg.n_ctx) - 1) // 2)
    tokens = repeated(model, pool, batch=32, length=length, seed=seed)
    found = keep(f"heads classified on {pool.name}", partial(classify_heads, model, tokens, seed=seed))
    score = found["score"].sel(key_kind="induction").mean("batch").values
    marks = found["classified"].sel(kind="induction").values.astype(np.float32)
    if not np.isfinite(found["threshold"]).all():
        marks = np.full_like(marks, np.nan)
    return xr.Dataset(
        {
            "induction_score": label("induction_score", score, "layer head"),
            "induction": label("induction", marks, "layer head"),
        }
    )


def _closed(data: xr.Dataset, seed: int) -> np.ndarray:
    """[group measure bound], shares of the intact gap, bootstrapped over prompts."""
    found = np.full((len(GROUPS), len(MEASURES), 3), np.nan)
    for m, measure in enumerate(MEASURES):
        prefix = "margin_" if "log-odds" in measure else ""
        intact, whole = data[f"{prefix}intact"], _difference(data[f"{prefix}intact"])
        left = {"classified": data[f"{prefix}without"], "control": data[f"{prefix}without_control"].mean("draw")}
        for g, group in enumerate(GROUPS):
            if measure == "gap":
                gained = whole - _difference(left[group])
            else:
                change = (left[group] - intact).sel(compared="permuted")
                gained = change.transpose("task", "batch").values.ravel()
            both = np.stack([gained, whole])
            both = both[:, np.isfinite(both).all(0)]
            if not both.shape[1] or not both[1].mean() > 0:
                continue
            weights = resampling_weights(both.shape[1], resamples=_RESAMPLES, seed=seed)
            drawn, of = (weights @ both.T).T
            with np.errstate(divide="ignore", invalid="ignore"):
                shares = np.where(of > 0, drawn / of, np.nan)
            found[g, m] = [both[0].mean() / both[1].mean(), *np.nanquantile(shares, [0.025, 0.975])]
    return found


def _difference(values: xr.DataArray) -> np.ndarray:
    """[sample], after true minus after permuted demonstrations."""
    return (values.sel(compared="true") - values.sel(compared="permuted")).transpose("task", "batch").values.ravel()
