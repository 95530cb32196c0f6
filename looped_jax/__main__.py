"""Lists the commands: python -m looped_jax."""

import ast
import pathlib

from looped_jax.config import cli


def commands() -> dict[str, str]:
    """Name -> what it does, in a line; read without importing them."""
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        text = path.read_text()
        if "cli.run(main" in text and not path.stem.startswith("_"):
            found[path.stem] = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    return found


def main(_: dict[str, str]) -> None:
    """Prints them."""
    print("python -m looped_jax.COMMAND --help tells more\n")
    for name, what in commands().items():
        print(f"  {name:12}{what}")


if __name__ == "__main__":
    cli.run(main)
