"""Averages of weights along a training.

Covers: the authors' outputs of CLIPood's average, ERM++'s and SWAD's (fixtures/goldens), every step of them; the
mistakes that come nearest; means of SWAD's exact rule from a naive loop over the losses; saved and loaded in the middle
of a training to the last bit; averages of many steps against float64; refusals.
"""

import numpy as np
import pytest
import torch

from dassl_clip.engine.averaging import RunningAverage, Valley, beta_weight, make_average, uniform_weight
from dassl_clip.results.errors import UserError
from tests.trainers.golden_runs import close, far, golden, part

GIVEN = 1e-5  # of averages of given weights


def averaged(average, start, trajectory):
    """The average after each step, `[T, P]`."""
    average.begin({"w": start})
    rows = []
    for step, weights in enumerate(trajectory):
        average.update(step, {"w": weights})
        rows.append(average.average()["w"])
    return torch.stack(rows)


@pytest.fixture(scope="module")
def clipood():
    arrays = golden("clipood")
    return arrays, torch.cat([value.flatten() for value in part(arrays, "start/").values()])


def test_clipoods_average_is_the_authors_after_every_step(clipood):
    arrays, start = clipood
    steps = len(arrays["trajectory"])
    weights = np.array([beta_weight(float(arrays["beta"]), steps)(number) for number in range(steps + 1)])
    close(weights, arrays["beta_weights"], 1e-12)
    found = averaged(make_average("beta", steps, beta=float(arrays["beta"])), start, arrays["trajectory"])
    close(found, arrays["bma_trajectory"], GIVEN)


@pytest.mark.parametrize(
    ("least", "mistake"),
    [
        (0.06, lambda beta, steps: uniform_weight()),
        (0.015, lambda beta, steps: lambda number: beta_weight(beta, steps + 1)(number + 0.5)),
        (0.04, lambda beta, steps: lambda number: beta_weight(beta, steps)(number) * (number > 0)),
    ],
    ids=["uniform", "another grid", "without the start"],
)  # fmt: skip
def test_near_mistakes_of_clipoods_average_are_seen(clipood, least, mistake):
    arrays, start = clipood
    wrong = RunningAverage(mistake(float(arrays["beta"]), len(arrays["trajectory"])))
    found = averaged(wrong, start, arrays["trajectory"])[-1]
    far(found - start, arrays["bma_trajectory"][-1] - start, least)


def test_erm_plus_plus_average_is_the_authors():
    arrays = golden("moving_average")
    average = make_average("uniform", 9, start=int(arrays["sma_start"]) - 1)
    close(averaged(average, arrays["sma_weights"][0], arrays["sma_weights"][1:]), arrays["sma_average"], GIVEN)


CASES = sorted({name.partition("/")[0] for name in golden("swad")})


def walk(valley, case):
    """Let a valley see a golden case; the step at which it is over, or -1."""
    valley.begin({"w": case["W"][0]})
    f = int(case["f"])
    for step, weights in enumerate(case["W"]):
        valley.update(step, {"w": weights})
        if step % f == 0:
            valley.evaluated(float(case["losses"][step // f]))
            if valley.is_over:
                return step
    return -1


def golden_case(name):
    arrays = part(golden("swad"), f"{name}/")
    kw = part(arrays, "kw/")
    settings = int(kw["n_converge"]), int(kw["n_tolerance"]), float(kw["tolerance_ratio"])
    return arrays, part(arrays, "out/"), settings


@pytest.mark.parametrize("name", CASES)
def test_swad_as_released_is_the_authors_program(name):
    case, out, settings = golden_case(name)
    valley = Valley(*settings, shares="released")
    assert walk(valley, case) == int(out["stop"])
    close(valley.average()["w"], out["avg"], GIVEN)
    facts = valley.facts()
    assert (facts["first_step"], facts["last_step"]) == (int(out["start"]), int(out["end"]))
    assert facts["found"] is not bool(out["unconverged"]) and facts["ended"] is bool(out["dead"])
    if facts["found"]:
        assert facts["threshold"] == pytest.approx(float(out["threshold"]))
        assert len(valley.finished().joined) == int(out["n"])
    shares = [facts["segments"].get(str(number), 0.0) for number in range(len(case["losses"]))]
    close(shares, out["segment_share"], 1e-6)


def exact_segments(losses, n_converge, n_tolerance, tolerance):
    """The segments of the valley, from the rule in words, over all losses at once; and the evaluation that ends it."""
    for k in range(n_converge - 1, len(losses)):
        last = losses[k - n_converge + 1 : k + 1]
        if int(np.argmin(last)) == 0:
            break
    else:
        return [len(losses) - 1], None
    m, threshold = k - n_converge + 1, np.mean(last) * (1 + tolerance)
    first = m
    while first > max(0, k - n_tolerance + 1) and losses[first - 1] <= threshold:
        first -= 1
    segments = list(range(min(first, m), m))
    for number in range(m, len(losses)):
        followers = losses[number : number + n_tolerance]
        if min(followers) > threshold:
            return segments, max(k, number + n_tolerance - 1) if len(followers) == n_tolerance else None
        segments.append(number)
    return segments, None


@pytest.mark.parametrize("name", CASES)
def test_swads_exact_rule_counts_every_segment_of_the_valley_once(name):
    case, _, settings = golden_case(name)
    f, losses = int(case["f"]), case["losses"].numpy()
    segments, end = exact_segments(losses, *settings)
    valley = Valley(*settings)
    stop = walk(valley, case)
    assert stop == (-1 if end is None else end * f)
    means = [case["W"][[0] if k == 0 else range((k - 1) * f + 1, k * f + 1)].double().mean(0) for k in segments]
    close(valley.average()["w"], torch.stack(means).mean(0), GIVEN)
    assert [int(number) for number in valley.facts()["segments"]] == segments


@pytest.mark.parametrize(("name", "least"), [("early_minimum", 0.2), ("valley_to_the_end", 0.01)])
def test_the_released_shares_are_another_average(name, least):
    case, out, settings = golden_case(name)
    valley = Valley(*settings)
    walk(valley, case)
    far(valley.average()["w"], out["avg"], least)


def test_random_losses_give_the_exact_rules_segments():
    draw = np.random.default_rng(0)
    for _ in range(200):
        settings = int(draw.integers(1, 5)), int(draw.integers(1, 7)), float(draw.choice([0.05, 0.2]))
        losses = 1 + 0.2 * draw.standard_normal(int(draw.integers(1, 25))) + np.linspace(0.5, -0.2, 1)
        valley = Valley(*settings)
        for number, loss in enumerate(losses):
            valley.update(number, {"w": torch.tensor([float(number)])})
            valley.evaluated(float(loss))
        segments, _ = exact_segments(losses, *settings)
        assert valley.average()["w"].item() == pytest.approx(np.mean(segments)), (settings, losses)


def test_a_segment_at_the_threshold_belongs_to_the_valley():
    valley = Valley(2, 6, 0.0)  # the threshold is the mean of 1 and 1.5; the last loss is above it
    for number, loss in enumerate((1.25, 1.0, 1.5)):
        valley.update(number, {"w": torch.tensor([float(number)])})
        valley.evaluated(loss)
    assert valley.threshold == 1.25 and valley.facts()["segments"].keys() == {"0", "1"}


MADE = [("uniform", {}), ("beta", {"beta": 0.5}), ("swad", {}), ("swad", {"shares": "released"})]


@pytest.mark.parametrize(("name", "settings"), MADE)
@pytest.mark.parametrize("cut", [3, 16, 17, 30])
def test_a_saved_average_continues_to_the_last_bit(name, settings, cut, tmp_path):
    case = golden_case("valley_dies")[0]
    whole = make_average(name, 81, **settings)
    walk(whole, case)
    first, second = make_average(name, 81, **settings), make_average(name, 81, **settings)
    first.begin({"w": case["W"][0]})
    second.begin({"w": torch.zeros(5)})
    for step, weights in enumerate(case["W"]):
        average = first if step < cut else second
        if step == cut:
            torch.save(first.state_dict(), tmp_path / "state.pt")
            second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        average.update(step, {"w": weights})
        if step % 4 == 0:
            average.evaluated(float(case["losses"][step // 4]))
        if average.is_over:
            break
    assert torch.equal(second.average()["w"], whole.average()["w"])
    assert second.facts() == whole.facts()


def test_an_average_of_many_steps_loses_none():
    """In half precision, steps that are small beside the weights leave no trace; in float64 the mean is exact."""
    steps = 20_000
    average, half = make_average("uniform", steps), torch.ones(1, dtype=torch.float16)
    average.begin({"w": torch.ones(1)})
    for step in range(steps):
        weights = torch.tensor([1 + (step + 1) * 1e-6])
        average.update(step, {"w": weights})
        half.lerp_(weights.half(), 1 / (step + 2))
    mean = 1 + 1e-6 * steps / 2
    assert average.mean["w"].dtype == torch.float64
    assert average.average()["w"].item() - 1 == pytest.approx(mean - 1, rel=1e-3)
    assert abs(half.item() - mean) > 0.02 * (mean - 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "mean"}, "expected one of none, uniform, beta, swad"),
        ({"name": "swad", "shares": "half"}, "'half' shares"),
    ],
)
def test_impossible_averages_are_refused(settings, said):
    with pytest.raises(UserError, match=said):
        make_average(steps=10, **settings)
