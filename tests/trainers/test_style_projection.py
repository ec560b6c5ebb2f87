"""StyleProjection: zero-shot CLIP without the directions of style words.

Covers: its classifier and predictions against least squares on open_clip's own features, the style words of the data
set and given ones, that projecting the images too changes no prediction, and its export.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl_clip.cli import export, train
from dassl_clip.engine.export import load_export

NAMES = ("dog", "fire truck", "house")


def classifier(plain, words, prompts, project=True):
    """Class features `[C, E]` and the rest of any feature after the style words, in float64."""
    base = F.normalize(plain.texts([f"a photo of a {name}." for name in NAMES]), dim=-1).double()
    texts = [F.normalize(plain.texts([f"a {name} in {word} style." for name in NAMES]), dim=-1) for word in words]
    directions = (torch.stack(texts).double() - base).mean(1).T

    def rest(x):
        return (x.double().T - directions @ torch.linalg.lstsq(directions, x.double().T).solution).T

    return F.normalize(rest(F.normalize(plain.texts(prompts), dim=-1)), dim=-1), rest


@pytest.mark.parametrize(
    "pairs, words, prompt",
    [
        ((), ("art", "photo", "sketch"), "a photo of a {}."),
        (("DATASET.STYLES", "['pen','oil_paint']", "TRAINER.STYLEPROJECTION.TEMPLATES", "a {}."), ("pen", "oil paint"),
         "a {}."),
    ],
)  # fmt: skip
def test_predictions_are_those_of_least_squares(run, sketch, plain, pairs, words, prompt):
    folder, record, _ = run("StyleProjection", *pairs)
    _, labels, _, features = sketch
    weights, rest = classifier(plain, words, [prompt.replace("{}", name) for name in NAMES])
    both = F.normalize(rest(features), dim=-1) @ weights.T
    texts_alone = F.normalize(features.double(), dim=-1) @ weights.T
    assert torch.equal(both.argmax(1), texts_alone.argmax(1))
    assert record["selection_rule"] == "none" and record["num_train"] == 0 and not record["transductive"]
    assert record["metrics"]["test"]["correct"] == int((both.argmax(1) == labels).sum())
    shares = np.load(folder / "predictions.npz")["shares"][:, 0]
    expected = (plain.scale * texts_alone).softmax(1).amax(1)
    assert np.sort(shares) == pytest.approx(np.sort(expected.numpy()), abs=1e-4)


def test_export_is_a_linear_classifier(run, plain, tmp_path):
    folder, _, _ = run("StyleProjection")
    assert export.main([str(folder), "--out", str(tmp_path / "head.safetensors")]) == 0
    weights, _ = classifier(plain, ("art", "photo", "sketch"), [f"a photo of a {name}." for name in NAMES])
    found = load_export(tmp_path / "head.safetensors").classifier
    assert torch.allclose(F.normalize(found, dim=-1).double(), weights, atol=1e-5)


def test_template_without_its_places_is_refused(run):
    with pytest.raises(AssertionError, match="style prompts need style words"):
        run("StyleProjection", "DATASET.STYLE_TEMPLATE", "a {}.")


def test_data_without_domains_need_style_words(domain_tree, tiny_clip, tmp_path, capsys):
    data = tmp_path / "data.yaml"
    data.write_text("DATASET:\n  NAME: FolderClasses\n")
    words = ["--trainer", "StyleProjection", "--dataset-config-file", str(data), "--root", str(domain_tree / "sketch")]
    words += ["--output-dir", str(tmp_path / "run"), "MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}"]
    assert train.main(words) == 2
    assert "FolderClasses has no domains to take style words from; name some" in capsys.readouterr().err
