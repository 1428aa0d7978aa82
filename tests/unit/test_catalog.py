"""The catalog of backbones: complete, well-formed, and found by any spelling of an id."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from importlib import resources

import pytest

from tf_finetune import catalog, hyperparameters

JUMPSTART_IMAGE_IDS = 136  # 135 of the SDK's documentation and one that only the AWS documentation lists.
JUMPSTART_TEXT_IDS = 38
PACKAGED_TEXTS = {"minilm-l6": 384, "universal-sentence-encoder-multilingual": 512}  # Their feature sizes.
ENCODER_SIZES = 31  # Ids that tell layers L, features H and heads A: BERTs 3 + 4, small BERTs 24.
SIZED_IDS = 68  # MobileNets 16 + 21 + 4, CaiT 10, DeiT 8, Swin 9.
MOST_SUGGESTIONS = 3
PIXEL_RANGES = {(0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)}
# What each family of TF-Hub calls its feature vectors: a hyphen in the wrong place is a page that does not exist.
FEATURE_VECTORS = {
    "google/bit/": r"[ms]-r\d+x\d/1",
    "google/imagenet/": r"\w+/feature_vector/\d+",
    "google/tf2-preview/": r"\w+/feature_vector/4",
    "sayakpaul/": r"\w+_fe/1",
    "tensorflow/efficientnet/": r"(b|lite)\d/feature-vector/\d",
    "tensorflow/resnet_50/": r"feature_vector/1",
}


def rows(table: str = "images.csv") -> list[list[str]]:
    text = resources.files("tf_finetune.catalog").joinpath(table).read_text(encoding="utf-8")
    return list(csv.reader(text.splitlines(), strict=True))


def tfhub_cards(task: str = "image") -> list[catalog.Card]:
    return [card for card in catalog.cards(task) if not card.handle.startswith(catalog.PACKAGED)]


def test_every_image_id_of_jumpstart_has_a_card():
    assert sum(card.id.startswith("tensorflow-ic-") for card in catalog.cards()) == JUMPSTART_IMAGE_IDS
    assert len(catalog.cards("image")) == JUMPSTART_IMAGE_IDS + 1


def test_every_text_id_of_jumpstart_has_a_card():
    assert sum(card.id.startswith("tensorflow-tc-") for card in catalog.cards("text")) == JUMPSTART_TEXT_IDS
    assert len(catalog.cards("text")) == JUMPSTART_TEXT_IDS + len(PACKAGED_TEXTS)


def test_no_two_cards_answer_to_one_id():
    spellings = [card.id.lower().replace("_", "-") for card in catalog.cards()]
    assert sorted(set(spellings)) == sorted(spellings)


def test_no_handle_is_a_classifier():
    assert [card.handle for card in catalog.cards() if "classification" in card.handle] == []


def test_every_handle_is_a_versioned_tfhub_url_or_packaged():
    pattern = re.compile(r"https://tfhub\.dev/[A-Za-z0-9_./-]+/\d+|packaged:[a-z0-9-]+")
    assert [card.handle for card in catalog.cards() if not pattern.fullmatch(card.handle)] == []


def test_every_handle_is_spelt_as_its_family_spells_feature_vectors():
    families = "|".join(f"{re.escape(family)}{name}" for family, name in FEATURE_VECTORS.items())
    pattern = re.compile(f"https://tfhub[.]dev/({families})")
    assert [card.handle for card in tfhub_cards() if not pattern.fullmatch(card.handle)] == []


def test_the_size_in_an_id_is_the_cards_size():
    last_number = re.compile(r"-(96|128|160|192|224|384|448)(-classification-\d+)?$")
    sized = [(card, int(size[1])) for card in tfhub_cards() if (size := last_number.search(card.id))]
    assert [card.id for card, size in sized if card.image_size != size] == []
    assert len(sized) == SIZED_IDS


def test_the_network_in_an_id_is_the_handles():
    def words(text: str) -> str:
        return re.sub(r"[^a-z0-9]+", "-", text.lower())

    family = r"^tensorflow-ic-(tf2-preview-|imagenet-)?"
    head = r"(-ilsvrc2012|(?<=x\d)-imagenet21k)?(-classification-\d+)?$"
    networks = [(card, re.sub(head, "", re.sub(family, "", card.id))) for card in tfhub_cards()]
    assert [card.id for card, network in networks if f"-{network}-" not in words(card.handle)] == []


def test_the_sizes_in_a_text_id_are_the_handles_and_the_cards():
    pattern = re.compile(r"L-(\d+)[-_]H-(\d+)[-_]A-(\d+)")
    sized = [(card, in_id.groups()) for card in tfhub_cards("text") if (in_id := pattern.search(card.id))]
    assert [card.id for card, sizes in sized if pattern.search(card.handle).groups() != sizes] == []
    assert [card.id for card, (_, features, _) in sized if card.feature_size != int(features)] == []
    assert len(sized) == ENCODER_SIZES


def test_a_text_encoder_goes_with_the_vocabulary_it_was_trained_on():
    for card in tfhub_cards("text"):
        kind = re.search(r"albert|multi_cased|uncased|cased", card.handle)
        vocabulary = {"albert": "albert_en", "multi_cased": "bert_multi_cased", "cased": "bert_en_cased"}
        wanted = vocabulary.get(kind[0] if kind else "uncased", "bert_en_uncased")
        assert card.preprocessor == f"https://tfhub.dev/tensorflow/{wanted}_preprocess/3", card.id


def test_only_text_encoders_of_tfhub_have_a_preprocessor():
    assert {card.id for card in catalog.cards() if card.preprocessor} == {card.id for card in tfhub_cards("text")}


def test_text_encoders_are_trained_whole_as_the_user_guide_advises():
    advised = {"learning_rate": 5e-5, "batch_size": 64}
    cards = catalog.cards("text")
    assert {card.id for card in cards if card.whole_defaults != advised} == {catalog.DEFAULT_TEXT}
    assert [
        card.id for card in catalog.cards() if card.defaults or (card.whole_defaults and card.task == "image")
    ] == []


@pytest.mark.parametrize("table", catalog.TABLES)
def test_every_row_fills_the_columns_that_a_card_has(table):
    header, *cells = rows(table)
    assert header == [field.name for field in dataclasses.fields(catalog.Card) if field.name in header]
    assert [row[0] for row in cells if len(row) != len(header)] == []
    assert [row[0] for row in cells if any(cell != cell.strip() for cell in row)] == []


@pytest.mark.parametrize("card", catalog.cards(), ids=lambda card: card.id)
def test_a_card_is_well_formed(card):
    assert card.task in {"image", "text"}
    assert card.image_size is None or 32 <= card.image_size <= 1024
    assert not (card.size_is_fixed and card.image_size is None)
    assert card.pixel_range in PIXEL_RANGES | {None}
    assert card.task == "text" or card.pixel_range is not None or card.note, "an unknown pixel range needs a note"
    assert card.task == "image" or (card.image_size, card.size_is_fixed, card.pixel_range) == (None, None, None)
    assert set(hyperparameters.NAMES) >= {*card.defaults, *card.whole_defaults}
    assert card.feature_size is None or 64 <= card.feature_size <= 8192
    assert card.licence in {"Apache-2.0", "MIT", None}
    assert json.loads(json.dumps(dataclasses.asdict(card)))["id"] == card.id
    assert hash(card) == hash(dataclasses.replace(card))


def test_every_card_can_be_fine_tuned():
    assert [card.id for card in catalog.cards() if not card.fine_tunable] == []


def test_the_default_is_packaged_and_comes_first():
    card = catalog.cards()[0]
    assert card.id == catalog.DEFAULT_IMAGE
    assert card == catalog.find(catalog.DEFAULT_IMAGE)
    assert card.handle == "packaged:efficientnet-lite0"
    assert (card.image_size, card.size_is_fixed, card.pixel_range, card.feature_size) == (224, False, (0.0, 1.0), 1280)


def test_the_default_for_texts_and_a_transformer_are_packaged():
    packaged = {card.id: card for card in catalog.cards("text") if card.handle == catalog.PACKAGED + card.id}
    assert {id: card.feature_size for id, card in packaged.items()} == PACKAGED_TEXTS
    assert catalog.DEFAULT_TEXT in packaged
    assert catalog.cards("text")[: len(packaged)] == tuple(packaged.values())


def test_cards_are_sorted_with_the_packaged_ones_first(monkeypatch):
    monkeypatch.setattr(catalog, "PACKAGED", "https://tfhub.dev/sayakpaul/")
    ids = [card.id for card in catalog.cards.__wrapped__()]
    count = sum(re.match("tensorflow-ic-(cait|deit|swin)-", id) is not None for id in ids)
    assert ids[:count] == sorted(id for id in ids if re.match("tensorflow-ic-(cait|deit|swin)-", id))
    assert ids[count:] == sorted(ids[count:])


def test_an_empty_cell_is_unknown_and_defaults_keep_their_types():
    row = dict.fromkeys(rows()[0], "") | {"id": "a", "task": "text", "handle": "packaged:a", "fine_tunable": "no"}
    assert catalog._card(row) == catalog.Card("a", "text", "packaged:a", fine_tunable=False)
    row["defaults"] = '{"learning_rate": 5e-5, "batch_size": 64}'
    assert catalog._card(row).defaults == {"learning_rate": 5e-5, "batch_size": 64}


def test_a_table_may_lack_what_has_no_meaning_for_its_task():
    row = dict.fromkeys(rows("texts.csv")[0], "") | {"id": "a", "task": "text", "handle": "b/1", "fine_tunable": "yes"}
    row |= {"preprocessor": "c/3", "whole_defaults": '{"batch_size": 64}'}
    card = catalog.Card("a", "text", "b/1", "c/3", whole_defaults={"batch_size": 64})
    assert catalog._card(row) == card


def test_a_task_without_cards_has_none():
    assert catalog.cards("sound") == ()


def test_what_is_not_known_is_none_and_any_size_is_told_from_it():
    bit = catalog.find("tensorflow-ic-bit-m-r50x1-ilsvrc2012-classification-1")
    swin = catalog.find("tensorflow-ic-swin-tiny-patch4-window7-224")
    assert bit is not None
    assert swin is not None
    assert (bit.image_size, bit.size_is_fixed) == (None, False)
    assert (swin.image_size, swin.size_is_fixed) == (224, True)
    assert swin.pixel_range is None
    assert swin.licence == "MIT"


def test_the_misprint_of_the_aws_documentation_is_resnet_50():
    misprint = catalog.find("tensorflow-ic-imagenet-resnet-50-classification-4")
    resnet = catalog.find("tensorflow-ic-resnet-50-classification-1")
    assert misprint is not None
    assert resnet is not None
    assert misprint.handle == resnet.handle == "https://tfhub.dev/tensorflow/resnet_50/feature_vector/1"


@pytest.mark.parametrize(
    "spelling", ["efficientnet-lite0", "EfficientNet-Lite0", "efficientnet_lite0", " EFFICIENTNET_LITE0"]
)
def test_an_id_is_found_in_any_case_and_with_underscores(spelling):
    assert catalog.find(spelling) is catalog.cards()[0]


@pytest.mark.parametrize("unknown", ["", "efficientnet", "efficientnet-lite", "tensorflow-ic-"])
def test_part_of_an_id_is_not_found(unknown):
    assert catalog.find(unknown) is None


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("efficientnet-lite-0", "efficientnet-lite0"),
        ("Effcientnet_Lite0", "efficientnet-lite0"),
        ("mobilenet_v2_100_224", "tensorflow-ic-imagenet-mobilenet-v2-100-224-classification-4"),
        ("tensorflow-ic-imagenet-inception-v3", "tensorflow-ic-imagenet-inception-v3-classification-4"),
        ("albert_en_base", "tensorflow-tc-albert-en-base"),
        ("minilm_l_6", "minilm-l6"),
        ("universal-sentence-encoder", "universal-sentence-encoder-multilingual"),
        ("bert_en_uncased_L-12_H-768_A-12", "tensorflow-tc-bert-en-uncased-L-12-H-768-A-12-2"),
        ("swin-tiny-224", "tensorflow-ic-swin-s3-tiny-224"),
        ("resnet_v1_50", "tensorflow-ic-imagenet-resnet-v1-50-classification-4"),
    ],
)
def test_a_misspelt_id_brings_at_most_three_suggestions_with_the_one_meant_first(misspelt, meant):
    found = catalog.suggestions(misspelt)
    assert found[0] == meant
    assert len(set(found)) == len(found) <= MOST_SUGGESTIONS


def test_nothing_is_suggested_for_what_resembles_nothing():
    assert catalog.suggestions("zzzz") == []
