"""What does planted damage break, by the undamaged model's activations? Beside it, what the attribution says.

    python benchmarks/planted_truth.py --models organism-deep --seeds 1 --only collapsed@0.33 [--named results/planted]

For a planted defect the undamaged model is at hand. So what a stage is worth can be measured without any repair of
ours, by patching activations of the undamaged run on the same tokens into the damaged one (denoising), in the heads
that are called on ordinary tokens:

matching     the attention patterns of the called induction and previous-token heads
suppression  what the values of the called induction heads lack for all of the pool's tokens alike, where their mean is
             written against the pool, more than without the damage
content      the rest of these values
readout      the pool's own unembedding rows

Identity is split off as the attribution does it: what is lost in telling a token from its near-duplicates in the
damaged model. The four restorations share the rest by Shapley's values, and one that makes things worse is left out, as
in the attribution; what is not restored by all of them came by other paths. Intervals are 95% over sequences, which are
those of the attribution.

Prints for each case the shares by activations, what each restoration gains alone and last and, from the folder `--named`
of `planted_defects.py`, the shares as attributed, and what the tokens lacked before they were broken: the attribution
asks why they are worse than others, the activations what the damage did.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from planted_defects import CASES, MORE, ONLY_SINGLE, Setting, group, outcome, parsed, setting, truth
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.defects import planted
from interp.errors import InterpError
from interp.experiments.glitch_attribution.experiment import _set_values
from interp.files import writable
from interp.heads import heads_of_kind
from interp.hooks import Head, Hook, kv_head, name_of, patch, record
from interp.repairs.minimal import right_keys
from interp.repairs.readout import readout_scores
from interp.repairs.shapley_values import shapley, subsets
from interp.repairs.sites import PredictionSites
from interp.repairs.study import REPAIRS, combination_name
from interp.repairs.unembedding import Unembedding, near_duplicates
from interp.statistics import mean_interval
from interp.tokens import Pool, Repeated, repeated

STAGES = ("identity", *REPAIRS, "unexplained")


@dataclass(frozen=True)
class Restoration:
    """What of an undamaged run is put into a damaged one; `hooks` makes the interventions.

    Attributes:
        model: the model, damaged while the hooks run.
        tokens: the sequences of both runs.
        induction: the called induction heads.
        previous: the called previous-token heads.
        clean: patterns and values of the undamaged run.
        alike: by layer and key-value head, what the values of all of the pool's tokens lack alike, where the damage
            writes its opposite against them [d_head].
        right_only: whether values are restored only as far as they are carried from the keys that hold the token.
    """

    model: TransformerBridge
    tokens: Repeated
    induction: Sequence[Head]
    previous: Sequence[Head]
    clean: Mapping[str, Tensor]
    alike: Mapping[Head, Tensor]
    right_only: bool = False

    def hooks(self, matching: bool, content: bool, suppression: bool) -> list[Hook]:
        """The interventions that restore these."""
        found: list[Hook] = []
        if matching:
            for layer in sorted({layer for layer, _ in (*self.induction, *self.previous)}):
                here = sorted({h for la, h in (*self.induction, *self.previous) if la == layer})
                found.append(patch(self.model, name_of(self.model, layer, "pattern"), self.clean, heads=here))
        if content or suppression:
            for layer in sorted({layer for layer, _ in self.induction}):
                found += self._of_values(layer, content, suppression)
        return found

    def _of_values(self, layer: int, content: bool, suppression: bool) -> list[Hook]:
        heads = [h for la, h in self.induction if la == layer]
        value_name = name_of(self.model, layer, "v")
        shared = sorted({kv_head(self.model, h) for h in heads})
        at = self.tokens.tested.to(self.clean[value_name].device)

        def better(value: Tensor) -> Tensor:
            value = value.clone()
            for v in shared:
                alike = torch.zeros_like(value[:, :, v]) + at[..., None] * self.alike[layer, v]
                if content:
                    value[:, :, v] = self.clean[value_name][:, :, v] - (0 if suppression else alike)
                else:
                    value[:, :, v] += alike
            return value

        if not self.right_only:
            return [(value_name, lambda value, hook: better(value))]
        seen: dict[str, Tensor] = {}
        sites = PredictionSites.of(self.tokens)
        right = right_keys(self.tokens, sites.query)

        def see(value: Tensor, hook: Any, what: str) -> None:
            seen[what] = value

        def carry(z: Tensor, hook: Any) -> Tensor:
            z, change = z.clone(), better(seen["value"]) - seen["value"]
            for h in heads:
                weights = seen["pattern"][sites.sequence, h, sites.query] * right
                carried = torch.einsum("pk,pkd->pd", weights, change[sites.sequence, :, kv_head(self.model, h)])
                z[sites.sequence, sites.query, h] += carried
            return z

        return [
            (value_name, lambda value, hook: see(value, hook, "value")),
            (name_of(self.model, layer, "pattern"), lambda value, hook: see(value, hook, "pattern")),
            (name_of(self.model, layer, "z"), carry),
        ]


def lacking_alike(
    here: Setting, tokens: Repeated, induction: Sequence[Head], clean: Mapping[str, Tensor], now: Mapping[str, Tensor]
) -> dict[Head, Tensor]:
    """By layer and key-value head: what the pool's values lack alike, or zero where they are not against the pool."""
    model, u = here.model, Unembedding(here.model)
    towards = u.gain * (u.rows[here.ids] - u.mean).mean(0)
    found: dict[Head, Tensor] = {}
    for layer in sorted({layer for layer, _ in induction}):
        heads, name = [h for la, h in induction if la == layer], name_of(model, layer, "v")
        at = tokens.tested.to(clean[name].device)
        lost, left = (clean[name] - now[name])[at].mean(0), now[name][at].mean(0)  # [value head d_head]
        for v in sorted({kv_head(model, h) for h in heads}):
            into = torch.stack([model.W_O[layer][h].detach().float() for h in heads if kv_head(model, h) == v]).sum(0)
            # their mean is against the pool, and was less so without the damage
            against = float(lost[v] @ u.centred(into) @ towards) > 0 > float(left[v] @ u.centred(into) @ towards)
            found[layer, v] = lost[v] if against else torch.zeros_like(lost[v])
    return found


@torch.no_grad()
def measured(
    here: Setting, defects: Sequence[str], part: float, *, batch: int, seed: int, right_only: bool = False
) -> dict[str, Any]:
    """The shares by activations: Shapley values over all sets of restorations, with intervals over sequences.

    Returns:
        `deficit`, nats of log-prob lost to the damage; by stage `share`, `low` and `high`, which is what is lost of
        identity and, of the rest, what each restoration is worth, without those that make things worse; `all orders`,
        Shapley values with these; `alone` and `last` of each restoration; `identity of all`: what is lost in telling
        the pool's tokens from each other, wherever it is lost (no part of the sum).
    """
    model, ids = here.model, here.ids
    tokens = repeated(
        Pool("broken", tuple(ids)), batch=batch, bos=model.tokenizer.bos_token_id, seed=seed, **here.options
    )
    sites = PredictionSites.of(tokens)
    at = sites.sequence, sites.query
    induction, previous = (sorted(heads_of_kind(here.called, kind)) for kind in ("induction", "previous"))
    layers = sorted({layer for layer, _ in (*induction, *previous)})
    names = [name_of(model, layer, what) for layer in layers for what in ("pattern", "v")]
    own = Unembedding(model)
    own.rows, own.mean = own.rows.clone(), own.mean.clone()
    clean = record(model, tokens.ids, [*names, "unembed.hook_in"])
    with planted(model, ids, defects, heads=here.broken, part=part, seed=seed):
        damaged = Unembedding(model)
        near = near_duplicates(model, ids, here.others.ids, damaged)
        now = record(model, tokens.ids, names)
        alike = lacking_alike(here, tokens, induction, clean, now)
        restored = Restoration(model, tokens, induction, previous, clean, alike, right_only)
        everyone = torch.tensor(sorted(ids), device=tokens.ids.device)
        of_pool = dict.fromkeys(sorted(ids), everyone)

        def scores(x: Tensor, unembedding: Unembedding) -> np.ndarray:
            """[sequence quantity]: log-prob, of the near-duplicates together, of the pool together."""
            found = readout_scores(x, sites.token, near, unembedding)[:2]
            pool = readout_scores(x, sites.token, of_pool, unembedding)[1]
            return by_sequence(torch.stack([*found, pool]), sites.sequence)

        worth: dict[frozenset[str], np.ndarray] = {}
        for state in product((False, True), repeat=3):
            upstream = {n for n, chosen in zip(("matching", "content", "suppression"), state, strict=True) if chosen}
            x = record(model, tokens.ids, ["unembed.hook_in"], hooks=restored.hooks(*state))["unembed.hook_in"][at]
            worth[frozenset(upstream)] = scores(x, damaged)
            worth[frozenset({*upstream, "readout"})] = scores(x, own)
    undamaged = scores(clean["unembed.hook_in"][at], own)
    return shares(worth, undamaged) | {"near": float(np.mean([len(some) for some in near.values()]))}


def by_sequence(values: Tensor, sequence: Tensor) -> np.ndarray:
    """[sequence quantity]: means of values [quantity place]."""
    array, at = values.double().cpu().numpy(), sequence.cpu().numpy()
    return np.stack([array[:, at == s].mean(1) for s in np.unique(at)])


def shares(worth: Mapping[frozenset[str], np.ndarray], undamaged: np.ndarray) -> dict[str, Any]:
    """What `measured` returns, from [sequence quantity] with each set of restorations, and without the damage."""
    nothing = worth[frozenset()]
    sets = [frozenset(some) for some in subsets(REPAIRS)]
    names = [combination_name(some) for some in subsets(REPAIRS)]
    value = {chosen: worth[chosen][:, 1] for chosen in sets}
    table = xr.DataArray(np.stack([value[chosen] for chosen in sets]), {"combination": names}, ("combination", "at"))
    # as the attribution does: what makes things worse is left out
    kept = _set_values(table, REPAIRS)[0]
    found = shapley(kept, REPAIRS)
    lost = undamaged - nothing
    columns = {"identity": lost[:, 0] - lost[:, 1], **found, "unexplained": undamaged[:, 1] - kept[frozenset(REPAIRS)]}
    middle, low, high = mean_interval(np.column_stack([columns[s] for s in STAGES]))

    def effect(name: str, before: Sequence[str]) -> float:
        return round(float((value[frozenset({*before, name})] - value[frozenset(before)]).mean()), 3)

    def rounded(numbers: np.ndarray) -> dict[str, float]:
        return {s: round(float(n), 3) for s, n in zip(STAGES, numbers, strict=True)}

    return {
        "deficit": round(float(lost[:, 0].mean()), 3),
        "share": rounded(middle),
        "low": rounded(low),
        "high": rounded(high),
        "alone": {r: effect(r, ()) for r in REPAIRS},
        "last": {r: effect(r, [o for o in REPAIRS if o != r]) for r in REPAIRS},
        "identity of all": round(float((lost[:, 0] - lost[:, 2]).mean()), 3),
        "value": {name: round(float(of.mean()), 3) for name, of in zip(names, table.values, strict=True)},
        "all orders": {r: round(float(of.mean()), 3) for r, of in shapley(value, REPAIRS).items()},
    }


def largest(row: Mapping[str, Any], count: int) -> list[set[str]]:
    """The sets of stages that may be the largest `count`: one, unless intervals over sequences overlap."""
    share, low, high = row["share"], row["low"], row["high"]
    order = sorted((s for s in STAGES if s != "unexplained"), key=lambda s: -share[s])
    first, rivals = order[:count], [s for s in order[count:] if high[s] > low[order[count - 1]]]
    return [set(first), *({*first[:-1], rival} for rival in rivals)]


def outcome_by_activations(named: dict[str, Any], row: Mapping[str, Any]) -> str:
    """`planted_defects.outcome`, with the stages that are largest by activations in place of those planted."""
    if not named["defects"]:
        return outcome(named)
    said = {outcome(named, stages) for stages in largest(row, len(truth(named)))}
    return next(o for o in ("right", "cannot tell", "no deficit", "wrong") if o in said)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["organism-deep"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", nargs="*", help="only these cases, e.g. collapsed@0.33 suppressed@0.33")
    parser.add_argument("--right-only", action="store_true", help="restore values as carried from the right keys only")
    parser.add_argument("--named", default="results/planted", help="where planted_defects.py keeps its cases")
    parser.add_argument("--out", default="results/planted-truth")
    options = parser.parse_args()
    folder, rows = Path(writable(options.out)), []
    for seed, name, what in product(range(options.seeds), options.models, options.only or (*CASES, *MORE)):
        if what == "none" or what in ONLY_SINGLE:
            continue  # nothing to restore, or nothing that can fail
        stem = f"{name}-{what.replace('/', '-')}-{seed}{'-right' if options.right_only else ''}"
        path, defects = folder / f"{stem}.json", parsed(what)[0]
        if not path.exists():
            try:
                here = setting(name, what, seed, folder)
                row = measured(
                    here, defects, parsed(what)[1], batch=options.batch, seed=seed, right_only=options.right_only
                )
            except InterpError as error:
                if "ties them" not in str(error):
                    raise
                continue
            part = path.with_suffix(".part")
            part.write_text(json.dumps({"model": name, "case": what, "seed": seed, "defects": defects} | row) + "\n")
            part.rename(path)
        row = json.loads(path.read_text())
        known = Path(options.named) / f"{name}-{what.replace('/', '-')}-{seed}.json"
        named = json.loads(known.read_text()) if known.exists() else None
        rows.append((row, named))
        print("\n".join(lines(row, named)), flush=True)
    print_beside([(row, named) for row, named in rows if named])


def print_beside(rows: Sequence[tuple[dict, dict]]) -> None:
    """By planted stages: mean shares of the deficit by activations and as attributed, and outcomes by either truth."""
    print("\n" + " ".join(["planted".ljust(26), "shares by".ljust(11), *(s.rjust(11) for s in STAGES), "  right"]))
    for name in sorted({group(named) for _, named in rows}):
        of = [(row, named) for row, named in rows if group(named) == name]
        both = {
            "activations": [[row["share"][s] / max(1.0, row["deficit"]) for s in STAGES] for row, _ in of],
            "attribution": [[named["shares"][s] / max(1.0, named["deficit"]) for s in STAGES] for _, named in of],
        }
        said = {
            "activations": Counter(outcome_by_activations(named, row) for row, named in of),
            "attribution": Counter(outcome(named) for _, named in of),
        }
        for by, parts in both.items():
            known = np.isfinite(parts)
            means = np.where(known, parts, 0).sum(0) / np.maximum(1, known.sum(0))
            cells = [f"{m:11.2f}" if k else "-".rjust(11) for m, k in zip(means, known.any(0), strict=True)]
            counts = ", ".join(f"{n} {what}" for what, n in sorted(said[by].items()))
            said_by = "by activations" if by == "activations" else "as planted"
            print(" ".join([(name if by == "activations" else "").ljust(26), by, *cells, f"  {counts} {said_by}"]))
    total = Counter((outcome(named), outcome_by_activations(named, row)) for row, named in rows)
    print("\nas planted, by activations: cases")
    for (first, second), count in sorted(total.items()):
        print(f"{first}, {second}: {count}")


def lines(row: Mapping[str, Any], named: dict[str, Any] | None) -> list[str]:
    """What is printed of a case."""
    head = f"{row['model']}, {row['case']}, seed {row['seed']}: planted {' and '.join(sorted(truth(dict(row))))}"
    found = ["", " ".join([head, f"({row['deficit']:.2f} nats)"])]
    cells = [_cell(s, row["share"][s], row["low"][s], row["high"][s]) for s in STAGES]
    found.append("  activations: " + ", ".join(cells))
    found.append("  alone / last: " + ", ".join(f"{r} {row['alone'][r]:.2f} / {row['last'][r]:.2f}" for r in REPAIRS))
    found.append(f"  lost in telling the pool's tokens apart: {row['identity of all']:.2f}")
    if named:
        cells = [_cell(s, named["shares"][s], named["low"][s], named["most"][s]) for s in STAGES]
        found.append(f"  attribution ({named['deficit']:.2f} nats): " + ", ".join(cells))
        before = named["deficit"] - row["deficit"]
        found.append(f"  lacked against the paired tokens before the damage: {before:.2f}")
        found.append(f"  {outcome(named)} by what was planted, {outcome_by_activations(named, row)} by activations")
    return found


def _cell(stage: str, share: float, low: float, high: float) -> str:
    middle = f"{stage} {share:.2f}" if share == share else stage
    return middle if not low < high else f"{middle} ({low:.2f} .. {high:.2f})"


if __name__ == "__main__":
    main()
