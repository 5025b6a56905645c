"""Never touch the network, where the user asked for that."""

import os
import sys


def go_offline() -> None:
    """Make hub libraries, loaded already or later, use what is on this machine alone."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it has read the variable when it was imported
        constants.HF_HUB_OFFLINE = True


def is_offline() -> bool:
    """Whether downloads are forbidden, by `go_offline` or by the user's ``HF_HUB_OFFLINE``."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
