"""Optimizers and schedules: published learning rates, resuming anywhere, states of numbers, errors."""

import io
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import ConstantWarmupScheduler, LinearWarmupScheduler
from dassl.optim.radam import RAdam

PUBLISHED_50 = {
    1: 1.0000e-05, 2: 2.0000000e-03, 3: 1.9980267e-03, 4: 1.9921147e-03, 5: 1.9822873e-03, 6: 1.9685832e-03,
    7: 1.9510565e-03, 8: 1.9297765e-03, 9: 1.9048271e-03, 10: 1.8763067e-03, 25: 1.1253332e-03, 26: 1.0627905e-03,
    27: 1.0000000e-03, 44: 1.2369332e-04, 45: 9.5172948e-05, 46: 7.0223514e-05, 47: 4.8943484e-05, 48: 3.1416839e-05,
    49: 1.7712749e-05, 50: 7.8852987e-06,
}  # fmt: skip
PUBLISHED_OTHERS = [
    (10, 0.002, [1e-5, 2.0e-3, 1.9511e-3, 1.8090e-3, 1.5878e-3, 1.3090e-3, 1.0e-3, 6.9098e-4, 4.1221e-4, 1.9098e-4]),
    (5, 0.0035, [1e-5, 3.5e-3, 3.1658e-3, 2.2908e-3, 1.2092e-3]),
]


def optim_cfg(**settings):
    cfg = get_cfg_default().OPTIM
    cfg.NAME, cfg.LR, cfg.LR_SCHEDULER, cfg.MAX_EPOCH = "sgd", 0.002, "cosine", 50
    cfg.WARMUP_EPOCH, cfg.WARMUP_TYPE = 1, "constant"
    for name, value in settings.items():
        cfg[name] = value
    return cfg


def build(cfg):
    optimizer = build_optimizer(nn.Linear(2, 2), cfg)
    return optimizer, build_lr_scheduler(optimizer, cfg)


def run(optimizer, scheduler, epochs: int) -> list[float]:
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def through_a_file(state: dict) -> dict:
    """A state as it comes back from a checkpoint that admits no objects."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def expected_rate(epoch: int, cfg) -> float:
    """The rate of an epoch (from 0) in closed form."""
    base, length, warmup = cfg.LR, cfg.MAX_EPOCH, cfg.WARMUP_EPOCH
    if epoch < warmup:
        if cfg.WARMUP_TYPE == "constant":
            return cfg.WARMUP_CONS_LR
        return cfg.WARMUP_MIN_LR if epoch == 0 else base * epoch / warmup
    if cfg.WARMUP_RECOUNT:
        return base / 2 * (1 + math.cos(math.pi * (epoch - warmup) / length))
    if epoch == warmup:
        return base
    return base * (1 + math.cos(math.pi * epoch / length)) / (1 + math.cos(math.pi * warmup / length))


VARIANTS = [
    {},
    {"MAX_EPOCH": 200},
    {"WARMUP_RECOUNT": False},
    {"WARMUP_TYPE": "linear", "WARMUP_EPOCH": 5, "MAX_EPOCH": 10},
    {"WARMUP_TYPE": "linear", "WARMUP_EPOCH": 3, "WARMUP_RECOUNT": False},
]


def test_published_rates_of_50_epochs():
    rates = run(*build(optim_cfg()), 50)
    assert {epoch: f"{rates[epoch - 1]:.7e}" for epoch in PUBLISHED_50} == {
        epoch: f"{rate:.7e}" for epoch, rate in PUBLISHED_50.items()
    }


@pytest.mark.parametrize(("length", "base", "published"), PUBLISHED_OTHERS)
def test_published_rates_of_other_lengths(length, base, published):
    rates = run(*build(optim_cfg(MAX_EPOCH=length, LR=base)), length)
    assert [f"{rate:.4e}" for rate in rates] == [f"{rate:.4e}" for rate in published]


def test_published_rates_without_recount_and_with_linear_warmup():
    rates = run(*build(optim_cfg(WARMUP_RECOUNT=False)), 50)
    assert rates[:5] == pytest.approx([1e-5, 2.0e-3, 1.994082e-3, 1.984245e-3, 1.970527e-3], rel=1e-6)
    assert rates[-2:] == pytest.approx([7.893e-6, 1.975e-6], rel=1e-3)
    rates = run(*build(optim_cfg(WARMUP_TYPE="linear", WARMUP_EPOCH=5, MAX_EPOCH=10)), 8)
    assert rates == pytest.approx([1e-5, 4e-4, 8e-4, 1.2e-3, 1.6e-3, 2e-3, 1.9511e-3, 1.8090e-3], rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rates_follow_the_closed_form(variant):
    cfg = optim_cfg(**variant)
    rates = run(*build(cfg), cfg.MAX_EPOCH)
    assert rates == pytest.approx([expected_rate(epoch, cfg) for epoch in range(cfg.MAX_EPOCH)], rel=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("stop", [1, 2, 3, 7])
def test_resumed_rates_are_those_of_an_uninterrupted_run(variant, stop):
    cfg = optim_cfg(**variant)
    whole = run(*build(cfg), cfg.MAX_EPOCH)
    optimizer, scheduler = build(cfg)
    run(optimizer, scheduler, stop)
    states = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    optimizer, scheduler = build(cfg)
    optimizer.load_state_dict(states["optimizer"])
    scheduler.load_state_dict(states["scheduler"])
    assert scheduler.successor.optimizer is optimizer
    assert run(optimizer, scheduler, cfg.MAX_EPOCH - stop) == pytest.approx(whole[stop:], rel=1e-12)


@pytest.mark.parametrize("stop", [1, 4])
def test_state_of_the_original_toolbox_is_read(stop):
    cfg = optim_cfg()
    whole = run(*build(cfg), 50)
    optimizer, scheduler = build(cfg)
    run(optimizer, scheduler, stop)
    old = {key: value for key, value in vars(scheduler).items() if key != "optimizer"}
    assert isinstance(old["successor"], CosineAnnealingLR)
    fresh, live = build(cfg)
    fresh.load_state_dict(optimizer.state_dict())
    live.load_state_dict(old)
    assert live.successor is not old["successor"]
    assert run(fresh, live, 50 - stop) == pytest.approx(whole[stop:], rel=1e-12)


def test_wrappers_take_positions_and_ignore_verbose():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    successor = CosineAnnealingLR(optimizer, 4)
    scheduler = ConstantWarmupScheduler(optimizer, successor, 2, 0.1, -1, True)
    assert run(optimizer, scheduler, 4) == pytest.approx([0.1, 0.1, 1.0, 0.5 * (1 + math.cos(math.pi / 4))])
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = LinearWarmupScheduler(optimizer, CosineAnnealingLR(optimizer, 4), 2, 0.1, verbose=True)
    assert run(optimizer, scheduler, 3) == pytest.approx([0.1, 0.5, 1.0])
    assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]


def test_each_group_keeps_its_own_base_rate():
    groups = [{"params": nn.Linear(1, 1).parameters(), "lr": 0.1}, {"params": nn.Linear(1, 1).parameters(), "lr": 1.0}]
    cfg = optim_cfg(WARMUP_TYPE="linear", WARMUP_EPOCH=4)
    optimizer = build_optimizer(groups, cfg)
    scheduler = build_lr_scheduler(optimizer, cfg)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.5])


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": (2, 3), "MAX_EPOCH": 7}, [1, 1, 1, 0.1, 0.1, 0.1, 0.01]),
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": (-1,), "MAX_EPOCH": 3}, [1, 1, 1, 0.1, 0.1, 0.1, 0.01]),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": (1, 4), "GAMMA": 0.5}, [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]),
    ],
)
def test_steps_and_their_states(settings, rates):
    cfg = optim_cfg(LR=1.0, WARMUP_EPOCH=-1, **settings)
    assert run(*build(cfg), 7) == pytest.approx(rates)
    optimizer, scheduler = build(cfg)
    run(optimizer, scheduler, 3)
    states = through_a_file({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    optimizer, scheduler = build(cfg)
    optimizer.load_state_dict(states["optimizer"])
    scheduler.load_state_dict(states["scheduler"])
    assert run(optimizer, scheduler, 4) == pytest.approx(rates[3:])


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"LR_SCHEDULER": "cosin"}, ValueError),
        ({"WARMUP_TYPE": "quadratic"}, ValueError),
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": (0.5,)}, TypeError),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": 3}, TypeError),
    ],
)
def test_schedule_errors(settings, error):
    with pytest.raises(error):
        build(optim_cfg(**settings))


@pytest.mark.parametrize(
    ("name", "kind", "defaults"),
    [
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.99), "amsgrad": False}),
        ("amsgrad", torch.optim.Adam, {"betas": (0.8, 0.99), "amsgrad": True}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.99)}),
        ("radam", RAdam, {"betas": (0.8, 0.99)}),
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "dampening": 0, "nesterov": True}),
        ("rmsprop", torch.optim.RMSprop, {"momentum": 0.7, "alpha": 0.95}),
    ],
)
def test_optimizers_take_their_settings(name, kind, defaults):
    cfg = optim_cfg(
        NAME=name, LR=0.3, WEIGHT_DECAY=0.02, MOMENTUM=0.7, SGD_NESTEROV=True, RMSPROP_ALPHA=0.95, ADAM_BETA1=0.8,
        ADAM_BETA2=0.99,
    )  # fmt: skip
    optimizer = build_optimizer(nn.Linear(2, 1), cfg)
    assert type(optimizer) is kind
    wanted = {"lr": 0.3, "weight_decay": 0.02, **defaults}
    assert {key: optimizer.defaults[key] for key in wanted} == wanted


def test_optimizer_sources_and_errors():
    model = nn.Linear(2, 1)
    model.bias.requires_grad = False
    cfg = optim_cfg()
    assert build_optimizer(model, cfg).param_groups[0]["params"] == list(model.parameters())
    assert build_optimizer([model.weight], cfg).param_groups[0]["params"] == [model.weight]
    groups = [{"params": [model.weight], "lr": 0.5}]
    assert build_optimizer(None, cfg, param_groups=groups).param_groups[0]["lr"] == 0.5
    with pytest.warns(UserWarning, match="STAGED_LR"):
        build_optimizer(model, optim_cfg(STAGED_LR=True), param_groups=[model.weight])
    with pytest.raises(ValueError, match="sgdd"):
        build_optimizer(model, optim_cfg(NAME="sgdd"))
    with pytest.raises(TypeError):
        build_optimizer([model.weight], optim_cfg(STAGED_LR=True))


@pytest.mark.parametrize("names", ["head", ["head"]])
def test_staged_rates_cover_parameters_of_the_module_itself(names):
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    model.scale = nn.Parameter(torch.ones(1))
    cfg = optim_cfg(STAGED_LR=True, LR=0.1, BASE_LR_MULT=0.5)
    cfg.NEW_LAYERS = names
    base, new = build_optimizer(model, cfg).param_groups
    assert (base["lr"], new["lr"]) == (0.05, 0.1)
    assert {id(p) for p in base["params"]} == {id(model.scale), *(id(p) for p in model["body"].parameters())}
    assert {id(p) for p in new["params"]} == {id(p) for p in model["head"].parameters()}


def test_unknown_new_layers_are_said():
    cfg = optim_cfg(STAGED_LR=True)
    cfg.NEW_LAYERS = ["haed"]
    with pytest.warns(UserWarning, match=r"\['haed'\].*\['head'\]"):
        build_optimizer(nn.ModuleDict({"head": nn.Linear(2, 1)}), cfg)


def test_radam_lowers_a_quadratic():
    point = nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = RAdam([point], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        point.square().sum().backward()
        optimizer.step()
    assert point.abs().max() < 0.05
