"""Losses and scores of the methods, as pure functions of tensors; losses are computed in float32 or wider.

Sources: NT-Xent is the normalised-temperature cross-entropy of SimCLR (Chen et al., ICML 2020, eq. 1), used by GOPro
(BMVC 2023, the contrastive loss between views) and CLAP (ECCV 2024). The prompt consistency is GOPro's semantic loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.results.errors import UserError


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32, or float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def image_conditioned_scores(features: Tensor, text: Tensor, logit_scale: Tensor) -> Tensor:
    """Scaled cosines of images `[B, E]` with their own prompts' text features `[B, C, E]`, giving `[B, C]`."""
    features, text = F.normalize(features, dim=-1), F.normalize(text, dim=-1)
    return logit_scale * torch.einsum("be,bce->bc", features, text)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Contrast the pairs `(a[i], b[i])` with every other row of both views, symmetrically.

    Each of the `2N` rows classifies its partner among the `2N - 1` other rows: negatives inside its own view count too.

    Args:
        a: First view, `[N, E]`; normalised here.
        b: Second view, `[N, E]`; row `i` belongs to row `i` of `a`.
        temperature: Divides the cosines; positive.

    Returns:
        The mean over the `2N` rows, a scalar. For a single pair there is nothing to contrast and the loss is 0.

    Raises:
        UserError: The shapes differ, are not `[N, E]`, or the temperature is not positive.
    """
    if a.shape != b.shape or a.dim() != 2:
        raise UserError(f"nt_xent takes two views of one shape [N, E], got {tuple(a.shape)} and {tuple(b.shape)}")
    if temperature <= 0:
        raise UserError(f"nt_xent takes a positive temperature, got {temperature}")
    n = len(a)
    z = F.normalize(at_least_float32(torch.cat([a, b])), dim=1)  # [2N, E]
    row = torch.arange(2 * n, device=z.device)
    logits = (z @ z.T / temperature).scatter(1, row[:, None], float("-inf"))  # [2N, 2N]
    return F.cross_entropy(logits, row.roll(n))


def prompt_consistency(text: Tensor, text_view: Tensor) -> Tensor:
    """Mean squared distance between the text features of two views (GOPro, the semantic loss of one augmentation).

    Args:
        text: Text features of the original view, `[B, C, E]`; normalised here.
        text_view: Text features of an augmented view, `[B, C, E]`.

    Returns:
        The mean over batch, classes and embedding, a scalar.

    Raises:
        UserError: The shapes differ (a broadcast would compare images with other images' views).
    """
    if text.shape != text_view.shape:
        raise UserError(f"prompt_consistency takes one shape, got {tuple(text.shape)} and {tuple(text_view.shape)}")
    text, text_view = (F.normalize(at_least_float32(t), dim=-1) for t in (text, text_view))
    return F.mse_loss(text, text_view)
