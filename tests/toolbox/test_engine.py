"""The engine: registered models, the order of events, console lines, scalars, files, resuming, selection, testing."""

import math
import os
import re
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY, SimpleNet, SimpleTrainer, TrainerBase, TrainerX, TrainerXU, build_trainer
from dassl.modeling import BACKBONE_REGISTRY, Backbone
from dassl.utils import load_checkpoint

PROGRESS = re.compile(
    r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\] time \d+\.\d{3} \(\d+\.\d{3}\) data \d+\.\d{3} \(\d+\.\d{3}\) "
    r"loss (\d+\.\d{4}) \((\d+\.\d{4})\) lr (\d\.\d{4}e[+-]\d\d) eta \d+:\d\d:\d\d"
)


@pytest.fixture
def mini():
    """The class of the minimal plugin."""
    return TRAINER_REGISTRY.get("MiniTrainer")


def weights_of(trainer) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second))


class Recorder:
    """Stands in for tensorboard's writer."""

    def __init__(self):
        self.scalars: dict[str, list] = {}

    def add_scalar(self, tag, value, step):
        self.scalars.setdefault(tag, []).append((step, value))

    def close(self):
        self.closed = True


class TestBase:
    def test_registration(self):
        class Late(TrainerBase):
            def __init__(self):
                self.register_model("early", nn.Linear(1, 1))

        with pytest.raises(AttributeError):
            Late()
        trainer = TrainerBase()
        model, optim, sched = nn.Linear(1, 1), object(), object()
        trainer.register_model("a", model, optim, sched)
        trainer.register_model(model=nn.Linear(1, 1))
        assert (trainer._models["a"], trainer._optims["a"], trainer._scheds["a"]) == (model, optim, sched)
        assert trainer.get_model_names() == ["a", "model"]
        assert trainer.get_model_names("a") == trainer.get_model_names(["a"]) == ["a"]
        with pytest.raises(AssertionError, match='"a"'):
            trainer.register_model("a", model)
        with pytest.raises(AssertionError, match="'a', 'model'"):
            trainer.get_model_names(["b"])

    def test_modes(self):
        trainer = TrainerBase()
        for name in ("a", "b"):
            trainer.register_model(name, nn.Linear(1, 1))
        trainer.set_model_mode("eval")
        trainer.set_model_mode("train", "b")
        assert [model.training for model in trainer._models.values()] == [False, True]
        trainer.set_model_mode("test", ["b"])
        assert not trainer._models["b"].training
        with pytest.raises(KeyError):
            trainer.set_model_mode("valid")

    def test_anomalies(self):
        for bad in (math.nan, math.inf, -math.inf):
            with pytest.raises(FloatingPointError, match=r"^Loss is infinite or NaN!$"):
                TrainerBase().detect_anomaly(torch.tensor(bad))
        TrainerBase().detect_anomaly(torch.tensor(1.0))

    def test_updates_of_named_models(self):
        trainer = TrainerBase()
        for name in ("a", "b"):
            model = nn.Linear(1, 1, bias=False)
            nn.init.ones_(model.weight)
            trainer.register_model(name, model, torch.optim.SGD(model.parameters(), lr=1.0))
        trainer.register_model("frozen", nn.Linear(1, 1))
        models = trainer._models
        loss = models["a"].weight.sum() * models["b"].weight.sum()
        trainer.model_backward_and_update(loss, names="a")
        assert (models["a"].weight.item(), models["b"].weight.item()) == (0.0, 1.0)
        trainer.model_backward_and_update(2 * models["b"].weight.sum())
        assert models["b"].weight.item() == -1.0

    def test_scalars_without_a_writer(self):
        trainer = TrainerBase()
        trainer.write_scalar("a", 1.0, 0)
        trainer.close_writer()


class TestOrderOfEvents:
    @pytest.fixture
    def events(self, mini, make_cfg):
        events = []

        class Watched(mini):
            def check_cfg(self, cfg):
                events.append("check_cfg")

            def forward_backward(self, batch):
                events.append(("batch", self.epoch, self.batch_idx, self.num_batches, self.model.training))
                return super().forward_backward(batch)

        hooks = ("before_train", "before_epoch", "after_epoch", "after_train")
        for name in ("build_data_loader", "build_model", *hooks, "test"):

            def watch(self, *args, name=name, **kwargs):
                events.append((name, *args, *kwargs.values()))
                return getattr(super(Watched, self), name)(*args, **kwargs)

            setattr(Watched, name, watch)
        return events, Watched

    def test_last_step(self, events, make_cfg):
        events, kind = events
        trainer = kind(make_cfg("OPTIM.MAX_EPOCH", 2))
        assert events == ["check_cfg", ("build_data_loader",), ("build_model",)]
        events.clear()
        trainer.train()
        assert events == [
            ("before_train",),
            *(
                event
                for epoch in range(2)
                for event in (
                    ("before_epoch",), *(("batch", epoch, number, 4, True) for number in range(4)), ("after_epoch",)
                )
            ),
            ("after_train",),
            ("test",),
        ]  # fmt: skip
        assert not trainer.model.training

    def test_best_val(self, events, make_cfg):
        events, kind = events
        kind(make_cfg("OPTIM.MAX_EPOCH", 2, "TEST.FINAL_MODEL", "best_val")).train()
        names = [event[0] for event in events if event[0] not in {"batch", "b"}]
        assert names[3:] == ["before_train", *["before_epoch", "after_epoch", "test"] * 2, "after_train", "test"]
        assert [event for event in events if event[0] == "test"] == [("test", "val"), ("test", "val"), ("test",)]


class TestMinimalPlugin:
    def test_trains_saves_and_tests(self, make_cfg, capsys):
        trainer = build_trainer(make_cfg("OPTIM.MAX_EPOCH", 8, "OPTIM.LR", 0.05))
        before = weights_of(trainer)
        trainer.train()
        assert not same(before, weights_of(trainer))
        folder = Path(trainer.output_dir, "mini")
        assert sorted(os.listdir(folder)) == ["checkpoint", "model.pth.tar-8"]
        checkpoint = load_checkpoint(str(folder / "model.pth.tar-8"))
        assert checkpoint["epoch"] == 8 and checkpoint["val_result"] is None
        assert {"state_dict", "optimizer", "scheduler"} <= set(checkpoint)
        assert same(weights_of(trainer), checkpoint["state_dict"].values())
        out = capsys.readouterr().out.splitlines()
        end = out.index("Finish training")
        lines = ["Finish training", "Deploy the last-epoch model", "Evaluate on the *test* set", "=> result"]
        assert out[end : end + 4] == lines
        assert re.fullmatch(r"Elapsed: \d+:\d\d:\d\d", out[-1])
        accuracy = float(re.fullmatch(r"\* accuracy: ([\d.]+)%", out[end + 6])[1])
        assert accuracy == pytest.approx(trainer.test(), abs=0.005) and accuracy > 60

    @pytest.mark.parametrize(("every", "files"), [(0, [5]), (2, [2, 4, 5]), (1, [1, 2, 3, 4, 5])])
    def test_checkpoint_frequency(self, make_cfg, every, files):
        trainer = build_trainer(make_cfg("OPTIM.MAX_EPOCH", 5, "TRAIN.CHECKPOINT_FREQ", every, "TEST.NO_TEST", True))
        trainer.train()
        names = {f"model.pth.tar-{epoch}" for epoch in files}
        assert set(os.listdir(Path(trainer.output_dir, "mini"))) == {"checkpoint", *names}

    @pytest.mark.parametrize(("every", "printed"), [(2, [2, 4]), (3, [3]), (4, [4]), (5, [1, 2, 3, 4])])
    def test_progress_lines(self, make_cfg, capsys, every, printed):
        cfg = make_cfg("TRAIN.PRINT_FREQ", every, "OPTIM.MAX_EPOCH", 2)
        trainer = build_trainer(cfg)
        trainer.train()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch [")]
        matches = [PROGRESS.fullmatch(line).groups() for line in lines]
        expected = [(str(epoch), "2", str(batch), "4") for epoch in (1, 2) for batch in printed]
        assert [match[:4] for match in matches] == expected
        base, following = cfg.OPTIM.LR, cfg.OPTIM.LR / 2 * (1 + math.cos(math.pi / 2))
        for epoch, _, batch, _, _, _, rate in matches:
            rates = {"1": (1e-5, base), "2": (base, following)}[epoch]
            assert rate == f"{rates[batch == '4']:.4e}"

    def test_scalars_and_their_steps(self, make_cfg):
        trainer = build_trainer(make_cfg("OPTIM.MAX_EPOCH", 2, "TEST.FINAL_MODEL", "best_val"))
        recorder = trainer._writer = Recorder()
        trainer.train()
        scalars = recorder.scalars
        assert (
            [step for step, _ in scalars["train/loss"]] == list(range(8)) == [step for step, _ in scalars["train/lr"]]
        )
        for split, steps in (("val", [0, 1]), ("test", [1])):
            for name in ("accuracy", "error_rate", "macro_f1"):
                assert [step for step, _ in scalars[f"{split}/{name}"]] == steps
        assert recorder.closed and trainer._writer is None

    def test_mean_loss_is_that_of_the_epoch(self, make_cfg, mini):
        class Counting(mini):
            def forward_backward(self, batch):
                return {"loss": float(self.epoch * 10 + self.batch_idx)}

        trainer = Counting(make_cfg("OPTIM.MAX_EPOCH", 2))
        recorder = trainer._writer = Recorder()
        trainer.train()
        assert [value for _, value in recorder.scalars["train/loss"]] == [0, 0.5, 1, 1.5, 10, 10.5, 11, 11.5]

    def test_tensorboard_file(self, make_cfg):
        pytest.importorskip("tensorboard")
        trainer = build_trainer(make_cfg("OPTIM.MAX_EPOCH", 1))
        trainer.train()
        assert [
            name.startswith("events.out.tfevents.") for name in os.listdir(Path(trainer.output_dir, "tensorboard"))
        ] == [True]


class TestResume:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_resumed_run_equals_an_uninterrupted_one(self, make_cfg, workers):
        settings = ("TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.MAX_EPOCH", 4, "OPTIM.NAME", "adam")
        whole = build_trainer(make_cfg(*settings))
        whole.train()
        other = f"{whole.output_dir}_other"
        shutil.copytree(whole.output_dir, other)
        for epoch in (3, 4):
            os.remove(Path(other, "mini", f"model.pth.tar-{epoch}"))
        Path(other, "mini", "checkpoint").write_text("model.pth.tar-2\n")
        resumed = build_trainer(make_cfg(*settings, "OUTPUT_DIR", other, "DATALOADER.NUM_WORKERS", workers))
        resumed.train()
        assert resumed.start_epoch == 2
        assert same(weights_of(whole), weights_of(resumed))
        files = [
            load_checkpoint(os.path.join(folder, "mini", "model.pth.tar-4")) for folder in (whole.output_dir, other)
        ]
        assert files[0]["scheduler"] == files[1]["scheduler"]
        states = [file["run_state"] for file in files]
        assert torch.equal(states[0]["torch"], states[1]["torch"])
        assert torch.equal(states[0]["python"]["numbers"], states[1]["python"]["numbers"])
        assert torch.equal(states[0]["numpy"]["keys"], states[1]["numpy"]["keys"])
        assert states[0]["loaders"]["train_loader_x"] == states[1]["loaders"]["train_loader_x"] == 4

    def test_another_folder(self, make_cfg, capsys):
        first = build_trainer(make_cfg("OPTIM.MAX_EPOCH", 2))
        first.train()
        cfg = make_cfg("OPTIM.MAX_EPOCH", 3, "RESUME", first.output_dir, "OUTPUT_DIR", f"{first.output_dir}_next")
        capsys.readouterr()
        build_trainer(cfg).train()
        out = capsys.readouterr().out
        assert f"Found checkpoint at {first.output_dir} (will resume training)" in out
        assert out.count("epoch [3/3]") == 4 and "epoch [2/3]" not in out
        assert os.listdir(Path(f"{first.output_dir}_next", "mini")).count("model.pth.tar-3") == 1

    @pytest.mark.parametrize("make_folder", [False, True])
    def test_nothing_to_resume(self, make_cfg, capsys, make_folder):
        trainer = build_trainer(make_cfg())
        if make_folder:
            os.makedirs(Path(trainer.output_dir, "mini"))
        assert trainer.resume_model_if_exist(trainer.output_dir) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "No checkpoint found, train from scratch"

    def test_finished_run_is_tested_again_under_its_last_epoch(self, make_cfg, capsys):
        first = build_trainer(make_cfg())
        first.train()
        again = build_trainer(make_cfg())
        recorder = again._writer = Recorder()
        capsys.readouterr()
        again.train()
        out = capsys.readouterr().out
        assert "epoch [" not in out and "All 3 epochs were trained by an earlier run" in out
        assert recorder.scalars["test/accuracy"][0][0] == 2
        assert same(weights_of(first), weights_of(again))

    def test_foreign_checkpoint_without_extra_keys(self, make_cfg):
        first = build_trainer(make_cfg("OPTIM.MAX_EPOCH", 2))
        first.train()
        path = Path(first.output_dir, "mini", "model.pth.tar-2")
        checkpoint = load_checkpoint(str(path))
        torch.save({key: checkpoint[key] for key in ("state_dict", "epoch", "optimizer", "scheduler")}, path)
        resumed = build_trainer(make_cfg())
        assert resumed.resume_model_if_exist(first.output_dir) == 2
        assert resumed.train_loader_x.epochs_started == 2

    def test_other_classes_are_named(self, make_cfg, mini):
        build_trainer(make_cfg()).train()

        class Wider(mini):
            def build_model(self):
                self.num_classes += 1
                super().build_model()

        with pytest.raises(RuntimeError, match=r"weight \(\(3, 192\) in the file, \(4, 192\) in the model\)"):
            Wider(make_cfg()).train()

    def test_scaler_is_restored(self, make_cfg, mini):
        class Scaled(mini):
            def build_model(self):
                super().build_model()
                self.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

        first = Scaled(make_cfg())
        first.scaler.update(new_scale=2.0) if first.scaler._scale is not None else first.scaler.load_state_dict(
            {**first.scaler.state_dict(), "scale": 2.0}
        )
        first.train()
        second = Scaled(make_cfg())
        assert second.scaler.get_scale() == 8.0
        second.resume_model_if_exist(second.output_dir)
        assert second.scaler.get_scale() == 2.0


class TestSelection:
    @pytest.fixture
    def scripted(self, mini):
        """Makes trainers whose validation results are given."""

        def make(cfg, results):
            class Scripted(mini):
                def test(self, split=None):
                    return results[self.epoch] if split == "val" else super().test(split)

            return Scripted(cfg)

        return make

    def test_best_epoch_is_saved_and_deployed(self, make_cfg, scripted, capsys):
        cfg = make_cfg("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 4)
        trainer = scripted(cfg, [10.0, 30.0, 30.0, 20.0])
        trainer.train()
        folder = Path(trainer.output_dir, "mini")
        best = load_checkpoint(str(folder / "model-best.pth.tar"))
        assert (best["epoch"], best["val_result"]) == (2, 30.0)
        assert sorted(os.listdir(folder)) == ["checkpoint", "model-best.pth.tar", "model.pth.tar-4"]
        assert (folder / "checkpoint").read_text() == "model.pth.tar-4\n"
        assert same(weights_of(trainer), best["state_dict"].values())
        out = capsys.readouterr().out
        assert "Deploy the model with the best val performance" in out
        assert f"Load {folder / 'model-best.pth.tar'} to mini (epoch=2, val_result=30.0)" in out

    def test_best_result_survives_a_resume(self, make_cfg, scripted):
        settings = ("TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1)
        scripted(make_cfg(*settings, "OPTIM.MAX_EPOCH", 2), [50.0, 40.0]).train()
        trainer = scripted(make_cfg(*settings, "OPTIM.MAX_EPOCH", 4), [0.0, 0.0, 45.0, 49.0])
        trainer.train()
        assert trainer.start_epoch == 2 and trainer.best_result == 50.0
        best = load_checkpoint(str(Path(trainer.output_dir, "mini", "model-best.pth.tar")))
        assert (best["epoch"], best["val_result"]) == (1, 50.0)

    def test_resumed_run_in_a_new_folder_deploys_something(self, make_cfg, scripted):
        settings = ("TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 1)
        first = scripted(make_cfg(*settings, "OPTIM.MAX_EPOCH", 2), [50.0, 40.0])
        first.train()
        best = load_checkpoint(str(Path(first.output_dir, "mini", "model-best.pth.tar")))
        new = ("OUTPUT_DIR", f"{first.output_dir}_new", "RESUME", first.output_dir, "OPTIM.MAX_EPOCH", 3)
        trainer = scripted(make_cfg(*settings, *new), [0.0, 0.0, 45.0])
        with pytest.warns(UserWarning, match="No epoch of this run was better"):
            trainer.train()
        assert same(weights_of(trainer), best["state_dict"].values())
        os.remove(Path(first.output_dir, "mini", "model-best.pth.tar"))
        new = ("OUTPUT_DIR", f"{first.output_dir}_newer", "RESUME", first.output_dir, "OPTIM.MAX_EPOCH", 3)
        trainer = scripted(make_cfg(*settings, *new), [0.0, 0.0, 45.0])
        with pytest.warns(UserWarning, match="last-epoch model is deployed"):
            trainer.train()

    def test_unfinished_run_resumes_from_its_newest_epoch(self, make_cfg, scripted):
        settings = ("TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", 2, "OPTIM.MAX_EPOCH", 4)
        trainer = scripted(make_cfg(*settings), [1.0, 2.0, 9.0, 3.0])
        trainer.after_train = lambda: None
        trainer.train()
        folder = Path(trainer.output_dir, "mini")
        os.remove(folder / "model.pth.tar-4")
        (folder / "checkpoint").write_text("model-best.pth.tar\n")
        resumed = scripted(make_cfg(*settings), [0.0, 0.0, 8.0, 3.0])
        resumed.train()
        assert resumed.start_epoch == 2
        assert load_checkpoint(str(folder / "model-best.pth.tar"))["val_result"] == 9.0

    def test_selection_on_test_data_is_said_loudly(self, make_cfg, monkeypatch, capsys):
        cfg = make_cfg("TEST.FINAL_MODEL", "best_val", "DATASET.NAME", "ToyWithoutVal", "OPTIM.MAX_EPOCH", 1)
        with pytest.warns(UserWarning, match="THE TEST SET SELECTS THE MODEL"):
            build_trainer(cfg).train()
        assert capsys.readouterr().out.count("WARNING: THE TEST SET SELECTS THE MODEL") == 1
        monkeypatch.setenv("DASSL_REFUSE_TEST_SELECTION", "1")
        with pytest.raises(ValueError, match="refused"):
            build_trainer(cfg).train()
        trainer = build_trainer(make_cfg("TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 1))
        trainer.train()
        trainer.dm.dataset._val = trainer.dm.dataset.test[:1]
        with pytest.raises(ValueError, match="shares images"):
            trainer.before_train()

    def test_no_test_means_no_best_file(self, make_cfg):
        trainer = build_trainer(make_cfg("TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", True))
        with pytest.warns(UserWarning, match="no best model"):
            trainer.train()
        assert "model-best.pth.tar" not in os.listdir(Path(trainer.output_dir, "mini"))


class TestTesting:
    def test_splits(self, make_cfg, capsys):
        trainer = build_trainer(make_cfg())
        trainer.test()
        trainer.test("val")
        trainer.test(split="test")
        without = build_trainer(make_cfg("DATASET.NAME", "ToyWithoutVal", "TEST.SPLIT", "val"))
        recorder = without._writer = Recorder()
        without.test()
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Evaluate")]
        assert lines == [f"Evaluate on the *{split}* set" for split in ("test", "val", "test", "test")]
        assert "test/accuracy" in recorder.scalars

    def test_result_is_a_plain_float_without_gradients(self, make_cfg, mini):
        seen = []

        class Watched(mini):
            def model_inference(self, input):
                seen.append((torch.is_grad_enabled(), self.model.training))
                return super().model_inference(input)

        assert type(Watched(make_cfg()).test()) is float
        assert set(seen) == {(False, False)}

    def test_inference_hands_further_arguments_on(self, make_cfg):
        trainer = build_trainer(make_cfg())
        trainer.model = lambda image, label: (image, label)
        assert trainer.model_inference(1, 2) == (1, 2)

    def test_loading_a_given_epoch(self, make_cfg, capsys):
        trained = build_trainer(make_cfg("TRAIN.CHECKPOINT_FREQ", 1))
        trained.train()
        trainer = build_trainer(make_cfg("OUTPUT_DIR", "unused"))
        capsys.readouterr()
        trainer.load_model("")
        assert len(capsys.readouterr().out.splitlines()) == 1
        trainer.load_model(trained.output_dir, epoch=3)
        assert same(weights_of(trained), weights_of(trainer))
        path = Path(trained.output_dir, "mini", "model.pth.tar-3")
        assert capsys.readouterr().out == f"Load {path} to mini (epoch=3)\n"
        with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-7.*model\.pth\.tar-3"):
            trainer.load_model(trained.output_dir, epoch=7)
        with pytest.raises(FileNotFoundError, match="model-best"):
            trainer.load_model(trained.output_dir)
        with pytest.raises(FileNotFoundError, match="does not exist"):
            trainer.load_model("nowhere", epoch=1)

    def test_trainer_without_models_only_tests(self, make_cfg, capsys):
        class ZeroShot(TrainerX):
            def build_model(self):
                self.model = lambda image: image.mean((2, 3))

        for settings in ((), ("TEST.FINAL_MODEL", "best_val")):
            trainer = ZeroShot(make_cfg(*settings))
            trainer.train()
            out = capsys.readouterr().out
            assert "nothing to train" in out and "=> result" in out and "epoch [" not in out
        assert trainer.test() == ZeroShot(make_cfg()).test()

    def test_unregistered_model_that_trains_is_trained(self, make_cfg, capsys):
        class Hidden(TrainerX):
            def build_model(self):
                self.model, self.calls = nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), 0

            def forward_backward(self, batch):
                self.calls += 1

        trainer = Hidden(make_cfg("OPTIM.MAX_EPOCH", 2))
        trainer.train()
        assert trainer.calls == 8
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ["))
        assert "  " not in line and "lr 0.0000e+00" in line


class TestTrainerXU:
    @pytest.fixture
    def kind(self, mini):
        class Pairs(TrainerXU):
            build_model = mini.build_model

            def forward_backward(self, batch_x, batch_u):
                self.seen.append((batch_x["index"].tolist(), batch_u["index"].tolist()))
                image, label, unlabelled = self.parse_batch_train(batch_x, batch_u)
                loss = F.cross_entropy(self.model(image), label) + 0 * self.model(unlabelled).sum()
                self.model_backward_and_update(loss)
                return {"loss": loss.item()}

        return Pairs

    @pytest.mark.parametrize(("count", "batches"), [("train_x", 4), ("train_u", 9), ("smaller_one", 4)])
    def test_number_of_batches(self, kind, make_cfg, count, batches):
        unlabelled = ("DATALOADER.TRAIN_U.SAME_AS_X", False, "DATALOADER.TRAIN_U.BATCH_SIZE", 4)
        cfg = make_cfg("DATASET.NAME", "ToyUnlabelled", "TRAIN.COUNT_ITER", count, "OPTIM.MAX_EPOCH", 1, *unlabelled)
        trainer = kind(cfg)
        trainer.seen = []
        trainer.train()
        assert trainer.num_batches == len(trainer.seen) == batches
        labelled = [index for batch, _ in trainer.seen[:4] for index in batch]
        assert sorted(labelled) == list(range(36))
        if count == "train_u":
            assert sorted(index for _, batch in trainer.seen for index in batch) == list(range(36))
            assert trainer.seen[4][0] != trainer.seen[0][0]

    def test_errors(self, kind, make_cfg):
        with pytest.raises(ValueError, match="bigger_one"):
            kind(make_cfg("DATASET.NAME", "ToyUnlabelled", "TRAIN.COUNT_ITER", "bigger_one")).train()
        with pytest.raises(AssertionError, match="train_u"):
            kind(make_cfg()).train()


class TestSimpleParts:
    @pytest.fixture(autouse=True)
    def backbone(self):
        class Flat(Backbone):
            def __init__(self, scale):
                super().__init__()
                self._out_features, self.scale = 192, scale

            def forward(self, x):
                return x.flatten(1) * self.scale

        def flat(pretrained=True, scale=1.0, **kwargs):
            return Flat(scale if pretrained else 0.0)

        BACKBONE_REGISTRY.register(flat, force=True)

    def test_simple_net(self, make_cfg):
        cfg = make_cfg("MODEL.BACKBONE.NAME", "flat")
        image = torch.randn(2, 3, 8, 8)
        net = SimpleNet(cfg, cfg.MODEL, 5, scale=2.0)
        logits, features = net(image, return_feature=True)
        assert torch.equal(features, 2 * image.flatten(1)) and net.fdim == 192 and net.head is None
        assert torch.equal(logits, net.classifier(features)) and torch.equal(net(image), logits)
        bare = SimpleNet(cfg, cfg.MODEL, 0)
        assert bare.classifier is None and torch.equal(bare(image), image.flatten(1))
        cfg = make_cfg(
            "MODEL.BACKBONE.NAME", "flat", "MODEL.BACKBONE.PRETRAINED", False, "MODEL.HEAD.NAME", "mlp",
            "MODEL.HEAD.HIDDEN_LAYERS", (7, 6), "MODEL.HEAD.ACTIVATION", "leaky_relu", "MODEL.HEAD.DROPOUT", 0.5,
        )  # fmt: skip
        net = SimpleNet(cfg, cfg.MODEL, 5)
        kinds = ["Linear", "BatchNorm1d", "LeakyReLU", "Dropout"]
        assert [type(layer).__name__ for layer in net.head] == kinds * 2
        assert net.fdim == 6 and net(image).shape == (2, 5)

    def test_default_model_and_vanilla(self, make_cfg, tmp_path):
        cfg = make_cfg("TRAINER.NAME", "Vanilla", "MODEL.BACKBONE.NAME", "flat", "OPTIM.MAX_EPOCH", 1)
        trainer = build_trainer(cfg)
        assert isinstance(trainer, SimpleTrainer) and trainer.get_model_names() == ["model"]
        trainer.train()
        assert trainer.get_current_lr() == pytest.approx(cfg.OPTIM.LR)
        torch.save(trainer.model.state_dict(), tmp_path / "init.pth")
        pairs = ("TRAINER.NAME", "Vanilla", "MODEL.BACKBONE.NAME", "flat")
        again = build_trainer(make_cfg(*pairs, "MODEL.INIT_WEIGHTS", str(tmp_path / "init.pth")))
        assert same(weights_of(trainer), weights_of(again))

    def test_default_batch_has_the_domain(self, make_cfg):
        trainer = build_trainer(make_cfg())
        batch = next(iter(trainer.train_loader_x))
        image, label, domain = TrainerX.parse_batch_train(trainer, batch)
        assert torch.equal(image, batch["img"]) and torch.equal(label, batch["label"])
        assert torch.equal(domain, batch["domain"]) and set(domain.tolist()) == {0, 1}


def test_9_3_what_is_only_shown_may_be_not_finite(make_cfg, mini, capsys):
    """(row 9.3) A masked term without any item, a step that a loss scaler leaves out: the run ends as without it."""

    class Masked(mini):
        def forward_backward(self, batch):
            shown = super().forward_backward(batch)
            empty = self.batch_idx == 2
            return {**shown, "loss_u": math.nan if empty else 0.5, "scale": math.inf if empty else 1.0}

    trainer = Masked(make_cfg())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    told = [str(item.message) for item in caught if "epoch 1, batch 3 of 4" in str(item.message)]
    assert [line.split(" at ")[0] for line in told] == ["loss_u is nan", "scale is inf"]
    assert not [item for item in caught if "at epoch 2" in str(item.message)]
    assert "loss_u nan (nan)" in capsys.readouterr().out
    plain = mini(make_cfg("OUTPUT_DIR", f"{trainer.output_dir}-plain"))
    plain.train()
    assert same(weights_of(trainer), weights_of(plain))


@pytest.mark.parametrize("names", [None, "mini"])
def test_9_3_the_optimised_loss_must_be_finite(make_cfg, mini, names):
    class Broken(mini):
        def forward_backward(self, batch):
            image, label = self.parse_batch_train(batch)
            loss = F.cross_entropy(self.model(image), label) / (0 if self.batch_idx == 2 else 1)
            self.model_backward_and_update(loss, names)
            self.steps = self.batch_idx + 1
            return {"acc": 1.0}

    trainer = Broken(make_cfg())
    with pytest.raises(FloatingPointError, match=r"^Loss is infinite or NaN!$"):
        trainer.train()
    assert trainer.steps == 2 and all(torch.isfinite(value).all() for value in weights_of(trainer))


def test_data_manager_fills_what_an_override_left_out(make_cfg, mini):
    from dassl.data import DataManager

    class Custom(mini):
        def build_data_loader(self):
            self.dm = DataManager(self.cfg)
            self.train_loader_x = self.dm.train_loader_x
            self.num_classes = self.dm.num_classes

    trainer = Custom(make_cfg("OPTIM.MAX_EPOCH", 1))
    trainer.train()
    assert trainer.lab2cname == {0: "cat", 1: "dog", 2: "emu"} and trainer.test_loader is trainer.dm.test_loader


def test_deterministic_switch(make_cfg, monkeypatch):
    monkeypatch.setenv("DASSL_DETERMINISTIC", "1")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        build_trainer(make_cfg())
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
