"""Images inside parquet and arrow files.

Covers: addresses and their order, bytes and sizes of every row beside what was written (row groups, streams, files with
a footer, empty and absent bytes), how many row groups are read and kept, damaged row groups and files, rows that do not
exist, a file that is replaced, threads and forked processes that read at the same time.
"""

import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from dassl_clip.results import image_rows

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

ROWS = 23
CONTENT = [b"%d" % row * (row + 1) for row in range(ROWS)]
SCHEMA = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])), ("label", pa.int64())])


def a_table(content=CONTENT):
    images = [{"bytes": one, "path": f"{row}.jpg"} for row, one in enumerate(content)]
    return pa.table({"image": images, "label": list(range(len(content)))}, schema=SCHEMA)


def write(path, content=CONTENT, group=5):
    """By the file's name: parquet, an arrow stream, or an arrow file with a footer."""
    table = a_table(content)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=group)
        return path
    new = pa.ipc.new_file if "footer" in path.name else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=group)
    return path


@pytest.fixture(params=["rows.parquet", "stream.arrow", "footer.arrow"])
def file(request, tmp_path):
    return write(tmp_path / request.param)


def test_every_row_as_it_was_written(file):
    table = image_rows.open_table(file)
    addresses = [table.address(row) for row in range(ROWS)]
    assert sorted(addresses) == addresses and addresses[7] == f"{file}#07"
    order = random.Random(0).sample(range(ROWS), ROWS)
    assert [image_rows.open_image(addresses[row]).read() for row in order] == [CONTENT[row] for row in order]
    assert [image_rows.size_of(addresses[row]) for row in order] == [len(CONTENT[row]) for row in order]
    assert table.column("image", "path") == [f"{row}.jpg" for row in range(ROWS)]
    assert table.column("label") == list(range(ROWS))
    assert image_rows.split_address(addresses[7]) == (str(file), 7) and image_rows.file_of(addresses[7]) == str(file)
    assert image_rows.split_address(file) is None and image_rows.split_address(f"{file}#x") is None
    with pytest.raises(OSError, match="has 23 rows, counted from 0"):
        image_rows.open_image(f"{file}#23")


def test_bytes_that_are_absent_or_empty(file, tmp_path):
    write(file, [b"one", None, b""])
    with pytest.raises(OSError, match="holds no bytes"):
        image_rows.open_image(f"{file}#1")
    assert image_rows.open_image(f"{file}#2").read() == b""
    assert [image_rows.size_of(f"{file}#{row}") for row in range(3)] == [3, 0, 0]


def counted(table, monkeypatch):
    """The row groups that are read from now on."""
    read, load = [], table.load
    monkeypatch.setattr(table, "load", lambda group: read.append(group) or load(group))
    return read


def test_row_groups_are_read_once_and_kept_within_bounds(tmp_path, monkeypatch):
    table = image_rows.open_table(write(tmp_path / "rows.parquet", [b"%04d" % row * 25 for row in range(ROWS)]))
    read = counted(table, monkeypatch)
    for row in [*range(ROWS), *range(ROWS)]:
        table.image(row)
    assert read == [0, 1, 2, 3, 4]
    monkeypatch.setattr(image_rows, "MAX_KEPT", 2 * table.load(0)[1])
    image_rows.forget()
    read.clear()
    for row in (0, 5, 1, 10, 6, 11):  # of the groups 0 1 0 2 1 2 two are kept, those that were used last
        assert table.image(row) == b"%04d" % row * 25
    assert read == [0, 1, 2, 1] and [group for _, group in image_rows._groups] == [1, 2]
    image_rows.forget()
    read.clear()
    for row in random.Random(1).sample(range(ROWS), ROWS):
        assert table.size(row) == 100
    assert sorted(read) == [0, 1, 2, 3, 4]  # in any order each group is read once for all its sizes


def test_too_large_a_row_group_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.parquet")
    monkeypatch.setattr(image_rows, "MAX_GROUP", 10)
    image_rows.forget()
    with pytest.raises(OSError, match=r"would be read as a whole, .* write the file again with 100 rows in a group"):
        image_rows.open_image(f"{path}#3")


def test_a_damaged_row_group_leaves_the_others(tmp_path):
    path = write(tmp_path / "rows.parquet")
    facts = pq.ParquetFile(path).metadata.row_group(2).column(0)
    start = facts.dictionary_page_offset or facts.data_page_offset
    whole = bytearray(path.read_bytes())
    whole[start : start + facts.total_compressed_size] = b"\xff" * facts.total_compressed_size
    path.write_bytes(whole)
    for row in range(ROWS):
        if 10 <= row < 15:
            with pytest.raises(OSError, match="the row group around it cannot be read: "):
                image_rows.open_image(f"{path}#{row}")
        else:
            assert image_rows.open_image(f"{path}#{row}").read() == CONTENT[row]


def test_a_file_that_is_replaced_is_read_anew(file):
    assert image_rows.open_image(f"{file}#0").read() == CONTENT[0]
    os.unlink(file)
    write(file, [b"another", b"b"])
    assert image_rows.open_image(f"{file}#0").read() == b"another" and image_rows.size_of(f"{file}#0") == 7
    os.unlink(file)
    with pytest.raises(OSError):
        image_rows.open_image(f"{file}#0")


def test_threads_and_forks_read_at_the_same_time(file):
    order = [row for seed in range(20) for row in random.Random(seed).sample(range(ROWS), ROWS)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: image_rows.open_image(f"{file}#{row}").read(), order))
    assert found == [CONTENT[row] for row in order]
    children = []
    for seed in range(3):
        image_rows._lock.acquire()  # as if another thread read at the moment of the fork
        child = os.fork()
        if not child:
            signal.alarm(30)
            rows = random.Random(seed).sample(range(ROWS), ROWS)
            right = all(image_rows.open_image(f"{file}#{row}").read() == CONTENT[row] for row in rows)
            os._exit(0 if right else 1)
        image_rows._lock.release()
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
