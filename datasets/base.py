"""`ListedDataset`, the base of all loaders: from the config, a class list and a layout to Dassl's lists of images.

A data set lies in one or several pools: its domains, or the whole data set where it has none. Each pool has parts
(train, val, test), and the parts are used so under DATASET.PROTOCOL `dassl`, the default:

| | pool that trains and is not tested | pool that is tested and trains nothing | pool that does both |
|---|---|---|---|
| `train_x` | train | | train |
| `val` | val | | val; in a layout without test part: images of train that were not drawn |
| `test` | | the parts that the layout names for a held-out target | test; without such a part: val |

So nothing tested can be trained or selected on. Under `holdout` all parts are split again, 80 % and 20 % of each class
of each pool, and used in the same way. Under `domainbed` they are split into DomainBed's parts (`domainbed.py`), train
being its "in" and val its "out" part, and DATASET.TEST_PART says which of them are the test of a target. Under
`all-images` (the zero-shot protocol of CLAP, Cai et al., arXiv 2311.16445) every image of a tested pool is tested; a
pool that trains too gives all its images to both. Class names and their number come from the data set's fixed list.
"""

import logging
import random
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl_clip.results.errors import UserError
from dassl_clip.results.image_rows import file_of, split_address
from dassl_clip.results.labels import UNLABELLED

from . import hub
from .class_names import class_file, prompt_names
from .description import describe
from .domainbed import check_pools, environments, split_of_trial, test_part_of
from .duplicates import count_once
from .fewshot import (
    VAL_SHOTS,
    check_shots,
    draw_shots,
    hold_out,
    read_selection,
    subset_labels,
    write_selection,
)
from .folders import ImageFile, NoFoldersError, listed_once, listing_hash
from .options import (
    ALL_IMAGES,
    DASSL,
    DOMAINBED,
    HOLDOUT,
    PROTOCOLS,
    check_protocol,
    reads_rows,
    split_seed,
    wants_unlabelled,
)
from .parts import WHOLE, Layout, Parts, every_image, split_again
from .spec import Spec, listed
from .tables import read_copy

logger = logging.getLogger(__name__)


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


class _RowDatum(Datum):
    """An image inside a file. Dassl's own constructor refuses a path that is no file."""

    def __init__(self, impath: str, label: int, domain: int, classname: str) -> None:
        self._impath, self._label, self._domain, self._classname = impath, label, domain, classname


class ListedDataset(DatasetBase):
    """Base class of the loaders. A loader says what is known beforehand (`make_spec`) and how its folder is read
    (`open_layout`).

    A layout without val validates on training images that were not drawn, and on nothing if all are trained on. A
    layout with test images alone hands them in as `train_x` too, which Dassl needs to be non-empty (`train_is_test`).

    Attributes:
        spec: names and facts of the data set.
        names: the class names of prompts in label order, of all classes; the data set's own, or those of a file.
        names_note: where names come from that are not the data set's own, or nothing.
        layout: the layout found on the disk, its parts as the protocol has them.
        domains: canonical names of all its domains; empty for a data set without.
        source_domains, target_domains: canonical names of those asked for.
        shots: images per class, 0 for all.
        protocol_name: DATASET.PROTOCOL.
        test_part: DATASET.TEST_PART under the protocol `domainbed`, "" under any other.
        protocol: one line on layout, protocol, parts, shots and classes, for a run's record.
        selection_file: where the draw is stored, or None.
        train_is_test: whether `train_x` is the test list, since the data set at hand has no training images.
        listing: sha256 (hex) over path and label of every image of the pools, whether or not it was drawn.
        image_keys: path on the disk and label of an image -> its path in canonical names, `domain/.../class/file`.
        publishes_test: whether its test images are published, so that a task without labels tests those alone.
        drawn_tests: whether the seed decides which images are tested.
        unlabelled: whether no image has a label, see `unlabelled.py`.
        two_classes: whether the data set, as published, lists images under two classes.
    """

    protocols = PROTOCOLS
    publishes_test = True
    unlabelled = False
    reads_split_file = False
    two_classes = False
    replaces = ""

    def __init__(self, cfg) -> None:
        with listed_once():
            pools = self.open(cfg)
        read_copy.cache_clear()  # the rows of the copies that were read
        test = [image for name in self._targets for part in self._tested_parts(name) for image in pools[name][part]]
        train, val = (test, []) if self.train_is_test else self._training_lists(pools)
        lists = {"train": train, "val": val, "test": test}
        labels = [UNLABELLED] if self.unlabelled else self._labels
        lists = {part: [image for image in images if image.label in labels] for part, images in lists.items()}
        self._check_images(lists)
        if split_address(lists["test"][0].path) and not reads_rows(cfg):
            raise UserError(
                f"{self.spec.name}: the images are rows of {file_of(lists['test'][0].path)}, but {cfg.TRAINER.NAME} "
                "reads them by Dassl's own loader, which opens files: write them into folders, or use a trainer of "
                "this package"
            )
        self.listing = listing_hash(image for parts in pools.values() for images in parts.values() for image in images)
        unlabelled = self._unlabelled_images(pools, labels) if wants_unlabelled(cfg) else None
        first = 0 if self.unlabelled else self._labels[0]
        images = (image for images in [*lists.values(), unlabelled or []] for image in images)
        self.image_keys = {(image.path, image.label - first): image.key for image in images}
        self.drawn_tests = self.protocol_name == HOLDOUT or self.test_part in ("in", "out")
        self.protocol = describe(self)
        logger.info("%s", self.protocol)
        if self.train_is_test and not self.unlabelled:
            logger.warning(
                "%s: train_x is the test list, since there are no training images: what trains on its labels trains on "
                "the test",
                self.spec.name,
            )
        if self.replaces:
            logger.info("%s is read by %s, in place of %s", self.spec.name, type(self).__module__, self.replaces)
        with warnings.catch_warnings():  # on labels that training lacks: the names come from the fixed list here
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(
                train_x=self._datums(lists["train"], self._sources),
                train_u=None if unlabelled is None else self._datums(unlabelled, self._targets),
                val=self._datums(lists["val"], self._sources) or None,
                test=self._datums(lists["test"], self._targets),
            )

    def open(self, cfg) -> dict[str, Parts]:
        """Find the data set and list its images, the first half of construction: pool -> part -> images."""
        options = cfg.DATASET
        self.spec = self.make_spec(cfg)
        self.domains = list(self.spec.domains)
        self.protocol_name = check_protocol(options.get("PROTOCOL", DASSL), self.spec.name, self.protocols)
        self.test_part = test_part_of(cfg, self.protocol_name)
        self._choose_pools(options)
        check_pools(self.test_part, self.spec.name, self.source_domains, self.target_domains)
        self.shots = max(0, options.NUM_SHOTS)
        self.seed = split_seed(cfg)
        self.selection = options.get("SELECTION", "")
        self.selection_file = None
        if options.get("SPLIT_FILE", "") and not self.reads_split_file:
            raise UserError(
                f"DATASET.SPLIT_FILE is {options.SPLIT_FILE}, but {self.spec.name} reads no split file: leave it empty"
            )
        if self.selection and not self.shots:
            raise UserError(
                f"DATASET.SELECTION is {self.selection}, a few-shot selection, but DATASET.NUM_SHOTS is "
                f"{options.NUM_SHOTS}: give the number of its shots"
            )
        self.subset = options.get("SUBSAMPLE_CLASSES", "all")
        self._labels = subset_labels(len(self.spec.classes), self.subset)
        self.names, self.names_note = prompt_names(self.spec, self.spec.names_file or class_file(cfg), options.ROOT)
        self._names = [self.names[label] for label in self._labels]

        needed = list(dict.fromkeys(self._sources + self._targets))
        skip = self.spec.skip
        if self.protocol_name == DOMAINBED:  # which counts damaged images too
            self.spec = replace(self.spec, skip=frozenset())
        self.layout = self.find_layout(cfg, needed)
        self.dataset_dir = options.ROOT
        self.train_is_test = "train" not in self.layout.parts
        if self.train_is_test and self.selection:
            logger.warning("%s: there are no training images, so DATASET.SELECTION is without effect", self.spec.name)
        if self.protocol_name in (HOLDOUT, DOMAINBED) and self.train_is_test:
            raise UserError(
                f"DATASET.PROTOCOL {self.protocol_name} holds out a part of the training images, but {self.spec.name} "
                f"has only test images in the layout found: {self.layout.text}. Use DATASET.PROTOCOL {DASSL}"
            )
        if self.protocol_name == HOLDOUT:
            self.layout = split_again(self.layout, self.seed)
        elif self.protocol_name == DOMAINBED:
            self.spec = replace(self.spec, skip=skip)
            self.layout = split_of_trial(self.layout, self.spec, options.get("TRIAL", 0), self.test_part)
        pools = {pool: self.layout.read(pool) for pool in needed}
        pools = count_once(pools, self._sources, self.spec.classes, self.two_classes)
        self.count_note = self.check_counts(pools)
        return pools

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        """Names, label order and published facts of the data set; to be defined by a loader."""
        raise NotImplementedError

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        """Find the data set's folder and its layout; to be defined by a loader. `domains`: those needed, or `[""]`."""
        raise NotImplementedError

    def find_layout(self, cfg, domains: Sequence[str]) -> Layout:
        """`open_layout`, or where there are no folders the copy in the hub's form, if this loader reads one."""
        try:
            return self.open_layout(cfg, domains)
        except NoFoldersError:
            rule = self.table_parts(cfg)
            found = None if rule is None else hub.published_layout(cfg, self.spec, domains, rule)
            if found is None:
                raise
        self.spec, layout = found
        return layout

    def table_parts(self, cfg) -> hub.TableParts | None:
        """How a copy of the hub is read in which images are rows; None if such copies are not read."""
        return None

    def check_counts(self, pools: Mapping[str, Mapping[str, Sequence[ImageFile]]]) -> str:
        """Warn of numbers of images that are not the published ones; what is returned ends the layout's text."""
        if self.domains:
            counts = {domain: sum(map(len, parts.values())) for domain, parts in pools.items()}
            published = {domain: self.spec.published(domain) for domain in counts}
        else:
            counts = {part: len(images) for part, images in pools[WHOLE].items()}
            published = dict(self.spec.images)
            if self.protocol_name == HOLDOUT:  # the parts are not the published ones, all together are
                counts = {"all": sum(counts.values())}
                published = {"all": sum(published.values())} if published else {}
        self.warn_of_counts(counts, published)
        return ""

    def warn_of_counts(self, counts: Mapping[str, int], published: Mapping[str, int | None]) -> None:
        """Name the domains or parts with another number of images than the published one."""
        other = [name for name, count in counts.items() if published.get(name) not in (None, count)]
        if other:
            texts = ", ".join(
                f"{name} {counts[name]} ({self.spec.images.get(name, published[name])})" for name in other
            )
            logger.warning("%s: number of images (published number) differs in %s", self.spec.name, texts)

    @classmethod
    def list_domains(cls, cfg) -> list[str]:
        """Canonical names of all domains, without reading the images."""
        return list(cls.make_spec(cfg).domains)

    @classmethod
    def environments(cls, cfg) -> list[str]:
        """All domains in the order in which DomainBed numbers them."""
        return environments(cls.make_spec(cfg))

    @property
    def train_overlaps_test(self) -> bool:
        """Whether images of `train_x` may be tested too, so that nothing may be trained on their labels unsaid."""
        return self.train_is_test or bool(self._whole_pools())

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

    def _choose_pools(self, options) -> None:
        """The pools to train on and to test: the domains that the config names, or the data set itself."""
        if self.domains:
            self._sources = self.spec.resolve_domains(options.SOURCE_DOMAINS, "DATASET.SOURCE_DOMAINS")
            self._targets = self.spec.resolve_domains(options.TARGET_DOMAINS, "DATASET.TARGET_DOMAINS")
            self.source_domains, self.target_domains = self._sources, self._targets
            return
        for key in ("SOURCE_DOMAINS", "TARGET_DOMAINS"):
            if options[key]:
                raise UserError(
                    f"{self.spec.name} has no domains, but DATASET.{key} names {', '.join(map(str, options[key]))}: "
                    "leave both lists of domains empty"
                )
        self._sources, self._targets, self.source_domains, self.target_domains = [WHOLE], [WHOLE], [], []

    def _unlabelled_images(self, pools: Mapping[str, Parts], labels: Collection[int]) -> list[ImageFile]:
        """The training part of the targets, or else all that is tested."""
        images = []
        for name in self._targets:
            tested = self._tested_parts(name)
            parts = tested if "train" in tested or "train" not in self.layout.parts else ["train"]
            images += [image for part in parts for image in pools[name][part] if image.label in labels]
        return images

    def _training_lists(self, pools: Mapping[str, Parts]) -> tuple[list[ImageFile], list[ImageFile]]:
        """Training and validation images of the sources, shots drawn."""
        cut, whole, train, val = self._cut_pools(), self._whole_pools(), [], []
        for name in self._sources:
            if name in whole:
                pool = every_image(pools[name])
                held = pool if self.shots else []
            else:
                pool = pools[name]["train"]
                held = pools[name].get("val", pool if self.shots else [])
            if name in cut:
                pool, held = (pool, pool) if self.shots else hold_out(pool, self.seed, f"{name}/train")
            train += pool
            val += held
        return self._draw(train, val) if self.shots else (train, val)

    def _draw(self, train: list[ImageFile], val: list[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
        """The shots of a draw, or of the stored selection that is asked for."""
        if self.selection:
            return read_selection(self.selection, self.spec.name, self.shots, train, val)
        if self.seed < 0:
            logger.warning("%s: SEED and SPLIT_SEED are negative: the shots differ at each start", self.spec.name)
        generator = random.Random(self.seed) if self.seed >= 0 else random.Random()
        used = [image for image in train if image.label in self._labels]
        check_shots(used, self.shots, self.spec.classes, self.spec.name)
        train = draw_shots(train, self.shots, generator)
        drawn = {image.key for image in train}
        val = draw_shots([image for image in val if image.key not in drawn], min(self.shots, VAL_SHOTS), generator)
        facts = {"shots": self.shots, "seed": self.seed, "protocol": self.protocol_name}
        facts |= {"sources": [*self._sources], "targets": [*self._targets], "layout": [*self.layout.parts]}
        self.selection_file = write_selection(self.spec.name, facts, train, val)
        return train, val

    def _whole_pools(self) -> list[str]:
        """Sources whose every image is tested, and may be drawn for training too."""
        return [name for name in self._sources if name in self._targets and self.protocol_name == ALL_IMAGES]

    def _cut_pools(self) -> list[str]:
        """Sources whose part val is tested, so that images of train serve as validation images."""
        if self.protocol_name == ALL_IMAGES or "test" in self.layout.parts:
            return []
        return [name for name in self._sources if name in self._targets]

    def _tested_parts(self, name: str) -> tuple[str, ...]:
        """The parts of a target that are its test."""
        if self.protocol_name == ALL_IMAGES:
            return tuple(self.layout.parts)
        if name not in self._sources:
            return self.layout.heldout
        return ("test",) if "test" in self.layout.parts else ("val",)

    def _check_images(self, lists: Mapping[str, Sequence[ImageFile]]) -> None:
        """Refuse to train or test on nothing, and name the classes without training image, which keep their labels."""
        for part, pools in (("train", self._sources), ("test", self._targets)):
            if not lists[part]:
                where = f" for {', '.join(pools)}" if self.domains else ""
                subset = "" if self.subset == "all" else f' with DATASET.SUBSAMPLE_CLASSES "{self.subset}"'
                alone = part == "test" and not self.train_is_test
                raise UserError(
                    f"{self.spec.name} has no {part} images{where}{subset} in the layout found: "
                    f"{self.layout.text}{'. A class of one image has none to hold out' if alone else ''}"
                )
        if self.unlabelled:
            return
        present = {image.label for image in lists["train"]}
        absent = [self.spec.classes[label] for label in self._labels if label not in present]
        if absent:
            where = f" in {', '.join(self._sources)}" if self.domains else ""
            logger.warning("%s: no training images of %s%s", self.spec.name, listed(absent), where)

    def _datums(self, images: Iterable[ImageFile], pools: Sequence[str]) -> list[Datum]:
        """Dassl's records; the domain is a position in `pools`, labels count from the first class of the subset."""
        domains = {name: number for number, name in enumerate(pools)} if self.domains else {}
        first, names = self._labels[0], self.names
        if self.unlabelled:
            return [Datum(image.path, UNLABELLED, domains.get(image.key.split("/", 1)[0], 0)) for image in images]
        return [
            (Datum if split_address(image.path) is None else _RowDatum)(
                image.path,
                image.label - first,
                domains.get(image.key.split("/", 1)[0], 0),
                names[image.label],
            )
            for image in images
        ]
