"""Thumbnails, the most and least certain images, confused classes: against loops over planted predictions.

Covers `results/samples.py`.
"""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dassl_clip.results import samples
from dassl_clip.results.predictions import Predictions

from .conftest import make_record

CLASSES = ["cat", "dog", "cow"]


def opened(link):
    head, _, data = link.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.fixture
def planted(tmp_path):
    """Predictions of 24 images, each of a grey of its own; the shares of the best classes are all different."""
    draw = np.random.default_rng(3)
    paths = []
    for number in range(24):
        paths.append(str(tmp_path / f"{number}.png"))
        Image.new("L", (600, 300), 10 * number).save(paths[-1])
    labels = draw.permutation(np.arange(24) % 3)
    top = draw.integers(0, 3, (24, 2))
    shares = np.stack([draw.permutation(np.linspace(0.4, 0.99, 24)), np.full(24, 0.01)], axis=1)
    return Predictions(np.array(paths), labels, top, shares, CLASSES)


def test_thumbnails_are_small_and_white_where_an_image_is_transparent(tmp_path):
    Image.new("RGBA", (2000, 1000), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.effect_noise((3000, 3000), 90).convert("RGB").save(tmp_path / "noise.jpg")
    for name, size in (("clear.png", (96, 48)), ("noise.jpg", (96, 96))):
        link = samples.thumbnail(str(tmp_path / name))
        assert opened(link).size == size and len(link) < 12_000
    assert min(opened(samples.thumbnail(str(tmp_path / "clear.png"))).convert("L").getdata()) > 250


def test_what_is_no_image_or_too_large_has_no_thumbnail(tmp_path, monkeypatch):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    Image.new("L", (50, 50)).save(tmp_path / "large.png")
    monkeypatch.setattr(samples, "MOST_PIXELS", 2000)
    assert [samples.thumbnail(str(tmp_path / name)) for name in ("torn.png", "large.png", "absent.png")] == [""] * 3


def test_the_most_and_least_certain_images(planted):
    made, left_out = samples.strips([(make_record("CoOp", "art"), planted), (make_record("CoOp", "photo"), planted)])
    assert left_out == "" and [strip.title for strip in made] == [
        "PACS, art: test images", "PACS, photo: test images",
        "CoOp (vit), PACS, task lodo: most certain", "CoOp (vit), PACS, task lodo: least certain",
    ]  # fmt: skip
    order = sorted(range(24), key=lambda n: -planted.shares[n, 0])
    for strip, chosen in ((made[2], order[:6]), (made[3], order[::-1][:6])):
        for picture, n in zip(strip.pictures, chosen, strict=True):
            assert abs(opened(picture.link).convert("L").getpixel((5, 5)) - 10 * n) < 3
            answer, truth = CLASSES[planted.top[n, 0]], CLASSES[planted.labels[n]]
            text = f"{answer} {100 * planted.shares[n, 0]:.0f} %"
            assert picture.caption == (text if answer == truth else f"{text}, is {truth}")
            assert picture.wrong == (answer != truth)
    assert [picture.caption for picture in made[0].pictures] == ["cat", "cat", "dog", "dog", "cow", "cow"]


def test_images_that_are_gone_are_counted(planted, tmp_path):
    for number in (0, 1, 2):
        (tmp_path / f"{number}.png").unlink()
    made, _ = samples.strips([(make_record(), planted)])
    for strip in made:
        assert len(strip.pictures) < 6 or not strip.note
        if strip.note:
            gone = 6 - len(strip.pictures)
            assert strip.note.startswith(f"{gone} of 6 images cannot be shown: no image at {tmp_path}/")
    assert sum(6 - len(strip.pictures) for strip in made) >= 1


def test_many_methods_are_cut_with_a_word(planted):
    runs = [(make_record(f"M{number:02}", "art"), planted) for number in range(20)]
    made, left_out = samples.strips(runs)
    assert len(made) == 24 and left_out == "17 more rows of images are left out"


def test_confused_classes_equal_a_loop(planted):
    pairs = samples.confused([(make_record("CoOp", "art"), planted), (make_record("CoOp", "photo"), planted)])
    counts = {}
    for label, answer in zip(planted.labels, planted.top[:, 0], strict=True):
        if label != answer:
            counts[CLASSES[label], CLASSES[answer]] = counts.get((CLASSES[label], CLASSES[answer]), 0) + 2
    found = {(pair.label, pair.answer): pair.count for pair in pairs}
    assert len(pairs) == min(5, len(counts)) and all(counts[key] == count for key, count in found.items())
    assert sorted(found.values()) == sorted(counts.values())[-len(pairs) :]
    assert {pair.total for pair in pairs} == {16} and {pair.method for pair in pairs} == {"CoOp (vit), PACS, task lodo"}
