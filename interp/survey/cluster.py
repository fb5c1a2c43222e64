"""Who does the work: processes of this machine that nobody else can reach, or a Dask cluster that is there already?"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dask
from distributed import Client, LocalCluster, WorkerPlugin
from distributed.security import Security

from interp import cache
from interp.errors import InterpError, first_line

LOOPBACK = "127.0.0.1"
_TIMEOUT = 20  # seconds to reach a scheduler
_THREADS = 2  # of a worker, where there is no GPU and nothing else is asked for
_CONFIG = {
    # a worker keeps its model, which is no memory that Dask could free; near the machine's end it is killed
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # Dask has freed memory returned at once: page faults at each tensor take a third of the time of a verification
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 1 << 30,
    "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": 1 << 25,
    # a process that died is started again, however long that takes on a busy machine
    "distributed.deploy.lost-worker-timeout": "1 day",
    "distributed.comm.timeouts.connect": "90s",
    "distributed.scheduler.worker-ttl": None,  # loading a model may hold a process for minutes
}


class OneDevice(WorkerPlugin):
    """Gives each worker a GPU of its own: number i the i-th of those that are visible."""

    name = "interp-one-device"

    def __init__(self, devices: list[str]):
        self.devices = devices

    def setup(self, worker: Any) -> None:
        """Before anything of CUDA is used in the process."""
        if self.devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.devices[int(worker.name) % len(self.devices)]


@contextmanager
def connected(
    scheduler: str | None, workers: int | None, resources: Mapping[str, float], log: cache.Log
) -> Iterator[Client]:
    """A client of a running scheduler, or of a cluster of this machine that ends with it.

    Args:
        scheduler: its address, such as tls://login:8786, with the credentials of Dask's configuration; None: a cluster
            of this machine, with credentials of its own that end with it, reachable from this machine only.
        workers: processes of that cluster; None: one for each GPU or, without any, one for every two cores.
        resources: what each of them offers.
        log: is told where the dashboard is.

    Yields:
        The client.

    Raises:
        InterpError: the scheduler is not reached, or refuses.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said once, in a line
    if scheduler is not None:
        if workers is not None:
            raise InterpError("--workers are processes of this machine, and a scheduler has its own: leave one out")
        with _reached(scheduler) as client:
            if not scheduler.startswith("tls://"):
                log(
                    f"{scheduler} takes code from whoever reaches it: on a machine that you share, start it with TLS "
                    "(docs/survey.md)"
                )
            log(f"dashboard: {client.dashboard_link}")
            yield client
        return
    devices = _gpus()
    count = workers or len(devices) or max(1, _cores() // _THREADS)
    if count < 1:
        raise InterpError(f"--workers {count}: use a positive integer")
    threads = str(max(1, _cores() // count))
    environment = {f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS")}
    loopback = f"{LOOPBACK}:0"
    with (
        dask.config.set(_CONFIG),
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            host=LOOPBACK,
            security=Security.temporary(),
            dashboard_address=loopback,
            worker_dashboard_address=loopback,
            resources=dict(resources),
            env=environment,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.register_plugin(OneDevice(devices))
        log(f"{count} worker processes, {threads} threads each; dashboard: {cluster.dashboard_link}")
        yield client


@contextmanager
def _reached(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=_TIMEOUT, set_as_default=False)
    except (OSError, TypeError, ValueError, RuntimeError) as error:  # Dask's own kinds are among these
        raise InterpError(
            f"no scheduler at {address} ({first_line(error)}): start one with 'dask scheduler', and give its "
            "credentials where it has TLS (docs/survey.md)"
        ) from error
    with client:
        yield client


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs that are visible here, as CUDA_VISIBLE_DEVICES names them."""
    if os.environ.get("INTERP_DEVICE", "cuda").partition(":")[0] != "cuda":
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]
