"""Reads the scalars of TensorBoard event files as it does: records of (length, crc, event, crc);
where a session starts, what earlier ones wrote from its step on is forgotten."""

import pathlib
import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog


def read_events(workdir: pathlib.Path) -> list[tuple[str, int, float]]:
    """(name, step, value) of every scalar, in the order written."""
    scalars: list[tuple[str, int, float]] = []
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            if event.session_log.status == SessionLog.START:
                scalars = [scalar for scalar in scalars if scalar[1] < event.step]
            scalars += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            at += 12 + length + 4
    return scalars
