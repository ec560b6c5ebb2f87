"""What a loader read, in one line for the log and the run's record (`ListedDataset.protocol`)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .fewshot import VAL_SHOTS

if TYPE_CHECKING:
    from .base import ListedDataset


def describe(data: "ListedDataset") -> str:
    """The layout found, the protocol, the parts that train, validate and are tested, shots, seed and classes."""
    texts = [f"{data.layout.text}{data.count_note}", f"protocol {data.protocol_name}"]
    texts += [f"test part {data.test_part}"] if data.test_part else []
    parts, cut, whole = data.layout.parts, data._cut_pools(), data._whole_pools()

    def of(pools: Sequence[str], before: str = " of") -> str:
        return f"{before} {', '.join(pools)}" if data.domains else ""

    tests = [f"{' + '.join(parts[part] for part in data._tested_parts(name))}{of([name])}" for name in data._targets]
    test = f"test: {', '.join(tests)}"
    if data.train_is_test:
        texts += [test, "no training images: train_x is the test list, for methods that use no labels"]
    else:
        plain = [name for name in data._sources if name not in whole]
        apart = [name for name in plain if name not in cut]
        rest = [*cut, *(apart if "val" not in parts and data.shots else [])]
        train = [f"{parts['train']}{of(plain)}"] if plain else []
        train += [f"every image{of(whole)}"] if whole else []
        val = [f"{parts['val']}{of(apart)}"] if apart and "val" in parts else []
        val += [f"{parts['train']}{of(rest)} without the images trained on"] if rest else []
        val += [f"every image{of(whole)} without those trained on"] if whole and data.shots else []
        texts += [f"train: {', '.join(train)}", f"val: {', '.join(val) or 'none'}", test]
        if whole:
            texts.append(
                "images of train_x and val are tested too, so nothing may be trained on their labels but a probe"
                f"{of(whole)} whose record says so"
            )
        shots = f"{data.shots} shots per class (val: {min(data.shots, VAL_SHOTS)})"
        texts.append(shots if data.shots else "all images")
        texts += [f"selection {data.selection}"] if data.selection else []
        texts.append(f"split seed {data.seed}" if data.seed >= 0 else "unseeded")
    texts.append(f"classes: {data.subset} ({data.num_classes})")
    texts += [data.names_note] if data.names_note else []
    return f"{data.spec.name}: {'; '.join(texts)}"
