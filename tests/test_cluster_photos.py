"""The names of a job's photos: quoted in URIs, matched by patterns, and read from tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ortcam.cluster import uris
from ortcam.cluster.batch import read_anywhere
from ortcam.cluster.photos import Columns, PhotoList, find_photos, write_list
from ortcam.errors import ImageError


def test_names_in_uris_are_quoted_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "my photos"
    folder.mkdir()
    names = ["a b.png", "a%41.png", "aA.png", "q?x=1.png", "x#y.png", "é.png"]
    for name in names:
        (folder / name).write_bytes(name.encode())
    for options in ("", "?use_mmap=true"):  # which pyarrow knows for local files
        found = find_photos([f"{folder.as_uri()}/{options}"], Columns())
        assert [one.path for one in found] == [(folder / name).as_uri() + options for name in names]
        assert [read_anywhere(one.path).decode() for one in found] == names
    (folder / "list.csv").write_text("path\nx#y.png\na%41.png\n")
    found = find_photos([f"{folder.as_uri()}/list.csv"], Columns())
    assert [read_anywhere(one.path).decode() for one in found] == ["x#y.png", "a%41.png"]
    for uri in (f"{folder.as_uri()}/x#y.png", f"{folder.as_uri()}/q?x.png"):
        with pytest.raises(ImageError, match=r"got [#?] in a URI.*; expected %"):
            read_anywhere(uri)


def test_uris_of_a_store_share_a_file_system_and_keep_its_options() -> None:
    first, second = (uris.open_uri(f"s3://bucket/{name}?region=eu-west-1") for name in ("photos/", "photos/a%20b.jpg"))
    assert first[0] is second[0] is not uris.open_uri("s3://bucket/photos?region=eu-west-2")[0]
    assert (first[1], second[1]) == ("bucket/photos", "bucket/photos/a b.jpg")
    assert uris.join("s3://bucket/photos/?region=eu-west-1", "x/a b.jpg") == (
        "s3://bucket/photos/x/a%20b.jpg?region=eu-west-1"
    )
    assert uris.beside("s3://bucket/d/list.csv?region=eu-west-1", "a#.jpg") == (
        "s3://bucket/d/a%23.jpg?region=eu-west-1"
    )


@pytest.mark.parametrize("pattern", ["*.jpg", "**/*.jpg", "*/*.jpg", "**", "*", "deep*", "[!a].jpg", "d*/[d]eep2"])
def test_patterns_in_uris_match_as_patterns_of_paths_do(tmp_path: Path, pattern: str) -> None:
    for name in ("a.jpg", "b.jpg", ".c.jpg", "deep/a.jpg", "deep/deep2/x.jpg", "deep/notes.txt", ".d/a.jpg", "e/n.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    by_path = {Path(one.path).as_uri() for one in find_photos([str(tmp_path / pattern)], Columns())}
    by_uri = [one.path for one in find_photos([f"{tmp_path.as_uri()}/{pattern}"], Columns())]
    assert set(by_uri) == by_path and len(by_uri) == len(by_path)


def test_names_in_a_csv_table_may_hold_line_breaks(tmp_path: Path) -> None:
    names = ["a\nb.jpg", "c\x0cd.jpg", "e\u2028f.jpg"]
    (tmp_path / "list.csv").write_text("path\n" + "".join(f'"{name}"\n' for name in names))
    found = find_photos([str(tmp_path / "list.csv")], Columns())
    assert [one.path for one in found] == [f"{tmp_path}/{name}" for name in names]
    (tmp_path / "list.csv").write_bytes(b"path\ns3://bucket/caf\xe9.jpg\n")
    assert [one.path for one in find_photos([str(tmp_path / "list.csv")], Columns())] == [r"s3://bucket/caf\xe9.jpg"]


def test_the_bytes_of_a_table_are_read_in_any_order_of_the_parts(tmp_path: Path) -> None:
    table, names = tmp_path / "table.parquet", [f"{number:03d}" for number in range(100)]
    pq.write_table(pa.table({"path": names, "bytes": [name.encode() for name in names]}), table, row_group_size=70)
    write_list(tmp_path / "list.parquet", find_photos([str(table)], Columns()), 20)
    photos = PhotoList(tmp_path / "list.parquet", Columns())
    for part in (1, 3, 0, 2, 5, 4, 4):
        rows = photos.read(part)
        assert [name.encode() for name in rows["path"].to_pylist()] == rows["bytes"].to_pylist()
        assert rows["bytes_error"].null_count == rows.num_rows == photos.count(part)


def test_a_large_row_group_is_not_held_in_memory(tmp_path: Path) -> None:
    table, data = tmp_path / "table.parquet", bytes(200_000)
    rows = pa.table({"path": [str(number) for number in range(200)], "bytes": [data] * 200})
    pq.write_table(rows, table, compression=None, use_dictionary=False, write_batch_size=4)
    write_list(tmp_path / "list.parquet", find_photos([str(table)], Columns()), 4)
    photos = PhotoList(tmp_path / "list.parquet", Columns())
    before = pa.total_allocated_bytes()
    assert photos.read(0)["bytes"].to_pylist() == [data] * 4
    assert pa.total_allocated_bytes() - before < 8e6  # of 40e6: the 16 rows that are read at once, and pages of 4
