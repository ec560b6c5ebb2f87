"""The frozen features that tests, and methods without an epoch loop, work on: encoded once, kept in the bank.

Shapes: `B` images of a batch, `N` of a list, `C` classes, `E` joint embedding, `K` texts.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dassl_clip.clip.finite import check_rows, finite_rows
from dassl_clip.clip.memory import activation_budget
from dassl_clip.results.errors import NotFiniteError

from . import distributed
from . import feature_cache as bank
from . import sharding as dealing
from .data import RAISE
from .extraction import cached_rows
from .waiting import Watched

logger = logging.getLogger(__name__)

FEATURES = "image features"
ROWS_AT_ONCE = 65536  # of a memory-mapped array


class NormalizedRows:
    """Features `[N, E]` of length 1 on a device, formed of the bank's array when they are asked for.

    Stands wherever `modeling.proxy_solver.FeatureRows` does.

    Args:
        features: The array, on the CPU; it may be memory-mapped.
        rows: Places in it, `[N]`.
        device: Where rows arrive.
    """

    def __init__(self, features: Tensor, rows: Tensor, device: torch.device):
        self.features, self.rows, self.device = features, rows, device
        self.dtype = features.dtype
        self.shape = torch.Size((len(rows), features.shape[1]))
        self.nbytes = self.shape.numel() * features.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        return F.normalize(self.features[self.rows[rows]].to(self.device), dim=-1)

    def narrowed(self, rows: slice) -> "NormalizedRows":
        """Some of the rows, still unread."""
        return NormalizedRows(self.features, self.rows[rows], self.device)

    def held(self) -> "Tensor | NormalizedRows":
        """All rows on the device, where they take at most a quarter of its memory; else still unread."""
        if self.nbytes > activation_budget(self.device):
            return self
        found = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for start in range(0, len(self), ROWS_AT_ONCE):
            found[start : start + ROWS_AT_ONCE] = self[start : start + ROWS_AT_ONCE]
        return found


class FeatureMixin:
    """Features of trainers that have a frozen `backbone`, a `precision`, a `device` and a `test_loader`."""

    def note_unreadable(self, batch: dict) -> list[bool]:
        """Remember the paths of a batch that could not be decoded; returns which of its items can be used."""
        named = batch.get("unreadable", [""] * len(batch["label"]))
        for path in (line for text in named for line in text.splitlines()):
            if path not in self.skipped:
                logger.warning("skipped, cannot be decoded: %s", path)
                self.skipped[path] = None
        return [not text for text in named]

    def gather_skipped(self) -> None:
        """Let every process know which images any of them could not decode."""
        for paths in distributed.gather_values(list(self.skipped)):
            self.skipped |= dict.fromkeys(paths)

    def on_device(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` of a batch, normalised, on the device; bytes are normalised there."""
        images = images.to(self.device, non_blocking=True)
        return images if images.is_floating_point() else self.backbone.normalised(images)

    row_kind = FEATURES

    @property
    def row_width(self) -> int:
        """Numbers that `encode_rows` gives of an image."""
        return self.backbone.embed_dim

    def encode_rows(self, images: Tensor) -> Tensor:
        """All that scores need of images `[B, 3, H, W]`: rows `[B, ...]`, in the bank under `row_kind`."""
        return self.encode(images)

    def encode(self, images: Tensor) -> Tensor:
        """Features `[B, E]` of images `[B, 3, H, W]`, as the tower gives them: float32, not normalised."""
        with torch.no_grad(), self.precision.autocast():
            return self.backbone.encode_image(images, normalize=False)

    @property
    def tower_facts(self) -> dict:
        """What names the towers in the bank."""
        return bank.tower_facts(self.backbone.describe(), self.precision.name, self.device)

    def banked_rows(
        self, items: Sequence, kind: str = FEATURES, transform: Callable | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the bank keeps of a list of Datum, and the row of each item in it.

        Encoded once and kept on disk, by path, so that all seeds that test the same images share them; float32, not
        normalised, on the CPU, memory-mapped. Images that cannot be decoded have NaN where `DATALOADER.ON_BAD_IMAGE`
        is `skip`, and end the run otherwise. The files are looked at once in a run.

        Args:
            items: The images.
            kind: `FEATURES`, or `row_kind` for what `encode_rows` gives.
            transform: How an image is read; None: the test preprocessing.

        Returns:
            Features `[N, E]` (or rows `[N, ...]`), and rows `[N]`: item `i` has `features[rows[i]]`.
        """
        order = sorted(range(len(items)), key=lambda place: items[place].impath)
        ordered = [items[place] for place in order]
        paths = tuple(item.impath for item in ordered)
        facts = {"kind": kind} | self.files_of(paths) | self.tower_facts
        facts |= {"bad images": self.cfg.DATALOADER.get("ON_BAD_IMAGE", RAISE), "batch": self.test_loader.batch_size}
        if transform is not None:
            facts["transform"] = repr(transform)
        encode = self.encode if kind == FEATURES else self.encode_rows

        def make(start: int) -> Iterator[Tensor]:
            return self._extract(self.plain_loader(ordered[start:], transform), encode)

        features = cached_rows(facts, len(items), make, lambda: self._unchanged(paths))
        if kind == FEATURES and transform is None:
            self.banked[paths] = bank.entry_name(facts)
        return features, torch.tensor(order).argsort()

    def files_of(self, paths: tuple[str, ...]) -> dict[str, object]:
        """What names a list of image files (`bank.image_facts`), looked at once in a run."""
        if paths not in self._known_files:
            self._known_files[paths] = bank.image_facts(paths)
        return self._known_files[paths]

    @cached_property
    def _known_files(self) -> dict[tuple[str, ...], dict[str, object]]:
        return {}

    def _unchanged(self, paths: tuple[str, ...]) -> bool:
        """Whether the files are still those that were looked at first."""
        try:
            return bank.image_facts(paths) == self._known_files[paths]
        except OSError:
            return False

    def readable_places(self, items: Sequence, features: Tensor, rows: Tensor) -> Tensor:
        """Places of the items whose features are finite, in their order; the others are noted as skipped."""
        finite = torch.cat([finite_rows(part) for part in features.split(ROWS_AT_ONCE)])[rows]
        bad = [items[place].impath for place in (~finite).nonzero().flatten().tolist()]
        if bad and self.cfg.DATALOADER.get("ON_BAD_IMAGE", RAISE) == RAISE:  # else NaN stands for unreadable images
            raise NotFiniteError(f"the image features of {bad[0]} are not finite ({len(bad)} of {len(items)})")
        self.note_unreadable({"unreadable": bad, "label": bad})
        return finite.nonzero().flatten()

    def raw_features(self, items: Sequence) -> tuple[Tensor, Tensor]:
        """The readable ones of a list of Datum: features `[N, E]` in its order, as in the bank, and labels `[N]`."""
        features, rows = self.banked_rows(items)
        places = self.readable_places(items, features, rows)
        labels = torch.tensor([items[place].label for place in places.tolist()])
        in_order = torch.equal(rows[places], torch.arange(len(features)))
        return features if in_order else features[rows[places]], labels

    def features(self, items: Sequence) -> tuple[Tensor, Tensor]:
        """The same as `raw_features`, normalised and on the device."""
        features, labels = self.raw_features(items)
        return F.normalize(features.to(self.device), dim=-1), labels.to(self.device)

    def feature_rows(self, items: Sequence) -> tuple[NormalizedRows, Tensor]:
        """The same as `features`, read from the bank when they are asked for."""
        features, rows = self.banked_rows(items)
        places = self.readable_places(items, features, rows)
        labels = torch.tensor([items[place].label for place in places.tolist()], device=self.device)
        return NormalizedRows(features, rows[places], self.device), labels

    @torch.no_grad()
    def refine_inputs(self, items: Sequence) -> tuple[Tensor, Tensor, Tensor]:
        """What a method that refines this one on unlabeled images needs.

        Returns:
            Normalised features of the images `[N, E]`, their scores without the logit scale `[N, C]`, and normalised
            class proxies to start from `[C, E]`.
        """
        features, _ = self.raw_features(items)
        batches = [batch.to(self.device) for batch in features.split(self.test_loader.batch_size)]
        scores = torch.cat([self.feature_scores(batch).float() for batch in batches]) / self.logit_scale
        content = torch.cat([self.content(batch) for batch in batches])
        return F.normalize(content, dim=-1), scores, F.normalize(self.class_proxies().float(), dim=-1)

    def content(self, features: Tensor) -> Tensor:
        """What is compared of features `[..., E]` of either tower: the features, unless a trainer changes them."""
        return features

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Features `[K, E]` of texts, encoded once and kept on disk; float32, not normalised, on the device."""

        def encode() -> Tensor:
            with self.precision.autocast():
                features = self.backbone.text.encode(list(texts)).float()
            check_rows(features, "text features", [repr(text) for text in texts])
            return features

        facts = {"kind": "text features"} | bank.text_facts(texts) | self.tower_facts
        return bank.cached(facts, encode).to(self.device)

    def plain_loader(self, items: Sequence, transform: Callable | None = None) -> DataLoader:
        """A loader of a list of Datum in its order, under the test preprocessing or another transform."""
        like, transform = self.test_loader, transform or self.backbone.preprocess()
        images = type(like.dataset)(self.cfg, items, transform=transform, is_train=False)
        images.as_bytes = self.device.type == "cuda"  # a quarter of what is copied there
        return DataLoader(images, batch_size=like.batch_size, num_workers=like.num_workers, pin_memory=like.pin_memory)

    def _extract(self, loader: DataLoader, encode: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Rows `[B, ...]` of each batch of images; of those that could not be decoded, NaN."""
        own = ((rows,) for rows in self._encoded_batches(dealing.own_batches(loader), encode))
        yield from (rows for (rows,) in dealing.dealt(own, loader))

    def _encoded_batches(self, loader: DataLoader, encode: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Rows `[B, ...]` of the batches of a loader."""
        for batch in self._bar(loader, "features"):
            yield self.encoded_batch(batch, encode)

    def encoded_batch(self, batch: dict, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Rows `[B, ...]` of a batch of images; NaN for those that could not be decoded.

        Raises:
            NotFiniteError: Others are not finite.
        """
        images = self.on_device(batch["img"])
        readable = torch.tensor(self.note_unreadable(batch), device=self.device)
        features = encode(images)
        check_rows(features, "image features", batch["impath"])
        return features.masked_fill(~readable[:, None], float("nan"))

    def row_batches(self, items: Sequence, features: Tensor, rows: Tensor) -> DataLoader:
        """A loader of the places of readable items, `[B]`, in batches of the test's size."""
        places = self.readable_places(items, features, rows)
        return DataLoader(places, batch_size=self.test_loader.batch_size, generator=torch.Generator())

    def cosine_scores(self, features: Tensor, text: Tensor) -> Tensor:
        """Scaled cosines `[B, C]` of features `[B, E]` with class features `[C, E]`; both are normalised here."""
        return self.logit_scale * F.normalize(features.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T

    def _bar(self, loader, text: str) -> tqdm:
        """A loader under a progress bar where stderr is a terminal, and timed (`waiting.py`)."""
        watched = Watched(loader, text, getattr(loader, "num_workers", self.cfg.DATALOADER.NUM_WORKERS), self._told)
        return tqdm(watched, desc=text, leave=False, disable=not (sys.stderr.isatty() and distributed.is_main()))

    @cached_property
    def _told(self) -> set[str]:
        return set()
