"""How often is a deficit claimed where there is none? Random pools of ordinary tokens, against other ordinary tokens.

    python benchmarks/no_deficit.py --model organism-untied --pools 40 [--size 30] [--batch 64] [--out DIR]

Each pool is asked about as glitch tokens are (`glitch_attribution`). Wrong is a verdict that names a stage, and a
deficit whose 95% interval lies above 0.1 nats; at most 5% should be. Right is "no deficit" (the interval lies below 0.1
nats); all else is undecided. Finished pools are kept in the folder and not run again. Prints a line for each, and
the rates with their 95% intervals (Wilson).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformer_lens.model_bridge import TransformerBridge

import interp
from interp.files import writable
from interp.pool_names import ordinary_pool
from interp.statistics import wilson_interval
from interp.tokens import Pool, local_generator

SLIGHT = 0.1  # nats below which there is nothing to explain
OUTCOMES = ("stage claimed", "deficit claimed", "no deficit", "cannot tell")


def random_pool(model: TransformerBridge, number: int, size: int) -> tuple[Pool, Pool]:
    """Ordinary tokens drawn at random, and all others."""
    ordinary = ordinary_pool(model)
    order = torch.randperm(len(ordinary), generator=local_generator(number, 1 << 25)).tolist()
    ids = sorted(ordinary.ids[i] for i in order[:size])
    return Pool(f"random {number}", tuple(ids)), ordinary.without(ids)


def case(model: TransformerBridge, number: int, size: int, **options: Any) -> dict[str, Any]:
    """The verdict on one random pool."""
    pool, others = random_pool(model, number, size)
    began = time.monotonic()
    reference = ",".join(map(str, others.ids))
    found = interp.run("glitch_attribution", model, [pool], reference=reference, seed=number, **options).isel(pool=0)
    shares = zip(found["stage"].values, found["share"].values, strict=True)
    return {
        "pool": number,
        "deficit": [round(float(found[name]), 4) for name in ("deficit", "deficit_low", "deficit_high")],
        "shares": {str(stage): round(float(share), 4) for stage, share in shares},
        "tokens_p": round(float(found["tokens_deficit_p"]), 4),
        "verdict": found.attrs["verdict"].partition(": ")[2],
        "seconds": round(time.monotonic() - began, 1),
    }


def outcome(row: dict[str, Any]) -> str:
    """One of `OUTCOMES`."""
    if not row["verdict"].startswith(("no deficit", "cannot tell")):
        return "stage claimed"
    if row["deficit"][1] > SLIGHT:
        return "deficit claimed"
    return "no deficit" if row["verdict"].startswith("no deficit") else "cannot tell"


def rates(rows: Sequence[dict[str, Any]]) -> str:
    """How often each outcome occurred, and how often a claim was wrong, with 95% intervals."""
    found = [outcome(row) for row in rows]

    def of(words: str, count: int) -> str:
        low, high = wilson_interval(count, len(rows))
        return f"{words}: {count} of {len(rows)} ({count / len(rows):.1%}, {low:.1%} .. {high:.1%})"

    wrong = sum("claimed" in one for one in found)
    differing = sum(row["tokens_p"] < 0.05 for row in rows)
    lines = [of("wrongly claimed", wrong), *(of(f"  {name}", found.count(name)) for name in OUTCOMES)]
    return "\n".join([*lines, of("tokens said to differ (p < 0.05)", differing)])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="organism-untied")
    parser.add_argument("--pools", type=int, default=40)
    parser.add_argument("--size", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, help="tokens in a block; default: that of the budget")
    parser.add_argument("--out", default="results/no_deficit")
    options = parser.parse_args()
    drawn = {"batch": options.batch} | ({} if options.length is None else {"length": options.length})
    folder, rows, model = Path(writable(options.out)), [], None
    stem = f"{Path(options.model).name}-{options.size}-{options.batch}-{options.length or 'usual'}"
    for number in range(options.pools):
        path = folder / f"{stem}-{number}.json"
        if not path.exists():
            model = interp.load(options.model) if model is None else model
            part = path.with_suffix(".part")
            part.write_text(json.dumps(case(model, number, options.size, **drawn)) + "\n")
            part.rename(path)
        rows.append(json.loads(path.read_text()))
        row = rows[-1]
        print(f"{outcome(row)}: pool {number} ({row['seconds']} s): {row['verdict']}  {row['shares']}", flush=True)
    print("\n" + rates(rows))


if __name__ == "__main__":
    main()
