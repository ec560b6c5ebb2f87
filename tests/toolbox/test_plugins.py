"""Plugins in the shapes that are found in the wild, run unchanged on the toolbox.

- prompt learning: a frozen model with one registered learner, class-dependent buffers that its own `load_model` drops,
  the schedule stepped in the last batch, batches of two, a loss scaler, and a main program with flags;
- a trainer with its own `train`, `run_epoch`, `after_epoch`, `save_model` and `test`;
- an adapter on features, a `SimpleTrainer` with its own loaders and reassigned transforms.
"""

import argparse
import copy
import io
import os
import random
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import Compose, Normalize, Resize, ToTensor
from tqdm import tqdm
from yacs.config import CfgNode as CN

from dassl.config import get_cfg_default
from dassl.data import DataManager
from dassl.data.transforms import INTERPOLATION_MODES
from dassl.engine import TRAINER_REGISTRY, SimpleTrainer, TrainerX, build_trainer
from dassl.metrics import compute_accuracy
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    MetricMeter,
    load_checkpoint,
    load_pretrained_weights,
    mkdir_if_missing,
    save_checkpoint,
    set_random_seed,
    setup_logger,
)

WIDTH = 16


class PromptLearner(nn.Module):
    """A context between buffers that depend on the classes."""

    def __init__(self, n_ctx: int, classnames: list[str]):
        super().__init__()
        self.ctx = nn.Parameter(torch.zeros(n_ctx, WIDTH))
        generator = torch.Generator().manual_seed(sum(map(ord, "".join(classnames))))
        self.register_buffer("token_prefix", torch.randn(len(classnames), 1, WIDTH, generator=generator))
        self.register_buffer("token_suffix", torch.randn(len(classnames), 3, WIDTH, generator=generator))

    def forward(self):
        context = self.ctx.expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, context, self.token_suffix], dim=1)


class CustomModel(nn.Module):
    """Fixed image features beside text features of the prompts."""

    def __init__(self, cfg: CN, classnames: list[str]):
        super().__init__()
        height, width = cfg.INPUT.SIZE
        self.prompt_learner = PromptLearner(cfg.TRAINER.PROMPTS.N_CTX, classnames)
        self.image_encoder = nn.Linear(3 * height * width, WIDTH)

    def forward(self, image):
        features = F.normalize(self.image_encoder(image.flatten(1)), dim=1)
        return 20 * features @ F.normalize(self.prompt_learner().mean(1), dim=1).t()


@TRAINER_REGISTRY.register(force=True)
class Prompts(TrainerX):
    """Shaped like the context optimisation of prompts."""

    def check_cfg(self, cfg):
        assert cfg.TRAINER.PROMPTS.PREC in ["fp32", "amp"]

    def build_model(self):
        cfg = self.cfg
        classnames = self.dm.dataset.classnames
        torch.manual_seed(7)
        self.model = CustomModel(cfg, classnames)
        for name, param in self.model.named_parameters():
            if "prompt_learner" not in name:
                param.requires_grad_(False)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model.prompt_learner, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        self.optim = build_optimizer(self.model.prompt_learner, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)
        self.scaler = torch.amp.GradScaler("cpu") if cfg.TRAINER.PROMPTS.PREC == "amp" else None

    def forward_backward(self, batch):
        image, label = self.parse_batch_train(batch)
        if self.cfg.TRAINER.PROMPTS.PREC == "amp":
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = self.model(image)
                loss = F.cross_entropy(output, label)
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        else:
            output = self.model(image)
            loss = F.cross_entropy(output, label)
            self.model_backward_and_update(loss)
        loss_summary = {"loss": loss.item(), "acc": compute_accuracy(output, label)[0].item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return loss_summary

    def parse_batch_train(self, batch):
        input = batch["img"]
        label = batch["label"]
        return input.to(self.device), label.to(self.device)

    def load_model(self, directory, epoch=None):
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return
        names = self.get_model_names()
        model_file = "model-best.pth.tar"
        if epoch is not None:
            model_file = "model.pth.tar-" + str(epoch)
        for name in names:
            model_path = os.path.join(directory, name, model_file)
            if not os.path.exists(model_path):
                raise FileNotFoundError(f'Model not found at "{model_path}"')
            checkpoint = load_checkpoint(model_path)
            state_dict = checkpoint["state_dict"]
            epoch = checkpoint["epoch"]
            for buffer in ("token_prefix", "token_suffix"):
                if buffer in state_dict:
                    del state_dict[buffer]
            print(f'Loading weights to {name} from "{model_path}" (epoch = {epoch})')
            self._models[name].load_state_dict(state_dict, strict=False)


@TRAINER_REGISTRY.register(force=True)
class PromptsZeroShot(TrainerX):
    """Shaped like zero-shot classification: nothing is registered, nothing is trained."""

    def build_model(self):
        torch.manual_seed(7)
        self.clip_model = CustomModel(self.cfg, self.dm.dataset.classnames).to(self.device)

    def model_inference(self, image):
        return self.clip_model(image)


@pytest.fixture
def prompt_cfg(make_cfg):
    def make(*pairs):
        cfg = make_cfg("TRAINER.NAME", "Prompts", "OPTIM.LR", 0.3)
        cfg.TRAINER.PROMPTS = CN()
        cfg.TRAINER.PROMPTS.N_CTX = 4
        cfg.TRAINER.PROMPTS.PREC = "fp32"
        for key, value in zip(pairs[::2], pairs[1::2]):
            cfg.merge_from_list([key, value])
        return cfg

    return make


class TestPromptLearning:
    def test_trains_only_the_context(self, prompt_cfg):
        trainer = build_trainer(prompt_cfg())
        encoder = trainer.model.image_encoder.weight.clone()
        trainer.train()
        folder = Path(trainer.output_dir, "prompt_learner")
        state = load_checkpoint(str(folder / "model.pth.tar-3"))["state_dict"]
        assert set(state) == {"ctx", "token_prefix", "token_suffix"} and state["ctx"].abs().sum() > 0
        assert torch.equal(trainer.model.image_encoder.weight, encoder)
        assert not trainer.model.prompt_learner.training

    @pytest.mark.parametrize("precision", ["fp32", "amp"])
    def test_resumes_and_evaluates(self, prompt_cfg, precision):
        pairs = ("TRAINER.PROMPTS.PREC", precision)
        whole = build_trainer(prompt_cfg(*pairs, "OPTIM.MAX_EPOCH", 4))
        whole.train()
        short = build_trainer(
            prompt_cfg(*pairs, "OPTIM.MAX_EPOCH", 4, "TRAIN.CHECKPOINT_FREQ", 2, "OUTPUT_DIR", whole.output_dir + "2")
        )
        short.max_epoch = 2
        short.train()
        resumed = build_trainer(prompt_cfg(*pairs, "OPTIM.MAX_EPOCH", 4, "OUTPUT_DIR", whole.output_dir + "2"))
        resumed.train()
        assert resumed.start_epoch == 2
        assert torch.equal(whole.model.prompt_learner.ctx, resumed.model.prompt_learner.ctx)
        evaluated = build_trainer(prompt_cfg(*pairs, "OUTPUT_DIR", "unused"))
        evaluated.load_model(whole.output_dir, epoch=4)
        assert evaluated.test() == whole.test()

    def test_context_goes_to_other_classes(self, prompt_cfg):
        trainer = build_trainer(prompt_cfg())
        trainer.train()
        cfg = prompt_cfg()
        other = build_trainer(cfg)
        other.model.prompt_learner = PromptLearner(4, ["fox", "gnu"])
        other._models["prompt_learner"] = other.model.prompt_learner
        suffix = other.model.prompt_learner.token_suffix.clone()
        other.load_model(trainer.output_dir, epoch=3)
        assert torch.equal(other.model.prompt_learner.ctx, trainer.model.prompt_learner.ctx)
        assert torch.equal(other.model.prompt_learner.token_suffix, suffix)
        with pytest.raises(RuntimeError, match=r"token_prefix.*token_suffix"):
            other.resume_model_if_exist(trainer.output_dir)

    def test_checkpoint_of_the_original_toolbox(self, prompt_cfg):
        trainer = build_trainer(prompt_cfg("OPTIM.MAX_EPOCH", 4, "TRAIN.CHECKPOINT_FREQ", 2))
        trainer.max_epoch = 2
        trainer.train()
        path = Path(trainer.output_dir, "prompt_learner", "model.pth.tar-2")
        checkpoint = load_checkpoint(str(path))
        wrapper = {key: value for key, value in vars(trainer.sched).items() if key != "optimizer"}
        kept = {key: checkpoint[key] for key in ("state_dict", "epoch", "optimizer", "val_result")}
        torch.save({**kept, "scheduler": wrapper}, path)
        resumed = build_trainer(prompt_cfg("OPTIM.MAX_EPOCH", 4))
        resumed.train()
        assert resumed.start_epoch == 2
        whole = build_trainer(prompt_cfg("OPTIM.MAX_EPOCH", 4, "OUTPUT_DIR", trainer.output_dir + "_whole"))
        whole.train()
        assert torch.equal(whole.model.prompt_learner.ctx, resumed.model.prompt_learner.ctx)
        assert resumed.get_current_lr() == pytest.approx(whole.get_current_lr(), rel=1e-12)

    def test_initial_weights_and_the_check(self, prompt_cfg):
        trainer = build_trainer(prompt_cfg())
        trainer.train()
        path = os.path.join(trainer.output_dir, "prompt_learner", "model.pth.tar-3")
        again = build_trainer(prompt_cfg("MODEL.INIT_WEIGHTS", path))
        assert torch.equal(again.model.prompt_learner.ctx, trainer.model.prompt_learner.ctx)
        with pytest.raises(AssertionError):
            build_trainer(prompt_cfg("TRAINER.PROMPTS.PREC", "fp8"))

    def test_best_val(self, prompt_cfg):
        trainer = build_trainer(prompt_cfg("TEST.FINAL_MODEL", "best_val"))
        trainer.train()
        assert "model-best.pth.tar" in os.listdir(Path(trainer.output_dir, "prompt_learner"))


def reset_cfg(cfg, args):
    if args.root:
        cfg.DATASET.ROOT = args.root
    if args.output_dir:
        cfg.OUTPUT_DIR = args.output_dir
    if args.resume:
        cfg.RESUME = args.resume
    if args.seed:
        cfg.SEED = args.seed
    if args.source_domains:
        cfg.DATASET.SOURCE_DOMAINS = args.source_domains
    if args.trainer:
        cfg.TRAINER.NAME = args.trainer


def extend_cfg(cfg):
    cfg.TRAINER.PROMPTS = CN()
    cfg.TRAINER.PROMPTS.N_CTX = 16
    cfg.TRAINER.PROMPTS.PREC = "fp32"
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"


def plugin_main(argv: list[str]):
    """The main program of a prompt-learning plugin."""
    parser = argparse.ArgumentParser()
    for flag in ("root", "output-dir", "resume", "config-file", "dataset-config-file", "trainer", "model-dir"):
        parser.add_argument(f"--{flag}", type=str, default="")
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("--source-domains", type=str, nargs="+")
    parser.add_argument("--eval-only", action="store_true")
    parser.add_argument("--load-epoch", type=int)
    parser.add_argument("--no-train", action="store_true")
    parser.add_argument("opts", default=None, nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    cfg = get_cfg_default()
    extend_cfg(cfg)
    if args.dataset_config_file:
        cfg.merge_from_file(args.dataset_config_file)
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    reset_cfg(cfg, args)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    setup_logger(cfg.OUTPUT_DIR)
    trainer = build_trainer(cfg)
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
        return trainer
    if not args.no_train:
        trainer.train()
    return trainer


class TestMainProgram:
    @pytest.fixture
    def run(self, image_root, tmp_path, monkeypatch):
        (tmp_path / "data.yaml").write_text("DATASET:\n  NAME: 'ToyImages'\n")
        (tmp_path / "method.yaml").write_text(
            "DATALOADER:\n  TRAIN_X:\n    BATCH_SIZE: 9\n  NUM_WORKERS: 0\n"
            "INPUT:\n  SIZE: (8, 8)\n  INTERPOLATION: 'bicubic'\n  PIXEL_MEAN: [0.5, 0.5, 0.5]\n"
            "  TRANSFORMS: ['random_resized_crop', 'random_flip', 'normalize']\n"
            "OPTIM:\n  NAME: 'sgd'\n  LR: 0.3\n  MAX_EPOCH: 50\n  LR_SCHEDULER: 'cosine'\n  WARMUP_EPOCH: 1\n"
            "  WARMUP_TYPE: 'constant'\n  WARMUP_CONS_LR: 1e-5\nTRAIN:\n  PRINT_FREQ: 5\nUSE_CUDA: False\n"
        )

        def run(output: str, *more: str):
            monkeypatch.setattr(sys, "stdout", io.StringIO())
            data, method = str(tmp_path / "data.yaml"), str(tmp_path / "method.yaml")
            files = ["--dataset-config-file", data, "--config-file", method]
            flags = ["--root", str(image_root), "--trainer", "Prompts", "--output-dir", str(tmp_path / output)]
            trainer = plugin_main([*files, *flags, *more])
            sys.stdout.close()
            return trainer, (tmp_path / output / "log.txt").read_text().splitlines()

        return run

    def test_trains_then_evaluates(self, run, tmp_path):
        trainer, log = run(
            "train", "--seed", "1", "OPTIM.MAX_EPOCH", "2", "TRAINER.PROMPTS.N_CTX", "4", "DATASET.NUM_SHOTS", "2"
        )
        assert (
            trainer.cfg.SEED == 1 and trainer.cfg.OPTIM.MAX_EPOCH == 2 and trainer.cfg.INPUT.INTERPOLATION == "bicubic"
        )
        assert "Creating a 2-shot dataset" in log and "Finish training" in log
        assert "+ normalization (mean=[0.5, 0.5, 0.5], std=[0.229, 0.224, 0.225])" in log
        assert not any(line.startswith("Setting fixed seed") for line in log)
        shots = [item.impath for item in trainer.dm.dataset.train_x]
        evaluated, evaluation = run(
            "eval", "--seed", "1", "--eval-only", "--model-dir", str(tmp_path / "train"), "--load-epoch", "2",
            "TRAINER.PROMPTS.N_CTX", "4", "DATASET.NUM_SHOTS", "2",
        )  # fmt: skip
        assert [item.impath for item in evaluated.dm.dataset.train_x] == shots
        block = log[log.index("=> result") : log.index("=> result") + 6]
        assert evaluation[evaluation.index("=> result") : evaluation.index("=> result") + 6] == block

    def test_draw_is_that_of_the_seed(self, run):
        trainer, _ = run("train", "--seed", "3", "--no-train", "DATASET.NUM_SHOTS", "2")
        items = trainer.dm.dataset.read(range(6))
        random.seed(3)
        drawn = [item.impath for label in range(3) for item in random.sample([i for i in items if i.label == label], 2)]
        assert [item.impath for item in trainer.dm.dataset.train_x] == drawn

    def test_zero_shot(self, run):
        trainer, log = run("zero", "--eval-only", "--trainer", "PromptsZeroShot")
        assert "=> result" in log and trainer.get_model_names() == []


@TRAINER_REGISTRY.register(force=True)
class OwnLoop(TrainerX):
    """Shaped like the published GOPro: nearly everything is overridden."""

    def build_model(self):
        self.model = LabelTakingModel(self.cfg, self.num_classes)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("gopro", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label = batch["img"].to(self.device), batch["label"].to(self.device)
        loss = F.cross_entropy(self.model(image, label), label)
        self.optim.zero_grad()
        loss.backward()
        self.optim.step()
        loss_summary = {"loss": loss.item()}
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return loss_summary

    def train(self):
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020 (as it is found)
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def run_epoch(self):
        self.set_model_mode("train")
        losses = MetricMeter()
        self.num_batches = len(self.train_loader_x)
        for self.batch_idx, batch in enumerate(self.train_loader_x):  # noqa: B020 (as it is found)
            losses.update(self.forward_backward(batch))
            n_iter = self.epoch * self.num_batches + self.batch_idx
            for name, meter in losses.meters.items():
                self.write_scalar("train/" + name, meter.avg, n_iter)
            self.write_scalar("train/lr", self.get_current_lr(), n_iter)

    def after_epoch(self):
        last_epoch = (self.epoch + 1) == self.max_epoch
        curr_result = self.test(split="val")
        if curr_result > self.best_result:
            self.best_result = curr_result
            self.save_model(self.epoch, self.output_dir, model_name="model-best.pth.tar")
        if last_epoch:
            self.save_model(self.epoch, self.output_dir)

    def save_model(self, epoch, directory, is_best=False, model_name=""):
        for name in self.get_model_names():
            save_checkpoint(
                {
                    "state_dict": self._models[name].state_dict(),
                    "epoch": epoch + 1,
                    "optimizer": self._optims[name].state_dict(),
                    "scheduler": self._scheds[name].state_dict(),
                },
                os.path.join(directory, name),
                is_best=is_best,
                model_name=model_name,
            )

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.evaluator.reset()
        if split is None:
            split = self.cfg.TEST.SPLIT
        data_loader = self.val_loader if split == "val" and self.val_loader is not None else self.test_loader
        for _, batch in enumerate(tqdm(data_loader)):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input, label), label)
        results = self.evaluator.evaluate()
        for k, v in results.items():
            self.write_scalar(f"{split}/{k}", v, self.epoch)
        return next(iter(results.values()))


class LabelTakingModel(nn.Module):
    """A model whose forward takes the labels too."""

    def __init__(self, cfg, num_classes):
        super().__init__()
        self.linear = nn.Linear(3 * cfg.INPUT.SIZE[0] * cfg.INPUT.SIZE[1], num_classes)

    def forward(self, image, label):
        assert len(label) == len(image)
        return self.linear(image.flatten(1))


def test_trainer_with_its_own_loop(make_cfg):
    trainer = build_trainer(make_cfg("TRAINER.NAME", "OwnLoop"))
    trainer.train()
    folder = Path(trainer.output_dir, "gopro")
    assert set(os.listdir(folder)) == {"checkpoint", "model-best.pth.tar", "model.pth.tar-3"}
    assert "val_result" not in load_checkpoint(str(folder / "model.pth.tar-3"))
    resumed = build_trainer(make_cfg("TRAINER.NAME", "OwnLoop", "OPTIM.MAX_EPOCH", 4))
    resumed.train()
    assert resumed.start_epoch == 3 and (folder / "model.pth.tar-4").is_file()
    SimpleTrainer.load_model(resumed, trainer.output_dir)
    SimpleTrainer.load_model(resumed, trainer.output_dir, epoch=3)
    assert torch.equal(resumed.model.linear.weight, trainer.model.linear.weight)


def preprocess(size: int) -> Compose:
    """A plugin's own transform for the extraction of features."""
    resize = Resize((size, size), interpolation=INTERPOLATION_MODES["bicubic"])
    return Compose([resize, ToTensor(), Normalize((0.5,) * 3, (0.5,) * 3)])


@TRAINER_REGISTRY.register(force=True)
class FeatureAdapter(SimpleTrainer):
    """Shaped like few-shot adapters: features are extracted once from copied loaders, epochs run over tensors."""

    def build_data_loader(self):
        dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self):
        torch.manual_seed(7)
        self.encoder = nn.Linear(3 * 10 * 10, WIDTH).requires_grad_(False)
        self.model = nn.Linear(WIDTH, self.num_classes)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("adapter", self.model, self.optim, self.sched)

    def extract_features(self, partition):
        loader = copy.deepcopy({"train": self.train_loader_x, "test": self.test_loader}[partition])
        loader.dataset.transform = preprocess(10)
        features, labels = [], []
        for batch in loader:
            image, label = self.parse_batch_test(batch)
            features.append(self.encoder(image.flatten(1)))
            labels.append(label)
        return torch.cat(features), torch.cat(labels)

    def train(self):
        self.set_model_mode("test")
        self.features_train, self.labels_train = self.extract_features("train")
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020 (as it is found)
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches, self.batch_idx = 1, 0
        loss = F.cross_entropy(self.model(self.features_train), self.labels_train)
        self.model_backward_and_update(loss)
        self.update_lr()

    @torch.no_grad()
    def test(self, split=None):
        features, labels = self.extract_features("test")
        self.evaluator.reset()
        self.evaluator.process(self.model(features), labels)
        return self.evaluator.evaluate()["accuracy"]


def test_feature_adapter(make_cfg):
    settings = ("TRAINER.NAME", "FeatureAdapter", "OPTIM.MAX_EPOCH", 60, "OPTIM.LR", 0.5, "DATASET.NUM_SHOTS", 3)
    trainer = build_trainer(make_cfg(*settings))
    before = trainer.train_loader_x.dataset.transform
    trainer.train()
    assert trainer.train_loader_x.dataset.transform is before
    assert trainer.features_train.shape == (9, WIDTH)
    assert trainer.test() > 60
    again = build_trainer(make_cfg(*settings, "OUTPUT_DIR", trainer.output_dir + "2"))
    again.train()
    assert torch.equal(again.features_train, trainer.features_train)


def test_features_in_loops_over_a_bare_wrapper(make_cfg, tmp_path):
    from dassl.data import DatasetWrapper

    cfg = make_cfg()
    dataset = DataManager(cfg).dataset
    loader = torch.utils.data.DataLoader(
        DatasetWrapper(cfg, dataset.test, transform=preprocess(4), is_train=False), batch_size=4, drop_last=False
    )
    mkdir_if_missing(str(tmp_path / "features"))
    assert [len(batch["img"]) for batch in loader] == [4, 2]
