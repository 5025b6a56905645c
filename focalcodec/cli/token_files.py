"""Token files that grow under the eyes of their readers."""

from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from focalcodec.bitstream import Header, Writer


def write_toks(
    path: Path,
    blocks: Iterable[Tensor],
    *,
    header: Header,
    num_samples: Callable[[], int],
    overwrite: bool,
) -> Header:
    """Write tokens as they come; give the header of the finished file.

    The file grows under its own name, so that it can be read meanwhile; but what is to be replaced
    stays until its successor is whole.

    Parameters
    ----------
    path : of the file.
    blocks : (L,) consecutive tokens.
    header : without ``num_samples``.
    num_samples : of the source, asked for after the last block.
    overwrite : replace a file that is there.

    Raises
    ------
    FileExistsError, FocalFileError, ValueError : as `focalcodec.bitstream.Writer`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    growing = path.with_name(f".{path.name}.partial") if overwrite else path
    writer = Writer(growing, header, overwrite=overwrite)
    try:
        with writer:
            for block in blocks:
                writer.write(block)
            writer.finish(num_samples())
        growing.replace(path)
    except BaseException as error:
        # Interrupted, it stays readable up to there; but under the other name nobody reads it.
        if isinstance(error, Exception) or growing != path:
            growing.unlink(missing_ok=True)
        raise
    return writer.header
