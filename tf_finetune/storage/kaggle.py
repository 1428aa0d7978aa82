"""Models of Kaggle, which serves what was on TF-Hub, through kagglehub.

kagglehub runs in a process of its own: it waits for ever for a server that does not answer, prints to stdout, and is
told by variables of the environment where its files go.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tf_finetune.storage import failures
from tf_finetune.storage.failures import FetchError
from tf_finetune.storage.handles import Handle
from tf_finetune.storage.locks import Fetched

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).parents[1] / "assets" / "kaggle_download.py"
PAGE = "https://www.kaggle.com/models/"
MISSING = 'it needs kagglehub (run: pip install "tf_finetune[kaggle]")'


def is_installed() -> bool:
    """Returns whether there is a kagglehub."""
    return importlib.util.find_spec("kagglehub") is not None


def fetch(handle: Handle, aside: Path) -> Fetched:
    """Has kagglehub fetch what a Kaggle handle names; a KAGGLEHUB_CACHE of the user's is asked first, and used.

    Raises:
        FetchError: kagglehub is missing, or failed.
    """
    if not is_installed():
        raise FetchError(MISSING)
    log.info("Fetching %s from Kaggle", handle.shown)
    told = aside / "told.json"
    own = {"KAGGLEHUB_CACHE": os.environ.get("KAGGLEHUB_CACHE") or str(aside / "kagglehub")}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), handle.text, str(told), str(failures.TIMEOUT)],
        env={**os.environ, **own},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    try:
        answer = json.loads(told.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise FetchError(f"kagglehub ended with exit code {done.returncode} ({last[:200]})") from None
    if "folder" not in answer:
        raise FetchError(_cause(answer))
    folder = Path(answer["folder"]).absolute()
    versioned = handle.text if handle.text.count("/") == 4 else f"{handle.text}/{folder.name}"
    return Fetched(folder, PAGE + versioned)


def _cause(answer: dict[str, Any]) -> str:
    """Returns why kagglehub failed.

    Args:
        answer: `kinds`, the names of the exception's classes and of those behind it; `status`, that of HTTP or None;
            `message`.
    """
    kinds, message = set(answer["kinds"]), " ".join(answer["message"].split())
    if answer["status"] in {401, 403}:
        return (
            f"the server answered {answer['status']}: Kaggle wants you to sign in (KAGGLE_API_TOKEN), or to accept the "
            "model's licence on its page, or there is no such model"
        )
    if answer["status"]:
        return failures.answered(answer["status"])
    phrases = (
        ("SSLError", failures.untrusted(message[-120:])),
        ("ProxyError", "the proxy does not answer; check HTTPS_PROXY"),
        ("Timeout", f"no answer within {failures.TIMEOUT:g} seconds"),
        ("NameResolutionError", "no host of that name was found, or there is no network"),
        ("IncompleteRead", "the answer broke off before its end"),
        ("DataCorruptionError", "what came is not what Kaggle's checksum says"),
        ("ConnectionError", f"no connection ({message[-120:]})"),
    )
    return next((words for kind, words in phrases if kind in kinds), f"{answer['kinds'][0]}: {message[:200]}")
