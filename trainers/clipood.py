"""CLIPood: the image tower fine-tuned with a margin that follows the texts, and averaged along the training.

Source: Shu et al., "CLIPood: Generalizing CLIP to Out-of-Distributions", ICML 2023, arXiv 2302.00864, and the authors'
program. With text features `t_c` and image features `f`, all of length 1, training scores class `c` of an image of
class `y` by

    s (f . t_c - LAMBDA t_y . t_c)                                                                     (metric softmax)

so that beside the own class, class `c` has a margin of `s LAMBDA (1 - t_y . t_c)`. The test has no margin. The result
is the mean of the weights after 0 to `T` steps, in proportion to the density of Beta(BETA, BETA) at
`(i + 1/2) / (T + 1)`.

Differences from the authors' program:
- It keeps weights and their average in float16 between steps, which loses steps and most of what the average gains in
  the middle of a training. Here both are float32, so that the printed rates go further: they are CLIPood's rates in
  another arithmetic, and source validation says whether they suit.
- It tests on the fifth of the target domain that DomainBed holds out, and stops before it saves the average where no
  epoch beats zero-shot CLIP on source validation images. Here `DATASET.PROTOCOL` says what is tested.
- Its source validation is augmented, its images are resampled bilinearly; here the frozen model's own way is taken.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.fine_tuned import FineTuned
from dassl_clip.engine.fine_tuning import FineTuningTrainer
from dassl_clip.engine.method import at_least


def with_margin(logits: Tensor, labels: Tensor, text: Tensor, scale: Tensor | float, margin: float) -> Tensor:
    """The scores of a training step, `[B, C]`.

    Args:
        logits: `s f . t_c`, `[B, C]`.
        labels: `[B]`.
        text: `t`, `[C, E]`, of length 1.
        scale: `s`.
        margin: `LAMBDA`.
    """
    return logits - scale * margin * (text @ text.T)[labels]


@TRAINER_REGISTRY.register()
class CLIPood(FineTuningTrainer):
    """Cross-entropy with a margin on a fixed text head; the result is the beta average."""

    settings = {**FineTuningTrainer.settings, "LAMBDA": 0.3, "SCHEDULE": "cosine", "AVERAGE": "beta"}
    limits = {**FineTuningTrainer.limits, "LAMBDA": at_least(0)}

    def learner(self) -> nn.Module:
        """The tower, and the texts as its head."""
        weight = self.logit_scale * self.text
        return FineTuned(self.image_tower(), weight, learned_head=False, pixels=self.pixel_change)

    def loss_terms(
        self, images: Tensor, labels: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, Tensor]]:
        """Cross-entropy, with the margin, of images `[B, 3, H, W]` with labels `[B]`."""
        features = self.encode(images)
        logits = with_margin(self.model.head(features), labels, self.text, self.logit_scale, self.node.LAMBDA)
        return {"ce": F.cross_entropy(logits, labels)}, {"ce": 1.0}, {"image features": features, "logits": logits}
