"""One training step against stock float64 models, for every family.

The expected loss and gradients follow Mask-tuning's algorithm with two untouched Hugging Face
models of the same weights: the masked LM scores every position and is read at the masked ones,
the classifier reads its argmax. A parameter they share gets the sum of its two gradients.
"""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from emulated_cuda import emulated
from families import CONFIGS, SPECIAL, examples, tiny_model, tiny_tokenizer
from oracles import MASK, counts_of, expected_masks
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from masktuning.collator import MaskTuningCollator
from masktuning.methods.mask_tuning import MaskTuning
from masktuning.methods.step import StepContext
from masktuning.objective import perturbation_from
from masktuning.ops import backend

SEED, VISIT = 77, 3


@pytest.fixture(autouse=True, scope="module", params=["reference", "cpp", "cuda"])
def _back_end(request):
    """Every test here holds on each; the CUDA kernels' source runs on the CPU."""
    with emulated() if request.param == "cuda" else backend.use(request.param):
        yield


def make_batch(count=6, pair=False):
    return MaskTuningCollator(tiny_tokenizer(), mask_rate=0.2)(examples(count, 1, pair))


def run_step(model, batch, alpha, two_phase=True, denominators=None, **settings):
    """(loss, {name: gradient}) of our step."""
    model.zero_grad()
    if denominators is None:
        denominators = [batch["num_masked"], len(batch["labels"])]
    context = StepContext(
        rng=torch.tensor([SEED, VISIT]),
        denominators=torch.tensor(denominators, dtype=torch.float32),
        perturbation=perturbation_from(tiny_tokenizer(), model.config.vocab_size, **settings),
        label_smoothing=0.0,
        two_phase=two_phase,
        backward=lambda loss, mlm=False: loss.backward(),
        no_sync=contextlib.nullcontext,
    )
    terms = MaskTuning(alpha).step(model.train(), batch, context)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return float(terms.loss), gradients


def stock_twins(model):
    """A stock classifier and a stock masked LM in float64 with the model's weights."""
    classifier = AutoModelForSequenceClassification.from_config(model.config).double().train()
    classifier.load_state_dict(model.classifier.state_dict())
    mlm = AutoModelForMaskedLM.from_config(model.config).double().train()
    getattr(mlm, mlm.base_model_prefix).load_state_dict(model.encoder.state_dict(), strict=False)
    head = {k: v for k, v in model.mlm_head.mlm.state_dict().items() if "decoder.weight" not in k}
    mlm.load_state_dict(head, strict=False)
    return classifier, mlm


def expected_step(model, batch, alpha, include_original=False):
    """(loss, {name: gradient}) of Eq. (1), from the stock twins."""
    classifier, mlm = stock_twins(model)
    input_ids, labels = batch["input_ids"], batch["labels"]
    special = torch.tensor(list(SPECIAL.values()))
    maskable = ~torch.isin(input_ids, special)
    counts = counts_of(maskable, 0.2)
    shown, positions, targets = expected_masks(
        input_ids, maskable, batch["example_ids"], counts, SEED, VISIT
    )
    extras = {"attention_mask": batch.get("attention_mask", torch.ones_like(input_ids))}
    decoder = {}
    if model.config.is_encoder_decoder:
        start = torch.full((len(input_ids), 1), model.config.decoder_start_token_id)
        decoder["decoder_input_ids"] = torch.cat([start, input_ids[:, :-1]], 1)
    logits = mlm(input_ids=shown, **extras, **decoder).logits.flatten(0, 1)[positions]
    mlm_loss = F.cross_entropy(logits, torch.tensor(targets))
    banned = torch.tensor([i for i in SPECIAL.values() if i != SPECIAL["<unk>"]])
    tokens = logits.detach().index_fill(1, banned, -torch.inf).argmax(1)
    perturbed = input_ids.clone()
    perturbed.view(-1)[positions] = tokens
    assert int((perturbed == MASK).sum()) == 0

    def classification(ids):
        return F.cross_entropy(classifier(input_ids=ids, **extras).logits, labels)

    class_loss = classification(perturbed)
    if include_original:
        class_loss = (class_loss + classification(input_ids)) / 2
    loss = alpha * mlm_loss + (1 - alpha) * class_loss
    loss.backward()
    gradients = {f"classifier.{n}": p.grad for n, p in classifier.named_parameters()}
    encoder = f"{mlm.base_model_prefix}."
    for name, p in mlm.named_parameters():
        if p.grad is None:
            continue
        shared = f"classifier.{classifier.base_model_prefix}.{name.removeprefix(encoder)}"
        if name.startswith(encoder):
            known = gradients[shared]
            gradients[shared] = p.grad if known is None else known + p.grad
        else:
            gradients[f"mlm_head.mlm.{name}"] = p.grad
    return float(loss.detach()), {n: g for n, g in gradients.items() if g is not None}


def assert_same(ours, expected, tolerance=1e-5):
    (loss, gradients), (expected_loss, expected_gradients) = ours, expected
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    scale = max(float(g.norm()) for g in expected_gradients.values())
    for name in expected_gradients.keys() | gradients.keys():
        want = expected_gradients.get(name)
        have = gradients.get(name)
        if want is None or have is None:  # no gradient on one side: none to speak of on the other
            rest = have if want is None else want
            assert float(rest.norm()) < tolerance * scale, name
            continue
        # A key bias shifts every score of a row alike: its gradient is zero but for rounding.
        error = float((have.double() - want).norm())
        assert error < tolerance * max(float(want.norm()), 1e-3 * scale), name


@pytest.mark.parametrize("two_phase", [True, False], ids=["two_phase", "joint"])
@pytest.mark.parametrize("family", CONFIGS)
def test_loss_and_gradients(family, two_phase):
    model = tiny_model(family)
    assert model.mlm_head.fused
    batch = make_batch()
    assert_same(run_step(model, batch, 0.6, two_phase), expected_step(model, batch, 0.6))


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


@pytest.mark.parametrize("two_phase", [True, False], ids=["two_phase", "joint"])
@pytest.mark.parametrize("family", ["bert", "bart"])
def test_include_original_averages_both_texts(family, two_phase):
    model = tiny_model(family)
    batch = make_batch()
    ours = run_step(model, batch, 0.6, two_phase, include_original=True)
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


@pytest.mark.parametrize("family", CONFIGS)
def test_saved_and_loaded_again(family, tmp_path):
    """The folder is a stock classifier; with mlm_head/ beside it every weight comes back."""
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
