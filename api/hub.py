"""Classifiers on the Hugging Face hub: the hub's own mixin around a fitted classifier.

A repository holds the file that `save` writes, a model card that the record makes, and the record's facts as JSON.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dassl_clip.results.errors import UserError

try:
    from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
except ImportError as error:
    raise UserError("the Hugging Face hub needs the package huggingface_hub: pip install huggingface_hub") from error

if TYPE_CHECKING:
    from .classifiers import Classifier

FILE = "head.safetensors"
MOST_NAMES = 50
T = TypeVar("T")

logger = logging.getLogger(__name__)


class HubModel(ModelHubMixin):  # type: ignore[misc]  # the library is optional
    """A fitted classifier with the methods of the hub's mixin.

    The classifiers do not inherit from the mixin: it would be imported with them, and it keeps constructor arguments as
    a configuration of its own beside `get_params`.

    Attributes:
        classifier: The fitted one.
    """

    def __init__(self, classifier: "Classifier"):
        self.classifier = classifier

    def _save_pretrained(self, save_directory: Path) -> None:
        self.classifier.save(save_directory / FILE)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **download: Any) -> "HubModel":
        from .classifiers import Classifier

        place = Path(model_id)
        file = place / FILE if place.is_dir() else Path(hf_hub_download(model_id, FILE, **download))
        if not file.is_file():
            raise UserError(f"there is no {FILE} in {place}; push_to_hub writes one")
        return cls(Classifier.opened(file))

    def facts(self) -> dict[str, Any]:
        """What `config.json` of the repository says."""
        record = self.classifier.record_
        return {key: record[key] for key in ("method", "config", "backbone", "prompt", "seed")} | {
            "classes": self.classifier.classes_.tolist()
        }

    def generate_model_card(self, repo_id: str | None = None, **_: Any) -> ModelCard:
        """The model card, made of the record."""
        record, names = self.classifier.record_, list(self.classifier.classes_)
        backbone = record["backbone"]
        more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
        measured = [f"{name} {found['accuracy']:.1f} %" for name, found in record["metrics"].items()]
        rows = {
            "method": record["method"],
            "settings": record["config"],
            "backbone": f"{backbone['name']}, weights {backbone['weights_hash']}",
            "prompt": record["prompt"],
            "data": record["protocol"],
            "selection rule": record["selection_rule"],
            "accuracy": ", ".join(measured) or f"not measured ({record.get('untested', 'no test')})",
            "seed": record["seed"],
            "fitted": record["finished_at"],
            f"{len(names)} classes": ", ".join(names[:MOST_NAMES]) + more,
        }
        table = "\n".join(f"| {key} | {str(value).replace('|', '/')} |" for key, value in rows.items())
        repo = repo_id or "user/repo"
        return ModelCard(
            "---\nlibrary_name: dassl-clip\npipeline_tag: image-classification\ntags:\n- clip\n---\n\n"
            f"# {repo}\n\nThe frozen backbone is not in this repository; what was learned fits these weights alone.\n\n"
            f"| | |\n|---|---|\n{table}\n\n"
            f'```python\nfrom dassl_clip import load\n\nload("{repo}").predict(["x.jpg"])\n```\n'
        )


def push(clf: "Classifier", repo: str, options: dict[str, Any]) -> str:
    """Make a repository, if it is absent, and upload a fitted classifier; returns the address of the commit.

    Raises:
        UserError: The hub cannot be reached, or refuses.
    """
    model = HubModel(clf)
    options = {"config": model.facts(), "commit_message": f"Add {clf.record_['method']}"} | options
    options["model_card_kwargs"] = {"repo_id": repo}
    refusal = f"{repo} cannot be written on the Hugging Face hub"
    return str(_asked(lambda: model.push_to_hub(repo, **options), refusal))


def fetch(repo: str, options: dict[str, Any]) -> "Classifier":
    """The classifier of a repository, from the hub or its local cache.

    Raises:
        UserError: The hub cannot be reached, or there is no such repository or file.
    """
    refusal = f"there is no file or folder {repo}, and the Hugging Face hub gives no {FILE} of it"
    return _asked(lambda: HubModel.from_pretrained(repo, **options), refusal).classifier


def _asked(ask: Callable[[], T], refusal: str) -> T:
    """What the hub answers; whatever its client raises becomes one line, for it changes with the client's version.

    Raises:
        UserError: The hub cannot be reached, or refuses; a keyword is none of the mixin's.
    """
    try:
        return ask()
    except UserError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{refusal}: {line}") from error
