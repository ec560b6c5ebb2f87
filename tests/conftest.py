"""What the tests share: a small random CLIP in a folder, a small tree of pictures in domains and classes, and a tiny
world for whole commands, with two plain Dassl trainers in a file of their own.

Whole commands run in processes of their own, forked by `helper_process`.
"""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helper_process import ENVIRONMENT, Child, Helper

TINY_CLIP = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    },
}


# Several test processes share the cores: threads of each, and of what it starts, would only be in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """File names that are no text may stand in what a test has logged; reports travel between processes as text."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def but_for_rounding():
    """Metrics of a record, as what equals those of a run that added up in another order: the same counts, not digits.

    Batches of another size, or several processes, change the last digits of the shares of classes.
    """

    def expected(metrics: dict) -> dict:
        shares = ("ece", "brier", "nll")
        return {
            split: {k: pytest.approx(v, rel=1e-4, abs=1e-4) if k in shares else v for k, v in values.items()}
            for split, values in metrics.items()
        }

    return expected


@pytest.fixture(scope="session", autouse=True)
def no_power_failure() -> Iterator[None]:
    """Files of tests are not brought to the disk one by one, which takes longer than what many tests do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def feature_cache(tmp_path_factory) -> Path:
    """A folder of the session's own for cached features, for this process and those that tests start."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["DASSL_CLIP_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> Path:
    """A folder with a small ViT CLIP of random weights, for `MODEL.BACKBONE.NAME local-dir:<folder>`."""
    return make_tiny_clip(tmp_path_factory.mktemp("tiny_clip"), seed=0)


@pytest.fixture(scope="session")
def other_clip(tmp_path_factory) -> Path:
    """The same architecture with other weights."""
    return make_tiny_clip(tmp_path_factory.mktemp("other_clip"), seed=1)


@pytest.fixture(scope="session")
def deep_clip(tmp_path_factory) -> Path:
    """The image size, patches and layers of ViT-B/16; the towers are narrow, and their widths differ as there."""
    vision = {"image_size": 224, "patch_size": 16, "layers": 12, "width": 48, "head_width": 16}
    text = TINY_CLIP["model_cfg"]["text_cfg"] | {"layers": 12}
    config = TINY_CLIP | {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}}
    return make_tiny_clip(tmp_path_factory.mktemp("deep_clip"), seed=0, config=config)


def make_tiny_clip(folder: Path, seed: int, config: dict = TINY_CLIP) -> Path:
    """Write the configuration and random weights in open_clip's layout."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config["model_cfg"])
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


DOMAINS, CLASSES, IMAGES = ("art", "photo", "sketch"), ("dog", "fire_truck", "house"), 10


@pytest.fixture(scope="session")
def domain_tree(tmp_path_factory) -> Path:
    """`root/domain/class/image`: 3 domains, 3 classes, 10 noisy pictures each, with a colour a class."""
    root = tmp_path_factory.mktemp("tree")
    draw = np.random.default_rng(0)
    for d, domain in enumerate(DOMAINS):
        for c, name in enumerate(CLASSES):
            folder = root / domain / name
            folder.mkdir(parents=True)
            base = np.full((36, 44, 3), 60 * d, dtype=np.int64)
            base[..., c] += 120
            for i in range(IMAGES):
                pixels = (base + draw.integers(-50, 50, base.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return root


@pytest.fixture
def run(tmp_path, tiny_clip, domain_tree, capsys):
    """`run(trainer, *KEY VALUE, name=..., flags=..., root=..., code=0)` gives `(folder, record, output)`."""
    import yaml

    from dassl_clip.cli import train
    from dassl_clip.results.records import read_record

    def go(trainer, *pairs, name="run", flags=(), root=domain_tree, source="art photo", target="sketch", code=0):
        data = tmp_path / "data.yaml"
        data.write_text(yaml.safe_dump({"DATASET": {"NAME": "FolderDomains"}}))
        folder = tmp_path / name
        argv = ["--trainer", trainer, "--dataset-config-file", data, "--root", root, "--output-dir", folder]
        argv += ["--seed", 1, "--source-domains", *source.split(), "--target-domains", *target.split(), *flags]
        argv += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "DATALOADER.NUM_WORKERS", 0]
        argv += ["DATALOADER.TRAIN_X.BATCH_SIZE", 6, "DATASET.NUM_SHOTS", 4, "OPTIM.MAX_EPOCH", 2]
        argv += ["OPTIM.NAME", "sgd", "OPTIM.LR_SCHEDULER", "cosine", "OPTIM.LR", 0.01, *pairs]
        given = train.main(list(map(str, argv)))
        output = capsys.readouterr()
        assert given == code, output.err + output.out[-3000:]
        return folder, read_record(folder), output

    return go


@pytest.fixture(scope="session")
def plain(tiny_clip):
    """The small CLIP in open_clip's hands."""
    import open_clip
    import torch
    from safetensors.torch import load_file

    class PlainCLIP:
        """Its own model, transform and tokenizer, one picture at a time."""

        def __init__(self, folder: Path):
            config = json.loads((folder / "open_clip_config.json").read_text())
            self.model = open_clip.CLIP(**config["model_cfg"]).eval()
            self.model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
            self.scale = self.model.logit_scale.exp().item()
            pixels = config["preprocess_cfg"]
            self.mean, self.std = (torch.tensor(pixels[key]).view(3, 1, 1) for key in ("mean", "std"))
            self.transform = open_clip.image_transform(32, is_train=False, mean=pixels["mean"], std=pixels["std"])

        def picture(self, path):
            """One normalised picture, `[1, 3, H, W]`."""
            return self.transform(Image.open(path).convert("RGB"))[None]

        @torch.no_grad()
        def images(self, paths):
            """Features `[N, E]`, not normalised."""
            return torch.cat([self.model.encode_image(self.picture(path)) for path in paths])

        @torch.no_grad()
        def texts(self, texts):
            """Features `[K, E]`, not normalised."""
            return torch.cat([self.model.encode_text(rows) for rows in open_clip.tokenize(list(texts)).split(32)])

        @torch.no_grad()
        def noisy_names(self, names, noise):
            """Features `[C, E]` of noise embeddings `[M, D]` between the start and the name, at full length."""
            model, rows = self.model, []
            for name in names:
                ids = open_clip.tokenize([name])[0]
                tokens = model.token_embedding(ids)
                tokens = torch.cat([tokens[:1], noise, tokens[1 : len(tokens) - len(noise)]])
                x = model.transformer((tokens + model.positional_embedding)[None], attn_mask=model.attn_mask)
                rows.append(model.ln_final(x)[0, int(ids.argmax()) + len(noise)] @ model.text_projection)
            return torch.stack(rows)

    return PlainCLIP(tiny_clip)


@pytest.fixture(scope="session")
def sketch(domain_tree, plain):
    """The target domain: files, labels `[N]`, class names, and plain features `[N, E]`, in the order of the files."""
    import torch

    folders = sorted((domain_tree / "sketch").iterdir())
    paths = [path for folder in folders for path in sorted(folder.iterdir())]
    labels = torch.tensor([folders.index(path.parent) for path in paths])
    return paths, labels, [folder.name.replace("_", " ") for folder in folders], plain.images(paths)


@pytest.fixture
def strangers() -> tuple[str, ...]:
    """Beginnings of the config keys of trainers that other tests have registered."""
    from dassl.engine import TRAINER_REGISTRY

    names = TRAINER_REGISTRY.registered_names()
    modules = {name: TRAINER_REGISTRY.get(name).__module__.split(".")[0] for name in names}
    return tuple(f"TRAINER.{name.upper()}." for name in names if modules[name] not in ("dassl", "dassl_clip"))


# ---------------------------------------------------------------------------- a tiny world for whole commands

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
COLOUR_DOMAINS = ("day", "night")
COLOUR_CLASSES = {"cold": (40, 60, 200), "hot": (200, 60, 40)}
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
        child = self.helper.start(words, self.root)
        return subprocess.CompletedProcess(words, child.poll(0), child.out.read_text(), child.err.read_text())

    def start(self, words: list[str]) -> Child:
        """The same, without waiting for its end."""
        return self.helper.start(words, self.root, "started")


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
    for number, domain in enumerate(COLOUR_DOMAINS):
        for name, colour in COLOUR_CLASSES.items():
            folder = world.images / domain / name
            folder.mkdir(parents=True)
            for index in range(10):
                pixels = np.array(colour) * (1 - 0.3 * number) + draw.normal(0, 60, (8, 8, 3))
                Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(folder / f"{index:02}.png")
    world.dataset.write_text(DATASET_YAML, encoding="utf-8")
    world.config.write_text(TRAINER_YAML, encoding="utf-8")
    return world
