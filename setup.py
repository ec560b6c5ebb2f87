"""Build of `dassl-clip`: the top-level folders of the checkout are the packages of `dassl_clip`."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGES_AT_THE_TOP = (
    "clip", "engine", "trainers", "datasets", "results", "experiments", "api", "checks", "cli", "embedded", "configs"
)  # fmt: skip
PACKAGES = {
    f"dassl_clip.{package}": package.replace(".", "/")
    for room in PACKAGES_AT_THE_TOP
    for package in (room, *(f"{room}.{name}" for name in find_packages(room)))
}

PACKAGES["dassl_clip"] = "api/top"  # names for `from dassl_clip import ...`
METHODS = sorted({file.parent.name for file in Path(__file__).parent.glob("configs/trainers/*/*.yaml")})

setup(
    name="dassl-clip",
    version="0.1.0",
    description=f"CLIP adaptation under domain shift for the Dassl toolbox: {', '.join(METHODS)}",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE", "NOTICE.md"],
    python_requires=">=3.10",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)],
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "": ["py.typed"],
        "dassl_clip.clip": ["*.json"],
        "dassl_clip.datasets": ["lists/*.json"],
        "dassl_clip.results": ["published/*.json", "checks/*.json", "worlds/*.jsonl.gz"],
        "dassl_clip.embedded": ["own_styles.json", "icons/*.*", "icons/*/*/*", "clip/*"],
        "dassl_clip.configs": ["**/*.yaml"],
    },
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "open_clip_torch>=3.1",
        "yacs>=0.1.8",
        "PyYAML>=6.0",
        "tabulate>=0.9",
        "tqdm>=4.60",
        "numpy>=1.24",
        "Pillow>=10.0",
        "safetensors>=0.4",
        "filelock>=3.12",
        "platformdirs>=3.0",
        "shtab>=1.7",
        "scipy>=1.10",
        "ftfy>=6.1",
        "tensorboard>=2.12",
    ],
    extras_require={
        "test": [
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "ruff>=0.6",
            "mypy>=1.11",
            "hypothesis>=6.100",
            "setuptools>=70",
            "matplotlib>=3.8",
            "scikit-learn>=1.3",
            "submitit>=1.5",
            "pyarrow>=14.0.1",
            "nbclient>=0.8",
            "ipykernel>=6.20",
        ],
        "toolbox": ["dassl-toolbox-embedded>=0.6.3"],  # leave it out where Dassl.pytorch is installed
        "hf": ["transformers>=4.40", "sentencepiece>=0.1.99"],
        "hub": ["pyarrow>=14.0.1", "huggingface_hub>=0.24"],
        "build": ["resvg_py>=0.1"],
        "plots": ["matplotlib>=3.8", "scikit-learn>=1.3"],
        "umap": ["umap-learn>=0.5.4"],
        "slurm": ["submitit>=1.5"],
    },
    entry_points={"console_scripts": ["dassl-clip = dassl_clip.cli.__main__:main"]},
)
