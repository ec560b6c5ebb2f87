"""TransCLIP, StatA, ZLaP, IOTA, TDA and OnZeta: published methods that score images together or in a stream.

Covers: outputs of the authors' programs (fixtures/transduction: 300 images of ten classes of uneven sizes, and 64
images of three of them; float32 but for OnZeta's), by the functions and by the trainers; naive loops in float64 of
every method, IOTA's limits and thresholds; permuted images and classes; one image, few images, one class, a class
without mass; units of the logit scale; block sizes and the sizes of all tensors; real runs, plain and refined, whose
labels are those of the functions; refusals.
"""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dassl.engine import TRAINER_REGISTRY
from dassl_clip.clip import neighbours
from dassl_clip.engine.config import default_config
from dassl_clip.engine.transductive import Images
from dassl_clip.results.errors import UserError
from dassl_clip.trainers.inmap.labels import sinkhorn, solve_vision_proxy
from dassl_clip.trainers.iota import hardened, transported_labels
from dassl_clip.trainers.onzeta import OnlineProxies
from dassl_clip.trainers.stata import stata
from dassl_clip.trainers.tda import Adapter
from dassl_clip.trainers.transclip import transclip
from dassl_clip.trainers.zlap import zlap

FIXTURES = Path(__file__).parents[1] / "fixtures" / "transduction"
TOGETHER = ("TransCLIP", "StatA", "ZLaP", "IOTA")
ONLINE = ("TDA", "OnZeta")
DTYPES = (torch.float32, torch.float64)


def golden(part, dtype=torch.float64):
    """The images of a part, with logits at a scale of 100, and the authors' outputs by name."""
    with np.load(FIXTURES / f"{part}.npz") as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file}
    features, proxies = arrays.pop("X").to(dtype), arrays.pop("T").to(dtype)
    return Images(features, 100 * features @ proxies.T, proxies, 100.0), arrays


def drawn(images, classes, width=6, scale=20.0, seed=0, dtype=torch.float64):
    """Images about the proxies of their classes, with an offset between the two."""
    draw = torch.Generator().manual_seed(seed)
    proxies = torch.randn(classes, width, generator=draw, dtype=torch.float64)
    noise = torch.randn(images, width, generator=draw, dtype=torch.float64)
    offset = torch.randn(width, generator=draw, dtype=torch.float64)
    labels = torch.randint(classes, (images,), generator=draw)
    features = F.normalize(proxies[labels] + 0.7 * noise + offset, dim=1).to(dtype)
    proxies = F.normalize(proxies, dim=1).to(dtype)
    return Images(features, scale * features @ proxies.T, proxies, scale)


def trainer(name, **settings):
    """A trainer with its settings and nothing else."""
    kind = TRAINER_REGISTRY.get(name)
    method = kind.__new__(kind)
    method.cfg = default_config()
    for key, value in settings.items():
        method.cfg.TRAINER[name.upper()][key] = value
    return method


# --------------------------------------------------------------------------------------- the authors' outputs

GOLDENS = [
    ("all", "transclip_images", 1e-5, lambda i: transclip(i.features, i.logits, i.proxies).exp()),
    ("all", "transclip_text", 1e-5, lambda i: transclip(i.features, i.logits, i.proxies, start="text").exp()),
    ("few", "transclip_text", 1e-5, lambda i: transclip(i.features, i.logits, i.proxies, start="text").exp()),
    ("all", "stata_hard", 1e-5, lambda i: stata(i.features, i.logits, i.proxies).exp()),
    ("few", "stata_hard", 1e-5, lambda i: stata(i.features, i.logits, i.proxies).exp()),
    ("all", "stata_soft", 1e-5, lambda i: stata(i.features, i.logits, i.proxies, beta="soft").exp()),
    ("few", "stata_soft", 1e-5, lambda i: stata(i.features, i.logits, i.proxies, beta="soft").exp()),
    ("all", "zlap", 1e-6, lambda i: zlap(i.features, i.logits / 100)),
    ("few", "zlap", 1e-6, lambda i: zlap(i.features, i.logits / 100)),
    ("all", "tda", 5e-5, lambda i: torch.stack(list(map(Adapter(i.proxies, 100.0), i.features, i.logits)))),
    ("few", "tda", 5e-5, lambda i: torch.stack(list(map(Adapter(i.proxies, 100.0), i.features, i.logits)))),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("part", "name", "tolerance", "function"), GOLDENS)
def test_functions_give_what_the_authors_programs_give(part, name, tolerance, function, dtype):
    images, outputs = golden(part, dtype)
    found = function(images)
    torch.testing.assert_close(found.double(), outputs[name].double(), rtol=0, atol=tolerance)
    assert torch.equal(found.argmax(dim=1), outputs[name].argmax(dim=1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_onzeta_gives_what_the_authors_program_gives_until_rounding_decides(dtype):
    images, outputs = golden("all", dtype)
    rows = [(images.features[number], images.logits[number]) for number in outputs["onzeta_order"][:150].tolist()]

    def course(**settings):
        step = OnlineProxies(images.proxies, 300, **settings)
        return torch.stack([step(*row) for row in rows]).exp()

    mixed, text = course(), course(beta=0.0)  # the labels from texts do not depend on the proxies learned
    if dtype == torch.float32:
        torch.testing.assert_close(mixed[:15], outputs["onzeta_mixed32"], rtol=0, atol=1e-4)
    else:
        for first, last, tolerance in ((0, 100, 1e-9), (100, 150, 1e-6)):
            for found, expected in ((mixed, outputs["onzeta_mixed"]), (text, outputs["onzeta_text"])):
                torch.testing.assert_close(found[first:last], expected[first:last], rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("name", "settings", "output", "tolerance"),
    [
        ("TransCLIP", {}, "transclip_images", 1e-5),
        ("TransCLIP", {"START": "text"}, "transclip_text", 1e-5),
        ("StatA", {}, "stata_hard", 1e-5),
        ("StatA", {"BETA": "soft"}, "stata_soft", 1e-5),
        ("ZLaP", {}, "zlap", 1e-3),  # 1e-6 of a score in 1e-3
    ],
)
def test_trainers_give_the_same_with_their_defaults(name, settings, output, tolerance):
    images, outputs = golden("all", torch.float32)
    expected = outputs[output].double()
    shares = trainer(name, **settings).joint_logits(images).double().softmax(dim=1)
    torch.testing.assert_close(shares, expected / expected.sum(1, keepdim=True), rtol=0, atol=tolerance)


def test_online_trainers_give_the_same_with_their_defaults_in_blocks_and_at_once():
    images, outputs = golden("all", torch.float32)
    blocks = torch.arange(300).split(64)
    found = torch.cat(list(trainer("TDA").logits_of_stream(images, blocks)))
    torch.testing.assert_close(found, outputs["tda"], rtol=0, atol=5e-5)
    images, _ = golden("all")
    order = outputs["onzeta_order"]
    found = trainer("OnZeta").logits_online(images, order).softmax(dim=1)[:100]
    torch.testing.assert_close(found, outputs["onzeta_mixed"][:100], rtol=0, atol=1e-9)
    in_blocks = torch.cat(list(trainer("OnZeta").logits_of_stream(images, order.split(64))))
    assert torch.equal(in_blocks[:100].softmax(dim=1), found)  # the horizon is that of the whole stream


# ------------------------------------------------------------------------------------------------ naive loops


def normalised(x):
    return x / np.sqrt((x**2).sum())


def naive_mixture(images, kind, soft=False, weight=1.0, alpha=1.0, outer=3, inner=2, count=3):
    """TransCLIP ("images", "text") or StatA ("stata"): image by image, class by class, number by number."""
    x, t, logits = images.features.numpy(), images.proxies.numpy(), images.logits.numpy()
    (n, width), classes = x.shape, len(t)
    y = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    w = np.zeros((n, n))
    for i in range(n):
        others = sorted((j for j in range(n) if j != i), key=lambda j: -(x[i] @ x[j]))
        for j in others[:count]:
            w[i, j] = x[i] @ x[j]
    v0 = np.zeros(width)
    for i in range(n):
        for c in range(classes):
            v0 += y[i, c] * (x[i] - t[c]) ** 2 / n
    mu, z = t.copy(), y.copy()
    v = np.stack([v0 if kind == "stata" else np.full(width, 1 / width)] * classes)
    if kind == "images":
        for c in range(classes):
            top = sorted(range(n), key=lambda i: -y[i, c])[:8]
            mu[c] = normalised(sum(y[i, c] * x[i] for i in top))
    for round_ in range(outer + 1):
        if round_:
            new_v = np.zeros((classes, width))
            for c in range(classes):
                mean, total = normalised(sum(z[i, c] * x[i] for i in range(n))), z[:, c].sum()
                number = total if soft else sum(z[i].argmax() == c for i in range(n))
                share = number / (number + alpha) if kind == "stata" else 1.0
                mu[c] = normalised(share * mean + (1 - share) * t[c])
                spread = sum(z[i, c] * (x[i] - mu[c]) ** 2 for i in range(n))
                new_v[c] = share * spread / total + (1 - share) * (v0 + (t[c] - mu[c]) ** 2)
                if kind != "stata":
                    new_v[c] = spread / n
            v = new_v if kind == "stata" else np.stack([new_v.sum(0)] * classes)
        for _ in range(inner):
            new = np.zeros_like(z)
            for i in range(n):
                for c in range(classes):
                    density = -0.5 * ((x[i] - mu[c]) ** 2 / v[c] + np.log(v[c])).sum()
                    near = sum((w[i, j] + w[j, i]) * z[j, c] for j in range(n))
                    new[i, c] = y[i, c] ** weight * np.exp((density + 50 / 6 * near) / 50)
            z = new / new.sum(1, keepdims=True)
    return torch.from_numpy(z)


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize("start", ["images", "text"])
def test_transclip_is_its_formulas(start, weight):
    images = drawn(14, 3, scale=3.0)  # so that the ninth image of a class would count
    found = transclip(images.features, images.logits, images.proxies, weight, start, outer_steps=3, inner_steps=2)
    torch.testing.assert_close(found.exp(), naive_mixture(images, start, weight=weight), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("soft", "alpha", "neighbours"), [(False, 1.0, 3), (True, 1.0, 3), (False, 4.0, 1)])
def test_stata_is_its_formulas_and_classes_without_images_keep_their_text(soft, alpha, neighbours):
    images = drawn(14, 4)
    images = images[images.logits.argmax(dim=1) != 3]
    found = stata(
        images.features, images.logits, images.proxies, alpha, "soft" if soft else "hard", 1.0, neighbours, 3, 2
    )
    expected = naive_mixture(images, "stata", soft, alpha=alpha, count=neighbours)
    assert 3 not in expected.argmax(dim=1)
    torch.testing.assert_close(found.exp(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("k", "gamma", "alpha"), [(5, 5.0, 0.3), (3, 2.0, 0.99), (1, 1.0, 0.5), (100, 5.0, 0.3)])
def test_zlap_solves_its_system(k, gamma, alpha):
    images = drawn(20, 6)
    x, cosines = images.features.numpy(), images.logits.numpy() / images.scale
    w = np.zeros((26, 26))  # texts first
    for i in range(20):
        for j in sorted(range(20), key=lambda j: -(x[i] @ x[j]))[:k]:  # itself among them
            w[6 + i, 6 + j] += max(x[i] @ x[j], 0) * (i != j)
        for c in sorted(range(6), key=lambda c: -cosines[i, c])[:k]:
            w[6 + i, c] += max(cosines[i, c], 0) ** gamma
    w = w + w.T
    degree = w.sum(1)
    s = np.array(
        [[w[a, b] / math.sqrt(degree[a] * degree[b]) if w[a, b] else 0.0 for b in range(26)] for a in range(26)]
    )
    expected = np.linalg.inv(np.eye(26) - alpha * s)[6:, :6]
    found = zlap(images.features, torch.from_numpy(cosines), k, gamma, alpha)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-8, atol=1e-11)


def naive_tda(images, shots=(3, 2), a=2.0, b=5.0, loss=0.117, scale=100.0):
    """The caches as lists of features, sorted by entropy."""
    x, logits, classes = images.features.numpy(), images.logits.numpy(), len(images.proxies)
    positive, negative = ({c: [] for c in range(classes)} for _ in shots)
    rows = []
    for i in range(len(x)):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        entropy, c = -(p * np.log(p)).sum(), int(p.argmax())
        positive[c] = sorted([*positive[c], (entropy, i)])[: shots[0]]
        if 0.2 < entropy / np.log2(classes) < 0.5:
            negative[c] = sorted([*negative[c], (entropy, i)])[: shots[1]]
        row = logits[i].copy()
        for c in range(classes):
            row[c] += sum(a * scale / 100 * np.exp(-b * (1 - x[i] @ x[j])) for _, j in positive[c])
        for _, j in (entry for entries in negative.values() for entry in entries):
            q = np.exp(logits[j]) / np.exp(logits[j]).sum()
            row -= loss * scale / 100 * np.exp(-(1 - x[i] @ x[j])) * ((q > 0.03) & (q < 1))
        rows.append(row)
    return torch.from_numpy(np.stack(rows)), sum(map(len, negative.values()))


@pytest.mark.parametrize(("scale", "shots"), [(8.0, (3, 2)), (5.0, (1, 4))])
def test_tda_is_its_formulas_and_its_weights_go_with_the_logit_scale(scale, shots):
    images = drawn(60, 4, scale=scale)
    expected, doubtful = naive_tda(images, shots, scale=scale)
    assert doubtful > 4
    method = trainer("TDA", SHOTS=shots[0], NEGATIVE_SHOTS=shots[1])
    found = method.logits_online(images, torch.arange(60))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_onzeta_is_its_formulas_in_units_of_the_logit_scale():
    images = drawn(12, 3, scale=25.0)
    x, t = images.features.numpy(), images.proxies.numpy()
    w, rho, rows = t.copy(), np.zeros(3), []
    tau_t, tau_i = 2 / 25, 4 / 25
    for i in range(12):
        text = np.exp(x[i] @ t.T / tau_t) * np.exp(rho)
        text /= text.sum()
        for c in range(3):
            rho[c] = max(0.0, rho[c] - 3.0 / math.sqrt(i + 1) * (text[c] - 0.5 / 3))
        image = np.exp(x[i] @ w.T / tau_i)
        image /= image.sum()
        beta = 0.8 * math.sqrt((i + 1) / 12)
        rows.append(beta * image + (1 - beta) * text)
        for c in range(3):
            w[c] = normalised(w[c] - 0.5 / (math.sqrt(i + 1) * tau_i) * (image[c] - text[c]) * x[i])
    method = trainer("OnZeta", TEXT_TEMPERATURE="auto:2", ALPHA=0.5, CR=3.0)
    found = method.logits_online(images, torch.arange(12)).exp()
    torch.testing.assert_close(found, torch.from_numpy(np.stack(rows)), rtol=1e-9, atol=1e-12)


def test_onzeta_without_a_least_share_leaves_labels_from_texts_alone():
    images = drawn(40, 3)
    step = trainer("OnZeta", ALPHA=0.0).begin(images, 40)
    for feature, logits in zip(images.features, images.logits, strict=True):
        step(feature, logits)
    assert torch.equal(step.rho, torch.zeros(3, dtype=torch.float64))
    assert not torch.equal(step.proxies, images.proxies)


def test_iotas_labels_are_a_fixed_point_between_clips_and_sinkhorns():
    images = drawn(40, 5)
    for strength in (0.3, 10.0):
        labels = transported_labels(images.logits, strength, steps=2000)
        rise = (labels.log() - images.logits).log_softmax(dim=1)  # b, up to a number for all classes
        mass = labels.mean(dim=0)
        expected = (-strength * (mass * 5).log()).log_softmax(dim=0).expand(40, 5)
        torch.testing.assert_close(rise, expected, rtol=1e-9, atol=1e-9)
    plain = images.logits.softmax(dim=1)
    torch.testing.assert_close(transported_labels(images.logits, 0.0), plain)
    torch.testing.assert_close(transported_labels(images.logits, 7.0, "empirical"), plain)
    balanced = sinkhorn(images.logits / images.scale, 1 / images.scale, iterations=500)
    found = transported_labels(images.logits, 1e9, steps=500)
    torch.testing.assert_close(found, balanced, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("marginal", ["uniform", "empirical"])
def test_iotas_proxies_fit_labels_above_the_threshold_of_their_class(marginal):
    images = drawn(40, 5)
    labels = transported_labels(images.logits, 0.5 * images.scale, marginal).numpy()
    mass, top = labels.mean(0), np.mean([row.max() for row in labels])
    targets, copies = [], []
    for i, row in enumerate(labels):
        above = [c for c in range(5) if row[c] > mass[c] / mass.max() * top]
        if marginal == "empirical":
            targets += [np.eye(5)[c] for c in above]
            copies += [i] * len(above)
        else:
            targets.append(np.eye(5)[row.argmax()] if row.argmax() in above else row)
            copies.append(i)
    assert len(set(map(tuple, targets))) > (5 if marginal == "uniform" else 4)
    found_images, found = hardened(torch.from_numpy(labels), marginal)
    assert found_images.tolist() == copies
    torch.testing.assert_close(found, torch.from_numpy(np.stack(targets)))
    expected = solve_vision_proxy(
        images.features[copies], images.proxies.T, torch.from_numpy(np.stack(targets)), 4 / images.scale
    ).proxy
    for width in (images.features.shape[1], 64):  # more dimensions than images: solved as InMaP's draws are
        wide = Images(
            F.pad(images.features, (0, width - 6)), images.logits, F.pad(images.proxies, (0, width - 6)), images.scale
        )
        found = trainer("IOTA", MARGINAL=marginal).joint_logits(wide)
        close = {"rtol": 0, "atol": 1e-2} if width > 40 else {}
        torch.testing.assert_close(found, images.scale * images.features @ expected, **close)


# ------------------------------------------------------------------------------------ what holds for all of them


@pytest.mark.parametrize("name", TOGETHER)
def test_the_order_of_images_and_of_classes_does_not_matter(name):
    images = drawn(50, 6)
    draw = torch.Generator().manual_seed(1)
    of_images, of_classes = torch.randperm(50, generator=draw), torch.randperm(6, generator=draw)
    other = Images(
        images.features[of_images], images.logits[of_images][:, of_classes], images.proxies[of_classes], images.scale
    )
    shares, others = (trainer(name).joint_logits(which).softmax(dim=1) for which in (images, other))
    torch.testing.assert_close(others, shares[of_images][:, of_classes], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [1, 2, 7])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in (*TOGETHER, *ONLINE)),
        ("TransCLIP", {"START": "text"}), ("IOTA", {"MARGINAL": "empirical"}),
    ],
)  # fmt: skip
def test_small_batches_and_one_class_work(name, settings, count, classes, dtype):
    images = drawn(count, classes, dtype=dtype, seed=count)
    method = trainer(name, **settings)
    logits = method.joint_logits(images)
    assert logits.shape == (count, classes) and logits.dtype == dtype and logits.isfinite().all()


@pytest.mark.parametrize("name", [*TOGETHER, *ONLINE, "InMaP"])
def test_a_draw_of_one_image_has_the_scores_that_it_starts_from(name):
    images = drawn(60, 5)
    method = trainer(name)
    if name == "InMaP":  # the paper's form, which gives one image to all classes alike
        method.cfg.TRAINER.INMAP.MARGINAL = "uniform"
        method.read_settings(images.scale)
    draws = [torch.tensor([number]) for number in range(59)] + [torch.arange(40), torch.tensor([59])]
    found = list(method.scored_draws(images, draws))
    assert torch.equal(torch.cat([*found[:59], found[60]]), images.logits)
    torch.testing.assert_close(found[59], next(method.logits_of_draws(images, [torch.arange(40)])))
    assert not torch.equal(found[59], images.logits[:40])
    if name not in ONLINE:  # a stream's state may know of more images than one
        blocks = list(method.logits_of_stream(images, [torch.arange(40), torch.tensor([40])]))
        assert torch.equal(blocks[1], images.logits[40:41])


NEEDS = {
    **dict.fromkeys(("TransCLIP", "StatA", "ZLaP", "IOTA", "InMaP"), "all images of a batch at once"),
    "TDA": "images one at a time, and what it kept of those before and of each image itself, which it takes in before "
    "it scores it",
    "OnZeta": "images one at a time, and what it kept of those before, and how many images will come",
}


@pytest.mark.parametrize("name", NEEDS)
def test_what_each_method_needs_is_said_in_words(name):
    kind = TRAINER_REGISTRY.get(name)
    online = "all images before, whose features it keeps" if name == "InMaP" else ""
    assert (kind.needs, kind.needs_online) == (NEEDS[name], online)


@pytest.mark.parametrize("name", [*TOGETHER, *ONLINE])
def test_a_class_without_mass_gives_no_nan_and_gets_no_image(name):
    images = drawn(30, 4, dtype=torch.float32)
    away = F.normalize(-images.features.mean(dim=0), dim=0)
    proxies = torch.stack([*images.proxies[:3], away])
    logits = 1000 * images.features @ proxies.T
    assert (logits.softmax(dim=1)[:, 3] == 0).all()
    found = trainer(name).joint_logits(Images(images.features, logits, proxies, 1000.0))
    assert found.isfinite().all()
    if name not in ("IOTA", "OnZeta"):  # these two ask for every class to be used
        assert 3 not in found.argmax(dim=1)


def test_an_image_without_a_path_to_a_text_keeps_its_logits():
    images = drawn(20, 4)
    away = F.normalize(-images.proxies.sum(dim=0, keepdim=True), dim=1)
    away = away - 1e-3 * images.proxies[2]
    features = torch.cat([images.features[:1], F.normalize(away, dim=1)])
    assert features[0] @ features[1] < 0 and (features[1] @ images.proxies.T < 0).all()
    lone = Images(features, 20 * features @ images.proxies.T, images.proxies, 20.0)
    found = trainer("ZLaP").joint_logits(lone)
    assert torch.equal(found[1], lone.logits[1]) and not torch.equal(found[0], lone.logits[0])


@pytest.mark.parametrize("block", [1, 100, 10**6])
def test_neighbours_are_those_of_all_pairs_whatever_the_blocks(block, monkeypatch):
    images = drawn(37, 3)
    monkeypatch.setattr(neighbours, "BLOCK_ELEMENTS", block)
    cosines, index = neighbours.nearest_neighbours(images.features, 4)
    pairs = (images.features @ images.features.T).numpy()
    for i in range(37):
        nearest = sorted((j for j in range(37) if j != i), key=lambda j: -pairs[i, j])[:4]
        assert index[i].tolist() == nearest
        np.testing.assert_allclose(cosines[i], pairs[i, nearest])


def test_copies_of_an_image_are_neighbours_of_it_but_not_it_itself():
    features = drawn(1, 3).features.repeat(3, 1)
    _, index = neighbours.nearest_neighbours(features, 3)
    assert [sorted(row.tolist()) for row in index] == [[1, 2], [0, 2], [0, 1]]


class Largest(TorchDispatchMode):
    """Notes the most numbers in any tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("name", TOGETHER)
def test_thousands_of_images_need_no_matrix_of_all_pairs_nor_one_of_all_classes_and_numbers(name, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ELEMENTS", 2**16)
    images = drawn(3000, 40, 48, dtype=torch.float32)
    with Largest() as largest:
        logits = trainer(name).joint_logits(images)
    assert logits.isfinite().all()
    assert largest.numbers < 3100 * 48 * 2, largest.numbers


@pytest.mark.parametrize("part", ["features", "scores"])
def test_rows_that_are_not_finite_are_named(part, run, monkeypatch):
    """What the image tower, or a refined run, gives for one image is NaN."""
    from dassl_clip.trainers.linear_probe import LinearProbe

    base, _, _ = run("LinearProbe", name="base")
    own = LinearProbe.refine_inputs

    def spoilt(self, items):
        features, scores, proxies = own(self, items)
        rows = (features[:] if part == "features" else scores[:]).clone()
        rows[4, 1] = float("nan")
        return (rows, rows @ proxies.T, proxies) if part == "features" else (features, rows, proxies)

    monkeypatch.setattr(LinearProbe, "refine_inputs", spoilt)
    _, record, output = run("StatA", "TRAINER.STATA.FROM", base, name="spoilt", code=2)
    assert record is None and "image 4" in output.err and output.err.count("\n") == 1


# -------------------------------------------------------------------------------------------------- real runs


def labels_of(name, images, **settings):
    method = trainer(name, **settings)
    method.cfg.SEED = 1
    return method.joint_logits(images).argmax(dim=1)


CALM = {"OnZeta": {"CR": 0.1}}  # with few classes its own rate lets rounding decide labels


@pytest.mark.parametrize("name", [*TOGETHER, *ONLINE])
def test_runs_score_the_tested_images_and_a_refined_run_starts_from_its_base(name, run, plain, sketch):
    _, labels, names, features = sketch
    settings = CALM.get(name, {})
    pairs = [word for key, value in settings.items() for word in (f"TRAINER.{name.upper()}.{key}", value)]
    folder, record, output = run(name, *pairs)
    texts = F.normalize(plain.texts([f"a photo of a {word}." for word in names]), dim=-1)
    features = F.normalize(features, dim=-1)
    images = Images(features, plain.scale * features @ texts.T, texts, plain.scale)
    correct = int((labels_of(name, images, **settings) == labels).sum())
    test = record["metrics"]["test"]
    assert test["total"] == 30 and abs(test["correct"] - correct) <= 1  # one image between two classes by rounding
    assert record["transductive"] and record["num_train"] == 0 and record["prompt"] == "a photo of a {}."
    assert record["needs"] == TRAINER_REGISTRY.get(name).needs
    base, _, _ = run("ZeroshotCLIP", name="base")
    _, refined, _ = run(name, f"TRAINER.{name.upper()}.FROM", base, *pairs, name="refined")
    assert refined["metrics"]["test"] == pytest.approx(test, rel=1e-5)
    assert refined["refines"]["method"] == "ZeroshotCLIP"
    probe, trained, _ = run("LinearProbe", name="probe")
    _, refined, _ = run(name, f"TRAINER.{name.upper()}.FROM", probe, name="refined-probe")
    assert refined["num_train"] == trained["num_train"] > 0 and refined["transductive"]
    assert refined["refines"]["learned"] == trained["learned"]
    _, _, output = run(name, f"TRAINER.{name.upper()}.FROM", folder, name="again", code=2)
    assert f"{name} scores images together and learns no classifier, so there is nothing to refine" in output.err
    assert output.err.count("\n") == 1


def test_refined_runs_read_features_scores_and_proxies_of_the_base(run, plain, sketch):
    """The labels of `LinearProbe` refined by StatA are those of StatA on the probe's weights."""
    from dassl_clip.engine import checkpoint_files

    _, labels, _, features = sketch
    folder, _, _ = run("LinearProbe", name="base")
    (file,) = folder.glob("*/model.pth.tar-*")
    weights = checkpoint_files.load_checkpoint(file)["state_dict"]["weight"]
    features, proxies = F.normalize(features, dim=-1), F.normalize(weights, dim=-1)
    images = Images(features, plain.scale * features @ weights.T, proxies, plain.scale)
    _, record, _ = run("StatA", "TRAINER.STATA.FROM", folder, name="refined")
    assert abs(record["metrics"]["test"]["correct"] - int((labels_of("StatA", images) == labels).sum())) <= 1


def test_a_horizon_that_is_too_short_is_refused():
    images, _ = golden("all")
    step = trainer("OnZeta").begin(images, 3)
    for row in range(3):
        step(images.features[row], images.logits[row])
    with pytest.raises(UserError, match=r"^a stream of 3 images was announced, and image 4 has come") as found:
        step(images.features[3], images.logits[3])
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match="the horizon is the number of images that will come, 1 or more, got 0"):
        trainer("OnZeta").begin(images, 0)


@pytest.mark.parametrize(
    ("name", "key", "value", "sentence"),
    [
        ("TransCLIP", "START", "labels", "START is 'labels'; expected one of images, text"),
        ("TransCLIP", "LAMBDA", -1.0, "LAMBDA is -1.0; expected a weight, 0 or more"),
        ("StatA", "ALPHA", 0.0, "ALPHA is 0.0; expected a number of images above 0"),
        ("StatA", "BETA", "none", "BETA is 'none'; expected one of hard, soft"),
        ("StatA", "NEIGHBOURS", -1, "NEIGHBOURS is -1; expected a number of images, 0 or more"),
        ("StatA", "INNER_STEPS", 0, "INNER_STEPS is 0; expected a number of steps, 1 or more"),
        ("ZLaP", "ALPHA", 1.0, "ALPHA is 1.0; expected a number between 0 and 1, both excluded"),
        ("ZLaP", "K", 0, "K is 0; expected a number of neighbours, 1 or more"),
        ("ZLaP", "GAMMA", "nan", "GAMMA"),
        ("TDA", "SHOTS", 0, "SHOTS is 0; expected a number of features per class, 1 or more"),
        ("TDA", "ENTROPY", "(0.5,0.2)", "two numbers such as (0.2, 0.5), the lower one first"),
        ("TDA", "MASK", "('a','b')", "two numbers such as (0.2, 0.5), the lower one first"),
        ("OnZeta", "ALPHA", 2.0, "ALPHA is 2.0; expected a number from 0 to 1"),
        ("OnZeta", "CW", -0.5, "CW is -0.5; expected a rate, 0 or more"),
        ("OnZeta", "IMAGE_TEMPERATURE", "cold", "IMAGE_TEMPERATURE is 'cold'; expected a positive number"),
        ("IOTA", "MARGINAL", "known", "MARGINAL is 'known'; expected one of uniform, empirical"),
        ("IOTA", "IMAGE_TEMPERATURE", "auto:0", "IMAGE_TEMPERATURE is 'auto:0'; expected a positive number"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(run, name, key, value, sentence):
    _, record, output = run(name, f"TRAINER.{name.upper()}.{key}", value, code=2)
    assert record is None and sentence in output.err and output.err.count("\n") == 1
