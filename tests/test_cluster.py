"""The photos, the folder and the workers of a job: all that needs no Ray."""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cluster_toy import write_model, write_photos

from ortcam.cluster.batch import ExplainBatch
from ortcam.cluster.crew import Crew
from ortcam.cluster.folder import Tally
from ortcam.cluster.job import Job, Opened, open_job
from ortcam.cluster.photos import Columns, Entry, find_photos, write_list
from ortcam.cluster.ray import Progress, on_device, run
from ortcam.cluster.work import Work
from ortcam.errors import ModelError, OccupiedError, OptionError, OrtcamError, OutputError, TargetError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "toy.onnx")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos"), 5)


# Photos


def test_photos_of_folders_patterns_tables_and_uris_each_path_once(pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "all"
    shutil.copytree(pictures[0].parent, folder / "deep")
    for name in ("a.jpg", ".hidden.jpg", "notes.txt"):
        (folder / name).write_bytes(b"x")
    paths = [str(folder / "a.jpg"), *(str(folder / "deep" / path.name) for path in pictures)]

    def found(*given: object) -> list[str]:
        return [one.path for one in find_photos(list(map(str, given)), Columns())]

    assert found(folder) == paths
    assert found(folder / "**" / "*.png", folder, paths[2]) == [*paths[1:], paths[0]]
    assert found(folder.as_uri()) == [Path(path).as_uri() for path in paths]
    assert found(f"{folder.as_uri()}/deep/*3.png") == [Path(paths[4]).as_uri()]
    (folder / "list.csv").write_text("name,path\n1,a.jpg\n2,deep/../never.jpg\n3,s3://bucket/b.jpg\n")
    assert found(folder / "list.csv") == [paths[0], f"{folder}/deep/../never.jpg", "s3://bucket/b.jpg"]
    pq.write_table(pa.table({"path": ["a.jpg", paths[1]]}), folder / "list.parquet")
    assert found(folder / "list.parquet", folder / "a.jpg") == paths[:2]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("empty", "empty holds no photos; expected files such as .jpg"),
        ("empty/*.jpg", "holds no photos"),
        ("gone.jpg", "cannot read .*gone.jpg: no such file; expected photos, a folder or a table"),
        ("file:///gone/gone", "cannot read file:///gone/gone: no such file"),
        ("nowhere://x", "cannot read nowhere://x: "),
        ("list.csv", "list.csv has the columns name; expected path"),
        ("twice.parquet", "a stands twice in .*twice.parquet; expected another path in every row"),
        ("null.parquet", "row 1 of .*null.parquet has no path"),
        ("sizes.parquet", "sizes.parquet has the column bytes of int64; expected binary, or another .*--bytes-column"),
        ("broken.parquet", "cannot read .*broken.parquet: "),
    ],
)
def test_photos_that_cannot_be_found_are_refused_in_one_line(tmp_path: Path, given: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("name\nx\n")
    pq.write_table(pa.table({"path": ["a", "a"], "bytes": [b"1", b"2"]}), tmp_path / "twice.parquet")
    pq.write_table(pa.table({"path": ["a", None], "bytes": [b"1", b"2"]}), tmp_path / "null.parquet")
    pq.write_table(pa.table({"path": ["a"], "bytes": [1]}), tmp_path / "sizes.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    with pytest.raises(OptionError, match=told) as error:
        find_photos([given if "://" in given else str(tmp_path / given)], Columns())
    assert "\n" not in str(error.value)


def test_photos_of_a_table_that_changed_say_why_they_have_no_bytes(job: Job, tmp_path: Path) -> None:
    table = tmp_path / "table.parquet"

    def errors_after(change: pa.Table | None) -> list[str]:
        shutil.rmtree(job.output, ignore_errors=True)
        pq.write_table(pa.table({"path": ["a", "b"], "bytes": [b"x", b"y"]}), table)
        opened = open_job(replace(job, photos=[str(table)]))
        table.unlink()
        if change is not None:
            pq.write_table(change, table)
        Work(opened.job.batch, opened.folder, opened.job.columns)(0)
        opened.folder.close()
        return [row["error_text"] for row in rows_of(job.output)]

    gone = errors_after(None)
    assert len(gone) == 2 and all(re.match(rf"[ab] has no bytes: cannot read {table}: .*No such file", x) for x in gone)
    assert errors_after(pa.table({"path": ["a"]})) == [
        f"{name} has no bytes: cannot read {table}: no column bytes" for name in "ab"
    ]
    assert errors_after(pa.table({"path": ["c"], "bytes": [b"x"]})) == [
        f"a has no bytes: {table} has changed: it names c there; begin another job",
        f"b has no bytes: cannot read {table}: row group 0 ends before row 1",
    ]


def test_parts_do_not_cross_the_row_groups_of_tables(tmp_path: Path) -> None:
    entries = [Entry("a"), Entry("b"), Entry("c"), *(Entry(f"{n}", "t", n // 3, n % 3) for n in range(5)), Entry("d")]
    assert write_list(tmp_path / "list.parquet", entries, 2) == 6
    file = pq.ParquetFile(tmp_path / "list.parquet")
    parts = [file.read_row_group(part)["path"].to_pylist() for part in range(6)]
    assert parts == [["a", "b"], ["c"], ["0", "1"], ["2"], ["3", "4"], ["d"]]


# Jobs, without Ray


def work_off(job: Job) -> Opened:
    """Explain the parts that are left, in this process."""
    opened = open_job(job)
    work = Work(opened.job.batch, opened.folder, opened.job.columns, opened.job.retry_failed)
    for part in reversed(opened.parts):
        work(part)
    opened.folder.close()
    return opened


def rows_of(output: Path) -> list[dict[str, Any]]:
    return pq.read_table(output / "explanations").to_pylist()  # type: ignore[no-any-return]


@pytest.fixture
def job(model: Path, pictures: list[Path], tmp_path: Path) -> Job:
    batch = ExplainBatch(model, budget=8, threads=1, provider="cpu")
    return Job(batch, [str(pictures[0].parent)], tmp_path / "out", per_part=2)


def test_a_job_writes_the_rows_of_a_batch_and_goes_on(job: Job, pictures: list[Path]) -> None:
    assert work_off(job).parts == [0, 1, 2]
    expected = job.batch({"path": [str(path) for path in pictures]}).to_pylist()
    assert rows_of(job.output) == expected
    (job.output / "explanations" / "part-00000001.parquet").unlink()
    (job.output / "explanations" / ".part-00000001.parquet.01234567.tmp").write_bytes(b"PAR1")  # a killed process
    opened = work_off(job)
    assert (opened.parts, opened.kept, opened.photos) == ([1], Tally(3, 0), 5)
    assert rows_of(job.output) == expected
    assert sorted(path.name for path in (job.output / "explanations").iterdir()) == [
        f"part-0000000{part}.parquet" for part in range(3)
    ]
    assert work_off(job).parts == []


def test_photos_whose_bytes_are_in_a_table(job: Job, pictures: list[Path], tmp_path: Path) -> None:
    table = tmp_path / "table.parquet"
    files = [path.read_bytes() for path in pictures]
    pq.write_table(pa.table({"id": list("abcde"), "data": files}), table, row_group_size=3)
    work_off(replace(job, photos=[str(table)], columns=Columns("id", "data")))
    rows = rows_of(job.output)
    assert [row["path"] for row in rows] == list("abcde")
    by_path = job.batch({"path": [str(path) for path in pictures]}).to_pylist()
    assert [row["map"] for row in rows] == [row["map"] for row in by_path]


def test_failed_photos_are_tried_again_and_others_are_not(job: Job, pictures: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(pictures[0].parent, folder)
    (folder / "photo-0001.png").write_bytes(b"no photo")
    job = replace(job, photos=[str(folder)], per_part=4)
    work_off(job)
    first = rows_of(job.output)
    assert [row["status"] for row in first] == ["ok", "error", "ok", "ok", "ok"]
    shutil.copy(pictures[1], folder)
    (folder / "photo-0002.png").write_bytes(b"no photo any more")
    assert work_off(job).parts == []
    opened = work_off(replace(job, retry_failed=True))
    assert (opened.parts, opened.kept) == ([0], Tally(1, 0))
    rows = rows_of(job.output)
    assert [row["status"] for row in rows] == ["ok"] * 5
    assert [rows[at] for at in (0, 2, 3, 4)] == [first[at] for at in (0, 2, 3, 4)]
    assert work_off(replace(job, retry_failed=True)).parts == []


def test_a_job_with_other_options_photos_or_model_is_refused(job: Job, tmp_path: Path) -> None:
    work_off(job)
    other = write_model(tmp_path / "toy.onnx", seed=4)
    for changed, told in (
        (replace(job, batch=replace(job.batch, budget=9)), "options.budget = 8; got 9; give another folder"),
        (replace(job, batch=replace(job.batch, model=other)), r"model\[0\] = "),
        (replace(job, photos=[str(tmp_path)]), r"photos\[0\] = "),
        (replace(job, per_part=3), "per_part = 2; got 3"),
    ):
        with pytest.raises(OccupiedError, match=told) as error:
            work_off(changed)
        assert "\n" not in str(error.value)
    assert work_off(replace(job, batch=replace(job.batch, threads=2))).parts == []  # decides no results


def test_folders_that_cannot_be_used_are_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file is a file; give the name of a folder"):
        open_job(replace(job, output=tmp_path / "file" / "out"))
    with pytest.raises(OccupiedError, match="it holds other files"):
        open_job(replace(job, output=tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    opened = open_job(job)
    program = f"import fcntl, os; fcntl.flock(os.open({str(job.output / '.lock')!r}, os.O_RDWR), fcntl.LOCK_EX | 4)"
    assert subprocess.run([sys.executable, "-S", "-c", program], capture_output=True).returncode == 1  # locked
    with pytest.raises(OccupiedError, match="another process explains there"):
        open_job(job)
    opened.folder.close()
    work_off(job)
    (job.output / "explanations" / "part-00000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(OutputError, match=r"part-00000001.parquet is damaged .*; delete it, and run again"):
        open_job(job)
    (job.output / "manifest.json").write_text(json.dumps({"kind": "other"}))
    with pytest.raises(OccupiedError, match=r"its manifest.json is damaged, or of another version"):
        open_job(job)


def test_strange_files_beside_a_job_do_not_stop_it(job: Job) -> None:
    work_off(job)
    (job.output / ".DS_Store").write_bytes(b"x")
    assert work_off(job).parts == []
    (job.output / "manifest.json").write_text(json.dumps({"kind": "other"}))
    with pytest.raises(OccupiedError, match="it holds other files"):
        open_job(job)


@pytest.mark.parametrize("output", ["s3://bucket/out", Path("gs://bucket/out")])
def test_a_uri_for_the_results_is_refused(job: Job, output: Any) -> None:
    with pytest.raises(OptionError, match=r"the output is (s3|gs)://bucket/out; expected a folder that all machines"):
        open_job(replace(job, output=Path(output)))


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let the system refuse to write files beyond a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_results_that_cannot_be_written_are_one_line_and_leave_nothing(job: Job) -> None:
    opened = open_job(job)
    work = Work(opened.job.batch, opened.folder, opened.job.columns)
    with small_files(1000), pytest.raises(OutputError, match=r"cannot write .*part-00000000.parquet: .*[Ff]ile too"):
        work(0)
    assert [path.name for path in opened.folder.results.iterdir()] == [".part-00000000.attempts.tmp"]
    assert work(0) == Tally(2, 0)
    assert not list(opened.folder.results.glob(".*"))


def test_a_worker_that_dies_right_after_its_results_leaves_no_count(job: Job) -> None:
    opened = open_job(job)
    work = Work(opened.job.batch, opened.folder, opened.job.columns)
    tally = work(0)
    opened.folder.count_attempt(0)
    assert work(0) == tally
    assert [path.name for path in opened.folder.results.iterdir()] == ["part-00000000.parquet"]


def test_a_part_whose_workers_die_again_and_again_ends_the_job(job: Job, pictures: list[Path]) -> None:
    opened = open_job(job)
    for attempt in range(1, 5):
        assert opened.folder.count_attempt(0) == attempt  # and the worker is killed
    with pytest.raises(OrtcamError, match=f"workers died 4 times while they explained {pictures[0]} to {pictures[1]}"):
        Work(opened.job.batch, opened.folder, opened.job.columns)(0)
    opened.folder.close()
    assert work_off(job).parts == [0, 1, 2]  # a new run tries again


# The workers


@pytest.mark.parametrize(
    ("crew", "nodes", "expected"),
    [
        (Crew(), [{"CPU": 8.0}], 8),
        (Crew(threads=3), [{"CPU": 8.0}, {"CPU": 2.0}, {"CPU": 3.0}], 3),
        (Crew(workers=2, threads=4), [{"CPU": 8.0}], 2),
        (Crew(gpus_per_worker=0.25), [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 2.0, "GPU": 1.0}], 10),
        (Crew(gpus_per_worker=2), [{"CPU": 16.0, "GPU": 5.0}], 2),
        (Crew(gpus_per_worker=0.4), [{"CPU": 16.0, "GPU": 1.0}], 2),
    ],
)
def test_as_many_workers_as_fit(crew: Crew, nodes: list[dict[str, float]], expected: int) -> None:
    assert crew.size(nodes) == expected


@pytest.mark.parametrize(
    ("crew", "nodes", "told"),
    [
        (
            Crew(workers=3, threads=3),
            [{"CPU": 5.0}, {"CPU": 5.0}],
            "got 3 workers of 3 CPUs each; expected at most 2, which fit into 10 CPUs of 2 machines; give fewer",
        ),
        (
            Crew(gpus_per_worker=1),
            [{"CPU": 4.0}],
            "got 1 workers of 1 CPU and 1 GPUs each; expected at most 0, which fit into 4 CPUs and 0 GPUs of 1 machine",
        ),
    ],
)
def test_workers_that_do_not_fit_are_refused(crew: Crew, nodes: list[dict[str, float]], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        crew.size(nodes)


def test_a_job_that_cannot_run_ends_before_ray_starts(job: Job) -> None:
    with pytest.raises(OptionError, match="got 4096 workers of 1 CPU each"):
        run(job, Crew(workers=4096))
    with pytest.raises(OptionError, match="provider is cuda, and workers have no GPUs; give --gpus-per-worker"):
        run(replace(job, batch=replace(job.batch, provider="cuda")), Crew(workers=1))
    with pytest.raises(OptionError, match=r"gpus_per_worker is 1\.5"):
        Crew(gpus_per_worker=1.5)
    with pytest.raises(OptionError, match="expected HOST:PORT of the cluster"):
        Crew(address="ray://127.0.0.1:10001")
    with pytest.raises(TargetError, match=r"label .bird. is unknown"):
        run(replace(job, batch=replace(job.batch, targets=("bird",))), Crew(workers=1))
    with pytest.raises(ModelError, match="no such file"):
        run(replace(job, batch=replace(job.batch, model="gone.onnx")), Crew(workers=1))
    assert not job.output.exists()
    with pytest.raises(OptionError, match=r"Ray cannot be reached at 127.0.0.1:1: .*refused"):
        run(job, Crew(workers=1, address="127.0.0.1:1"))


def test_the_threads_of_the_workers_are_those_of_onnx_runtime(job: Job) -> None:
    assert on_device(job.batch, Crew(threads=3)).threads == 3


def test_the_time_left_follows_from_this_run() -> None:
    progress = Progress(photos=100, done=60, failed=1, explained=20, seconds=4.0)
    assert (progress.rate, progress.seconds_left) == (5.0, 8.0)
    assert Progress(100, 60, 1, 0, 0.0).seconds_left is None
