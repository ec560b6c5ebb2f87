"""The room from outside: registry, toolbox, configs.

Covers: registered names, replacement of a name that is taken, the sentence without a toolbox,
`add_config`, building through Dassl's `build_dataset` and `DataManager` from each config in `configs/datasets`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl_clip import datasets
from dassl_clip.datasets import base

CONFIGS = Path(__file__).parents[2] / "configs" / "datasets"
FILES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
WITH_DOMAINS = ["pacs", "vlcs", "office_home", "office_home_dg", "domainnet", "mini_domainnet", "folder_domains"]
WITH_DOMAINS += ["terra_incognita", "digits_dg", "office31", "nico_pp", "visda17", "cub_paintings"]


def read_config(file):
    cfg = get_cfg_default()
    datasets.add_config(cfg)
    cfg.merge_from_file(str(CONFIGS / f"{file}.yaml"))
    return cfg


def test_every_loader_is_registered_and_has_a_config():
    ours = {name for name in datasets.__all__ if isinstance(getattr(datasets, name), type)} - {
        "ListedDataset",
        "Layout",
    }
    assert all(DATASET_REGISTRY.get(name) is getattr(datasets, name) for name in ours)
    assert sorted(read_config(file).DATASET.NAME for file in FILES) == sorted(ours) and len(ours) == 32


@pytest.mark.parametrize("file", FILES)
def test_configs(file):
    cfg = read_config(file)
    assert cfg.DATASET.NAME.lower() == {"dtd": "describabletextures"}.get(file, file.replace("_", ""))
    tasks = {"icons": ["fewshot", "lodo"], "imagenet_c": ["zeroshot"]} | {key: ["lodo"] for key in WITH_DOMAINS}
    assert list(cfg.DATASET.TASKS) == tasks.get(file, [])
    assert cfg.DATASET.PROTOCOL == "dassl" and cfg.DATASET.SUBSAMPLE_CLASSES == "all"


def test_ours_takes_the_place_of_another(caplog):
    class PlaceTaken:
        pass

    first = PlaceTaken
    first.__module__ = "elsewhere.data"
    DATASET_REGISTRY.register(first)

    class PlaceTaken:
        replaces = ""

    try:
        with caplog.at_level("INFO"):
            base.register(PlaceTaken)
        assert DATASET_REGISTRY.get("PlaceTaken") is PlaceTaken
        assert PlaceTaken.replaces.startswith("elsewhere.data.")
        assert len([record for record in caplog.records if "takes the place of" in record.getMessage()]) == 1
    finally:
        DATASET_REGISTRY._obj_map.pop("PlaceTaken")


@pytest.mark.parametrize("blocked", ["dassl", "dassl.data.datasets"])
def test_without_a_toolbox(blocked):
    program = f"""
import sys
sys.modules[{blocked!r}] = None
try:
    import dassl_clip.datasets
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install ./toolbox" in done.stdout and "Dassl.pytorch" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_add_config_keeps_what_is_there():
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "base"
    datasets.add_config(cfg)
    datasets.add_config(cfg)
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "base"
    assert (cfg.DATASET.SPLIT_SEED, tuple(cfg.DATASET.TASKS), cfg.DATASET.VLCS_TEST) == (-1, (), "test")


def test_unknown_name(config):
    cfg = config("", ["a"], ["b"], NAME="OfficeHomes")
    with pytest.raises(ValueError, match="OfficeHome"):
        build_dataset(cfg)


def test_through_dassl(tmp_path, pacs_tree, config):
    from dassl.data import DataManager

    cfg = config(pacs_tree(tmp_path), ["photo", "cartoon"], ["sketch"], NAME="PACS", NUM_SHOTS=2).clone()
    cfg.defrost()
    cfg.INPUT.SIZE, cfg.DATALOADER.NUM_WORKERS, cfg.USE_CUDA = (8, 8), 0, False
    manager = DataManager(cfg)
    assert manager.num_classes == 7 and manager.lab2cname[3] == "guitar"
    assert manager.num_source_domains == 2
    batch = next(iter(manager.train_loader_x))
    assert batch["img"].shape[1:] == (3, 8, 8)
    assert len(manager.test_loader.dataset) == 70
