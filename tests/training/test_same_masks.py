"""The masks of the demo, which no change of the code, the machine or the back end may alter."""

import hashlib

import pytest
import torch
from transformers import AutoTokenizer

from masktuning import MaskTuningCollator, sample_masks
from masktuning.data.generated import examples
from masktuning.demo import EMBEDDED
from masktuning.ops import backends

# SHA-256 of all masked texts, positions and targets, recorded before the package was laid out anew.
DIGESTS = {
    None: "9a7e8ae5bc99ae3441de9ca5283731058620676fbafad0bbb5ac38b16ca7bf48",
    "80-10-10": "f218bc7e3622ac2e5ef0e2c71a6c68df056b81690fc167455ca452cdc0e9e563",
}


@pytest.mark.parametrize("corruption", DIGESTS)
@pytest.mark.parametrize("kernels", ["reference", "cpp"])
def test_the_masks_of_200_batches(kernels, corruption):
    """Only integers decide them, so the digest is the same on every machine."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    texts, _ = examples("demo/train")
    encoded = tokenizer([text for (text,) in texts], truncation=True, max_length=48)["input_ids"]
    rows = [{"input_ids": ids, "labels": 0, "example_id": i} for i, ids in enumerate(encoded)]
    collator = MaskTuningCollator(tokenizer, mask_rate=0.05, min_per_example=1)
    special = set(tokenizer.all_special_ids)
    plain = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    digest = hashlib.sha256()
    for step in range(200):
        epoch, i = divmod(step, 62)
        batch = collator(rows[32 * i : 32 * i + 32])
        with backends.use(kernels):
            masked = sample_masks(
                batch["input_ids"],
                batch["maskable"],
                batch["example_ids"],
                batch["offsets"],
                torch.tensor([42, epoch]),
                batch["num_masked"],
                tokenizer.mask_token_id,
                plain if corruption else None,
            )
        for tensor in masked:
            digest.update(str(tuple(tensor.shape)).encode() + tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest() == DIGESTS[corruption]
