"""Does the attribution name what was broken? Planted defects on the bundled models, and the confusion of stages.

    python benchmarks/planted_defects.py --models organism-untied --seeds 3 [--mixed] [--out DIR]
    python benchmarks/planted_defects.py --models organism-deep --seeds 3 --more [--only blind-values@0.33 ...]

For each model, seed and case, tokens are chosen, their copying is broken in that way only (`interp.defects`), and
`glitch_attribution` is asked why they fail. A case is a defect or several joined by `+`; `@0.33` breaks by that part;
`/effect` breaks, in the place of the heads that are classified as induction heads, as many whose ablation costs most
(previous-token heads aside). `--more` adds parts and effects to the single defects and pairs. Finished cases are kept
in the folder and not run again. Prints a table of planted against named.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from transformer_lens.model_bridge import TransformerBridge

import interp
from interp.defects import DEFECTS, planted, related
from interp.errors import InterpError
from interp.files import writable
from interp.heads import classify_heads
from interp.measure import log_probs
from interp.pool_names import ordinary_pool
from interp.tokens import Pool, local_generator, repeated

PAIRS = (
    "collapsed+random-rows",
    "collapsed+blind-keys",
    "blind-values+blind-keys",
    "blind-keys+random-rows",
    "blind-keys+shrunk-rows",
    "blind-keys+suppressed",
    "blind-previous+blind-values",
)
CASES = ("none", *DEFECTS, *PAIRS)
MORE = (
    *(f"{d}@{part}" for d in DEFECTS if d != "nearly-collapsed" for part in ("0.33", "0.67")),
    "blind-values/effect",
    "blind-keys/effect",
    "blind-keys@0.67/effect",
)
# in a block of one cluster any match is right
ONLY_SINGLE = {"collapsed+random-rows", "collapsed+blind-keys"}
SIZE = {"wired": 12}  # tokens that are broken, else:
_SIZE = 30
LENGTH = {"wired": 10}  # of a block, where not the usual


def by_effect(model: TransformerBridge, name: str, ordinary: Pool, heads: xr.Dataset, folder: Path) -> xr.Dataset:
    """`heads` in which the induction heads are those whose ablation costs most: as many, no previous-token heads."""
    lost = interp.run("head_ablation", model, [ordinary], batch=16, out=folder / f"effects-{name}")
    effect = lost["lost"].isel(pool=0).mean("batch").values
    classified = heads["classified"].copy()
    effect = np.where(classified.sel(kind="previous").values, -np.inf, effect)
    count = int(classified.sel(kind="induction").sum())
    chosen = np.zeros(effect.shape, dtype=bool)
    chosen[np.unravel_index(np.argsort(-effect, axis=None)[:count], effect.shape)] = True
    classified.loc[{"kind": "induction"}] = chosen
    return heads.assign(classified=classified)


@dataclass(frozen=True)
class Setting:
    """A model before it is broken: the tokens to break, all other ordinary ones, and heads as called, and to break."""

    model: TransformerBridge
    ids: list[int]
    others: Pool
    called: xr.Dataset
    broken: xr.Dataset
    options: dict[str, int]


@cache
def undamaged(name: str, seed: int) -> tuple[TransformerBridge, Pool, xr.Dataset, list[int]]:
    """A model, its ordinary tokens, its heads as classified on these, and those of the tokens that it copies."""
    model = interp.load(name)
    ordinary, bos = ordinary_pool(model), model.tokenizer.bos_token_id
    options = {"length": LENGTH[name]} if name in LENGTH else {}
    with torch.no_grad():
        heads = classify_heads(model, repeated(ordinary, batch=32, bos=bos, seed=seed, **options))
        # ordinary tokens that are copied: what is found must be what was planted
        probe = repeated(ordinary, batch=512, bos=bos, seed=1000 + seed, **options)
        scores = torch.cat([log_probs(model(part.ids, prepend_bos=False), part.ids) for part in probe.split(20)]).cpu()
        at = torch.from_numpy(probe.inducible).expand_as(probe.ids)
        bad = set(probe.ids[at & (scores < -1)].tolist())
    return model, ordinary, heads, [i for i in ordinary.ids if i not in bad]


def setting(name: str, what: str, seed: int, folder: Path) -> Setting:
    """What a case breaks, and in which model."""
    defects, _, effect = parsed(what)
    model, ordinary, heads, copied = undamaged(name, seed)
    size, options = SIZE.get(name, _SIZE), {"length": LENGTH[name]} if name in LENGTH else {}
    if "suppressed" in defects:
        ids = related(model, copied, size, seed=seed)
    else:
        order = torch.randperm(len(copied), generator=local_generator(seed, 99)).tolist()
        ids = sorted(copied[i] for i in order[:size])
    broken = by_effect(model, name, ordinary, heads, folder) if effect else heads
    return Setting(model, ids, ordinary.without(ids), heads, broken, options)


def case(
    name: str, what: str, seed: int, mixed: bool, batch: int, folder: Path, repairs: str = "minimal"
) -> dict[str, object]:
    """One model broken in one way, and what the attribution says of it."""
    began = time.monotonic()
    defects, part, _ = parsed(what)
    # 0.05 nats, of which undamaged tokens must not lack more, are small compared with how tokens differ
    batch *= 1 if defects else 4
    here = setting(name, what, seed, folder)
    others = here.others
    pool, reference = Pool("broken", tuple(here.ids)), ",".join(map(str, others.ids))
    with planted(here.model, here.ids, defects, heads=here.broken, part=part, seed=seed):
        found = interp.run(
            "glitch_attribution",
            here.model,
            [pool],
            batch=batch,
            mixed=mixed,
            among=others if mixed else None,
            seed=seed,
            reference=reference,
            repairs=repairs,
            **here.options,
        ).isel(pool=0)

    def numbers(name: str) -> dict[str, float]:
        return {str(s): round(float(v), 3) for s, v in zip(found.stage.values, found[name].values, strict=True)}

    return {
        "model": name,
        "case": what,
        "defects": defects,
        "seed": seed,
        "mixed": mixed,
        "deficit": round(float(found.deficit), 3),
        "shares": numbers("share"),
        "low": numbers("share_low"),
        "most": numbers("share_high"),
        "used": found.used.values.tolist(),
        "reasons": {str(s): str(r) for s, r in zip(found.stage.values, found.reason.values, strict=True) if r},
        "seconds": round(time.monotonic() - began),
        "verdict": found.attrs["verdict"].partition(": ")[2],
    }


def parsed(what: str) -> tuple[list[str], float, bool]:
    """The defects of a case, by what part they are done, and whether to heads that are chosen by their effect."""
    damage, _, how = what.partition("/")
    damage, _, part = damage.partition("@")
    return [] if damage == "none" else damage.split("+"), float(part or 1), how == "effect"


def truth(row: dict) -> set[str]:
    """The stages that were broken."""
    return {DEFECTS[d] for d in row["defects"]}


def outcome(row: dict, broken: set[str] | None = None) -> str:
    """`right`, `wrong`, `cannot tell` or `no deficit`, of the stages that are `broken` (default: those planted).

    Right: one planted stage is the largest; of two, both are the largest two; of none, no share is above 0.05 nats
    (what is unexplained of undamaged tokens is how they differ from the others: no claim of a stage). A verdict that
    cannot tell, and names candidates without the planted stages, is wrong.
    """
    shares, said = row["shares"], row["verdict"]
    broken = truth(row) if broken is None else broken
    if not broken:
        return "wrong" if any(abs(v) > 0.05 for s, v in shares.items() if s != "unexplained") else "right"
    if said.startswith("no deficit"):
        return "no deficit"
    if said.startswith("cannot tell"):
        candidates = set(said.removeprefix("cannot tell: ").partition(" (")[0].split(" or "))
        return "wrong" if candidates <= set(shares) and not broken <= candidates else "cannot tell"
    # the most that a stage can be: one that is not tested is not known to be less
    order = sorted(shares, key=lambda s: -(shares[s] if shares[s] == shares[s] else row["most"][s]))
    right = set(order[: len(broken)]) == broken if len(broken) > 1 else order[0] in broken
    return "right" if right else "wrong"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["organism", "organism-untied", "organism-llama"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--mixed", action="store_true", help="single tokens among ordinary ones")
    parser.add_argument("--repairs", default="minimal", choices=["minimal", "transplant"])
    parser.add_argument("--more", action="store_true", help="defects in part, and in heads chosen by their effect, too")
    parser.add_argument("--only", nargs="*", help="only these cases, e.g. none blind-keys+random-rows blind-keys@0.67")
    parser.add_argument("--out", default="results/planted")
    options = parser.parse_args()
    folder = Path(writable(options.out))
    rows = []
    cases = options.only or (*CASES, *(MORE if options.more else ()))
    for seed, name, what in product(range(options.seeds), options.models, cases):
        if name == "wired" and "shrunk-rows" in what:
            continue  # its margins are so wide that these are not a defect
        if ("blind-previous" in what) if options.mixed else (what in ONLY_SINGLE):
            continue  # blind-previous breaks what follows a token, and not the token
        stem = f"{name}-{what.replace('/', '-')}-{seed}{'-mixed' if options.mixed else ''}"
        path = folder / f"{stem}{'-transplant' if options.repairs == 'transplant' else ''}.json"
        if not path.exists():
            try:
                row = case(name, what, seed, options.mixed, options.batch, folder, options.repairs)
            except InterpError as error:
                if "ties them" not in str(error):
                    raise
                continue
            part = path.with_suffix(".part")
            part.write_text(json.dumps(row) + "\n")
            part.rename(path)
        row = json.loads(path.read_text())
        rows.append(row)
        print(f"{outcome(row)}: {stem} ({row['seconds']} s): {row['verdict']}  {row['shares']}", flush=True)
    print_confusion(rows)


def group(row: dict) -> str:
    """The planted stages, and by what part they are broken."""
    part = parsed(row["case"])[1]
    return ("+".join(sorted(truth(row))) or "nothing") + (f", part {part:g}" if part < 1 else "")


def print_confusion(rows: list[dict]) -> None:
    """By planted stages, whole and in part: mean shares of the deficit where they were tested, and outcomes."""
    stages = list(rows[0]["shares"])

    print("\n" + " ".join(["planted".ljust(26), *(s.rjust(12) for s in stages), "  nats  outcomes"]))
    for planted_stages in sorted({group(row) for row in rows}):
        of = [row for row in rows if group(row) == planted_stages]
        parts = np.array([[row["shares"][s] / max(1.0, row["deficit"]) for s in stages] for row in of])
        tested = np.isfinite(parts)
        means = np.where(tested, parts, 0).sum(0) / np.maximum(1, tested.sum(0))
        cells = [f"{m:12.2f}" if t else "-".rjust(12) for m, t in zip(means, tested.any(0), strict=True)]
        counts = ", ".join(f"{n} {said}" for said, n in sorted(Counter(map(outcome, of)).items()))
        nats = float(np.mean([row["deficit"] for row in of]))
        print(" ".join([planted_stages.ljust(26), *cells, f"{nats:6.2f} ", counts]))


if __name__ == "__main__":
    main()
