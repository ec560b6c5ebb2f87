"""Whole runs by one process and by two with the same global batch: what is learned, the losses, scores and records.

Covers, for every trainer: learned parameters, loss terms of every epoch and shares of the predictions agree to 1e-5,
metrics are equal. Bitwise equal: what depends on features alone (all but CoOp and GOPro), as whole test
batches are dealt out. Uneven shards: a last test batch that is partial, a training batch of three images. The batch
norm and the contrast of GOPro, CLAP's noise and pictures, InMaP on CLIP and on another run. Files are written once,
with `world_size`; a run that one process began goes on with two, and the other way round; a run without a seed stays
in step.
"""

import csv

import numpy as np
import pytest
import torch

from dassl_clip.results.records import read_record


def by_steps(name):
    """Settings of a training of six steps of three images of each domain."""
    steps = {"STEPS": 6, "EVALUATE_EVERY": 2, "PER_DOMAIN": 3}
    return [word for key, value in steps.items() for word in (f"TRAINER.{name}.{key}", value)]


AUGMENTED = ("INPUT.TRANSFORMS", "('random_resized_crop','random_flip','normalize')")
RUNS = {
    "zeroshot": ("ZeroshotCLIP",),
    "coop-views": ("CoOp", "TRAINER.COOP.CSC", True, *AUGMENTED, "TEST.FINAL_MODEL", "best_val"),
    "gopro": ("GOPro", "TRAINER.GOPRO.SHIFT_SCALE", "auto:2.0"),
    "gopro-paper": ("GOPro", "TRAINER.GOPRO.VARIANT", "paper"),
    "gopro-three": ("GOPro", "DATASET.NUM_SHOTS", 1, {"source": "art"}),
    "probe": ("LinearProbe",),
    "clap": ("CLAP", "TRAINER.CLAP.NOISE_TOKENS", 2, "TRAINER.CLAP.EVALUATE", "('forms',)"),
    "clap-pictures": ("CLAP", "TRAINER.CLAP.MODALITY", "image", "TRAINER.CLAP.IMAGE_VIEWS", 2),
    "inmap": ("InMaP",),
    "swad": ("SWAD", *by_steps("SWAD"), "TRAINER.SWAD.N_CONVERGE", 1, "TRAINER.SWAD.N_TOLERANCE", 2, *AUGMENTED),
    "flyp": ("FLYP", *by_steps("FLYP"), "TRAINER.FLYP.MAX_NORM", 1.0),
    "inmap-gopro": ("InMaP",),
}
CLAP_STEPS = ("TRAINER.CLAP.MAX_STEPS", 9, "TRAINER.CLAP.CHECK_EVERY", 4, "TRAINER.CLAP.BATCH_SIZE", 8)
CLAP_STEPS += ("OPTIM.LR", 1e-4)
BITWISE = ("zeroshot", "probe", "clap", "clap-pictures", "inmap", "inmap-gopro")
SINGLE = ("OPTIM.LR_SCHEDULER", "single_step")


@pytest.fixture(scope="module")
def both(words, drive, alone, domain_tree, tmp_path_factory):
    """The folder of runs by one process, that of runs by two, and what the latter printed.

    In the folder of one process also: `whole`, and `a`, which two processes go on with; in the other one `b`, which one
    process goes on with, and a run without a seed.
    """
    one, two = folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    texts, lists = one / "texts.txt", []
    texts.write_text("a {} in the rain\nthe {} at night\na painted {}\n")
    for folder in folders:
        for name, (trainer, *pairs) in RUNS.items():
            options = pairs.pop() if isinstance(pairs[-1:] and pairs[-1], dict) else {}
            pairs += CLAP_STEPS if trainer == "CLAP" else ()
            pairs += ("TRAINER.CLAP.SOURCE", texts) if name == "clap" else ()
            pairs += ("TRAINER.CLAP.IMAGE_FOLDER", domain_tree / "art") if name == "clap-pictures" else ()
            pairs += ("TRAINER.INMAP.FROM", one / "gopro") if name == "inmap-gopro" else ()
            lists.append(words(trainer, folder / name, *pairs, **options))
    begun = [words("GOPro", folder / name, *SINGLE, "OPTIM.MAX_EPOCH", 1) for folder, name in ((one, "a"), (two, "b"))]
    whole, a, b = (words("GOPro", path, *SINGLE) for path in (one / "whole", one / "a", two / "b"))
    alone([*lists[: len(RUNS)], begun[0], whole])
    out, found = drive([*lists[len(RUNS) :], begun[1], a, words("GOPro", two / "unseeded", seed=-1)])
    assert [code for code, _ in found] == [0] * (len(RUNS) + 3), found
    alone([b])
    return one, two, out


def learned(folder):
    """Every tensor that the newest checkpoints of a run hold, by model and name."""
    found = {}
    for path in sorted(folder.glob("*/model.pth.tar-*")):
        state = torch.load(path, weights_only=True)
        found |= {f"{path.parent.name}/{name}": value for name, value in state["state_dict"].items()}
        found |= {"epoch": torch.tensor(state["epoch"])}
    return found


@pytest.mark.parametrize("name", RUNS)
def test_a_run_by_two_is_that_by_one(both, name, but_for_rounding):
    """What is learned, losses, metrics, predictions, and files, which are written once."""
    folders = [folder / name for folder in both[:2]]
    one, two = map(learned, folders)
    assert one.keys() == two.keys() and bool(one) == (name != "zeroshot")
    for key, value in one.items():
        if name in BITWISE:
            assert torch.equal(two[key], value), key
        else:
            torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5, msg=key)

    one, two = map(read_record, folders)
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["metrics"] == (two["metrics"] if name in BITWISE else but_for_rounding(two["metrics"]))
    for key in ("num_train", "num_classes", "classnames", "selection_rule", "config_hash"):
        assert one[key] == two[key], key
    assert [v["bytes"] for v in one["learned"].values()] == [v["bytes"] for v in two["learned"].values()]
    for ours, theirs in zip(one["history"], two["history"], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-5)
    assert ("solutions" in one) == (one["method"] == "InMaP")
    for reading, numbers in one.get("solutions", {}).items():
        found = two["solutions"][reading]
        assert found["objective"] == pytest.approx(numbers["objective"], rel=1e-6)
        assert found["converged"] == numbers["converged"] and found["images"] == numbers["images"] == 30

    one, two = (np.load(folder / "predictions.npz", allow_pickle=False) for folder in folders)
    assert len(one["paths"]) == 30
    for key in ("paths", "labels", "top", "classnames"):
        assert np.array_equal(one[key], two[key]), key
    np.testing.assert_allclose(two["shares"], one["shares"], rtol=0, atol=0 if name in BITWISE else 1e-5)

    one, two = (  # tensorboard names its files by time and process
        sorted(str(path.relative_to(folder)).split(".tfevents")[0] for path in folder.rglob("*")) for folder in folders
    )
    assert two == sorted([*one, "log-rank1.txt"]) and len(list(folders[1].glob("tensorboard/*"))) <= 1


def test_the_table_of_metrics(both):
    one, two = ((folder / "coop-views" / "metrics.csv").read_text().splitlines() for folder in both[:2])
    assert len(one) == len(two) == 4  # names, two epochs, final
    for ours, theirs in zip(csv.DictReader(one), csv.DictReader(two)):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if value and key != "stage":
                assert float(theirs[key]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), key


def test_the_console_is_the_main_processs(both):
    assert both[2].count("Finish training") == len(RUNS) + 3 and "epoch [1/2] batch [2/" in both[2]
    other = (both[1] / "gopro" / "log-rank1.txt").read_text()
    assert "Finish training" in other and "checkpoint saved" not in other
    assert "checkpoint saved" in (both[1] / "gopro" / "log.txt").read_text()


def test_going_on_with_another_number_of_processes(both):
    one, two, _ = both
    for folder, processes in ((one / "a", 2), (two / "b", 1)):
        log = max(folder.glob("log.txt*"), key=lambda path: path.stat().st_mtime)
        assert "1 epochs done" in log.read_text() and read_record(folder)["world_size"] == processes
        found = learned(folder)
        for key, value in learned(one / "whole").items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=f"{folder.name}: {key}")
    assert len(read_record(two / "unseeded")["history"]) == 2  # the processes stayed in step
