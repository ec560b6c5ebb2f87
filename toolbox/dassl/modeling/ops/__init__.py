"""Operations on features and labels."""

from .cross_entropy import cross_entropy
from .mixstyle import (
    MixStyle,
    activate_mixstyle,
    crossdomain_mixstyle,
    deactivate_mixstyle,
    random_mixstyle,
    run_with_mixstyle,
    run_without_mixstyle,
)
from .mixup import mixup
from .reverse_grad import ReverseGrad
from .utils import (
    create_onehot,
    ema_model_update,
    linear_rampup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)

__all__ = [
    "MixStyle",
    "ReverseGrad",
    "activate_mixstyle",
    "create_onehot",
    "cross_entropy",
    "crossdomain_mixstyle",
    "deactivate_mixstyle",
    "ema_model_update",
    "linear_rampup",
    "mixup",
    "random_mixstyle",
    "reverse_index",
    "run_with_mixstyle",
    "run_without_mixstyle",
    "sharpen_prob",
    "shuffle_index",
    "sigmoid_rampup",
]
