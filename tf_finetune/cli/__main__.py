"""The command line as `python -m tf_finetune.cli`."""

from tf_finetune.cli import run

run()
