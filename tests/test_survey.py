"""Does a survey run only what is missing, with the results of a serial run, whichever process is killed? Is it secure?"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner

import interp
from interp import cli, models, results, survey as surveying
from interp.errors import InterpError
from interp.places import Place
from interp.request import Request
from interp.survey import cells, driver, spec as specs, worker
from interp.undertrained import detection, verification

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "survey.toml"
UNDERTRAINED = {"name": "undertrained", "others": False, "verify_tokens": "detected"}
# experiments of a user's own: one that is slow enough to be looked at, one that takes its process with it
OWN = '''"""What does a worker do with these?"""

import os
import signal
import time

from interp.results import label


def nap(model, *, seconds: float = 0.1, seed: int = 0):
    """`number` [token]."""
    time.sleep(seconds)
    return label("number", [float(seed)], "token", {"token": [0]})


def crash(model):
    """Nothing: the process is gone."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(model):
    """Nothing: it raises."""
    raise ValueError("no number\\nof this kind")
'''


def written(path, models=("wired",), experiments=(UNDERTRAINED,), **more):
    """A spec as a TOML file; returns its path."""
    lines = [
        f"{name} = {_toml(value)}" for name, value in {"models": models, "experiments": experiments, **more}.items()
    ]
    path.write_text("\n".join(lines))
    return path


def _toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(entry)}" for name, entry in value.items()) + "}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list | tuple) else json.dumps(value)


def spec_of(**fields):
    return specs.Spec.model_validate({"models": ["wired"], "experiments": [UNDERTRAINED], **fields})


# --- the spec ---------------------------------------------------------------------------------------------------------


def test_the_example_is_every_model_by_experiment_and_seed():
    spec = surveying.read_spec(EXAMPLE)
    found = spec.cells()
    assert len(found) == len({cell.name for cell in found}) == 3 * 3 * 2
    assert [cell.request.model.name for cell in found[:6]] == ["organism"] * 6  # a model at a time
    assert found[0].request == Request.of("repeated_tokens", batch=8, seed=0)
    assert found[5].request == Request.of("undertrained", others=False, seed=1)
    assert {
        tuple(Request.from_argv(cell.request.to_argv()).to_json().items()) == tuple(cell.request.to_json().items())
        for cell in found
    } == {True}


def test_models_are_names_patterns_revisions_and_folders(tmp_path):
    for step in (100, 20, 3):
        (tmp_path / f"step{step}").mkdir()
        (tmp_path / f"step{step}" / "config.json").write_text("{}")
    (tmp_path / "step7").mkdir()  # no model
    (tmp_path / "a.gguf").write_text("")
    spec = spec_of(
        models=[
            "organism-ll*",
            f"{tmp_path}/step*",
            f"{tmp_path}/*.gguf",
            "owner/name@step5",
            {"name": "wired", "dtype": "bfloat16"},
        ]
    )
    asked = [cell.request.model for cell in spec.cells()]
    assert [Path(model.name).name for model in asked] == [
        "organism-llama",
        "step3",
        "step20",
        "step100",
        "a.gguf",
        "name",
        "wired",
    ]
    assert asked[5].revision == "step5"
    assert asked[6].dtype == "bfloat16"
    with pytest.raises(InterpError, match="no model matches 'nothing-"):
        spec_of(models=["nothing-*"]).cells()


def test_pools_and_seeds_apply_only_where_they_matter():
    spec = spec_of(
        experiments=["repeated_tokens", "repeated_tokens --pool text --seed 7", UNDERTRAINED],
        pools=["1:9"],
        seeds=[0, 1],
        models=["organism"],
    )
    asked = [cell.request for cell in spec.cells()]
    assert [request.pools for request in asked] == [("1:9",)] * 2 + [("text",)] + [None] * 2
    assert [request.seed for request in asked] == [0, 1, 7, 0, 1]
    needing = spec_of(
        models=["organism", {"name": "wired", "resources": {"GPU": 1, "MEMORY": 4e9}}], resources={"GPU": 2}
    ).cells()
    assert [cell.resources for cell in needing] == [{"GPU": 2}, {"GPU": 1, "MEMORY": 4e9}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models = [", "is no TOML"),
        ("models = ['wired']\nexperiments = ['check']\nseed = 1", "unknown field 'seed': leave it out"),
        ("models = []\nexperiments = ['check']", "models"),
        ("experiments = ['check']", "models"),
        ("models = ['wired']\nexperiments = ['no_such']", "unknown experiment 'no_such'"),
        ("models = ['wired']\nexperiments = ['check --no-such 1']", "unknown option '--no-such'"),
        ("models = ['wired']\nexperiments = [{name = 'undertrained', no_such = 1}]", "no parameter 'no_such'"),
        ("models = ['wired']\nexperiments = [{others = false}]", "without a name"),
        ("models = ['wired']\nexperiments = ['check --model gpt2']", "models stand in 'models'"),
        ("models = ['wired']\nexperiments = [\"check 'a\"]", "quotation"),
        ("models = ['./nowhere']\nexperiments = ['check']", "no model directory"),
    ],
)
def test_a_mistake_in_the_spec_gets_a_one_line_message(text, said, tmp_path):
    (tmp_path / "spec.toml").write_text(text)
    done = CliRunner().invoke(
        cli.app, ["survey", str(tmp_path / "spec.toml"), "--out", str(tmp_path / "out"), "--dry-run"]
    )
    assert done.exit_code == 1
    assert said in done.stderr.replace("\n", " ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_dask_there_is_a_one_line_message(monkeypatch, tmp_path):
    monkeypatch.setattr(surveying, "find_spec", lambda name: None)
    done = CliRunner().invoke(cli.app, ["survey", str(EXAMPLE), "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "pip install 'interp[survey]'" in done.stderr


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_version_of_a_model_is_known_without_loading_it(organism):
    assert models.version_of("organism") == {"sha256": models.origin(organism)["sha256"]}
    assert models.version_of("wired") == {}
    assert models.weight_bytes("organism") == (interp.organisms.folder("organism") / "model.safetensors").stat().st_size


def test_whatever_affects_the_numbers_changes_the_key(tmp_path):
    own = tmp_path / "own_keyed.py"
    own.write_text(OWN)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("{}")
    one = Request.of(f"{own}:nap", prompts=[str(prompts)], seed=0)
    version = {"sha256": "a"}
    key = cells.key_of(one, version)
    assert key == cells.key_of(one, version)
    assert key != cells.key_of(one.model_copy(update={"seed": 1}), version)
    assert key != cells.key_of(one, {"sha256": "b"})
    prompts.write_text("{ }")
    other = cells.key_of(one, version)
    assert key != other
    own.write_text(OWN.replace("float(seed)", "float(seed) + 1"))
    assert other != cells.key_of(one, version)
    # a comment affects no number
    own.write_text(OWN + "# a comment\n")
    assert other == cells.key_of(one, version)


def test_the_code_of_an_experiment_is_read_once_for_all_of_its_cells(tmp_path, monkeypatch):
    """Defect: it was read for each, a tenth of a second, so that a thousand cells began after minutes."""
    read, real = [], cells.cache.code_fingerprint
    monkeypatch.setattr(cells.cache, "code_fingerprint", lambda of: (read.append(of.__name__), real(of))[1])
    spec = spec_of(experiments=["repeated_tokens", "logit_lens"], seeds=list(range(20)))
    _, every = tickets(spec, tmp_path)
    assert len({ticket.key for ticket in every}) == 40
    assert sorted(read) == ["logit_lens", "repeated_tokens"]


# --- one worker, in this process --------------------------------------------------------------------------------------


@pytest.fixture
def small_chunks(monkeypatch):
    """A third of the tokens that would be asked, in chunks of sixty."""
    asked = "interp.experiments.undertrained.experiment.to_ask"
    monkeypatch.setattr(asked, lambda *given, **options: detection.to_ask(*given, **options)[::3])
    monkeypatch.setattr(verification, "_CHUNK", 60)
    yield
    worker.forget()


def tickets(spec, address):
    place = Place(address)
    return place, list(driver.tickets_of(spec.cells(), place, spec.share_after).values())


def same_as_serial(ticket, place, tmp_path):
    """The folder holds the results of a serial run, bit for bit."""
    assert place.fetch(ticket.at("result.nc"), tmp_path / "got" / "result.nc")
    got = results.load(tmp_path / "got")
    serial = interp.run_request(Request.from_json(ticket.request))
    assert got.drop_attrs(deep=False).identical(
        results.load(results.save(serial, tmp_path / "serial.nc")).drop_attrs(deep=False)
    )
    told = [{k: v for k, v in results.provenance(one).items() if k != "versions"} for one in (got, serial)]
    assert told[0] == told[1]
    return True


@pytest.mark.survey
@pytest.mark.parametrize("address", ["folder", "memory://survey-parts"])
def test_parts_computed_in_any_order_equal_the_serial_run(address, small_chunks, tmp_path, monkeypatch):
    """Verification of a vocabulary; the worker that makes them forgets everything half-way."""
    address = str(tmp_path / "out") if address == "folder" else address
    asked = []
    real = verification._Asker.asked
    monkeypatch.setattr(
        verification._Asker, "asked", lambda self, part, *rest: (asked.append(tuple(part)), real(self, part, *rest))[1]
    )
    place, (ticket,) = tickets(
        spec_of(experiments=["undertrained --no-others --verify-tokens detected"], models=["organism"], share_after=0),
        address,
    )
    answer = worker.run_cell(ticket)
    assert answer.state == "shared"
    assert len(answer.parts) > 2
    assert place.size(ticket.at("cell.json")) is None
    for i, part in enumerate(reversed(answer.parts.items())):
        if i == 1:
            worker.forget()
        assert worker.run_part(ticket, *part).state == "finished"
    assert len(asked) == len(set(asked)) == 1 + len(answer.parts)  # each once; the first was timed
    assert worker.run_part(ticket, *part).state == "finished"  # there already
    assert len(asked) == 1 + len(answer.parts)
    assert worker.run_cell(ticket).state == "finished"
    assert len(asked) == 1 + len(answer.parts)
    assert same_as_serial(ticket, place, tmp_path)
    assert not place.read_all(ticket.at(".parts/*"))
    assert driver.finished(place, {ticket.name: ticket}) == [ticket.name]
    if place.folder is not None:  # as 'interp run --out' leaves it
        folder = place.folder / "cells" / ticket.name
        said = []
        interp.run_request(Request.from_json(ticket.request), out=folder, log=said.append)
        assert "taken from an earlier run" in said[-1]


@pytest.mark.experiment
def test_a_sweep_is_shared_and_a_damaged_part_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr("interp.sweep._CHUNK", 3)
    spec = spec_of(experiments=["head_ablation --batch 2 --pool ordinary"], models=["organism"], share_after=0)
    place, (ticket,) = tickets(spec, tmp_path / "out")
    answer, rounds = worker.run_cell(ticket), 0
    while answer.state == "shared":
        for file, name in answer.parts.items():
            worker.run_part(ticket, file, name)
        if not rounds:
            (place.folder / ticket.at(".parts") / file).write_bytes(b"damaged")
        rounds += 1
        answer = worker.run_cell(ticket)
    assert rounds
    assert same_as_serial(ticket, place, tmp_path)


@pytest.mark.experiment
def test_a_changed_result_or_key_is_run_again(tmp_path):
    own = tmp_path / "own_again.py"
    own.write_text(OWN)
    place, (ticket,) = tickets(spec_of(experiments=[f"{own}:nap --seconds 0"]), tmp_path / "out")
    assert worker.run_cell(ticket).state == "finished"
    known = {ticket.name: ticket}
    assert driver.finished(place, known) == [ticket.name]
    (place.folder / ticket.at("result.nc")).write_bytes(b"half")
    assert driver.finished(place, known) == []
    worker.run_cell(ticket)
    assert driver.finished(place, known) == [ticket.name]
    own.write_text(OWN.replace("float(seed)", "2.0"))
    with pytest.raises(InterpError, match="another version"):  # the worker has other code than requested
        worker.run_cell(cells.Ticket(**{**vars(ticket), "name": "another"}))
    _, (changed,) = tickets(spec_of(experiments=[f"{own}:nap --seconds 0"]), tmp_path / "out")
    assert changed.name == ticket.name
    assert driver.finished(place, {changed.name: changed}) == []
    worker.run_cell(changed)
    assert float(results.load(tmp_path / "out" / "cells" / ticket.name)["number"][0]) == 2.0


@pytest.mark.experiment
def test_a_worker_keeps_its_last_model_unless_it_was_edited(monkeypatch, tmp_path):
    loaded, real = [], worker.load_as_asked
    monkeypatch.setattr(worker, "load_as_asked", lambda name, **how: (loaded.append(name), real(name, **how))[1])
    worker.forget()
    asked = Request.of("check", model="wired").model
    model = worker._model(asked, "here")
    assert worker._model(asked, "here") is model
    assert loaded == ["wired"]
    with torch.no_grad():
        next(model.original_model.parameters()).add_(1.0)
    assert worker._model(asked, "here") is not model
    assert worker._model(asked, "elsewhere") is not None  # where a relative path may mean another model
    assert loaded == ["wired"] * 3
    worker.forget()


def test_work_of_another_running_survey_is_not_repeated(tmp_path):
    own = tmp_path / "own_held.py"
    own.write_text(OWN)
    place, (ticket,) = tickets(spec_of(experiments=[f"{own}:nap --seconds 0"]), tmp_path / "out")
    with cells.held(place, ticket.name) as mine:
        assert mine
        answers = []
        thread = threading.Thread(target=lambda: answers.append(worker.run_cell(ticket)))
        thread.start()
        thread.join()
        assert answers == [worker.Answer("busy")]
    assert worker.run_cell(ticket) == worker.Answer("finished")


def test_mistakes_are_one_line_and_tasks_that_kill_workers_are_given_up(tmp_path):
    own = tmp_path / "own_fails.py"
    own.write_text(OWN)
    place, (failing,) = tickets(spec_of(experiments=[f"{own}:fail"]), tmp_path / "out")
    with pytest.raises(InterpError) as raised:
        worker.run_cell(failing)
    assert str(raised.value) == "ValueError: no number"
    assert "in fail" in raised.value.__notes__[0]
    assert place.read(f"attempts/{failing.survey}/{failing.name}") is None  # it lives
    place.write(f"attempts/{failing.survey}/{failing.name}", b"3")
    with pytest.raises(InterpError, match="the process died 3 times"):
        worker.run_cell(failing)


def test_a_place_is_a_folder_or_an_address(tmp_path):
    for address in (tmp_path / "a folder", "memory://place"):
        place = Place(address)
        assert place.read("x/y") is None
        assert place.size("x/y") is None
        assert not place.fetch("x/y", tmp_path / "nothing")
        place.remove("x")
        place.write("x/y", b"12")
        place.write("x/z/y", b"123")
        assert (place.read("x/y"), place.size("x/z/y")) == (b"12", 3)
        assert place.read_all("x/*/y") == {"x/z/y": b"123"}
        assert place.fetch("x/y", tmp_path / "copy" / "y")
        assert (tmp_path / "copy" / "y").read_bytes() == b"12"
        assert Place(place.address).read("x/y") == b"12"
        place.remove("x")
        assert place.read("x/y") is None
    with pytest.raises(InterpError, match="no way to nothing-of-this-kind://x"):
        Place("nothing-of-this-kind://x")
    (tmp_path / "file").write_text("")
    with pytest.raises(InterpError, match="cannot write x in"):
        Place(tmp_path / "file").write("x", b"")


# --- what it will cost ------------------------------------------------------------------------------------------------


def test_a_dry_run_lists_what_is_known_and_its_source(tmp_path):
    path = written(
        tmp_path / "spec.toml", ["organism", "organism-untied", "organism-llama"], ["repeated_tokens", "logit_lens"]
    )
    size = models.weight_bytes("organism")
    out = Place(tmp_path / "out")
    one = surveying.read_spec(path).cells()[0]
    done = {"key": "old", "bytes": 1, "request": one.request.to_json(), "seconds": 100.0}
    out.write(f"cells/{one.name}/cell.json", json.dumps(done).encode())
    prices = {
        price.cell.name.rpartition("--")[0]: price
        for price in surveying.priced(surveying.read_spec(path), tmp_path / "out")
    }
    assert (prices["organism--repeated_tokens"].seconds, prices["organism--repeated_tokens"].source) == (
        100.0,
        "measured",
    )
    scaled = prices["organism-untied--repeated_tokens"]
    assert scaled.source == "scaled"
    assert scaled.seconds == pytest.approx(100 * models.weight_bytes("organism-untied") / size)
    assert prices["organism--logit_lens"].source == "unknown"
    said = CliRunner().invoke(
        cli.app, ["survey", str(path), "--out", str(tmp_path / "new"), "--dry-run"], env={"COLUMNS": "160"}
    )
    assert said.exit_code == 0, said.output
    assert "6 cells" in said.output
    assert "3 of which nothing is known" in said.output
    assert "guessed" in said.output
    assert not (tmp_path / "new").exists()


# --- processes that are killed, and ports that are closed -------------------------------------------------------------


ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    **{f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")},
}


def command(*words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        env=ENVIRONMENT | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(holds, seconds=200.0):
    """Its first line of output."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.1)
    raise AssertionError("nothing in time")


def family(process):
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def end(process):
    for one in family(psutil.Process(process.pid)) if process.poll() is None else ():
        one.kill()
    process.wait()


def listening(processes):
    """The addresses at which processes listen."""
    found = set()
    for process in processes:
        with_ports = process.net_connections(kind="inet") if process.is_running() else ()
        found |= {one.laddr for one in with_ports if one.status == psutil.CONN_LISTEN}
    return found


def greeted(ports, scheme, security):
    """At which of these ports Dask's own handshake succeeds, for a client with these credentials."""
    import asyncio

    from distributed.comm import connect

    async def one(port):
        given = security.get_connection_args("client") if security else {}
        try:
            comm = await asyncio.wait_for(connect(f"{scheme}://127.0.0.1:{port}", timeout=5, **given), 10)
        except (OSError, TypeError, ValueError, RuntimeError):  # closed, no TLS, another certificate, a page
            return False
        comm.abort()
        return True

    async def every():
        return await asyncio.gather(*map(one, ports))

    return {port for port, in_ in zip(ports, asyncio.run(every()), strict=True) if in_}


@pytest.mark.survey
def test_a_local_cluster_listens_on_loopback_only_and_requires_credentials(monkeypatch):
    from distributed.security import Security

    from interp.survey.cluster import connected

    monkeypatch.setenv("INTERP_DEVICE", "cpu")
    before, said = listening(family(psutil.Process())), []
    with connected(None, 2, {"GPU": 1}, said.append) as client:
        assert client.submit(os.getpid, resources={"GPU": 1}).result(timeout=60) != os.getpid()
        assert set(client.run(lambda: os.environ["OMP_NUM_THREADS"]).values()) == {
            str(max(1, len(os.sched_getaffinity(0)) // 2))
        }
        addresses = listening(family(psutil.Process())) - before
        assert len(addresses) >= 8  # scheduler, two nannies, two workers; the pages of scheduler and workers
        assert {address.ip for address in addresses} == {"127.0.0.1"}
        assert said[0].rpartition("http://")[2].startswith("127.0.0.1:")
        with urllib.request.urlopen(client.dashboard_link, timeout=60) as page:
            assert b"needs bokeh" not in page.read()  # which the extra brings
        ports = sorted(one.port for one in addresses)
        # the control: the survey's own credentials open scheduler, nannies and workers
        assert len(greeted(ports, "tls", client.security)) >= 5
        assert greeted(ports, "tcp", None) == set()
        assert greeted(ports, "tls", Security.temporary()) == set()


@pytest.mark.survey
def test_a_cell_that_crashes_its_process_affects_no_other(tmp_path):
    own = tmp_path / "own_local.py"
    own.write_text(OWN)
    asked = [f"{own}:nap --seconds 1", f"{own}:crash", f"{own}:fail", f"{own}:nap --seconds 0.1"]
    path, out = written(tmp_path / "spec.toml", ["wired"], asked), tmp_path / "out"
    process = command("interp", "survey", path, "--out", out, "--workers", 2)
    said = process.communicate(timeout=400)[0]
    assert process.returncode == 1, said
    assert "4 cells: 0 were there, 2 made, 2 failed" in said, said
    assert "interp: 2 cells failed" in said.splitlines()[-1]
    failed = {path.name.split("--")[1]: json.loads(path.read_text()) for path in out.glob("failed/*.json")}
    assert (
        failed.pop("own_local.py-crash")["said"]
        == "the process died 3 times over it: out of memory, or a crash of a library"
    )
    assert failed["own_local.py-fail"]["said"] == "ValueError: no number"
    assert "in fail" in failed["own_local.py-fail"]["traceback"]


def lock_of_a_file(ticket=None):
    """Where the lock comes from with which xarray writes a file."""
    from contextlib import nullcontext

    from xarray.backends.locks import get_write_lock

    with worker._task(ticket, ticket.name) if ticket else nullcontext():
        return type(get_write_lock("a.nc")).__module__


@pytest.mark.survey
def test_a_worker_asks_the_scheduler_for_no_lock_when_it_writes(tmp_path):
    """Defect: it did for each file, and on a busy machine the lease ran out while it wrote."""
    from distributed import Client

    _, (ticket,) = tickets(spec_of(), tmp_path)
    with Client(processes=False, dashboard_address="127.0.0.1:0", set_as_default=False) as client:
        assert client.submit(lock_of_a_file).result(timeout=200).startswith("distributed")  # the control
        assert not client.submit(lock_of_a_file, ticket).result(timeout=200).startswith("distributed")


def credentials(folder):
    """Files of a certificate that a scheduler, its workers and its clients share, and Dask's configuration for them."""
    from distributed.security import Security

    security = Security.temporary()
    for name, text in (("cert.pem", security.tls_client_cert), ("key.pem", security.tls_client_key)):
        (folder / name).write_text(text)
    names = {"CA_FILE": "cert.pem"} | {
        f"{role}__{kind.upper()}": f"{kind}.pem"
        for role in ("SCHEDULER", "WORKER", "CLIENT")
        for kind in ("cert", "key")
    }
    found = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": str(folder / file) for name, file in names.items()}
    return found | {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True"}


class Cluster:
    """A scheduler and workers as the page has them: started from the command line, with TLS."""

    def __init__(self, folder, workers=2):
        self.tls = credentials(folder)
        self.folder, self.size = folder, workers
        self.processes = []

    def start(self):
        file = self.folder / f"scheduler-{len(self.processes)}.json"
        loopback = ("--host", "127.0.0.1", "--port", "0", "--protocol", "tls", "--dashboard-address", "127.0.0.1:0")
        self.scheduler = command("distributed.cli.dask_scheduler", *loopback, "--scheduler-file", file, **self.tls)
        self.processes.append(self.scheduler)
        address = until(lambda: file.is_file() and json.loads(file.read_text())["address"])
        self.workers = [self.worker(address) for _ in range(self.size)]
        return address

    def worker(self, address):
        words = (
            address,
            "--nthreads",
            "1",
            "--host",
            "127.0.0.1",
            "--dashboard-address",
            "127.0.0.1:0",
            "--local-directory",
            self.folder,
        )
        self.processes.append(command("distributed.cli.dask_worker", *words, **self.tls))
        return self.processes[-1]

    def stop(self):
        for process in self.processes:
            end(process)


def survived(tmp_path, spec, first=1, second=2, patience=600):
    """Run a survey on a cluster whose worker, and then whose scheduler, is killed; all is the serial run."""
    path, spec, out = spec, surveying.read_spec(spec), tmp_path / "out"

    def done():
        return len(list(out.glob("cells/*/cell.json")))

    cluster = Cluster(tmp_path)
    try:
        words = ("interp", "survey", path, "--out", out, "--scheduler")
        process = command(*words, cluster.start(), **cluster.tls)
        until(lambda: done() >= first or process.poll() is not None, patience)
        # the worker's process, not the one that watches it: it is started again
        psutil.Process(cluster.workers[0].pid).children(recursive=True)[-1].kill()
        until(lambda: done() >= second or process.poll() is not None, patience)
        assert process.poll() is None, process.stdout.read()
        cluster.scheduler.send_signal(signal.SIGKILL)
        said = process.communicate(timeout=patience)[0]
        assert process.returncode == 1, said
        assert "and the same command goes on from these" in said.splitlines()[-1]
        cluster.stop()
        there = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/result.nc")}
        assert second <= len(there) < len(spec.cells())
        process = command(*words, cluster.start(), **cluster.tls)
        said = process.communicate(timeout=2 * patience)[0]
        assert process.returncode == 1, said
    finally:
        cluster.stop()
    assert {path: path.stat().st_mtime_ns for path in there} == there  # what was finished was left alone
    place, every = tickets(spec, out)
    failed = {path.stem: json.loads(path.read_text())["said"] for path in out.glob("failed/*")}
    (wired,) = (said for name, said in failed.items() if name.startswith("wired--"))
    assert "are these trained embeddings?" in wired  # a model wired by hand has no untrained rows
    for ticket in every:
        if ticket.name in failed:  # a serial run says the same
            with pytest.raises(InterpError, match=re.escape(failed[ticket.name])):
                interp.run_request(Request.from_json(ticket.request))
    every = [ticket for ticket in every if ticket.name not in failed]
    assert len(driver.finished(place, {ticket.name: ticket for ticket in every})) == len(every)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert all(same_as_serial(ticket, place, tmp_path) for ticket in every)
    finally:
        torch.set_num_threads(threads)
    return True


FOUR = ["repeated_tokens --batch 4", "logit_lens --batch 4", "induction_heads --batch 4", "undertrained --no-others"]


@pytest.mark.survey
def test_killed_workers_and_schedulers_change_nothing(tmp_path):
    four = [*FOUR[:3], f"{FOUR[3]} --verify-tokens detected"]
    assert survived(tmp_path, written(tmp_path / "spec.toml", ["organism", "wired"], four, share_after=0.5))


@pytest.mark.everything  # half an hour on two cores
def test_killed_workers_and_schedulers_change_nothing_of_any_bundled_model(tmp_path):
    names = [*interp.organisms.BUNDLED, "wired"]
    assert survived(tmp_path, written(tmp_path / "spec.toml", names, FOUR), first=3, second=8)


SMALL = [  # the pool's ids are tokens of every model
    "repeated_tokens --batch 2 --length 8 --pool 20:60",
    "logit_lens --batch 2 --length 8 --pool 20:60",
    "attention_scores --batch 2 --length 8 --pool 20:60",
    "undertrained --no-others --verify-tokens none",
]


@pytest.mark.everything
def test_killed_workers_and_schedulers_change_nothing_of_a_public_model(tmp_path, monkeypatch):
    """SmolLM2, of which workers die, the bundled models, and the one wired by hand."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    models.fetch("smollm2")
    names = ["smollm2", *interp.organisms.BUNDLED, "wired"]
    assert survived(tmp_path, written(tmp_path / "spec.toml", names, SMALL), second=3, patience=1800)


@pytest.mark.survey
def test_the_example_runs_and_a_second_run_does_nothing(tmp_path):
    """With one model and one seed: the others differ in nothing that a survey knows of."""
    text = EXAMPLE.read_text()
    for name, value in (("models", '["organism"]'), ("seeds", "[0]")):
        line = next(line for line in text.splitlines() if line.startswith(f"{name} = "))
        text = text.replace(line, f"{name} = {value}")
    # every token of the vocabulary would be asked: test_killed_workers has that
    text = text.replace('"undertrained", ', '"undertrained", verify_tokens = "detected", ')
    assert "detected" in text
    (tmp_path / "spec.toml").write_text(text)
    words = ("interp", "survey", tmp_path / "spec.toml", "--out", tmp_path / "out")
    for there, made in ((0, 3), (3, 0)):
        process = command(*words)
        said = process.communicate(timeout=400)[0]
        assert process.returncode == 0, said
        assert f"3 cells: {there} were there, {made} made, 0 failed" in said


def test_a_missing_scheduler_gets_a_one_line_message(tmp_path, monkeypatch):
    monkeypatch.setattr("interp.survey.cluster._TIMEOUT", 0.5)
    path = written(tmp_path / "spec.toml")
    for words, said in (
        (["--scheduler", "tcp://127.0.0.1:9"], "no scheduler at tcp://127.0.0.1:9"),
        (["--scheduler", "tls://127.0.0.1:9"], "no scheduler at tls://127.0.0.1:9"),
        (["--scheduler", "tcp://127.0.0.1:9", "--workers", "2"], "leave one out"),
    ):
        done = CliRunner().invoke(cli.app, ["survey", str(path), "--out", str(tmp_path / "out"), *words])
        assert done.exit_code == 1
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
