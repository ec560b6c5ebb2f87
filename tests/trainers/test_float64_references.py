"""Fine-tuning methods against float64 programs written from their formulas, on sizes and seeds of no golden file.

Covers: CLIPood's steps and beta average, WiSE-FT's training and every merged weight, FLYP's loss and its variants,
MIRO's regulariser, DomainBed's seeds, draws and split.
"""

import hashlib
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dassl_clip.datasets.domainbed import split_indices
from dassl_clip.results.domainbed import hyperparameters, seed_hash
from dassl_clip.trainers.flyp import contrastive_loss
from dassl_clip.trainers.miro import Guidance
from tests.trainers.golden_runs import CLOSE, close, same_change
from tests.trainers.toy_towers import take_step, toy_trainer

INPUTS, WIDTH, E, C = 9, 11, 6, 5
NAMES = ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight")


def drawn_case(seed, steps, batch):
    """A tower, texts of length 1, and the images and labels of each step."""
    torch.manual_seed(seed)
    tower = nn.Sequential(nn.Linear(INPUTS, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, E, bias=False))
    text = F.normalize(torch.randn(C, E), dim=-1)
    return tower.eval(), text, torch.randn(steps, batch, INPUTS), torch.randint(C, (steps, batch))


def features_of(weights, images):
    hidden = F.layer_norm(images @ weights["0.weight"].T + weights["0.bias"], (WIDTH,))
    hidden = F.gelu(hidden * weights["1.weight"] + weights["1.bias"]) @ weights["3.weight"].T
    return hidden / hidden.square().sum(1, keepdim=True).sqrt()


def fitted(weights, loss_of, rates, decay, most=math.inf):
    """The weights after 0 to T steps of AdamW in float64, gradients clipped to a norm."""
    weights = {name: value.detach().double() for name, value in weights.items()}
    first = {name: torch.zeros_like(value) for name, value in weights.items()}
    second, path = dict(first), [weights]
    for number, rate in enumerate(rates):
        leaves = {name: value.clone().requires_grad_() for name, value in weights.items()}
        grads = dict(zip(leaves, torch.autograd.grad(loss_of(leaves, number), leaves.values())))
        norm = math.sqrt(sum(grad.square().sum().item() for grad in grads.values()))
        weights = {}
        for name, value in leaves.items():
            grad = grads[name] * min(1.0, most / (norm + 1e-6))
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad**2
            mean, square = first[name] / (1 - 0.9 ** (number + 1)), second[name] / (1 - 0.999 ** (number + 1))
            weights[name] = (1 - rate * decay) * value.detach() - rate * mean / (square.sqrt() + 1e-8)
        path.append(weights)
    return path


@pytest.mark.parametrize(("seed", "steps", "beta", "margin"), [(3, 7, 0.5, 0.3), (4, 12, 0.1, 0.7)])
def test_clipood(tmp_path, seed, steps, beta, margin):
    tower, text, images, labels = drawn_case(seed, steps, 8)
    start, texts = {name: tower.get_parameter(name).detach().clone() for name in NAMES}, text.double()

    def loss_of(weights, number):
        features, total = features_of(weights, images[number].double()), 0
        for feature, label in zip(features, labels[number]):
            scores = torch.stack([50 * (feature @ t - margin * (texts[label] @ t)) for t in texts])
            total = total + torch.logsumexp(scores, 0) - scores[label]
        return total / len(features)

    rates = [1e-3 * (1 + math.cos(math.pi * number / steps)) / 2 for number in range(steps)]
    path = fitted(start, loss_of, rates, 0.1)
    places = [(number + 0.5) / (steps + 1) for number in range(steps + 1)]
    shares = [(place * (1 - place)) ** (beta - 1) for place in places]
    optim = {"NAME": "adamw", "LR": 1e-3, "WEIGHT_DECAY": 0.1}
    trainer = toy_trainer("CLIPood", tmp_path, tower, text, 50, steps, {"LAMBDA": margin, "BETA": beta}, optim)
    for number in range(steps):
        take_step(trainer, number, images[number], labels[number])
    for name in NAMES:
        average = sum(share * weights[name] for share, weights in zip(shares, path)) / sum(shares)
        same_change(trainer.rows()["last"][f"tower.{name}"], start[name], path[-1][name].float(), name)
        same_change(trainer.rows()["average"][f"tower.{name}"], start[name], average.float(), name)


def test_wise_ft(tmp_path):
    steps, warmup, most, smooth = 9, 4, 0.5, 0.2
    tower, text, images, labels = drawn_case(5, steps, 6)
    start = {f"tower.{name}": tower.get_parameter(name).detach().clone() for name in NAMES}
    start |= {"weight": 20 * text, "bias": torch.zeros(C)}

    def loss_of(weights, number):
        features = features_of({name: weights[f"tower.{name}"] for name in NAMES}, images[number].double())
        logs = (features @ weights["weight"].T + weights["bias"]).log_softmax(1)
        own = logs.gather(1, labels[number][:, None]).squeeze(1)
        return -((1 - smooth) * own + smooth * logs.mean(1)).mean()

    rates = [2e-3 * (i + 1) / warmup if i < warmup else 1e-3 * (1 + math.cos(math.pi * (i - warmup) / (steps - warmup)))
             for i in range(steps)]  # fmt: skip
    end = fitted(start, loss_of, rates, 0.1, most)[-1]
    alphas = (0.0, 0.35, 0.8, 1.0)
    settings = {"WARMUP": warmup, "MAX_NORM": most, "LABEL_SMOOTHING": smooth, "ALPHAS": alphas}
    optim = {"NAME": "adamw", "LR": 2e-3, "WEIGHT_DECAY": 0.1}
    trainer = toy_trainer("WiSEFT", tmp_path, tower, text, 20, steps, settings, optim)
    for number in range(steps):
        take_step(trainer, number, images[number], labels[number])
    rows = trainer.rows()
    for alpha in (*alphas, 0.5):  # 0.5 is the result
        for name, value in start.items():
            merged = (1 - alpha) * value.double() + alpha * end[name]
            if alpha:
                same_change(rows[f"alpha {alpha:g}"][name], value, merged.float(), f"{alpha} {name}")
            else:
                assert torch.equal(rows["alpha 0"][name], value)


@pytest.mark.parametrize("variant", ["batch", "batch_shared", "batch_masked"])
def test_flyp(variant):
    torch.manual_seed(6)
    images, texts = (F.normalize(torch.randn(13, 7), dim=-1) for _ in range(2))
    labels, total = torch.randint(4, (13,)), 0.0
    for rows, columns in ((images.double(), texts.double()), (texts.double(), images.double())):
        for i, row in enumerate(rows):
            same = [j for j in range(13) if labels[j] == labels[i]]
            scores = [30 * float(row @ column) for column in columns]
            seen = [score for j, score in enumerate(scores) if variant != "batch_masked" or j == i or j not in same]
            positives = same if variant == "batch_shared" else [i]
            rest = math.log(sum(map(math.exp, seen)))
            total += sum(rest - scores[j] for j in positives) / len(positives) / 13 / 2
    assert float(contrastive_loss(images, texts, torch.tensor(30.0), labels, variant)) == pytest.approx(total, rel=1e-5)


def test_miro():
    torch.manual_seed(7)
    shapes = [(3, 4, 2, 5), (6, 3, 7)]  # channels of a convolution, tokens first
    features, frozen = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    guidance = Guidance(shapes)
    with torch.no_grad():
        [b.add_(torch.randn_like(b)) for b in guidance.b]
    total = 0.0
    for new, old, b, axis in zip(features, frozen, guidance.b, (1, 2)):
        values = b.detach().double().flatten()
        terms = [
            (float(new[place]) - float(old[place])) ** 2 / variance + math.log(variance)
            for place in np.ndindex(*new.shape)
            for variance in [math.log1p(math.exp(float(values[place[axis]]))) + 1e-5]
        ]
        total += sum(terms) / len(terms) / 2
    close(guidance(features, frozen).detach(), torch.tensor(total), CLOSE)


def own_hash(text):
    return int.from_bytes(hashlib.md5(text.encode()).digest(), "big") % (1 << 31)


@pytest.mark.parametrize(("number", "trial"), [(13, 5), (19, 0), (40, 3)])
def test_domainbeds_draws(number, trial):
    seed = own_hash(f"({number}, {trial})")
    random = {name: np.random.RandomState(own_hash(f"({seed}, '{name}')"))
              for name in ("lr", "weight_decay", "batch_size", "resnet_dropout")}  # fmt: skip
    found = hyperparameters("VLCS", number, trial)
    assert found.lr == 10 ** (-5 + 1.5 * random["lr"].random_sample())
    assert found.weight_decay == pytest.approx(10 ** (-6 + 4 * random["weight_decay"].random_sample()), rel=1e-14)
    assert found.batch_size == int(2 ** (3 + 2.5 * random["batch_size"].random_sample()))
    assert found.dropout == (0.0, 0.1, 0.5)[random["resnet_dropout"].randint(3)]


@pytest.mark.parametrize(("length", "trial", "place"), [(7, 4, 2), (101, 0, 5), (1000, 9, 1)])
def test_domainbeds_split(length, trial, place):
    indices, held = np.arange(length), int(0.2 * length)
    np.random.RandomState(own_hash(f"({trial}, {place})")).shuffle(indices)
    out, rest = split_indices(length, held, seed_hash(trial, place))
    assert (out, rest) == (indices[:held].tolist(), indices[held:].tolist())
    assert sorted(out + rest) == list(range(length))
