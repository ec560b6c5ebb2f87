"""What is on the disk, compared with what was published: counts by domain and class, and a line for each problem.

Each domain is opened by its loader as a run would open it, so that what passes here loads there. Nothing is printed.
"""

import contextlib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from .base import ListedDataset
from .duplicates import counted, real_paths
from .folders import ImageFile, list_folder, listed_once, match_classes
from .layouts import find_candidates
from .options import ALL_IMAGES, DASSL, check_protocol
from .packed import packed
from .spec import Spec, entries, listed, load_spec, name_key, read_entry

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

    Args:
        name: of the domain or part.
        images: label -> number of images.
        published: published number of images, None if none is known.
        parts: part -> number of images.
    """

    name: str
    images: Mapping[int, int]
    published: int | None
    parts: Mapping[str, int] = field(default_factory=dict)


@dataclass
class Report:
    """All that was found.

    Args:
        dataset: registry name.
        root: DATASET.ROOT.
        classes: class names in label order; empty if not even those are known.
        layouts: what was found where.
        counts: lines of the table.
        unread: domains that could not be read.
        findings: troubles, in the order in which they were met.
        images: every image read.
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


def no_progress(items: Iterable[T], total: int, what: str) -> Iterable[T]:
    """The items themselves."""
    return items


def verify(
    loader: type[ListedDataset],
    cfg,
    inspect: Inspect | None = None,
    duplicates: bool = False,
    jobs: int = 1,
    progress: Progress = no_progress,
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
    if not report.images:
        for text in explanations(Path(report.root or ".").expanduser().absolute(), report.dataset):
            if not any(text in finding.text for finding in report.findings):
                report.add(ERROR, text)
    check_domains(report)
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
    sizes = {part: len(images) for part, images in parts.items()}
    everything = [image for images in parts.values() for image in images]
    report.images += everything
    if domain:
        images = Counter(image.label for image in everything)
        report.counts.append(Count(domain, images, spec.published(domain), sizes))
        compare_classes(spec, domain, images, report)
    else:
        for part, images in parts.items():
            labels = Counter(image.label for image in images)
            report.counts.append(Count(part, labels, spec.images.get(part)))
    check_names(spec, everything, report)


def compare_classes(spec: Spec, domain: str, images: Mapping[int, int], report: Report) -> None:
    """Name the classes of a domain whose number of images is not the published one."""
    published = spec.details.get(domain, {}).get("per_class", {})
    skipped = Counter(key.split("/")[1] for key in spec.skip if key.startswith(f"{domain}/"))
    other = [
        f"{name} {images.get(label, 0)} ({published[name] - skipped[name]})"
        for label, name in enumerate(spec.classes)
        if name in published and images.get(label, 0) != published[name] - skipped[name]
    ]
    if other:
        report.add(WARNING, f"{spec.name}: images (published number) of classes of {domain}: {listed(other)}")


def check_names(spec: Spec, images: Sequence[ImageFile], report: Report) -> None:
    """Warn of images whose folder is called like another class than theirs."""
    if entry_of(spec.name).get("nested_folders"):
        return
    keys = spec.class_keys()
    wrong = []
    for image in images:
        folder = Path(image.path).parent.name
        label = keys.get(name_key(folder))
        if label is not None and label != image.label:
            wrong.append((image, folder))
    if wrong:
        image, folder = wrong[0]
        report.add(
            WARNING,
            f"{spec.name}: {len(wrong)} images lie in a folder that is called like another class than theirs, first: "
            f'{image.path} is "{spec.classes[image.label]}"',
        )


def entry_of(name: str) -> dict:
    """The entry in `lists/` of a data set, by its registry name; empty if it has none."""
    return next((entry for entry in map(read_entry, entries()) if entry["name"] == name), {})


def check_domains(report: Report) -> None:
    """Warn of files that lie in several domains; inside a domain its loader has looked."""
    seen: dict[str, str] = {}
    shared = [
        f"{other} = {image.path}"
        for path, image in zip(real_paths(report.images), report.images)
        if (other := seen.setdefault(path, image.path)) != image.path
    ]
    if shared:
        report.add(WARNING, f"{counted(shared)} in two domains, first: {shared[0]}")


def check_images(report: Report, inspect: Inspect | None, duplicates: bool, jobs: int, progress: Progress) -> None:
    """Note files that are empty, damaged, copies of each other, or known to be odd."""
    sizes, bad = {}, []
    for image in report.images:
        try:
            sizes[image] = os.stat(image.path).st_size
            if not sizes[image]:
                bad.append((image.path, "is empty (0 bytes)"))
        except OSError as error:
            bad.append((image.path, f"cannot be read: {error.strerror}"))
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
    if duplicates:
        note_copies(copies(sizes, progress), report)


def copies(sizes: Mapping[ImageFile, int], progress: Progress) -> list[list[ImageFile]]:
    """Groups of images whose files are equal byte by byte; only files that share their size with another are read."""
    by_size: dict[int, list[ImageFile]] = {}
    for image, size in sizes.items():
        by_size.setdefault(size, []).append(image)
    read = [image for size, images in by_size.items() if size and len(images) > 1 for image in images]
    groups: dict[str, list[ImageFile]] = {}
    for image in progress(read, len(read), "comparing"):
        with open(image.path, "rb") as file:
            groups.setdefault(hashlib.sha256(file.read()).hexdigest(), []).append(image)
    return [group for group in groups.values() if len(group) > 1]


def note_copies(groups: Sequence[Sequence[ImageFile]], report: Report) -> None:
    """Say how many files are copies of others, and how many of those have another class."""
    if not groups:
        report.add(NOTE, "no file is a copy of another")
        return
    surplus = sum(len(group) - 1 for group in groups)
    mixed = [group for group in groups if len({image.label for image in group}) > 1]
    first = (mixed or list(groups))[0]
    report.add(
        WARNING,
        f"{surplus} files are copies of others, in {len(groups)} groups, {len(mixed)} of which have more than one "
        f"class; first: {first[0].path} = {first[1].path}",
    )


def explanations(root: Path, asked: str) -> list[str]:
    """Why nothing was found, as far as the folder tells: archives, copies of the hub, other data sets."""
    if not root.is_dir():
        return []
    texts = packed(root)
    others = [name for name in recognise(root) if name != asked]
    if others:
        texts.append(f"{root} looks like {' or '.join(others)}: ask for that data set")
    return texts


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
