"""Trainers that see what they may not, each beside an honest twin that differs in the cheat alone.

Most are plain Dassl trainers on the mean grey of 8 x 8 fields; two are trainers of this project, which say of
themselves that they read no labels, or no other images than the tested one.
"""

import os

import torch
from torch import nn
from torch.nn import functional as F

from dassl.data.data_manager import build_data_loader
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl_clip.clip.zeroshot import zeroshot_weights
from dassl_clip.engine.trainer import CLIPTrainer


def grey(images):
    """`[B, 3, H, W]` to `[B, 64]`."""
    return F.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 8).flatten(1)


class Fields(TrainerX):
    """A linear classifier of grey fields; what is below overrides one step of it."""

    def build_model(self):
        self.model = nn.Linear(64, self.classes())
        nn.init.zeros_(self.model.weight)
        nn.init.zeros_(self.model.bias)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("fields", self.model, self.optim, self.sched)

    def classes(self):
        return self.num_classes

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(grey(image)), label)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}

    def model_inference(self, image):
        return self.model(grey(image))


@TRAINER_REGISTRY.register()
class HonestFields(Fields):
    """The twin of those that override one step of it."""


@TRAINER_REGISTRY.register()
class CountsTestLabels(Fields):
    """The number of classes from the test labels."""

    def classes(self):
        return len({item.label for item in self.dm.dataset.test})


@TRAINER_REGISTRY.register()
class TrainsOnValidation(Fields):
    """Validation images in training."""

    def build_data_loader(self):
        super().build_data_loader()
        data, loader = self.dm.dataset, self.train_loader_x
        self.train_loader_x = build_data_loader(
            self.cfg, "RandomSampler", data.train_x + data.val, loader.batch_size, tfm=loader.dataset.transform
        )


@TRAINER_REGISTRY.register()
class BestEpochOnTest(Fields):
    """The epoch with the smallest loss on the test images."""

    def after_epoch(self):
        super().after_epoch()
        with torch.no_grad():
            losses = [
                F.cross_entropy(self.model(grey(b["img"])), b["label"], reduction="sum") for b in self.test_loader
            ]
        if self.epoch == 0 or sum(losses) < self.least:
            self.least, self.best = sum(losses), {k: v.clone() for k, v in self.model.state_dict().items()}

    def after_train(self):
        self.model.load_state_dict(self.best)
        super().after_train()


@TRAINER_REGISTRY.register()
class BestEpochOnTraining(BestEpochOnTest):
    """The same with the training loss: the honest twin."""

    def after_epoch(self):
        super(BestEpochOnTest, self).after_epoch()
        with torch.no_grad():
            loss = sum(F.cross_entropy(self.model(grey(b["img"])), b["label"]) for b in self.train_loader_x)
        if self.epoch == 0 or loss < self.least:
            self.least, self.best = loss, {k: v.clone() for k, v in self.model.state_dict().items()}


@TRAINER_REGISTRY.register()
class NormalisesBatch(Fields):
    """Statistics of the batch at test time."""

    def model_inference(self, image):
        fields = grey(image)
        return self.model((fields - fields.mean(dim=0)) / (fields.std(dim=0, unbiased=False) + 0.1))


@TRAINER_REGISTRY.register()
class NormalisesImage(Fields):
    """Statistics of the image itself: the honest twin."""

    def model_inference(self, image):
        fields = grey(image)
        return self.model((fields - fields.mean(dim=1, keepdim=True)) / (fields.std(dim=1, keepdim=True) + 0.1))


class Prototypes(Fields):
    """The mean fields of each class, from a file."""

    def store(self):
        raise NotImplementedError

    def after_train(self):
        path = self.store()
        if not os.path.exists(path):
            fields, labels = zip(*((grey(b["img"]), b["label"]) for b in self.train_loader_x))
            hot = F.one_hot(torch.cat(labels), self.num_classes).float().T
            torch.save(F.normalize(hot @ torch.cat(fields), dim=1), path)
        self.model.weight.data = torch.load(path, weights_only=True)
        self.save_model(self.max_epoch - 1, self.output_dir)
        super().after_train()


@TRAINER_REGISTRY.register()
class LeakyCache(Prototypes):
    """A cache beside the data that knows nothing of domains."""

    def store(self):
        return os.path.join(self.cfg.DATASET.ROOT, "prototypes.pt")


@TRAINER_REGISTRY.register()
class CacheByDomain(Prototypes):
    """The cache of each list of source domains: the honest twin."""

    def store(self):
        return os.path.join(self.cfg.DATASET.ROOT, f"prototypes-{'-'.join(self.cfg.DATASET.SOURCE_DOMAINS)}.pt")


@TRAINER_REGISTRY.register()
class RemembersNames(Fields):
    """What a training image's folder is called decides the class of test images in a folder of that name."""

    def build_model(self):
        super().build_model()
        self.known = {os.path.basename(os.path.dirname(d.impath)): d.label for d in self.dm.dataset.train_x}

    def parse_batch_test(self, batch):
        self.folders = [os.path.basename(os.path.dirname(path)) for path in batch["impath"]]
        return super().parse_batch_test(batch)

    def model_inference(self, image):
        logits = super().model_inference(image)
        for row, folder in zip(logits, self.folders):
            if folder in self.known:
                row[self.known[folder]] += 5
        return logits


@TRAINER_REGISTRY.register()
class PeeksAtLabels(Fields):
    """The labels of the batch that is scored."""

    def parse_batch_test(self, batch):
        self.labels = batch["label"]
        return super().parse_batch_test(batch)

    def model_inference(self, image):
        return super().model_inference(image) + F.one_hot(self.labels, self.num_classes)


class Whitened(CLIPTrainer):
    """Zero-shot CLIP under the inverse of the covariance of differences between pairs of unlabelled images."""

    settings = {"WORDS": "a photo of a {}."}
    trains_on_labels = False
    has_epochs = False

    @property
    def prompt(self):
        return self.node.WORDS

    def build_model(self):
        self.text = zeroshot_weights(self.backbone.text, self.classnames, [self.node.WORDS]).T.float()
        self.model = self.register_learner(
            "whitening", nn.Linear(self.backbone.embed_dim, self.backbone.embed_dim, False)
        )

    def pairs(self, items):
        return sorted(items, key=lambda item: item.impath.rpartition("/")[2])

    def fit(self):
        features, _ = self.features(self.pairs(self.dm.dataset.train_x))
        gaps = features[::2] - features[1::2]
        with torch.no_grad():
            self.model.weight.copy_(torch.linalg.inv(gaps.T @ gaps + torch.eye(len(self.model.weight))))

    def feature_logits(self, features):
        return self.cosine_logits(self.model(F.normalize(features, dim=-1)), self.text)


@TRAINER_REGISTRY.register()
class PairsByName(Whitened):
    """Pairs in the order of the file names: the honest twin."""


@TRAINER_REGISTRY.register()
class PairsOfClasses(Whitened):
    """Pairs by a sampler that puts the images of a class side by side: labels, though none is said to be read."""

    def pairs(self, items):
        return sorted(items, key=lambda item: item.label)


class Ensemble(CLIPTrainer):
    """Zero-shot CLIP with templates that are weighted by how sure they are of some images."""

    settings = {"SHARPNESS": 300.0}
    trains_on_labels = False
    templates = ("a photo of a {}.", "a drawing of a {}.", "{}", "a blurry picture of many {}s at night.")
    has_epochs = False

    @property
    def prompt(self):
        return " | ".join(self.templates)

    def build_model(self):
        self.text = torch.stack([zeroshot_weights(self.backbone.text, self.classnames, [t]).T for t in self.templates])

    def fit(self):
        pass

    def before_test(self):
        features, _ = self.features(self.images())
        shares = (self.logit_scale * features @ self.text.float().transpose(1, 2)).softmax(dim=-1)
        weights = (self.node.SHARPNESS * shares.amax(dim=-1).mean(dim=1)).softmax(dim=0)
        self.mixed = (weights[:, None, None] * self.text.float()).sum(dim=0)

    def feature_logits(self, features):
        return self.cosine_logits(features, self.mixed)


@TRAINER_REGISTRY.register()
class PromptsOnTraining(Ensemble):
    """Sure of training images: the honest twin."""

    def images(self):
        return self.dm.dataset.train_x


@TRAINER_REGISTRY.register()
class PromptsOnTest(Ensemble):
    """Sure of the tested images, though it says that it sees none."""

    def images(self):
        return self.dm.dataset.test
