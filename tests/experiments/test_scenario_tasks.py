"""The tasks batch, stream and online: plans, runs through the commands, and their tables.

Covers what `experiments/plan.py`, `tasks.py` and `compare` do with the three tasks on data sets with and without
domains; `engine/scenario_tests.py` on methods of single images, of batches and of streams, on methods that train on
labels and on refined runs, counted again from saved predictions; lists that are the same for all methods; batches that
are larger than the test set; and errors of one line.
"""

import re
import shutil

import numpy as np
import pytest
import yaml

from dassl_clip.engine import registry
from dassl_clip.engine.scenarios import batch_draws, online_order, stream_order
from dassl_clip.experiments import methods, plan
from dassl_clip.results import records
from dassl_clip.results.errors import UserError
from dassl_clip.results.predictions import read_predictions

DRAWS = ("SCENARIOS.DRAWS", "6", "SCENARIOS.BATCHES", "('8', '8:1-2', '20:1-1', '500')", "SCENARIOS.BLOCK", "8",
         "SCENARIOS.ORDERS", "2", "SCENARIOS.STREAMS", "('0.1', 'separate')")  # fmt: skip
PLUGIN = '''
"""A method of batches, one of streams, one of single images that reads them, and one that learned from all of them."""

import torch
from dassl.engine import TRAINER_REGISTRY
from dassl_clip.engine.trainer import CLIPTrainer
from dassl_clip.engine.transductive import OnlineTrainer, TransductiveTrainer
from dassl_clip.clip.templates import resolve_templates
from dassl_clip.clip.zeroshot import zeroshot_weights


@TRAINER_REGISTRY.register()
class Centred(TransductiveTrainer):
    """Scores minus their mean over the batch."""

    def joint_logits(self, images):
        logits = images.logits.log_softmax(dim=1)
        return logits - logits.mean(dim=0)


@TRAINER_REGISTRY.register()
class Running(OnlineTrainer):
    """Scores minus their mean over the images before."""

    def begin(self, images, horizon):
        past = [torch.zeros_like(images.logits[0])]

        def step(feature, logits):
            logits = logits.log_softmax(dim=0)
            past.append(logits)
            return logits - torch.stack(past[:-1]).mean(dim=0)

        return step


@TRAINER_REGISTRY.register()
class Mirrored(CLIPTrainer):
    """Zero-shot scores of the mirrored image, which no cached feature holds."""

    settings = {"TEMPLATES": "single"}
    trains_on_labels = False
    has_epochs = False
    prompt = "a photo of a {}."

    def build_model(self):
        texts = resolve_templates(self.node.TEMPLATES, self.cfg.DATASET.NAME)
        self.weights = zeroshot_weights(self.backbone.text, self.classnames, texts).T.float().to(self.device)

    def fit(self):
        pass

    def model_inference(self, images):
        return self.cosine_logits(self.backbone.embed_image(images.flip(-1)), self.weights)


@TRAINER_REGISTRY.register()
class Whole(Mirrored):
    """Says that it learned from the tested images."""

    def record_facts(self):
        return super().record_facts() | {"transductive": True}
'''


@pytest.fixture(autouse=True)
def registered():
    registry.register()


@pytest.fixture(scope="module")
def plugin_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenario") / "scenario_plugin.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture
def clip_world(world, tiny_clip, plugin_file, domain_tree):
    """The small tree of three domains, with a config of the small CLIP for every method that is used here."""
    for method, node in {
        "ZeroshotCLIP": {"TEMPLATES": "single"}, "CoOp": {"N_CTX": 2}, "InMaP": {"TEMPLATES": "single"},
        **{name: {} for name in ("Centred", "Running", "Mirrored", "Whole")},
    }.items():  # fmt: skip
        tree = {
            "MODEL": {"BACKBONE": {"NAME": f"local-dir:{tiny_clip}"}},
            "DATALOADER": {"NUM_WORKERS": 0},
            "OPTIM": {"MAX_EPOCH": 1, "NAME": "sgd", "LR": 0.01},
            "TRAINER": {method.upper(): node},
        }
        (world.root / f"{method}.yaml").write_text(yaml.safe_dump(tree))
    world.images, world.plugin = domain_tree, plugin_file
    return world


def compare(world, tasks, names, *more, dataset=None, data=None):
    """`dassl-clip compare` of some methods with their configs in the world."""
    words = ["+".join(f"{part}:{world.root / f'{part}.yaml'}" for part in name.split("+")) for name in names]
    return world.run([
        "compare", str(dataset or world.dataset), "--task", *tasks, "--methods", *words, "--import", str(world.plugin),
        "--data", str(data or world.images), "--out", str(world.out), "--shots", "2", "--jobs", "1", *more,
    ])  # fmt: skip


def found(world):
    """(method, whether it refines, task, target) -> folder and record of every run."""
    runs = [(item.folder, item.record) for item in records.find_records(world.out)]
    return {
        (run["method"], "refines" in run, run["task"], "+".join(run["target_domains"])): (folder, run)
        for folder, run in runs
    }


def tables_of(text):
    """Title -> (lines below it, first cell -> other cells) of every text table."""
    tables = {}
    for block in re.split(r"\n(?=[^\n]*, task \w+, test images)", text):
        title, *lines = block.strip("\n").splitlines()
        rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
        cells = {}
        for row in rows:  # the columns of a wide table stand in several blocks
            if len(row) > 1 and not row[0].startswith("---"):
                cells.setdefault(row[0], []).extend(row[1:])
        tables[title] = lines, cells
    return tables


def log_shares(folder):
    """Logarithms of the softmax shares `[N, C]` and labels `[N]` of a run on few classes."""
    saved = read_predictions(folder)
    assert saved.top.shape[1] == len(saved.classnames)
    shares = np.empty(saved.top.shape)
    np.put_along_axis(shares, saved.top, saved.shares.astype(float), axis=1)
    return np.log(shares), saved.labels


def lists_of(labels, task, seed=1):
    """The lists that `DRAWS` ask for, by the names of the cases."""
    if task == "batch":
        cases = {"B8": (8, None), "B8 K1-2": (8, (1, 2)), "B20 K1-1": (20, (1, 1))}
        return {name: [[index] for index in batch_draws(labels, *case, 6, seed)] for name, case in cases.items()}
    if task == "stream":
        cases = {"stream 0.1": 0.1, "stream separate": None}
        return {name: [stream_order(labels, g, 8, seed, n) for n in range(2)] for name, g in cases.items()}
    return {"online": [[online_order(len(labels), seed, number)] for number in range(2)]}


def check_hits(record, task, labels, predict):
    """Compare the counts of a record with those of `predict`, a function of the blocks of a draw, each an index."""
    for name, draws in lists_of(labels, task).items():
        hits = [
            [int(p == labels[i]) for block, own in zip(blocks, predict(blocks)) for i, p in zip(block, own)]
            for blocks in draws
        ]
        metrics = record["metrics"][name]
        assert metrics["correct_of_draws"] == [sum(own) for own in hits], name
        assert metrics["images_of_draws"] == [len(own) for own in hits]
        assert metrics["mean_of_draws"] == pytest.approx(np.mean([100 * sum(own) / len(own) for own in hits]))
        assert metrics["accuracy"] == pytest.approx(100 * sum(map(sum, hits)) / sum(map(len, hits)))


# ------------------------------------------------------------------------------------------------------------ plans


def planned(world, method, pairs=(), **changes):
    facts = {"dataset": str(world.dataset), "seeds": (1,), "out": str(world.out), "data": str(world.images)}
    asked = plan.Request(**{**facts, "imports": (str(world.plugin),), **changes})
    return plan.plan_runs(asked, methods.method_of(method, pairs, imports=asked.imports))


@pytest.mark.parametrize("method", ["ZeroshotCLIP", "CoOp"])
@pytest.mark.parametrize("task", ["batch", "stream", "online"])
def test_all_images_of_a_target_are_tested_and_the_other_domains_trained_on(world, task, method):
    runs = planned(world, method, (("SCENARIOS.ORDERS", "3"),), tasks=(task, "lodo"), shots=2)
    named = "vit_b16" if task == "batch" else "vit_b16+SCENARIOS.ORDERS=3"
    assert [str(run.folder.relative_to(world.out)) for run in runs] == [
        *(f"{task}/colours/{method}/{named}/shots2/{domain}/seed1" for domain in ("day", "night")),
        *(f"lodo/colours/{method}/vit_b16/shots2/{domain}/seed1" for domain in ("day", "night")),
    ]
    for run in runs[:2]:
        cfg = run.config
        assert (run.target,) == cfg.DATASET.TARGET_DOMAINS and (run.target,) != cfg.DATASET.SOURCE_DOMAINS
        assert ("all-images", 2, task) == (cfg.DATASET.PROTOCOL, cfg.DATASET.NUM_SHOTS, cfg.SCENARIOS.TASK)
        assert run.row.config == cfg.RUN.CONFIG == named
    assert all(run.config.SCENARIOS.TASK == "" and run.config.DATASET.PROTOCOL == "dassl" for run in runs[2:])


def test_a_data_set_without_domains_keeps_its_published_test_images(world):
    for method in ("ZeroshotCLIP", "CoOp"):
        (run,) = planned(world, method, dataset="caltech101", tasks=("batch",), shots=4)
        assert (run.config.DATASET.PROTOCOL, run.config.DATASET.NUM_SHOTS, run.target) == ("dassl", 4, "all")


def test_own_data_has_images_to_train_on_or_not(world):
    """All images of your own folders are tested: what trains on labels is refused, and left out of comparisons."""
    own = {"dataset": "folder_classes", "data": str(world.images / "day"), "tasks": ("stream",)}
    (run,) = planned(world, "InMaP", **own)
    assert (run.config.DATASET.PROTOCOL, run.config.DATASET.NUM_SHOTS) == ("all-images", -1)
    sentence = (
        r"stream: all images of FolderClasses are tested, which comes without test .*, so CoOp has none to train on"
    )
    for method in ("CoOp", "CoOp+InMaP"):
        with pytest.raises(UserError, match=sentence):
            planned(world, method, **own)
    request = plan.Request(seeds=(1,), **own)
    names = [m.trainer for m in methods.all_methods("folder_classes", ("stream",)) if plan.has_place(request, m)]
    assert "ZeroshotCLIP" in names and not {"CoOp", "GOPro"} & set(names)
    other = plan.Request(**{**own, "seeds": (1,), "tasks": ("fewshot",)})
    assert all(plan.has_place(other, method) for method in methods.all_methods("folder_classes", ("fewshot",)))


def test_one_domain_alone_is_for_methods_without_labels(world):
    (world.images / "night").rename(world.root / "night")
    (run,) = planned(world, "ZeroshotCLIP", tasks=("batch",))
    assert run.config.DATASET.SOURCE_DOMAINS == run.config.DATASET.TARGET_DOMAINS == ("day",)
    assert run.config.DATASET.NUM_SHOTS == -1
    with pytest.raises(UserError, match="which has only the domain day, so CoOp has none to train on; take a method"):
        planned(world, "CoOp", tasks=("batch",))


def test_a_plain_dassl_trainer_and_a_key_that_the_task_sets_are_refused(world):
    with pytest.raises(UserError, match="batch: TinyGuess is no CLIPTrainer of this project"):
        planned(world, f"TinyGuess:{world.config}", tasks=("batch",))
    with pytest.raises(UserError, match=r"SCENARIOS\.TASK online: a task sets SCENARIOS\.TASK itself"):
        planned(world, "ZeroshotCLIP", (("SCENARIOS.TASK", "online"),), tasks=("batch",))
    with pytest.raises(UserError, match=r"there is no task 'streams'\. Did you mean 'stream'\?"):
        planned(world, "ZeroshotCLIP", tasks=("streams",))


# ------------------------------------------------------------------------------------------------------------- runs


def test_counts_are_those_of_a_naive_loop(clip_world):
    """Every kind of method, one target; then the tables of the same runs."""
    world, text = clip_world, ""
    names = ("ZeroshotCLIP", "Centred", "Running", "CoOp", "CoOp+Centred", "Mirrored")
    for tasks, chosen in ((("batch",), names), (("stream", "online"), names[:3])):
        done = compare(world, tasks, chosen, "--targets", "sketch", *DRAWS)
        assert done.returncode == 0, done.stderr + done.stdout[-3000:]
        text += done.stdout
    runs = found(world)
    assert len(runs) == 6 + 2 * 3
    for task in ("batch", "stream", "online"):
        hashes = {}
        for (method, refines, of_task, _), (folder, record) in runs.items():
            if of_task != task:
                continue
            assert record["metrics"]["test"]["total"] == 30 and record["data_protocol"] == "all-images"
            assert record["num_train"] == (6 if method == "CoOp" or refines else 0)
            for name, metrics in record["metrics"].items():
                hashes.setdefault(name, set()).add(metrics.get("index_sha256"))
            base = runs["CoOp" if refines else "ZeroshotCLIP", False, task, "sketch"][0]
            if record["scenarios"]["not_applicable"].get("online"):
                assert method == "Centred" and list(record["metrics"]) == ["test"]
                continue
            labels = log_shares(base)[1]
            check_run(record, method, task, log_shares(base), log_shares(folder)[0].argmax(axis=1))
        assert all(len(own) == 1 for own in hashes.values())  # the same lists for all methods
        assert set(hashes) == {"test", *lists_of(labels, task)}
    batch = runs["ZeroshotCLIP", False, "batch", "sketch"][1]
    assert batch["scenarios"]["cases"] == ["B8", "B8 K1-2", "B20 K1-1", "B500"]
    reason = "a batch has more images than the 30 that are tested"
    assert batch["scenarios"]["not_applicable"] == {"B500": reason}
    assert batch["scenarios"]["notes"] == {}  # of three classes no range reaches above
    assert batch["metrics"]["B20 K1-1"]["images_of_draws"] == [10] * 6  # ten images per class: smaller than asked
    check_tables(text, runs)


def test_a_base_that_learned_from_the_tested_images_is_refined_on_the_whole_set_alone(clip_world):
    """Its proxies would carry all tested images into every draw; those of CoOp, above, carry none."""
    done = compare(clip_world, ("online",), ("InMaP", "InMaP+Running"), "--targets", "sketch", *DRAWS)
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    runs = found(clip_world)
    refined, base = (runs[name, more, "online", "sketch"][1] for name, more in (("Running", True), ("InMaP", False)))
    reason = "it refines a run of InMaP that learned from all tested images; refine one that saw none of them"
    assert refined["scenarios"]["not_applicable"] == {"online": reason}
    assert list(refined["metrics"]) == ["test"] and refined["transductive"]
    assert f"online: {reason}" in " ".join(done.stdout.split())
    assert base["scenarios"]["needs"] == "all images before, whose features it keeps" and "online" in base["metrics"]


def test_evaluations_that_score_the_tested_images_together_are_transductive(clip_world):
    """What InMaP learned elsewhere scores each image by itself; its draws, and every set of others, are joint."""
    world = clip_world
    done = compare(world, ("zeroshot",), ("Centred", "InMaP"), "--targets", "sketch")
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    runs = {method: folder for (method, *_), (folder, _) in found(world).items()}
    asked = (("Centred", (), True), ("InMaP", (), False), ("InMaP", ("SCENARIOS.TASK", "batch", *DRAWS), True))
    for number, (method, more, joint) in enumerate(asked):
        out = str(world.root / f"eval{number}")
        words = ["eval", str(runs[method]), "--targets", "art", "--out", out, "--import", str(world.plugin), *more]
        done = world.run(words)
        assert done.returncode == 0, done.stderr + done.stdout[-3000:]
        (item,) = records.find_records(out)
        assert item.record["target_domains"] == ["art"] and item.record["transductive"] is joint
        assert (f"transductive (uses unlabelled test images): {method}" in done.stdout) is joint


def check_run(record, method, task, scores, own):
    """Count the hits of a run again.

    Args:
        record: its record.
        method: its method.
        task: its task.
        scores: what it starts from: log shares `[N, C]` and labels `[N]`.
        own: its predictions of the whole test set `[N]`.
    """
    shares, labels = scores
    predict = {
        "Centred": lambda blocks: [(shares[i] - shares[i].mean(axis=0)).argmax(axis=1) for i in blocks],
        "Running": lambda blocks: running(shares, blocks),
    }.get(method, lambda blocks: [own[i] for i in blocks])
    check_hits(record, task, labels, predict)
    needs = {"Centred": "all images of a batch at once", "Running": "images one at a time, and what it kept of those"}
    assert record["scenarios"]["needs"].startswith(needs.get(method, "one image: its scores depend on no other"))
    timed = ["milliseconds" in record["metrics"][name] for name in lists_of(labels, task)]
    assert set(timed) == {method in needs}


def running(shares, blocks):
    """Predictions of `Running`, which keeps what it learned from block to block."""
    past, made = [np.zeros(shares.shape[1])], []
    for block in blocks:
        made.append([])
        for i in block:
            made[-1].append(int((shares[i] - np.mean(past, axis=0)).argmax()))
            past.append(shares[i])
    return made


def check_tables(text, runs):
    """Two tables for each task, whose numbers are those of the records."""
    tables = tables_of(text)
    titles = [f"FolderDomains, task {task}, test images: sketch" for task in ("batch", "stream", "online")]
    assert [title for title in tables if "task" in title] == [
        name for title in titles for name in (title, f"{title}: draws")
    ]
    lines, rows = tables[titles[0]]
    assert rows["accuracy (%)"] == ["full", "B8", "B8 K1-2", "B20 K1-1", "B500"]
    zeroshot, centred = (runs[name, False, "batch", "sketch"][1]["metrics"] for name in ("ZeroshotCLIP", "Centred"))
    names = ("B8", "B8 K1-2", "B20 K1-1")
    label = next(name for name in rows if name.startswith("Centred"))
    accuracies = [centred["test"]["accuracy"], *(centred[name]["mean_of_draws"] for name in names)]
    gains = [centred["test"]["accuracy"] - zeroshot["test"]["accuracy"]]
    gains += [centred[name]["mean_of_draws"] - zeroshot[name]["mean_of_draws"] for name in names]
    assert rows[label] == [*(f"{value:.1f}" for value in accuracies), "-"]
    assert [float(cell) for cell in rows[f"gain of {label}"][:-1]] == pytest.approx(gains, abs=0.0501)
    assert any(line.startswith(f"does not apply: {label}, B500: a batch has more images than the 30") for line in lines)
    assert "training images: none [ZeroshotCLIP" in text and "2 per class [CoOp" in text
    draws = tables[f"{titles[0]}: draws"][1]
    worse = [np.mean(np.less(*(run[name]["correct_of_draws"] for run in (centred, zeroshot)))) for name in names]
    assert draws[f"worse: {label}"] == [*(f"{100 * share:.0f}" for share in worse), "-"]
    assert f"ms: {label}" in draws and not any(name.startswith("ms: ZeroshotCLIP") for name in draws)
    lines, rows = tables[titles[2]]
    label = next(name for name in rows if name.startswith("Centred"))
    assert rows[label][1:] == ["-"] and f"does not apply: {label}, online: Centred has no such protocol" in lines


def test_tables_of_folders_show_each_domain_on_request(clip_world):
    world = clip_world
    done = compare(world, ("batch",), ("ZeroshotCLIP", "Centred"), *DRAWS)
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    title = "FolderDomains, task batch, test images"
    assert list(tables_of(done.stdout))[1:] == [f"{title}: mean of 3 domains", f"{title}: mean of 3 domains: draws"]
    words = ["table", str(world.out), "--reference", "ZeroshotCLIP"]
    tables = tables_of(world.run([*words, "--per-domain"]).stdout)
    where = ["art", "photo", "sketch", "mean of 3 domains"]
    cost = [f"{title}: cost"]
    assert list(tables) == [f"{title}: {place}{more}" for place in where for more in ("", ": draws")] + cost
    rows = [tables[f"{title}: {place}"][1] for place in where]
    label = next(name for name in rows[0] if name.startswith("gain of Centred"))
    assert float(rows[3][label][1]) == pytest.approx(np.mean([float(own[label][1]) for own in rows[:3]]), abs=0.1)
    gains = {float(cell): domain for domain, own in zip(where, rows[:3]) for cell in own[label][:-1]}
    worst, place = re.fullmatch(r"(\S+) \((\w+), .*\)", rows[3][label][-1]).groups()
    assert float(worst) == min(gains) and place == gains[min(gains)]
    shown = [f"{title}: {where[3]}{more}" for more in ("", ": draws")]
    assert list(tables_of(world.run(words).stdout)) == shown + cost
    more = ("SCENARIOS.BATCHES", "('8:2-5', '8:4-9')", "SCENARIOS.STREAMS", "('0.1', 'separate')")
    wide = compare(world, ("batch", "stream"), ("ZeroshotCLIP",), *DRAWS[:2], *more, "SCENARIOS.BLOCK", "16")
    said = " ".join(wide.stdout.split())
    for name in ("B8 K2-5", "B8 K4-9"):
        assert f"{name}: 3 classes occur: a draw of more classes has all of these" in said
    reason = "30 images of 3 classes in blocks of 16: without two full blocks and two classes it is a plain shuffle"
    assert f"stream 0.1: {reason}; give a smaller SCENARIOS.BLOCK" in said and "stream separate: 30" not in said
    again = compare(world, ("batch",), ("ZeroshotCLIP", "Centred"), *DRAWS)
    assert again.stdout.count("skipped, complete: ") == 6
    other = compare(world, ("batch",), ("ZeroshotCLIP",), *DRAWS[2:], "SCENARIOS.DRAWS", "7", "--targets", "art")
    assert other.returncode == 0 and "7 random draws" in other.stdout  # in a folder of its own


def test_a_data_set_without_domains_with_a_bad_file_and_one_that_is_too_small(clip_world):
    world = clip_world
    dataset = world.root / "plain.yaml"
    dataset.write_text("DATASET: {NAME: FolderClasses}\n")
    data = world.root / "photo"
    shutil.copytree(world.images / "photo", data)
    (data / "dog" / "003b.png").write_bytes(b"no image")
    skip = ("DATALOADER.ON_BAD_IMAGE", "skip")
    names = ("ZeroshotCLIP", "Centred", "Whole")
    done = compare(world, ("stream",), names, *skip, *DRAWS, dataset=dataset, data=data)
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    runs = found(world)
    shares, labels = log_shares(runs["ZeroshotCLIP", False, "stream", ""][0])
    check_hits(
        runs["Centred", False, "stream", ""][1], "stream", labels,
        lambda blocks: [(shares[i] - shares[i].mean(axis=0)).argmax(axis=1) for i in blocks],
    )  # fmt: skip
    learned = runs["Whole", False, "stream", ""][1]
    assert set(learned["scenarios"]["not_applicable"]) == {"stream 0.1", "stream separate"}
    assert list(learned["metrics"]) == ["test"] and learned["scenarios"]["needs"] == "all tested images at once"
    printed = " ".join(done.stdout.split())  # lines are wrapped
    assert "it learned from all tested images, and is no TransductiveTrainer" in printed
    assert "protocol: every image of the data set is tested, all at once and in streams" in printed
    assert "full: all at once" in printed and "tested images: all 30" in printed  # of 31 files
    (data / "dog" / "003b.png").unlink()
    large = ("SCENARIOS.BATCHES", "('31:1-4', '64')")
    failed = compare(world, ("batch",), ("ZeroshotCLIP",), *large, dataset=dataset, data=data)
    sentence = "SCENARIOS.BATCHES is 31:1-4, 64, but 30 images are tested here, fewer than any of these batches has"
    assert failed.returncode == 1 and sentence in " ".join((failed.stdout + failed.stderr).split())


def test_the_icons_count_as_their_predictions_do(world):
    """Zero-shot CLIP on one style of the icons, through `task`; then evaluated again under another protocol."""
    out = str(world.out)
    words = ["task", "ZeroshotCLIP", "icons", "1", "--task", "batch", "--targets", "line", "--out", out]
    done = world.run([*words, "SCENARIOS.DRAWS", "20"])
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    ((folder, record),) = found(world).values()
    saved = read_predictions(folder)
    hits = saved.top[:, 0] == saved.labels
    assert record["scenarios"]["cases"] == ["B64", "B64 K1-4", "B64 K2-10", "B64 K5-25", "B256"]
    for name, (size, classes) in {"B64": (64, None), "B64 K2-10": (64, (2, 10)), "B256": (256, None)}.items():
        lists = batch_draws(saved.labels, size, classes, 20, 1)
        each = [100 * hits[index].mean() for index in lists]
        assert record["metrics"][name]["mean_of_draws"] == pytest.approx(np.mean(each))
        assert record["metrics"][name]["standard_error"] == pytest.approx(np.std(each, ddof=1) / np.sqrt(20))
    assert "20 random draws of N images each" in done.stdout
    words = ["eval", str(folder), "--out", out, "SCENARIOS.TASK", "online", "SCENARIOS.ORDERS", "2"]
    done = world.run(words)
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    rows = [rows for title, (_, rows) in tables_of(done.stdout).items() if title.endswith("images: line")]
    (cells,) = [cells for name, cells in rows[-1].items() if name.startswith("ZeroshotCLIP")]
    assert rows[-1]["accuracy (%)"] == ["full", "online"] and cells == [f"{100 * hits.mean():.1f}"] * 2


def test_a_negative_seed_is_refused(clip_world):
    done = compare(clip_world, ("online",), ("ZeroshotCLIP",), "--seeds", "-1", "--targets", "art")
    assert done.returncode == 1
    assert "SEED is -1, but online draws the same images for all methods: give a seed" in done.stdout + done.stderr
