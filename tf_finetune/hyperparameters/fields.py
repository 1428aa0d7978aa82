"""The rows of the table: name, type, default, range, meaning, and for what each is.

Names, ranges and defaults are those of SageMaker's "Image Classification - TensorFlow" and "Text Classification -
TensorFlow"; where the user guide and the JumpStart specification differ, the specification's default is taken.
"""

from __future__ import annotations

import typing
from typing import Any, Literal

import pydantic

Fraction = typing.Annotated[float, pydantic.Field(ge=0, le=1, allow_inf_nan=False)]
SignedFraction = typing.Annotated[float, pydantic.Field(ge=-1, le=1, allow_inf_nan=False)]
Count = typing.Annotated[int, pydantic.Field(ge=1)]


def _field(
    default: Any, description: str, *, task: str | None = None, text: Any = None, **used_when: tuple[Any, ...]
) -> Any:
    """Returns a row of the table.

    Args:
        default: Its default, for photos at least.
        description: Its meaning.
        task: The only task that it is for: "image" or "text".
        text: Its default for texts where that is another.
        **used_when: The settings without which it has no effect.
    """
    extra = {"task": task, "text_default": default if text is None else text, "used_when": used_when}
    return pydantic.Field(default, description=description, json_schema_extra=extra)


class Hyperparameters(pydantic.BaseModel):
    """The settings of one job, typed and checked. The fields are the table's rows, in the order it is shown."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    backbone: str = _field(
        "efficientnet-lite0",
        "the pretrained model: an id of `tf-finetune backbones`, a folder or .tar.gz of a SavedModel, an http(s):// or "
        "s3:// URL of one, a TF-Hub URL, or a Kaggle handle",
        text="universal-sentence-encoder-multilingual",
    )
    train_only_top_layer: bool = _field(True, "train the head only and leave the backbone as it is")
    epochs: Count = _field(5, "passes over the training examples", text=10)
    learning_rate: Fraction = _field(0.001, "step size of the optimizer")
    batch_size: Count = _field(32, "examples per step, over all devices together")
    optimizer: Literal["auto", "adam", "adamw", "sgd", "nesterov", "rmsprop", "adagrad", "adadelta"] = _field(
        "auto",
        "auto solves the head of a frozen backbone by L-BFGS, and trains a whole network from that head by adam; any "
        "other trains in epochs; adamw decays all but biases and norms by 0.01",
    )
    schedule: Literal["constant", "cosine"] = _field("constant", "learning rate after the warm-up")
    warmup_steps_fraction: Fraction = _field(
        0.0, "share of all steps in which the learning rate rises from 0 to learning_rate; 0.1 for texts with adamw"
    )
    momentum: Fraction = _field(
        0.9, "momentum of the optimizer; rmsprop uses it for photos only", optimizer=("sgd", "nesterov", "rmsprop")
    )
    beta_1: Fraction = _field(0.9, "decay of the first moment", optimizer=("auto", "adam", "adamw"))
    beta_2: Fraction = _field(0.999, "decay of the second moment", optimizer=("auto", "adam", "adamw"))
    epsilon: Fraction = _field(
        1e-7, "keeps divisions stable", optimizer=("auto", "adam", "adamw", "rmsprop", "adagrad", "adadelta")
    )
    rho: Fraction = _field(0.95, "decay of the squared gradients", optimizer=("rmsprop", "adadelta"))
    initial_accumulator_value: Fraction = _field(
        0.1, "starting value of the accumulators", text=0.0001, optimizer=("adagrad",)
    )
    dropout_rate: Fraction = _field(0.2, "share of the features dropped in each training step")
    regularizers_l2: Fraction = _field(0.0001, "L2 penalty on the head's kernel")
    label_smoothing: Fraction = _field(0.1, "share of each target spread evenly over all classes", text=0.0)
    class_weight: Literal["none", "balanced"] = _field(
        "none", "balanced weighs each example by N / (K x size of its class)"
    )
    early_stopping: bool = _field(False, "stop when eval_metric no longer improves")
    early_stopping_patience: Count = _field(5, "epochs without improvement before stopping", early_stopping=(True,))
    early_stopping_min_delta: Fraction = _field(
        0.0, "the least change that counts as improvement", early_stopping=(True,)
    )
    eval_metric: Literal["accuracy", "precision", "recall", "auc", "prc"] = _field(
        "accuracy", "picks the best epoch; all but accuracy need binary_mode"
    )
    binary_mode: bool = _field(False, "two classes: one sigmoid unit, index 1 being the positive class")
    min_accuracy: Fraction = _field(0.0, "below this validation accuracy the job fails and exports nothing")
    validation_split_ratio: Fraction = _field(
        0.2, "share of the training channel kept for validation; not used with a validation channel"
    )
    random_seed: typing.Annotated[int, pydantic.Field(ge=0)] = _field(123, "seed of everything that is random")
    augmentation: bool = _field(False, "flip, rotate and zoom the training photos at random", task="image")
    augmentation_random_flip: Literal["horizontal_and_vertical", "horizontal", "vertical", "None"] = _field(
        "horizontal_and_vertical", "directions in which photos are flipped", task="image", augmentation=(True,)
    )
    augmentation_random_rotation: SignedFraction = _field(
        0.2,
        "largest rotation either way, as a fraction of a full turn (0.2 is 72 degrees)",
        task="image",
        augmentation=(True,),
    )
    augmentation_random_zoom: SignedFraction = _field(
        0.1, "largest zoom either way, as a fraction of the height", task="image", augmentation=(True,)
    )
    augmentation_views: Count = _field(
        4,
        "random views of each training photo that a frozen backbone sees",
        task="image",
        augmentation=(True,),
        train_only_top_layer=(True,),
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = _field(
        "auto",
        "numbers that training computes with; 16 bits only where they agree with float32 on your examples; the model "
        "and all figures are float32",
    )
    checkpoint_seconds: Count = _field(
        60, "seconds between checkpoints within an epoch, where there is a folder for them; each epoch ends with one"
    )
    max_seconds: Count | None = _field(
        None, "seconds after which no further step is trained; the best epoch so far is exported"
    )
    on_bad_data: Literal["skip", "fail"] = _field(
        "skip", "what to do about examples that cannot be used: leave them out and list them, or stop"
    )
    max_bad_fraction: Fraction = _field(0.1, "share of a channel that may be left out; more stops the job")
    max_pixels: Count = _field(
        100_000_000, "pixels of a photo, height x width, above which it is not decoded", task="image"
    )
    group_by: str | None = _field(
        None,
        "what keeps examples on one side of the split: for photos a regular expression, whose first group, or else "
        "whole match, in the path below the channel names the group; for texts third_column",
    )
    calibrate: bool = _field(
        True, "fit the model's confidence to the validation examples by one temperature; no answer changes by it"
    )
    trust_backbone: bool = _field(
        False, "load a backbone whose graph reads or writes files, or runs Python code; it can do whatever you can"
    )
    image_size: typing.Annotated[int, pydantic.Field(ge=8, le=4096)] | None = _field(
        None, "height and width in pixels; empty: the backbone's own", task="image"
    )
    image_resize_interpolation: Literal[
        "bilinear", "nearest", "bicubic", "area", "lanczos3", "lanczos5", "gaussian", "mitchellcubic"
    ] = _field("bilinear", "method of tf.image.resize", task="image")
    pixel_range: Literal["0,1", "-1,1", "0,255"] | None = _field(
        None, "pixel values that the backbone expects; empty: the backbone card's, else 0,1", task="image"
    )
    max_sequence_length: typing.Annotated[int, pydantic.Field(ge=3, le=512)] | None = _field(
        None, "tokens of a text that a BERT-like backbone reads; empty: 128", task="text"
    )
    preprocessor: str | None = _field(
        None, "SavedModel that makes a BERT-like backbone's inputs from texts; empty: the backbone card's", task="text"
    )
    reinitialize_top_layer: Literal["Auto", "True", "False"] = _field(
        "Auto", "with a model channel that holds an earlier result: a new head, or the earlier one"
    )
