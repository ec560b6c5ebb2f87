"""Figures from records: what is drawn is what was measured.

Covered: means, spreads and domains against plain loops; seeds that lack a domain; panels that keep unlike runs apart;
curves over epochs and steps; shots of runs and of probes; weights between start and end; alpha and its diagnostic
mark; confusion matrices against a loop, merged and chosen classes; projections against an eigenvalue decomposition
and by neighbours; captions; palette under simulated colour blindness; PNG and SVG files; names that look like formulas
or markup; every refusal.
"""

import math
import statistics
import xml.etree.ElementTree as ET
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from dassl_clip.results import plot_between, plot_features, plots
from dassl_clip.results.figures import COLOURS, LINES, MARKERS, look, styled

from .conftest import make_record

DOMAINS = ("art", "photo", "sketch")
VIT = {"name": "ViT-B/16", "weights_hash": "ab" * 32}


def record(target="sketch", accuracy=50.0, readings=(), method="CoOp", seed=1, **facts):
    return make_record(method, target, seed, accuracy, readings, **{"backbone": VIT, "selection_rule": "last", **facts})


def grid(seeds=(1, 2, 3), **facts):
    """Accuracies `10 domain + seed^2`, the same function for every method."""
    return [record(d, 10 * i + s * s, seed=s, **facts) for i, d in enumerate(DOMAINS, 1) for s in seeds]


def panel_of(plot, title=""):
    return next(axis for axis in plot.figure.axes if title in axis.get_title())


def bars(axis):
    """Label-free points of each errorbar: x -> (mean, spread)."""
    found = []
    for container in axis.containers:
        line, _, (collection,) = container
        lengths = [(segment[1][1] - segment[0][1]) / 2 for segment in collection.get_segments()]
        found.append({x: (y, d) for x, y, d in zip(line.get_xdata(), line.get_ydata(), lengths)})
    return found


def test_domains_show_means_and_sample_deviations():
    axis = panel_of(plots.domains_plot(grid()))
    (points,) = bars(axis)
    expected = []
    for i in (1, 2, 3):
        values = [10 * i + s * s for s in (1, 2, 3)]
        mean = sum(values) / 3
        expected.append((mean, math.sqrt(sum((v - mean) ** 2 for v in values) / 2)))
    per_seed = [sum(10 * i + s * s for i in (1, 2, 3)) / 3 for s in (1, 2, 3)]
    expected.append((statistics.fmean(per_seed), statistics.stdev(per_seed)))
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [*DOMAINS, "mean"]
    np.testing.assert_allclose([points[x] for x in sorted(points)], expected, atol=1e-9)


def test_a_seed_without_all_domains_is_not_in_the_mean():
    found = [r for r in grid() if not (r["seed"] == 3 and r["target_domains"] == ["art"])]
    (points,) = bars(panel_of(plots.domains_plot(found)))
    values = [points[x] for x in sorted(points)]
    assert values[0] == pytest.approx((12.5, statistics.stdev([11, 14])))
    assert values[3] == pytest.approx((22.5, statistics.stdev([21, 24])))


def test_unlike_runs_have_panels_of_their_own():
    found = grid() + grid(task="fewshot") + grid(shots=4) + grid(backbone={"name": "RN50", "weights_hash": "cd" * 32})
    plot = plots.domains_plot(found + grid(method="GOPro"))
    titles = [axis.get_title() for axis in plot.figure.axes]
    assert len(titles) == 4 and len(set(titles)) == 4
    assert sorted(len(axis.containers) for axis in plot.figure.axes) == [1, 1, 1, 2]
    (legend,) = plot.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["CoOp (vit)", "GOPro (vit)"]


def test_too_many_groups_are_refused():
    with pytest.raises(ValueError, match="fall into 13 groups"):
        plots.domains_plot([record(shots=k) for k in range(1, 14)])
    with pytest.raises(ValueError, match="none of the runs has metrics of val images"):
        plots.domains_plot(grid(), split="val")


def test_the_caption_says_what_was_measured():
    plot = plots.domains_plot(grid() + grid(seeds=(2,), method="InMaP", transductive=True, selection_rule="best"))
    for part in (
        "PACS", "leave one domain out", "test images", "ViT-B/16 (weights abababababab)", "best | last",
        "n = 3 seeds (1, 2, 3)", "sample standard deviation over seeds", "InMaP (vit): n = 1",
        "Transductive (uses unlabelled test images): InMaP (vit)", "training images per class: 16",
    ):  # fmt: skip
        assert part in plot.caption
    svg = "".join(ET.fromstring(plot.svg()).itertext())
    assert "sample standard deviation over seeds" in svg and "n = 3 seeds (1, 2, 3)" in svg
    assert "n = 1 seed (4), no error bars" in plots.domains_plot([record(seed=4)]).caption


def history(seed, epochs=4):
    return [{"epoch": e, "lr": 0.1 / e, "loss": e + seed, "ce": e * seed} for e in range(1, epochs + 1)]


def test_curves_are_means_over_seeds_as_far_as_all_go():
    found = [record(seed=s, history=history(s, epochs=2 + s)) for s in (1, 2)]
    found.append(record(method="CLAP", history=[{"step": 480, "contrastive": 7.5}, {"step": 960, "contrastive": 7.0}]))
    plot = plots.curves_plot([*found, record(method="ZeroshotCLIP")])
    panels = {axis.get_title(): axis for axis in plot.figure.axes if axis.get_visible()}
    assert list(panels) == ["loss", "ce", "contrastive", "learning rate"]
    (line,) = panels["ce"].lines
    np.testing.assert_array_equal(line.get_xydata(), [[1, 1.5], [2, 3.0], [3, 4.5]])
    (band,) = panels["ce"].collections
    low, high = band.get_paths()[0].get_extents().intervaly
    spread = statistics.stdev([3, 6])
    assert high == pytest.approx(4.5 + spread) and low == pytest.approx(1.5 - statistics.stdev([1, 2]))
    (line,) = panels["contrastive"].lines
    np.testing.assert_array_equal(line.get_xydata(), [[480, 7.5], [960, 7.0]])
    assert panels["contrastive"].get_xlabel() == "step" and panels["loss"].get_xlabel() == "epoch"
    assert "1 of 4 runs have no history" in plot.caption and "bands: sample standard deviation" in plot.caption


def test_curves_need_a_history():
    with pytest.raises(ValueError, match=r"none of the 2 runs \(CoOp, ZeroshotCLIP\) has a history"):
        plots.curves_plot([record(), record(method="ZeroshotCLIP", history=[])])
    with pytest.raises(ValueError, match="30 lines"):
        plots.curves_plot([record(config=f"c{i}", history=history(1)) for i in range(30)])


def test_shots_of_runs_and_the_line_of_those_without_labels():
    found = [r for k in (1, 4, 16) for r in grid(seeds=(1, 2), shots=k)]
    for r in found:
        r["metrics"]["test"]["accuracy"] += r["shots"]
    found += grid(seeds=(1, 2), method="ZeroshotCLIP", num_train=0)
    plot = plots.shots_plot(found)
    assert [axis.get_title() for axis in plot.figure.axes if axis.get_visible()] == [
        *(f"PACS, lodo, {d}" for d in DOMAINS), "PACS, lodo, mean",
    ]  # fmt: skip
    (points,) = bars(panel_of(plot, "photo"))
    spread = statistics.stdev([1, 4])
    assert points == {k: pytest.approx((22.5 + k, spread)) for k in (1, 4, 16)}
    (points,) = bars(panel_of(plot, "mean"))
    assert points[4] == pytest.approx((22.5 + 4, spread))
    flat = [
        line for line in panel_of(plot, "mean").lines if set(line.get_ydata()) == {22.5} and len(line.get_ydata()) == 2
    ]
    assert len(flat) == 1 and flat[0].get_linestyle() == "--"
    assert "Dashed: no label is trained on" in plot.caption and "training images per class: 1, 4, 16" in plot.caption


def test_shots_of_probes_and_their_notes():
    readings = {"1-shot": 30.0, "8-shot": 60.0, "C": 10.0, "FGSM / 1-shot": 5.0}
    facts = {"num_train": 0, "shots": -1, "task": "probe", "reading_notes": ["probes: all of them"]}
    found = [record(seed=s, readings=readings, **facts) for s in (1, 2)]
    plot = plots.shots_plot(found)
    (points,) = bars(panel_of(plot, "probe"))
    assert points == {1: (30.0, 0.0), 8: (60.0, 0.0)}
    assert "How the extra tests were made: probes: all of them." in plot.caption
    with pytest.raises(ValueError, match="two or more numbers of shots"):
        plots.shots_plot(grid())


def test_8_1_runs_on_all_images_say_what_a_figure_of_shots_needs():
    """(row 8.1)"""
    whole = [record(d, 50.0, task="fewshot", shots=-1, seed=s) for d in DOMAINS for s in (1, 2)]
    with pytest.raises(ValueError, match=r"numbers of shots \(6 of the 6 runs used all images\): give runs"):
        plots.shots_plot(whole)
    several = [record("art", 50.0 + n, task="fewshot", shots=n, dataset="Other") for n in (1, 2)]
    assert len([axis for axis in plots.shots_plot(whole + several).figure.axes if axis.get_visible()]) == 1


def test_8_1_histories_that_cannot_be_drawn():
    """(row 8.1) No terms, and a loss beyond all axes."""
    for terms in ([{}], [{"epoch": 1}], [{"step": 1}, {"step": 2}]):
        with pytest.raises(ValueError, match="has a history of its losses"):
            plots.curves_plot([record(history=terms)])
    with pytest.raises(ValueError, match=r"CoOp \(vit\): loss is 1e\+308, which no axis can show"):
        plots.curves_plot([record(history=[{"epoch": 1, "loss": 1e308}])])


def test_groups_without_several_shots_are_left_out():
    found = [r for k in (1, 4) for r in grid(shots=k)] + grid(task="fewshot", method="GOPro")
    plot = plots.shots_plot(found)
    assert all("fewshot" not in axis.get_title() for axis in plot.figure.axes)
    assert "GOPro" not in plot.caption and "inside a domain" not in plot.caption


def test_a_setting_marks_the_value_used_and_test_images_as_diagnostic():
    found = [record(method="CLAP", seed=s, alpha=0.1) for s in (1, 2)]
    sweeps = [{0.0: 50.0, 0.1: 60.0 + s, 1.0: 40.0} for s in (0, 2)]
    plot = plots.setting_plot(found, sweeps, "alpha", "the weight", "source validation images")
    (points,) = bars(panel_of(plot))
    assert points[0.1] == pytest.approx((61.0, statistics.stdev([60, 62]))) and points[1.0] == (40.0, 0.0)
    (ring,) = [line for line in panel_of(plot).lines if line.get_markersize() > 10]
    assert ring.get_xydata().tolist() == [[0.1, 61.0]]
    assert "DIAGNOSTIC" not in plot.svg() and "source validation images" in plot.caption
    shown = plots.setting_plot(found, sweeps, "alpha", "the weight", "test images", diagnostic=True)
    assert "DIAGNOSTIC: test images" in shown.svg() and shown.caption.startswith("DIAGNOSTIC")
    for value in ("0.5", None, True, []):
        with pytest.raises(ValueError, match="as alpha, expected a number"):
            plots.setting_plot([record(alpha=value)], [{0.0: 1.0}], "alpha", "the weight", "test images")


def predictions(folder, classes, images, seed=0):
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, images)
    top = np.stack([draw.permutation(classes)[: min(5, classes)] for _ in range(images)])
    folder.mkdir(parents=True)
    paths, names = np.array([f"{i}.png" for i in range(images)]), np.array([f"class {c}" for c in range(classes)])
    shares = np.full(top.shape, 0.2, np.float32)
    np.savez(folder / "predictions.npz", paths=paths, labels=labels, top=top, shares=shares, classnames=names)
    return labels, top


def test_confusion_equals_a_loop(tmp_path):
    expected = np.zeros((7, 7))
    found = []
    for seed in (1, 2):
        labels, top = predictions(tmp_path / str(seed), 7, 90, seed)
        for label, best in zip(labels, top[:, 0]):
            expected[label, best] += 1
        found.append((tmp_path / str(seed), record(seed=seed)))
    plot = plot_features.confusion_plot(found)
    image = plot.figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, 100 * expected / expected.sum(axis=1, keepdims=True))
    assert f"{100 * np.trace(expected) / expected.sum():.1f} %" in plot.figure.axes[0].get_title()
    wrong = expected - np.diag(expected.diagonal())
    row, column = np.unravel_index(wrong.argmax(), wrong.shape)
    assert f"class {row} as class {column} ({wrong.max():.0f} of {expected[row].sum():.0f})" in plot.caption
    assert "seeds: 1, 2" in plot.caption


def test_chosen_and_merged_classes(tmp_path):
    labels, top = predictions(tmp_path / "run", 60, 600)
    shown = plot_features.confusion_plot([(tmp_path / "run", record())], ["class 3", "class 41"])
    names = [text.get_text() for text in shown.figure.axes[0].get_yticklabels()]
    assert names == ["class 3", "class 41", "other classes"]
    place = {3: 0, 41: 1}
    expected = np.zeros((3, 3))
    for label, best in zip(labels, top[:, 0]):
        expected[place.get(label, 2), place.get(best, 2)] += 1
    np.testing.assert_allclose(
        shown.figure.axes[0].images[0].get_array(), 100 * expected / expected.sum(1, keepdims=True)
    )
    worst = plot_features.confusion_plot([(tmp_path / "run", record())])
    names = [text.get_text() for text in worst.figure.axes[0].get_yticklabels()]
    recall = [np.mean(top[labels == c, 0] == c) if (labels == c).any() else np.inf for c in range(60)]
    lowest = sorted(sorted(range(60), key=lambda c: (recall[c], c))[:30])
    assert names == [*(f"class {c}" for c in lowest), "other classes"]
    assert "Shown: 30 of 60 classes, those with the lowest accuracy" in worst.caption


def test_confusion_refuses_what_it_cannot_show(tmp_path):
    predictions(tmp_path / "a", 4, 10)
    predictions(tmp_path / "b", 5, 10)
    with pytest.raises(ValueError, match="made before predictions were kept"):
        plot_features.confusion_plot([(tmp_path, record())])
    with pytest.raises(ValueError, match="has other classes"):
        plot_features.confusion_plot([(tmp_path / "a", record()), (tmp_path / "b", record())])
    with pytest.raises(ValueError, match="there is no class 'cow'"):
        plot_features.confusion_plot([(tmp_path / "a", record())], ["cow"])
    (tmp_path / "a" / "predictions.npz").write_bytes(b"PK torn")
    with pytest.raises(ValueError, match="is damaged"):
        plot_features.confusion_plot([(tmp_path / "a", record())])


def clusters():
    """Features `[100, 12]` around four centres, and their names."""
    draw = np.random.default_rng(0)
    centres = 6 * draw.normal(size=(4, 12))
    features = np.concatenate([centre + draw.normal(size=(25, 12)) for centre in centres])
    return features, np.repeat([f"c{i}" for i in range(4)], 25)


def test_pca_is_the_eigenvalue_decomposition():
    features, _ = clusters()
    points = plot_features.project(features, "pca")
    values, vectors = np.linalg.eigh(np.cov(features.T))
    reference = (features - features.mean(0)) @ vectors[:, ::-1][:, :2]
    for column in range(2):
        assert abs(np.corrcoef(points[:, column], reference[:, column])[0, 1]) == pytest.approx(1, abs=1e-9)
        assert points[:, column].var(ddof=1) == pytest.approx(values[::-1][column])


def test_tsne_keeps_neighbours_and_repeats():
    features, names = clusters()
    points = plot_features.project(features, "tsne", seed=3)
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(len(points), np.inf))
    assert np.mean(names[distances.argmin(1)] == names) == 1.0
    np.testing.assert_array_equal(points, plot_features.project(features, "tsne", seed=3))


def test_points_are_coloured_by_name_and_the_rest_is_grey():
    features, names = clusters()
    panels = [plot_features.Points("CoOp: sketch", features, names.tolist())]
    plot = plot_features.points_plot(panels, [record()], "pca", "test images", ["c1", "c3"])
    sizes = [len(collection.get_offsets()) for collection in plot.figure.axes[0].collections]
    assert sizes == [50, 25, 25]
    projected = plot_features.project(features, "pca")
    np.testing.assert_allclose(plot.figure.axes[0].collections[1].get_offsets(), projected[names == "c1"])
    assert "In colour: 2 of 4." in plot.caption and "test images (100 images)" in plot.caption


def test_projections_refuse():
    features, names = clusters()
    with pytest.raises(ValueError, match="unknown method 'sne'"):
        plot_features.project(features, "sne")
    with pytest.raises(ValueError, match="3 images are too few"):
        plot_features.project(features[:3], "pca")
    with pytest.raises(ValueError, match="no images of 'cow'"):
        plot_features.points_plot([plot_features.Points("", features, names)], [record()], "pca", "", ["cow"])
    try:
        import umap  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match="pip install 'dassl-clip\\[umap\\]'"):
            plot_features.project(features, "umap")
    else:
        assert plot_features.project(features, "umap").shape == (100, 2)


def seen(colour, matrix):
    """CIE L*a*b* of a colour as somebody with that colour vision sees it (Machado et al., 2009)."""
    value = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


VISIONS = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("vision", VISIONS)
def test_the_first_colours_differ_for_everybody(vision):
    for one, other in combinations(COLOURS[:6], 2):
        assert np.linalg.norm(seen(one, VISIONS[vision]) - seen(other, VISIONS[vision])) > 11, (one, other)


def test_looks_differ_without_colours_too():
    assert len({tuple(map(str, look(i).values())) for i in range(64)}) == 64
    assert len({(look(i)["marker"], str(look(i)["linestyle"])) for i in range(8)}) == 8 == len(set(MARKERS))
    assert len(set(map(str, LINES))) == 8


def test_files_are_whole_and_the_same_each_time(tmp_path):
    stem = tmp_path / "deep" / "figure.v2"
    paths = plots.domains_plot(grid()).save(stem)
    assert [path.name for path in paths] == ["figure.v2.png", "figure.v2.svg"]
    with Image.open(paths[0]) as image:
        image.load()
        assert image.width > 600 and len(image.convert("L").histogram()) > 10 and image.getextrema()[0] != (255, 255)
    first = paths[1].read_bytes()
    assert ET.fromstring(first).tag.endswith("svg")
    assert plots.domains_plot(grid()).save(stem)[1].read_bytes() == first
    assert sorted(path.name for path in stem.parent.iterdir()) == ["figure.v2.png", "figure.v2.svg"]


@pytest.mark.parametrize(("methods", "length"), [(2, 8), (24, 30), (3, 150), (12, 75)])
@pytest.mark.parametrize("draw", [plots.domains_plot, plots.shots_plot])
def test_no_legend_is_cut(methods, length, draw):
    names = [f"M{number:02} ".ljust(length, "W") for number in range(methods)]
    runs = [record(method=name, shots=shots) for name in names for shots in (1, 4)]
    figure = draw(runs[:: 2 if draw is plots.domains_plot else 1]).figure
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
    assert all(panel.get_window_extent().y1 < box.y0 for panel in figure.axes)  # and it covers nothing


def test_names_are_never_formulas_or_markup(tmp_path):
    name = "a$x_1$ <script>&amp; 100%"
    plot = plots.domains_plot([record(name), record("other")])
    root = ET.fromstring(plot.svg())
    assert name[:17] in "".join(root.itertext()) and not [e for e in root.iter() if e.tag.endswith("script")]
    plot.save(tmp_path / "figure")


def test_the_users_own_settings_do_not_matter(tmp_path):
    import matplotlib

    before = plots.domains_plot(grid()).svg()
    with matplotlib.rc_context({"font.size": 20, "axes.grid": False, "text.usetex": True}):
        assert plots.domains_plot(grid()).svg() == before
        assert matplotlib.rcParams["font.size"] == 20
    kept = dict(matplotlib.rcParams)
    with styled():
        assert matplotlib.rcParams["text.parse_math"] is False
    assert dict(matplotlib.rcParams) == kept


def test_weights_between_start_and_end_have_a_line_for_each_method():
    between = {"a": 0.0, "b": 0.5, "c": 1.0}

    def trained(target, method, seed, first):
        rows = {name: first + 10 * share + seed for name, share in between.items()}
        return record(target, 50.0, rows, method, seed, training={"steps": 6, "between": between})

    found = [trained(d, m, s, i) for i, d in enumerate(DOMAINS) for m in ("CoOp", "MaPLe") for s in (1, 3)]
    plot = plot_between.between_plot([*found, record(method="ZeroshotCLIP")])
    titles = [axis.get_title() for axis in plot.figure.axes if axis.get_visible()]
    assert titles == [*(f"PACS, lodo, {d}" for d in DOMAINS), "PACS, lodo, mean"]
    for title, first in (("photo", 1), ("mean", 1)):
        for points in bars(panel_of(plot, title)):
            assert points == {x: pytest.approx((first + 10 * x + 2, math.sqrt(2))) for x in (0.0, 0.5, 1.0)}
    assert "nothing may be chosen from this figure" in plot.caption
    with pytest.raises(ValueError, match="none of the runs tested weights between"):
        plot_between.between_plot([record()])
