"""The feature store without a trainer: what it encodes, caches, leaves out and writes for figures.

Covers `engine/features.py`: features in the order of the list whatever the order of the cache, one encoding for two
stores, other encodings and transforms beside it, texts, unreadable images under `skip` and `error`, features that are
not finite, rows that are read when they are needed, and `features.npz`.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torchvision import transforms

from dassl.config import get_cfg_default
from dassl_clip.clip.backbone import load_backbone
from dassl_clip.engine.data import SeededImages, UnreadableImage
from dassl_clip.engine.features import Encoding, FeatureStore
from dassl_clip.engine.precision import Precision
from dassl_clip.engine.saved_features import saved_features
from dassl_clip.results.errors import NotFiniteError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone(tiny_clip):
    return load_backbone(f"local-dir:{tiny_clip}", "", CPU)


@pytest.fixture
def items(domain_tree):
    """Seven images of two classes, not in the order of their paths."""
    paths = [
        *sorted((domain_tree / "art" / "house").iterdir())[:4],
        *sorted((domain_tree / "art" / "dog").iterdir())[:3],
    ]
    return [
        SimpleNamespace(impath=str(path), label=number // 4, domain=number % 2) for number, path in enumerate(paths)
    ]


@pytest.fixture
def store(backbone, tmp_path, monkeypatch):
    """`store(on_bad_image)` builds a feature store over an empty cache; it counts what it encodes in `encoded`."""
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))

    def build(on_bad_image="error"):
        cfg = get_cfg_default()
        cfg.DATALOADER.ON_BAD_IMAGE = on_bad_image
        built = FeatureStore(
            backbone,
            Precision("fp32", CPU),
            CPU,
            lambda items, transform: SeededImages(cfg, items, transform=transform),
            batch_size=3,
            on_bad_image=on_bad_image,
        )
        built.encoded, encode = [], built.encode
        built.encode = lambda images: built.encoded.append(len(images)) or encode(images)
        return built

    return build


def test_features_come_in_the_order_of_the_list_and_are_encoded_once(store, items, plain):
    first, second = store(), store()
    features, labels = first.raw(items)
    torch.testing.assert_close(features, plain.images([item.impath for item in items]), atol=1e-5, rtol=1e-4)
    assert labels.tolist() == [item.label for item in items] and first.encoded == [3, 3, 1]
    assert torch.equal(second.raw(items[::-1])[0], features.flip(0)) and second.encoded == []
    torch.testing.assert_close(second(items)[0], F.normalize(features, dim=-1))
    rows, _ = second.normalized_rows(items)
    assert torch.equal(rows[2:6], second(items)[0][2:6]) and torch.equal(rows.held(), rows[0:7])


def test_other_encodings_and_transforms_have_their_own_entries(store, items, tmp_path):
    images = store()
    means = Encoding("means", 3, lambda batch: batch.mean(dim=(2, 3)))
    white = transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor(), transforms.Lambda(torch.ones_like)])
    assert images.cached(items, means).rows.shape == (7, 3)
    assert (images.cached(items, means, white).rows == 1).all()
    assert images.cached(items).rows.shape == (7, 16)
    assert len(list((tmp_path / "cache" / "features").glob("*.npy"))) == 3


def test_texts_are_those_of_the_text_tower(store, plain):
    words = ["a photo of a dog", "a house"]
    for _ in range(2):
        torch.testing.assert_close(store().texts(words), plain.texts(words), atol=1e-5, rtol=1e-4)


def test_unreadable_images_are_left_out_or_end_the_run(store, items, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    listed = [*items[:2], SimpleNamespace(impath=str(bad), label=1, domain=0), *items[2:]]
    skipping = store("skip")
    features, labels = skipping.raw(listed)
    assert list(skipping.skipped) == [str(bad)] and labels.tolist() == [item.label for item in items]
    torch.testing.assert_close(features, store().raw(items)[0])
    cached = skipping.cached(listed)
    assert cached.readable.tolist() == [0, 1, 3, 4, 5, 6, 7] and cached[torch.tensor([2])].isnan().all()
    assert [batch.tolist() for batch in cached.batches(4)] == [[0, 1, 3, 4], [5, 6, 7]]
    with pytest.raises(UnreadableImage, match=r"bad\.png"):
        store().raw(listed)


def test_features_that_are_not_finite_are_refused_by_name(store, items):
    images = store()
    images.encode = lambda batch: torch.full((len(batch), 16), float("inf"))
    with pytest.raises(NotFiniteError, match=r"image features.*\.png"):
        images.raw(items)


def test_what_a_run_saves_leads_back_to_its_features(store, items, tmp_path):
    images = store()
    images.save(tmp_path, SimpleNamespace(test=items, val=items[:3], train_x=None), encode=("test",))
    images.save(tmp_path, SimpleNamespace(test=None, val=items[:3], train_x=None), encode=("val",))
    saved = saved_features(tmp_path)
    assert list(saved) == ["test", "val"]
    ordered = sorted(items, key=lambda item: item.impath)
    assert torch.equal(saved["test"].read(), images.raw(ordered)[0])
    assert saved["test"].labels.tolist() == [item.label for item in ordered]
    assert saved["test"].domains.tolist() == [item.domain for item in ordered]
    gone = SimpleNamespace(impath=str(tmp_path / "gone.png"), label=0, domain=0)
    lost = SimpleNamespace(test=None, val=None, train_x=[gone])
    images.save(tmp_path, lost, encode=("train",))  # a figure does not cost a run
    assert list(saved_features(tmp_path)) == ["test", "val"]
