"""How long do the parts of a report take on a public model, compared with a plain loop and the multiplications alone?

    python benchmarks/public_model.py [--model smollm2] [--parts asking heads ablation matching]

Each part is run in the package's way and in the plain way on fewer items, in one process, alternating; times are of one
item. `of the bound` is the time that the multiplications of the package's way would take at the rate that this machine
reaches on a product of matrices of the model's shapes (counted by torch's own counter), divided by the time it took.
Peak memory is counted over the loaded model. Only ratios count: machines differ.
"""

import argparse
import resource
import time
from functools import partial
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

import interp
from interp import cache, circuits, hooks, undertrained
from interp.first_token import first_token
from interp.heads import classify_heads
from interp.hooks import ablate_heads, heads_of, record, z_names
from interp.measure import log_probs
from interp.pool_names import ordinary_pool
from interp.sweep import sweep
from interp.tokens import Pool, repeated
from interp.undertrained.prompts import HOLE, placeholders, template
from interp.vocabulary import census


def rate(width: int, dtype: torch.dtype) -> float:
    """Multiplications and additions a second of a product of matrices, in float32 or bfloat16."""
    left, right = torch.randn(1024, width).to(dtype), torch.randn(width, 4 * width).to(dtype)
    for _ in range(3):
        left @ right
    start = time.perf_counter()
    for _ in range(20):
        left @ right
    return 20 * 2 * 1024 * width * 4 * width / (time.perf_counter() - start)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def asking(model):
    """Verification of tokens by the three published prompts: batches in bfloat16, against one token and prompt a time."""
    pool = ordinary_pool(model).ids[1000:1048]
    tokenizer = interp.models.published_tokenizer(model)
    words = placeholders(census(model))
    forms = [template(p, tokenizer, words) for p in undertrained.PUBLISHED]

    def plain():
        for form in forms:
            ids = [pool[0] if i == HOLE else i for i in form]
            for _ in range(undertrained.STEPS):
                logits = model(torch.tensor([ids]), prepend_bos=False)[0, -1]
                ids.append(int(logits.argmax()))

    def ours():
        with patch.object(cache, "known_of", lambda *_: None):  # no reuse of the first call's results
            undertrained.verify(model, pool, prompts=undertrained.PUBLISHED)

    return ours, len(pool), plain, 1, None  # in the faster format of this machine


def heads(model):
    """Scores of all heads on repeated blocks, reduced in the hook, against caching everything and reducing then."""
    tokens = repeated(ordinary_pool(model), batch=4, length=25, bos=first_token(model).id)

    def plain():
        _, cache = model.run_with_cache(tokens.ids[:1], prepend_bos=False)
        for name in hooks.pattern_names(model):
            cache[name][..., -1, :].max()

    return partial(classify_heads, model, tokens), 2 * len(tokens.ids), plain, 1, torch.float32


def ablation(model):
    """Ablation of single heads: one clean run resumed, against a forward pass for each."""
    tokens = repeated(ordinary_pool(model), batch=4, length=16, bos=first_token(model).id)
    known = record(model, tokens, z_names(model))
    every = heads_of(model)[:: max(1, len(heads_of(model)) // 45)]
    plans = [ablate_heads(model, [at], kind="mean", record=known) for at in every]
    read = torch.from_numpy(tokens.inducible_tested)

    def plain():
        for plan in plans[:: len(plans) // 3][:3]:
            log_probs(model.run_with_hooks(tokens.ids, fwd_hooks=plan, prepend_bos=False), tokens.ids)

    return partial(sweep, model, tokens, plans, read), len(plans), plain, 3, torch.float32


def matching(model):
    """Matching of one sender through all later heads, 64 tokens of a pool, against the 512 of the full budget."""
    pool = Pool("some", ordinary_pool(model).ids[:2000])
    sender = [(model.cfg.n_layers // 3, 0)]
    ours = partial(circuits.matching, model, [pool], sender, 24, tokens=64)
    return ours, 1, partial(circuits.matching, model, [pool], sender, 24), 1, torch.float32


PARTS = {part.__name__: part for part in (asking, heads, ablation, matching)}


def main(name: str, parts: list[str], rounds: int) -> None:
    model = interp.load(name)
    rates = {dtype: rate(model.cfg.d_model, dtype) for dtype in (torch.float32, torch.bfloat16)}
    print(", ".join(f"{dtype}: {value / 1e9:.0f} GFLOP/s" for dtype, value in rates.items()), flush=True)
    with torch.no_grad():
        for part in parts:
            ours, count, plain, few, dtype = PARTS[part](model)
            with FlopCounterMode(display=False) as counter:
                ours()
            work, before, times = counter.get_total_flops(), peak(), {"ours": [], "plain": []}
            for _ in range(rounds):
                for way, run, items in (("plain", plain, few), ("ours", ours, count)):
                    start = time.perf_counter()
                    run()
                    times[way].append((time.perf_counter() - start) / items)
            ratios = sorted(p / o for p, o in zip(times["plain"], times["ours"], strict=True))
            bound = work / rates.get(dtype, max(rates.values())) / (min(times["ours"]) * count)
            print(
                f"{part}: {min(times['plain']):.3g} s -> {min(times['ours']):.3g} s an item; ratio "
                f"{ratios[len(ratios) // 2]:.1f} ({ratios[0]:.1f} .. {ratios[-1]:.1f}); {bound:.0%} of the bound; "
                f"{max(0, peak() - before):.0f} MB more",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    main(given.model, given.parts, given.rounds)
