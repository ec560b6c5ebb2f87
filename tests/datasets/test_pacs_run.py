"""`python train.py --trainer GOPro` with the shipped configs on PACS: in every layout with the small CLIP, and in the
published one with a random ViT-B/16.
"""

from pathlib import Path

import pytest

from dassl_clip.cli import train
from dassl_clip.results.records import read_record

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ["pacs/images", "PACS/images", "PACS", "kfold", "lists/absolute", "lists/image_list"]


def run(layout: str, backbone: str, tmp_path: Path, pacs_tree) -> dict:
    """The record of a run of one epoch with one shot."""
    root, folder = pacs_tree(tmp_path / "data", layout, size=2), tmp_path / "run"
    words = ["--trainer", "GOPro", "--dataset-config-file", str(ROOT / "configs/datasets/pacs.yaml")]
    words += ["--config-file", str(ROOT / "configs/trainers/GOPro/vit_b16.yaml"), "--root", str(root), "--seed", "1"]
    words += ["--source-domains", "cartoon", "art_painting", "--target-domains", "sketch", "--output-dir", str(folder)]
    words += ["MODEL.BACKBONE.NAME", backbone, "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "1"]
    words += ["DATALOADER.NUM_WORKERS", "0", "TRAINER.GOPRO.PREC", "fp32"]
    assert train.main(words) == 0
    record = read_record(folder)
    assert (record["num_train"], record["metrics"]["test"]["total"], record["num_classes"]) == (7, 14, 7)
    assert set(record["losses"]) >= {"ce", "consistency"}
    return record


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gopro_runs_on_pacs(layout, tmp_path, pacs_tree, tiny_clip):
    record = run(layout, f"local-dir:{tiny_clip}", tmp_path, pacs_tree)
    with_lists = layout not in ("PACS", "kfold")
    assert ("with the split lists" in record["protocol"]) == with_lists


def test_gopro_runs_with_vit_b16(tmp_path, pacs_tree):
    record = run("pacs/images", "ViT-B-16:random", tmp_path, pacs_tree)
    assert record["backbone"]["vision_widths"] == [768] * 12
