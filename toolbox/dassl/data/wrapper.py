"""The torch data set over a list of Datum, and the collation of its items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset, default_collate
from yacs.config import CfgNode

from dassl.utils import read_image

from .seeding import image_randomness


class DatasetWrapper(Dataset):
    """Reads and transforms images.

    Args:
        cfg: The configuration; reads DATALOADER.K_TRANSFORMS, DATALOADER.RETURN_IMG0 and INPUT.
        data_source: List of Datum.
        transform: A callable for `img`; a list of callables for `img`, `img2`, `img3`, ...; None gives the PIL image.
        is_train: In training each transform is applied K_TRANSFORMS times.

    Raises:
        ValueError: K_TRANSFORMS above 1 without a transform.
    """

    epoch_seed: int | None = None  # set by a seeded loader at the start of each epoch

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Sequence,
        transform: Callable | Sequence[Callable] | None = None,
        is_train: bool = False,
    ) -> None:
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"Cannot augment the image {self.k_tfm} times because transform is None")
        self.to_tensor = _plain_transform(cfg)

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        img0 = self.read(item.impath)
        with image_randomness(self.epoch_seed, idx):
            output.update(self._views(img0))
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def read(self, path: str):
        """The PIL image at a path; to be overridden where images lie elsewhere than in files."""
        return read_image(path)

    def _views(self, img0) -> dict[str, Any]:
        if self.transform is None:
            return {"img": img0}
        if not isinstance(self.transform, (list, tuple)):
            return {"img": self._transform_image(self.transform, img0)}
        names = ["img", *(f"img{number}" for number in range(2, len(self.transform) + 1))]
        return {name: self._transform_image(transform, img0) for name, transform in zip(names, self.transform)}

    def _transform_image(self, tfm: Callable, img0) -> Any:
        """One view, or the list of K_TRANSFORMS views."""
        views = [tfm(img0) for _ in range(self.k_tfm)]
        return views[0] if len(views) == 1 else views


def _plain_transform(cfg: CfgNode) -> Callable:
    """Resize to exactly INPUT.SIZE, tensor and normalisation (if listed): the image without augmentation."""
    from torchvision import transforms

    from .transforms.transforms import INTERPOLATION_MODES

    steps = [
        transforms.Resize(tuple(cfg.INPUT.SIZE), interpolation=INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]),
        transforms.ToTensor(),
    ]
    if "normalize" in cfg.INPUT.TRANSFORMS:
        steps.append(transforms.Normalize(mean=cfg.INPUT.PIXEL_MEAN, std=cfg.INPUT.PIXEL_STD))
    return transforms.Compose(steps)


def collate_items(batch: list[Any]) -> Any:
    """torch's default collation, except that PIL images stay a list."""
    if not isinstance(batch[0], dict):
        return default_collate(batch)
    return {key: _collate_values([item[key] for item in batch]) for key in batch[0]}


def _collate_values(values: list[Any]) -> Any:
    from PIL import Image

    first = values[0]
    if isinstance(first, Image.Image) or (isinstance(first, list) and first and isinstance(first[0], Image.Image)):
        return values
    return default_collate(values)
