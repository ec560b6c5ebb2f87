"""CLIP-LoRA: low-rank changes of the attention of both towers (`clip/lora.py`), trained by cross-entropy.

Source: Zanella, Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024, arXiv
2405.18541, and the authors' program, whose one setting serves all data sets and shots. The number of steps is
`STEPS_PER_SHOT` times the shots, in whole epochs, and the rate falls in each of them, along a cosine, to `LAST_LR`.

The program writes 100 for the logit scale, that of OpenAI's models. It keeps the last, partial batch of an epoch, which
is left out here; the number of steps is the same.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.lora import PARTS, TOWERS, AdaptedCLIP
from dassl_clip.clip.templates import fill_template, resolve_templates
from dassl_clip.clip.weights import hash_state
from dassl_clip.engine.features import Encoding
from dassl_clip.engine.method import at_least, one_of
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import display_name

ENCODERS = {"both": TOWERS, "text": ("text",), "vision": ("visual",)}


def cosine_rate(step: int, steps: int, first: float, last: float) -> float:
    """The rate of step `step`, counted from 0, of `steps`."""
    return last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2


def published_changes(state: dict, blocks: dict[str, int]) -> dict[str, Tensor]:
    """Our names for the changes of an authors' checkpoint, whose layers are numbered through, texts first.

    Args:
        state: `weights` (`layer_0`, ... -> `q_proj`, ... -> tensors) and `metadata`.
        blocks: The number of blocks of each tower that is changed.

    Raises:
        UserError: There are more layers than that.
    """
    places = [f"{tower}.{number}" for tower in TOWERS for number in range(blocks.get(tower, 0))]
    weights = state["weights"]
    if len(weights) != len(places):
        raise UserError(
            f"the file has changes of {len(weights)} layers, these towers have {len(places)}; set MODEL.BACKBONE.NAME "
            "and TRAINER.CLIPLORA.ENCODER to those that it was trained with"
        )
    return {
        f"{place}.{part}.{name}": value
        for number, place in enumerate(places)
        for part, pair in weights[f"layer_{number}"].items()
        for name, value in pair.items()
    }


@TRAINER_REGISTRY.register()
class CLIPLoRA(CLIPTrainer):
    """Cross-entropy on the scores of both towers with low-rank changes."""

    settings = {
        "TEMPLATES": "single",  # one
        "RANK": 2,
        "ALPHA": 1.0,  # the changes are scaled by ALPHA / sqrt(RANK)
        "DROPOUT": 0.25,
        "PARTS": ("q", "k", "v"),
        "ENCODER": "both",  # or text, or vision
        "STEPS_PER_SHOT": 500,  # 0: OPTIM.MAX_EPOCH epochs
        "LAST_LR": 1e-6,
    }
    limits = {
        "ENCODER": one_of(ENCODERS),
        "RANK": at_least(1),
        "DROPOUT": (lambda value: 0 <= value < 1, "a share, below 1"),
        "PARTS": (lambda value: value and set(value) <= set(PARTS), f"some of {', '.join(PARTS)}"),
        **dict.fromkeys(("STEPS_PER_SHOT", "LAST_LR"), at_least(0)),
    }
    undecisive = ("ENCODER",)
    listed = False

    @property
    def image_features_change(self) -> bool:
        """Whether the image tower is changed."""
        return "visual" in ENCODERS[self.node.ENCODER]

    @property
    def caches_first_view(self) -> bool:
        """Where only the text tower is changed, a fixed view is encoded once."""
        return not self.image_features_change

    @property
    def prompt(self) -> str:
        """The template."""
        return self.template

    def build_model(self) -> None:
        """The adapted towers and the tokens of the classes' texts."""
        node, text = self.node, self.backbone.text
        templates = resolve_templates(node.TEMPLATES, self.cfg.DATASET.NAME)
        if len(templates) > 1:
            raise UserError(
                f"TRAINER.CLIPLORA.TEMPLATES has {len(templates)} templates; CLIP-LoRA trains the texts of one, "
                "such as single"
            )
        self.template = templates[0]
        self.tokens = text.tokenize([fill_template(self.template, display_name(name)) for name in self.classnames])
        towers = ENCODERS[node.ENCODER]
        adapted = AdaptedCLIP(self.backbone, node.RANK, node.ALPHA, node.DROPOUT, tuple(node.PARTS), towers)
        self.blocks = {tower: len(adapted.get_submodule(tower)) for tower in towers}
        self.model = self.register_learner("clip_lora", adapted)
        if node.STEPS_PER_SHOT:
            shots = self.cfg.DATASET.NUM_SHOTS
            shots = shots if shots >= 1 else max(1, round(len(self.dm.dataset.train_x) / self.num_classes))
            self.max_epoch = max(1, round(node.STEPS_PER_SHOT * shots / len(self.train_loader_x)))

    def published_state(self, state: dict) -> dict:
        """The changes of a checkpoint of the authors' program; others as they are."""
        if not isinstance(state.get("weights"), dict):
            return state
        theirs, node = state.get("metadata", {}), self.node
        if theirs and (theirs.get("r"), float(theirs.get("alpha", node.ALPHA))) != (node.RANK, node.ALPHA):
            raise UserError(
                f"the file was trained with rank {theirs.get('r')} and alpha {theirs.get('alpha')}, TRAINER.CLIPLORA "
                f"has RANK {node.RANK} and ALPHA {node.ALPHA}; set these to the former"
            )
        count = {"text": self.backbone.text.layers, "visual": len(self.backbone.vision_widths)}
        return published_changes(state, {tower: count[tower] for tower in ENCODERS[node.ENCODER]})

    def forward_backward(self, batch: dict) -> dict[str, float]:
        """One step on a batch, at the rate of its number."""
        views, labels = self.parse_batch_train(batch)
        step = self.epoch * self.num_batches + self.batch_idx
        rate = cosine_rate(step, self.max_epoch * self.num_batches, self.cfg.OPTIM.LR, self.node.LAST_LR)
        for group in self.optim.param_groups:
            group["lr"] = rate
        rows = self.cached_view(batch)
        with self.precision.autocast():
            features, text = self._images(views, rows), self.model.encode_text(self.tokens)
        logits = self.cosine_logits(features, text)
        terms = {"ce": F.cross_entropy(logits, labels)}
        tensors = {"image features": features, "text features": text, "logits": logits}
        return self.optimise(terms, {"ce": 1.0}, tensors)

    def _images(self, views: list[Tensor], rows: Tensor | None) -> Tensor:
        """Features `[B, E]` of a batch, with gradients to the changes of the image tower, if there are any."""
        if self.image_features_change:
            return self.model.encode_image(views[0])
        return self.features.encode(views[0]) if rows is None else rows

    @property
    def encoding(self) -> Encoding:
        """Features `[B, E]`; those of a changed image tower are cached under the hash of the changes."""
        if not self.image_features_change:
            return self.features.encoding
        model = getattr(self, "model", None)  # asked for before it is built
        name = "" if model is None else hash_state(model.state_dict())
        return Encoding(f"image features of CLIP-LoRA {name}", self.backbone.embed_dim, self._encode)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Features `[B, E]`, float32, not normalised, of images `[B, 3, H, W]`, from merged weights."""
        self.model.eval()
        with self.precision.autocast():
            return self.model.encode_image(images).float()

    def before_test(self) -> None:
        """All images share the adapted text features."""
        self.classifier = self.class_proxies()

    @torch.no_grad()
    def class_proxies(self) -> Tensor:
        """The text features of the merged text tower, `[C, E]`, normalised."""
        self.model.eval()
        with self.precision.autocast():
            return F.normalize(self.model.encode_text(self.tokens).float(), dim=-1)

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]` of the adapted image tower."""
        return self.cosine_logits(features, self.classifier)
