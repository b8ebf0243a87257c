"""One reading of a checkpoint gives the models that two stock loads give."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers.modeling_utils
from families import EIGHT, config_of, save_tiny, tiny_model
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from masktuning import MaskTuningModel
from masktuning.config.errors import UsageError
from masktuning.modeling.loading import check_folder

LABELS = {0: "bad", 1: "good", 2: "neither"}


def assert_as_stock(folder, **config):
    """Every tensor, the draws for the new ones, and the random state afterwards."""
    torch.manual_seed(5)
    classifier, mlm = (
        auto.from_pretrained(folder, dtype=torch.float32, **given)
        for auto, given in (
            (AutoModelForSequenceClassification, config),
            (AutoModelForMaskedLM, {}),
        )
    )
    state = torch.get_rng_state()
    torch.manual_seed(5)
    ours = MaskTuningModel.from_pretrained(folder, **config)
    assert torch.equal(torch.get_rng_state(), state)
    found, expected = ours.classifier.state_dict(), classifier.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    found, expected = ours.mlm_head.mlm.state_dict(), mlm.state_dict()
    head = [name for name in expected if not name.startswith(f"{mlm.base_model_prefix}.")]
    assert head
    for name in head:
        assert torch.equal(found[name], expected[name]), name
    assert ours.config.to_dict() == classifier.config.to_dict()
    assert ours.config.name_or_path == str(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", EIGHT)
def test_the_models_are_those_of_two_stock_loads(family, dtype, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config_of(family)).to(dtype)
    model.save_pretrained(tmp_path)
    assert_as_stock(tmp_path, num_labels=3, id2label=LABELS)


def test_a_trained_classifier_keeps_its_own(tmp_path):
    """No tensor is new, and those of the masked LM are."""
    tiny_model("bert").classifier.save_pretrained(tmp_path)
    assert_as_stock(tmp_path)


def test_a_checkpoint_of_several_files_is_left_to_transformers(tmp_path):
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config_of("roberta"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert not (tmp_path / "model.safetensors").exists()
    assert_as_stock(tmp_path, num_labels=3, id2label=LABELS)


@pytest.mark.parametrize("mlm_head", [True, False])
def test_the_file_is_opened_once(mlm_head, tmp_path, monkeypatch):
    folder = save_tiny(tmp_path, "bert")
    opened = []
    for module in (safetensors.torch, transformers.modeling_utils):

        def counted(file, *arguments, real=module.safe_open, **options):
            opened.append(Path(file))
            return real(file, *arguments, **options)

        monkeypatch.setattr(module, "safe_open", counted)
    MaskTuningModel.from_pretrained(folder, mlm_head=mlm_head, num_labels=2)
    assert opened == [folder / "model.safetensors"]


def test_heads_with_a_tensor_of_the_same_memory_are_parted():
    """One reading may give both heads one tensor; each must then train its own."""
    stock = tiny_model("bert")
    classifier, mlm = stock.classifier, AutoModelForMaskedLM.from_config(stock.config)
    ours, theirs = (
        classifier.bert.pooler.dense.bias,
        mlm.cls.predictions.transform.dense.bias,
    )
    theirs.data = ours.data
    made = MaskTuningModel(classifier, mlm)
    assert torch.equal(theirs, ours) and theirs.data_ptr() != ours.data_ptr()
    assert "cls.predictions.transform.dense.bias" in made._head_names
    # The encoder stays shared, and the decoder tied to it.
    assert made.mlm_head.weight.data_ptr() == classifier.get_input_embeddings().weight.data_ptr()


def test_a_mistyped_folder_is_told_at_once(tmp_path, monkeypatch):
    """Names of the hub pass; what is meant to be a folder here does not."""
    (tmp_path / "runs" / "sst2").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("runs/sst2", "roberta-base", "FacebookAI/roberta-base"):
        check_folder(name)
    for name in ("runs/sst3", "./runs/sst3", "runs/sst3/", f"{tmp_path}/runs/sst3"):
        with pytest.raises(UsageError, match=r"no such folder; did you mean .*runs/sst2"):
            check_folder(name)
    for name in ("runs/other", "/nowhere/at/all", "sst2/"):
        with pytest.raises(UsageError, match=f"^{name}: no such folder$"):
            check_folder(name)
