"""GOPro's learnable parts: prompts generated from an image's content and style, and the projectors.

Source: Singha et al., "GOPro: Generate and Optimize Prompts in CLIP using Self-Supervised Learning", BMVC 2023
(arXiv 2308.11605). The statistics, the fusion and the shift follow the authors' program. Left out of it:
comparing every image with views of the batch's first image, the unused meta-net, and literal layer sizes.
"""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl_clip.clip.losses import image_conditioned_scores, nt_xent, prompt_consistency
from dassl_clip.results.errors import UserError

STYLE_EPSILON = 2.3e-8  # under the root of the style's deviation
VIEWS = ("original", "moco", "augmix")
# Names in a checkpoint of the authors' program.
LEARNER, PROJECTOR = "prompt_learner.", "simproj."
PUBLISHED_LAYER = re.compile(r"prompt_learner\.(style|content)\w*\.(?:\w+\.)*?(\d+)\.(weight|bias)$")
UNREAD = ("image_encoder.", "text_encoder.", "logit_scale", f"{LEARNER}token_", f"{LEARNER}meta_net.")
PROJECTOR_KEYS = {f"image_projector.{key}" for key in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean",
                  "1.running_var", "1.num_batches_tracked")}  # fmt: skip


def image_statistics(blocks: Sequence[Tensor]) -> Tensor:
    """All that the generator reads of an image: mean and deviation of the tokens of each vision block.

    Args:
        blocks: Block outputs, `L x [B, T, W]`.

    Returns:
        `mu_1, sigma_1, mu_2, ...` side by side, `[B, 2 (W_1 + ... + W_L)]`, with `sigma = sqrt((sum_T (h - mu)^2 +
        2.3e-8) / T)`: the biased deviation, which exists for a map of a single position as well.
    """
    parts = []
    for block in blocks:
        mu = block.mean(1)
        squares = (block - mu[:, None]).square().sum(1)
        parts += [mu, ((squares + STYLE_EPSILON) / block.shape[1]).sqrt()]
    return torch.cat(parts, dim=1)


class PromptGenerator(nn.Module):
    """The context of each image: shared context vectors plus one shift made of the image's content and style.

    For block `l`: style `s_l = Linear_s,l((mu_l + sigma_l) / 2)`, content `c_l = Linear_c,l(mu_l)`, fused
    `g_l = (s_l + c_l) / 2`; the shift is `rho` over the `L` fused vectors, times `shift_scale`; context token `m` of
    image `i` is `ctx_m + delta_i`.

    Args:
        widths: Width of each vision block, length `L` (equal for a ViT, one per stage for a ResNet).
        context: Initial context, `[M, D]`.
        views: Number of shift layers: 1 serves all views, 3 gives each view its own `rho` (the paper's figure).
        shift_scale: The factor on the shift; 1.0 is the authors' program.
    """

    shift_scale: Tensor

    def __init__(self, widths: Sequence[int], context: Tensor, views: int = 1, shift_scale: float = 1.0):
        super().__init__()
        width = context.shape[1]
        self.widths = tuple(widths)
        self.style = nn.ModuleList(nn.Linear(w, width) for w in self.widths)
        self.content = nn.ModuleList(nn.Linear(w, width) for w in self.widths)
        self.rho = nn.ModuleList(nn.Linear(len(self.style), 1) for _ in range(views))
        self.ctx = nn.Parameter(context.clone())
        self.register_buffer("shift_scale", torch.tensor(float(shift_scale)))

    def shift(self, statistics: Tensor, view: int = 0) -> Tensor:
        """The shift `delta`, `[B, D]`, before `shift_scale`.

        Args:
            statistics: `image_statistics` of the images.
            view: Its place in `VIEWS`; one `rho` serves all alike.

        Raises:
            UserError: The statistics are those of another tower.
        """
        widths = [width for width in self.widths for _ in ("mu", "sigma")]
        if statistics.shape[1] != sum(widths):
            raise UserError(f"the generator reads statistics [B, {sum(widths)}], got {list(statistics.shape)}")
        parts = statistics.to(self.ctx.dtype).split(widths, dim=1)
        blocks = zip(parts[::2], parts[1::2], self.style, self.content)
        fused = [(style((mu + sigma) / 2) + content(mu)) / 2 for mu, sigma, style, content in blocks]
        rho = self.rho[view if len(self.rho) > 1 else 0]
        delta: Tensor = rho(torch.stack(fused, dim=1).transpose(1, 2))  # [B, D, L] -> [B, D, 1]
        return delta.squeeze(-1)

    def forward(self, statistics: Tensor, view: int = 0) -> Tensor:
        """The contexts `v`, `[B, M, D]`, of the `image_statistics` of images."""
        delta = self.shift_scale * self.shift(statistics, view)
        return self.ctx + delta[:, None]

    def contexts(self, statistics: Tensor, views: int) -> Tensor:
        """The contexts `[V B, M, D]` of the first `views` of `VIEWS`, from their `image_statistics` `[V B, ...]`."""
        return torch.cat([self(part, view=view) for view, part in enumerate(statistics.chunk(views))])

    @torch.no_grad()
    def fit_shift_scale(self, statistics: Tensor, target_rms: float) -> None:
        """Set `shift_scale` so that the shifts of these images have the RMS `target_rms` (over images and width)."""
        rms = self.shift(statistics).square().mean().sqrt()
        self.shift_scale.copy_(target_rms / rms.clamp_min(torch.finfo(rms.dtype).tiny))


class Projector(nn.Sequential):
    """`Linear(E, E)` and `BatchNorm1d`; takes `[..., E]` and treats all leading positions as the batch."""

    def __init__(self, embed_dim: int):
        super().__init__(nn.Linear(embed_dim, embed_dim), nn.BatchNorm1d(embed_dim))

    def forward(self, x: Tensor) -> Tensor:
        """Project `[..., E]` to `[..., E]`."""
        linear, norm = self
        projected: Tensor = norm(linear(x.flatten(0, -2)))
        return projected.view_as(x)


class GOProLearner(nn.Module):
    """All that GOPro trains: the generator, the image projector and, in the paper's variant, the text projector.

    Args:
        generator: The prompt generator.
        embed_dim: `E`.
        project_scores: False: the authors' program (scores and consistency use CLIP's own features; the image
            projector serves the contrastive loss alone). True: the paper's figure (both use projected features).
    """

    def __init__(self, generator: PromptGenerator, embed_dim: int, project_scores: bool = False):
        super().__init__()
        self.generator = generator
        self.image_projector = Projector(embed_dim)
        self.text_projector = Projector(embed_dim) if project_scores else None

    def compared(self, features: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The features that scores compare: projected in the paper's variant, otherwise as they are.

        Args:
            features: Image features, `[B, E]`.
            text: Text features of each image's prompts, `[B, C, E]`.

        Returns:
            `[B, E]` and `[B, C, E]`.
        """
        if self.text_projector is None:
            return features, text
        return self.image_projector(features), self.text_projector(text)

    def losses(
        self,
        features: Tensor,
        text: Sequence[Tensor],
        labels: Tensor,
        logit_scale: Tensor,
        temperature: float,
        contrasted: Sequence[Tensor] = (),
    ) -> tuple[dict[str, Tensor], Tensor]:
        """GOPro's loss terms, unweighted, from the features of the views in the order of `VIEWS`.

        Args:
            features: Image features of the original view, `[B, E]`.
            text: Text features of the views' prompts, each `[B, C, E]`; one entry leaves the consistency term out.
            labels: `[B]`.
            logit_scale: The exponentiated scale, a scalar.
            temperature: `tau` of NT-Xent.
            contrasted: Image features of the original view and of `x_moco`, `[N, E]` each, of all images that are
                contrasted with each other (in the paper's variant the same as `features`); empty leaves the term out.

        Returns:
            The terms by name (`ce`, `consistency`, `contrastive`, as far as asked for), means over the images, and the
            logits `[B, C]`.
        """
        projected = [self.image_projector(view) for view in contrasted]
        if self.text_projector is None:
            logits = image_conditioned_scores(features, text[0], logit_scale)
        else:
            text = [self.text_projector(t) for t in text]
            image = projected[0] if projected else self.image_projector(features)
            logits = image_conditioned_scores(image, text[0], logit_scale)
        terms = {"ce": F.cross_entropy(logits, labels)}
        if len(text) > 1:
            terms["consistency"] = torch.stack([prompt_consistency(text[0], view) for view in text[1:]]).sum()
        if projected:
            terms["contrastive"] = nt_xent(*projected, temperature)
        return terms, logits


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of the authors' program."""
    return any(PUBLISHED_LAYER.match(_plain(name)) for name in state)


def published_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `GOProLearner` in a checkpoint of the authors' program, as far as it holds one.

    Theirs also holds CLIP's towers, the training classes' tokens and a meta-net that nothing reads. The layers that
    mix the blocks and the image projector are known by their shapes; entries that are neither keep their names.
    """
    state = {_plain(name): value for name, value in state.items() if not _plain(name).startswith(UNREAD)}
    learned = {"generator.shift_scale": torch.tensor(1.0)}
    layers: set[str] = set()
    for name, value in state.items():
        head, _, kind = name.rpartition(".")
        if name == f"{LEARNER}ctx":
            learned["generator.ctx"] = value
        elif found := PUBLISHED_LAYER.match(name):
            learned[f"generator.{found[1]}.{found[2]}.{found[3]}"] = value
            layers.add(found[2])
        elif name.startswith(PROJECTOR):
            weight = state.get(f"{head}.weight", value)
            learned[f"image_projector.{0 if weight.dim() == 2 else 1}.{kind}"] = value
        elif not name.startswith(LEARNER):
            learned[name] = value
    rest = [name for name in state if name.startswith(LEARNER) and name != f"{LEARNER}ctx"]
    rest = [name for name in rest if not PUBLISHED_LAYER.match(name)]
    mixing = [name for name in rest if name.endswith(".weight") and tuple(state[name].shape) == (1, len(layers))]
    for view, name in enumerate(mixing):
        learned[f"generator.rho.{view}.weight"] = state[name]
        learned[f"generator.rho.{view}.bias"] = state.get(f"{name.removesuffix('weight')}bias", torch.zeros(1))
    known = {*mixing, *(f"{name.removesuffix('weight')}bias" for name in mixing)}
    return learned | {name: state[name] for name in rest if name not in known}


def _plain(name: str) -> str:
    """A published name without the prefix of a wrapped model."""
    return name.removeprefix("module.")
