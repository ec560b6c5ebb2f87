"""The surface: importable modules and names, defaults, light imports, errors and lines of every build function."""

import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from yacs.config import CfgNode

from dassl.config import clean_cfg, get_cfg_default

NAMES = {
    "dassl.engine": "TRAINER_REGISTRY build_trainer TrainerX TrainerXU SimpleTrainer TrainerBase SimpleNet dg",
    "dassl.engine.trainer": "TrainerX TrainerXU SimpleTrainer TrainerBase SimpleNet",
    "dassl.engine.build": "TRAINER_REGISTRY build_trainer",
    "dassl.engine.dg": "Vanilla CrossGrad DAELDG DomainMix",
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.config.defaults": "_C",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "DataManager DatasetWrapper build_data_loader build_dataset build_sampler "
    "build_transform INTERPOLATION_MODES",
    "dassl.data.datasets": "DATASET_REGISTRY build_dataset Datum DatasetBase",
    "dassl.data.datasets.build": "DATASET_REGISTRY build_dataset",
    "dassl.data.datasets.base_dataset": "Datum DatasetBase",
    "dassl.data.datasets.dg": "PACS VLCS DigitsDG OfficeHomeDG",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.data.transforms.transforms": "build_transform INTERPOLATION_MODES AVAI_CHOICES _build_transform_test "
    "_build_transform_train Random2DTranslation InstanceNormalization Cutout GaussianNoise ImageNetPolicy",
    "dassl.data.samplers": "build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler",
    "dassl.evaluation": "build_evaluator EVALUATOR_REGISTRY EvaluatorBase Classification",
    "dassl.metrics": "compute_accuracy compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.optimizer": "build_optimizer AVAI_OPTIMS",
    "dassl.optim.lr_scheduler": "build_lr_scheduler ConstantWarmupScheduler LinearWarmupScheduler AVAI_SCHEDS",
    "dassl.optim.radam": "RAdam",
    "dassl.utils": "mkdir_if_missing check_isfile read_json write_json set_random_seed read_image collect_env_info "
    "listdir_nohidden get_most_similar_str_to_a_from_b check_availability tolist_if_not download_url Logger "
    "setup_logger AverageMeter MetricMeter Registry save_checkpoint load_checkpoint resume_from_checkpoint "
    "load_pretrained_weights count_num_param open_all_layers open_specified_layers init_network_weights",
    "dassl.utils.tools": "mkdir_if_missing check_isfile read_json write_json set_random_seed read_image "
    "collect_env_info listdir_nohidden get_most_similar_str_to_a_from_b check_availability tolist_if_not download_url",
    "dassl.utils.meters": "AverageMeter MetricMeter",
    "dassl.utils.logger": "Logger setup_logger",
    "dassl.utils.registry": "Registry",
    "dassl.utils.torchtools": "save_checkpoint load_checkpoint resume_from_checkpoint load_pretrained_weights "
    "count_num_param open_all_layers open_specified_layers init_network_weights",
    "dassl.modeling": "BACKBONE_REGISTRY HEAD_REGISTRY NETWORK_REGISTRY build_backbone build_head build_network "
    "Backbone",
    "dassl.modeling.ops": "MixStyle activate_mixstyle deactivate_mixstyle random_mixstyle crossdomain_mixstyle "
    "run_with_mixstyle run_without_mixstyle mixup ReverseGrad cross_entropy create_onehot",
    "dassl.modeling.ops.utils": "create_onehot sharpen_prob linear_rampup sigmoid_rampup ema_model_update "
    "shuffle_index reverse_index",
}
COOP_FAMILY = {
    "Caltech101", "OxfordPets", "DescribableTextures", "EuroSAT", "Food101", "ImageNet", "ImageNetA", "ImageNetR",
    "ImageNetSketch", "ImageNetV2", "FGVCAircraft", "OxfordFlowers", "StanfordCars", "SUN397", "UCF101", "CoOp",
    "CoCoOp", "ZeroshotCLIP", "ZeroshotCLIP2", "GOPro",
}  # fmt: skip


def leaves(node: CfgNode, prefix: str = "") -> dict:
    """Leaves of a tree by their dotted names."""
    found = {}
    for key, value in node.items():
        if isinstance(value, CfgNode):
            found.update(leaves(value, f"{prefix}{key}."))
        else:
            found[prefix + key] = value
    return found


@pytest.mark.parametrize("module", NAMES)
def test_names_can_be_imported(module):
    loaded = importlib.import_module(module)
    missing = [name for name in NAMES[module].split() if not hasattr(loaded, name)]
    assert missing == []


def test_fresh_import_is_light_and_leaves_logging_and_foreign_names_alone():
    code = (
        "import logging, sys, dassl.engine, dassl.data.data_manager, dassl.evaluation, dassl.modeling.ops\n"
        "heavy = 'torchvision sklearn tensorboard torch.utils.tensorboard gdown pandas tabulate wilds'.split()\n"
        "print([name for name in heavy if name in sys.modules], logging.root.manager.disable, logging.root.level)\n"
        "from dassl.data.datasets import DATASET_REGISTRY as D\n"
        "print(*dassl.engine.TRAINER_REGISTRY.registered_names(), *D.registered_names())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, second = done.stdout.splitlines()
    assert first == f"[] 0 {logging.WARNING}"
    registered = set(second.split())
    assert {"Vanilla", "PACS", "VLCS", "DigitsDG", "OfficeHomeDG"} <= registered
    assert not registered & COOP_FAMILY


def test_defaults_are_the_published_ones():
    published = json.loads((Path(__file__).parent / "cfg_defaults.json").read_text())
    ours = leaves(get_cfg_default())
    assert len(ours) == 135
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in ours.items()} == published
    kinds = {key: {tuple, list} if type(value) is list else {type(value)} for key, value in published.items()}
    assert all(type(ours[key]) in kinds[key] for key in published)


def test_default_tree_is_an_unfrozen_copy():
    first, second = get_cfg_default(), get_cfg_default()
    first.TRAINER.COOP = CfgNode()
    first.DATASET.SUBSAMPLE_CLASSES = "all"
    first.DATASET.SUBSAMPLE_CLASSES = "base"
    first.merge_from_list(["INPUT.SIZE", "(32, 32)", "OPTIM.LR", "0.1", "INPUT.TRANSFORMS", "['random_flip']"])
    assert first.INPUT.SIZE == (32, 32)
    assert first.INPUT.TRANSFORMS == ("random_flip",)
    assert "COOP" not in second.TRAINER and second.INPUT.SIZE == (224, 224)
    with pytest.raises(ValueError, match="Type mismatch"):
        second.merge_from_list(["OPTIM.MAX_EPOCH", "ten"])


def test_clean_cfg_keeps_the_name_and_one_node():
    cfg = get_cfg_default()
    assert clean_cfg(cfg, "DDAIG") is None
    assert set(cfg.TRAINER) == {"NAME", "DDAIG"}
    cfg = get_cfg_default()
    cfg.TRAINER.NAME = "FixMatch"
    clean_cfg(cfg, "")
    assert set(cfg.TRAINER) == {"NAME", "FIXMATCH"}


@pytest.mark.parametrize(
    ("module", "function", "key", "name"),
    [
        ("dassl.engine", "build_trainer", "TRAINER.NAME", "MiniTrainer"),
        ("dassl.data.datasets", "build_dataset", "DATASET.NAME", "ToyImages"),
        ("dassl.evaluation", "build_evaluator", "TEST.EVALUATOR", "Classification"),
    ],
)
def test_build_functions_print_a_line_and_name_the_closest(module, function, key, name, make_cfg, capsys):
    build = getattr(importlib.import_module(module), function)
    build(make_cfg(key, name))
    kind = function.removeprefix("build_")
    assert capsys.readouterr().out.splitlines()[0] == f"Loading {kind}: {name}"
    build(make_cfg(key, name, "VERBOSE", False))
    assert "Loading" not in capsys.readouterr().out
    with pytest.raises(ValueError, match=rf"\[{name}x\].*do you mean \[{name}\]"):
        build(make_cfg(key, f"{name}x"))


@pytest.mark.parametrize("kind", ["backbone", "head", "network"])
def test_model_registries_pass_keywords_on(kind, capsys):
    module = importlib.import_module("dassl.modeling")
    registry, build = getattr(module, f"{kind.upper()}_REGISTRY"), getattr(module, f"build_{kind}")

    def toy_part(width, **kwargs):
        return width, kwargs

    registry.register(toy_part, force=True)
    assert build("toy_part", width=3, pretrained=False) == (3, {"pretrained": False})
    assert capsys.readouterr().out == f"{kind.capitalize()}: toy_part\n"
    build("toy_part", verbose=False, width=3)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="do you mean"):
        build("toy_parts")
