"""Data as people have it: copies from Kaggle and the Hugging Face hub, archives that are still packed.

Covers rows 5.2 and 5.3: Kaggle's PACS with its published lists, ImageNet one or more folders too high, ImageNet-Sketch
under `sketch/` and `train/` (and ImageNet's own train/ not taken for it), VLCS without crossval; parquet files, arrow
folders, `imagefolder` with its metadata, archives: where the loader reads none of them, each is named with what to do.
"""

import itertools
import shutil
import zipfile

import pytest

from dassl_clip.datasets import (
    PACS,
    VLCS,
    EuroSAT,
    FolderClasses,
    FolderDomains,
    ImageNet,
    ImageNetA,
    ImageNetSketch,
    Manifest,
    miniDomainNet,
)
from dassl_clip.datasets.verify import verify


def kaggle_pacs(root, pacs_tree):
    """`pacs_label/pacs_label/*_kfold.txt` beside `pacs_data/pacs_data/`."""
    pacs_tree(root / "made", "pacs/images")
    for old, new in (("images", "pacs_data"), ("splits", "pacs_label")):
        (root / new).mkdir()
        shutil.move(root / "made/pacs" / old, root / new / new)
    shutil.rmtree(root / "made")
    return root


@pytest.mark.parametrize("below", ["", "pacs_data", "pacs_data/pacs_data"])
def test_5_3_kaggles_pacs_has_the_published_split(below, tmp_path, pacs_tree, config):
    root = kaggle_pacs(tmp_path / "kaggle", pacs_tree)
    data = PACS(config(root / below, ["photo", "cartoon"], ["sketch"]))
    assert "split lists" in data.protocol and str(root / "pacs_label/pacs_label") in data.protocol
    assert {item.impath.rsplit("_", 1)[1] for item in data.val} == {"009.jpg"} and len(data.val) == 14
    assert len(data.test) == 70 and all(f"/{item.classname}/" in item.impath for item in data.test)


@pytest.mark.parametrize("base", [0, 1, 3])
def test_5_3_the_class_of_a_listed_image_is_that_of_its_path(base, tmp_path, pacs_tree, config):
    """Lists count from 0 or from 1 (or in another order): the number is not read."""
    pacs_tree(tmp_path, "PACS/images", size=3)
    for path in (tmp_path / "PACS/splits").iterdir():
        lines = [line.rsplit(" ", 1) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{name} {int(label) - 1 + base}\n" for name, label in lines))
    data = PACS(config(tmp_path, ["photo"], ["cartoon"]))
    assert all(f"/{data.classnames[item.label]}/" in item.impath for item in data.train_x + data.test)


@pytest.mark.parametrize("above", ["imagenet-object-localization-challenge", "challenge", "my data/kaggle"])
def test_5_3_imagenet_some_folders_too_high(above, tmp_path, imagenet_tree, config):
    home = tmp_path / above / "ILSVRC/Data/CLS-LOC"
    imagenet_tree(tmp_path, f"{above}/ILSVRC/Data/CLS-LOC", {"train": 1})
    (home / "val").mkdir()
    wnids = sorted(path.name for path in (home / "train").iterdir())
    for number, _ in enumerate(wnids):
        (home / f"val/ILSVRC2012_val_{number:08d}.JPEG").touch()
    lines = [f"ILSVRC2012_val_{number:08d},{wnid} 1 2 3 4 " for number, wnid in enumerate(wnids)]
    (tmp_path / above / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "\n".join(lines))
    root = tmp_path
    if above != "imagenet-object-localization-challenge":
        with pytest.raises(FileNotFoundError, match=rf"It lies in {home}: set DATASET.ROOT to {home}\."):
            ImageNet(config(tmp_path, [], []))
        root = home
    data = ImageNet(config(root, [], []))
    assert [item.label for item in data.test] == list(range(1000)) and len(data.train_x) == 1000


@pytest.mark.parametrize("home", ["imagenet-sketch/train", "train", "ImageNet-Sketch/data/sketch", "imagenet-sketch"])
def test_5_3_sketch_under_train(home, tmp_path, imagenet_tree, config):
    place, part = home.rsplit("/", 1) if "/" in home else ("", home)
    imagenet_tree(tmp_path, place or ".", {part: 1})
    assert len(ImageNetSketch(config(tmp_path, [], [])).test) == 1000


@pytest.mark.parametrize("home", ["imagenet", "imagenet/images", "ILSVRC/Data/CLS-LOC", "."])
@pytest.mark.parametrize("parts", [("train", "val"), ("train",)])
def test_5_3_imagenet_is_not_taken_for_sketch(home, parts, tmp_path, imagenet_tree, config):
    if home == "." and len(parts) == 1:
        pytest.skip("nothing tells them apart but their number, of which a warning is given")
    imagenet_tree(tmp_path, home, dict.fromkeys(parts, 1))
    with pytest.raises(FileNotFoundError, match="ImageNetSketch not found"):
        ImageNetSketch(config(tmp_path, [], []))


def test_5_3_vlcs_without_crossval(tmp_path, vlcs_tree, config, caplog):
    vlcs_tree(tmp_path, "dassl", sizes=(("train", 5), ("test", 3)))
    data = VLCS(config(tmp_path, ["caltech", "sun"], ["pascal"], NUM_SHOTS=2))
    assert (len(data.train_x), len(data.val), len(data.test)) == (10, 10, 15)
    assert not {item.impath for item in data.train_x} & {item.impath for item in data.val}
    assert "no crossval" in data.protocol and "no crossval/ in" in caplog.text
    with pytest.raises(FileNotFoundError, match=r"full\+test tests every image of a domain, but .* has no crossval/"):
        VLCS(config(tmp_path, ["caltech"], ["pascal"], VLCS_TEST="full+test"))
    (tmp_path / "VLCS/SUN/train").rename(tmp_path / "VLCS/SUN/crossval")
    shutil.copytree(tmp_path / "VLCS/SUN/crossval", tmp_path / "VLCS/SUN/train")
    with pytest.raises(FileNotFoundError, match=r"no crossval/ in .*CALTECH, .*PASCAL, while other domains have it"):
        VLCS(config(tmp_path, ["caltech", "sun"], ["pascal"]))


def parquet(root):
    (root / "data").mkdir(parents=True)
    (root / "data/train-00000-of-00001.parquet").write_bytes(b"PAR1")
    return r"/data holds 1 parquet file \(train-00000-of-00001.parquet\), .* with DATASET.ROOT .*/data it is read by"


def cached_parquet(root):
    """The hub's cache keeps links in `snapshots`."""
    home = root / "datasets--flwrlabs--pacs"
    (home / "blobs").mkdir(parents=True)
    (home / "blobs/0a1b").write_bytes(b"PAR1")
    data = home / "snapshots/8f3c/data"
    data.mkdir(parents=True)
    (data / "train-0.parquet").symlink_to(home / "blobs/0a1b")
    return r"snapshots/8f3c/data holds 1 parquet file \(train-0.parquet\)"


def arrow(root):
    (root / "train").mkdir(parents=True)
    for name in ("dataset_info.json", "state.json", "data-00000-of-00001.arrow"):
        (root / "train" / name).touch()
    (root / "dataset_dict.json").write_text('{"splits": ["train"]}')
    return r"is an arrow folder of `save_to_disk` \(dataset_dict.json\)"


def image_folder(root):
    (root / "train").mkdir(parents=True)
    (root / "train/metadata.csv").write_text("file_name,label\n0.jpg,cat\n")
    return (
        r"train/metadata.csv lists images, .*: it is read by DATASET.NAME Manifest with DATASET.MANIFEST .*metadata.csv"
    )


def captions(root):
    (root / "train").mkdir(parents=True)
    (root / "train/metadata.csv").write_text("file_name,text\n0.jpg,a cat\n")
    return r"but with the columns file_name, text: with file_name and label"


def json_lines(root):
    root.mkdir(parents=True)
    (root / "metadata.jsonl").write_text('{"file_name": "0.jpg", "label": 0}\n')
    return r"metadata.jsonl lists images.*: it is read by DATASET.NAME Manifest with DATASET.MANIFEST .*metadata.jsonl"


def zip_file(root):
    root.mkdir(parents=True)
    (root / "My data.zip").write_bytes(b"PK\x03\x04")
    return r"My data.zip is an archive: unpack it first \(unzip '.*My data.zip' -d "


def zip_of_coop(root):
    """As `zhengli97/prompt_learning_dataset` has them."""
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / "eurosat.zip", "w") as archive:
        archive.writestr("eurosat/split_zhou_EuroSAT.json", "{}")
        archive.writestr("eurosat/2750/River/River_1.jpg", "")
    return r"eurosat.zip is an archive with the published split split_zhou_EuroSAT.json and its images: unpack it first"


def tar_files(root):
    (root / "data").mkdir(parents=True)
    for number in range(5):
        (root / f"data/train_images_{number}.tar.gz").write_bytes(b"\x1f\x8b")
    return r"train_images_2.tar.gz is an archive: .*tar -xf .* -C .*, and 2 more"


READS_COPIES = (PACS, ImageNet, FolderDomains, FolderClasses)
COPIES = (parquet, cached_parquet, arrow, image_folder, captions, json_lines)
ARCHIVES = (zip_file, zip_of_coop, tar_files)


@pytest.mark.parametrize(
    ("make", "loader"),
    [*itertools.product(ARCHIVES, (*READS_COPIES, EuroSAT, Manifest)), *itertools.product(COPIES, (EuroSAT, ImageNetA))]
    + [(make, Manifest) for make in (parquet, cached_parquet, arrow, image_folder, captions)],
)
def test_5_2_what_no_loader_reads_is_named(make, loader, tmp_path, config):
    """Rows 5.2 and 5.3: a run and `verify` say what lies there, and what to do."""
    root = tmp_path / "root"
    said = make(root)
    with pytest.raises(FileNotFoundError, match=said) as caught:
        loader(
            config(root, ["photo"] * (loader in (PACS, FolderDomains)), ["sketch"] * (loader in (PACS, FolderDomains)))
        )
    assert "\n" not in str(caught.value)
    report = verify(loader, config(root, [], []))
    assert report.verdict == 2
    texts = [finding.text for finding in report.findings]
    assert sum(text.count("unpack it first") for text in texts) == min(3, len([*root.rglob("*.tar.gz")]) or 1) * (
        make in ARCHIVES
    ), texts


def test_5_3_a_part_that_is_still_packed_is_named(tmp_path, pacs_tree, vlcs_tree, imagenet_tree, config):
    """Row 5.3: one domain, one part or the lists are an archive beside those that were unpacked."""
    pacs_tree(tmp_path / "a", "PACS")
    shutil.rmtree(tmp_path / "a/PACS/sketch")
    (tmp_path / "a/PACS/other.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "a/PACS/sketch.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(FileNotFoundError, match=r"no folder for sketch\..*sketch.zip is an archive: unpack it first"):
        PACS(config(tmp_path / "a", ["photo"], ["sketch"]))
    vlcs_tree(tmp_path / "b", "dassl", sizes=(("train", 5), ("crossval", 2)))
    for domain in ("CALTECH", "PASCAL"):
        (tmp_path / f"b/VLCS/{domain}/test.tar.gz").write_bytes(b"\x1f\x8b")
    with pytest.raises(FileNotFoundError, match=r"no test/ in .*test.tar.gz is an archive: unpack it first"):
        VLCS(config(tmp_path / "b", ["caltech"], ["pascal"]))
    imagenet_tree(tmp_path / "c", "imagenet", {"train": 1})
    (tmp_path / "c/imagenet/ILSVRC2012_img_val.tar").write_bytes(b"n0")
    with pytest.raises(FileNotFoundError, match=r"has no val/ .*ILSVRC2012_img_val.tar is an archive: unpack it first"):
        ImageNet(config(tmp_path / "c", [], []))
    (tmp_path / "d/domainnet/clipart/dog").mkdir(parents=True)
    (tmp_path / "d/domainnet/splits_mini.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(FileNotFoundError, match=r"no splits_mini/ .*splits_mini.zip is an archive: unpack it first"):
        miniDomainNet(config(tmp_path / "d", ["clipart"], ["clipart"]))


@pytest.mark.parametrize("loader", [VLCS, PACS])
def test_5_2_files_of_no_known_form_are_listed(loader, tmp_path, config):
    """Row 5.2: what lies there is named, though nothing is known of it."""
    (tmp_path / "images.tfrecord").touch()
    with pytest.raises(FileNotFoundError, match=r"holds images.tfrecord\."):
        loader(config(tmp_path, ["photo"] if loader is PACS else ["sun"], ["sketch"] if loader is PACS else ["pascal"]))


def test_5_2_the_archive_of_the_data_set_is_named_first(tmp_path, config):
    for name in ("aaa.zip", "bbb.zip", "ccc.zip", "eurosat.zip"):
        (tmp_path / name).write_bytes(b"PK\x03\x04")
    with pytest.raises(FileNotFoundError, match=r"eurosat.zip is an archive.*aaa.zip is an archive"):
        EuroSAT(config(tmp_path, [], []))
