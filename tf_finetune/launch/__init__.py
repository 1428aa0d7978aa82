"""Training jobs on SageMaker: `submit` starts one by CreateTrainingJob, `jobs` lists past ones.

What can be told without AWS is told first, by `plan`; then AWS is asked what it alone knows, by `checks`; only then is
anything uploaded.
"""

from __future__ import annotations

from tf_finetune.launch.commands import add_commands

__all__ = ["add_commands"]
