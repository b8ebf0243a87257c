"""Word-level tokenizers that put pairs together as BERT, DistilBERT, RoBERTa and MPNet do."""

from families import SPECIAL, VOCAB
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    "bert": "<s> $A </s> $B:1 </s>:1",
    "distilbert": "<s> $A </s> $B </s>",
    "roberta": "<s> $A </s> </s> $B </s>",
}


def pair_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Words w0, w1, ... and capitals W0, W1, ... of the first ten of them."""
    words = [f"w{i}" for i in range(VOCAB - len(SPECIAL) - 10)] + [f"W{i}" for i in range(10)]
    vocab = {**SPECIAL, **{word: i + len(SPECIAL) for i, word in enumerate(words)}}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair=TEMPLATES[family],
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=names + ["token_type_ids"] * (family == "bert"),
        model_max_length=60,
        **{"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"},
        **{"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"},
    )


def pair_rows(tokenizer, pairs, labels):
    """Tokenised rows of pairs (or of single texts) with labels and example ids from 100 on."""
    encoded = [tokenizer(*((one,) if isinstance(one, str) else one)) for one in pairs]
    return [
        {**row, "labels": label, "example_id": 100 + i}
        for i, (row, label) in enumerate(zip(encoded, labels, strict=True))
    ]
