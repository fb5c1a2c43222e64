"""How much faster are two workers than one, and what does a survey add to each cell?

    python benchmarks/survey.py [--only parts grid overhead thousand]

Single-threaded worker processes on this machine. `parts` is one long cell, the verification of a vocabulary, whose parts
are shared (GPT-2-shaped, random weights, 86 million parameters); `grid` 24 cells of `repeated_tokens` on `organism`;
`overhead` what a cell takes in a survey beyond what it takes in a loop of `interp.run_request` with folders;
`thousand` a thousand cells that compute nothing. The start of processes, which does not grow with the survey, is measured
by a survey of one small cell and subtracted, and shown. Ratios are what counts: machines differ, and two workers need two
idle cores.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

for _name in ("OMP", "MKL", "OPENBLAS"):
    os.environ[f"{_name}_NUM_THREADS"] = "1"

SHAPE = {"vocab_size": 2048, "n_positions": 512, "n_embd": 768, "n_layer": 12, "n_head": 12}
NOTHING = '''from interp.results import label


def nothing(model, *, seed: int = 0):
    """`number` [token]."""
    return label("number", [float(seed)], "token", {"token": [0]})
'''


def surveyed(place, workers, models, experiments, **more):
    """Seconds of a survey into an empty folder."""
    from interp.survey import Spec, survey

    out = Path(place) / "out"
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    done = survey(Spec(models=models, experiments=experiments, **more), out, workers=workers, log=lambda line: None)
    assert not done.failed, done.failed
    return time.perf_counter() - began


def gpt2_shaped(place):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from interp.organisms import folder

    torch.manual_seed(0)
    path = Path(place) / "model"
    GPT2LMHeadModel(GPT2Config(**SHAPE)).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder("organism") / name, path / name)
    return str(path)


def two_against_one(place, what, start, *asked, **more):
    # what a large model was asked is remembered across runs: each begins with nothing
    seconds = {}
    for workers in (1, 2):
        os.environ["INTERP_CACHE"] = str(Path(place) / f"cache-{what}-{workers}")
        seconds[workers] = surveyed(place, workers, *asked, **more) - start[workers]
    print(f"{what}: one worker {seconds[1]:.1f} s, two {seconds[2]:.1f} s: {seconds[1] / seconds[2]:.2f} times")


def serial(place, count):
    """Seconds per cell of the same cells in a loop."""
    import interp
    from interp.request import Request

    model = interp.load("wired")
    began = time.perf_counter()
    for seed in range(count):
        request = Request.of(f"{place}/own.py:nothing", model="wired", seed=seed)
        interp.run_request(request, model, out=f"{place}/serial/{seed}", log=lambda line: None)
    return (time.perf_counter() - began) / count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["parts", "grid", "overhead", "thousand"])
    chosen = parser.parse_args().only
    with tempfile.TemporaryDirectory() as place:
        own = Path(place) / "own.py"
        own.write_text(NOTHING)
        small = (["wired"], [f"{own}:nothing"])
        start = {workers: surveyed(place, workers, *small) for workers in (1, 2)}
        print(f"processes are up after {start[1]:.1f} s (one worker), {start[2]:.1f} s (two)")
        if "parts" in chosen:
            two_against_one(place, "parts", start, [gpt2_shaped(place)], ["undertrained --no-others"], share_after=0)
        if "grid" in chosen:
            two_against_one(place, "grid", start, ["organism"], ["repeated_tokens"], seeds=list(range(24)))
        if "overhead" in chosen:
            count = 40
            each = (surveyed(place, 1, *small, seeds=list(range(count + 1))) - start[1]) / count
            alone = serial(place, count)
            print(f"a cell of nothing: {each:.3f} s in a survey, {alone:.3f} s in a loop: {each - alone:.3f} s more")
        if "thousand" in chosen:
            seconds = surveyed(place, 2, *small, seeds=list(range(1000)))
            print(f"a thousand cells of nothing on two workers: {seconds:.1f} s, {seconds:.1f} ms each")


if __name__ == "__main__":
    main()
