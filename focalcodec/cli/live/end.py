"""What sources and sinks have in common."""


class End:
    """One end of a session, with nothing to say and nothing to give back."""

    def notes(self) -> str:
        """Give words for the status line and the summary; "" for none."""
        return ""

    def close(self) -> None:
        """Give back what is held."""
