"""The command line: flags to records, errors to exit codes.

Exit code 0 is success, 1 something the user can mend (one message on standard error, and in SageMaker's failure file
during a job), 2 our own fault (a traceback), 3 that `check` has found an error or a warning.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from tf_finetune import environment, interruption
from tf_finetune.cli import failure, parser
from tf_finetune.cli.arguments import tied
from tf_finetune.errors import FinetuneError, UsageError, told_as_given

log = logging.getLogger("tf_finetune")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    in_job = arguments[:1] == ["train"]
    interruption.install()
    try:
        flags, rest = parser.make().parse_known_args(tied(environment.without_toolkit_arguments(arguments)))
        _start_log()
        if rest and flags.command not in ("train", "submit"):
            raise UsageError(f"unrecognized arguments: {' '.join(rest)}. See `tf-finetune {flags.command} --help`.")
        flags.copies = {}
        with told_as_given(flags.copies):
            return int(flags.run(flags, rest) or 0)
    except FinetuneError as error:
        return _failed(str(error), 1, in_job)
    except KeyboardInterrupt:
        return _failed("Interrupted.", 1, in_job)
    except BrokenPipeError:  # The reader of our output has gone, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        traceback.print_exc()
        last = f"{type(error).__name__}: {error}".splitlines()[0]
        return _failed(f"Internal error, not your fault: {last}. Please report it with the traceback.", 2, in_job)


def run() -> NoReturn:
    """Runs one command as the whole process."""
    code = main()
    if "tensorflow" in sys.modules:  # Which takes a second or two to be taken down, for nothing.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _failed(message: str, code: int, in_job: bool) -> int:
    failure.tell(message, in_job)
    return code


class _CurrentStandardError:
    """Standard error as it is at each write: progress bars put themselves in its place to stay below the lines."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _start_log() -> None:
    """Sends the package's log to standard error, a line each, at once."""
    handler = logging.StreamHandler(_CurrentStandardError())
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
