"""A second evaluation of a method on frozen features against the first: image features are cached on disk.

Cases: `icons`, the embedded world with its own model; `generated`, JPEG files of 500 x 375 with a ViT. Both sides are
the trainer's own `test()` of ZeroshotCLIP, without a cache (`plain`: decode, preprocess and encode all images, as
programs without one do each time) and with a filled one (`ours`). CLAP, InMaP and the probes read the same entries.

example: python benchmarks/cache.py --threads 2 --only icons
"""

import argparse
import contextlib
import io
import os
import tempfile
from pathlib import Path

import torch
from common import ARCHITECTURE, Part, Results, Work, make_parser, run_cases
from inputs import ROOT, build_trainer, class_names, make_pictures

from dassl_clip.results.files import CACHE_VARIABLE

IMAGES = {"cpu": 64, "cuda": 1024}


class SecondEvaluation(Work):
    """Testing ZeroshotCLIP twice.

    Args:
        title: Of the case.
        settings: KEY VALUE pairs of the configuration.
        arguments: Flags of `train.py`.
        options: The command line.
    """

    target = 30.0
    alone = False

    def __init__(self, title: str, settings: list[object], arguments: list[str], options: argparse.Namespace):
        self.folder = tempfile.TemporaryDirectory()
        settings = [*settings, "OUTPUT_DIR", self.folder.name, "TRAINER.ZEROSHOTCLIP.PREC", "fp32"]
        self.trainer = build_trainer("ZeroshotCLIP", settings, arguments, options.device)
        self.title = f"second evaluation, {len(self.trainer.dm.dataset.test)} images, {title}"
        self.filled = tempfile.mkdtemp(dir=self.folder.name)
        with self._cache(self.filled):
            self._test()

    def ours(self) -> list[Part]:
        """With a filled cache."""
        return [Part(lambda: self._with(self.filled))]

    def plain(self) -> list[Part]:
        """With an empty one."""
        return [Part(lambda: self._with("off"))]

    def _with(self, folder: str) -> Results:
        self.trainer.__dict__.pop("_known_files", None)  # each test looks at the files, as one of a new process does
        with self._cache(folder):
            return self._test()

    def _test(self) -> Results:
        """The accuracy, and the shares of the best classes of each image."""
        with contextlib.redirect_stdout(io.StringIO()):
            accuracy = self.trainer.test()
        found = self.trainer.evaluation.predictions["test"]
        return {"accuracy": torch.tensor(accuracy), "shares": found["shares"], "classes": found["top"]}

    @contextlib.contextmanager
    def _cache(self, folder: str):
        before = os.environ.get(CACHE_VARIABLE)
        os.environ[CACHE_VARIABLE] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[CACHE_VARIABLE]
            else:
                os.environ[CACHE_VARIABLE] = before


def icons(options: argparse.Namespace) -> SecondEvaluation:
    """The embedded world."""
    files = {"--config-file": "trainers/ZeroshotCLIP/icons.yaml", "--dataset-config-file": "datasets/icons.yaml"}
    flags = [word for flag, file in files.items() for word in (flag, str(ROOT / "configs" / file))]
    domains = ["--source-domains", "line", "--target-domains", "line"]
    work = SecondEvaluation("Icons, IconsCLIP", ["DATALOADER.NUM_WORKERS", 0], [*flags, *domains], options)
    work.uses_architecture = False
    return work


def generated(options: argparse.Namespace) -> SecondEvaluation:
    """JPEG files and a ViT."""
    folder = tempfile.TemporaryDirectory()
    names = class_names("office_home")
    images = options.images or IMAGES[torch.device(options.device).type]
    listing = make_pictures(Path(folder.name), names, train_images=len(names), test_images=images)
    settings = [
        "DATASET.NAME", "Manifest", "DATASET.MANIFEST", listing, "MODEL.BACKBONE.NAME", options.architecture,
        "DATALOADER.NUM_WORKERS", options.workers, "DATALOADER.TEST.BATCH_SIZE", 32,
    ]  # fmt: skip
    work = SecondEvaluation("JPEG files", settings, [], options)
    work.pictures = folder  # lives as long as the work
    return work


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", default=ARCHITECTURE, help="backbone of the case `generated`")
    parser.add_argument("--images", type=int, help="generated JPEG files (CPU 64, GPU 1024)")
    parser.add_argument("--workers", type=int, default=0, help="of the loader (0)")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print; with `--write`, keep the figures."""
    run_cases(parse(), "cache", {"icons": icons, "generated": generated})


if __name__ == "__main__":
    main()
