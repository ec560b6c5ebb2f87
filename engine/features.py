"""Features of images and texts under a frozen CLIP: encoded once, and cached on disk (`feature_cache.py`).

Shapes: `B` images of a batch, `N` of a list, `E` joint embedding, `W` numbers of an encoding, `K` texts.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from dassl_clip.clip.backbone import FrozenCLIP
from dassl_clip.clip.finite import check_features, finite_rows
from dassl_clip.clip.memory import activation_budget
from dassl_clip.results.errors import NotFiniteError, UserError
from dassl_clip.results.files import cache_dir

from . import distributed, feature_cache, sharding
from .data import RAISE, progress_bar
from .extraction import Rows, entry_name
from .precision import Precision
from .saved_features import SavedFeatures, save_features

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 65536  # of a memory-mapped array
MOST_BYTES = 4 * 2**30  # of one list of images: beyond it, images are encoded whenever they are needed


@dataclass(frozen=True)
class Encoding:
    """What is computed of an image, and cached.

    Attributes:
        kind: Its name in the cache.
        width: `W`.
        encode: Images `[B, 3, H, W]` to rows `[B, W]`, float32.
    """

    kind: str
    width: int
    encode: Callable[[Tensor], Tensor]

    def fits(self, images: int) -> bool:
        """Whether the rows of so many images take no more than `MOST_BYTES`."""
        return images * self.width * torch.float32.itemsize <= MOST_BYTES


class NormalizedRows:
    """Features `[N, E]` of length 1 on a device, computed from a cached array when they are read (`clip/rows.py`).

    Args:
        features: The array, on the CPU; it may be memory-mapped.
        index: Rows of it, `[N]`.
        device: Where rows arrive.
    """

    def __init__(self, features: Tensor, index: Tensor, device: torch.device):
        self.features, self.index, self.device = features, index, device
        self.dtype = features.dtype
        self.shape = torch.Size((len(index), features.shape[1]))
        self.nbytes = self.shape.numel() * features.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        return F.normalize(self.features[self.index[rows]].to(self.device), dim=-1)

    def held(self) -> "Tensor | NormalizedRows":
        """All rows on the device, where they take at most a quarter of its memory; else still unread."""
        if self.nbytes > activation_budget(self.device):
            return self
        features = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for start in range(0, len(self), ROWS_AT_ONCE):
            features[start : start + ROWS_AT_ONCE] = self[start : start + ROWS_AT_ONCE]
        return features


@dataclass(frozen=True)
class CachedImages:
    """The cached rows of a list of images.

    Attributes:
        rows: `[N, W]`, float32 on the CPU, memory-mapped; in the order of the sorted paths.
        index: `[N]`: image `i` of the list has `rows[index[i]]`.
        readable: `[R]`, the images of the list that could be decoded.
    """

    rows: Tensor
    index: Tensor
    readable: Tensor

    def __getitem__(self, images: Tensor) -> Tensor:
        return self.rows[self.index[images]]

    def batches(self, batch_size: int) -> DataLoader[Any]:
        """A loader of the readable images' numbers, `[B]`."""
        images = cast("Dataset[Tensor]", self.readable)  # a loader asks for items and a length, which a tensor has
        return DataLoader(images, batch_size=batch_size, generator=torch.Generator())


class FeatureStore:
    """Encodes images and texts with a frozen CLIP, each once; unreadable images are left out, or end the run.

    Args:
        backbone: The frozen CLIP.
        precision: How it computes.
        device: Where it is.
        images: Makes the data set of a list of Datum under a transform; its items are dicts with `img`, `label`,
            `impath`, and `unreadable` where images may be skipped.
        batch_size: Images that are encoded together.
        num_workers: Of loaders.
        pin_memory: Of loaders.
        on_bad_image: `error` or `skip` (`DATALOADER.ON_BAD_IMAGE`).

    Attributes:
        skipped: Paths of images that could not be decoded, in the order in which they were met.
        encoding: Features `[B, E]`, as the tower gives them.
        on_disk: Whether features of images are cached on disk.
        given: Features `[M, E]` that take the place of images, and the row of each by the name in its path; or None.
    """

    on_disk = True
    given: tuple[Tensor, Mapping[str, int]] | None = None

    def __init__(
        self,
        backbone: FrozenCLIP,
        precision: Precision,
        device: torch.device,
        images: Callable[[Sequence[Any], Callable[..., Any]], Dataset[Any]],
        batch_size: int,
        num_workers: int = 0,
        pin_memory: bool = False,
        on_bad_image: str = RAISE,
    ):
        self.backbone, self.precision, self.device = backbone, precision, device
        self.images, self.on_bad_image = images, on_bad_image
        self.batch_size, self.num_workers, self.pin_memory = batch_size, num_workers, pin_memory
        self.encoding = Encoding("image features", backbone.embed_dim, lambda images: self.encode(images))
        self.skipped: dict[str, None] = {}
        self._files: dict[tuple[str, ...], dict[str, object]] = {}  # facts of image files, by their sorted paths
        self._entries: dict[tuple[str, ...], str] = {}  # entries of the cache with features, by the same paths

    # ----------------------------------------------------------------------------------------- pixels to features

    def encode(self, images: Tensor) -> Tensor:
        """Features `[B, E]` of images `[B, 3, H, W]`, as the tower gives them: float32, not normalised."""
        with torch.no_grad(), self.precision.autocast():
            return self.backbone.encode_image(images, normalize=False)

    def encode_batch(self, batch: dict[str, Any], encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows `[B, W]` of a batch of images; NaN for those that could not be decoded.

        Raises:
            NotFiniteError: Others are not finite.
        """
        images = self.to_device(batch["img"])
        readable = torch.tensor(self.note_unreadable(batch), device=self.device)
        rows = encode(images)
        check_features(rows, "image features", batch["impath"])
        return rows.masked_fill(~readable[:, None], float("nan"))

    def to_device(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` of a batch, normalised, on the device; bytes are normalised there."""
        images = images.to(self.device, non_blocking=True)
        return images if images.is_floating_point() else self.backbone.normalised(images)

    def loader(
        self,
        items: Sequence[Any],
        transform: Callable[..., Any] | None = None,
        view_seed: int | None = None,
        start: int = 0,
    ) -> DataLoader[Any]:
        """A loader of a list of Datum in its order, from number `start` on.

        Args:
            items: The images.
            transform: How an image is read; None: the test preprocessing.
            view_seed: What the view of each image is drawn from, with its number; None: the transform is not random.
            start: Number of the first image.
        """
        images: Any = self.images(items, transform or self.backbone.preprocess())
        if view_seed is not None:
            images.is_train = True
            images.view_seed.fill_(view_seed)
        images = Subset(images, range(start, len(items))) if start else images
        return DataLoader(images, batch_size=self.batch_size, num_workers=self.num_workers, pin_memory=self.pin_memory)

    def note_unreadable(self, batch: dict[str, Any]) -> list[bool]:
        """Remember the paths of a batch that could not be decoded; returns which of its items can be used."""
        named = batch.get("unreadable", [""] * len(batch["label"]))
        self._skip([line for text in named for line in text.splitlines()])
        return [not text for text in named]

    def _skip(self, paths: Sequence[str]) -> None:
        for path in paths:
            if path not in self.skipped:
                logger.warning("skipped, cannot be decoded: %s", path)
                self.skipped[path] = None

    def gather_skipped(self) -> None:
        """Let every process know which images any of them could not decode."""
        for paths in distributed.gather_values(list(self.skipped)):
            self.skipped |= dict.fromkeys(paths)

    # ---------------------------------------------------------------------------------------------- cached images

    def cached(
        self,
        items: Sequence[Any],
        encoding: Encoding | None = None,
        transform: Callable[..., Any] | None = None,
        view_seed: int | None = None,
    ) -> CachedImages:
        """The cached rows of a list of Datum; those that are not in the cache are computed and put there.

        The cache goes by paths, so that all runs on the same images share it. Images that cannot be decoded have rows
        of NaN where they may be skipped, and end the run otherwise. Files are looked at once in a run.

        Args:
            items: The images.
            encoding: None: features.
            transform: How an image is read; None: the test preprocessing.
            view_seed: Of a random transform, see `loader`.

        Raises:
            NotFiniteError: The rows of readable images are not finite.
        """
        encoding = encoding or self.encoding
        if self.given is not None:
            return self._given(items, encoding, transform)
        order = sorted(range(len(items)), key=lambda number: items[number].impath)
        ordered = [items[number] for number in order]
        paths = tuple(item.impath for item in ordered)
        facts = {"kind": encoding.kind} | self.file_facts(paths) | self.tower_facts
        facts |= {"bad images": self.on_bad_image, "batch": self.batch_size}
        if transform is not None:
            facts["transform"] = repr(transform)
        if view_seed is not None:
            facts["view seed"] = view_seed

        def encoded(start: int) -> Iterator[Tensor]:
            loader = self.loader(ordered, transform, view_seed, start)
            batches = progress_bar(sharding.shard_batches(loader), "features")
            own = ((self.encode_batch(batch, encoding.encode),) for batch in batches)
            yield from (rows for (rows,) in sharding.merge_shards(own, loader))

        if self.on_disk:
            rows = feature_cache.cached_rows(facts, len(items), encoded, lambda: self._unchanged(paths))
        else:
            rows = Rows(len(items)).fill(encoded)
        if self.on_disk and encoding is self.encoding and transform is None:
            self._entries[paths] = entry_name(facts)
        index = torch.tensor(order).argsort()
        finite = torch.cat([finite_rows(part) for part in rows.split(ROWS_AT_ONCE)])[index]
        bad = [items[number].impath for number in (~finite).nonzero().flatten().tolist()]
        if bad and self.on_bad_image == RAISE:  # else NaN stands for unreadable images
            raise NotFiniteError(f"the image features of {bad[0]} are not finite ({len(bad)} of {len(items)})")
        self._skip(bad)
        return CachedImages(rows, index, finite.nonzero().flatten())

    def _given(self, items: Sequence[Any], encoding: Encoding, transform: Callable[..., Any] | None) -> CachedImages:
        """The given features of some items."""
        assert self.given is not None
        if encoding is not self.encoding or transform is not None:
            raise UserError(f"{encoding.kind} are computed from images, and features are given alone: give images")
        values, rows = self.given
        index = torch.tensor([rows[item.impath] for item in items])
        return CachedImages(values, index, torch.arange(len(items)))

    def look_again(self) -> None:
        """Forget what the image files were, which may have changed since."""
        self._files.clear()

    def file_facts(self, paths: tuple[str, ...]) -> dict[str, object]:
        """What names a list of image files (`feature_cache.image_facts`), looked at once in a run."""
        if paths not in self._files:
            self._files[paths] = feature_cache.image_facts(paths)
        return self._files[paths]

    def _unchanged(self, paths: tuple[str, ...]) -> bool:
        """Whether the files are still those that were looked at first."""
        try:
            return feature_cache.image_facts(paths) == self._files[paths]
        except OSError:
            return False

    @property
    def tower_facts(self) -> dict[str, object]:
        """What names the towers in the cache."""
        return feature_cache.tower_facts(self.backbone.describe(), self.precision.name, self.device)

    def raw(self, items: Sequence[Any], encoding: Encoding | None = None) -> tuple[Tensor, Tensor]:
        """The readable ones of a list of Datum: features `[N, E]` in its order, as cached, and labels `[N]`."""
        images = self.cached(items, encoding)
        in_order = torch.equal(images.index[images.readable], torch.arange(len(images.rows)))
        return images.rows if in_order else images[images.readable], _labels(items, images.readable)

    def __call__(self, items: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """The same as `raw`, normalised and on the device."""
        features, labels = self.raw(items)
        return F.normalize(features.to(self.device), dim=-1), labels.to(self.device)

    def normalized_rows(self, items: Sequence[Any]) -> tuple[NormalizedRows, Tensor]:
        """The same, read from the cache when they are needed."""
        images = self.cached(items)
        features = NormalizedRows(images.rows, images.index[images.readable], self.device)
        return features, _labels(items, images.readable).to(self.device)

    # --------------------------------------------------------------------------------------------------- texts

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features `[K, E]` of texts, encoded once and cached; float32, not normalised, on the device."""

        def encode() -> Tensor:
            with self.precision.autocast():
                features = self.backbone.text.encode(list(texts)).float()
            check_features(features, "text features", [repr(text) for text in texts])
            return features

        facts = {"kind": "text features"} | feature_cache.text_facts(texts) | self.tower_facts
        return feature_cache.cached(facts, encode).to(self.device)

    # ----------------------------------------------------------------------------------------------- for figures

    def save(self, folder: Path, dataset: Any, encode: Sequence[str]) -> None:
        """Name the cached features of a run's images in `features.npz`.

        Args:
            folder: The run's folder.
            dataset: The run's data set.
            encode: Splits whose features are computed if they are not there yet, for figures.
        """
        if cache_dir() is None:
            return
        splits = {"test": dataset.test, "val": dataset.val, "train": dataset.train_x}
        for name in encode:
            try:
                if splits[name]:
                    self.cached(splits[name])
            except Exception as error:  # such as an image that was no part of the run: a figure must not cost a run
                logger.warning("no features of the %s images are cached for figures: %s", name, error)
        saved = {}
        for name, items in splits.items():
            entry = self._entries.get(tuple(sorted(item.impath for item in items or ())))
            if entry is not None:
                saved[name] = SavedFeatures.of(entry, items)
        if distributed.is_main():
            save_features(folder, saved)


def _labels(items: Sequence[Any], index: Tensor) -> Tensor:
    return torch.tensor([items[number].label for number in index.tolist()])
