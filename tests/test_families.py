"""Every text-only family that transformers has a masked LM and a classifier for: load, one step
against stock models, save, reload with plain transformers, resume."""

import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from families import EIGHT, examples, save_tiny, tiny_model, tiny_tokenizer
from models_page import PAGE, families, page
from safetensors.torch import load_file
from stock_step import assert_same, expected_step, make_batch, run_step
from transformers import AutoConfig, AutoModelForSequenceClassification

from masktuning import MaskTuningArguments, MaskTuningModel, MaskTuningTrainer
from masktuning.pretrained import UNSUPPORTED

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
    batch = make_batch()
    dtype = torch.float32 if family in FLOAT32 else torch.float64
    assert_same(run_step(model, batch, 0.6), expected_step(model, batch, 0.6, dtype=dtype))


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


def test_mbart_starts_its_decoder_with_the_text_s_last_token():
    """As the stock class does where a configuration names no other start."""
    from transformers.models.mbart.modeling_mbart import shift_tokens_right

    from masktuning.model import _decoder_start

    ids = torch.tensor([[0, 7, 8, 2, 9], [0, 7, 2, 9, 1]])
    config = AutoConfig.for_model("mbart", pad_token_id=1)
    assert config.decoder_start_token_id is None
    ours = torch.cat([_decoder_start(ids, config), ids[:, :-1]], 1)
    assert torch.equal(ours, shift_tokens_right(ids, 1))


def test_the_page_of_models_is_fresh():
    assert (ROOT / PAGE).read_text(encoding="utf-8") == page(), "run `python tests/models_page.py`"
