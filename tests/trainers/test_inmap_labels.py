"""InMaP: Sinkhorn labels, hardening, row blocks, and the two solvers of the proxy problem.

Covers: Sinkhorn against a plain float64 loop, its marginals, classes without mass, ties, one image, one class; labels
from potentials, whole and in blocks; hardening at its boundary; objective and gradient against autograd in float64 and
close to 0 in float32; the authors' solver against a plain loop; the fast solver against the authors' on problems of
many shapes, against scipy on the convex problem without lengths and with lengths of at most 1, and its lower bound;
blocks and formed labels against the whole; precision, arguments left unchanged, the refusals; the same on a GPU.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize

from dassl_clip.clip.rows import Cosines
from dassl_clip.trainers.inmap.labels import (
    PseudoLabels,
    harden,
    learn_vision_proxy,
    proxy_objective,
    sinkhorn,
    sinkhorn_potentials,
    solve_vision_proxy,
)
from dassl_clip.trainers.inmap.objective import ProxyObjective
from dassl_clip.trainers.inmap.solver import lower_bound


def clip_like(n, e, c, seed=0, noise=1.0, imbalance=0.0, dtype=torch.float32):
    """Features and text proxies with a modality gap, groups of classes and a decaying spectrum."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    spectrum = F.normalize((1.0 + torch.arange(e, dtype=torch.float64)) ** -0.4, dim=0)
    groups = max(1, c // 10)
    centres = 0.7 * (normal(groups, e)[torch.arange(c) % groups] + normal(c, e)) * spectrum
    cones = F.normalize(normal(2, e), dim=1)
    prior = (1.0 + torch.arange(c)) ** -imbalance
    truth = torch.multinomial(prior, n, replacement=True, generator=generator)
    features = 0.8 * cones[0] + 0.7 * centres[truth] + 0.7 * noise * normal(n, e) * spectrum
    texts = 0.8 * cones[1] + 0.5 * (centres + 0.6 * normal(c, e) * spectrum)
    return F.normalize(features, dim=1).to(dtype), F.normalize(texts, dim=1).T.contiguous().to(dtype)


def naive_sinkhorn(scores, temperature, gamma=0.0, iterations=20):
    rows = [[float(s) / temperature for s in row] for row in scores]
    n, c = len(rows), len(rows[0])
    p = []
    for row in rows:
        e = [math.exp(s - max(row)) for s in row]
        p.append([value / sum(e) / n for value in e])
    mass = [sum(row[j] for row in p) ** gamma for j in range(c)]
    marginal = [m / sum(mass) for m in mass] if gamma else [1 / c] * c
    for _ in range(iterations):
        sums = [sum(row[j] for row in p) for j in range(c)]
        p = [[row[j] / sums[j] * marginal[j] for j in range(c)] for row in p]
        p = [[value / sum(row) / n for value in row] for row in p]
    return torch.tensor(p, dtype=torch.float64) * n


def plain_authors(features, text_proxy, labels, temperature, steps, lr=10.0):
    w, previous, n = text_proxy.clone(), math.inf, len(features)
    base = features.T @ labels
    for _ in range(steps):
        gradient = features.T @ F.softmax(features @ w / temperature, dim=1) - base
        if gradient.norm().item() > previous:
            lr /= 2
        previous = gradient.norm().item()
        w = w - lr / (n * temperature) * gradient
        w = w / w.norm(dim=0)
    return w


def cross_entropy(features, proxy, labels, temperature):
    return F.cross_entropy(features.double() @ proxy.double() / temperature, labels.double())


def problem(n, e, c, scale=100.0, refine=True, **options):
    """Features, text proxies, hardened labels and the proxies' temperature."""
    features, text_proxy = clip_like(n, e, c, **options)
    labels = harden(sinkhorn(features @ text_proxy, 1 / scale, iterations=20 if refine else 0))
    return features, text_proxy, labels, 4 / scale


# Sinkhorn


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("temperature", [0.01, 1 / 16])
@pytest.mark.parametrize("iterations", [0, 1, 20])
def test_sinkhorn_equals_the_plain_loop(gamma, temperature, iterations):
    features, text_proxy = clip_like(40, 16, 5, imbalance=1.0)
    scores = features @ text_proxy
    expected = naive_sinkhorn(scores, temperature, gamma, iterations)
    found = sinkhorn(scores, temperature, gamma, iterations)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=3e-6, rtol=0)
    torch.testing.assert_close(sinkhorn(scores.double(), temperature, gamma, iterations), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_sinkhorn_reaches_its_marginals(gamma):
    features, text_proxy = clip_like(300, 16, 6, imbalance=1.0, dtype=torch.float64)
    scores = features @ text_proxy
    labels = sinkhorn(scores, 1 / 16, gamma, iterations=2000)
    mass = (scores * 16).softmax(dim=1).sum(dim=0) ** gamma
    torch.testing.assert_close(labels.mean(dim=0), mass / mass.sum(), atol=1e-6, rtol=0)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(300, dtype=torch.float64))


def test_sinkhorn_of_a_class_whose_softmax_underflows():
    scores = torch.tensor([[0.9, 0.1, -1.0], [0.2, 0.8, -1.0], [0.7, 0.3, -0.99]])
    assert ((scores / 0.01).softmax(dim=1)[:, 2] == 0).all()  # without mass in float32
    torch.testing.assert_close(sinkhorn(scores, 0.01).double(), naive_sinkhorn(scores, 0.01), atol=1e-5, rtol=0)
    for gamma in (0.0, 0.5, 1.0):
        labels = sinkhorn(scores, 0.001, gamma)  # and in float64
        assert labels.isfinite().all()
        torch.testing.assert_close(labels.sum(dim=1), torch.ones(3))


def test_sinkhorn_small_cases_and_ties():
    torch.testing.assert_close(sinkhorn(torch.tensor([[0.3, 0.1, -0.2]]), 0.01), torch.full((1, 3), 1 / 3))
    assert sinkhorn(torch.tensor([[0.3], [0.1]]), 0.01).tolist() == [[1.0], [1.0]]
    features, text_proxy = clip_like(50, 8, 3)
    scores = (features @ text_proxy)[:, [0, 1, 1, 2]]
    labels = sinkhorn(scores, 0.01, gamma=0.5)
    assert torch.equal(labels[:, 1], labels[:, 2])
    torch.testing.assert_close(sinkhorn(torch.full((4, 5), 0.2), 0.01), torch.full((4, 5), 0.2))


def test_sinkhorn_follows_permutations_of_images_and_classes():
    scores = torch.randn(30, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 5
    rows, columns = torch.randperm(30), torch.randperm(7)
    torch.testing.assert_close(sinkhorn(scores[rows][:, columns], 0.1), sinkhorn(scores, 0.1)[rows][:, columns])


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("block_rows", [1, 7, 64, None, "auto"])
def test_potentials_describe_the_labels(gamma, block_rows):
    features, text_proxy = clip_like(64, 16, 5)
    scores = features @ text_proxy
    whole = sinkhorn(scores, 0.01, gamma)
    for source in (scores, Cosines(features, text_proxy)):
        potentials = sinkhorn_potentials(source, 0.01, gamma, block_rows=block_rows)
        torch.testing.assert_close((scores / 0.01 + potentials.float()).softmax(dim=1), whole, atol=2e-5, rtol=0)
        labels = PseudoLabels(source, 0.01, potentials, threshold=None)
        blocks = torch.cat([labels[start : start + 9] for start in range(0, 64, 9)])
        torch.testing.assert_close(blocks, whole, atol=2e-6, rtol=0)
        hard = PseudoLabels(source, 0.01, potentials, threshold=0.7)
        torch.testing.assert_close(hard[:], harden(whole, 0.7), atol=2e-6, rtol=0)
        assert len(hard) == 64 and hard.shape == (64, 5)
    plain = PseudoLabels(scores, 0.01, threshold=None)[:]
    torch.testing.assert_close(plain, (scores / 0.01).softmax(dim=1), atol=2e-6, rtol=0)


# Hardening


def test_harden_at_the_boundary():
    labels = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]])
    assert harden(labels, 0.75).tolist() == labels.tolist()  # equal does not exceed
    assert harden(labels, 0.7499).tolist() == [[1, 0], [0.5, 0.5], [0, 1]]
    assert harden(labels, 0.4).tolist() == [[1, 0], [1, 0], [0, 1]]  # of equal values the first
    assert harden(labels, 1.0).tolist() == labels.tolist()
    assert harden(labels, 0.7) is not labels and labels.tolist() == [[0.75, 0.25], [0.5, 0.5], [0.25, 0.75]]
    assert harden(torch.tensor([[0.61, 0.39]])).tolist() == [[1, 0]]
    assert harden(labels.double()).dtype == torch.float64


# The objective


@pytest.mark.parametrize("block_rows", [None, "auto", 1, 13])
def test_objective_and_gradient_equal_autograd(block_rows):
    features, proxy, labels, temperature = problem(40, 12, 6, dtype=torch.float64)
    leaf = proxy.clone().requires_grad_()
    expected = cross_entropy(features, leaf, labels, temperature)
    (gradient,) = torch.autograd.grad(expected, leaf)
    point = ProxyObjective(features, labels, temperature, block_rows)(proxy)
    torch.testing.assert_close(point.value, expected.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(point.gradient, gradient, rtol=1e-10, atol=1e-13)
    value = proxy_objective(features.float(), proxy.float(), labels.float(), temperature, block_rows)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_objective_near_zero_keeps_its_relative_accuracy():
    proxy = F.normalize(torch.eye(4) - 0.25, dim=0)
    features, labels = proxy.T.contiguous(), torch.eye(4)
    leaf = proxy.double().requires_grad_()
    expected = torch.log1p(3 * (-(features.double() @ leaf)[0, 0] / 0.04 * 4 / 3).exp())
    assert 0 < expected < 1e-12
    point = ProxyObjective(features, labels, 0.04)(proxy)
    assert point.value.item() == pytest.approx(expected.item(), rel=1e-4)
    others = torch.autograd.grad(cross_entropy(features, leaf, labels, 0.04), leaf)[0]
    torch.testing.assert_close(point.gradient.double(), others, rtol=1e-2, atol=1e-16)


# The authors' solver


@pytest.mark.parametrize("steps", [1, 7, 150])
@pytest.mark.parametrize("lr", [10.0, 3.0])
def test_authors_solver_equals_the_plain_loop(steps, lr):
    features, text_proxy, labels, temperature = problem(60, 16, 5, dtype=torch.float64)
    expected = plain_authors(features, text_proxy, labels, temperature, steps, lr)
    found = solve_vision_proxy(features, text_proxy, labels, temperature, "authors", steps, lr=lr)
    torch.testing.assert_close(found.proxy, expected, rtol=0, atol=1e-9)
    assert found.steps == steps
    assert found.objective == pytest.approx(cross_entropy(features, expected, labels, temperature).item(), rel=1e-9)


def test_authors_solver_halves_its_step():
    features, text_proxy, labels, temperature = problem(60, 16, 5, dtype=torch.float64)
    never = text_proxy.clone()
    for _ in range(60):
        residual = F.softmax(features @ never / temperature, dim=1) - labels
        never = F.normalize(never - 10 / (60 * temperature) * features.T @ residual, dim=0)
    found = learn_vision_proxy(features, text_proxy, labels, temperature, "authors", 60)
    assert (found - never).abs().max() > 1e-3


# The fast solver

PROBLEMS = [
    {"n": 1, "e": 16, "c": 4},
    {"n": 1, "e": 16, "c": 300},
    {"n": 2, "e": 3, "c": 2, "noise": 3.0},
    {"n": 30, "e": 64, "c": 20, "noise": 2.0},
    {"n": 100, "e": 8, "c": 1},
    {"n": 200, "e": 32, "c": 100, "imbalance": 1.0},
    {"n": 400, "e": 64, "c": 7, "noise": 0.3},
    {"n": 400, "e": 32, "c": 10, "noise": 2.0, "imbalance": 1.0, "refine": False},
    {"n": 600, "e": 64, "c": 40, "noise": 0.0},
]


@pytest.mark.parametrize("scale", [100.0, 16.0])
@pytest.mark.parametrize("options", PROBLEMS, ids=str)
def test_fast_solver_is_at_most_the_authors(options, scale):
    features, text_proxy, labels, temperature = problem(scale=scale, **options)
    authors = plain_authors(features, text_proxy, labels, temperature, 2000)
    found = solve_vision_proxy(features, text_proxy, labels, temperature)
    theirs, ours = (cross_entropy(features, w, labels, temperature).item() for w in (authors, found.proxy))
    assert ours <= theirs * (1 + 1e-6) + 1e-12
    assert found.objective == pytest.approx(ours, rel=2e-6, abs=1e-12)
    assert found.lower_bound <= found.objective + 1e-6 * max(1, found.objective)
    torch.testing.assert_close(found.proxy.norm(dim=0), torch.ones(text_proxy.shape[1]))


@pytest.mark.parametrize(
    "n, e, c, scale, seed, options",
    [
        (10, 2, 3, 100.0, 2025, {"noise": 0.3}),
        (3, 3, 20, 16.0, 2120, {"noise": 2.0, "imbalance": 1.0, "refine": False}),
        (3, 3, 3, 100.0, 2295, {}),
        (3, 2, 5, 16.0, 2391, {"noise": 2.0, "imbalance": 1.0, "refine": False}),
    ],
)
def test_fast_solver_leaves_bad_minima(n, e, c, scale, seed, options):
    """In few dimensions a single descent from these starts ends above the authors' result."""
    features, text_proxy, labels, temperature = problem(n, e, c, scale, seed=seed, **options)
    authors = plain_authors(features, text_proxy, labels, temperature, 2000)
    found = solve_vision_proxy(features, text_proxy, labels, temperature)
    assert found.objective <= cross_entropy(features, authors, labels, temperature).item() * (1 + 1e-6)


def scipy_minimum(features, labels, temperature, constraints=(), method="L-BFGS-B", start=None):
    x, p = features.double(), labels.double()

    def value(flat):
        w = torch.from_numpy(flat).view(x.shape[1], p.shape[1]).requires_grad_()
        loss = F.cross_entropy(x @ w / temperature, p)
        return loss.item(), torch.autograd.grad(loss, w)[0].numpy().ravel()

    start = np.zeros(x.shape[1] * p.shape[1]) if start is None else start.double().numpy().ravel()
    return minimize(value, start, jac=True, method=method, constraints=constraints, options={"maxiter": 2000}).fun


def test_fast_solver_against_convex_solvers():
    """Spheres lie in balls, and balls in the whole space, where the problem is convex: each minimum bounds the next.

    Where the best columns of length at most 1 all have length 1, the minimum over balls is that over spheres.
    """
    features, text_proxy, labels, temperature = problem(60, 4, 3, noise=1.5, dtype=torch.float64)
    e, c = text_proxy.shape

    def room(flat):
        return 1 - np.square(flat.reshape(e, c)).sum(axis=0)

    def room_slopes(flat):
        slopes = np.zeros((c, e, c))
        for j in range(c):
            slopes[j, :, j] = -2 * flat.reshape(e, c)[:, j]
        return slopes.reshape(c, -1)

    found = solve_vision_proxy(features, text_proxy, labels, temperature, tolerance=1e-9)
    anywhere = scipy_minimum(features, labels, temperature)
    inside = [{"type": "ineq", "fun": room, "jac": room_slopes}]
    balls = scipy_minimum(features, labels, temperature, inside, "SLSQP", start=text_proxy)
    assert anywhere <= balls + 1e-9
    assert found.lower_bound <= balls + 1e-6
    assert balls - 1e-6 <= found.objective
    assert found.objective == pytest.approx(balls, rel=1e-5)  # this problem's best columns all have length 1
    assert found.converged and found.objective - found.lower_bound <= 1e-6


def test_lower_bound_holds_for_any_proxies():
    features, text_proxy, labels, temperature = problem(80, 32, 5, dtype=torch.float64)
    objective = ProxyObjective(features, labels, temperature)
    best = solve_vision_proxy(features, text_proxy, labels, temperature).proxy
    points = [best, text_proxy, *F.normalize(torch.randn(20, 32, 5, dtype=torch.float64), dim=1)]
    bounds = torch.stack([lower_bound(w, objective(w)) for w in points])
    values = torch.stack([objective(w).value for w in points])
    assert bounds.max() <= values.min() + 1e-12
    assert bounds[0] > values.min() * (1 - 1e-5)  # and tight at the solution


def test_fast_solver_stops_early_and_obeys_its_limits():
    features, text_proxy, labels, temperature = problem(300, 32, 10, scale=16.0)
    whole = solve_vision_proxy(features, text_proxy, labels, temperature)
    assert whole.converged and whole.steps <= 40
    again = solve_vision_proxy(features, whole.proxy, labels, temperature)
    assert again.converged and again.steps <= 6
    none = solve_vision_proxy(features, text_proxy, labels, temperature, steps=0)
    torch.testing.assert_close(none.proxy, text_proxy)
    assert none.steps == 1 and not none.converged
    few = [solve_vision_proxy(features, text_proxy, labels, temperature, steps=k).objective for k in (0, 2, 4, 8)]
    assert few == sorted(few, reverse=True) and few[3] < few[0]


# Row blocks, precision, odd problems


@pytest.mark.parametrize("solver, steps", [("fast", None), ("authors", 40)])
def test_blocks_and_formed_labels_equal_the_whole(solver, steps):
    features, text_proxy = clip_like(150, 16, 6, dtype=torch.float64)
    scores = Cosines(features, text_proxy)
    labels = PseudoLabels(scores, 0.01, sinkhorn_potentials(scores, 0.01, block_rows=32))
    whole = solve_vision_proxy(features, text_proxy, labels[:], 0.04, solver, steps, block_rows=None)
    for source, block_rows in ((labels, 32), (labels, "auto"), (labels[:], 1), (labels[:], 149)):
        parts = solve_vision_proxy(features, text_proxy, source, 0.04, solver, steps, block_rows=block_rows)
        torch.testing.assert_close(parts.proxy, whole.proxy, rtol=0, atol=1e-6)
        assert parts.objective == pytest.approx(whole.objective, rel=1e-6)


def test_blocks_in_float32():
    features, text_proxy, labels, temperature = problem(500, 32, 10)
    one, other = (solve_vision_proxy(features, text_proxy, labels, temperature, block_rows=r) for r in (None, 64))
    assert other.objective == pytest.approx(one.objective, rel=2e-6)


def test_no_block_is_larger_than_asked():
    seen = []

    class Counted(PseudoLabels):
        def __getitem__(self, rows):
            seen.append(rows.stop - rows.start)
            return super().__getitem__(rows)

    features, text_proxy = clip_like(100, 8, 4)
    labels = Counted(Cosines(features, text_proxy), 0.01)
    solve_vision_proxy(features, text_proxy, labels, 0.04, steps=3, block_rows=30)
    assert set(seen) == {30, 10}


def test_blocks_leave_no_memory_behind(helper, tmp_path):
    """In a process of its own: 40 blocks of 6 MB each; what is kept between blocks must not hold on to theirs."""
    program = tmp_path / "memory.py"
    program.write_text("""if True:
        import resource, torch
        from dassl_clip.clip.rows import Cosines
        from dassl_clip.trainers.inmap.labels import PseudoLabels, sinkhorn_potentials, solve_vision_proxy
        torch.set_num_threads(1)
        features = torch.nn.functional.normalize(torch.randn(60_000, 4), dim=1)
        text = torch.nn.functional.normalize(torch.randn(4, 1000), dim=0)
        scores = Cosines(features, text)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        potentials = sinkhorn_potentials(scores, 0.01, iterations=1, block_rows=1500)
        labels = PseudoLabels(scores, 0.01, potentials)
        solve_vision_proxy(features, text, labels, 0.04, steps=1, block_rows=1500)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """)
    out, err = helper.start([program], tmp_path).communicate()
    assert not err, err
    assert int(out) < 200  # the blocks themselves take a part of it; 40 of them would be 240 MB


@pytest.mark.parametrize("room, times", [(10**9, 1), (100, None)])
def test_what_is_read_in_every_step_is_formed_once_where_there_is_room(room, times, monkeypatch):
    """With the same digits either way."""
    features, text_proxy = clip_like(1300, 16, 6)
    monkeypatch.setattr("dassl_clip.trainers.inmap.objective.BLOCK_ELEMENTS", dict.fromkeys(("cpu", "cuda"), 6 * 100))
    own = {}
    for name, budget in (("known", 0), ("asked", room)):
        monkeypatch.setattr("dassl_clip.trainers.inmap.objective.activation_budget", lambda device, b=budget: b)
        seen = []

        class Counted(Cosines):
            def __getitem__(self, rows, seen=seen):
                seen.append(rows.start)
                return super().__getitem__(rows)

        scores = Counted(features, text_proxy)
        potentials = sinkhorn_potentials(scores, 0.01, iterations=5)
        formed = [len(seen)]
        labels = PseudoLabels(scores, 0.01, potentials)
        own[name] = potentials, solve_vision_proxy(features, text_proxy, labels, 0.04, steps=8).proxy
        formed.append(len(seen) - formed[0])
        blocks = len(set(seen))
        if name == "asked" and times:
            assert formed == [blocks, blocks]
        else:
            assert formed[0] == 1 + 6 * blocks and formed[1] >= 9 * blocks  # the check, five iterations; eight steps
    assert torch.equal(own["known"][0], own["asked"][0]) and torch.equal(own["known"][1], own["asked"][1])


@pytest.mark.parametrize("solver", ["fast", "authors"])
def test_precision_and_device_of_the_results(solver):
    features, text_proxy, labels, temperature = problem(30, 8, 4)
    assert solve_vision_proxy(features, text_proxy, labels, temperature, solver, 5).proxy.dtype == torch.float32
    half = solve_vision_proxy(features.half(), text_proxy, labels, temperature, solver, 5).proxy
    assert half.dtype == torch.float32
    double = solve_vision_proxy(features.double(), text_proxy, labels, temperature, solver, 5).proxy
    assert double.dtype == torch.float64
    assert sinkhorn(features.half() @ text_proxy.half(), 0.01).dtype == torch.float32
    assert not solve_vision_proxy(
        features, text_proxy.clone().requires_grad_(), labels, temperature
    ).proxy.requires_grad


@pytest.mark.parametrize("solver", ["fast", "authors"])
def test_class_without_labels_and_equal_classes(solver):
    features, text_proxy = clip_like(60, 8, 3, dtype=torch.float64)
    text_proxy = text_proxy[:, [0, 1, 1, 2]]
    labels = sinkhorn(features @ text_proxy, 0.01)
    found = solve_vision_proxy(features, text_proxy, labels, 0.04, solver, 100)
    torch.testing.assert_close(found.proxy[:, 1], found.proxy[:, 2], atol=1e-6, rtol=0)
    hard = harden(labels, 0.3)
    assert hard[:, 2].sum() == 0  # of equal classes the first takes all
    found = solve_vision_proxy(features, text_proxy, hard, 0.04, solver, 100)
    assert found.proxy.isfinite().all()
    assert found.objective < proxy_objective(features, text_proxy, hard, 0.04)
    torch.testing.assert_close(found.proxy.norm(dim=0), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("solver", ["fast", "authors"])
def test_images_without_features_change_nothing(solver):
    features, text_proxy = torch.zeros(5, 8), clip_like(1, 8, 3)[1]
    found = solve_vision_proxy(features, text_proxy, torch.full((5, 3), 1 / 3), 0.04, solver, 10)
    torch.testing.assert_close(found.proxy, text_proxy)
    assert found.objective == pytest.approx(math.log(3))


def test_arguments_are_left_unchanged():
    features, text_proxy, labels, temperature = problem(40, 8, 4)
    scores = features @ text_proxy
    copies = [x.clone() for x in (features, text_proxy, labels, scores)]
    sinkhorn(scores, 0.01)
    harden(labels)
    for solver in ("fast", "authors"):
        solve_vision_proxy(features, text_proxy, labels, temperature, solver, 12)
        solve_vision_proxy(features, text_proxy, PseudoLabels(scores, 0.01), temperature, solver, 3)
    assert all(torch.equal(a, b) for a, b in zip((features, text_proxy, labels, scores), copies))


# Refusals


@pytest.mark.parametrize(
    "scores, options, words",
    [
        (torch.zeros(3), {}, r"\[N, C\], got \(3,\)"),
        (torch.zeros(0, 3), {}, r"got \(0, 3\)"),
        (torch.tensor([[0.0, math.nan]]), {}, "NaN"),
        (torch.tensor([[0.0, math.inf]]), {}, "infinite"),
        (torch.tensor([[0.0, -math.inf]]), {}, "infinite"),
        (torch.zeros(2, 2), {"temperature": 0.0}, "positive"),
        (torch.zeros(2, 2), {"temperature": -0.01}, "positive"),
        (torch.zeros(2, 2), {"temperature": math.nan}, "positive"),
        (torch.tensor([[0.0, 1.0]]), {"temperature": 1e-39}, "too small"),
        (torch.zeros(2, 2), {"iterations": -1}, "0 or more, got -1"),
        (torch.zeros(2, 2), {"iterations": 1.5}, "0 or more"),
        (torch.zeros(2, 2), {"gamma": math.inf}, "gamma"),
    ],
)
def test_sinkhorn_refuses(scores, options, words):
    with pytest.raises(ValueError, match=words):
        sinkhorn(scores, **{"temperature": 0.01, **options})


def test_parts_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\[N, C\]"):
        harden(torch.ones(3))
    with pytest.raises(ValueError, match=r"\(4, 8\) and \(9, 3\)"):
        Cosines(torch.zeros(4, 8), torch.zeros(9, 3))
    with pytest.raises(ValueError, match="3 classes"):
        PseudoLabels(torch.zeros(4, 3), 0.01, torch.zeros(4))
    with pytest.raises(ValueError, match="block_rows"):
        sinkhorn_potentials(torch.zeros(4, 3), 0.01, block_rows=0)
    with pytest.raises(ValueError, match="block_rows"):
        sinkhorn_potentials(torch.zeros(4, 3), 0.01, block_rows="all")


def spoiled(which, change):
    inputs = dict(zip(("features", "text_proxy", "labels", "temperature"), problem(20, 8, 4)))
    inputs[which] = change(inputs[which])
    return inputs


def with_value(x, value):
    x = x.clone()
    x[3, 1] = value
    return x


@pytest.mark.parametrize(
    "which, change, words",
    [
        ("features", lambda x: with_value(x, math.nan), "features.*row 3 holds NaN"),
        ("features", lambda x: with_value(x, math.inf), "features.*row 3"),
        ("features", lambda x: x[:, :7], r"\[7, C\].*\(8, 4\)"),
        ("features", lambda x: x[:19], r"\(19, 4\).*got \(20, 4\)"),
        ("features", lambda x: x[0], r"\[N, E\], got \(8,\)"),
        ("features", lambda x: x[:0], r"\[N, E\], got \(0, 8\)"),
        ("text_proxy", lambda x: with_value(x, math.nan), "NaN"),
        ("text_proxy", lambda x: x * torch.tensor([1.0, 1, 2, 1]), "column 2 has length 2"),
        ("text_proxy", lambda x: x * 0, "length 0"),
        ("text_proxy", lambda x: x.T, "got"),
        ("labels", lambda x: x[:, :3], r"got \(20, 3\)"),
        ("labels", lambda x: x * 1.1, "sums to 1.1"),
        ("labels", lambda x: x * 0, "sums to 0"),
        ("labels", lambda x: with_value(x, -0.5), "smallest is -0.5"),
        ("labels", lambda x: with_value(x, math.nan), "labels"),
        ("labels", lambda x: with_value(x, math.inf), "labels"),
        ("temperature", lambda x: 0, "positive"),
        ("temperature", lambda x: -1, "positive"),
    ],
)
def test_solver_refuses(which, change, words):
    with pytest.raises(ValueError, match=words):
        solve_vision_proxy(**spoiled(which, change))


@pytest.mark.parametrize(
    "options, words",
    [
        ({"solver": "newton"}, "fast, authors"),
        ({"steps": -1}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"lr": 0.0, "solver": "authors"}, "lr"),
        ({"block_rows": -3}, "block_rows"),
    ],
)
def test_solver_refuses_options(options, words):
    with pytest.raises(ValueError, match=words):
        solve_vision_proxy(*problem(20, 8, 4), **options)


# GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("solver, steps", [("fast", None), ("authors", 60)])
def test_the_same_on_a_gpu(solver, steps):
    features, text_proxy = clip_like(300, 32, 10, dtype=torch.float64)
    cpu = sinkhorn(features @ text_proxy, 0.01, 0.5)
    x, t = features.cuda(), text_proxy.cuda()
    scores = Cosines(x, t)
    potentials = sinkhorn_potentials(scores, 0.01, 0.5, block_rows=64)
    labels = PseudoLabels(scores, 0.01, potentials)
    torch.testing.assert_close(labels[:].cpu(), harden(cpu), atol=1e-9, rtol=0)
    there = solve_vision_proxy(x, t, labels, 0.04, solver, steps, block_rows=100)
    here = solve_vision_proxy(features, text_proxy, harden(cpu), 0.04, solver, steps)
    assert there.proxy.is_cuda
    torch.testing.assert_close(there.proxy.cpu(), here.proxy, atol=1e-5, rtol=0)
    assert there.objective == pytest.approx(here.objective, rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_host_synchronisation_in_a_step():
    features, text_proxy, labels, temperature = (x.cuda() if torch.is_tensor(x) else x for x in problem(300, 32, 10))
    objective = ProxyObjective(features, labels, temperature)
    objective(text_proxy)
    torch.cuda.set_sync_debug_mode("error")
    try:
        point = objective(text_proxy)
        lower_bound(text_proxy, point)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert point.value.item() > 0
