"""WiSE-FT against the authors' program (fixtures/goldens/wise_ft.npz), by the trainer's own steps and rows.

Covers: all weights after training, merged weights, accuracies along alpha and scores at 0.5; mistakes in the training
and outputs averaged in place of weights are seen; a real run's curve; refusals.
"""

import pytest
import torch
from torch import nn

from dassl_clip.clip.fine_tuned import interpolate
from dassl_clip.results.errors import UserError
from tests.trainers.golden_runs import CLOSE, close, far, golden, part, same_change
from tests.trainers.toy_towers import take_step, toy_tower, toy_trainer

SCALE = 12.0


def ours(name):
    return name.replace("image_encoder.net.", "tower.").replace("classification_head.", "")


def trained(tmp_path, **changes):
    """The golden file and a trainer after the golden's steps, with some settings changed."""
    arrays = golden("wise_ft")
    size, rows, epochs = int(arrays["batch_size"]), len(arrays["train_x"]), int(arrays["epochs"])
    starts = [start for _ in range(epochs) for start in range(0, rows, size)]
    tower = toy_tower(arrays, "start/image_encoder.net.", nn.ReLU())
    text = arrays["start/classification_head.weight"] / SCALE
    optim = {"NAME": "adamw", "LR": float(arrays["lr"]), "WEIGHT_DECAY": float(arrays["wd"])}
    settings = {"WARMUP": int(arrays["warmup"]), "MAX_NORM": float(arrays["max_norm"])}
    settings |= {"LABEL_SMOOTHING": float(arrays["label_smoothing"]), "ALPHAS": (*arrays["alphas"].tolist(), 0.3)}
    optim |= {key: changes.pop(key) for key in list(changes) if key in optim}
    trainer = toy_trainer("WiSEFT", tmp_path, tower, text, SCALE, len(starts), settings | changes, optim)
    for number, start in enumerate(starts):
        images = arrays["train_x"][start : start + size].float()
        take_step(trainer, number, images, arrays["train_y"][start : start + size])
    return arrays, trainer


def test_training_and_merged_weights_are_those_of_the_authors_program(tmp_path):
    arrays, trainer = trained(tmp_path)
    rows = trainer.rows()
    for row, prefix in (("last", "end/"), ("alpha 0.3", "merged_0.3/"), ("alpha 0.5", "merged_0.5/")):
        for name, value in part(arrays, prefix).items():
            same_change(rows[row][ours(name)], arrays[f"start/{name}"], value, f"{row} {name}")


def test_accuracies_along_alpha_are_those_of_the_authors_program(tmp_path):
    arrays, trainer = trained(tmp_path)
    rows = trainer.rows()
    for number, alpha in enumerate(arrays["alphas"].tolist()):
        trainer.take(rows[f"alpha {alpha:g}"])
        for column, side in enumerate(("in", "out")):
            hits = trainer.model_logits(arrays[f"{side}_x"].float()).argmax(1).eq(arrays[f"{side}_y"]).sum()
            spare = int(arrays["smallest_margin"][number] <= 1e-4)
            assert abs(int(hits) - int(arrays["correct"][number, column])) <= spare, (alpha, side)
    trainer.take(rows["alpha 0.5"])
    close(trainer.model_logits(arrays["in_x"][:10].float()), arrays["logits_0.5"], CLOSE)


def test_outputs_averaged_for_weights_are_seen(tmp_path):
    arrays, trainer = trained(tmp_path)
    rows, both = trainer.rows(), []
    for row in ("alpha 0", "alpha 1"):
        trainer.take(rows[row])
        both.append(trainer.model_logits(arrays["in_x"][:10].float()))
    far((both[0] + both[1]) / 2, arrays["logits_0.5"], 0.02)


@pytest.mark.parametrize(
    ("changes", "least"), [({"MAX_NORM": 0.0}, 0.1), ({"WEIGHT_DECAY": 0.0}, 0.3), ({"WARMUP": 0}, 0.1)]
)
def test_mistakes_in_the_training_are_seen(tmp_path, changes, least):
    arrays, trainer = trained(tmp_path, **changes)
    weights, worst = trainer.weights, 0.0
    for name, value in part(arrays, "end/").items():
        change = value - arrays[f"start/{name}"]
        worst = max(worst, ((weights[ours(name)].detach() - value).abs().max() / change.abs().max()).item())
    assert worst > least


def test_a_bias_that_stays_is_seen(tmp_path):
    arrays, trainer = trained(tmp_path)
    assert arrays["end/classification_head.bias"].abs().max() > 0
    close(trainer.weights["bias"], arrays["end/classification_head.bias"], 5e-4)


def test_counters_are_not_interpolated_and_other_models_are_refused():
    start, end = {"count": torch.tensor(3), "w": torch.zeros(2)}, {"count": torch.tensor(10), "w": torch.ones(2)}
    merged = interpolate(start, end, 0.25)
    assert merged["count"].item() == 10 and torch.equal(merged["w"], torch.full((2,), 0.25))
    with pytest.raises(UserError, match="different models"):
        interpolate({"w": torch.zeros(3)}, end, 0.5)


def test_a_run_has_the_whole_curve_and_ends_at_zero_shot_clip(run):
    """At alpha 0 it is zero-shot CLIP to the last image; at 1 it is the last step; the result is alpha 0.5."""
    pairs = ("TRAINER.WISEFT.STEPS", 6, "OPTIM.NAME", "adamw", "OPTIM.LR", 3e-3)
    record = run("WiSEFT", *pairs)[1]
    plain = run("ZeroshotCLIP", name="zero")[1]
    metrics = record["metrics"]
    assert [name for name in metrics if name.startswith("alpha")] == [f"alpha {k / 10:g}" for k in range(11)]
    assert metrics["alpha 0"]["correct"] == plain["metrics"]["test"]["correct"]
    assert metrics["alpha 1"]["correct"] == metrics["last"]["correct"]
    assert metrics["alpha 0.5"] == metrics["test"]
    assert "fixed alpha 0.5" in record["selection_rule"]


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (("TRAINER.WISEFT.ALPHA", 1.5), "expected a share of 0 to 1"),
        (("TRAINER.WISEFT.ALPHAS", "(0.5, 2)"), "expected shares of 0 to 1"),
        (("TRAINER.WISEFT.AVERAGE", "uniform"), "leave it none"),
        (("TRAINER.WISEFT.HEAD", "fresh"), "it starts at zero-shot CLIP"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(run, pairs, said):
    assert said in run("WiSEFT", *pairs, code=2)[2].err
