"""Command line of the codec, ``focalcodec`` or ``python -m focalcodec``.

``commands`` declares the commands, ``options`` their options; ``jobs`` plans which file becomes
which, ``transcoding`` runs that in batches of ``sources`` through ``inference``, into
``token_files`` and audio files, and ``report`` tells the user. ``live`` is the command ``stream``.
"""

from focalcodec.cli.commands import main

__all__ = ["main"]
