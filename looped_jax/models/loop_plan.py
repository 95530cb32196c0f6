"""LoopPlan: one string that says a looped transformer's whole depth structure.

``12x2`` is 12 layers applied twice (12⊗2 in the paper, section 1); ``24x1`` an ordinary stack;
``4x1,4x4,4x1`` loops only the middle (section 3.3): first and last four layers run once.
"""

import dataclasses
import re
import reprlib

from looped_jax.errors import UserError

# More are a slip of the keyboard; numbers of loops are int32 on a device.
MOST_LOOPS = 1_000_000
MOST_LAYERS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Segment:
    """``layers`` distinct layers applied ``loops`` times with the same weights."""

    layers: int
    loops: int
    trained_loops: int = 0  # Of its parameters, where there are some per loop; 0: ``loops``.

    def __post_init__(self) -> None:
        object.__setattr__(self, "trained_loops", self.trained_loops or self.loops)

    def __str__(self) -> str:
        return f"{self.layers}x{self.loops}"


@dataclasses.dataclass(frozen=True)
class LoopPlan:
    """Segments in the order in which the residual stream passes through them."""

    segments: tuple[Segment, ...]

    @classmethod
    def parse(cls, text: str) -> "LoopPlan":
        """Reads a plan; UserError names the segment at fault and what is wrong with it."""
        if not text.strip():
            raise UserError("plan is empty; write kxL segments, e.g. 12x2 or 4x1,4x4,4x1")
        segments = []
        for number, part in enumerate(text.split(","), start=1):
            where = f"plan {reprlib.repr(text)}, segment {number}"
            match = re.fullmatch(r"\s*([0-9]+)[x⊗]([0-9]+)\s*", part)
            if match is None:
                raise UserError(
                    f"{where}: {reprlib.repr(part.strip())} is not LAYERSxLOOPS, e.g. 12x2"
                )
            if max(map(len, match.groups())) > 9:
                raise UserError(f"{where}: a number has more than 9 digits")
            layers, loops = int(match[1]), int(match[2])
            if layers < 1 or loops < 1:
                raise UserError(f"{where}: {part.strip()!r} needs at least one layer and one loop")
            if layers > MOST_LAYERS:
                raise UserError(f"{where}: {part.strip()!r} has more than {MOST_LAYERS:,} layers")
            if loops > MOST_LOOPS:
                raise UserError(f"{where}: {part.strip()!r} has more than {MOST_LOOPS:,} loops")
            segments.append(Segment(layers, loops))
        return cls(tuple(segments))

    def __str__(self) -> str:
        return ",".join(str(segment) for segment in self.segments)

    @property
    def distinct_layers(self) -> int:
        """Layers that hold parameters."""
        return sum(segment.layers for segment in self.segments)

    @property
    def effective_depth(self) -> int:
        """Layers that a token passes through: D in the paper's scaling law."""
        return sum(segment.layers * segment.loops for segment in self.segments)

    @property
    def looped(self) -> tuple[int, ...]:
        """Numbers of the segments whose parameters are those of several loops."""
        return tuple(i for i, segment in enumerate(self.segments) if segment.trained_loops > 1)

    def equal_blocks(self, layers: int, key: str) -> int:
        """How many blocks of ``layers`` its layers are cut into; UserError, with the config's
        ``key`` for them, unless these are two or more."""
        count, rest = divmod(self.distinct_layers, layers)
        if rest or count < 2:
            raise UserError(
                f"config.{key}={layers} does not cut the {self.distinct_layers} layers of plan "
                f"{self} into two or more equal blocks"
            )
        return count

    def with_loops(self, loops: int | None) -> "LoopPlan":
        """The plan with every looped segment (loops > 1) applied ``loops`` times instead.

        None keeps the plan. UserError if no segment is looped, or ``loops`` is not from 1 to
        MOST_LOOPS.
        """
        if loops is None:
            return self
        if loops < 1:
            raise UserError(f"loops={loops} must be at least 1")
        if loops > MOST_LOOPS:
            raise UserError(f"loops={loops} is more than {MOST_LOOPS:,}; say fewer")
        if not self.looped:
            raise UserError(f"plan {self} has no looped segment whose loops could be changed")
        return LoopPlan(
            tuple(
                dataclasses.replace(s, loops=loops if s.trained_loops > 1 else 1)
                for s in self.segments
            )
        )
