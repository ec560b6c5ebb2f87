"""The text tower against the plain program: full-length prompts, one pass an image, no sharing.

Cases: `prompts`, the prompts of all classes, forward and backward to the context; `deep`, the same with prompts that
replace its first rows in the first layers (MaPLe's text side); `zeroshot`, a classifier of 1000 classes with InMaP's
seven templates. The plain classifier encodes one class at a time; on a CPU `--plain-classes` of
them are run and the rest is extrapolated from these. Ratios of single processes differ by half here, so three measure.

example: python benchmarks/text_tower.py --threads 2 --only prompts
"""

import argparse

import torch
import torch.nn.functional as F
from common import ARCHITECTURE, Part, Results, Work, make_parser, run_cases
from inputs import backbone, class_names
from plain import prompt_features, prompt_ids, text_features
from torch import Tensor

from dassl_clip.clip.backbone import FrozenCLIP
from dassl_clip.clip.prompts import CONTEXT_STD, initial_context
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.clip.zeroshot import zeroshot_weights

WORDS = "a photo of a"
CLASSES = 100
DEPTH, LEARNED = 9, 2  # layers with prompts, and tokens of WORDS that are learned, in MaPLe's base-to-new setting
HEAD_CLASSES = 1000


class Prompts(Work):
    """Features of the prompts of all classes, and the gradient to the context."""

    target = 11.0

    def __init__(self, clip: FrozenCLIP, options: argparse.Namespace):
        names = class_names("imagenet")[: options.classes]
        images = f", {options.images} images" if options.images > 1 else ""
        self.title = f"prompts of {len(names)} classes{images}, forward + backward"
        self.clip = clip
        ids = clip.text.tokenize([WORDS])[0]
        start = clip.text.embed(ids[1 : 1 + len(WORDS.split())]).float()
        shift = 0.01 * torch.randn(options.images, 1, clip.text_width, generator=torch.Generator().manual_seed(0))
        self.context = (start + shift.to(start.device)).requires_grad_()  # [B, M, D]
        self.classes = clip.text.class_tokens(names, n_ctx=len(start))
        self.ids = prompt_ids(clip, names, len(start))
        self.chunk = options.chunk

    def ours(self) -> list[Part]:
        """Through the text tower."""
        return [
            Part(lambda: self._backward(self.clip.text.encode_prompts(self.context, self.classes, chunk=self.chunk)))
        ]

    def plain(self) -> list[Part]:
        """Rows of the full context length, one pass for each image."""
        return [
            Part(lambda: self._backward(torch.stack([prompt_features(self.clip, c, self.ids) for c in self.context])))
        ]

    def _backward(self, features: Tensor) -> Results:
        weights = torch.linspace(-1, 1, features.numel(), device=features.device).view_as(features)
        (gradient,) = torch.autograd.grad((F.normalize(features, dim=-1) * weights).sum(), self.context)
        return {"features": features.detach(), "gradient": gradient}


class DeepPrompts(Work):
    """Features of the prompts of all classes with deep prompts, and the gradients to all that is learned."""

    target = 8.0

    def __init__(self, clip: FrozenCLIP, options: argparse.Namespace):
        names = class_names("imagenet")[: options.classes]
        depth = min(DEPTH, clip.text.layers)
        self.title = f"deep prompts in {depth} layers, {len(names)} classes, forward + backward"
        self.clip, self.chunk = clip, options.chunk
        words = initial_context(clip.text, WORDS, 0).to(clip.logit_scale.device)
        self.context, self.fixed = words[:LEARNED].clone().requires_grad_(), words[LEARNED:]
        draws = torch.randn(depth - 1, LEARNED, clip.text_width, generator=torch.Generator().manual_seed(0))
        self.deep = (CONTEXT_STD * draws).to(words.device).requires_grad_()
        self.classes = clip.text.class_tokens(names, n_ctx=len(words))
        self.ids = prompt_ids(clip, names, len(words))

    def ours(self) -> list[Part]:
        """Through the text tower."""
        return [Part(lambda: self._backward(self._features()))]

    def plain(self) -> list[Part]:
        """Rows of the full context length."""
        return [Part(lambda: self._backward(prompt_features(self.clip, self._context(), self.ids, list(self.deep))))]

    def _context(self) -> Tensor:
        return torch.cat([self.context, self.fixed])

    def _features(self) -> Tensor:
        return self.clip.text.encode_prompts(self._context(), self.classes, chunk=self.chunk, deep=self.deep)

    def _backward(self, features: Tensor) -> Results:
        weights = torch.linspace(-1, 1, features.numel(), device=features.device).view_as(features)
        loss = (F.normalize(features, dim=-1) * weights).sum()
        context, deep = torch.autograd.grad(loss, (self.context, self.deep))
        return {"features": features.detach(), "gradient": context, "gradient of deep prompts": deep}


class ZeroshotHead(Work):
    """A zero-shot classifier with InMaP's seven templates."""

    target = 6.0

    def __init__(self, clip: FrozenCLIP, options: argparse.Namespace):
        self.clip, self.names = clip, class_names("imagenet")[: options.head_classes]
        self.templates = resolve_templates("inmap7")
        self.run = min(options.plain_classes, len(self.names))
        self.title = f"zero-shot head, {len(self.names)} classes x {len(self.templates)} templates"
        if self.run < len(self.names):
            self.extrapolated = f"the plain program ran {self.run} of the {len(self.names)} classes"

    def ours(self) -> list[Part]:
        """All texts at once."""
        return [
            Part(lambda: {"classifier": zeroshot_weights(self.clip.text, self.names, self.templates)[:, : self.run]})
        ]

    def plain(self) -> list[Part]:
        """As CLIP's notebook does: one class at a time, full length."""
        return [Part(self._notebook, times=len(self.names) / self.run)]

    def _notebook(self) -> Results:
        columns = []
        for name in self.names[: self.run]:
            texts = [template.replace("{}", name) for template in self.templates]
            features = F.normalize(text_features(self.clip, texts), dim=-1)
            columns.append(F.normalize(features.mean(0), dim=-1))
        return {"classifier": torch.stack(columns, dim=1)}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__, runs=3)
    parser.add_argument("--architecture", default=ARCHITECTURE, help="a causal CLIP backbone with random weights")
    parser.add_argument("--classes", type=int, default=CLASSES, help=f"of the prompts ({CLASSES})")
    parser.add_argument("--images", type=int, default=1, help="contexts in a batch; 1 is a shared context")
    parser.add_argument("--chunk", type=lambda text: text if text == "auto" else int(text), default="auto")
    parser.add_argument("--head-classes", type=int, default=HEAD_CLASSES, help=f"of the classifier ({HEAD_CLASSES})")
    parser.add_argument("--plain-classes", type=int, help="classes that the plain classifier runs (CPU 40, GPU all)")
    options = parser.parse_args(argv)
    if options.plain_classes is None:
        options.plain_classes = 40 if options.device == "cpu" else options.head_classes
    return options


def main() -> None:
    """Measure and print; with `--write`, keep the figures."""
    works = {"prompts": Prompts, "deep": DeepPrompts, "zeroshot": ZeroshotHead}
    cases = {name: lambda o, w=work: w(backbone(o.architecture, o.device), o) for name, work in works.items()}
    run_cases(parse(), "text_tower", cases)


if __name__ == "__main__":
    main()
