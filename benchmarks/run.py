"""Measures tf_finetune against other ways to the same model, side by side: `make bench`.

README.md beside this file says how to read what comes out.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import data as inputs
import machine
import measuring
import ours
import picture
import table
from bench import Bench
from sections import accuracy, frozen, head, leak, memory, text, whole

HERE = Path(__file__).parent
SECTIONS: dict[str, Any] = {
    "frozen": frozen, "text": text, "head": head, "whole": whole, "memory": memory, "accuracy": accuracy,
    "leak": leak,
}  # fmt: skip
QUICK_SECTIONS = ("frozen", "text", "head")
PHOTO_SECTIONS, TEXT_SECTIONS = {"frozen", "whole", "memory", "accuracy", "leak"}, {"text"}
WITHOUT_BACKBONE = {"leak"}
QUICK_LIMIT = {"image": 24, "text": 60}  # Examples of a class.


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints the tables and writes results.json and results.svg."""
    flags = _parser().parse_args(arguments)
    chosen = tuple(flags.only.split(",")) if flags.only else QUICK_SECTIONS if flags.quick else tuple(SECTIONS)
    with tempfile.TemporaryDirectory(prefix="tf-finetune-bench-") as scratch:
        results = measure(flags, chosen, Path(scratch))
    tables = table.markdown(results)
    print(tables)
    flags.output.mkdir(parents=True, exist_ok=True)
    (flags.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    picture.draw(results, flags.output / "results.svg")
    if flags.write_readme:
        table.write_between_marks(HERE / "README.md", tables)
    return 0 if results["figures"] else 1


def measure(flags: argparse.Namespace, chosen: Sequence[str], scratch: Path) -> dict[str, Any]:
    """Returns the record that results.json holds."""
    bench = prepare(flags, chosen, scratch)
    results: dict[str, Any] = {
        "when": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "settings": {
            "sections": list(chosen),
            "repeats": bench.repeats,
            "epochs": bench.epochs,
            "quick": bench.quick,
            "data": {task: {"name": one.name, "count": len(one.everything)} for task, one in bench.data.items()},
            "backbones": {task: told["name"] for task, told in bench.backbones.items()},
        },
        "figures": [],
        "runs": {},
    }
    for name in chosen:
        if _task(name) and _task(name) not in bench.backbones and name not in WITHOUT_BACKBONE:
            continue  # Told of in left_out.
        print(f"{name}:", file=sys.stderr, flush=True)
        runs, figures = SECTIONS[name].measure(bench)
        results["runs"][name] = runs
        for one in figures:
            judged = dataclasses.replace(one, goal=None) if bench.quick else one  # Goals are for whole runs.
            results["figures"].append({**judged.as_json(), "verdict": judged.verdict})
    results["machine"]["load_average_after"] = machine.describe()["load_average"]
    return {**results, "left_out": bench.left_out}


def prepare(flags: argparse.Namespace, chosen: Sequence[str], scratch: Path) -> Bench:
    """Returns the bench: data linked, backbones made ready."""
    limits = QUICK_LIMIT if flags.quick else {"image": None, "text": None}
    tasks = dict.fromkeys(task for task in map(_task, chosen) if task)
    makers = {"image": (inputs.photos, flags.data), "text": (inputs.texts, flags.texts)}
    handles = {"image": flags.backbone, "text": flags.text_backbone}
    bench = Bench(
        scratch=scratch,
        tool=ours.command(scratch / "results"),
        data={task: makers[task][0](makers[task][1], scratch / task, limits[task]) for task in tasks},
        backbones={},
        handles=handles,
        has_16_bit=machine.describe()["has_16_bit"],
        repeats=1 if flags.quick else flags.repeats,
        epochs=3 if flags.quick else flags.epochs,
        quick=flags.quick,
    )
    for task in dict.fromkeys(_task(section) for section in chosen if section not in WITHOUT_BACKBONE):
        if task is None:
            continue
        print(f"making the backbone for {task} ready ...", file=sys.stderr, flush=True)
        job = {"data": str(bench.data[task].channel), "backbone": handles[task], "scratch": str(scratch)}
        try:
            bench.backbones[task] = measuring.contender("locate", job, scratch)
        except measuring.ContenderError as error:
            bench.left_out[f"all of {task}"] = str(error).splitlines()[0]
    return bench


def _task(section: str) -> str | None:
    return "image" if section in PHOTO_SECTIONS else "text" if section in TEXT_SECTIONS else None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="class folders of photos (default: of a PyPI wheel)"
    )
    parser.add_argument("--texts", type=Path, metavar="FOLDER", help="with data.csv (default: of a PyPI wheel)")
    parser.add_argument("--backbone", metavar="HANDLE", help="for photos (default: the package's)")
    parser.add_argument("--text-backbone", metavar="HANDLE", help="for texts (default: the package's)")
    parser.add_argument("--only", metavar="SECTIONS", help=f"of {','.join(SECTIONS)}, separated by commas")
    parser.add_argument("--repeats", type=int, default=2, help="of each contender (default: 2)")
    parser.add_argument("--epochs", type=int, default=10, help="of each contender that has some (default: 10)")
    parser.add_argument("--quick", action="store_true", help="small data, 3 epochs, one repeat: two minutes, no goals")
    parser.add_argument("--output", type=Path, default=HERE, metavar="FOLDER", help="of results.json and results.svg")
    parser.add_argument("--write-readme", action="store_true", help="write the tables into benchmarks/README.md")
    return parser


if __name__ == "__main__":
    sys.exit(main())
