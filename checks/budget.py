"""The information budget: what the outcomes of the checks say that a method reads, in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .suite import FAILS, Result

ASKED = ("labels.train", "labels.val", "labels.selection", "labels.scoring", "images.batch", "images.swapped",
         "images.order", "images.past", "images.prior", "classes.names")  # fmt: skip


def budget(results: Sequence[Result]) -> list[str]:
    """What a method reads, from the results of its checks; nothing is taken from what it says of itself.

    Returns:
        Entries such as "training labels"; empty where not every check that is needed was made.
    """
    by_name: Mapping[str, Result] = {result.name: result for result in results}
    if not by_name.keys() >= set(ASKED):
        return []
    number = {name: by_name[name].numbers for name in ASKED}
    reads = []
    if number["labels.train"].get("reads"):
        reads.append("training labels")
    purposes = [word for word in ("settings", "epoch") if number["labels.val"].get(word)]
    selects = "validation" in str(number["labels.val"].get("rule", ""))
    if purposes[:1] == ["settings"] or selects:
        reads.append(f"validation labels ({'selects settings' if selects else 'trains on them'})")
    elif number["labels.val"].get("epoch") and "validation" in str(number["labels.val"].get("final", "")):
        reads.append("validation labels (selects the epoch)")
    if any(by_name[name].verdict == FAILS for name in ("labels.selection", "labels.scoring")):
        reads.append("TEST LABELS")
    images = number["images.past"].get("reads", "none")
    if by_name["images.batch"].verdict == FAILS:
        images = "batch"
    words = {"all": "all test images", "past": "past test images", "batch": "the other images of a batch"}
    if images in words:
        reads.append(f"unlabelled: {words[images]}")
    if number["images.order"].get("scores"):
        reads.append("the order of the test images")
    if number["images.prior"].get("assumes"):
        reads.append("equal class sizes")
    if number["classes.names"].get("reads"):
        reads.append("class names" if reads else "class names only")
    return reads or ["images of the test alone"]
