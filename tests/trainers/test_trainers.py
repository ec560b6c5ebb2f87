"""Every trainer, run through the command line on a small tree with a small random CLIP.

Parametrised over the registry's trainers of this package: records, checkpoints that hold the learned parts alone,
repeatability with 0 and 2 workers, resuming, precision, base to new classes, and the refusals a user meets.
"""

import contextlib
import re
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch.utils.data import DataLoader, RandomSampler

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, TrainerXU
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.trainers.linear_probe import fit_probe

VARIANTS = {
    "ZeroshotCLIP": ("ZeroshotCLIP",),
    "CoOp": ("CoOp", "TRAINER.COOP.N_CTX", 4),
    "CoOp-CSC-middle": (
        "CoOp", "TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.CSC", True, "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle",
    ),
    "LinearProbe": ("LinearProbe", "TRAINER.LINEARPROBE.STEPS", 40),
    "GOPro": ("GOPro",),
    "GOPro-paper": ("GOPro", "TRAINER.GOPRO.VARIANT", "paper"),
}  # fmt: skip
TRAINED = {
    "CoOp": {"ctx"},
    "LinearProbe": {"weight"},
    "GOPro": {"generator", "image_projector"},
    "GOPro-paper": {"generator", "image_projector", "text_projector"},
}
RANDOM_VIEWS = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")
LOOPED = ("CoOp", "CoOp-CSC-middle", "GOPro", "GOPro-paper")


def final_state(folder, epoch=None):
    (model,) = [p for p in folder.iterdir() if (p / "checkpoint").is_file()]
    name = (model / "checkpoint").read_text().strip() if epoch is None else checkpoint.epoch_name(epoch)
    return checkpoint.load_checkpoint(model / name)


def assert_equal_states(a, b):
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name in a["state_dict"]:
        assert torch.equal(a["state_dict"][name], b["state_dict"][name]), name


@pytest.fixture(scope="module")
def finished():
    return {}


@pytest.fixture
def trained(run, finished):
    """`trained(variant)` gives a run under the usual settings, which is made once; nobody changes its folder."""

    def go(variant):
        if variant not in finished:
            finished[variant] = run(*VARIANTS[variant], name=f"trained-{variant}")
        return finished[variant]

    return go


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_leaves_a_record_and_checkpoints_of_what_was_trained(run, trained, variant):
    folder, record, output = trained(variant)
    test = record["metrics"]["test"]
    assert (record["method"], record["dataset"], test["total"]) == (VARIANTS[variant][0], "FolderDomains", 30)
    assert test["accuracy"] == pytest.approx(100 * test["correct"] / test["total"])
    assert record["source_domains"] == ["art", "photo"] and record["target_domains"] == ["sketch"]
    assert len(record["backbone"]["weights_hash"]) == 64 and len(record["data_fingerprint"]) == 64
    assert (folder / "config.yaml").is_file() and (folder / "log.txt").is_file()
    assert f"* accuracy: {test['accuracy']:.2f}%" in output.out or f"* accuracy: {test['accuracy']:.1f}%" in output.out
    if variant in TRAINED:
        state = final_state(folder)
        assert {name.split(".")[0] for name in state["state_dict"]} == TRAINED[variant]
        assert state["backbone"]["weights_hash"] == record["backbone"]["weights_hash"]
        assert [name.replace("_", " ") for name in state["classnames"]] == ["dog", "fire truck", "house"]
        _, again, _ = run(*VARIANTS[variant], name="evaluated", flags=("--eval-only", "--model-dir", str(folder)))
        assert again["metrics"]["test"] == test


def test_zeroshot_scores_are_those_of_plain_open_clip(trained, plain, sketch):
    """The accuracy of a run equals a plain program's: open_clip's own model, transform and tokenizer, 77 tokens."""
    _, labels, names, features = sketch
    text = F.normalize(plain.texts([f"a photo of a {name}." for name in names]), dim=-1)
    correct = int((features @ text.T).argmax(1).eq(labels).sum())
    test = trained("ZeroshotCLIP")[1]["metrics"]["test"]
    assert (test["correct"], test["total"]) == (correct, 30)


@pytest.mark.parametrize("variant", ["CoOp", "GOPro"])
def test_runs_repeat_with_any_number_of_workers(run, variant):
    words = (*VARIANTS[variant], *RANDOM_VIEWS)
    first, record, _ = run(*words)
    again, other, _ = run(*words, "DATALOADER.NUM_WORKERS", 2, name="again")
    assert_equal_states(final_state(first), final_state(again))
    assert record["metrics"] == other["metrics"]


@pytest.mark.parametrize(("variant", "workers"), [("CoOp", 0), ("CoOp", 2), ("GOPro", 0)])
def test_9_7_one_seed_means_the_same_images_on_the_original_toolbox(run, variant, workers, monkeypatch):
    """(row 9.7) There, loaders and views draw from the global generators; here, a run equals the embedded one's."""
    first, record, _ = run(*VARIANTS[variant], *RANDOM_VIEWS)

    def original(cfg, sampler_type, data_source, batch_size, tfm, is_train, dataset_wrapper, **kwargs):
        return DataLoader(
            dataset_wrapper(cfg, data_source, transform=tfm, is_train=is_train),
            batch_size=batch_size,
            sampler=RandomSampler(data_source) if is_train else None,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            drop_last=is_train and len(data_source) >= batch_size,
        )

    monkeypatch.setattr("dassl.data.data_manager.build_data_loader", original)
    monkeypatch.setattr("dassl.data.wrapper.image_randomness", lambda *args: contextlib.nullcontext())
    again, other, _ = run(*VARIANTS[variant], *RANDOM_VIEWS, "DATALOADER.NUM_WORKERS", workers, name="original")
    assert_equal_states(final_state(first), final_state(again))
    assert record["metrics"] == other["metrics"] and record["losses"] == other["losses"]


class Aligned(TrainerXU):
    """A trainer of domain adaptation as people write them for Dassl."""

    def build_model(self):
        self.model = torch.nn.Linear(3, self.num_classes).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("linear", self.model, self.optim, self.sched)
        self.seen = set()

    def model_inference(self, image):
        return self.model(image.mean((2, 3)))

    def forward_backward(self, batch_x, batch_u):
        image, label, target = self.parse_batch_train(batch_x, batch_u)
        self.seen.update(path.split("/")[-3] for path in batch_u["impath"])
        assert self.seen == {"sketch"}
        output, output_u = self.model_inference(image), self.model_inference(target)
        loss_x, loss_u = F.cross_entropy(output, label), (output.mean(0) - output_u.mean(0)).pow(2).sum()
        self.model_backward_and_update(loss_x + 0.01 * loss_u)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss_x": loss_x.item(), "loss_u": loss_u.item()}


def test_9_2_a_trainer_of_adaptation_runs_on_the_data_sets_here(run, monkeypatch):
    """(row 9.2) The target's images come without labels, whichever loader reads them."""
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Aligned", Aligned)
    _, record, output = run("Aligned", "INPUT.SIZE", "(8,8)", "OPTIM.LR", 0.5, "OPTIM.MAX_EPOCH", 6)
    assert "# train_u" in output.out and record["metrics"]["test"]["total"] == 30
    assert record["metrics"]["test"]["accuracy"] > 60
    assert record["transductive"]  # train_u holds the tested images


@pytest.mark.parametrize("variant", LOOPED)
def test_a_resumed_run_equals_an_undisturbed_one(run, variant):
    keys = ("OPTIM.MAX_EPOCH", 4, "TRAIN.CHECKPOINT_FREQ", 1)
    whole, record, _ = run(*VARIANTS[variant], *keys, name="whole")
    torn = shutil.copytree(whole, whole.with_name("torn"))
    (model,) = [p for p in torn.iterdir() if (p / "checkpoint").is_file()]
    for epoch in (3, 4):  # as if the run had died in its third epoch
        (model / checkpoint.epoch_name(epoch)).unlink()
    (model / "checkpoint").write_text(checkpoint.epoch_name(2) + "\n")
    (torn / "record.json").unlink()
    _, again, output = run(*VARIANTS[variant], *keys, name="torn")
    assert "2 epochs done" in output.out
    assert_equal_states(final_state(whole), final_state(torn))
    assert record["metrics"] == again["metrics"] and record["losses"] == again["losses"]


def test_a_torn_checkpoint_is_set_aside(run):
    keys = ("OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1)
    whole, _, _ = run(*VARIANTS["CoOp"], *keys, name="whole")
    torn = shutil.copytree(whole, whole.with_name("torn"))
    last = torn / "prompt_learner" / checkpoint.epoch_name(3)
    last.write_bytes(last.read_bytes()[:-900])
    _, _, output = run(*VARIANTS["CoOp"], *keys, name="torn")
    assert "set aside" in output.out and last.with_name(last.name + ".torn").is_file()
    assert_equal_states(final_state(whole), final_state(torn))


@pytest.mark.parametrize("variant", LOOPED)
def test_training_lowers_the_loss(run, variant):
    folder, record, _ = run(*VARIANTS[variant], "OPTIM.MAX_EPOCH", 5, "OPTIM.LR", 0.1)
    log = (folder / "log.txt").read_text()
    first = [float(line.split(" ce ")[1].split()[0]) for line in log.splitlines() if line.startswith("epoch [1/")]
    assert record["losses"]["ce"] < np.mean(first)


@pytest.mark.parametrize("variant", ["CoOp", "GOPro", "LinearProbe"])
def test_amp_keeps_learned_parts_in_float32(run, variant):
    name = VARIANTS[variant][0].upper()
    folder, record, _ = run(*VARIANTS[variant], f"TRAINER.{name}.PREC", "amp")
    assert record["precision"] == "amp"
    assert {v.dtype for v in final_state(folder)["state_dict"].values() if v.is_floating_point()} == {torch.float32}


def test_base_checkpoint_serves_the_new_classes(run):
    for variant in ("CoOp", "GOPro"):
        base, record, _ = run(*VARIANTS[variant], "DATASET.SUBSAMPLE_CLASSES", "base", name=f"base-{variant}")
        assert record["num_classes"] == 2
        _, record, _ = run(
            *VARIANTS[variant], "DATASET.SUBSAMPLE_CLASSES", "new", name=f"new-{variant}",
            flags=("--eval-only", "--model-dir", str(base)),
        )  # fmt: skip
        assert record["metrics"]["test"]["total"] == 10 and record["num_classes"] == 1


def test_class_specific_parts_refuse_other_classes(run):
    for variant in ("CoOp-CSC-middle", "LinearProbe"):
        base, _, _ = run(*VARIANTS[variant], "DATASET.SUBSAMPLE_CLASSES", "base", name=f"base-{variant}")
        _, _, output = run(
            *VARIANTS[variant], name=f"all-{variant}", flags=("--eval-only", "--model-dir", str(base)), code=2
        )
        assert "holds parts for other classes: class 2 is absent there" in output.err
        assert "of 2 there and 3 now" in output.err


def test_a_context_that_starts_from_words_is_shared_by_all_classes(run):
    """(row 7.9) CoOp's program ignores CSC with CTX_INIT; the run says so, and serves other classes."""
    words = ("CoOp", "TRAINER.COOP.CTX_INIT", "a photo of a")
    shared, record, output = run(*words, "TRAINER.COOP.CSC", True, name="both")
    assert "TRAINER.COOP.CSC is ignored" in output.out and "class-specific" not in record["prompt"]
    alone, again, output = run(*words, name="words")
    assert "is ignored" not in output.out and again["metrics"] == record["metrics"]
    assert final_state(shared)["state_dict"]["ctx"].dim() == 2
    assert_equal_states(final_state(shared), final_state(alone))
    _, record, _ = run("CoOp", "TRAINER.COOP.N_CTX", 4, "TRAINER.COOP.CSC", True, name="random")
    assert "class-specific" in record["prompt"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("CoOp", "TRAINER.COOP.CTX_INIT", "a photo of a", "TRAINER.COOP.N_CTX", 30), "N_CTX 30 has no effect beside"),
        (("GOPro", "TRAINER.GOPRO.N_CTX", 7), "N_CTX 7 has no effect beside CTX_INIT 'a photo of a'"),
        (
            ("ZeroshotCLIP", "TRAINER.ZEROSHOTCLIP.CTX_INIT", "art of"),
            "CTX_INIT 'art of' has no effect beside TEMPLATES",
        ),
        (("LinearProbe", "TRAINER.LINEARPROBE.CTX_INIT", "art of"), "has no effect beside TEMPLATES 'single'"),
        (("InMaP", "TRAINER.INMAP.LR", 5.0), "TRAINER.INMAP.LR 5.0 has no effect beside SOLVER 'fast'"),
        (
            ("InMaP", "TRAINER.INMAP.SOLVER", "authors", "TRAINER.INMAP.TOLERANCE", 1e-3),
            "TOLERANCE 0.001 has no effect",
        ),
        (("CLAP", "TRAINER.CLAP.IMAGE_VIEWS", 3), "IMAGE_VIEWS 3 has no effect beside MODALITY 'text'"),
    ],
)
def test_3_4_a_setting_that_another_one_overrides_is_refused(run, words, told):
    """Row 3.4: no row is named after a setting without effect."""
    _, record, output = run(*words, code=2)
    assert record is None and told in output.err and output.err.count("\n") == 1


def test_3_4_a_setting_that_agrees_with_the_one_in_its_place_is_accepted(run):
    run("CoOp", "TRAINER.COOP.CTX_INIT", "a_photo_of_a", "TRAINER.COOP.N_CTX", 4, "OPTIM.MAX_EPOCH", 1)


def test_another_backbone_is_refused_by_name(run, trained, other_clip):
    folder, _, _ = trained("CoOp")
    _, _, output = run(
        *VARIANTS["CoOp"], "MODEL.BACKBONE.NAME", f"local-dir:{other_clip}", name="other",
        flags=("--eval-only", "--model-dir", str(folder)), code=2,
    )  # fmt: skip
    assert "was trained on backbone" in output.err and str(other_clip) in output.err


def test_released_coop_checkpoints_start_a_run(run, tmp_path):
    """A state dict as CoOp's program leaves it: `ctx` beside class-dependent buffers of other classes."""
    context = torch.randn(4, 32) * 0.1
    state = {"ctx": context, "token_prefix": torch.zeros(100, 1, 32), "token_suffix": torch.zeros(100, 72, 32)}
    (tmp_path / "released" / "prompt_learner").mkdir(parents=True)
    file = tmp_path / "released" / "prompt_learner" / "model.pth.tar-50"
    torch.save({"state_dict": state, "epoch": 50, "optimizer": None, "scheduler": None, "val_result": None}, file)
    by_folder = ("--eval-only", "--model-dir", str(tmp_path / "released"), "--load-epoch", "50")
    _, first, _ = run(*VARIANTS["CoOp"], name="a", flags=by_folder)
    _, second, _ = run(*VARIANTS["CoOp"], "MODEL.INIT_WEIGHTS", file, name="b", flags=("--eval-only",))
    assert first["metrics"] == second["metrics"]
    assert (first["selection_rule"], first["num_train"]) == ("epoch 50, as asked for", 0)
    assert (second["selection_rule"], second["num_train"]) == ("not recorded", 0)
    folder, _, _ = run(*VARIANTS["CoOp"], "MODEL.INIT_WEIGHTS", file, "OPTIM.LR", 1e-12, name="c")
    torch.testing.assert_close(final_state(folder)["state_dict"]["ctx"], context)


def test_a_loss_that_is_not_finite_names_the_first_bad_tensor(run):
    _, _, output = run(*VARIANTS["GOPro"], "OPTIM.LR", 1e38, "OPTIM.MAX_EPOCH", 5, code=2)
    assert "not finite at epoch" in output.err and re.search(
        r"first bad tensor: (contexts|text features) \(\d+ of \d+", output.err
    )
    assert "images: " in output.err


@pytest.fixture
def damaged(domain_tree, tmp_path):
    """A copy of the tree with a tested picture and most of a class of training pictures cut off: root and paths."""
    tree = shutil.copytree(domain_tree, tmp_path / "damaged")
    victims = [tree / "sketch" / "dog" / "004.png", *sorted((tree / "art" / "house").iterdir())[:9]]
    for victim in victims:
        victim.write_bytes(victim.read_bytes()[:100])
    return tree, *map(str, victims)


def test_an_unreadable_image_is_named(run, damaged):
    for workers in (0, 2):
        keys = ("DATALOADER.NUM_WORKERS", workers)
        _, _, output = run("ZeroshotCLIP", *keys, root=damaged[0], name=f"w{workers}", code=2)
        assert "cannot decode the image" in output.err and damaged[1] in output.err


@pytest.mark.parametrize("variant", ["ZeroshotCLIP", "CoOp", "GOPro"])
def test_unreadable_images_are_skipped_and_listed_where_asked(run, damaged, variant):
    tree, tested, *trained = damaged
    for workers in (0, 2) if variant == "CoOp" else (0,):
        keys = ("DATALOADER.ON_BAD_IMAGE", "skip", "DATALOADER.NUM_WORKERS", workers)
        folder, record, _ = run(*VARIANTS[variant], *keys, root=tree, name=f"w{workers}")
        assert record["metrics"]["test"]["total"] == 29 and tested in record["skipped_images"]
        others = set(record["skipped_images"]) - {tested}
        assert others <= set(trained) and bool(others) == (variant != "ZeroshotCLIP")
        predictions = np.load(folder / "predictions.npz", allow_pickle=False)
        assert len(predictions["labels"]) == len(predictions["paths"]) == 29 and tested not in predictions["paths"]
    _, whole, _ = run(*VARIANTS[variant], "DATALOADER.ON_BAD_IMAGE", "skip", name="whole")
    assert whole["skipped_images"] == [] and whole["metrics"]["test"]["total"] == 30


def test_the_selection_rule_says_what_was_chosen(run):
    """What a method chooses besides, and nothing that it does not choose."""
    every = ("DATASET.NUM_SHOTS", -1, "TEST.FINAL_MODEL", "best_val")  # with validation images
    rules = {}
    for name, words in {
        "zeroshot": VARIANTS["ZeroshotCLIP"],
        "probe": VARIANTS["LinearProbe"],
        "one-pull": (*VARIANTS["LinearProbe"], "TRAINER.LINEARPROBE.PULL", "(1.0,)"),
        "best": VARIANTS["CoOp"],
    }.items():
        _, record, _ = run(*words, *every, name=name)
        rules[name] = record["selection_rule"], record["num_train"]
    best = "best_val on source validation images"
    assert rules["zeroshot"] == ("none", 0) and rules["best"] == (best, 48)
    assert rules["probe"] == ("last; pull by source validation images", 48) and rules["one-pull"] == ("last", 48)
    _, record, _ = run(*VARIANTS["LinearProbe"], name="no-val", source="art", target="photo")
    assert record["selection_rule"] == "last; pull by source validation images"


def test_labels_of_test_images_are_not_trained_on(run):
    keys = ("DATASET.PROTOCOL", "all-images", "DATASET.NUM_SHOTS", 2)
    _, _, output = run(*VARIANTS["CoOp"], *keys, source="art", target="art", code=2)
    assert "CoOp trains on labels, but here the training images are test images too" in output.err


@pytest.mark.parametrize(
    ("trainer", "pairs"),
    [
        ("LinearProbe", ("TRAINER.LINEARPROBE.PULL", "(0.1, 1.0)")),
        ("CLAP", ("TRAINER.CLAP.ALPHA", "source-val", "TRAINER.CLAP.MAX_STEPS", 5, "TRAINER.CLAP.BATCH_SIZE", 8)),
        ("CoOp", ("TEST.FINAL_MODEL", "best_val")),
    ],
)
def test_nothing_is_chosen_on_a_data_sets_test_images_under_another_name(run, trainer, pairs, tmp_path, monkeypatch):
    """A loader that gives its test images as validation images, as CoOp's of ImageNet does."""
    monkeypatch.setattr(DATASET_REGISTRY, "_obj_map", dict(DATASET_REGISTRY._obj_map))  # for this test alone
    plugin = tmp_path / "val_is_test.py"
    plugin.write_text(
        "from dassl.data.datasets import DATASET_REGISTRY\n"
        "from dassl_clip.datasets.own_folders import FolderDomains\n"
        "@DATASET_REGISTRY.register(force=True)\nclass ValIsTest(FolderDomains):\n"
        "    def __init__(self, cfg):\n        super().__init__(cfg)\n        self._val = self.test\n"
    )
    words = ("DATASET.NAME", "ValIsTest")
    _, none, output = run(trainer, *pairs, *words, flags=("--import", str(plugin)), code=2)
    assert none is None and "30 of the 30 that ValIsTest offers are test images too" in output.err
    run("CoOp", *words, flags=("--import", str(plugin)), name="chooses-nothing")


@pytest.mark.parametrize(
    ("trainer", "pairs", "sentence"),
    [
        ("GOPro", ("TRAINER.GOPRO.VARIANT", "papre"), "VARIANT is 'papre'; expected one of"),
        ("GOPro", ("TRAINER.GOPRO.SHIFT_SCALE", "auto"), "expected a positive number such as 1.0, or auto:R"),
        ("GOPro", ("DATALOADER.TRAIN_X.BATCH_SIZE", 1), "BATCH_SIZE must be at least 2"),
        ("CoOp", ("TRAINER.COOP.CLASS_TOKEN_POSITION", "back"), "'back'; expected one of"),
        ("CoOp", ("TRAINER.COOP.PREC", "fp8"), "TRAINER.COOP.PREC is 'fp8'"),
        ("CoOp", ("TRAINER.COOP.N_CTX", 80), "context"),
        ("LinearProbe", ("TRAINER.LINEARPROBE.PULL", "()"), "one or more numbers"),
        ("ZeroshotCLIP", ("TEST.FINAL_MODEL", "best"), "TEST.FINAL_MODEL is 'best'"),
    ],
)
def test_wrong_settings_have_their_sentence(run, trainer, pairs, sentence):
    _, _, output = run(trainer, *pairs, code=2)
    assert sentence in output.err


def test_contrastive_weight_changes_no_prediction_in_the_released_variant(run, trained):
    """The switch for a loss term, and what the method's page says of this one."""
    with_term, record, _ = trained("GOPro")
    without, other, _ = run(*VARIANTS["GOPro"], "TRAINER.GOPRO.CONTRASTIVE_WEIGHT", 0.0, name="without")
    assert "contrastive" in record["losses"] and "contrastive" not in other["losses"]
    a, b = final_state(with_term)["state_dict"], final_state(without)["state_dict"]
    for name in a:
        if name.startswith("generator"):
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-7)
    assert record["metrics"]["test"]["correct"] == other["metrics"]["test"]["correct"]


def test_relative_shift_scale_is_measured_and_kept(run):
    folder, _, _ = run(*VARIANTS["GOPro"], "TRAINER.GOPRO.SHIFT_SCALE", "auto:0.5", "OPTIM.LR", 1e-12)
    state = final_state(folder)["state_dict"]
    assert state["generator.shift_scale"] != 1.0
    fixed, _, _ = run(*VARIANTS["GOPro"], "TRAINER.GOPRO.SHIFT_SCALE", 0.25, name="fixed")
    assert final_state(fixed)["state_dict"]["generator.shift_scale"] == 0.25


def test_linear_probe_solves_its_objective():
    """The objective is as low as another solver gets it, and a strong pull stays at the start."""
    torch.manual_seed(0)
    features = F.normalize(torch.randn(60, 8, dtype=torch.float64), dim=1)
    labels, start = torch.randint(4, (60,)), F.normalize(torch.randn(4, 8, dtype=torch.float64), dim=1)

    def objective(weight):
        weight = torch.as_tensor(weight, dtype=torch.float64).view(4, 8).requires_grad_()
        loss = F.cross_entropy(20.0 * features @ weight.T, labels) + 0.5 * (weight - start).square().sum(1).mean()
        (gradient,) = torch.autograd.grad(loss, weight)
        return loss.item(), gradient.flatten().numpy()

    other = minimize(
        objective, start.flatten().numpy(), jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 1e-15}
    )
    weight = fit_probe(features, labels, start, 20.0, 0.5, 500)
    assert objective(weight)[0] == pytest.approx(other.fun, abs=1e-7)
    torch.testing.assert_close(weight, torch.as_tensor(other.x).view(4, 8), rtol=0, atol=1e-3)
    pulled = fit_probe(features, labels, start, 20.0, 1e7, 500)
    assert (pulled - start).abs().max() < 1e-4


def test_learned_parts_that_were_changed_after_saving_are_refused(run, trained, tmp_path):
    folder, record, _ = trained("CoOp")
    folder = shutil.copytree(folder, tmp_path / "changed")
    path = folder / "prompt_learner" / checkpoint.epoch_name(2)
    state = torch.load(path, weights_only=True)
    sizes = {"sha256": state["sha256"], "bytes": state["state_dict"]["ctx"].nbytes}
    assert record["learned"]["prompt_learner"] == sizes
    state["state_dict"]["ctx"][0, 0] += 1e-3
    torch.save(state, path)
    flags = ("--eval-only", "--model-dir", str(folder))
    _, _, output = run(*VARIANTS["CoOp"], name="again", flags=flags, code=2)
    assert "not those that were saved" in output.err
