"""Style words in the text space: their directions, features without them, and the own style of each class.

Source of the projection: the least-squares rest of features after the span of given directions, as in work on removing
a concept from embeddings. Nothing is trained and no image is read.

Shapes: `C` classes, `S` style words, `E` joint embedding, `R` directions.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_clip.results.errors import MissingFileError, UserError, listed
from dassl_clip.results.labels import display_name

STYLE = "{style}"  # in a template: the style word
OWN_STYLES_FILE = "own_styles.json"
SMALLEST = 1e-5  # singular value, relative to the largest, below which a direction is rounding error


def styled_texts(classnames: Sequence[str], styles: Sequence[str], template: str) -> list[str]:
    """The texts of all classes in each style, `S * C` of them, style by style.

    Raises:
        UserError: no style word, or the template lacks its places.
    """
    if not styles or template.count(STYLE) != 1 or template.replace(STYLE, "").count("{}") != 1:
        raise UserError(
            f"style prompts need style words and a template with one {{style}} and one {{}}; got {list(styles)} and "
            f"{template!r}; see DATASET.STYLES and DATASET.STYLE_TEMPLATE"
        )
    words = [display_name(style) for style in styles]
    return [template.replace(STYLE, word).replace("{}", display_name(name)) for word in words for name in classnames]


def style_directions(styled: Tensor, plain: Tensor) -> Tensor:
    """What a style word adds to a text: the mean over classes of styled minus plain features.

    Args:
        styled: Normalised features of the classes in each style's prompt, `[S, C, E]`.
        plain: The same in the plain prompt, `[C, E]`.

    Returns:
        `[S, E]`.
    """
    return (styled - plain).mean(dim=1)


def estimate_own_styles(styled: Tensor, plain: Tensor) -> Tensor:
    """The style that each class name is nearest to in the text space, `[C]`, positions in the style words.

    Of each class's plain feature, less the mean over classes, the cosine with what each style word adds to a text, less
    the mean over style words. No image is read. Where names are not tied to styles the estimate is arbitrary.

    Args:
        styled: Normalised features of the classes in each style's prompt, `[S, C, E]`.
        plain: The same in the plain prompt, `[C, E]`.
    """
    directions = F.normalize((styled - styled.mean(dim=0)).mean(dim=1), dim=-1)
    return ((plain - plain.mean(dim=0)) @ directions.T).argmax(dim=1)


def style_basis(directions: Tensor) -> Tensor:
    """An orthonormal basis `[E, R]` of the span of directions `[S, E]`, float64 on the inside; `R` is at most `S`."""
    _, values, rows = torch.linalg.svd(directions.double(), full_matrices=False)
    basis: Tensor = rows[values > SMALLEST * values.max()].T
    return basis.to(directions.dtype)


def without_styles(features: Tensor, basis: Tensor) -> Tensor:
    """Features `[..., E]` minus their part in the span of an orthonormal basis `[E, R]`; not normalised."""
    return features - (features @ basis) @ basis.T


def read_own_styles(path: Path, classnames: Sequence[str]) -> list[str]:
    """The own style of each class, from a file `{"own_styles": {class: style}}` such as `tools.build_icons` writes.

    Raises:
        UserError: there is no such file, it is not of this form, or it lacks classes.
    """
    if not path.is_file():
        raise MissingFileError(f"DATASET.OWN_STYLES: there is no file {path}")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["own_styles"]
        styles = {display_name(name): display_name(style) for name, style in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: expected JSON with {{"own_styles": {{class: style}}}} ({error!r})') from None
    missing = [name for name in classnames if display_name(name) not in styles]
    if missing:
        raise UserError(f"{path} has no own style for {listed(missing)}; it has {listed(list(styles))}")
    return [styles[display_name(name)] for name in classnames]
