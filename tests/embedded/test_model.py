"""The shipped model.

Covers: size, plain open_clip loading (from the config's own architecture, and from the registry of custom configs),
zero-shot accuracies as `build.json` records them, the target and the spread over prompts, recipe hash, what the check
finds, tokens as CLIP's on captions and class names (and on any text), prompts that fit the context, the pool's form.
"""

import csv
import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from build_icons import captions as cap
from build_icons import check
from build_icons.check import accuracy_problems, check_model, compare_builds
from build_icons.measure import PROMPTS, class_features, pixels_of
from build_icons.recipe import Recipe
from build_icons.record import RECIPE_FILES
from build_icons.selection import DOMAINS
from build_icons.store import read_png
from build_icons.vocabulary import RESERVE_FILE
from open_clip.tokenizer import SimpleTokenizer
from PIL import Image
from safetensors import safe_open

from dassl_clip.embedded import CLIP_FOLDER, ICONS_FOLDER

RECORD = json.loads((CLIP_FOLDER / "build.json").read_text(encoding="utf-8"))
CONFIG = json.loads((CLIP_FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """The model built by open_clip's own factory from the shipped config and weights."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "IconsCLIP-test.json").write_text(json.dumps(CONFIG["model_cfg"]))
    open_clip.add_model_config(folder)
    model, _, preprocess = open_clip.create_model_and_transforms(
        "IconsCLIP-test",
        pretrained=str(CLIP_FOLDER / "open_clip_model.safetensors"),
        image_mean=tuple(CONFIG["preprocess_cfg"]["mean"]),
        image_std=tuple(CONFIG["preprocess_cfg"]["std"]),
        image_interpolation=CONFIG["preprocess_cfg"]["interpolation"],
        image_resize_mode=CONFIG["preprocess_cfg"]["resize_mode"],
    )
    return model.eval(), preprocess


def test_files_are_small():
    assert sum(path.stat().st_size for path in CLIP_FOLDER.iterdir()) <= 15e6
    with safe_open(CLIP_FOLDER / "open_clip_model.safetensors", "pt") as weights:
        kinds = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
    assert kinds <= {torch.float16, torch.int64}


def test_targets_are_met():
    means = {prompt: row["mean"] for prompt, row in RECORD["zero_shot"]["all"].items()}
    assert set(means) == set(PROMPTS)
    assert means["a photo of a {}."] >= 55 and max(means.values()) - means["a photo of a {}."] <= 2
    assert all(RECORD["zero_shot"]["all"]["a photo of a {}."][domain] > 40 for domain in DOMAINS)


def test_open_clip_alone_reaches_the_recorded_accuracy(registered, rows, classes):
    model, preprocess = registered
    tokenizer = SimpleTokenizer(bpe_path=str(CLIP_FOLDER / "bpe_merges.txt.gz"), context_length=24)
    chosen = [row for row in rows if (row["domain"], row["split"]) == ("line", "test")]
    with torch.no_grad():
        images = torch.stack([preprocess(Image.open(ICONS_FOLDER / row["path"])) for row in chosen])
        image_features = model.encode_image(images, normalize=True)
        text_features = model.encode_text(tokenizer([f"a photo of a {name}." for name in classes]), normalize=True)
    found = (image_features @ text_features.T).argmax(dim=1).tolist()
    right = [classes[label] == row["class"] for label, row in zip(found, chosen)]
    assert 100 * sum(right) / len(right) == pytest.approx(
        RECORD["zero_shot"]["test"]["a photo of a {}."]["line"], abs=0.5
    )


def test_our_pixels_equal_open_clips_preprocessing(registered, rows):
    _, preprocess = registered
    for row in rows[::400]:
        ours = pixels_of(read_png(ICONS_FOLDER / row["path"])[None], CONFIG)[0]
        assert torch.allclose(ours, preprocess(Image.open(ICONS_FOLDER / row["path"])), atol=1e-5)


def test_shipped_model_has_no_problem():
    assert check_model(CLIP_FOLDER, ICONS_FOLDER) == []


def test_other_accuracies_are_found():
    measured = json.loads(json.dumps(RECORD["zero_shot"]))
    assert accuracy_problems(RECORD["zero_shot"], measured) == []
    measured["test"]["{}"]["flat"] += 1
    problems = accuracy_problems(RECORD["zero_shot"], measured)
    assert len(problems) == 1 and problems[0].startswith('zero-shot "{}", flat, test: ')


def test_another_recipe_and_other_weights_are_found(tmp_path, monkeypatch):
    folder = tmp_path / "clip"
    shutil.copytree(CLIP_FOLDER, folder)
    (folder / "build.json").write_text(json.dumps(dict(RECORD, recipe_sha256="0" * 64)))
    (folder / "bpe_merges.txt.gz").write_bytes(b"x")
    monkeypatch.setattr(check, "read_model", lambda clip: ())
    monkeypatch.setattr(check, "measure_folder", lambda icons: RECORD["zero_shot"])
    problems = check_model(folder, ICONS_FOLDER)
    assert len(problems) == 2 and "another recipe" in problems[0] and problems[1].startswith("bpe_merges.txt.gz")


def test_builds_are_compared_within_the_spread(tmp_path):
    for name, difference in (("near", 0.9), ("far", 1.1)):
        shutil.copytree(CLIP_FOLDER, tmp_path / name / "clip")
        (tmp_path / name / "icons").mkdir()
        shutil.copy(ICONS_FOLDER / "manifest.json", tmp_path / name / "icons")
        record = json.loads(json.dumps(RECORD))
        for row in record["zero_shot"]["all"].values():
            row["mean"] -= difference * RECORD["spread"]
        (tmp_path / name / "clip" / "build.json").write_text(json.dumps(record))
    assert compare_builds(tmp_path / "near", CLIP_FOLDER.parent) == []
    assert len(compare_builds(tmp_path / "far", CLIP_FOLDER.parent)) == len(PROMPTS)


def test_recipe_is_the_one_in_the_code():
    assert RECORD["recipe_sha256"] == Recipe().sha256(*RECIPE_FILES)
    assert RECORD["recipe"] == Recipe().describe()


def class_names():
    with RESERVE_FILE.open(newline="", encoding="utf-8") as file:
        spare = {row["class"] for row in csv.DictReader(file)}
    manifest = json.loads((ICONS_FOLDER / "manifest.json").read_text(encoding="utf-8"))
    return [*manifest["classes"], *sorted(spare)]


def test_tokens_equal_clips_on_captions_and_class_names(small_clip):
    ours, clip = small_clip[1], SimpleTokenizer()
    texts = [template.format(name) for template in (*cap.TEMPLATES, *cap.PLAIN) for name in class_names()]
    for words in cap.STYLE_WORDS.values():
        texts += [template.format("key", style=word) for template in cap.STYLE_TEMPLATES for word in words]
    texts += [f"a {mood} {kind} of a {size} {colour} key." for mood in cap.MOODS for kind in cap.KINDS
              for size in cap.SIZES for colour in cap.COLOURS]  # fmt: skip
    for text in texts:
        assert [ours.decoder[i] for i in ours.encode(text)] == [clip.decoder[i] for i in clip.encode(text)]
        assert len(ours.encode(text)) + 2 <= ours.context_length


@pytest.mark.parametrize("text", ["zyzzyva", "ein schönes Bild", "雪 snow!", "e = mc^2"])
def test_any_text_has_tokens(small_clip, text):
    tokenizer = small_clip[1]
    assert tokenizer.decode(tokenizer.encode(text)).split() == tokenizer.clean_fn(text).replace("=", " = ").split() or (
        tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == tokenizer.clean_fn(text).replace(" ", "")
    )
    ids = tokenizer([text])[0]
    assert ids[0] == tokenizer.vocab_size - 2 and ids.max() == tokenizer.vocab_size - 1


def test_attention_pool_is_a_mean(small_clip):
    pool = small_clip[0].visual.attnpool
    maps = torch.randn(3, pool.q_proj.in_features, 2, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(pool(maps), pool.c_proj(maps.mean(dim=(2, 3))), atol=1e-4)


def test_class_features_differ(small_clip, classes):
    features = class_features(small_clip[0], small_clip[1], classes, "a photo of a {}.")
    similarity = (features @ features.T).fill_diagonal_(-1)
    assert np.isfinite(features.numpy()).all() and similarity.max() < 0.9
