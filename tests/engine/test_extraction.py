"""Arrays that are cached row after row: what was made stays, what was killed resumes, nothing is stale.

Covers `engine/extraction.py` alone (interruptions after each batch, kills of a process, torn leftovers, full disks,
folders without room, files that change meanwhile, two makers at once, memory), and runs of the command line that are
interrupted while they encode.
"""

import contextlib
import errno
import json
import multiprocessing
import os
import re
import shutil
import time
import zlib

import numpy as np
import pytest
import torch

from dassl_clip.engine import extraction, feature_cache
from dassl_clip.engine.extraction import partial_path
from dassl_clip.engine.feature_cache import cached_rows
from dassl_clip.engine.features import FeatureStore

FACTS = {"kind": "image features", "images": 23}
COUNT, BATCH = 23, 4


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


class Maker:
    """Gives the rows of an array in batches, remembers from where, and stops with an error before row `until`."""

    def __init__(self, shape=(COUNT, 5), until=COUNT, error=KeyboardInterrupt):
        self.values = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        self.until, self.error, self.starts = until, error, []

    def __call__(self, start):
        self.starts.append(start)
        for first in range(start, len(self.values), BATCH):
            if first >= self.until:
                raise self.error
            yield self.values[first : first + BATCH]


def rows_of(make, facts=FACTS, unchanged=lambda: True):
    return cached_rows(facts, len(make.values), make, unchanged)


def path_of(cache, facts=FACTS):
    return cache / f"{feature_cache.entry_name(facts)}.npy"


@pytest.mark.parametrize("shape", [(COUNT, 5), (COUNT, 2, 7), (1, 3), (COUNT,)])
def test_what_was_made_is_read_again(cache, shape):
    make = Maker(shape, until=shape[0])
    assert torch.equal(rows_of(make), make.values) and torch.equal(rows_of(make), make.values)
    assert make.starts == [0]
    path = path_of(cache)
    assert np.array_equal(np.load(path, allow_pickle=False), make.values.numpy())
    said = json.loads(path.with_suffix(".json").read_text())
    sums = [zlib.crc32(make.values.numpy().tobytes())]
    assert said == {"schema": extraction.SCHEMA, **FACTS, "array": {"shape": list(shape), "crc32": sums}}
    assert sorted(entry.name for entry in cache.iterdir()) == sorted([path.name, path.with_suffix(".json").name])


def test_rows_and_whole_arrays_share_their_entries(cache):
    make = Maker()
    rows_of(make)
    assert torch.equal(feature_cache.cached(FACTS, lambda: pytest.fail("made again")), make.values)


def test_it_goes_on_after_every_interruption(cache):
    """Interrupted after each batch: each start is where the last one ended, no batch is made twice."""
    starts = []
    for until in (*range(BATCH, COUNT, BATCH), COUNT):
        make = Maker(until=until)
        if until < COUNT:
            with pytest.raises(KeyboardInterrupt):
                rows_of(make)
            assert not path_of(cache).exists()
        else:
            assert torch.equal(rows_of(make), make.values)
        starts += make.starts
    assert starts == list(range(0, COUNT, BATCH))
    assert len(list(cache.iterdir())) == 2


def test_all_rows_made_but_not_in_place(cache, monkeypatch):
    """Interrupted between the last row and the rename: nothing is made again."""
    monkeypatch.setattr(extraction, "write_facts", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        rows_of(Maker())
    monkeypatch.undo()
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(cache.parent))
    again = Maker()
    assert torch.equal(rows_of(again), again.values) and again.starts == []


def test_other_facts_start_over(cache):
    """What an interrupted extraction left is not taken for other images."""
    with pytest.raises(KeyboardInterrupt):
        rows_of(Maker(until=9))
    changed = Maker()
    changed.values += 1
    assert torch.equal(rows_of(changed, FACTS | {"files": "others"}), changed.values) and changed.starts == [0]


@pytest.mark.parametrize(
    "harm",
    [
        *("torn", "empty", "text", "float64", "fewer rows", "no progress", "progress text", "beyond", "negative"),
        *("one more", "one bit", "another entry's"),
    ],
)
def test_leftovers_that_are_not_whole_start_over(cache, harm):
    with pytest.raises(KeyboardInterrupt):
        rows_of(Maker(until=12))
    part = partial_path(path_of(cache))
    progress = part.with_name(f"{part.name}.json")
    said = json.loads(progress.read_text())
    assert said["rows"] == 12 and said["crc32"] == [zlib.crc32(Maker().values[:12].numpy().tobytes())]
    data = part.read_bytes()
    if harm == "float64":
        with open(part, "wb") as file:
            np.save(file, np.zeros((COUNT, 5)))
    elif harm == "fewer rows":
        with open(part, "wb") as file:
            np.save(file, np.zeros((COUNT - 1, 5), dtype=np.float32))
    elif harm == "no progress":
        progress.unlink()
    elif harm in ("progress text", "beyond", "negative"):
        rows = {"beyond": 24, "negative": -4}.get(harm, 12)
        progress.write_text("{" if harm == "progress text" else json.dumps(said | {"rows": rows}))
    elif harm == "one more":  # as a flipped bit makes of 12: a row of zeros counts as made
        progress.write_text(json.dumps(said | {"rows": 13}))
    elif harm == "another entry's":
        progress.write_text(json.dumps(said | {"entry": "0" * 64}))
    elif harm == "one bit":
        start = len(data) - 4 * COUNT * 5
        part.write_bytes(data[: start + 100] + bytes([data[start + 100] ^ 4]) + data[start + 101 :])
    else:
        part.write_bytes({"torn": data[:-9], "empty": b"", "text": b"no array"}[harm])
    make = Maker()
    assert torch.equal(rows_of(make), make.values) and make.starts == [0]
    assert len(list(cache.iterdir())) == 2


def test_files_that_changed_meanwhile_are_not_kept(cache, caplog):
    make = Maker()
    with caplog.at_level("WARNING", logger="dassl_clip"):
        assert torch.equal(rows_of(make, unchanged=lambda: False), make.values)
    assert "files have changed" in caplog.text and list(cache.iterdir()) == []


def test_a_full_disk_goes_on_in_memory(cache, monkeypatch, caplog):
    """The disk is full at the fourth sync: rows that were made are not made again, nothing is left behind."""
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) >= 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(extraction, "SYNC_SECONDS", -1)
    make = Maker()
    with caplog.at_level("WARNING", logger="dassl_clip"):
        assert torch.equal(rows_of(make), make.values)
    assert make.starts == [0] and "features are not cached" in caplog.text and "No space left" in caplog.text
    assert list(cache.iterdir()) == []


def test_a_cache_that_is_cleared_meanwhile_costs_no_row(cache, caplog, monkeypatch):
    """The folder is removed while rows are made: they are used, and not kept."""
    monkeypatch.setattr(extraction, "SYNC_SECONDS", -1)

    class Clearing(Maker):
        def __call__(self, start):
            for number, batch in enumerate(super().__call__(start)):
                if number == 3:
                    shutil.rmtree(cache.parent)
                yield batch

    make = Clearing()
    assert torch.equal(rows_of(make), make.values) and make.starts == [0]
    again = Maker()
    assert torch.equal(rows_of(again), again.values)


def test_where_nothing_can_be_kept_rows_are_made_in_memory(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    for place in (str(tmp_path / "file" / "cache"), "off"):
        monkeypatch.setenv("DASSL_CLIP_CACHE", place)
        make = Maker()
        assert torch.equal(rows_of(make), make.values)
    assert caplog.text.count("features are not cached") == 1


def test_rows_that_do_not_fit_are_refused(cache):
    def too_many(start):
        yield torch.zeros(COUNT + 1, 5)

    def too_few(start):
        yield torch.zeros(COUNT - 1, 5)

    def other_width(start):
        yield torch.zeros(4, 5)
        yield torch.zeros(4, 6)

    for make in (too_many, too_few, other_width):
        with pytest.raises(ValueError, match="rows"):
            cached_rows({"kind": make.__name__}, COUNT, make, lambda: True)
        assert not path_of(cache, {"kind": make.__name__}).exists()


FORK = multiprocessing.get_context("fork")


def process(pause):
    """A child that makes 400 rows, and what it says: the row at which it starts, each batch, whether all is right."""
    said, tell = FORK.Pipe(duplex=False)

    def work():
        extraction.SYNC_SECONDS = 0.0
        values = torch.randn(400, 3, generator=torch.Generator().manual_seed(3))

        def make(start):
            tell.send(f"from {start}")
            for first in range(start, 400, 4):
                tell.send(first)
                time.sleep(pause)
                yield values[first : first + 4]

        found = cached_rows({"kind": "image features"}, 400, make, lambda: True)
        tell.send(f"equal {torch.equal(found, values)}")

    child = FORK.Process(target=work)
    child.start()
    tell.close()
    return child, said


def all_of(said):
    with contextlib.suppress(EOFError):
        while True:
            yield said.recv()


def test_killed_processes_lose_next_to_nothing(cache):
    """SIGKILL three times in the middle: the next process starts at the end of a batch, later than the one before."""
    starts = []
    for _ in range(3):
        child, said = process(0.002)
        starts.append(int(said.recv().split()[1]))
        for _ in range(8):
            said.recv()
        child.kill()
        child.join()
    first, *_, last = all_of(process(0)[1])
    starts.append(int(first.split()[1]))
    assert last == "equal True" and all(start % 4 == 0 for start in starts)
    assert starts[0] == 0 and starts == sorted(set(starts)) and len(list(cache.iterdir())) == 2


def test_two_makers_take_turns(cache):
    """The second of two processes makes nothing: it waits for the first one's rows."""
    (_, first), (_, second) = process(0.005), process(0.005)
    said = sorted((list(all_of(first)), list(all_of(second))), key=len)
    assert said[0] == ["equal True"] and (said[1][0], said[1][-1]) == ("from 0", "equal True")
    assert len(list(cache.iterdir())) == 2


def test_memory_stays_flat(cache):
    """40 MB of rows are written with less than 12 MB of memory beyond what the first batches took."""

    def resident():
        with open("/proc/self/status") as file:
            return int(re.search(r"RssAnon:\s+(\d+) kB", file.read())[1])

    seen = []

    def make(start):
        for _ in range(start, 20000, 100):
            seen.append(resident())
            yield torch.ones(100, 512)

    found = cached_rows({"kind": "much"}, 20000, make, lambda: True)
    assert found.shape == (20000, 512) and max(seen) - seen[5] < 12_000


# ------------------------------------------------------------------------------------------------------ runs


SEVEN = ("DATALOADER.TEST.BATCH_SIZE", 7)


@pytest.fixture
def torn(run, monkeypatch):
    """`torn()`: a run that dies while it encodes the third batch; gives the sizes of all batches, of later runs too."""
    encode, counts = FeatureStore.encode, []

    def dies(self, images):
        counts.append(len(images))
        if len(counts) == 3:
            raise KeyboardInterrupt
        return encode(self, images)

    def go():
        monkeypatch.setattr(FeatureStore, "encode", dies)
        run("ZeroshotCLIP", *SEVEN, name="torn", code=130)
        return counts

    return go


def test_an_interrupted_run_goes_on_with_the_images_that_are_left(run, cache, torn):
    """The next run encodes the rest and equals an undisturbed one."""
    _, record, _ = run("ZeroshotCLIP", *SEVEN, name="whole")
    (kept,) = cache.glob("*.npy")
    expected = kept.read_bytes()
    for path in cache.iterdir():
        path.unlink()
    counts = torn()
    _, other, output = run("ZeroshotCLIP", *SEVEN, name="again")
    assert counts == [7, 7, 7, 7, 7, 2] and "14 of 30 are there already" in output.out
    assert kept.read_bytes() == expected and record["metrics"] == other["metrics"]


def test_a_picture_that_changes_between_two_starts_is_read_again(run, cache, torn, domain_tree):
    """What the interrupted run made is not used once one of its pictures has another time."""
    counts, victim = torn(), domain_tree / "sketch" / "dog" / "000.png"
    before = victim.stat()
    os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns + 1000))
    try:
        run("ZeroshotCLIP", *SEVEN, name="again")
    finally:
        os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert counts == [7, 7, 7, 7, 7, 7, 7, 2]


def test_files_are_looked_at_once_in_a_run(run, cache, monkeypatch):
    """InMaP asks for the features of its images several times."""
    seen = []
    facts = feature_cache.image_facts
    monkeypatch.setattr(feature_cache, "image_facts", lambda paths: seen.append(len(paths)) or facts(paths))
    run("InMaP")
    first, seen[:] = list(seen), []
    run("InMaP", name="second")
    assert first == [30, 30] and seen == [30]  # at first also once after the images were read
