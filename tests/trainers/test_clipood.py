"""CLIPood against the authors' whole program (fixtures/goldens/clipood.npz), by the trainer's own steps.

Covers: scores with the margin, losses, the first gradients, weights and their average after every step, accuracies of
the last and the averaged weights; near mistakes are seen; real runs and refusals.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dassl_clip.trainers.clipood import with_margin
from tests.trainers.golden_runs import CLOSE, close, far, golden, part, same_change
from tests.trainers.toy_towers import take_step, toy_tower, toy_trainer

NAMES = ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight")


@pytest.fixture
def trained(tmp_path):
    """The golden file, its trainer after all steps, and what it gave on the way."""
    arrays = golden("clipood")
    steps = len(arrays["x"])
    tower, text = toy_tower(arrays, "start/", nn.GELU()), F.normalize(arrays["text"], dim=-1)
    optim = {"NAME": "adamw", "LR": float(arrays["lr"]), "WEIGHT_DECAY": float(arrays["wd"])}
    settings = {"LAMBDA": float(arrays["lam"]), "BETA": float(arrays["beta"])}
    trainer = toy_trainer("CLIPood", tmp_path, tower, text, arrays["temperature"], steps, settings, optim)
    losses, trajectory, averages = [], [], []
    for number in range(steps):
        images, labels = arrays["x"][number].float().flatten(0, 1), arrays["labels"][number].flatten()
        losses.append(take_step(trainer, number, images, labels))
        if number == 0:
            for name, value in part(arrays, "grad/").items():
                close(tower.get_parameter(name).grad, value, 5e-4, name)
        trajectory.append(flat(trainer.weights))
        averages.append(flat(trainer.tracked.average.average()))
    return arrays, trainer, torch.tensor(losses), torch.stack(trajectory), torch.stack(averages)


def flat(weights):
    return torch.cat([weights[f"tower.{name}"].detach().flatten() for name in NAMES])


def test_every_step_and_the_average_are_those_of_the_authors_program(trained):
    arrays, trainer, losses, trajectory, averages = trained
    close(losses, arrays["losses"], CLOSE)
    start = torch.cat([arrays[f"start/{name}"].flatten() for name in NAMES])
    for number in range(len(trajectory)):
        same_change(trajectory[number], start, arrays["trajectory"][number], f"step {number}")
        same_change(averages[number], start, arrays["bma_trajectory"][number], f"average after step {number}")
    rows = trainer.rows()
    for name in NAMES:
        same_change(rows["average"][f"tower.{name}"], arrays[f"start/{name}"], arrays[f"bma/{name}"], name)
        same_change(rows["last"][f"tower.{name}"], arrays[f"start/{name}"], arrays[f"end/{name}"], name)


@pytest.mark.parametrize(("row", "line"), [("average", -1)])
def test_the_average_scores_as_the_authors(trained, row, line):
    arrays, trainer, *_ = trained
    trainer.take(trainer.rows()[row])
    for column, (images, labels) in enumerate((("val_x", "val_y"), ("test_x", "test_y"))):
        hits = trainer.model_logits(arrays[images].float()).argmax(1).eq(arrays[labels])
        expected = float(arrays["accuracies"][line, column])
        assert hits.double().mean().item() * (100 if expected > 1 else 1) == pytest.approx(expected, rel=1e-5)


def margins(arrays, change=None):
    """Scores of the first step, with the margin or a mistake in it."""
    tower, text = toy_tower(arrays, "start/", nn.GELU()), F.normalize(arrays["text"], dim=-1)
    labels = arrays["labels"][0].flatten()
    logits = arrays["temperature"].float() * F.normalize(tower(arrays["x"][0].float().flatten(0, 1)), dim=-1) @ text.T
    found = with_margin(logits, labels, text, arrays["temperature"].float(), float(arrays["lam"]))
    return found if change is None else change(logits, labels, text)


def test_scores_of_the_first_step_have_the_margin():
    arrays = golden("clipood")
    close(margins(arrays), arrays["logits"][0], CLOSE)


def test_a_margin_on_the_own_class_alone_is_seen():
    arrays = golden("clipood")

    def own_alone(logits, labels, text):
        return logits - 100 * float(arrays["lam"]) * F.one_hot(labels, len(text))

    far(margins(arrays, own_alone), arrays["logits"][0], 0.09)


def test_a_run_scores_with_the_average_and_says_so(run):
    folder, record, _ = run("CLIPood", "TRAINER.CLIPOOD.PER_DOMAIN", 2, "TRAINER.CLIPOOD.STEPS", 6,
                            "TRAINER.CLIPOOD.EVALUATE_EVERY", 3, "OPTIM.NAME", "adamw", "OPTIM.LR", 1e-3)  # fmt: skip
    assert record["selection_rule"] == "beta average of the weights of all steps"
    assert record["metrics"]["average"] == record["metrics"]["test"]
    assert record["training"]["steps"] == 6 and record["training"]["images_per_step"] == 4
    assert (folder / "fine_tuned" / "model-best.pth.tar").is_file()


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (("TRAINER.CLIPOOD.LAMBDA", -0.1), "LAMBDA is -0.1; expected a number of at least 0"),
        (("TRAINER.CLIPOOD.BETA", 0.0), "expected a number above 0"),
        (("TRAINER.CLIPOOD.SCHEDULE", "linear"), "expected one of constant, cosine"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(run, pairs, said):
    output = run("CLIPood", *pairs, code=2)[2]
    assert said in output.err
