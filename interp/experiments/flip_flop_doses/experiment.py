"""Does under-training make attention glitches more frequent? Registers of tokens that were read at known doses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from interp.errors import InterpError
from interp.languages.register import FIRST_VALUE, LENGTH, READ, TRAINED_ON, WRITE, FlipFlop, flip_flop as drawn
from interp.models import location, origin
from interp.organisms import training_record
from interp.organisms.flip_flop_recipes import FlipFlopRecipe
from interp.repairs.last_write import (
    KEYS,
    Contents,
    causes,
    check_length,
    last_write_heads,
    looks,
    probabilities,
    register_values,
    repaired,
)

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BUDGETS = {"quick": {"registers": 2, "calibration": 16}, "thorough": {"registers": 64}}
ORDINARY = -1  # stands for the dose of ordinary values, which was not counted
_OF_EACH = 3  # registers with each token that its mean content is taken from
_APART = 1_000_000  # number of the first sequence that heads and contents are calibrated on


def flip_flop_doses(
    model: TransformerBridge,
    *,
    p: str = "0.8,0.98",
    registers: int = 8,
    tokens_each: int = 0,
    calibration: int = 32,
    least: float = 0.05,
    seed: int = 0,
) -> xr.Dataset:
    """Put tokens of known training doses into a register, read them back, and find the cause of each wrong read.

    All doses, and as many ordinary values, stand in the same sequences at the same positions. An *attention glitch* is
    a read where the last-write heads' largest score lies outside the register, whether or not the read is right.

    Args:
        model: a flip-flop model trained with canaries: `flipflop-doses`, or a folder made by the same recipe.
        p: which languages, the probabilities of ignore with commas.
        registers: how many registers hold each token, in each language.
        tokens_each: tokens in a sequence; 0: 512, or as many as the context has room for.
        calibration: how many other sequences, of FFL(0.8), last-write heads and contents are found on.
        least: by how much attention to the last write must exceed that to similar positions for a head to be detected.
        seed: decides the sequences.

    Returns:
        Of every examined read [language dose read]: `is_wrong` and `glitch` (1: yes), `margin` (nats, of the register's
        largest score over all others), `on_register` (attention, 0 to 1), `matching_repaired`, `content_repaired` and
        `readout_repaired` (1: right; NaN for right reads), `cause` or `reason`, and `token`. A dose is how many reads
        in training had the token as their answer; -1 stands for ordinary values.

    Raises:
        InterpError: the model has another vocabulary, was trained without canaries, or sequences do not fit its
            context.

    Example:
        >>> result = interp.run("flip_flop_doses", "flipflop-doses", registers=2, tokens_each=64, calibration=4)
        >>> bool(result["is_wrong"].sel(dose=0).mean() > result["is_wrong"].sel(dose=-1).mean())
        True
    """
    values = register_values(model)
    length = tokens_each or min(LENGTH, int(model.cfg.n_ctx))
    check_length(model, length)
    if registers < 1:
        raise InterpError(f"registers {registers}: use a positive integer")
    members = _members(model, values)
    apart = drawn(TRAINED_ON, batch=calibration, length=length, values=values, seed=seed, start=_APART)
    half = max(1, calibration // 2)
    found = last_write_heads(model, replace(apart, ids=apart.ids[:half]), least)
    if not found.heads:
        raise InterpError("no head of this model attends to the last write: train it for longer, or use flipflop-doses")
    contents = _contents(model, members, replace(apart, ids=apart.ids[half:]), seed, found.heads)
    by_language: list[xr.Dataset] = []
    names: list[str] = []
    for each in probabilities(p):
        contexts = drawn(each, batch=registers * len(members[ORDINARY]), length=length, values=values, seed=seed)
        names.append(contexts.pool)
        by_dose = []
        for tokens_of in members.values():
            planted, where, ids = _planted(contexts, tokens_of, registers, seed)
            seen = looks(model, planted, where, found.heads)
            wrong = ~seen.right.astype(bool)
            some = torch.from_numpy(wrong)
            after = repaired(model, replace(planted, ids=planted.ids[some]), where[some], found, contents)
            whole = type(after)(*(_spread(getattr(after, name), wrong) for name in vars(after)))
            cause, reason = causes(seen, whole)
            columns: dict[str, Any] = {
                "is_wrong": wrong,
                "glitch": (~np.isin(seen.largest, (0, 1))).astype(np.float32),
                "margin": seen.margin.astype(np.float32),
                "on_register": seen.on_register.astype(np.float32),
                "largest_key": np.array(KEYS, dtype=object)[seen.largest],
                "matching_repaired": whole.matching,
                "content_repaired": whole.content,
                "readout_repaired": whole.readout,
                "cause": cause,
                "reason": reason,
                "token": ids,
            }
            by_dose.append(xr.Dataset({name: ("read", column) for name, column in columns.items()}))
        by_language.append(xr.concat(by_dose, xr.DataArray(list(members), dims="dose", name="dose")))
    result = xr.concat(by_language, xr.DataArray(names, dims="language", name="language"))
    result["read"] = np.arange(result.sizes["read"])
    heads = " ".join(f"L{layer}H{head}" for layer, head in found.heads)
    return result.assign_attrs(registers=registers, tokens_each=length, values=values, last_write_heads=heads)


def _members(model: TransformerBridge, values: int) -> dict[int, list[int]]:
    """Token ids by dose, and as many ordinary values as a dose has canaries."""
    doses: dict[int, tuple[int, ...]] = {}
    try:
        recipe = training_record(location(model) or "")["recipe"]
        known = FlipFlopRecipe(
            values=recipe["values"], doses=tuple(recipe["doses"]), canaries_per_dose=recipe["canaries_per_dose"]
        )
        doses = known.canaries
    except InterpError:  # hand-wired, or a foreign model
        pass
    if not doses:
        raise InterpError(
            f"'{origin(model)['name']}' was trained without tokens of known dose: use flipflop-doses, or a folder of "
            "'interp organism train flipflop-doses'"
        )
    each = len(next(iter(doses.values())))
    if each > values:
        raise InterpError(f"{each} canaries for each dose and {values} ordinary values: train with fewer canaries")
    spread = np.linspace(0, values - 1, each).round().astype(int)
    return {dose: list(ids) for dose, ids in doses.items()} | {ORDINARY: [FIRST_VALUE + int(i) for i in spread]}


def _planted(
    contexts: FlipFlop, tokens_of: list[int], registers: int, seed: int
) -> tuple[FlipFlop, Tensor, np.ndarray]:
    """Each context with one register that holds a token: sequences, where it is first read, and the tokens [read].

    Which register it is depends on the seed and the number of the context alone.
    """
    ids = contexts.ids.clone()
    where = torch.zeros_like(ids, dtype=torch.bool)
    held = np.repeat(tokens_of, registers)
    for i, token in enumerate(held[: len(ids)]):
        instructions = ids[i, 0::2].numpy()
        number = np.cumsum(instructions == WRITE)
        read = np.unique(number[instructions == READ])
        chosen = np.random.default_rng((seed, i)).choice(read)
        places = np.flatnonzero((number == chosen) & np.isin(instructions, (WRITE, READ)))
        ids[i, 1 + 2 * torch.from_numpy(places)] = int(token)
        where[i, 1 + 2 * int(places[1])] = True
    return replace(contexts, ids=ids), where, held


def _contents(
    model: TransformerBridge, members: dict[int, list[int]], apart: FlipFlop, seed: int, heads: Any
) -> Contents:
    """What heads read from every value, canaries included, in separate sequences."""
    every = [token for tokens_of in members.values() for token in tokens_of]
    length = apart.ids.shape[1]
    others = drawn(
        apart.p, batch=_OF_EACH * len(every), length=length, values=apart.values, seed=seed, start=2 * _APART
    )
    planted, where, _ = _planted(others, every, _OF_EACH, seed)
    both = replace(apart, ids=torch.cat([apart.ids, planted.ids]))
    return Contents.of(model, heads, both, torch.cat([apart.read, where]))


def _spread(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Values of some reads among all; NaN for the others."""
    found = np.full(len(where), np.nan, dtype=np.float32)
    found[where] = values
    return found
