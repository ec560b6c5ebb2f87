"""The checkpoints of a run without a trainer: what is saved, loaded, resumed, set aside and refused.

Covers `engine/checkpoints.py`: parts, optimiser and rate after a resume, files inside an epoch and which of them stay,
the state of a fit and its problem, torn and changed files, the best model, other configurations, images, backbones and
classes, and foreign states. Whole runs are in `test_resume.py`.
"""

import pytest
import torch
from torch import nn

from dassl_clip.engine.checkpoint_files import BEST_NAME, epoch_name, step_name
from dassl_clip.engine.checkpoints import Checkpoints, Run
from dassl_clip.engine.config import default_config
from dassl_clip.engine.schedule import EpochSchedule
from dassl_clip.results.errors import MissingFileError, UserError
from dassl_clip.results.run_data import RunData

BACKBONE = {"name": "small", "weights_hash": "a" * 64}
HISTORY = [{"epoch": 1, "lr": 0.1}]


@pytest.fixture
def build(tmp_path):
    """`build(value, ...)` gives checkpoints of a layer with weights of this value, its optimiser and its schedule."""

    def go(value=1.0, folder="run", has_epochs=True, images=("cat",), pairs=(), **facts):
        cfg = default_config()
        cfg.merge_from_list(["OPTIM.MAX_EPOCH", 4, "OPTIM.LR_SCHEDULER", "cosine", *pairs])
        layer = nn.Linear(2, 1, bias=False)
        nn.init.constant_(layer.weight, value)
        optim = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9) if has_epochs else None
        sched = EpochSchedule(optim, cfg.OPTIM) if has_epochs else None
        run = {"backbone": BACKBONE, "classnames": ["cat"], "data": lambda: RunData(images, ()), **facts}
        parts = {"part": layer}, {"part": optim}, {"part": sched}
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        run = Run("Method", cfg, **run)
        return Checkpoints(tmp_path / folder, run, *parts, scaler, lambda: {"history": HISTORY}), layer, optim, sched

    return go


def files_of(checkpoints):
    return sorted(path.name for path in (checkpoints.folder / "part").iterdir() if path.name != "checkpoint")


def test_a_part_is_resumed_with_its_optimiser_and_rate(build):
    saved, layer, optim, sched = build()
    layer.weight.grad = torch.ones(1, 2)
    optim.step()
    sched.step()
    saved.save_epoch(1, True, saved.folder)
    resumed, other, again, _ = build(5.0)
    state = resumed.resume(saved.folder)
    assert state["epoch"] == 1 and state["history"] == HISTORY and resumed.resumed is None
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(again.state_dict()["state"][0]["momentum_buffer"], torch.ones(1, 2))
    assert again.param_groups[0]["lr"] == optim.param_groups[0]["lr"] < 0.1


def test_the_two_newest_files_inside_an_epoch_stay_until_it_is_done(build):
    saved, layer, *_ = build()
    for step in (2, 4, 6):
        nn.init.constant_(layer.weight, step)
        saved.save_step(1, step, {"terms": {"loss": [0.5] * step}, "lr": 0.1})
    assert files_of(saved) == [step_name(1, 4), step_name(1, 6)]
    resumed, other, *_ = build()
    resumed.resume(saved.folder)
    assert resumed.resumed == {"step": 6, "terms": {"loss": [0.5] * 6}, "lr": 0.1} and other.weight[0, 0].item() == 6
    saved.save_epoch(2, True, saved.folder)
    assert files_of(saved) == [epoch_name(2), step_name(1, 6)]
    saved.save_epoch(4, False, saved.folder)
    assert files_of(saved) == [epoch_name(2), epoch_name(4)]


def test_the_state_of_a_fit_is_that_of_its_problem(build, caplog):
    saved, *_ = build(has_epochs=False)
    saved.save_fit(3, "texts", {"moment": torch.ones(2)})
    resumed, *_ = build(has_epochs=False)
    assert resumed.load_fit_state("texts") is None
    resumed.resume(saved.folder)
    assert torch.equal(resumed.load_fit_state("texts")["moment"], torch.ones(2))
    assert resumed.load_fit_state("other texts") is None and "has changed since" in caplog.text


def test_a_torn_or_changed_file_is_set_aside_for_the_one_before(build, caplog):
    saved, layer, *_ = build()
    for epochs in (1, 2, 3):
        nn.init.constant_(layer.weight, epochs)
        saved.save_epoch(epochs, True, saved.folder)
    (saved.folder / "part" / epoch_name(3)).write_bytes(b"torn")
    path = saved.folder / "part" / epoch_name(2)
    torch.save({**torch.load(path, weights_only=True), "state_dict": {"weight": torch.zeros(1, 2)}}, path)
    resumed, other, *_ = build()
    assert resumed.resume(saved.folder)["epoch"] == 1 and other.weight[0, 0].item() == 1
    assert files_of(saved) == [epoch_name(1), f"{epoch_name(2)}.torn", f"{epoch_name(3)}.torn"]
    assert "another sha256" in caplog.text


def test_the_best_model_is_loaded_or_else_the_last(build):
    saved, layer, *_ = build()
    saved.save_epoch(2, True, saved.folder)
    loaded, other, *_ = build(5.0)
    loaded.load(saved.folder)
    assert other.weight[0, 0].item() == 1
    nn.init.constant_(layer.weight, 7)
    saved.save_epoch(1, True, saved.folder, BEST_NAME, val_result=50.0)
    loaded.load(saved.folder)
    assert other.weight[0, 0].item() == 7
    with pytest.raises(MissingFileError, match=r"beside it: checkpoint, model-best.pth.tar, model.pth.tar-2"):
        loaded.load(saved.folder, epoch=9)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"pairs": ["OPTIM.LR", 0.5]}, "of another configuration .*OPTIM.LR"),
        ({"images": ("dog",)}, "trained on other images"),
        ({"backbone": {"name": "large", "weights_hash": "b" * 64}}, "was trained on backbone small"),
        ({"classnames": ["dog"], "class_specific": True}, "holds parts for other classes"),
    ],
)
def test_what_is_of_another_run_is_not_resumed(build, change, message):
    saved, *_ = build()
    saved.save_epoch(1, True, saved.folder)
    other, *_ = build(**change)
    with pytest.raises(UserError, match=message):
        other.resume(saved.folder)


def test_a_method_without_epochs_starts_again(build, caplog):
    saved, *_ = build(has_epochs=False)
    saved.save_epoch(1, False, saved.folder)
    other, layer, *_ = build(5.0, has_epochs=False, images=("dog",))
    assert other.resume(saved.folder) is None and layer.weight[0, 0].item() == 5
    assert "training from the start" in caplog.text


def test_the_checkpoint_of_another_folder_is_a_start_that_need_not_agree(build, caplog):
    saved, *_ = build()
    saved.save_epoch(1, True, saved.folder)
    other, layer, *_ = build(5.0, folder="other", images=("dog",))
    assert other.resume(saved.folder)["epoch"] == 1 and layer.weight[0, 0].item() == 1
    assert "trained on other images" in caplog.text
    nn.init.constant_(layer.weight, 3)
    other.save_epoch(2, True, other.folder)
    again, layer, *_ = build(5.0, folder="other", images=("dog",))
    assert again.resume(saved.folder)["epoch"] == 2 and layer.weight[0, 0].item() == 3


def test_foreign_states_are_adapted_and_may_lack_what_no_score_reads(build, tmp_path):
    torch.save({"theirs": torch.full((1, 2), 4.0)}, tmp_path / "theirs.pth")
    rename = lambda state: {"weight": state["theirs"]} if "theirs" in state else state  # noqa: E731
    reader, layer, *_ = build(adapt=rename)
    reader.load_into(layer, tmp_path / "theirs.pth")
    assert layer.weight[0, 0].item() == 4
    torch.save({"theirs": torch.zeros(0)}, tmp_path / "empty.pth")
    reader, layer, *_ = build(adapt=lambda state: {}, unread=("weight",))
    reader.load_into(layer, tmp_path / "empty.pth")
    assert layer.weight[0, 0].item() == 1
