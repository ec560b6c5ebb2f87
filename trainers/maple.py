"""MaPLe: prompts in the first layers of both towers, those of the image tower made of those of the text tower.

Source: Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023 (arXiv 2210.03117), and the authors' program,
whose names the learned parts have: its checkpoints load through `MODEL.INIT_WEIGHTS` and `--model-dir`. Not taken over:
literal layer sizes, and a checkpoint and an optimiser that hold all of CLIP. The program runs in float16 alone, its
first context and coupling included; here what is learned is float32.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.engine.deep_prompts import DeepPromptTrainer, random_prompts
from dassl_clip.engine.method import at_least

LEARNER = "prompt_learner."
TOWERS = ("image_encoder.", "text_encoder.", "logit_scale")


class CoupledPrompts(nn.Module):
    """A context, deep prompts of the text tower, and a linear layer each that makes tokens of the image tower of them.

    Names are those of the authors' checkpoints.

    Args:
        context: Initial context, `[M, D]`.
        vision_width: `W`; 0 leaves the image tower as it is.
        depth: `J`, layers of both towers with prompts.
    """

    def __init__(self, context: Tensor, vision_width: int, depth: int):
        super().__init__()
        tokens, width = context.shape
        self.ctx = nn.Parameter(context.clone())
        self.compound_prompts_text = random_prompts(depth - 1, tokens, width)
        self.proj = nn.Linear(width, vision_width) if vision_width else None
        self.compound_prompt_projections = nn.ModuleList()
        if not vision_width:
            return
        coupling = nn.Linear(width, vision_width)  # all start alike
        self.compound_prompt_projections = nn.ModuleList(deepcopy(coupling) for _ in range(depth - 1))

    def for_text(self) -> tuple[Tensor, Tensor | None]:
        """The context `[M, D]`, and the deep prompts `[J - 1, M, D]`; None for a depth of 1."""
        deep = list(self.compound_prompts_text)
        return self.ctx, torch.stack(deep) if deep else None

    def for_vision(self) -> list[Tensor]:
        """The tokens of the first `J` blocks of the image tower, each `[M, W]`; none where it stays as it is."""
        if self.proj is None:
            return []
        pairs = zip(self.compound_prompt_projections, self.compound_prompts_text, strict=True)
        return [self.proj(self.ctx), *(layer(prompt) for layer, prompt in pairs)]


def published_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of `CoupledPrompts` in a checkpoint of the authors' program, which also holds CLIP."""
    names = {name.removeprefix("module."): value for name, value in state.items()}
    return {name.removeprefix(LEARNER): value for name, value in names.items() if not name.startswith(TOWERS)}


@TRAINER_REGISTRY.register()
class MaPLe(DeepPromptTrainer):
    """Cross-entropy on the scores of images and texts with coupled prompts."""

    listed = False
    settings = {
        "N_CTX": 2,  # context tokens
        "CTX_INIT": "a photo of a",  # words: the first N_CTX tokens are learned from, the others stay fixed
        "PROMPT_DEPTH": 9,  # layers with prompts
        "IMAGE_PROMPTS": True,  # False: the text tower's alone, for image towers that take no tokens
    }
    undecisive = ("IMAGE_PROMPTS",)
    limits = {"N_CTX": at_least(1), "PROMPT_DEPTH": at_least(1)}

    @property
    def prompts_image(self) -> bool:
        """Whether the image tower reads tokens."""
        return bool(self.node.IMAGE_PROMPTS)

    @property
    def prompt(self) -> str:
        """What the context started from."""
        start = f" of {self.node.CTX_INIT!r}" if self.node.CTX_INIT else ", random"
        towers = "both towers" if self.prompts_image else "the text tower"
        return f"{self.node.N_CTX} learned tokens{start}, in {self.node.PROMPT_DEPTH} layers of {towers}"

    def published_state(self, state: dict) -> dict:
        """The learned parts of a checkpoint of the authors' program, or the state as it is."""
        return published_state(state) if any(LEARNER in name for name in state) else state

    def build_model(self) -> None:
        """The coupled prompts and the tokens of the class names."""
        depth = self.node.PROMPT_DEPTH
        width = self.backbone.prompt_width if self.prompts_image else 0
        context = self.start_context(self.node.N_CTX, [depth, depth if width else 0])
        self.model = self.register_learner("MultiModalPromptLearner", CoupledPrompts(context, width, depth))

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """One step on a batch."""
        (images, *_), labels = self.parse_batch_train(batch)
        features, text = self.image_features(images), self.class_proxies()
        logits = self.logit_scale * features @ text.T
        tensors = {"images": images, "image features": features, "text features": text, "logits": logits}
        return self.optimise({"ce": F.cross_entropy(logits, labels)}, {"ce": 1.0}, tensors)
