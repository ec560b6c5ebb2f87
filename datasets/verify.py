"""What is on the disk, compared with what was published: counts by domain and class, and a line for each problem.

Each domain is opened by its loader as a run would open it, so that what passes here loads there. Nothing is printed.
"""

import contextlib
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dassl_clip.results.data_sets import entries, name_key, read_entry
from dassl_clip.results.image_rows import open_image, size_of, split_address

from .base import ListedDataset
from .duplicates import counted, real_paths
from .folders import ImageFile, list_folder, listed_once, match_classes
from .layouts import find_candidates
from .options import ALL_IMAGES, DASSL, check_protocol
from .packed import packed
from .spec import listed, load_spec

T = TypeVar("T")
Progress = Callable[[Iterable[T], int, str], Iterable[T]]  # items, their number, what is done
Inspect = Callable[[str], tuple[str, str]]  # path -> why it cannot be decoded, or what decoding changes; both may be ""

ERROR, WARNING, NOTE = "error", "warning", "note"
UNUSED_DOMAIN = "which this run does not use"  # a loader's warning that says nothing when all domains are looked at
FITS, WARNS, UNUSABLE = 0, 1, 2


@dataclass(frozen=True)
class Finding:
    """One thing to tell: how bad it is, and a sentence."""

    level: str
    text: str


@dataclass(frozen=True)
class Count:
    """A line of the table: a domain, or a part of a data set without domains.

    `images` are numbers by label, `parts` numbers by part; `published` is the published number, None if none is known.
    """

    name: str
    images: Mapping[int, int]
    published: int | None
    parts: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """All that was found.

    `classes` are the names in label order, empty if not even those are known; `unread` are domains that could not be
    read; `findings` are troubles, in the order in which they were met; `images` are all that were read.
    """

    dataset: str
    root: str
    classes: tuple[str, ...] = ()
    layouts: list[str] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    images: list[ImageFile] = field(default_factory=list)

    def add(self, level: str, text: str) -> None:
        """Note a finding, once."""
        finding = Finding(level, text)
        if finding not in self.findings:
            self.findings.append(finding)

    @property
    def verdict(self) -> int:
        """0: fits; 1: there are warnings; 2: unusable as it is."""
        levels = {finding.level for finding in self.findings}
        return UNUSABLE if ERROR in levels else WARNS if WARNING in levels else FITS


def verify(
    loader: type[ListedDataset],
    cfg,
    inspect: Inspect | None = None,
    duplicates: bool = False,
    jobs: int = 1,
    progress: Progress = lambda items, total, what: items,
) -> Report:
    """Look at a data set as it lies on the disk.

    Args:
        loader: its class.
        cfg: the config; DATASET.ROOT says where, the domains in it are not read.
        inspect: decodes an image as training would, which takes long; None decodes none.
        duplicates: whether to look for files that are copies of each other.
        jobs: threads that decode.
        progress: wraps the images as they are decoded or compared.
    """
    report = Report(loader.__name__, cfg.DATASET.ROOT)
    with collected(report):
        check_protocol(cfg.DATASET.PROTOCOL, loader.__name__, loader.protocols)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.PROTOCOL = ALL_IMAGES if ALL_IMAGES in loader.protocols else DASSL
    cfg.DATASET.TEST_PART, cfg.DATASET.TRIAL = "in", 0
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = -1, (), ()
    with collected(report):
        domains = loader.list_domains(cfg)
        for domain in domains or [""]:
            with collected(report):
                names = (domain,) if domains else ()
                cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = names, names
                look_at(loader, cfg, domain, report)
        read = [count.name for count in report.counts]
        report.unread += [domain for domain in domains if domain not in read]
    root = Path(report.root or ".").expanduser().absolute()
    if not report.images and root.is_dir():  # archives, copies of the hub, other data sets
        texts, others = packed(root), [name for name in recognise(root) if name != report.dataset]
        texts += [f"{root} looks like {' or '.join(others)}: ask for that data set"] if others else []
        for text in texts:
            if not any(text in finding.text for finding in report.findings):
                report.add(ERROR, text)
    check_images(report, inspect, duplicates, jobs, progress)
    return report


@contextlib.contextmanager
def collected(report: Report) -> Iterator[None]:
    """Turn the warnings and errors of loaders into findings."""
    package = logging.getLogger(__package__)
    propagate, package.propagate = package.propagate, False
    handlers, package.handlers = package.handlers, [_Collector(report)]
    try:
        yield
    except (ValueError, FileNotFoundError, NotADirectoryError) as error:
        report.add(ERROR, " ".join(str(error).split()))
    except OSError as error:
        report.add(ERROR, f"cannot read {error.filename}: {error.strerror}")
    finally:
        package.propagate, package.handlers = propagate, handlers


class _Collector(logging.Handler):
    """Collects warnings as findings."""

    def __init__(self, report: Report) -> None:
        super().__init__(logging.WARNING)
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        if UNUSED_DOMAIN not in record.getMessage():
            self.report.add(WARNING, record.getMessage())


def look_at(loader: type[ListedDataset], cfg, domain: str, report: Report) -> None:
    """Open one domain, or a data set without domains, and count."""
    dataset = loader.__new__(loader)  # opened without the draw and the records of a run
    with listed_once():
        pools = dataset.open(cfg)
    spec, parts = dataset.spec, next(iter(pools.values()))
    report.classes = tuple(dataset.names)
    if dataset.names_note:
        report.add(NOTE, dataset.names_note)
    text = f"{dataset.layout.text}{dataset.count_note}"
    if text not in report.layouts:
        report.layouts.append(text)
    if "NOT the published split" in text:
        report.add(WARNING, f"{spec.name}: {text}")
    everything = [image for images in parts.values() for image in images]
    report.images += everything
    if domain:
        found = Counter(image.label for image in everything)
        sizes = {part: len(images) for part, images in parts.items()}
        report.counts.append(Count(domain, found, spec.published(domain), sizes))
        published = spec.details.get(domain, {}).get("per_class", {})
        skipped = Counter(key.split("/")[1] for key in spec.skip if key.startswith(f"{domain}/"))
        other = [
            f"{name} {found.get(label, 0)} ({published[name] - skipped[name]})"
            for label, name in enumerate(spec.classes)
            if name in published and found.get(label, 0) != published[name] - skipped[name]
        ]
        if other:
            report.add(WARNING, f"{spec.name}: images (published number) of classes of {domain}: {listed(other)}")
    else:
        for part, images in parts.items():
            labels = Counter(image.label for image in images)
            report.counts.append(Count(part, labels, spec.images.get(part)))
    if entry_of(spec.name).get("nested_folders") or (everything and split_address(everything[0].path)):
        return
    keys = spec.class_keys()
    folders = [keys.get(name_key(Path(image.path).parent.name), image.label) for image in everything]
    wrong = [image for image, label in zip(everything, folders) if label != image.label]
    if wrong:
        report.add(
            WARNING,
            f"{spec.name}: {len(wrong)} images lie in a folder that is called like another class than theirs, first: "
            f'{wrong[0].path} is "{spec.classes[wrong[0].label]}"',
        )


def entry_of(name: str) -> dict:
    """The entry in `lists/` of a data set, by its registry name; empty if it has none."""
    return next((entry for entry in map(read_entry, entries()) if entry["name"] == name), {})


def check_images(report: Report, inspect: Inspect | None, duplicates: bool, jobs: int, progress: Progress) -> None:
    """Note files that lie in several domains, are empty, damaged, copies of each other, or known to be odd."""
    seen: dict[str, ImageFile] = {}  # inside a domain its loader has looked
    shared = [
        f"{other.path} = {image.path}"
        for path, image in zip(real_paths(report.images), report.images)
        if (other := seen.setdefault(path, image)).key.split("/")[0] != image.key.split("/")[0]
    ]
    if shared:
        report.add(WARNING, f"{counted(shared)} in two domains, first: {shared[0]}")
    sizes, bad = {}, []
    for image in {image.path: image for image in report.images}.values():  # one that has two classes is one file
        try:
            sizes[image] = size_of(image.path)
            if not sizes[image]:
                bad.append((image.path, "is empty (0 bytes)"))
        except OSError as error:
            bad.append((image.path, f"cannot be read: {error.strerror or error}"))
    notes: dict[str, list[str]] = {}
    if inspect is not None:
        paths = [image.path for image, size in sizes.items() if size]
        with ThreadPoolExecutor(jobs) as pool:
            for path, (error, note) in zip(paths, progress(pool.map(inspect, paths), len(paths), "decoding")):
                if error:
                    bad.append((path, error))
                elif note:
                    notes.setdefault(note, []).append(path)
    for path, reason in bad[:5]:
        report.add(ERROR, f"{path} {reason}")
    if len(bad) > 5:
        report.add(ERROR, f"{len(bad) - 5} more files are empty or damaged: {listed([path for path, _ in bad[5:]], 3)}")
    for note, paths in notes.items():
        count = f"{len(paths)} image{' ' if len(paths) == 1 else 's, each of which '}"
        report.add(WARNING, f"{count}{note}: {listed(paths, 3)}")
    entry = entry_of(report.dataset)
    for key in entry.get("skip", ()) if report.images else ():
        report.add(NOTE, f"{key} is known to be damaged and is always left out")
    odd = [image.key for image in report.images if image.key in set(entry.get("suspect", ()))]
    if odd:
        report.add(NOTE, f"known to be oddly encoded: {listed(odd)}; PIL may read them, other programs do not")
    if not duplicates:
        return
    by_size: dict[int, list[ImageFile]] = {}  # only files that share their size with another are read
    for image, size in sizes.items():
        by_size.setdefault(size, []).append(image)
    read = [image for size, images in by_size.items() if size and len(images) > 1 for image in images]
    by_content: dict[str, list[ImageFile]] = {}
    for image in progress(read, len(read), "comparing"):
        with open_image(image.path) as file:
            by_content.setdefault(hashlib.sha256(file.read()).hexdigest(), []).append(image)
    groups = [group for group in by_content.values() if len(group) > 1]
    mixed = [group for group in groups if len({image.label for image in group}) > 1]
    if groups:
        first, second, *_ = (mixed or groups)[0]
        report.add(
            WARNING,
            f"{sum(map(len, groups)) - len(groups)} files are copies of others, in {len(groups)} groups, {len(mixed)} "
            f"of which have more than one class; first: {first.path} = {second.path}",
        )
    else:
        report.add(NOTE, "no file is a copy of another")


def recognise(root: Path) -> list[str]:
    """Registry names of the data sets with domains that a folder may hold."""
    found = []
    for file in entries():
        spec = load_spec(file)
        with contextlib.suppress(OSError, ValueError, StopIteration):
            folder = next(paths[0] for place, match in find_candidates(root, spec)[:1] for paths in match.values())
            inner = [folder, *(folder / name for name in list_folder(folder)[0])]
            package = logging.getLogger(__package__)
            level = package.level
            package.setLevel(logging.ERROR)
            try:
                most = max(len(match_classes(place, spec, label_prefix=True)) for place in inner[:4])
            finally:
                package.setLevel(level)
            if spec.classes and 2 * most > len(spec.classes):
                found.append(spec.name)
    return found
