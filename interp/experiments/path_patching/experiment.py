"""Through which paths do earlier heads serve the induction heads, and on which tokens?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import get_args

import numpy as np
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

from interp.errors import InterpError
from interp.experiments.path_patching.prompts import paths_of_prompts
from interp.heads import KINDS, classify_on_reference, heads_of_kind
from interp.hooks import (
    Head,
    Heads,
    Hook,
    Via,
    head_name,
    kv_head,
    mlp_names,
    name_of,
    patch,
    path_patch,
    record,
    z_names,
)
from interp.identities import require
from interp.metrics import Metric
from interp.progress import track
from interp.results import Keep, at_once, joined, label
from interp.sweep import TARGETS, paired_scores
from interp.tokens import Draw, Paired, Pool, Prompts, Repeated, refuse_with_blocks

DIRECTIONS = {"denoising": (0, 1), "noising": (1, 0)}  # which of a pair is run, and which the activation comes from
VIAS = get_args(Via)
BUDGETS = {"quick": {"batch": 8, "most": 3, "controls": 2}, "thorough": {"batch": 128, "controls": 8}}
OF_BLOCKS = ("reference", "controls")


def path_patching(
    model: TransformerBridge,
    pools: list[Pool] | list[Paired],
    draw: Draw,
    keep: Keep = at_once,
    *,
    metric: Metric = "log_prob",
    receivers: str | Sequence[str | Sequence[int]] = "",
    reference: str = "",
    most: int = 8,
    controls: int = 4,
    seed: int = 0,
) -> xr.Dataset:
    """Measure how a token's log-prob changes when a single path between heads carries the paired sequence's values.

    Pairs, directions and targets are those of `activation_patching`. Senders are classified heads below the induction
    heads, and controls; other heads are frozen, MLPs recomputed.

    Args:
        model: any loaded model.
        pools: the tokens to copy, or prompts with answers that are paired with corrupted prompts.
        draw: draws sequences of a pool, and paired ones.
        keep: stores finished parts.
        metric: how prompts are read, as in `activation_patching`.
        receivers: of prompts, the heads whose inputs are traced, such as "L9H6,L9H9"; by default the `most` with the
            largest direct effect on one half of the prompts.
        reference: the pool on which heads are classified and from which pairs are drawn (default: the model's).
        most: how many heads of each kind, those with the largest score.
        controls: on blocks, how many control heads, drawn among the heads of no kind in the senders' layers.
        seed: decides the sequences without a repeat and the control heads.

    Returns:
        `effect` [pool direction target via sender receiver batch], nats, the mean over the tested inducible tokens: the
        change through the receiver's q, k or v; negative: a noised path was needed. The receiver `all` is every
        induction head at once. `direct` [pool direction target writer batch], nats, the path to the logits past all
        other heads.

    Raises:
        InterpError: a number is too small, or the model has no induction head, or no head of another kind below it.

    Source:
        Wang et al. 2022, Interpretability in the Wild, arXiv 2211.00593.

    Example:
        >>> few = dict(batch=2, length=6, controls=1)
        >>> result = interp.run("path_patching", "wired", "1:33", **few)
        >>> at = dict(direction="noising", target="own", via="k", receiver="all", pool="1:33")
        >>> result["effect"].sel(at).mean("batch").round().to_series().to_dict()
        {'L0H0': -4.0, 'L0H1': 0.0}
    """
    if most < 1 or controls < 0:
        raise InterpError(f"most {most}, controls {controls}: use a positive integer, and 0 or a positive integer")
    require(model, "patterns", "heads")
    given = [one for one in pools if isinstance(one, Prompts)]
    if given:
        followed: Heads = receivers
        parts = [paths_of_prompts(model, one, keep, metric=metric, receivers=followed, most=most) for one in given]
        return joined(parts, [one.name for one in given], outer=True)
    refuse_with_blocks(metric=(metric, "log_prob"), receivers=(receivers or "", ""))
    pools = [one for one in pools if isinstance(one, Pool)]
    healthy, found = classify_on_reference(model, draw, keep, reference, seed=seed)
    named = {kind: heads_of_kind(found, kind) for kind in KINDS}
    reached = named["induction"][:most]
    if not reached:
        raise InterpError(
            f"no induction head was found on '{healthy.name}' (interp run induction_heads): there is no path to patch"
        )
    deepest = max(reached)[0]
    roles: dict[Head, str] = {}
    for kind in KINDS[1:]:
        for at in named[kind][:most]:
            if at[0] < deepest and at not in reached:
                roles.setdefault(at, kind)
    if not roles:
        raise InterpError(
            f"below the induction heads, no head of any kind was found on '{healthy.name}': there is no path to patch"
        )
    taken = {at for heads in named.values() for at in heads}
    layers = sorted({layer for layer, _ in roles})
    others = [(la, h) for la in layers for h in range(model.cfg.n_heads) if (la, h) not in taken]
    chosen = np.random.default_rng(seed).permutation(len(others))[:controls]
    roles |= dict.fromkeys((others[i] for i in sorted(chosen)), "control")

    parts = []
    for pool in pools:
        tokens = draw(pool)
        pair = (tokens, draw(healthy, paired_with=tokens))
        rows = []
        for direction, (run, source) in DIRECTIONS.items():
            what = f"{direction}, {pool.name}"
            make = partial(_paths, model, pair[run], pair[source], list(roles), reached, tokens.inducible_tested, what)
            rows.append(keep(f"{direction} {pool.name}", make).drop_attrs())
        parts.append(xr.concat(rows, xr.DataArray(list(DIRECTIONS), dims="direction", name="direction")))
    data = xr.concat(parts, xr.DataArray([pool.name for pool in pools], dims="pool", name="pool"))
    return data.assign_coords(role=("sender", list(roles.values()))).assign_attrs(among=healthy.name)


def _paths(
    model: TransformerBridge,
    run: Repeated,
    source: Repeated,
    senders: list[Head],
    receivers: list[Head],
    read: np.ndarray,
    what: str,
) -> xr.Dataset:
    """`effect`, `direct` and `clean` of one direction."""
    base = record(model, run, z_names(model))
    other = record(model, source, [*z_names(model), *mlp_names(model)])
    inputs = [name_of(model, layer, via) for layer in sorted({la for la, _ in receivers}) for via in VIAS]
    plans: list[list[Hook]] = []
    places: list[tuple[int, int, int]] = []  # via, sender, receiver of each plan
    for s, sender in enumerate(track(senders, f"{what}: what arrives", total=len(senders))):
        behind = [at for at in receivers if at[0] > sender[0]]
        # one run serves all receivers and ways: the sender's values changed, the other heads frozen
        arrived = record(model, run, inputs, hooks=path_patch(model, run, other, [sender], base=base))
        for v, via in enumerate(VIAS):
            each = [
                patch(model, name_of(model, la, via), arrived, heads=[h if via == "q" else kv_head(model, h)])
                for la, h in behind
            ]
            plans += [*([hook] for hook in each), each]
            places += [(v, s, r) for r in [*map(receivers.index, behind), len(receivers)]]
    writers = receivers + senders
    plans += [path_patch(model, run, other, [writer], base=base) for writer in writers]
    scores = paired_scores(model, run, source, plans, read, what=what)
    changed = scores[1:] - scores[0]  # [intervention target batch]
    effect = np.full((len(VIAS), len(senders), len(receivers) + 1, *scores.shape[1:]), np.nan, dtype=np.float32)
    effect[tuple(np.transpose(places))] = changed[: len(places)]
    coords = {
        "via": list(VIAS),
        "sender": [*map(head_name, senders)],
        "receiver": [*map(head_name, receivers), "all"],
        "writer": [*map(head_name, writers)],
        "target": list(TARGETS),
        "batch": np.arange(scores.shape[-1]),
    }
    return xr.Dataset(
        {
            "effect": label("effect", np.moveaxis(effect, 3, 0), "target via sender receiver batch", coords),
            "direct": label("direct", changed[len(places) :].swapaxes(0, 1), "target writer batch", coords),
            "clean": label("clean", scores[0], "target batch", coords),
        }
    )
