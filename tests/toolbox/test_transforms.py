"""Transforms: the fixed order and its printed lines, testing, the single transforms against naive computations."""

import itertools
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as TF

from dassl.data.transforms import INTERPOLATION_MODES, build_transform
from dassl.data.transforms.randaugment import (
    OPERATIONS_A,
    OPERATIONS_B,
    OPERATIONS_C,
    RandAugment,
    RandAugment2,
    RandAugmentFixMatch,
    translate_x,
)
from dassl.data.transforms.transforms import (
    AVAI_CHOICES,
    Cutout,
    GaussianNoise,
    InstanceNormalization,
    Random2DTranslation,
    _build_transform_test,
)
from dassl.utils import set_random_seed

ORDER = [
    ("random_translation", "+ random translation", "Random2DTranslation"),
    ("random_crop", "+ random crop (padding=4)", "RandomCrop"),
    ("random_resized_crop", "+ random resized crop (size=(8, 8), scale=(0.08, 1.0))", "RandomResizedCrop"),
    ("random_flip", "+ random flip", "RandomHorizontalFlip"),
    ("imagenet_policy", "+ imagenet policy", "ImageNetPolicy"),
    ("cifar10_policy", "+ cifar10 policy", "CIFAR10Policy"),
    ("svhn_policy", "+ svhn policy", "SVHNPolicy"),
    ("randaugment", "+ randaugment (n=2, m=10)", "RandAugment"),
    ("randaugment_fixmatch", "+ randaugment_fixmatch (n=2)", "RandAugmentFixMatch"),
    ("randaugment2", "+ randaugment2 (n=2)", "RandAugment2"),
    ("colorjitter", "+ color jitter (brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)", "ColorJitter"),
    ("randomgrayscale", "+ random gray scale", "RandomGrayscale"),
    ("gaussian_blur", "+ gaussian blur (kernel=21)", "RandomApply"),
    (None, "+ to torch tensor of range [0, 1]", "ToTensor"),
    ("cutout", "+ cutout (n_holes=1, length=16)", "Cutout"),
    ("normalize", "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])", "Normalize"),
    ("gaussian_noise", "+ gaussian noise (mean=0.0, std=0.15)", "GaussianNoise"),
    ("instance_norm", "+ instance normalization", "InstanceNormalization"),
]


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (14, 20, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def step_names(pipeline) -> list[str]:
    assert isinstance(pipeline, transforms.Compose)
    return [type(step).__name__ for step in pipeline.transforms]


def test_every_name_at_once_has_the_fixed_order(make_cfg, capsys):
    names = [name for name, _, _ in ORDER if name] + ["center_crop"]
    assert sorted(names) == sorted(AVAI_CHOICES)
    random.Random(1).shuffle(names)
    pipeline = build_transform(make_cfg(), choices=names)
    assert step_names(pipeline) == [kind for _, _, kind in ORDER]
    assert capsys.readouterr().out.splitlines() == ["Building transform_train", *(line for _, line, _ in ORDER)]


def test_pairs_of_names_leave_no_trace_of_absent_steps(make_cfg, capsys):
    cfg = make_cfg()
    for pair in itertools.combinations([row for row in ORDER if row[0]], 2):
        names = {name for name, _, _ in pair}
        pipeline = build_transform(cfg, choices=[name for name, _, _ in reversed(pair)])
        expected = [row for row in ORDER if row[0] in names or row[0] is None]
        kinds, lines = [kind for _, _, kind in expected], [line for _, line, _ in expected]
        if not names & {"random_crop", "random_resized_crop"}:
            kinds, lines = ["Resize", *kinds], ["+ resize to 8x8", *lines]
        assert step_names(pipeline) == kinds
        assert capsys.readouterr().out.splitlines()[1:] == lines


def test_training_resize_ignores_the_aspect_ratio(make_cfg, picture):
    cfg = make_cfg("INPUT.SIZE", (6, 10), "INPUT.INTERPOLATION", "bicubic")
    expected = TF.to_tensor(TF.resize(picture, [6, 10], interpolation=transforms.InterpolationMode.BICUBIC))
    assert torch.equal(build_transform(cfg, choices=[])(picture), expected)


def test_testing_resizes_the_shorter_side(make_cfg, picture, capsys):
    cfg = make_cfg("INPUT.SIZE", (6, 10))
    pipeline = build_transform(cfg, is_train=False, choices=["random_flip", "cutout", "normalize", "instance_norm"])
    assert capsys.readouterr().out.splitlines() == [
        "Building transform_test",
        "+ resize the smaller edge to 10",
        "+ 6x10 center crop",
        "+ to torch tensor of range [0, 1]",
        "+ normalization (mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])",
        "+ instance normalization",
    ]
    image = TF.to_tensor(TF.center_crop(TF.resize(picture, 10), [6, 10]))
    image = TF.normalize(image, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    expected = (image - image.mean((1, 2), keepdim=True)) / (image.std((1, 2), keepdim=True) + 1e-8)
    torch.testing.assert_close(pipeline(picture), expected)
    direct = _build_transform_test(cfg, [], "6x10", transforms.Normalize((0, 0, 0), (1, 1, 1)))
    assert step_names(direct) == ["Resize", "CenterCrop", "ToTensor"]


def test_errors_and_notes(make_cfg, capsys):
    with pytest.raises(AssertionError, match=r"random_flips.*random_flip"):
        build_transform(make_cfg(), choices=["random_flips"])
    with pytest.raises(KeyError):
        build_transform(make_cfg("INPUT.INTERPOLATION", "cubic"))
    assert set(INTERPOLATION_MODES) == {"bilinear", "bicubic", "nearest"}
    capsys.readouterr()
    assert build_transform(make_cfg("INPUT.NO_TRANSFORM", True)) is None
    assert capsys.readouterr().out != ""


def test_settings_reach_the_steps(make_cfg):
    cfg = make_cfg("INPUT.RRCROP_SCALE", (0.5, 0.9), "INPUT.RGS_P", 0.7, "INPUT.GB_P", 0.1, "INPUT.CROP_PADDING", 2)
    pipeline = build_transform(cfg, choices=["random_resized_crop", "randomgrayscale", "gaussian_blur", "random_crop"])
    pad, crop, gray, blur, _ = pipeline.transforms
    assert (pad.padding, crop.scale, crop.ratio) == (2, (0.5, 0.9), (3 / 4, 4 / 3))
    assert (gray.p, blur.p) == (0.7, 0.1)


@pytest.mark.parametrize("name", [name for name in AVAI_CHOICES if name != "random_crop"])
def test_each_step_gives_a_tensor_of_the_size_and_can_be_pickled(make_cfg, picture, name):
    pipeline = pickle.loads(pickle.dumps(build_transform(make_cfg("INPUT.GB_K", 3), choices=[name])))
    for seed in range(20):
        set_random_seed(seed)
        image = pipeline(picture)
        assert image.shape == (3, 8, 8) and image.dtype == torch.float32 and torch.isfinite(image).all()


def test_translation_crops_the_enlarged_image(picture):
    enlarged = np.asarray(picture.resize((18, 9), Image.Resampling.BILINEAR))
    crops = {enlarged[top : top + 8, left : left + 16].tobytes() for top in range(2) for left in range(3)}
    random.seed(0)
    moved = {np.asarray(Random2DTranslation(8, 16, p=1.0)(picture)).tobytes() for _ in range(80)}
    assert moved == crops
    nearest = Random2DTranslation(8, 16, p=0.0, interpolation=transforms.InterpolationMode.NEAREST)(picture)
    assert nearest.tobytes() == picture.resize((16, 8), Image.Resampling.NEAREST).tobytes()
    still = Random2DTranslation(8, 16, p=0.0)(picture)
    assert still.tobytes() == picture.resize((16, 8), Image.Resampling.BILINEAR).tobytes()


def test_cutout_sets_clipped_squares_to_zero():
    sizes = set()
    np.random.seed(0)
    for _ in range(200):
        image = Cutout(1, 4)(torch.ones(3, 9, 7))
        rows, columns = (image[0] == 0).any(1).sum().item(), (image[0] == 0).any(0).sum().item()
        assert (image == 0).sum() == 3 * rows * columns
        sizes.add((rows, columns))
    assert (4, 4) in sizes and (2, 2) in sizes and max(max(size) for size in sizes) == 4


def test_noise_and_instance_normalisation():
    image = torch.rand(3, 40, 40)
    set_random_seed(0)
    differences = [GaussianNoise(0.5, 0.1)(image) - image for _ in range(100)]
    noisy = torch.stack([difference for difference in differences if difference.any()])
    assert 35 < len(noisy) < 65
    assert abs(noisy.mean() - 0.5) < 0.01 and abs(noisy.std() - 0.1) < 0.01
    normed = InstanceNormalization()(image)
    torch.testing.assert_close(normed.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normed.std((1, 2)), torch.ones(3), atol=1e-5, rtol=0)


def test_operation_lists_have_the_published_ranges():
    ranges = [
        {operation.__name__: (low, high) for operation, low, high in ops}
        for ops in (OPERATIONS_A, OPERATIONS_B, OPERATIONS_C)
    ]
    assert [len(table) for table in ranges] == [16, 15, 14]
    assert ranges[0]["rotate"] == (0, 30) and ranges[1]["rotate"] == ranges[2]["rotate"] == (-30, 30)
    assert ranges[0]["solarize_add"] == (0, 110) and ranges[0]["cutout_abs"] == (0, 40)
    assert ranges[0]["translate_x_abs"] == (0, 100) and ranges[1]["translate_x"] == (-0.3, 0.3)
    assert ranges[0]["shear_x"] == (0, 0.3) and ranges[2]["shear_y"] == (-0.3, 0.3)
    for name in ("color", "contrast", "brightness", "sharpness"):
        assert ranges[0][name] == ranges[1][name] == (0.1, 1.9) and ranges[2][name] == (0.05, 0.95)
    assert all(table["posterize"] == (4, 8) and table["solarize"] == (0, 256) for table in ranges)
    assert "invert" in ranges[1] and "invert" not in ranges[2] and "identity" in ranges[1] and "identity" in ranges[2]


def test_strengths(picture):
    def record(log):
        return lambda image, value: (log.append(value), image)[1]

    log: list[float] = []
    augment = RandAugment(3, 15)
    augment.augment_list = [(record(log), 2.0, 6.0)]
    augment(picture)
    assert log == [4.0, 4.0, 4.0]
    log.clear()
    augment = RandAugmentFixMatch(500)
    augment.augment_list = [(record(log), 2.0, 6.0)]
    augment(picture)
    assert len(log) == 500 and 2 <= min(log) < 2.1 and 5.9 < max(log) <= 6
    log.clear()
    augment = RandAugment2(1000)
    augment.augment_list = [(record(log), 2.0, 6.0)]
    augment(picture)
    assert 540 < len(log) < 660
    with pytest.raises(ValueError, match="31"):
        RandAugment(2, 31)


def test_geometric_operations_flip_their_sign(picture):
    random.seed(0)
    results = {translate_x(picture, 0.25).tobytes() for _ in range(30)}
    pixels = np.asarray(picture)
    left, right = np.zeros_like(pixels), np.zeros_like(pixels)
    left[:, :15], right[:, 5:] = pixels[:, 5:], pixels[:, :15]
    assert results == {left.tobytes(), right.tobytes()}
