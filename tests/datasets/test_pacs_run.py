"""`python train.py --trainer GOPro` with the shipped configs on PACS: with and without split lists with the small CLIP,
and with a CLIP of the image size, patches and layers of ViT-B/16. (`test_layouts.py` compares what the loader reads of
every layout.)
"""

from pathlib import Path

import pytest

from dassl_clip.cli import train
from dassl_clip.results.records import read_record

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("layout", ["pacs/images", "kfold", "lists/absolute", "deep"])
def test_gopro_runs_on_pacs(layout, tmp_path, pacs_tree, tiny_clip, deep_clip):
    """One epoch with one shot; a deep tower takes the three new classes alone."""
    deep = layout == "deep"
    clip, classes = (deep_clip, 3) if deep else (tiny_clip, 7)
    root, folder = pacs_tree(tmp_path / "data", "pacs/images" if deep else layout, size=2), tmp_path / "run"
    words = ["--trainer", "GOPro", "--dataset-config-file", str(ROOT / "configs/datasets/pacs.yaml")]
    words += ["--config-file", str(ROOT / "configs/trainers/GOPro/vit_b16.yaml"), "--root", str(root), "--seed", "1"]
    words += ["--source-domains", "cartoon", "art_painting", "--target-domains", "sketch", "--output-dir", str(folder)]
    words += ["MODEL.BACKBONE.NAME", f"local-dir:{clip}", "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "1"]
    words += ["DATALOADER.NUM_WORKERS", "0", "TRAINER.GOPRO.PREC", "fp32"]
    words += ["DATASET.SUBSAMPLE_CLASSES", "new" if deep else "all"]
    assert train.main(words) == 0
    record = read_record(folder)
    numbers = record["num_train"], record["metrics"]["test"]["total"], record["num_classes"]
    assert numbers == (classes, 2 * classes, classes)
    assert set(record["losses"]) >= {"ce", "consistency"}
    assert ("with the split lists" in record["protocol"]) == (layout != "kfold")
    assert not deep or record["backbone"]["vision_widths"] == [48] * 12
