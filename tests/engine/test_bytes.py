"""Views handed on as bytes and normalised by the trainer: to the bit what the transforms themselves give.

Covers `before_normalisation` for the model's own preprocessing, GOPro's views and Dassl's transforms (and those that it
leaves alone), `FrozenCLIP.normalised`, collated batches with blanks for unreadable files, and whole runs in which every
loader hands on bytes, as on a GPU.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from dassl.config import get_cfg_default
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl_clip.clip.backbone import load_backbone
from dassl_clip.clip.views import augmix_view, moco_view
from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.engine.data import SeededImages, before_normalisation


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("IconsCLIP")


@pytest.fixture
def cfg(backbone):
    """Settings whose pixels are the model's."""
    cfg: CfgNode = get_cfg_default()
    cfg.INPUT.SIZE = tuple(backbone.image_size)
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = list(backbone.pixel_mean), list(backbone.pixel_std)
    return cfg


def views_of(name, backbone, cfg):
    size, bicubic = tuple(backbone.image_size), InterpolationMode.BICUBIC
    if name == "preprocess":
        return backbone.preprocess()
    if name == "moco":
        return moco_view(size, bicubic, backbone.normalize())
    if name == "augmix":
        return augmix_view(size, bicubic, backbone.normalize())
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    return build_transform(cfg, is_train=True)


def picture(seed, mode="RGB"):
    pixels = np.random.default_rng(seed).integers(0, 256, (57, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("name", ["preprocess", "moco", "augmix", "dassl"])
def test_bytes_are_normalised_to_the_same_bits(name, backbone, cfg):
    view = views_of(name, backbone, cfg)
    cut = before_normalisation(view, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    floats, bytes_ = [], []
    for seed in range(6):
        torch.manual_seed(seed)
        floats.append(view(picture(seed)))
        torch.manual_seed(seed)
        bytes_.append(cut(picture(seed)))
    assert all(item.dtype == torch.uint8 for item in bytes_)
    assert torch.equal(backbone.normalised(torch.stack(bytes_)), torch.stack(floats))


def test_other_transforms_are_left_alone(backbone, cfg):
    tensor, normalize = transforms.ToTensor(), backbone.normalize()
    other = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    pixels = cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD
    for steps in ([tensor], [normalize], [tensor, other], [tensor, transforms.RandomErasing(), normalize], []):
        view = transforms.Compose(steps)
        assert before_normalisation(view, *pixels) is view
    for view in (tensor, None, [tensor, normalize]):
        assert before_normalisation(view, *pixels) is view


def test_batches_of_several_views_with_blanks(backbone, cfg, tmp_path):
    """The same views, by the same random numbers, also where a file cannot be decoded."""
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    items = [Datum(impath=str(tmp_path / f"{number}.png"), label=number) for number in range(3)]
    views = [views_of(name, backbone, cfg) for name in ("preprocess", "moco", "augmix")]
    for is_train in (True, False):
        images = SeededImages(cfg, items, transform=views, is_train=is_train)
        found = {}
        for as_bytes in (False, True):
            images.as_bytes = as_bytes
            torch.manual_seed(2)
            found[as_bytes] = [images[index] for index in range(3)]
        for floats, packed in zip(found[False], found[True]):
            assert floats.keys() == packed.keys() and floats["impath"] == packed["impath"]
            for name in ("img", "img2", "img3"):
                assert packed[name].dtype == torch.uint8
                assert torch.equal(backbone.normalised(packed[name][None])[0], floats[name])


@pytest.mark.parametrize(
    "words",
    [("CoOp", "INPUT.TRANSFORMS", "('random_flip','normalize')"), ("GOPro",), ("InMaP",)],
    ids=lambda words: words[0],
)
def test_runs_are_equal_to_the_bit(run, monkeypatch, tmp_path, words):
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    floats, record, _ = run(*words, name="floats")
    dtypes = set()
    transform = SeededImages._transform_image

    def watched(self, tfm, picture):
        self.as_bytes = True
        view = transform(self, tfm, picture)
        dtypes.add(view.dtype)
        return view

    monkeypatch.setattr(SeededImages, "_transform_image", watched)
    packed, other, _ = run(*words, name="bytes")
    assert dtypes == {torch.uint8}
    assert record["history"] == other["history"] and record["metrics"] == other["metrics"]
    (model,) = [p for p in floats.iterdir() if (p / "checkpoint").is_file()]
    states = [
        checkpoint.load_checkpoint(folder / model.name / (model / "checkpoint").read_text().strip())["state_dict"]
        for folder in (floats, packed)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
