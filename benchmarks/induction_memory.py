"""What does scoring heads inside hooks save, against keeping every activation first? Linux only.

    python benchmarks/induction_memory.py [3]

A GPT-2-small-shaped model with random weights; 4 sequences of 513 tokens, [BOS, A, A]. Three ways:

- `ours`: `interp.attention_scores`, all five scores of every head, one sequence at a time (its default here);
- `everything`: `model.run_with_cache(ids)`, then the same five scores from the cache;
- `detect_head`: TransformerLens's own, the induction score only, called once for each sequence, as text.

Each runs in a process of its own, warmed up on a short sequence, with the same number of threads. Memory is the
high-water mark of resident memory during the run, minus what was resident before it. It is taken twice: with freed
blocks handed back to the system at once (`MALLOC_MMAP_THRESHOLD_`, so that the mark is what was in use), and with the allocator
of the C library unchanged, which keeps freed blocks; seconds are of the latter. `ours` and `everything` must agree to
1e-5, or the benchmark fails. Only ratios count: machines differ.

`limit` is what no way that reads whole patterns can do without: one layer's attention of one sequence and its residual
stream, in float32.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformer_lens import head_detector
from transformers import GPT2Config, GPT2LMHeadModel

import interp
from interp import attention_scores
from interp.measure import key_masks
from interp.models import TOKENIZER_FILES
from interp.organisms import folder
from interp.tokens import Pool, repeated

SHAPE = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
BATCH, LENGTH = 4, 256
ALLOCATORS = {"handed back": {"MALLOC_MMAP_THRESHOLD_": "131072"}, "left alone": {}}


def limit():
    """MB: heads x positions x positions and positions x width, 4 bytes each."""
    positions = 1 + 2 * LENGTH
    return 4 * (SHAPE["n_head"] * positions**2 + positions * SHAPE["n_embd"]) / 2**20


def ours(model, tokens):
    return attention_scores(model, tokens).score.values


def everything(model, tokens):
    """The definition spelled out: attention on the keys of each kind, summed, averaged over the queries."""
    queries = torch.from_numpy(tokens.inducible_queries)
    masks = key_masks(tokens.ids, queries, bos=True).unbind(1)
    queries = queries[:, None]
    _, cache = model.run_with_cache(tokens.ids)
    layers = []
    for i in range(model.cfg.n_layers):
        pattern = cache[f"blocks.{i}.attn.hook_pattern"]
        on_keys = [(pattern * mask[:, None]).sum(-1) for mask in masks]  # each [batch head query]
        layers.append(torch.stack([(each * queries).sum(-1) / queries.sum(-1) for each in on_keys]))
    return torch.stack(layers, dim=1).transpose(2, 3).numpy()


def detect_head(model, tokens):
    for ids in tokens.ids:
        text = model.tokenizer.decode(ids[1:])
        assert torch.equal(model.to_tokens(text)[0], ids), "the text is another sequence"
        head_detector.detect_head(model, text, "induction_head")


WAYS = {"ours": ours, "everything": everything, "detect_head": detect_head}


def save_model(place):
    """A directory with random weights and a tokenizer: the organism's, which knows the first 2,048 ids."""
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**SHAPE)).save_pretrained(place)
    for file in folder("organism").iterdir():
        if file.name in TOKENIZER_FILES:
            shutil.copy(file, place)


def sequences(model, **size):
    """Of words that are one token each, so that text and ids are the same."""
    texts = [model.tokenizer.decode([i]) for i in range(len(model.tokenizer))]
    words = [i for i, text in enumerate(texts) if text[:1] == " " and text[1:].isalpha()]
    words = [i for i in words if model.tokenizer.encode(texts[i], add_special_tokens=False) == [i]]
    return repeated(Pool("words", tuple(words)), bos=model.tokenizer.bos_token_id, **size)


def resident(what):
    """MB: `VmRSS` now, `VmHWM` at most."""
    return int(re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def measure(way, model_at, scores_to):
    """Seconds and peak MB of one way, in this process."""
    model = interp.load(model_at, device="cpu")
    tokens = sequences(model, batch=BATCH, length=LENGTH)
    with torch.inference_mode():
        model(tokens.ids[:1, :8])  # reads every weight once
        WAYS[way](model, sequences(model, batch=1, length=8))
        Path("/proc/self/clear_refs").write_text("5")  # reset the high-water mark
        before = resident("VmRSS")
        start = time.perf_counter()
        scores = WAYS[way](model, tokens)
        seconds = time.perf_counter() - start
        peak = resident("VmHWM") - before
    if scores is not None:
        np.save(scores_to, scores)
    print(json.dumps({"seconds": seconds, "megabytes": peak, "threads": torch.get_num_threads()}))


def main(rounds):
    """Every way with both allocators, in turn; ratios to ours."""
    seen = {}
    with tempfile.TemporaryDirectory() as place:
        model_at = Path(place) / "model"
        save_model(model_at)
        for _ in range(rounds):
            for allocator, settings in ALLOCATORS.items():
                for way in WAYS:
                    scores = str(Path(place) / f"{way}.npy")
                    command = [sys.executable, __file__, "--measure", way, str(model_at), scores]
                    done = subprocess.run(
                        command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | settings
                    )
                    found = json.loads(done.stdout.splitlines()[-1])
                    seen.setdefault((allocator, "megabytes", way), []).append(found["megabytes"])
                    seen.setdefault((allocator, "seconds", way), []).append(found["seconds"])
                one, two = (np.load(Path(place) / f"{way}.npy") for way in ("ours", "everything"))
                assert abs(one - two).max() < 1e-5, "the two ways disagree"
    print(f"{rounds} rounds, {found['threads']} threads, scores agree to {abs(one - two).max():.0e}")
    for title, allocator, key, unit in (
        ("peak memory over the model, freed blocks handed back", "handed back", "megabytes", "MB"),
        ("peak memory over the model, allocator left alone", "left alone", "megabytes", "MB"),
        ("time", "left alone", "seconds", "s"),
    ):
        mine = seen[allocator, key, "ours"]
        print(f"{title}: ours {' '.join(f'{x:.1f}' for x in mine)} {unit}")
        for way in ("everything", "detect_head"):
            theirs = seen[allocator, key, way]
            ratios = [t / m for t, m in zip(theirs, mine, strict=True)]
            print(
                f"  {way} {' '.join(f'{x:.1f}' for x in theirs)} {unit}; ratio "
                f"{sorted(ratios)[len(ratios) // 2]:.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
            )
    least = limit()
    handed = {way: sorted(seen["handed back", "megabytes", way])[rounds // 2] for way in WAYS}
    print(
        f"limit: {least:.1f} MB = 4 bytes x ({SHAPE['n_head']} heads x {1 + 2 * LENGTH}^2 + "
        f"{1 + 2 * LENGTH} x {SHAPE['n_embd']}); ours is {handed['ours'] / least:.1f} times that, "
        f"everything {handed['everything'] / least:.0f} times"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("rounds", type=int, nargs="?", default=3)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
    else:
        main(options.rounds)
