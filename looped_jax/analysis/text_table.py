"""Tables for the terminal."""


def aligned(rows: list[list[str]], left: int) -> str:
    """Rows as aligned text, a rule under the first; the first ``left`` columns flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row: list[str]) -> str:
        return "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )

    return "\n".join([line(rows[0]), line(["-" * w for w in widths]), *map(line, rows[1:])])
