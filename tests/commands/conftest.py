"""A tiny world for the command line: images drawn on the spot and two plain Dassl trainers in a file of their own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PLUGIN = '''
"""Two trainers written against Dassl alone, as a user's file has them."""

import os
import signal
import time

import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import nn
from torch.nn import functional as F
from yacs.config import CfgNode


@TRAINER_REGISTRY.register()
class TinyNet(TrainerX):
    """A linear layer on the mean colour. FAULT makes runs on the target FAULTY fail in several ways."""

    @staticmethod
    def add_config(cfg):
        cfg.TRAINER.TINYNET = CfgNode({"WIDTH": 3, "FAULT": "", "FAULTY": "", "PREC": "fp32", "CTX_INIT": "some words"})

    def build_model(self):
        self.model = nn.Linear(3, self.num_classes).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("tiny", self.model, self.optim, self.sched)

    def model_inference(self, image):
        return self.model(image.mean(dim=(2, 3)))

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        logits = self.model_inference(image)
        loss = F.cross_entropy(logits, label)
        self.model_backward_and_update(loss)
        node = self.cfg.TRAINER.TINYNET
        if node.FAULT and node.FAULTY in self.cfg.DATASET.TARGET_DOMAINS and self.epoch == self.max_epoch - 1:
            self.fail(node.FAULT)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, label)[0].item()}

    def fail(self, fault):
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "bug":
            raise RuntimeError("a bug in the method")
        if fault == "sleep":
            time.sleep(600)


@TRAINER_REGISTRY.register()
class TinyGuess(TrainerX):
    """The first channel decides; nothing is trained."""

    @staticmethod
    def add_config(cfg):
        cfg.TRAINER.TINYGUESS = CfgNode({"TEMPLATES": "single", "CTX_INIT": "a photo of a"})

    def build_model(self):
        pass

    def train(self):
        self.test()

    def model_inference(self, image):
        return torch.stack([-image[:, 0].mean(dim=(1, 2)), image[:, 0].mean(dim=(1, 2))], dim=1)
'''
DOMAINS = ("day", "night")
CLASSES = {"cold": (40, 60, 200), "hot": (200, 60, 40)}
DATASET_YAML = "DATASET:\n  NAME: FolderDomains\n  TASKS: [fewshot, lodo]\n"
TRAINER_YAML = """INPUT:
  SIZE: (8, 8)
  TRANSFORMS: ["normalize"]
DATALOADER:
  NUM_WORKERS: 0
  TRAIN_X: {BATCH_SIZE: 8}
OPTIM:
  NAME: sgd
  LR: 0.1
  MAX_EPOCH: 2
TRAIN:
  PRINT_FREQ: 1
"""


class World:
    """Paths of the tiny world, and a way to run the command line in it."""

    def __init__(self, root: Path, plugin: Path) -> None:
        self.root, self.images, self.out = root, root / "my images", root / "out"
        self.plugin, self.dataset, self.config = plugin, root / "colours.yaml", root / "tiny.yaml"

    def words(self, method: str = "TinyNet", target: str = "night") -> list[str]:
        """Arguments of train.py for one run."""
        source = "day" if target == "night" else "night"
        return [
            *("--trainer", method, "--import", str(self.plugin), "--dataset-config-file", str(self.dataset)),
            *("--config-file", str(self.config), "--root", str(self.images), "--seed", "1"),
            *("--source-domains", source, "--target-domains", target, "--output-dir", str(self.out)),
        ]

    def task(self, *more: str, method: str = "TinyNet", seed: str = "1") -> list[str]:
        """Arguments of `dassl-clip task`."""
        return [
            *("task", method, str(self.dataset), seed, "--config", str(self.config), "--import", str(self.plugin)),
            *("--data", str(self.images), "--out", str(self.out), "--shots", "4", *more),
        ]

    def environment(self) -> dict[str, str]:
        """A process's environment with little noise and few threads."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}

    def run(self, words: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess:
        """Run `python -m dassl_clip.commands WORDS` to its end."""
        command = [sys.executable, "-m", "dassl_clip.commands", *words]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=cwd or self.root, env=self.environment(), timeout=300
        )


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's file; one for all tests, since a trainer registers once in a process."""
    path = tmp_path_factory.mktemp("plugin") / "tiny_plugin.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


@pytest.fixture
def world(tmp_path: Path, plugin: Path) -> World:
    """A fresh tiny world."""
    world = World(tmp_path, plugin)
    draw = np.random.default_rng(0)
    for number, domain in enumerate(DOMAINS):
        for name, colour in CLASSES.items():
            folder = world.images / domain / name
            folder.mkdir(parents=True)
            for index in range(10):
                pixels = np.array(colour) * (1 - 0.3 * number) + draw.normal(0, 60, (8, 8, 3))
                Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{index:02}.png")
    world.dataset.write_text(DATASET_YAML, encoding="utf-8")
    world.config.write_text(TRAINER_YAML, encoding="utf-8")
    return world
