"""What boto3 raises, as one clear message each."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from tf_finetune.errors import FinetuneError, UsageError
from tf_finetune.s3.locations import Location


class CutShortError(Exception):
    """A body that ended before its object did."""


_ELSEWHERE = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
DENIED = {"AccessDenied", "403", "AllAccessDisabled", "AccessDeniedException"}
_BUSY = {"SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "RequestTimeout", "InternalError"}
_BUSY |= {"ServiceUnavailable", "TooManyRequestsException", "BandwidthLimitExceeded", "429", "500", "502", "503", "504"}

_SIGN_IN = "Sign in again (aws sso login), or set fresh AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN."
_GIVE_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run `aws configure`; on SageMaker the job's "
    "role brings them."
)
_CHANGED = "an object was changed while it was fetched. Run again when nothing writes there."
_EXPIRED = f"the AWS credentials have expired. {_SIGN_IN}"
_DENIED = (
    "access denied. The credentials in use need s3:ListBucket on the bucket, and on what is in it s3:GetObject (for "
    "results s3:PutObject). Ask its owner, or use another AWS_PROFILE."
)
_NOT_PUBLIC = f"no AWS credentials were found, and it is not public. {_GIVE_CREDENTIALS}"
# What S3's error codes mean.
_BY_CODE = {
    "NoSuchBucket": "there is no such bucket. Check its name; `tf-finetune buckets` lists yours.",
    "NoSuchKey": "there is no such object, or it was removed meanwhile. Check the key, then run again.",
    "404": "there is no such object or bucket. Check the location; `tf-finetune buckets` lists your buckets.",
    "InvalidBucketName": "the bucket's name is not valid. Check it.",
    "InvalidAccessKeyId": "AWS does not know the access key. Check AWS_ACCESS_KEY_ID or the profile in use.",
    "SignatureDoesNotMatch": "the secret key does not fit the access key. Check AWS_SECRET_ACCESS_KEY or the profile.",
    "RequestTimeTooSkewed": "the clock of this machine is wrong, and AWS refuses what it signs. Set the clock.",
    "InvalidObjectState": "an object is archived (Glacier). Restore it first, or copy it to S3 Standard.",
    "EntityTooLarge": "a file is larger than S3 takes.",
    **dict.fromkeys(("PreconditionFailed", "412"), _CHANGED),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"), _EXPIRED),
    "InvalidToken": _EXPIRED,
    **dict.fromkeys(DENIED, _DENIED),
}
_FLAGS_FAULT = {"NoSuchBucket", "NoSuchKey", "404", "InvalidBucketName"}


@contextlib.contextmanager
def made_clear(where: Location | None, is_anonymous: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turns what boto3 raises in the block into one FinetuneError that names the location."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except (BotoCoreError, ClientError, Boto3Error, HTTPError, ConnectionError, CutShortError) as error:
        raise clear(error, where, is_anonymous()) from error
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise FinetuneError(
            f"{where}: no space is left on the disk of {error.filename or 'the folder'}. Free some and run again."
        ) from error
    except ValueError as error:  # What botocore raises for an endpoint that is no URL.
        if "endpoint" not in str(error):
            raise
        raise UsageError(f"{where or 'S3'}: {error}. Check AWS_ENDPOINT_URL, e.g. http://127.0.0.1:9000.") from error


def clear(error: Exception, where: Location | None, is_anonymous: bool = False) -> FinetuneError:
    """Returns the clear error for one of boto3's."""
    place = str(where) if where else "S3"
    if getattr(error, "response", None):  # A broken connection's error has one that is None.
        return _of_answer(error, place, is_anonymous)
    return FinetuneError(f"{place}: {_of_connection(error)}")


def code_of(error: Any) -> str:
    """Returns S3's code of an answered error, such as NoSuchKey; empty where there was no answer."""
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))


def will_pass(error: Exception) -> bool:
    """Returns whether trying again may help: the server was busy, or a connection or a body broke off."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError as ParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or code_of(error) in _BUSY
    if isinstance(error, (exceptions.SSLError, exceptions.ProxyConnectionError)):
        return False
    broken = (CutShortError, exceptions.ConnectionError, exceptions.HTTPClientError, HTTPError, ConnectionError)
    return isinstance(error, (*broken, exceptions.IncompleteReadError, exceptions.FlexibleChecksumError, ParserError))


def elsewhere(place: str, bucket_region: str | None, job_region: str | None) -> UsageError:
    """Returns the error of a bucket in another Region."""
    there = f"its bucket is in {bucket_region}" if bucket_region else "its bucket is in another Region"
    here = f", the job in {job_region}" if job_region else ""
    return UsageError(
        f"{place}: {there}{here}. The bucket must be in the job's Region: set "
        f"AWS_DEFAULT_REGION={bucket_region or 'REGION'}, or copy the data to a bucket in the job's Region. "
        "`tf-finetune buckets` shows the Regions."
    )


def not_s3(where: Location | None, endpoint: str) -> FinetuneError:
    """Returns the error of an endpoint that answers in another language than S3's."""
    return FinetuneError(
        f"{where or 'S3'}: {_without_secrets(endpoint)} answers, but not as S3 does: it may be another service, a "
        "console, or a login page of the network. Check AWS_ENDPOINT_URL and its port."
    )


def _of_answer(error: Any, place: str, is_anonymous: bool) -> FinetuneError:
    told, answer = error.response.get("Error", {}), error.response.get("ResponseMetadata", {})
    code, message = code_of(error), str(told.get("Message", "no message"))[:200]
    if code in _ELSEWHERE:
        region = answer.get("HTTPHeaders", {}).get("x-amz-bucket-region") or told.get("Region")
        return elsewhere(place, region, None)
    if code.startswith("KMS.") or "kms" in message.lower():
        words = f"the KMS key was refused ({code}: {message}). Check the key and its policy."
    elif code in _BUSY or answer.get("HTTPStatusCode", 0) >= 500:
        words = f"S3 stayed busy or failing after many tries ({code}). Run again to go on from here."
    elif is_anonymous and _BY_CODE.get(code) == _DENIED:
        words = _NOT_PUBLIC
    else:
        words = _BY_CODE.get(code, f"S3 refused {error.operation_name} ({code}: {message}).")
    return (UsageError if code in _FLAGS_FAULT else FinetuneError)(f"{place}: {words}")


def _of_connection(error: Exception) -> str:
    from botocore import exceptions

    name, endpoint = type(error).__name__, _endpoint(error)
    profile = os.environ.get("AWS_PROFILE", "")
    refused = "the AWS credentials could not be had"
    kinds: tuple[tuple[Any, str], ...] = (
        (CutShortError, f"a transfer broke off again and again ({error}). Run again to go on from here."),
        (exceptions.NoCredentialsError, f"no AWS credentials were found. {_GIVE_CREDENTIALS}"),
        (exceptions.PartialCredentialsError, f"the AWS credentials are incomplete. {_GIVE_CREDENTIALS}"),
        (exceptions.ProfileNotFound, f"there is no AWS profile {profile!r}. Check AWS_PROFILE and ~/.aws/config."),
        ((exceptions.CredentialRetrievalError, exceptions.TokenRetrievalError), f"{refused} ({name}). {_SIGN_IN}"),
        (exceptions.InvalidRegionError, f"{error} Check AWS_DEFAULT_REGION, AWS_REGION or the profile's Region."),
        (exceptions.SSOError, f"{refused} ({name}). {_SIGN_IN}"),
        (
            exceptions.SSLError,
            f"the TLS connection to {endpoint} failed. Check AWS_CA_BUNDLE, or the proxy.",
        ),
        (exceptions.ProxyConnectionError, "the proxy does not answer. Check HTTP_PROXY and HTTPS_PROXY."),
        (
            (exceptions.ConnectionError, exceptions.HTTPClientError, ConnectionError),
            f"{endpoint} cannot be reached ({name}). Check the network, AWS_ENDPOINT_URL and the Region.",
        ),
    )
    return next((words for kind, words in kinds if isinstance(error, kind)), f"{name}: {str(error)[:300]}")


def _endpoint(error: Any) -> str:
    """Returns scheme, host and port only: the rest of a URL may hold what is secret."""
    return _without_secrets(str(getattr(error, "kwargs", {}).get("endpoint_url", "")))


def _without_secrets(url: str) -> str:
    found = re.match(r"(\w+://)(?:[^/@]*@)?([^/?]+)", url)
    return found[1] + found[2] if found else "the endpoint"
