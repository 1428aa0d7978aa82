"""How a command says that it has failed: on standard error, and during a job in SageMaker's failure file."""

from __future__ import annotations

import logging
import re
import sys

from tf_finetune import environment
from tf_finetune.errors import shortened

log = logging.getLogger("tf_finetune")

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # File names may hold what moves a terminal's cursor.


def tell(message: str, in_job: bool) -> None:
    """Writes the one message of a failure.

    Args:
        message: Of any length and characters.
        in_job: Whether it is for the failure file, too.
    """
    message = message.encode("utf-8", "backslashreplace").decode()
    message = shortened(CONTROL.sub(lambda found: repr(found[0])[1:-1], message))
    print(f"tf-finetune: {message}", file=sys.stderr, flush=True)
    if in_job:
        try:
            place = environment.failure_file()
            if place is not None:
                place.write_text(message, encoding="utf-8")
        except OSError as error:  # A folder /opt/ml of someone else's, as on a notebook server.
            log.info("The message is on standard error only: %s", error)
