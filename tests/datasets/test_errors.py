"""What a user can get wrong, each with its sentence.

Covers: domains (unknown, none, twice), what a run does not need, classes missing in parts, the layout of the sibling
data set, lists (missing files, unreadable lines, wrong domain, unknown class, overlap), parts of VLCS, VLCS_TEST.
`test_verify.py` has a table of damaged trees, which runs refuse with the sentences of `verify`.
"""

import shutil

import pytest

from dassl_clip.datasets import PACS, VLCS, DomainNet, OfficeHome, OfficeHomeDG


def refuse(error, message, loader, cfg):
    with pytest.raises(error, match=message):
        loader(cfg)


def test_an_empty_root(config):
    refuse(ValueError, "DATASET.ROOT is empty", PACS, config("", ["photo"], ["sketch"]))


def test_domains(tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    message = r'SOURCE_DOMAINS: PACS has no domain "sketches"; it has art_painting, .*. Did you mean .sketch.'
    refuse(ValueError, message, PACS, config(root, ["sketches"], ["photo"]))
    refuse(ValueError, r"TARGET_DOMAINS is empty: name at least one domain of PACS", PACS, config(root, ["photo"], []))
    refuse(ValueError, r"names the domain art_painting twice: art, A", PACS, config(root, ["art", "A"], ["photo"]))


def test_a_domain_or_list_that_is_not_needed_may_be_absent(tmp_path, pacs_tree, config, caplog):
    root = pacs_tree(tmp_path)
    (root / "pacs/splits/sketch_crossval_kfold.txt").unlink()
    assert len(PACS(config(root, ["photo"], ["cartoon"])).test) == 70
    shutil.rmtree(root / "pacs/images/sketch")
    assert len(PACS(config(root, ["photo"], ["cartoon"])).test) == 70
    assert "has no folder for sketch, which this run does not use" in caplog.text


def test_class_missing_in_part_folders(tmp_path, office_home_tree, vlcs_tree, config):
    office_home_tree(tmp_path, "office_home_dg", ["art", "clipart"], ("train", "val"), prefix=True)
    for part in ("train", "val"):
        shutil.rmtree(tmp_path / f"office_home_dg/clipart/{part}/058_TV")
    message = r"found 64 class folders in .*/clipart, missing: TV"
    refuse(FileNotFoundError, message, OfficeHomeDG, config(tmp_path, ["art"], ["clipart"]))


def test_class_missing_in_one_part_warns(tmp_path, vlcs_tree, config, caplog):
    root = vlcs_tree(tmp_path, "dassl")
    shutil.rmtree(root / "VLCS/SUN/crossval/0")
    data = VLCS(config(root, ["sun"], ["caltech"]))
    assert {item.label for item in data.val} == {1, 2, 3, 4}
    assert "SUN/crossval has no images of bird" in caplog.text


def test_layout_of_the_sibling(tmp_path, office_home_tree, config):
    office_home_tree(tmp_path / "a", "office_home_dg", ["art", "clipart"])
    message = r"no train/ in .*office_home_dg/art - this is the plain OfficeHome layout; use DATASET.NAME OfficeHome$"
    refuse(ValueError, message, OfficeHomeDG, config(tmp_path / "a", ["art"], ["clipart"]))
    office_home_tree(tmp_path / "b", "OfficeHome", ["art", "clipart"], ("train", "val"))
    message = r"art holds train/ and val/ - .*use DATASET.NAME OfficeHomeDG$"
    refuse(ValueError, message, OfficeHome, config(tmp_path / "b", ["art"], ["clipart"]))


def test_each_sibling_finds_its_own(tmp_path, office_home_tree, config):
    office_home_tree(tmp_path, "office_home", ["art", "clipart"])
    office_home_tree(tmp_path, "office_home_dg", ["art", "clipart"], ("train", "val"))
    assert "/office_home/" in OfficeHome(config(tmp_path, ["art"], ["clipart"])).test[0].impath
    assert "/office_home_dg/" in OfficeHomeDG(config(tmp_path, ["art"], ["clipart"])).test[0].impath


def test_visda_release_of_domainnet(tmp_path, domainnet_tree, draw, config):
    root = domainnet_tree(tmp_path, "DomainNet", ["real"])
    for part in ("train", "test"):
        draw(root / "DomainNet/clipart" / part / "trunk_01/5d41402abc4b2a76b9719d911017c592.jpg")
    message = r"missing: aircraft_carrier, .* It holds test: this is a layout with a folder for each split"
    refuse(FileNotFoundError, message, DomainNet, config(root, ["clipart"], ["real"]))


def test_listed_files_missing(tmp_path, domainnet_tree, config):
    root = domainnet_tree(tmp_path, "domainnet", ["clipart", "real"], "splits")
    (root / "domainnet/clipart/teddy-bear/clipart_304_000000.jpg").unlink()
    shutil.rmtree(root / "domainnet/clipart/zebra")
    message = (
        r"2 of 345 files listed in .*clipart_train.txt are missing, "
        r"first: .*clipart/teddy-bear/clipart_304_000000.jpg.*groundtruth"
    )
    refuse(FileNotFoundError, message, DomainNet, config(root, ["clipart"], ["real"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("photo/dog/pic_001.jpg", r'line 64: expected "domain/class/file label", found "photo/dog/pic_001.jpg"'),
        ("pic_001.jpg 1", r"line 64: expected"),
        ("sketch/dog/pic_001.jpg 1", r'line 64: "sketch/dog/pic_001.jpg" is not of the domain photo'),
        ("photo/zebra/pic_001.jpg 8", r'line 64: PACS has no class "zebra"'),
        (
            "photo/dog/pic_009.jpg 1",
            r"1 images are in both .*train_kfold.txt and .*crossval_kfold.txt, first: photo/dog",
        ),
    ],
)
def test_lines_of_a_list(line, message, tmp_path, pacs_tree, config):
    root = pacs_tree(tmp_path)
    with (root / "pacs/splits/photo_train_kfold.txt").open("a") as stream:
        stream.write(f"{line}\n")
    refuse(ValueError, message, PACS, config(root, ["photo"], ["sketch"]))


def test_lists_with_blanks_and_other_line_ends(tmp_path, pacs_tree, draw, config):
    root = pacs_tree(tmp_path)
    draw(root / "pacs/images/photo/dog/a dog 1.jpg")
    with (root / "pacs/splits/photo_train_kfold.txt").open("ab") as stream:
        stream.write(b"\r\nphoto\\dog\\a dog 1.jpg\t1  \r\n\r\n")
    data = PACS(config(root, ["photo"], ["sketch"]))
    assert data.train_x[-1].impath.endswith("photo/dog/a dog 1.jpg")


def test_vlcs_part_missing(tmp_path, vlcs_tree, config):
    root = vlcs_tree(tmp_path, "dassl")
    shutil.rmtree(root / "VLCS/SUN/crossval")
    message = r"no crossval/ in .*VLCS/SUN, while other domains have it"
    refuse(FileNotFoundError, message, VLCS, config(root, ["sun"], ["caltech"]))


def test_vlcs_test_option(tmp_path, vlcs_tree, config):
    root = vlcs_tree(tmp_path, "dassl")
    cfg = config(root, ["sun"], ["caltech"], VLCS_TEST="full test")
    refuse(ValueError, r'"full test"; it must be one of test, full\+test. Did you mean .full\+test.', VLCS, cfg)
    cfg = config(root, ["sun"], ["sun"], VLCS_TEST="full+test")
    refuse(ValueError, r"would test the images of sun that are trained on", VLCS, cfg)
