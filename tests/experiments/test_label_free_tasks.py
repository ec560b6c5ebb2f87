"""Tasks of methods without labels, and methods that refine the runs of another, as plans and as runs.

Covers what `experiments/plan.py`, `task.py` and `compare.py` do with zeroshot, probe and attacks, with data sets
without domains, with `X+InMaP`; and the values of every shipped config of CLAP and InMaP.
"""

import re
import shutil

import pytest

from dassl_clip.engine import catalogue, registry
from dassl_clip.engine.config import default_config
from dassl_clip.engine.overrides import resolve_config
from dassl_clip.experiments import methods, plan
from dassl_clip.experiments.tasks import check_task
from dassl_clip.results import records
from dassl_clip.results.errors import UserError

EVALUATE = {"zeroshot": ("forms",), "probe": ("probe",), "attacks": ("attacks",)}
# The published settings: batch, tau, lambda, noise tokens; latent width and alpha of each backbone.
CLAP_LOSS = {
    "pacs": (8, 0.5, 1.0, 4), "vlcs": (8, 0.5, 1.0, 4), "office_home": (96, 0.3, 1e-4, 0),
    "domainnet": (384, 0.3, 1e-4, 0),
}  # fmt: skip
CLAP_HEAD = {
    "ViT-B/16": {"pacs": (256, 0.208), "vlcs": (512, 0.056), "office_home": (448, 0.14), "domainnet": (512, 0.2)},
    "ViT-L/14": {"pacs": (448, 0.1), "vlcs": (640, 0.03), "office_home": (768, 0.14), "domainnet": (768, 0.2)},
}


@pytest.fixture(autouse=True)
def rooms():
    registry.register()


def request(world, **changes):
    facts = {"dataset": str(world.dataset), "seeds": (1,), "out": str(world.out), "data": str(world.images)}
    return plan.Request(**{**facts, "imports": (str(world.plugin),), **changes})


def planned(world, method, pairs=(), **changes):
    asked = request(world, **changes)
    return plan.plan_runs(asked, methods.method_of(method, pairs, imports=asked.imports))


def below(world, run):
    return str(run.folder.relative_to(world.out))


# ------------------------------------------------------------------------------------------------------------ plans


@pytest.mark.parametrize("name", EVALUATE)
@pytest.mark.parametrize("method", ["ZeroshotCLIP", "CLAP"])
def test_every_image_of_a_domain_is_tested_and_none_is_labelled(world, method, name):
    runs = planned(world, method, (("DATASET.NUM_SHOTS", "4"),), tasks=(name,), shots=2)
    assert [below(world, run) for run in runs] == [
        f"{name}/colours/{method}/vit_b16/shots-1/{domain}/seed1" for domain in ("day", "night")
    ]
    for run in runs:
        cfg = run.config
        assert list(cfg.DATASET.SOURCE_DOMAINS) == list(cfg.DATASET.TARGET_DOMAINS) == [run.target]
        assert ("all-images", -1, name) == (cfg.DATASET.PROTOCOL, cfg.DATASET.NUM_SHOTS, cfg.RUN.TASK)
        assert tuple(cfg.TRAINER[method.upper()].EVALUATE) == EVALUATE[name]
        assert cfg.RUN.CONFIG == "vit_b16" and run.row.label == f"{method} (vit_b16)"


def test_a_method_without_readings_has_the_zeroshot_task_alone(world):
    (run,) = planned(world, "InMaP", tasks=("zeroshot",), targets=("night",))
    assert run.config.DATASET.PROTOCOL == "all-images" and "EVALUATE" not in run.config.TRAINER.INMAP
    for name in ("probe", "attacks"):
        with pytest.raises(UserError, match=rf"InMaP has no {name}: that is for CLAP, StyleProjection, ZeroshotCLIP"):
            planned(world, "InMaP", tasks=(name,))


@pytest.mark.parametrize("name", EVALUATE)
@pytest.mark.parametrize("method", ["CoOp", "GOPro", "LinearProbe", "CoOp+InMaP"])
def test_methods_that_train_on_labels_are_refused(world, method, name):
    with pytest.raises(UserError) as error:
        planned(world, method, tasks=(name,))
    sentence = str(error.value)
    if "InMaP" in method and name != "zeroshot":
        assert "InMaP has no" in sentence
    else:
        assert f"{name} is for methods that train on no label" in sentence and "CLAP, IOTA, InMaP, " in sentence
        assert "ZeroshotCLIP" in sentence and "tasks for " in sentence


@pytest.mark.parametrize(
    ("dataset", "method", "tasks"),
    [
        ("pacs", "CLAP", ["zeroshot"]), ("pacs", "InMaP", ["zeroshot"]), ("pacs", "GOPro", ["lodo"]),
        ("pacs", "ZeroshotCLIP", ["lodo"]), ("icons", "CLAP", ["fewshot", "lodo"]),
        ("icons", "InMaP", ["fewshot", "lodo"]), ("imagenet", "InMaP", ["zeroshot"]),
        ("imagenet", "CLAP", ["zeroshot"]),
    ],
)  # fmt: skip
def test_default_tasks_are_the_methods_own_or_the_data_sets(dataset, method, tasks):
    asked = plan.Request(dataset, (1,))
    assert list(plan.with_tasks(asked, methods.Method(method)).tasks) == tasks
    asked = plan.Request(dataset, (1,), tasks=("zeroshot",))
    assert plan.with_tasks(asked, methods.Method(method)).tasks == ("zeroshot",)


@pytest.mark.parametrize("name", EVALUATE)
@pytest.mark.parametrize("dataset", ["folder_classes", "manifest"])
def test_2_4_every_image_of_your_own_data_is_tested(dataset, name, world):
    """Row 2.4: folders and lists publish no test images, so the task tests all of them, as it says."""
    (world.root / "manifest.csv").write_text("path,class\nday/cold/00.png,cold\nday/hot/00.png,hot\n")
    data = str(world.images / "day") if dataset == "folder_classes" else str(world.root)
    (run,) = planned(world, "CLAP", dataset=dataset, data=data, tasks=(name,))
    assert run.config.DATASET.PROTOCOL == "all-images" and run.target == "all"
    (run,) = planned(world, "CLAP", dataset=dataset, data=data, tasks=("fewshot",), shots=1)
    assert run.config.DATASET.PROTOCOL == "dassl"


def test_data_sets_without_domains_have_one_column_and_keep_their_split(world):
    """The papers' ImageNet numbers are of its validation images: training images are never tested."""
    (run,) = planned(world, "InMaP", dataset="imagenet", tasks=("zeroshot",))
    assert below(world, run) == "zeroshot/imagenet/InMaP/vit_b16/shots-1/all/seed1"
    assert (run.target, run.config.DATASET.PROTOCOL) == ("all", "dassl")
    assert not run.config.DATASET.SOURCE_DOMAINS and not run.config.DATASET.TARGET_DOMAINS
    (run,) = planned(world, "CLAP", dataset="imagenet", tasks=("probe",))
    assert tuple(run.config.TRAINER.CLAP.EVALUATE) == ("probe",)
    with pytest.raises(UserError, match="ImageNet has no domains, so no target can be named: night"):
        planned(world, "CLAP", dataset="imagenet", targets=("night",))
    with pytest.raises(UserError, match="lodo leaves one domain out, but ImageNet has no domains"):
        planned(world, "CLAP", dataset="imagenet", tasks=("lodo",))
    config = default_config()
    with pytest.raises(UserError, match="has only night"):
        check_task("styles", config, ("night",))


def test_refined_runs_stand_beside_their_bases(world):
    runs = planned(world, "CLAP+InMaP", (("TRAINER.INMAP.GAMMA", "0.5"),), tasks=("zeroshot",), seeds=(1, 2))
    bases = planned(world, "CLAP", tasks=("zeroshot",), seeds=(1, 2))
    assert [run.needs for run in runs] == [base.folder for base in bases]
    for run, base in zip(runs, bases):
        assert str(base.folder) == run.config.TRAINER.INMAP.FROM
        assert run.row.label == "CLAP + InMaP (vit_b16 + vit_b16, GAMMA=0.5)"
        folder = f"InMaP/vit_b16+GAMMA=0.5-from-CLAP-vit_b16/shots-1/{base.target}/seed{base.seed}"
        assert below(world, run) == f"zeroshot/colours/{folder}"
    (run, _) = planned(world, "CoOp+InMaP", tasks=("lodo",), shots=4)
    assert run.config.DATASET.SOURCE_DOMAINS == ("night",) and run.config.DATASET.NUM_SHOTS == 4
    assert run.config.DATASET.PROTOCOL == "dassl" and run.row.label == "CoOp + InMaP (vit_b16)"


def test_names_of_refined_methods():
    method = methods.method_of("clap:icons-source-val+inmap:icons_paper", (("OPTIM.LR", "1.0"),))
    assert (method.trainer, method.config) == ("InMaP", "icons_paper")
    assert (method.base.trainer, method.base.config) == ("CLAP", "icons-source-val")
    assert methods.method_of("GOPro").base is None
    with pytest.raises(UserError, match=r"there is no method 'GPro'\. Did you mean 'GOPro'\?"):
        methods.method_of("GPro+InMaP")
    with pytest.raises(UserError, match=r"there is no method 'GOPro\+CoOp'"):
        methods.method_of("GOPro+CoOp")


@pytest.mark.parametrize("dataset", ["pacs", "vlcs", "office_home", "domainnet", "imagenet", "icons"])
def test_compare_has_the_reference_first_and_one_backbone(dataset):
    """A data set for which one method alone has a config of its own is compared with all methods all the same."""
    chosen = methods.all_methods(dataset, ())
    assert chosen[0].trainer == "ZeroshotCLIP"
    known = {name for name in catalogue.trainer_names() if getattr(registry.trainer_class(name), "listed", True)}
    assert {method.trainer for method in chosen} == known and not known & {"KgCoOp"}
    refined = [method.base.trainer for method in chosen if method.base]
    assert sorted(refined) == ["CLAP", "CoOp", "GOPro", "LinearProbe", "StyleProjection"]
    assert len({resolve_config(method.overrides(dataset)).MODEL.BACKBONE.NAME for method in chosen}) == 1


@pytest.mark.parametrize(
    ("tasks", "listed"),
    [(("zeroshot",), True), (("stream", "zeroshot"), True), (("fewshot", "zeroshot"), False), (("lodo",), False)],
)
def test_compare_lists_methods_to_compare_with_where_they_are_meant_for(tasks, listed):
    chosen = methods.all_methods("icons", tasks)
    peers = {"TransCLIP", "StatA", "ZLaP", "IOTA", "TDA", "OnZeta"}
    assert {method.trainer for method in chosen} & peers == (peers if listed else set())
    assert not [method for method in chosen if method.base and {method.trainer, method.base.trainer} & peers]
    assert ("OnZeta", "icons_alpha0") in [(method.trainer, method.config) for method in chosen] or not listed
    assert ("InMaP", None) in [(method.trainer, method.base) for method in chosen]
    assert "CLAP" in [method.base.trainer for method in chosen if method.base] or "fewshot" in tasks


# ------------------------------------------------------------------------------------------------------------- runs


def table_rows(text):
    """First cell -> other cells of every line of text tables; of equal first cells the last."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 1 and not row[0].startswith("---")}


@pytest.fixture
def clip_world(world, tiny_clip):
    """The tiny world with a config of the small CLIP for every method."""
    for method, lines in {
        "ZeroshotCLIP": "ZEROSHOTCLIP: {TEMPLATES: single}",
        "CLAP": "CLAP: {TEMPLATES: single, LATENT_DIM: 8, MAX_STEPS: 10, BATCH_SIZE: 8, PROBE_SHOTS: [1, 2]}",
        "InMaP": "INMAP: {TEMPLATES: single}",
        "CoOp": "COOP: {N_CTX: 2}",
    }.items():
        (world.root / f"{method}.yaml").write_text(
            f"MODEL: {{BACKBONE: {{NAME: 'local-dir:{tiny_clip}'}}}}\nDATALOADER: {{NUM_WORKERS: 0}}\n"
            f"OPTIM: {{MAX_EPOCH: 1, NAME: sgd, LR: 0.01}}\nTRAINER:\n  {lines}\n"
        )
    return world


def words_of(world, method, *more, dataset=None):
    base, plus, refiner = method.rpartition("+")
    name = f"{base}:{world.root / f'{base}.yaml'}+{refiner}" if plus else refiner
    words = ["task", name, str(dataset or world.dataset), "1", "--config", str(world.root / f"{refiner}.yaml")]
    return [*words, "--data", str(world.images), "--out", str(world.out), "--jobs", "1", *more]


def test_a_refined_task_runs_its_bases_first_and_prints_both(clip_world):
    world = clip_world
    words = words_of(world, "CoOp+InMaP", "--task", "lodo", "--shots", "2")
    done = world.run(words)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    found = records.find_records(world.out)
    assert sorted(item.record["method"] for item in found) == ["CoOp", "CoOp", "InMaP", "InMaP"]
    rows = table_rows(done.stdout)
    assert {"CoOp (CoOp)", "CoOp + InMaP (CoOp + InMaP)"} <= set(rows)
    accuracy = {
        (item.record["method"], item.record["target_domains"][0]): item.record["metrics"]["test"]["accuracy"]
        for item in found
    }
    for label, method in (("CoOp (CoOp)", "CoOp"), ("CoOp + InMaP (CoOp + InMaP)", "InMaP")):
        assert rows[label][:2] == [f"{accuracy[method, domain]:.1f}" for domain in ("day", "night")]
    gain = accuracy["InMaP", "day"] - accuracy["CoOp", "day"]
    assert float(rows["gain of CoOp + InMaP (CoOp + InMaP)"][0]) == pytest.approx(gain, abs=0.0501)
    assert "transductive (uses unlabelled test images): CoOp + InMaP (CoOp + InMaP)" in done.stdout
    assert all(item.record["transductive"] == (item.record["method"] == "InMaP") for item in found)

    again = world.run(words)
    assert again.returncode == 0 and again.stdout.count("skipped, complete: ") == 4

    for item in found:  # one base is lost: it is run again, and its refinement stays
        if item.record["method"] == "CoOp" and item.record["target_domains"] == ["day"]:
            shutil.rmtree(item.folder)
    third = world.run(words)  # it learns the same again, bit for bit
    assert third.returncode == 0 and third.stdout.count("skipped, complete: ") == 3

    for item in found:  # a refinement of a base that has learned something else since
        if item.record["method"] == "InMaP" and item.record["target_domains"] == ["day"]:
            record = records.read_record(item.folder)
            record["refines"]["learned"]["prompt_learner"]["sha256"] = "0" * 64
            records.write_record(item.folder, record)
    fourth = world.run(words)
    assert fourth.returncode == 0 and fourth.stdout.count("skipped, complete: ") == 3
    assert "redo: CoOp + InMaP" in fourth.stdout and "which was run again since" in fourth.stdout


def test_readings_stand_in_a_table_of_their_own(clip_world):
    world = clip_world
    reference = f"ZeroshotCLIP:{world.root / 'ZeroshotCLIP.yaml'}"
    words = words_of(world, "CLAP", "--task", "zeroshot", "probe", "--reference", reference, "--targets", "night")
    done = world.run(words)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    found = {(item.record["method"], item.record["task"]): item.record for item in records.find_records(world.out)}
    assert set(found) == {(m, t) for m in ("CLAP", "ZeroshotCLIP") for t in ("zeroshot", "probe")}
    rows = table_rows(done.stdout)
    labels = {m: next(key for key in rows if key.startswith(f"{m} (")) for m in ("CLAP", "ZeroshotCLIP")}
    for (method, name), record in found.items():
        assert record["metrics"]["test"]["total"] == 20 and record["num_train"] == 0
        readings = ("C", "CP", "PC", "NC") if name == "zeroshot" else ("1-shot", "2-shot")
        assert list(record["metrics"]) == ["test", *readings]
        for reading in readings:
            assert rows[f"{reading}: {labels[method]}"] == [f"{record['metrics'][reading]['accuracy']:.1f}"] * 2
    for measure in ("R", "delta", "Delta_NC"):
        assert f"{measure}: {labels['CLAP']}" in rows
    assert "task zeroshot, test images: extra tests" in done.stdout


def test_2_4_a_table_says_which_images_were_tested(clip_world):
    """Row 2.4: every image of your own folders, whatever parts they have; the header names what and how many."""
    world = clip_world
    for part, count in (("train", 6), ("test", 4)):
        for name in ("cold", "hot"):
            (world.root / "plain" / part / name).mkdir(parents=True)
            for number in range(count):
                source = world.images / "day" / name / f"{number + (6 if part == 'test' else 0):02}.png"
                shutil.copy(source, world.root / "plain" / part / name)
    dataset = world.root / "plain.yaml"
    dataset.write_text("DATASET: {NAME: FolderClasses}\n")
    words = words_of(world, "InMaP", "--task", "zeroshot", dataset=dataset)
    words[words.index("--data") + 1] = str(world.root / "plain")
    done = world.run(words)
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    (item,) = records.find_records(world.out)
    assert item.folder.parts[-6:] == ("plain", "InMaP", "InMaP", "shots-1", "all", "seed1")
    assert item.record["metrics"]["test"]["total"] == 20 and item.record["transductive"]
    assert item.record["data_protocol"] == "all-images"
    assert "protocol: every image of the data set is tested, no label is trained on" in done.stdout
    assert "tested images: all 20" in done.stdout
    assert table_rows(done.stdout)["accuracy (%)"] == ["all", "mean"]


# ---------------------------------------------------------------------------------------------------------- configs


def resolved(trainer, name, dataset):
    return resolve_config(methods.Method(trainer, name).overrides(dataset))


@pytest.mark.parametrize("dataset", CLAP_LOSS)
@pytest.mark.parametrize("backbone", CLAP_HEAD)
def test_clap_has_the_published_settings_of_every_cell(dataset, backbone):
    cfg = resolved("CLAP", dataset if backbone == "ViT-B/16" else f"{dataset}_vit_l14", dataset)
    node = cfg.TRAINER.CLAP
    assert backbone == cfg.MODEL.BACKBONE.NAME
    assert CLAP_LOSS[dataset] == (node.BATCH_SIZE, node.TAU, node.LAMBDA, node.NOISE_TOKENS)
    assert (node.LATENT_DIM, float(node.ALPHA)) == CLAP_HEAD[backbone][dataset]
    assert (node.DROP_SIZE, node.DROP_COLOUR, node.DROP_TYPE_STYLE, node.SWAP) == (0.5, 0.5, 0.0, 0.5)
    assert (node.MAX_STEPS, node.CHECK_EVERY, node.PATIENCE, node.MIN_DROP) == (8000, 480, 5, 0.01)
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, node.NOISE_STD) == ("adam", 1e-4, 0.02)
    assert (tuple(node.PROBE_SHOTS), node.PROBE_TEST, node.ATTACK_EPSILON) == ((1, 4, 8, 16, 32), "all", 0.031)
    assert (node.NC_TOKENS, node.NC_STD, node.ATTACK_SPACE) == (4, 0.02, "pixels")


def test_inmap_has_the_published_settings():
    for name, backbone in (("vit_b16_paper", "ViT-B/16"), ("vit_l14_336_paper", "ViT-L/14@336px")):
        cfg = resolved("InMaP", name, "imagenet")
        node = cfg.TRAINER.INMAP
        assert backbone == cfg.MODEL.BACKBONE.NAME
        assert (node.TEMPLATES, node.MARGINAL, node.SINKHORN_ITERATIONS) == ("inmap7", "uniform", 20)
        assert (node.THRESHOLD, node.GAMMA, node.LR) == (0.6, "", 10.0)
        assert (node.TEXT_TEMPERATURE, node.IMAGE_TEMPERATURE) == ("auto", "auto")
        assert (node.SOLVER, node.UNLABELED) == ("fast", "test")


@pytest.mark.parametrize("trainer", ["CLAP", "InMaP"])
def test_every_shipped_config_resolves_and_is_accepted_by_its_trainer(trainer):
    from dassl.engine import TRAINER_REGISTRY

    folder = catalogue.trainer_file(trainer, "vit_b16", "").parent
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    assert len(names) == {"CLAP": 13, "InMaP": 7}[trainer]
    kind = TRAINER_REGISTRY.get(trainer)
    for name in names:
        dataset = "icons" if name.startswith("icons") else "pacs"
        cfg = resolved(trainer, name, dataset)
        kind.check_cfg(kind.__new__(kind), cfg)
        assert name == cfg.RUN.CONFIG
