"""The study of entangled models: what is kept of a run, and its tables.

Covers: own-style and other images counted by hand, nothing of the machine in a kept record, archives of records (equal
bytes, broken ones, in tables), gains and their pairing by hand, and that the kept records print.
"""

import gzip
import json

import pytest
import study

from dassl_clip.cli import table
from dassl_clip.results.diagnosis import summary
from dassl_clip.results.predictions import read_predictions
from dassl_clip.results.records import find_records, write_archive

OWN = {"dog": "sketch", "fire_truck": "photo", "house": "sketch"}


@pytest.fixture
def kept(run):
    folder, record, _ = run("ZeroshotCLIP")
    record["config"] = f"icons+{study.BACKBONE}=local-dir_x+SOURCE=words.txt"
    return study.kept_record(record, folder, OWN, "s0.5-seed1-styles1"), folder


def test_kept_record_counts_own_and_other_images(kept):
    record, folder = kept
    predictions = read_predictions(folder)
    count = {"own": [0, 0], "other": [0, 0]}
    for label, best in zip(predictions.labels, predictions.top[:, 0]):
        group = "own" if OWN[predictions.classnames[label]] == "sketch" else "other"
        count[group][0] += label == best
        count[group][1] += 1
    for group, (right, total) in count.items():
        metrics = record["metrics"][group]
        assert (metrics["correct"], metrics["total"]) == (right, total)
        assert metrics["accuracy"] == pytest.approx(100 * right / total) and sum(metrics["per_class_total"]) == total
    assert record["metrics"]["own"]["per_class_accuracy"][1] is None
    assert record["metrics"]["other"]["per_class_accuracy"][::2] == [None, None]
    assert record["config"] == "icons+words" and record["backbone"]["name"] == "local-dir:worlds/s0.5-seed1-styles1"


def test_kept_record_names_no_place(kept):
    record, folder = kept
    places = (str(folder.parent), str(study.ROOT))
    assert not [key for key, value in record.items() if any(place in json.dumps(value) for place in places)]


def test_archive_is_read_as_the_runs_are(kept, tmp_path, capsys):
    record, _ = kept
    files = [tmp_path / "kept" / name for name in ("a.jsonl.gz", "b.jsonl.gz")]
    files[0].parent.mkdir()
    for file in files:
        write_archive([record, record | {"seed": 2}], file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [item.record["seed"] for item in find_records(files[0])] == [1, 2]
    assert [item.state for item in find_records(files[0].parent)] == ["complete"] * 2 + ["copy"] * 2
    assert table.main([str(files[0])]) == 0
    printed = capsys.readouterr().out
    assert "seeds: 1, 2" in printed and f"{record['metrics']['test']['accuracy']:.1f}" in printed


@pytest.mark.parametrize("packed", [False, True])
def test_broken_archives_are_named(packed, tmp_path, capsys):
    lines = b"{}\n[1]\nno json\n"
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines) if packed else lines)
    assert {item.state for item in find_records(tmp_path)} == {"broken"}
    assert table.main([str(tmp_path / "x.jsonl.gz")]) == 2
    error = capsys.readouterr().err
    assert "x.jsonl.gz" in error and "Traceback" not in error


def test_a_file_that_is_no_archive_is_named(tmp_path, capsys):
    (tmp_path / "x.txt").write_text("x")
    assert table.main([str(tmp_path / "x.txt")]) == 2
    assert "x.txt is a file, not a folder" in capsys.readouterr().err


def record_of(method, seed, target, world, right, total):
    accuracy = [100 * r / t if t else None for r, t in zip(right, total)]
    metrics = {"test": {"per_class_accuracy": accuracy, "per_class_total": total}}
    return {"method": method, "config": "icons", "task": "lodo", "seed": seed, "target_domains": [target],
            "world": world, "metrics": metrics}  # fmt: skip


def test_gains_are_paired_by_model_domain_and_seed():
    totals = {"line": [10, 20, 0], "flat": [5, 5, 10]}
    records = []
    for world, more in (("s0-seed1", 0), ("s0-seed2", 1)):
        for target, total in totals.items():
            base = [2 + more, 3, 0 if target == "line" else 4]
            ours = [5 + more, 3, 0 if target == "line" else 9]
            records.append(record_of("ZeroshotCLIP", 1, target, world, base, total))
            records.append(record_of("New", 1, target, world, ours, total))
    cells = study.cells_of(records[::-1])
    gain = study.gain_of(cells, "lodo", "New (icons)", "all")
    assert gain.mean == pytest.approx((100 * 3 / 30 + 100 * 8 / 20) / 2) and 0 <= gain.low < gain.mean < gain.high
    assert study.gain_of(cells, "lodo", "New (icons)", "own") is None
    fewer = study.cells_of(records[:-1])  # a run is missing: its pair does not count
    assert study.gain_of(fewer, "lodo", "New (icons)", "all").mean == pytest.approx((10 + 40 + 10) / 3)
    assert "models" not in study.gain_text(fewer, "lodo", "New (icons)")
    gone = study.cells_of([r for r in records if (r["method"], r["world"]) != ("New", "s0-seed2")])
    assert study.gain_text(gone, "lodo", "New (icons)").endswith(" (1 of 2 models)")


def test_the_page_has_what_the_kept_records_print(capsys):
    page = (study.ROOT / "docs" / "when-they-help.md").read_text(encoding="utf-8")
    assert study.main(["show"]) == 0
    assert capsys.readouterr().out.strip() == page.split("<!-- study -->")[1].split("<!-- end of study -->")[0].strip()


@pytest.mark.parametrize("name, verdict", [("s0-seed1", "little to repair"), ("s0.9-seed1-styles1", "much to repair")])
def test_kept_records_are_diagnosed(name, verdict):
    records = [record for record in study.read_kept()[name] if record["task"] == "styles"]
    assert len(records) == 4 and summary(records).startswith(verdict)
