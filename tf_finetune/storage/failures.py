"""Why a backbone could not be fetched, in a few words, and the ways out."""

from __future__ import annotations

import errno
import http.client
import os
import socket
import ssl
import tarfile
import urllib.error
import zlib

from tf_finetune import catalog
from tf_finetune.errors import BackboneError, listed
from tf_finetune.storage.handles import Handle, is_archive
from tf_finetune.storage.places import redacted

TIMEOUT = 60.0  # Seconds without a byte, after which a server is given up.

# Characters, so that no message outgrows what SageMaker shows.
_ALL_CAUSES, _NAME = 420, 120
_CUT_SHORT = "the answer broke off before its end"
_NO_TARBALL = "what the server sent is not a whole tarball"


class FetchError(Exception):
    """What came of trying one place; its text is a clause that follows the handle.

    Attributes:
        is_foreign: The place was reached, and what it holds is no usable backbone.
    """

    def __init__(self, cause: str, is_foreign: bool = False) -> None:
        super().__init__(cause)
        self.is_foreign = is_foreign


def unfetched(handle: Handle, causes: list[str], task: str | None) -> BackboneError:
    """Returns the one error for a handle that could be had from none of the places that were tried.

    Args:
        handle: What was asked for.
        causes: Of each place in turn, why it did not serve.
        task: "image" or "text", as far as that is known.
    """
    packaged = [card.id for card in catalog.cards(task) if card.handle.startswith(catalog.PACKAGED)]
    mirrored = (handle.name if is_archive(handle.name) else f"{handle.name}.tar.gz")[:_NAME]
    needs = "needs" if len(packaged) == 1 else "need"
    causes = [redacted(cause)[: _ALL_CAUSES // len(causes)] for cause in causes]
    return BackboneError(
        f"Backbone {handle.shown} could not be fetched: {'; '.join(causes)}. "
        "Give a local folder or .tar.gz of the SavedModel as --backbone; or set TF_FINETUNE_MIRROR to a folder, an "
        f"http(s):// or an s3:// place that holds {mirrored}; or use {listed(packaged, separator=' or ')}, "
        f"which {needs} no hub."
    )


def cause_of(error: BaseException) -> str:
    """Returns in a few words why a download failed."""
    if isinstance(error, FetchError):
        return str(error)
    if isinstance(error.__context__, tarfile.ReadError):  # tensorflow_hub says less than what it saw.
        return _NO_TARBALL
    if isinstance(error, urllib.error.HTTPError):
        return answered(error.code, error.reason)
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return f"no space is left on the disk of {error.filename or 'the cache'}"
    if isinstance(error, ssl.SSLError):
        return untrusted(getattr(error, "verify_message", "") or error.reason or str(error))
    phrases = (
        (TimeoutError, f"no answer within {TIMEOUT:g} seconds"),
        (socket.gaierror, "no host of that name was found, or there is no network"),
        (http.client.IncompleteRead, _CUT_SHORT),
        ((EOFError, zlib.error), _NO_TARBALL),
        (ConnectionError, f"no connection ({getattr(error, 'strerror', None) or error})"),
        (ValueError, f"it is not a valid URL or not a safe tarball ({error})"),
    )
    words = next((words for kind, words in phrases if isinstance(error, kind)), f"{type(error).__name__}: {error}")
    return redacted(words)[:300]


def answered(status: int, reason: str = "") -> str:
    """Returns what an HTTP status means for who wants a backbone."""
    meaning = {401: ": it wants a login", 404: ": it has no such model", 429: ": too many requests; try later"}
    meaning[403] = ": it wants a login, or the model is no longer given away"
    words = meaning.get(status, ": its own fault; try later" if status >= 500 else "")
    return f"the server answered {status} {reason or http.client.responses.get(status, '')}".rstrip() + words


def untrusted(reason: str) -> str:
    """Returns what a failed TLS connection means."""
    given = os.environ.get("SSL_CERT_FILE") or "not set"
    return (
        f"the TLS connection failed ({reason}). Where a proxy or mirror has a certificate of your own organisation, "
        f"name its bundle in SSL_CERT_FILE ({given})"
    )
