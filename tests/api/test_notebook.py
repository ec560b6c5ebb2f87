"""The notebook runs offline from its first cell to its last, and README.md shows its first cell of code."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "embedded").symlink_to(ROOT / "embedded")
    place = tmp_path / "docs" / "notebooks"
    place.mkdir(parents=True)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(place)}}).execute()
    assert len(notebook.cells) == 5 and (place / "head.safetensors").is_file()
    texts = [cell.outputs[-1]["data"]["text/plain"] for cell in notebook.cells[1:]]
    assert "'key'" in texts[0] and texts[2].count("fish") >= 5 and float(texts[3]) > 0.85


def test_the_readme_shows_its_first_cell():
    import json

    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = next(cell for cell in cells if cell["cell_type"] == "code")
    shown = "".join(code["source"]).replace("../../embedded", "embedded")
    assert f"```python\n{shown}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")
