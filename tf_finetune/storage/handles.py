"""What a handle names, told from its text and from what lies on the disk, without asking any network."""

from __future__ import annotations

import os
import re
import urllib.parse
from dataclasses import dataclass

from tf_finetune import catalog
from tf_finetune.errors import BackboneError
from tf_finetune.storage.places import expanded, redacted

ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")

_DEMAND = "#sha256="
_FRAMEWORKS = {"tensorflow1": "tensorFlow1", "tensorflow2": "tensorFlow2"}  # Kaggle's, of which SavedModels are.
_SLUG = r"[A-Za-z0-9][\w.-]*"
_KAGGLE = re.compile(rf"({_SLUG})/({_SLUG})/(tensorflow[12])/({_SLUG})(?:/([1-9]\d*))?", re.IGNORECASE | re.ASCII)
_KAGGLE_HOSTS = {"kaggle.com", "www.kaggle.com"}
_KAGGLE_FORM = "OWNER/MODEL/tensorFlow2/VARIATION or OWNER/MODEL/tensorFlow2/VARIATION/VERSION"
_SHOWN = 160  # Characters of a handle in a message.


@dataclass(frozen=True)
class Handle:
    """A handle, taken apart.

    Attributes:
        text: A path, a URL, an s3:// location or a Kaggle handle, without the demanded content.
        kind: "local", "archive" (the URL of a tarball), "hub" (a URL in TF-Hub's protocol), "kaggle" or "s3".
        name: What a mirror calls it: the URL without its scheme and query; empty for a local one.
        sha256: The content that it must have, hexadecimal; None for any.
    """

    text: str
    kind: str
    name: str = ""
    sha256: str | None = None

    @property
    def shown(self) -> str:
        """The handle as messages and files may repeat it."""
        return shown(self.text)


def shown(text: str) -> str:
    """Returns a handle as messages may repeat it: in one line, not endless, and without credentials."""
    text = redacted(text)
    return (text if text.isprintable() else repr(text)[1:-1])[:_SHOWN]


def is_archive(name: str) -> bool:
    """Returns whether a file of this name is an archive.

    >>> is_archive("model.TGZ"), is_archive("model.zip")
    (True, False)
    """
    return name.lower().endswith(ARCHIVE_SUFFIXES)


def parse(handle: str) -> Handle:
    """Returns what a handle names. What lies on the disk goes first, so ./ is not needed before a folder's name.

    Raises:
        BackboneError: It is none that can be resolved.

    >>> parse("google/mobilenet-v2/tensorFlow2/035-224/2").name
    'kaggle.com/models/google/mobilenet-v2/tensorFlow2/035-224/2'
    >>> parse("https://tfhub.dev/google/imagenet/resnet_50/feature_vector/5").kind
    'hub'
    """
    if exists(handle):
        return Handle(handle, "local")
    text, demand, sha256 = handle.partition(_DEMAND)
    if demand and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise BackboneError(
            f"Backbone {shown(handle)}: expected 64 hexadecimal digits after {_DEMAND}; received "
            f"{len(sha256)} characters. Give the SHA-256 of the archive, or that of the lock of an earlier download."
        )
    kind, text, name = _kind_of(text)
    return Handle(text, kind, name, sha256.lower() or None)


def exists(handle: str) -> bool:
    """Returns whether a handle is the path of something."""
    return bool(handle) and os.path.exists(expanded(handle))


def is_remote(handle: str) -> bool:
    """Returns whether a handle names something that every machine with a network can fetch.

    >>> is_remote("s3://bucket/model.tar.gz"), is_remote("owner/model/tensorFlow2/large"), is_remote("folder")
    (True, True, False)
    """
    return not exists(handle) and ("://" in handle or bool(_KAGGLE.fullmatch(handle.partition(_DEMAND)[0])))


def _kind_of(text: str) -> tuple[str, str, str]:
    """Returns kind, text and a mirror's name of a handle without its demanded content."""
    if exists(text):
        return "local", text, ""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]+(?=://)", text)
    if scheme and scheme[0].lower() in {"http", "https"}:
        return _of_url(text)
    if re.match("s3:/", text, re.IGNORECASE):
        from tf_finetune import s3  # Only here, for it does not import everywhere.

        where = s3.parse(text)
        return "s3", str(where), f"{where.bucket}/{where.key}".rstrip("/")
    if scheme or "://" in text:
        raise BackboneError(
            f"Backbone {shown(text)}: {text.split('://', maxsplit=1)[0][:20]}:// is not supported. Expected "
            "a folder, a .tar.gz, an http(s):// or s3:// URL, a Kaggle handle or a catalog id. Copy it to this machine "
            "and give the local path."
        )
    found = _KAGGLE.fullmatch(text)
    if found:
        return _of_kaggle(found)
    raise BackboneError(
        f"backbone {shown(text)} is neither a folder, an archive, a URL nor an id of `tf-finetune "
        f"backbones`.{catalog.hint(text)}{_kaggle_hint(text)}"
    )


def _kaggle_hint(text: str) -> str:
    """Returns a sentence on how models of Kaggle are named, for what may be meant as one."""
    is_similar = text.count("/") in {3, 4} and not text.startswith((".", "/", "~"))
    return f" A model of Kaggle that is a SavedModel is named {_KAGGLE_FORM}." if is_similar else ""


def _of_url(text: str) -> tuple[str, str, str]:
    try:
        parts = urllib.parse.urlsplit(text)
        has_host = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        has_host = False
    if not has_host or not text.isprintable() or " " in text:
        raise BackboneError(f"Backbone {shown(text)} is not a valid URL. Expected https://HOST/PATH.")
    if "@" in parts.netloc:
        raise BackboneError(
            f"Backbone {shown(text)}: passwords in URLs are not supported. Fetch it by other means, and "
            "give a local folder or .tar.gz of the SavedModel as --backbone."
        )
    path = parts.path.strip("/")
    if parts.hostname in _KAGGLE_HOSTS and (path == "models" or path.startswith("models/")):
        # The older of Kaggle's two forms has words between.
        short = re.sub(r"/frameworks/|/variations/|/versions/", "/", path.removeprefix("models/"))
        found = _KAGGLE.fullmatch(short)
        if not found:
            raise BackboneError(
                f"Backbone {shown(text)} does not name one model of Kaggle. Expected "
                f"https://www.kaggle.com/models/ and {_KAGGLE_FORM}."
            )
        return _of_kaggle(found)
    return "archive" if is_archive(path) else "hub", text, f"{parts.netloc.lower()}/{path}"


def _of_kaggle(found: re.Match[str]) -> tuple[str, str, str]:
    owner, model, framework, variation, version = found.groups()
    text = "/".join(filter(None, [owner, model, _FRAMEWORKS[framework.lower()], variation, version]))
    return "kaggle", text, f"kaggle.com/models/{text}"
