"""Digits-DG, Office-31, NICO++, VisDA-C, CUB-Paintings and ImageNet-C in the layouts they are published in.

Covers, for each: parts of a source and a held-out target against the tree as it was drawn, labels and names, `data
verify`, DomainBed's split, a run that trains and tests on it; ImageNet-C in folders of four kinds and in one, by
severity; the class list when domains are absent or lack a class; parts that differ; images with
endings that are not read; what is said where nothing is found.
"""

from pathlib import Path

import pytest

from dassl_clip.cli import data as data_command
from dassl_clip.cli import train
from dassl_clip.datasets import CUBPaintings, DigitsDG, FolderDomains, ImageNetC, NICOpp, Office31, VisDA17
from dassl_clip.datasets.spec import load_spec
from dassl_clip.results.records import read_record

DIGITS, THINGS = [str(number) for number in range(10)], [f"thing_{number:02d}" for number in range(31)]
BIRDS = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird"]
OBJECTS = [f"object {number:02d}" for number in range(12)]
# Loader, folder of the set, domains on the disk in canonical order, what lies between domain and class, classes.
SETS = {
    "digits_dg": (DigitsDG, "digits_dg", ["mnist", "mnist_m", "svhn", "syn"], ["train", "val"], DIGITS),
    "office31": (Office31, "office31", ["amazon", "dslr", "webcam"], ["images"], THINGS),
    "office31 flat": (Office31, ".", ["amazon", "dslr", "webcam"], [""], THINGS),
    "nico_pp": (NICOpp, "NICO_DG", ["autumn", "dim", "grass", "outdoor", "rock", "water"], [""], ["bear", "bus"]),
    "nico_pp train": (
        NICOpp, "public_dg_0416/train", ["autumn", "dim", "grass", "outdoor", "rock", "water"], [""], ["bear", "bus"]
    ),
    "visda17": (VisDA17, "visda17", ["train", "validation"], [""], OBJECTS),
    "cub_paintings": (CUBPaintings, "CUB-Paintings", ["CUB_200_2011/images", "CUB-200-Painting"], [""], BIRDS),
}  # fmt: skip


def grown(case, root, grow, size=5):
    """The set's tree; its loader, canonical domains and the folders of these."""
    loader, home, domains, between, classes = SETS[case]
    for domain in domains:
        grow(root / home, *(f"{domain}/{part}/{name}" for part in between for name in classes), size=size)
    return loader, list(load_spec(loader.file).domains), [root / home / domain for domain in domains]


def below(folder: Path) -> set[str]:
    return {str(path.resolve()) for path in folder.rglob("*.jpg")}


def paths(items) -> set[str]:
    return {str(Path(item.impath).resolve()) for item in items}


@pytest.mark.parametrize("case", list(SETS))
def test_sources_and_a_held_out_target(case, tmp_path, grow, config):
    loader, names, folders = grown(case, tmp_path, grow)
    classes = SETS[case][4]
    data = loader(config(tmp_path, names[1:], names[:1]))
    assert paths(data.test) == below(folders[0])
    train, val = paths(data.train_x), paths(data.val)
    assert train | val == set().union(*map(below, folders[1:])) and not train & val
    if case == "digits_dg":
        assert {Path(path).parts[-3] for path in val} == {"val"}
    else:
        assert len(val) == len(folders[1:]) * len(classes)  # a fifth of five images
    assert all(classes[item.label] == Path(item.impath).parent.name for item in [*data.train_x, *data.test])
    assert data.classnames == [name.split(".")[-1] for name in classes] and data.domains == names
    assert ("class names without the counter before them" in data.protocol) == (case == "cub_paintings")


@pytest.mark.parametrize("case", list(SETS))
def test_verify_and_domainbeds_split(case, tmp_path, grow, config, capsys):
    loader, names, folders = grown(case, tmp_path, grow)
    code = data_command.main(["verify", case.split(" ")[0], "--root", str(tmp_path), "--classes"])
    out = capsys.readouterr().out
    assert code == ("10 of 10 class names are bare numbers" in out) == (case == "digits_dg")
    for name, folder in zip(names, folders):
        line = next(line for line in out.splitlines() if line.startswith(f"{name} "))
        classes = len(SETS[case][4])
        assert f"{classes} of {classes}" in line and f" {len(below(folder))} " in f"{line} "
    parts = [
        loader(config(tmp_path, names[1:], names[:1], PROTOCOL="domainbed", TEST_PART=part)) for part in ("in", "out")
    ]
    assert paths(parts[0].test) | paths(parts[1].test) == below(folders[0])
    assert len(parts[1].test) == int(0.2 * len(below(folders[0])))


@pytest.mark.parametrize("case", ["digits_dg", "office31", "nico_pp", "visda17", "cub_paintings"])
def test_a_run(case, tmp_path, grow, tiny_clip):
    loader, names, folders = grown(case, tmp_path, grow, size=2)
    words = [
        "--trainer",
        "LinearProbe",
        "--dataset-config-file",
        f"configs/datasets/{case}.yaml",
        "--root",
        str(tmp_path),
    ]
    words += ["--source-domains", *names[1:], "--target-domains", names[0], "--output-dir", str(tmp_path / "run")]
    assert train.main([*words, "MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "DATALOADER.NUM_WORKERS", "0"]) == 0
    record = read_record(tmp_path / "run")
    assert (record["dataset"], record["target_domains"]) == (loader.__name__, names[:1])
    assert record["metrics"]["test"]["total"] == len(below(folders[0])) and record["num_classes"] == len(SETS[case][4])


def test_classes_do_not_depend_on_the_domains_of_a_run(tmp_path, grow, config, caplog):
    grow(tmp_path, "NICO++/autumn/bear", "NICO++/autumn/cow", "NICO++/dim/bear", "NICO++/rock/ape", "NICO++/rock/cow")
    data = NICOpp(config(tmp_path, ["autumn"], ["dim"]))
    assert data.classnames == ["ape", "bear", "cow"] and {item.label for item in data.test} == {1}
    assert "dim has no images of ape, cow" in caplog.text
    assert "has no folder for grass, outdoor, water, which this run does not use" in caplog.text
    (tmp_path / "names.txt").write_text("ape\tbig ape\nbear\tbrown bear\ncow\tcow\n")
    named = NICOpp(config(tmp_path, ["autumn"], ["dim"], CLASSNAMES=str(tmp_path / "names.txt")))
    assert named.classnames == ["big ape", "brown bear", "cow"]


def test_domains_by_any_spelling(tmp_path, grow, config):
    grown("visda17", tmp_path, grow)
    assert len(VisDA17(config(tmp_path, ["train"], ["Validation"])).test) == 60
    with pytest.raises(ValueError, match=r'VisDA17 has no domain "test"; it has synthetic, real'):
        VisDA17(config(tmp_path, ["train"], ["test"]))


@pytest.mark.parametrize(
    ("case", "folders", "domains", "message"),
    [
        (
            "parts",
            ["digits_dg/syn/train/0", "digits_dg/svhn/1"],
            ("syn", "svhn"),
            r"differ in their parts: svhn \(no part",
        ),
        (
            "absent",
            ["office31/amazon/pen"],
            ("amazon", "dslr"),
            r"has no folder for dslr. Domains found: amazon",
        ),
        (
            "empty",
            ["digits_dg/syn/a/b/0"],
            ("syn", "syn"),
            r"syn holds no class folder with images. .*one level too many",
        ),
        (
            "nothing",
            ["elsewhere/a/b"],
            ("syn", "syn"),
            r"DigitsDG not found in .*Looked for the folders mnist, mnist_m",
        ),
    ],
)
def test_faults(case, folders, domains, message, tmp_path, grow, config):
    grow(tmp_path, *folders)
    loader = Office31 if case == "absent" else DigitsDG
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        loader(config(tmp_path, domains[:1], domains[1:]))
    assert "\n" not in str(caught.value)


def test_an_absent_domain_is_told_by_name(tmp_path, grow, config):
    grow(tmp_path, "NICO_DG/dim/cat", "NICO_DG/rock/cat")
    with pytest.raises(FileNotFoundError, match=r"NICO_DG has no folder for grass. Domains found: dim, rock"):
        NICOpp(config(tmp_path, ["dim"], ["grass"]))


def test_endings_that_are_not_read(tmp_path, grow, config):
    grow(tmp_path, "NICO_DG/dim/cat", "NICO_DG/rock/cat")
    grow(tmp_path, "NICO_DG/dim/owl", ending="avif")
    with pytest.raises(FileNotFoundError, match=r"no image is read from the class folder .*dim/owl \(5 of its 5 files"):
        NICOpp(config(tmp_path, ["dim"], ["rock"]))
    assert NICOpp(config(tmp_path, ["dim"], ["rock"], ON_UNREAD_CLASS="skip")).num_classes == 1


def test_the_same_as_folders_of_ones_own(tmp_path, grow, config):
    grown("office31", tmp_path, grow)
    ours = Office31(config(tmp_path, ["amazon"], ["dslr"], NUM_SHOTS=2))
    own = FolderDomains(config(tmp_path / "office31", ["amazon"], ["dslr"], NUM_SHOTS=2))
    assert [paths(items) for items in (ours.train_x, ours.val, ours.test)] == [
        paths(items) for items in (own.train_x, own.val, own.test)
    ]
    assert ours.listing == own.listing


# ----------------------------------------------------------------------------------------------------------- ImageNet-C


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory):
    """Two corruptions of two severities, in folders of their kinds, and a third beside those."""
    root = tmp_path_factory.mktemp("c")
    for place, severities in (("noise/shot_noise", (3, 5)), ("blur/zoom_blur", (5,)), ("frost", (5,))):
        for severity in severities:
            for wnid in load_spec("imagenet_c").folder_names:
                folder = root / "imagenet-c" / place / str(severity) / wnid
                folder.mkdir(parents=True)
                (folder / f"ILSVRC2012_val_{severity:08d}.JPEG").touch()
    return root


@pytest.mark.parametrize(("domain", "place"), [("shot_noise", "noise"), ("zoom_blur", "blur"), ("frost", "")])
def test_imagenet_c(domain, place, corrupted, config):
    data = ImageNetC(config(corrupted, [domain], [domain], PROTOCOL="all-images"))
    home = corrupted / "imagenet-c" / place / domain / "5"
    assert [item.impath for item in data.test] == [
        str(home / wnid / "ILSVRC2012_val_00000005.JPEG") for wnid in sorted(load_spec("imagenet").folder_names)
    ]
    assert [item.label for item in data.test] == list(range(1000)) and data.classnames[7] == "rooster"
    assert "severity 5, " in data.protocol and data.train_is_test and data.train_overlaps_test


def test_imagenet_c_by_severity(corrupted, config):
    data = ImageNetC(config(corrupted, ["shot_noise"], ["shot_noise"], IMAGENETC_SEVERITY=3))
    assert {item.impath.split("/")[-3] for item in data.test} == {"3"} and "severity 3, " in data.protocol
    for severity, message in (
        (4, r"shot_noise has no folder 4 of .*it holds 3, 5"),
        (6, r"it must be a number from 1 to"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            ImageNetC(config(corrupted, ["shot_noise"], ["shot_noise"], IMAGENETC_SEVERITY=severity))


def test_a_run_on_imagenet_c(tmp_path, draw, tiny_clip):
    for wnid in load_spec("imagenet_c").folder_names:
        draw(tmp_path / "imagenet-c/fog/2" / wnid / "0.JPEG")
    words = [
        "--trainer",
        "ZeroshotCLIP",
        "--dataset-config-file",
        "configs/datasets/imagenet_c.yaml",
        "--root",
        str(tmp_path),
    ]
    words += ["--source-domains", "fog", "--target-domains", "fog", "--output-dir", str(tmp_path / "run")]
    words += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "DATALOADER.NUM_WORKERS", "0"]
    assert train.main([*words, "DATASET.IMAGENETC_SEVERITY", "2"]) == 0
    record = read_record(tmp_path / "run")
    assert record["metrics"]["test"]["total"] == 1000 and "severity 2, " in record["protocol"]
    assert record["metrics"]["test"]["correct"] == 1  # one picture, and so one answer, for all classes


def test_imagenet_c_has_test_images_alone(corrupted, config):
    with pytest.raises(ValueError, match=r"PROTOCOL domainbed does not go with ImageNetC, whose parts are fixed"):
        ImageNetC(config(corrupted, ["frost"], ["shot_noise"], PROTOCOL="domainbed"))
    with pytest.raises(
        FileNotFoundError, match=r"no folder of fog in .*; it has shot_noise, zoom_blur, frost|.*frost, "
    ):
        ImageNetC(config(corrupted, ["frost"], ["fog"]))


def test_imagenet_c_is_verified(corrupted, capsys):
    assert (
        data_command.main(["verify", "imagenet_c", "--root", str(corrupted)]) == 2
    )  # twelve corruptions are not there
    out = capsys.readouterr().out
    assert out.count("1000 of 1000") == 3 and out.count("not read") == 12
