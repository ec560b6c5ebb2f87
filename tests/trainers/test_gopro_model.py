"""GOPro's learned parts against a plain rewriting of the method, loop by loop in float64.

Covers block statistics (also of a single position), the generator, scores and the three losses with all gradients, in
both variants, for a ViT's equal widths, a ResNet's stages and at ViT-B/16's full sizes; the shift's scale; and that the
default variant's contrastive term reaches the image projector alone.
"""

import math

import pytest
import torch
from torch import nn

from dassl_clip.clip.losses import image_conditioned_scores
from dassl_clip.trainers.gopro.model import (
    GOProLearner,
    PromptGenerator,
    image_statistics,
)

VIT_B16 = {"widths": [768] * 12, "positions": [197] * 12, "D": 512, "E": 512, "B": 2, "C": 3, "M": 4}
SMALL = {"widths": [6, 6, 6], "positions": [5, 5, 5], "D": 4, "E": 7, "B": 3, "C": 4, "M": 2}
RESNET = {"widths": [4, 8, 16, 32], "positions": [36, 9, 4, 1], "D": 6, "E": 5, "B": 3, "C": 2, "M": 3}


class ToyText(nn.Module):
    """A smooth stand-in for the frozen text tower: context and class vectors to a feature, one prompt at a time."""

    def __init__(self, sizes):
        super().__init__()
        self.names = torch.randn(sizes["C"], sizes["D"], dtype=torch.float64)
        self.out = torch.randn(sizes["D"], sizes["E"], dtype=torch.float64) / math.sqrt(sizes["D"])

    def forward(self, contexts):  # [B, M, D] -> [B, C, E]
        return torch.tanh(contexts.mean(1)[:, None] + self.names) @ self.out


def make(sizes, paper):
    torch.manual_seed(3)
    generator = PromptGenerator(sizes["widths"], 0.1 * torch.randn(sizes["M"], sizes["D"]), views=3 if paper else 1)
    learner = GOProLearner(generator, sizes["E"], project_scores=paper).double().train()
    blocks = [
        [torch.randn(sizes["B"], t, w, dtype=torch.float64) for w, t in zip(sizes["widths"], sizes["positions"])]
        for _ in range(3)
    ]
    features = [nn.functional.normalize(torch.randn(sizes["B"], sizes["E"], dtype=torch.float64)) for _ in range(3)]
    labels = torch.randint(sizes["C"], (sizes["B"],))
    return learner, ToyText(sizes), blocks, [image_statistics(view) for view in blocks], features, labels


def unit(vector):
    return vector / torch.sqrt(sum(x * x for x in vector.unbind()))


def linear(layer, vector):
    return layer.weight @ vector + layer.bias


def plain_context(generator, blocks, image, view):
    """`v_m = ctx_m + delta_i` of one image, from sums over tokens."""
    fused = []
    for index, block in enumerate(blocks):
        tokens = block[image]
        count = len(tokens)
        mu = sum(tokens) / count
        sigma = torch.sqrt((sum((h - mu) ** 2 for h in tokens) + 2.3e-8) / count)
        style = linear(generator.style[index], (mu + sigma) / 2)
        content = linear(generator.content[index], mu)
        fused.append((style + content) / 2)
    rho = generator.rho[view if len(generator.rho) > 1 else 0]
    delta = sum(w * g for w, g in zip(rho.weight[0], fused)) + rho.bias[0]
    return torch.stack([ctx + delta for ctx in generator.ctx])


def plain_projector(projector, rows):
    """Linear, then batch normalisation over the rows with the biased variance."""
    linear_layer, norm = projector
    out = [linear(linear_layer, row) for row in rows]
    mean = sum(out) / len(out)
    variance = sum((row - mean) ** 2 for row in out) / len(out)
    return [(row - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias for row in out]


def plain_losses(learner, text_tower, blocks, features, labels, scale, tau, paper):
    """Section 1 of the method, one image, class and pair at a time."""
    batch, classes = len(labels), len(text_tower.names)
    text = []
    for view in range(3):
        contexts = [plain_context(learner.generator, blocks[view], i, view) for i in range(batch)]
        rows = [text_tower(c[None])[0, k] for c in contexts for k in range(classes)]
        text.append(plain_projector(learner.text_projector, rows) if paper else rows)
    image = [plain_projector(learner.image_projector, features[v]) for v in range(2)]
    scored = image[0] if paper else list(features[0])

    ce, logits = 0.0, []
    for i in range(batch):
        row = torch.stack([scale * unit(scored[i]) @ unit(text[0][i * classes + k]) for k in range(classes)])
        logits.append(row)
        ce = ce - (row[labels[i]] - torch.log(sum(torch.exp(x) for x in row))) / batch

    consistency = 0.0
    for view in (1, 2):
        for t, other in zip(text[0], text[view]):
            consistency = consistency + ((unit(t) - unit(other)) ** 2).sum() / (len(text[0]) * len(t))

    rows = [unit(row) for row in image[0] + image[1]]
    contrastive = 0.0
    for i, row in enumerate(rows):
        others = [torch.exp(row @ other / tau) for k, other in enumerate(rows) if k != i]
        positive = torch.exp(row @ rows[(i + batch) % (2 * batch)] / tau)
        contrastive = contrastive - torch.log(positive / sum(others)) / len(rows)
    return {"ce": ce, "consistency": consistency, "contrastive": contrastive}, torch.stack(logits)


def gradients(loss, learner):
    parameters = dict(learner.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {name: g if g is not None else torch.zeros_like(p) for (name, p), g in zip(parameters.items(), found)}


@pytest.mark.parametrize(
    ("sizes", "paper"), [(SMALL, False), (SMALL, True), (RESNET, False), (RESNET, True), (VIT_B16, True)]
)
def test_losses_and_gradients_equal_the_plain_rewriting(sizes, paper):
    learner, tower, blocks, statistics, features, labels = make(sizes, paper)
    scale = torch.tensor(20.0, dtype=torch.float64)
    contexts = learner.generator.contexts(torch.cat(statistics), views=3).chunk(3)
    terms, logits = learner.losses(features[0], [tower(c) for c in contexts], labels, scale, 0.1, features[:2])
    expected, expected_logits = plain_losses(learner, tower, blocks, features, labels, scale, 0.1, paper)
    torch.testing.assert_close(logits, expected_logits, rtol=1e-10, atol=1e-10)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-10, atol=1e-12)
        ours, plain = gradients(terms[name], learner), gradients(value, learner)
        torch.testing.assert_close(ours, plain, rtol=1e-7, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}")


def test_inference_scores_equal_training_logits_in_eval_mode():
    for paper in (False, True):
        learner, tower, _, statistics, features, labels = make(SMALL, paper)
        learner.eval()
        text = tower(learner.generator(statistics[0]))
        _, logits = learner.losses(features[0], [text], labels, torch.tensor(5.0), 0.1, features[:2])
        compared = learner.compared(features[0], text)
        torch.testing.assert_close(image_conditioned_scores(*compared, torch.tensor(5.0)), logits)


def test_statistics_of_a_single_position_are_finite():
    block = torch.randn(2, 1, 8)
    mu, sigma = image_statistics([block]).chunk(2, dim=1)
    torch.testing.assert_close(mu, block[:, 0])
    torch.testing.assert_close(sigma, torch.full((2, 8), math.sqrt(2.3e-8)))


def test_contrastive_term_reaches_scores_in_the_paper_variant_alone():
    for paper in (False, True):
        learner, tower, _, statistics, features, labels = make(SMALL, paper)
        text = [tower(learner.generator(statistics[v], view=v)) for v in range(3)]
        terms, logits = learner.losses(features[0], text, labels, torch.tensor(5.0), 0.1, features[:2])
        touched = {n for n, g in gradients(terms["contrastive"], learner).items() if g.abs().sum() > 0}
        scoring = {n for n, g in gradients(logits.square().sum(), learner).items() if g.abs().sum() > 0}
        assert touched and all(name.startswith("image_projector") for name in touched)
        assert bool(touched & scoring) == paper


def test_fitted_shift_scale_gives_the_asked_rms_and_is_kept():
    learner, _, _, statistics, _, _ = make(SMALL, False)
    generator = learner.generator
    generator.fit_shift_scale(statistics[0], 0.37)
    shift = generator(statistics[0]) - generator.ctx
    assert shift.square().mean().sqrt().item() == pytest.approx(0.37, rel=1e-9)
    assert torch.equal(generator.state_dict()["shift_scale"], generator.shift_scale)


def test_statistics_of_another_tower_are_refused():
    learner, _, _, statistics, _, _ = make(SMALL, False)
    with pytest.raises(ValueError, match=r"reads statistics \[B, 36\], got \[3, 35\]"):
        learner.generator(statistics[0][:, 1:])
