"""Keeps the generated parts of README.md current: `python tests/readme.py --write` or `--check`."""

from __future__ import annotations

import ast
import difflib
import re
import sys
import textwrap
from pathlib import Path

from tf_finetune import tables

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def generated() -> dict[str, str]:
    """Returns the text of each generated part by its marker."""
    return {"hyperparameters": tables.hyperparameters_table("markdown"), "tree": f"```\n{tree()}\n```"}


def tree() -> str:
    """Returns the package's files, each with the first sentence of its docstring."""
    rows = []
    for file in sorted((ROOT / "tf_finetune").rglob("*.py")):
        name = file.relative_to(ROOT).as_posix()
        summary = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        first = re.split(r"[.;](?:\s|$)", " ".join(summary.split()), maxsplit=1)[0]
        rows.append((name, textwrap.shorten(first, 100, placeholder=" ...")))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {first}" for name, first in rows)


def current(text: str) -> str:
    """Returns the page with its generated parts made anew."""
    for marker, part in generated().items():
        pattern = rf"(<!-- {marker} -->\n).*?(<!-- /{marker} -->)"
        text = re.sub(pattern, lambda match, part=part: f"{match[1]}{part}\n{match[2]}", text, flags=re.DOTALL)
    return text


def main(option: str) -> int:
    """Writes the page, or says how it differs and returns 1."""
    before = README.read_text(encoding="utf-8")
    after = current(before)
    if option == "--write":
        README.write_text(after, encoding="utf-8")
        return 0
    changes = list(difflib.unified_diff(before.splitlines(), after.splitlines(), "README.md", "generated", lineterm=""))
    print("\n".join([*changes, "README.md is not current: run `make docs`"]) if changes else "README.md is current")
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
