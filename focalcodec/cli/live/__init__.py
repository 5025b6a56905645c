"""The command ``stream``: live speech between files, pipes, devices, sockets and processes.

``command`` declares it and builds the chain of `focalcodec.live`; ``endpoints`` opens what INPUT
and OUTPUT name: ``files``, ``pipes``, ``devices``, and ``packets`` over ``sockets``. ``status``
tells how fast it goes, ``stop`` ends it on a signal.

A **source** has ``pieces()``, which ends when there is no more or when it is told to stop. One of
sound is a `sound.SoundSource`; one of tokens knows the ``header`` of what they were made from. A
**sink** has ``consume(contents)``, which takes signals (T,) or tokens (L,) until there are no more.
Both have ``close()``, and ``notes()``, what they have to say about themselves in the status line.
"""

from focalcodec.cli.live.command import stream

__all__ = ["stream"]
