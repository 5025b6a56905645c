"""How programs that fill a folder end: with a line for the user and an exit status for scripts."""

import logging
import sys
from collections.abc import Callable

from recipes.common.interruption import INTERRUPTED, Interrupted, leaving_at_once
from recipes.common.scoring import MissingPackageError


def exit_status(program: str, run: Callable[[], object]) -> int:
    """Run a program whose command may be repeated, and say in one line what stopped it.

    Parameters
    ----------
    program : its name.
    run : what it does.

    Returns
    -------
    0; 1 for what the user can put right; 75 after SIGTERM or SIGUSR1; 130 after Ctrl-C.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("speechbrain").setLevel(logging.WARNING)
    try:
        with leaving_at_once():
            run()
    except Interrupted as interrupted:
        print(f"{program}: {interrupted}", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, MissingPackageError) as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0
