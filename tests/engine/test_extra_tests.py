"""Extra tests of a run, through the command line, against plain programs on open_clip's own model.

Covers: the prompt forms C, CP, PC and NC, with noise that does not depend on the batch size, and one draw per batch
where that is asked for; few-shot probes, which images they are trained and tested on; attacked images pixel by pixel,
in both spaces, zero-shot and on the 1-shot probe; what the record says of it.
"""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dassl.engine import build_trainer
from dassl_clip.cli import train
from dassl_clip.clip.probe import fit_linear_probe
from dassl_clip.engine import registry
from dassl_clip.engine.data import mix_seed
from dassl_clip.engine.extra_tests import ExtraTests
from dassl_clip.engine.overrides import resolve_config

FORMS = {"C": "{}", "CP": "a {} in a photo", "PC": "a photo of a {}"}
ALPHA, EPSILON = 0.9, 0.031


def random_head(seed=2):
    draw = torch.Generator().manual_seed(seed)
    shapes = {"linear.weight": (8, 16), "linear.bias": (8,), "projection.weight": (16, 8)}
    return {key: torch.randn(*shape, generator=draw) for key, shape in shapes.items()}


@pytest.fixture
def clap(run, tmp_path, domain_tree):
    """`clap(test, **keys)` runs an extra test on a random head of CLAP: folder, record, output."""
    torch.save(random_head(), tmp_path / "head.pth")

    def go(test, *pairs, name="run", root=domain_tree, **keys):
        keys = {"EVALUATE": repr((test,)), "LATENT_DIM": 8, "MAX_STEPS": 0, "ALPHA": ALPHA, **keys}
        words = [word for key, value in keys.items() for word in (f"TRAINER.CLAP.{key}", value)]
        return run("CLAP", *words, "MODEL.INIT_WEIGHTS", tmp_path / "head.pth", *pairs, name=name, root=root)

    return go


@pytest.fixture(scope="session")
def faint(tmp_path_factory):
    """A tree whose classes differ less than the images of a class do: few shots are often wrong."""
    root, draw = tmp_path_factory.mktemp("faint"), np.random.default_rng(3)
    for domain in ("art", "photo", "sketch"):
        for c, name in enumerate(("dog", "fire_truck", "house")):
            (root / domain / name).mkdir(parents=True)
            for i in range(10):
                pixels = 110 + draw.normal(0, 40, 3) + draw.normal(0, 30, (36, 36, 3))
                pixels[..., c] += 35
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / domain / name / f"{i}.png")
    return root


def content(x, unit=True):
    head = random_head()
    hidden = F.silu(x) @ head["linear.weight"].T + head["linear.bias"]
    z = x + ALPHA * hidden @ head["projection.weight"].T
    return z / z.norm(dim=-1, keepdim=True) if unit else z


def in_order(folder, sketch):
    """Files, labels and features of the tested images in the run's order."""
    paths, labels, _, features = sketch
    number = {str(path): i for i, path in enumerate(paths)}
    index = [number[path] for path in np.load(folder / "predictions.npz")["paths"]]
    return [paths[i] for i in index], labels[index], features[index]


def assert_accuracy(metrics, scores, labels):
    """Metrics are those of scores `[N, C]`, but for images with two classes too close to tell."""
    best = scores.topk(2, dim=1).values
    close = int((best[:, 0] - best[:, 1] < 1e-5).sum())
    hits = scores.argmax(1) == labels
    assert metrics["total"] == len(labels) and close < len(labels) / 4
    assert abs(metrics["accuracy"] - 100 * hits.float().mean().item()) <= 100 * close / len(labels) + 1e-4
    if not close:
        wanted = [100 * hits[labels == c].float().mean().item() for c in range(3)]
        assert metrics["per_class_accuracy"] == pytest.approx(wanted)


def noise(draws, seed=1, tokens=4, std=0.02, width=32):
    """The draws of a seed: one after the other from one generator."""
    generator = torch.Generator().manual_seed(mix_seed(seed, 0))
    return [std * torch.randn(tokens, width, generator=generator) for _ in range(draws)]


# ------------------------------------------------------------------------------------------------------ prompt forms


def test_prompt_forms_are_those_of_a_plain_program(clap, plain, sketch):
    folder, record, _ = clap("forms", NC_DRAWS=3)
    _, labels, features = in_order(folder, sketch)
    names, images = sketch[2], content(features)
    for form, words in FORMS.items():
        text = content(plain.texts([words.format(name) for name in names]))
        assert_accuracy(record["metrics"][form], images @ text.T, labels)
    metrics, each = record["metrics"]["NC"], []
    for draw, tokens in zip(metrics["draws"], noise(3), strict=True):
        scores = images @ content(plain.noisy_names(names, tokens)).T
        each.append(100 * scores.argmax(1).eq(labels).float().mean().item())
        assert draw == pytest.approx(each[-1], abs=3.4)  # an image at most
    assert metrics["accuracy"] == pytest.approx(sum(metrics["draws"]) / 3)
    assert metrics["accuracy"] == pytest.approx(sum(each) / 3, abs=1.2)
    assert metrics["total"] == 30 and metrics["correct"] == pytest.approx(metrics["accuracy"] * 0.3)
    assert list(record["metrics"]) == ["test", "C", "CP", "PC", "NC"]
    accuracies = [record["metrics"][form]["accuracy"] for form in (*FORMS, "NC")]
    assert len(set(accuracies)) > 2, accuracies  # or this test could not tell the forms apart
    assert record["reading_notes"] == ["NC: mean over 3 draws of the noise"]


def test_noise_follows_the_seed_and_not_the_batch_size(clap, but_for_rounding):
    base = clap("forms")[1]["metrics"]
    small = clap("forms", "DATALOADER.TEST.BATCH_SIZE", 7, name="small")[1]["metrics"]
    seeded = clap("forms", "SEED", 2, name="seeded")[1]["metrics"]
    assert len(base["NC"]["draws"]) == 8
    assert base == but_for_rounding(small) and base["C"] == but_for_rounding(seeded)["C"]
    assert base["NC"]["draws"] != seeded["NC"]["draws"]


def test_one_draw_for_each_batch(clap, plain, sketch):
    folder, record, _ = clap("forms", "DATALOADER.TEST.BATCH_SIZE", 8, NC_PER_BATCH=True, NC_STD=0.1, NC_TOKENS=2)
    _, labels, features = in_order(folder, sketch)
    scores = []
    for batch, tokens in zip(content(features).split(8), noise(4, tokens=2, std=0.1), strict=True):
        scores.append(batch @ content(plain.noisy_names(sketch[2], tokens)).T)
    assert_accuracy(record["metrics"]["NC"], torch.cat(scores), labels)
    assert "draws" not in record["metrics"]["NC"]
    assert record["reading_notes"] == ["NC: one draw of the noise for each batch of 8 images"]


def test_zero_shot_clip_has_the_same_extra_tests(run, plain, sketch):
    folder, record, _ = run("ZeroshotCLIP", "TRAINER.ZEROSHOTCLIP.EVALUATE", "('forms', 'probe')")
    _, labels, features = in_order(folder, sketch)
    text = plain.texts([f"a {name} in a photo" for name in sketch[2]])
    scores = F.normalize(features, dim=-1) @ F.normalize(text, dim=-1).T
    assert_accuracy(record["metrics"]["CP"], scores, labels)
    assert list(record["metrics"])[5:] == ["1-shot", "4-shot", "8-shot", "16-shot", "32-shot"]


def test_extra_tests_follow_an_evaluation_too_and_no_other_split(run):
    keys = ("TRAINER.ZEROSHOTCLIP.EVALUATE", "('forms',)")
    _, record, _ = run("ZeroshotCLIP", *keys, name="a")
    _, again, _ = run("ZeroshotCLIP", *keys, name="b", flags=("--eval-only",))
    _, val, _ = run("ZeroshotCLIP", *keys, "TEST.SPLIT", "val", name="c")
    assert record["metrics"] == again["metrics"] and list(val["metrics"]) == ["val"]


# ------------------------------------------------------------------------------------------------------------ probes


def drawn(labels, shots, seed):
    """Numbers of the shots: of each class in turn, without putting back."""
    draw, shown = random.Random(seed), []
    for c in range(3):
        of_class = [i for i, label in enumerate(labels.tolist()) if label == c]
        shown += draw.sample(of_class, min(shots, len(of_class)))
    return shown


@pytest.mark.parametrize(("tested", "split_seed"), [("all", -1), ("without-shots", 6)])
def test_probes_are_those_of_a_plain_program(clap, plain, faint, tested, split_seed):
    pairs = ("DATASET.SPLIT_SEED", split_seed)
    folder, record, output = clap("probe", *pairs, root=faint, PROBE_SHOTS="(1, 4, 32)", PROBE_TEST=tested)
    predictions = np.load(folder / "predictions.npz")
    labels, seed = torch.tensor(predictions["labels"]), 1 if split_seed < 0 else split_seed
    images = content(plain.images(predictions["paths"]))
    assert record["metrics"]["1-shot"]["accuracy"] < 90  # or this test could not tell the shots apart
    for shots in (1, 4, 32):
        shown = drawn(labels, shots, seed)
        name = f"{shots}-shot"
        if shots == 32 and tested != "all":  # every image was drawn
            assert name not in record["metrics"] and "no image is left to test the 32-shot probe on" in output.out
            continue
        index = [i for i in range(30) if tested == "all" or i not in shown]
        weight, bias = fit_linear_probe(images[shown], labels[shown], 3, seed=mix_seed(1, shots))
        assert record["metrics"][name]["shots_drawn"] == len(shown) == 3 * min(shots, 10)
        assert_accuracy(record["metrics"][name], images[index] @ weight.T + bias, labels[index])
    said = "all of them, the shots included" if tested == "all" else "those that were not drawn"
    assert record["reading_notes"] == [f"probes: shots drawn from the tested images, tested on {said}"]


def test_probe_shots_follow_the_seed(clap, faint):
    first, again, other = (
        clap("probe", "SEED", seed, name=f"{number}", root=faint, PROBE_SHOTS="(1, 2)")[1]["metrics"]
        for number, seed in enumerate((1, 1, 3))
    )
    assert first == again
    assert [first[f"{n}-shot"]["per_class_accuracy"] for n in (1, 2)] != [
        other[f"{n}-shot"]["per_class_accuracy"] for n in (1, 2)
    ]


# ----------------------------------------------------------------------------------------------------------- attacks


def attack_words(clap_head, domain_tree, tiny_clip, tmp_path, **keys):
    (tmp_path / "data.yaml").write_text("DATASET: {NAME: FolderDomains}\n")
    keys = {"EVALUATE": "('attacks',)", "LATENT_DIM": 8, "MAX_STEPS": 0, "ALPHA": ALPHA, **keys}
    words = ["--trainer", "CLAP", "--dataset-config-file", tmp_path / "data.yaml", "--root", domain_tree, "--seed", 1]
    words += ["--source-domains", "art", "--target-domains", "sketch", "--output-dir", tmp_path / "attacked"]
    words += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "MODEL.INIT_WEIGHTS", clap_head]
    words += [word for key, value in keys.items() for word in (f"TRAINER.CLAP.{key}", value)]
    return [
        *map(str, words),
        "DATALOADER.NUM_WORKERS",
        "0",
        "DATALOADER.TEST.BATCH_SIZE",
        "12",
        "VERBOSE",
        "False",
        "USE_CUDA",
        "False",
    ]


@pytest.fixture
def attacked(domain_tree, tiny_clip, tmp_path):
    """`attacked(**keys)` builds a trainer and attacks: its tests, their metrics, and the images the tower has seen."""
    torch.save(random_head(), tmp_path / "head.pth")

    def go(**keys):
        registry.register()
        words = attack_words(tmp_path / "head.pth", domain_tree, tiny_clip, tmp_path, **keys)
        trainer = build_trainer(resolve_config(train.parse(words)[0]))
        trainer.set_model_mode("eval")
        trainer.before_test()
        trainer.features.raw(trainer.test_loader.dataset.data_source)
        seen = []
        trainer.backbone.model.visual.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
        tests = ExtraTests(trainer)
        metrics, items = dict(tests.attacks()), tests.images
        return tests, metrics, seen, [item.impath for item in items], torch.tensor([item.label for item in items])

    return go


def plain_attack(name, scores, clean, label, start, floor, ceiling):
    """One image attacked step by step; `start` is the uniform draw of the ball, in [-1, 1]."""
    steps, step = (1, EPSILON) if name == "FGSM" else (20, EPSILON / 10)
    x = clean if name == "FGSM" else (clean + EPSILON * start).clamp(floor, ceiling)
    low, high = (clean - EPSILON).clamp(floor, ceiling), (clean + EPSILON).clamp(floor, ceiling)
    x = x.clamp(floor, ceiling) if name != "FGSM" else x
    for _ in range(steps):
        x = x.detach().requires_grad_()
        row = scores(x)[0]
        if name == "CW-20":
            others = torch.cat([row[:label], row[label + 1 :]])
            loss = torch.minimum(others.max() - row[label], torch.tensor(50.0))
        else:
            loss = torch.logsumexp(row, 0) - row[label]
        (slope,) = torch.autograd.grad(loss, x)
        x = torch.minimum(torch.maximum(x + step * slope.sign(), low), high)
    return x.detach()


@pytest.mark.parametrize("space", ["pixels", "authors"])
@pytest.mark.parametrize("name", ["FGSM", "PGD-20", "CW-20"])
def test_attacked_images_are_those_of_a_plain_program(attacked, plain, sketch, name, space):
    tests, metrics, seen, paths, labels = attacked(
        ATTACKS=repr((name,)), ATTACK_SPACE=space, ATTACK_TARGETS="('zero-shot',)"
    )
    reads = 1 + (1 if name == "FGSM" else 20)
    assert len(seen) == 3 * reads  # three batches: each step, and the test at the end
    bad = torch.cat([seen[(batch + 1) * reads - 1] for batch in range(3)])
    clean = torch.cat([plain.picture(path) for path in paths])
    if space == "pixels":
        bad, clean = bad * plain.std + plain.mean, (clean * plain.std + plain.mean).clamp(0, 1)
        assert (bad - clean).abs().max() <= EPSILON + 1e-6
        assert (bad - clean).abs().max() > 0.99 * EPSILON
        assert bad.min() >= -1e-6 and bad.max() <= 1 + 1e-6
    else:
        assert bad.min() >= 0 and bad.max() <= 1 and (bad - clean).abs().max() > 1
        inside = (clean >= EPSILON) & (clean <= 1 - EPSILON)
        assert (bad - clean).abs()[inside].max() <= EPSILON + 1e-6
    text = content(plain.texts(sketch[2]))

    def scores(x):
        return content(plain.model.encode_image((x - plain.mean) / plain.std if space == "pixels" else x)) @ text.T

    generator = torch.Generator().manual_seed(mix_seed(1, 1))
    starts = 2 * torch.rand(30, 3, 32, 32, generator=generator) - 1
    for i in (0, 13, 29):
        wanted = plain_attack(name, scores, clean[i : i + 1], int(labels[i]), starts[i : i + 1], 0, 1)
        assert ((bad[i] - wanted[0]).abs() < 1e-4).float().mean() > 0.9, i  # but where a slope is almost 0
    with torch.no_grad():
        read = content(plain.model.encode_image((bad - plain.mean) / plain.std if space == "pixels" else bad))
        for form, words in FORMS.items():
            form_text = content(plain.texts([words.format(class_name) for class_name in sketch[2]]))
            assert_accuracy(metrics[f"{name} / {form}"], read @ form_text.T, labels)
        truth = (read @ text.T).gather(1, labels[:, None])
        before = content(torch.cat([plain.images([path]) for path in paths])) @ text.T
    if space == "pixels":
        assert truth.mean() < before.gather(1, labels[:, None]).mean() - 0.05
    assert list(metrics) == [f"{name} / {form}" for form in (*FORMS, "NC")]
    where = "pixels in [0, 1]" if space == "pixels" else "normalised pixels, clamped to [0, 1]"
    assert tests.notes == [f"attacks: {where}, epsilon 0.031, on plain cosines with C"]


@pytest.mark.parametrize("tested", ["all", "without-shots"])
def test_the_one_shot_probe_under_attack(attacked, plain, tested):
    tests, metrics, seen, paths, labels = attacked(
        ATTACKS="('FGSM',)", ATTACK_TARGETS="('1-shot',)", PROBE_TEST=tested, PROBE_SHOTS="(1,)"
    )
    clean = content(plain.images(paths))
    shown = drawn(labels, 1, 1)
    weight, bias = fit_linear_probe(clean[shown], labels[shown], 3, seed=mix_seed(1, 1))
    index = [i for i in range(30) if tested == "all" or i not in shown]
    assert list(metrics) == ["FGSM / 1-shot"] and metrics["FGSM / 1-shot"]["total"] == len(index)
    bad = torch.cat(seen[1::2])
    pixels = bad * plain.std + plain.mean
    unattacked = torch.cat([plain.picture(paths[i]) for i in index]) * plain.std + plain.mean
    assert (pixels - unattacked).abs().max() <= EPSILON + 1e-6
    with torch.no_grad():
        read = content(plain.model.encode_image(bad)) @ weight.T + bias
    assert_accuracy(metrics["FGSM / 1-shot"], read, labels[index])
    before, after = (F.cross_entropy(s, labels[index]) for s in (clean[index] @ weight.T + bias, read))
    assert after > before + 0.01
    said = "included" if tested == "all" else "left out"
    assert f"attacks on the 1-shot probe: the images that it was trained on are {said}" in tests.notes


def test_in_the_authors_space_the_probe_is_attacked_through_features_that_are_not_normalised(attacked, plain):
    """(row 7.2) The attack's gradient is that of W z + b; the test is that of W z / |z| + b."""
    _, metrics, seen, paths, labels = attacked(
        ATTACKS="('FGSM',)", ATTACK_TARGETS="('1-shot',)", ATTACK_SPACE="authors", PROBE_SHOTS="(1,)"
    )
    clean = content(plain.images(paths))
    shown = drawn(labels, 1, 1)
    weight, bias = fit_linear_probe(clean[shown], labels[shown], 3, seed=mix_seed(1, 1))
    bad, images = torch.cat(seen[1::2]), torch.cat([plain.picture(path) for path in paths])
    agree = {True: [], False: []}
    for i, image in enumerate(images):
        for normalised in agree:

            def scores(x, normalised=normalised):
                z = content(plain.model.encode_image(x), unit=normalised)
                return z @ weight.T + bias

            wanted = plain_attack("FGSM", scores, image[None], int(labels[i]), None, 0, 1)
            agree[normalised].append(((bad[i] - wanted[0]).abs() < 1e-4).float().mean().item())
    assert min(agree[False]) > 0.99 and min(agree[True]) < 0.99
    with torch.no_grad():
        read = content(plain.model.encode_image(bad)) @ weight.T + bias
    assert_accuracy(metrics["FGSM / 1-shot"], read, labels)


def test_a_part_of_the_images_can_be_attacked(clap, but_for_rounding):
    keys = {"ATTACK_IMAGES": 7, "ATTACKS": "('FGSM',)", "NC_DRAWS": 1}
    _, record, _ = clap("attacks", **keys)
    _, again, _ = clap("attacks", "DATALOADER.TEST.BATCH_SIZE", 3, name="again", **keys)
    assert {name: metrics["total"] for name, metrics in record["metrics"].items()} == {
        "test": 30, "FGSM / C": 7, "FGSM / CP": 7, "FGSM / PC": 7, "FGSM / NC": 7, "FGSM / 1-shot": 7,
    }  # fmt: skip
    assert record["metrics"] == but_for_rounding(again["metrics"])
    assert "attacks: on 7 of 30 tested images, a seeded draw" in record["reading_notes"]
