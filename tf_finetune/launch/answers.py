"""The errors of botocore in plain words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tf_finetune.errors import UsageError

DENIED = frozenset({"AccessDenied", "AccessDeniedException", "403", "UnauthorizedOperation"})
NO_CREDENTIALS = "Run `aws configure` or `aws sso login`, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
# What AWS says, by its code, and what to do about it.
_WAYS_OUT = {
    **dict.fromkeys(DENIED, "Ask for the permission, or take other credentials (AWS_PROFILE)."),
    "ResourceLimitExceeded": "Take another --instance-type or fewer instances, or ask for a higher quota of SageMaker "
    "training jobs in the console of Service Quotas.",
    "ResourceInUse": "Give another --model-name.",
    "ThrottlingException": "Wait a minute, and try again.",
    "ValidationException": "Correct what it names.",
    **dict.fromkeys(
        ("UnrecognizedClientException", "InvalidClientTokenId", "SignatureDoesNotMatch", "InvalidAccessKeyId"),
        f"The credentials are wrong. {NO_CREDENTIALS}",
    ),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "RequestExpired"), f"The credentials have expired. {NO_CREDENTIALS}"
    ),
}


class ForAllRequestsError(UsageError):
    """What holds for any other request too, so that there is no point in going on: no credentials, no network."""


@contextlib.contextmanager
def told(doing: str) -> Iterator[None]:
    """Turns the errors of botocore into one clear message each; `doing` says what could not be done."""
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions

    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise ForAllRequestsError(
            f"Could not {doing}: there are no AWS credentials ({error}). {NO_CREDENTIALS}"
        ) from error
    except (exceptions.CredentialRetrievalError, exceptions.SSOError, exceptions.TokenRetrievalError) as error:
        raise ForAllRequestsError(
            f"Could not {doing}: no AWS credentials could be had ({error}). {NO_CREDENTIALS}"
        ) from error
    except exceptions.ProfileNotFound as error:
        raise UsageError(f"Could not {doing}: {error}. Correct AWS_PROFILE, or run `aws configure`.") from error
    except exceptions.ClientError as error:
        raise UsageError(f"Could not {doing}: {_said(error)}") from error
    except exceptions.ParamValidationError as error:
        raise UsageError(f"Could not {doing}: {' '.join(str(error).split())}. Correct what it names.") from error
    except S3UploadFailedError as error:
        raise UsageError(f"Could not {doing}: {error}. Check that your credentials may write there.") from error
    except (exceptions.HTTPClientError, exceptions.EndpointConnectionError) as error:
        raise ForAllRequestsError(
            f"Could not {doing}: there is no connection to AWS ({error}). Check the network, the Region and "
            "AWS_ENDPOINT_URL, and try again."
        ) from error
    except exceptions.BotoCoreError as error:
        raise UsageError(f"Could not {doing}: {error}") from error


def _said(error: Any) -> str:
    code = error.response.get("Error", {}).get("Code", "")
    words = error.response.get("Error", {}).get("Message") or code
    return f"AWS answers {code}: {str(words).rstrip('.')}. {_WAYS_OUT.get(code, '')}".strip()


def code_of(error: Any) -> str:
    """Returns AWS's code of a ClientError."""
    return str(error.response.get("Error", {}).get("Code", ""))
