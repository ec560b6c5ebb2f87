"""Classifiers on the Hugging Face hub: the exported file, and a model card that its record makes."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl_clip.results.errors import UserError
from dassl_clip.results.files import write_text_atomically

if TYPE_CHECKING:
    from .classifiers import Classifier

FILE, CARD = "head.safetensors", "README.md"
MOST_NAMES = 50


def card(clf: "Classifier", repo: str) -> str:
    """The text of a model card."""
    record, names = clf.record_, list(clf.classes_)
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
    return (
        "---\nlibrary_name: dassl-clip\npipeline_tag: image-classification\ntags:\n- clip\n---\n\n"
        f"# {repo}\n\nThe frozen backbone is not in this repository; what was learned fits these weights alone.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f'```python\nfrom dassl_clip import load\n\nload("{repo}").predict(["x.jpg"])\n```\n'
    )


def push(clf: "Classifier", repo: str, options: dict[str, Any]) -> str:
    """Make a repository, if it is absent, and upload file and card; returns its address.

    Raises:
        UserError: The hub cannot be reached, or refuses.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise UserError("push_to_hub needs the package huggingface_hub: pip install huggingface_hub") from error
    with tempfile.TemporaryDirectory() as folder:
        clf.save(Path(folder, FILE))
        write_text_atomically(Path(folder, CARD), card(clf, repo))
        api = HfApi(token=options.pop("token", None))
        try:
            address = str(api.create_repo(repo, exist_ok=True, **options))
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Add {clf.record_['method']}")
        except (OSError, ValueError) as error:
            raise UserError(f"{repo} cannot be written on the Hugging Face hub: {_line(error)}") from error
    return address


def fetch(repo: str, revision: str | None = None) -> Path:
    """The file of a repository, from the hub or its local cache.

    Raises:
        UserError: The hub cannot be reached, or there is no such repository or file.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(f"to load {repo} from the hub needs huggingface_hub: pip install huggingface_hub") from error
    try:
        return Path(hf_hub_download(repo, FILE, revision=revision))
    except (OSError, ValueError) as error:
        raise UserError(
            f"there is no file or folder {repo}, and the Hugging Face hub gives no {FILE} of it: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
