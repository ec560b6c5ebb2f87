"""`DomainDataset` and `PlainDataset`: the bases of the loaders with domains and of those without.

A loader says what is known beforehand (`make_spec`) and how its folder is read (`open_layout`); `common` has what both
kinds share, and how the parts of a data set are used under each protocol.
"""

import logging
from collections.abc import Mapping, Sequence

from dassl_clip.results.errors import UserError

from .common import ListedDataset
from .folders import ImageFile
from .protocols import HOLDOUT, Layout
from .registration import add_config, register, split_seed

__all__ = ["DomainDataset", "Layout", "PlainDataset", "WHOLE", "add_config", "register", "split_seed"]

logger = logging.getLogger(__name__)

WHOLE = ""  # the one pool of a data set without domains


class DomainDataset(ListedDataset):
    """Base class of the loaders with domains.

    Attributes:
        source_domains, target_domains: canonical names of those asked for.
    """

    def choose_pools(self, cfg) -> tuple[list[str], list[str]]:
        """The domains that the config names."""
        options = cfg.DATASET
        self.source_domains = self.spec.resolve_domains(options.SOURCE_DOMAINS, "DATASET.SOURCE_DOMAINS")
        self.target_domains = self.spec.resolve_domains(options.TARGET_DOMAINS, "DATASET.TARGET_DOMAINS")
        return self.source_domains, self.target_domains

    def check_counts(self, parts: Mapping[str, Mapping[str, Sequence[ImageFile]]]) -> str:
        """Warn, in one line, of domains whose number of images is not the published one."""
        self.warn_of_counts({domain: sum(map(len, found.values())) for domain, found in parts.items()})
        return ""

    def warn_of_counts(self, counts: Mapping[str, int]) -> None:
        """Compare domain -> number of images with the published numbers, less the images that are always left out."""
        skipped = {domain: sum(key.startswith(f"{domain}/") for key in self.spec.skip) for domain in counts}
        other = [
            f"{domain} {count} ({self.spec.images[domain]})"
            for domain, count in counts.items()
            if domain in self.spec.images and count != self.spec.images[domain] - skipped[domain]
        ]
        if other:
            logger.warning("%s: number of images (published number) differs in %s", self.spec.name, ", ".join(other))


class PlainDataset(ListedDataset):
    """Base class of the loaders without domains: train, val and test of one data set.

    A layout without val validates on training images that were not drawn, and on nothing if all are trained on. A
    layout with test images alone hands them in as `train_x` too, which Dassl needs to be non-empty (`train_is_test`).
    """

    def choose_pools(self, cfg) -> tuple[list[str], list[str]]:
        """The data set itself, trained on and tested.

        Raises:
            UserError: if the config names domains.
        """
        for key in ("SOURCE_DOMAINS", "TARGET_DOMAINS"):
            if cfg.DATASET[key]:
                names = ", ".join(map(str, cfg.DATASET[key]))
                raise UserError(
                    f"{self.spec.name} has no domains, but DATASET.{key} names {names}: leave both lists of domains "
                    "empty"
                )
        self.source_domains, self.target_domains = [], []
        return [WHOLE], [WHOLE]

    def check_counts(self, parts: Mapping[str, Mapping[str, Sequence[ImageFile]]]) -> str:
        """Warn, in one line, of parts whose number of images is not the published one."""
        counts, published = {part: len(images) for part, images in parts[WHOLE].items()}, self.spec.images
        if self.protocol_name == HOLDOUT:  # the parts are not the published ones, all together are
            counts, published = {"all": sum(counts.values())}, {"all": sum(published.values())} if published else {}
        other = [
            f"{part} {count} ({published[part]})"
            for part, count in counts.items()
            if part in published and count != published[part]
        ]
        if other:
            logger.warning("%s: number of images (published number) differs in %s", self.spec.name, ", ".join(other))
        return ""
