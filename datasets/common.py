"""What all loaders share: from the config, the class list and a layout to Dassl's three lists.

A data set lies in one or several pools: its domains, or the whole data set where it has none. Each pool has parts
(train, val, test), and the parts are used so under DATASET.PROTOCOL `dassl`, the default:

| | pool that trains and is not tested | pool that is tested and trains nothing | pool that does both |
|---|---|---|---|
| `train_x` | train | | train |
| `val` | val | | val; in a layout without test part: images of train that were not drawn |
| `test` | | the parts that the layout names for a held-out target | test; without such a part: val |

So nothing tested can be trained or selected on. Under `holdout` the parts are drawn anew, 80 % and 20 % of each class
of each pool (the habit of DomainBed, Gulrajani and Lopez-Paz, arXiv 2007.01434), and used in the same way. Under
`all-images` (the zero-shot protocol of CLAP, Cai et al., arXiv 2311.16445) every image of a tested pool is tested; a
pool that trains too gives all its images to both. Class names and their number come from the data set's fixed list.
"""

import logging
import random
import warnings
from collections.abc import Mapping, Sequence

from dassl.data.datasets import DatasetBase, Datum
from dassl_clip.results.errors import UserError

from .class_names import class_file, prompt_names
from .datums import collection_paused, listing_hash, make_datum
from .duplicates import count_once
from .folders import ImageFile
from .listings import kept_listings
from .protocols import ALL_IMAGES, DASSL, HOLDOUT, PARTS, PROTOCOLS, Layout, check_protocol, drawn_anew, every_image
from .registration import split_seed, wants_unlabelled
from .selection import VAL_SHOTS, check_shots, draw_shots, hold_out, subset_labels
from .selections import read_selection, write_selection
from .spec import Spec, listed

logger = logging.getLogger(__name__)


class ListedDataset(DatasetBase):
    """Base class of the loaders, with and without domains.

    Attributes:
        spec: names and facts of the data set.
        names: the class names of prompts in label order, of all classes; the data set's own, or those of a file.
        names_note: where names come from that are not the data set's own, or nothing.
        layout: the layout found on the disk, its parts as the protocol has them.
        domains: canonical names of all its domains; empty for a data set without.
        shots: images per class, 0 for all.
        protocol_name: DATASET.PROTOCOL.
        protocol: one line on layout, protocol, parts, shots and classes, for a run's record.
        selection_file: where the draw is kept, or None.
        train_is_test: whether `train_x` is the test list, since the data set at hand has no training images.
        listing: sha256 (hex) over path and label of every image of the pools, whether or not it was drawn.
        image_keys: path of an image on the disk -> its path in canonical names, `domain/.../class/file`.
        publishes_test: whether its test images are published, so that a task without labels tests those alone.
        drawn_tests: whether the seed decides which images are tested.
    """

    protocols = PROTOCOLS
    publishes_test = True
    reads_split_file = False
    replaces = ""

    def __init__(self, cfg) -> None:
        with collection_paused():
            self._load(cfg)

    def _load(self, cfg) -> None:
        """Find, list and draw the images, and hand them to Dassl."""
        with kept_listings(type(self).__name__, cfg.DATASET.ROOT):
            parts = self.open(cfg)
        lists = self._subset_lists(dict(zip(PARTS, (*self._training_lists(parts), self._test_list(parts)))))
        self._warn_of_untrained(lists["train"])
        self.listing = listing_hash(image for pool in parts.values() for part in pool.values() for image in part)
        self.image_keys = {image.path: image.key for images in lists.values() for image in images}
        self.drawn_tests = self.protocol_name == HOLDOUT
        self.protocol = self._describe()
        logger.info("%s", self.protocol)
        if self.train_is_test:
            logger.warning(
                "%s: train_x is the test list, since there are no training images: what trains on its labels trains on "
                "the test",
                self.spec.name,
            )
        if self.replaces:
            logger.info("%s is read by %s, in place of %s", self.spec.name, type(self).__module__, self.replaces)
        train, val = (self._datums(lists[part], self._sources) for part in ("train", "val"))
        test = self._datums(lists["test"], self._targets)
        unlabelled = self._datums(self._unlabelled_list(parts), self._targets) if wants_unlabelled(cfg) else None
        with warnings.catch_warnings():  # on labels that training lacks: the names come from the fixed list here
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(train_x=train, train_u=unlabelled, val=val or None, test=test)

    def open(self, cfg) -> dict[str, dict[str, list[ImageFile]]]:
        """Find the data set and read its listings, the first half of construction.

        Args:
            cfg: the config.

        Returns:
            Pool -> part -> images, for each pool that the config asks for.
        """
        options = cfg.DATASET
        self.spec = self.make_spec(cfg)
        self.domains = list(self.spec.domains)
        self.protocol_name = check_protocol(options.get("PROTOCOL", DASSL), self.spec.name, self.protocols)
        self._sources, self._targets = self.choose_pools(cfg)
        self.shots = max(0, options.NUM_SHOTS)
        self.seed = split_seed(cfg)
        self.selection = options.get("SELECTION", "")
        self.selection_file = None
        check_options(options, self)
        self.subset = options.get("SUBSAMPLE_CLASSES", "all")
        self._labels = subset_labels(len(self.spec.classes), self.subset)
        self.names, self.names_note = prompt_names(self.spec, self.spec.names_file or class_file(cfg), options.ROOT)
        self._names = [self.names[label] for label in self._labels]

        needed = list(dict.fromkeys(self._sources + self._targets))
        self.layout = self.open_layout(cfg, needed)
        self.dataset_dir = options.ROOT
        self.train_is_test = "train" not in self.layout.parts
        if self.protocol_name == HOLDOUT:
            self._check_training_images()
            self.layout = drawn_anew(self.layout, self.seed)
        parts = {pool: self.layout.read(pool) for pool in needed}
        parts = count_once(parts, self._sources, self.spec.classes)
        self.count_note = self.check_counts(parts)
        return parts

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        """Names, label order and published facts of the data set; to be defined by a loader."""
        raise NotImplementedError

    def choose_pools(self, cfg) -> tuple[list[str], list[str]]:
        """The pools to train on and those to test."""
        raise NotImplementedError

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        """Find the data set's folder and its layout; to be defined by a loader.

        Args:
            cfg: the config.
            domains: the pools that are needed, which are canonical names of domains if the data set has any.
        """
        raise NotImplementedError

    def check_counts(self, parts: Mapping[str, Mapping[str, Sequence[ImageFile]]]) -> str:
        """Warn, in one line, of numbers of images that are not the published ones.

        Args:
            parts: pool -> part -> images read.

        Returns:
            What `protocol` shall say about the counts, starting with a blank, or nothing.
        """
        raise NotImplementedError

    @classmethod
    def list_domains(cls, cfg) -> list[str]:
        """Canonical names of all domains, without reading the images."""
        return list(cls.make_spec(cfg).domains)

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

    def _training_lists(
        self, parts: Mapping[str, dict[str, list[ImageFile]]]
    ) -> tuple[list[ImageFile], list[ImageFile]]:
        """Training and validation images of the sources, shots drawn."""
        if self.train_is_test:
            return self._test_list(parts), []
        cut, whole, train, val = self._cut_pools(), self._whole_pools(), [], []
        for name in self._sources:
            if name in whole:
                pool = every_image(parts[name])
                held = pool if self.shots else []
            else:
                pool = parts[name]["train"]
                held = parts[name].get("val", pool if self.shots else [])
            if name in cut:
                pool, held = (pool, pool) if self.shots else hold_out(pool, self.seed, f"{name}/train")
            train += pool
            val += held
        if not self.shots:
            return train, val
        return self._draw(train, val)

    def _draw(self, train: list[ImageFile], val: list[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
        """The shots of a draw, or of the stored selection that is asked for."""
        if self.selection:
            return read_selection(self.selection, self.spec.name, self.shots, train, val)
        generator = random.Random(self.seed) if self.seed >= 0 else random.Random()
        if self.seed < 0:
            logger.warning("%s: SEED and SPLIT_SEED are negative: the shots differ at each start", self.spec.name)
        kept = [image for image in train if image.label in self._labels]
        check_shots(kept, self.shots, self.spec.classes, self.spec.name)
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

    def _test_list(self, parts: Mapping[str, dict[str, list[ImageFile]]]) -> list[ImageFile]:
        """Test images of the targets."""
        test = []
        for name in self._targets:
            for part in self._tested_parts(name):
                test += parts[name][part]
        return test

    def _unlabelled_list(self, parts: Mapping[str, dict[str, list[ImageFile]]]) -> list[ImageFile]:
        """Images of the targets that adaptation sees without labels: the training part, or else all that is tested."""
        unlabelled = []
        for name in self._targets:
            tested = self._tested_parts(name)
            for part in tested if "train" in tested or "train" not in self.layout.parts else ["train"]:
                unlabelled += parts[name][part]
        return [image for image in unlabelled if image.label in self._labels]

    def _tested_parts(self, name: str) -> tuple[str, ...]:
        """The parts of a target that are its test."""
        if self.protocol_name == ALL_IMAGES:
            return tuple(self.layout.parts)
        if name not in self._sources:
            return self.layout.heldout
        return ("test",) if "test" in self.layout.parts else ("val",)

    def _check_training_images(self) -> None:
        """Raise if there is nothing to draw a hold-out from."""
        if self.train_is_test:
            raise UserError(
                f"DATASET.PROTOCOL {HOLDOUT} holds out a part of the training images, but {self.spec.name} has only "
                f"test images in the layout found: {self.layout.text}. Use DATASET.PROTOCOL {DASSL}"
            )

    def _subset_lists(self, lists: Mapping[str, list[ImageFile]]) -> dict[str, list[ImageFile]]:
        """The images of the class subset; raise if there are none to train on or to test."""
        kept = {part: [image for image in images if image.label in self._labels] for part, images in lists.items()}
        for part, pools in (("train", self._sources), ("test", self._targets)):
            if not kept[part]:
                hint = (
                    ". A class of one image has none to hold out" if part == "test" and not self.train_is_test else ""
                )
                subset = "" if self.subset == "all" else f' with DATASET.SUBSAMPLE_CLASSES "{self.subset}"'
                raise UserError(
                    f"{self.spec.name} has no {part} images{self._named(pools, ' for')}{subset} in the layout found: "
                    f"{self.layout.text}{hint}"
                )
        return kept

    def _warn_of_untrained(self, train: Sequence[ImageFile]) -> None:
        """Name the classes that have no training image; they keep their labels and names."""
        present = {image.label for image in train}
        absent = [self.spec.classes[label] for label in self._labels if label not in present]
        if absent:
            where = self._named(self._sources, " in")
            logger.warning("%s: no training images of %s%s", self.spec.name, listed(absent), where)

    def _datums(self, images: Sequence[ImageFile], pools: Sequence[str]) -> list[Datum]:
        """Dassl's records; the domain is a position in `pools`, labels count from the first class of the subset."""
        positions = {name: position for position, name in enumerate(pools)} if self.domains else {}
        first, names = self._labels[0], self.names
        return [
            make_datum(
                image.path,
                image.label - first,
                positions[image.key.split("/", 1)[0]] if positions else 0,
                names[image.label],
            )
            for image in images
        ]

    def _named(self, pools: Sequence[str], before: str) -> str:
        """`before` and the domains, or nothing for a data set without domains."""
        return f"{before} {', '.join(pools)}" if self.domains else ""

    def _describe(self) -> str:
        """The text of `protocol`."""
        texts = [f"{self.layout.text}{self.count_note}", f"protocol {self.protocol_name}", *self._describe_parts()]
        if not self.train_is_test:
            drawn = f"{self.shots} shots a class (val: {min(self.shots, VAL_SHOTS)})" if self.shots else "all images"
            texts += [drawn, f"selection {self.selection}"] if self.shots and self.selection else [drawn]
            texts.append(f"split seed {self.seed}" if self.seed >= 0 else "unseeded")
        texts.append(f"classes: {self.subset} ({self.num_classes})")
        texts += [self.names_note] if self.names_note else []
        return f"{self.spec.name}: {'; '.join(texts)}"

    def _describe_parts(self) -> list[str]:
        """What trains, validates and is tested, for `protocol`."""
        parts, cut, whole = self.layout.parts, self._cut_pools(), self._whole_pools()
        tested = [
            f"{' + '.join(parts[part] for part in self._tested_parts(name))}{self._named([name], ' of')}"
            for name in self._targets
        ]
        test = f"test: {', '.join(tested)}"
        if self.train_is_test:
            return [test, "no training images: train_x is the test list, for methods that use no labels"]
        plain = [name for name in self._sources if name not in whole]
        train = [f"{parts['train']}{self._named(plain, ' of')}"] if plain else []
        train += [f"every image{self._named(whole, ' of')}"] if whole else []
        kept = [name for name in plain if name not in cut]
        val = [f"{parts['val']}{self._named(kept, ' of')}"] if kept and "val" in parts else []
        rest = [*cut, *(kept if "val" not in parts and self.shots else [])]
        val += [f"{parts['train']}{self._named(rest, ' of')} without the images trained on"] if rest else []
        val += [f"every image{self._named(whole, ' of')} without those trained on"] if whole and self.shots else []
        note = "images of train_x and val are tested too, so nothing may be trained on their labels but a probe"
        return [
            f"train: {', '.join(train)}",
            f"val: {', '.join(val) or 'none'}",
            test,
            *([f"{note}{self._named(whole, ' of')} whose record says so"] if whole else []),
        ]


def check_options(options, dataset: ListedDataset) -> None:
    """Refuse options that would be without effect.

    Args:
        options: the node DATASET of the config.
        dataset: the data set that reads them.

    Raises:
        UserError: naming the option.
    """
    name = dataset.spec.name
    if options.get("SPLIT_FILE", "") and not dataset.reads_split_file:
        raise UserError(f"DATASET.SPLIT_FILE is {options.SPLIT_FILE}, but {name} reads no split file: leave it empty")
    if dataset.selection and not dataset.shots:
        raise UserError(
            f"DATASET.SELECTION is {dataset.selection}, a few-shot selection, but DATASET.NUM_SHOTS is "
            f"{options.NUM_SHOTS}: give the number of its shots"
        )
