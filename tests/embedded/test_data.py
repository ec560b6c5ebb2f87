"""The shipped data set.

Covers: manifest hashes (and that a changed, a missing and a further picture are found), the curated list, licences of
every picture, groups on one side, shares of the parts, the split rule on its own, lossless PNGs, contact sheets.
"""

import csv
import json
import random
import shutil
from collections import Counter, defaultdict

import numpy as np
import pytest
from build_icons.check import check_data
from build_icons.packs import packs_for, read_packs
from build_icons.selection import DOMAINS, SHARES, SPLITS, read_curated, split_groups, split_pictures
from build_icons.sheets import CELL, class_sheet
from build_icons.store import encode_png, picture_path, read_png
from PIL import Image

from dassl_clip.embedded import ICONS_FOLDER

FREE_LICENCES = {"Apache-2.0", "MIT", "ISC", "CC-BY-4.0", "CC-BY-3.0"}


def test_shipped_data_set_has_no_problem():
    assert check_data(ICONS_FOLDER) == []


def test_damage_is_found(tmp_path):
    folder = tmp_path / "icons"
    shutil.copytree(ICONS_FOLDER, folder)
    paths = sorted(path for path in folder.glob("line/key/*.png"))
    Image.new("RGB", (64, 64), "red").save(paths[0])
    paths[1].unlink()
    shutil.copy(paths[2], folder / "line" / "key" / "further.png")
    problems = check_data(folder)
    for path in (paths[0], paths[1], folder / "line" / "key" / "further.png"):
        assert any(path.relative_to(folder).as_posix() in problem for problem in problems)
    assert len(problems) == 3


def test_a_group_on_two_sides_is_found(tmp_path):
    folder = tmp_path / "icons"
    shutil.copytree(ICONS_FOLDER, folder)
    text = (folder / "split.csv").read_text().splitlines()
    groups = Counter(line.rsplit(",", 1)[1] for line in text[1:])
    at = next(i for i, line in enumerate(text) if i and groups[line.rsplit(",", 1)[1]] > 1)
    path, domain, label, split, group = text[at].split(",")
    text[at] = ",".join([path, domain, label, "val" if split != "val" else "test", group])
    (folder / "split.csv").write_text("\n".join(text) + "\n")
    assert any(f"group {group} is in" in problem for problem in check_data(folder))


def test_every_picture_is_a_curated_one(rows):
    curated = read_curated()
    assert [row["path"] for row in rows] == [picture_path(picture) for picture in curated] and len(rows) == 2872
    assert [(row["domain"], row["class"], row["group"]) for row in rows] == [
        (p.domain, p.label, p.group) for p in curated
    ]


def test_every_picture_has_author_licence_and_link(rows):
    with (ICONS_FOLDER / "SOURCES.csv").open(newline="", encoding="utf-8") as file:
        sources = list(csv.DictReader(file))
    assert [row["path"] for row in sources] == [row["path"] for row in rows]
    for row in sources:
        assert row["spdx"] in FREE_LICENCES and row["licence_url"].startswith("https://")
        assert all(
            row[field] for field in ("pack", "icon", "title", "author", "author_url", "npm", "version", "changes")
        )
        assert row["path"].endswith(f"/{row['pack']}--{row['icon']}.png")


def test_packs_of_data_and_pre_training_are_apart():
    data, train = ({pack.pack for pack in packs_for(use)} for use in ("data", "pretrain"))
    assert len(data) == 20 and not data & train and len(data) + len(train) == len(read_packs())
    assert not any(part in pack.spdx for pack in read_packs() for part in ("GPL", "SA", "NC"))
    siblings = {
        "fluent-emoji",
        "fluent-emoji-high-contrast",
        "fa6-solid",
        "fa",
        "la",
        "lucide-lab",
        "streamline",
        "feather",
    }
    assert not siblings & train


def test_groups_stay_on_one_side_and_every_cell_is_filled(rows):
    sides, cells = defaultdict(set), defaultdict(Counter)
    for row in rows:
        sides[row["group"]].add(row["split"])
        cells[row["domain"], row["class"]][row["split"]] += 1
    assert all(len(parts) == 1 for parts in sides.values())
    assert len(cells) == 4 * 45
    assert all(counts[split] for counts in cells.values() for split in SPLITS)
    for domain in DOMAINS:
        sizes = Counter(row["split"] for row in rows if row["domain"] == domain)
        assert 0.37 < sizes["test"] / sum(sizes.values()) < 0.45
        assert max(counts["train"] for (place, _), counts in cells.items() if place == domain) >= 16


def test_split_is_the_stored_one(rows):
    curated = read_curated()
    split = split_pictures(curated)
    assert [split[picture] for picture in curated] == [row["split"] for row in rows]


def test_split_depends_on_seed_and_on_the_class_alone():
    curated = read_curated()
    assert split_pictures(curated, 2) != split_pictures(curated)
    some = [picture for picture in curated if picture.label == "key"]
    whole = split_pictures(curated)
    assert split_pictures(some) == {picture: whole[picture] for picture in some}


@pytest.mark.parametrize("seed", range(5))
def test_groups_fill_the_shares(seed):
    rng = random.Random(seed)
    sizes = {f"g{i}": rng.choice([1, 1, 2, 3]) for i in range(60)}
    placed = split_groups(sizes, random.Random(seed))
    filled = Counter()
    for group, split in placed.items():
        filled[split] += sizes[group]
    for split in SPLITS:
        assert abs(filled[split] - SHARES[split] * sum(sizes.values())) <= 3


def test_two_groups_train_and_test_and_one_is_refused():
    assert split_groups({"a": 5, "b": 2}, random.Random(0)) == {"a": "train", "b": "test"}
    with pytest.raises(ValueError, match="at least two groups"):
        split_groups({"a": 5}, random.Random(0))


@pytest.mark.parametrize("kind", ["grey", "palette", "rgb"])
def test_png_is_lossless_and_the_same_each_time(kind, tmp_path):
    rng = np.random.default_rng(0)
    pixels = {
        "grey": np.repeat(rng.integers(0, 256, (64, 64, 1), dtype=np.uint8), 3, axis=2),
        "palette": rng.integers(0, 256, (200, 3), dtype=np.uint8)[rng.integers(0, 200, (64, 64))],
        "rgb": rng.integers(0, 256, (64, 64, 3), dtype=np.uint8),
    }[kind]
    data = encode_png(pixels)
    assert data == encode_png(pixels.copy())
    (tmp_path / "x.png").write_bytes(data)
    assert (read_png(tmp_path / "x.png") == pixels).all()
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == {"grey": "L", "palette": "P", "rgb": "RGB"}[kind]


def test_pictures_are_small_and_manifest_counts_them(rows):
    manifest = json.loads((ICONS_FOLDER / "manifest.json").read_text())
    assert manifest["pictures"] == len(rows) and manifest["split"] == dict(Counter(row["split"] for row in rows))
    assert sum((ICONS_FOLDER / row["path"]).stat().st_size for row in rows) < 5e6
    assert read_png(ICONS_FOLDER / rows[0]["path"]).shape == (64, 64, 3)


def test_sheet_shows_each_picture_in_its_row(rows):
    page = np.asarray(class_sheet("key", rows, ICONS_FOLDER))
    first = next(row for row in rows if row["class"] == "key" and row["domain"] == "flat" and row["split"] == "val")
    top = 20 + (DOMAINS.index("flat") * len(SPLITS) + SPLITS.index("val")) * CELL
    assert (page[top : top + 64, 110 : 110 + 64] == read_png(ICONS_FOLDER / first["path"])).all()
