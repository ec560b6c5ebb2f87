"""Whole commands on images that are rows of parquet files, beside the same commands on the folders.

Covers: training with two workers and testing, the record, the predictions and the fingerprint of the data, a row that
cannot be decoded (refused, or skipped), `data verify` and `data inspect`, and `predict` of a file and of a row.
"""

import json

import numpy as np
import pytest
from PIL import Image

from dassl_clip.cli import data, predict
from dassl_clip.results.predictions import read_predictions

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

NAMES = ("house", "dog", "fire_truck")  # by number, in no sorted order
TRAINED = ("losses", "metrics", "num_train", "num_classes", "data", "data_fingerprint", "steps")


@pytest.fixture
def rows(domain_tree, tmp_path):
    """The tree as parquet in two files, in the order of its files; `rows(row, content)` replaces an image."""

    def write(bad=None, content=b"no image"):
        paths = sorted(domain_tree.glob("*/*/*.png"))
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
        if bad is not None:
            images[bad]["bytes"] = content
        label = {"names": list(NAMES), "_type": "ClassLabel"}
        schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                            ("domain", pa.string()), ("label", pa.int64())])  # fmt: skip
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": {"label": label}}})})
        table = {"image": images, "domain": [path.parts[-3] for path in paths]}
        table = pa.table(table | {"label": [NAMES.index(path.parts[-2]) for path in paths]}, schema=schema)
        root = tmp_path / "copy"
        (root / "data").mkdir(parents=True, exist_ok=True)
        for shard in range(2):
            part = table.slice(shard * 45, 45)
            pq.write_table(part, root / f"data/train-{shard:05d}-of-00002.parquet", row_group_size=7)
        return root

    return write


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "CoOp"])
def test_a_run_on_rows_is_the_run_on_folders(trainer, rows, run, domain_tree):
    words = ("DATALOADER.NUM_WORKERS", 2, "INPUT.TRANSFORMS", "('random_resized_crop', 'normalize')")
    folder, record, _ = run(trainer, *words, name="rows", root=rows())
    other, expected, _ = run(trainer, *words, name="files", root=domain_tree)
    assert {key: record.get(key) for key in TRAINED} == {key: expected.get(key) for key in TRAINED}
    assert record["data"]["counts"]["test"] == 30 and "2 parquet files" in record["protocol"]
    found, files = read_predictions(folder, scores=True), read_predictions(other, scores=True)
    for name in ("labels", "top", "shares", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(files, name))
    assert sorted(path.rpartition("#")[2] for path in found.paths) == [f"{row:02d}" for row in range(15, 45)]


def test_a_row_that_cannot_be_decoded(rows, run):
    root = rows(60)  # the first image of sketch, which is row 15 of the second file
    _, _, output = run("ZeroshotCLIP", root=root, name="a", code=2)
    assert "train-00001-of-00002.parquet#15: cannot identify image file" in output.err
    assert "cannot decode the image" in output.err and "Traceback" not in output.err
    _, record, _ = run("ZeroshotCLIP", "DATALOADER.ON_BAD_IMAGE", "skip", root=root, name="b")
    assert record["metrics"]["test"]["total"] == 29


def test_verify_and_inspect(rows, domain_tree, tmp_path, capsys):
    def told(root):
        assert data.main(["verify", "folder_domains", "--root", str(root), "--classes", "--decode"]) == 0
        return [line for line in capsys.readouterr().out.splitlines() if not line.startswith(("layout", "FolderD"))]

    assert told(rows()) == told(domain_tree)
    for root, name in ((rows(), "rows.png"), (domain_tree, "files.png")):
        assert data.main(["inspect", "folder_domains", "--root", str(root), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "rows.png").read_bytes() == (tmp_path / "files.png").read_bytes()
    with Image.open(tmp_path / "rows.png") as sheet:
        assert len(sheet.getcolors(1 << 20)) > 100
    capsys.readouterr()
    assert data.main(["verify", "folder_domains", "--root", str(rows(7)), "--decode"]) == 2
    assert "parquet#07 cannot be decoded: cannot identify image file" in capsys.readouterr().out


def test_predict_of_a_file_and_of_a_row(rows, run, domain_tree, tmp_path):
    root = rows(3)
    folder, _, _ = run("ZeroshotCLIP", name="run")

    def answers(*paths):
        words = [*map(str, paths), "--run", str(folder), "--out", str(tmp_path / "out.json")]
        code = predict.main(words)
        found = json.loads((tmp_path / "out.json").read_text())
        return code, [(row["class"], row["share"]) for row in found["predictions"]], found["skipped"]

    file = root / "data/train-00000-of-00002.parquet"
    paths = sorted(domain_tree.glob("*/*/*.png"))[:45]
    code, found, skipped = answers(file)
    assert (code, [entry["path"] for entry in skipped]) == (1, [f"{file}#03"])
    assert found == answers(*paths[:3], *paths[4:])[1]
    assert answers(f"{file}#8") == answers(paths[8])
