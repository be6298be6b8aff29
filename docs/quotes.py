"""`python docs/quotes.py` brings the line numbers in docs/companion.md up to date with rome.py; a test says when to.

A quote is the link [rome.py, lines A-B](../rome.py#LA-LB) and, below it, these lines, less their indent, as a block.
"""

import re
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
QUOTE = re.compile(r"\[rome\.py, lines (\d+)-\d+\]\(\.\./rome\.py#[L\d-]+\)\n\n```python\n(.+?)\n```", re.DOTALL)


def requoted(text: str, code: str) -> tuple[str, list[str]]:
    """The text with the right line numbers, and the first line of every quote that the code does not hold."""
    lines, lost = code.splitlines(), []

    def place(found: re.Match) -> str:
        quote, wanted = found[2], int(found[1])
        count = quote.count("\n") + 1
        starts = [n for n in range(len(lines)) if textwrap.dedent("\n".join(lines[n : n + count])) == quote]
        if not starts:
            lost.append(quote.splitlines()[0])
            return found[0]
        first = 1 + min(starts, key=lambda n: abs(n + 1 - wanted))
        last = first + count - 1
        return f"[rome.py, lines {first}-{last}](../rome.py#L{first}-L{last})\n\n```python\n{quote}\n```"

    return QUOTE.sub(place, text), lost


if __name__ == "__main__":
    path = HERE / "companion.md"
    text, lost = requoted(path.read_text(encoding="utf-8"), (HERE.parent / "rome.py").read_text(encoding="utf-8"))
    path.write_text(text, encoding="utf-8")
    print("\n".join(f"not in rome.py, to be quoted anew: {line}" for line in lost) or "every quote is in rome.py")
