"""What the tests share: a small random CLIP in a folder, and a small tree of pictures in domains and classes."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


def make_tiny_clip(folder: Path, seed: int) -> Path:
    """Write the configuration and random weights in open_clip's layout."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(
            embed_dim=16, vision_cfg=TINY_CLIP["model_cfg"]["vision_cfg"], text_cfg=TINY_CLIP["model_cfg"]["text_cfg"]
        )
    (folder / "open_clip_config.json").write_text(json.dumps(TINY_CLIP))
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
def strangers() -> tuple[str, ...]:
    """Beginnings of the config keys of trainers that other tests have registered."""
    from dassl.engine import TRAINER_REGISTRY

    names = TRAINER_REGISTRY.registered_names()
    modules = {name: TRAINER_REGISTRY.get(name).__module__.split(".")[0] for name in names}
    return tuple(f"TRAINER.{name.upper()}." for name in names if modules[name] not in ("dassl", "dassl_clip"))
