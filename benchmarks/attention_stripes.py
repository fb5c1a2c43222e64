"""What does reducing attention inside the hooks save, against caching every activation first?

    python benchmarks/attention_stripes.py

A GPT-2-small-shaped model with random weights and 4 sequences of 513 tokens. Each way runs in a process of its own;
peak memory is counted over the loaded model. The scores of the two ways must agree to 1e-5, or the benchmark fails.
Ratios are what counts: machines differ.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}


def naive(model, tokens):
    """Cache everything, then reduce."""
    import torch

    from interp.measure import stripes

    queries = torch.from_numpy(tokens.inducible_queries)
    with torch.inference_mode():
        _, cache = model.run_with_cache(tokens.ids)
        layers = [
            stripes(cache[f"blocks.{i}.attn.hook_pattern"], tokens.ids, queries, bos=True)
            for i in range(model.cfg.n_layers)
        ]
    return torch.stack(layers, dim=1).transpose(2, 3).numpy()


def ours(model, tokens):
    """One reducing hook per layer, two sequences at a time, nothing beyond the last block."""
    import torch

    from interp import attention_stripes

    with torch.inference_mode():
        return attention_stripes(model, tokens).score.values


def measure(way):
    """Seconds and peak MB over the loaded model, of one way, in this process."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import interp
    from interp.tokens import Pool, repeated

    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**SHAPE)).save_pretrained(place)
        model = interp.load(place)
    tokens = repeated(Pool("any", tuple(range(1000, 40000))), batch=4, length=256, bos=50256)
    model(tokens.ids[:1, :8])  # the first pass sets things up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    scores = {"naive": naive, "ours": ours}[way](model, tokens)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    np.save(sys.argv[2], scores)
    print(json.dumps({"seconds": seconds, "megabytes": max(peak - before, 1)}))


def main():
    """Both ways in turn, three times, and their ratios."""
    import numpy as np

    rounds = []
    with tempfile.TemporaryDirectory() as place:
        for _ in range(3):
            found = {}
            for way in ("naive", "ours"):
                command = [sys.executable, __file__, way, str(Path(place) / f"{way}.npy")]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[way] = json.loads(done.stdout.splitlines()[-1])
            rounds.append(found)
            one, two = (np.load(Path(place) / f"{way}.npy") for way in ("naive", "ours"))
            assert abs(one - two).max() < 1e-5, "the two ways disagree"
    for key in ("megabytes", "seconds"):
        ratios = sorted(r["naive"][key] / r["ours"][key] for r in rounds)
        example = rounds[0]
        print(f"{key}: naive {example['naive'][key]:.1f}, ours {example['ours'][key]:.1f}; "
              f"ratio {ratios[1]:.2f} ({ratios[0]:.2f} .. {ratios[2]:.2f})")  # fmt: skip


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
