"""The DG trainers on the toy images: they learn, their registered parts, and their single steps against naive ones."""

import copy
import os

import pytest
import torch
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.modeling import BACKBONE_REGISTRY, Backbone

PARTS = {"Vanilla": {"model"}, "CrossGrad": {"F", "D"}, "DomainMix": {"model"}, "DAELDG": {"F", "E"}}


class Pixels(Backbone):
    """The pixels times one learned number."""

    def __init__(self):
        super().__init__()
        self._out_features = 192
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x.flatten(1) * self.scale


@pytest.fixture
def make_trainer(make_cfg):
    def pixels(**kwargs):
        return Pixels()

    BACKBONE_REGISTRY.register(pixels, force=True)

    def make(name: str, *pairs):
        return build_trainer(
            make_cfg(
                "TRAINER.NAME", name, "MODEL.BACKBONE.NAME", "pixels", "DATASET.SOURCE_DOMAINS", ("ink", "oil"),
                "DATALOADER.TRAIN_X.SAMPLER", "RandomDomainSampler", "DATALOADER.TRAIN_X.BATCH_SIZE", 12,
                "TRAINER.DAELDG.STRONG_TRANSFORMS", ("random_flip", "normalize"), *pairs,
            )
        )  # fmt: skip

    return make


@pytest.mark.parametrize("name", PARTS)
def test_learns_saves_and_resumes(make_trainer, name):
    settings = ("OPTIM.MAX_EPOCH", 6, "OPTIM.LR", 0.005, "INPUT.TRANSFORMS", ("normalize",))
    trainer = make_trainer(name, *settings)
    trainer.train()
    assert set(trainer.get_model_names()) == PARTS[name]
    assert PARTS[name] | {"tensorboard"} == set(os.listdir(trainer.output_dir))
    assert trainer.test() > 80
    again = make_trainer(name, *settings)
    assert again.resume_model_if_exist(again.output_dir) == 6
    assert again.test() == trainer.test()


def test_crossgrad_moves_images_along_the_other_nets_gradient(make_trainer):
    trainer = make_trainer("CrossGrad", "OPTIM.WARMUP_EPOCH", -1)
    trainer.batch_idx, trainer.num_batches = 0, 2
    batch = next(iter(trainer.train_loader_x))
    image, label, domain = batch["img"], batch["label"], batch["domain"]
    nets = {name: copy.deepcopy(trainer._models[name]) for name in ("F", "D")}
    moved = {}
    for name, target in (("F", label), ("D", domain)):
        x = image.clone().requires_grad_()
        F.cross_entropy(nets[name](x), target).backward()
        moved[name] = image + x.grad.clamp(-0.1, 0.1)
    loss_f = 0.5 * F.cross_entropy(nets["F"](image), label) + 0.5 * F.cross_entropy(nets["F"](moved["D"]), label)
    loss_d = 0.5 * F.cross_entropy(nets["D"](image), domain) + 0.5 * F.cross_entropy(nets["D"](moved["F"]), domain)
    summary = trainer.forward_backward(batch)
    assert summary["loss_f"] == pytest.approx(loss_f.item(), rel=1e-5)
    assert summary["loss_d"] == pytest.approx(loss_d.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["crossdomain", "random"])
def test_domain_mix_partners(make_trainer, kind):
    trainer = make_trainer("DomainMix", "TRAINER.DOMAINMIX.TYPE", kind)
    domain = torch.tensor([0, 0, 0, 1, 1, 2])
    x, target = torch.arange(6.0).reshape(6, 1, 1, 1), torch.arange(6)
    partners = []
    for _ in range(50):
        mixed, first, second, weight = trainer.domain_mix(x, target, domain)
        torch.testing.assert_close(mixed.flatten(), weight * first + (1 - weight) * second)
        assert torch.equal(first, target)
        partners.append(second)
    partners = torch.stack(partners)
    if kind == "crossdomain":
        assert (domain[partners] != domain).all() and len(partners.unique()) == 6
    else:
        assert all(sorted(row.tolist()) == list(range(6)) for row in partners)
    one_domain = trainer.domain_mix(x, target, torch.zeros(6))
    assert sorted(one_domain[2].tolist()) == list(range(6))
    with pytest.raises(NotImplementedError, match="sideways"):
        make_trainer("DomainMix", "TRAINER.DOMAINMIX.TYPE", "sideways")


def test_daeldg_losses(make_trainer):
    trainer = make_trainer("DAELDG")
    trainer.batch_idx, trainer.num_batches = 0, 2
    batch = next(iter(trainer.train_loader_x))
    experts, net = copy.deepcopy(trainer.E), copy.deepcopy(trainer.F)
    loss_x = loss_cr = 0.0
    for weak, strong, label, own in zip(batch["img"], batch["img2"], batch["label"], batch["domain"].tolist()):
        predicted = experts.linears[own](net(weak[None])).softmax(1)[0]
        other = experts.linears[1 - own](net(strong[None])).softmax(1)[0]
        loss_x -= (predicted[label] + 1e-5).log().item() / 12
        loss_cr += ((other - predicted) ** 2).sum().item() / 12
    summary = trainer.forward_backward(batch)
    assert summary["loss_x"] == pytest.approx(loss_x, rel=1e-4)
    assert summary["loss_cr"] == pytest.approx(loss_cr, rel=1e-4)
    image = batch["img"]
    mean = (trainer.E(0, trainer.F(image)) + trainer.E(1, trainer.F(image))) / 2
    torch.testing.assert_close(trainer.model_inference(image), mean)


def test_daeldg_checks_its_settings(make_trainer):
    with pytest.raises(AssertionError, match="RandomDomainSampler"):
        make_trainer("DAELDG", "DATALOADER.TRAIN_X.SAMPLER", "RandomSampler")
    with pytest.raises(AssertionError, match="STRONG_TRANSFORMS"):
        make_trainer("DAELDG", "TRAINER.DAELDG.STRONG_TRANSFORMS", ())
    assert {"Vanilla", "CrossGrad", "DomainMix", "DAELDG"} <= set(TRAINER_REGISTRY.registered_names())
