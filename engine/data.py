"""Images of a data source as the trainers see them: reproducible views, and errors that name the file."""

import hashlib
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler, Sampler, get_worker_info
from torchvision import transforms
from torchvision.transforms import functional as tvf
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.data import DatasetWrapper
from dassl.utils import set_random_seed
from dassl_clip.clip.backbone import FrozenCLIP
from dassl_clip.results.errors import UserError

from . import distributed, sharding, signals
from .images import read_image

RAISE, SKIP = "error", "skip"  # values of DATALOADER.ON_BAD_IMAGE
FIXED_STEPS = (transforms.Resize, transforms.CenterCrop, transforms.ToTensor, transforms.Normalize)


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


def seed_everything(cfg: CfgNode) -> None:
    """Seed all generators, and choose deterministic algorithms, as a configuration says."""
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    elif distributed.world_size() > 1:
        set_random_seed(distributed.from_main(lambda: random.randrange(2**32)))
    if cfg.RUN.DETERMINISTIC:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when a GPU is first used
    torch.use_deterministic_algorithms(cfg.RUN.DETERMINISTIC)
    loose = cfg.SEED < 0 and not cfg.RUN.DETERMINISTIC
    torch.backends.cudnn.benchmark = cfg.USE_CUDA and loose and torch.cuda.is_available()


def mix_seed(*parts: int) -> int:
    """One 63-bit seed of several numbers, independent of the platform."""
    return int(np.random.SeedSequence([part % 2**32 for part in parts]).generate_state(1, np.uint64)[0]) >> 1


def derive_seed(*parts: int | str) -> int:
    """One 63-bit seed of numbers and names, independent of the platform."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class ImageOrder(Protocol):
    """A sampler of known length: numbers of images, in a new order at each pass."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...


class EpochBatches(Sampler[list[int]]):
    """The batches of an epoch, of which each process reads its rows; `start` draws them from a seed.

    The order of images depends neither on the number of workers and processes nor on where the epoch is resumed.

    Args:
        sampler: Gives the order of the images of an epoch.
        generator: What the sampler draws from; None: the generators of python, numpy and torch.
        batch_size: Images in a batch, of all processes together.
        drop_last: Whether a last, partial batch is left out.
    """

    def __init__(self, sampler: ImageOrder, generator: torch.Generator | None, batch_size: int, drop_last: bool):
        self.sampler, self.generator, self.batch_size, self.drop_last = sampler, generator, batch_size, drop_last
        self.batches: list[list[int]] = []
        self.first = 0

    def start(self, seed: int, first: int = 0) -> None:
        """Draw the order of an epoch, of which batches are given out from number `first` on."""
        if self.generator is not None:
            self.generator.manual_seed(seed)
            torch.empty((), dtype=torch.int64).random_(generator=self.generator)  # as torch's loaders do first
        order = distributed.broadcast(torch.tensor(list(self.sampler), dtype=torch.int64))
        batches = [batch.tolist() for batch in order.split(self.batch_size)]
        self.batches, self.first = batches[: len(self)], first

    def __len__(self) -> int:
        return len(self.sampler) // self.batch_size if self.drop_last else -(-len(self.sampler) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if not self.batches:
            self.start(0)
        return iter([batch[distributed.shard(len(batch))] for batch in self.batches[self.first :]])

    def size(self, number: int) -> int:
        """Images in the batch of this number, of all processes together."""
        return len(self.batches[number]) if self.batches else self.batch_size


def training_loader(like: DataLoader[Any], images: "SeededImages") -> DataLoader[Any]:
    """A loader of training images in `EpochBatches`, with workers that live on from epoch to epoch.

    Args:
        like: The toolbox's loader of the same images: its sampler, batch size and workers.
        images: The images; none is read if there is no view to make of them.

    Raises:
        UserError: The batch size is not a multiple of the number of processes, or there are fewer images than those.
    """
    size, processes = sharding.batch_size(like), distributed.world_size()
    if size % processes:
        raise UserError(
            f"DATALOADER.TRAIN_X.BATCH_SIZE is {size}, the number of images of all {processes} processes "
            f"together; it must be a multiple of {processes}, such as {size // processes * processes + processes}"
        )
    if len(images) < processes:
        raise UserError(
            f"there are {len(images)} training images for {processes} processes; start at most as many as images"
        )
    sampler, generator = cast("ImageOrder", like.sampler), like.generator
    if isinstance(sampler, RandomSampler):
        generator = torch.Generator()
        sampler = RandomSampler(images, generator=generator)
    workers = like.num_workers if images.transform else 0
    return DataLoader(
        images,
        batch_sampler=EpochBatches(sampler, generator, size, like.drop_last),
        num_workers=workers,
        collate_fn=like.collate_fn,
        pin_memory=like.pin_memory,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # its workers' seeds are not drawn from torch's own generator
    )


def progress_bar(batches: Iterable[Any], text: str, first: int = 0) -> tqdm:
    """Batches, from number `first` on, under a progress bar where stderr is a terminal."""
    shown = sys.stderr.isatty() and distributed.is_main()
    return tqdm(batches, desc=text, initial=first, leave=False, disable=not shown)


def can_be_fixed(transform: Callable[..., Any], cfg: CfgNode, preprocess: Callable[..., Any]) -> bool:
    """Whether a training view is the same in every epoch, so that each image can be encoded once.

    It is if it is the model's own preprocessing, or made of steps without randomness. Where bad images are skipped,
    others stand in for them, so that views are read.
    """
    loaders = cfg.DATALOADER
    if loaders.K_TRANSFORMS > 1 or loaders.RETURN_IMG0 or loaders.get("ON_BAD_IMAGE", RAISE) == SKIP:
        return False
    steps, own = (getattr(t, "transforms", ()) for t in (transform, preprocess))
    if [*map(type, steps)] == [*map(type, own)] and repr(transform) == repr(preprocess):
        return True
    return bool(steps) and all(type(step) in FIXED_STEPS for step in steps)


def with_model_input(cfg: CfgNode, backbone: FrozenCLIP) -> CfgNode:
    """The configuration with `INPUT` as the frozen model asks for it."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE = tuple(backbone.image_size)
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = list(backbone.pixel_mean), list(backbone.pixel_std)
    cfg.INPUT.INTERPOLATION = backbone.interpolation
    cfg.freeze()
    return cfg


def before_normalisation(
    transform: Callable[..., Any], mean: Sequence[float], std: Sequence[float]
) -> Callable[..., Any]:
    """A transform without its last two steps, to floats and their normalisation: it gives bytes `[3, H, W]`.

    A transform that does not end in these steps, or normalises by other numbers, is given back.
    """
    steps: Sequence[Any] = getattr(transform, "transforms", ())
    to_floats = len(steps) > 1 and (isinstance(steps[-2], transforms.ToTensor) or steps[-2] is tvf.to_tensor)
    if not to_floats or not isinstance(steps[-1], transforms.Normalize):
        return transform
    same = (tuple(steps[-1].mean), tuple(steps[-1].std)) == (tuple(mean), tuple(std))
    return transforms.Compose([*steps[:-2], transforms.PILToTensor()]) if same else transform


class SeededImages(DatasetWrapper):
    """Dassl's wrapper with a generator of its own for each image and epoch.

    The views of image `i` depend on `(view_seed, i)` alone: not on the number of workers, nor on what was drawn before.
    `view_seed` is that of the epoch; it lives in shared memory, so that workers see it change.

    An image that cannot be decoded raises `UnreadableImage`. Under `DATALOADER.ON_BAD_IMAGE: skip` each item names in
    `unreadable` what could not be read (one path a line): in training the next readable image of the list stands in;
    in testing the item is a placeholder that the trainer leaves out. No file is opened for an empty list of transforms.

    Args:
        as_bytes: Give views as bytes, and leave the normalisation to the device, where a transform ends in it.
    """

    def __init__(
        self,
        cfg: CfgNode,
        data_source: Sequence[Any],
        transform: Any = None,
        is_train: bool = False,
        as_bytes: bool = False,
    ) -> None:
        super().__init__(cfg, data_source, transform=transform, is_train=is_train)
        self.view_seed = torch.zeros((), dtype=torch.int64).share_memory_()
        self.skip = cfg.DATALOADER.get("ON_BAD_IMAGE", RAISE) == SKIP
        self.as_bytes = as_bytes

    def __getitem__(self, index: int) -> dict[str, Any]:
        if get_worker_info() is not None:
            signals.shield_worker()
        if not self.skip:
            return self._item(index)
        bad: list[str] = []
        for step in range(len(self.data_source) if self.is_train else 1):
            number = (index + step) % len(self.data_source)
            try:
                return self._item(number) | {"unreadable": "\n".join(bad)}
            except UnreadableImage:
                bad.append(self.data_source[number].impath)
        if self.is_train:
            raise UnreadableImage(f"none of the {len(bad)} training images can be decoded, the first is {bad[0]}")
        return self._facts(index) | self._views_of(Image.new("RGB", (64, 64))) | {"unreadable": bad[0]}

    def read(self, path: str) -> Image.Image:
        """The image at a path: the toolbox's own reading, and ours where it may be the address of a row."""
        return read_image(path) if "#" in path else super().read(path)

    def _views_of(self, image: Image.Image) -> dict[str, Any]:
        makers = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
        return {f"img{k + 1}" if k else "img": self._transform_image(make, image) for k, make in enumerate(makers)}

    def _facts(self, index: int) -> dict[str, Any]:
        item = self.data_source[index]
        return {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}

    def _transform_image(self, tfm: Callable[..., Any], img0: Image.Image) -> Any:
        pixels = self.cfg.INPUT.PIXEL_MEAN, self.cfg.INPUT.PIXEL_STD
        return super()._transform_image(before_normalisation(tfm, *pixels) if self.as_bytes else tfm, img0)

    def _item(self, index: int) -> dict[str, Any]:
        if self.transform == []:
            return self._facts(index)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                seed = derive_seed(int(self.view_seed), index)
                with seeded(seed) if self.is_train else nullcontext():
                    path = self.data_source[index].impath
                    if "#" in path and not hasattr(DatasetWrapper, "read"):  # the original toolbox reads files alone
                        return self._facts(index) | self._views_of(read_image(path))
                    item: dict[str, Any] = super().__getitem__(index)
                    return item
        except (OSError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            path = self.data_source[index].impath
            reason = str(error).rpartition(f'"{path}": ')[2]  # the toolbox may have named the file already
            raise UnreadableImage(
                f"cannot decode the image {path}: {reason}. Replace the file, remove it from the data set, or set "
                "DATALOADER.ON_BAD_IMAGE skip"
            ) from None
