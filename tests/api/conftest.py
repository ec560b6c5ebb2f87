"""Runs on the icons, and the images that they had."""

import pytest

from dassl_clip.cli import train
from dassl_clip.clip.names import embedded_folder
from dassl_clip.engine.open_run import read_run, run_config
from dassl_clip.results.predictions import read_predictions

# Method -> settings of its run on the icons, of line drawings trained on and flat icons tested.
RUNS = {
    "ZeroshotCLIP": (),
    "CLAP": ("TRAINER.CLAP.MAX_STEPS", "240"),
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
    made = {}

    def run(method):
        if method not in made:
            folder = tmp_path_factory.mktemp("icons") / method
            words = ["--trainer", method, "--dataset-config-file", "configs/datasets/icons.yaml"]
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
