"""InMaP's rule for class sizes as a plain program in float64, image by image and class by class."""

import numpy as np
import torch


def plain_theta(logits, r, tolerance=1e-12):
    """The fixed point by damped steps until nothing moves by more than the tolerance."""
    logits, theta = logits.numpy(), np.zeros(logits.shape[1])
    for _ in range(200_000):
        shifted = np.exp(logits + theta - (logits + theta).max(1, keepdims=True))
        mass = (shifted / shifted.sum(1, keepdims=True)).mean(0)
        new = theta + 0.2 * (r * np.log(len(theta) * mass) - theta) / (1 + abs(r))
        if np.abs(new - theta).max() < tolerance * 0.01:
            return new
        theta = new
    raise AssertionError("the plain loop did not end")


def plain_slope(logits, labels, gram):
    """Sums of an image's logits along the texts of its label: covariance and variance."""
    n, c = logits.shape
    size, mean = labels.mean(0), logits.mean(0)
    up = sum(labels[i, k] * (logits[i, k] - mean[k]) for i in range(n) for k in range(c)) / n
    down = sum(size[k] * (k == m) * gram[k, k] - size[k] * size[m] * gram[k, m] for k in range(c) for m in range(c))
    return up, down


def plain_bias(logits, gram, steps=30):
    """Text bias, its variance and its noise, image by image and class by class."""
    logits, gram = logits.numpy(), gram.numpy()
    n, c = logits.shape
    theta = np.zeros(c)
    for _ in range(steps):
        labels = np.exp(logits + theta) / np.exp(logits + theta).sum(1, keepdims=True)
        theta = np.log(np.maximum(c * labels.mean(0), 1e-6))
    labels = np.exp(logits + theta) / np.exp(logits + theta).sum(1, keepdims=True)
    up, down = plain_slope(logits, labels, gram)
    plain_up, plain_down = plain_slope(logits, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), gram)
    residual = logits - (up + 0.05 * plain_up / plain_down) / (down + 0.05) * labels @ gram
    residual -= residual.mean(1, keepdims=True)
    bias, size = residual.mean(0), labels.mean(0)
    noise = np.zeros(c)
    for k in range(c):
        noise += (sum(labels[i, k] * (residual[i] - bias) for i in range(n)) / n) ** 2
    alone = (size**2).sum()
    return bias, (bias**2).mean(), max(noise.mean(), alone) / (1 - alone)


def plain_choice(logits, gram):
    """Theta, r and the share of the proxies, by the rule as it is written down."""
    bias, variance, noise = plain_bias(logits, gram)
    less = logits - max(0.0, 1 - (0.13 + noise) / variance) * torch.from_numpy(bias)
    n, c = logits.shape
    labels = less.softmax(dim=1)
    z = float((c * labels.mean(0) - 1).square().mean() - (c * labels.square().sum(1).mean() - 1) / n)
    even = (less + torch.from_numpy(plain_theta(less, -1.0))).softmax(dim=1)
    share = n / (n + 2 * c)
    r = max(-share, 1 - 0.4 / z) if z > 0 else -share
    if float(labels.amax(1).mean() - even.amax(1).mean()) < 0.03:
        r = -share
    return plain_theta(less, r) + (less - logits)[0].numpy(), r, share
