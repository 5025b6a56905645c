"""Make torchaudio importable beside a CPU-only PyTorch.

The torchaudio wheel is linked against CUDA. Beside a PyTorch without CUDA its shared libraries
cannot be loaded, and so neither ``torchaudio`` nor ``speechbrain`` can be imported. torchaudio
falls back to pure PyTorch when those libraries are absent; only ``forced_align`` is lost. This
script sets them aside (``*.so`` becomes ``*.so.cuda``) if, and only if, the import fails with that
error and PyTorch has no CUDA. It may be run any number of times.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path


def main() -> int:
    """Probe, repair if needed, probe again; return the exit status."""
    error = _import_error()
    if error is None:
        return 0
    if "OSError" not in error or _cuda_version() is not None:
        print(f"torchaudio cannot be imported, and not for want of CUDA:\n{error}", file=sys.stderr)
        return 1
    libraries = _extension_libraries()
    if not libraries:
        print(f"torchaudio has no libraries to set aside, yet fails:\n{error}", file=sys.stderr)
        return 1
    for library in libraries:
        library.rename(library.with_name(library.name + ".cuda"))
        print(f"set aside {library.name}: this PyTorch has no CUDA")
    error = _import_error()
    if error is not None:
        print(f"torchaudio still cannot be imported:\n{error}", file=sys.stderr)
        return 1
    return 0


def _import_error() -> str | None:
    """Import torchaudio in a new process; None if that works, else what it printed."""
    probe = subprocess.run(
        [sys.executable, "-c", "import torchaudio"], capture_output=True, text=True, check=False
    )
    return None if probe.returncode == 0 else probe.stderr


def _cuda_version() -> str | None:
    import torch

    return torch.version.cuda


def _extension_libraries() -> list[Path]:
    spec = importlib.util.find_spec("torchaudio")
    if spec is None or not spec.submodule_search_locations:
        return []
    folder = Path(next(iter(spec.submodule_search_locations)))
    return sorted((folder / "lib").glob("*torchaudio*.so"))


if __name__ == "__main__":
    sys.exit(main())
