"""Collect this project's documentation and source into the text that the bundled GPT learns: one command, no options.

Each file follows a line ``# file: path``. Everything becomes printable ASCII, newlines and `MATHEMATICAL`.
"""

import argparse
import hashlib
import unicodedata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "refattn" / "models" / "data"
PATTERNS = ("README.md", "CONTRIBUTING.md", "docs/*.md", "refattn/**/*.py", "backends/**/*.py", "tests/**/*.py")
LEFT_OUT = ("tests/test_house.py",)  # it spells out what must stand in no other file
MATHEMATICAL = "αβγδεθκλμπρσστφχψωΓΔΛΣΠΦΨΩ·×÷±≤≥≠≈√∞∈∑∏∂∇∫⊙→←↦ℝᵀ²³°"
PLAIN = str.maketrans(
    {"\t": "    ", "“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "−": "-", "…": "...", "█": "#", "▓": "+"}
    | {"▒": "+", "░": "."}
)


def normalise(text: str) -> str:
    """Spell a text in the characters that the vocabulary has; what has no spelling becomes a question mark."""
    return "".join(spell(letter) for letter in text.replace("\r\n", "\n").translate(PLAIN))


def spell(letter: str) -> str:
    if letter == "\n" or " " <= letter <= "~" or letter in MATHEMATICAL:
        return letter
    return "".join(part for part in unicodedata.normalize("NFKD", letter) if " " <= part <= "~") or "?"


def collect(root: Path) -> dict[str, str]:
    """Return path -> text, sorted by path."""
    paths = {
        path for pattern in (*PATTERNS, "examples/*.py") for path in root.glob(pattern) if DATA not in path.parents
    }
    names = sorted({path.relative_to(root).as_posix() for path in paths} - {*LEFT_OUT})
    return {name: normalise((root / name).read_text(encoding="utf-8")).strip("\n") for name in names}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DATA / "corpus.txt")
    out = parser.parse_args(arguments).out
    files = collect(ROOT)
    text = "\n\n".join(f"# file: {name}\n{content}" for name, content in files.items()) + "\n"
    out.write_text(text, encoding="utf-8", newline="\n")
    digest = hashlib.sha256(text.encode()).hexdigest()
    print(f"{out}: {len(files)} files, {len(text)} characters, {len(set(text))} different, sha256 {digest[:16]}")
    assert set(text) <= {"\n", *map(chr, range(32, 127)), *MATHEMATICAL}


if __name__ == "__main__":
    main()
