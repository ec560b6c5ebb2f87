"""Images a second that the loader decodes and augments, against what the tower encodes: which of the two is waited for.

Pictures are generated JPEG files of 500 x 375. Two loads: `test`, decode and the model's preprocessing; `gopro`, decode
and GOPro's three views. Both are the trainer's own loaders, with 0, 1 and 2 workers (0 to 16 where there are as many
cores). The tower's rate is that of `encode_image` on batches that are there.

`views` is GOPro's two augmented views alone, of pictures that are decoded: `PIL`, as a worker makes them, and
`tensors`, torchvision's tensor transforms of the same kinds on the device, on GOPro's batches of 4. The latter draw
once for a whole batch, not for each image: an upper bound of what batched augmentation could reach.

example: python benchmarks/datapath.py --threads 2
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch
from common import ARCHITECTURE, make_parser, prepare, timed
from inputs import build_trainer, class_names, make_pictures, picture
from PIL import Image
from reporting import describe, rates_table, rounded, write
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import transforms
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

from dassl_clip.clip.backbone import FrozenCLIP
from dassl_clip.clip.views import CROP_SCALE, GRAYSCALE_P, JITTER, JITTER_P, augmix_view, moco_view
from dassl_clip.trainers.gopro.trainer import VIEW_CROP

WORKERS = (0, 1, 2, 4, 8, 16)
LOADED = 16  # images of a loader's batch
TOGETHER = 4  # images of GOPro's batch
VIEW_BATCHES, WARM_UP = 24, 8  # of views; the mean counts, since each batch draws other operations
BATCH = {"cpu": 16, "cuda": 64}


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Images a second of the loaders by load and workers, and of the tower."""
    folder = tempfile.TemporaryDirectory()
    names = class_names("office_home")
    count = max(options.images * max(1, *options.workers), len(names))
    listing = make_pictures(Path(folder.name), names, train_images=count, test_images=count)
    batch = options.batch or BATCH[torch.device(options.device).type]
    settings = [
        "DATASET.NAME", "Manifest", "DATASET.MANIFEST", listing, "MODEL.BACKBONE.NAME", options.architecture,
        "OUTPUT_DIR", folder.name, "DATALOADER.NUM_WORKERS", 0, "TRAINER.GOPRO.PREC", "fp32",
        "DATALOADER.TRAIN_X.BATCH_SIZE", batch, "DATALOADER.TEST.BATCH_SIZE", batch,
    ]  # fmt: skip
    trainer = build_trainer("GOPro", settings, device=options.device)
    rates = {}
    for workers in options.workers:
        for load, loader in (("test", trainer.test_loader), ("gopro", trainer.dm.train_loader_x)):
            images = Subset(loader.dataset, range(options.images * max(1, workers)))
            rates[f"{load}, {workers} workers"] = loader_rate(images, workers, options.repeats)
    pictures = [picture(number) for number in range(TOGETHER * VIEW_BATCHES)]
    rates["views, PIL"] = pil_views_rate(trainer.backbone, pictures)
    rates[f"views, tensors, batches of {TOGETHER}"] = tensor_views_rate(trainer.backbone, pictures, options.device)
    images = trainer.parse_batch_test(next(iter(trainer.test_loader)))[0]
    for name, amp in {"tower": False, "tower, amp": True}.items():
        with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=amp):
            rates[name] = tower_rate(trainer.backbone, images, options)
    return rates


def tower_rate(clip: FrozenCLIP, images: torch.Tensor, options: argparse.Namespace) -> float:
    """Images a second of the image tower, the median."""
    seconds = [timed(lambda: clip.encode_image(images), options.device)[1] for _ in range(options.repeats + 1)]
    return rounded(len(images) / statistics.median(seconds[1:]), 3)


def pil_views_rate(clip: FrozenCLIP, pictures: list[Image.Image]) -> float:
    """Images a second of GOPro's two augmented views in one process, the mean."""
    like = (
        clip.image_size,
        VIEW_CROP,
        transforms.Normalize(clip.pixel_mean, clip.pixel_std),
    )
    views = (moco_view(*like), augmix_view(*like))
    seconds = [timed(lambda image=image: [view(image) for view in views], "cpu")[1] for image in pictures]
    return rounded(1 / statistics.mean(seconds), 3)


def tensor_views_rate(clip: FrozenCLIP, pictures: list[Image.Image], device: str) -> float:
    """Images a second of torchvision's transforms of the same kinds, on batches of tensors `[4, 3, H, W]`; the mean.

    The copy to the device counts, the sharing of a batch's draws is as the module says.
    """
    size = clip.image_size
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(clip.pixel_mean, clip.pixel_std)]
    jitter = v2.RandomApply([v2.ColorJitter(*JITTER)], p=JITTER_P)
    blur = v2.GaussianBlur(9, sigma=(0.1, 2.0))
    crop = v2.RandomResizedCrop(size, scale=CROP_SCALE, antialias=True)
    moco = v2.Compose([crop, jitter, v2.RandomGrayscale(GRAYSCALE_P), blur, v2.RandomHorizontalFlip(), *end])
    plain = [v2.Resize(max(size), antialias=True), v2.CenterCrop(size)]
    mixed = v2.Compose([*plain, v2.AugMix(severity=1, all_ops=False), *end])
    tensors = torch.stack([pil_to_tensor(image) for image in pictures]).split(TOGETHER)

    def both(batch: torch.Tensor) -> list[torch.Tensor]:
        images = batch.to(device)
        return [moco(images), mixed(images)]

    seconds = [timed(lambda batch=batch: both(batch), device)[1] for batch in [*tensors[:WARM_UP], *tensors]]
    return rounded(TOGETHER / statistics.mean(seconds[WARM_UP:]), 3)


def loader_rate(dataset: Dataset, workers: int, repeats: int) -> float:
    """Images a second of passes over a data set, the median; workers persist and are started before the first pass."""
    loader = DataLoader(dataset, LOADED, num_workers=workers, persistent_workers=workers > 0)
    seconds = [timed(lambda: sum(1 for _ in loader), "cpu")[1] for _ in range(repeats + 1)]
    return rounded(len(dataset) / statistics.median(seconds[1:]), 3)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--architecture", default=ARCHITECTURE, help="a ViT of CLIP with random weights")
    parser.add_argument("--images", type=int, default=96, help="pictures of a pass for each worker (96)")
    parser.add_argument("--batch", type=int, help="images of the tower's batch (CPU 16, GPU 64)")
    cores = os.cpu_count() or 1
    own = [count for count in WORKERS if count <= max(cores, 2)]
    parser.add_argument("--workers", type=int, nargs="+", default=own, help=f"of the loaders ({own})")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print; with `--write`, keep the figures."""
    options = parse()
    prepare(options)
    entry = describe(options) | {"images per second": measure(options)}
    print(rates_table(entry))
    if options.write:
        write(options, "datapath", options.architecture, entry)


if __name__ == "__main__":
    main()
