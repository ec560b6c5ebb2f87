"""WiSE-FT: the weights between zero-shot CLIP and a fine-tuned model.

Source: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv 2109.01903, and the authors'
program. Tower and head, which starts at the texts, are fine-tuned by cross-entropy; then all weights, the head's too,
are

    (1 - alpha) theta_0 + alpha theta_1.                                                                  (equation 1)

Every alpha of `ALPHAS` is tested from one training: the record has the whole curve. `ALPHA`, fixed beforehand, is the
result: source validation images prefer alphas near 1, where the method is plain fine-tuning, and the tested domain must
not choose.

The program averages the batch statistics of ResNets, too; here they stay CLIP's own. It picks nothing: every epoch and
every alpha is printed on every set.
"""

from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.fine_tuned import between, interpolate
from dassl_clip.engine.step_trainer import LAST
from dassl_clip.results.errors import UserError

from .erm import ERM


@TRAINER_REGISTRY.register()
class WiSEFT(ERM):
    """Fine-tuning, and the weights between its start and its end."""

    settings = {
        **ERM.settings,
        "ALPHA": 0.5,
        "ALPHAS": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
        "SCHEDULE": "cosine",
        "MAX_NORM": 1.0,
    }

    limits = {**ERM.limits, "ALPHA": (lambda value: 0 <= value <= 1, "a share of 0 to 1")}

    def check_cfg(self, cfg: CfgNode) -> None:
        """Also refuse an average, and a start that is not zero-shot CLIP."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.WISEFT
        if node.AVERAGE != "none":
            raise UserError(
                f"TRAINER.WISEFT.AVERAGE is {node.AVERAGE!r}; WiSE-FT's result lies between start and end: leave it "
                "none, or train ERM with this average and ALPHAS"
            )
        if node.HEAD != "text" or not node.NORMALIZE:
            raise UserError(
                f"TRAINER.WISEFT has HEAD {node.HEAD!r} and NORMALIZE {node.NORMALIZE}; it starts at zero-shot CLIP, "
                "which is HEAD text and NORMALIZE True"
            )

    @property
    def own_row(self) -> str:  # type: ignore[override]
        """The weights at `ALPHA`."""
        return between(self.node.ALPHA)

    def rows(self) -> dict[str, dict[str, Tensor]]:
        """Also the weights at `ALPHA`, if it is none of `ALPHAS`."""
        rows = super().rows()
        if self.own_row not in rows:
            rows[self.own_row] = interpolate({n: self.start[n] for n in rows[LAST]}, rows[LAST], self.node.ALPHA)
        return rows

    def record_facts(self) -> dict[str, Any]:
        """Also which weights are the result."""
        facts = super().record_facts()
        if self.result_row == self.own_row:
            facts["selection_rule"] = f"last step, interpolated with zero-shot CLIP at the fixed {self.own_row}"
        return facts
