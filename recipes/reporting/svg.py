"""How figures look: SVG files that follow the page between light and dark.

Matplotlib draws with placeholder colours, which are then replaced by CSS variables; text stays
text. The same content gives the same bytes.
"""

import io
import re
from pathlib import Path

from matplotlib.figure import Figure

from recipes.common.files import write_text

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = tuple(f"#04040{digit}" for digit in range(8))
_LIGHT = {INK: "#1d2125", MUTED: "#5f6872", GRID: "#dfe3e8"}
_DARK = {INK: "#e7eaee", MUTED: "#9aa4af", GRID: "#343b43"}
# Okabe and Ito's colours, told apart by colour-blind readers; darker or lighter by background.
_LIGHT |= dict(
    zip(
        SERIES,
        "#0072b2 #c44900 #00805c #a8478a #8a6d00 #3d7fae #5c5c5c #1d2125".split(),
        strict=True,
    )
)
_DARK |= dict(
    zip(
        SERIES,
        "#56b4e9 #f08a4b #3ec79a #e08fc4 #e6c229 #9cc9e8 #b5b5b5 #e7eaee".split(),
        strict=True,
    )
)
MARKERS = "osD^vPX*"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}


def plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: Path) -> None:
    """Write a figure that was drawn under `STYLE`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    variables = {color: f"--c{place}" for place, color in enumerate(_LIGHT)}
    for color, name in variables.items():
        text = text.replace(color, f"var({name})")
    light, dark = (
        "".join(f"{variables[key]}:{value};" for key, value in colors.items())
        for colors in (_LIGHT, _DARK)
    )
    style = (
        f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"
        "text{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}</style>"
    )
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    write_text(path, re.sub(r"(<svg[^>]*>)", lambda found: found[1] + style, text, count=1))
