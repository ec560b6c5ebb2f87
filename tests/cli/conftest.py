"""A tiny world for the command line: images drawn on the spot and two plain Dassl trainers in a file of their own.

Whole commands run in processes of their own. Importing torch takes seconds, so one helper process imports it once and
forks a fresh child for each command; the child does what `python -m dassl_clip.cli` does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
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
    """A linear layer on the mean colour. FAULTS, such as "lodo night kill", makes runs fail in their last epoch."""

    @staticmethod
    def add_config(cfg):
        cfg.TRAINER.TINYNET = CfgNode({"WIDTH": 3, "FAULTS": (), "PREC": "fp32", "CTX_INIT": "some words"})

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
        for words in map(str.split, self.cfg.TRAINER.TINYNET.FAULTS):
            here = [self.cfg.RUN.TASK, *self.cfg.DATASET.TARGET_DOMAINS]
            if words[:2] == here and self.epoch == self.max_epoch - 1:
                self.fail(words[2])
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item(), "acc": compute_accuracy(logits, label)[0].item()}

    def fail(self, fault):
        mark = os.path.join(os.path.dirname(self.cfg.OUTPUT_DIR), "was_killed")
        if fault == "killed_once" and not os.path.exists(mark):
            open(mark, "w").close()
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


HELPER = """
import json, os, sys
import open_clip
import dassl_clip.datasets, dassl_clip.trainers
from dassl_clip.cli.__main__ import main
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.chdir(job["cwd"])
        for number, path in enumerate(("/dev/null", job["out"], job["err"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), number)
        code = 1
        try:
            code = main(job["words"])
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


SETTINGS_OF_SCRIPTS = ("TASK", "DATA", "OUT", "CFG", "SHOTS", "JOBS", "REFERENCE", "PYTHON")
OUTSIDE = {key: value for key, value in os.environ.items() if key not in SETTINGS_OF_SCRIPTS}
ENVIRONMENT = {**OUTSIDE, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200"}


class Helper:
    """The process that has everything imported; it starts when it is first needed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def run(self, job: dict) -> int:
        """Run one command in a fresh child; returns its exit code."""
        if self.process is None:
            command = [sys.executable, "-c", HELPER]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            cache = {"DASSL_CLIP_CACHE": os.environ["DASSL_CLIP_CACHE"]}
            self.process = subprocess.Popen(command, env=ENVIRONMENT | cache, **pipes)
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.communicate()


class World:
    """Paths of the tiny world, and a way to run the command line in it."""

    environment = ENVIRONMENT  # few threads, no GPU

    def __init__(self, root: Path, plugin: Path, helper: Helper) -> None:
        self.root, self.images, self.out = root, root / "my images", root / "out"
        self.plugin, self.dataset, self.config = plugin, root / "colours.yaml", root / "tiny.yaml"
        self.helper = helper

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

    def run(self, words: list[str]) -> subprocess.CompletedProcess:
        """Run `dassl-clip WORDS` in a process of its own to its end, in the world's folder."""
        out, err = self.root / "stdout", self.root / "stderr"
        job = {"words": [str(word) for word in words], "cwd": str(self.root), "out": str(out), "err": str(err)}
        return subprocess.CompletedProcess(words, self.helper.run(job), out.read_text(), err.read_text())


@pytest.fixture(scope="session")
def helper() -> Iterator[Helper]:
    """One helper for all tests."""
    helper = Helper()
    yield helper
    helper.close()


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user's file; one for all tests, since a trainer registers once in a process."""
    path = tmp_path_factory.mktemp("plugin") / "tiny_plugin.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


@pytest.fixture
def world(tmp_path: Path, plugin: Path, helper: Helper) -> World:
    """A fresh tiny world."""
    world = World(tmp_path, plugin, helper)
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
