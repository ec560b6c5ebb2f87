"""Runs on icons of six classes, and the images that they had."""

import json

import pytest

from dassl_clip.cli import train
from dassl_clip.clip.names import embedded_folder
from dassl_clip.embedded import ICONS_FOLDER
from dassl_clip.engine.open_run import read_run, run_config
from dassl_clip.results.predictions import read_predictions

CLASSES = ["bag", "book", "car", "cup", "drinking glass", "truck"]  # 106 flat icons: two batches of 100

# Method -> settings of its run on these, of line drawings trained on and flat icons tested.
RUNS = {
    "ZeroshotCLIP": (),
    "CLAP": ("TRAINER.CLAP.MAX_STEPS", "40", "TRAINER.CLAP.CHECK_EVERY", "20"),
    "InMaP": (),
    "LinearProbe": ("TRAINER.LINEARPROBE.PULL", "(1.0, 3.0)"),
    "CoOp": ("OPTIM.MAX_EPOCH", "1", "TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", "2"),
    "GOPro": ("OPTIM.MAX_EPOCH", "1"),
}


class IconsRun:
    """A finished run, its record and predictions, and its images: pairs of paths and labels."""

    def __init__(self, folder):
        from dassl.data.datasets import build_dataset

        self.folder = folder
        self.record, tree = read_run(folder)
        dataset = build_dataset(run_config(tree, self.record))
        self.predictions = read_predictions(folder, scores=True)
        self.names = list(dataset.classnames)
        for part in ("train_x", "val", "test"):
            items = getattr(dataset, part)
            setattr(self, part, ([item.impath for item in items], [item.label for item in items]))


@pytest.fixture(scope="session")
def icons_run(tmp_path_factory):
    """Method -> its run, made once."""
    made, data = {}, tmp_path_factory.mktemp("icons")
    facts = json.loads((ICONS_FOLDER / "manifest.json").read_text())
    (data / "manifest.json").write_text(json.dumps(facts | {"classes": CLASSES}))
    head, *rows = (ICONS_FOLDER / "split.csv").read_text().splitlines(keepends=True)
    (data / "split.csv").write_text(head + "".join(row for row in rows if row.split(",")[2] in CLASSES))
    for domain in facts["domains"]:
        (data / domain).symlink_to(ICONS_FOLDER / domain)

    def run(method):
        if method not in made:
            folder = tmp_path_factory.mktemp("runs") / method
            words = ["--trainer", method, "--root", str(data), "--dataset-config-file", "configs/datasets/icons.yaml"]
            words += ["--config-file", f"configs/trainers/{method}/icons.yaml", "--output-dir", str(folder)]
            words += ["--source-domains", "line", "--target-domains", "flat", "--seed", "3", "DATASET.NUM_SHOTS", "1"]
            assert train.main([*words, *RUNS[method]]) == 0
            made[method] = IconsRun(folder)
        return made[method]

    return run


@pytest.fixture(scope="session")
def icons():
    """Class name -> a few of its flat icons."""
    folder = embedded_folder().parent / "icons" / "flat"
    return {name: sorted(map(str, (folder / name).glob("*.png")))[:4] for name in ("key", "star", "fish")}
