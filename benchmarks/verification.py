"""How much faster is asking every token in batches than one `generate` call per prompt and token?

    python benchmarks/verification.py [--device cuda]

GPT-2-shaped models with random weights, of the size of the bundled models and of GPT-2 small, the published three prompts,
three greedy tokens. Each way runs in a process of its own; peak memory is counted over the loaded model. The
probabilities of the two ways must agree to 1 in 1,000. Only ratios count: machines differ.

The limit is arithmetic: both ways multiply the same matrices for every token of every prompt. What batching saves is
the overhead of each call, the passes for one token at a time, and the tokens before the tested one, which are run once.
`bound` is the time for the multiplications alone, at the speed this machine reaches on a matrix product of that
model's own shapes; `of the bound` is how near the batched way comes.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPES = {
    "small": {"vocab_size": 2048, "n_positions": 512, "n_embd": 128, "n_layer": 2, "n_head": 4},
    "gpt2": {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12},
}
ASKED = {"small": (40, 400), "gpt2": (3, 24)}  # tokens for the plain way and for ours


def model_folder(shape, place):
    """A model of that shape with random weights and a bundled model's tokenizer, as a Hugging Face directory."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from interp.organisms import folder

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(**SHAPES[shape])).save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder("organism") / name, Path(place) / name)
    return place


def plain(place, tokens, device):
    """One `generate` call per prompt and token, as the published code does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from interp.undertrained import PUBLISHED
    from interp.undertrained.prompts import HOLE, placeholders, template
    from interp.vocabulary import census

    tokenizer = AutoTokenizer.from_pretrained(place)
    network = AutoModelForCausalLM.from_pretrained(place).eval().to(device)
    words = placeholders(census(tokenizer))
    forms = [template(p, tokenizer, words) for p in PUBLISHED]

    def one(form, token):
        prompt = torch.tensor([[token if i == HOLE else i for i in form]], device=device)
        made = network.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=3,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=tokenizer.eos_token_id,
        )
        return [float(step.log_softmax(-1)[0, token].exp()) for step in made.logits]

    one(forms[1], 5)

    def work():
        with torch.no_grad():
            return [[one(form, token) for form in forms] for token in tokens]

    return work, forms


def ours(place, tokens, device):
    """The package's own: batches, what is common to all tokens run once, last positions only."""
    import interp
    from interp.undertrained import PUBLISHED, verify

    model = interp.load(place, device=device)
    verify(model, tokens[:1], prompts=PUBLISHED)
    return lambda: verify(model, tokens, prompts=PUBLISHED).probability.values.tolist(), None


def bound(shape, forms, device):
    """Seconds per token for the multiplications alone, with what is common to all tokens left out."""
    import torch

    from interp.undertrained.prompts import HOLE

    width, layers, words = (SHAPES[shape][k] for k in ("n_embd", "n_layer", "vocab_size"))
    rows = torch.randn(4096, width, device=device)
    weight = torch.randn(width, 4 * width, device=device)
    for _ in range(3):
        rows @ weight
    start = time.perf_counter()
    for _ in range(10):
        out = rows @ weight
    float(out[0, 0])
    speed = 10 * 2 * rows.numel() * 4 * width / (time.perf_counter() - start)
    work = 0.0
    for form in forms:
        new = len(form) - form.index(HOLE) + 2  # the positions run for each token, two steps after the first included
        work += 2 * 12 * width**2 * layers * new + 4 * width * layers * new * len(form) / 2 + 3 * 2 * width * words
    return work / speed


def measure(way, shape, device, to):
    """Seconds per token and peak MB over the loaded model, of one way, in this process."""
    import torch

    tokens = list(range(300, 300 + ASKED[shape][way == "ours"]))
    with tempfile.TemporaryDirectory() as place:
        work, forms = {"plain": plain, "ours": ours}[way](model_folder(shape, place), tokens, device)
        cuda = device == "cuda"
        before = (
            torch.cuda.memory_allocated() / 2**20 if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        )
        start = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - start
        peak = (
            torch.cuda.max_memory_allocated() / 2**20
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        )
    Path(to).write_text(json.dumps(found[: ASKED[shape][0]]))
    limit = bound(shape, forms, device) if forms else None
    print(json.dumps({"seconds": seconds / len(tokens), "megabytes": max(peak - before, 1), "bound": limit}))


def main(shapes, device, rounds):
    """Both ways in turn, and their ratios."""
    import numpy as np

    for shape in shapes:
        kept = []
        with tempfile.TemporaryDirectory() as place:
            for _ in range(rounds):
                found = {}
                for way in ("plain", "ours"):
                    to = str(Path(place) / f"{way}.json")
                    command = [sys.executable, __file__, "--measure", way, shape, device, to]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found[way] = json.loads(done.stdout.splitlines()[-1])
                kept.append(found)
                one, two = (
                    np.array(json.loads((Path(place) / f"{way}.json").read_text())) for way in ("plain", "ours")
                )
                assert np.allclose(one, two, rtol=1e-3, atol=1e-9), "the two ways disagree"
        first = kept[0]
        faster = sorted(r["plain"]["seconds"] / r["ours"]["seconds"] for r in kept)
        memory = sorted(r["ours"]["megabytes"] / r["plain"]["megabytes"] for r in kept)
        near = sorted(r["plain"]["bound"] / r["ours"]["seconds"] for r in kept)
        most = sorted(r["plain"]["seconds"] / r["plain"]["bound"] for r in kept)
        middle = len(kept) // 2
        speeds = {way: 1 / first[way]["seconds"] for way in ("plain", "ours")}
        peaks = {way: first[way]["megabytes"] for way in ("plain", "ours")}
        print(
            f"{shape}: plain {speeds['plain']:.2f}, ours {speeds['ours']:.2f} tokens a second; "
            f"ratio {faster[middle]:.1f} ({faster[0]:.1f} .. {faster[-1]:.1f})"
        )
        print(
            f"   peak memory over the model: plain {peaks['plain']:.0f} MB, ours {peaks['ours']:.0f} MB; "
            f"ratio {memory[middle]:.1f} ({memory[0]:.1f} .. {memory[-1]:.1f})"
        )
        print(
            f"   the multiplications alone would allow a ratio of {most[middle]:.1f}; "
            f"ours reaches {near[middle]:.0%} of that bound"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.measure:
        measure(*given.measure)
    else:
        main(given.shapes, given.device, given.rounds)
