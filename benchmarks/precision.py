"""What the frozen towers lose in a lower precision: features, predictions and accuracy against float32.

Cases: `icons`, the embedded pictures of all four domains and IconsCLIP; `generated`, generated pictures and a ViT of
random weights, whose predictions mean nothing and are left out. Each precision that the device has is that of the
trainers (`PREC`): features and scores of ZeroshotCLIP are compared with those of `fp32`, image by image. A distance is
one minus the cosine of the two features of one image or text.

example: python benchmarks/precision.py --threads 2 --only icons
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from common import ARCHITECTURE, make_parser, prepare
from inputs import ROOT, build_trainer, class_names, make_pictures
from reporting import describe, precision_table, rounded, write
from torch import Tensor

from dassl_clip.clip.zeroshot import zeroshot_weights
from dassl_clip.engine.precision import Precision

DOMAINS = ("emoji", "flat", "line", "solid")
TEMPLATE = "a photo of a {}."
LOWER = {"cpu": ("amp",), "cuda": ("tf32", "amp")}


@torch.no_grad()
def encoded(trainer, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features `[N, E]` of the tested images and `[C, E]` of the classes, of length 1, and labels `[N]`."""
    precision = Precision(name, trainer.device)
    images, labels = [], []
    with precision.autocast():
        texts = zeroshot_weights(trainer.backbone.text, trainer.classnames, [TEMPLATE]).T.float()
        for batch in trainer.test_loader:
            pixels, truth = trainer.parse_batch_test(batch)
            images.append(trainer.backbone.encode_image(pixels).float())
            labels.append(truth)
    return F.normalize(torch.cat(images).double()), F.normalize(texts.double()), torch.cat(labels)


def compare(trainer, accuracy: bool) -> dict[str, dict[str, float]]:
    """By precision, what differs from `fp32`.

    Args:
        trainer: A ZeroshotCLIP.
        accuracy: Whether its model knows the classes.
    """
    exact_images, exact_texts, labels = encoded(trainer, "fp32")
    exact = exact_images @ exact_texts.T
    found = {}
    for name in LOWER[trainer.device.type]:
        images, texts, _ = encoded(trainer, name)
        scores = images @ texts.T
        figures = {
            "image distance": (1 - (images * exact_images).sum(1)).max(),
            "text distance": (1 - (texts * exact_texts).sum(1)).max(),
            "cosine": (scores - exact).abs().max(),
        }
        if accuracy:
            best, before = scores.argmax(1), exact.argmax(1)
            figures["changed predictions, %"] = 100 * (best != before).double().mean()
            figures["accuracy, %"] = 100 * (best == labels).double().mean()
            figures["accuracy of fp32, %"] = 100 * (before == labels).double().mean()
        found[name] = {key: rounded(float(value), 4) for key, value in figures.items()}
        found[name]["images"] = len(images)
    return found


def icons(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The embedded world."""
    files = {"--config-file": "trainers/ZeroshotCLIP/icons.yaml", "--dataset-config-file": "datasets/icons.yaml"}
    flags = [word for flag, file in files.items() for word in (flag, str(ROOT / "configs" / file))]
    flags += ["--source-domains", *DOMAINS, "--target-domains", *DOMAINS]
    return compare(_zeroshot(["DATASET.PROTOCOL", "all-images"], flags, options), accuracy=True)


def generated(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """JPEG files and a ViT."""
    with tempfile.TemporaryDirectory() as folder:
        names = class_names("office_home")
        listing = make_pictures(Path(folder), names, train_images=len(names), test_images=options.images)
        settings = [
            "DATASET.NAME",
            "Manifest",
            "DATASET.MANIFEST",
            listing,
            "MODEL.BACKBONE.NAME",
            options.architecture,
        ]
        return compare(_zeroshot(settings, [], options), accuracy=False)


def _zeroshot(settings: list[object], flags: list[str], options: argparse.Namespace):
    """ZeroshotCLIP on some images, ready to test."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [*settings, "OUTPUT_DIR", folder, "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TEST.BATCH_SIZE", 32]
        return build_trainer("ZeroshotCLIP", settings, flags, options.device)


CASES: dict[str, Callable[[argparse.Namespace], dict]] = {"icons": icons, "generated": generated}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", default=ARCHITECTURE, help="backbone of the case `generated`")
    parser.add_argument("--images", type=int, default=64, help="generated JPEG files (64)")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print; with `--write`, keep the figures.

    Raises:
        ValueError: `--only` names no case.
    """
    options = parse()
    prepare(options)
    unknown = set(options.only or ()) - set(CASES)
    if unknown:
        raise ValueError(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    for name in options.only or CASES:
        model = "IconsCLIP" if name == "icons" else options.architecture
        entry = describe(options) | {"model": model, "precisions": CASES[name](options)}
        print(precision_table([entry]), flush=True)
        if options.write:
            write(options, "precision", model, entry)


if __name__ == "__main__":
    main()
