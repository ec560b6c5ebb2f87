"""Which cached features are those of a run's images: its file `features.npz`.

`features.npz` in a run's folder says which cached features are those of its images, for figures that no longer need the
data. Its arrays, for each split `S`: `S.entry` (the name of the entry in the cache, whose rows are in the order of the
sorted paths), and in that order `S.labels` and `S.domains` `[N]`. No pickles, no features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dassl_clip.results.files import write_atomically

from . import feature_cache

SAVED_FEATURES = "features.npz"
SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class SavedFeatures:
    """Where the features of a split's images are.

    Attributes:
        entry: Name of the array in the cache.
        labels: `[N]`, in the order of the sorted paths.
        domains: `[N]`, numbers of the domains in that order.
    """

    entry: str
    labels: np.ndarray
    domains: np.ndarray

    @classmethod
    def of(cls, entry: str, items: Sequence[Any]) -> "SavedFeatures":
        """Those of a list of Datum whose features are cached under a name."""
        ordered = sorted(items, key=lambda item: item.impath)
        labels, domains = ([getattr(item, name) for item in ordered] for name in ("label", "domain"))
        return cls(entry, np.array(labels, dtype=np.int64), np.array(domains, dtype=np.int64))

    def read(self) -> Tensor | None:
        """The features `[N, E]` as the tower gave them, NaN for unreadable images; None if not in the cache."""
        features = feature_cache.read_entry(self.entry)
        return features if features is not None and len(features) == len(self.labels) else None


def save_features(folder: Path, splits: Mapping[str, SavedFeatures]) -> None:
    """Write `features.npz` of a run, atomically; what it says of other splits stays."""
    arrays: dict[str, Any] = {}  # arrays; numpy's types take their names for its own keyword, a bool
    for split, saved in (saved_features(folder) | dict(splits)).items():
        arrays |= {f"{split}.entry": np.array(saved.entry), f"{split}.labels": saved.labels}
        arrays[f"{split}.domains"] = saved.domains
    write_atomically(Path(folder) / SAVED_FEATURES, lambda file: np.savez_compressed(file, **arrays))


def saved_features(folder: Path) -> dict[str, SavedFeatures]:
    """What `features.npz` of a run says of each split; empty where the file is absent or cannot be read."""
    try:
        with np.load(Path(folder) / SAVED_FEATURES, allow_pickle=False) as file:
            return {
                split: SavedFeatures(str(file[f"{split}.entry"]), file[f"{split}.labels"], file[f"{split}.domains"])
                for split in SPLITS
                if f"{split}.entry" in file.files
            }
    except Exception:  # absent; a damaged archive makes its reader raise almost anything
        return {}
