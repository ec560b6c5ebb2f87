"""GOPro's training step against the plain program: 77 tokens, a text pass for each image and view, three image passes.

Ours is the trainer's own `forward_backward` on a batch of 4 generated pictures and their two augmented views; a step
ends with the optimiser's. Cases are class lists that the project ships: 7 (PACS), 65 (OfficeHome), 345 (DomainNet) and
1000 (ImageNet) classes.

The plain program keeps what the backward pass needs of 12 passes over all classes: 3 GB at 7 classes of ViT-B/16, 22 GB
at 65. Where that is more than `--plain-texts` texts, its image passes are run whole, and its text passes (which cost
the same for each image and view, and a time and memory in proportion to the classes) once, with at most that many
classes; the rest is extrapolated from it. Losses and gradients of the whole step are compared where the plain program
runs whole; elsewhere, text features and gradients of the pass that is run.

example: python benchmarks/gopro_step.py --threads 2 --only "7 classes"
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from common import ARCHITECTURE, Part, Results, Work, make_parser, run_cases
from inputs import build_trainer, class_names, make_pictures
from plain import contrastive, image_features, prompt_features, prompt_ids, shifts
from torch import Tensor

LISTS = {"pacs": 2.5, "office_home": 7.0, "domainnet": 12.0, "imagenet": None}  # target of the ratio of times
BATCH = 4
VANISHING = ("gradient of generator.rho.0.bias", "gradient of image_projector.0.bias")
PLAIN_TEXTS = {"cpu": 100, "cuda": 1000}


class Step(Work):
    """One training step.

    Args:
        names: `C` class names.
        target: Of the ratio of times.
        options: The command line.
    """

    def __init__(self, names: list[str], target: float | None, options: argparse.Namespace):
        self.title = f"GOPro training step, {options.batch} images, {len(names)} classes"
        self.target = target
        self.trainer = gopro_trainer(names, options)
        trainer = self.trainer
        torch.manual_seed(0)
        self.batch = next(iter(trainer.dm.train_loader_x))
        self.start = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.epoch = trainer.batch_idx = 0
        trainer.num_batches = 2
        trainer.set_model_mode("train")
        self.views, self.labels = trainer.parse_batch_train(self.batch)
        self.ids = prompt_ids(trainer.backbone, names, len(trainer.model.generator.ctx))
        self.contexts = len(self.views) * len(self.labels)
        texts = options.plain_texts or PLAIN_TEXTS[torch.device(options.device).type]
        self.whole = self.contexts * len(names) <= texts
        if not self.whole:
            self.run = min(len(names), texts)
            share = self.contexts * len(names) / self.run
            self.share = share
            self.memory_times = {"ours": 1.0, "plain": share}
            self.extrapolated = (
                f"of the plain program's {self.contexts} text passes over {len(names)} classes one over {self.run} was "
                "run; its time and memory are extrapolated from that"
            )

    def ours(self) -> list[Part]:
        """The trainer's step."""
        return [Part(self._step)]

    def plain(self) -> list[Part]:
        """Three image passes; a text pass for each image and view; the losses and their gradients."""
        if self.whole:
            return [Part(self._plain_images), Part(self._plain_step)]
        return [Part(self._plain_images), Part(self._plain_pass, times=self.share)]

    def difference(self, ours: Results, plain: Results) -> dict[str, float]:
        """Also of the single pass, where that is what the plain program runs."""
        if not self.whole:
            ours = self._pass(lambda context: self.trainer.backbone.text.encode_prompts(context, self._classes()))
        return super().difference(without_vanishing(ours), plain)

    def _step(self) -> Results:
        """One step from the start: loss terms and the gradients of all that is learned."""
        trainer = self.trainer
        trainer.model.load_state_dict(self.start)
        trainer.optim.state.clear()
        summary = trainer.forward_backward(self.batch)
        results = {name: torch.tensor(value) for name, value in summary.items()}
        return results | gradients(trainer.model)

    def _plain_images(self) -> Results:
        """Each view through the image tower."""
        self.encoded = [image_features(self.trainer.backbone, view) for view in self.views]
        return {}

    def _plain_step(self) -> Results:
        """The losses of the authors' program, its defects fixed, and their gradients."""
        trainer, node = self.trainer, self.trainer.node
        learner, clip = trainer.model, trainer.backbone
        learner.load_state_dict(self.start)
        learner.zero_grad()
        texts = []
        for _, blocks in self.encoded:
            contexts = learner.generator.ctx + shifts(learner, blocks)[:, None]
            texts.append(torch.stack([prompt_features(clip, context, self.ids) for context in contexts]))
        texts = [F.normalize(text, dim=-1) for text in texts]
        features = [features for features, _ in self.encoded]
        logits = torch.stack([clip.logit_scale * text @ f for f, text in zip(features[0], texts[0])])
        terms = {
            "ce": F.cross_entropy(logits, self.labels),
            "consistency": ((texts[0] - texts[1]) ** 2).mean() + ((texts[0] - texts[2]) ** 2).mean(),
            "contrastive": contrastive(*(learner.image_projector(f) for f in features[:2]), node.TEMPERATURE),
        }
        weights = {"ce": node.CE_WEIGHT, "consistency": node.CONSISTENCY_WEIGHT, "contrastive": node.CONTRASTIVE_WEIGHT}
        loss = sum(weights[name] * term for name, term in terms.items())
        loss.backward()
        results = {"loss": loss, **terms}
        return {name: value.detach().cpu() for name, value in results.items()} | gradients(learner)

    def _plain_pass(self) -> Results:
        """One text pass over some of the classes, and its gradient."""
        return self._pass(lambda context: prompt_features(self.trainer.backbone, context, self.ids[: self.run]))

    def _pass(self, encode) -> Results:
        context = self.trainer.model.generator.ctx.detach().clone().requires_grad_()
        features = F.normalize(encode(context), dim=-1)
        weights = torch.linspace(-1, 1, features.numel(), device=features.device).view_as(features)
        (gradient,) = torch.autograd.grad((features * weights).sum(), context)
        return {"text features": features.detach(), "gradient": gradient}

    def _classes(self):
        trainer = self.trainer
        names = trainer.classnames[: self.run]
        return trainer.backbone.text.class_tokens(names, n_ctx=len(trainer.model.generator.ctx))


def gopro_trainer(names: list[str], options: argparse.Namespace, test_images: int = 1):
    """GOPro on generated pictures of these classes."""
    folder = tempfile.TemporaryDirectory()
    make_pictures(Path(folder.name), names, train_images=options.batch, test_images=max(1, test_images))
    settings = [
        "DATASET.NAME", "Manifest", "DATASET.MANIFEST", Path(folder.name) / "manifest.csv",
        "MODEL.BACKBONE.NAME", options.architecture, "OUTPUT_DIR", folder.name,
        "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", options.batch,
        "DATALOADER.TEST.BATCH_SIZE", max(1, test_images),
        "TRAINER.GOPRO.PREC", "fp32", "OPTIM.NAME", "sgd", "OPTIM.LR", 0.002,
    ]  # fmt: skip
    trainer = build_trainer("GOPro", settings, device=options.device)
    trainer.fixed_view = None  # a step encodes all views
    trainer.pictures = folder  # lives as long as the trainer
    return trainer


def gradients(module: torch.nn.Module) -> dict[str, Tensor]:
    """Copies of the gradients by the parameters' names."""
    named = module.named_parameters()
    return {f"gradient of {name}": value.grad.clone() for name, value in named if value.grad is not None}


def without_vanishing(results: Results) -> Results:
    """The results without two gradients that are 0 but for rounding.

    That of the image projector's bias, which batch normalisation takes off again, and that of `rho`'s bias, which
    shifts all entries of a token alike, so that every layer norm takes it off.
    """
    return {name: value for name, value in results.items() if name not in VANISHING}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--architecture", default=ARCHITECTURE, help="a ViT of CLIP with random weights")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"images of a step ({BATCH})")
    parser.add_argument("--plain-texts", type=int, help="most texts that the plain program runs (CPU 100, GPU 1000)")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print; with `--write`, keep the figures."""
    names = {file: class_names(file) for file in LISTS}
    run_cases(
        parse(),
        "gopro_step",
        {f"{len(names[file])} classes": lambda o, f=file: Step(names[f], LISTS[f], o) for file in LISTS},
    )


if __name__ == "__main__":
    main()
