"""Real runs of the few-shot peers that learn no prompt, on a small tree with a small random CLIP.

Covers, for Tip-Adapter(-F), LP++, TaskRes, CLIP-Adapter, CLIP-LoRA and ProLIP: a finished run opened again, and its
export, score as it did; InMaP and TransCLIP refine it; parts of classes are refused for new ones, others serve; the
accuracy of Tip-Adapter is that of a plain computation. Random views: they follow from the seed alone (workers, caches,
an interrupted extraction), and images that cannot be read are left out. Choices are made on source validation images,
and without any the record says so. Impossible settings are refused in one line.
"""

import shutil

import pytest
import torch
import torch.nn.functional as F

from dassl_clip.cli import export
from dassl_clip.engine.checkpoint_files import load_checkpoint
from dassl_clip.engine.export import load_export
from dassl_clip.engine.open_run import open_run
from dassl_clip.results.predictions import read_predictions
from dassl_clip.trainers.tip_adapter import KeyCache, best_strengths

SMALL = {
    "TipAdapter": (),
    "TipAdapterF": (
        *("TRAINER.TIPADAPTERF.EPOCHS", 2, "TRAINER.TIPADAPTERF.BATCH_SIZE", 7),
        *("TRAINER.TIPADAPTERF.VIEWS", 2),
    ),
    "LinearProbeP2": ("TRAINER.LINEARPROBEP2.PASSES", 20),
    "TaskRes": (),
    "CLIPAdapter": (),
    "CLIPLoRA": ("TRAINER.CLIPLORA.STEPS_PER_SHOT", 0),
    "CLIPLoRA-text": ("TRAINER.CLIPLORA.STEPS_PER_SHOT", 0, "TRAINER.CLIPLORA.ENCODER", "text"),
    "ProLIP": ("TRAINER.PROLIP.STEPS", 5, "TRAINER.PROLIP.VIEWS", 2),
}
FIT_OTHER_CLASSES = ("CLIPAdapter", "CLIPLoRA", "CLIPLoRA-text", "ProLIP")
OWN_FEATURES = ("CLIPAdapter", "CLIPLoRA", "ProLIP")
LINEAR = ("TaskRes", "CLIPLoRA-text")
RANDOM = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")


@pytest.fixture(scope="module")
def finished():
    return {}


@pytest.fixture
def trained(run, finished):
    """`trained(name)` gives a run, which is made once; nobody changes its folder."""

    def go(name):
        if name not in finished:
            finished[name] = run(name.split("-")[0], *SMALL[name], name=f"trained-{name}")
        return finished[name]

    return go


def learned(folder):
    (file,) = (path for path in folder.glob("*/model.pth.tar-*") if path.parent.name != "best")
    return load_checkpoint(file)["state_dict"]


def scores_of(trainer, images):
    rows = trainer.features.cached(images, trainer.encoding)
    with torch.no_grad():
        return trainer.feature_logits(rows[torch.arange(len(images))]).log_softmax(dim=1)


@pytest.mark.parametrize("name", SMALL)
def test_a_run_opened_again_and_its_export_score_as_it_did(name, trained, domain_tree, tmp_path, capsys):
    folder, record, _ = trained(name)
    saved = read_predictions(folder, scores=True)
    file = tmp_path / "run.safetensors"
    assert export.main([str(folder), "--out", str(file)]) == 0
    capsys.readouterr()
    for source in (folder, file):
        trainer, _ = open_run(source, root=str(domain_tree))
        images = sorted(trainer.dm.dataset.test, key=lambda image: list(saved.paths).index(image.impath))
        found = scores_of(trainer, images)
        torch.testing.assert_close(found, torch.from_numpy(saved.scores).float(), rtol=2e-3, atol=2e-3)
        stranger, _ = open_run(source)  # without the training data
        assert stranger.feature_logits(torch.ones(2, trainer.encoding.width)).isfinite().all()
    assert (load_export(file).classifier is not None) == (name in LINEAR), load_export(file).note
    assert record["num_train"] == 12 and record["metrics"]["test"]["total"] == 30


@pytest.mark.parametrize("name", SMALL)
def test_a_run_is_refined_from_its_own_features_and_scores(name, trained, run, domain_tree):
    folder, _, _ = trained(name)
    refiner = "TransCLIP" if name == "CLIPAdapter" else "InMaP"
    _, refined, _ = run(refiner, f"TRAINER.{refiner.upper()}.FROM", folder, name=f"{refiner}-{name}")
    assert refined["refines"]["method"] == name.split("-")[0] and refined["transductive"]
    trainer, _ = open_run(folder, root=str(domain_tree))
    images = trainer.dm.dataset.test
    features, cosines, proxies = trainer.refine_inputs(images)
    torch.testing.assert_close((trainer.logit_scale * cosines).log_softmax(1), scores_of(trainer, images))
    torch.testing.assert_close(proxies, F.normalize(trainer.class_proxies().float(), dim=-1))
    if name in ("TaskRes", *FIT_OTHER_CLASSES):  # their scores are cosines of what is given
        torch.testing.assert_close(features @ proxies.T, cosines, rtol=1e-4, atol=1e-6)
    changed = name in OWN_FEATURES
    frozen, _ = trainer.features(images)
    assert torch.allclose(features, frozen, atol=1e-6) != changed


@pytest.mark.parametrize("name", SMALL)
def test_parts_of_classes_are_refused_for_new_ones(name, run):
    kind = name.split("-")[0]
    base, record, _ = run(kind, *SMALL[name], "DATASET.SUBSAMPLE_CLASSES", "base", name="base")
    assert record["num_classes"] == 2
    flags, fits = ("--eval-only", "--model-dir", str(base)), name in FIT_OTHER_CLASSES
    new = "DATASET.SUBSAMPLE_CLASSES", "new"
    _, record, output = run(kind, *SMALL[name], *new, name="new", flags=flags, code=0 if fits else 2)
    if fits:
        assert record["metrics"]["test"]["total"] == 10
    else:
        assert "fit no other classes" in output.err and output.err.count("\n") == 1


def test_tip_adapter_is_a_plain_computation_on_features_of_the_data(run, trained, plain, sketch, domain_tree):
    folder, record, _ = trained("TipAdapter")
    trainer, _ = open_run(folder, root=str(domain_tree))
    _, labels, names, features = sketch
    data = trainer.dm.dataset
    train, val = (F.normalize(plain.images([item.impath for item in part]), dim=1) for part in (data.train_x, data.val))
    one_hot = F.one_hot(torch.tensor([item.label for item in data.train_x])).float()
    text = F.normalize(plain.texts([f"a photo of a {word}." for word in names]), dim=-1)
    cache = KeyCache(train, one_hot, 1.0, 1.0)
    truth = torch.tensor([item.label for item in data.val])
    beta, alpha, _ = best_strengths(cache, val, truth, text, (12.0, 5.0), (200, 20), plain.scale)
    assert (record["losses"]["beta"], record["losses"]["alpha"]) == pytest.approx((beta, alpha))
    best = KeyCache(train, one_hot, beta, alpha)
    hits = int(best(F.normalize(features, dim=1), text, plain.scale).argmax(1).eq(labels).sum())
    assert abs(record["metrics"]["test"]["correct"] - hits) <= 1
    assert record["selection_rule"] == "last; beta and alpha by source validation images" and record["keys"] == 12


@pytest.mark.parametrize("name", ["TipAdapterF", "ProLIP"])
def test_random_views_follow_from_the_seed_alone(name, run, monkeypatch, tmp_path):
    words = (*SMALL[name], *RANDOM)
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "one"))
    first, _, output = run(name, *words)
    assert "random views of 12 training images are encoded once" in output.out
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "other"))
    again, _, _ = run(name, *words, "DATALOADER.NUM_WORKERS", 2, "DATALOADER.TEST.BATCH_SIZE", 5, name="again")
    for key, value in learned(first).items():
        torch.testing.assert_close(learned(again)[key], value, rtol=1e-4, atol=1e-6, msg=key)
    other, _, _ = run(name, *words, name="seed", flags=("--seed", 2))
    key = next(iter(learned(first)))
    assert not torch.allclose(learned(first)[key], learned(other)[key], atol=1e-4)


def test_views_of_an_interrupted_extraction_are_those_of_a_whole_one(trained, domain_tree):
    trainer, _ = open_run(trained("TipAdapter")[0], root=str(domain_tree))
    from torchvision.transforms import Compose, RandomResizedCrop, ToTensor

    crop, items = Compose([RandomResizedCrop(32), ToTensor()]), trainer.dm.dataset.train_x[:7]

    def pixels(start, seed):
        loader = trainer.features.loader(items, crop, seed, start)
        return torch.cat([batch["img"] for batch in loader])

    whole = pixels(0, 5)
    assert torch.equal(pixels(4, 5), whole[4:]) and torch.equal(pixels(0, 5), whole)
    assert not torch.equal(pixels(0, 6), whole)


@pytest.mark.parametrize("name", ["TipAdapterF", "LinearProbeP2", "ProLIP"])
def test_images_that_cannot_be_read_are_left_out(name, run, domain_tree, tmp_path):
    root = tmp_path / "tree"
    shutil.copytree(domain_tree, root)
    words = (*SMALL[name], *RANDOM, "DATALOADER.ON_BAD_IMAGE", "skip", "DATASET.NUM_SHOTS", -1)
    bad = sorted((root / "art" / "dog").iterdir())[:6]
    for path in bad:
        path.write_bytes(b"no image")
    folder, record, _ = run(name, *words, name="bad", root=root)
    assert record["skipped_images"] and set(record["skipped_images"]) <= set(map(str, bad))
    assert all(value.isfinite().all() for value in learned(folder).values())
    if name == "TipAdapterF":
        state = learned(folder)
        unread = sum(path in record["skipped_images"] for path in map(str, bad))
        without = int(state["values"].sum(dim=1).eq(0).sum())
        assert 0 < without <= unread and state["keys"][state["values"].sum(dim=1) == 0].abs().max() == 0


@pytest.mark.parametrize("name", ["TipAdapterF", "LinearProbeP2"])
def test_the_epoch_is_chosen_on_validation_images_where_that_is_asked_for(name, run):
    _, record, _ = run(name, *SMALL[name], "TEST.FINAL_MODEL", "best_val", name="best")
    assert record["selection_rule"].startswith("best_val on source validation images")


def test_prolip_chooses_rate_and_penalty_on_validation_images(run):
    words = ("TRAINER.PROLIP.LR", "(1e-2,1e-3)", "TRAINER.PROLIP.LAMBDA", "('1/K',0.0)")
    _, record, _ = run("ProLIP", *SMALL["ProLIP"], *words)
    assert record["selection_rule"] == "last; LR and LAMBDA by source validation images"
    assert record["losses"]["lr"] in (1e-2, 1e-3) and record["losses"]["lambda"] in (0.25, 0.0)


@pytest.mark.parametrize(
    ("name", "rule"),
    [("TipAdapter", "last; beta and alpha as set"), ("LinearProbeP2", "last"), ("ProLIP", "last")],
)
def test_without_validation_images_the_published_values_are_taken(name, rule, run, tmp_path, domain_tree):
    root = tmp_path / "tree"
    shutil.copytree(domain_tree, root)
    for folder in (*(root / "art").iterdir(), *(root / "photo").iterdir()):  # too few to hold some out
        for path in sorted(folder.iterdir())[1:]:
            path.unlink()
    words = ("TRAINER.PROLIP.LR", "(1e-2,1e-3)") if name == "ProLIP" else ()
    _, record, output = run(name, *SMALL[name], *words, "DATASET.NUM_SHOTS", 1, root=root)
    assert record["selection_rule"] == rule and "no validation images to choose" in output.out


@pytest.mark.parametrize(
    ("name", "key", "value", "sentence"),
    [
        ("TipAdapter", "VIEWS", 0, "VIEWS is 0; expected a number of at least 1"),
        ("TipAdapter", "GRID_TOP", "(0.1,5.0)", "tops above 0.1"),
        ("TipAdapter", "KEYS", 3, "KEYS is 3, but there are 12 training images"),
        ("TipAdapterF", "BATCH_SIZE", 0, "BATCH_SIZE is 0; expected a number of at least 1"),
        ("LinearProbeP2", "ALPHA_EVERY", 0, "ALPHA_EVERY is 0; expected a number of at least 1"),
        ("TaskRes", "ALPHA", 0.0, "ALPHA is 0.0; expected a number above 0"),
        ("CLIPAdapter", "RATIO", 1.5, "expected a share above 0, at most 1"),
        ("CLIPAdapter", "REDUCTION", 17, "REDUCTION is 17, more than the 16 numbers of a feature"),
        ("ProLIP", "LAMBDA", "('K',)", "LAMBDA holds 'K'; expected a number of at least 0, 1/K or 1/K^2"),
        ("CLIPLoRA", "ENCODER", "image", "ENCODER is 'image'; expected one of both, text, vision"),
        ("CLIPLoRA", "PARTS", "('o',)", "expected some of q, k, v"),
        ("CLIPLoRA", "TEMPLATES", "inmap7", "has 7 templates; CLIP-LoRA trains the texts of one"),
        ("ProLIP", "LR", "()", "expected one or more of each"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(run, name, key, value, sentence):
    _, record, output = run(name, f"TRAINER.{name.upper()}.{key}", value, code=2)
    assert record is None and sentence in output.err and output.err.count("\n") == 1
