"""Random views of icons for pre-training: colours, filled regions, thickness, size and place."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import COLOURS
from .corpus import MAX_REGIONS

SMALL, USUAL, LARGE = (0.45, 0.62), (0.78, 1.12), (1.05, 1.2)


@dataclass(frozen=True)
class Looks:
    """Probabilities and ranges of the random views."""

    recolour: float = 0.25
    fill: float = 0.35
    invert: float = 0.06
    thicken: float = 0.15
    jitter: float = 0.6
    permute: float = 0.15
    tint: float = 0.2
    grey: float = 0.1
    flip: float = 0.3
    erase: float = 0.15
    degrees: float = 14.0
    shift: float = 0.1


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _chance(n: int, p: float, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator) < p


def paint(
    pictures: Tensor,
    regions: Tensor,
    palette: Tensor,
    colours: list[str | None],
    looks: Looks,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Colour one-colour icons anew and jitter the coloured ones.

    Args:
        pictures: uint8 [B, P, P, 3].
        regions: uint8 [B, P, P] from `corpus.enclosed_regions`.
        palette: bool [B], true for icons that have colours of their own.
        colours: a colour name for icons that a caption calls so, else None.
        looks: probabilities.
        generator: source of randomness.

    Returns:
        float [B, 3, P, P] in 0..1 and its paper colour [B, 3].
    """
    n = len(pictures)
    source = pictures.permute(0, 3, 1, 2).float().div_(255)
    ink = 1 - source.mean(dim=1, keepdim=True)
    thick = _chance(n, looks.thicken, generator)
    ink[thick] = F.max_pool2d(ink[thick], 3, stride=1, padding=1)

    draw = torch.rand(n, generator=generator)
    named = torch.tensor([colour is not None for colour in colours])
    recolour = (draw < looks.recolour) | named
    fill = (draw >= looks.recolour) & (draw < looks.recolour + looks.fill) & ~named
    invert = (draw > 1 - looks.invert) & ~named

    stroke = torch.zeros(n, 3)
    dark = _uniform((n, 3), 0.0, 0.75, generator)
    stroke[recolour] = dark[recolour]
    stroke[fill] = torch.where(_chance(n, 0.5, generator)[:, None], dark * 0.4, dark)[fill]
    stroke[invert] = _uniform((n, 3), 0.8, 1.0, generator)[invert]
    for row, colour in enumerate(colours):
        if colour is not None:
            stroke[row] = torch.tensor(COLOURS[colour]) / 255
    stroke[named] = (stroke + _uniform((n, 3), -0.06, 0.06, generator)).clamp(0, 1)[named]

    table = torch.ones(n, MAX_REGIONS + 1, 3)
    inks = _uniform((n, 3, 3), 0.15, 1.0, generator)
    pick = torch.randint(0, 4, (n, MAX_REGIONS + 1), generator=generator)
    choices = torch.cat([inks, torch.ones(n, 1, 3)], dim=1)
    filled = choices.gather(1, pick[..., None].expand(-1, -1, 3))
    table[fill] = filled[fill]
    paper = torch.ones(n, 3)
    tinted = _chance(n, looks.tint, generator)
    paper[tinted] = _uniform((n, 3), 0.55, 1.0, generator)[tinted]
    paper[invert] = _uniform((n, 3), 0.0, 0.55, generator)[invert]
    table[:, 0] = paper
    table[invert] = paper[invert, None]

    base = table.gather(1, regions.flatten(1).long()[..., None].expand(-1, -1, 3))
    base = base.view(n, *regions.shape[1:], 3).permute(0, 3, 1, 2)
    drawn = base * (1 - ink) + stroke[:, :, None, None] * ink

    gain = torch.where(_chance(n, looks.jitter, generator)[:, None], _uniform((n, 3), 0.65, 1.0, generator), 1.0)
    lift = 1 - (1 - source) * gain[:, :, None, None]
    order = torch.stack([torch.randperm(3, generator=generator) for _ in range(n)])
    order[~_chance(n, looks.permute, generator)] = torch.arange(3)
    lift = lift.gather(1, order[:, :, None, None].expand_as(lift))
    grey = _chance(n, looks.grey, generator)
    lift[grey] = lift[grey].mean(dim=1, keepdim=True)
    lift = lift * torch.where(tinted[:, None], paper, 1.0)[:, :, None, None]
    own_paper = torch.where(tinted[:, None], paper, 1.0)

    rows = palette[:, None]
    return torch.where(rows[..., None, None], lift, drawn), torch.where(rows, own_paper, paper)


def place(
    pictures: Tensor, paper: Tensor, sizes: list[str | None], pixels: int, looks: Looks, generator: torch.Generator
) -> Tensor:
    """Scale, turn, shift and mirror each picture on its paper.

    Args:
        pictures: float [B, 3, P, P].
        paper: [B, 3], the colour outside the picture.
        sizes: "small", "large" or None for each picture.
        pixels: side of the result.
        looks: ranges.
        generator: source of randomness.

    Returns:
        float [B, 3, pixels, pixels].
    """
    n = len(pictures)
    ranges = torch.tensor([SMALL if size == "small" else LARGE if size == "large" else USUAL for size in sizes])
    scale = ranges[:, 0] + torch.rand(n, generator=generator) * (ranges[:, 1] - ranges[:, 0])
    angle = _uniform((n,), -looks.degrees, looks.degrees, generator) * (math.pi / 180)
    mirror = 1 - 2 * _chance(n, looks.flip, generator).float()
    stretch = _uniform((n,), 0.92, 1.08, generator)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift = _uniform((n, 2), -2 * looks.shift, 2 * looks.shift, generator)
    theta = torch.stack(
        [
            torch.stack([cos * mirror * stretch, -sin, shift[:, 0]], dim=1),
            torch.stack([sin * mirror * stretch, cos, shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    grid = F.affine_grid(theta, (n, 3, pixels, pixels), align_corners=False)
    ground = paper[:, :, None, None]
    placed = F.grid_sample(pictures - ground, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + ground
    for row in torch.nonzero(_chance(n, looks.erase, generator)).flatten().tolist():
        side = int(torch.randint(pixels // 6, pixels // 3, (1,), generator=generator))
        top, left = torch.randint(0, pixels - side, (2,), generator=generator).tolist()
        placed[row, :, top : top + side, left : left + side] = torch.rand(3, 1, 1, generator=generator)
    return placed.clamp_(0, 1)
