"""How much faster are two workers than one, and what does a survey add to each cell?

    python benchmarks/survey.py [--only parts grid overhead thousand] [--repeats 3]

A Dask scheduler with one worker process and one with two, of one thread each, are started on this machine, and asked
for a few cells before anything is timed: what is measured does not contain the start of processes, imports
and the loading of models, which a longer survey does not repeat. `parts` is one long cell, whose 24 parts are shared,
but for the first, which is timed: each token of `organism` asked for six times, in chunks of 512, as `undertrained`
verifies a vocabulary.
`grid` is 16 cells of `repeated_tokens` on `organism`. Both are run in turn on one worker and on two, in alternating
order; the median of the repeats is given, and the least and the most. `overhead` is what a cell takes in a survey
beyond what it takes in a loop of `interp.run_request` with folders, in seconds by the clock and of the processor;
`thousand` a thousand cells that compute nothing. Ratios are what counts: machines differ, and two workers need two
idle cores.
"""

import argparse
import os
import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

for _name in ("OMP", "MKL", "OPENBLAS"):
    os.environ[f"{_name}_NUM_THREADS"] = "1"

OWN = '''from interp.results import at_once, label
from interp.undertrained import prompts, verification


def nothing(model, *, seed: int = 0):
    """`number` [token]."""
    return label("number", [float(seed)], "token", {"token": [0]})


def asked(model, keep=at_once, *, times: int = 6):
    """`probability` [token prompt new_token]."""
    ids = [*range(model.cfg.d_vocab)] * times
    return verification.verify(model, ids, prompts=prompts.PUBLISHED[:1], steps=1, keep=keep)
'''
SHARED = {"share_after": 0.0}


@contextmanager
def encrypted(place):
    """Dask's configuration for a certificate of this run, as docs/survey.md has it for a cluster."""
    import dask
    from distributed.security import Security

    security = Security.temporary()
    for name, text in (("cert.pem", security.tls_client_cert), ("key.pem", security.tls_client_key)):
        (place / name).write_text(text)
        (place / name).chmod(0o600)
    of = {f"{role}.{kind}": f"{kind}.pem" for role in ("scheduler", "worker", "client") for kind in ("cert", "key")}
    files = {"ca-file": "cert.pem"} | of
    tls = {f"distributed.comm.tls.{name}": str(place / file) for name, file in files.items()}
    with dask.config.set({"distributed.comm.require-encryption": True, **tls}):
        yield


def cluster(workers):
    """A scheduler with so many worker processes of one thread."""
    from distributed import LocalCluster
    from distributed.security import Security

    ends = {"host": "127.0.0.1", "protocol": "tls://"}
    ends |= dict.fromkeys(("dashboard_address", "worker_dashboard_address"), "127.0.0.1:0")
    return LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, security=Security(), **ends)


class Surveys:
    """Surveys into empty folders, on a scheduler with one worker and on one with two."""

    def __init__(self, place, clusters):
        self.place, self.clusters = place, clusters

    def seconds(self, workers, models, experiments, **more):
        """By the clock, from the call to the last result."""
        from interp.survey import Spec, survey

        out = self.place / "out"
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        spec = Spec(models=models, experiments=experiments, **more)
        done = survey(spec, out, scheduler=self.clusters[workers].scheduler_address, log=lambda line: None)
        assert not done.failed, done.failed
        assert len(done.made) == len(done.cells)
        return time.perf_counter() - began

    def in_turn(self, what, repeats, *asked, **more):
        """Print how long it takes on one worker and on two, and how many times faster that is."""
        found = {1: [], 2: []}
        for i in range(repeats):
            for workers in (1, 2) if i % 2 == 0 else (2, 1):
                found[workers].append(self.seconds(workers, *asked, **more))
        ratios = [one / two for one, two in zip(found[1], found[2], strict=True)]
        print(f"{what}: one worker {_said(found[1])} s, two {_said(found[2])} s: {_said(ratios)} times", flush=True)

    def processor_seconds(self, workers):
        """Used so far by the worker processes of a scheduler, and by this process, in which the scheduler runs."""
        import psutil

        pids = [nanny.process.pid for nanny in self.clusters[workers].workers.values()]
        times = [psutil.Process(pid).cpu_times() for pid in [*pids, os.getpid()]]
        return sum(one.user + one.system for one in times)


def _said(values):
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def serial(place, own, count):
    """Seconds per cell of the same cells in a loop, by the clock and of the processor."""
    import interp
    from interp.request import Request

    model = interp.load("wired")
    request = Request.of(f"{own}:nothing", model="wired", seed=count)
    interp.run_request(request, model, out=place / "serial" / "first", log=lambda line: None)
    began = time.perf_counter(), time.process_time()
    for seed in range(count):
        request = Request.of(f"{own}:nothing", model="wired", seed=seed)
        interp.run_request(request, model, out=place / "serial" / str(seed), log=lambda line: None)
    return (time.perf_counter() - began[0]) / count, (time.process_time() - began[1]) / count


def overhead(surveys, own, count=40):
    """Print what a survey adds to a cell."""
    used = surveys.processor_seconds(1)
    each = surveys.seconds(1, ["wired"], [f"{own}:nothing"], seeds=list(range(count))) / count
    each_used = (surveys.processor_seconds(1) - used) / count
    alone, alone_used = serial(surveys.place, own, count)
    print(
        f"a cell of nothing: {each:.3f} s in a survey, {alone:.3f} s in a loop: {each - alone:.3f} s more; "
        f"of the processor {each_used:.3f} s and {alone_used:.3f} s",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["parts", "grid", "overhead", "thousand"])
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        from interp.survey import cluster as of_surveys

        place = Path(folder)
        own = place / "own.py"
        own.write_text(OWN)
        stack.enter_context(encrypted(place))
        import dask

        stack.enter_context(dask.config.set(of_surveys._CONFIG))
        surveys = Surveys(place, {workers: stack.enter_context(cluster(workers)) for workers in (1, 2)})
        for workers in (1, 2):
            few = {"seeds": list(range(4 * workers))}
            if {"overhead", "thousand"} & set(given.only):
                surveys.seconds(workers, ["wired"], [f"{own}:nothing"], **few)
            if {"parts", "grid"} & set(given.only):
                surveys.seconds(workers, ["organism"], ["repeated_tokens --batch 1"], **few)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
        if "parts" in given.only:
            surveys.in_turn("parts", given.repeats, ["organism"], [f"{own}:asked"], **SHARED)
        if "grid" in given.only:
            seeds = list(range(16))
            surveys.in_turn("grid", given.repeats, ["organism"], ["repeated_tokens --batch 8"], seeds=seeds)
        if "overhead" in given.only:
            overhead(surveys, own)
        if "thousand" in given.only:
            used = surveys.processor_seconds(2)
            seconds = surveys.seconds(2, ["wired"], [f"{own}:nothing"], seeds=list(range(1000)))
            used = surveys.processor_seconds(2) - used
            print(f"a thousand cells of nothing on two workers: {seconds:.1f} s; of the processor {used:.1f} s")


if __name__ == "__main__":
    main()
