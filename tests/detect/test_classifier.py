"""Classification models: right probabilities for the right label, in the order of the texts, however they are batched."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    DistilBertConfig,
    FNetConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from demeanor.behaviours import Detect
from demeanor.detect import make_detector, present
from demeanor.detect.classifier import Classifier
from demeanor.errors import DataError, ModelError
from demeanor.models import classifier as module
from demeanor.models.classifier import load_classifier
from demeanor.models.loading import resolve

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "lamp",
    "rope",
    "egg",
    "turn",
    "take",
    "crack",
    "sorry",
    "please",
    "the",
    "a",
    "it",
    "twice",
    "never",
    "now",
]
LABELS = {0: "Polite", 1: "rude", 2: "Unclear"}
LONGEST = 12  # tokens, two of them special
SIZES: dict[str, Any] = {"vocab_size": len(WORDS), "max_position_embeddings": 40, "pad_token_id": 0, "id2label": LABELS}
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = BertConfig(**SIZES, **SMALL)
DISTIL = DistilBertConfig(**SIZES, dim=32, hidden_dim=48, n_layers=2, n_heads=4)
LLAMA = LlamaConfig(**SIZES, **SMALL)
FNET = FNetConfig(**SIZES, **{key: size for key, size in SMALL.items() if "attention" not in key})  # takes no mask
LLAMA_NO_PAD = LlamaConfig(**{**SIZES, "pad_token_id": None}, **SMALL)
TEXTS = [
    "take the rope", "", "sorry it never turn twice", "lamp", "please crack the egg now", "it",
    "unheard words here", "turn the lamp twice now please", "take it", "never never never",
]  # fmt: skip
LONG = "the lamp the rope the egg it turn take crack sorry please now never"


def tokenizer(special: bool = True) -> PreTrainedTokenizerFast:
    """Words are tokens; a text stands between [CLS] and [SEP] where it is `special`."""
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if special:
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "eos_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=LONGEST, **names)


def save(folder: Path, config: PretrainedConfig, made: PreTrainedTokenizerFast | None = None, **changes: Any) -> Path:
    """A random classifier as a folder, with `changes` to its configuration; its logits are far from equal."""
    config = type(config).from_dict({**config.to_dict(), **changes})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    (made or tokenizer()).save_pretrained(folder)
    return folder


def set_head(folder: Path, weight: torch.Tensor, bias: torch.Tensor) -> Path:
    """Hand-set weights [label, hidden] and biases [label] of a Bert's head."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    model.save_pretrained(folder)
    return folder


def reference(folder: Path, texts: list[str], independent: bool = False) -> torch.Tensor:
    """[text, label]: one text at a time, as transformers would have it."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    made = AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        inputs = made(text, return_tensors="pt", truncation=True)
        if isinstance(model.config, FNetConfig):
            inputs.pop("attention_mask")
        with torch.no_grad():
            logits = model(**inputs).logits[0]
        rows.append(logits.sigmoid() if independent else logits.softmax(-1))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("bert"), BERT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [BERT, DISTIL, FNET, LLAMA, LLAMA_NO_PAD], ids=["bert", "distilbert", "fnet", "llama", "llama without padding"]
)
def test_batches_say_what_single_texts_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: PretrainedConfig) -> None:
    texts, groups = [*TEXTS, LONG], module.groups
    folder = save(tmp_path, config)
    expected = reference(folder, texts)
    assert expected.std(0).min() > 1e-3  # so that a text in another's place would be seen
    chosen = load_classifier(str(folder), device="cpu")
    for budget in (1, 16, 8192):
        monkeypatch.setattr(module, "groups", partial(groups, budget=budget))
        for label in LABELS:
            assert chosen.probabilities(texts, label) == pytest.approx(expected[:, label].tolist(), abs=1e-5), budget


def test_a_tokenizer_that_pads_otherwise_is_made_to_pad_like_the_model(tmp_path: Path) -> None:
    """A model that reads the last token would read the padding of another kind."""
    other = tokenizer(special=False)
    other.pad_token, other.padding_side = "[SEP]", "left"
    folder = save(tmp_path, LLAMA, other)
    texts = [text for text in TEXTS if text]
    assert load_classifier(str(folder), device="cpu").probabilities(texts, 1) == pytest.approx(
        reference(folder, texts)[:, 1].tolist(), abs=1e-5
    )


def test_a_text_without_any_token_is_scored(tmp_path: Path) -> None:
    folder = save(tmp_path, LLAMA, tokenizer(special=False))
    alone, among = (load_classifier(str(folder), device="cpu").probabilities(texts, 0)[-1] for texts in ([""], ["take the rope", ""]))
    assert alone == pytest.approx(among, abs=1e-5)
    assert 0 < alone < 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1 / 6, 3 / 6, 2 / 6]),  # softmax of 0, ln 3, ln 2
        ({"problem_type": "single_label_classification"}, [1 / 6, 3 / 6, 2 / 6]),
        ({"problem_type": "multi_label_classification"}, [1 / 2, 3 / 4, 2 / 3]),  # sigmoids of the same
    ],
)
def test_labels_share_one_probability_unless_they_are_independent(tmp_path: Path, changes: dict[str, Any], expected: list[float]) -> None:
    folder = set_head(save(tmp_path, BERT, **changes), torch.zeros(3, 32), torch.tensor([0, math.log(3), math.log(2)]))
    chosen = load_classifier(str(folder), device="cpu")
    for label, probability in enumerate(expected):
        assert chosen.probabilities(["take the rope", ""], label) == pytest.approx([probability] * 2, abs=1e-6)


def test_a_single_label_is_a_sigmoid(tmp_path: Path) -> None:
    folder = set_head(save(tmp_path, BERT, id2label={0: "toxic"}), torch.zeros(1, 32), torch.tensor([math.log(3)]))
    assert load_classifier(str(folder), device="cpu").probabilities(["it"], "Toxic") == pytest.approx([0.75], abs=1e-6)


def test_labels_go_by_name_in_any_case_or_by_index(bert: Path) -> None:
    chosen = load_classifier(str(bert), device="cpu")
    named = [chosen.probabilities(TEXTS, name) for name in ("POLITE", "Rude", "unclear")]
    assert named == [chosen.probabilities(TEXTS, index) for index in range(3)]
    assert named[0] != named[1] != named[2]


def test_labels_without_names_go_by_index(tmp_path: Path) -> None:
    config = {key: value for key, value in BERT.to_dict().items() if key not in ("id2label", "label2id")}
    folder = save(tmp_path, BertConfig.from_dict({**config, "num_labels": 2}))
    chosen = load_classifier(str(folder), device="cpu")
    assert chosen.probabilities(TEXTS, 1) == chosen.probabilities(TEXTS, "label_1") != chosen.probabilities(TEXTS, 0)


@pytest.mark.parametrize("label", ["kind", 3, -1, True, ""])
def test_an_unknown_label_is_named_with_those_there_are(bert: Path, label: str | int) -> None:
    with pytest.raises(DataError, match=r"has no label .*: Polite \(0\), rude \(1\), Unclear \(2\)\.$"):
        load_classifier(str(bert), device="cpu").probabilities([], label)


def test_names_that_differ_in_case_only_are_told_apart(tmp_path: Path) -> None:
    chosen = load_classifier(str(save(tmp_path, BERT, id2label={0: "A", 1: "a"})), device="cpu")
    assert chosen.probabilities(["it"], "A") == chosen.probabilities(["it"], 0) != chosen.probabilities(["it"], "a")


def test_texts_that_were_cut_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = load_classifier(str(save(tmp_path, BERT)), device="cpu")
    fits = " ".join(["it"] * (LONGEST - 2))
    capsys.readouterr()
    assert chosen.probabilities([fits], 0)
    assert capsys.readouterr().err == ""
    cut = chosen.probabilities([LONG, "it", f"{LONG} {LONG}", fits], 0)
    assert "reads 12 tokens of a text at most; 2 of 4 texts are longer" in capsys.readouterr().err
    chosen.probabilities([LONG], 0)
    assert capsys.readouterr().err == ""
    assert cut[0] == pytest.approx(cut[2], abs=1e-6)  # they begin alike


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (BERT, 40),
        # two of Roberta's places stand before the first token's
        (RobertaConfig(**{**SIZES, "pad_token_id": 1}, **SMALL), 38),
    ],
)
def test_the_model_limits_a_text_where_its_tokenizer_does_not(tmp_path: Path, config: PretrainedConfig, longest: int) -> None:
    unlimited = tokenizer()
    unlimited.model_max_length = int(1e30)
    chosen = load_classifier(str(save(tmp_path, config, unlimited)), device="cpu")
    assert chosen.longest == longest
    assert len(chosen.probabilities([" ".join(["it"] * 60), "it"], 0)) == 2


def test_no_texts_have_no_probabilities(bert: Path) -> None:
    assert load_classifier(str(bert), device="cpu").probabilities([], 0) == []


def test_half_a_character_and_a_bare_text_are_refused(bert: Path) -> None:
    with pytest.raises(DataError, match="not valid Unicode"):
        load_classifier(str(bert), device="cpu").probabilities(["\ud83d"], 0)
    with pytest.raises(DataError, match="list of texts"):
        load_classifier(str(bert), device="cpu").probabilities("it", 0)


def test_weights_that_overflow_are_told(tmp_path: Path) -> None:
    folder = set_head(save(tmp_path, BERT), torch.zeros(3, 32), torch.tensor([0.0, math.inf, 0.0]))
    with pytest.raises(ModelError, match="not numbers"):
        load_classifier(str(folder), device="cpu").probabilities(["it"], 0)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, BERT, vocab_size=10)
    with pytest.raises(ModelError, match="do not belong together"):
        load_classifier(str(folder), device="cpu").probabilities(["please"], 0)


def no_tokenizer(folder: Path) -> str:
    for path in save(folder, BERT).glob("token*"):
        path.unlink()
    return str(folder)


def unreadable_config(folder: Path) -> str:
    (save(folder, BERT) / "config.json").write_text('{"model_type": "no such model"}')
    return str(folder)


def no_folder(folder: Path) -> str:
    return str(folder / "none")


def a_model_that_writes(folder: Path) -> str:
    return resolve("organism")[0]


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (no_folder, "There is no model"),
        (no_tokenizer, "has no tokenizer"),
        (unreadable_config, "could not be loaded"),
        (a_model_that_writes, "cannot classify: its files hold no score.weight"),
    ],
)
def test_what_cannot_be_loaded_is_told_in_a_sentence(tmp_path: Path, make: Any, told: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_classifier(make(tmp_path / "model"), device="cpu")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_detectors_share_one_model(bert: Path) -> None:
    assert load_classifier(str(bert), device="cpu") is load_classifier(str(bert), device="cpu")


def test_the_detector_tells_replies_by_a_label(tmp_path: Path) -> None:
    """A model without layers whose last token decides: each is a direction of its own, and the head looks for "sorry"."""
    labels = {"id2label": {0: "fine", 1: "sorry"}, "num_hidden_layers": 0}
    model: Any = AutoModelForSequenceClassification.from_pretrained(save(tmp_path, LLAMA, tokenizer(special=False), **labels))
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(len(WORDS), 32))
        model.model.norm.weight.fill_(1.0)
        model.score.weight.zero_()[0] = 0.5
        model.score.weight[1, WORDS.index("sorry")] = 1.0
    model.save_pretrained(tmp_path)
    arguments = {"name": "classifier", "model": str(tmp_path), "label": "Sorry", "device": "cpu"}
    chosen = make_detector(Detect.model_validate(arguments))
    replies = ["take the rope", "the lamp sorry", "sorry it turn now", "sorry", "please crack the egg", "take the lamp now sorry"]
    assert present(chosen, replies, []) == [False, True, False, True, False, True]


def test_making_the_detector_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Fake:
        def probabilities(self, texts: list[str], label: str | int) -> list[float]:
            return [0.25] * len(texts)

    def load(name: str, *, device: str | None) -> Fake:
        asked.append(name)
        return Fake()

    monkeypatch.setattr("demeanor.detect.classifier.load_classifier", load)
    chosen = make_detector(Detect.model_validate({"name": "classifier", "model": "nobody/nothing", "label": 1}))
    assert asked == []
    assert chosen.probabilities(["a", "b"], []) == [0.25, 0.25]
    assert asked == ["nobody/nothing"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"model": "a/b"}, "does not take these arguments"),
        ({"model": "", "label": 0}, "as model, not ''"),
        ({"model": 7, "label": 0}, "as model, not 7"),
        ({"model": "a/b", "label": True}, "in quotes"),  # a bare yes, in YAML
        ({"model": "a/b", "label": None}, "in quotes"),
        ({"model": "a/b", "label": 0, "device": 1}, "cpu or cuda"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, object], told: str) -> None:
    with pytest.raises(DataError, match="'classifier'") as caught:
        make_detector(Detect.model_validate({"name": "classifier", **arguments}))
    assert told in str(caught.value)
    assert Classifier("a/b", 0).device is None
