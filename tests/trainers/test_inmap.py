"""InMaP as a trainer, through the command line, against a plain program in float64.

Covers: scores, labels and proxies of a run against loops and closed forms (softmax, Sinkhorn, one-hot rows, the
objective and its bound); temperatures; what is transductive and what inductive; saved proxies as a classifier;
other runs refined (their scores, features and start are those of the run) and refused; the
sentences for wrong settings.
"""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize

from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.engine.features import NormalizedRows
from dassl_clip.engine.open_run import open_run
from dassl_clip.results.errors import UserError
from tests.trainers.plain_sizes import plain_choice, plain_theta

TEMPLATES = ("a photo of a {}.", "the {} here.")
TEXT, VISION, SINKHORN, SIZES = "text proxy", "vision proxy", "vision proxy, Sinkhorn", "vision proxy, class sizes"
REFINED = "proxy of the refined run"
BASES = {
    "ZeroshotCLIP": ("ZeroshotCLIP",),
    "CoOp": ("CoOp", "TRAINER.COOP.N_CTX", 4, "OPTIM.LR", 0.3),
    "CoOp-CSC": ("CoOp", "TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.CSC", True, "OPTIM.LR", 0.3),
    "LinearProbe": ("LinearProbe",),
    "GOPro": ("GOPro", "OPTIM.LR", 0.1),
    "GOPro-paper": ("GOPro", "TRAINER.GOPRO.VARIANT", "paper", "OPTIM.LR", 0.1),
    "CLAP": (
        "CLAP", "TRAINER.CLAP.LATENT_DIM", 8, "TRAINER.CLAP.MAX_STEPS", 20, "TRAINER.CLAP.BATCH_SIZE", 8,
        "TRAINER.CLAP.ALPHA", 0.7, "TRAINER.CLAP.TAU", 0.5, "TRAINER.CLAP.LAMBDA", 1.0,
    ),
}  # fmt: skip


def inmap(**keys):
    """KEY VALUE pairs of InMaP's own node."""
    keys = {"TEMPLATES": repr(TEMPLATES), **({} if "GAMMA" in keys else {"MARGINAL": "uniform"}), **keys}
    return tuple(word for key, value in keys.items() for word in (f"TRAINER.INMAP.{key}", value))


def proxies_of(folder):
    """The saved proxies `[C, E]`."""
    name = (folder / "proxies" / "checkpoint").read_text().strip()
    return checkpoint.load_checkpoint(folder / "proxies" / name)["state_dict"]["weight"]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum(1, keepdims=True)


def plain_labels(scores, tau, gamma=None, iterations=20, threshold=0.6):
    """Pseudo labels in float64: plain ones for gamma None, else Sinkhorn's; rows above the threshold one-hot."""
    labels = softmax(scores / tau)
    if gamma is not None:
        n, classes = labels.shape
        mass = labels.sum(0) ** gamma
        marginal = np.full(classes, 1 / classes) if gamma == 0 else mass / mass.sum()
        labels = labels / n
        for _ in range(iterations):
            for j in range(classes):
                labels[:, j] *= marginal[j] / labels[:, j].sum()
            for i in range(n):
                labels[i] /= labels[i].sum() * n
        labels = labels / labels.sum(1, keepdims=True)
    for i, row in enumerate(labels):
        if row.max() > threshold:
            labels[i] = np.arange(len(row)) == row.argmax()
    return labels


def objective(features, proxies, labels, tau):
    """Mean cross-entropy between labels and softmax(features @ proxies.T / tau)."""
    return -(labels * np.log(softmax(features @ proxies.T / tau))).sum(1).mean()


def best_found(features, start, labels, tau):
    """The lowest objective that scipy finds over proxies of length 1, from the start and from random ones."""
    draw, lowest = np.random.default_rng(0), np.inf

    def value(flat):
        raw = flat.reshape(start.shape)
        length = np.linalg.norm(raw, axis=1, keepdims=True)
        proxies = raw / length
        slope = (softmax(features @ proxies.T / tau) - labels).T @ features / (len(features) * tau)
        slope = (slope - (slope * proxies).sum(1, keepdims=True) * proxies) / length
        return objective(features, proxies, labels, tau), slope.ravel()

    for attempt in range(6):
        begin = start if not attempt else draw.normal(size=start.shape)
        found = minimize(value, begin.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14})
        lowest = min(lowest, found.fun)
    return lowest


class Problem:
    """The plain program's reading of a domain: features, text proxies, scores."""

    def __init__(self, plain, sketch, templates=TEMPLATES):
        self.paths, self.labels, self.names, features = sketch
        self.features = unit(features.double()).numpy()
        rows = [unit(plain.texts([words.format(name) for words in templates]).double()).mean(0) for name in self.names]
        self.start, self.scale = unit(torch.stack(rows)).numpy(), plain.scale
        self.scores = self.features @ self.start.T

    def correct(self, proxies):
        """Number of right classes, and of images for which two classes are too close to tell."""
        scores = np.sort(self.features @ proxies.T, axis=1)
        best = (self.features @ proxies.T).argmax(1)
        return int((best == self.labels.numpy()).sum()), int((scores[:, -1] - scores[:, -2] < 2e-6).sum())


@pytest.fixture(scope="session")
def problem(plain, sketch):
    return Problem(plain, sketch)


# ------------------------------------------------------------------------------------------------- a run's figures


@pytest.mark.parametrize(
    ("keys", "gamma", "tau_t", "tau_i", "iterations", "threshold"),
    [
        ({}, 0.0, 1.0, 4.0, 20, 0.6),
        ({"GAMMA": 0.5, "TEXT_TEMPERATURE": "auto:0.5", "IMAGE_TEMPERATURE": "auto:2"}, 0.5, 0.5, 2.0, 20, 0.6),
        ({"TEXT_TEMPERATURE": 0.02, "IMAGE_TEMPERATURE": 0.1, "SINKHORN_ITERATIONS": 3}, 0.0, None, None, 3, 0.6),
        ({"THRESHOLD": 0.9, "GAMMA": 1.0}, 1.0, 1.0, 4.0, 20, 0.9),
    ],
)
def test_a_run_learns_what_a_plain_program_learns(run, problem, keys, gamma, tau_t, tau_i, iterations, threshold):
    folder, record, _ = run("InMaP", *inmap(**keys))
    tau_t = 0.02 if tau_t is None else tau_t / problem.scale
    tau_i = 0.1 if tau_i is None else tau_i / problem.scale
    hits, close = problem.correct(problem.start)
    assert abs(record["metrics"][TEXT]["correct"] - hits) <= close
    for name, own in ((VISION, None), (SINKHORN, gamma)):
        labels = plain_labels(problem.scores, tau_t, own, iterations, threshold)
        solution = record["solutions"][name]
        assert solution["text_temperature"] == pytest.approx(tau_t, rel=1e-5)
        assert solution["image_temperature"] == pytest.approx(tau_i, rel=1e-5)
        lowest = best_found(problem.features, problem.start, labels, tau_i)
        assert solution["objective"] <= lowest * (1 + 1e-4) + 1e-6, (name, lowest)
        assert solution["objective"] >= lowest * (1 - 1e-3) - 1e-6, (name, lowest)
        assert (solution["images"], solution["solver"]) == (30, "fast")
    proxies = proxies_of(folder).double().numpy()
    np.testing.assert_allclose(np.linalg.norm(proxies, axis=1), 1, atol=1e-5)
    labels = plain_labels(problem.scores, tau_t, gamma, iterations, threshold)
    assert objective(problem.features, proxies, labels, tau_i) == pytest.approx(
        record["solutions"][SINKHORN]["objective"], rel=1e-4, abs=1e-6
    )
    hits, close = problem.correct(proxies)
    assert abs(record["metrics"]["test"]["correct"] - hits) <= close
    for key, value in record["metrics"][SINKHORN].items():
        if key in record["metrics"]["test"]:
            assert record["metrics"]["test"][key] == pytest.approx(value)
    for name in (TEXT, VISION, SINKHORN):
        found = record["metrics"][name]
        per_class = found["per_class_accuracy"]
        assert np.mean(per_class) == pytest.approx(found["accuracy"]) and len(per_class) == 3  # 10 images each
        assert found["top5_accuracy"] == 100.0  # of three classes


def test_the_authors_steps_are_theirs(run, problem):
    """`SOLVER authors`: the plain loop of gradient steps, with the rate halved when the gradient grows."""
    folder, record, _ = run("InMaP", *inmap(SOLVER="authors", STEPS=40, LR=3.0))
    tau_t, tau_i = 1 / problem.scale, 4 / problem.scale
    labels = plain_labels(problem.scores, tau_t, 0.0)
    proxies, rate, before = problem.start.copy(), 3.0, np.inf
    for _ in range(40):
        gradient = (softmax(problem.features @ proxies.T / tau_i) - labels).T @ problem.features
        size = np.linalg.norm(gradient)
        rate = rate / 2 if size > before else rate
        proxies = proxies - rate / (30 * tau_i) * gradient
        proxies /= np.linalg.norm(proxies, axis=1, keepdims=True)
        before = size
    solution = record["solutions"][SINKHORN]
    assert solution["steps"] == 40 and solution["solver"] == "authors"
    assert solution["objective"] == pytest.approx(objective(problem.features, proxies, labels, tau_i), rel=1e-3)
    np.testing.assert_allclose(proxies_of(folder), proxies, atol=5e-3)


def test_neither_labels_nor_seeds_decide_anything(run, tmp_path, domain_tree):
    """With the labels of the tested images exchanged the proxies are the same, and so with another seed."""
    tree = tmp_path / "tree"
    shutil.copytree(domain_tree, tree, copy_function=shutil.copy2)
    (tree / "sketch" / "dog").rename(tree / "sketch" / "kept")
    (tree / "sketch" / "house").rename(tree / "sketch" / "dog")
    (tree / "sketch" / "kept").rename(tree / "sketch" / "house")
    folder, record, _ = run("InMaP", *inmap(), name="a")
    other, exchanged, _ = run("InMaP", *inmap(), name="b", root=tree)
    seeded, again, _ = run("InMaP", *inmap(), "SEED", 5, name="c")
    torch.testing.assert_close(proxies_of(folder), proxies_of(other), atol=0.02, rtol=0)
    torch.testing.assert_close(proxies_of(folder), proxies_of(seeded), atol=0.02, rtol=0)
    assert record["num_train"] == exchanged["num_train"] == 0
    assert record["metrics"]["test"]["correct"] == again["metrics"]["test"]["correct"]
    assert record["metrics"]["test"]["accuracy"] != exchanged["metrics"]["test"]["accuracy"]


# ------------------------------------------------------------------------------------- transductive and inductive


@pytest.mark.parametrize("part", ["test", "train", "val"])
def test_what_was_seen_stands_in_the_record(run, part):
    _, record, _ = run("InMaP", *inmap(UNLABELED=part), "DATASET.NUM_SHOTS", -1)
    assert record["transductive"] == (part == "test")
    said = "the tested images" if part == "test" else f"{part} images (inductive)"
    assert record["reading_notes"] == [f"proxies learned from {said}, without labels"]
    images = {"test": 30, "train": 48, "val": 12}[part]
    assert {solution["images"] for solution in record["solutions"].values()} == {images}
    assert record["metrics"]["test"]["total"] == 30


def test_training_images_that_are_tested_make_it_transductive(run):
    keys = ("DATASET.PROTOCOL", "all-images", "DATASET.NUM_SHOTS", -1)
    _, record, _ = run("InMaP", *inmap(UNLABELED="train"), *keys, source="sketch", target="sketch")
    assert record["transductive"] and "the tested images" in record["reading_notes"][0]


def test_inductive_proxies_do_not_depend_on_the_tested_images(run, tmp_path, domain_tree):
    tree = tmp_path / "tree"
    shutil.copytree(domain_tree, tree, copy_function=shutil.copy2)
    for path in (tree / "sketch" / "house").iterdir():
        shutil.copy(tree / "photo" / "dog" / path.name, path)
    folders = [
        run("InMaP", *inmap(UNLABELED="train"), name=str(i), root=r)[0] for i, r in enumerate((domain_tree, tree))
    ]
    torch.testing.assert_close(proxies_of(folders[0]), proxies_of(folders[1]), atol=0.02, rtol=0)
    folders = [run("InMaP", *inmap(), name=f"t{i}", root=r)[0] for i, r in enumerate((domain_tree, tree))]
    assert (proxies_of(folders[0]) - proxies_of(folders[1])).abs().max() > 0.05


# ------------------------------------------------------------------------------------------------- saved proxies


def test_saved_proxies_are_a_classifier(run, problem):
    folder, record, _ = run("InMaP", *inmap(), name="learned")
    _, again, _ = run("InMaP", *inmap(), name="loaded", flags=("--eval-only", "--model-dir", str(folder)))
    assert again["metrics"]["test"] == record["metrics"]["test"]
    file = folder / "proxies" / "model.pth.tar-1"
    assert file.stat().st_size < 20_000
    torch.save({"weight": proxies_of(folder).flip(0)}, folder.parent / "flipped.pth")
    _, flipped, _ = run(
        "InMaP", *inmap(), "MODEL.INIT_WEIGHTS", folder.parent / "flipped.pth", name="flipped", flags=("--eval-only",)
    )
    hits, close = problem.correct(proxies_of(folder).flip(0).double().numpy())
    assert abs(flipped["metrics"]["test"]["correct"] - hits) <= close


def test_proxies_of_another_class_list_are_refused(run, tmp_path, domain_tree):
    folder, _, _ = run("InMaP", *inmap(), name="learned")
    load = ("--eval-only", "--model-dir", str(folder))
    _, _, output = run("InMaP", *inmap(), "DATASET.SUBSAMPLE_CLASSES", "base", name="base", flags=load, code=2)
    assert "holds parts for other classes: class 2 is 'house' there and absent now, of 3 there and 2 now" in output.err
    tree = tmp_path / "tree"
    shutil.copytree(domain_tree, tree)
    for domain in tree.iterdir():
        (domain / "house").rename(domain / "barn")
    _, _, output = run("InMaP", *inmap(), root=tree, name="renamed", flags=load, code=2)
    assert "class-specific parts fit no other classes" in output.err


def test_a_run_that_died_before_its_record_has_all_its_readings(run):
    folder, record, _ = run("InMaP", *inmap())
    (folder / "record.json").unlink()
    _, again, _ = run("InMaP", *inmap())
    assert again["metrics"] == record["metrics"] and again["losses"] == record["losses"]


def test_features_that_stay_on_the_disk_give_the_same_run(run, monkeypatch):
    """With a memory that holds none of them, every pass reads them from the bank: equal to the last digit."""
    folder, record, _ = run("InMaP", *inmap(), name="held")
    read = []
    getter = NormalizedRows.__getitem__
    monkeypatch.setattr(NormalizedRows, "__getitem__", lambda self, rows: read.append(rows) or getter(self, rows))
    monkeypatch.setattr("dassl_clip.engine.features.activation_budget", lambda device: 0)
    streamed, again, _ = run("InMaP", *inmap(), name="streamed")
    assert len(read) > sum(solution["steps"] for solution in again["solutions"].values())
    assert again["metrics"] == record["metrics"] and again["losses"] == record["losses"]
    assert torch.equal(proxies_of(streamed), proxies_of(folder))


# -------------------------------------------------------------------------------------------------- other runs


@pytest.mark.parametrize("base", BASES)
def test_a_run_is_refined_from_its_own_scores(run, problem, base):
    """What the run predicts is what the refinement starts from, and the proxies solve the problem of its scores."""
    folder, before, _ = run(*BASES[base], name="base")
    uniform = ("TRAINER.INMAP.MARGINAL", "uniform", "TRAINER.INMAP.FROM", folder)
    refined, record, _ = run("InMaP", *uniform, name="refined")
    assert record["refines"]["folder"] == str(folder) and record["refines"]["method"] == BASES[base][0]
    assert record["refines"]["config_hash"] == before["config_hash"]
    for key in ("prompt", "num_train"):
        assert record[key] == before[key], key
    rule = before["selection_rule"]
    assert record["selection_rule"] == ("last" if rule == "none" else rule)  # as of a run without FROM
    assert record["transductive"] and record["method"] == "InMaP"
    if base.startswith("GOPro"):  # its own scores come from prompts of each image; the start is their mean
        assert set(record["metrics"]) == {"test", REFINED, VISION, SINKHORN}
    else:
        assert record["metrics"][REFINED]["correct"] == before["metrics"]["test"]["correct"]
    # The plain program: the run's own shares, image by image, are the pseudo labels at 1 / logit scale.
    kept = np.load(folder / "predictions.npz")
    shares = np.zeros((30, 3))
    np.put_along_axis(shares, kept["top"].astype(int), kept["shares"].astype(float), axis=1)
    tau_t, tau_i = 1 / problem.scale, 4 / problem.scale
    if base in ("ZeroshotCLIP", "CoOp", "CoOp-CSC", "LinearProbe", "GOPro"):  # compared with CLIP's own features
        place = {str(path): row for row, path in enumerate(problem.paths)}
        features = problem.features[[place[path] for path in kept["paths"]]]
        proxies = proxies_of(refined).double().numpy()
        labels = plain_labels(np.log(shares) * tau_t, tau_t, 0.0)
        value = objective(features, proxies, labels, tau_i)
        assert value == pytest.approx(record["solutions"][SINKHORN]["objective"], rel=2e-3, abs=1e-5)
        lowest = best_found(features, proxies, labels, tau_i)
        assert value <= lowest * (1 + 1e-3) + 1e-6
    _, evaluated, _ = run("InMaP", *uniform, name="loaded", flags=("--eval-only", "--model-dir", str(refined)))
    assert evaluated["metrics"]["test"] == record["metrics"]["test"]


def test_what_the_refined_run_was_trained_on_stands_in_the_record(run):
    """Its images per class and domains, not those of the run that refines it; an evaluation has no note of learning."""
    folder, before, _ = run(*BASES["CoOp"], name="base", source="art", target="sketch")
    refined, record, _ = run("InMaP", "TRAINER.INMAP.FROM", folder, "DATASET.NUM_SHOTS", -1, name="refined")
    for key in ("num_train", "shots", "source_domains", "protocol"):
        assert record[key] == before[key], key
    flags = ("--eval-only", "--model-dir", str(refined))
    _, evaluated, _ = run("InMaP", "TRAINER.INMAP.UNLABELED", "train", name="evaluated", flags=flags)
    assert evaluated["transductive"] and "reading_notes" not in evaluated


def test_zero_shot_refined_is_plain_inmap(run):
    _, record, _ = run("InMaP", "TRAINER.INMAP.TEMPLATES", "single", name="plain")
    base, _, _ = run("ZeroshotCLIP", name="base")
    _, other, _ = run("InMaP", "TRAINER.INMAP.FROM", base, name="refined")
    for name in (VISION, SIZES):
        one, two = (facts["solutions"][name]["objective"] for facts in (record, other))
        assert one == pytest.approx(two, rel=1e-5)
    assert record["metrics"][TEXT] == other["metrics"][REFINED]
    assert record["metrics"]["test"]["correct"] == other["metrics"]["test"]["correct"]


def test_a_heads_features_are_what_is_refined(run, plain, problem, sketch):
    """Refining CLAP, the proxies classify head features of images, not CLIP's."""
    base, _, _ = run(*BASES["CLAP"], "OPTIM.LR", 0.05, name="base")
    refined, record, _ = run("InMaP", "TRAINER.INMAP.FROM", base, name="refined")
    name = (base / "clap" / "checkpoint").read_text().strip()
    head = checkpoint.load_checkpoint(base / "clap" / name)["state_dict"]
    x = sketch[3]
    hidden = torch.nn.functional.silu(x) @ head["linear.weight"].T + head["linear.bias"]
    features = unit((x + 0.7 * hidden @ head["projection.weight"].T).double()).numpy()
    right = (features @ proxies_of(refined).double().numpy().T).argmax(1) == problem.labels.numpy()
    assert record["metrics"]["test"]["correct"] == right.sum()
    assert np.abs(features - problem.features).max() > 0.01


def test_a_run_whose_files_are_gone_is_refined_all_the_same(run, tmp_path):
    """The checkpoint holds what was learned: the file that training started from is not asked for."""
    torch.save({"ctx": torch.randn(4, 32) * 0.1}, tmp_path / "start.pth")
    folder, before, _ = run(*BASES["CoOp"], "MODEL.INIT_WEIGHTS", tmp_path / "start.pth", name="base")
    (tmp_path / "start.pth").unlink()
    _, record, _ = run("InMaP", "TRAINER.INMAP.FROM", folder, name="refined")
    assert record["metrics"][REFINED]["correct"] == before["metrics"]["test"]["correct"]


def test_a_run_is_refined_with_the_same_model_in_another_place(run, tiny_clip, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(tiny_clip, old)
    folder, before, _ = run(*BASES["CoOp"], "MODEL.BACKBONE.NAME", f"local-dir:{old}", name="base")
    old.rename(new)
    keys = ("TRAINER.INMAP.FROM", folder, "MODEL.BACKBONE.NAME", f"local-dir:{new}")
    _, record, _ = run("InMaP", *keys, name="refined")
    assert record["metrics"][REFINED]["correct"] == before["metrics"]["test"]["correct"]
    facts = json.loads((new / "open_clip_config.json").read_text())
    facts["model_cfg"]["quick_gelu"] = True
    (new / "open_clip_config.json").write_text(json.dumps(facts))
    _, _, output = run("InMaP", *keys, name="quick", code=2)
    assert "activation gelu" in output.err and "activation quickgelu" in output.err


def test_refining_what_has_seen_the_tested_images_is_transductive(run):
    folder, _, _ = run("InMaP", *inmap(), name="base")
    _, record, _ = run("InMaP", "TRAINER.INMAP.FROM", folder, "TRAINER.INMAP.UNLABELED", "train", name="refined")
    assert record["transductive"]


def test_runs_that_cannot_be_refined(run, tmp_path, other_clip, domain_tree):
    folder, _, _ = run(*BASES["CoOp"], name="base")
    key = "TRAINER.INMAP.FROM"

    def refused(name, *pairs, place=folder, **changes):
        _, _, output = run("InMaP", key, place, *pairs, name=name, code=2, **changes)
        assert output.err.count("\n") == 1
        return output.err

    error = refused("a", place=tmp_path / "absent")
    assert f"there is no folder {tmp_path / 'absent'}" in error
    error = refused("b", "DATASET.SUBSAMPLE_CLASSES", "base")
    assert "DATASET.SUBSAMPLE_CLASSES 'all', this one 'base'" in error
    error = refused("c", source="art", target="photo")
    assert "DATASET.TARGET_DOMAINS ['sketch'], this one ['photo']" in error
    error = refused("d", "MODEL.BACKBONE.NAME", f"local-dir:{other_clip}")
    assert "set MODEL.BACKBONE.NAME and WEIGHTS to the former" in error
    shutil.copytree(domain_tree / "sketch", tmp_path / "classes" / "test")
    whole = ("DATASET.NAME", "FolderClasses", "DATASET.SOURCE_DOMAINS", "()", "DATASET.TARGET_DOMAINS", "()")
    error = refused("e", *whole, root=tmp_path / "classes")
    assert "DATASET.NAME 'FolderDomains', this one 'FolderClasses'" in error
    record = folder / "record.json"
    text = record.read_text()
    record.unlink()
    assert "no finished run" in refused("f") and "prompt_learner" in refused("f")
    record.write_text(text[:50])
    assert "no finished run" in refused("g")
    record.write_text(text)
    for file in (folder / "prompt_learner").iterdir():
        file.unlink()
    assert "no checkpoint at" in refused("h")


def test_a_run_of_another_seed_was_tested_on_other_images(run):
    """Inside a domain the hold-out follows the seed: under another one, what a run was trained on would be tested."""
    inside = {"source": "sketch", "target": "sketch"}
    folder, _, _ = run(*BASES["CoOp"], name="base", **inside)
    _, _, output = run("InMaP", "TRAINER.INMAP.FROM", folder, "SEED", 2, name="other", code=2, **inside)
    assert "the run's is 1, this one's 2" in output.err
    _, record, _ = run("InMaP", "TRAINER.INMAP.FROM", folder, name="same", **inside)
    assert record["metrics"]["test"]["total"] == 6


def test_odd_backbones_have_their_own_temperature(run, tiny_clip, tmp_path, plain, sketch):
    """`auto` follows the model's logit scale."""
    clip = tmp_path / "warm"
    shutil.copytree(tiny_clip, clip)
    state = load_file(clip / "open_clip_model.safetensors")
    state["logit_scale"] = torch.tensor(np.log(40.0), dtype=torch.float32)
    save_file(state, clip / "open_clip_model.safetensors")
    _, record, _ = run("InMaP", *inmap(), "MODEL.BACKBONE.NAME", f"local-dir:{clip}")
    assert record["solutions"][SINKHORN]["text_temperature"] == pytest.approx(1 / 40, rel=1e-5)
    assert record["solutions"][SINKHORN]["image_temperature"] == pytest.approx(4 / 40, rel=1e-5)


# -------------------------------------------------------------------------------------- class sizes from the images


def mixture(features, start, proxies, theta, share, scale):
    """The scores of a run whose marginal is not uniform: two softmaxes, mixed."""
    vision, text = softmax(features @ proxies.T * scale / 2), softmax(features @ start.T * scale + theta)
    return share * vision + (1 - share) * text


@pytest.mark.parametrize("value", ["auto", "zero-shot", "-0.8", "0.5"])
def test_a_run_weighs_class_sizes_as_a_plain_program(run, problem, value, tmp_path):
    folder, record, output = run("InMaP", *inmap(MARGINAL=value))
    gram = torch.from_numpy(problem.start @ problem.start.T)
    logits = torch.from_numpy(problem.scores * problem.scale)
    theta, r, share = plain_choice(logits, gram)
    if value != "auto":
        r = 0.0 if value == "zero-shot" else float(value)
        theta = plain_theta(logits, r)
        assert f"class sizes: r = {r:.2f} as asked" in output.out
    else:
        assert "class sizes look" in output.out and f"r = {r:.2f}" in output.out
    solution = record["solutions"][SIZES]
    assert (solution["r"], solution["share"]) == pytest.approx((r, share), abs=1e-3)
    assert solution["image_temperature"] == pytest.approx(2 / problem.scale, rel=1e-5)
    labels = softmax(logits.numpy() + theta)
    labels = np.where(labels.max(1, keepdims=True) > 0.6, labels >= labels.max(1, keepdims=True), labels)
    proxies = proxies_of(folder).double().numpy()
    tau = 2 / problem.scale
    found = objective(problem.features, proxies, labels, tau)
    assert found == pytest.approx(solution["objective"], rel=1e-3)
    assert found <= best_found(problem.features, problem.start, labels, tau) * (1 + 1e-3) + 1e-6
    shares = mixture(problem.features, problem.start, proxies, theta, share, problem.scale)
    kept = np.load(folder / "predictions.npz")
    place = {str(path): row for row, path in enumerate(problem.paths)}
    rows = [place[path] for path in kept["paths"]]
    np.testing.assert_allclose(kept["shares"][:, 0], shares[rows].max(1), atol=2e-3)
    assert record["transductive"] and record["needs"] == "all images of a batch at once"
    flags = ("--eval-only", "--model-dir", str(folder))
    _, evaluated, _ = run("InMaP", *inmap(MARGINAL=value), name="loaded", flags=flags)
    assert evaluated["metrics"]["test"] == record["metrics"]["test"]


def test_the_rule_as_shipped_gains_on_few_classes_and_loses_little_on_all(tmp_path):
    """On a style of the icons that its constants were not chosen on; zero-shot CLIP is counted on the same draws."""
    from dassl_clip.cli import train
    from dassl_clip.engine import catalogue
    from dassl_clip.engine.scenarios import batch_draws
    from dassl_clip.results.records import read_record

    files = catalogue.dataset_file("icons"), catalogue.trainer_file("InMaP", "", "icons")
    words = ["--trainer", "InMaP", "--dataset-config-file", files[0], "--config-file", files[1], "--task", "batch"]
    words += ["--source-domains", "emoji", "--target-domains", "line", "--seed", 1, "--output-dir", tmp_path]
    words += ["DATASET.PROTOCOL", "all-images", "SCENARIOS.TASK", "batch", "SCENARIOS.DRAWS", 20]
    assert train.main(list(map(str, [*words, "SCENARIOS.BATCHES", "('64', '64:1-4')"]))) == 0
    trainer, _ = open_run(tmp_path, root="data")  # the icons are part of the project
    items = trainer.dm.dataset.test
    labels = np.array([item.label for item in items])
    hits = trainer.images(items).logits.argmax(dim=1).cpu().numpy() == labels
    for name, classes, least in (("B64", None, -1.0), ("B64 K1-4", (1, 4), 8.0)):
        zeroshot = np.mean([100 * hits[index].mean() for index in batch_draws(labels, 64, classes, 20, 1)])
        assert read_record(tmp_path)["metrics"][name]["mean_of_draws"] - zeroshot >= least, name


@pytest.mark.parametrize("marginal", ["uniform", "auto", "1"])
def test_a_set_of_one_image_keeps_the_scores_that_it_starts_from(run, tmp_path, domain_tree, marginal):
    """Of eight classes, so that a proxy learned from the image alone would score it otherwise."""
    whole = ("DATASET.NAME", "FolderClasses", "DATASET.SOURCE_DOMAINS", "()", "DATASET.TARGET_DOMAINS", "()")
    for number, name in enumerate(("cat", "dog", "gnu", "cow", "bee", "ant", "owl", "emu")):
        (tmp_path / "test" / name).mkdir(parents=True)
        image = next((domain_tree / "sketch").rglob("*.png")).read_bytes()
        (tmp_path / "test" / name / "0.png").write_bytes(image if number == 3 else b"no image")
    shares = []
    for method, keys in (("ZeroshotCLIP", ("TRAINER.ZEROSHOTCLIP.TEMPLATES", "single")),
                         ("InMaP", inmap(TEMPLATES="single", MARGINAL=marginal))):  # fmt: skip
        folder, record, _ = run(method, *whole, *keys, "DATALOADER.ON_BAD_IMAGE", "skip", root=tmp_path, name=method)
        assert record["metrics"]["test"]["total"] == 1
        with np.load(folder / "predictions.npz") as saved:
            shares.append(saved["scores"].astype(float))
    np.testing.assert_allclose(*shares, atol=2e-3)


def test_images_that_were_not_learned_from_lean_on_the_text_twice_as_much(run):
    shares = []
    for part in ("test", "train"):
        _, record, _ = run("InMaP", *inmap(MARGINAL="auto", UNLABELED=part), name=part)
        images = record["solutions"][SIZES]["images"]
        assert record["solutions"][SIZES]["share"] == pytest.approx(
            images / (images + (2 if part == "test" else 4) * 3)
        )
        shares.append(record["transductive"])
    assert shares == [True, False]


def test_known_sizes_from_a_file(run, problem, tmp_path):
    sizes = tmp_path / "sizes.yaml"
    sizes.write_text("".join(f"{name}: {size}\n" for name, size in zip(problem.names, (0.5, 0.4, 0.1))))
    _, record, output = run("InMaP", *inmap(MARGINAL=sizes))
    assert f"class sizes are those of {sizes}" in output.out and record["solutions"][SIZES]["r"] is None
    assert len(record["reading_notes"]) == 1
    online = ("SCENARIOS.TASK", "online", "SCENARIOS.ORDERS", 1)
    folder, record, _ = run("InMaP", *inmap(MARGINAL=sizes), *online, name="draws")
    assert open_run(folder)[0].model.weight.shape[0] == 3  # a run of such a task classifies images as others do
    note = "the class sizes of the file, those of all images, are taken for the sizes of every draw"
    assert record["reading_notes"][1:] == [note]
    sizes.write_text(sizes.read_text() + "unicorn: 0\n")
    _, _, output = run("InMaP", *inmap(MARGINAL=sizes), name="odd", code=2)
    assert "names unicorn, no class of the data set; the 3 classes are" in output.err


@pytest.mark.parametrize("base", ["CoOp", "GOPro", "LinearProbe"])
def test_class_sizes_of_a_refined_run(run, base):
    """The scores of the refined run are half of the mixture, also of images that are tested later."""
    folder, _, _ = run(*BASES[base], name="base")
    refined, record, output = run("InMaP", "TRAINER.INMAP.FROM", folder, name="refined")
    assert "class sizes look" in output.out and record["solutions"][SIZES]["share"] == pytest.approx(30 / 36)
    flags = ("--eval-only", "--model-dir", str(refined))
    _, evaluated, _ = run("InMaP", "TRAINER.INMAP.FROM", folder, name="loaded", flags=flags)
    assert evaluated["metrics"]["test"] == record["metrics"]["test"]


def built(run, root, **keys):
    """The trainer of a finished run, and what it draws from."""
    folder, _, _ = run("InMaP", *inmap(**keys), name="again")
    trainer, _ = open_run(folder, root=str(root))
    return trainer, trainer.images(trainer.dm.dataset.test)


@pytest.mark.parametrize("keys", [{"MARGINAL": "auto"}, {"MARGINAL": "uniform"}, {"GAMMA": 0.5}])
def test_a_draw_is_scored_as_a_run_on_its_images_scores(run, domain_tree, keys, monkeypatch):
    """A draw of all images has the scores of the run itself; others beside it, of other lengths, change nothing.

    Solved to the end and in float64: where a descent may stop early, its last digits depend on the processor.
    """
    trainer, images = built(run, domain_tree, TOLERANCE=1e-14, **keys)
    every = torch.arange(30)
    draws = [every, every[::3], every[4:5], every.flip(0)]
    early = list(trainer.logits_of_draws(images, draws))
    monkeypatch.setattr("dassl_clip.trainers.inmap.trainer.TOLERANCE_OF_DRAWS", 1e-10)
    numbers = {key: getattr(images, key).double() for key in ("features", "logits", "proxies")}
    images = dataclasses.replace(images, **numbers)
    whole, third, single, turned = late = list(trainer.logits_of_draws(images, draws))
    features, _ = trainer.features.raw(trainer.dm.dataset.test)
    own = trainer.feature_logits(features.to(trainer.device)).softmax(dim=1)
    scale = 1 if keys.get("MARGINAL") == "auto" else trainer.tau_i * images.scale
    torch.testing.assert_close((whole * scale).softmax(dim=1), own.double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned.flip(0), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(next(trainer.logits_of_draws(images, [every[::3]])), third, atol=1e-4, rtol=0)
    for some, exact in zip(early, late):  # an early stop may move the shares
        shares = [(logits.double() * scale).softmax(dim=1) for logits in (some, exact)]
        torch.testing.assert_close(*shares, atol=2e-3, rtol=0)
    if keys.get("MARGINAL") == "auto":
        torch.testing.assert_close(single.softmax(dim=1), images.logits[4:5].softmax(dim=1))


def test_2_5_no_other_images_stand_in_for_a_split(run, domain_tree):
    """Row 2.5: `test` of a trainer in Python, too, where the original toolbox would test the test images."""
    trainer, _ = built(run, domain_tree, MARGINAL="zero-shot")
    trainer.val_loader = None
    for split in ("val", "train"):
        with pytest.raises(
            UserError, match=f"cannot test on '{split}': FolderDomains offers test images, no val images"
        ):
            trainer.test(split)


def test_counts_in_a_file_are_of_the_set_that_is_drawn_from(run, domain_tree, problem, tmp_path):
    sizes = tmp_path / "sizes.yaml"
    sizes.write_text("".join(f"{name}: {count}\n" for name, count in zip(problem.names, (15, 12, 3))))
    trainer, images = built(run, domain_tree, MARGINAL=sizes)
    draws = [torch.arange(0, 30, 3), torch.arange(12)]
    assert [len(logits) for logits in trainer.logits_of_draws(images, draws)] == [10, 12]


def test_an_online_pass_scores_each_image_from_those_before(run, domain_tree):
    trainer, images = built(run, domain_tree, MARGINAL="auto", RENEW=7)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    found = trainer.logits_online(images, order)
    torch.testing.assert_close(found[:7], images.logits[order[:7]])
    for start in (7, 14, 21, 28):
        past, block = order[:start], order[start : start + 7]
        learned = trainer._learned(images.features[past][None], images.logits[past][None],
                                   torch.ones(1, start, dtype=torch.bool), images)  # fmt: skip
        learned = (*learned[:2], learned[2] / (2 - learned[2]))  # these images were not learned from
        expected = trainer._scored(images.features[block][None], images.logits[block][None], images.scale, *learned)[0]
        torch.testing.assert_close(found[start : start + 7], expected)
    later = order.clone()
    later[20:] = order[20:].flip(0)
    torch.testing.assert_close(trainer.logits_online(images, later)[:20], found[:20])  # the future is not seen


@pytest.mark.parametrize("method", ["InMaP", "StatA", "OnZeta"])
def test_images_that_tell_nothing_of_each_other(run, tmp_path, domain_tree, method):
    """Copies of one image and a single class are refused in one line each."""
    whole = ("DATASET.NAME", "FolderClasses", "DATASET.SOURCE_DOMAINS", "()", "DATASET.TARGET_DOMAINS", "()")
    image = next((domain_tree / "sketch").rglob("*.png"))
    for folder, classes in (("copies", ("cat", "dog")), ("alone", ("cat",))):
        for name in classes:
            (tmp_path / folder / "test" / name).mkdir(parents=True)
            for number in range(3):
                shutil.copy(image, tmp_path / folder / "test" / name / f"{number}.png")
    _, _, output = run(method, *whole, root=tmp_path / "copies", name="copies", code=2)
    assert "all 6 images have the same features" in output.err and output.err.count("\n") == 1
    _, _, output = run(method, *whole, root=tmp_path / "alone", name="alone", code=2)
    assert "tells classes apart, but the class list holds 'cat' alone" in output.err


# ---------------------------------------------------------------------------------------------------- wrong settings


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"TEXT_TEMPERATURE": "hot"}, "TEXT_TEMPERATURE is 'hot'; expected a positive number such as 0.01, 'auto'"),
        ({"TEXT_TEMPERATURE": 0}, "TEXT_TEMPERATURE is '0'"),
        ({"IMAGE_TEMPERATURE": "auto:-1"}, "IMAGE_TEMPERATURE is 'auto:-1'"),
        ({"IMAGE_TEMPERATURE": "auto:"}, "IMAGE_TEMPERATURE is 'auto:'"),
        ({"IMAGE_TEMPERATURE": "inf"}, "IMAGE_TEMPERATURE is 'inf'"),
        ({"SOLVER": "adam"}, "SOLVER is 'adam'; expected one of fast, authors"),
        ({"UNLABELED": "all"}, "UNLABELED is 'all'; expected one of test, train, val"),
        ({"SINKHORN_ITERATIONS": -1}, "SINKHORN_ITERATIONS is -1; expected a number of at least 0"),
        ({"STEPS": -5}, "STEPS is -5; expected a number of at least 0"),
        ({"LR": 0.0}, "lr is positive"),
        ({"GAMMA": "much"}, "GAMMA is 'much'; expected a number"),
        ({"GAMMA": 0.5, "MARGINAL": "uniform"}, "GAMMA 0.5 and MARGINAL 'uniform' both name the class sizes"),
        ({"MARGINAL": 2}, "MARGINAL is '2'; as a number it is at most 1"),
        ({"MARGINAL": "unifrom"}, "MARGINAL: "),
        ({"RENEW": 0}, "RENEW is 0; expected a number of at least 1"),
        ({"TOLERANCE": -1.0}, "TOLERANCE is -1.0; expected a number of at least 0"),
        ({"TEMPLATES": "inmap8"}, "unknown templates 'inmap8'. Did you mean 'inmap7' or 'imagenet80'?"),
        ({"PREC": "fp8"}, "TRAINER.INMAP.PREC is 'fp8'"),
    ],
)
def test_wrong_settings_have_their_sentence(run, keys, sentence):
    _, _, output = run("InMaP", *inmap(**keys), code=2)
    assert sentence in output.err and output.err.count("\n") == 1


@pytest.mark.parametrize(
    ("key", "value", "usual"),
    [("UNLABELED", "train", "test"), ("UNLABELED", "val", "test"), ("SOLVER", "authors", "fast")],
)
def test_draws_are_learned_from_themselves_and_by_the_fast_solver(run, key, value, usual):
    _, _, output = run("InMaP", *inmap(**{key: value}), "SCENARIOS.TASK", "stream", code=2)
    sentence = f"TRAINER.INMAP.{key} is '{value}', but stream learns proxies of each draw from its own tested images"
    assert sentence in output.err and f"set {key} {usual}, or leave SCENARIOS.TASK out" in output.err
    assert output.err.count("\n") == 1


def test_a_part_that_is_not_there(run, tmp_path, domain_tree):
    shutil.copytree(domain_tree / "sketch", tmp_path / "classes" / "test")
    whole = ("DATASET.NAME", "FolderClasses", "DATASET.SOURCE_DOMAINS", "()", "DATASET.TARGET_DOMAINS", "()")
    _, _, output = run("InMaP", *inmap(UNLABELED="val"), *whole, root=tmp_path / "classes", code=2)
    assert "UNLABELED is 'val', but FolderClasses offers no such images here" in output.err
    _, record, _ = run("InMaP", *inmap(UNLABELED="train"), *whole, root=tmp_path / "classes", name="train")
    assert record["transductive"]  # a data set of test images alone hands them in as training images too
