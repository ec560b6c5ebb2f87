"""CLIP's zero-shot classifier: no training, one prompt template or an ensemble.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1.
"""

from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.clip.zeroshot import zeroshot_weights
from dassl_clip.engine.styles import own_styles
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.engine.unused import EPOCH_LOOP, templates_override


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(CLIPTrainer):
    """Cosines of image features with the (averaged) text features of each class's prompts."""

    aliases = ("clip", "zeroshot")
    settings = {
        "TEMPLATES": "single",  # a named set, a list of templates with `{}`, or `words`: CTX_INIT, name, full stop
        "CTX_INIT": "a photo of a",
    }
    trains_on_labels = False
    has_epochs = False
    is_reference = True
    extra_tests = ("forms", "probe", "attacks", "styles")
    overridden = {"CTX_INIT": ("TEMPLATES", templates_override)}
    unused_keys = EPOCH_LOOP
    used_instead = "nothing is trained"

    def build_model(self) -> None:
        """The classifier `[C, E]` from the text tower."""
        self.templates = resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME, words=self.node.CTX_INIT)
        with self.precision.autocast():
            self.proxies = zeroshot_weights(
                self.backbone.text, self.classnames, self.templates, own_styles=own_styles(self)
            ).T

    def fit(self) -> None:
        """Nothing is trained."""

    def class_proxies(self) -> Tensor:
        """The classifier, `[C, E]`."""
        return self.proxies

    def feature_logits(self, features: Tensor) -> Tensor:
        """Logits `[B, C]` of features `[B, E]`."""
        return self.cosine_logits(features, self.proxies)
