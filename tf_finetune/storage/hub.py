"""URLs in TF-Hub's protocol, through tensorflow_hub.

tfhub.dev has forwarded to Kaggle since November 2023, and Kaggle answers this protocol for what was on TF-Hub.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

from tf_finetune.storage import failures
from tf_finetune.storage.failures import FetchError
from tf_finetune.storage.handles import Handle
from tf_finetune.storage.locks import Fetched

log = logging.getLogger(__name__)


def fetch(handle: Handle, aside: Path) -> Fetched:
    """Has tensorflow_hub fetch what a URL names; a TFHUB_CACHE_DIR of the user's is asked first, and used.

    Raises:
        FetchError: tensorflow_hub cannot be imported, or failed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pkg_resources announces its own end.
            import tensorflow_hub
    except ImportError as error:
        what = "setuptools<81" if error.name == "pkg_resources" else error.name or "tensorflow-hub"
        raise FetchError(
            f'tensorflow_hub cannot be imported without {error.name} (run: pip install "{what}")'
        ) from error
    log.info("Resolving %s", handle.shown)
    try:
        with _settings(aside / "tfhub"):
            return Fetched(Path(tensorflow_hub.resolve(handle.text)).absolute(), handle.text)
    except Exception as error:  # TensorFlow's among others.
        raise FetchError(failures.cause_of(error)) from error


@contextlib.contextmanager
def _settings(folder: Path) -> Iterator[None]:
    """Makes tensorflow_hub give up in time, and put files into `folder` unless the user has said where."""
    wanted = {
        "TFHUB_CACHE_DIR": os.environ.get("TFHUB_CACHE_DIR") or str(folder),
        "TFHUB_MODEL_LOAD_FORMAT": "COMPRESSED",  # The other gives gs:// locations, which are on no disk.
    }
    earlier = {name: os.environ.get(name) for name in wanted}
    timeout = socket.getdefaulttimeout()
    os.environ.update(wanted)
    socket.setdefaulttimeout(failures.TIMEOUT)  # It would wait for ever.
    try:
        yield
    finally:
        socket.setdefaulttimeout(timeout)
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
