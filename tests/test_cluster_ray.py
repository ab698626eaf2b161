"""Jobs of Ray Data whose parts are killed: each photo stays exactly one row, equal to a single process's."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from cluster_toy import write_model, write_photos
from ray._raylet import GcsClient
from ray.core.generated.gcs_pb2 import GcsNodeInfo

from ortcam.cluster.batch import ExplainBatch
from ortcam.cluster.crew import Crew
from ortcam.cluster.job import Job, open_job
from ortcam.cluster.ray import run
from ortcam.cluster.work import Work

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads the processes of Linux"),
]
BUDGET, PER_PART, PHOTOS = 8, 2, 60
ORTCAM = str(Path(sys.executable).with_name("ortcam"))


@pytest.fixture(scope="module", autouse=True)
def place() -> Iterator[Path]:
    """Ray's folder for temporary files: its name tells our processes from those of others."""
    folder = Path(tempfile.mkdtemp(prefix="ort-", dir="/tmp"))  # short: Ray's sockets lie inside
    settings = {"RAY_TMPDIR": str(folder), "RAY_AUTH_MODE": "disabled", "RAY_DEDUP_LOGS": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        yield folder
        if ray.is_initialized():
            ray.shutdown()
    left = wait_for(lambda: not processes(folder), 30)
    for pid in processes(folder):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    assert left, "processes of Ray were left behind"


@pytest.fixture(scope="module")
def local_ray(place: Path) -> None:
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80_000_000,
        _temp_dir=str(place),
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and photos that take some 20 ms each, one of them broken."""
    folder = tmp_path_factory.mktemp("files")
    write_model(folder / "toy.onnx")
    for path in write_photos(folder / "photos", PHOTOS):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (1200, 800), interpolation=cv2.INTER_CUBIC))
    (folder / "photos" / "broken.jpg").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def expected(files: Path) -> pa.Table:
    """The rows of a single process."""
    paths = sorted(map(str, (files / "photos").iterdir()))
    return ExplainBatch(files / "toy.onnx", budget=BUDGET, threads=1, provider="cpu")({"path": paths})


def job(files: Path, output: Path, **more: Any) -> Job:
    batch = ExplainBatch(files / "toy.onnx", budget=BUDGET, threads=1)
    return Job(batch, [str(files / "photos")], output, per_part=PER_PART, **more)


def rows_of(output: Path) -> pa.Table:
    table = pq.read_table(output / "explanations").replace_schema_metadata(None)
    return table.sort_by("path")


def parts_of(output: Path) -> list[Path]:
    return sorted((output / "explanations").glob("part-*.parquet"))


def wait_for(condition: Callable[[], object], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False


def processes(place: Path) -> dict[int, str]:
    """The processes of Ray that have the folder in their command line, and their children, by number."""
    found, parents = {}, {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(entry.name)
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[pid], parents[pid] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(), int(parent)
    ours = {pid for pid, line in found.items() if str(place) in line and pid != os.getpid()}
    return {pid: line for pid, line in found.items() if pid in ours or parents[pid] in ours}


def actors(place: Path) -> list[int]:
    return [pid for pid, line in processes(place).items() if line.startswith("ray::") and "MapWorker" in line]


@contextlib.contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Run the action beside the block; its errors are raised after the block."""
    errors = []

    def attempt() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    yield
    thread.join(60)
    assert not errors, errors


def command(*words: object, cwd: Path | None = None, seconds: float = 90) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=seconds, cwd=cwd)
    lines = done.stderr.splitlines(keepends=True)  # on a busy machine, lines of progress too
    done.stderr = "".join(line for line in lines if not re.match(r"\d+ of \d+ done, \d+ failed, ", line))
    return done


def test_an_actor_is_killed(files: Path, tmp_path: Path, expected: pa.Table, place: Path, local_ray: None) -> None:
    output, killed = tmp_path / "out", []

    def kill() -> None:
        assert wait_for(lambda: (output / "explanations").exists() and len(parts_of(output)) >= 3, 60)
        (pid, *_) = actors(place)
        os.kill(pid, signal.SIGKILL)
        killed.append(len(parts_of(output)))

    with meanwhile(kill):
        summary = run(job(files, output), Crew(workers=2))
    assert killed[0] < len(parts_of(output)) == -(-(PHOTOS + 1) // PER_PART), "it was killed too late"
    assert rows_of(output).equals(expected)
    assert (summary.progress.done, summary.progress.failed, summary.workers) == (PHOTOS + 1, 1, 2)
    assert not list((output / "explanations").glob(".*"))


def test_one_worker_and_bad_photos_of_every_kind(files: Path, tmp_path: Path, local_ray: None) -> None:
    folder = tmp_path / "photos"
    (good,) = write_photos(folder, 1)
    (folder / "twin.png").symlink_to(good)
    (folder / "gone.png").write_bytes(b"")
    no_utf8 = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
    shutil.copy(good, no_utf8)
    cv2.imwrite(str(folder / "large.png"), np.zeros((10_000, 10_000), np.uint8))
    table = tmp_path / "list.csv"
    names = ["photo-0000.png", "twin.png", "gone.png", "large.png", "never.png", os.fsencode(no_utf8)]
    lines = [b"path", *(os.path.join(os.fsencode(folder), os.fsencode(name)) for name in names)]  # noqa: PTH118
    table.write_bytes(b"\n".join(lines))
    one = Job(ExplainBatch(files / "toy.onnx", threads=1), [str(table)], tmp_path / "out", per_part=4)
    (folder / "gone.png").unlink()
    summary = run(one, Crew(workers=1))
    rows = {Path(row["path"]).name: row for row in rows_of(tmp_path / "out").to_pylist()}
    assert {name: row["status"] for name, row in rows.items()} == {
        "photo-0000.png": "ok", "twin.png": "ok", r"caf\xe9.png": "ok", "gone.png": "error", "large.png": "error",
        "never.png": "error",
    }  # fmt: skip
    assert rows["twin.png"]["map"] == rows["photo-0000.png"]["map"] == rows[r"caf\xe9.png"]["map"]
    assert rows["large.png"]["error_text"].startswith(f"{folder}/large.png has 10000x10000 pixels")
    assert (summary.progress.done, summary.progress.failed) == (6, 3)
    for name in ("gone.png", "never.png"):
        shutil.copy(good, folder / name)
    again = Job(one.batch, one.photos, one.output, per_part=4, retry_failed=True)
    summary = run(again, Crew(workers=1))
    assert (summary.progress.done, summary.progress.failed, summary.progress.explained) == (6, 1, 3)
    assert rows_of(one.output)["map"].to_pylist().count(rows["twin.png"]["map"]) == 5


def test_the_driver_is_killed_between_data_and_report(
    files: Path, tmp_path: Path, expected: pa.Table, place: Path
) -> None:
    """Results are written, and the driver has not heard of them yet when it dies; a half-written file lies beside."""
    output = tmp_path / "out"
    program = f"""
import os, signal
from pathlib import Path
from ortcam.cluster.batch import ExplainBatch
from ortcam.cluster.job import Job
from ortcam.cluster.crew import Crew
from ortcam.cluster.ray import run
files, output = Path({str(files)!r}), Path({str(output)!r})
batch = ExplainBatch(files / "toy.onnx", budget={BUDGET}, threads=1)
def die(progress):
    if progress.done >= 16:
        os.kill(os.getpid(), signal.SIGKILL)
run(Job(batch, [str(files / "photos")], output, per_part={PER_PART}), Crew(workers=2), die)
"""
    done = command(sys.executable, "-c", program)
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = {path.name: path.read_bytes() for path in parts_of(output)}
    assert 8 <= len(before) < 31
    (output / "explanations" / ".part-00000030.parquet.0123abcd.tmp").write_bytes(b"PAR1 half")
    words = [ORTCAM, "explain-many", files / "toy.onnx", files / "photos", output]
    words += ["--budget", BUDGET, "--photos-per-file", PER_PART, "--workers", 2, "--json"]
    done = command(*words)
    assert (done.returncode, done.stderr) == (1, ""), done.stderr
    told = json.loads(done.stdout)
    assert (told["done"], told["failed"], told["photos"]) == (PHOTOS + 1, 1, PHOTOS + 1)
    assert 0 < told["explained"] <= PHOTOS + 1 - PER_PART * len(before) + 1
    assert rows_of(output).equals(expected)
    assert all(path.read_bytes() == before[path.name] for path in parts_of(output) if path.name in before)
    assert not list((output / "explanations").glob(".*"))
    begin = time.monotonic()
    told = json.loads(command(*words).stdout)
    assert (told["explained"], told["done"], told["workers"]) == (0, PHOTOS + 1, 0)
    assert time.monotonic() - begin < 20  # Ray is not started
    refused = command(*words, "--top-k", 2)
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1
    assert "it holds a job with options.top_k = 1; got 2" in refused.stderr


def test_a_worker_is_killed_between_its_data_and_the_rename(files: Path, tmp_path: Path, expected: pa.Table) -> None:
    output = tmp_path / "out"
    program = f"""
import os, signal
from pathlib import Path
from ortcam.cluster.batch import ExplainBatch
from ortcam.cluster.job import Job, open_job
from ortcam.cluster.work import Work
files, output = Path({str(files)!r}), Path({str(output)!r})
batch = ExplainBatch(files / "toy.onnx", budget={BUDGET}, threads=1, provider="cpu")
opened = open_job(Job(batch, [str(files / "photos")], output, per_part={PER_PART}))
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)  # the data are written, under the temporary name
Work(opened.job.batch, opened.folder, opened.job.columns)(7)
"""
    assert command(sys.executable, "-c", program).returncode == -signal.SIGKILL
    left = {path.name.split(".")[1]: path.stat().st_size for path in (output / "explanations").iterdir()}
    assert left.keys() == {"part-00000007"} and not parts_of(output)
    opened = open_job(replace(job(files, output), batch=replace(job(files, output).batch, provider="cpu")))
    work = Work(opened.job.batch, opened.folder, opened.job.columns)
    for part in [*opened.parts, 7]:
        work(part)
    opened.folder.close()
    assert rows_of(output).equals(expected)
    assert len(parts_of(output)) == len(list((output / "explanations").iterdir()))


@contextlib.contextmanager
def node(cwd: Path, *words: str, without: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A node of Ray with one CPU, in a process group of its own; the package `without` cannot be imported there."""
    cwd.mkdir(exist_ok=True)
    if without:
        (cwd / f"{without}.py").write_text(f"raise ImportError('No module named {without}')")
    line = [str(Path(sys.executable).with_name("ray")), "start", "--block", *words, "--num-cpus=1"]
    line += ["--object-store-memory=80000000", "--disable-usage-stats"]
    log = (cwd / "log").open("wb")
    environment = {**os.environ, "PYTHONPATH": str(cwd)}
    started = subprocess.Popen(line, cwd=cwd, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait(30)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.2", 0))
        return int(one.getsockname()[1])


def listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), 1).close()
        return True
    return False


def machines(address: str) -> tuple[int, int]:
    """Return how many machines of the cluster live, and how many it has ever had."""
    time.sleep(0.2)
    states = [one.state for one in GcsClient(address=address).get_all_node_info().values()]
    return states.count(GcsNodeInfo.ALIVE), len(states)


def test_a_machine_of_two_is_killed(files: Path, tmp_path: Path, expected: pa.Table, place: Path) -> None:
    """And a machine without the model, or without ONNX Runtime, ends the job with one line."""
    address, output = f"127.0.0.2:{free_port()}", tmp_path / "out"
    head = ("--head", "--node-ip-address=127.0.0.2", f"--port={address.partition(':')[2]}", "--include-dashboard=false")
    other = (f"--address={address}", "--node-ip-address=127.0.0.3")
    options = ["--budget", BUDGET, "--photos-per-file", PER_PART, "--workers", 2, "--address", address]
    with node(tmp_path / "one", *head):
        assert wait_for(lambda: listens(address), 60)
        with node(tmp_path / "two", *other) as second:

            def kill() -> None:
                assert wait_for(lambda: (output / "explanations").exists() and len(parts_of(output)) >= 4, 60)
                os.killpg(second.pid, signal.SIGKILL)
                killed.append(len(parts_of(output)))

            killed: list[int] = []
            words = [ORTCAM, "explain-many", files / "toy.onnx", files / "photos", output, *options]
            assert wait_for(lambda: machines(address) == (2, 2), 60)
            with meanwhile(kill):
                done = command(*words)
        assert done.returncode == 1, done.stderr
        assert f"{PHOTOS + 1} photos are in {output}/explanations, 1 of them with an error" in done.stderr
        assert killed[0] < 31, "it was killed too late"
        assert rows_of(output).equals(expected)
        here = [ORTCAM, "explain-many", "/proc/self/cwd/toy.onnx", files / "photos", tmp_path / "none", *options]
        here[here.index("--workers") + 1] = 1
        done = command(*here, cwd=files)
        assert done.returncode == 1
        assert done.stderr == (
            "error: machine 127.0.0.2: cannot read /proc/self/cwd/toy.onnx: no such file "
            f"(0 of {PHOTOS + 1} photos are done)\n"
        )
        with node(tmp_path / "three", *other, without="onnxruntime"):
            assert wait_for(lambda: machines(address) == (2, 3), 60)
            done = command(*words[:4], tmp_path / "third", *options)
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
            assert done.stderr.startswith("error: machine 127.0.0.3: No module named onnxruntime")
    done = command(*words[:4], tmp_path / "other", *options)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(f"error: Ray cannot be reached at {address}")


def test_the_loss_of_the_first_machine_ends_a_job(files: Path, tmp_path: Path, place: Path) -> None:
    ray.shutdown()  # else there are two clusters, and ``auto`` may be the other
    assert wait_for(lambda: not processes(place), 30)
    address, output = f"127.0.0.2:{free_port()}", tmp_path / "out"
    head = ("--head", "--node-ip-address=127.0.0.2", f"--port={address.partition(':')[2]}", "--include-dashboard=false")
    words = [ORTCAM, "explain-many", files / "toy.onnx", files / "photos", output, "--budget", BUDGET]
    with node(tmp_path / "one", *head) as first:
        assert wait_for(lambda: listens(address) and machines(address) == (1, 1), 60)

        def kill() -> None:
            """Kill Ray's central server, with nobody left who could go on or clean up."""
            assert wait_for(lambda: (output / "explanations").exists() and len(parts_of(output)) >= 2, 60)
            for pid in (*actors(place), first.pid):
                os.kill(pid, signal.SIGSTOP)
            (server,) = (pid for pid, line in processes(place).items() if "gcs_server" in line.partition(" ")[0])
            os.kill(server, signal.SIGKILL)

        with meanwhile(kill):
            done = command(*words, "--photos-per-file", PER_PART, "--workers", 1, "--address", "auto")
        for pid in actors(place):
            os.kill(pid, signal.SIGKILL)
    told = f"error: the cluster at {address} does not answer any more; run the same command again to go on\n"
    assert (done.returncode, done.stderr) == (1, told)
