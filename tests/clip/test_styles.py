"""Style words in the text space.

Covers: the projection against least squares in float64, its basis with repeated and empty directions, the texts of
styles, the file of own styles, and templates that name the class's own style, by hand and in the zero-shot classifier.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl_clip.clip.backbone import load_backbone
from dassl_clip.clip.styles import read_own_styles, style_basis, style_directions, styled_texts, without_styles
from dassl_clip.clip.templates import fill_template, resolve_templates
from dassl_clip.clip.zeroshot import zeroshot_weights
from dassl_clip.results.errors import MissingFileError, UserError


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_projection_is_the_rest_of_least_squares(dtype, close):
    """What remains of a feature after its best fit by the directions, each fitted anew with numpy in float64."""
    styled, plain, features = draws(4, 7, 16), draws(7, 16, seed=1), draws(9, 16, seed=2)
    directions = np.stack([(styled[s].double() - plain.double()).numpy().mean(axis=0) for s in range(4)])
    basis = style_basis(style_directions(styled.to(dtype), plain.to(dtype)))
    rest = without_styles(features.to(dtype), basis)
    for feature, found in zip(features.double().numpy(), rest.double().numpy()):
        weights, *_ = np.linalg.lstsq(directions.T, feature, rcond=None)
        assert np.abs(found - (feature - directions.T @ weights)).max() < close
    assert torch.allclose(without_styles(rest, basis), rest, atol=close)


def test_basis_leaves_out_directions_that_others_span():
    two = draws(2, 16)
    repeated = torch.cat([two, 3 * two, two.sum(0, keepdim=True)])
    basis = style_basis(repeated)
    assert basis.shape == (16, 2) and torch.allclose(basis.T @ basis, torch.eye(2), atol=1e-6)
    assert style_basis(torch.zeros(3, 16)).shape == (16, 0)
    features = draws(5, 16, seed=3)
    assert torch.equal(without_styles(features, style_basis(torch.zeros(3, 16))), features)


def test_texts_of_styles():
    texts = styled_texts(["dog", "fire_truck"], ["art_painting", "sketch"], "a {} in {style} style.")
    assert texts == [
        "a dog in art painting style.", "a fire truck in art painting style.",
        "a dog in sketch style.", "a fire truck in sketch style.",
    ]  # fmt: skip


@pytest.mark.parametrize("styles, template", [([], "a {} in {style}."), (["a"], "a {}."), (["a"], "a {style}.")])
def test_texts_of_styles_need_words_and_places(styles, template):
    with pytest.raises(UserError, match=r"one \{style\} and one \{\}"):
        styled_texts(["dog"], styles, template)


def test_own_styles_are_read_by_class_name(tmp_path):
    path = tmp_path / "own_styles.json"
    path.write_text(json.dumps({"own_styles": {"fire_truck": "line", "dog": "art_painting", "cat": "flat"}}))
    assert read_own_styles(path, ["dog", "fire truck"]) == ["art painting", "line"]
    with pytest.raises(UserError, match="no own style for house; it has fire truck, dog, cat"):
        read_own_styles(path, ["dog", "house"])
    with pytest.raises(MissingFileError, match="there is no file"):
        read_own_styles(tmp_path / "other.json", ["dog"])
    for text in ("[1, 2]", "{", '{"own_styles": ["dog"]}', '{"styles": {}}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"expected JSON with \{\"own_styles\": \{class: style\}\}"):
            read_own_styles(path, ["dog"])


def test_templates_may_name_the_own_style():
    assert resolve_templates("a {own} drawing of a {}.") == ["a {own} drawing of a {}."]
    assert fill_template("a {own} drawing of a {}.", "dog", "flat") == "a flat drawing of a dog."
    assert fill_template("a photo of a {}.", "dog") == "a photo of a dog."
    with pytest.raises(UserError, match=r"no own styles are known here; name their file by DATASET\.OWN_STYLES"):
        fill_template("a {own} drawing of a {}.", "dog")
    for wrong in ("a {own} {own} {}.", "a {style} {}.", "a {own}.", "a {} {"):
        with pytest.raises(UserError, match=r"exactly one \{\}"):
            resolve_templates(wrong)


def test_zeroshot_classifier_with_own_styles(tiny_clip):
    """Each class in its own text; classes of one name and two styles stay apart."""
    text = load_backbone(f"local-dir:{tiny_clip}").text
    names, styles = ["dog", "fire_truck", "dog"], ["flat", "line", "solid"]
    weights = zeroshot_weights(text, names, ["a {own} drawing of a {}.", "a {}."], own_styles=styles)
    for column, (name, style) in enumerate(zip(("dog", "fire truck", "dog"), styles)):
        each = F.normalize(text.encode([f"a {style} drawing of a {name}.", f"a {name}."]), dim=-1)
        assert torch.allclose(weights[:, column], F.normalize(each.mean(0), dim=-1), atol=1e-6)
    assert not torch.allclose(weights[:, 0], weights[:, 2])
