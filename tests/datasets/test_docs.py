"""`docs/datasets.md` against the code.

Covers: a row, a config and a section for each loader, every number of the two tables, the folders and split files of
CoOp's sets, the commands of the page (parsed by the program), every DATASET key that it names, links inside the page.
"""

import re
import shlex
from pathlib import Path

import pytest

from dassl.config import get_cfg_default
from dassl_clip import datasets
from dassl_clip.cli import data
from dassl_clip.datasets.spec import load_spec
from dassl_clip.results.data_sets import LISTS, read_entry

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/datasets.md").read_text(encoding="utf-8")
ROWS = {row[1]: row for row in re.findall(r"^\| (\[`(\w+)`\].*) \|$", PAGE, re.MULTILINE)}
ENTRIES = {read_entry(path.stem)["name"]: path.stem for path in LISTS.glob("*.json")}
OURS = [name for name in datasets.__all__ if isinstance(getattr(datasets, name), type)]
LOADERS = [name for name in OURS if name not in ("ListedDataset", "Layout", "Icons")]


def cells(name):
    return [cell.strip() for cell in ROWS[name][0].split(" | ")]


def anchor(title):
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def test_each_loader_has_a_row_with_its_config():
    assert sorted(ROWS) == sorted(LOADERS)
    anchors = {anchor(title) for title in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)}
    for name in LOADERS:
        first, config = cells(name)[:2]
        assert re.search(r"\(#([\w-]+)\)", first)[1] in anchors
        assert f"NAME: {name}" in (ROOT / config.strip("`")).read_text(encoding="utf-8")
    assert {*re.findall(r"\]\(#([\w-]+)\)", PAGE)} <= anchors


UNCOUNTED = {"OfficeHomeDG", "miniDomainNet", "DigitsDG", "Office31", "NICOpp", "VisDA17", "CUBPaintings", "ImageNetC"}


@pytest.mark.parametrize("name", sorted(set(ENTRIES) - UNCOUNTED))
def test_numbers(name):
    spec, entry = load_spec(ENTRIES[name]), read_entry(ENTRIES[name])
    if spec.domains:
        assert cells(name)[2:] == [str(len(spec.domains)), str(len(spec.classes)), f"{sum(spec.images.values()):,}"]
        return
    classes = f"{len(spec.classes):,}"
    halves = entry.get("halves", {"base": 500, "new": 500} if name == "ImageNet" else {})
    numbers = [f"{spec.images[part]:,}" if part in spec.images else "-" for part in ("train", "val", "test")]
    assert cells(name)[2] == (f"{classes} ({halves['base']}/{halves['new']})" if halves else classes)
    assert cells(name)[3] == " / ".join(numbers)


@pytest.mark.parametrize("name", sorted(UNCOUNTED - {"OfficeHomeDG", "miniDomainNet"}))
def test_numbers_of_sets_without_published_images(name):
    spec = load_spec(ENTRIES[name])
    classes = len(spec.classes)
    assert not spec.images
    assert cells(name)[2:] == [str(len(spec.domains)), f"{classes:,}" if classes else "-", "-"]


def test_folders_and_split_files():
    rows = dict(re.findall(r"^\| (\w+) \| (`.*`) \|$", PAGE, re.MULTILINE))
    for name, text in rows.items():
        entry = read_entry(ENTRIES[name])
        folder, images, split = text.split(" | ")
        assert folder == f"`{entry['folders'][0]}`"
        assert images in [f"`{inner}`" if inner else "the folder itself" for inner in entry["image_folders"]]
        assert split == f"`{entry.get('split_file', 'images_variant_{train,val,test}.txt')}`"
    assert len(rows) == 10


def test_commands_are_understood():
    lines = re.findall(r"^dassl-clip data (.+)$", PAGE, re.MULTILINE)
    assert {line.split()[0] for line in lines} == {"list", "verify", "inspect", "links"}
    for line in lines:
        data.build_parser().parse_args(shlex.split(line))


def test_keys_exist():
    cfg = get_cfg_default()
    datasets.add_config(cfg)
    keys = {*re.findall(r"DATASET\.([A-Z][A-Z0-9_]+)", PAGE)}
    assert keys and keys <= {*cfg.DATASET}
    assert {"PROTOCOL", "SELECTION", "SPLIT_FILE", "IMAGENETV2", "MANIFEST", "VLCS_TEST"} <= keys
