"""`dassl-clip plot`: each kind from run folders.

Covered: files and caption of every kind that records are enough for; filters; features of real runs for t-SNE and PCA,
by class and by domain, equal to those of the tower; alpha of a real CLAP run equal to its tested accuracy, on source
validation images unless asked; both with the data (and, where nothing learned changes features, the model) gone; both
made again from data after the cache is gone; every refusal.
"""

import json
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dassl_clip.cli import plot, train
from dassl_clip.clip.backbone import load_backbone
from dassl_clip.engine import run_features
from dassl_clip.engine.run_features import setting_sweep
from dassl_clip.results import records

from .conftest import run_words, write_run


@pytest.fixture
def runs(tmp_path):
    """Runs of two methods, two domains, two seeds and two numbers of shots, with histories and predictions."""
    root = tmp_path / "runs"
    for method in ("CoOp", "GOPro"):
        for domain in ("photo", "sketch"):
            for seed in (1, 2):
                for shots in (4, 16):
                    write_run(
                        root / method / domain / f"{seed}-{shots}", method=method, target_domains=[domain], seed=seed,
                        shots=shots,
                    )  # fmt: skip
    return root


@pytest.mark.parametrize("kind", ["curves", "domains", "shots", "confusion"])
def test_kinds_that_need_no_features(runs, tmp_path, capsys, kind):
    stem = tmp_path / "figures" / kind
    assert plot.main([kind, str(runs), "--out", str(stem)]) == 0
    with Image.open(f"{stem}.png") as image:
        assert image.format == "PNG" and min(image.size) > 300
    svg, told = (tmp_path / "figures" / f"{kind}.svg").read_text(), capsys.readouterr().out
    assert told.splitlines()[:2] == [f"{stem}.png", f"{stem}.svg"]
    for text in ("CoOp (vit)", "GOPro (vit)", "PACS", "1, 2"):
        assert text in svg
    assert "leave one domain out" in told and "RN50 (weights abababababab)" in told


@pytest.mark.parametrize("kind", plot.KINDS)
def test_help_has_an_example_that_parses(kind, capsys):
    with pytest.raises(SystemExit) as stop:
        plot.main([kind, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and f"example: dassl-clip plot {kind} {plot.EXAMPLES[kind]}" in shown
    assert plot.build_parser().parse_args([kind, *plot.EXAMPLES[kind].split()]).kind == kind


def test_filters(runs):
    def shown(*words):
        return plot.find_runs(plot.build_parser().parse_args(["domains", str(runs), *words]))

    assert len(shown()) == 16 and len(shown("--seeds", "2")) == 8
    some = shown("--rows", "GOPro (vit)", "--targets", "sketch", "--seeds", "1")
    assert {item.folder.relative_to(runs).as_posix() for item in some} == {"GOPro/sketch/1-16", "GOPro/sketch/1-4"}


def test_a_run_named_twice_counts_once(runs):
    args = plot.build_parser().parse_args(["domains", str(runs), str(runs / "CoOp" / "photo"), str(runs)])
    assert len(plot.find_runs(args)) == 16


def test_the_default_files_and_an_ending_that_was_given(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plot.main(["domains", str(runs)]) == 0
    assert plot.main(["domains", str(runs), "--out", "mine.svg"]) == 0
    assert plot.main(["domains", str(runs), "--out", "paper.PDF"]) == 0
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["domains.png", "domains.svg", "mine.svg", "paper.pdf"]
    first = (tmp_path / "paper.pdf").read_bytes()
    assert first.startswith(b"%PDF-") and b"/Subtype /Image" not in first and b"/Font" in first  # lines and letters
    assert plot.main(["domains", str(runs), "--out", "paper.pdf"]) == 0
    assert (tmp_path / "paper.pdf").read_bytes() == first


REFUSALS = {
    "kind": (["domain", "{runs}"], "invalid choice: 'domain'"),
    "no run": (["domains", "{empty}"], "no finished run at or below"),
    "no folder": (["domains", "{empty}/x"], "no folder"),
    "row": (["domains", "{runs}", "--rows", "CoOpp"], "Did you mean 'CoOp'?"),
    "seed": (["domains", "{runs}", "--seeds", "7"], "no run has '7'"),
    "nothing passes": (["domains", "{runs}/CoOp/photo/1-4", "{runs}/CoOp/sketch/2-4", "--seeds", "1", "--targets",
                        "sketch"], "no run passes"),
    "shots": (["shots", "{runs}/CoOp/photo/1-4"], "two or more numbers of shots"),
    "alpha": (["alpha", "{plain}"], "a run of CoOp, which has no alpha"),
    "too many panels": (["tsne", "{runs}"], "16 runs, and at most 8 fit"),
    "folder": (["domains", "{runs}", "--out", "{empty}"], "this is a folder"),
    "images": (["tsne", "{runs}/CoOp/photo/1-4", "--images", "2"], "at least 4"),
    "no config": (["tsne", "{runs}/CoOp/photo/1-4"], "no readable config.yaml"),
    "class": (["confusion", "{runs}", "--classes", "cow"], "there is no class 'cow'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_sentences(runs, tmp_path, capsys, case):
    (tmp_path / "empty").mkdir()
    plain = write_run(tmp_path / "plain")
    (plain / "config.yaml").write_text("TRAINER: {NAME: CoOp}\n")
    words, expected = REFUSALS[case]
    try:
        code = plot.main([word.format(runs=runs, empty=tmp_path / "empty", plain=plain) for word in words])
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err
    assert code == 2 and expected in told and told.startswith("error: ")


def test_broken_runs_are_named(runs, tmp_path, capsys):
    (runs / "broken").mkdir()
    (runs / "broken" / "record.json").write_text("{")
    assert plot.main(["domains", str(runs), "--out", str(tmp_path / "figure")]) == 0
    assert f"left out, broken: {runs / 'broken'}" in capsys.readouterr().err


@pytest.fixture(scope="module")
def real(tmp_path_factory, tiny_clip, domain_tree):
    """A run of CLAP and one of ZeroshotCLIP on the small tree."""
    root = tmp_path_factory.mktemp("real")
    clap = ["TRAINER.CLAP.MAX_STEPS", "20", "TRAINER.CLAP.LATENT_DIM", "8", "TRAINER.CLAP.ALPHA", "20.0"]
    clap += ["TRAINER.CLAP.TEMPLATES", "single"]
    for name, pairs in {"CLAP": clap, "ZeroshotCLIP": [], "GOPro": []}.items():
        assert train.main(run_words(name, root / name, domain_tree, tiny_clip, *pairs)) == 0
    return root


def test_points_are_the_towers_features(real, tiny_clip, domain_tree):
    points, what = plot.run_points(real / "ZeroshotCLIP", "class", "test", 2000, 1)
    backbone = load_backbone(f"local-dir:{tiny_clip}")
    paths = sorted((domain_tree / "sketch").glob("*/*.png"))
    images = torch.stack([backbone.preprocess()(Image.open(path).convert("RGB")) for path in paths])
    expected = F.normalize(backbone.encode_image(images), dim=-1).numpy()
    order = np.lexsort(points.features.T), np.lexsort(expected.T)
    np.testing.assert_allclose(points.features[order[0]], expected[order[1]], atol=1e-5)
    assert sorted(points.names) == sorted(path.parent.name for path in paths) and what == "test images"
    content, _ = plot.run_points(real / "CLAP", "class", "test", 2000, 1)
    assert np.abs(content.features - points.features).max() > 1e-3


@pytest.fixture
def data_gone(domain_tree):
    """The pictures lie elsewhere during the test."""
    away = domain_tree.with_name("away")
    domain_tree.rename(away)
    yield away
    away.rename(domain_tree)


@pytest.mark.parametrize("method", ["ZeroshotCLIP", "CLAP", "GOPro"])
def test_saved_features_draw_without_the_data(real, tmp_path, data_gone, method):
    points, what = plot.run_points(real / method, "class", "test", 2000, 1)
    assert what == "test images" and points.names == ["dog"] * 10 + ["fire_truck"] * 10 + ["house"] * 10
    again, _ = plot.run_points(real / method, "class", "test", 2000, 1, str(data_gone))
    np.testing.assert_allclose(again.features, points.features, atol=1e-6)
    assert plot.main(["tsne", str(real / method), "--method", "pca", "--out", str(tmp_path / "figure")]) == 0


def test_alpha_without_the_data(real, data_gone):
    record, sweep = setting_sweep(real / "CLAP", "alpha", (0.0, 5.0), "test")
    assert sweep[20.0] == pytest.approx(record["metrics"]["test"]["accuracy"])
    _, chosen_by = setting_sweep(real / "CLAP", "alpha", (), "val")
    _, encoded = setting_sweep(real / "CLAP", "alpha", (), "val", str(data_gone))
    assert chosen_by == pytest.approx(encoded) and len(chosen_by) > 10


def test_features_that_nothing_learned_changes_need_no_model(real, monkeypatch):
    def refuse(*words):
        raise AssertionError("a trainer was built")

    monkeypatch.setattr(run_features, "open_run", refuse)
    points, _ = plot.run_points(real / "ZeroshotCLIP", "domain", "test", 2000, 1)
    assert points.features.shape == (30, 16) and set(points.names) == {"sketch"}
    with pytest.raises(AssertionError, match="built"):
        plot.run_points(real / "CLAP", "domain", "test", 2000, 1)


def test_features_that_are_gone_name_the_command_that_makes_them(real, tmp_path, domain_tree, monkeypatch, capsys):
    shutil.copytree(real / "ZeroshotCLIP", tmp_path / "run")
    monkeypatch.setenv("DASSL_CLIP_CACHE", str(tmp_path / "cache"))
    words = ["tsne", str(tmp_path / "run"), "--method", "pca", "--out", str(tmp_path / "figure")]
    assert plot.main(words) == 2
    told = capsys.readouterr().err
    assert "that are there no longer" in told and f"with --data {domain_tree} " in told
    assert plot.main([*words, "--data", str(domain_tree)]) == 0 and plot.main(words) == 0
    assert plot.main([*words, "--split", "val"]) == 2
    assert "names no saved features of its source validation images" in capsys.readouterr().err


def test_domains_of_source_images_and_a_seeded_draw(real, domain_tree):
    points, what = plot.run_points(real / "ZeroshotCLIP", "domain", "train", 10, 1, str(domain_tree))
    assert len(points.names) == 10 and set(points.names) == {"art", "photo"}  # kept from now on
    assert what == "source training images, a seeded draw of 10 of 12"
    again, _ = plot.run_points(real / "ZeroshotCLIP", "domain", "train", 10, 1)
    other, _ = plot.run_points(real / "ZeroshotCLIP", "domain", "train", 10, 2)
    np.testing.assert_array_equal(again.features, points.features)
    assert not np.array_equal(other.features, points.features)


def test_images_that_cannot_be_decoded_are_left_out(real, tmp_path, domain_tree, tiny_clip):
    shutil.copytree(domain_tree, tmp_path / "tree")
    (tmp_path / "tree" / "sketch" / "dog" / "003.png").write_bytes(b"torn")
    skip = ("DATALOADER.ON_BAD_IMAGE", "skip")
    assert train.main(run_words("ZeroshotCLIP", tmp_path / "run", tmp_path / "tree", tiny_clip, *skip)) == 0
    points, _ = plot.run_points(tmp_path / "run", "class", "test", 2000, 1)
    whole, _ = plot.run_points(real / "ZeroshotCLIP", "class", "test", 2000, 1)
    assert len(points.features) == 29 and points.names.count("dog") == 9
    np.testing.assert_allclose(
        points.features, np.delete(whole.features, whole.names.index("dog") + 3, axis=0), atol=1e-5
    )


def test_features_as_a_figure(real, tmp_path):
    stem = tmp_path / "points"
    words = ["tsne", str(real), "--method", "pca", "--rows", "CLAP", "ZeroshotCLIP", "--out", str(stem)]
    assert plot.main(words) == 0
    svg = stem.with_name("points.svg").read_text()
    assert (
        ">CLAP (BATCH_SIZE=6): sketch" in svg
        and ">ZeroshotCLIP (BATCH_SIZE=6): sketch" in svg
        and "test images (30, 30 images)" in svg
    )
    assert plot.main([*words, "--together", "--by", "domain"]) == 0
    svg = stem.with_name("points.svg").read_text()
    assert "(60 images)" in svg and len(re.findall(r'id="axes_\d+"', svg)) == 1


def test_alpha_of_a_real_run(real, tmp_path):
    record, sweep = setting_sweep(real / "CLAP", "alpha", (0.0, 5.0), "test")
    assert list(sweep) == [0.0, 5.0, 20.0]
    assert sweep[20.0] == pytest.approx(record["metrics"]["test"]["accuracy"])
    plain = records.read_record(real / "ZeroshotCLIP")["metrics"]["test"]["accuracy"]
    assert sweep[0.0] == pytest.approx(plain)
    _, default = setting_sweep(real / "CLAP", "alpha", (), "val")
    assert {0.0, 0.01, 1.0, 20.0} <= set(default)


def test_alpha_reads_source_validation_images_unless_asked(real, tmp_path, capsys):
    stem = tmp_path / "alpha"
    assert plot.main(["alpha", str(real), "--out", str(stem)]) == 0
    told = capsys.readouterr().out
    assert "source validation images" in told and "DIAGNOSTIC" not in stem.with_name("alpha.svg").read_text()
    assert plot.main(["alpha", str(real), "--out", str(stem), "--test"]) == 0
    assert "DIAGNOSTIC: test images" in stem.with_name("alpha.svg").read_text()


def test_changed_data_are_told(real, tmp_path, domain_tree, caplog):
    shutil.copytree(real / "ZeroshotCLIP", tmp_path / "run")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    record["data_fingerprint"] = "0" * 64
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))
    run_features.run_features(tmp_path / "run", "test", str(domain_tree))
    assert "is no longer what the run" in caplog.text
