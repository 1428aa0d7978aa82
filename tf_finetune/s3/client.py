"""The one S3 client: where it connects to, as whom, and how often it tries."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import random
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from tf_finetune.s3 import failures
from tf_finetune.s3.locations import Location

log = logging.getLogger(__name__)

WORKERS = 16  # Requests at once. Python can make no more than some 700 a second, which these suffice for at 20 ms each.
ATTEMPTS = 5  # Of botocore for one request, the waits doubling up to 20 s; AWS_MAX_ATTEMPTS says otherwise.
ROUNDS = 5  # Of those, for one transfer; also for bodies that break off, which botocore does not try again.

# Of which S3's answer to a request has some in any case.
SAID: dict[str, set[str]] = {
    "ListObjectsV2": {"IsTruncated", "Name", "KeyCount", "Contents", "CommonPrefixes"},
    "ListBuckets": {"Buckets", "Owner"},
    "CreateMultipartUpload": {"UploadId"},
}

Result = TypeVar("Result")


def region_of(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns the Region that the variables name: SageMaker sets AWS_REGION, which boto3 does not read.

    >>> region_of({"AWS_REGION": "eu-west-1"})
    'eu-west-1'
    """
    return environ.get("AWS_DEFAULT_REGION") or environ.get("AWS_REGION") or None


def configured_region(given: str | None = None) -> str | None:
    """Returns the Region that was given, else that of the variables, else that of the profile; None without one."""
    import boto3

    return given or region_of() or boto3.session.Session().region_name


def configured_endpoint(environ: Mapping[str, str] = os.environ) -> str:
    """Returns the endpoint that the variables name; empty for AWS's own. The same location elsewhere is another one."""
    return environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""


@contextlib.contextmanager
def connected(where: Location | None = None, region: str | None = None, workers: int = WORKERS) -> Iterator[Any]:
    """Gives a boto3 client for S3; what goes wrong in the block, boto3's way, becomes one clear FinetuneError.

    The endpoint is AWS's, or that of AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3. Without credentials requests go
    unsigned, which suffices to read public buckets.

    Args:
        where: What the messages name.
        region: The Region to sign for; None for that of the variables or the profile.
        workers: Requests at once.
    """
    is_anonymous = False
    with failures.made_clear(where, lambda: is_anonymous):
        import boto3
        import botocore.session
        from botocore.config import Config

        core = botocore.session.get_session()
        # Nobody here asks when an object was changed, and parsing dates would be a tenth of the time.
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        session = boto3.session.Session(region_name=region or region_of(), botocore_session=core)
        is_anonymous = session.get_credentials() is None
        limits: dict[str, Any] = {"mode": os.environ.get("AWS_RETRY_MODE", "standard")}
        if not os.environ.get("AWS_MAX_ATTEMPTS"):
            limits["total_max_attempts"] = ATTEMPTS
        config = Config(
            retries=limits, max_pool_connections=workers, connect_timeout=10, read_timeout=60, tcp_keepalive=True
        )
        if is_anonymous:
            log.info("no AWS credentials were found: trying without, which public buckets allow")
            config = config.merge(Config(signature_version=botocore.UNSIGNED))
        client = session.client("s3", config=config)
        client.meta.events.register(
            "after-call.s3", functools.partial(_check_speaks_s3, where, client.meta.endpoint_url)
        )
        try:
            yield client
        finally:
            client.close()


def _check_speaks_s3(where: Location | None, endpoint: str, parsed: Mapping[str, Any], model: Any, **rest: Any) -> None:
    """Stops when a success has nothing of what S3 says: a web page, for instance, is taken for an empty answer."""
    status = parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if status == 200 and model.name in SAID and not SAID[model.name] & parsed.keys():
        raise failures.not_s3(where, endpoint)


def transfers(client: Any, workers: int = WORKERS) -> Any:
    """Returns boto3's transfer manager, which splits large files; it is AWS's CRT client where that is installed."""
    from boto3.s3.transfer import TransferConfig, create_transfer_manager

    preferred = "crt" if has_crt(client.meta.endpoint_url) else "classic"
    return create_transfer_manager(client, TransferConfig(max_concurrency=workers, preferred_transfer_client=preferred))


def has_crt(endpoint: str) -> bool:
    """Returns whether the CRT client can serve: it is installed (boto3[crt]), and the endpoint is AWS's own.

    boto3 does not tell it of any other endpoint.
    """
    host = urllib.parse.urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn")) and importlib.util.find_spec("awscrt") is not None


def persistently(action: Callable[[], Result], stop: threading.Event) -> Result:
    """Returns what the action returns, tried again after what passes: busy servers, broken connections and bodies.

    Args:
        action: What to do; it begins from the start each time.
        stop: Ends the waiting; the last error is then raised.
    """
    for round_ in range(1, ROUNDS):
        try:
            return action()
        except Exception as error:
            if not failures.will_pass(error) or stop.wait(random.uniform(0.25, 0.5) * 2**round_):
                raise
            log.debug("trying again: %s", type(error).__name__)
    return action()
