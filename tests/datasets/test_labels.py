"""Labels and class names are checked against each other once, for the loaders of this project and for everybody's.

Covers: labels from 1, gaps, negative labels, labels that are no whole numbers, test labels beyond the list, names that
differ between an image, `lab2cname` and `classnames`, empty names, and what fits; real runs on a loader that `--import`
registers.
"""

import numpy as np
import pytest

from dassl.data.datasets import Datum
from dassl_clip.cli import train
from dassl_clip.results.labels import check_labels

NAMES = ["cat", "dog", "owl"]


class NoFile(Datum):
    """A record of an image that need not be there."""

    def __init__(self, *facts):
        self._impath, self._label, self._domain, self._classname = facts


class Data:
    """A data set as Dassl's are: `labels` of train_x, and what a loader may say of its own."""

    def __init__(self, labels, test=(), names=None, item_names=None, **own):
        item_names = item_names or dict(zip(labels, NAMES))
        item_names.update({label: item_names.get(label, "owl") for label in test})
        self.train_x = [NoFile(f"/x/{i}.jpg", label, 0, item_names[label]) for i, label in enumerate(labels)]
        self.val, self.test = None, [NoFile(f"/y/{label}.jpg", label, 0, item_names[label]) for label in test]
        self.num_classes = own.pop("num_classes", None) or max(map(int, labels)) + 1
        self.lab2cname = own.pop("lab2cname", None) or {label: item_names[label] for label in sorted(set(labels))}
        self.classnames = names or list(self.lab2cname.values())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            Data([1, 2, 3]),
            r"labels of train_x are 1 to 3, but the 3 classes have the labels 0 to 2: subtract 1",
        ),
        (Data([0, 1, 3], num_classes=4), r"no class name for the label 2 \(4 classes by num_classes, 3 in classnames"),
        (Data([0, 1, 2], [3]), r"the label of /y/3.jpg in test is 3, but the 3 classes have the labels 0 to 2"),
        (Data([0, 1, 2], [-1]), r"the label of /y/-1.jpg in test is -1, but the 3 classes have the labels 0 to 2"),
        (Data([0.0, 1.0, 2.0]), r"the label of /x/\d.jpg in train_x is \d.0 \(float\), expected a whole number"),
        (Data(["0", "1", "2"]), r"the label of /x/\d.jpg in train_x is '\d' \(str\), expected a whole number"),
        (
            Data([0, 1, 2], names=["cat", "owl", "dog"]),
            r'label 1 is "dog" in lab2cname and "owl" in classnames',
        ),
        (
            Data([0, 1, 2], lab2cname=dict(enumerate(["cat", "owl", "dog"]))),
            r'the label of /x/1.jpg in train_x is 1, "owl", but its classname is "dog"',
        ),
        (Data([0, 1, 2], item_names={0: "cat", 1: "", 2: "owl"}), r"class 1 has no name"),
    ],
)
def test_3_2_labels_and_names_that_do_not_fit(data, message):
    with pytest.raises(ValueError, match=message):
        check_labels(data, "Mine")


def test_3_2_what_fits():
    check_labels(Data([0, 1, 2], [2]), "Mine")
    check_labels(Data([np.int64(0), np.int64(1), np.int64(2)], [np.int64(1)]), "Mine")
    test_alone = Data([0, 1, 2], [1, 2])
    test_alone.train_x[1:] = []  # a class that training lacks, in a loader with a fixed list
    check_labels(test_alone, "Mine")


def test_4_2_one_prompt_for_two_classes_of_a_strangers_loader(caplog):
    check_labels(Data([0, 1, 2], item_names={0: "Drinking Glass", 1: "drinking_glass", 2: "owl"}), "Mine")
    assert 'Mine: two classes have one prompt: "Drinking Glass" and "drinking_glass"' in caplog.text


def test_a_single_class_is_no_task(caplog):
    check_labels(Data([0, 0], item_names={0: "owl"}), "Mine")
    assert caplog.text.count('Mine has the class "owl" alone: every image gets it') == 1


LOADER = """
from pathlib import Path
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

@DATASET_REGISTRY.register(force=True)
class FromOne(DatasetBase):
    def __init__(self, cfg):
        lists = {}
        for domain in ("art", "sketch"):
            folders = sorted((Path(cfg.DATASET.ROOT) / domain).iterdir())
            lists[domain] = [
                Datum(str(path), label, 0, folder.name)
                for label, folder in enumerate(folders, start=1) for path in sorted(folder.iterdir())
            ]
        super().__init__(train_x=lists["art"], test=lists["sketch"])
"""


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "LinearProbe"])
def test_3_2_labels_from_one_are_refused(trainer, tmp_path, tiny_clip, domain_tree, capsys):
    """A loader of one's own with labels from 1 (row 3.2)."""
    (tmp_path / "own_from_one.py").write_text(LOADER)
    (tmp_path / "data.yaml").write_text("DATASET: {NAME: FromOne}")
    words = ["--trainer", trainer, "--import", str(tmp_path / "own_from_one.py"), "--root", str(domain_tree)]
    words += [
        "--dataset-config-file",
        str(tmp_path / "data.yaml"),
        "--output-dir",
        str(tmp_path / "run"),
        "--seed",
        "1",
    ]
    words += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "DATALOADER.NUM_WORKERS", "0"]
    code = train.main(words)
    error = capsys.readouterr().err.strip().splitlines()[-1:]
    assert code == 2, error
    assert error[0].startswith(
        "error: FromOne: the labels of train_x are 1 to 3, but the 3 classes have the labels 0 to 2"
    )
    assert not (tmp_path / "run" / "results.json").exists()
