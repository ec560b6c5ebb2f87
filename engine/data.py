"""Images of a data source as the trainers see them: reproducible views, and errors that name the file."""

import hashlib
import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler, Sampler, get_worker_info
from torchvision import transforms
from torchvision.transforms import functional as tvf

from dassl.data import DatasetWrapper
from dassl_clip.results.errors import UserError

from . import signals as termination

UNSEEDED = -1
RAISE, SKIP = "error", "skip"  # values of DATALOADER.ON_BAD_IMAGE


class UnreadableImage(UserError):
    """An image file that cannot be decoded; the message names it.

    A loader's worker hands its errors on inside a traceback; only the sentence itself is kept.
    """

    from_user = True

    def __init__(self, message: str):
        super().__init__(message.strip().rpartition("UnreadableImage: ")[2])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with python's, numpy's and torch's CPU generators at `seed`, and put them back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def mix_seed(*parts: int) -> int:
    """One 63-bit seed of several numbers, independent of the platform."""
    return int(np.random.SeedSequence([part % 2**32 for part in parts]).generate_state(1, np.uint64)[0]) >> 1


def derive_seed(*parts: int | str) -> int:
    """One 63-bit seed of numbers and names, as the embedded toolbox makes those of its loaders."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class SeededLoader(DataLoader):
    """A loader whose epochs follow from a seed and their number, where the toolbox seeds no loader.

    The embedded toolbox's loaders are of this kind by themselves: one seed then means the same order and views on both.

    Args:
        seed: Seed of the loader's stream.
    """

    def __init__(self, *args, seed: int, **kwargs):
        self.seed, self.epochs_started = seed, 0
        super().__init__(*args, **kwargs)

    def __iter__(self):
        self.dataset.epoch_seed = derive_seed(self.seed, self.epochs_started)
        self.generator.manual_seed(self.dataset.epoch_seed)
        self.epochs_started += 1
        return super().__iter__()


def seeded_loader(loader: DataLoader, seed: int, stream: str) -> DataLoader:
    """A training loader of the same images whose order and views follow from a seed.

    Args:
        loader: A loader over `SeededImages`; one that is seeded by itself is given back, as without a seed.
        seed: Seed of the run; negative: none.
        stream: What the loader is for.
    """
    if seed < 0 or hasattr(loader, "seed"):
        return loader
    generator, sampler = torch.Generator(), loader.sampler
    if isinstance(sampler, RandomSampler):  # others draw from python's generator, which each epoch seeds
        sampler = RandomSampler(loader.dataset, generator=generator)
    return SeededLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        generator=generator,
        seed=derive_seed(seed, stream),
    )


class _AsWithNewWorkers(Sampler):
    """The order of a sampler; draws the number that torch draws first for new workers, from the second epoch on."""

    def __init__(self, sampler: Sampler, generator: torch.Generator | None):
        self.sampler, self.generator, self.epochs = sampler, generator, 0

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        if self.epochs:
            torch.empty((), dtype=torch.int64).random_(generator=self.generator)
        self.epochs += 1
        yield from self.sampler


@contextmanager
def living_workers(loader: DataLoader) -> Iterator[DataLoader]:
    """A loader of the same batches whose workers live on from epoch to epoch; without workers, the loader itself."""
    if not loader.num_workers:
        yield loader
        return
    own = {"seed": loader.seed} if hasattr(loader, "seed") else {"worker_init_fn": loader.worker_init_fn}
    batches = loader.batch_sampler
    plain, batches.sampler = batches.sampler, _AsWithNewWorkers(batches.sampler, loader.generator)
    try:
        yield type(loader)(
            loader.dataset,
            batch_sampler=batches,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            generator=loader.generator,
            persistent_workers=True,
            **own,
        )
    finally:
        batches.sampler = plain


def before_normalisation(transform: Callable, mean: Sequence[float], std: Sequence[float]) -> Callable:
    """A transform without its last two steps, to floats and their normalisation: it gives bytes `[3, H, W]`.

    A transform that does not end in these steps, or normalises by other numbers, is given back.
    """
    steps = getattr(transform, "transforms", ())
    to_floats = len(steps) > 1 and (isinstance(steps[-2], transforms.ToTensor) or steps[-2] is tvf.to_tensor)
    if not to_floats or not isinstance(steps[-1], transforms.Normalize):
        return transform
    same = (tuple(steps[-1].mean), tuple(steps[-1].std)) == (tuple(mean), tuple(std))
    return transforms.Compose([*steps[:-2], transforms.PILToTensor()]) if same else transform


class SeededImages(DatasetWrapper):
    """Dassl's wrapper with a generator of its own for each image and epoch.

    The views of image `i` in epoch `e` depend on `(seed, e, i)` alone: not on the number of workers, nor on what was
    drawn before. `epoch_seed`, of a seeded loader, or else `view_seed` says which; both live in shared memory, so that
    persistent workers see them change.

    An image that cannot be decoded raises `UnreadableImage`. Under `DATALOADER.ON_BAD_IMAGE: skip` each item names in
    `unreadable` what could not be read (one path a line): in training the next readable image of the list stands in;
    in testing the item is a placeholder that the trainer leaves out.

    Attributes:
        readable: Where the trainer knows the images already, `[N]`: which of them can be decoded. No file is then
            opened for an empty list of transforms.
        as_bytes: Give views as bytes, and leave the normalisation to the device, where a transform ends in it.
    """

    readable: torch.Tensor | None = None
    as_bytes = False

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        super().__init__(cfg, data_source, transform=transform, is_train=is_train)
        self.view_seed = torch.zeros((), dtype=torch.int64).share_memory_()
        self._epoch_seed = torch.full((), UNSEEDED, dtype=torch.int64).share_memory_()
        self.skip = cfg.DATALOADER.get("ON_BAD_IMAGE", RAISE) == SKIP

    @property
    def epoch_seed(self) -> int | None:
        """What a seeded loader, the embedded toolbox's or our own, sets at the start of an epoch."""
        seed = int(self._epoch_seed)
        return None if seed == UNSEEDED else seed

    @epoch_seed.setter
    def epoch_seed(self, seed: int | None) -> None:
        self._epoch_seed.fill_(UNSEEDED if seed is None else seed)

    def __getitem__(self, index: int) -> dict:
        if get_worker_info() is not None:
            termination.shielded_worker()
        if not self.skip:
            return self._item(index)
        bad: list[str] = []
        for step in range(len(self.data_source) if self.is_train else 1):
            place = (index + step) % len(self.data_source)
            try:
                return self._item(place) | {"unreadable": "\n".join(bad)}
            except UnreadableImage:
                bad.append(self.data_source[place].impath)
        if self.is_train:
            raise UnreadableImage(f"none of the {len(bad)} training images can be decoded, the first is {bad[0]}")
        item = self.data_source[index]
        blank = self._item_of(Image.new("RGB", (64, 64)))
        return {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index, **blank} | {
            "unreadable": bad[0]
        }

    def _item_of(self, picture: Image.Image) -> dict:
        """The views of a picture, under the names that Dassl gives them."""
        makers = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
        views = (self._transform_image(make, picture) for make in makers)
        return {f"img{k + 1}" if k else "img": view for k, view in enumerate(views)}

    def _transform_image(self, tfm, img0):
        pixels = self.cfg.INPUT.PIXEL_MEAN, self.cfg.INPUT.PIXEL_STD
        return super()._transform_image(before_normalisation(tfm, *pixels) if self.as_bytes else tfm, img0)

    def _item(self, index: int) -> dict:
        if self.readable is not None and not self.readable[index]:
            raise UnreadableImage(f"cannot decode the image {self.data_source[index].impath}")
        if self.readable is not None and not self.transform:
            item = self.data_source[index]
            return {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                if not self.is_train:
                    return super().__getitem__(index)
                epoch = self.epoch_seed
                with seeded(mix_seed(int(self.view_seed), index) if epoch is None else derive_seed(epoch, index)):
                    return super().__getitem__(index)
        except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            path = self.data_source[index].impath
            reason = str(error).rpartition(f'"{path}": ')[2]  # the toolbox may have named the file already
            raise UnreadableImage(
                f"cannot decode the image {path}: {reason}. Replace the file, remove it from the data set, or set "
                "DATALOADER.ON_BAD_IMAGE skip"
            ) from None
