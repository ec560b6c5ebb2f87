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
def run(tmp_path, tiny_clip, domain_tree, capsys):
    """`run(trainer, *KEY VALUE, name=..., flags=..., root=..., code=0)` gives `(folder, record, output)`."""
    import yaml

    from dassl_clip.cli import train
    from dassl_clip.results.records import read_record

    def go(trainer, *pairs, name="run", flags=(), root=domain_tree, source="art photo", target="sketch", code=0):
        data = tmp_path / "data.yaml"
        data.write_text(yaml.safe_dump({"DATASET": {"NAME": "FolderDomains"}}))
        folder = tmp_path / name
        argv = [
            "--trainer",
            trainer,
            "--dataset-config-file",
            str(data),
            "--root",
            str(root),
            "--output-dir",
            str(folder),
        ]
        argv += ["--seed", "1", "--source-domains", *source.split(), "--target-domains", *target.split(), *flags]
        argv += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "DATALOADER.NUM_WORKERS", "0"]
        argv += [
            "DATALOADER.TRAIN_X.BATCH_SIZE",
            "6",
            "DATASET.NUM_SHOTS",
            "4",
            "OPTIM.MAX_EPOCH",
            "2",
            "OPTIM.NAME",
            "sgd",
        ]
        argv += ["OPTIM.LR_SCHEDULER", "cosine", "OPTIM.LR", "0.01"]
        given = train.main([*argv, *map(str, pairs)])
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
            return torch.cat([self.model.encode_text(open_clip.tokenize([text])) for text in texts])

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


@pytest.fixture
def strangers() -> tuple[str, ...]:
    """Beginnings of the config keys of trainers that other tests have registered."""
    from dassl.engine import TRAINER_REGISTRY

    names = TRAINER_REGISTRY.registered_names()
    modules = {name: TRAINER_REGISTRY.get(name).__module__.split(".")[0] for name in names}
    return tuple(f"TRAINER.{name.upper()}." for name in names if modules[name] not in ("dassl", "dassl_clip"))
