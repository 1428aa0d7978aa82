"""Messages on five topics that come in a PyPI wheel, and how far counting words alone gets with them."""

from __future__ import annotations

import csv
import re
import zipfile
from pathlib import Path

from tf_finetune import examples, storage

# ChatterBot's corpus of conversations (BSD licence).
WHEEL = storage.Wheel(
    name="chatterbot-corpus",
    version="1.3.3",
    sha256="86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)
TOPICS = ("ai", "coding", "emotion", "psychology", "trivia")
# A conversation's first message, of 8 characters or more, where YAML needs neither quotes nor blocks for it.
OPENING = re.compile(r"^- - ([^'\"|>].{7,})$", flags=re.MULTILINE)
NAME = "topics"
SETTINGS = {"epochs": 20, "learning_rate": 0.003}
BASELINE = "logistic regression on tf-idf"


def make(data: Path) -> None:
    """Writes data/training/data.csv and data/validation/data.csv, split by content."""
    wheel = storage.fetch_wheel(WHEEL, storage.cache_folder() / "wheels")
    with storage.written_aside(data) as made, zipfile.ZipFile(wheel) as archive:
        rows = []
        for topic in TOPICS:
            text = archive.read(f"chatterbot_corpus/data/english/{topic}.yml").decode("utf-8")
            rows += [(topic, message) for message in sorted(set(OPENING.findall(text)))]
        write(made / "all", rows)
        everything = examples.read("text", made / "all")
        for part, chosen in zip(("training", "validation"), examples.split(everything, 0.25, seed=0), strict=True):
            write(made / part, [(chosen.class_names[item.label], str(item.content)) for item in chosen.items])


def write(folder: Path, rows: list[tuple[str, str]]) -> None:
    """Writes folder/data.csv: class, text."""
    folder.mkdir()
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)


def baseline(data: Path) -> float:
    """Returns the validation accuracy in [0, 1] of logistic regression on words and pairs of words, tf-idf weighted."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def read(part: str) -> tuple[list[str], list[int]]:
        found = examples.read("text", data / part)
        return [str(item.content) for item in found.items], found.labels

    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10, max_iter=1000))
    return float(model.fit(*read("training")).score(*read("validation")))
