"""Has kagglehub fetch one model, and writes where it is or why it failed: `kaggle_download.py HANDLE FILE SECONDS`."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(handle: str, file: str, seconds: str) -> None:
    """Fetches the model of a handle; `file` gets its folder, or what went wrong, as JSON."""
    try:
        _limit_waiting(float(seconds))
        import kagglehub

        told = {"folder": kagglehub.model_download(handle)}
    except Exception as error:
        told = _told(error)
    Path(file).write_text(json.dumps(told), encoding="utf-8")


def _limit_waiting(seconds: float) -> None:
    """Has requests give up after so many seconds without a byte where its caller sets no limit: kagglehub sets none."""
    from requests.adapters import HTTPAdapter

    send = HTTPAdapter.send

    def limited(self, request, stream=False, timeout=None, *rest, **named):
        return send(self, request, stream, timeout or seconds, *rest, **named)

    HTTPAdapter.send = limited


def _told(error: BaseException) -> dict:
    """Returns what is to be known of an exception and of those behind it."""
    kinds, status, seen = [], None, []
    pending = [error]
    while pending:
        found = pending.pop(0)
        if found in seen:
            continue
        seen.append(found)
        kinds += [kind.__name__ for kind in type(found).__mro__]
        status = status or getattr(getattr(found, "response", None), "status_code", None)
        pending += [one for one in (found.__cause__, found.__context__) if one is not None]
    return {"kinds": kinds, "status": status, "message": str(error)}


if __name__ == "__main__":
    main(*sys.argv[1:])
