"""Which features of the bank belong to a run: `features.npz` in its folder, for figures that need no data any more.

Arrays, for each split `S` of `SPLITS` whose images were encoded: `S.entry` (the name of the array in the bank, whose
rows are in the order of the sorted paths), and in that order `S.labels` and `S.domains` `[N]`. No pickles, no features.

Shapes: `N` images, `E` joint embedding.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from . import feature_cache as bank
from .checkpoint_files import write_atomically

FILE = "features.npz"
SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Kept:
    """Where the features of a split's images are.

    Attributes:
        entry: Name of the array in the bank.
        labels: `[N]`, in the order of the sorted paths.
        domains: `[N]`, numbers of the domains in that order.
    """

    entry: str
    labels: np.ndarray
    domains: np.ndarray

    def features(self) -> Tensor | None:
        """The features `[N, E]` as the tower gave them, NaN for images that cannot be decoded; None if not there."""
        found = bank.read_entry(self.entry)
        return found if found is not None and len(found) == len(self.labels) else None


def kept_of(entry: str, items: Sequence) -> Kept:
    """What a run keeps of a list of Datum whose features are in the bank under that name."""
    ordered = sorted(items, key=lambda item: item.impath)
    labels, domains = ([getattr(item, name) for item in ordered] for name in ("label", "domain"))
    return Kept(entry, np.array(labels, dtype=np.int64), np.array(domains, dtype=np.int64))


def write_kept(folder: Path, splits: Mapping[str, Kept]) -> None:
    """Write the file of a run, atomically; what it says of other splits stays."""
    arrays: dict[str, np.ndarray] = {}
    for split, kept in (read_kept(folder) | dict(splits)).items():
        arrays |= {f"{split}.entry": np.array(kept.entry), f"{split}.labels": kept.labels}
        arrays[f"{split}.domains"] = kept.domains
    write_atomically(Path(folder) / FILE, lambda file: np.savez_compressed(file, **arrays))


def read_kept(folder: Path) -> dict[str, Kept]:
    """What a run kept, by split; empty where the file is absent or cannot be read."""
    try:
        with np.load(Path(folder) / FILE, allow_pickle=False) as file:
            return {
                split: Kept(str(file[f"{split}.entry"]), file[f"{split}.labels"], file[f"{split}.domains"])
                for split in SPLITS
                if f"{split}.entry" in file.files
            }
    except Exception:  # absent; a damaged archive makes its reader raise almost anything
        return {}
