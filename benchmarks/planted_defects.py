"""Does the attribution name what was broken? Planted defects on the bundled models, and the confusion of stages.

    python benchmarks/planted_defects.py --models organism-untied --seeds 3 [--mixed] [--out DIR]

For each model, seed and defect (and pair of defects), tokens are chosen, their copying is broken in that way only
(`interp.defects`), and `glitch_attribution` is asked why they fail. Finished cases are kept in the folder and not run
again. Prints a table of planted against named.
"""

from __future__ import annotations

import argparse
import json
from itertools import product

import numpy as np
import torch

import interp
from interp.defects import DEFECTS, planted, related
from interp.errors import InterpError
from interp.files import writable
from interp.heads import classify_heads
from interp.measure import log_probs
from interp.pool_names import ordinary_pool
from interp.tokens import Pool, local_generator, repeated

PAIRS = [
    ("collapsed", "random-rows"),
    ("collapsed", "blind-keys"),
    ("blind-values", "blind-keys"),
    ("blind-keys", "random-rows"),
    ("blind-keys", "shrunk-rows"),
    ("blind-keys", "suppressed"),
    ("blind-previous", "blind-values"),
]
# in a block of one cluster any match is right
ONLY_SINGLE = {("collapsed", "random-rows"), ("collapsed", "blind-keys")}
SIZE = {"wired": 12}  # tokens that are broken, else:
_SIZE = 30
LENGTH = {"wired": 10}  # of a block, where not the usual


def case(
    name: str, defects: tuple[str, ...], seed: int, mixed: bool, batch: int, repairs: str = "minimal"
) -> dict[str, object]:
    """One model broken in one way, and what the attribution says of it."""
    model = interp.load(name)
    ordinary, size = ordinary_pool(model), SIZE.get(name, _SIZE)
    options = {"length": LENGTH[name]} if name in LENGTH else {}
    # 0.05 nats, of which undamaged tokens must not lack more, are little beside how tokens differ
    batch *= 1 if defects else 4
    bos = model.tokenizer.bos_token_id
    with torch.no_grad():
        heads = classify_heads(model, repeated(ordinary, batch=32, bos=bos, seed=seed, **options))
        # ordinary tokens that are copied: what is found must be what was planted
        probe = repeated(ordinary, batch=512, bos=bos, seed=1000 + seed, **options)
        scores = torch.cat([log_probs(model(part.ids, prepend_bos=False), part.ids) for part in probe.split(20)])
        at = torch.from_numpy(probe.inducible).expand_as(probe.ids)
        bad = set(probe.ids[at & (scores < -1)].tolist())
        copied = [i for i in ordinary.ids if i not in bad]
    if "suppressed" in defects:
        ids = related(model, copied, size, seed=seed)
    else:
        order = torch.randperm(len(copied), generator=local_generator(seed, 99)).tolist()
        ids = sorted(copied[i] for i in order[:size])
    others = ordinary.without(ids)
    pool, reference = Pool("broken", tuple(ids)), ",".join(map(str, others.ids))
    with planted(model, ids, defects, heads=heads, seed=seed):
        found = interp.run(
            "glitch_attribution",
            model,
            [pool],
            batch=batch,
            mixed=mixed,
            among=others if mixed else None,
            seed=seed,
            reference=reference,
            repairs=repairs,
            **options,
        ).isel(pool=0)
    shares = {str(s): round(float(v), 3) for s, v in zip(found.stage.values, found.share.values, strict=True)}
    return {
        "model": name,
        "defects": list(defects),
        "seed": seed,
        "mixed": mixed,
        "deficit": round(float(found.deficit), 3),
        "shares": shares,
        "most": {str(s): round(float(v), 3) for s, v in zip(found.stage.values, found.share_high.values, strict=True)},
        "used": found.used.values.tolist(),
        "reasons": [str(reason) for reason in found.reason.values if reason],
        "verdict": found.attrs["verdict"].partition(": ")[2],
    }


def truth(defects: list[str]) -> set[str]:
    """The stages that were broken."""
    return {DEFECTS[d] for d in defects}


def right(row: dict) -> bool:
    """One planted stage is the largest; of two, both are the largest two; of none, no share is above 0.05 nats.

    What is unexplained of undamaged tokens is how they differ from the others: no claim of a stage.
    """
    shares, broken = row["shares"], truth(row["defects"])
    # the most that a stage can be: one that is not tested is not known to be less
    order = sorted(shares, key=lambda s: -(shares[s] if shares[s] == shares[s] else row["most"][s]))
    if not broken:
        return max(abs(v) for s, v in shares.items() if s != "unexplained") <= 0.05
    return set(order[: len(broken)]) == broken if len(broken) > 1 else order[0] in broken


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["organism", "organism-untied", "organism-llama"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--mixed", action="store_true", help="single tokens among ordinary ones")
    parser.add_argument("--repairs", default="minimal", choices=["minimal", "transplant"])
    parser.add_argument("--defects", nargs="*", help="only these, pairs joined by +, e.g. blind-keys+random-rows none")
    parser.add_argument("--out", default="results/planted")
    options = parser.parse_args()
    folder = writable(options.out)
    rows = []
    cases = [(), *((d,) for d in DEFECTS), *PAIRS]
    if options.defects:
        cases = [case for case in cases if ("+".join(case) or "none") in options.defects]
    for name, defects, seed in product(options.models, cases, range(options.seeds)):
        if name == "wired" and "shrunk-rows" in defects:
            continue  # its margins are so wide that these are no defect
        if ("blind-previous" in defects) if options.mixed else (defects in ONLY_SINGLE):
            continue  # blind-previous breaks what follows a token, and not the token
        stem = f"{name}-{'+'.join(defects) or 'none'}-{seed}{'-mixed' if options.mixed else ''}"
        path = folder / f"{stem}{'-transplant' if options.repairs == 'transplant' else ''}.json"
        if not path.exists():
            try:
                row = case(name, defects, seed, options.mixed, options.batch, options.repairs)
            except InterpError as error:
                if "ties them" not in str(error):
                    raise
                continue
            part = path.with_suffix(".part")
            part.write_text(json.dumps(row) + "\n")
            part.rename(path)
        row = json.loads(path.read_text())
        rows.append(row)
        what = f"{name} {'+'.join(defects) or 'nothing'} seed {seed}"
        print(f"{'ok ' if right(row) else 'NO '} {what}: {row['verdict']}  {row['shares']}", flush=True)
    stages = list(rows[0]["shares"])
    print("\n" + " ".join(["planted".ljust(26), *(s.rjust(12) for s in stages), "right"]))
    for broken in sorted({"+".join(sorted(truth(r["defects"]))) for r in rows}):
        of = [r for r in rows if "+".join(sorted(truth(r["defects"]))) == broken]
        means = np.mean([[r["shares"][s] / max(1.0, r["deficit"]) for s in stages] for r in of], axis=0)
        print(
            " ".join(
                [(broken or "nothing").ljust(26), *(f"{v:12.2f}" for v in means), f"{sum(map(right, of))}/{len(of)}"]
            )
        )


if __name__ == "__main__":
    main()
