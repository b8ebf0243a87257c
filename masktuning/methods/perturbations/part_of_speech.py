"""Parts of speech, from NLTK's averaged perceptron."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from masktuning.config.errors import UsageError

Tagger = Callable[[Sequence[str]], list[str]]

NOUN, VERB, ADJECTIVE, ADVERB, DETERMINER = "noun", "verb", "adjective", "adverb", "determiner"
_COARSE = {
    "NN": NOUN,
    "VB": VERB,
    "MD": VERB,
    "JJ": ADJECTIVE,
    "RB": ADVERB,
    "DT": DETERMINER,
}


def nltk_tagger() -> Tagger:
    """From the words of a text to their parts of speech.

    Raises:
        UsageError: if NLTK or its tagger's data are not installed.
    """
    try:
        from nltk import pos_tag
    except ModuleNotFoundError:
        raise UsageError(
            "--pos_filter nltk needs the package nltk: pip install 'masktuning[nltk]', or give "
            "--pos_filter off, which lets a word be replaced by one of another part of speech"
        ) from None
    try:
        pos_tag(["text"])
    except LookupError:
        raise UsageError(
            "--pos_filter nltk needs the data of NLTK's tagger: python -m nltk.downloader "
            "averaged_perceptron_tagger_eng, or give --pos_filter off, which lets a word be "
            "replaced by one of another part of speech"
        ) from None
    return lambda words: [coarse(tag) for _, tag in pos_tag(list(words))]


def coarse(tag: str) -> str:
    """The part of speech that a tag of the Penn Treebank stands for, or the tag itself."""
    return _COARSE.get(tag[:2], tag)
