"""ImageNet and the test sets for its models.

Covers: layouts of ImageNet (CoOp's, torchvision's, Kaggle's with and without its csv, an empty train folder), labels by
wnid with equal names kept apart, training images absent, flat validation images, other class lists beside the images,
the four variants in their layouts (numbers and wnids as folders of V2 and its three sets, `sketch/`, A and R as
problems of 200 classes) and the sentences for what does not apply.
"""

import pytest

from dassl_clip.datasets import ImageNet, ImageNetA, ImageNetR, ImageNetSketch, ImageNetV2
from dassl_clip.datasets.spec import load_spec

WNIDS = load_spec("imagenet").folder_names
NAMES = load_spec("imagenet").classes


def check_labels(items):
    for item in items:
        _, folder, _ = item.impath.rsplit("/", 2)
        assert item.label == WNIDS.index(folder) and item.classname == NAMES[item.label]


@pytest.mark.parametrize("home", ["imagenet/images", "ImageNet", ".", "ILSVRC/Data/CLS-LOC", "imagenet/ILSVRC2012"])
def test_layouts(home, tmp_path, imagenet_tree, config):
    imagenet_tree(tmp_path, home, {"train": 2, "val": 1})
    data = ImageNet(config(tmp_path, [], [], NUM_SHOTS=1))
    assert (data.num_classes, len(data.train_x), len(data.val), len(data.test)) == (1000, 1000, 1000, 1000)
    assert not data.train_is_test and ImageNet.list_domains(config(tmp_path, [], [])) == []
    assert {item.impath.split("/")[-3] for item in data.train_x + data.val} == {"train"}
    assert not {item.impath for item in data.train_x} & {item.impath for item in data.val}
    check_labels(data.test[::37])
    check_labels(data.train_x[::37])


def test_equal_names_are_two_classes(tmp_path, imagenet_tree, config):
    data = ImageNet(config(imagenet_tree(tmp_path, "imagenet", {"val": 1}), [], []))
    assert data.classnames[836] == data.classnames[837] == "sunglasses"
    assert data.classnames[657] == data.classnames[744] == "missile"
    assert len(set(data.classnames)) == 998 and len(data.lab2cname) == 1000
    assert [item.label for item in data.test] == list(range(1000))


def test_without_training_images(tmp_path, imagenet_tree, config, caplog):
    imagenet_tree(tmp_path, "imagenet/images", {"val": 2})
    (tmp_path / "imagenet/images/train").mkdir()
    data = ImageNet(config(tmp_path, [], [], NUM_SHOTS=16))
    assert data.train_is_test and data.val is None
    assert [item.impath for item in data.train_x] == [item.impath for item in data.test]
    assert "no training images: train_x is the test list, for methods that use no labels" in data.protocol
    assert "shots" not in data.protocol
    assert "what trains on its labels trains on the test" in caplog.text


def test_a_selection_without_training_images_gives_a_warning(tmp_path, imagenet_tree, config, caplog):
    imagenet_tree(tmp_path, "imagenet", {"val": 1})
    ImageNet(config(tmp_path, [], [], NUM_SHOTS=2, SELECTION="stored.json"))
    assert "there are no training images, so DATASET.SELECTION is without effect" in caplog.text


def test_base_and_new(tmp_path, imagenet_tree, config):
    imagenet_tree(tmp_path, "imagenet", {"train": 1, "val": 1})
    new = ImageNet(config(tmp_path, [], [], SUBSAMPLE_CLASSES="new"))
    assert new.classnames == list(NAMES[500:]) and [item.label for item in new.test] == list(range(500))


def kaggle(root, solution=True):
    val = root / "ILSVRC/Data/CLS-LOC/val"
    val.mkdir(parents=True)
    lines = ["ImageId,PredictionString"]
    for number, wnid in enumerate(reversed(WNIDS), start=1):
        (val / f"ILSVRC2012_val_{number:08d}.JPEG").touch()
        lines.append(f"ILSVRC2012_val_{number:08d},{wnid} 1 2 3 4 ")
    if solution:
        (root / "LOC_val_solution.csv").write_text("\n".join(lines))
    return root


def test_flat_validation_images_of_kaggle(tmp_path, config):
    data = ImageNet(config(kaggle(tmp_path), [], []))
    assert [item.label for item in data.test] == list(range(1000))
    assert data.test[0].impath.endswith("val/ILSVRC2012_val_00001000.JPEG") and data.classnames[0] == "tench"
    assert "val flat with the classes of LOC_val_solution.csv" in data.protocol


def test_flat_validation_images(tmp_path, config):
    message = r"CLS-LOC/val holds 1000 images and no wnid folders.*valprep.sh.*preprocessed.pkl"
    with pytest.raises(FileNotFoundError, match=message):
        ImageNet(config(kaggle(tmp_path, solution=False), [], []))


def test_val_missing_or_root_too_deep(tmp_path, imagenet_tree, config):
    imagenet_tree(tmp_path, "imagenet", {"train": 1})
    with pytest.raises(FileNotFoundError, match=r"imagenet has no val/ \(or .*whose images are the test; it holds tra"):
        ImageNet(config(tmp_path, [], []))
    with pytest.raises(
        FileNotFoundError, match=rf"wnid folders of one part: set DATASET.ROOT to .* {tmp_path}/imagenet"
    ):
        ImageNet(config(tmp_path / "imagenet/train", [], []))
    with pytest.raises(FileNotFoundError, match=r"ImageNet not found in .*Looked for the folders train/ and val/"):
        ImageNet(config(tmp_path / "imagenet/train/n01440764", [], []))


def test_class_missing(tmp_path, imagenet_tree, config):
    imagenet_tree(tmp_path, "imagenet", {"val": 1})
    folder = tmp_path / "imagenet/val/n02012849"
    folder.rename(folder.with_name("crane"))
    with pytest.raises(FileNotFoundError, match=r"found 999 class folders in .*val, missing: n02012849"):
        ImageNet(config(tmp_path, [], []))


def test_class_file_of_another_list(tmp_path, imagenet_tree, config, caplog):
    imagenet_tree(tmp_path, "imagenet/images", {"val": 1})
    own = [f"{wnid} {name}" for wnid, name in zip(WNIDS, NAMES)]
    (tmp_path / "imagenet/classnames.txt").write_text("\r\n".join(own))
    assert ImageNet(config(tmp_path, [], [])).classnames == list(NAMES)
    assert "classnames.txt" not in caplog.text
    for line, text in ((8, "n01514668 cock"), (22, "n01608432 kite"), (3, "n02009912 egret")):
        lines = [*own[: line - 1], text, *own[line:]]
        (tmp_path / "imagenet/classnames.txt").write_text("\n".join(lines))
        assert ImageNet(config(tmp_path, [], [])).classnames == list(NAMES)
        assert f'classnames.txt, line {line} is "{text}", expected "{own[line - 1]}"' in caplog.text


def variant(root, home, folders, names=("a.jpeg",)):
    for folder in folders:
        (root / home / folder).mkdir(parents=True)
        for name in names:
            (root / home / folder / name).touch()
    (root / home / "README.txt").touch()
    return root


V2 = "imagenetv2-matched-frequency-format-val"


@pytest.mark.parametrize("home", [f"imagenetv2/{V2}", V2, ".", "ImageNetV2-matched-frequency"])
@pytest.mark.parametrize("folders", ["numbers", "wnids"])
def test_v2(home, folders, tmp_path, config):
    names = [str(number) for number in range(1000)] if folders == "numbers" else WNIDS
    data = ImageNetV2(config(variant(tmp_path, home, names), [], []))
    assert data.classnames == list(NAMES) and len(data.test) == 1000 and data.train_is_test
    for item in data.test:
        folder = item.impath.split("/")[-2]
        assert item.label == (int(folder) if folders == "numbers" else WNIDS.index(folder))
    assert "matched-frequency set" in data.protocol


def test_v2_sets_are_not_mixed(tmp_path, config):
    numbers = [str(number) for number in range(1000)]
    variant(tmp_path, "imagenetv2/imagenetv2-top-images-format-val", numbers)
    with pytest.raises(FileNotFoundError, match=r"Another set is there: DATASET.IMAGENETV2 top-images"):
        ImageNetV2(config(tmp_path, [], []))
    data = ImageNetV2(config(tmp_path, [], [], IMAGENETV2="top-images"))
    assert "top-images set" in data.protocol
    with pytest.raises(ValueError, match=r'IMAGENETV2 is "topimages"; it must be one of .*Did you mean .top-images.'):
        ImageNetV2(config(tmp_path, [], [], IMAGENETV2="topimages"))
    (tmp_path / "imagenetv2/imagenetv2-top-images-format-val/999").rename(tmp_path / "imagenetv2/1000")
    with pytest.raises(FileNotFoundError, match=r"found 999 class folders .* missing: n15075141"):
        ImageNetV2(config(tmp_path, [], [], IMAGENETV2="top-images"))


@pytest.mark.parametrize("home", ["imagenet-sketch/images", "sketch", "imagenet_sketch/sketch", "ImageNet-Sketch"])
def test_sketch(home, tmp_path, config):
    data = ImageNetSketch(config(variant(tmp_path, home, WNIDS, ("sketch_1.JPEG", "sketch_2.JPEG")), [], []))
    check_labels(data.test)
    assert len(data.test) == 2000 and data.num_classes == 1000


@pytest.mark.parametrize(
    ("loader", "file", "home"),
    [
        (ImageNetA, "imagenet_a", "imagenet-adversarial/imagenet-a"),
        (ImageNetA, "imagenet_a", "imagenet-a"),
        (ImageNetR, "imagenet_r", "imagenet-rendition/imagenet-r"),
        (ImageNetR, "imagenet_r", "."),
    ],
)
def test_a_and_r(loader, file, home, tmp_path, config):
    spec = load_spec(file)
    data = loader(config(variant(tmp_path, home, spec.folder_names), [], [], NUM_SHOTS=16))
    assert data.num_classes == 200 and [item.label for item in data.test] == list(range(200))
    for item in data.test:
        wnid = item.impath.split("/")[-2]
        assert item.classname == NAMES[WNIDS.index(wnid)] == data.classnames[item.label]


def test_what_does_not_apply_to_the_variants(tmp_path, config):
    variant(tmp_path, "imagenet-a", load_spec("imagenet_a").folder_names)
    with pytest.raises(ValueError, match=r'SUBSAMPLE_CLASSES is "base", but ImageNetA is tested with all its 200 clas'):
        ImageNetA(config(tmp_path, [], [], SUBSAMPLE_CLASSES="base"))
    with pytest.raises(ValueError, match=r"PROTOCOL holdout does not go with ImageNetA"):
        ImageNetA(config(tmp_path, [], [], PROTOCOL="holdout"))
    with pytest.raises(FileNotFoundError, match=r"found 86 class folders in .*imagenet-a, missing: "):
        ImageNetR(config(tmp_path / "imagenet-a", [], []))


def test_through_dassl(tmp_path, config, draw):
    from dassl.data import DataManager

    for wnid in load_spec("imagenet_a").folder_names:
        draw(tmp_path / "imagenet-a" / wnid / "1.jpg")
    cfg = config(tmp_path, [], [], NAME="ImageNetA").clone()
    cfg.defrost()
    cfg.INPUT.SIZE, cfg.DATALOADER.NUM_WORKERS, cfg.USE_CUDA = (8, 8), 0, False
    manager = DataManager(cfg)
    assert manager.num_classes == 200 and manager.num_source_domains == 0 and manager.val_loader is None
    assert next(iter(manager.test_loader))["domain"].tolist() == [0] * 32
