"""A method is one file, and its yaml and its test where it stays: a second transductive one, in a user's own file.

Covers: `dassl-clip task` runs it beside a reference and says in record and table that it is transductive, and its
accuracy is that of a plain computation on the features that the run cached.
"""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl_clip.engine.saved_features import saved_features
from dassl_clip.results.predictions import read_predictions
from dassl_clip.results.records import find_records

METHOD = '''
"""Class means of the unlabelled test images under their zero-shot labels; an image belongs to the nearest mean."""

import torch
import torch.nn.functional as F
from dassl.engine import TRAINER_REGISTRY

from dassl_clip.clip.zeroshot import zeroshot_weights
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.trainers.linear_probe import Probe


@TRAINER_REGISTRY.register()
class ClassMeans(CLIPTrainer):
    trains_on_labels = False
    has_epochs = False
    class_specific = True
    prompt = "a photo of a {}."

    def build_model(self):
        text = zeroshot_weights(self.backbone.text, self.classnames, [self.prompt]).T.float()
        self.model = self.register_learner("means", Probe(text))

    def fit(self):
        features, _ = self.features(self.dm.dataset.test)  # [N, E]
        labels = self.feature_logits(features).argmax(1)
        sums = torch.zeros_like(self.model.weight).index_add_(0, labels, features)
        named = torch.bincount(labels, minlength=self.num_classes) > 0  # the others keep their text
        self.model.weight.data[named] = F.normalize(sums[named], dim=1)

    def feature_logits(self, features):
        return self.cosine_logits(features, self.model.weight)

    def record_facts(self):
        return super().record_facts() | {"transductive": True}
'''


def test_a_second_transductive_method_is_one_file(world):
    (world.root / "class_means.py").write_text(METHOD, encoding="utf-8")
    words = ["task", "ClassMeans", "icons", "1", "--task", "fewshot", "--targets", "line", "--out", world.out]
    words += ["--import", "class_means.py", "--reference", "ZeroshotCLIP", "--jobs", "1"]
    done = world.run(words)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]

    runs = {item.record["method"]: item for item in find_records(world.out)}
    assert set(runs) == {"ClassMeans", "ZeroshotCLIP"}
    record, reference = runs["ClassMeans"].record, runs["ZeroshotCLIP"].record
    assert record["transductive"] and not reference["transductive"] and record["num_train"] == 0

    saved = saved_features(runs["ClassMeans"].folder)["test"]  # in the order of the sorted paths
    features = F.normalize(saved.read(), dim=1)
    predictions = read_predictions(runs["ZeroshotCLIP"].folder)
    zeroshot = predictions.top[np.argsort(predictions.paths), 0]
    assert len(set(zeroshot)) == 45  # every class has a mean
    means = torch.stack([F.normalize(features[zeroshot == c].mean(0), dim=0) for c in range(45)])
    correct = sum(int((means @ image).argmax()) == label for image, label in zip(features, saved.labels))
    metrics, plain = record["metrics"]["test"], reference["metrics"]["test"]
    assert (metrics["correct"], metrics["total"]) == (correct, len(features))
    assert metrics["correct"] != plain["correct"]  # or the method could have done nothing

    rows = {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines())}
    label, accuracy = "ClassMeans (icons)", metrics["accuracy"]
    assert rows[label][0] == f"{accuracy:.1f}"
    assert rows["ZeroshotCLIP (icons)"][0] == f"{plain['accuracy']:.1f}"
    assert float(rows[f"gain of {label}"][0]) == pytest.approx(accuracy - plain["accuracy"], abs=0.0501)
    assert f"transductive (uses unlabelled test images): {label}" in done.stdout.splitlines()
