"""The item of a data set and the base of all data sets.

`Datum` objects are pickled in caches of few-shot draws; its module, its name and its four instance attributes are part
of that format.
"""

from __future__ import annotations

import random
import warnings
from collections import defaultdict
from collections.abc import Sequence

from dassl.utils import check_isfile
from dassl.utils.errors import CheckError, MissingFileError
from dassl.utils.on_demand import import_on_demand
from dassl.utils.switches import is_on

from .download import download_and_unpack

__getattr__ = import_on_demand(__name__, os="os", osp="os.path", tarfile="tarfile", zipfile="zipfile", gdown="gdown")


class Datum:
    """One image: its file, label, domain and class name. Read only.

    Args:
        impath: The image file.
        label: Number of the class.
        domain: Number of the domain, its place in the list of domains that was asked for.
        classname: Name of the class.

    Raises:
        AssertionError: `impath` is no string, or no such file exists (not looked up under DASSL_SKIP_FILE_CHECK).
    """

    def __init__(self, impath: str = "", label: int = 0, domain: int = 0, classname: str = "") -> None:
        if not isinstance(impath, str):
            raise CheckError(f"Datum expects the image path as a str, but got {type(impath).__name__}: {impath!r}")
        if not is_on("DASSL_SKIP_FILE_CHECK") and not check_isfile(impath):
            raise MissingFileError(f'Datum: no image file at "{impath}"')
        self._impath = impath
        self._label = label
        self._domain = domain
        self._classname = classname

    @property
    def impath(self) -> str:
        """The image file."""
        return self._impath

    @property
    def label(self) -> int:
        """Number of the class."""
        return self._label

    @property
    def domain(self) -> int:
        """Number of the domain."""
        return self._domain

    @property
    def classname(self) -> str:
        """Name of the class."""
        return self._classname


class DatasetBase:
    """Lists of `Datum`. A subclass takes `cfg`, makes the lists, and hands them to this constructor.

    Args:
        train_x: Labelled training images.
        train_u: Unlabelled training images.
        val: Validation images.
        test: Test images.

    Raises:
        ValueError: One label of `train_x` has two class names.
    """

    dataset_dir = ""  # the folder of the data set under DATASET.ROOT
    domains: list[str] = []  # names of all domains

    def __init__(
        self,
        train_x: list[Datum] | None = None,
        train_u: list[Datum] | None = None,
        val: list[Datum] | None = None,
        test: list[Datum] | None = None,
    ) -> None:
        self._train_x = train_x
        self._train_u = train_u
        self._val = val
        self._test = test
        self._num_classes = self.get_num_classes(train_x)
        self._lab2cname, self._classnames = self.get_lab2cname(train_x)
        self._check_labels()

    @property
    def train_x(self) -> list[Datum] | None:
        """Labelled training images."""
        return self._train_x

    @property
    def train_u(self) -> list[Datum] | None:
        """Unlabelled training images."""
        return self._train_u

    @property
    def val(self) -> list[Datum] | None:
        """Validation images."""
        return self._val

    @property
    def test(self) -> list[Datum] | None:
        """Test images."""
        return self._test

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name of each label of `train_x`."""
        return self._lab2cname

    @property
    def classnames(self) -> list[str]:
        """Class names in label order; labels that do not occur in `train_x` leave no gap."""
        return self._classnames

    @property
    def num_classes(self) -> int:
        """Largest label of `train_x` + 1."""
        return self._num_classes

    @staticmethod
    def get_num_classes(data_source: Sequence[Datum] | None) -> int:
        """Largest label of a list + 1; 0 for an empty list."""
        return max((item.label for item in data_source or ()), default=-1) + 1

    @staticmethod
    def get_lab2cname(data_source: Sequence[Datum] | None) -> tuple[dict[int, str], list[str]]:
        """Class name of each label of a list, and the names in label order.

        Raises:
            ValueError: One label has two names.
        """
        names: dict[int, str] = {}
        for item in data_source or ():
            known = names.setdefault(item.label, item.classname)
            if known != item.classname:
                raise CheckError(
                    f'Label {item.label} has two class names, "{known}" and "{item.classname}" ({item.impath}); '
                    "each label needs one name"
                )
        mapping = {label: names[label] for label in sorted(names)}
        return mapping, list(mapping.values())

    def check_input_domains(self, source_domains: Sequence[str], target_domains: Sequence[str]) -> None:
        """Checks the domains that were asked for.

        Raises:
            AssertionError: One of the lists is empty.
            ValueError: A name is not among `self.domains`.
        """
        for kind, domains in (("source_domains", source_domains), ("target_domains", target_domains)):
            if not domains:
                raise CheckError(f"{kind} (list) is empty; choose from {list(self.domains)}")
        self.is_input_domain_valid(source_domains)
        self.is_input_domain_valid(target_domains)

    def is_input_domain_valid(self, input_domains: Sequence[str]) -> None:
        """Checks that each name is among `self.domains`.

        Raises:
            ValueError: One is not.
        """
        for domain in input_domains:
            if domain not in self.domains:
                raise ValueError(f"Input domain must belong to {list(self.domains)}, but got [{domain}]")

    def download_data(self, url: str, dst: str, from_gdrive: bool = True, sha256: str = "") -> None:
        """Downloads an archive to `dst` and unpacks it beside it.

        Args:
            url: Address on Google Drive.
            dst: The file to write; .zip, .tar or .tar.gz.
            from_gdrive: Must be True.
            sha256: Checksum that the archive must have.

        Raises:
            NotImplementedError: Another source or another kind of archive.
        """
        download_and_unpack(url, dst, from_gdrive, sha256)

    def generate_fewshot_dataset(
        self, *data_sources: list[Datum], num_shots: int = -1, repeat: bool = False
    ) -> list[Datum] | list[list[Datum]] | tuple[list[Datum], ...]:
        """Draws `num_shots` images of each class, by the global generator of `random`.

        Classes are drawn in the order of their first appearance in the list, so that a seed gives the same images
        everywhere.

        Args:
            data_sources: One list or several.
            num_shots: Images per class; below 1 the input itself is returned.
            repeat: A class with too few images is filled by drawing with replacement, instead of giving all it has.

        Returns:
            One list for one input; for several a list of lists (the tuple of inputs if nothing is drawn).
        """
        if num_shots < 1:
            return data_sources[0] if len(data_sources) == 1 else data_sources
        print(f"Creating a {num_shots}-shot dataset")
        drawn = [self._draw(data_source, num_shots, repeat) for data_source in data_sources]
        return drawn[0] if len(drawn) == 1 else drawn

    def _draw(self, data_source: Sequence[Datum], num_shots: int, repeat: bool) -> list[Datum]:
        chosen: list[Datum] = []
        for items in self.split_dataset_by_label(data_source).values():
            if len(items) >= num_shots:
                chosen.extend(random.sample(items, num_shots))
            else:
                chosen.extend(random.choices(items, k=num_shots) if repeat else items)
        return chosen

    def split_dataset_by_label(self, data_source: Sequence[Datum]) -> defaultdict[int, list[Datum]]:
        """The items of each label, labels in order of first appearance."""
        output = defaultdict(list)
        for item in data_source:
            output[item.label].append(item)
        return output

    def split_dataset_by_domain(self, data_source: Sequence[Datum]) -> defaultdict[int, list[Datum]]:
        """The items of each domain, domains in order of first appearance."""
        output = defaultdict(list)
        for item in data_source:
            output[item.domain].append(item)
        return output

    def _check_labels(self) -> None:
        """Warns about labels without training images, which shift `classnames` against the logits."""
        name = type(self).__name__
        gaps = sorted(set(range(self._num_classes)) - set(self._lab2cname))
        if gaps:
            warnings.warn(
                f"{name}: no training image has label {_shorten(gaps)}: classnames ({len(self._classnames)}) are fewer "
                f"than num_classes ({self._num_classes}), and later names are shifted against the logits",
                stacklevel=3,
            )
        for split, items in (("val", self._val), ("test", self._test)):
            unseen = sorted({item.label for item in items or ()} - set(self._lab2cname))
            if unseen:
                warnings.warn(f"{name}: {split} has label {_shorten(unseen)}, which train_x lacks", stacklevel=3)


def _shorten(labels: list[int]) -> str:
    text = ", ".join(str(label) for label in labels[:5])
    return text if len(labels) <= 5 else f"{text}, ... ({len(labels)} labels)"
