"""Long proofs on real photos: accuracy over five seeds, fine-tuning of a whole network. Run by `make soak`."""

from __future__ import annotations

import numpy as np
import pytest

import tf_finetune

pytestmark = pytest.mark.soak


@pytest.mark.parametrize(("backbone", "least"), [("efficientnet-lite0", 0.80), ("mobilenet", 0.70)])
def test_mean_accuracy_over_five_seeds(real_data, tmp_path, backbone, least):
    handle = str(real_data / "backbones/mobilenet_v1_025_128_feature_vector") if backbone == "mobilenet" else backbone
    accuracies = [
        tf_finetune.train(
            real_data / "images/flowers-400", tmp_path, f"seed-{seed}", backbone=handle, epochs=10, random_seed=seed
        )["metrics"]["validation"]["accuracy"]
        for seed in range(1, 6)
    ]
    print(f"\n{backbone}: mean {np.mean(accuracies):.4f}, each {', '.join(f'{value:.4f}' for value in accuracies)}")
    assert np.mean(accuracies) >= least


def test_whole_network_learns_and_changes_the_backbone(real_data, tmp_path):
    import tensorflow as tf

    settings = {"train_only_top_layer": False, "epochs": 2, "learning_rate": 0.0001}
    record = tf_finetune.train(real_data / "images/flowers-400", tmp_path, "whole", **settings)
    losses = [entry["loss"] for entry in record["history"]]
    print(f"\ntraining loss {losses[0]:.4f} to {losses[-1]:.4f}")
    assert losses[-1] < losses[0]
    from tf_finetune import archive, packaged, storage

    archive.unpack(tmp_path / "whole/output/model.tar.gz", tmp_path / "unpacked")
    before = tf.saved_model.load(str(packaged.make("efficientnet-lite0", storage.cache_folder()))).variables
    reader = tf.train.load_checkpoint(str(tmp_path / "unpacked/1/variables/variables"))
    after = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if "OBJECT" not in name}
    shapes = [value.shape for value in after.values()]
    assert all(tuple(variable.shape) in shapes for variable in before)
    same = sum(
        any(np.array_equal(variable.numpy(), value) for value in after.values() if value.shape == variable.shape)
        for variable in before
    )
    print(f"{len(before) - same} of {len(before)} variables changed")
    assert same < len(before) / 10


def test_real_network_on_two_replicas_follows_one(real_data, tmp_path):
    import subprocess
    import sys

    losses = []
    for replicas in ("1", "2"):
        command = [
            sys.executable,
            "-m",
            "tf_finetune.cli",
            "train",
            "--training",
            str(real_data / "images/flowers-400"),
        ]
        command += ["--backbone", str(real_data / "backbones/mobilenet_v1_025_128_feature_vector"), "--epochs", "1"]
        command += ["--train-only-top-layer", "False", "--learning-rate", "0.0001", "--replicas", replicas]
        command += ["--output", str(tmp_path), "--model-name", replicas]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        losses.append(float(done.stderr.split(" - loss: ")[1].split(" ")[0]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def text_accuracy(channel, output, name, **settings):
    record = tf_finetune.train(channel, output, name, **settings)
    return record["metrics"].get("test", record["metrics"]["validation"])["accuracy"]


def test_texts_reach_their_figures(real_data, tmp_path):
    texts = real_data / "text"
    spam = text_accuracy(texts / "sms-spam", tmp_path, "spam")
    intents = text_accuracy(texts / "snips-intents-7", tmp_path, "intents", test=texts / "snips-intents-7" / "test.csv")
    print(f"\nsms-spam: {spam:.4f} validation; snips-intents-7: {intents:.4f} test")
    assert spam >= 0.975
    assert intents >= 0.96


def test_a_transformer_trained_whole_beats_itself_frozen(real_data, tmp_path):
    channel = real_data / "text" / "vader-movieReviewSnippets"
    frozen = text_accuracy(channel, tmp_path, "frozen", backbone="minilm-l6")
    whole = text_accuracy(channel, tmp_path, "whole", backbone="minilm-l6", train_only_top_layer=False, epochs=1)
    print(f"\nvader-movieReviewSnippets, minilm-l6: {frozen:.4f} frozen, {whole:.4f} whole after one epoch")
    assert frozen >= 0.74
    assert whole > frozen
