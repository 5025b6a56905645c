"""Units of text that are learnt from transcripts."""

import pytest

from recipes.downstream.text import Tokenizer, plain_words, train_tokenizer

TEXTS = ["the cat sat", "the dog sat", "a cat and a dog", "it's the end"] * 3


@pytest.fixture(params=["char", "bpe"])
def tokenizer(request) -> Tokenizer:
    return Tokenizer(train_tokenizer(TEXTS, unit=request.param, vocabulary_size=24))


def test_texts_come_back(tokenizer):
    for text in TEXTS:
        units = tokenizer.encode(text)
        assert tokenizer.decode(units) == text
        assert all(1 < unit < tokenizer.num_units for unit in units), "0 is the blank, 1 unknown"


def test_an_empty_text_has_no_units(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_a_letter_that_was_not_learnt_is_unknown_and_comes_back_as_no_letter(tokenizer):
    units = tokenizer.encode("zat")
    assert 1 in units
    assert "z" not in tokenizer.decode(units)


def test_byte_pairs_are_as_many_as_wanted_and_fewer_a_text():
    char, bpe = (
        Tokenizer(train_tokenizer(TEXTS, unit=unit, vocabulary_size=24)) for unit in ("char", "bpe")
    )
    assert bpe.num_units == 24
    assert len(bpe.encode(TEXTS[0])) < len(char.encode(TEXTS[0]))


def test_the_same_texts_give_the_same_bytes():
    first, second = (train_tokenizer(TEXTS, unit="bpe", vocabulary_size=24) for _ in range(2))
    assert first == second


def test_a_long_text_is_learnt_too():
    long = "q" * 10_000
    assert (
        Tokenizer(train_tokenizer([*TEXTS, long], unit="char", vocabulary_size=0)).encode("q")[-1]
        > 1
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GO DO YOU HEAR", "go do you hear"),
        (
            "D'AVRIGNY, said: \u201cit\u2019s'\u201d  24 -- o'clock!",
            "d'avrigny said it's 24 o'clock",
        ),
        ("'Quoted' rock 'n' roll", "quoted rock n roll"),
        ("Stu\u0308ck Stra\u00dfe", "st\u00fcck strasse"),
        ("?!", ""),
        ("\u0928\u092e\u0938\u094d\u0924\u0947", "\u0928\u092e\u0938\u094d\u0924\u0947"),
        ("\u0130stanbul", "i\u0307stanbul"),
    ],
)
def test_plain_words_are_small_letters_marks_digits_and_inner_apostrophes(text, expected):
    assert plain_words(text) == expected


def test_another_unit_is_refused():
    with pytest.raises(ValueError, match="unit must be char or bpe, got 'word'"):
        train_tokenizer(TEXTS, unit="word", vocabulary_size=24)
