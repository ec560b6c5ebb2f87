"""Backbones, heads, MixStyle, mixup, gradient reversal and operations on labels, against naive computations."""

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dassl.modeling import Backbone, build_backbone, build_head
from dassl.modeling.ops import (
    EFDMix,
    MixStyle,
    ReverseGrad,
    activate_efdmix,
    activate_mixstyle,
    create_onehot,
    cross_entropy,
    crossdomain_efdmix,
    crossdomain_mixstyle,
    deactivate_efdmix,
    deactivate_mixstyle,
    mixup,
    random_efdmix,
    random_mixstyle,
    run_with_efdmix,
    run_with_mixstyle,
    run_without_efdmix,
    run_without_mixstyle,
)
from dassl.modeling.ops.utils import (
    ema_model_update,
    linear_rampup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)


@pytest.mark.parametrize(
    ("name", "side", "width"),
    [
        ("cnn_digitsdg", 32, 256),
        ("cnn_digitsingle", 32, 1024),
        ("wide_resnet_16_4", 32, 256),
        ("wide_resnet_28_2", 16, 128),
        ("resnet18", 48, 512),
        ("resnet18_ms_l12", 48, 512),
    ],
)
def test_backbones_have_the_width_they_say(name, side, width):
    backbone = build_backbone(name, verbose=False, pretrained=False, unknown="keyword")
    assert isinstance(backbone, Backbone) and backbone.out_features == width
    features = backbone(torch.rand(2, 3, side, side))
    assert features.shape == (2, width)
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_digit_backbones_refuse_other_sizes():
    with pytest.raises(AssertionError, match="32x32"):
        build_backbone("cnn_digitsdg", verbose=False)(torch.rand(2, 3, 28, 28))
    assert Backbone().out_features is None


def test_resnet_is_torchvisions_without_the_classifier():
    from torchvision.models import resnet18

    backbone, whole = build_backbone("resnet18", verbose=False, pretrained=False).eval(), resnet18().eval()
    missing, unexpected = backbone.load_state_dict(whole.state_dict(), strict=False)
    assert missing == [] and unexpected == ["fc.weight", "fc.bias"]
    image = torch.rand(2, 3, 40, 40)
    torch.testing.assert_close(whole.fc(backbone(image)), whole(image))


def test_mixstyle_sits_after_the_named_stages():
    image = torch.rand(4, 3, 32, 32)
    backbone = build_backbone("resnet18_ms_l12", verbose=False, pretrained=False)
    backbone.mixstyle.p = 1.0
    calls = []
    backbone.mixstyle.register_forward_hook(lambda module, args, output: calls.append(args[0].shape[1]))
    backbone(image)
    assert calls == [64, 128]


def test_head_layers():
    head = build_head("mlp", verbose=False, in_features=5, hidden_layers=[4, 3], bn=False)
    assert [type(layer).__name__ for layer in head] == ["Linear", "ReLU", "Linear", "ReLU"] and head.out_features == 3
    assert build_head("mlp", verbose=False, in_features=5, hidden_layers=4).out_features == 4
    with pytest.raises(ValueError, match="gelu"):
        build_head("mlp", verbose=False, in_features=5, hidden_layers=4, activation="gelu")


class TestMixStyle:
    def styles(self, x):
        return x.mean((2, 3)), (x.var((2, 3)) + 1e-6).sqrt()

    def test_mixes_means_and_deviations_between_images(self):
        torch.manual_seed(0)
        x = torch.randn(6, 4, 5, 5, dtype=torch.float64) * torch.arange(1, 7).reshape(6, 1, 1, 1)
        out = MixStyle(p=1.0, alpha=1.0)(x)
        assert (out != x).flatten(1).any(1).sum() > 3
        means, stds = self.styles(x)
        out_means, out_stds = self.styles(out)
        for i in range(6):
            fits = []
            for j in range(6):
                share = ((out_means[i] - means[j]) / (means[i] - means[j])).nanmean().clamp(0, 1) if i != j else 1.0
                fits.append(
                    torch.allclose(out_means[i], share * means[i] + (1 - share) * means[j], atol=1e-6)
                    and torch.allclose(out_stds[i], share * stds[i] + (1 - share) * stds[j], atol=1e-4)
                )
            assert any(fits)
        normed = (x - means[:, :, None, None]) / stds[:, :, None, None]
        torch.testing.assert_close(
            (out - out_means[:, :, None, None]) / out_stds[:, :, None, None], normed, atol=1e-4, rtol=0
        )

    def test_partners_of_the_other_half(self):
        torch.manual_seed(0)
        for _ in range(10):
            partners = MixStyle(mix="crossdomain")._partners(8)
            assert sorted(partners.tolist()) == list(range(8))
            assert (partners[:4] >= 4).all() and (partners[4:] < 4).all()
        with pytest.raises(NotImplementedError, match="sideways"):
            MixStyle(p=1.0, mix="sideways")(torch.rand(2, 1, 2, 2))

    def test_acts_only_in_training_when_active_and_drawn(self):
        x = torch.rand(4, 2, 3, 3)
        layer = MixStyle(p=0.5)
        random.seed(0)
        changed = sum(not torch.equal(layer(x), x) for _ in range(400))
        assert 150 < changed < 250
        layer.p = 1.0
        assert torch.equal(layer.eval()(x), x)
        layer.train()
        layer.apply(deactivate_mixstyle)
        assert torch.equal(layer(x), x)
        layer.apply(activate_mixstyle)
        assert not torch.equal(layer(x), x)

    def test_no_gradient_flows_through_the_statistics(self):
        layer = MixStyle(p=1.0)
        layer.beta = torch.distributions.Beta(1e4, 1e-4)
        x = torch.rand(2, 1, 3, 3, requires_grad=True)
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, torch.ones_like(x))

    def test_switches(self):
        model = nn.Sequential(MixStyle(), nn.ReLU(), MixStyle())
        layers = [model[0], model[2]]
        with run_without_mixstyle(model):
            assert not any(layer._activated for layer in layers)
        assert all(layer._activated for layer in layers)
        with run_with_mixstyle(model, mix="crossdomain"):
            assert all(layer._activated and layer.mix == "crossdomain" for layer in layers)
        assert not any(layer._activated for layer in layers)
        model.apply(random_mixstyle)
        assert layers[0].mix == "random"
        model.apply(crossdomain_mixstyle)
        assert layers[1].mix == "crossdomain"


class TestEFDMix:
    """(row 9.5) The k-th smallest value of a channel meets the k-th smallest of another image's channel."""

    def test_9_5_mixes_order_statistics_with_weights_of_the_beta_distribution(self):
        layer = EFDMix(p=1.0, alpha=0.3)
        x = torch.randn(5, 3, 4, 2, dtype=torch.float64)
        torch.manual_seed(3)
        out = layer(x)
        torch.manual_seed(3)
        weights, partners = layer.beta.sample((5, 1, 1, 1)).double(), torch.randperm(5)
        assert not torch.equal(partners, torch.arange(5))
        for i, c in ((i, c) for i in range(5) for c in range(3)):
            own, other = x[i, c].flatten(), sorted(x[partners[i], c].flatten().tolist())
            for place, value in enumerate(own.tolist()):
                rank = sum(v < value for v in own.tolist())
                expected = weights[i] * value + (1 - weights[i]) * other[rank]
                torch.testing.assert_close(out[i, c].flatten()[place], expected.squeeze())

    def test_9_5_a_weight_of_zero_gives_exactly_the_partners_distribution(self):
        x = torch.randn(2, 3, 4, 4)
        mixed = EFDMix().mix_with(x, torch.tensor([1, 0]), torch.zeros(2, 1, 1, 1))
        torch.testing.assert_close(mixed.flatten(2).sort(-1).values, x[[1, 0]].flatten(2).sort(-1).values)
        torch.testing.assert_close(mixed.flatten(2).argsort(-1), x.flatten(2).argsort(-1))

    def test_9_5_the_own_gradient_is_that_of_the_identity(self):
        x = torch.randn(2, 1, 3, 3, dtype=torch.float64)
        own, slope = x.clone().requires_grad_(), torch.randn(1, 3, 3, dtype=torch.float64)
        weight = torch.tensor([0.7, 1.0]).double().reshape(2, 1, 1, 1)
        (EFDMix().mix_with(own, torch.tensor([1, 0]), weight)[0] * slope).sum().backward()
        torch.testing.assert_close(own.grad[0], slope)
        ranks = x[1].flatten().argsort().argsort()  # the partner's k-th value went where the own k-th one lies
        torch.testing.assert_close(own.grad[1].flatten(), 0.3 * slope.flatten()[x[0].flatten().argsort()][ranks])

    def test_9_5_switches_leave_mixstyle_alone(self):
        model = nn.Sequential(EFDMix(), MixStyle())
        layer, other = model
        with run_without_efdmix(model):
            assert not layer._activated and other._activated
        assert layer._activated
        with run_with_efdmix(model, mix="crossdomain"):
            assert layer._activated and layer.mix == "crossdomain" and other.mix == "random"
        assert not layer._activated and other._activated
        for act in (activate_efdmix, random_efdmix):
            model.apply(act)
        assert layer._activated and layer.mix == "random"
        for act in (deactivate_efdmix, crossdomain_efdmix):
            model.apply(act)
        assert not layer._activated and layer.mix == "crossdomain" and other.mix == "random"
        assert repr(layer) == "EFDMix(p=0.5, alpha=0.1, eps=1e-06, mix=crossdomain)"
        assert torch.equal(layer(torch.ones(2, 1, 2, 2)), torch.ones(2, 1, 2, 2))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize(("name", "kind"), [("ms", MixStyle), ("efdmix", EFDMix)])
def test_9_5_mixing_backbones(depth, name, kind):
    for stages in ("1", "12", "123"):
        backbone = build_backbone(f"resnet{depth}_{name}_l{stages}", verbose=False, pretrained=False)
        assert type(backbone.mixstyle) is kind and backbone.ms_layers == [f"layer{stage}" for stage in stages]
    backbone.mixstyle.p, widths = 1.0, []
    backbone.mixstyle.register_forward_hook(lambda module, args, output: widths.append(args[0].shape[1]))
    assert backbone(torch.rand(2, 3, 32, 32)).shape == (2, backbone.out_features)
    assert widths == [width * (1 if depth == 18 else 4) for width in (64, 128, 256)]


def test_9_5_a_backbone_of_ones_own_blocks():
    from dassl.modeling.backbone.resnet import BasicBlock, ResNet

    net = ResNet(BasicBlock, [1, 1, 1, 1], ms_class=EFDMix, ms_layers=["layer2"], ms_p=1.0, ms_a=0.2)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 512) and (net.mixstyle.p, net.mixstyle.alpha) == (1.0, 0.2)


def test_mixup_mixes_images_and_labels_alike():
    torch.manual_seed(0)
    x1, x2 = torch.zeros(50, 1, 2, 2), torch.ones(50, 1, 2, 2)
    y1, y2 = create_onehot(torch.zeros(50).long(), 2), create_onehot(torch.ones(50).long(), 2)
    x, y = mixup(x1, x2, y1, y2, beta=0.5)
    torch.testing.assert_close(x[:, 0, 0, 0], y[:, 1])
    torch.testing.assert_close(y.sum(1), torch.ones(50))
    assert x.min() < 0.2 and x.max() > 0.8
    x, _ = mixup(x1, x2, y1, y2, beta=0.5, preserve_order=True)
    assert x.max() <= 0.5


def test_reversed_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    out = ReverseGrad()(x, grad_scaling=0.5)
    assert torch.equal(out, x)
    (out * torch.tensor([3.0, 5.0])).sum().backward()
    assert x.grad.tolist() == [-1.5, -2.5]
    with pytest.raises(ValueError, match="-1"):
        ReverseGrad()(x, grad_scaling=-1)


@pytest.mark.parametrize("smooth", [0, 0.3])
def test_smoothed_cross_entropy(smooth):
    logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    logs = F.log_softmax(logits, 1)
    naive = torch.stack([
        -sum((smooth / 4 + (1 - smooth) * (c == label)) * row[c] for c in range(4)) for row, label in zip(logs, labels)
    ])  # fmt: skip
    torch.testing.assert_close(cross_entropy(logits, labels, label_smooth=smooth, reduction="none"), naive)
    torch.testing.assert_close(cross_entropy(logits, labels, label_smooth=smooth), naive.mean())
    torch.testing.assert_close(cross_entropy(logits, labels, label_smooth=smooth, reduction="sum"), naive.sum())


def test_label_operations():
    p = torch.tensor([[0.5, 0.25, 0.25]])
    torch.testing.assert_close(sharpen_prob(p), torch.tensor([[4.0, 1.0, 1.0]]) / 6)
    assert create_onehot(torch.tensor([2, 0]), 3).tolist() == [[0, 0, 1], [1, 0, 0]]
    data, label = torch.arange(10).reshape(5, 2), torch.arange(5)
    flipped = reverse_index(data, label)
    assert flipped[1].tolist() == [4, 3, 2, 1, 0] and flipped[0][:, 0].tolist() == [8, 6, 4, 2, 0]
    torch.manual_seed(1)
    shuffled = shuffle_index(data, label)
    assert sorted(shuffled[1].tolist()) == list(range(5)) and shuffled[1].tolist() != list(range(5))
    assert torch.equal(shuffled[0][:, 0], 2 * shuffled[1])


def test_ramps():
    assert [linear_rampup(x, 4) for x in (-1, 0, 1, 4, 9)] == [0, 0, 0.25, 1, 1]
    expected = torch.exp(-5 * (1 - torch.tensor([0.0, 0.0, 0.25, 1.0, 1.0], dtype=torch.float64)) ** 2).tolist()
    assert [sigmoid_rampup(x, 4) for x in (-1, 0, 1, 4, 9)] == pytest.approx(expected)
    assert linear_rampup(0, 0) == sigmoid_rampup(0, 0) == 1.0


def test_running_mean_of_a_model():
    model, average = nn.Linear(2, 1), nn.Linear(2, 1)
    expected = [0.9 * a + 0.1 * p for a, p in zip(average.parameters(), model.parameters())]
    ema_model_update(model, average, 0.9)
    for parameter, wanted in zip(average.parameters(), expected):
        torch.testing.assert_close(parameter, wanted)
