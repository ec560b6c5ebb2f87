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

# What a module of the original holds at its top, defined there or imported.
NAMES = {
    "dassl.config": "cfg_default get_cfg_default clean_cfg",
    "dassl.config.defaults": "_C CN",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.data_manager": "torch T tabulate TorchDataset read_image build_dataset build_sampler "
    "INTERPOLATION_MODES build_transform build_data_loader DataManager DatasetWrapper",
    "dassl.data.samplers": "copy np random defaultdict Sampler RandomSampler SequentialSampler RandomDomainSampler "
    "SeqDomainSampler RandomClassSampler build_sampler",
    "dassl.data.datasets": "DATASET_REGISTRY build_dataset Datum DatasetBase PACS VLCS DigitsDG OfficeHomeDG "
    "OfficeHome Office31 VisDA17 DomainNet miniDomainNet",
    "dassl.data.datasets.build": "Registry check_availability DATASET_REGISTRY build_dataset",
    "dassl.data.datasets.base_dataset": "os random osp tarfile zipfile defaultdict check_isfile Datum DatasetBase",
    "dassl.data.datasets.da": "OfficeHome Office31 VisDA17 DomainNet miniDomainNet",
    "dassl.data.datasets.da.office_home": "osp listdir_nohidden DATASET_REGISTRY Datum DatasetBase OfficeHome",
    "dassl.data.datasets.da.office31": "osp listdir_nohidden DATASET_REGISTRY Datum DatasetBase Office31",
    "dassl.data.datasets.da.visda17": "osp DATASET_REGISTRY Datum DatasetBase VisDA17",
    "dassl.data.datasets.da.domainnet": "osp DATASET_REGISTRY Datum DatasetBase DomainNet",
    "dassl.data.datasets.da.mini_domainnet": "osp DATASET_REGISTRY Datum DatasetBase miniDomainNet",
    "dassl.data.datasets.dg": "PACS VLCS DigitsDG OfficeHomeDG",
    "dassl.data.datasets.dg.pacs": "osp DATASET_REGISTRY Datum DatasetBase PACS",
    "dassl.data.datasets.dg.vlcs": "glob osp listdir_nohidden DATASET_REGISTRY Datum DatasetBase VLCS",
    "dassl.data.datasets.dg.digits_dg": "glob osp listdir_nohidden DATASET_REGISTRY Datum DatasetBase DigitsDG",
    "dassl.data.datasets.dg.office_home_dg": "DATASET_REGISTRY OfficeHomeDG",
    "dassl.data.transforms": "INTERPOLATION_MODES build_transform",
    "dassl.data.transforms.transforms": "np random torch F Resize Compose ToTensor Normalize CenterCrop RandomCrop "
    "ColorJitter RandomApply GaussianBlur RandomGrayscale RandomResizedCrop RandomHorizontalFlip InterpolationMode "
    "SVHNPolicy CIFAR10Policy ImageNetPolicy RandAugment RandAugment2 RandAugmentFixMatch AVAI_CHOICES "
    "INTERPOLATION_MODES Random2DTranslation InstanceNormalization Cutout GaussianNoise build_transform "
    "_build_transform_train _build_transform_test",
    "dassl.data.transforms.autoaugment": "np random Image ImageOps ImageEnhance ImageNetPolicy CIFAR10Policy "
    "SVHNPolicy",
    "dassl.data.transforms.randaugment": "np random torch PIL RandAugment RandAugment2 RandAugmentFixMatch",
    "dassl.engine": "TRAINER_REGISTRY build_trainer TrainerX TrainerXU TrainerBase SimpleTrainer SimpleNet Vanilla "
    "CrossGrad DAELDG DomainMix SourceOnly FixMatch",
    "dassl.engine.build": "Registry check_availability TRAINER_REGISTRY build_trainer",
    "dassl.engine.trainer": "time np osp datetime OrderedDict torch nn tqdm SummaryWriter DataManager "
    "build_optimizer build_lr_scheduler MetricMeter AverageMeter tolist_if_not count_num_param load_checkpoint "
    "save_checkpoint mkdir_if_missing resume_from_checkpoint load_pretrained_weights build_head build_backbone "
    "build_evaluator SimpleNet TrainerBase SimpleTrainer TrainerX TrainerXU",
    "dassl.engine.dg": "Vanilla CrossGrad DAELDG DomainMix",
    "dassl.engine.dg.vanilla": "F TRAINER_REGISTRY TrainerX compute_accuracy Vanilla",
    "dassl.engine.dg.crossgrad": "torch F build_optimizer build_lr_scheduler count_num_param TRAINER_REGISTRY "
    "TrainerX SimpleNet CrossGrad",
    "dassl.engine.dg.domain_mix": "torch F TRAINER_REGISTRY TrainerX compute_accuracy DomainMix",
    "dassl.engine.dg.daeldg": "torch nn DataManager build_optimizer build_lr_scheduler count_num_param "
    "TRAINER_REGISTRY TrainerX SimpleNet build_transform create_onehot Experts DAELDG",
    "dassl.engine.da": "SourceOnly",
    "dassl.engine.da.source_only": "F TRAINER_REGISTRY TrainerXU compute_accuracy SourceOnly",
    "dassl.engine.ssl": "FixMatch",
    "dassl.engine.ssl.fixmatch": "torch F DataManager TRAINER_REGISTRY TrainerXU compute_accuracy build_transform "
    "FixMatch",
    "dassl.evaluation": "build_evaluator EVALUATOR_REGISTRY EvaluatorBase Classification",
    "dassl.evaluation.build": "Registry check_availability EVALUATOR_REGISTRY build_evaluator",
    "dassl.evaluation.evaluator": "np osp OrderedDict defaultdict torch f1_score confusion_matrix "
    "EVALUATOR_REGISTRY EvaluatorBase Classification",
    "dassl.metrics": "compute_accuracy compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.metrics.accuracy": "compute_accuracy",
    "dassl.metrics.distance": "torch F compute_distance_matrix cosine_distance euclidean_squared_distance",
    "dassl.modeling": "HEAD_REGISTRY build_head NETWORK_REGISTRY build_network BACKBONE_REGISTRY Backbone "
    "build_backbone",
    "dassl.modeling.backbone": "build_backbone BACKBONE_REGISTRY Backbone resnet18 resnet34 resnet50 resnet101 "
    "resnet152 resnet18_ms_l1 resnet18_ms_l12 resnet18_ms_l123 resnet50_ms_l1 resnet50_ms_l12 resnet50_ms_l123 "
    "resnet101_ms_l1 resnet101_ms_l12 resnet101_ms_l123 resnet18_efdmix_l1 resnet18_efdmix_l12 resnet18_efdmix_l123 "
    "resnet50_efdmix_l1 resnet50_efdmix_l12 resnet50_efdmix_l123 resnet101_efdmix_l1 resnet101_efdmix_l12 "
    "resnet101_efdmix_l123 wide_resnet_16_4 wide_resnet_28_2 cnn_digitsdg cnn_digitsingle",
    "dassl.modeling.backbone.build": "Registry check_availability BACKBONE_REGISTRY build_backbone",
    "dassl.modeling.backbone.backbone": "nn Backbone",
    "dassl.modeling.backbone.resnet": "nn BACKBONE_REGISTRY Backbone ResNet BasicBlock Bottleneck conv3x3 "
    "init_pretrained_weights resnet18 resnet50",
    "dassl.modeling.backbone.wide_resnet": "torch nn F BACKBONE_REGISTRY Backbone WideResNet wide_resnet_16_4 "
    "wide_resnet_28_2",
    "dassl.modeling.backbone.cnn_digitsdg": "cnn_digitsdg",
    "dassl.modeling.backbone.cnn_digitsingle": "cnn_digitsingle",
    "dassl.modeling.head": "HEAD_REGISTRY build_head mlp",
    "dassl.modeling.head.build": "Registry check_availability HEAD_REGISTRY build_head",
    "dassl.modeling.network": "NETWORK_REGISTRY build_network",
    "dassl.modeling.network.build": "Registry check_availability NETWORK_REGISTRY build_network",
    "dassl.modeling.ops": "mixup EFDMix random_efdmix activate_efdmix run_with_efdmix deactivate_efdmix "
    "crossdomain_efdmix run_without_efdmix MixStyle random_mixstyle activate_mixstyle run_with_mixstyle "
    "deactivate_mixstyle crossdomain_mixstyle run_without_mixstyle ReverseGrad cross_entropy create_onehot",
    "dassl.modeling.ops.efdmix": "random contextmanager torch nn EFDMix run_with_efdmix run_without_efdmix",
    "dassl.modeling.ops.mixstyle": "random contextmanager torch nn MixStyle run_with_mixstyle run_without_mixstyle",
    "dassl.modeling.ops.mixup": "torch mixup",
    "dassl.modeling.ops.reverse_grad": "torch nn ReverseGrad",
    "dassl.modeling.ops.cross_entropy": "torch F cross_entropy",
    "dassl.modeling.ops.utils": "torch np create_onehot sharpen_prob linear_rampup sigmoid_rampup ema_model_update "
    "shuffle_index reverse_index",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.optimizer": "warnings torch nn RAdam AVAI_OPTIMS build_optimizer",
    "dassl.optim.lr_scheduler": "torch _LRScheduler AVAI_SCHEDS _BaseWarmupScheduler ConstantWarmupScheduler "
    "LinearWarmupScheduler build_lr_scheduler",
    "dassl.optim.radam": "math torch Optimizer RAdam AdamW",
    "dassl.utils": "mkdir_if_missing check_isfile read_json write_json set_random_seed download_url read_image "
    "collect_env_info listdir_nohidden get_most_similar_str_to_a_from_b check_availability tolist_if_not Logger "
    "setup_logger AverageMeter MetricMeter Registry save_checkpoint load_checkpoint resume_from_checkpoint "
    "open_all_layers open_specified_layers count_num_param load_pretrained_weights init_network_weights",
    "dassl.utils.tools": "os sys json time errno np random osp warnings difflib torch PIL Image mkdir_if_missing",
    "dassl.utils.logger": "os sys time osp mkdir_if_missing Logger setup_logger",
    "dassl.utils.meters": "defaultdict torch AverageMeter MetricMeter",
    "dassl.utils.torchtools": "pickle warnings partial OrderedDict osp torch nn mkdir_if_missing save_checkpoint "
    "load_checkpoint resume_from_checkpoint open_all_layers open_specified_layers count_num_param "
    "load_pretrained_weights init_network_weights",
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


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in NAMES for name in NAMES[module].split()])
def test_9_1_names_can_be_imported(module, name):
    """(row 9.1) Trainers of others take `MetricMeter`, `SummaryWriter`, `osp`, ... from where the original has them."""
    if name in {"f1_score", "confusion_matrix"}:
        pytest.importorskip("sklearn")
    assert getattr(importlib.import_module(module), name) is not None
    exec(f"from {module} import {name}", {})


def test_9_1_star_imports_and_unknown_names():
    space = {}
    exec("from dassl.engine.trainer import *\nfrom dassl.engine import *\nfrom dassl.modeling.ops import *", space)
    assert {"torch", "nn", "SummaryWriter", "MetricMeter", "Vanilla", "FixMatch", "EFDMix"} <= set(space)
    with pytest.raises(ImportError, match="nothing_of_that_name"):
        exec("from dassl.engine.trainer import nothing_of_that_name", {})
    assert not hasattr(importlib.import_module("dassl.data.data_manager"), "nothing_of_that_name")


def test_9_1_what_is_optional_is_asked_for_where_it_is_used():
    base = importlib.import_module("dassl.data.datasets.base_dataset")
    try:
        import gdown
    except ModuleNotFoundError:
        with pytest.raises(ModuleNotFoundError, match="gdown"):
            base.gdown  # noqa: B018
    else:
        assert base.gdown is gdown


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
    assert {"Vanilla", "FixMatch", "SourceOnly", "PACS", "VLCS", "DigitsDG", "OfficeHomeDG"} <= registered
    assert {"OfficeHome", "Office31", "VisDA17", "DomainNet", "miniDomainNet"} <= registered
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
