"""One finished run of CoOp on the small tree with the small CLIP, and the command line in this process."""

import pytest

from dassl_clip.cli.__main__ import main


@pytest.fixture
def call(capsys):
    """`call(*words)` gives exit code, stdout and stderr of `dassl-clip WORDS`."""

    def run(*words):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:  # of the argument parser
            code = end.code
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.fixture(scope="session")
def words(tiny_clip, domain_tree, tmp_path_factory):
    """`words(trainer, folder, *more)`: a command line of `dassl-clip train` on the small tree."""
    file = tmp_path_factory.mktemp("config") / "data.yaml"
    file.write_text("DATASET:\n  NAME: FolderDomains\n")

    def make(trainer, folder, *more):
        given = ["train", "--trainer", trainer, "--dataset-config-file", file, "--root", domain_tree, "--seed", "1"]
        given += ["--output-dir", folder, "--source-domains", "art", "photo", "--target-domains", "sketch"]
        given += ["MODEL.BACKBONE.NAME", f"local-dir:{tiny_clip}", "DATALOADER.NUM_WORKERS", "0"]
        given += ["DATALOADER.TRAIN_X.BATCH_SIZE", "6", "DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", "1"]
        return [str(word) for word in [*given, *more]]

    return make


@pytest.fixture(scope="session")
def trained(tmp_path_factory, words):
    """The folder of a finished run of CoOp."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main(words("CoOp", folder)) == 0
    return folder
