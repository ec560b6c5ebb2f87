"""GOPro's evaluation against the plain program: three views at test time, a text pass for each, 77 tokens.

Ours is the trainer's own `model_inference` on a batch of generated pictures: the original view alone, prompts cut and
packed. The plain program encodes all three views of an image and the prompts of each over all classes; only the
scores of the original view count. One case: the 65 classes of OfficeHome.

example: python benchmarks/gopro_eval.py --threads 2
"""

import argparse

import torch
import torch.nn.functional as F
from common import ARCHITECTURE, Part, Results, Work, make_parser, run_cases
from gopro_step import gopro_trainer
from inputs import class_names
from plain import image_features, prompt_features, prompt_ids, shifts

IMAGES = 2
VIEWS = 3


class Evaluation(Work):
    """Scores of a batch of images.

    Args:
        names: `C` class names.
        target: Of the ratio of times.
        options: The command line.
    """

    def __init__(self, names: list[str], target: float | None, options: argparse.Namespace):
        self.title = f"GOPro evaluation, {options.images} images, {len(names)} classes"
        self.target = target
        self.trainer = gopro_trainer(names, options, test_images=options.images)
        self.images = self.trainer.parse_batch_test(next(iter(self.trainer.test_loader)))[0]
        self.ids = prompt_ids(self.trainer.backbone, names, len(self.trainer.model.generator.ctx))
        self.trainer.set_model_mode("eval")

    def ours(self) -> list[Part]:
        """The trainer's scores."""
        return [Part(self._scores)]

    def plain(self) -> list[Part]:
        """Image after image, view after view."""
        return [Part(self._plain_scores)]

    @torch.no_grad()
    def _scores(self) -> Results:
        return {"scores": self.trainer.model_inference(self.images)}

    @torch.no_grad()
    def _plain_scores(self) -> Results:
        """Scores `[B, C]`; what the views are does not change the work, so each is the image itself."""
        clip, learner = self.trainer.backbone, self.trainer.model
        per_view = []
        for _ in range(VIEWS):
            features, blocks = image_features(clip, self.images)
            contexts = learner.generator.ctx + shifts(learner, blocks)[:, None]
            texts = [F.normalize(prompt_features(clip, context, self.ids), dim=-1) for context in contexts]
            per_view.append(torch.stack([clip.logit_scale * text @ f for f, text in zip(features, texts)]))
        return {"scores": per_view[0]}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", default=ARCHITECTURE, help="a ViT of CLIP with random weights")
    parser.add_argument("--images", type=int, help=f"images of a batch (CPU {IMAGES}, GPU {16 * IMAGES})")
    options = parser.parse_args(argv)
    options.images = options.images or (IMAGES if options.device == "cpu" else 16 * IMAGES)
    options.batch = 2  # of the training loader, which is built but not read
    return options


def main() -> None:
    """Measure and print; with `--write`, keep the figures."""
    names = class_names("office_home")
    run_cases(parse(), "gopro_eval", {f"{len(names)} classes": lambda o: Evaluation(names, 12.0, o)})


if __name__ == "__main__":
    main()
