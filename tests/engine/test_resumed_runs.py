"""What a checkpoint belongs to: its configuration, its images, and the files that the configuration names.

Covers the checks in `engine/checkpoints.py` and `engine/refined.py`.
"""

import shutil

import pytest
import torch
from PIL import Image

from dassl_clip.engine import checkpoint_files as checkpoint
from dassl_clip.results import records, run_data


def strip_record(folder):
    (folder / "record.json").unlink()
    return sorted(folder.glob("*/model.pth.tar-*"))[-1]


def swap_pixels(root):
    """Other content under every name, of about the same look and another size."""
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        image = Image.open(path).convert("RGB")
        image.putpixel((0, 0), (number % 256, 7, 9))
        image.save(path)


def test_1_2_a_checkpoint_of_another_seed_is_not_resumed(run):
    """Seed 2's checkpoint put into seed 1's folder, whose own `config.yaml` is right."""
    first, _, _ = run("CoOp", "OPTIM.MAX_EPOCH", 1, name="one")
    second, _, _ = run("CoOp", "OPTIM.MAX_EPOCH", 1, "SEED", 2, name="two")
    own, other = strip_record(first), strip_record(second)
    shutil.copy(other, own)
    _, record, output = run("CoOp", "OPTIM.MAX_EPOCH", 2, name="one", code=2)
    assert record is None and output.err.count("\n") == 1
    assert f"{own} is of another configuration (SEED: 2 there, 1 now)" in output.err and "--resume" in output.err


def test_1_2_a_checkpoint_says_its_images_itself(run, domain_tree, tmp_path):
    """The list of images in the folder is gone, and `config.yaml` too; the checkpoint still knows them."""
    root = tmp_path / "images"
    shutil.copytree(domain_tree, root)
    folder, record, _ = run("CoOp", "OPTIM.MAX_EPOCH", 1, root=root)
    path = strip_record(folder)
    state = checkpoint.load_checkpoint(path)
    assert state["data"] == record["data_fingerprint"] and state["identity"]["SEED"] == 1
    swap_pixels(root)
    kept = (folder / run_data.DATA_NAME).read_bytes()
    for name in (run_data.DATA_NAME, "config.yaml"):
        (folder / name).unlink()
    _, _, output = run("CoOp", "OPTIM.MAX_EPOCH", 2, root=root, code=2)
    assert f"{path} was trained on other images (which ones is not known), which is not resumed" in output.err
    (folder / run_data.DATA_NAME).write_bytes(kept)
    _, _, output = run("CoOp", "OPTIM.MAX_EPOCH", 2, root=root, code=2)
    assert "images changed (first: art/" in output.err and output.err.count("\n") == 1
    _, record, output = run("CoOp", "OPTIM.MAX_EPOCH", 2, root=root, name="new", flags=("--resume", str(folder)))
    assert "was trained on other images" in output.out and record["history"][-1]["epoch"] == 2  # asked for by name


def test_1_2_another_backbone_under_the_same_name_is_not_resumed(run, tiny_clip, tmp_path):
    """The file that the configuration names was replaced between the two starts."""
    model = tmp_path / "model"
    shutil.copytree(tiny_clip, model)
    keys = ("OPTIM.MAX_EPOCH", 1, "MODEL.BACKBONE.NAME", f"local-dir:{model}")
    folder, record, _ = run("CoOp", *keys)
    assert list(record["files"]) == ["MODEL.BACKBONE.NAME"]
    strip_record(folder)
    text = (model / "open_clip_config.json").read_text()
    (model / "open_clip_config.json").write_text(text + "\n")
    _, _, output = run("CoOp", *keys, "OPTIM.MAX_EPOCH", 2, code=2)
    assert "MODEL.BACKBONE.NAME: another content of its file" in output.err


def test_a_method_without_epochs_starts_anew(run, domain_tree, tmp_path):
    """CLAP's head of another configuration is no start for this one; the result is that of an empty folder."""
    keys = ("TRAINER.CLAP.MAX_STEPS", 4, "TRAINER.CLAP.CHECK_EVERY", 2, "TRAINER.CLAP.BATCH_SIZE", 2)
    clap = ("TRAINER.CLAP.LATENT_DIM", 8, "TRAINER.CLAP.ALPHA", "0.5", *keys)
    folder, _, _ = run("CLAP", *clap, "TRAINER.CLAP.TAU", 0.2, name="used")
    strip_record(folder)
    _, used, output = run("CLAP", *clap, name="used")
    assert "is of another configuration (TRAINER.CLAP.TAU: 0.2 there" in output.out.replace("0.20", "0.2")
    _, fresh, _ = run("CLAP", *clap, name="fresh")
    assert used["learned"] == fresh["learned"]


def test_old_checkpoints_resume_with_a_word(run):
    """A checkpoint of a version that recorded neither configuration nor images."""
    folder, _, _ = run("CoOp", "OPTIM.MAX_EPOCH", 1)
    path = strip_record(folder)
    state = torch.load(path, weights_only=True)
    torch.save({key: value for key, value in state.items() if key not in ("identity", "data", "files")}, path)
    _, record, output = run("CoOp", "OPTIM.MAX_EPOCH", 2)
    assert "does not say which configuration and images it is of: data not recorded" in output.out
    assert [entry["epoch"] for entry in record["history"]] == [1, 2]


def test_1_2_a_run_on_images_that_changed_is_not_refined(run, domain_tree, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(domain_tree, root)
    folder, _, _ = run("CoOp", "OPTIM.MAX_EPOCH", 1, root=root, name="base")
    swap_pixels(root)
    keys = ("TRAINER.INMAP.FROM", folder, "TRAINER.INMAP.STEPS", 3)
    _, record, output = run("InMaP", *keys, root=root, name="refined", code=2)
    assert record is None and output.err.count("\n") == 1
    assert f"the run in {folder} was tested on other images than are there now (" in output.err


@pytest.mark.parametrize("change", ["order", "name", "count"])
def test_2_6_other_classes_are_told_by_their_first_difference(run, domain_tree, tmp_path, change):
    """A prompt per class fits these classes alone; the message says where the two lists part."""
    folder, _, _ = run("CoOp", "OPTIM.MAX_EPOCH", 1, "TRAINER.COOP.CSC", True)
    root = tmp_path / "other"
    shutil.copytree(domain_tree, root)
    names = sorted(path.name for path in (root / "art").iterdir())
    for domain in root.iterdir():
        if change == "count":
            shutil.copytree(domain / names[-1], domain / "zebra")
        else:
            (domain / names[1]).rename(domain / ("aaa" if change == "order" else f"{names[1]}s"))
    flags = ("--eval-only", "--model-dir", str(folder))
    _, _, output = run("CoOp", "TRAINER.COOP.CSC", True, root=root, name="tested", flags=flags, code=2)
    shown = names[1].replace("_", " ")
    told = {
        "order": f"class 0 is '{names[0]}' there and 'aaa' now, of 3 there and 3 now",
        "name": f"class 1 is '{names[1]}' there and '{names[1]}s' now, of 3 there and 3 now",
        "count": "class 3 is absent there and 'zebra' now, of 3 there and 4 now",
    }[change]
    assert told in output.err or told.replace(names[1], shown) in output.err
    assert output.err.count("\n") == 1


def test_2_3_predict_follows_an_evaluation_to_its_run(run, domain_tree, tmp_path, capsys):
    """The evaluation's folder holds no learned parts; the run's are taken, and never the untrained ones."""
    from dassl_clip.cli import export, predict

    folder, _, _ = run("CoOp", "OPTIM.LR", 0.5, name="trained")
    flags = ("--eval-only", "--model-dir", str(folder))
    tested, record, _ = run("CoOp", "OPTIM.LR", 0.5, name="tested", flags=flags)
    assert record["evaluated_from"] == str(folder) and record["learned"] == records.read_record(folder)["learned"]
    images = str(domain_tree / "sketch")
    answers = []
    for place in (folder, tested):
        assert predict.main([images, "--run", str(place), "--out", str(tmp_path / "a.csv")]) == 0
        answers.append((tmp_path / "a.csv").read_text())
        assert export.main([str(place), "--out", str(tmp_path / f"{place.name}.safetensors")]) == 0
    assert answers[0] == answers[1]
    capsys.readouterr()
    (tested / "config.yaml").write_text((tested / "config.yaml").read_text().replace("position: end", ""))
    text = (tested / "config.yaml").read_text().replace("CLASS_TOKEN_POSITION: end", "CLASS_TOKEN_POSITION: front")
    (tested / "config.yaml").write_text(text)
    assert predict.main([images, "--run", str(tested)]) == 2
    assert "config.yaml is not the configuration that record.json was written for" in capsys.readouterr().err
    folder.rename(tmp_path / "gone")
    (tested / "config.yaml").write_text(text.replace("CLASS_TOKEN_POSITION: front", "CLASS_TOKEN_POSITION: end"))
    assert predict.main([images, "--run", str(tested)]) == 2
    assert f"is an evaluation of {folder}, which is not there any more" in capsys.readouterr().err


def test_an_export_is_evaluated_like_its_run(run, domain_tree, tmp_path, capsys):
    """`--eval-only --model-dir FILE`: the same digits, and the record says what the file was trained on."""
    from dassl_clip.cli import export

    folder, trained, _ = run("CoOp", "OPTIM.LR", 0.5, name="trained")
    file = tmp_path / "prompt.safetensors"
    assert export.main([str(folder), "--out", str(file)]) == 0
    flags = ("--eval-only", "--model-dir", str(file))
    _, record, _ = run("CoOp", "OPTIM.LR", 0.5, name="tested", flags=flags)
    assert record["metrics"] == trained["metrics"] and record["evaluated_from"] == str(file)
    assert record["trained"]["config_hash"] == trained["config_hash"] and record["trained"]["seed"] == 1
