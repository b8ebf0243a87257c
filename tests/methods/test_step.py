"""One training step against stock float64 models, for eight families on every back end."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulated_cuda import emulated
from families import EIGHT, examples, tiny_model, tiny_tokenizer
from stock_step import assert_same, expected_step, make_batch, run_step, stock_twins
from transformers import AutoModelForSequenceClassification

from masktuning.data.collator import MaskTuningCollator
from masktuning.methods.step import stack_counts
from masktuning.ops import backends


@pytest.fixture(autouse=True, scope="module", params=["reference", "cpp", "cuda"])
def _back_end(request):
    """Every test here holds on each; the CUDA kernels' source runs on the CPU."""
    with emulated() if request.param == "cuda" else backends.use(request.param):
        yield


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "joint"])
@pytest.mark.parametrize("family", EIGHT)
def test_loss_and_gradients(family, apart):
    model = tiny_model(family)
    assert model.mlm_head.fused
    batch = make_batch()
    assert_same(run_step(model, batch, 0.6, apart), expected_step(model, batch, 0.6))


@pytest.mark.parametrize("family", ["bert", "roberta", "bart"])
def test_pairs_and_eager_attention(family):
    model = tiny_model(family, _attn_implementation="eager")
    batch = make_batch(4, pair=True)
    assert_same(run_step(model, batch, 0.3), expected_step(model, batch, 0.3))


@pytest.mark.parametrize("family", ["bert", "roberta", "bart"])
def test_a_batch_without_padding(family):
    model = tiny_model(family)
    rows = examples(1, 5)
    rows.append({**rows[0], "example_id": 9, "labels": 1})
    batch = MaskTuningCollator(tiny_tokenizer(), mask_rate=0.2)(rows)
    assert "attention_mask" not in batch
    assert_same(run_step(model, batch, 0.6), expected_step(model, batch, 0.6))


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_alpha_zero_is_the_step_without_integrated_loss(family):
    """L = L_FT alone: the masked LM's own head gets no gradient at all."""
    model = tiny_model(family)
    batch = make_batch()
    loss, gradients = run_step(model, batch, 0.0)
    assert_same((loss, gradients), expected_step(model, batch, 0.0))
    assert not any(name.startswith("mlm_head") for name in gradients)


def test_alpha_one_gives_the_classifier_no_gradient():
    model = tiny_model("bert")
    batch = make_batch()
    loss, gradients = run_step(model, batch, 1.0)
    assert_same((loss, gradients), expected_step(model, batch, 1.0))
    head = [g for name, g in gradients.items() if name.startswith("classifier.classifier")]
    assert head and all(float(g.abs().max()) == 0 for g in head)


@pytest.mark.parametrize("apart", [True, False], ids=["apart", "joint"])
@pytest.mark.parametrize("family", ["bert", "bart"])
def test_include_original_averages_both_texts(family, apart):
    model = tiny_model(family)
    batch = make_batch()
    ours = run_step(model, batch, 0.6, apart, include_original=True)
    assert_same(ours, expected_step(model, batch, 0.6, include_original=True))


def test_an_example_with_nothing_to_mask_is_classified_as_it_is():
    model = tiny_model("bert")
    rows = [{"input_ids": [0, 2], "attention_mask": [1, 1], "labels": 1, "example_id": 5}]
    batch = MaskTuningCollator(tiny_tokenizer())(rows)
    assert batch["num_masked"] == 0
    classifier, _ = stock_twins(model)
    expected = F.cross_entropy(classifier(batch["input_ids"]).logits, batch["labels"])
    loss, gradients = run_step(model, batch, 0.25)
    assert loss == pytest.approx(0.75 * float(expected.detach()), rel=1e-5)
    assert all(g.isfinite().all() for g in gradients.values())


def test_bart_pools_as_the_stock_class():
    """Evaluation runs our own pooling of the last </s>; the stock class does the same slower."""
    model = tiny_model("bart").eval()
    batch = make_batch(5)
    with torch.no_grad():
        stock = model.classifier(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        )
        ours = model(**batch)
    torch.testing.assert_close(ours.logits, stock.logits)


@pytest.mark.parametrize("family", EIGHT)
def test_saved_and_loaded_again(family, tmp_path):
    """The folder is a stock classifier; with mlm_head/ alongside, every weight comes back."""
    model = tiny_model(family).eval()
    model.save_pretrained(tmp_path)
    batch = make_batch()
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    stock, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        expected = stock.eval()(**inputs).logits
        torch.testing.assert_close(model(**inputs).logits, expected)

    again = type(model).from_pretrained(tmp_path)
    other = tiny_model(family, seed=1)
    other.load_weights(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
        assert torch.equal(other.state_dict()[name], tensor), name
    tied = (
        again.mlm_head.weight.data_ptr() == again.encoder.get_input_embeddings().weight.data_ptr()
    )
    assert tied
    assert np.isclose(run_step(again, batch, 0.6)[0], run_step(model, batch, 0.6)[0], rtol=1e-6)


@pytest.mark.parametrize(
    "values", [[3, 4], [torch.tensor(3), torch.tensor(4)], [3, torch.tensor(4)]]
)
def test_counts_are_summed_whatever_their_kind(values):
    counts = [{"masked": 1, "labels": value} for value in values]
    totals = stack_counts(counts, torch.device("cpu"))
    assert totals.tolist() == [2.0, 7.0] and totals.dtype == torch.float32
