"""Training by steps: batches, rates, evaluations, rows of one training, resuming, options of the towers.

Covers: parts of a training in DomainBed's and in plain counting; batches by domain and shuffled ones, repeated images
under numbers of their own; rates against closed forms; layer-wise rates; evaluations against the metrics of the run;
the best row, `best_val`, SWAD's early end; a run that was stopped inside a part and one that was resumed equal an
undisturbed one to the last bit, averages and best weights too; gradient checkpointing, other statistics, amp; `eval`,
`predict` and `export` of what was learned.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dassl_clip.cli import export, predict, table
from dassl_clip.clip.backbone import load_backbone
from dassl_clip.clip.fine_tuned import IMAGENET, FineTuned, by_depth, checkpoint_activations, copied_tower
from dassl_clip.engine import signals
from dassl_clip.engine.step_batches import Repeated, StepBatches, part_lengths
from dassl_clip.engine.step_trainer import StepTrainer
from dassl_clip.engine.tracked import StepSchedule
from dassl_clip.results.errors import UserError
from tests.engine.test_averaging import exact_segments

STEPS = ("OPTIM.NAME", "adamw", "OPTIM.LR", 1e-3)


def node(name, **settings):
    """KEY VALUE pairs of a trainer's node."""
    return [word for key, value in settings.items() for word in (f"TRAINER.{name.upper()}.{key}", value)]


# ------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    ("steps", "every", "first", "records"),
    [(5001, 300, True, 18), (5001, 1000, True, 6), (10, 5, False, 2), (11, 5, False, 3), (1, 5, True, 1)],
)
def test_parts_end_where_a_training_is_evaluated(steps, every, first, records):
    lengths = part_lengths(steps, every, first)
    ends = np.cumsum(lengths)
    assert len(lengths) == records and ends[-1] == steps and min(lengths) > 0
    numbers = [step for step in range(steps) if (step % every == 0 if first else (step + 1) % every == 0)]
    assert ends.tolist() == sorted({*(number + 1 for number in numbers), steps})


def test_a_batch_has_so_many_images_of_each_domain():
    domains = [2, 0, 0, 2, 5, 5, 5, 0]
    batches = StepBatches(domains, [7, 3], 4, 99)
    batches.start(1)
    drawn = list(batches)
    assert len(drawn) == 7 and batches.batch_size == 12
    for batch in drawn:
        assert [domains[number % 8] for number in batch] == [0] * 4 + [2] * 4 + [5] * 4
    numbers = [number for batch in drawn for number in batch]
    assert len(set(numbers)) == len(numbers)  # an image that comes again is another number, so another view
    assert {number % 8 for number in numbers} == set(range(8))
    batches.part = 1
    batches.start(1, first=2)
    assert len(batches) == 3 and len(list(batches)) == 1


def test_shuffled_batches_use_every_image_before_any_comes_again():
    batches = StepBatches([0] * 7, [5], 0, 3)
    batches.start(3)
    drawn = list(batches)
    assert [len(batch) for batch in drawn] == [3] * 5
    assert len({number % 7 for number in drawn[0] + drawn[1]}) == 6
    assert Repeated("abc")[4] == "b" and len(Repeated("abc")) == 3


def test_draws_are_with_replacement_and_follow_from_the_seed():
    batches = StepBatches([0] * 50, [40], 25, 0)
    batches.start(1)
    first = [number % 50 for number in next(iter(batches))]
    assert len(set(first)) < 25
    batches.start(1)
    assert [number % 50 for number in next(iter(batches))] == first
    batches.start(2)
    assert [number % 50 for number in next(iter(batches))] != first


# --------------------------------------------------------------------------------------------------------- rates


def test_rates_are_the_closed_forms():
    optim = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": lr} for lr in (1.0, 10.0)])
    schedule = StepSchedule(optim, "cosine", 10, warmup=4)
    expected = [0.25, 0.5, 0.75, 1.0] + [(1 + math.cos(math.pi * k / 6)) / 2 for k in range(6)]
    for step, share in enumerate(expected):
        schedule.apply(step)
        assert [group["lr"] for group in optim.param_groups] == pytest.approx([share, 10 * share])
    assert StepSchedule(optim, "constant", 10).factor(9) == 1.0


def test_every_step_of_a_run_has_its_rate(run):
    """Also those inside a part between two evaluations."""
    rates = []
    hook = register_optimizer_step_pre_hook(lambda optim, *_: rates.append(optim.param_groups[0]["lr"]))
    settings = node("ERM", STEPS=6, EVALUATE_EVERY=3, SCHEDULE="cosine", WARMUP=2)
    try:
        run("ERM", *settings, "OPTIM.NAME", "sgd", "OPTIM.LR", 0.01)
    finally:
        hook.remove()
    expected = [0.5, 1.0] + [(1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates == pytest.approx([0.01 * share for share in expected])


def test_layer_wise_rates_fall_from_block_to_block(tiny_clip):
    model = FineTuned(copied_tower(load_backbone(f"local-dir:{tiny_clip}").model), torch.ones(3, 16))
    groups = by_depth(model.named_parameters(), 0.5)
    factor = {id(p): f for f, parameters in groups for p in parameters}
    names = {name: factor[id(p)] for name, p in model.named_parameters()}
    assert len(names) == sum(len(parameters) for _, parameters in groups)
    assert names["weight"] == names["bias"] == names["tower.proj"] == names["tower.ln_post.weight"] == 1
    blocks = [names[f"tower.transformer.resblocks.{k}.attn.out_proj.weight"] for k in (2, 1, 0)]
    assert blocks == [0.5, 0.25, 0.125] and names["tower.conv1.weight"] == names["tower.ln_pre.bias"] == 0.0625
    assert len(by_depth(model.named_parameters(), 1.0)) == 1


# ------------------------------------------------------------------------------------------------------ towers


def test_checkpointed_activations_change_no_gradient(tiny_clip):
    model, images = load_backbone(f"local-dir:{tiny_clip}").model, torch.randn(2, 3, 32, 32)
    gradients, kept = [], []
    for again in (False, True):
        tower = copied_tower(model)
        if again:
            checkpoint_activations(tower, "it")
        kept.append(0)

        def pack(x):
            kept[-1] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = tower(images).square().sum()
        loss.backward()
        gradients.append([p.grad for p in tower.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)
    assert kept[1] < kept[0] / 2
    with pytest.raises(UserError, match="no transformer blocks"):
        checkpoint_activations(load_backbone("IconsCLIP").model.visual, "IconsCLIP")


def test_other_statistics_are_those_that_the_tower_gets():
    clip = (0.48, 0.45, 0.40), (0.26, 0.27, 0.28)
    pixels = torch.rand(2, 3, 4, 4)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in clip)
    other_mean, other_std = (torch.tensor(part).view(3, 1, 1) for part in IMAGENET)
    model = FineTuned(nn.Flatten(), torch.ones(2, 48), pixels=(clip, IMAGENET))
    torch.testing.assert_close(model.encode((pixels - mean) / std), ((pixels - other_mean) / other_std).flatten(1))


def test_a_resnets_batch_statistics_stay_in_training(run):
    folder = run("ERM", *STEPS, *node("ERM", STEPS=2), "MODEL.BACKBONE.NAME", "IconsCLIP")[0]
    state = torch.load(folder / "fine_tuned" / "model-best.pth.tar", weights_only=True)["state_dict"]
    frozen = load_backbone("IconsCLIP").model.visual.state_dict()
    for name, value in frozen.items():
        same = torch.equal(state[f"tower.{name}"], value)
        assert same if "running" in name or "num_batches" in name else not (same and name == "layer4.0.bn1.weight"), (
            name
        )


# ------------------------------------------------------------------------------------------------ rows of a training


def test_one_training_gives_its_rows_and_says_what_they_cost(run):
    settings = node("ERM", STEPS=6, EVALUATE_EVERY=2, PER_DOMAIN=3, AVERAGE="uniform", ALPHAS="(0.0, 0.5, 1.0)")
    folder, record, _ = run("ERM", *STEPS, *settings)
    metrics = record["metrics"]
    assert list(metrics) == ["test", "last", "best", "average", "alpha 0", "alpha 0.5", "alpha 1"]
    assert metrics["alpha 1"]["correct"] == metrics["last"]["correct"]
    assert metrics["average"] == metrics["test"]
    training = record["training"]
    assert (training["steps"], training["images_per_step"], training["evaluations"]) == (6, 6, 3)
    assert [entry["step"] for entry in record["validation"]] == [1, 3, 5]
    means = [entry["mean"] for entry in record["validation"]]
    assert training["best_step"] == record["validation"][means.index(max(means))]["step"]
    for entry in record["validation"]:
        assert set(entry["accuracy"]) == {"art", "photo"}
        assert entry["mean"] == pytest.approx(sum(entry["accuracy"].values()) / 2)
    assert table.main([str(folder)]) == 0


def test_the_best_row_is_the_result_of_best_val(run):
    settings = node("ERM", STEPS=4, EVALUATE_EVERY=1, PER_DOMAIN=3)
    folder, record, _ = run("ERM", *STEPS, *settings, "TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1)
    assert record["selection_rule"] == "best_val on source validation images"
    best = record["training"]["best_step"]
    result = torch.load(folder / "fine_tuned" / "model-best.pth.tar", weights_only=True)["state_dict"]
    at_best = torch.load(folder / "fine_tuned" / f"model.pth.tar-{best + 1}", weights_only=True)["state_dict"]
    for name, value in result.items():
        assert torch.equal(value, at_best[name]), name


def test_the_last_evaluation_is_the_val_test_of_the_last_step(run):
    """Accuracies by domain, weighed by their images, are the accuracy that the toolbox measures."""
    record = run("ERM", *STEPS, *node("ERM", STEPS=3), "TEST.SPLIT", "val")[1]
    entry = record["validation"][-1]
    assert list(record["metrics"]) == ["val"]
    assert record["metrics"]["val"]["accuracy"] == pytest.approx(entry["mean"])  # as many images of either domain


def test_augmented_validation_changes_what_is_measured_and_nothing_that_is_learned(run):
    crop = ("INPUT.TRANSFORMS", ["random_resized_crop", "normalize"])
    losses, learned = [], []
    for name, on in (("plain", False), ("augmented", True), ("again", True)):
        record = run("CLIPood", *STEPS, *node("CLIPood", STEPS=4, EVALUATE_EVERY=2, VAL_AUGMENT=on), *crop, name=name)[
            1
        ]
        losses.append([entry["loss"] for entry in record["validation"]])
        learned.append(record["learned"])
    assert losses[0] != losses[1] == losses[2]
    assert learned[0] == learned[1]


def test_target_accuracy_is_recorded_where_it_is_asked_for(run):
    record = run("ERM", *STEPS, *node("ERM", STEPS=2, EVALUATE_TARGET=True))[1]
    (target,) = record["target_domains"]
    assert record["validation"][-1]["target"] == {target: pytest.approx(record["metrics"]["last"]["accuracy"])}
    first, last = (sum(seconds.values()) for seconds in (record["evaluated_at"][0], record["evaluated_at"][-1]))
    assert len(record["evaluated_at"]) == len(record["validation"]) and 0 < first <= last < record["seconds"]["total"]


def test_swad_ends_with_the_valley_and_says_what_it_averaged(run):
    """The training stops with the evaluation that shows that the valley has ended."""
    settings = node("SWAD", STEPS=60, EVALUATE_EVERY=1, N_CONVERGE=3, N_TOLERANCE=1, TOLERANCE=0.0, PER_DOMAIN=2)
    folder, record, _ = run("SWAD", "OPTIM.NAME", "adamw", "OPTIM.LR", 0.3, *settings, "TRAIN.CHECKPOINT_FREQ", 1)
    losses, average = [entry["loss"] for entry in record["validation"]], record["training"]["average"]
    segments, end = exact_segments(losses, 3, 1, 0.0)
    assert average["found"] and average["ended"] and end is not None
    assert record["training"]["steps"] == len(losses) == end + 1 < 60
    assert [average["first_step"], average["last_step"]] == [segments[0], segments[-1]]
    assert "valley of the loss on source validation images" in record["selection_rule"]
    states = [weights(folder, f"model.pth.tar-{number + 1}") for number in segments]
    for name, value in weights(folder, "model-best.pth.tar").items():
        torch.testing.assert_close(value, torch.stack([state[name] for state in states]).mean(0), msg=name)
    again = run("SWAD", "OPTIM.NAME", "adamw", "OPTIM.LR", 0.3, *settings, "TRAIN.CHECKPOINT_FREQ", 1)[1]
    assert again["learned"] == record["learned"] and again["training"] == record["training"]  # resumed at its end


def weights(folder, file):
    """The learned parameters of a checkpoint."""
    state = torch.load(folder / "fine_tuned" / file, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if value.is_floating_point()}


NO_VAL = """
from dassl.data.datasets import DATASET_REGISTRY
from dassl_clip.datasets.own_folders import FolderDomains


@DATASET_REGISTRY.register()
class WithoutVal(FolderDomains):
    dataset_dir = ""

    def __init__(self, cfg):
        super().__init__(cfg)
        self._val = None
"""


def test_swad_without_validation_images_is_refused(run, tmp_path):
    file = tmp_path / "without_val.py"
    file.write_text(NO_VAL)
    where = ("--import", file)
    output = run("SWAD", *STEPS, "DATASET.NAME", "WithoutVal", flags=where, code=2)[2]
    assert "AVERAGE is swad" in output.err and "take uniform" in output.err
    record = run("ERM", *STEPS, *node("ERM", STEPS=2), "DATASET.NAME", "WithoutVal", flags=where, name="erm")[1]
    assert record["validation"] == [] and list(record["metrics"]) == ["test"]


# ------------------------------------------------------------------------------------------------------ resuming

METHODS = [
    ("ERM", {"AVERAGE": "uniform"}),
    ("ERM", {"AVERAGE": "swad", "N_CONVERGE": 1, "N_TOLERANCE": 2, "DROPOUT": 0.5, "HEAD": "fresh"}),
    ("CLIPood", {}),
    ("MIRO", {"AVERAGE": "beta"}),
    ("WiSEFT", {"PER_DOMAIN": 0}),
]


@pytest.mark.parametrize(("name", "settings"), METHODS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_stopped_and_resumed_training_is_the_undisturbed_one_to_the_last_bit(run, monkeypatch, name, settings):
    pairs = node(name, **{"STEPS": 8, "EVALUATE_EVERY": 3, "PER_DOMAIN": 2} | settings)
    crop = ("INPUT.TRANSFORMS", ["random_resized_crop", "random_flip", "normalize"], "TRAIN.CHECKPOINT_FREQ", 1)
    whole, record, _ = run(name, *STEPS, *pairs, *crop, name="whole")
    stepped, seen = StepTrainer.stepped, []

    def stopping(trainer):
        stepped(trainer)
        seen.append(trainer.step)
        if len(seen) in (2, 4):  # and stops after the next step: the last one of a part, and one inside a part
            signals.stop.requested = True

    monkeypatch.setattr(StepTrainer, "stepped", stopping)
    for _ in range(2):
        run(name, *STEPS, *pairs, *crop, name="stopped", code=143)
        signals.stop.requested = False
    folder, resumed, _ = run(name, *STEPS, *pairs, *crop, name="stopped")
    assert seen == list(range(8))
    assert resumed["learned"] == record["learned"]
    for key in ("metrics", "validation", "training", "history"):
        assert resumed[key] == record[key], key
    ours, theirs = (newest(each)["parts"]["tracked"] for each in (folder, whole))
    same(ours, theirs)


def newest(folder):
    return torch.load(folder / "fine_tuned" / "model.pth.tar-3", weights_only=True)


def same(one, other):
    """Assert that two trees of numbers and tensors are equal."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other):
            same(*pair)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other or (one != one and other != other)


# ------------------------------------------------------------------------------------------ using what was learned


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("CLIPood", {}),
        ("MIRO", {}),
        ("ERM", {"HEAD": "fresh", "NORMALIZE": False, "INPUT_STATISTICS": "imagenet"}),
        ("SWAD", {}),
    ],
)
def test_what_was_learned_is_evaluated_predicted_and_exported(run, tmp_path, domain_tree, capsys, name, settings):
    folder, record, _ = run(name, *STEPS, *node(name, **{"STEPS": 4, "EVALUATE_EVERY": 2, "PER_DOMAIN": 2} | settings))
    again = run(name, *node(name, **settings), flags=["--eval-only", "--model-dir", folder], name="eval")[2].out
    assert f"accuracy: {record['metrics']['test']['accuracy']:.2f}%" in again
    file = tmp_path / "it.safetensors"
    assert export.main([str(folder), "--out", str(file)]) == 0
    found = []
    for source in (folder, file):
        out = tmp_path / f"{source.name}.csv"
        images = str(domain_tree / "sketch")
        assert predict.main([images, "--run", str(source), "--out", str(out)]) == 0
        found.append(out.read_text())
    capsys.readouterr()
    assert found[0] == found[1] and found[0].count("\n") > 30
    with np.load(folder / "predictions.npz") as file:
        by_path = dict(zip(file["paths"].tolist(), file["classnames"][file["top"][:, 0]].tolist()))
    lines = [line.split(",") for line in found[0].splitlines()[1:]]
    assert {line[0]: line[2] for line in lines if line[1] == "1"} == by_path


def test_amp_keeps_weights_in_float32_and_moves_them_alike(run):
    changes = []
    for precision in ("fp32", "amp"):
        pairs = node("CLIPood", STEPS=3, PREC=precision, PER_DOMAIN=2)
        folder = run("CLIPood", *STEPS, *pairs, name=precision)[0]
        state = weights(folder, "model-best.pth.tar")
        assert {value.dtype for value in state.values()} == {torch.float32}
        changes.append(torch.cat([value.flatten() for value in state.values()]))
    difference = (changes[0] - changes[1]).abs().max()
    assert 0 < difference < 6e-3  # three steps of 1e-3, in other directions where gradients are near 0


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (("BETA", 0.1), "TRAINER.ERM.BETA is 0.1, a setting of the average beta, but AVERAGE is none"),
        (("SHARES", "released", "AVERAGE", "beta"), "SHARES is released, a setting of the average swad, but AVERAGE"),
        (("AVERAGE_START", 9, "AVERAGE", "uniform", "STEPS", 8), "a training of 8 STEPS has no weights behind it"),
    ],
)
def test_settings_of_another_average_are_refused_in_one_line(run, pairs, said):
    words = [word if number % 2 else f"TRAINER.ERM.{word}" for number, word in enumerate(pairs)]
    err = run("ERM", *words, code=2)[2].err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said in line
