"""The identity of a configuration: what it leaves out, what it holds, and how differences are named."""

import copy

from dassl_clip.engine.fingerprint import config_differences, config_hash

CONFIG = {
    "SEED": 1,
    "OUTPUT_DIR": "output/a",
    "USE_CUDA": True,
    "DATASET": {
        "NAME": "PACS",
        "ROOT": "/data",
        "NUM_SHOTS": 16,
        "SPLIT_SEED": -1,
        "SUBSAMPLE_CLASSES": "all",
        "SOURCE_DOMAINS": ("photo", "sketch"),
        "TARGET_DOMAINS": ("cartoon",),
    },
    "DATALOADER": {"NUM_WORKERS": 4, "TRAIN_X": {"BATCH_SIZE": 4}},
    "OPTIM": {"LR": 0.002},
    "TEST": {"FINAL_MODEL": "last_step"},
    "TRAINER": {"NAME": "GOPro", "GOPRO": {"TAU": 0.1}, "COOP": {"N_CTX": 16}},
}


def config(**changes):
    tree = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        node = tree
        *parents, last = key.split("__")
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def test_identity_ignores_places_and_other_trainers_only():
    same = config_hash(CONFIG)
    for changes in (
        {"OUTPUT_DIR": "elsewhere"},
        {"DATASET__ROOT": "/mnt"},
        {"DATALOADER__NUM_WORKERS": 0},
        {"USE_CUDA": False},
        {"TRAINER__COOP__N_CTX": 4},
        {"RUN__TASK": "lodo"},
        {"DATASET__TARGET_DOMAINS": ["cartoon"]},
    ):
        assert config_hash(config(**changes)) == same, changes
    for changes in (
        {"SEED": 2},
        {"OPTIM__LR": 0.02},
        {"TRAINER__GOPRO__TAU": 0.2},
        {"TRAINER__NAME": "CoOp"},
        {"DATASET__SOURCE_DOMAINS": ("sketch", "photo")},
        {"DATALOADER__TRAIN_X__BATCH_SIZE": 8},
    ):
        assert config_hash(config(**changes)) != same, changes


def test_differences_name_key_and_both_values():
    other = config(OPTIM__LR=0.02, OUTPUT_DIR="b", OPTIM__NEW="x")
    assert config_differences(CONFIG, other) == [
        "OPTIM.LR: 0.002 there, 0.02 now",
        "OPTIM.NEW: absent there, 'x' now",
    ]
    assert config_differences(CONFIG, config(OUTPUT_DIR="b")) == []


def test_the_folder_above_all_runs_is_no_part_of_a_refined_run():
    def refined(folder):
        return config_hash({"TRAINER": {"NAME": "InMaP", "INMAP": {"FROM": folder, "GAMMA": 0.5}}})

    run = "lodo/icons/GOPro/icons/shots16/line/seed1"
    assert refined(f"output/{run}") == refined(f"/else/where/{run}")
    assert refined(f"output/{run}") != refined(f"output/{run[:-1]}2") != refined("")
