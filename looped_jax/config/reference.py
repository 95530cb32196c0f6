"""Every key, for readers: docs/config.md, and what `--help` says.

python -m looped_jax.config.reference        # docs/config.md, which `make generated` writes
"""

from collections.abc import Iterator

from looped_jax.config import combinations
from looped_jax.config.keys import KEYS, MOST, SECTIONS, Key

HEAD = """# Config keys

Written by `make generated` from looped_jax/config/keys.py.
Any of them can be set on the command line, `--config.KEY=VALUE`. A key marked * says how a run is
watched, read or laid out over devices, and not what is computed: it may change when a run goes on.
"""


def _of_section(section: str) -> Iterator[tuple[str, Key]]:
    return ((name, known) for name, known in KEYS.items() if name.rpartition(".")[0] == section)


def _values(known: Key) -> str:
    """What a key may be."""
    if known.choices:
        return ", ".join(known.choices)
    if known.range is None:
        return ""
    limits = str(known.range)
    return limits if known.range.high < MOST else limits.partition(" and ")[0]


def _default(known: Key) -> str:
    if isinstance(known.default, tuple):
        if known.default and all(isinstance(item, str) for item in known.default):
            return ",".join(known.default)
        return "(…)" if known.default else "()"
    return str(known.default)


def markdown() -> str:
    """The content of docs/config.md."""
    parts = [HEAD]
    for section, of in SECTIONS.items():
        parts.append(f"## {of.__doc__}\n")
        parts.append("| key | default | | values |\n|---|---|---|---|")
        for name, known in _of_section(section):
            mark = "*" if known.operational else ""
            default = f"`{_default(known)}`" if _default(known) else ""
            parts.append(f"| `{name}`{mark} | {default} | {known.meaning} | {_values(known)} |")
        parts.append("")
    parts.append(f"## What does not go together\n\n{combinations.markdown()}\n")
    return "\n".join(parts)


def plain() -> str:
    """The keys as `--help` lists them."""
    lines = []
    for name, known in KEYS.items():
        values = f" ({_values(known)})" if known.choices else ""
        lines.append(f"  --config.{name}={_default(known)}\n      {known.meaning}{values}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown(), end="")
