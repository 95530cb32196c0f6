import os
import signal

from etils import epath

from looped_jax.training.profile import STEPS, ProfileOnSignal


def test_a_signal_records_the_next_steps(tmp_path: epath.Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    profile = ProfileOnSignal(epath.Path(tmp_path))
    profile.before(3)
    assert not list(tmp_path.rglob("*.xplane.pb"))
    os.kill(os.getpid(), signal.SIGUSR1)
    for step in range(4, 5 + STEPS):
        profile.before(step)
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
    profile.close()
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_run_that_ends_while_recording_keeps_what_there_is(tmp_path: epath.Path) -> None:
    profile = ProfileOnSignal(epath.Path(tmp_path))
    os.kill(os.getpid(), signal.SIGUSR1)
    profile.before(1)
    profile.close()
    assert len(list(tmp_path.rglob("*.xplane.pb"))) == 1
