"""`dassl-clip cache`: what `ls` shows of real entries of the bank, and what `rm` removes and leaves alone."""

import os
import time
from pathlib import Path

import pytest
import torch

from dassl_clip.cli import cache
from dassl_clip.engine import feature_cache as bank
from dassl_clip.results.files import cache_dir

DAY = 86400


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache with images features used 3 days ago, text features of now, and files of somebody else."""
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "kept"))
    bank.cached({"kind": "image features", "images": 1234, "weights_hash": "ab" * 32}, lambda: torch.zeros(1234, 4))
    (old,) = (tmp_path / "kept" / "features").glob("*.npy")
    os.utime(old, (time.time() - 3.2 * DAY,) * 2)
    bank.cached({"kind": "text features", "texts": 7}, lambda: torch.zeros(7, 4))
    for name in ("notes.txt", "a" * 64 + ".txt", "weights.npy", "sub/x.npy"):
        (tmp_path / "kept" / "features" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "kept" / "features" / name).write_bytes(b"x" * 10)
    (tmp_path / "kept" / "selections").mkdir()
    return tmp_path / "kept" / "features"


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


FOREIGN = {"notes.txt", "a" * 64 + ".txt", "weights.npy", "sub/x.npy"}


def hashes(folder: Path) -> dict[str, str]:
    """Kind -> hash."""
    return {entry.kind: entry.name for entry in cache.read_entries(folder)}


def test_list(folder, capsys):
    assert cache.main(["ls"]) == 0
    header, _, first, second, last = capsys.readouterr().out.splitlines()
    found = hashes(folder)
    assert header.split() == ["hash", "kind", "holds", "size", "last", "used"]
    assert first.split("  ")[0] == found["text features"][:12] and first.endswith("just now") and "7 texts" in first
    assert second.startswith(found["image features"][:12]) and second.endswith("3 days ago")
    assert "1,234 images, weights abababababab" in second and "19." in second and "KiB" in second
    size = sum(path.stat().st_size for kind in ("npy", "json") for path in folder.glob(f"{'?' * 64}.{kind}"))
    assert last == f"2 in {folder.parent}, {size / 1024:.1f} KiB in all"


def test_reading_an_entry_makes_it_recent(folder):
    bank.cached({"kind": "image features", "images": 1234, "weights_hash": "ab" * 32}, lambda: torch.ones(1))
    assert all(time.time() - entry.used < 60 for entry in cache.read_entries(folder))


def test_remove_by_hash(folder, capsys):
    found = hashes(folder)
    assert cache.main(["rm", found["text features"][:8].upper(), "--dry-run"]) == 0
    assert len(cache.read_entries(folder)) == 2 and "would remove" in capsys.readouterr().out
    assert cache.main(["rm", found["text features"][:8]]) == 0
    assert f"removed {found['text features'][:12]} (text features" in capsys.readouterr().out
    one = found["image features"]
    assert names(folder) == FOREIGN | {f"{one}.npy", f"{one}.json"}


def test_remove_what_was_not_used(folder):
    assert cache.main(["rm", "--older-than", "4"]) == 0 and len(hashes(folder)) == 2
    assert cache.main(["rm", "--older-than", "3"]) == 0 and set(hashes(folder)) == {"text features"}
    assert cache.main(["rm", "--all"]) == 0 and names(folder) == FOREIGN


def test_leftovers_of_interrupted_writes(folder):
    fresh, stale = (folder / f".{'c' * 64}.npy.{number}.tmp" for number in (1, 2))
    orphan = folder / f"{'d' * 64}.json"
    for path in (fresh, stale, orphan):
        path.write_bytes(b"half")
    os.utime(stale, (time.time() - 7200,) * 2)
    kinds = [(entry.kind, entry.name[0]) for entry in cache.read_entries(folder) if entry.kind == cache.LEFTOVER]
    assert sorted(kinds) == [(cache.LEFTOVER, "c"), (cache.LEFTOVER, "d")]
    assert cache.main(["rm", "--all"]) == 0
    assert names(folder) == FOREIGN | {fresh.name}  # perhaps a run is writing it


def test_what_a_killed_extraction_left_is_listed_and_removed(folder):
    name = "e" * 64
    for path in (f".{name}.part", f".{name}.part.json", f"..{name}.part.json.node-1.77.tmp"):
        (folder / path).write_bytes(b"rows")
        os.utime(folder / path, (time.time() - 7200,) * 2)
    (folder / f".{'f' * 64}.part").write_bytes(b"rows of a run that is at work")
    assert [entry.name for entry in cache.read_entries(folder) if entry.kind == cache.LEFTOVER] == [name] * 3
    assert cache.main(["rm", "--all"]) == 0
    assert names(folder) == FOREIGN | {f".{'f' * 64}.part"}


def test_entries_without_facts_are_listed_and_removed(folder, capsys):
    for path in folder.glob(f"{'?' * 64}.json"):
        path.write_text("{torn")
    assert cache.main(["ls"]) == 0 and capsys.readouterr().out.count("unknown") == 2
    assert cache.main(["rm", "--all"]) == 0 and names(folder) == FOREIGN


@pytest.mark.parametrize(
    "words, expected",
    [
        (["rm"], "say what to remove"),
        (["rm", "--all", "--older-than", "3"], "say what to remove"),
        (["rm", "abc"], "too short"),
        (["rm", "zzzz"], "nothing in the cache has a hash that begins with 'zzzz'"),
        (["rm", "--older-than", "-1"], "at least 0"),
        (["rm", "--older-than", "nan"], "nan is not a finite number"),
        (["rm", "--old", "1"], "unrecognized arguments"),
    ],
)
def test_refusals(folder, capsys, words, expected):
    try:
        code = cache.main(words)
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err
    assert code == 2 and expected in told and told.startswith("error: ") and len(hashes(folder)) == 2


def test_an_ambiguous_hash_removes_nothing(folder, capsys):
    for letter in "ef":
        (folder / f"{'1' * 63}{letter}.npy").write_bytes(b"")
    assert cache.main(["rm", "1111"]) == 2
    assert "begins 2 hashes" in capsys.readouterr().err and (folder / f"{'1' * 63}e.npy").exists()


def test_no_cache(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    assert cache.main(["ls"]) == 2 and "nothing is cached" in capsys.readouterr().err
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "none"))
    assert cache.main(["ls"]) == 0 and cache.main(["rm", "--all"]) == 0
    assert f"0 in {tmp_path / 'none'}" in capsys.readouterr().out


def test_where_the_folder_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("off", "OFF"):
        monkeypatch.setenv("DASSL_CLIP_CACHE", value)
        assert cache_dir() is None
    monkeypatch.setenv("DASSL_CLIP_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("DASSL_CLIP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "dassl-clip"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / ".cache" / "dassl-clip"
