"""``python -m focalcodec``, see `focalcodec.cli`."""

from focalcodec.cli import main

if __name__ == "__main__":
    main()
