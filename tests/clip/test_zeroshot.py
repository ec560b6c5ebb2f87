"""The zero-shot classifier and the named templates.

Covers: weights against a loop over classes and templates through the model's own pass; each distinct text encoded
once; repeated names and templates; every named set against the published lists' sizes and texts; data-set defaults;
users' own templates; refusals.
"""

import open_clip
import pytest
import torch
import torch.nn.functional as F

from dassl_clip.clip.templates import resolve_templates, template_names
from dassl_clip.clip.text_tower import TextTower
from dassl_clip.clip.zeroshot import zeroshot_weights
from tests.clip.test_text_tower import TOKENIZER

NAMES = ["dog", "fire_truck", "great white shark", "dog"]
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"layers": 1, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}


@pytest.fixture(scope="module", params=["causal", "plain"])
def model(request):
    torch.manual_seed(0)
    text = {**TEXT, "no_causal_mask": request.param == "plain"}
    return open_clip.CustomTextCLIP(embed_dim=16, vision_cfg=VISION, text_cfg=text).double().eval()


@torch.no_grad()
def naive_weights(model, classnames, templates):
    """open_clip's recipe, a class at a time."""
    tokenizer, columns = TOKENIZER(), []
    for name in classnames:
        texts = [template.replace("{}", name.replace("_", " ")) for template in templates]
        features = [F.normalize(model.encode_text(tokenizer([text]))[0], dim=0) for text in texts]
        columns.append(F.normalize(torch.stack(features).mean(0), dim=0))
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("chunk", ["auto", 2, None])
@pytest.mark.parametrize("templates", [["{}"], resolve_templates("inmap7"), ["a {}.", "a {}.", "the {}"]])
def test_weights_equal_a_loop(model, templates, chunk):
    weights = zeroshot_weights(TextTower(model, TOKENIZER()), NAMES, templates, chunk=chunk)
    assert weights.shape == (16, len(NAMES)) and not weights.requires_grad
    torch.testing.assert_close(weights, naive_weights(model, NAMES, templates), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(weights.norm(dim=0), torch.ones(len(NAMES), dtype=torch.float64))


def test_each_distinct_text_is_read_once(model):
    read = []

    class Counting(open_clip.SimpleTokenizer):
        def __call__(self, texts, context_length=None):
            read.extend(texts)
            return super().__call__(texts, context_length)

    tower = TextTower(model, Counting())
    read.clear()
    zeroshot_weights(tower, [*NAMES, "fire truck"], ["a {}.", "a {}.", "the {}"])
    assert sorted(read) == sorted({f.format(n.replace("_", " ")) for n in NAMES for f in ("a {}.", "the {}")})


@pytest.mark.parametrize("names, templates", [([], ["{}"]), (["dog"], []), ("dog", ["{}"]), (["dog"], "a {}.")])
def test_empty_lists_and_bare_texts_are_refused(model, names, templates):
    with pytest.raises(ValueError, match="needs lists of class names and of templates"):
        zeroshot_weights(TextTower(model, TOKENIZER()), names, templates)


# ---------------------------------------------------------------------------------------------------- templates

COOP = {
    "OxfordPets": "a photo of a {}, a type of pet.", "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.", "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.", "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
    **dict.fromkeys(("StanfordCars", "SUN397", "Caltech101", "ImageNet", "ImageNetSketch", "ImageNetV2", "ImageNetA",
                     "ImageNetR", "PACS", "Icons"), "a photo of a {}."),
}  # fmt: skip
CLIP_COUNTS = {"Caltech101": 34, "DescribableTextures": 8, "EuroSAT": 3, "FGVCAircraft": 2, "OxfordFlowers": 1,
               "Food101": 1, "OxfordPets": 1, "SUN397": 2, "StanfordCars": 8, "UCF101": 48, "ImageNet": 80,
               "ImageNetR": 80}  # fmt: skip


def test_templates_of_each_data_set():
    assert {dataset: resolve_templates("coop", dataset) for dataset in COOP} == {k: [v] for k, v in COOP.items()}
    for dataset, count in CLIP_COUNTS.items():
        templates = resolve_templates("clip", dataset)
        assert len(templates) == len(set(templates)) == count, dataset
        assert resolve_templates(f"clip:{dataset}", "PACS") == templates


def test_fixed_sets():
    seven = ["itap of a {}.", "a origami {}.", "a bad photo of the {}.", "a photo of the large {}.",
             "a {} in a video game.", "art of the {}.", "a photo of the small {}."]  # fmt: skip
    assert resolve_templates("inmap7") == seven
    assert sorted(resolve_templates("imagenet_select")) == sorted(seven)
    eighty = resolve_templates("imagenet80")
    assert len(set(eighty)) == 80 and set(seven) <= set(eighty)
    assert eighty == [template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert resolve_templates("single") == ["a photo of a {}."]
    forms = [resolve_templates(f"clap_{form}")[0] for form in ("c", "cp", "pc")]
    assert forms == ["{}", "a {} in a photo", "a photo of a {}"]


@pytest.mark.parametrize(
    "words, sentence", [("a photo of a", "a photo of a {}."), ("a_sketch_of", "a sketch of {}."), ("", "{}.")]
)
def test_words_are_the_context_the_name_and_a_full_stop(words, sentence):
    assert resolve_templates("words", words=words) == [sentence]


def test_every_name_resolves_to_templates_with_one_place():
    for name in template_names():
        templates = resolve_templates(name, "EuroSAT")
        assert templates and all(template.count("{}") == 1 for template in templates)
        templates.append("changed")
        assert "changed" not in resolve_templates(name, "EuroSAT")


def test_users_own_templates():
    assert resolve_templates(["a {}", "the {}."]) == ["a {}", "the {}."]
    assert resolve_templates(("a {}",)) == ["a {}"]
    assert resolve_templates("my {} here") == ["my {} here"]


@pytest.mark.parametrize(
    "templates, message",
    [
        ("singel", "Did you mean 'single'"),
        ("imagenet", "Did you mean 'imagenet80'"),
        ("clip", "no 'clip' templates for the data set 'PACS'.*take single or imagenet80"),
        ("coop:EuroSat", "Did you mean 'EuroSAT'"),
        (["a dog"], "exactly one {}"),
        (["a {} and a {}"], "exactly one {}"),
        (["a {} {c}"], "exactly one {}"),
        ([], "list of templates is empty"),
    ],
)
def test_unknown_and_unusable_templates(templates, message):
    with pytest.raises(ValueError, match=message):
        resolve_templates(templates, "PACS")
