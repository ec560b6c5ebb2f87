"""`DomainDataset`: what every data set of domains shares, from the config to Dassl's three lists.

A loader says what is known beforehand (`make_spec`) and how its folder is read (`open_layout`); this class resolves
domain names, uses the parts of each domain, draws the shots and picks the classes. The parts are used so:

| | source domain that is not tested | target domain that is not trained on | domain that is both |
|---|---|---|---|
| `train_x` | train | | train |
| `val` | val | | val; in a layout without test part: images of train that were not drawn |
| `test` | | the parts that the layout names for a held-out target | test; without such a part: val |

So nothing tested can be trained or selected on. Class names and their number come from the fixed list of the data set.
"""

import hashlib
import logging
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

from .folders import ImageFile
from .selection import VAL_SHOTS, check_shots, draw_shots, hold_out, subset_labels
from .spec import Spec, listed

logger = logging.getLogger(__name__)

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Layout:
    """A data set as it lies on the disk.

    Args:
        text: what was found and where, for the log and the run's record.
        read: canonical domain -> its images by part: `train`, `val` and, in some layouts, `test`;
            no image is in two parts.
        parts: part -> what the data set calls it.
        heldout: parts that make the test of a target domain on which nothing is trained.
    """

    text: str
    read: Callable[[str], dict[str, list[ImageFile]]]
    parts: Mapping[str, str]
    heldout: tuple[str, ...]


def register(cls: type) -> type:
    """Register a data set under its class name, in place of one that the toolbox may have under that name."""
    name = cls.__name__
    if name in DATASET_REGISTRY.registered_names():
        other = DATASET_REGISTRY.get(name)
        if other.__module__ != cls.__module__:
            cls.replaces = f"{other.__module__}.{other.__qualname__}"
            logger.info("Data set %s: %s takes the place of %s", name, cls.__module__, cls.replaces)
    DATASET_REGISTRY.register(cls, force=True)
    return cls


def add_config(cfg) -> None:
    """Add the config keys that the loaders read, with their defaults; keys that are there already stay."""
    defaults = {
        "SUBSAMPLE_CLASSES": "all",  # all, base (first half of the class list) or new (the rest)
        "SPLIT_SEED": -1,  # seed of few-shot draw and hold-out; negative: SEED
        "TASKS": (),  # the tasks a script runs on this data set if none is named: lodo, fewshot
        "VLCS_TEST": "test",  # test of a held-out VLCS domain: test (Dassl's, 30 %) or full+test (all images)
    }
    for key, value in defaults.items():
        if key not in cfg.DATASET:
            cfg.DATASET[key] = value


def split_seed(cfg) -> int:
    """Seed of the few-shot draw and the hold-out: DATASET.SPLIT_SEED, or SEED if that is negative."""
    seed = cfg.DATASET.get("SPLIT_SEED", -1)
    return seed if seed >= 0 else cfg.SEED


class DomainDataset(DatasetBase):
    """Base class of the loaders.

    Attributes:
        spec: names and facts of the data set.
        layout: the layout found on the disk.
        domains: canonical names of all its domains.
        source_domains, target_domains: canonical names of those asked for.
        shots: images a class, 0 for all.
        protocol: one line on layout, parts, shots and classes, for a run's record.
        fingerprint: sha256 (hex) over path, label and split of every image used.
    """

    replaces = ""

    def __init__(self, cfg) -> None:
        options = cfg.DATASET
        self.spec = self.make_spec(cfg)
        self.domains = list(self.spec.domains)
        self.source_domains = self.spec.resolve_domains(options.SOURCE_DOMAINS, "DATASET.SOURCE_DOMAINS")
        self.target_domains = self.spec.resolve_domains(options.TARGET_DOMAINS, "DATASET.TARGET_DOMAINS")
        self.shots = max(0, options.NUM_SHOTS)
        self.seed = split_seed(cfg)
        self.subset = options.get("SUBSAMPLE_CLASSES", "all")
        self._labels = subset_labels(len(self.spec.classes), self.subset)
        self._names = [self.spec.classes[label] for label in self._labels]

        needed = list(dict.fromkeys(self.source_domains + self.target_domains))
        self.layout = self.open_layout(cfg, needed)
        self.dataset_dir = options.ROOT
        parts = {domain: self.layout.read(domain) for domain in needed}
        self.count_note = self.check_counts({domain: sum(map(len, found.values())) for domain, found in parts.items()})
        lists = self._subset_lists(dict(zip(PARTS, (*self._training_lists(parts), self._test_list(parts)))))
        self._warn_of_untrained(lists["train"])
        self.fingerprint = fingerprint(lists)
        self.protocol = self._describe()
        logger.info("%s", self.protocol)
        if self.replaces:
            logger.info("%s is read by %s, in place of %s", self.spec.name, type(self).__module__, self.replaces)
        train, val = (self._datums(lists[part], self.source_domains) for part in ("train", "val"))
        test = self._datums(lists["test"], self.target_domains)
        with warnings.catch_warnings():  # on labels that training lacks: the names come from the fixed list here
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(train_x=train, val=val or None, test=test)

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        """Names, label order and published facts of the data set; to be defined by a loader."""
        raise NotImplementedError

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        """Find the data set's folder and its layout; to be defined by a loader.

        Args:
            cfg: the config.
            domains: canonical names of the domains that are needed.
        """
        raise NotImplementedError

    @classmethod
    def list_domains(cls, cfg) -> list[str]:
        """Canonical names of all domains, without reading the images."""
        return list(cls.make_spec(cfg).domains)

    @property
    def num_classes(self) -> int:
        """Number of classes after SUBSAMPLE_CLASSES, whether or not each occurs in training."""
        return len(self._names)

    @property
    def classnames(self) -> list[str]:
        """Class names in label order."""
        return list(self._names)

    @property
    def lab2cname(self) -> dict[int, str]:
        """Label -> class name."""
        return dict(enumerate(self._names))

    def check_counts(self, counts: Mapping[str, int]) -> str:
        """Warn, in one line, of domains whose number of images is not the published one.

        Args:
            counts: domain -> images read.

        Returns:
            What `protocol` shall say about the counts; here nothing.
        """
        skipped = {domain: sum(key.startswith(f"{domain}/") for key in self.spec.skip) for domain in counts}
        other = [
            f"{domain} {count} ({self.spec.images[domain]})"
            for domain, count in counts.items()
            if domain in self.spec.images and count != self.spec.images[domain] - skipped[domain]
        ]
        if other:
            logger.warning("%s: number of images (published number) differs in %s", self.spec.name, ", ".join(other))
        return ""

    def _training_lists(
        self, parts: Mapping[str, dict[str, list[ImageFile]]]
    ) -> tuple[list[ImageFile], list[ImageFile]]:
        """Training and validation images of the source domains, shots drawn."""
        cut, train, val = self._cut_domains(), [], []
        for domain in self.source_domains:
            pool, held = parts[domain]["train"], parts[domain]["val"]
            if domain in cut:
                pool, held = (pool, pool) if self.shots else hold_out(pool, self.seed, f"{domain}/train")
            train += pool
            val += held
        if not self.shots:
            return train, val
        generator = random.Random(self.seed) if self.seed >= 0 else random.Random()
        if self.seed < 0:
            logger.warning("%s: SEED and SPLIT_SEED are negative: the shots differ at each start", self.spec.name)
        kept = [image for image in train if image.label in self._labels]
        check_shots(kept, self.shots, self.spec.classes, self.spec.name)
        train = draw_shots(train, self.shots, generator)
        drawn = {image.key for image in train}
        val = [image for image in val if image.key not in drawn]
        return train, draw_shots(val, min(self.shots, VAL_SHOTS), generator)

    def _cut_domains(self) -> list[str]:
        """Source domains whose part val is tested, so that images of train serve as validation images."""
        return [
            domain
            for domain in self.source_domains
            if domain in self.target_domains and "test" not in self.layout.parts
        ]

    def _test_list(self, parts: Mapping[str, dict[str, list[ImageFile]]]) -> list[ImageFile]:
        """Test images of the target domains."""
        test = []
        for domain in self.target_domains:
            for part in self._tested_parts(domain):
                test += parts[domain][part]
        return test

    def _tested_parts(self, domain: str) -> tuple[str, ...]:
        """The parts of a target domain that are its test."""
        if domain not in self.source_domains:
            return self.layout.heldout
        return ("test",) if "test" in self.layout.parts else ("val",)

    def _subset_lists(self, lists: Mapping[str, list[ImageFile]]) -> dict[str, list[ImageFile]]:
        """The images of the class subset; raise if there are none to train on or to test."""
        kept = {part: [image for image in images if image.label in self._labels] for part, images in lists.items()}
        for part, domains in (("train", self.source_domains), ("test", self.target_domains)):
            if not kept[part]:
                raise ValueError(
                    f"{self.spec.name} has no {part} images for {', '.join(domains)} with DATASET.SUBSAMPLE_CLASSES "
                    f'"{self.subset}" in the layout found: {self.layout.text}'
                )
        return kept

    def _warn_of_untrained(self, train: Sequence[ImageFile]) -> None:
        """Name the classes that have no training image; they keep their labels and names."""
        present = {image.label for image in train}
        absent = [self.spec.classes[label] for label in self._labels if label not in present]
        if absent:
            domains = ", ".join(self.source_domains)
            logger.warning("%s: no training images of %s in %s", self.spec.name, listed(absent), domains)

    def _datums(self, images: Sequence[ImageFile], domains: Sequence[str]) -> list[Datum]:
        """Dassl's records; the domain is a position in `domains`, labels count from the first class of the subset."""
        positions = {domain: position for position, domain in enumerate(domains)}
        first = self._labels[0]
        return [
            Datum(
                impath=image.path,
                label=image.label - first,
                domain=positions[image.key.split("/", 1)[0]],
                classname=self.spec.classes[image.label],
            )
            for image in images
        ]

    def _describe(self) -> str:
        """The text of `protocol`."""
        parts, cut = self.layout.parts, self._cut_domains()
        tested = [
            f"{' + '.join(parts[part] for part in self._tested_parts(domain))} of {domain}"
            for domain in self.target_domains
        ]
        whole = [domain for domain in self.source_domains if domain not in cut]
        val = [f"{parts['val']} of {', '.join(whole)}"] if whole else []
        val += [f"{parts['train']} of {', '.join(cut)} without the images trained on"] if cut else []
        texts = [
            f"{self.layout.text}{self.count_note}",
            f"train: {parts['train']} of {', '.join(self.source_domains)}",
            f"val: {', '.join(val)}",
            f"test: {', '.join(tested)}",
            f"{self.shots} shots a class (val: {min(self.shots, VAL_SHOTS)})" if self.shots else "all images",
            f"split seed {self.seed}" if self.seed >= 0 else "unseeded",
            f"classes: {self.subset} ({self.num_classes})",
        ]
        return f"{self.spec.name}: {'; '.join(texts)}"


def fingerprint(lists: Mapping[str, Sequence[ImageFile]]) -> str:
    """sha256 (hex) over the sorted lines "path, label, split"; paths start at the domain, in canonical names."""
    lines = sorted(f"{image.key}\t{image.label}\t{part}\n" for part, images in lists.items() for image in images)
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
