"""GOPro's views: sizes, normalisation, randomness from torch's generator alone, AugMix's statistics and operations."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, Normalize

from dassl_clip.clip import views


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def make(kind, normalize):
    return getattr(views, f"{kind}_view")((32, 32), InterpolationMode.BICUBIC, normalize)


@pytest.mark.parametrize("kind", ["moco", "augmix"])
def test_views_have_the_model_size_and_its_normalisation(image, kind):
    plain, shifted = make(kind, lambda x: x), make(kind, Normalize([0.5, 0.4, 0.3], [0.2, 0.25, 0.5]))
    torch.manual_seed(5)
    x = plain(image)
    torch.manual_seed(5)
    z = shifted(image)
    assert x.shape == (3, 32, 32) and x.min() >= 0 and x.max() <= 1
    expected = (x - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.25, 0.5])[:, None, None]
    torch.testing.assert_close(z, expected)


@pytest.mark.parametrize("kind", ["moco", "augmix"])
def test_only_torch_draws(image, kind):
    view = make(kind, lambda x: x)
    states = random.getstate(), np.random.get_state()[1].copy()
    torch.manual_seed(7)
    first = view(image)
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(7)
    assert torch.equal(view(image), first)
    torch.manual_seed(8)
    assert not torch.equal(view(image), first)
    random.seed(1)
    np.random.seed(1)
    before = random.getstate(), np.random.get_state()[1].copy()
    view(image)
    assert random.getstate() == before[0] and np.array_equal(np.random.get_state()[1], before[1])
    random.setstate(states[0])


def test_augmix_leaves_its_input_alone_and_stays_near_it(image):
    copy = image.copy()
    torch.manual_seed(0)
    mixed = [np.asarray(views.augmix(image), dtype=np.float32) for _ in range(200)]
    assert np.array_equal(np.asarray(image), np.asarray(copy))
    # Severity 1 moves pixels little: with E[m] = 1/2 half the original remains on average.
    correlation = np.corrcoef(np.mean(mixed, axis=0).ravel(), np.asarray(image, dtype=np.float32).ravel())[0, 1]
    assert correlation > 0.9
    assert len({m.tobytes() for m in mixed}) > 190


def test_augmix_of_a_constant_image_without_geometry_is_a_convex_mixture(monkeypatch):
    bright = Image.new("RGB", (8, 8), (200, 200, 200))
    monkeypatch.setattr(views, "AUGMIX_OPERATIONS", {"grey": lambda im: Image.new("RGB", im.size, (100, 100, 100))})
    torch.manual_seed(1)
    values = np.array([np.asarray(views.augmix(bright))[0, 0, 0] for _ in range(2000)], dtype=np.float64)
    keep = (values - 100) / 100  # m x + (1 - m) chain with m ~ Beta(1, 1), the uniform distribution
    assert keep.min() >= 0 and keep.max() <= 1
    assert keep.mean() == pytest.approx(0.5, abs=0.03) and keep.var() == pytest.approx(1 / 12, abs=0.01)


def test_nine_operations_keep_size_and_mode(image):
    assert len(views.AUGMIX_OPERATIONS) == 9
    for operation in views.AUGMIX_OPERATIONS.values():
        for seed in range(5):
            torch.manual_seed(seed)
            out = operation(image)
            assert out.size == image.size and out.mode == "RGB"


def test_severity_one_bounds_the_strengths(image):
    torch.manual_seed(0)
    levels = [views._level(30) for _ in range(1000)]
    assert min(levels) >= 0.3 and max(levels) <= 3.0  # 1 to 10 percent of 30 degrees
    marked = Image.new("RGB", (60, 60))
    marked.paste((255, 255, 255), (20, 20, 40, 40))
    for seed in range(20):
        torch.manual_seed(seed)
        columns = np.flatnonzero(np.asarray(views.AUGMIX_OPERATIONS["translate_x"](marked)).max(axis=(0, 2)) > 127)
        assert abs(columns.mean() - 29.5) <= 60 / 3 / 10 + 0.5


def test_rotation_and_translation_are_whole_numbers(monkeypatch):
    """(row 7.4) Degrees and pixels are truncated, as in AugMix: 2.9 are 2, and less than 1 is none."""
    pixels = np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    rotate, translate_x, translate_y = map(views.AUGMIX_OPERATIONS.get, ("rotate", "translate_x", "translate_y"))
    for drawn, whole in ((0.99, 0), (1.5, 1), (2.99, 2)):
        monkeypatch.setattr(views, "_level", lambda maximum, drawn=drawn: drawn)
        monkeypatch.setattr(views, "_signed", lambda value: value)
        assert rotate(image).tobytes() == image.rotate(whole, Image.Resampling.BILINEAR).tobytes()
        moved = np.zeros_like(pixels)
        moved[:, : 96 - whole] = pixels[:, whole:]
        assert np.array_equal(np.asarray(translate_x(image))[:, : 96 - whole], moved[:, : 96 - whole])
        assert np.array_equal(np.asarray(translate_y(image))[: 96 - whole], pixels[whole:])


@pytest.mark.parametrize("kind", ["moco", "augmix"])
def test_each_view_has_a_crop_and_a_flip_of_its_own(kind):
    """(row 7.4) Left and right, and small parts and nearly all, of an image that tells where each pixel was."""
    ramp = np.linspace(60, 190, 64, dtype=np.uint8)
    image = Image.fromarray(
        np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 128)], -1).astype(np.uint8)
    )
    slopes, spans = [], []
    for seed in range(150):
        torch.manual_seed(seed)
        row = make(kind, lambda x: x)(image)[0].mean(0)
        slopes.append(float(row[24:].mean() - row[:8].mean()) > 0)
        spans.append(float(row.max() - row.min()))
    assert 0.35 < sum(slopes) / 150 < 0.65
    whole = (190 - 60) / 255
    if kind == "augmix":  # jitter changes the span of the other
        assert min(spans) < 0.45 * whole and max(spans) > 0.7 * whole


def test_an_augmix_view_is_as_far_from_the_image_as_a_crop_is():
    """(row 7.4) Without its crop the mean squared distance is an order of magnitude smaller."""
    image = Image.fromarray(
        np.kron(np.random.default_rng(2).integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    )
    plain = torch.from_numpy(np.array(image.resize((32, 32), Image.Resampling.BICUBIC))).permute(2, 0, 1) / 255
    distances = {"view": [], "augmix alone": []}
    for seed in range(60):
        torch.manual_seed(seed)
        distances["view"].append((make("augmix", lambda x: x)(image) - plain).square().mean().item())
        mixed = np.array(views.augmix(Image.fromarray((plain.permute(1, 2, 0) * 255).byte().numpy())))
        distances["augmix alone"].append(
            (torch.from_numpy(mixed).permute(2, 0, 1) / 255 - plain).square().mean().item()
        )
    assert np.mean(distances["view"]) > 4 * np.mean(distances["augmix alone"])
