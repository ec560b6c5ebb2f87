"""NaN and infinite numbers in weights, learned parts, features and scores: refused by name, nothing is recorded.

Covers `clip/finite.py` against the plain check, and all ways to score through the command line: a run,
`--eval-only`, `MODEL.INIT_WEIGHTS`, `predict`, `export`, a run that is refined, and a trainer that is not of this
project.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dassl_clip.cli import export, predict
from dassl_clip.clip.finite import check_features, check_rows, check_state, finite_rows
from dassl_clip.clip.weights import hash_state
from dassl_clip.clip.zeroshot import zeroshot_weights

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_finite_rows_are_those_that_a_plain_check_finds(dtype):
    x = torch.randn(40, 3, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
    x[3, 1, 2], x[4, 0, 0], x[9, 2, 4] = NAN, INF, -INF
    x[11, 0, :2] = torch.tensor([INF, -INF], dtype=dtype)
    x[12:14] = torch.finfo(dtype).max  # finite, and their sum is not
    assert torch.equal(finite_rows(x), x.isfinite().flatten(1).all(1))
    assert finite_rows(x).sum() == 36 and finite_rows(x[:0]).shape == (0,)


def test_states_with_masks_and_counters_are_let_through():
    state = {"attn_mask": torch.full((3, 3), -INF), "text.attn_mask": torch.full((3, 3), -INF)}
    state |= {"steps": torch.tensor(3), "none": torch.zeros(0), "large": torch.full((9,), 3e38), "name": "text"}
    check_state(state, "file")
    state["proj"] = torch.tensor([[1.0, NAN], [INF, 0.0]])
    with pytest.raises(ValueError, match="file: 2 of the 4 numbers of the tensor 'proj' are NaN or infinite"):
        check_state(state, "file")


def test_rows_are_named_by_the_first():
    with pytest.raises(FloatingPointError, match=r"the scores of b.png are not finite \(2 of 3 of them\)"):
        check_rows(torch.tensor([[0.0], [NAN], [INF]]), "scores", ["a.png", "b.png", "c.png"])


def test_3_1_features_without_a_direction_and_quantised_weights():
    rows = torch.tensor([[0.0, 1e-30], [0.0, -0.0], [3.0, 0.0]])
    check_features(rows[::2], "image features", ["a", "c"])
    with pytest.raises(FloatingPointError, match=r"the image features of b are 0 throughout \(1 of 3 of them\)"):
        check_features(rows, "image features", ["a", "b", "c"])
    check_state({"mask.attn_mask": torch.ones(2, 2, dtype=torch.uint8), "ids": torch.arange(3)}, "file")
    with pytest.raises(ValueError, match="file: the tensor 'proj' is int8, whole numbers of 8 bits: quantised weights"):
        check_state({"proj": torch.ones(2, 2, dtype=torch.int8)}, "file")


def clip_with(tiny_clip, folder, tensor, value):
    """A copy of the small CLIP with one number changed."""
    shutil.copytree(tiny_clip, folder)
    state = load_file(folder / "open_clip_model.safetensors")
    state[tensor].view(-1)[7] = value
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("tensor", "value"),
    [("visual.proj", NAN), ("transformer.resblocks.0.mlp.c_fc.bias", INF), ("visual.class_embedding", -INF)],
)
def test_3_1_one_number_in_a_weights_file(run, tiny_clip, tmp_path, tensor, value, capsys):
    """(row 3.1) The file and the tensor are named; nothing is recorded, and nothing is cached."""
    clip = clip_with(tiny_clip, tmp_path / "clip", tensor, value)
    _, record, output = run("ZeroshotCLIP", "MODEL.BACKBONE.NAME", f"local-dir:{clip}", code=2)
    assert record is None and output.err.count("\n") == 1
    assert "1 of the" in output.err and f"the tensor '{tensor}'" in output.err and str(clip) in output.err
    code = predict.main([str(tmp_path), "--names", "dog,house", "--backbone", f"local-dir:{clip}"])
    assert code == 2


def spoil(folder, key, value):
    """Put a number into a learned part of a run, as a training that diverged would have saved it."""
    for path in folder.glob("*/model*.pth.tar*"):
        content = torch.load(path, weights_only=True)
        content["state_dict"][key].view(-1)[5] = value
        content["sha256"] = hash_state(content["state_dict"])
        torch.save(content, path)
    record = json.loads((folder / "record.json").read_text())
    for name in record["learned"]:
        record["learned"][name]["sha256"] = content["sha256"]
    (folder / "record.json").write_text(json.dumps(record))


@pytest.fixture
def coop(run, tmp_path):
    """A short run of CoOp."""
    folder, _, _ = run("CoOp", "OPTIM.MAX_EPOCH", 1, "TRAINER.COOP.CTX_INIT", "a photo of a", name="coop")
    return folder


def test_3_1_one_number_in_a_learned_part(run, coop, tmp_path, domain_tree, capsys):
    """(row 3.1) Whatever reads the checkpoint names it and the tensor; nothing is recorded or written."""
    spoil(coop, "ctx", NAN)
    said = "1 of the 128 numbers of the tensor 'ctx' are NaN or infinite"
    words = ("TRAINER.COOP.CTX_INIT", "a photo of a")
    _, record, output = run("CoOp", *words, name="eval", flags=("--eval-only", "--model-dir", str(coop)), code=2)
    assert record is None and said in output.err
    init = next(coop.glob("*/model*.pth.tar*"))
    _, record, output = run("CoOp", *words, "MODEL.INIT_WEIGHTS", init, name="init", code=2)
    assert record is None and said in output.err and str(init) in output.err
    _, record, output = run("InMaP", "TRAINER.INMAP.FROM", coop, name="refined", code=2)
    assert record is None and said in output.err
    assert predict.main([str(domain_tree / "sketch"), "--run", str(coop)]) == 2
    output = capsys.readouterr()
    assert said in output.err and not output.out
    file = tmp_path / "run.safetensors"
    assert export.main([str(coop), "--out", str(file)]) == 2 and not file.exists()
    assert said in capsys.readouterr().err


def test_3_1_one_number_in_an_export(coop, tmp_path, capsys):
    """(row 3.1) With hashes that fit, as a program would have written them."""
    file = tmp_path / "run.safetensors"
    assert export.main([str(coop), "--out", str(file)]) == 0
    from safetensors import safe_open

    with safe_open(file, "pt") as content:
        metadata, state = content.metadata(), {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    name = next(name for name in state if name.endswith("ctx"))
    state[name].view(-1)[0] = INF
    metadata["sha256"] = json.dumps(hash_state(state))
    save_file(state, file, metadata)
    capsys.readouterr()
    for action in ([str(file)], [str(file), "--unpack", str(tmp_path / "unpacked")]):
        assert export.main(action) == 2
        assert f"the tensor '{name}'" in capsys.readouterr().err
    assert not (tmp_path / "unpacked").exists()


def test_3_1_scores_that_are_no_numbers_are_refused_by_the_first_image(run, domain_tree, capsys):
    """(row 3.1) Finite learned numbers that overflow on the way: the test and `predict` name an image."""
    folder, _, _ = run("LinearProbe", "TRAINER.LINEARPROBE.PULL", [1.0], name="probe")
    spoil(folder, "weight", 3e38)
    flags = ("--eval-only", "--model-dir", str(folder))
    _, record, output = run("LinearProbe", "TRAINER.LINEARPROBE.PULL", [1.0], name="eval", flags=flags, code=2)
    assert record is None and "sketch/dog/000.png are not finite (30 of 30" in output.err
    assert predict.main([str(domain_tree / "sketch"), "--run", str(folder)]) == 2
    output = capsys.readouterr()
    assert "the scores of " in output.err and "dog/000.png are not finite" in output.err and not output.out


PLAIN = '''
import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX

@TRAINER_REGISTRY.register()
class Plain{number}(TrainerX):
    """A trainer of somebody else."""

    def build_model(self):
        self.seen = 0

    def before_train(self):
        pass

    def train(self):
        print("the eighteenth:", self.test_loader.dataset.data_source[17].impath)
        self.test()

    def model_inference(self, input):
        scores = torch.randn(len(input), self.num_classes)
        scores[:, 1] = -float("inf")  # a class that is left out
        if self.seen <= 17 < self.seen + len(input):
            scores[17 - self.seen, 0] = {value}
        self.seen += len(input)
        return scores
'''


@pytest.mark.parametrize(("value", "code"), [("float('nan')", 2), ("float('inf')", 2), ("1.0", 0)])
def test_3_1_scores_of_a_plain_dassl_trainer(run, tmp_path, value, code):
    """(row 3.1) Of any trainer that our train.py runs; the image is named by its place in the list."""
    name = f"Plain{abs(hash(value)) % 10**6}"
    module = tmp_path / f"{name.lower()}.py"
    module.write_text(PLAIN.format(number=name.removeprefix("Plain"), value=value))
    _, record, output = run(name, "DATALOADER.TEST.BATCH_SIZE", 4, flags=("--import", str(module)), code=code)
    assert (record is None) == bool(code)
    if code:
        (path,) = re.findall("the eighteenth: (.+)", output.out)
        assert f"error: the scores of {path} are not finite" in output.err


def test_3_1_text_features_that_are_no_numbers_are_refused_by_class(tiny_clip):
    """(row 3.1) Weights that are finite and whose features are not."""
    from dassl_clip.clip.backbone import load_backbone

    backbone = load_backbone(f"local-dir:{Path(tiny_clip)}")
    with torch.no_grad():
        backbone.model.text_projection.fill_(3e38)
    with pytest.raises(FloatingPointError, match="the text features of the class 'dog' are not finite"):
        zeroshot_weights(backbone.text, ["dog", "house"], ["a photo of a {}."])
