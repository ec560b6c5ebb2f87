"""The papers' programs, written plainly: what the benchmarks compare this project with.

Full-length prompts of 77 tokens, one pass of the text tower for each image, one pass of the image tower for each view.
Every weight is that of the same open_clip model. Shapes: `B` images, `C` classes, `L` vision blocks, `T` tokens of a
block, `W` vision width, `M` context tokens, `D` text width, `S` positions of the text tower, `E` joint embedding.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.clip.backbone import FrozenCLIP
from dassl_clip.trainers.gopro.model import GOProLearner

STYLE_EPSILON = 2.3e-8
LEARNING_RATE = 10.0  # of InMaP, halved whenever the gradient grows


@torch.no_grad()
def vision_proxy(features: Tensor, text_proxy: Tensor, labels: Tensor, tau: float, steps: int) -> Tensor:
    """InMaP's gradient steps: the proxies `[E, C]` of features `[N, E]` with labels `[N, C]`, from those of the texts.

    What does not change, `X^T P`, is computed once, and no step allocates anything of the size of `[N, C]`.
    """
    rate, last, proxy = LEARNING_RATE / (len(features) * tau), math.inf, text_proxy.clone()
    target = features.T @ labels
    scores, gradient = torch.empty_like(labels), torch.empty_like(target)
    for _ in range(steps):
        torch.mm(features, proxy, out=scores)
        torch.softmax(scores.div_(tau), dim=1, out=scores)
        torch.mm(features.T, scores, out=gradient)
        norm = gradient.sub_(target).norm().item()
        if norm > last:
            rate /= 2
        last = norm
        proxy.sub_(gradient, alpha=rate)
        proxy.div_(proxy.norm(dim=0))
    return proxy


def prompt_ids(clip: FrozenCLIP, classnames: Sequence[str], n_ctx: int) -> Tensor:
    """Token ids `[C, S]` of "X X X X name.", as CoOp's program makes them."""
    return clip.text.tokenize([f"{'X ' * n_ctx}{name.replace('_', ' ')}." for name in classnames])


def prompt_features(clip: FrozenCLIP, context: Tensor, ids: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
    """Text features `[C, E]` of one context `[M, D]` before all classes, in rows of the full length.

    With `deep`, `[M', D]` each, the first `M'` rows of the context are replaced before the layers from 1 on.
    """
    model, m = clip.model, len(context)
    table = model.token_embedding(ids)
    rows = torch.cat([table[:, :1], context.expand(len(table), -1, -1), table[:, 1 + m :]], dim=1)
    x = rows + model.positional_embedding
    for number, block in enumerate(model.transformer.resblocks):
        if 1 <= number <= len(deep):
            own = deep[number - 1]
            x = torch.cat([x[:, :1], own.expand(len(x), -1, -1), x[:, 1 + len(own) :]], dim=1)
        x = block(x, attn_mask=model.attn_mask)
    return model.ln_final(x)[torch.arange(len(x), device=x.device), ids.argmax(-1)] @ model.text_projection


@torch.no_grad()
def text_features(clip: FrozenCLIP, texts: Sequence[str]) -> Tensor:
    """Features `[K, E]` of whole texts, in rows of the full length; not normalised."""
    return clip.model.encode_text(clip.text.tokenize(texts))


@torch.no_grad()
def image_features(clip: FrozenCLIP, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Normalised features `[B, E]` of images, and the output of each block of a ViT, `L x [B, T, W]`."""
    blocks: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, given, out: blocks.append(out))
        for block in clip.model.visual.transformer.resblocks
    ]
    try:
        features = clip.model.visual(images)
    finally:
        for hook in hooks:
            hook.remove()
    return F.normalize(features, dim=-1), blocks


def shifts(learner: GOProLearner, blocks: Sequence[Tensor]) -> Tensor:
    """GOPro's shift of each image, `[B, D]`, from block outputs `L x [B, T, W]`: image after image, block after block.

    The learned weights are the learner's; for the released variant, in which one `rho` serves all views.
    """
    generator = learner.generator
    rows = []
    for image in range(len(blocks[0])):
        fused = []
        for block, style, content in zip(blocks, generator.style, generator.content):
            h = block[image]
            mu = h.mean(0)
            sigma = (((h - mu) ** 2).sum(0) / len(h) + STYLE_EPSILON / len(h)).sqrt()
            fused.append((style((mu + sigma) / 2) + content(mu)) / 2)
        rows.append(generator.rho[0](torch.stack(fused, dim=1))[:, 0])
    return generator.shift_scale * torch.stack(rows)


def contrastive(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """NT-Xent of two views `[B, E]`, row after row."""
    z = F.normalize(torch.cat([a, b]), dim=1)
    losses = []
    for row in range(len(z)):
        others = [k for k in range(len(z)) if k != row]
        partner = others.index((row + len(a)) % len(z))
        losses.append(-F.log_softmax(z[others] @ z[row] / temperature, dim=0)[partner])
    return torch.stack(losses).mean()
