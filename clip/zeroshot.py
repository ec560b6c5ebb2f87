"""CLIP's zero-shot classifier: the averaged text features of each class's prompts.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section
3.1.4 (ensembles in embedding space: every embedding normalised, averaged over the templates, normalised again).

Shapes: `C` classes, `K` templates, `E` joint embedding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.results.errors import UserError
from dassl_clip.results.labels import display_name

from .finite import check_features
from .templates import fill_template
from .text_tower import TextTower

TEXTS_AT_ONCE = 65536


@torch.no_grad()
def zeroshot_weights(
    text: TextTower,
    classnames: Sequence[str],
    templates: Sequence[str],
    chunk: int | str | None = "auto",
    own_styles: Sequence[str] | None = None,
) -> Tensor:
    """The columns of a zero-shot classifier; image features times them are cosines.

    Args:
        text: The text tower.
        classnames: `C` class names; underscores count as blanks.
        templates: `K` templates with one `{}` each.
        chunk: Texts that the tower takes at once; "auto" fits the work, None takes all.
        own_styles: The own style of each class, for templates with `{own}`.

    Returns:
        `[E, C]` on the tower's device, float32 (float64 for a float64 model), columns of length 1.

    Raises:
        UserError: There are no class names or no templates.
        NotFiniteError: The text features of a class are not finite.
    """
    if isinstance(classnames, str) or isinstance(templates, str) or not len(classnames) or not len(templates):
        raise UserError(
            f"a zero-shot classifier needs lists of class names and of templates, got {classnames!r} and {templates!r}"
        )
    names = list(zip(map(display_name, classnames), own_styles or [""] * len(classnames), strict=True))
    distinct = list(dict.fromkeys(names))
    step = max(1, TEXTS_AT_ONCE // len(templates))
    starts = range(0, len(distinct), step)
    columns = torch.cat([_class_features(text, distinct[n : n + step], templates, chunk) for n in starts])
    check_features(columns, "text features", [f"the class {name!r}" for name, _ in distinct])
    place = {name: index for index, name in enumerate(distinct)}
    return columns[[place[name] for name in names]].T


def _class_features(
    text: TextTower, names: Sequence[tuple[str, str]], templates: Sequence[str], chunk: int | str | None
) -> Tensor:
    """Features `[C, E]` of classes (name, own style), each distinct text encoded once."""
    texts = [fill_template(template, name, own) for name, own in names for template in templates]
    place = {sentence: index for index, sentence in enumerate(dict.fromkeys(texts))}
    features = F.normalize(text.encode(list(place), chunk=chunk), dim=-1)
    each = features[[place[sentence] for sentence in texts]].unflatten(0, (len(names), len(templates)))
    return F.normalize(each.mean(dim=1), dim=-1)
