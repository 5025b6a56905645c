"""Token files for tests: the golden one, random tokens, and headers and files made by hand."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from focalcodec.bitstream import Header

BLOCK = 2**14  # tokens that the module handles at a time
HEADER = Header(
    bits=13,
    sample_rate=16000,
    codec_rate=16000,
    samples_per_tok=320,
    fingerprint="00112233445566778899aabbccddeeff",
    model_id="tiny/é",
)
# 900 samples at 16 kHz in three tokens of 13 bits. This is the format: it never changes.
GOLDEN_TOKS = [0x1ABC, 0x0005, 0x1FFF]
GOLDEN = bytes.fromhex(
    "89 46 4f 43 41 4c 0d 0a"  # magic
    "01 0d 07 00"  # version, bits, bytes of the model id
    "80 3e 00 00  84 03 00 00 00 00 00 00"  # sample_rate, num_samples
    "80 3e 00 00  40 01 00 00"  # codec_rate, samples_per_tok
    "19 96 28 a2"  # payload crc
    "00 11 22 33 44 55 66 77 88 99 aa bb cc dd ee ff"  # fingerprint
    "74 69 6e 79 2f c3 a9"  # model id
    "78 18 6f 53"  # header crc
    "d5 e0 01 7f fe"  # 1101010111100 0000000000101 1111111111111 and a zero
)
HEADER_BYTES = len(GOLDEN) - 5
UNFINISHED = 2**64 - 1


def random_toks(count: int, bits: int = 13) -> torch.Tensor:
    return torch.randint(2**bits, (count,))


def header_of(count: int, bits: int = 13) -> Header:
    return replace(HEADER, bits=bits, num_samples=320 * count)


def bits_of(toks: torch.Tensor, bits: int) -> bytes:
    """Payload by way of text, the oracle."""
    text = "".join(f"{tok:0{bits}b}" for tok in toks.tolist())
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


def sealed(
    *,
    bits: int = 13,
    sample_rate: int = 16000,
    num_samples: int = 900,
    codec_rate: int = 16000,
    samples_per_tok: int = 320,
    crc: int = 0,
    model_id: bytes = b"",
) -> bytes:
    """Header with any values and the right checksum, made without the module."""
    fields = struct.pack("<8sBBH", b"\x89FOCAL\r\n", 1, bits, len(model_id))
    fields += struct.pack("<IQIII", sample_rate, num_samples, codec_rate, samples_per_tok, crc)
    fields += bytes(16) + model_id
    return fields + struct.pack("<I", zlib.crc32(fields))


def file_with(folder: Path, content: bytes) -> Path:
    path = folder / "x.focal"
    path.write_bytes(content)
    return path
