"""Every text-only family that transformers has a masked LM and a classifier for: load, one step
against stock models, save, reload with plain transformers, resume."""

import inspect

import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from families import EIGHT, examples, save_tiny, tiny_model, tiny_tokenizer
from models_page import PAGE, families, page
from safetensors.torch import load_file
from stock_step import assert_same, expected_step, make_batch, run_step
from transformers import AutoConfig, AutoModelForSequenceClassification, EsmTokenizer

from masktuning import MaskTuningArguments, MaskTuningModel, MaskTuningTrainer
from masktuning.data.load import LabelledTexts
from masktuning.data.tokenize import encode
from masktuning.evaluation.predict import predict, predictor
from masktuning.modeling.loading import UNSUPPORTED, load_classifier

SUPPORTED = [name for name in families() if name not in UNSUPPORTED]
# Stock models that cannot be the float64 oracle, with the reason; these are compared in float32.
FLOAT32 = {
    "longformer": "its masked softmax over global positions leaves gradients that float64 has not",
    "mra": "its attention is written for float32",
}


def test_at_least_forty_families_and_the_eight_are_fused():
    assert len(SUPPORTED) >= 40 and set(EIGHT) <= set(SUPPORTED)
    assert set(UNSUPPORTED) <= set(families()), "a reason for a family that is not there"
    for name in EIGHT:
        assert tiny_model(name).mlm_head.fused, name


@pytest.mark.parametrize("family", SUPPORTED)
def test_one_step_is_the_stock_models_step(family):
    model = tiny_model(family)
    batch = make_batch(pair=True)
    if getattr(model.config, "type_vocab_size", 0) >= 2 and takes_types(model):
        # Two segments, as the family's own tokenizer would say.
        batch["token_type_ids"] = (batch["input_ids"] == 2).long().cumsum(1).clamp(max=1)
    dtype = torch.float32 if family in FLOAT32 else torch.float64
    assert_same(run_step(model, batch, 0.6), expected_step(model, batch, 0.6, dtype=dtype))


def takes_types(model):
    classes = (model.classifier, model.mlm_head.mlm)
    return all("token_type_ids" in inspect.signature(one.forward).parameters for one in classes)


@pytest.mark.parametrize("family", SUPPORTED)
def test_evaluate_gives_the_stock_classifier_s_logits(family, tmp_path):
    """Through the command's own loader and batches; BART's returns more than logits."""
    save_tiny(tmp_path, family)
    model = tiny_model(family).classifier
    model.save_pretrained(tmp_path)
    texts = [f"w{i} w{i + 1} w{i + 2}" for i in range(5)]  # of one length: FNet sees its padding
    loaded, tokenizer = load_classifier(str(tmp_path))
    trainer = predictor(loaded, tokenizer, 2)
    rows = encode(LabelledTexts("dev", "dev", [texts], [0] * 5), tokenizer, 20)
    batch = tokenizer(texts, return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    torch.testing.assert_close(torch.from_numpy(predict(trainer, rows)), expected)


@pytest.mark.parametrize("family", SUPPORTED)
def test_trained_saved_reloaded_and_resumed(family, tmp_path):
    """Two steps in one go equal one step, a reload from disk, and the other."""
    checkpoint = save_tiny(tmp_path / "checkpoint", family)
    rows = Dataset.from_list(examples(8, 1))

    def train(folder, resume=None):
        torch.manual_seed(0)
        names = {0: "bad", 1: "good"}  # BART's configuration forgets a count of two unnamed ones
        model = MaskTuningModel.from_pretrained(checkpoint, num_labels=2, id2label=names)
        args = MaskTuningArguments(
            output_dir=str(tmp_path / folder),
            max_steps=2,
            save_steps=1,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            disable_tqdm=True,
            report_to="none",
            use_cpu=True,
        )
        trainer = MaskTuningTrainer(
            model, args, train_dataset=rows, processing_class=tiny_tokenizer()
        )
        trainer.train(resume_from_checkpoint=resume)
        trainer.save_model()

    train("whole")
    train("resumed", resume=str(tmp_path / "whole" / "checkpoint-1"))
    for name in ("model.safetensors", "mlm_head/model.safetensors"):
        whole, resumed = (load_file(tmp_path / run / name) for run in ("whole", "resumed"))
        assert whole.keys() == resumed.keys()
        for key, tensor in whole.items():
            torch.testing.assert_close(resumed[key], tensor, rtol=0, atol=0, msg=key)
    before = load_file(tmp_path / "whole" / "checkpoint-1" / "model.safetensors")
    after = load_file(tmp_path / "whole" / "model.safetensors")
    assert any(not torch.equal(before[key], tensor) for key, tensor in after.items())

    stock, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "whole", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ours = MaskTuningModel.from_pretrained(tmp_path / "whole").eval()
    batch = make_batch()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        torch.testing.assert_close(ours(**inputs).logits, stock.eval()(**inputs).logits)


@pytest.mark.parametrize("family", UNSUPPORTED)
def test_an_unsupported_family_is_refused_with_its_reason(family, tmp_path):
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{family} is not supported: .*--method finetuning"):
        MaskTuningModel.from_pretrained(tmp_path)


def test_deberta_s_missing_head_is_named(tmp_path, caplog):
    """Published DeBERTa checkpoints hold a head under names that transformers does not read."""
    model = tiny_model("deberta-v2")
    model.classifier.base_model.save_pretrained(tmp_path)
    MaskTuningModel.from_pretrained(tmp_path, num_labels=2)
    assert "newly initialised in DebertaV2ForMaskedLM" in caplog.text
    assert "no masked-LM head in DeBERTa's published checkpoints" in caplog.text


def test_xmod_must_know_its_language(tmp_path):
    save_tiny(tmp_path, "xmod", default_language=None)
    with pytest.raises(ValueError, match="must name a default_language, one of en_XX"):
        MaskTuningModel.from_pretrained(tmp_path, mlm_head=False)


def test_a_tokenizer_without_a_fast_one(tmp_path, caplog):
    """ESM has only such a one; texts are cut and counted all the same."""
    words = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWC", "<mask>"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = EsmTokenizer(str(tmp_path / "vocab.txt"))
    assert not tokenizer.is_fast
    rows = encode(LabelledTexts("dev", "dev", [["L A G V S", "L A"]], [0, 1]), tokenizer, 5)
    assert rows["input_ids"][:] == [[0, 4, 5, 6, 2], [0, 4, 5, 2]]
    assert rows["truncated"][:] == [True, False] and "1 of 2 texts" in caplog.text


def test_mbart_starts_its_decoder_with_the_text_s_last_token():
    """As the stock class does where a configuration names no other start."""
    from transformers.models.mbart.modeling_mbart import shift_tokens_right

    from masktuning.modeling.encoder_decoder import _decoder_start

    ids = torch.tensor([[0, 7, 8, 2, 9], [0, 7, 2, 9, 1]])
    config = AutoConfig.for_model("mbart", pad_token_id=1)
    assert config.decoder_start_token_id is None
    ours = torch.cat([_decoder_start(ids, config), ids[:, :-1]], 1)
    assert torch.equal(ours, shift_tokens_right(ids, 1))


def test_the_page_of_models_is_fresh():
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(), PAGE
