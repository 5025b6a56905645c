"""Synthetic twins of corpora: same folders, names and formats, spoken by eSpeak NG.

    python -m recipes.corpora.twins NAME FOLDER [--speakers N] [--utterances N] [--seed 0]

NAME is a key of `TWINS`. A twin becomes the ``data_folder`` of its corpus, whose preparation cannot
tell it from the real one, so that a whole evaluation or training runs offline in seconds. No speech
of the real corpora is in it and scores on it say nothing about a codec.

``parts`` is what all are made of; ``clean_speech``, ``noisy_speech``, ``mixtures`` and
``emotional_speech`` say what is in each; ``generation`` writes them.
"""

from recipes.corpora.twins.generation import TWINS, generate, main

__all__ = ["TWINS", "generate", "main"]
