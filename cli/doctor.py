"""What of an installation works: `dassl-clip doctor`, one line per check, `ok`, `warn` or `fail`, with the fix.

A check never ends the command: an error in it is its finding. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dassl_clip.cli.arguments import Parser, add_data, command
from dassl_clip.engine.errors import sentence
from dassl_clip.results import environment
from dassl_clip.results.files import CACHE_OFF, CACHE_VARIABLE, cache_dir

OK, WARN, FAIL = "ok", "warn", "fail"
LEAST = {"torch": "2.4", "torchvision": "0.19", "open_clip_torch": "3.1", "numpy": "1.24", "pillow": "10.0"}
MODULES = {"open_clip_torch": "open_clip", "pillow": "PIL"}
EXTRAS = {
    "matplotlib": ("matplotlib", "plots", "figures (dassl-clip plot, report)"),
    "sklearn": ("scikit-learn", "plots", "t-SNE (dassl-clip plot tsne)"),
    "umap": ("umap-learn", "umap", "UMAP (dassl-clip plot tsne --method umap)"),
    "submitit": ("submitit", "slurm", "job arrays (dassl-clip sweep --launcher slurm)"),
}
GIB = 2**30
LOW_DISK = LITTLE_MEMORY = 2 * GIB


@dataclass(frozen=True)
class Finding:
    """One line, such as `fail  no Dassl toolbox  ->  pip install ./toolbox`."""

    level: str  # `ok`, `warn` (something optional is missing, or will hurt later) or `fail` (runs cannot work)
    what: str  # what was found
    fix: str = ""  # what to do about it

    def __str__(self) -> str:
        return f"{self.level:<5} {self.what}{self.fix and f'  ->  {self.fix}'}"


Check = Callable[[argparse.Namespace], Iterable[Finding]]


def build_parser() -> Parser:
    parser = Parser(
        prog="dassl-clip doctor",
        description="Check toolbox, torch, device, models, data and disk. Exit code 1 if something fails, else 0.",
        epilog="example: dassl-clip doctor --data ~/data --backbone ViT-B/16",
    )
    add_data(parser, "folder above the data sets to look through")
    parser.add_argument("--out", default="output", metavar="DIR", help="folder that runs shall go to (default: output)")
    parser.add_argument("--backbone", nargs="+", default=("ViT-B/16",), metavar="NAME",
                        help="whose weights to look for (default: ViT-B/16)")  # fmt: skip
    return parser


def run(args: argparse.Namespace) -> int:
    levels = []
    for finding in examine(args, CHECKS):
        levels.append(finding.level)
        print(finding, flush=True)
    print(f"{levels.count(OK)} ok, {count(levels.count(WARN), 'warning')}, {count(levels.count(FAIL), 'error')}")
    return 1 if FAIL in levels else 0


def count(number: int, noun: str) -> str:
    """`2 errors`."""
    return f"{number} {noun}{'s' * (number != 1)}"


def examine(args: argparse.Namespace, checks: Iterable[Check]) -> Iterator[Finding]:
    """The findings of all checks, one after another."""
    for check in checks:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield from check(args)
        except Exception as error:
            text = sentence(error) or type(error).__name__
            yield Finding(FAIL, f"{name}: {type(error).__name__}: {text}", "fix this, then run the command again")


def program(args: argparse.Namespace) -> Iterator[Finding]:
    """Python and this package."""
    old = "Python 3.10 or newer is needed" if sys.version_info < (3, 10) else ""
    yield Finding(FAIL if old else OK, f"Python {platform.python_version()} ({sys.executable})", old)
    version = environment.package_versions()[environment.DISTRIBUTION]
    place = Path(environment.__file__).resolve().parents[1]
    if version:
        yield Finding(OK, f"dassl-clip {version} ({place})")
    else:
        yield Finding(WARN, f"dassl-clip runs from {place} without being installed", f"pip install -e {place}")


def packages(args: argparse.Namespace) -> Iterator[Finding]:
    """What is needed at least, imported for real."""
    for name, least in LEAST.items():
        try:
            importlib.import_module(MODULES.get(name, name))
            version = importlib.metadata.version(name)
        except (ImportError, OSError) as error:
            yield Finding(FAIL, f"{name}: {' '.join(str(error).split())}", f"pip install '{name}>={least}'")
            continue
        if numbers(version) < numbers(least):
            yield Finding(FAIL, f"{name} {version} is too old", f"pip install '{name}>={least}'")
        else:
            yield Finding(OK, f"{name} {version}")


def toolbox(args: argparse.Namespace) -> Iterator[Finding]:
    """The package `dassl`, and that trainers and data sets register with it."""
    facts = environment.toolbox_facts()
    if facts["kind"] == "none":
        yield Finding(FAIL, "no Dassl toolbox is installed", "pip install ./toolbox, in the checkout of dassl-clip")
        return
    from dassl.data.datasets import DATASET_REGISTRY
    from dassl.engine import TRAINER_REGISTRY
    from dassl_clip import datasets, trainers  # noqa: F401

    names = TRAINER_REGISTRY.registered_names(), DATASET_REGISTRY.registered_names()
    counts = f"{len(names[0])} trainers, {len(names[1])} data sets"
    yield Finding(OK, f"Dassl toolbox: {facts['kind']} {facts['version']} ({facts['path']}); {counts}")


def device(args: argparse.Namespace) -> Iterator[Finding]:
    """What torch computes on; a small product on it."""
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            product = torch.ones(8, 8, device=f"cuda:{index}") @ torch.ones(8, 8, device=f"cuda:{index}")
            free, total = torch.cuda.mem_get_info(index)
            text = f"cuda:{index} {torch.cuda.get_device_name(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
            if float(product.sum()) != 512:
                yield Finding(FAIL, f"{text}; it computes wrong products", "check the driver, or set USE_CUDA False")
            else:
                yield Finding(OK, text if free >= LITTLE_MEMORY else f"{text}: little")
    elif shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        what = f"there is an NVIDIA driver, but torch {torch.__version__} sees no GPU"
        yield Finding(WARN, what, "install a torch build for CUDA that fits the driver, or use the CPU")
    else:
        yield Finding(OK, "no GPU: the CPU is used")
    yield Finding(OK, f"CPU: {environment.usable_cores()} cores to use, {torch.get_num_threads()} threads of torch")


def models(args: argparse.Namespace) -> Iterator[Finding]:
    """The embedded model, computed with; and the weights of the backbones that were named, looked for."""
    import torch

    from dassl_clip.clip import sources
    from dassl_clip.clip.backbone import load_backbone
    from dassl_clip.engine.open_run import quiet

    with quiet():
        backbone = load_backbone(sources.ICONS, device="cpu")
    texts = backbone.text.encode(["a photo of a star.", "a photo of a cat."])
    if torch.isfinite(texts).all():
        yield Finding(OK, f"embedded model {sources.ICONS} (weights {backbone.weights_hash[:12]})")
    else:
        yield Finding(FAIL, f"the embedded model {sources.ICONS} gives NaN or infinite numbers", "reinstall dassl-clip")
    for name in args.backbone:
        yield weights(name)


def weights(name: str) -> Finding:
    """Whether the weights of a backbone are on the disk; asks no network."""
    from dassl_clip.clip import sources

    if name == sources.ICONS:
        return Finding(OK, f"weights of {name}: in the package")
    try:
        path = sources.cached_weights(name)
    except (ValueError, FileNotFoundError) as error:
        return Finding(FAIL, " ".join(str(error).split()), "give the name of a backbone that exists")
    if path:
        return Finding(OK, f"weights of {name}: {path}")
    fix = "they are downloaded at the first use; without network: MODEL.BACKBONE.WEIGHTS FILE, or a filled HF_HOME"
    return Finding(WARN, f"weights of {name} are not on this disk", fix)


def data(args: argparse.Namespace) -> Iterator[Finding]:
    """The embedded data set, and the data sets whose folders are seen in the root."""
    from dassl_clip.datasets.spec import load_spec
    from dassl_clip.results.data_sets import entries, name_key

    folder = Path(next(iter(importlib.util.find_spec("dassl_clip.embedded").submodule_search_locations))) / "icons"
    images = sum(1 for _ in folder.glob("*/*/*.png"))
    if images:
        yield Finding(OK, f"embedded data set Icons: {images:,} images ({folder})")
    else:
        yield Finding(FAIL, f"the embedded data set Icons has no images in {folder}", "reinstall dassl-clip")
    if not args.data:
        yield Finding(OK, "no folder of data sets was named (--data DIR looks through one)")
        return
    root = Path(args.data).expanduser()
    if not root.is_dir():
        yield Finding(FAIL, f"there is no data folder {root}", "give --data the folder above the data sets")
        return
    there = {name_key(entry.name): entry.name for entry in os.scandir(root) if entry.is_dir()}
    seen = {}
    for spec in map(load_spec, entries()):
        for name in spec.folders:
            if name_key(name) in there:
                seen.setdefault(spec.name, f"{spec.name} ({there[name_key(name)]})")
    if seen:
        yield Finding(OK, f"in {root}: {', '.join(seen.values())}", "dassl-clip data verify NAME --root DIR checks one")
    else:
        fix = "dassl-clip data list shows the folder names that are looked for; data links where to get them"
        yield Finding(WARN, f"no folder of a known data set in {root}", fix)


def disk(args: argparse.Namespace) -> Iterator[Finding]:
    """Write permission and free space where runs and features go."""
    yield writable(Path(args.out), "output folder", "give --out, or go to, a folder that can be written to", FAIL)
    cache = cache_dir()
    if cache is None:
        yield Finding(OK, f"features are not cached ({CACHE_VARIABLE}={CACHE_OFF})")
        return
    size = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) if cache.is_dir() else 0
    found = writable(cache, "cache folder", f"set {CACHE_VARIABLE} to another folder, or to {CACHE_OFF}", WARN)
    yield Finding(found.level, f"{found.what}, {size / 2**20:,.1f} MiB cached", found.fix)


def writable(folder: Path, name: str, fix: str, level: str) -> Finding:
    """Whether a file can be written in a folder, or in what is there of it, and how much space is free."""
    place = folder.expanduser().absolute()
    while not place.is_dir() and place != place.parent:  # the nearest folder that exists
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        return Finding(level, f"{name} {folder}: no file can be written in {place} ({error.strerror})", fix)
    free = shutil.disk_usage(place).free
    what = f"{name} {folder.expanduser().absolute()}: can be written, {free / GIB:.1f} GiB free"
    return Finding(OK, what) if free >= LOW_DISK else Finding(WARN, what, "free some: checkpoints and features need it")


def extras(args: argparse.Namespace) -> Iterator[Finding]:
    """Packages that some commands need."""
    for module, (package, extra, use) in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(WARN, f"{package} is not installed, for {use}", f"pip install 'dassl-clip[{extra}]'")
        else:
            yield Finding(OK, f"{package} {importlib.metadata.version(package)}, for {use}")


def numbers(version: str) -> tuple[int, ...]:
    """`2.14.1+cu130` as (2, 14, 1); what follows a number, as in `10.0rc1`, is left out."""
    return tuple(map(int, re.findall(r"(?:^|(?<=\.))\d+", version.split("+")[0])))


CHECKS: tuple[Check, ...] = (program, packages, toolbox, device, models, data, disk, extras)


main = command(build_parser, run)
