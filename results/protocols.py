"""What a run was trained and tested on, in words and as facts of its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ALL_IMAGES, DOMAINBED = "all-images", "domainbed"  # values of DATASET.PROTOCOL
TEST_PARTS = {  # value of DATASET.TEST_PART -> what is tested of a target under the protocol `domainbed`
    "in": 'the "in" part (80 %)',
    "out": 'the "out" part (20 %)',
    "all": "all",
}
LABEL_FREE_TASKS = {
    "zeroshot": "{tested} tested, no label is trained on",
    "probe": "{tested} tested; probes are trained on a few labelled images",
    "attacks": "{tested} tested, as an attack has changed them; no label is trained on, except by probes",
}
TRANSFER_TASKS = {
    "b2n": "base to new: trained on the base classes, tested on base and on new classes",
    "xd": "cross-dataset: trained on one data set, tested on others",
    "dg": "single-source generalisation: trained on one data set, tested on its variants",
}
DOMAIN_TRANSFER_TASKS = {  # the same where a data set has domains, which then take the place of other data sets
    "b2n": "base to new: trained on the base classes of every domain, tested on base and on new classes",
    "xd": "cross-dataset, by domains: trained on the base classes of some, tested on the new classes of the others",
    "dg": "single-source generalisation, by domains: trained on some, tested on the others",
}
SCENARIO_TASKS = {
    "batch": "{tested} tested, all at once and in random batches",
    "stream": "{tested} tested, all at once and in streams, block by block",
    "online": "{tested} tested, all at once and one at a time in random orders",
}
EVALUATION = "eval"  # task of a record that evaluates the learned parts of another run
NOT_KNOWN = "data that is not recorded"
# Selection rules, which records name; methods add what else they choose, and by what.
NOTHING_LEARNED, LAST = "none", "last"
BEST_ON_VAL = "best_val on source validation images"
BEST_ON_TEST = "best_val on TEST images (diagnostic only)"
RULE_NOT_RECORDED = "not recorded"
NO_LABELS = "no labels"  # why nothing was measured
FILE_NOT_RECORDED = "not recorded: learned parts of a file"


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of config nodes as one dict `{"OPTIM.LR": 0.002, ...}`; tuples become lists."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, (str, int, float)):  # most values, and much faster to tell than a mapping
            flat[name] = value
        elif isinstance(value, Mapping):
            flat.update(flatten_config(value, f"{name}."))
        else:
            flat[name] = list(value) if isinstance(value, (tuple, list)) else value
    return flat


def facts_from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a record that the resolved configuration knows, from any yacs tree with Dassl's keys.

    `RUN.TASK` and `RUN.CONFIG` (set by the command line) name the task and the config; without them the task follows
    from the domains. Protocol and selection rule are the general ones; a trainer that does otherwise overwrites them.
    """
    flat = flatten_config(config)
    source, target = list(flat.get("DATASET.SOURCE_DOMAINS") or ()), list(flat.get("DATASET.TARGET_DOMAINS") or ())
    task = flat.get("RUN.TASK") or task_of(source, target)
    dataset, data_protocol = str(flat.get("DATASET.NAME", "")), str(flat.get("DATASET.PROTOCOL", ""))
    seed, split_seed = int(flat.get("SEED", -1)), int(flat.get("DATASET.SPLIT_SEED", -1))
    best = flat.get("TEST.FINAL_MODEL") == "best_val"
    domainbed = data_protocol == DOMAINBED
    test_part = str(flat["DATASET.TEST_PART"]) if domainbed else ""
    return {
        "method": str(flat.get("TRAINER.NAME", "")),
        "config": str(flat.get("RUN.CONFIG", "")),
        "task": task,
        "dataset": dataset,
        "source_dataset": str(flat.get("RUN.SOURCE") or dataset),
        "protocol": protocol_of(source, target, task, data_protocol, test_part),
        "data_protocol": data_protocol,  # which images of the target are tested
        **({"test_part": test_part, "trial": int(flat["DATASET.TRIAL"])} if domainbed else {}),
        "selection_rule": BEST_ON_VAL if best else LAST,
        "source_domains": source,
        "target_domains": target,
        "class_subset": str(flat.get("DATASET.SUBSAMPLE_CLASSES", "all")),
        "shots": int(flat.get("DATASET.NUM_SHOTS", -1)),
        "seed": seed,
        "split_seed": split_seed if split_seed >= 0 else seed,
        "transductive": False,
    }


def task_of(source: Sequence[str], target: Sequence[str]) -> str:
    """The task that a pair of domain lists amounts to: "fewshot" inside a domain, "lodo" across domains, or ""."""
    if not source or not target:
        return ""
    if set(source) == set(target):
        return "fewshot"
    return "" if set(source) & set(target) else "lodo"


def protocol_of(
    source: Sequence[str], target: Sequence[str], task: str = "", data_protocol: str = "", test_part: str = ""
) -> str:
    """The protocol that a task, or a pair of domain lists, amounts to, in one phrase.

    Args:
        source: source domains; empty for a data set without domains.
        target: target domains.
        task: name of the task, "" for a run by hand.
        data_protocol: DATASET.PROTOCOL, which says what is tested; "" where an old record does not hold it.
        test_part: DATASET.TEST_PART under the protocol `domainbed`.
    """
    if task in LABEL_FREE_TASKS or task in SCENARIO_TASKS:
        whole = data_protocol == ALL_IMAGES if data_protocol else bool(target)
        tested = f"{'every image' if whole else 'the test part'} of {'a domain' if target else 'the data set'} is"
        unseen = "; methods that train on labels train on the other domains" if len(source) and source != target else ""
        return (LABEL_FREE_TASKS | SCENARIO_TASKS)[task].format(tested=tested) + unseen
    if task in TRANSFER_TASKS:
        return (DOMAIN_TRANSFER_TASKS if source else TRANSFER_TASKS)[task]
    if not source or not target:
        return "training split to test split of one data set"
    if set(source) == set(target) and data_protocol == ALL_IMAGES:
        return "inside a domain: every image of it is tested"
    if set(source) == set(target):
        return "inside a domain: trained on its training part, tested on its held-out part"
    if data_protocol == DOMAINBED:
        return (
            'leave one domain out, DomainBed\'s split: trained on the "in" parts (80 %) of the source domains, '
            f'validated on their "out" parts, tested on {TEST_PARTS[test_part]} of the unseen target domain'
        )
    return "leave one domain out: trained on the source domains, tested on all of the unseen target domain"


def protocols(records: Sequence[Mapping[str, Any]]) -> set[str]:
    """The protocols of finished runs."""
    return {
        protocol_of(
            *(run["source_domains"], run["target_domains"], run["task"]),
            *(run.get("data_protocol", ""), run.get("test_part", "")),
        )
        for run in records
    }


def part_name(dataset: str, domains: Sequence[str], subset: str) -> str:
    """A part of a data set, for a column or a source of transfers: `ImageNet`, `Icons/emoji base`."""
    return dataset + ("/" + "+".join(domains) if domains else "") + (f" {subset}" if subset != "all" else "")


def trained_on(facts: Mapping[str, Any]) -> str:
    """What an evaluated checkpoint was trained on, from `trained` of a record: "Icons/line (16 images per class)"."""
    if not facts.get("dataset"):
        return NOT_KNOWN
    domains = "+".join(facts.get("source_domains", ()))
    shots = facts.get("shots", -1)
    details = ["all images" if shots < 1 else f"{shots} images per class"]
    details += [f"{facts['class_subset']} classes"] if facts.get("class_subset", "all") != "all" else []
    details += [f"config {facts['config']}"] if facts.get("config") else []
    return f"{facts['dataset']}{'/' if domains else ''}{domains} ({', '.join(details)})"
