"""(row 9.2) Trainers on the data sets of domain adaptation, as people write them."""

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dassl.data.datasets import DATASET_REGISTRY, OfficeHome
from dassl.engine import TRAINER_REGISTRY, TrainerXU, build_trainer
from dassl.engine.ssl import FixMatch
from dassl.metrics import compute_accuracy
from dassl.modeling import BACKBONE_REGISTRY, Backbone

COLORS = {"Alarm_Clock": (200, 40, 40), "TV": (40, 200, 40), "Table": (40, 40, 200)}


class Colors(Backbone):
    """The mean colour of an image."""

    def __init__(self):
        super().__init__()
        self._out_features = 3
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.mean((2, 3)) * self.scale


@pytest.fixture
def da_trainer(make_cfg, tmp_path, monkeypatch):
    """Makes a trainer on 3 classes of drawn Office-Home folders; keys and values may follow."""

    def colors(**kwargs):
        return Colors()

    monkeypatch.setitem(DATASET_REGISTRY._obj_map, "OfficeHome", OfficeHome)  # a plugin may have put another there
    BACKBONE_REGISTRY.register(colors, force=True)
    for shade, domain in enumerate(("art", "clipart", "real_world")):
        for name, color in COLORS.items():
            for number in range(4):
                shifted = tuple(max(0, value - 12 * shade - number) for value in color)
                path = tmp_path / "office_home" / domain / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), shifted).save(path)

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
