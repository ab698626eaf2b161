"""Job: what is explained and where the results go; its folder opened, and what is left to do."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ortcam import __version__
from ortcam.cluster.batch import ExplainBatch, hash_model
from ortcam.cluster.folder import JobFolder, Tally, total
from ortcam.cluster.names import name_to_text
from ortcam.cluster.photos import Columns, find_photos, write_list
from ortcam.errors import OptionError, whole

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # a Path has lost the second slash
# Options of ExplainBatch that do not decide the results, or that the manifest states otherwise.
_NOT_STATED = ("model", "threads", "hashes", "provider", "detecting")


@dataclass(frozen=True)
class Job:
    """Photos to explain into a folder.

    Attributes:
        batch: the model and the options.
        photos: the photos, as `ortcam.cluster.photos.find_photos` takes them.
        output: the folder for the results; all machines must see it, and the model, under the same path.
        columns: the columns of tables of photos.
        per_part: photos in a file of results; a killed worker loses the work on at most one such file.
        retry_failed: explain photos with an error of an earlier run once more.
    """

    batch: ExplainBatch
    photos: Sequence[str]
    output: Path
    columns: Columns = Columns()  # noqa: RUF009 - it is frozen
    per_part: int = 64
    retry_failed: bool = False


@dataclass(frozen=True)
class Opened:
    """A job whose folder is open.

    Attributes:
        job: the job, with the model's hashes and absolute paths.
        folder: its folder; `close` lets others work there.
        photos: the number of all photos.
        before: the numbers of all parts that have results.
        parts: the parts that are left to do.
    """

    job: Job
    folder: JobFolder
    photos: int
    before: dict[int, Tally]
    parts: list[int]

    @property
    def kept(self) -> Tally:
        """The numbers of the parts that are not touched."""
        left = set(self.parts)
        return total(tally for number, tally in self.before.items() if number not in left)


def open_job(job: Job) -> Opened:
    """Check a job, list its photos, or go on with the same job in the folder.

    Raises:
        OptionError: an option is invalid, or no photos are found.
        ModelError, TargetError, LayerError: the model cannot be explained with these options.
        OccupiedError: the folder holds another job or other files, or another process works there.
        OutputError: the folder cannot be written.
    """
    whole("per_part", job.per_part)
    if uri := _URI.match(str(job.output)):
        given = f"{uri[1]}://{str(job.output)[uri.end() :]}"
        raise OptionError(f"the output is {given}; expected a folder that all machines share, by its path")
    model = Path(job.batch.model).absolute()
    job = _replaced(job, model)
    _rehearse(job.batch)
    folder = JobFolder(job.output)
    manifest = folder.open(_header(job), _writer(job))
    try:
        before = folder.tallies()
    except BaseException:
        folder.close()
        raise
    again = {number for number, tally in before.items() if tally.failed} if job.retry_failed else set[int]()
    parts = [number for number in range(manifest["parts"]) if number not in before or number in again]
    return Opened(job, folder, manifest["photos"], before, parts)


def _replaced(job: Job, model: Path) -> Job:
    batch = replace(job.batch, model=str(model), hashes=hash_model(model))
    return replace(job, batch=batch, output=job.output.absolute())


def _rehearse(batch: ExplainBatch) -> None:
    """Load the model on this machine's CPU and check the options, before any photo is listed."""
    here = replace(batch, provider="cpu", threads=1, batch_size=None)
    with here.explainer:
        here({"path": []})


def _header(job: Job) -> dict[str, Any]:
    from ortcam.runtime.providers import Provider

    batch, provider = job.batch, job.batch.provider
    asked = provider if isinstance(provider, Provider) else Provider(provider)
    stated = {one.name: getattr(batch, one.name) for one in fields(batch) if one.name not in _NOT_STATED}
    detecting = batch.detecting
    return {
        "ortcam": __version__,
        "model": list(batch.hashes or ()),
        "options": {
            **stated,
            "provider": {"name": asked.name, "options": dict(asked.options), "device_id": asked.device_id},
            "detecting": None
            if detecting is None
            else {one.name: getattr(detecting, one.name) for one in fields(detecting)},
        },
        "photos": [one if "://" in one else name_to_text(os.path.abspath(one)) for one in job.photos],  # noqa: PTH100
        "columns": {"path": job.columns.path, "data": job.columns.data},
        "per_part": job.per_part,
    }


def _writer(job: Job) -> Callable[[Path], dict[str, int]]:
    def write(path: Path) -> dict[str, int]:
        found = find_photos(job.photos, job.columns)
        return {"photos": len(found), "parts": write_list(path, found, job.per_part)}

    return write
