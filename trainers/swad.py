"""SWAD: fine-tuning, averaged densely over a valley of the loss on source validation images.

Source: Cha et al., "SWAD: Domain Generalization by Seeking Flat Minima", NeurIPS 2021, arXiv 2102.08604, and the
authors' program. The training is ERM's; the weights after every step enter the average of `engine/averaging.py`
(`Valley`). `SHARES` `exact` counts every step of the valley once, `released` is the program's average, which counts
some segments twice or three times, and drops others.

`OPTIM.LR` and the rest are those of ERM; the valley is sought in steps of `EVALUATE_EVERY`. Each evaluation scores all
source validation images, so its price is that of `T / EVALUATE_EVERY` passes over them. The program also validates
without augmentation. It keeps one copy of the weights for each of the last 6 evaluations on the CPU, and so does this.
"""

from dassl.engine import TRAINER_REGISTRY

from .erm import ERM


@TRAINER_REGISTRY.register()
class SWAD(ERM):
    """ERM whose result is the average over the valley."""

    settings = {**ERM.settings, "AVERAGE": "swad", "EVALUATE_FIRST": True}
