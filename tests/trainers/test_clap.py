"""CLAP as a trainer, through the command line, against plain programs on open_clip's own model.

Covers: scores and accuracy with a trained head and with the authors' checkpoints; heads that do not fit; what the head
is trained on (settings reach the fit; other sources; pictures); alpha chosen on source validation images and never on
tested ones; runs that repeat, resume and take heads and features from the bank; the sentences for wrong settings.
"""

import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from dassl.data.datasets import build_dataset
from dassl.engine import TRAINER_REGISTRY
from dassl_clip import trainers
from dassl_clip.cli import train
from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.engine.overrides import resolve_config
from dassl_clip.trainers.clap import pairs as clap_pairs
from dassl_clip.trainers.clap.head import ContentHead
from dassl_clip.trainers.clap.pairs import training_names
from dassl_clip.trainers.clap.texts import Augmentation, template_tables
from dassl_clip.trainers.clap.training import TextPairs, fit_content_head

ROOT = Path(trainers.__file__).resolve().parents[1]

SHORT = (
    "TRAINER.CLAP.LATENT_DIM", 8, "TRAINER.CLAP.MAX_STEPS", 30, "TRAINER.CLAP.CHECK_EVERY", 10,
    "TRAINER.CLAP.BATCH_SIZE", 8, "TRAINER.CLAP.ALPHA", 0.6, "TRAINER.CLAP.TAU", 0.5, "TRAINER.CLAP.LAMBDA", 0.7,
)  # fmt: skip
UNTRAINED = ("TRAINER.CLAP.MAX_STEPS", 0)
DROP = "last drop of the training loss on texts (no images)"  # which step's head is kept: a selection rule
ALPHA_CHOSEN = "; alpha by source validation images"


def clap(**keys):
    """KEY VALUE pairs of CLAP's own node, after those of a short training."""
    return (*SHORT, *(word for key, value in keys.items() for word in (f"TRAINER.CLAP.{key}", value)))


def head_of(folder):
    """The learned parts in the newest checkpoint of a run."""
    name = (folder / "clap" / "checkpoint").read_text().strip()
    return checkpoint.load_checkpoint(folder / "clap" / name)["state_dict"]


def content(head, x, alpha):
    """z = x + alpha P(A(SiLU(x))), row by row."""
    rows = []
    for row in x:
        hidden = head["linear.weight"] @ (row / (1 + torch.exp(-row))) + head["linear.bias"]
        rows.append(row + alpha * (head["projection.weight"] @ hidden))
    return torch.stack(rows)


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def plain_shares(plain, features, names, head, alpha, templates=("a photo of a {}",)):
    """Softmax of the scaled cosines between head(image) and the mean of head(prompt), `[N, C]`."""
    rows = []
    for name in names:
        texts = plain.texts([template.format(name) for template in templates])
        rows.append(unit(content(head, texts, alpha)).mean(0))
    return (plain.scale * unit(content(head, features, alpha)) @ unit(torch.stack(rows)).T).softmax(1)


def assert_reads(folder, record, shares, sketch):
    """The run's classes, shares and accuracy are those of a plain program, image by image."""
    paths, labels, names, _ = sketch
    found = np.load(folder / "predictions.npz")
    place = {str(path): row for row, path in enumerate(paths)}
    assert sorted(place) == sorted(found["paths"])
    assert [name.replace("_", " ") for name in found["classnames"]] == names
    rows = [place[path] for path in found["paths"]]
    shares, labels = shares[rows], labels[rows]
    np.testing.assert_array_equal(found["labels"], labels)
    wanted = shares.sort(dim=1, descending=True)
    np.testing.assert_allclose(found["shares"], wanted.values, atol=2e-5)
    clear = (wanted.values[:, 0] - wanted.values[:, 1]) > 1e-4
    assert clear.float().mean() > 0.8
    np.testing.assert_array_equal(found["top"][clear, 0], wanted.indices[clear, 0])
    correct = int(wanted.indices[:, 0].eq(labels).sum())
    assert abs(record["metrics"]["test"]["correct"] - correct) <= int((~clear).sum())
    assert record["metrics"]["test"]["total"] == len(labels)


def random_head(width=16, latent=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"linear.weight": (latent, width), "linear.bias": (latent,), "projection.weight": (width, latent)}
    return {key: torch.randn(*shape, generator=draw) for key, shape in shapes.items()}


def authors_file(path, head, wrapped=False):
    """A state dict as CLAP's authors publish theirs: the head twice, under two networks."""
    other = random_head(*reversed(head["linear.weight"].shape), seed=9)
    state = {f"network_beta.{key}": value for key, value in head.items()}
    state |= {f"network_psi.{key}": value for key, value in other.items()}
    torch.save({f"module.{key}": value for key, value in state.items()} if wrapped else state, path)
    return path


def assert_same_run(one, other):
    for key, value in head_of(one[0]).items():
        assert torch.equal(value, head_of(other[0])[key]), key
    assert one[1]["metrics"] == other[1]["metrics"] and one[1]["history"] == other[1]["history"]
    a, b = (np.load(run[0] / "predictions.npz") for run in (one, other))
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name])


# ----------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("templates", [("a photo of a {}",), ("a photo of a {}", "the {} here")])
def test_a_run_scores_as_a_plain_program_does(run, plain, sketch, templates):
    _, _, names, features = sketch
    folder, record, _ = run("CLAP", *clap(TEMPLATES=repr(templates)), "OPTIM.LR", 0.01)
    head = head_of(folder)
    assert head["projection.weight"].abs().max() > 0.01  # it was trained: the head starts as the identity
    assert_reads(folder, record, plain_shares(plain, features, names, head, 0.6, templates), sketch)
    without = plain_shares(plain, features, names, head, 0.0, templates)
    assert (plain_shares(plain, features, names, head, 0.6, templates) - without).abs().max() > 1e-3
    assert (record["alpha"], record["prompt"]) == (0.6, " | ".join(templates))
    assert (record["num_train"], record["selection_rule"], record["transductive"]) == (0, DROP, False)


def test_a_finished_run_is_evaluated_with_the_same_numbers(run):
    folder, record, _ = run("CLAP", *SHORT, name="trained")
    _, again, _ = run("CLAP", *SHORT, name="again", flags=("--eval-only", "--model-dir", str(folder)))
    assert again["metrics"] == record["metrics"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_authors_checkpoint_loads_and_reads_as_a_plain_program_does(run, plain, sketch, tmp_path, wrapped):
    _, _, names, features = sketch
    head = random_head()
    keys = ("MODEL.INIT_WEIGHTS", authors_file(tmp_path / "model.pth", head, wrapped))
    wanted = plain_shares(plain, features, names, head, 0.6)
    folder, record, _ = run("CLAP", *clap(MAX_STEPS=0), *keys, name="untrained")
    assert_reads(folder, record, wanted, sketch)
    for key, value in head.items():
        assert torch.equal(head_of(folder)[key], value), key
    _, evaluated, _ = run("CLAP", *SHORT, *keys, name="evaluated", flags=("--eval-only",))
    assert evaluated["metrics"] == record["metrics"]


def test_heads_of_images_are_served_and_untrained_ones_refused(run, plain, sketch, tmp_path):
    """(row 7.6) Im.Aug's published heads: network_beta has a projection of zeros, network_psi is the head."""
    _, _, names, features = sketch
    head, zeros = random_head(), random_head(seed=5)
    zeros["projection.weight"] = torch.zeros_like(zeros["projection.weight"])
    state = {f"network_beta.{key}": value for key, value in zeros.items()}
    torch.save(state | {f"network_psi.{key}": value for key, value in head.items()}, tmp_path / "images.pth")
    keys = ("MODEL.INIT_WEIGHTS", tmp_path / "images.pth")
    folder, record, output = run("CLAP", *clap(MAX_STEPS=0), *keys, name="images")
    assert_reads(folder, record, plain_shares(plain, features, names, head, 0.6), sketch)
    assert "the head is its network_psi" in output.out
    for wrong in (state, zeros):
        torch.save(wrong, tmp_path / "zeros.pth")
        _, none, output = run("CLAP", *clap(MAX_STEPS=0), *keys[:1], tmp_path / "zeros.pth", name="zeros", code=2)
        assert none is None and "is not trained: its projection is all zero" in output.err
        assert output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        (random_head(width=24), "for features of width 24, but this backbone's have width 16"),
        (random_head(latent=5), "latent width of 5, but 8 is configured"),
        ({"linear.weight": torch.zeros(8, 16)}, "network_beta.linear.bias, network_beta.projection.weight missing"),
    ],
)
def test_heads_that_do_not_fit_are_refused_by_name(run, tmp_path, head, sentence):
    file = tmp_path / "model.pth"
    torch.save({f"network_beta.{key}": value for key, value in head.items()}, file)
    _, _, output = run("CLAP", *SHORT, "MODEL.INIT_WEIGHTS", file, code=2)
    assert sentence in output.err


# ------------------------------------------------------------------------------------------- what it is trained on


def test_the_settings_reach_the_fit(run, plain):
    """The head of a run is that of the pure functions, given open_clip's own features and the run's settings."""
    chances = {
        "DROP_SIZE": 0.5, "DROP_COLOUR": 0.7, "DROP_TYPE_STYLE": 0.2, "SWAP": 0.4, "DROP_TYPE": 0.3, "DROP_STYLE": 0.6
    }  # fmt: skip
    folder, record, _ = run("CLAP", *clap(MAX_STEPS=7, CHECK_EVERY=3, **chances))
    tables = template_tables(["dog", "fire_truck", "house"], Augmentation(*chances.values()))
    pairs = TextPairs(tables, plain.texts(tables.texts), 8, seed=1)
    torch.manual_seed(1)
    head = ContentHead(16, 8)
    report = fit_content_head(
        head, pairs, tau=0.5, weight=0.7, learning_rate=0.01, max_steps=7,
        check_every=3,
    )  # fmt: skip
    for key, value in head.state_dict().items():
        torch.testing.assert_close(head_of(folder)[key], value, rtol=1e-3, atol=1e-4)
    assert [check["step"] for check in record["history"]] == [3, 6, 7] == [step for step, _ in report.checks]
    for check, (_, loss) in zip(record["history"], report.checks):
        assert check["contrastive"] == pytest.approx(loss, abs=1e-4)
    assert record["losses"]["contrastive"] == record["history"][-1]["contrastive"]


def test_names_in_training_texts_may_be_others_than_those_of_the_folders(run, plain):
    """(row 7.10) As OfficeHome's "flower" for the folder "Flowers": trained on the former, tested by the latter."""
    names = ("TRAINER.CLAP.TRAINING_NAMES", "(('Fire truck', 'lorry'), ('cat', 'kitten'))")
    folder, _, output = run("CLAP", *clap(MAX_STEPS=7), *names)
    assert "there is no class cat here" in output.out
    pairs = TextPairs(tables := template_tables(["dog", "lorry", "house"]), plain.texts(tables.texts), 8, seed=1)
    torch.manual_seed(1)
    head = ContentHead(16, 8)
    fit_content_head(head, pairs, tau=0.5, weight=0.7, learning_rate=0.01, max_steps=7, check_every=10)
    for key, value in head.state_dict().items():
        torch.testing.assert_close(head_of(folder)[key], value, rtol=1e-3, atol=1e-4)
    assert [str(name) for name in np.load(folder / "predictions.npz")["classnames"]] == ["dog", "fire_truck", "house"]
    for shipped in ("office_home", "office_home_vit_l14"):
        tree = yaml.safe_load((ROOT / f"configs/trainers/CLAP/{shipped}.yaml").read_text())
        assert training_names(["fan", "flowers"], tree["TRAINER"]["CLAP"]["TRAINING_NAMES"]) == ["fan", "flower"]


def test_the_kept_weights_and_their_step_are_in_the_record(run):
    """(row 7.3) A drop of 9 never comes after the first check, which always counts."""
    folder, record, output = run("CLAP", *clap(MIN_DROP=9.0), name="first")
    assert (record["training"]["steps"], record["training"]["kept_step"]) == (30, 10)
    assert "content head trained: 30 steps (MAX_STEPS), kept step 10" in output.out
    short, _, _ = run("CLAP", *clap(MIN_DROP=9.0, MAX_STEPS=10), name="short")
    last, record, _ = run("CLAP", *clap(MIN_DROP=9.0, KEEP="last-step"), name="last")
    assert record["training"]["kept_step"] == 30
    one, two, three = (head_of(run)["projection.weight"] for run in (folder, short, last))
    assert torch.equal(one, two) and not torch.equal(one, three)


def test_the_selection_rule_says_which_step_was_kept(run, synthetic):
    """In every setting, also of a head that is taken from the cache, another run, or no training at all."""
    rules = {}

    def rule(name, *pairs, **options):
        folder, record, _ = run(options.pop("trainer", "CLAP"), *pairs, name=name, **options)
        rules[name] = record["selection_rule"], record.get("training", {}).get("kept_step")
        return folder, record

    folder, _ = rule("kept", *clap(MIN_DROP=9.0))
    assert rule("reused", *clap(MIN_DROP=9.0))[1]["training"]["reused"]
    rule("last", *clap(MIN_DROP=9.0, KEEP="last-step"))
    rule("no-check", *clap(MAX_STEPS=7))  # CHECK_EVERY is 10
    rule("untrained", *clap(MAX_STEPS=0))
    rule("best", *clap(MIN_DROP=9.0), "TEST.FINAL_MODEL", "best_val", "DATASET.NUM_SHOTS", -1)
    chosen = ("TRAINER.CLAP.ALPHA", "source-val")
    rule("alpha", *clap(MIN_DROP=9.0), *chosen)
    # A run that takes up another one's finished head: that one's KEEP decided.
    rule("taken-up", *clap(MIN_DROP=9.0, KEEP="last-step"), flags=("--resume", str(folder)))
    rule("taken-up-last", *clap(MIN_DROP=9.0), flags=("--resume", str(folder.parent / "last")))
    evaluated = ("--eval-only", "--model-dir")
    rule("evaluated", *clap(KEEP="last-step"), flags=(*evaluated, str(folder)))
    rule("evaluated-alpha", *SHORT, *chosen, flags=(*evaluated, str(folder)))
    rule("evaluated-fixed", *clap(ALPHA="9.0"), flags=(*evaluated, str(folder.parent / "alpha")))
    rule("refined", "TRAINER.INMAP.FROM", folder, trainer="InMaP")
    for key, step in (("kept", 10), ("reused", 10), ("best", 10), ("taken-up", 10), ("evaluated", None)):
        assert rules[key] == (DROP, step), key
    for key, step in (("last", 30), ("no-check", 7), ("taken-up-last", 30)):
        assert rules[key] == ("last", step), key
    assert rules["untrained"] == ("none", None) and rules["refined"] == (DROP, None)
    assert rules["alpha"] == (DROP + ALPHA_CHOSEN, 10) and rules["evaluated-alpha"] == (DROP + ALPHA_CHOSEN, None)
    assert rules["evaluated-fixed"] == (DROP, None)


def test_a_head_of_tested_images_is_transductive(run, domain_tree, tmp_path):
    """Im.Aug on a folder that holds tested images, there or by a link; on others it is not."""
    (tmp_path / "link").symlink_to(domain_tree / "sketch")
    for folder, shared in ((domain_tree / "sketch", True), (tmp_path / "link", True), (domain_tree / "art", False)):
        image = {"MODALITY": "image", "IMAGE_FOLDER": folder, "IMAGE_VIEWS": 2}
        _, record, _ = run("CLAP", *clap(**image), name=f"of-{folder.name}")
        assert record["transductive"] == shared
        assert record["selection_rule"] == "last drop of the training loss on unlabelled images"
        seen = "the tested images" if shared else "30 images"
        assert f"head trained on {seen}, without labels" in record["reading_notes"]


def test_other_switches_of_the_ablations_change_the_head(run):
    few = {"MAX_STEPS": 6}
    base = head_of(run("CLAP", *clap(**few), name="base")[0])
    switches = {"SOURCE": "random-words", "NOISE_TOKENS": 4, "BATCH_ORDER": "in-turn"}
    heads = {key: head_of(run("CLAP", *clap(**few, **{key: value}), name=key)[0]) for key, value in switches.items()}
    heads["seed"] = head_of(run("CLAP", *clap(**few), "SEED", 2, name="seed")[0])
    heads["std"] = head_of(run("CLAP", *clap(**few, NOISE_TOKENS=4, NOISE_STD=0.5), name="std")[0])
    heads["drop"] = head_of(run("CLAP", *clap(**few, SOURCE="random-words", DROP_WORD=0.9), name="drop")[0])
    kept = [("base", base), *heads.items()]
    for i, (name, head) in enumerate(kept):
        for other, there in kept[:i]:
            assert not torch.equal(head["projection.weight"], there["projection.weight"]), (name, other)


def test_texts_of_a_file(run, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a {} in the rain\n# a remark\n\nfire truck\tthe {} at night\na painted {}\n")
    folder, record, _ = run("CLAP", *clap(SOURCE=file))
    assert record["training"]["steps"] == 30 and head_of(folder)["projection.weight"].abs().max() > 0
    file.write_text("fire_truck\tthe {} at night\ndog\ta {}\n")
    _, _, output = run("CLAP", *clap(SOURCE=file), name="missing", code=2)
    assert "no text for the class 'house'" in output.err
    file.write_text("a {} and a {}\n")
    _, _, output = run("CLAP", *clap(SOURCE=file), name="twice", code=2)
    assert "line 1" in output.err and "exactly one {}" in output.err


@pytest.fixture
def synthetic(tmp_path):
    """Pictures of each class, in folders whose names are spelled otherwise."""
    draw = np.random.default_rng(5)
    for c, name in enumerate(("Dog", "fire-truck", "HOUSE")):
        for i in range(4):
            path = tmp_path / "synthetic" / name / f"part{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 120, (48, 40, 3))
            pixels[..., c] += 110
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return tmp_path / "synthetic"


def test_a_head_of_pictures(run, plain, sketch, synthetic):
    """Im.Aug: trained on pictures, read like any head; the tested images play no part, nor do class names (row 7.6)."""
    _, _, names, features = sketch
    image = {"MODALITY": "image", "IMAGE_FOLDER": synthetic, "IMAGE_VIEWS": 3}
    folder, record, _ = run("CLAP", *clap(**image), name="one")
    assert_reads(folder, record, plain_shares(plain, features, names, head_of(folder), 0.6), sketch)
    again, _, _ = run("CLAP", *clap(**image), "DATALOADER.NUM_WORKERS", 2, name="two")
    fewer, _, _ = run("CLAP", *clap(**(image | {"IMAGE_VIEWS": 2})), name="fewer")
    calmer, _, _ = run("CLAP", *clap(**image, IMAGE_JITTER="(0.0, 0.0, 0.0, 0.0)"), name="calmer")
    nameless, _, _ = run("CLAP", *clap(**image), "TRAINER.CLAP.LAMBDA", 0.0, name="nameless")
    folders = (folder, again, nameless, fewer, calmer)
    one, two, three, four, five = (head_of(run)["projection.weight"] for run in folders)
    assert torch.equal(one, two) and torch.equal(one, three)
    assert not torch.equal(one, four) and not torch.equal(one, five)


def test_im_aug_contrasts_the_plain_view_with_square_crops(run, plain, synthetic, monkeypatch):
    """(row 7.6) One pair of views of each picture: the model's own view, and a square crop of 0.64 to 1 of its area."""
    seen, settings = [], {"MODALITY": "image", "IMAGE_FOLDER": synthetic, "IMAGE_VIEWS": 2}
    made = clap_pairs.ImagePairs
    monkeypatch.setattr(clap_pairs, "ImagePairs", lambda *args: seen.append(args) or made(*args))
    crops, params = [], RandomResizedCrop.get_params
    monkeypatch.setattr(
        RandomResizedCrop, "get_params", staticmethod(lambda *args: crops.append((args, params(*args))) or crops[-1][1])
    )
    run("CLAP", *clap(**settings, IMAGE_JITTER="(0.0, 0.0, 0.0, 0.0)"))
    ((features, counts, size, *_),) = seen
    assert features.shape == (12, 3, 16) and counts.tolist() == [4, 4, 4] and size == 8
    files = [path for name in ("Dog", "fire-truck", "HOUSE") for path in sorted((synthetic / name).rglob("*.png"))]
    torch.testing.assert_close(features[:, 0].cpu(), plain.images(files), rtol=1e-4, atol=1e-5)
    assert len(crops) == 24
    for (_, scale, ratio), (_, _, height, width) in crops:
        assert height == width and (height + 1) ** 2 >= 0.64 * 48 * 40
        assert (tuple(scale), tuple(ratio)) == ((0.64, 1.0), (1.0, 1.0))


def test_pictures_that_cannot_be_decoded_are_left_out(run, synthetic):
    """The head is that of the folder without them, not one of their neighbours under their labels."""
    image = {"MODALITY": "image", "IMAGE_FOLDER": synthetic, "IMAGE_VIEWS": 2}
    broken = sorted((synthetic / "HOUSE").rglob("*.png"))[-1]  # the last of all: views are drawn by place in the list
    broken.write_bytes(broken.read_bytes()[:40])
    folder, record, _ = run("CLAP", *clap(**image), "DATALOADER.ON_BAD_IMAGE", "skip", name="skipped")
    assert str(broken) in record["skipped_images"]
    _, none, _ = run("CLAP", *clap(**image), name="strict", code=2)
    assert none is None
    shutil.copy(sorted((synthetic / "fire-truck").rglob("*.png"))[0], broken)
    neighbour, _, _ = run("CLAP", *clap(**image), name="neighbour")
    broken.unlink()
    without, _, _ = run("CLAP", *clap(**image), name="without")
    skipped, neighbour, without = (head_of(folder)["projection.weight"] for folder in (folder, neighbour, without))
    torch.testing.assert_close(skipped, without, atol=2e-6, rtol=0)  # the batches differ in size
    assert not torch.allclose(neighbour, without, atol=2e-4, rtol=0)


def test_a_folder_of_pictures_that_lacks_a_class(run, synthetic):
    image = {"MODALITY": "image", "IMAGE_FOLDER": synthetic}
    (synthetic / "fire-truck").rename(synthetic / "fire-trucks")
    _, _, output = run("CLAP", *clap(**image), name="misnamed", code=2)
    assert "no pictures for 1 of 3 classes: fire_truck" in output.err and "'fire-trucks'" in output.err
    (synthetic / "fire-trucks").rename(synthetic / "Fire Truck")
    for path in (synthetic / "HOUSE").rglob("*.png"):
        path.rename(path.with_suffix(".txt"))
    _, _, output = run("CLAP", *clap(**image), name="empty", code=2)
    assert "no pictures for 1 of 3 classes: house" in output.err
    _, _, output = run("CLAP", *clap(MODALITY="image", IMAGE_FOLDER=synthetic / "absent"), name="absent", code=2)
    assert "there is no folder" in output.err


# ------------------------------------------------------------------------------------------------------------ alpha

CANDIDATES = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)


def test_alpha_is_the_best_on_source_validation_images(run, plain, tmp_path, domain_tree):
    """A plain search over the validation images that the data set names gives the same alpha, for several heads."""
    paths, labels, names = [], [], ["dog", "fire truck", "house"]
    chosen = []
    for seed in range(4):
        head = random_head(seed=seed)
        keys = ("MODEL.INIT_WEIGHTS", authors_file(tmp_path / f"{seed}.pth", head), "DATASET.NUM_SHOTS", -1)
        settings = clap(MAX_STEPS=0, ALPHA="source-val", ALPHA_CANDIDATES=repr(CANDIDATES))
        _, record, _ = run("CLAP", *settings, *keys, name=f"head{seed}")
        if not paths:
            words = ["--trainer", "CLAP", "--dataset-config-file", str(tmp_path / "data.yaml"), "--root"]
            words += [str(domain_tree), "--seed", "1", "--source-domains", "art", "photo", "--target-domains", "sketch"]
            val = build_dataset(resolve_config(train.parse([*words, "DATASET.NUM_SHOTS", "-1"])[0])).val
            paths, labels = [item.impath for item in val], torch.tensor([item.label for item in val])
            assert {path.split("/")[-3] for path in paths} == {"art", "photo"} and len(paths) == 12
            features = plain.images(paths)
        found = {}
        for alpha in CANDIDATES:
            shares = plain_shares(plain, features, names, head, alpha)
            found[alpha] = float((shares.argmax(1) == labels).float().mean())
        assert record["alpha"] == min(alpha for alpha in CANDIDATES if found[alpha] == max(found.values())), found
        assert record["selection_rule"] == "not recorded: learned parts of a file" + ALPHA_CHOSEN
        chosen.append(record["alpha"])
    assert len(set(chosen)) > 1


def test_tested_images_have_no_part_in_alpha(run, tmp_path, domain_tree):
    """With the pictures of the target's classes exchanged the accuracy changes, and alpha does not."""
    tree = tmp_path / "tree"
    shutil.copytree(domain_tree, tree)
    (tree / "sketch" / "dog").rename(tree / "sketch" / "kept")
    (tree / "sketch" / "house").rename(tree / "sketch" / "dog")
    (tree / "sketch" / "kept").rename(tree / "sketch" / "house")
    shutil.rmtree(tree / "sketch" / "dog")
    shutil.copytree(tree / "sketch" / "house", tree / "sketch" / "dog")
    alphas, accuracies = set(), set()
    for seed in range(3):
        keys = ("MODEL.INIT_WEIGHTS", authors_file(tmp_path / f"{seed}.pth", random_head(seed=seed)))
        settings = clap(MAX_STEPS=0, ALPHA="source-val", ALPHA_CANDIDATES=repr(CANDIDATES))
        pair = [run("CLAP", *settings, *keys, name=f"{root.name}{seed}", root=root)[1] for root in (domain_tree, tree)]
        assert pair[0]["alpha"] == pair[1]["alpha"]
        alphas.add(pair[0]["alpha"])
        accuracies.add(pair[0]["metrics"]["test"]["accuracy"] == pair[1]["metrics"]["test"]["accuracy"])
    assert len(alphas) > 1 and False in accuracies


def test_alpha_cannot_be_chosen_where_every_image_is_tested(run, tmp_path, domain_tree):
    every = ("DATASET.PROTOCOL", "all-images", "TRAINER.CLAP.ALPHA", "source-val")
    _, _, output = run("CLAP", *SHORT, *every, source="sketch", target="sketch", code=2)
    assert "every image of sketch is tested" in output.err and "nothing is chosen on test images" in output.err
    _, record, _ = run("CLAP", *SHORT, *every, name="apart")
    assert record["alpha"] in (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.14, 0.2, 0.3, 0.5, 0.7, 1.0)
    shutil.copytree(domain_tree / "sketch", tmp_path / "classes" / "test")
    whole = ("DATASET.NAME", "FolderClasses", "DATASET.SOURCE_DOMAINS", "()", "DATASET.TARGET_DOMAINS", "()")
    root = tmp_path / "classes"
    _, _, output = run("CLAP", *SHORT, *whole, *every, root=root, name="whole", code=2)
    assert "every image of FolderClasses is tested" in output.err
    _, _, output = run("CLAP", *SHORT, *whole, *every[2:], root=root, name="no-val", code=2)
    assert "offers no validation images of the source domains" in output.err


# -------------------------------------------------------------------------------------------------- bank and resume


def test_runs_repeat_bit_for_bit_and_take_heads_and_features_from_the_bank(run, tmp_path, monkeypatch):
    settings = clap(NOISE_TOKENS=2)
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))
    first = run("CLAP", *settings, name="first")
    kept = sorted((tmp_path / "cache" / "features").glob("*.npy"))
    second = run("CLAP", *settings, name="second")
    assert sorted((tmp_path / "cache" / "features").glob("*.npy")) == kept
    assert not first[1]["training"]["reused"] and second[1]["training"]["reused"]
    assert "content head trained" in first[2].out and "content head trained" not in second[2].out
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    third = run("CLAP", *settings, name="third")
    assert not third[1]["training"]["reused"]
    assert_same_run(first, second)
    assert_same_run(first, third)


def test_a_head_is_trained_once_for_all_targets(run, tmp_path, monkeypatch):
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))
    one = run("CLAP", *SHORT, name="one", source="art", target="photo")
    other = run("CLAP", *SHORT, name="other", source="photo", target="sketch")
    assert other[1]["training"]["reused"]
    assert torch.equal(head_of(one[0])["projection.weight"], head_of(other[0])["projection.weight"])


def test_a_run_without_seed_trains_its_own_head(run):
    first = run("CLAP", *SHORT, "SEED", -1, name="first")
    second = run("CLAP", *SHORT, "SEED", -1, name="second")
    assert not second[1]["training"]["reused"] and not first[1]["training"]["reused"]


def test_a_run_that_died_before_its_record_goes_on(run):
    folder, record, _ = run("CLAP", *SHORT)
    (folder / "record.json").unlink()
    _, again, output = run("CLAP", *SHORT)
    assert "the content head is not trained: it is already" in output.out
    for key in ("metrics", "history", "alpha", "losses"):
        assert again[key] == record[key], key


# A trainer as a user's plugin registers it: one signal to its own process before a step of the head, once.
STRUCK = """
import os
from pathlib import Path
from dassl.engine import TRAINER_REGISTRY
from dassl_clip import trainers

@TRAINER_REGISTRY.register(force=True)
class CLAP(trainers.CLAP):
    def _train_head(self, pairs, problem):
        mark, (at, number) = Path(self.output_dir) / "struck", map(int, os.environ["STRIKE"].split())
        read = pairs.batch

        def batch(step):
            if step == at and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), number)
            with Path(self.output_dir, "steps.txt").open("a") as file:
                file.write(f"{step}\\n")
            return read(step)

        pairs.batch = batch
        return super()._train_head(pairs, problem)
"""


@pytest.fixture(scope="module")
def undisturbed():
    """The run on the texts of a file that is not struck, and that on templates, once they were made."""
    return {}


@pytest.fixture
def strike(run, tmp_path, monkeypatch):
    """`strike(step, signal, *pairs, name=...)` runs CLAP, which gets the signal before a step, from 0."""
    (tmp_path / "struck.py").write_text(STRUCK)

    def go(step, number, *pairs, **options):
        monkeypatch.setenv("STRIKE", f"{step} {int(number)}")
        return run("CLAP", *clap(NOISE_TOKENS=2), *pairs, flags=("--import", str(tmp_path / "struck.py")), **options)

    yield go
    TRAINER_REGISTRY.register(trainers.CLAP, force=True)


@pytest.mark.parametrize(
    ("step", "number", "every", "code", "repeated", "templates"),
    [
        (13, signal.SIGTERM, 0, 143, 0, True),  # between two checks
        (29, signal.SIGTERM, 0, 143, 0, False),  # the last step
        (13, signal.SIGINT, 4, 130, 1, False),  # as a crash: only what was saved is there
    ],
)
def test_a_training_that_ends_anywhere_goes_on_to_the_bit(
    strike, undisturbed, tmp_path, monkeypatch, step, number, every, code, repeated, templates
):
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "texts.txt").write_text("a photo of a {}\na small {}\nthe {} here\n")
    keys = () if templates else ("TRAINER.CLAP.SOURCE", tmp_path / "texts.txt")
    folder, none, output = strike(step, number, "TRAIN.CHECKPOINT_STEPS", every, *keys, name="ended", code=code)
    assert none is None
    if number == signal.SIGTERM:
        assert f"saved after step {step + 1}: the same command resumes" in output.err
    ended = strike(step, number, "TRAIN.CHECKPOINT_STEPS", every, *keys, name="ended")
    steps = [int(line) for line in (folder / "steps.txt").read_text().split()]
    assert len(steps) == 30 + repeated and set(steps) == set(range(30))
    assert not list(folder.glob("clap/step*"))
    same = strike(-1, number, *keys, name="same-task")  # the head is in the bank under the name of an undisturbed one
    assert same[1]["training"]["reused"]
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    if templates not in undisturbed:
        undisturbed[templates] = strike(-1, number, *keys, name="whole")
    whole = undisturbed[templates]
    assert not whole[1]["training"]["reused"] and whole[1]["training"]["steps"] == 30
    assert_same_run(whole, ended)
    assert_same_run(whole, same)
    assert ended[1]["losses"] == whole[1]["losses"] and ended[1]["training"]["checks"] == whole[1]["training"]["checks"]


def test_a_training_on_texts_that_changed_since_starts_anew(strike, tmp_path, monkeypatch):
    monkeypatch.setenv("DASSL_CLIP_CACHE", "off")
    texts = tmp_path / "texts.txt"
    keys = ("TRAINER.CLAP.SOURCE", texts)
    texts.write_text("a photo of a {}\na small {}\n")
    _, none, _ = strike(13, signal.SIGTERM, *keys, name="ended", code=143)
    assert none is None
    texts.write_text("a photo of a {}\na large {}\n")
    again = strike(13, signal.SIGTERM, *keys, name="ended")
    assert "TRAINER.CLAP.SOURCE: another content of its file" in again[2].out
    assert_same_run(strike(-1, 0, *keys, name="whole"), again)


# ---------------------------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"ALPHA": "test-val"}, "ALPHA is 'test-val'; expected a number, or 'source-val'"),
        ({"ALPHA": "nan"}, "ALPHA is 'nan'; expected a number, or 'source-val'"),
        ({"ALPHA": "source-val", "ALPHA_CANDIDATES": "()"}, "ALPHA_CANDIDATES"),
        ({"TAU": 0.0}, "TAU is 0.0; expected a number above 0"),
        ({"LAMBDA": -1.0}, "LAMBDA is -1.0; expected a number of at least 0"),
        ({"LATENT_DIM": 0}, "LATENT_DIM is 0; expected a number of at least 1"),
        ({"BATCH_SIZE": 1}, "BATCH_SIZE is 1; expected a number of at least 2"),
        ({"MAX_STEPS": -1}, "MAX_STEPS is -1; expected a number of at least 0"),
        ({"CHECK_EVERY": 0}, "CHECK_EVERY is 0; expected a number of at least 1"),
        ({"MODALITY": "sound"}, "MODALITY is 'sound'; expected one of text, image"),
        ({"MODALITY": "image"}, "set TRAINER.CLAP.IMAGE_FOLDER"),
        ({"MODALITY": "image", "IMAGE_FOLDER": ".", "IMAGE_VIEWS": 0}, "IMAGE_VIEWS to 1 or more (now 0)"),
        ({"BATCH_ORDER": "random"}, "BATCH_ORDER is 'random'; expected one of shuffled, in-turn"),
        ({"KEEP": "best"}, "KEEP is 'best'; expected one of last-drop, last-step"),
        ({"TRAINING_NAMES": "('dog', 'cat',)"}, "TRAINING_NAMES is ('dog', 'cat'); expected pairs of a class"),
        ({"PROBE_STOPPING": "never"}, "PROBE_STOPPING is 'never'; expected any of in-all, in-a-row"),
        ({"MODALITY": "image", "IMAGE_FOLDER": ".", "IMAGE_JITTER": "(0.4, 0.4)"}, "IMAGE_JITTER"),
        ({"SOURCE": "templates"}, "SOURCE is 'templates'; expected template, random-words, or a text file"),
        ({"NOISE_TOKENS": -1}, "NOISE_TOKENS and NOISE_STD are at least 0"),
        ({"NOISE_TOKENS": 75}, "75"),
        ({"SWAP": 1.5}, "probability swap of an augmentation must lie between 0 and 1, got 1.5"),
        ({"DROP_WORD": -0.5, "SOURCE": "random-words"}, "must lie between 0 and 1, got -0.5"),
        ({"TEMPLATES": "clap_pcc"}, "unknown templates 'clap_pcc'. Did you mean 'clap_pc' or 'clap_c'?"),
        ({"TEMPLATES": "a photo"}, "unknown templates 'a photo'"),
        ({"EVALUATE": "('form',)"}, "EVALUATE is ('form',); expected any of forms, probe, attacks"),
        ({"ATTACKS": "('PGD',)"}, "ATTACKS is ('PGD',); expected any of FGSM, PGD-20, CW-20"),
        ({"ATTACK_SPACE": "pixel"}, "ATTACK_SPACE is 'pixel'; expected any of pixels, authors"),
        ({"ATTACK_TARGETS": "('2-shot',)"}, "expected any of zero-shot, 1-shot"),
        ({"ATTACK_EPSILON": 0.0}, "ATTACK_EPSILON is positive"),
        ({"PROBE_TEST": "without"}, "PROBE_TEST is 'without'; expected any of all, without-shots"),
        ({"PROBE_SHOTS": "(0,)"}, "at least 1"),
        ({"NC_DRAWS": 0}, "NC_DRAWS is 0; expected at least 1"),
        ({"PREC": "half"}, "TRAINER.CLAP.PREC is 'half'"),
    ],
)
def test_wrong_settings_have_their_sentence(run, keys, sentence):
    _, _, output = run("CLAP", *clap(**keys), code=2)
    assert sentence in output.err and output.err.count("\n") == 1
