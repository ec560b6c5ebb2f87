"""(row 9.2) The data sets of domain adaptation on drawn folders, and trainers on them as people write them."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dassl.data.datasets import (
    DATASET_REGISTRY,
    DomainNet,
    Office31,
    OfficeHome,
    OfficeHomeDG,
    VisDA17,
    build_dataset,
    miniDomainNet,
)
from dassl.engine import TRAINER_REGISTRY, TrainerXU, build_trainer
from dassl.engine.ssl import FixMatch
from dassl.metrics import compute_accuracy
from dassl.modeling import BACKBONE_REGISTRY, Backbone

COLORS = {"Alarm_Clock": (200, 40, 40), "TV": (40, 200, 40), "Table": (40, 40, 200)}


@pytest.fixture(autouse=True)
def own_loaders(monkeypatch):
    """The toolbox's own loaders under their names, also where a plugin has put others in their place."""
    for loader in (OfficeHome, OfficeHomeDG, Office31, VisDA17, DomainNet, miniDomainNet):
        monkeypatch.setitem(DATASET_REGISTRY._obj_map, loader.__name__, loader)


def draw(path: Path, color=(0, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)


def facts(items, root: Path) -> list[tuple]:
    return [(Path(i.impath).relative_to(root).as_posix(), i.label, i.domain, i.classname) for i in items]


@pytest.fixture
def build(make_cfg, tmp_path):
    def make(name: str, sources: tuple, targets: tuple):
        cfg = make_cfg("DATASET.ROOT", str(tmp_path), "DATASET.NAME", name, "VERBOSE", False)
        cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = sources, targets
        return build_dataset(cfg)

    return make


@pytest.mark.parametrize(("name", "folder", "domains"), [
    ("OfficeHome", "office_home", ("art", "product", "real_world")),
    ("Office31", "office31", ("amazon", "dslr", "webcam")),
])  # fmt: skip
@pytest.mark.parametrize("written", [str, lambda name: name.replace("_", " ").title()])
def test_9_2_domain_folders(build, tmp_path, name, folder, domains, written):
    root = tmp_path / folder
    for domain in map(written, domains):
        for label in ("Alarm_Clock", "TV", "Table"):
            draw(root / domain / label / "00001.jpg")
        (root / domain / "TV" / "Thumbs.db").touch()
    (root / written(domains[0]) / "empty").mkdir()
    dataset = build(name, domains[1::-1], domains[2:])
    first, second, third = (written(domains[place]) for place in (1, 0, 2))
    assert facts(dataset.train_x, root) == [
        (f"{domain}/{label}/00001.jpg", number, place, label.lower())
        for place, domain in enumerate((first, second))
        for number, label in enumerate(("Alarm_Clock", "TV", "Table"))  # TV before Table, as upper case sorts
    ]
    target = [
        (f"{third}/{label}/00001.jpg", number, 0, label.lower())
        for number, label in enumerate(("Alarm_Clock", "TV", "Table"))
    ]
    assert facts(dataset.train_u, root) == facts(dataset.test, root) == target
    assert dataset.val is None and dataset.classnames == ["alarm_clock", "tv", "table"]


def test_9_2_a_class_that_one_domain_lacks_moves_no_label(build, tmp_path):
    for domain, classes in (("art", ("Bed", "Couch", "Fan")), ("clipart", ("Bed", "Fan"))):
        for label in classes:
            draw(tmp_path / "office_home" / domain / label / "1.jpg")
            draw(tmp_path / "office_home_dg" / domain / "train" / label / "1.jpg")
            draw(tmp_path / "office_home_dg" / domain / "val" / label / "1.jpg")
    for name in ("OfficeHome", "OfficeHomeDG"):
        dataset = build(name, ("art",), ("clipart",))
        assert {item.classname: item.label for item in dataset.test} == {"bed": 0, "fan": 2}
        assert dataset.lab2cname == {0: "bed", 1: "couch", 2: "fan"}


@pytest.mark.parametrize(("name", "splits"), [("DomainNet", "splits"), ("miniDomainNet", "splits_mini")])
def test_9_2_domain_lists(build, tmp_path, name, splits):
    root = tmp_path / "domainnet"
    for domain in ("real", "sketch", "clipart"):
        for part in ("train", "test"):
            paths = [f"{domain}/teddy-bear/{part} 1.jpg", f"{domain}/The_Eiffel_Tower/{part}.jpg"]
            for path in paths:
                draw(root / path)
            (root / splits).mkdir(exist_ok=True)
            lines = [f"{path} {label}\n" for label, path in enumerate(paths)]
            (root / splits / f"{domain}_{part}.txt").write_text("".join(lines))
    dataset = build(name, ("sketch", "clipart"), ("real",))
    assert facts(dataset.train_x, root) == [
        ("sketch/teddy-bear/train 1.jpg", 0, 0, "teddy-bear"),
        ("sketch/The_Eiffel_Tower/train.jpg", 1, 0, "The_Eiffel_Tower"),
        ("clipart/teddy-bear/train 1.jpg", 0, 1, "teddy-bear"),
        ("clipart/The_Eiffel_Tower/train.jpg", 1, 1, "The_Eiffel_Tower"),
    ]
    assert [item[0] for item in facts(dataset.train_u, root)] == [
        "real/teddy-bear/train 1.jpg", "real/The_Eiffel_Tower/train.jpg"
    ]  # fmt: skip
    assert [item[0] for item in facts(dataset.test, root)] == [
        "real/teddy-bear/test 1.jpg", "real/The_Eiffel_Tower/test.jpg"
    ]  # fmt: skip
    val = dataset.val and [item[0].split("/")[0] for item in facts(dataset.val, root)]
    assert val == (["sketch"] * 2 + ["clipart"] * 2 if name == "DomainNet" else None)
    (root / splits / "real_train.txt").write_text("real/x/y.jpg one\n")
    with pytest.raises(ValueError, match=r'real_train\.txt": expected "class/image label".*real/x/y\.jpg one'):
        build(name, ("sketch",), ("real",))
    (root / splits / "real_train.txt").unlink()
    with pytest.raises(FileNotFoundError, match="real_train"):
        build(name, ("sketch",), ("real",))


def test_9_2_visda(build, tmp_path):
    root = tmp_path / "visda17"
    for folder, path in (("train", "aeroplane/src_1.png"), ("train", "bicycle/src_2.png"),
                         ("validation", "bicycle/trg_1.jpg"), ("validation", "aeroplane/trg_2.jpg")):  # fmt: skip
        draw(root / folder / path)
        with open(root / folder / "image_list.txt", "a") as file:
            file.write(f"{path} {int(path.startswith('bicycle'))}\n")
    dataset = build("VisDA17", ("synthetic",), ("real",))
    assert facts(dataset.train_x, root) == [
        ("train/aeroplane/src_1.png", 0, 0, "aeroplane"), ("train/bicycle/src_2.png", 1, 0, "bicycle")
    ]  # fmt: skip
    target = [("validation/bicycle/trg_1.jpg", 1, 0, "bicycle"), ("validation/aeroplane/trg_2.jpg", 0, 0, "aeroplane")]
    assert facts(dataset.train_u, root) == facts(dataset.test, root) == target and dataset.val is None


@pytest.mark.parametrize("loader", [OfficeHome, Office31, VisDA17, DomainNet, miniDomainNet])
def test_9_2_missing_folder_and_wrong_domain(build, tmp_path, loader, monkeypatch):
    monkeypatch.setenv("DASSL_DOWNLOAD", "1")  # these are not fetched all the same
    name, folder = loader.__name__, loader.dataset_dir
    with pytest.raises(FileNotFoundError, match=f"{folder}.*does not exist. Fetch https://") as caught:
        build(name, ("art",), ("art",))
    assert "DASSL_DOWNLOAD" not in str(caught.value)
    (tmp_path / folder).mkdir()
    with pytest.raises(ValueError, match="mars"):
        build(name, ("mars",), ("mars",))
    with pytest.raises(FileNotFoundError, match=folder):
        build(name, loader.domains[:1], loader.domains[1:2])


def test_9_2_names_stand_beside_those_of_the_plugin():
    code = (
        "import dassl_clip.datasets\n"
        "from dassl.data.datasets import OfficeHome, VisDA17, miniDomainNet, DomainNet, DATASET_REGISTRY\n"
        "from dassl.data.datasets.da import Office31\n"
        "print(*(cls.__module__ for cls in (OfficeHome, VisDA17, miniDomainNet, DomainNet, Office31)))\n"
        "print(*(DATASET_REGISTRY.get(name).__module__ for name in ('OfficeHome', 'VisDA17')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, second = (line.split() for line in done.stdout.splitlines())
    names = ("office_home", "visda17", "mini_domainnet", "domainnet", "office31")
    assert first == [f"dassl.data.datasets.da.{name}" for name in names]
    assert second == ["dassl_clip.datasets.domain_sets", "dassl.data.datasets.da.visda17"]


class Colors(Backbone):
    """The mean colour of an image."""

    def __init__(self):
        super().__init__()
        self._out_features = 3
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.mean((2, 3)) * self.scale


@pytest.fixture
def da_trainer(make_cfg, tmp_path):
    """Makes a trainer on 3 classes of drawn Office-Home folders; keys and values may follow."""

    def colors(**kwargs):
        return Colors()

    BACKBONE_REGISTRY.register(colors, force=True)
    for shade, domain in enumerate(("art", "clipart", "real_world")):
        for name, color in COLORS.items():
            for number in range(4):
                shifted = tuple(max(0, value - 12 * shade - number) for value in color)
                draw(tmp_path / "office_home" / domain / name / f"{number}.png", shifted)

    def make(name: str, *pairs):
        return build_trainer(
            make_cfg(
                "TRAINER.NAME", name, "MODEL.BACKBONE.NAME", "colors", "DATASET.NAME", "OfficeHome",
                "DATASET.ROOT", str(tmp_path), "DATASET.SOURCE_DOMAINS", ("art", "clipart"),
                "DATASET.TARGET_DOMAINS", ("real_world",), "DATALOADER.TRAIN_X.BATCH_SIZE", 6, "OPTIM.MAX_EPOCH", 20,
                "OPTIM.LR", 0.5, "INPUT.TRANSFORMS", ("random_flip", "normalize"),
                "TRAINER.FIXMATCH.STRONG_TRANSFORMS", ("normalize", "gaussian_noise"),
                "TRAINER.FIXMATCH.CONF_THRE", 0.5, *pairs,
            )
        )  # fmt: skip

    return make


class Alignment(TrainerXU):
    """A trainer as people write them: cross entropy on the sources, mean features of both sides drawn together."""

    def forward_backward(self, batch_x, batch_u):
        image_x, label_x, image_u = self.parse_batch_train(batch_x, batch_u)
        output, features = self.model(image_x, return_feature=True)
        _, features_u = self.model(image_u, return_feature=True)
        loss_x = F.cross_entropy(output, label_x)
        loss_u = (features.mean(0) - features_u.mean(0)).pow(2).sum()
        self.model_backward_and_update(loss_x + 0.01 * loss_u)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss_x": loss_x.item(), "loss_u": loss_u.item(), "acc": compute_accuracy(output, label_x)[0].item()}


class MyFixMatch(FixMatch):
    """A subclass as people write them."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.kept = []

    def assess_y_pred_quality(self, y_pred, y_true, mask):
        self.kept.append(mask.sum().item())
        return super().assess_y_pred_quality(y_pred, y_true, mask)


@pytest.mark.parametrize(("name", "count", "batches"), [
    ("Alignment", "train_x", 4), ("SourceOnly", "train_u", 2), ("FixMatch", "smaller_one", 2),
    ("MyFixMatch", "train_x", 4),
])  # fmt: skip
def test_9_2_trainers_on_sources_and_target(da_trainer, name, count, batches):
    for cls in (Alignment, MyFixMatch):
        TRAINER_REGISTRY.register(cls, force=True)
    trainer = da_trainer(name, "TRAIN.COUNT_ITER", count)
    assert len(trainer.train_loader_u.dataset) == 12 and len(trainer.test_loader.dataset) == 12
    trainer.train()
    assert trainer.num_batches == batches and trainer.test() > 90
    again = da_trainer(name, "TRAIN.COUNT_ITER", count)
    assert again.resume_model_if_exist(again.output_dir) == 20 and again.test() == trainer.test()
    if name == "MyFixMatch":
        assert len(trainer.kept) == 20 * batches and trainer.kept[-1] > 0


def test_9_5_a_step_of_fixmatch_is_its_formula(da_trainer):
    trainer = da_trainer("FixMatch", "TRAINER.FIXMATCH.WEIGHT_U", 0.7, "OPTIM.NAME", "sgd", "OPTIM.MOMENTUM", 0.0)
    trainer.batch_idx, trainer.num_batches = 0, 9
    torch.nn.init.normal_(trainer.model.classifier.weight)
    batch_x, batch_u = next(iter(trainer.train_loader_x)), next(iter(trainer.train_loader_u))
    assert not torch.equal(batch_x["img"], batch_x["img2"])
    images = [(batch["img"][k], batch["img2"][k]) for batch in (batch_x, batch_u) for k in range(6)]
    labels = batch_x["label"].split(1)
    terms_x = [F.cross_entropy(trainer.model(weak[None]), label) for (weak, _), label in zip(images, labels)]
    terms_u, sure = [], []
    for weak, strong in images:
        probabilities = trainer.model(weak[None]).softmax(1)[0].tolist()
        sure.append(max(probabilities) >= 0.5)
        if sure[-1]:
            pseudo = torch.tensor([probabilities.index(max(probabilities))])
            terms_u.append(F.cross_entropy(trainer.model(strong[None]), pseudo))
    assert 0 < len(terms_u) < 12
    loss = sum(terms_x) / 6 + 0.7 * sum(terms_u) / 12
    (slope,) = torch.autograd.grad(loss, trainer.model.classifier.weight)
    expected = trainer.model.classifier.weight.detach() - trainer.get_current_lr() * (
        slope + trainer.cfg.OPTIM.WEIGHT_DECAY * trainer.model.classifier.weight.detach()
    )
    shown = trainer.forward_backward(batch_x, batch_u)
    torch.testing.assert_close(trainer.model.classifier.weight.detach(), expected)
    assert shown["loss_x"] == pytest.approx(sum(terms_x).item() / 6)
    assert shown["loss_u"] == pytest.approx(sum(terms_u).item() / 12)
    assert shown["y_u_pred_keep_rate"] == pytest.approx(100 * sum(sure[6:]) / 6)
    assert set(shown) == {"loss_x", "acc_x", "loss_u", "y_u_pred_acc_thre", "y_u_pred_acc_raw", "y_u_pred_keep_rate"}


def test_9_5_fixmatch_counts_its_pseudo_labels():
    count = FixMatch.assess_y_pred_quality
    predicted, true = torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 0])
    quality = count(None, predicted, true, torch.tensor([1.0, 0, 1, 0]))
    assert quality == {"acc_thre": 50.0, "acc_raw": 50.0, "keep_rate": 50.0}
    assert count(None, predicted, true, torch.zeros(4))["acc_thre"] == 0.0


def test_9_5_fixmatch_needs_a_strong_transform(da_trainer):
    with pytest.raises(AssertionError, match=r"FIXMATCH\.STRONG_TRANSFORMS"):
        da_trainer("FixMatch", "TRAINER.FIXMATCH.STRONG_TRANSFORMS", ())
