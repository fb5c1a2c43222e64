"""Are a few activations far larger than all others, where are they, and what breaks without them?"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import pad
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.experiments.massive_activations.states import (
    RULES,
    Chosen,
    Windows,
    called,
    magnitudes,
    rotations as drawn_rotations,
    scores,
    usual_values,
)
from interp.first_token import first_token
from interp.progress import track
from interp.results import Keep, at_once, label
from interp.statistics import mean_interval
from interp.texts import text_windows
from interp.tokens import Draw, Pool, Repeated

TEXT = "running text"
PLACES = ("everywhere", "sinks")
REPLACEMENTS = ("zero", "mean")
CHOSEN = ("massive", "control")
SLIGHT = 0.1  # nats below which a loss counts as none
BUDGETS = {"quick": {"batch": 8, "draws": 1}, "thorough": {"batch": 128, "draws": 8}}


def massive_activations(
    model: TransformerBridge,
    pools: list[Pool],
    draw: Draw,
    keep: Keep = at_once,
    *,
    text: str = "",
    rotations: int = 39,
    shuffles: int = 199,
    most: int = 4,
    draws: int = 2,
    seed: int = 0,
) -> xr.Dataset:
    """Find massive activations in the residual stream, and measure what is lost when they are removed.

    Two rules: `published` (above 100 and 1,000 times the median) and `scale-free` (above what random rotations reach).

    Args:
        model: any loaded model.
        pools: the tokens whose repeated blocks are run, beside the text.
        draw: draws sequences.
        keep: stores finished parts.
        text: a UTF-8 file (default: the bundled held-out text).
        rotations: how many random rotations make the null of the scale-free rule, a positive integer.
        shuffles: how many permutations of positions make the null of places, a positive integer.
        most: how many dimensions are changed at most, a positive integer.
        draws: how many sets of control dimensions, a positive integer.
        seed: decides rotations, permutations and controls.

    Returns:
        `largest` [pool layer batch position], the largest magnitude of a state after a layer, its `dimension`, and the
        `state_median`. `massive` [rule pool layer batch], how many activations are massive; `at_first` [rule pool
        layer], the share at the first position. `effect` [place_changed replacement chosen pool batch], nats of
        log-prob lost; positive: the dimensions were needed; NaN: nothing is massive. docs/massive_activations.md lists
        the rest.

    Raises:
        InterpError: a size is not positive, or the text cannot be read or is too short.

    Source:
        Sun et al. 2024, Massive Activations in Large Language Models, arXiv 2402.17762.

    Example:
        >>> few = dict(batch=2, rotations=2, shuffles=9, draws=1)
        >>> result = interp.run("massive_activations", "organism", "ordinary", **few)
        >>> result["massive"].sel(rule="published").sum().item()  # this small model has none
        0.0
    """
    if min(rotations, shuffles, most, draws) < 1:
        raise InterpError(
            f"rotations {rotations}, shuffles {shuffles}, most {most}, draws {draws}: use positive integers"
        )
    drawn = {pool.name: (_blocks(draw(pool)), _blocks(draw(pool, stream=1))) for pool in pools}
    like = draw(pools[0])
    reason = ""
    try:
        drawn = {TEXT: _text(model, text, like)} | drawn
    except InterpError as error:
        if text:
            raise
        reason = str(error)
    turns = drawn_rotations(int(model.cfg.d_model), rotations, seed)
    found = [
        keep(f"activations on {n}", partial(magnitudes, model, w, turns)).drop_attrs() for n, (w, _) in drawn.items()
    ]
    threshold = max(float(part["rotated"].max()) for part in found)  # rotations are the same of all
    chosen = Chosen.of(found, threshold, most)
    parts = []
    for (name, (windows, others)), part in zip(drawn.items(), found, strict=True):
        data = _of_group(part, threshold, shuffles, seed)
        make = partial(_changed, model, windows, others, part, chosen, draws, seed)
        data = data.merge(keep(f"changes on {name}", make).drop_attrs())
        parts.append(data)
    index = xr.DataArray(list(drawn), dims="pool", name="pool")
    data = xr.concat(parts, index, join="outer", data_vars="all")
    data["median"] = xr.concat([part["median"] for part in found], index, join="outer")
    attrs = {"dimensions": "", "rule": "", "from_layer": -1}
    if chosen is not None:
        attrs["dimensions"] = ", ".join(map(str, chosen.dimensions))
        attrs |= {"rule": chosen.rule, "from_layer": chosen.layer}
    data = data.assign_attrs(attrs, no_text=reason, false_alarms=1 / (1 + rotations))
    return data.assign_attrs(verdict="\n".join(verdict(data, name) for name in drawn))


def _blocks(tokens: Repeated) -> Windows:
    return Windows(tokens.pool, tokens.ids, tokens.read)


def _text(model: TransformerBridge, file: str, like: Repeated) -> tuple[Windows, Windows]:
    """Windows of a text, matched in number, length and first token to some blocks, and the same number of others."""
    width = like.ids.shape[1] - (like.bos is not None)
    ids = text_windows(model, file, width, 2 * len(like.ids))
    ids = ids[:, int(first_token(model).id is not None) :]
    ids = ids if like.bos is None else pad(ids, (1, 0), value=like.bos)
    if len(ids) < 2:
        raise InterpError(
            f"{file or 'the text'} has one window of {width} tokens: give a longer text, or a smaller length"
        )
    read = torch.ones_like(ids, dtype=torch.bool)
    read[:, : 1 + (like.bos is not None)] = False  # the first token, and the one predicted from it alone
    return Windows(TEXT, ids[::2], read[::2]), Windows(TEXT, ids[1::2], read[1::2])


def _of_group(found: xr.Dataset, threshold: float, shuffles: int, seed: int) -> xr.Dataset:
    """The measurements of one group of sequences, before anything is changed."""
    largest = found["magnitude"].isel(nth=0, drop=True)
    masks = [called(found, rule, threshold) for rule in RULES]  # [layer batch position nth]
    counts = np.stack([mask.sum((2, 3)) for mask in masks])
    total = counts.sum(2)
    first = np.stack([mask[:, :, 0].sum((1, 2)) for mask in masks])
    at_first = np.divide(first, total, out=np.full(total.shape, np.nan), where=total > 0)
    place, p = place_of(largest.transpose("layer", "batch", "position").values, shuffles, seed)
    ratio = float((largest / found["state_median"]).max())
    coords = {"rule": list(RULES), "batch": found["batch"].values}
    return xr.Dataset(
        {
            "largest": largest,
            "dimension": found["dimension"].isel(nth=0, drop=True),
            "state_median": found["state_median"],
            "rotated": found["rotated"],
            "ratio": label("ratio", np.array(ratio), ""),
            "massive": label("massive", counts.astype(float), "rule layer batch", coords),
            "at_first": label("at_first", at_first, "rule layer", coords),
            "place": label("place", place, "layer"),
            "place_p": label("place_p", p, "layer"),
        }
    )


def place_of(values: np.ndarray, shuffles: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Whether magnitudes depend on position: the position with the largest mean, against shuffled positions.

    Args:
        values: [layer sequence position], magnitudes.
        shuffles: how often positions are permuted within each sequence.
        seed: decides the permutations.

    Returns:
        [layer], the position, and the share of permutations, the observed order included, in which any position's mean
        is as large. Shuffling keeps sizes: it does not test whether they are large.
    """
    means = values.mean(1)
    rng = np.random.default_rng(seed)
    as_large = np.ones(len(values))
    for _ in range(shuffles):
        as_large += rng.permuted(values, axis=-1).mean(1).max(-1) >= means.max(-1)
    return means.argmax(-1), as_large / (1 + shuffles)


def _changed(
    model: TransformerBridge,
    windows: Windows,
    others: Windows,
    found: xr.Dataset,
    chosen: Chosen | None,
    draws: int,
    seed: int,
) -> xr.Dataset:
    """`level` [batch] and `effect` [place_changed replacement chosen batch] of one group."""
    level = scores(model, windows)
    effect = np.full((len(PLACES), len(REPLACEMENTS), len(CHOSEN), len(level)), np.nan)
    if chosen is not None:
        sinks = chosen.sinks(found)
        usual = usual_values(model, others, chosen.sinks(magnitudes(model, others, ())))  # [layer place feature]
        width = usual.shape[-1]
        sets = [chosen.dimensions], [chosen.control(width, i, seed) for i in range(draws)]
        work = [(c, dimensions) for c, several in enumerate(sets) for dimensions in several if dimensions]
        total = np.zeros_like(effect)
        for c, dimensions in track(work, f"changes on {windows.name}", total=len(work)):
            means = torch.where(
                sinks[None, :, :, None], usual[:, None, None, 0, dimensions], usual[:, None, None, 1, dimensions]
            )
            for i, where in enumerate((torch.ones_like(sinks), sinks)):
                for j, values in enumerate((None, means)):
                    known = bool(where.any()) and (values is None or bool(values[:, where].isfinite().all()))
                    after = scores(model, windows, dimensions, chosen.layer, where, values) if known else np.nan
                    total[i, j, c] += level - after
        for c, several in enumerate(sets):
            if any(several):
                effect[:, :, c] = total[:, :, c] / len(several)
    coords: dict[str, Any] = {"place_changed": list(PLACES), "replacement": list(REPLACEMENTS), "chosen": list(CHOSEN)}
    coords["batch"] = np.arange(len(level))
    dims = "place_changed replacement chosen batch"
    return xr.Dataset(
        {"level": label("level", level, "batch", coords), "effect": label("effect", effect, dims, coords)}
    )


def verdict(data: xr.Dataset, name: str) -> str:
    """What is massive in one group of sequences, and what its removal costs, in words."""
    at, said = data.sel(pool=name), []
    ratios = f"ratio up to {float(at['ratio']):.3g}, rotated {float(data['rotated'].max()):.3g}"
    for rule in RULES:
        of = at["massive"].sel(rule=rule)
        if not float(of.sum()):
            most, times = float(at["largest"].max()), float((at["largest"] / at["median"]).max())
            why = f"largest {most:.3g}, {times:.3g} times the median" if rule == "published" else ratios
            said.append(f"{rule} rule: none ({why})")
            continue
        by_layer = of.mean("batch").values
        layers = np.flatnonzero(np.nan_to_num(by_layer) > 0)
        first = float((at["at_first"].sel(rule=rule).fillna(0) * of.sum("batch")).sum() / of.sum())
        why = "" if rule == "published" else f" ({ratios})"
        where = f"after layers {layers[0]} to {layers[-1]}, {first:.0%} of them at the first position"
        said.append(f"{rule} rule: up to {by_layer.max():.3g} per sequence, {where}{why}")
    return f"{name}: {'; '.join(said)}; {_worth(data, at)}"


def _worth(data: xr.Dataset, at: xr.Dataset) -> str:
    """What setting the chosen dimensions to zero costs, beside the control and the mean."""
    if not data.attrs["dimensions"]:
        return "there is nothing to remove"
    said = []
    for place in PLACES:
        of = at["effect"].sel(place_changed=place)
        zero, control, mean = (
            mean_interval(of.sel(replacement=r, chosen=c).dropna("batch").values)
            if bool(of.sel(replacement=r, chosen=c).notnull().any())
            else np.full(3, np.nan)
            for r, c in (("zero", "massive"), ("zero", "control"), ("mean", "massive"))
        )
        if not np.isfinite(zero[0]):
            said.append(f"{place}: not testable, none of them is massive here")
            continue
        if zero[1] > max(SLIGHT, np.nan_to_num(control[2])):
            word = "needed"
        elif zero[2] < -SLIGHT:
            word = "harmful"
        elif zero[2] < SLIGHT:
            word = "not needed"
        else:
            word = "undecided"
        ends = f"{zero[0]:.2f} ({zero[1]:.2f} .. {zero[2]:.2f})"
        beside = f"size-matched others {control[0]:.2f}, their mean in place of zero {mean[0]:.2f}"
        said.append(f"{place}: zeroing them costs {ends} nats, {beside}: {word}")
    return f"dimensions {data.attrs['dimensions']} {'; '.join(said)}"
