"""Runs of the real command line on the small tree with the small CLIP."""

import pytest
import yaml

from dassl_clip.commands import train
from dassl_clip.results.records import read_record


@pytest.fixture
def run(tmp_path, tiny_clip, domain_tree, capsys):
    """`run(trainer, *KEY VALUE, name=..., flags=..., root=..., code=0)` gives `(folder, record, output)`."""

    def go(trainer, *pairs, name="run", flags=(), root=domain_tree, source="art photo", target="sketch", code=0):
        data = tmp_path / "data.yaml"
        data.write_text(yaml.safe_dump({"DATASET": {"NAME": "FolderDomains"}}))
        folder = tmp_path / name
        argv = [
            "--trainer",
            trainer,
            "--dataset-config-file",
            str(data),
            "--root",
            str(root),
            "--output-dir",
            str(folder),
        ]
        argv += ["--seed", "1", "--source-domains", *source.split(), "--target-domains", *target.split(), *flags]
        argv += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "DATALOADER.NUM_WORKERS", "0"]
        argv += [
            "DATALOADER.TRAIN_X.BATCH_SIZE",
            "6",
            "DATASET.NUM_SHOTS",
            "4",
            "OPTIM.MAX_EPOCH",
            "2",
            "OPTIM.NAME",
            "sgd",
        ]
        argv += ["OPTIM.LR_SCHEDULER", "cosine", "OPTIM.LR", "0.01"]
        given = train.main([*argv, *map(str, pairs)])
        output = capsys.readouterr()
        assert given == code, output.err + output.out[-3000:]
        return folder, read_record(folder), output

    return go
