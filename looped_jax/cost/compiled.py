"""What a compiled program costs a device, read from the text of its optimised HLO.

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count, and a looped
transformer is loops within loops. Here each computation is counted as often as it runs:
  FLOPs        2 per multiply-add of every `dot` and `convolution` (what matrix products become on
               TPU), at the places where a window meets real elements
  HBM bytes    operands and results of what is not fused into something else, as far as they are in
               HBM; of slices and updates only the part touched
  collectives  bytes per kind; also what goes over the wire in a ring
Kernels that XLA cannot look into (custom calls) are counted by a function given.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "f8e4m3fn": 1,
    "f8e5m2": 1,
}  # fmt: skip
_SHAPE = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%([\w.-]+) = (.*)$")
_OPCODE = re.compile(r"\s([a-z][a-z0-9-]*)\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%([\w.-]+)")
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Not work: names for parts of other results, or what is inside a loop or called computation.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "opt-barrier", "partition-id", "replica-id", "iota", "async-start",
    "async-update", "async-done", "copy-done", "all-gather-done", "all-reduce-done",
    "collective-permute-done",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's type, and whether it is in the device's main memory (HBM)."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes, padding of tiles not counted."""
        return self.size * _BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: its results (several for a tuple), operands by name, and all of its text."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    text: str

    def attribute(self, name: str) -> str:
        """The text of an attribute such as `dim_labels`; empty if there is none."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.text)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Computation:
    """The instructions of one computation by name, in order; the last is its result."""

    name: str
    instructions: dict[str, Instruction]
    root: str


@dataclasses.dataclass
class Cost:
    """What one device does in one run of a program."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    # By kind: bytes of the larger of operand and result, and bytes sent by a device in a ring.
    collective_bytes: dict[str, float] = dataclasses.field(default_factory=dict)
    collective_count: dict[str, float] = dataclasses.field(default_factory=dict)
    wire_bytes: float = 0.0
    # What a device hands to its host for other slices.
    bytes_between_slices: float = 0.0


def parse(hlo: str) -> tuple[dict[str, Computation], str]:
    """All computations of an HLO module's text, and the name of the entry."""
    computations: dict[str, Computation] = {}
    name, entry, root = "", "", ""
    instructions: dict[str, Instruction] = {}
    for line in hlo.split("\n"):
        if head := re.match(r"^(ENTRY )?%([\w.-]+) \(", line):
            name, root, instructions = head[2], "", {}
            entry = name if head[1] else entry
        elif line == "}" and name:  # A longer line is the end of a kernel's own description.
            computations[name] = Computation(name, instructions, root)
            name = ""
        elif name and (found := _INSTRUCTION.match(line)):
            instructions[found[2]] = _instruction(found[2], found[3])
            root = found[2] if found[1] else root
    return computations, entry


def _instruction(name: str, text: str) -> Instruction:
    opcode = _OPCODE.search(f" {text}" if text[0] != "(" else text)
    assert opcode is not None, text
    at = opcode.start() if text[0] == "(" else opcode.start() - 1
    inside = _until_closed(text, text.index("(", max(at, 0) + len(opcode[1])))
    shapes = tuple(_shapes(text[: max(at, 0)]))
    return Instruction(name, opcode[1], shapes, tuple(re.findall(r"%([\w.-]+)", inside)), text)


def _until_closed(text: str, start: int) -> str:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return text[start : i + 1]
    return text[start:]


def _shapes(text: str) -> Iterable[Shape]:
    for dtype, dims, layout in _SHAPE.findall(text):
        # S(n): another memory space, such as a TPU's VMEM (1).
        sizes = tuple(int(d) for d in dims.split(",") if d)
        yield Shape(dtype, sizes, "S(" not in layout)


def trip_count(computations: dict[str, Computation], caller: Computation, loop: Instruction) -> int:
    """How often a `while` runs: from XLA's note, or from `counter < limit` in its condition and
    `counter + step` in its body.

    ValueError if it is neither.
    """
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
        return int(noted[1])
    condition, body = (
        computations[re.findall(rf"{part}=%([\w.-]+)", loop.text)[0]]
        for part in ("condition", "body")
    )
    compare, (counter, limit) = _two_operands(computations, condition, condition.root)
    tested = condition.instructions[counter]
    last = _constant(condition, limit)
    direction = compare.attribute("direction")
    if tested.opcode != "get-tuple-element" or direction not in ("LT", "LE") or last is None:
        raise ValueError(f"the trip count of {loop.name} is not to be seen: {compare.text[:200]}")
    place = int(tested.attribute("index"))
    result = body.instructions[body.root].operands[place]
    add, operands = _two_operands(computations, body, result)
    steps = [step for name in operands if (step := _constant(body, name)) is not None]
    if add.opcode != "add" or not steps:
        raise ValueError(f"the step of {loop.name} is not to be seen: {add.text[:200]}")
    initial = caller.instructions.get(loop.operands[0])
    start = 0
    if initial is not None and initial.opcode == "tuple":
        start = _constant(caller, initial.operands[place]) or 0
    return max(0, -(-(last - start + (direction == "LE")) // steps[0]))


def _two_operands(
    computations: dict[str, Computation], computation: Computation, name: str
) -> tuple[Instruction, list[str]]:
    """An operation of two operands, and these by their names in ``computation``, where a constant
    inside a fusion is added; also if it is wrapped in a fusion or copied."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast"):
        instruction = computation.instructions[instruction.operands[0]]
    if instruction.opcode != "fusion":
        return instruction, list(instruction.operands[:2])
    inside = computations[_CALLED.findall(instruction.text)[0]]
    outside = {
        inner.name: instruction.operands[int(re.findall(r"parameter\((\d+)\)", inner.text)[0])]
        for inner in inside.instructions.values()
        if inner.opcode == "parameter"
    }
    root = inside.instructions[inside.root]
    for operand in root.operands:
        if operand not in outside:
            computation.instructions.setdefault(operand, inside.instructions[operand])
    return root, [outside.get(operand, operand) for operand in root.operands[:2]]


def _constant(computation: Computation, name: str) -> int | None:
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast"):
        instruction = computation.instructions.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant":
        return None
    found = re.search(r"constant\((-?\d+)\)", instruction.text)
    return int(found[1]) if found else None


def cost(
    hlo: str,
    custom_call_flops: Callable[[Instruction], float] = lambda _: 0.0,
    trips_of_data: float | None = None,
    taken: float = 1.0,
) -> Cost:
    """Counts a module, with the FLOPs of custom calls from a function.

    ``trips_of_data``: how often a `while` runs whose trip count the module does not tell; without
    it, ValueError if there is one. ``taken``: how often, of 1, a condition holds.
    """
    computations, entry = parse(hlo)
    total = Cost()
    seen: set[str] = set()

    def trips(caller: Computation, loop: Instruction) -> float:
        try:
            return trip_count(computations, caller, loop)
        except ValueError:
            if trips_of_data is None:
                raise
            return trips_of_data

    def visit(name: str, times: float, fused: bool) -> None:
        computation = computations[name]
        for instruction in computation.instructions.values():
            opcode = instruction.opcode
            kind = opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                # One that is overlapped with other work appears in each piece of that work.
                chain = re.search(r'chain_id="([^"]*)"', instruction.text)
                if chain is None or chain[1] not in seen:
                    if chain is not None:
                        seen.add(chain[1])
                    _add_collective(total, computation, instruction, kind, times)
            if opcode == "send" and "_xla_megascale_transfer_type" in instruction.text:
                total.bytes_between_slices += times * instruction.shapes[0].bytes
            if opcode in ("dot", "convolution"):
                count = _dot if opcode == "dot" else _convolution
                total.flops += times * count(computation, instruction)
            elif opcode == "custom-call":
                total.flops += times * custom_call_flops(instruction)
            if not fused and opcode not in _FREE:
                total.hbm_bytes += times * _traffic(computations, computation, instruction)
            runs = times
            if opcode == "while":
                runs *= trips(computation, instruction)
            if opcode == "conditional":
                for branch, share in _branches(instruction, taken):
                    visit(branch, times * share, fused)
            inside = fused or opcode not in ("while", "call", "conditional", "async-start")
            for called in _CALLED.findall(instruction.text):
                if called in computations and not _is_scalar_function(computations[called]):
                    visit(called, runs, inside)

    visit(entry, 1.0, False)
    return total


def _branches(instruction: Instruction, taken: float) -> list[tuple[str, float]]:
    """The computations of a conditional, and how often each runs."""
    if listed := re.search(r"branch_computations=\{([^}]*)\}", instruction.text):
        false, *true = re.findall(r"%([\w.-]+)", listed[1])
    else:
        false, *true = re.findall(r"(?:false|true)_computation=%([\w.-]+)", instruction.text)[::-1]
    return [(false, 1.0 - taken), *((name, taken / len(true)) for name in true)]


def _is_scalar_function(computation: Computation) -> bool:
    """What a reduction applies to each pair of elements."""
    return all(shape.size == 1 for i in computation.instructions.values() for shape in i.shapes)


def _operand_shapes(computation: Computation, instruction: Instruction) -> list[Shape]:
    there = (computation.instructions.get(name) for name in instruction.operands)
    return [shape for operand in there if operand is not None for shape in operand.shapes]


def _dot(computation: Computation, instruction: Instruction) -> float:
    left = computation.instructions[instruction.operands[0]].shapes[0]
    contracted = re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))
    return 2.0 * instruction.shapes[0].size * math.prod(left.dims[int(d)] for d in contracted)


def _convolution(computation: Computation, instruction: Instruction) -> float:
    left, right = (computation.instructions[name].shapes[0] for name in instruction.operands[:2])
    out = instruction.shapes[0]
    left_labels, rest = instruction.attribute("dim_labels").split("_")
    right_labels, out_labels = rest.split("->")
    window = re.search(r"window=\{([^}]*)\}", instruction.text)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    spatial = sorted(label for label in out_labels if label.isdigit())

    def along(field: str, default: str) -> list[str]:
        return fields[field].split("x") if field in fields else [default] * len(spatial)

    macs = right.dims[right_labels.index("i")]
    macs *= out.dims[out_labels.index("b")] * out.dims[out_labels.index("f")]
    for n, label in enumerate(spatial):
        low = int(along("pad", "0_0")[n].split("_")[0])
        macs *= _meetings(
            left.dims[left_labels.index(label)],
            right.dims[right_labels.index(label)],
            out.dims[out_labels.index(label)],
            low,
            *(int(along(f, "1")[n]) for f in ("stride", "lhs_dilate", "rhs_dilate")),
        )
    return 2.0 * macs


def _meetings(
    left: int, kernel: int, out: int, low: int, stride: int, left_dilation: int, dilation: int
) -> int:
    """Pairs of an output place and a place of the kernel at which there is an element."""
    last = (left - 1) * left_dilation
    return sum(
        0 <= place <= last and place % left_dilation == 0
        for o in range(out)
        for k in range(kernel)
        for place in (o * stride + k * dilation - low,)
    )


def _traffic(
    computations: dict[str, Computation], computation: Computation, instruction: Instruction
) -> float:
    """HBM bytes read and written by an instruction that runs by itself."""
    opcode = instruction.opcode
    operands = _operand_shapes(computation, instruction)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * sum(shape.bytes for shape in instruction.shapes if shape.in_hbm)
    if opcode == "dynamic-update-slice":
        return 2 * operands[1].bytes if instruction.shapes[0].in_hbm else 0.0
    if opcode.endswith("-start") and opcode.removesuffix("-start") in COLLECTIVES:
        return sum(shape.bytes for shape in operands if shape.in_hbm) * 2
    if opcode == "copy-start":
        return sum(shape.bytes for shape in instruction.shapes[:2] if shape.in_hbm)
    if opcode != "fusion":
        return sum(shape.bytes for shape in (*operands, *instruction.shapes) if shape.in_hbm)
    return _fusion_traffic(computations[_CALLED.findall(instruction.text)[0]], instruction)


def _fusion_traffic(inside: Computation, instruction: Instruction) -> float:
    """A fusion reads of an operand that it only slices just the slices, and writes of an array
    that it updates in place just the update."""
    users: dict[str, list[Instruction]] = {}
    for user in inside.instructions.values():
        for name in user.operands:
            users.setdefault(name, []).append(user)
    total = 0.0
    for parameter in inside.instructions.values():
        if parameter.opcode != "parameter" or not parameter.shapes[0].in_hbm:
            continue
        uses = users.get(parameter.name, [])
        if uses and all(use.opcode in ("dynamic-slice", "slice", "gather") for use in uses):
            total += sum(use.shapes[0].bytes for use in uses)
        elif not (
            uses
            and all(u.opcode == "dynamic-update-slice" for u in uses)
            and all(u.operands[0] == parameter.name for u in uses)
        ):
            total += parameter.shapes[0].bytes
    root = inside.instructions[inside.root]
    results = (
        [inside.instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
    )
    for result, shape in zip(results, instruction.shapes, strict=False):
        while result.opcode == "bitcast":
            result = inside.instructions[result.operands[0]]
        if not shape.in_hbm:
            continue
        if result.opcode == "dynamic-update-slice":
            total += inside.instructions[result.operands[1]].shapes[0].bytes
        else:
            total += shape.bytes
    return total


def _add_collective(
    total: Cost,
    computation: Computation,
    instruction: Instruction,
    kind: str,
    times: float,
) -> None:
    operands = sum(shape.bytes for shape in _operand_shapes(computation, instruction))
    results = sum(shape.bytes for shape in instruction.shapes)
    if instruction.opcode.endswith("-start"):  # Its result repeats the operands.
        results = max(operands, results - operands)
    whole = operands if kind in ("all-reduce", "reduce-scatter", "all-to-all") else results
    if kind == "reduce-scatter":
        whole = max(operands, results)
    total.collective_bytes[kind] = total.collective_bytes.get(kind, 0.0) + times * whole
    total.collective_count[kind] = total.collective_count.get(kind, 0.0) + times
    size = group_size(instruction.text)
    if kind == "collective-permute":
        sent = whole
    else:
        # In a ring each device passes on all but its own part, for a sum twice.
        sent = (2 if kind == "all-reduce" else 1) * whole * (size - 1) / max(1, size)
    total.wire_bytes += times * sent


def group_size(text: str) -> int:
    """How many devices a collective is between, from its replica_groups: listed,
    `[groups,size]<=[…]`, or `mesh['a'=4,'b'=2] {'a'}`. ValueError for another form."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{((?:'[^']+',?)+)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", mesh[2]))
    if "source_target_pairs=" in text:
        return 2
    raise ValueError(f"unknown groups: {text[:300]}")
