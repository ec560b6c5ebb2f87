"""Learning rates by epoch: CoOp's published schedule to the last digit, other settings, going on after a resume."""

import math

import pytest
import torch
from yacs.config import CfgNode

from dassl_clip.engine.schedule import EpochSchedule

# Rates of CoOp's 50-epoch setting (sgd, 0.002, cosine, one constant warm-up epoch of 1e-5), 1-based epochs.
COOP_50 = {
    1: 1.0000e-05, 2: 2.0000000e-03, 3: 1.9980267e-03, 4: 1.9921147e-03, 5: 1.9822873e-03, 6: 1.9685832e-03,
    7: 1.9510565e-03, 8: 1.9297765e-03, 9: 1.9048271e-03, 10: 1.8763067e-03, 25: 1.1253332e-03, 26: 1.0627905e-03,
    27: 1.0000000e-03, 44: 1.2369332e-04, 45: 9.5172948e-05, 46: 7.0223514e-05, 47: 4.8943484e-05,
    48: 3.1416839e-05, 49: 1.7712749e-05, 50: 7.8852987e-06,
}  # fmt: skip


def optim(**changes):
    node = CfgNode(
        {
            "LR_SCHEDULER": "cosine", "STEPSIZE": (-1,), "GAMMA": 0.1, "MAX_EPOCH": 50, "WARMUP_EPOCH": 1,
            "WARMUP_TYPE": "constant", "WARMUP_CONS_LR": 1e-5, "WARMUP_MIN_LR": 1e-5, "WARMUP_RECOUNT": True,
        }
    )  # fmt: skip
    for key, value in changes.items():
        node[key] = value
    return node


def schedule(lr=0.002, **changes):
    return EpochSchedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr), optim(**changes))


def rates(count, **changes):
    running, seen = schedule(**changes), []
    for _ in range(count):
        seen.append(running.optimizer.param_groups[0]["lr"])
        running.step()
    return seen


def test_coop_schedule_of_fifty_epochs():
    seen = rates(50)
    for epoch, rate in COOP_50.items():
        assert seen[epoch - 1] == pytest.approx(rate, rel=1e-7), epoch
    for epoch in range(1, 50):
        assert seen[epoch] == pytest.approx(0.001 * (1 + math.cos(math.pi * (epoch - 1) / 50)), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"MAX_EPOCH": 10},
            [1e-5, 2e-3, 1.9511e-3, 1.8090e-3, 1.5878e-3, 1.3090e-3, 1e-3, 6.9098e-4, 4.1221e-4, 1.9098e-4],
        ),
        ({"MAX_EPOCH": 5, "lr": 0.0035}, [1e-5, 3.5e-3, 3.1658e-3, 2.2908e-3, 1.2092e-3]),
        ({"WARMUP_RECOUNT": False}, [1e-5, 2e-3, 1.994082e-3, 1.984245e-3, 1.970527e-3]),
        (
            {"MAX_EPOCH": 10, "WARMUP_EPOCH": 5, "WARMUP_TYPE": "linear"},
            [1e-5, 4e-4, 8e-4, 1.2e-3, 1.6e-3, 2e-3, 1.9511e-3, 1.8090e-3],
        ),
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": (2,), "WARMUP_EPOCH": 0}, [2e-3, 2e-3, 2e-4, 2e-4, 2e-5]),
        ({"LR_SCHEDULER": "single_step", "MAX_EPOCH": 3, "WARMUP_EPOCH": -1}, [2e-3, 2e-3, 2e-3, 2e-4]),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": (1, 3), "WARMUP_EPOCH": 0}, [2e-3, 2e-4, 2e-4, 2e-5]),
    ],
)
def test_other_settings(changes, expected):
    assert rates(len(expected), **changes) == pytest.approx(expected, rel=5e-5)


def test_going_on_from_a_saved_state_gives_the_same_rates():
    whole = rates(20)
    first = schedule()
    for _ in range(7):
        first.step()
    second = schedule()
    second.load_state_dict(first.state_dict())
    seen = []
    for _ in range(13):
        seen.append(second.get_last_lr()[0])
        second.step()
    assert seen == whole[7:]


def test_groups_keep_their_own_base_rates():
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.02}], lr=0.002)
    running = EpochSchedule(groups, optim())
    for _ in range(9):
        running.step()
    assert groups.param_groups[1]["lr"] == pytest.approx(10 * groups.param_groups[0]["lr"])


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'linear'; expected one of"):
        schedule(LR_SCHEDULER="linear")
    with pytest.raises(ValueError, match=r"WARMUP_TYPE is 'cosine'"):
        schedule(WARMUP_TYPE="cosine")
