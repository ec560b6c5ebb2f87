"""Class sizes of unlabelled images, and InMaP on many draws at once.

Covers: the fixed point of theta against a plain float64 loop to 1e-12, for one set and for draws of different lengths;
r = 0, 1, -inf and the uniform marginal against zero-shot labels, the EM iteration and Sinkhorn's; the spread against
the variance over random draws; text bias against loops over images and classes, and against the shift of images that
were made so; the whole rule against its text; known sizes; permuted images and classes; a single image; many problems
solved at once against each alone, in fewer dimensions and in all; the sentences for wrong settings and files.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl_clip.results.errors import UserError
from dassl_clip.trainers.inmap import marginal, sizes
from dassl_clip.trainers.inmap.draws import filled_up, vision_proxies
from dassl_clip.trainers.inmap.labels import PseudoLabels, harden, sinkhorn, solve_vision_proxy
from dassl_clip.trainers.inmap.objective import ProxyObjective
from dassl_clip.trainers.inmap.solver import descend
from tests.trainers.plain_sizes import plain_bias, plain_choice, plain_theta

N, C, E = 40, 6, 12


def random_logits(seed, n=N, spread=2.0):
    """Logits `[N, C]` whose predicted sizes are uneven."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(n, C, generator=generator, dtype=torch.float64) + torch.linspace(-1, 1, C).double()


def one_set(logits, rows=7):
    return marginal.SetLogits(logits, [slice(k, min(k + rows, len(logits))) for k in range(0, len(logits), rows)])


def drawn(sets):
    """Several sets as draws."""
    lengths = [len(logits) for logits in sets]
    every = torch.cat(sets)
    places = torch.arange(len(every)).split(lengths)
    return marginal.DrawLogits(*filled_up(every, places))


@pytest.mark.parametrize("r", [-30.0, -3.0, -1.0, -0.4, 0.0, 0.3, 0.7])
def test_theta_is_the_fixed_point(r):
    sets = [random_logits(1), random_logits(2, 23), random_logits(3, 31)]
    together = marginal.potentials(drawn(sets), r)
    for logits, own in zip(sets, together):
        expected = plain_theta(logits, r)
        np.testing.assert_allclose(marginal.potentials(one_set(logits), r).numpy(), expected, atol=2e-11)
        np.testing.assert_allclose(own.numpy(), expected, atol=2e-11)


def test_each_draw_may_have_its_own_r():
    sets, r = [random_logits(1), random_logits(2, 23)], torch.tensor([-0.7, 0.6])
    for logits, own, value in zip(sets, marginal.potentials(drawn(sets), r), r.tolist()):
        np.testing.assert_allclose(own.numpy(), plain_theta(logits, value), atol=2e-8)  # r in float32


def labels_of(logits, theta):
    return (logits + theta).softmax(dim=1)


def test_special_values_of_r():
    logits = random_logits(5, spread=5.0)
    whole = one_set(logits)
    assert torch.equal(labels_of(logits, marginal.potentials(whole, 0.0)), logits.softmax(dim=1))
    balanced = labels_of(logits, marginal.potentials(whole, -math.inf))
    torch.testing.assert_close(balanced, sinkhorn(logits, 1.0, iterations=5000), atol=1e-10, rtol=0)
    torch.testing.assert_close(balanced.mean(0), torch.full((C,), 1 / C, dtype=torch.float64), atol=1e-10, rtol=0)
    sizes = torch.full((C,), 1 / C, dtype=torch.float64)
    for _ in range(30):  # Saerens et al.: posteriors under the sizes, then sizes from the posteriors
        sizes = (logits.softmax(dim=1) * sizes).div((logits.softmax(dim=1) * sizes).sum(1, keepdim=True)).mean(0)
    em = marginal.label_means(whole, marginal.potentials(whole, 1.0, steps=29)).mass
    torch.testing.assert_close(em, sizes, atol=1e-12, rtol=0)
    for gamma in (0.0, 0.5, 1.0):
        theta = marginal.marginal_potentials(drawn([logits, random_logits(6, 9)]), gamma, 20)[0]
        torch.testing.assert_close(labels_of(logits, theta), sinkhorn(logits, 1.0, gamma, 20), atol=1e-10, rtol=0)


def test_spread_is_that_of_the_sizes():
    """Over random draws the mean of Z is the variance over the whole pool, times 1 - 1/N; the raw one is larger."""
    pool = random_logits(7, 600, spread=1.5)
    shares = pool.softmax(dim=1)
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(600, (25,), generator=generator) for _ in range(6000)]
    logits = marginal.DrawLogits(*filled_up(pool, draws))
    means = marginal.label_means(logits, torch.zeros(len(draws), C, dtype=torch.float64))
    expected = (C * shares.mean(0) - 1).square().mean() * (1 - 1 / 25)
    found, raw = marginal.spread(means, logits.images), (C * means.mass - 1).square().mean(dim=1)
    assert float(found.mean()) == pytest.approx(float(expected), abs=4 * float(found.std()) / len(draws) ** 0.5)
    assert float(raw.mean() - expected) > 20 * float(found.std()) / len(draws) ** 0.5


def test_known_sizes_are_the_means_of_the_labels():
    logits, sizes = random_logits(8), torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0, 0.0], dtype=torch.float64)
    theta = marginal.known(one_set(logits), sizes).theta
    labels = labels_of(logits, theta)
    torch.testing.assert_close(labels.mean(0), sizes, atol=1e-8, rtol=0)
    assert (labels[:, 4:] == 0).all()


def random_gram(seed):
    """Products of `C` texts of length 1."""
    texts = F.normalize(torch.randn(C, E, generator=torch.Generator().manual_seed(seed)).double(), dim=1)
    return texts @ texts.T


@pytest.mark.parametrize("seed", range(4))
def test_text_bias_equals_the_plain_loops(seed):
    sets, gram = [random_logits(seed, spread=3.0), random_logits(seed + 10, 17, 4.0)], random_gram(seed)
    together = marginal.text_bias(drawn(sets), gram)
    for number, logits in enumerate(sets):
        alone = marginal.text_bias(one_set(logits), gram)
        for name, expected in zip(("bias", "variance", "noise"), plain_bias(logits, gram)):
            np.testing.assert_allclose(getattr(alone, name).numpy(), expected, atol=1e-10, err_msg=name)
            np.testing.assert_allclose(getattr(together, name)[number].numpy(), expected, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(("seed", "shift"), [(1, 0.0), (2, 1.0), (3, 2.0), (4, 0.3)])
def test_the_choice_equals_the_rule_as_it_is_written_down(seed, shift):
    logits, gram = random_logits(seed, spread=3.0) + shift * torch.arange(C).double(), random_gram(seed)
    choice = marginal.choose(one_set(logits), gram)
    theta, r, share = plain_choice(logits, gram)
    assert (float(choice.r), float(choice.share)) == pytest.approx((r, share), abs=1e-9)
    theta, found = (x - x.mean() for x in (theta, choice.theta.numpy()))  # labels do not see a common number
    np.testing.assert_allclose(found, theta, atol=1e-8)


@pytest.mark.parametrize("present", [range(C), (0, 3)])
def test_text_bias_is_found_whatever_the_sizes(present):
    """Images around one shift plus their text: the bias that the shift makes is found with all classes and with two."""
    generator = torch.Generator().manual_seed(3)
    width, scale = 48, 20.0
    texts = F.normalize(torch.randn(C, width, generator=generator).double(), dim=1)
    shift = texts.T @ torch.linalg.solve(texts @ texts.T, torch.tensor([0.1, -0.1, 0.05, 0.0, -0.15, 0.1]).double())
    labels = torch.tensor([*present] * (600 // len(present)))
    images = shift + 0.5 * texts[labels] + 0.05 * torch.randn(len(labels), width, generator=generator).double()
    logits = scale * images @ texts.T
    evidence = marginal.text_bias(one_set(logits, 100), texts @ texts.T)
    expected = scale * (shift @ texts.T)
    torch.testing.assert_close(evidence.bias, expected - expected.mean(), atol=0.3 * C / len(present), rtol=0)
    assert float(evidence.kept) > (0.85 if len(present) == C else 0.5)
    raw = logits.mean(0) - logits.mean()
    assert len(present) == C or float((raw - expected).abs().max()) > 2  # the mean alone would be far off


def test_permuted_images_and_classes_permute_the_choice():
    logits, gram = random_logits(9), random_gram(9)
    images, classes = torch.randperm(N), torch.randperm(C)
    choice = marginal.choose(one_set(logits), gram)
    other = marginal.choose(one_set(logits[images][:, classes]), gram[classes][:, classes])
    torch.testing.assert_close(other.theta, choice.theta[classes], atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.stack([*other[1:]]), torch.stack([*choice[1:]]), atol=1e-10, rtol=0)


def test_draws_are_chosen_for_as_they_would_be_alone():
    kinds = ((1, 40, 2.0), (2, 9, 4.0), (3, 1, 2.0), (4, 25, 0.5))
    sets, gram = [random_logits(*kind) for kind in kinds], random_gram(5)
    together = marginal.choose(drawn(sets), gram)
    for number, logits in enumerate(sets):
        alone = marginal.choose(one_set(logits), gram)
        for name, value in alone._asdict().items():
            torch.testing.assert_close(getattr(together, name)[number], value, atol=1e-9, rtol=0, msg=name)
    assert together.share[2] == 0 and 0 < together.share[1] < together.share[0] < 1


# ------------------------------------------------------------------------------------------- many problems at once


def many_problems(lengths, width=E, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = [F.normalize(torch.randn(n, width, generator=generator).double(), dim=1) for n in lengths]
    text = F.normalize(torch.randn(width, C, generator=generator).double(), dim=0)
    labels = [harden((8 * x @ text).softmax(dim=1)) for x in features]
    places = torch.arange(sum(lengths)).split(lengths)
    return features, text, labels, (filled_up(torch.cat(features), places)[0], filled_up(torch.cat(labels), places)[0])


@pytest.mark.parametrize("lengths", [(9, 5, 1, 11), (40, 13, 30)])  # fewer images than dimensions, and more
def test_many_problems_have_the_solutions_of_each(lengths):
    features, text, labels, together = many_problems(list(lengths))
    proxies = vision_proxies(together[0], text, together[1], 0.25, 500, 1e-9)
    torch.testing.assert_close(proxies.norm(dim=1), torch.ones(len(lengths), C).double())
    for number, (x, p) in enumerate(zip(features, labels)):
        alone = descend(ProxyObjective(x, p, 0.25), text, 500, 1e-9)
        own = -(p * (x @ proxies[number] / 0.25).log_softmax(dim=1)).sum(1).mean()
        assert float(own) == pytest.approx(float(alone.value), rel=1e-6, abs=1e-9)
        assert float(own) >= solve_vision_proxy(x, text, p, 0.25, tolerance=1e-9).objective - 1e-9  # it restarts


def test_a_problem_takes_no_notice_of_others():
    _, text, _, (features, labels) = many_problems([9, 5, 7])
    all_at_once = vision_proxies(features, text, labels, 0.25, 500, 1e-6)
    features[1], labels[1] = features[2].roll(1, 0), labels[2].roll(2, 0)
    torch.testing.assert_close(vision_proxies(features, text, labels, 0.25, 500, 1e-6)[0], all_at_once[0])


# --------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("Uniform", "uniform"), ("zero-shot", 0.0), (-2, -2.0)])
def test_marginals_by_name_and_number(text, value):
    assert sizes.parse_marginal(text, "KEY") == value


def test_a_number_above_one_is_refused():
    with pytest.raises(UserError, match=r"^KEY is 1.5; as a number it is at most 1"):
        sizes.parse_marginal(1.5, "KEY")


@pytest.mark.parametrize("value", ["-inf", "-Infinity", -math.inf])
def test_sizes_that_are_evened_out_without_limit_have_a_name(value):
    with pytest.raises(UserError, match=r"^KEY is '?-[iI]nf.*are equal: take uniform$"):
        sizes.parse_marginal(value, "KEY")
    with pytest.raises(UserError, match="at most 1"):
        sizes.parse_marginal("nan", "KEY")


NAMES = ["cat", "dog", "gnu"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat: 0.5\ndog: 0.5\n", "lacks gnu; the 3 classes are cat, dog, gnu"),
        ("cat: 0.5\ndog: 0.25\ngnu: 0.25\ncow: 0\n", "names cow, no class of the data set"),
        ("cat: 5\ndog: 2\ngnu: 4\n", "sum to 11; counts sum to the number of unlabelled images, 10, and shares to 1"),
        ("cat: -1\ndog: 1\ngnu: 1\n", "should hold a line 'class name: size' for each class, sizes 0 or more"),
        ("- cat\n- dog\n", "should hold a line"),
        ("cat: many\ndog: 1\ngnu: 1\n", "should hold a line"),
        ("cat: 1e-3\ndog: 1\ngnu: 1\n", "sizes 0 or more; yaml reads 1e-3 as a text: write it as 0.001 or 1.0e-3"),
        ("cat: 1\ndog: 1\nno: 1\n", "gnu; .* yaml reads a name without quotes as False: put names in quotes"),
        ("cat: 1\ndog: 1\n01: 1\n", "gnu; .* yaml reads a name without quotes as 1: put names in quotes"),
    ],
)
def test_files_of_sizes_that_do_not_fit(tmp_path, text, words):
    path = tmp_path / "sizes.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as found:
        sizes.read_sizes(path, NAMES, 10)
    assert "\n" not in str(found.value)


def test_files_of_sizes(tmp_path):
    path = tmp_path / "sizes.yaml"
    for text in ("gnu: 2\ncat: 5\ndog: 3\n", "cat: 0.5\ndog: 0.3\ngnu: 0.2\n", '{"cat": 5, "dog": 3, "gnu": 2}'):
        path.write_text(text)
        assert sizes.read_sizes(path, NAMES, 10).tolist() == pytest.approx([0.5, 0.3, 0.2])
    with pytest.raises(UserError, match=r"^TRAINER.INMAP.MARGINAL: .*none.yaml"):
        sizes.read_sizes(tmp_path / "none.yaml", NAMES, 10)


def test_labels_stay_rows_that_sum_to_one():
    logits = random_logits(11)
    labels = PseudoLabels(logits, 1.0, marginal.choose(one_set(logits)).theta)[:]
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(N, dtype=torch.float64))


def test_a_single_class_says_nothing_of_texts():
    """EM gives such images to one class, under which an image's logits have no slope: no bias may come of it."""
    texts = F.normalize(torch.randn(C, E, generator=torch.Generator().manual_seed(1)).double(), dim=1)
    noise = torch.randn(12, E, generator=torch.Generator().manual_seed(2)).double()
    images = F.normalize(texts[2] + 0.3 * noise, dim=1)
    logits = 30 * images @ texts.T
    choice = marginal.choose(one_set(logits), texts @ texts.T)
    assert float(choice.bias) == 0 and float(choice.r) > 0.8
    assert ((logits + choice.theta).argmax(dim=1) == 2).all()
