"""A plain program's reading of the small tree."""

from pathlib import Path

import pytest
import torch


def pictures(folder: Path) -> tuple[list[Path], torch.Tensor, list[str]]:
    """Files, labels and class names of a folder with one folder a class, in their order."""
    names = sorted(path.name for path in folder.iterdir())
    found = [(path, label) for label, name in enumerate(names) for path in sorted((folder / name).iterdir())]
    labels = torch.tensor([label for _, label in found])
    return [path for path, _ in found], labels, [name.replace("_", " ") for name in names]


@pytest.fixture(scope="session")
def sketch(domain_tree, plain):
    """The target domain: files, labels, class names, and plain features `[N, E]`."""
    paths, labels, names = pictures(domain_tree / "sketch")
    return paths, labels, names, plain.images(paths)
