"""Finished runs for commands that read them: written as records say it, and trained on the small tree."""

import shutil

import numpy as np
import pytest

from dassl_clip.cli import train
from dassl_clip.results import records

# Run folder -> settings: trainer before the first dash, or after a plus the one that refines the run before it.
SETTINGS = {
    "ZeroshotCLIP": ("TRAINER.ZEROSHOTCLIP.TEMPLATES", "clap_pc"),
    "CoOp": ("TRAINER.COOP.N_CTX", "4", "TEST.FINAL_MODEL", "best_val"),
    "CoOp-CSC": ("TRAINER.COOP.N_CTX", "2", "TRAINER.COOP.CSC", "True"),
    "LinearProbe": (),
    "GOPro": (),
    "GOPro-paper": ("TRAINER.GOPRO.VARIANT", "paper"),
    "CLAP": (
        *("TRAINER.CLAP.MAX_STEPS", "20", "TRAINER.CLAP.LATENT_DIM", "8", "TRAINER.CLAP.TEMPLATES", "single"),
        *("TRAINER.CLAP.ALPHA", "source-val", "TRAINER.CLAP.ALPHA_CANDIDATES", "(50.0, 80.0)"),
    ),
    "InMaP": ("TRAINER.INMAP.MARGINAL", "uniform"),
    "CLAP+InMaP": (),
}


def run_words(method, folder, root, clip, *pairs):
    """The words of train.py for a run on a tree of domains that leaves sketch out."""
    (folder.parent / "data.yaml").write_text("DATASET:\n  NAME: FolderDomains\n")
    words = ["--trainer", method, "--dataset-config-file", str(folder.parent / "data.yaml"), "--root", str(root)]
    words += ["--output-dir", str(folder), "--seed", "1", "--source-domains", "art", "photo"]
    words += ["--target-domains", "sketch", "MODEL.BACKBONE.NAME", f"local-dir:{clip}"]
    words += ["DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "6", "DATASET.NUM_SHOTS", "4"]
    return [*words, "OPTIM.MAX_EPOCH", "1", "OPTIM.NAME", "sgd", "OPTIM.LR", "0.05", *pairs]


@pytest.fixture(scope="session")
def trained(tmp_path_factory, tiny_clip, domain_tree):
    """A run folder of every setting; the data lie in `moved` and no longer in `data`."""
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(domain_tree, root / "data")
    for name, pairs in SETTINGS.items():
        base, _, refiner = name.partition("+")
        pairs += ("TRAINER.INMAP.FROM", str(root / base)) if refiner else ()
        method = refiner or base.split("-")[0]
        assert train.main(run_words(method, root / name, root / "data", tiny_clip, *pairs)) == 0, name
    (root / "data").rename(root / "moved")
    return root


def write_run(folder, classes=("cat", "dog"), **facts):
    """A finished run as its record tells it, with the predictions of nine images."""
    made = {
        "method": "CoOp", "config": "vit", "task": "lodo", "dataset": "PACS", "protocol": "p", "selection_rule": "last",
        "source_domains": ["art"], "target_domains": ["photo"], "class_subset": "all", "shots": 16, "seed": 1,
        "split_seed": 1, "prompt": "a photo of a {}.", "backbone": {"name": "RN50", "weights_hash": "ab" * 32},
        "num_train": 10, "losses": {}, "seconds": {"train": 12.5, "test": 1.0, "total": 2.0}, "peak_memory_mb": 1234.0,
        "versions": {"torch": "2.9.1", "python": "3.11.4"}, "toolbox": {"kind": "embedded", "version": "0.6.3"},
        "device": "cpu", "precision": "fp32", "git_revision": "abc123", "config_hash": "1", "data_fingerprint": "",
        "command": "python train.py --seed 1", "finished_at": "2024-01-01T00:00:00+00:00", "transductive": False,
        "metrics": {"test": {"accuracy": 50.0, "error_rate": 50.0, "total": 20, "correct": 10}},
        "history": [{"epoch": 1, "lr": 0.1, "loss": 2.0}, {"epoch": 2, "lr": 0.05, "loss": 1.0}],
    }  # fmt: skip
    records.write_record(folder, made | facts)
    count = len(classes)
    top = np.stack([(np.arange(9) + k) // 2 % count for k in range(count)], axis=1)
    np.savez(folder / "predictions.npz", paths=np.array(["a"] * 9), labels=np.arange(9) % count, top=top,
             shares=np.full((9, count), 1 / count, np.float32), classnames=np.array(classes))  # fmt: skip
    return folder
