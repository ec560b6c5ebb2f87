"""The methods that score images together, written plainly: from the formulas of docs/methods.md, one draw at a time.

Images and classes are gone through one after the other where the formulas name one of them; matrices are dense. Shapes:
`N` images of a draw, `C` classes, `E` dimensions. Every function takes features `[N, E]`, logits `[N, C]`, proxies
`[C, E]` (rows of length 1) and the logit scale, and returns shares of the classes, `[N, C]`.
"""

import math

import torch
import torch.nn.functional as F
from plain import vision_proxy
from torch import Tensor

AUTHORS_STEPS = 2000
NEIGHBOURS, OUTER_STEPS, INNER_STEPS = 3, 10, 5  # of TransCLIP and StatA


def inmap(features: Tensor, logits: Tensor, proxies: Tensor, scale: float, steps: int = AUTHORS_STEPS) -> Tensor:
    """InMaP with class sizes that are read off the images."""
    theta, share = class_sizes(logits.double(), (proxies @ proxies.T).double())
    text = (logits + theta.to(logits)).softmax(dim=1)
    vision = vision_shares(features, text, proxies, 2 / scale, steps)
    return share * vision + (1 - share) * text


def inmap_uniform(
    features: Tensor, logits: Tensor, proxies: Tensor, scale: float, steps: int = AUTHORS_STEPS
) -> Tensor:
    """InMaP as in the paper: Sinkhorn's iterations towards classes of equal size."""
    labels = logits.double().softmax(dim=1)
    for _ in range(20):
        labels = labels / labels.sum(dim=0)
        labels = labels / labels.sum(dim=1, keepdim=True)
    return vision_shares(features, labels.to(logits), proxies, 4 / scale, steps)


def vision_shares(features: Tensor, labels: Tensor, proxies: Tensor, tau: float, steps: int) -> Tensor:
    """Shares by proxies that are learned from labels, those above 0.6 taken as sure."""
    labels = labels.clone()
    for row in labels:
        if row.max() > 0.6:
            row.copy_(F.one_hot(row.argmax(), len(row)))
    return (features @ vision_proxy(features, proxies.T, labels, tau, steps) / tau).softmax(dim=1)


def class_sizes(logits: Tensor, gram: Tensor) -> tuple[Tensor, float]:
    """What the class sizes add to the logits, `[C]`, and the share of the proxies in the scores.

    Args:
        logits: `[N, C]`, float64.
        gram: Products of the proxies, `[C, C]`.
    """
    n, c = logits.shape
    bias, noise = text_bias(logits, gram)
    bias = max(0.0, 1 - (0.13 + noise) / float((bias**2).mean())) * bias
    logits = logits - bias
    labels = logits.softmax(dim=1)
    z = float(((c * labels.mean(0) - 1) ** 2).mean() - (c * (labels**2).sum(1).mean() - 1) / n)
    even = (logits + fixed_point(logits, -1.0)).softmax(dim=1)
    share = n / (n + 2 * c)
    r = max(-share, 1 - 0.4 / z) if z > 0 else -share
    if labels.amax(1).mean() - even.amax(1).mean() < 0.03:
        r = -share
    return fixed_point(logits, r) - bias, share


def text_bias(logits: Tensor, gram: Tensor) -> tuple[Tensor, float]:
    """The bias of each class's text in logits, `[C]`, and the part of its variance that is noise."""
    n, c = logits.shape
    theta = torch.zeros(c).to(logits)
    for _ in range(30):
        theta = (c * (logits + theta).softmax(dim=1).mean(0)).clamp_min(1e-6).log()
    labels = (logits + theta).softmax(dim=1)
    alone = (labels.mean(0) ** 2).sum()
    up, down = slope(logits, labels, gram)
    plain_up, plain_down = slope(logits, logits.softmax(dim=1), gram)
    residual = logits - (up + 0.05 * plain_up / plain_down) / (down + 0.05) * labels @ gram
    residual = residual - residual.mean(dim=1, keepdim=True)
    bias = residual.mean(0)
    noise = sum((labels[:, k] @ (residual - bias) / n) ** 2 for k in range(c)).mean()
    return bias, float(noise.maximum(alone) / (1 - alone))


def slope(logits: Tensor, labels: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance of an image's logits with the products of its label's texts, and the variance of these."""
    size, mean = labels.mean(0), logits.mean(0)
    up = sum(labels[:, k] @ (logits[:, k] - mean[k]) for k in range(len(size))) / len(logits)
    return up, sum(size[k] * (gram[k, k] - gram[k] @ size) for k in range(len(size)))


def fixed_point(logits: Tensor, r: float) -> Tensor:
    """Theta with `theta_c = r log(C mass_c)`, `[C]`; half steps where whole ones would oscillate."""
    theta = torch.zeros(logits.shape[1]).to(logits)
    for _ in range(100_000):
        new = r * (logits.shape[1] * (logits + theta).softmax(dim=1).mean(0)).clamp_min(1e-6).log()
        new = new if r >= 0 else (theta + new) / 2
        if (new - theta).abs().max() < 1e-9:
            break
        theta = new
    return new


# ---------------------------------------------------------------------------------------------- Gaussians and graphs


def neighbour_weights(features: Tensor) -> Tensor:
    """`w_ij`, `[N, N]`: the cosines of each image and its nearest neighbours."""
    weights = torch.zeros(len(features), len(features)).to(features)
    for i, image in enumerate(features):
        cosines = features @ image
        cosines[i] = -math.inf
        top, index = cosines.topk(min(NEIGHBOURS, len(features) - 1))
        weights[i, index] = top
    return weights


def gaussian_labels(features: Tensor, prior: Tensor, means: Tensor, variances: Tensor, both: Tensor, z: Tensor):
    """Labels `[N, C]` under fixed Gaussians; `prior` are logarithms of CLIP's labels, `both` is `w + w^T`."""
    densities = [-(((features - mu) ** 2 / v).sum(1) + v.log().sum()) / 2 for mu, v in zip(means, variances)]
    fixed = prior + torch.stack(densities, dim=1) / 50
    for _ in range(INNER_STEPS):
        z = torch.stack([(row + near @ z / 6).softmax(dim=0) for row, near in zip(fixed, both)])
    return z


def transclip(features: Tensor, logits: Tensor, proxies: Tensor, scale: float) -> Tensor:
    """TransCLIP, started from the most confident images."""
    prior, weights, means = logits.log_softmax(dim=1), neighbour_weights(features), []
    z = prior.exp()
    for c in range(len(proxies)):
        top, index = z[:, c].topk(min(8, len(z)))
        means.append(F.normalize(top @ features[index], dim=0))
    variances = torch.full_like(proxies, 1 / proxies.shape[1])
    for step in range(OUTER_STEPS + 1):
        if step:
            means = [F.normalize(z[:, c] @ features, dim=0) for c in range(len(proxies))]
            spread = sum(z[:, c] @ (features - mu) ** 2 for c, mu in enumerate(means)) / len(z)
            variances = spread.expand_as(proxies)
        z = gaussian_labels(features, prior, means, variances, weights + weights.T, z)
    return z


def stata(features: Tensor, logits: Tensor, proxies: Tensor, scale: float) -> Tensor:
    """StatA: a Gaussian of its own for each class, anchored to its text as if by one image."""
    prior, weights = logits.log_softmax(dim=1), neighbour_weights(features)
    z = prior.exp()
    of_text = sum(z[:, c] @ (features - text) ** 2 for c, text in enumerate(proxies)) / len(z)
    means, variances = list(proxies), [of_text] * len(proxies)
    for step in range(OUTER_STEPS + 1):
        for c, text in enumerate(proxies) if step else ():
            count = float((z.argmax(dim=1) == c).sum())
            b, weight = count / (count + 1), z[:, c] / z[:, c].sum().clamp_min(1e-30)
            means[c] = F.normalize(b * F.normalize(weight @ features, dim=0) + (1 - b) * text, dim=0)
            own = weight @ (features - means[c]) ** 2
            variances[c] = b * own + (1 - b) * (of_text + (text - means[c]) ** 2)
        z = gaussian_labels(features, prior, means, variances, weights + weights.T, z)
    return z


def zlap(features: Tensor, logits: Tensor, proxies: Tensor, scale: float) -> Tensor:
    """ZLaP: labels of the texts, propagated through a graph, by a dense system of equations in float64."""
    features, cosines = features.double(), logits.double() / scale
    n, c = logits.shape
    w = torch.zeros(c + n, c + n).to(features)
    for i in range(n):
        near, index = (features @ features[i]).topk(min(5, n))
        for cosine, j in zip(near.tolist(), index.tolist()):
            w[c + i, c + j] = max(cosine, 0) * (i != j)
        near, index = cosines[i].topk(min(5, c))
        for cosine, j in zip(near.tolist(), index.tolist()):
            w[c + i, j] = max(cosine, 0) ** 5
    w = w + w.T
    root = torch.where(w.sum(0) > 0, w.sum(0), 1.0).rsqrt()
    system = torch.eye(c + n).to(w) - 0.3 * root[:, None] * w * root
    scores = torch.linalg.solve(system, torch.eye(c + n, c).to(w))[c:]
    return scores / scores.sum(dim=1, keepdim=True)


# ------------------------------------------------------------------------------------------------- one image at a time


def tda(features: Tensor, logits: Tensor, proxies: Tensor, scale: float) -> Tensor:
    """TDA: caches are lists of feature, entropy and, for doubtful images, the mask of classes."""
    classes = len(proxies)
    positive, negative = ([[] for _ in proxies] for _ in range(2))
    rows = []
    for x, row in zip(features, logits):
        p = row.softmax(dim=0)
        entropy = float(-(p * row.log_softmax(dim=0)).sum())
        label, mask = int(row.argmax()), (p > 0.03) & (p < 1)
        doubtful = 0.2 < entropy / math.log2(classes) < 0.5
        for cache, shots in ((positive, 3), (negative, 2 * doubtful)):
            if shots:
                cache[label] = sorted([*cache[label], (entropy, x, mask)], key=lambda entry: entry[0])[:shots]
        row = row.clone()
        for c, entries in enumerate(positive):
            if entries:
                keys = torch.stack([key for _, key, _ in entries])
                row[c] += 2 * scale / 100 * (-5 * (1 - keys @ x)).exp().sum()
        doubtful = [entry for entries in negative for entry in entries]
        if doubtful:
            affinities = (keys_of(doubtful) @ x - 1).exp()
            row -= 0.117 * scale / 100 * affinities @ torch.stack([mask for _, _, mask in doubtful]).to(x)
        rows.append(row)
    return torch.stack(rows).softmax(dim=1)


def keys_of(entries: list[tuple[float, Tensor, Tensor]]) -> Tensor:
    """The features of a cache's entries, `[K, E]`."""
    return torch.stack([key for _, key, _ in entries])


def onzeta(features: Tensor, logits: Tensor, proxies: Tensor, scale: float) -> Tensor:
    """OnZeta with ALPHA 1."""
    rho, w, tau, rows = torch.zeros(len(proxies)).to(logits), proxies.clone(), 4 / scale, []
    for i, (x, row) in enumerate(zip(features, logits), start=1):
        t = (row + rho).softmax(dim=0)
        rho = (rho - 20 / math.sqrt(i) * (t - 1 / len(proxies))).clamp_min(0)
        v = (w @ x / tau).softmax(dim=0)
        b = 0.8 * math.sqrt(i / len(logits))
        rows.append(b * v + (1 - b) * t)
        for c in range(len(w)):
            w[c] = F.normalize(w[c] - 0.5 / (math.sqrt(i) * tau) * (v[c] - t[c]) * x, dim=0)
    return torch.stack(rows)


def iota(features: Tensor, logits: Tensor, proxies: Tensor, scale: float, steps: int = AUTHORS_STEPS) -> Tensor:
    """IOTA with classes asked to be of equal size."""
    b, strength = torch.zeros(len(proxies)).to(logits), 0.5 * scale
    for _ in range(100):
        b = strength / (strength + 1) * (b - (len(proxies) * (logits + b).softmax(dim=1).mean(0)).log())
    labels = (logits + b).softmax(dim=1)
    p, top = labels.mean(0), labels.amax(dim=1).mean()
    for row in labels:
        c = row.argmax()
        if row[c] > p[c] / p.max() * top:
            row.copy_(F.one_hot(c, len(row)))
    proxy = vision_proxy(features, proxies.T, labels, 4 / scale, steps)
    return (scale * features @ proxy).softmax(dim=1)
