"""`python train.py --trainer GOPro` with the shipped configs on PACS, in every layout, with a random ViT-B/16."""

from pathlib import Path

import pytest

from dassl_clip.commands import train
from dassl_clip.results.records import read_record

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "layout", ["pacs/images", "PACS/images", "PACS", "kfold", "lists/absolute", "lists/image_list"]
)
def test_gopro_runs_on_pacs(layout, tmp_path, pacs_tree):
    root, folder = pacs_tree(tmp_path / "data", layout, size=2), tmp_path / "run"
    words = ["--trainer", "GOPro", "--dataset-config-file", str(ROOT / "configs/datasets/pacs.yaml")]
    words += ["--config-file", str(ROOT / "configs/trainers/GOPro/vit_b16.yaml"), "--root", str(root), "--seed", "1"]
    words += ["--source-domains", "cartoon", "art_painting", "--target-domains", "sketch", "--output-dir", str(folder)]
    words += ["MODEL.BACKBONE.NAME", "ViT-B-16:random", "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "1"]
    words += ["DATALOADER.NUM_WORKERS", "0", "TRAINER.GOPRO.PREC", "fp32"]
    assert train.main(words) == 0
    record = read_record(folder)
    assert (record["num_train"], record["metrics"]["test"]["total"], record["num_classes"]) == (7, 14, 7)
    assert record["backbone"]["vision_widths"] == [768] * 12 and set(record["losses"]) >= {"ce", "consistency"}
