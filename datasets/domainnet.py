"""DomainNet: 6 domains, 345 classes, 586,575 images in the cleaned release.

Peng, Bai, Xia, Huang, Saenko, Wang, "Moment Matching for Multi-Source Domain Adaptation", ICCV 2019 (arXiv
1812.01754). The label order is that of the published lists: class names in alphabetical order when everything but
letters and their case is ignored, so neither that of `sorted` nor that of the folders. With the lists
`{domain}_{train,test}.txt`: train and test of the sources train and validate, test of the target is tested, and only
listed files are used. Without them every file of the folders counts, duplicates of the original release included,
with the seeded hold-out.
"""

from collections.abc import Mapping, Sequence

from .base import DomainDataset, Layout, register
from .folders import ImageFile
from .spec import Spec, load_spec
from .split_lists import lists_or_holdout

FAMILIES = ({"train": "train", "val": "test"},)
HINT = " The archives of clipart and painting must be those published under `groundtruth/`"


@register
class DomainNet(DomainDataset):
    """Clipart, infograph, painting, quickdraw, real and sketch."""

    @classmethod
    def make_spec(cls, cfg) -> Spec:
        return load_spec("domainnet")

    def open_layout(self, cfg, domains: Sequence[str]) -> Layout:
        parts = {"train": "train list", "val": "test list"}
        return lists_or_holdout(cfg, self.spec, domains, FAMILIES, parts, heldout=("val",), hint=HINT, selective=True)

    def check_counts(self, parts: Mapping[str, Mapping[str, Sequence[ImageFile]]]) -> str:
        """Name the release that each domain's number of images belongs to; warn where it is none."""
        counts = {domain: sum(map(len, found.values())) for domain, found in parts.items()}
        releases = {domain: self._release(domain, count) for domain, count in counts.items()}
        self.warn_of_counts({domain: count for domain, count in counts.items() if releases[domain] == "unknown"})
        return f" (release by number of images: {', '.join(f'{name} {release}' for name, release in releases.items())})"

    def _release(self, domain: str, count: int) -> str:
        """`cleaned`, `original` (with duplicates) or `unknown`."""
        cleaned, entry = self.spec.images[domain], self.spec.details[domain]
        if count == cleaned:
            return "cleaned"
        return "original" if count in (entry["original"], cleaned + entry["duplicates"]) else "unknown"
