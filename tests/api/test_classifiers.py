"""The classifiers as a Python program uses them, on the icons.

Covered: every form of images and labels against the same files; features in the place of images; files that change
between two calls; scikit-learn's `clone`, `set_params` and search; the saved settings; what is left of random states
and of the output; every refusal, with its exception's classes; the time of `import dassl_clip`, and its names.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_clip import (
    CLAPClassifier,
    Classifier,
    CoOpClassifier,
    GOProClassifier,
    InMaPClassifier,
    LinearProbeClassifier,
    NotFittedError,
    ZeroshotClassifier,
    load,
)

MODEL = {"backbone": "IconsCLIP"}
STYLED = {"DATASET.STYLES": ("line", "flat")}


@pytest.fixture(scope="module")
def paths(icons):
    return [path for found in icons.values() for path in found]


@pytest.fixture(scope="module")
def labels(icons):
    return [name for name, found in icons.items() for _ in found]


@pytest.fixture(scope="module")
def zeroshot(icons):
    return ZeroshotClassifier(list(icons), **MODEL).fit()


def array(path):
    return np.asarray(Image.open(path).convert("RGB"))


FORMS = {
    "paths": lambda paths: list(map(Path, paths)),
    "an array of texts": np.array,
    "pictures": lambda paths: [Image.open(path) for path in paths],
    "bytes": lambda paths: np.stack(list(map(array, paths))),
    "floats": lambda paths: [array(path) / 255 for path in paths],
    "a tensor": lambda paths: torch.from_numpy(np.stack(list(map(array, paths)))).permute(0, 3, 1, 2),
    "mixed": lambda paths: [Image.open(paths[0]), *paths[1:4], array(paths[4]), *paths[5:]],
    "a generator": iter,
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_images_is_the_files(zeroshot, paths, form):
    expected = zeroshot.predict_proba(paths)
    np.testing.assert_allclose(zeroshot.predict_proba(FORMS[form](paths)), expected, atol=1e-6)


def test_folders_patterns_and_single_images(zeroshot, icons, tmp_path):
    folder = tmp_path / "photos"
    for name, found in icons.items():
        (folder / name).mkdir(parents=True)
        for path in found:
            (folder / name / Path(path).name).write_bytes(Path(path).read_bytes())
    files = sorted(folder.rglob("*.png"))
    expected = zeroshot.predict_proba(files)
    np.testing.assert_array_equal(zeroshot.predict_proba(folder), expected)
    np.testing.assert_array_equal(zeroshot.predict_proba(f"{folder}/*/*.png"), expected)
    one = zeroshot.predict(icons["star"][0])
    assert one.tolist() == ["star"] and zeroshot.predict(Image.open(icons["star"][0])).shape == (1,)


def test_features_stand_for_images(zeroshot, icons, paths, labels):
    features = zeroshot.transform(paths)
    np.testing.assert_array_equal(zeroshot.predict_proba(features), zeroshot.predict_proba(paths))
    names = list(icons)
    for kind, more in (
        (LinearProbeClassifier, {"pull": (1.0,)}),
        (CoOpClassifier, {"epochs": 1}),
        (InMaPClassifier, {}),
    ):
        on_paths = kind(names, **MODEL, **more).fit(paths, labels)
        on_features = kind(names, **MODEL, **more).fit(torch.from_numpy(features), labels)
        np.testing.assert_array_equal(on_features.predict_proba(features), on_paths.predict_proba(paths))
    # Validation features are rows of their own.
    probe = LinearProbeClassifier(names, **MODEL)
    on_features = probe.fit(features[::2], labels[::2], (features[1::2], labels[1::2])).predict_proba(features)
    on_paths = probe.fit(paths[::2], labels[::2], (paths[1::2], labels[1::2])).predict_proba(paths)
    np.testing.assert_array_equal(on_features, on_paths)


def test_labels_are_names_or_numbers(icons, paths, labels):
    names = list(icons)
    numbers = np.array([names.index(label) for label in labels])
    probe = LinearProbeClassifier(names, pull=(1.0,), **MODEL)
    by_names = probe.fit(paths, labels).predict_proba(paths)
    np.testing.assert_array_equal(probe.fit(paths, numbers).predict_proba(paths), by_names)
    np.testing.assert_array_equal(probe.fit(paths, torch.from_numpy(numbers)).predict_proba(paths), by_names)
    assert probe.score(paths, labels) == probe.score(paths, numbers) == np.mean(probe.predict(paths) == labels)
    unnamed = LinearProbeClassifier(pull=(1.0,), **MODEL).fit(paths, labels)
    assert unnamed.classes_.tolist() == sorted(names)
    np.testing.assert_allclose(unnamed.predict_proba(paths)[:, 0], by_names[:, names.index("fish")], atol=1e-5)


def test_a_changed_file_is_read_again(zeroshot, icons, tmp_path):
    place = tmp_path / "one.png"
    for found in icons.values():
        place.write_bytes(Path(found[1]).read_bytes())
        np.testing.assert_allclose(zeroshot.predict_proba(place), zeroshot.predict_proba(found[1]), atol=1e-6)


def test_scikit_learn_takes_them(icons, paths, labels):
    base = pytest.importorskip("sklearn.base")
    selection = pytest.importorskip("sklearn.model_selection")
    clf = LinearProbeClassifier(list(icons), steps=20, **MODEL)
    copy = base.clone(clf.set_params(pull=(0.3,)))
    assert copy is not clf and copy.get_params() == clf.get_params() and copy.get_params()["pull"] == (0.3,)
    assert not hasattr(copy, "classes_") and base.is_classifier(clf)
    features = ZeroshotClassifier(list(icons), **MODEL).fit().transform(paths)
    search = selection.GridSearchCV(clf, {"pull": [(0.1,), (100.0,)]}, cv=2).fit(features, np.array(labels))
    assert search.best_score_ == 1.0 and search.predict(features).tolist() == labels


def test_what_is_loaded_has_the_settings(icons, paths, tmp_path):
    clf = InMaPClassifier(list(icons), seed=2, marginal="uniform", **MODEL).fit(paths)
    again = load(clf.save(tmp_path / "head.safetensors"))
    assert again.get_params() == clf.get_params() | {"names": list(icons)}
    assert (
        repr(again)
        == "InMaPClassifier(names=['key', 'star', 'fish'], backbone='IconsCLIP', seed=2, marginal='uniform')"
    )
    generic = Classifier("onzeta", list(icons), **MODEL).fit(paths)
    assert "nothing to export" in str(refused(lambda: generic.save(tmp_path / "onzeta.safetensors")).value)
    styled = Classifier("styleprojection", list(icons), **STYLED, **MODEL).fit()
    again = load(styled.save(tmp_path / "styles.safetensors"))
    np.testing.assert_array_equal(again.predict_proba(paths), styled.predict_proba(paths))
    assert again.get_params() == {"method": "StyleProjection", "names": list(icons), "backbone": "IconsCLIP", "seed": 1,
                                  "weights": "", "config": "", "device": "auto", **STYLED}  # fmt: skip


def test_the_caller_keeps_output_and_random_states(icons, paths, labels, capfd):
    torch.manual_seed(5), np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5), np.random.seed(5)
    with pytest.warns(UserWarning, match="leaves out|no validation images"):
        LinearProbeClassifier(list(icons), **MODEL).fit(paths, labels)
        CoOpClassifier(list(icons), epochs=1, batch_size=7, **MODEL).fit(paths, labels)
    assert (torch.rand(1), np.random.rand()) == expected
    assert capfd.readouterr().out == ""


def refused(work):
    with pytest.raises(ValueError) as caught:
        work()
    assert len(str(caught.value).splitlines()) == 1
    return caught


REFUSALS = {
    "setting": (lambda p: InMaPClassifier(["a", "b"], margnal="uniform"), "Did you mean 'marginal'"),
    "epochs of none": (lambda p: InMaPClassifier(["a", "b"], epochs=3), "no setting 'epochs'"),
    "key": (lambda p: CoOpClassifier("a,b", **MODEL, **{"OPTIM.NAM": "sgd"}).fit(p, [0] * 12), "'OPTIM.NAME'"),
    "value": (lambda p: InMaPClassifier("a,b", marginal="unifrm", **MODEL).fit(p), "MARGINAL"),
    "type": (lambda p: CoOpClassifier("a,b", epochs="ten", **MODEL).fit(p, [0] * 12), "OPTIM.MAX_EPOCH takes"),
    "method": (lambda p: Classifier("TransClap", "a,b"), "Did you mean 'TransCLIP'"),
    "device": (lambda p: ZeroshotClassifier("a,b", device="cuda:7"), "'cpu'"),
    "backbone": (lambda p: ZeroshotClassifier("a,b", backbone="IconCLIP").fit(), "Did you mean 'IconsCLIP'"),
    "one name": (lambda p: ZeroshotClassifier(["a"], **MODEL).fit(), "at least two classes"),
    "twice": (lambda p: ZeroshotClassifier(["a", "b", "a"], **MODEL).fit(), "'a' 2 times"),
    "number as name": (lambda p: ZeroshotClassifier(["a", 1], **MODEL).fit(), "names holds 1"),
    "no names": (lambda p: ZeroshotClassifier(**MODEL).fit(), "names is None"),
    "no images": (lambda p: InMaPClassifier("a,b", **MODEL).fit(), "unlabelled images"),
    "empty": (lambda p: InMaPClassifier("a,b", **MODEL).fit([]), "no images"),
    "no labels": (lambda p: LinearProbeClassifier("a,b", **MODEL).fit(p), "fit(images, labels)"),
    "few labels": (lambda p: LinearProbeClassifier("a,b", **MODEL).fit(p, ["a"]), "12 images and 1 labels"),
    "label": (lambda p: LinearProbeClassifier("cat,dog", **MODEL).fit(p, ["cot"] * 12), "Did you mean 'cat'"),
    "number": (lambda p: LinearProbeClassifier("cat,dog", **MODEL).fit(p, [2] * 12), "from 0 to 1"),
    "half": (lambda p: LinearProbeClassifier("cat,dog", **MODEL).fit(p, [0.5] * 12), "0.5 is no class"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_of_a_fit_are_lines(paths, case):
    work, expected = REFUSALS[case]
    assert expected in str(refused(lambda: work(paths)).value)


INPUTS = {
    "normalised": (torch.full((3, 8, 8), -1.5), "not normalised"),
    "channels last": (torch.zeros(8, 8, 3), "a tensor is [3, H, W]"),
    "whole numbers": (np.zeros((8, 8, 3), np.int64), "numbers of int64"),
    "width": (np.zeros((4, 7), np.float32), "7 numbers each"),
    "not finite": (np.full((4, 256), np.nan, np.float32), "not finite"),
    "number": (3, "given as int"),
    "dict": ([{}], "given as dict"),
}


@pytest.mark.parametrize("case", INPUTS)
def test_refusals_of_images_are_lines(zeroshot, case):
    images, expected = INPUTS[case]
    assert expected in str(refused(lambda: zeroshot.predict(images)).value)


def test_files_that_are_missing_or_no_images(zeroshot, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    assert refused(lambda: zeroshot.predict(tmp_path / "x.jpg")).errisinstance(FileNotFoundError)
    assert "text.png" in str(refused(lambda: zeroshot.predict([tmp_path / "text.png"])).value)
    assert refused(lambda: load(tmp_path / "head.safetensors")).errisinstance(FileNotFoundError)
    assert refused(lambda: zeroshot.save(tmp_path / "no" / "head.safetensors")).errisinstance(FileNotFoundError)
    assert ".safetensors" in str(refused(lambda: zeroshot.save(tmp_path / "head.bin")).value)


def test_features_are_refused_where_images_are_read(icons, paths, labels, zeroshot):
    features = zeroshot.transform(paths)
    gopro = GOProClassifier(list(icons), epochs=1, **MODEL)
    assert "give images" in str(refused(lambda: gopro.fit(features, labels)).value)
    views = CoOpClassifier(list(icons), transforms=("random_flip", "normalize"), **MODEL)
    assert "give images" in str(refused(lambda: views.fit(features, labels)).value)


def test_before_the_fit(icons):
    for work in (lambda c: c.predict("x.jpg"), lambda c: c.save("x.safetensors"), lambda c: c.score("x.jpg", [0])):
        with pytest.raises(NotFittedError) as caught:
            work(CLAPClassifier(list(icons), **MODEL))
        assert isinstance(caught.value, ValueError) and isinstance(caught.value, AttributeError)


@pytest.mark.parametrize("hidden", [False, True])
def test_not_fitted_error_with_and_without_scikit_learn(hidden):
    if not hidden:
        pytest.importorskip("sklearn")
    program = "import sys; sys.modules['sklearn'] = None\n" if hidden else ""
    program += "from dassl_clip import NotFittedError as E; print(E.__module__, E.__mro__[1:3])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("dassl_clip.api.errors" if hidden else "sklearn.exceptions")
    assert "ValueError" in said and "AttributeError" in said


def test_importing_the_package_is_light():
    program = (
        "import sys, time; begin = time.perf_counter(); import dassl_clip; took = time.perf_counter() - begin\n"
        "assert not {'torch', 'numpy', 'dassl', 'yaml'} & sys.modules.keys(), 'heavy'\n"
        "from dassl_clip import *\nassert ZeroshotClassifier._method == 'ZeroshotCLIP'\n"
        "assert sorted(set(dir(dassl_clip)) & set(dassl_clip.__all__)) == dassl_clip.__all__\n"
        "try: dassl_clip.InMap\nexcept AttributeError as error: print(took, error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(said.split()[0]) < 0.2 and "no attribute 'InMap'" in said
