"""OnZeta: class proxies learned online, one image at a time, with labels that keep every class in use.

Source: Qian, Hu, "Online Zero-Shot Classification with CLIP" (OnZeta), ECCV 2024, arXiv 2408.13320. The state is a
proxy per class, `W = T` at first, and `rho = 0 [C]`. Image `i = 0, 1, ...` of `n`, with feature `x`:

    t    = softmax(x T / tau_t + rho)                                 label, corrected for the classes so far
    rho <- max(0, rho - c_r / sqrt(i + 1) (t - alpha / C))            every class gets alpha / C of the images, or more
    v    = softmax(x W / tau_i)
    output beta_i v + (1 - beta_i) t,  beta_i = beta sqrt((i + 1) / n)
    w_c <- normalise(w_c - c_w / (sqrt(i + 1) tau_i) (v_c - t_c) x)

**The number of images `n` must be known beforehand** (`horizon`). `ALPHA` 0 asks nothing of the classes: `rho` stays 0.

The authors' program (Apache-2.0) takes the number of classes from the labels of the test images and stops where one is
missing, and its random orders have no seed. `c_r` 20 was set for 1000 classes and 50,000 images: with few classes `rho`
moves by tenths to whole units in a step and the recursion is chaotic, so float32 and float64 part after some 30 images.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.engine.temperatures import AUTO, parse_temperature
from dassl_clip.engine.transductive import HORIZON, Images, OnlineTrainer, Step
from dassl_clip.results.errors import UserError

TEMPERATURES = {"TEXT_TEMPERATURE": 1.0, "IMAGE_TEMPERATURE": 4.0}  # what `auto` stands for, over the logit scale


class OnlineProxies:
    """Scores images one after another.

    Args:
        proxies: `[C, E]`, of length 1, where the learned ones start.
        horizon: `n`, how many images will come.
        sharpness: 1 / (`tau_t` times the logit scale): what logits are multiplied by.
        image_temperature: `tau_i`.
        alpha: The share of the images that each class gets at least, over 1 / C.
        beta: The weight of the learned proxies at the end.
        proxy_rate: `c_w`.
        dual_rate: `c_r`.

    Attributes:
        proxies: `W^T`, `[C, E]`.
        rho: `[C]`.

    Raises:
        UserError: The horizon is not positive, or more images come.
    """

    def __init__(
        self,
        proxies: Tensor,
        horizon: int,
        sharpness: float = 1.0,
        image_temperature: float = 0.04,
        alpha: float = 1.0,
        beta: float = 0.8,
        proxy_rate: float = 0.5,
        dual_rate: float = 20.0,
    ):
        if horizon < 1:
            raise UserError(f"the horizon is the number of images that will come, 1 or more, got {horizon}")
        self.proxies, self.rho, self.count, self.horizon = proxies, torch.zeros_like(proxies[:, 0]), 0, horizon
        self.sharpness, self.image_temperature, self.least = sharpness, image_temperature, alpha / len(proxies)
        self.beta, self.proxy_rate, self.dual_rate = beta, proxy_rate, dual_rate

    def __call__(self, feature: Tensor, logits: Tensor) -> Tensor:
        """Logarithms `[C]` of the shares of the next image, from its feature `[E]` and logits `[C]`."""
        self.count += 1
        if self.count > self.horizon:
            raise UserError(
                f"a stream of {self.horizon} images was announced, and image {self.count} has come: OnZeta must know "
                "the number of images beforehand; begin again with the right one"
            )
        root = math.sqrt(self.count)
        text = (self.sharpness * logits + self.rho).softmax(dim=0)
        self.rho = (self.rho - self.dual_rate / root * (text - self.least)).clamp_min(0)
        image = (self.proxies @ feature / self.image_temperature).softmax(dim=0)
        weight = self.beta * root / math.sqrt(self.horizon)
        step = self.proxy_rate / (root * self.image_temperature)
        self.proxies = F.normalize(self.proxies - step * torch.outer(image - text, feature), dim=1)
        shares = weight * image + (1 - weight) * text
        return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()


@TRAINER_REGISTRY.register()
class OnZeta(OnlineTrainer):
    """Proxies learned online from labels that keep every class in use; the number of images must be known."""

    needs = HORIZON
    settings = {
        **OnlineTrainer.settings,
        "TEXT_TEMPERATURE": AUTO,  # a number; auto: 1 over the logit scale (0.01 for OpenAI's models); auto:K: K
        "IMAGE_TEMPERATURE": AUTO,  # the same; auto: 4 over it
        "ALPHA": 1.0,
        "BETA": 0.8,
        "CW": 0.5,
        "CR": 20.0,
    }
    limits = {
        **dict.fromkeys(("ALPHA", "BETA"), (lambda value: 0 <= value <= 1, "a number from 0 to 1")),
        **dict.fromkeys(("CW", "CR"), (lambda value: 0 <= value < math.inf, "a rate, 0 or more")),
    }

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse temperatures that are not positive."""
        super().check_cfg(cfg)
        for key, default in TEMPERATURES.items():
            parse_temperature(cfg.TRAINER.ONZETA[key], f"TRAINER.ONZETA.{key}", 1.0, default)

    def begin(self, images: Images, horizon: int) -> Step:
        """The proxies as they are, and `rho` 0."""
        node = self.node
        tau_t, tau_i = (
            parse_temperature(node[key], f"TRAINER.ONZETA.{key}", 1 / images.scale, default)
            for key, default in TEMPERATURES.items()
        )
        sharpness = 1 / (tau_t * images.scale)
        return OnlineProxies(images.proxies, horizon, sharpness, tau_i, node.ALPHA, node.BETA, node.CW, node.CR)
