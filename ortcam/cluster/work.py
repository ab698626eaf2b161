"""Work: explain a part of a job and write its results, in any process that sees the job's folder."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from ortcam.cluster.batch import OK, ExplainBatch
from ortcam.cluster.folder import JobFolder, Tally
from ortcam.cluster.photos import Columns, PhotoList
from ortcam.errors import OrtcamError

_MOST_ATTEMPTS = 4  # at a part, in a run


class Work:
    """Explains parts of a job. It can be pickled; the model and the list are opened at the first part.

    A part that has results is not explained again, so that any part may be asked for any number of times.
    """

    def __init__(self, batch: ExplainBatch, folder: JobFolder, columns: Columns, retry_failed: bool = False) -> None:
        """Prepare.

        Args:
            batch: explains photos.
            folder: the job's folder.
            columns: the columns of tables with photos' bytes.
            retry_failed: explain the failed photos of parts that have results once more.
        """
        self._batch, self._folder, self._columns, self._retry = batch, folder, columns, retry_failed

    def __call__(self, part: int) -> Tally:
        """Explain a part, and return its numbers.

        Raises:
            OrtcamError: the model cannot be used, or the results cannot be written. Errors of photos are rows.
        """
        known = self._folder.tally(part)
        if known is not None and not (self._retry and known.failed):
            self._folder.forget_attempts(part)  # of a worker that was killed right after it wrote the results
            return known
        photos = self._list.read(part)
        if (attempts := self._folder.count_attempt(part)) > _MOST_ATTEMPTS:
            first, last = photos["path"][0], photos["path"][-1]
            raise OrtcamError(
                f"workers died {attempts - 1} times while they explained {first} to {last}: out of memory, or by a "
                "fault of a library; leave the photo out, or give fewer workers"
            )
        if known is None:
            rows = self._batch(photos)
        else:
            before = self._folder.read_part(part)
            well = pc.equal(before["status"], OK)
            again = self._batch(photos.filter(pc.invert(well)))
            places = pa.chunked_array([pc.indices_nonzero(well), pc.indices_nonzero(pc.invert(well))])
            rows = pa.concat_tables([before.filter(well), again]).take(pc.sort_indices(places))
        failed = rows.num_rows - int(pc.sum(pc.equal(rows["status"], OK)).as_py() or 0)
        return self._folder.write_part(part, rows, failed)

    @cached_property
    def _list(self) -> PhotoList:
        return PhotoList(self._folder.photos, self._columns)
