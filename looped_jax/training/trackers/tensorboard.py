"""Event files in the run's folder, for TensorBoard."""

import tempfile
import time
from collections.abc import Mapping

from etils import epath
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from looped_jax.storage.buckets import in_bucket, upload
from looped_jax.training.trackers.base import Start

# Between what TensorBoard sees of a run under way.
SECONDS = 30.0


class TensorBoard:
    """Writes in the process's own thread: tensorboardX's SummaryWriter has another one, and waits
    for it for ever once a full disk has ended that."""

    def __init__(self, start: Start):
        # An earlier process may have been killed, or given this up, before it wrote all. So each
        # start's file holds the whole run, and TensorBoard forgets what the earlier ones say.
        self.complete_until = 0
        # What a bucket has is written whole each time, as its objects are, from a copy here.
        self._bucket = start.workdir if in_bucket(start.workdir) else None
        self._copy = tempfile.TemporaryDirectory() if self._bucket else None
        self._file = EventsWriter(f"{self._copy.name if self._copy else start.workdir}/events")
        self._flushed = time.monotonic()
        self._event(Event(step=0, session_log=SessionLog(status=SessionLog.START)))

    def _event(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write_event(event)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        for name, value in scalars.items():
            self._event(Event(step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > SECONDS:
            self.flush()

    def flush(self) -> None:
        self._file.flush()
        self._put()
        self._flushed = time.monotonic()

    def close(self, finished: bool) -> None:
        self._file.close()
        self._put()
        if self._copy:
            self._copy.cleanup()

    def _put(self) -> None:
        if self._copy and self._bucket:
            for path in epath.Path(self._copy.name).iterdir():
                upload(path, self._bucket / path.name)
