"""What a receiver counts."""

from dataclasses import dataclass, fields


@dataclass
class Counts:
    """Packets by what became of them, and tokens.

    Every packet is in exactly one of received, duplicate, late, outside, foreign and corrupt.

    Attributes
    ----------
    received : in time, with tokens or news.
    reordered : of those received, the ones that a later packet had overtaken.
    duplicate : nothing new.
    late : some tokens had been concealed or passed over by then; what was in time is used.
    outside : too far ahead or behind, or beyond the end of the stream; not used.
    foreign : of another stream, or tokens of another width; not used.
    corrupt : no sound packet; not used.
    toks : received tokens that were given.
    concealed : tokens that were given for missing ones.
    restarts : times that decoding had to begin anew.
    """

    received: int = 0
    reordered: int = 0
    duplicate: int = 0
    late: int = 0
    outside: int = 0
    foreign: int = 0
    corrupt: int = 0
    toks: int = 0
    concealed: int = 0
    restarts: int = 0

    def __str__(self) -> str:
        """One line for people; what did not happen is left out."""
        packets = [f.name for f in fields(self) if f.name not in ("received", "toks", "concealed")]
        seen = [f"{getattr(self, name)} {name}" for name in packets if getattr(self, name)]
        toks = f"{self.toks} tokens, {self.concealed} concealed"
        return ", ".join([f"{toks}; {self.received} packets received", *seen])
