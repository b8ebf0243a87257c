"""CoNLL-U files, and the words that the tokens of a sentence belong to."""

import logging

import pytest
from families import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from treebanks import ROW, sentences, write_treebank

from masktuning.config.errors import UsageError
from masktuning.data.conllu import ParsedSentence, read_conllu
from masktuning.data.treebank import treebank_rows, words_of_tokens

GOOD = ["# text = a b", ROW.format(1, "a", "X", 2, "det"), ROW.format(2, "b", "X", 0, "root")]


def write(path, lines):
    path.write_text("\n".join([*lines, ""]))
    return path


def test_sentences_without_multiword_tokens_and_empty_nodes(tmp_path):
    read = read_conllu(write_treebank(tmp_path / "a.conllu"))
    assert [[*zip(s.words, s.heads, s.relations, strict=True)] for s in read] == sentences()


def test_what_may_stand_in_a_file(tmp_path):
    """A byte order mark, Windows line ends, a space or a line separator within a word, no end."""
    path = tmp_path / "a.conllu"
    rows = [ROW.format(1, "1 000", "NUM", 0, "root"), ROW.format(2, "a\u2028b", "X", 1, "dep")]
    path.write_bytes("\r\n".join(["\ufeff# c", *rows, "", "", "# no words", ""]).encode())
    assert read_conllu(path) == [ParsedSentence(["1 000", "a\u2028b"], [0, 1], ["root", "dep"])]
    assert len(read_conllu(write(path, [*GOOD, "", *GOOD]))) == 2
    path.write_text("\n".join(GOOD))
    assert len(read_conllu(path)) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1\ta\tb", "line 2: 3 columns with tabs between them, where CoNLL-U has 10"),
        (ROW.format(2, "a", "X", 0, "root"), "line 2: the first column is '2', where word 1 is"),
        (ROW.format(1, " ", "X", 0, "root"), "line 2: the second column, the word, is empty"),
        (ROW.format(1, "a", "X", "_", "root"), "line 2: the seventh column is '_', not the number"),
        (ROW.format(1, "a", "X", "-1", "root"), "line 2: the seventh column is '-1'"),
        (ROW.format(1, "a", "X", 1, "root"), "line 2: word 1 is its own head"),
        (ROW.format(1, "a", "X", 0, "_"), "line 2: the eighth column, the relation"),
        (ROW.format(1, "a", "X", 9, "dep"), "line 2: the head is word 9, but .* has 2 words"),
        (ROW.format("1.1", "a", "X", "_", "_"), "line 3: the first column is '2', where word 1"),
    ],
)
def test_a_broken_row_is_one_line(tmp_path, row, message):
    path = write(tmp_path / "a.conllu", [GOOD[0], row, GOOD[2], ""])
    with pytest.raises(UsageError, match=message) as caught:
        read_conllu(path)
    assert str(caught.value).startswith(f"{path}, line ") and "\n" not in str(caught.value)


def test_files_that_are_no_treebank(tmp_path):
    path = tmp_path / "a.conllu"
    with pytest.raises(UsageError, match="no such file"):
        read_conllu(path)
    with pytest.raises(UsageError, match="holds no sentence"):
        read_conllu(write(path, ["# nothing", ""]))
    with pytest.raises(UsageError, match="line 1: the sentence has no words"):
        read_conllu(write(path, [ROW.format("1-2", "ab", "_", "_", "_")]))
    path.write_bytes(b"caf\xe9")
    with pytest.raises(UsageError, match="not UTF-8 at byte 3"):
        read_conllu(path)


def test_rows_of_tokens():
    sentence = ParsedSentence(["w5 w6", "w7", "unknown"], [2, 0, 2], ["amod", "root", "dep"])
    (row,) = treebank_rows("x", [sentence], tiny_tokenizer(), {"root": 0, "amod": 1})
    assert row["input_ids"] == [0, 10, 11, 12, 3, 2]
    assert row["words"] == [0, 1, 1, 2, 3, 0]  # a word with a space has two tokens
    assert (row["heads"], row["relations"]) == ([2, 0, 2], [1, 0, -1])
    assert (row["labels"], row["example_id"], row["attention_mask"]) == (-100, 0, [1] * 6)


def test_long_sentences_are_skipped_and_counted(caplog):
    def chain(count, word="w1"):
        return ParsedSentence([word] * count, [*range(count)], ["dep"] * count)

    tokenizer, relations = tiny_tokenizer(), {"dep": 0}
    some = [chain(3), chain(105), chain(106), chain(63, "w1 w2"), chain(64, "w1 w2")]
    some.append(ParsedSentence(["w1", "\u00a0"], [0, 1], ["dep", "dep"]))
    with caplog.at_level(logging.WARNING, "masktuning"):
        rows = treebank_rows("x.conllu", some, tokenizer, relations)
    assert [row["example_id"] for row in rows] == [0, 1, 3]  # 63 * 2 + 2 tokens are 128
    assert "x.conllu: 3 of 6 sentences are skipped" in caplog.text
    assert [len(r["heads"]) for r in treebank_rows("x", some, tokenizer, relations, 50)] == [3]
    with pytest.raises(UsageError, match="x: every sentence has more than 105 words or 4 tokens"):
        treebank_rows("x", some[:1], tokenizer, relations, 4)


@pytest.mark.parametrize("trimmed", [True, False])
def test_words_of_a_byte_level_tokenizer(trimmed):
    """Whether or not the tokenizer says that a token includes the space before its word."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        vocab_size=268,
        show_progress=False,
    )
    backend.train_from_iterator(["the cat saw the other cat"] * 3, trainer)
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), trim_offsets=trimmed, add_prefix_space=False
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<s>")
    words = ["the", "other", "cat", "x", "caf\u00e9"]
    (row,) = treebank_rows(
        "x", [ParsedSentence(words, [0] * 5, ["dep"] * 5)], tokenizer, {"dep": 0}
    )
    assert row["input_ids"] == tokenizer(" ".join(words))["input_ids"]
    pieces = dict.fromkeys(range(1, 6), "")
    for token, word in zip(row["input_ids"], row["words"], strict=True):
        if word:
            pieces[word] += tokenizer.convert_ids_to_tokens(token)
    spaces = "\u0120"
    assert [p.removeprefix(spaces) for p in pieces.values()] == [*words[:4], "caf\u00c3\u00a9"]
    assert row["words"][0] == row["words"][-1] == 0


def test_a_token_of_the_space_alone_belongs_to_the_next_word():
    offsets = [(0, 0), (0, 1), (1, 2), (2, 4), (0, 0)]
    assert words_of_tokens(["a", "bc"], offsets, [None, 0, 0, 0, None]) == [0, 1, 2, 2, 0]
