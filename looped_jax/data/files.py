"""Files that are there whole or not at all."""

import os

from etils import epath


def write_whole(path: epath.Path, content: str | bytes) -> None:
    """Writes a file so that a kill at any moment leaves the old content or the new one.

    It is made as NAME.tmp beside the file first; OSError if it cannot be written.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
