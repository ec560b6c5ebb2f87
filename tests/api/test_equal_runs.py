"""The classifiers against runs of `train.py` on icons: the same data, settings and seed give the same digits.

Covered: every class of one method, by scores, shares and accuracy; methods that score images together, through
`Classifier`; the saved file, and the run's own folder, loaded again.
"""

import numpy as np
import pytest
import torch

import dassl_clip
from dassl_clip import Classifier, load

SETTINGS = {
    "ZeroshotCLIP": {},
    "CLAP": {"max_steps": 40, "check_every": 20},
    "InMaP": {},
    "LinearProbe": {"pull": (1.0, 3.0)},
    "CoOp": {"epochs": 1, "ctx_init": "", "n_ctx": 2},
    "GOPro": {"epochs": 1},
}
CLASSES = {"ZeroshotCLIP": "ZeroshotClassifier"}


def assert_equal(clf, run):
    """Scores, shares and accuracy of a classifier on the tested images are the run's own."""
    paths, labels = run.test
    saved = run.predictions
    assert list(map(str, saved.paths)) == paths and saved.classnames == list(clf.classes_)
    log_shares = torch.from_numpy(clf.decision_function(paths)).log_softmax(dim=1)
    np.testing.assert_array_equal(log_shares.half().numpy(), saved.scores)
    top = torch.from_numpy(saved.top.astype(np.int64))
    np.testing.assert_array_equal(log_shares.gather(1, top).exp().numpy(), saved.shares)
    names = np.array(saved.classnames)
    assert clf.predict(paths).tolist() == names[saved.top[:, 0]].tolist()
    assert 100 * clf.score(paths, labels) == pytest.approx(run.record["metrics"]["test"]["accuracy"], abs=1e-9)


@pytest.mark.parametrize("method", SETTINGS)
def test_a_classifier_is_the_run_of_the_same_settings(icons_run, tmp_path, method):
    run = icons_run(method)
    kind = getattr(dassl_clip, CLASSES.get(method, f"{method}Classifier"))
    clf = kind(run.names, backbone="IconsCLIP", seed=3, **SETTINGS[method])
    if method in ("ZeroshotCLIP", "CLAP"):
        clf.fit()
    elif method == "InMaP":
        clf.fit(run.test[0])
    else:
        labels = [run.names[label] for label in run.train_x[1]]
        clf.fit(run.train_x[0], labels, validation=run.val)
    assert_equal(clf, run)
    assert clf.record_["learned"] == run.record["learned"]
    again = load(clf.save(tmp_path / "head.safetensors"))
    assert type(again) is kind and again.get_params()["seed"] == 3
    assert_equal(again, run)
    assert_equal(load(run.folder), run)


def test_images_are_scored_together(icons_run):
    paths, _ = icons_run("ZeroshotCLIP").test
    names = icons_run("ZeroshotCLIP").names
    clf = Classifier("ZLaP", names, backbone="IconsCLIP").fit(paths)
    joint = clf.predict_proba(paths)
    assert np.abs(joint[:20] - clf.predict_proba(paths[:20])).max() > 1e-3  # 20 images are another set
    zeroshot = Classifier("ZeroshotCLIP", names, backbone="IconsCLIP").fit().predict_proba(paths)
    assert np.abs(joint - zeroshot).max() > 1e-2
