"""miniDomainNet.

Covers: labels by its own lists and by all of them, images by the lists alone, the same labels whichever domains a run
uses, DomainNet's own lists beside them, lists that are missing, contradict each other, have gaps or other classes.
"""

import random

import pytest

from dassl_clip.datasets import DomainNet, miniDomainNet
from dassl_clip.datasets.spec import load_spec

DOMAINS = ("clipart", "painting", "real", "sketch")
CLASSES = load_spec("domainnet").classes[::-2][:126]  # an order of its own


@pytest.fixture
def mini(tmp_path):
    def make(home="domainnet", domains=DOMAINS, lists=DOMAINS):
        for domain in domains:
            for part, number in (("train", 0), ("test", 1)):
                lines = []
                for label, name in enumerate(CLASSES):
                    folder = tmp_path / home / domain / name
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / f"{domain}_{part}.jpg").touch()
                    (folder / f"{domain}_not_listed.jpg").touch()
                    lines.append(f"{domain}/{name}/{domain}_{part}.jpg {label}")
                random.Random(number).shuffle(lines)
                if domain in lists:
                    (tmp_path / home / "splits_mini").mkdir(exist_ok=True)
                    (tmp_path / home / f"splits_mini/{domain}_{part}.txt").write_text("\n".join(lines) + "\n")
        return tmp_path

    return make


@pytest.mark.parametrize("home", ["domainnet", "DomainNet"])
def test_labels_and_images(home, mini, config):
    data = miniDomainNet(config(mini(home), ["clipart", "real"], ["sketch"]))
    assert data.classnames == list(CLASSES) and data.num_classes == 126
    assert (len(data.train_x), len(data.val), len(data.test)) == (252, 252, 126)
    for item in data.train_x + data.val + data.test:
        assert item.classname == item.impath.split("/")[-2] == CLASSES[item.label]
        assert "not_listed" not in item.impath
    assert {item.impath.rsplit("_", 1)[1] for item in data.test} == {"test.jpg"}


def test_9_2_a_trainer_of_adaptation_gets_the_targets_training_part(mini, config):
    """(row 9.2) Without labels of the target: as in Dassl's own data set, which ours takes the place of."""
    cfg = config(mini(), ["clipart", "real"], ["sketch"])
    assert miniDomainNet(cfg).train_u is None
    cfg.defrost()
    cfg.TRAINER.NAME = "SourceOnly"
    data = miniDomainNet(cfg)
    assert {item.impath.rsplit("/", 1)[1] for item in data.train_u} == {"sketch_train.jpg"}
    assert len(data.train_u) == 126 and all(item.classname == CLASSES[item.label] for item in data.train_u)
    assert {item.impath.rsplit("/", 1)[1] for item in data.test} == {"sketch_test.jpg"}


def test_classes_come_from_all_lists(mini, config):
    root = mini()
    path = root / "domainnet/splits_mini/clipart_train.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if not line.endswith(" 7\n")))
    assert miniDomainNet(config(root, ["clipart"], ["real"])).classnames == list(CLASSES)


def test_lists_of_domainnet_beside_them(mini, config):
    root = mini()
    (root / "domainnet/splits").mkdir()
    for domain in DOMAINS:
        for part in ("train", "test"):
            (root / f"domainnet/splits/{domain}_{part}.txt").write_text(f"{domain}/axe/none.jpg 11\n")
    assert len(miniDomainNet(config(root, ["clipart"], ["real"])).test) == 126
    with pytest.raises(FileNotFoundError, match=r"1 of 1 files listed in .*splits/clipart_train.txt"):
        DomainNet(config(root, ["clipart"], ["real"]))


def test_without_lists(mini, config):
    with pytest.raises(
        FileNotFoundError, match=r"no splits_mini/ in .*domainnet.*published at https://drive.google.com"
    ):
        miniDomainNet(config(mini(lists=()), ["clipart"], ["real"]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("clipart/zebra/1.jpg 3", r'line 127: label 3 is "zebra" here and ".*" elsewhere'),
        ("clipart/zebra/1.jpg 126", r"name 127 classes, expected 126: they are those of another data set"),
        ("clipart/zebra/1.jpg 128", r"have no image with the labels 126, 127"),
        ("zebra", r'line 127: expected "domain/class/file label", found "zebra"'),
    ],
)
def test_lists_that_cannot_be_used(line, message, mini, config):
    root = mini()
    with (root / "domainnet/splits_mini/clipart_test.txt").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        miniDomainNet(config(root, ["clipart"], ["real"]))


def test_a_domain_of_the_large_data_set(mini, config):
    with pytest.raises(ValueError, match=r'miniDomainNet has no domain "quickdraw"; it has clipart, painting, re'):
        miniDomainNet(config(mini(), ["clipart"], ["quickdraw"]))
