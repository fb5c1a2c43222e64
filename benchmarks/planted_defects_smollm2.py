"""Does the attribution name what was broken in a deep model? Planted defects on an untied copy of SmolLM2.

    python benchmarks/planted_defects_smollm2.py --seeds 1 [--out DIR] [--only random-rows blind-values@0.67 ...]

Ordinary tokens that the model copies are broken in one way (`interp.defects`), wholly or in part, and
`glitch_attribution` is asked why they fail. `@0.67` breaks them by that part; `/effect` breaks the heads whose ablation
costs most, and not those that are classified as induction heads. Finished cases are kept in the folder and not run
again. Prints a table of planted against named.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from planted_defects import outcome, parsed, print_confusion
from transformer_lens.model_bridge import TransformerBridge

import interp
from interp.defects import planted, related
from interp.files import writable
from interp.heads import classify_heads
from interp.measure import log_probs
from interp.pool_names import ordinary_pool
from interp.tokens import Pool, local_generator, repeated

CASES = (
    "random-rows", "blind-values", "blind-keys", "collapsed", "suppressed", "none", "shrunk-rows", "blind-previous",
    "nearly-collapsed", "random-rows@0.67", "random-rows@0.33", "blind-values@0.67", "blind-values@0.33",
    "blind-keys@0.67", "blind-keys@0.33", "blind-previous@0.67", "suppressed@0.67", "shrunk-rows@0.67",
    "collapsed@0.67", "blind-values/effect", "blind-keys/effect", "blind-keys@0.67/effect", "blind-keys+random-rows",
    "blind-values+blind-keys", "suppressed+random-rows", "blind-keys+suppressed",
)  # fmt: skip
SIZE, LENGTH, BOS = 24, 10, 0
COPIED = -0.5  # log-prob from which a token counts as copied
AS_MANY = 12  # heads that are broken by their effect


def untied() -> TransformerBridge:
    """SmolLM2 with output rows of its own, equal to its input rows."""
    model = interp.load("smollm2")
    head = model.original_model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone(), requires_grad=False)
    return model


def copied(model: TransformerBridge, ordinary: Pool, seed: int) -> list[int]:
    """Ordinary tokens that the model copies."""
    probe = repeated(ordinary, batch=160, length=LENGTH, bos=BOS, seed=1000 + seed)
    found = []
    for part in probe.split(16):
        with torch.no_grad():
            scores = log_probs(model(part.ids, prepend_bos=False), part.ids).cpu()
        at = torch.from_numpy(part.inducible).expand_as(part.ids) & (scores > COPIED)
        found += part.ids[at].tolist()
    return sorted(set(found))


def by_effect(model: TransformerBridge, ordinary: Pool, heads: xr.Dataset, folder: Path) -> xr.Dataset:
    """`heads` in which the induction heads are those whose ablation costs most."""
    lost = interp.run("head_ablation", model, [ordinary], batch=2, length=LENGTH, bos=BOS, out=folder / "effects")
    effect = lost["lost"].isel(pool=0).mean("batch").values
    chosen = np.zeros(effect.shape, dtype=bool)
    chosen[np.unravel_index(np.argsort(-effect, axis=None)[:AS_MANY], effect.shape)] = True
    classified = heads["classified"].copy()
    classified.loc[{"kind": "induction"}] = chosen
    return heads.assign(classified=classified)


def case(model: TransformerBridge, name: str, seed: int, heads: xr.Dataset, folder: Path) -> dict[str, object]:
    """The model broken in one way, and the attribution's result."""
    defects, part, effect = parsed(name)
    ordinary = ordinary_pool(model)
    good = copied(model, ordinary, seed)
    if "suppressed" in defects:
        ids = related(model, good, SIZE, seed=seed)
    else:
        order = torch.randperm(len(good), generator=local_generator(seed, 99)).tolist()
        ids = sorted(good[i] for i in order[:SIZE])
    broken = by_effect(model, ordinary, heads, folder) if effect else heads
    began = time.monotonic()
    with planted(model, ids, defects, heads=broken, part=part, seed=seed):
        found = interp.run(
            "glitch_attribution", model, [Pool("broken", tuple(ids))], batch=8, length=LENGTH, bos=BOS, seed=seed
        ).isel(pool=0)

    def numbers(name: str) -> dict[str, float]:
        return {str(s): round(float(v), 3) for s, v in zip(found.stage.values, found[name].values, strict=True)}

    return {
        "case": name,
        "seed": seed,
        "defects": defects,
        "deficit": round(float(found.deficit), 3),
        "shares": numbers("share"),
        "low": numbers("share_low"),
        "most": numbers("share_high"),
        "reasons": {str(s): str(r) for s, r in zip(found.stage.values, found.reason.values, strict=True) if r},
        "seconds": round(time.monotonic() - began),
        "verdict": found.attrs["verdict"].partition(": ")[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=CASES)
    parser.add_argument("--out", default="results/planted_smollm2")
    options = parser.parse_args()
    folder, rows, model, heads = Path(writable(options.out)), [], None, None
    for seed in range(options.seeds):
        for name in options.only:
            path = folder / f"{name.replace('/', '-')}-{seed}.json"
            if not path.exists():
                if model is None:
                    model = untied()
                    pool = ordinary_pool(model)
                    with torch.no_grad():
                        heads = classify_heads(model, repeated(pool, batch=16, length=LENGTH, bos=BOS))
                row = case(model, name, seed, heads, folder)
                part = path.with_suffix(".part")
                part.write_text(json.dumps(row) + "\n")
                part.rename(path)
            row = json.loads(path.read_text())
            rows.append(row)
            print(
                f"{outcome(row)}: {name} seed {seed} ({row['seconds']} s): {row['verdict']} {row['shares']}", flush=True
            )
    print_confusion(rows)


if __name__ == "__main__":
    main()
