"""PromptSRC: independent prompts in both towers, held near the frozen CLIP, and averaged over the epochs.

Source: Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023 (arXiv
2307.06948), and the authors' program, whose checkpoints load through `MODEL.INIT_WEIGHTS` and `--model-dir`. As there,
the divergence of scores is a mean over images *and* classes. Not taken over: an average of all of CLIP's weights in
float16, one that a resumed run loses, and a second image tower in memory and in the checkpoint.
"""

import math
import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.templates import fill_template, resolve_templates
from dassl_clip.engine.deep_prompts import DeepPromptTrainer, random_prompts
from dassl_clip.engine.method import at_least
from dassl_clip.results.labels import display_name

AVERAGE = "average."
DEEP = re.compile(r"(text|image)_encoder\.transformer\.resblocks\.(\d+)\.VPT_shallow$")
FIRST = {"prompt_learner.ctx": "ctx", "image_encoder.VPT": "vision_prompts.0"}
UNREAD = ("image_encoder.", "text_encoder.", "prompt_learner.token_", "prompt_learner.ZS_image_encoder.", "logit_scale")


class WeightedAverage(nn.Module):
    """The weighted sum of a module's parameters over epochs, kept with the learned parts so that it can be resumed.

    Args:
        module: Its parameters as they are now; none counts yet.
    """

    weight: Tensor
    epochs: Tensor

    def __init__(self, module: nn.Module):
        super().__init__()
        for name, parameter in module.named_parameters():
            self.register_buffer(self._key(name), torch.zeros_like(parameter))
        self.register_buffer("weight", torch.zeros(()))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    @staticmethod
    def _key(name: str) -> str:
        return f"sum_{name.replace('.', '_')}"

    @torch.no_grad()
    def add(self, module: nn.Module, weight: float) -> None:
        """Count the parameters at the end of an epoch with this weight."""
        for name, parameter in module.named_parameters():
            getattr(self, self._key(name)).add_(parameter, alpha=weight)
        self.weight += weight
        self.epochs += 1

    @torch.no_grad()
    def write(self, module: nn.Module) -> None:
        """Give the average to the module."""
        for name, parameter in module.named_parameters():
            parameter.copy_(getattr(self, self._key(name)) / self.weight)


class IndependentPrompts(nn.Module):
    """A context, deep prompts of the text tower, and tokens of the image tower.

    Args:
        context: Initial context, `[Mt, D]`.
        text_depth: `Jt`, layers of the text tower with prompts.
        vision_tokens: `Mv`.
        vision_width: `W`.
        vision_depth: `Jv`, blocks of the image tower with tokens; 0 leaves it as it is.
    """

    def __init__(self, context: Tensor, text_depth: int, vision_tokens: int, vision_width: int, vision_depth: int):
        super().__init__()
        self.ctx = nn.Parameter(context.clone())
        self.text_prompts = random_prompts(text_depth - 1, *context.shape)
        self.vision_prompts = random_prompts(vision_depth, vision_tokens, vision_width)
        self.average = WeightedAverage(self)

    def for_text(self) -> tuple[Tensor, Tensor | None]:
        """The context `[Mt, D]`, and the deep prompts `[Jt - 1, Mt, D]`; None for a depth of 1."""
        deep = list(self.text_prompts)
        return self.ctx, torch.stack(deep) if deep else None

    def for_vision(self) -> list[Tensor]:
        """The tokens of the first `Jv` blocks of the image tower, each `[Mv, W]`."""
        return list(self.vision_prompts)


def regulation_terms(
    features: Tensor, text: Tensor, teacher_features: Tensor, teacher_text: Tensor, scale: Tensor
) -> dict[str, Tensor]:
    """What holds the prompts near the frozen CLIP: three scalars, unweighted.

    Args:
        features: Normalised image features, `[B, E]`.
        text: Normalised text features, `[C, E]`.
        teacher_features: The same of the frozen CLIP, `[B, E]`, of the same views.
        teacher_text: The same of the frozen CLIP, `[C, E]`.
        scale: The logit scale.

    Returns:
        `text` and `image`, the mean absolute differences; `scores`, the divergence of the scores from the teacher's,
        KL(teacher, ours) in nats, summed over images and divided by `B C`.
    """
    log_shares = (scale * features @ text.T).log_softmax(dim=-1)
    teacher = (scale * teacher_features @ teacher_text.T).log_softmax(dim=-1)
    return {
        "text": (text - teacher_text).abs().mean(),
        "image": (features - teacher_features).abs().mean(),
        "scores": F.kl_div(log_shares, teacher, reduction="sum", log_target=True) / teacher.numel(),
    }


def gaussian_weights(epochs: int, mean: float, deviation: float) -> list[float]:
    """Weights of the epochs 1 to `epochs`: a Gaussian of the epoch's number, with sum 1."""
    heights = [-((epoch - mean) ** 2) / (2 * deviation**2) for epoch in range(1, epochs + 1)]
    weights = [math.exp(height - max(heights)) for height in heights]
    return [weight / sum(weights) for weight in weights]


def published_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The prompts in a checkpoint of the authors' program; theirs also holds CLIP twice and class tokens."""
    learned = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if name in FIRST:
            learned[FIRST[name]] = value
        elif found := DEEP.match(name):
            layer = int(found[2])
            learned[f"text_prompts.{layer - 1}" if found[1] == "text" else f"vision_prompts.{layer}"] = value
        elif not name.startswith(UNREAD):
            learned[name] = value
    return learned


@TRAINER_REGISTRY.register()
class PromptSRC(DeepPromptTrainer):
    """Cross-entropy, distances of both towers and of the scores from the frozen CLIP, and averaged prompts."""

    listed = False
    unread_parts = (AVERAGE,)
    settings = {
        "N_CTX_TEXT": 4,  # context tokens
        "N_CTX_VISION": 4,  # tokens in the image tower
        "CTX_INIT": "a photo of a",  # words: the first N_CTX_TEXT tokens are learned from, the others stay fixed
        "PROMPT_DEPTH_TEXT": 9,  # layers with prompts
        "PROMPT_DEPTH_VISION": 9,  # 0: none, for image towers that take no tokens
        "TEXT_LOSS_WEIGHT": 25.0,
        "IMAGE_LOSS_WEIGHT": 10.0,
        "SCORE_LOSS_WEIGHT": 1.0,
        "TEMPLATES": "imagenet60",  # the frozen CLIP's prompts
        "GPA_MEAN": 15.0,  # epoch that counts most in the average
        "GPA_STD": 1.0,  # in epochs; 0: no average, the last epoch's prompts
    }
    limits = {
        **dict.fromkeys(("N_CTX_TEXT", "N_CTX_VISION"), at_least(1)),
        **dict.fromkeys(("TEXT_LOSS_WEIGHT", "IMAGE_LOSS_WEIGHT", "SCORE_LOSS_WEIGHT"), at_least(0)),
        "GPA_STD": at_least(0),
    }

    @property
    def prompts_image(self) -> bool:
        """Whether the image tower reads tokens."""
        return bool(self.node.PROMPT_DEPTH_VISION)

    @property
    def prompt(self) -> str:
        """What the context started from."""
        node = self.node
        start = f" of {node.CTX_INIT!r}" if node.CTX_INIT else ", random"
        layers = f"{node.PROMPT_DEPTH_TEXT} text and {node.PROMPT_DEPTH_VISION} image layers"
        return f"{node.N_CTX_TEXT} learned tokens{start}, {node.N_CTX_VISION} beside the image, in {layers}"

    def published_state(self, state: dict) -> dict:
        """The learned parts of a checkpoint of the authors' program, or the state as it is."""
        return published_state(state) if any("VPT" in name for name in state) else state

    def build_model(self) -> None:
        """The prompts and the tokens of the class names."""
        node = self.node
        width = self.backbone.prompt_width if self.prompts_image else 0
        context = self.start_context(node.N_CTX_TEXT, [node.PROMPT_DEPTH_TEXT, node.PROMPT_DEPTH_VISION])
        learner = IndependentPrompts(
            context, node.PROMPT_DEPTH_TEXT, node.N_CTX_VISION, width, node.PROMPT_DEPTH_VISION
        )
        self.model = self.register_learner("VLPromptLearner", learner)

    @cached_property
    def teacher_text(self) -> Tensor:
        """The frozen CLIP's class features, `[C, E]`: the mean over templates of plain features, then normalised."""
        names = list(map(display_name, self.classnames))
        templates = resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME)
        texts = [fill_template(template, name) for template in templates for name in names]
        features = self.features.texts(texts).unflatten(0, (len(templates), len(names)))
        return F.normalize(features.mean(dim=0), dim=-1)

    def loss_terms(
        self, images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
        """The loss terms by name, unweighted, their weights, and the tensors that they are made of.

        Args:
            images: `[B, 3, H, W]`.
            labels: `[B]`.
        """
        features, text = self.image_features(images), self.class_proxies()
        teacher_features = F.normalize(self.features.encode(images), dim=-1)
        logits = self.logit_scale * features @ text.T
        terms = {"ce": F.cross_entropy(logits, labels)}
        terms |= regulation_terms(features, text, teacher_features, self.teacher_text, self.logit_scale)
        node = self.node
        weights = {"ce": 1.0, "text": node.TEXT_LOSS_WEIGHT, "image": node.IMAGE_LOSS_WEIGHT}
        weights["scores"] = node.SCORE_LOSS_WEIGHT
        tensors = {"image features": features, "teacher's": teacher_features, "text features": text, "logits": logits}
        return terms, weights, tensors

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """One step on a batch."""
        (images, *_), labels = self.parse_batch_train(batch)
        terms, weights, tensors = self.loss_terms(images, labels)
        return self.optimise(terms, weights, {"images": images, **tensors})

    def after_epoch(self) -> None:
        """Count the epoch's prompts, once, and take the average after the last one."""
        average, deviation = self.model.average, self.node.GPA_STD
        if deviation and int(average.epochs) == self.epoch:
            average.add(self.model, gaussian_weights(self.max_epoch, self.node.GPA_MEAN, deviation)[self.epoch])
        if deviation and self.epoch + 1 == self.max_epoch:
            average.write(self.model)
        super().after_epoch()
