"""TPUs that are not there: their topologies for ahead-of-time compilation, what a chip can do, and
what a step would take at best.

`pip install 'jax[tpu]'` brings the TPU compiler (libtpu), which runs on any Linux machine.
"""

import dataclasses
import fnmatch
import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from looped_jax.config.quiet import NO_TPU
from looped_jax.cost.compiled import Cost
from looped_jax.cost.peak_flops import PEAK_BF16_FLOPS
from looped_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Chip:
    """Bytes, and bytes per second. ``ici``: sent by a chip over all its links to other chips of its
    slice; ``dcn``: its share of what its host sends to other slices."""

    hbm: float
    hbm_bandwidth: float
    ici: float
    dcn: float


# Google Cloud's pages on each TPU version: HBM capacity and bandwidth; ICI bandwidth (half of the
# bidirectional figure); the host's network cards divided by its chips. For v4 and v5p the pages
# give no cards: 200 Gbit/s a host of 4 chips is assumed.
CHIPS = {
    "v4": Chip(32e9, 1228e9, 300e9, 6.25e9),
    "v5e": Chip(16e9, 819e9, 200e9, 3.125e9),
    "v5p": Chip(95e9, 2765e9, 600e9, 6.25e9),
    "v6e": Chip(32e9, 1640e9, 400e9, 12.5e9),
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as `v5p:4x4x4`; UserError if it is not known."""
    version = topology.partition(":")[0]
    if version not in CHIPS:
        raise UserError(
            f"--topology={topology}: {version!r} is not one of {', '.join(CHIPS)}; write e.g. "
            f"v5e:8x8 or v5p:4x4x4{nearest(version, CHIPS)}"
        )
    return CHIPS[version]


def describe(topology: str, slices: int = 1) -> Sequence[Any]:
    """The devices of ``slices`` slices of a topology, to compile for.

    UserError if libtpu is missing or not the one this JAX needs, or there is no such topology.
    """
    chip_of(topology)
    if not re.fullmatch(r"v\w+:\d+x\d+(x\d+)?", topology):
        raise UserError(f"--topology={topology} is not VERSION:AxB[xC], e.g. v5e:8x8, v5p:4x4x4")
    if slices < 1:
        raise UserError(f"--slices={slices} must be at least 1")
    _check_libtpu()
    for name, value in NO_TPU.items():
        os.environ.setdefault(name, value)
    # Nothing is run: others may compile on this machine at the same time, or use its TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4:"):  # Its chip's two cores are one device, as in use.
        options["chip_config_name"] = "megacore"
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except Exception as error:  # What the compiler's own library raises.
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--topology={topology} is not one that libtpu knows ({reason})") from error


def _check_libtpu() -> None:
    needed = next(
        (
            found[1]
            for line in importlib.metadata.requires("jax") or ()
            if (found := re.match(r"libtpu==([\d.*]+)", line))
        ),
        "*",
    )
    install = f"pip install 'jax[tpu]=={jax.__version__}'"
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"the TPU compiler (libtpu) is not installed; {install}")
    installed = importlib.metadata.version("libtpu")
    if not fnmatch.fnmatch(installed, needed):
        raise UserError(f"libtpu {installed} is not what jax {jax.__version__} needs; {install}")


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a step takes at best, in seconds: each resource used at its full rate.

    If all of them work at the same time a step takes as long as the slowest; if nothing overlaps,
    the sum.
    """

    compute: float
    hbm: float
    interconnect: float
    between_slices: float

    @property
    def overlapped(self) -> float:
        return max(dataclasses.astuple(self))

    @property
    def serial(self) -> float:
        return sum(dataclasses.astuple(self))


def estimate(cost: Cost, chip: Chip, device_kind: str) -> Estimate:
    """The roofline of a compiled program on a chip."""
    return Estimate(
        cost.flops / PEAK_BF16_FLOPS[device_kind],
        cost.hbm_bytes / chip.hbm_bandwidth,
        cost.wire_bytes / chip.ici,
        cost.bytes_between_slices / chip.dcn,
    )
