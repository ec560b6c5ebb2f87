"""Archives from Google Drive, unpacked without leaving their folder."""

from __future__ import annotations

import hashlib
import os

from dassl.utils import mkdir_if_missing
from dassl.utils.archives import unpack_archive
from dassl.utils.errors import MissingFileError
from dassl.utils.switches import is_on


def require_folder(folder: str, url: str, fetchable: bool = True) -> bool:
    """Whether a data set's folder is missing and may be downloaded.

    Args:
        folder: The folder of the data set.
        url: Where its archive lies, or the page that says so.
        fetchable: The toolbox can fetch that archive by itself.

    Raises:
        FileNotFoundError: The folder is missing, and is not fetchable or DASSL_DOWNLOAD is not set.
    """
    if os.path.isdir(folder):
        return False
    if fetchable and is_on("DASSL_DOWNLOAD"):
        return True
    offer = "; DASSL_DOWNLOAD=1 lets the toolbox fetch it (needs gdown)" if fetchable else ""
    raise MissingFileError(
        f'The data set\'s folder "{folder}" does not exist. Fetch {url}, unpack it there, or set DATASET.ROOT to the '
        f'folder that holds "{os.path.basename(folder)}"{offer}.'
    )


def download_and_unpack(url: str, dst: str, from_gdrive: bool = True, sha256: str = "") -> None:
    """Downloads an archive from Google Drive to `dst` and unpacks it into the folder of `dst`.

    Raises:
        NotImplementedError: Another source, or an ending other than .zip, .tar, .tar.gz.
        ModuleNotFoundError: gdown is not installed.
        ValueError: Nothing or a web page came, the checksum differs, or the archive is refused (see
            `unpack_archive`).
    """
    folder = os.path.dirname(dst) or "."
    mkdir_if_missing(folder)
    if not from_gdrive:
        raise NotImplementedError(f"Only downloads from Google Drive are supported, not {url}")
    if not dst.endswith((".zip", ".tar", ".tar.gz")):
        raise NotImplementedError(f"Only .zip, .tar and .tar.gz can be unpacked, not {dst}")
    try:
        import gdown
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"Downloading from Google Drive needs gdown: pip install gdown, or fetch {url} by hand to {dst}",
            name="gdown",
        ) from error
    part = os.path.join(folder, f"part-{os.path.basename(dst)}")  # `dst` appears only when it is whole
    gdown.download(url, part, quiet=False)
    _check_archive(part, url)
    if sha256:
        _check_sum(part, sha256)
    print("Extracting file ...")
    unpack_archive(part, folder)  # refuses one that is cut
    os.replace(part, dst)
    print(f"File extracted to {folder}")


def _check_archive(path: str, url: str) -> None:
    if not os.path.isfile(path):
        raise ValueError(f"{url} gave no file; fetch it by hand")
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        os.remove(path)
        raise ValueError(f"{url} gave a web page in place of the archive (a quota, or a login); fetch it by hand")


def _check_sum(path: str, expected: str) -> None:
    with open(path, "rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 20):
            found.update(block)
    if found.hexdigest() != expected.lower():
        raise ValueError(f'The checksum of "{path}" is {found.hexdigest()}, expected {expected}: fetch it again')
