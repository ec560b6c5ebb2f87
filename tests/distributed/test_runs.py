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
    "inmap-gopro": ("InMaP",),
}
CLAP_STEPS = ("TRAINER.CLAP.MAX_STEPS", 45, "TRAINER.CLAP.CHECK_EVERY", 20, "TRAINER.CLAP.BATCH_SIZE", 8)
CLAP_STEPS += ("OPTIM.LR", 1e-4)
BITWISE = ("zeroshot", "probe", "clap", "clap-pictures", "inmap", "inmap-gopro")


@pytest.fixture(scope="session")
def both(words, drive, domain_tree, tmp_path_factory):
    """The folder of runs by one process, that of runs by two, and what the latter printed."""
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    said = []
    for processes, folder in zip((0, 2), folders):
        lists = []
        for name, (trainer, *pairs) in RUNS.items():
            options = pairs.pop() if isinstance(pairs[-1:] and pairs[-1], dict) else {}
            pairs += CLAP_STEPS if trainer == "CLAP" else ()
            pairs += ("TRAINER.CLAP.IMAGE_FOLDER", domain_tree / "art") if name == "clap-pictures" else ()
            pairs += ("TRAINER.INMAP.FROM", folders[0] / "gopro") if name == "inmap-gopro" else ()
            lists.append(words(trainer, folder / name, *pairs, **options))
        said.append(drive(lists, processes))
    return *folders, said[1]


def learned(folder):
    """Every tensor that the newest checkpoints of a run hold, by model and name."""
    found = {}
    for path in sorted(folder.glob("*/model.pth.tar-*")):
        state = torch.load(path, weights_only=True)
        found |= {f"{path.parent.name}/{name}": value for name, value in state["state_dict"].items()}
        found |= {"epoch": torch.tensor(state["epoch"])}
    return found


@pytest.mark.parametrize("name", [name for name in RUNS if name != "zeroshot"])
def test_what_is_learned(both, name):
    one, two = (learned(folder / name) for folder in both[:2])
    assert one.keys() == two.keys() and one
    for key, value in one.items():
        if name in BITWISE:
            assert torch.equal(two[key], value), key
        else:
            torch.testing.assert_close(two[key], value, rtol=1e-5, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", RUNS)
def test_losses_and_metrics(both, name):
    one, two = (read_record(folder / name) for folder in both[:2])
    assert (one["world_size"], two["world_size"]) == (1, 2)
    assert one["metrics"].keys() == two["metrics"].keys()
    for reading, numbers in one["metrics"].items():
        assert two["metrics"][reading] == numbers, reading
    assert len(one["history"]) == len(two["history"])
    for ours, theirs in zip(one["history"], two["history"]):
        assert theirs == pytest.approx(ours, rel=1e-5, abs=1e-5)
    for key in ("num_train", "num_classes", "classnames", "selection_rule", "config_hash", "learned"):
        if key != "learned":
            assert one[key] == two[key], key
        else:
            assert {k: v["bytes"] for k, v in one[key].items()} == {k: v["bytes"] for k, v in two[key].items()}


@pytest.mark.parametrize("name", RUNS)
def test_predictions(both, name):
    one, two = (np.load(folder / name / "predictions.npz", allow_pickle=False) for folder in both[:2])
    assert len(one["paths"]) == 30
    for key in ("paths", "labels", "top", "classnames"):
        assert np.array_equal(one[key], two[key]), key
    np.testing.assert_allclose(two["shares"], one["shares"], rtol=0, atol=0 if name in BITWISE else 1e-5)


@pytest.mark.parametrize("name", ["inmap", "inmap-gopro"])
def test_solutions(both, name):
    one, two = (read_record(folder / name)["solutions"] for folder in both[:2])
    for reading, numbers in one.items():
        assert two[reading]["objective"] == pytest.approx(numbers["objective"], rel=1e-6)
        assert two[reading]["converged"] == numbers["converged"]
        assert two[reading]["images"] == numbers["images"] == 30


@pytest.mark.parametrize("name", RUNS)
def test_files_are_written_once(both, name):
    one, two = ({path.relative_to(folder / name) for path in (folder / name).rglob("*")} for folder in both[:2])
    own = {path for path in two if path.name.startswith("log-rank")}
    assert {path.name for path in own} == {"log-rank1.txt"}

    def plain(paths):  # tensorboard names its files by time and process
        return sorted(str(path).split(".tfevents")[0] for path in paths)

    assert plain(two - own) == plain(one)
    assert len(list((both[1] / name).glob("tensorboard/*"))) <= 1


def test_the_table_of_metrics(both):
    one, two = ((folder / "coop-views" / "metrics.csv").read_text().splitlines() for folder in both[:2])
    assert len(one) == len(two) == 4  # names, two epochs, final
    for ours, theirs in zip(csv.DictReader(one), csv.DictReader(two)):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if value and key != "stage":
                assert float(theirs[key]) == pytest.approx(float(value), rel=1e-5, abs=1e-5), key


def test_the_console_is_the_main_processs(both):
    out, _ = both[2]
    assert out.count("Finish training") == len(RUNS)
    assert "epoch [1/2] batch [2/" in out
    other = (both[1] / "gopro" / "log-rank1.txt").read_text()
    assert "Finish training" in other and "checkpoint saved" not in other
    assert "checkpoint saved" in (both[1] / "gopro" / "log.txt").read_text()


def test_going_on_with_another_number_of_processes(both, words, drive, tmp_path):
    pairs = ("OPTIM.MAX_EPOCH", 1)
    one, two = (words("GOPro", tmp_path / name, "OPTIM.LR_SCHEDULER", "single_step") for name in ("a", "b"))
    whole = words("GOPro", tmp_path / "whole", "OPTIM.LR_SCHEDULER", "single_step")
    drive([[*one, *map(str, pairs)], whole], 0)
    unseeded = words("GOPro", tmp_path / "unseeded")
    unseeded[unseeded.index("--seed") + 1] = "-1"
    drive([[*two, *map(str, pairs)], one, unseeded], 2)
    drive([two], 0)
    for name in ("a", "b"):
        assert "1 epochs done" in (tmp_path / name).joinpath(newest_log(tmp_path / name)).read_text()
        found, wanted = learned(tmp_path / name), learned(tmp_path / "whole")
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=f"{name}: {key}")
    assert [read_record(tmp_path / name)["world_size"] for name in ("a", "b")] == [2, 1]
    assert len(read_record(tmp_path / "unseeded")["history"]) == 2  # the processes stayed in step


def newest_log(folder):
    """Name of the log of the last run in a folder."""
    return max(folder.glob("log.txt*"), key=lambda path: path.stat().st_mtime).name
