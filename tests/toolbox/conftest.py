"""A toy data set of small drawn images, a small trainer, and a configuration for both."""

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from torch import nn
from torch.nn import functional as F

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import set_random_seed

CLASSES = ("cat", "dog", "emu")
DOMAINS = ("ink", "oil")
SIDE = 12


def draw_images(root: Path, per_class: int = 8) -> None:
    """Draws `root/<domain>/<class>/<number>.png`; a class has its colour, a domain its brightness."""
    rng = random.Random(0)
    for shade, domain in enumerate(DOMAINS):
        for label, name in enumerate(CLASSES):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                color = [40 + 30 * shade] * 3
                color[label] = 150 + rng.randrange(60)
                image = Image.new("RGB", (SIDE, SIDE), tuple(color))
                image.putpixel((number % SIDE, 3), (0, 0, 255 - color[2]))
                image.save(folder / f"{number}.png")


@DATASET_REGISTRY.register(force=True)
class ToyImages(DatasetBase):
    """Of each class and domain, images 0 to 5 for training, 6 for validation and 7 for testing."""

    has_val = True
    has_unlabelled = False

    def __init__(self, cfg: Any) -> None:
        self.dataset_dir = Path(cfg.DATASET.ROOT)
        train = self.read(range(6))
        super().__init__(
            train_x=self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS),
            train_u=train if self.has_unlabelled else None,
            val=self.read([6]) if self.has_val else None,
            test=self.read([7]),
        )

    def read(self, numbers: Any) -> list[Datum]:
        return [
            Datum(str(self.dataset_dir / domain / name / f"{number}.png"), label, place, name)
            for place, domain in enumerate(DOMAINS)
            for label, name in enumerate(CLASSES)
            for number in numbers
        ]


@DATASET_REGISTRY.register(force=True)
class ToyWithoutVal(ToyImages):
    """The toy images without validation data."""

    has_val = False


@DATASET_REGISTRY.register(force=True)
class ToyUnlabelled(ToyImages):
    """The toy images with unlabelled ones."""

    has_unlabelled = True


@TRAINER_REGISTRY.register(force=True)
class MiniTrainer(TrainerX):
    """The smallest plugin: three methods. Its model draws random numbers."""

    def build_model(self) -> None:
        height, width = self.cfg.INPUT.SIZE
        layers = [nn.Flatten(), nn.Dropout(0.2), nn.Linear(3 * height * width, self.num_classes)]
        self.model = nn.Sequential(*layers).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("mini", self.model, self.optim, self.sched)

    def forward_backward(self, batch: dict) -> dict[str, float]:
        image, label = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def parse_batch_train(self, batch: dict) -> tuple:
        return batch["img"].to(self.device), batch["label"].to(self.device)


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the toy images."""
    root = tmp_path_factory.mktemp("toy")
    draw_images(root)
    return root


@pytest.fixture
def make_cfg(image_root: Path, tmp_path: Path):
    """Makes the configuration of a small run; keys and values may follow."""

    def make(*pairs: Any):
        cfg = get_cfg_default()
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        cfg.SEED = 1
        cfg.USE_CUDA = False
        cfg.DATASET.ROOT = str(image_root)
        cfg.DATASET.NAME = "ToyImages"
        cfg.TRAINER.NAME = "MiniTrainer"
        cfg.INPUT.SIZE = (8, 8)
        cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize", "gaussian_noise")
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 9
        cfg.OPTIM.NAME = "sgd"
        cfg.OPTIM.LR = 0.02
        cfg.OPTIM.LR_SCHEDULER = "cosine"
        cfg.OPTIM.WARMUP_EPOCH = 1
        cfg.OPTIM.WARMUP_TYPE = "constant"
        cfg.OPTIM.MAX_EPOCH = 3
        for key, value in zip(pairs[::2], pairs[1::2]):
            *nodes, leaf = key.split(".")
            node = cfg
            for name in nodes:
                node = node[name]
            node[leaf] = value
        set_random_seed(1)
        return cfg

    return make
