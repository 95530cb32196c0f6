"""The launch scripts, with tests/fake_cloud.py in place of gcloud and stand-ins for Slurm."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import fake_cloud
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launching import LAUNCH, WHERE, Cloud, wait_until, write_script

KEEP = str(LAUNCH / "keep.sh")

# A program whose starts end as $CODES says, one after another: an exit status, a signal's name,
# `saves` (a new checkpoint, then exit status 1), `half` (part of one), `sleeps` until SIGTERM, or
# `stays` even then.
STAND_IN = """#!/bin/sh
echo >>starts
echo "start $(grep -c ^ starts) with $*"
code=$(echo "$CODES" | cut -d' ' -f"$(grep -c ^ starts)")
checkpoint=run/checkpoints/$(grep -c ^ starts)0
case ${code:-0} in
saves) mkdir -p "$checkpoint" && : >"$checkpoint/_CHECKPOINT_METADATA"; exit 1 ;;
half) mkdir -p "$checkpoint"; exit 1 ;;
sleeps)
    trap 'echo saved; exit 75' TERM
    echo >>asleep
    while :; do sleep 0.1; done
    ;;
stays)
    trap '' TERM
    echo >>asleep
    while :; do sleep 0.1; done
    ;;
[A-Z]*) kill -s "$code" $$; sleep 9 ;;
*) exit "${code:-0}" ;;
esac
"""


def lines(path: pathlib.Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


class Kept:
    """The stand-in under launch/keep.sh, in a folder of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        write_script(folder / "stand_in", STAND_IN)
        self.log = folder / "kept" / "log"

    def __call__(self, what: str, *arguments: str, **environment: str) -> Any:
        command = [KEEP, what, "kept", *arguments]
        env = {**os.environ, "WAIT": "0", **environment}
        pipes = dict(capture_output=True, text=True, timeout=60)
        return subprocess.run(command, cwd=self.folder, env=env, **pipes)

    def start(self, codes: str, *arguments: str, **environment: str) -> Any:
        command = ("./stand_in", "--workdir=run", *arguments)
        return self("start", *command, CODES=codes, **environment)

    def status(self) -> str:
        return self("status").stdout

    def end(self) -> str:
        """How it is when it has ended."""
        return wait_until(
            lambda: (
                said if not (said := self.status()).startswith(("keep: run", "keep: wait")) else ""
            )
        )

    def count(self) -> int:
        return lines(self.folder / "starts")

    def asleep(self) -> int:
        return lines(self.folder / "asleep")


@pytest.fixture
def kept(tmp_path: pathlib.Path) -> Any:
    kept = Kept(tmp_path)
    yield kept
    kept("stop", STOP_WAIT="0")
    pid = tmp_path / "kept" / "pid"
    if pid.exists():
        os.kill(int(pid.read_text()), signal.SIGKILL)


@pytest.mark.parametrize(
    ("codes", "starts", "how"),
    [
        ("0", 1, "keep: done, newest checkpoint none"),
        ("1 1 0", 3, "keep: done"),
        ("75 75 0", 3, "keep: done"),
        ("KILL ABRT 0", 3, "keep: done"),
        ("TERM saves SEGV 0", 4, "keep: done"),
        ("2", 1, "keep: failed: it would only fail again"),
        ("1 2 0", 2, "keep: failed: it would only fail again"),
        ("127 0", 1, "keep: failed: it would only fail again"),
        ("1 1 1 1", 3, "keep: failed: 2 restarts without a new checkpoint"),
        ("half half half 0", 3, "keep: failed: 2 restarts without a new checkpoint"),
        ("saves saves saves saves 1 0", 6, "keep: done, newest checkpoint 40"),
        ("1 saves 1 1 0", 4, "keep: failed: 2 restarts without a new checkpoint, newest checkp"),
    ],
)
def test_a_command_is_started_again_where_that_can_help(
    kept: Kept, codes: str, starts: int, how: str
) -> None:
    assert kept.start(codes, RESTARTS="2").returncode == 0
    assert kept.end().startswith(how)
    assert kept.count() == starts
    lines = kept.log.read_text().splitlines()
    heads = [line for line in lines if line.startswith("=== ") and "start" in line.split()[2]]
    assert len(heads) == starts
    assert heads[0].endswith(": ./stand_in --workdir=run")
    status = codes.split()[starts - 1].replace("half", "1")
    assert f"ended with exit status {status}, newest checkpoint" in lines[-1]
    # Another start by hand begins the count again.
    assert kept.start("0 " * 9).returncode == 0
    assert kept.end().startswith("keep: done")


def test_one_waits_longer_before_each_restart_without_a_new_checkpoint(kept: Kept) -> None:
    kept.start("1 1 0", WAIT="1")
    began = time.monotonic()
    assert kept.end().startswith("keep: done")
    assert 2.5 < time.monotonic() - began < 30  # 1 + 2 seconds, and the looks at it.


def test_it_goes_on_when_the_terminal_is_gone(kept: Kept) -> None:
    # The shell of a login, whose processes all hear of its end.
    login = subprocess.Popen(
        ["sh", "-c", f"{KEEP} start kept ./stand_in; echo; sleep 60"],
        cwd=kept.folder,
        env={**os.environ, "CODES": "sleeps"},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    wait_until(kept.asleep)
    os.killpg(login.pid, signal.SIGHUP)
    out, _ = login.communicate(timeout=60)  # Nobody holds its output either.
    assert b"keep: started" in out
    time.sleep(0.5)
    assert kept.status().startswith("keep: running, start 1 since ")
    pid = int((kept.folder / "kept" / "pid").read_text())
    assert os.getsid(pid) not in (login.pid, os.getsid(0))


def test_stop_lets_it_save_itself_and_is_the_end(kept: Kept) -> None:
    kept.start("sleeps 0")
    wait_until(kept.asleep)
    done = kept("stop")
    assert (done.returncode, done.stdout.split(",")[0]) == (0, "keep: stopped")
    assert "saved\n" in kept.log.read_text()
    assert "ended with exit status 75" in kept.log.read_text()
    assert kept.count() == 1
    assert kept.status().startswith("keep: stopped")


def test_stop_is_heard_between_two_starts(kept: Kept) -> None:
    kept.start("1 0", WAIT="100")
    wait_until(lambda: kept.status().startswith("keep: waiting for restart 1 of 5"))
    began = time.monotonic()
    assert kept("stop").stdout.startswith("keep: stopped")
    assert time.monotonic() - began < 20
    assert kept.count() == 1


def test_what_does_not_stop_is_said(kept: Kept) -> None:
    kept.start("stays")
    wait_until(kept.asleep)
    done = kept("stop", STOP_WAIT="1")
    assert done.returncode == 1
    assert "running still after 1 s" in done.stderr


def test_what_runs_already_is_not_started_twice(kept: Kept) -> None:
    kept.start("sleeps")
    wait_until(kept.asleep)
    again = kept.start("sleeps")
    assert (again.returncode, again.stdout) == (0, "keep: runs already\n")
    other = kept.start("sleeps", "--config.seed=1")
    assert other.returncode == 2
    assert "another command runs already, stop it first: ./stand_in" in other.stderr
    assert kept.count() == 1


def test_a_lost_keeper_is_said_and_its_command_is_not_doubled(kept: Kept) -> None:
    kept.start("sleeps 0")
    wait_until(kept.asleep)
    pid = int((kept.folder / "kept" / "pid").read_text())
    os.kill(os.getsid(pid), signal.SIGKILL)
    assert kept.status().startswith("keep: running")  # The command itself goes on.
    assert kept.start("sleeps 0").stdout == "keep: runs already\n"
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: kept.status().startswith("keep: lost: its keeper is gone"))
    kept.start("sleeps 0")
    assert kept.end().startswith("keep: done")


def test_status_and_logs_show_what_it_printed(kept: Kept) -> None:
    assert kept.status() == "keep: none, nothing was started here\n"
    assert kept("stop").stdout == "keep: none, nothing was started here\n"
    printf = r"printf 'begins\n10%%\r20%%\r30%%\n'; seq 20 >&2"
    kept("start", "sh", "-c", printf, "--workdir=none")
    assert kept.end().endswith("\n20\n" + kept.log.read_text().splitlines()[-1] + "\n")
    logs = kept("logs").stdout
    assert "begins\n10%\n20%\n30%\n1\n2\n" in logs  # Newlines as Python reads them.


@pytest.mark.parametrize("arguments", [(), ("start",), ("start", "kept"), ("begin", "kept")])
def test_how_to_keep_a_command_is_said(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([KEEP, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert "launch/keep.sh start FOLDER COMMAND" in done.stderr


# Cloud TPUs.


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Any:
    cloud = Cloud(tmp_path)
    yield cloud
    cloud.close()


@pytest.mark.parametrize(
    ("arguments", "environment", "printed"),
    [
        (("create",), {}, "tpu-vm create loop --zone=us-west4-a"),
        (("create",), dict(SPOT="1", SERVICE_ACCOUNT="a@b"), "--spot --service-account=a@b"),
        (("create",), dict(TYPE="v5p-128", SLICES="2"), "queued-resources create loop"),
        (("run", "python", "-m", "m"), {}, "--worker=all '--command=cd looped_jax && "),
        (("run", "python"), dict(SLICES="2"), "queued-resources ssh loop"),
        (("install",), {}, "pip install --quiet --constraint constraints.txt --editable"),
        (("status",), {}, "--worker=all '--command="),
        (("logs", "-f"), {}, "--worker=0 '--command=looped_jax/launch/keep.sh logs keep -f'"),
        (("stop",), {}, "--worker=all '--command=looped_jax/launch/keep.sh stop keep'"),
        (("watch", "python", "-m", "m"), {}, 'launch/keep.sh start "$HOME/keep" python -m m'),
        (("delete",), {}, "tpu-vm delete loop"),
    ],
)
def test_each_step_is_a_command_that_is_printed(
    cloud: Cloud, arguments: tuple[str, ...], environment: dict[str, str], printed: str
) -> None:
    said = cloud(*arguments, DRY_RUN="1", **environment)
    assert printed in said
    assert all(line.startswith("gcloud compute tpus ") for line in said.splitlines())
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((), {}, "A Cloud TPU from nothing to a run"),
        (("create",), {}, "set NAME"),
        (("create",), WHERE, "set TYPE"),
        (("run",), WHERE, "say what to run: run python -m looped_jax.main"),
        (("watch",), WHERE, "say what to run: watch python -m looped_jax.main"),
        (("start",), WHERE, "start is not one of create, install, run, status, logs, stop, delete"),
    ],
)
def test_what_is_missing_is_said(
    arguments: tuple[str, ...], environment: dict[str, Any], message: str
) -> None:
    own = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [str(LAUNCH / "tpu_vm.sh"), *arguments]
    done = subprocess.run(command, env={**own, **environment}, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr


RECORDER = f"""#!{sys.executable}
import os, sys
open(os.environ["HOME"] + "/arguments", "wb").write(b"\\0".join(map(os.fsencode, sys.argv[3:])))
"""


@pytest.fixture(scope="module", params=["sh", "bash"])
def recording_host(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a command's words are on the far side of gcloud."""
    cloud = Cloud(tmp_path_factory.mktemp("cloud"))
    cloud("create")
    write_script(cloud.host() / "looped_jax/launch/keep.sh", RECORDER)
    write_script(cloud.host() / "looped_jax/.venv/bin/activate", "")

    def arrived(words: list[bytes]) -> list[bytes]:
        cloud("run", *words, FAKE_SHELL=request.param)
        return (cloud.host() / "arguments").read_bytes().split(b"\0")

    return arrived


NASTY = [
    "--config.prepare.weights=(('ArXiv',2.0),)",
    *("", " ", "two words", "two  spaces", " at the ends ", "tab\tbed", "~", "~/x", "-n", "--"),
    *("'", "''", '"', "it's", "$HOME", "${x}", "$(id)", "`id`", "\\", "\\\\'", "a\\nb", "%s", "!!"),
    *(
        "a\nb",
        "\n",
        "\n\n",
        "ends\n",
        "\r",
        "*",
        "?",
        "[a]",
        "{a,b}",
        "a;b",
        "a&b",
        "a|b",
        "#",
        "<>",
    ),
    *("⊗ und тест", "=", "x=y", "(", "\x01\x7f"),
]


def test_words_arrive_as_they_were_given(recording_host: Any) -> None:
    words = [b"python", *map(str.encode, NASTY), b"\xff\xfe not UTF-8", b"last"]
    assert recording_host(words) == words


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(
            st.sampled_from("'\"\\$`(){}[]<>|&;*?~#!%= \t\n\rax") | st.characters(codec="utf-8")
        ),
        min_size=1,
        max_size=12,
    )
)
def test_any_words_arrive_as_they_were_given(recording_host: Any, words: list[str]) -> None:
    given_words = [word.replace("\0", "").encode() for word in words]
    assert recording_host([b"python", *given_words]) == [b"python", *given_words]


def stand_in(cloud: Cloud) -> list[str]:
    """The stand-in as a command of a host, which leaves what it writes outside of it."""
    folder = cloud.folder / "shared"
    for number in ("0", "1"):
        (folder / number).mkdir(parents=True)
    begin = f'#!/bin/sh\ncd "{folder}/$(basename "$HOME")"\n'
    script = write_script(folder / "stand_in", begin + STAND_IN.removeprefix("#!/bin/sh\n"))
    return [str(script), f"--workdir={folder / 'run'}"]


def of_hosts(cloud: Cloud, what: str) -> int:
    """`starts` in all, or those that are `asleep`."""
    return sum(lines(path) for path in (cloud.folder / "shared").glob(f"*/{what}"))


def test_a_tpu_from_nothing_to_a_run_that_is_stopped(cloud: Cloud) -> None:
    command = stand_in(cloud)
    cloud("create", HOSTS="2")
    cloud("install")
    for number in (0, 1):
        home = cloud.host(number)
        assert (home / "looped_jax/launch/keep.sh").exists()
        assert not (home / "looped_jax/.git").exists()
        assert (home / "pip").read_text().endswith("--editable .[tpu,gcs]\n")
    assert cloud("run", *command, CODES="1 sleeps").count("keep: started") == 2
    wait_until(lambda: of_hosts(cloud, "asleep") == 2)
    assert cloud("status").count("keep: running, start 2 since") == 2
    assert cloud("logs").count(" start 1 on ") == 1  # Of the first host.
    assert cloud("stop").count("keep: stopped") == 2
    assert of_hosts(cloud, "starts") == 4
    cloud("delete")
    assert cloud.verbs() == ["create", "scp", "install", "run", "ssh", "ssh", "delete"]


def test_another_tpu_takes_the_place_of_one_that_was_taken_away(cloud: Cloud) -> None:
    watch = cloud.start("watch", *stand_in(cloud), CODES="sleeps sleeps 0", SPOT="1", POLL="1")
    wait_until(lambda: of_hosts(cloud, "asleep") == 1)
    fake_cloud.lose("PREEMPTED", cloud.folder)
    wait_until(lambda: of_hosts(cloud, "asleep") == 2)
    fake_cloud.kill(cloud.host())  # As where a host is booted again: nothing is installed anew.
    out, err = watch.communicate(timeout=60)
    assert watch.returncode == 0, (out, err)
    assert out.splitlines()[-1].endswith(" done")
    made = ["create", "scp", "install", "run"]
    assert cloud.verbs() == [*made, "delete", *made, "run"]
    assert all("--spot" in call for call in cloud.calls() if call[3] == "create")
    assert "the TPU is PREEMPTED; creating it, try 2 of 50" in out


def test_a_tpu_whose_run_cannot_go_on_is_not_made_again(cloud: Cloud) -> None:
    said = cloud("watch", *stand_in(cloud), CODES="2", code=1)
    assert "keep: failed: it would only fail again" in said
    assert "start 1 with" in said
    assert cloud.verbs() == ["create", "scp", "install", "run"]


def test_a_watch_ends_with_a_run_that_was_stopped(cloud: Cloud) -> None:
    watch = cloud.start("watch", *stand_in(cloud), CODES="sleeps 0", POLL="1")
    wait_until(lambda: of_hosts(cloud, "asleep") == 1)
    cloud("stop")
    assert watch.communicate(timeout=60)[0].splitlines()[-1].endswith(" stopped")
    assert watch.returncode == os.EX_TEMPFAIL


def test_a_tpu_that_is_not_to_be_had_is_asked_for_so_often(cloud: Cloud) -> None:
    # An empty line: `describe` says that there is none.
    (cloud.folder / "errors").write_text("\nno more capacity\n" * 9)
    said = cloud("watch", *stand_in(cloud), code=1, RECREATE="3")
    assert said.count("no more capacity") == 3
    assert "gave up: 3 TPUs, or tries to get one, without a new checkpoint" in said


def test_a_network_that_fails_is_no_reason_for_another_tpu(cloud: Cloud) -> None:
    cloud("create")
    (cloud.folder / "errors").write_text("cannot reach tpu.googleapis.com\n" * 2)
    said = cloud("watch", *stand_in(cloud), CODES="0")
    assert said.count("the TPU is UNKNOWN") == 2
    assert cloud.verbs() == ["create", "scp", "install", "run"]


def test_checkpoints_in_a_bucket_count(cloud: Cloud, kept: Kept) -> None:
    def save(step: int) -> None:
        folder = cloud.folder / "buckets" / "mine/run" / "checkpoints" / f"{step}"
        write_script(folder / "_CHECKPOINT_METADATA", "")

    save(5), save(400)
    (cloud.folder / "buckets/mine/run/checkpoints/500").mkdir()
    command = ("./stand_in", "--workdir=gs://mine/run")
    kept("start", *command, CODES="1 0", PATH=cloud.environment["PATH"], FAKE_CLOUD=cloud.folder)
    wait_until(lambda: "done" in kept.log.read_text())
    assert kept.log.read_text().splitlines()[-1].endswith("newest checkpoint 400; done")


def test_the_quick_start_on_a_tpu_vm(cloud: Cloud, tmp_path: pathlib.Path) -> None:
    cloud("create")
    cloud("install")
    workdir = tmp_path / "the runs" / "quickstart"
    short = ("--config.train.steps=4", "--config.checkpoint.every=2", "--config.eval.examples=32")
    tasks = "--config.eval.tasks=('group_s3_n7',)"
    command = ("-m", "looped_jax.main", "--config=experiments/quickstart.py", tasks, *short)
    assert "keep: started" in cloud("run", "python", *command, f"--workdir={workdir}")
    wait_until(lambda: "keep: running" not in cloud("status"), 240)
    assert "keep: done, newest checkpoint 4" in cloud("status")
    logs = cloud("logs")
    assert f"plot: {workdir / 'comparison.png'}" in logs
    assert "ended with exit status 0, newest checkpoint 4; done" in logs
    assert (workdir / "looped" / "checkpoints" / "4").is_dir()


# Slurm.


class Slurm:
    """A folder in which launch/slurm.sh is a job, with Slurm's commands as stand-ins."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        (folder / "launch").symlink_to(LAUNCH)
        write_script(folder / "python", STAND_IN)
        # srun: the highest exit status of its tasks, here of one.
        write_script(folder / "bin/srun", '#!/bin/sh\nshift\n"$@"\n')
        for name in ("scontrol", "scancel"):
            write_script(folder / "bin" / name, f'#!/bin/sh\necho {name} "$@" >>asked\n')
        write_script(folder / "bin/squeue", '#!/bin/sh\necho "${STATE:-}"\n')
        # As sbatch does.
        self.script = shutil.copy(LAUNCH / "slurm.sh", folder / "slurm_script")

    def job(self, *arguments: str, restarts: int, codes: str) -> int:
        job = dict(SLURM_JOB_ID="7", SLURM_JOB_NODELIST="n[1-2]", SLURM_RESTART_COUNT=f"{restarts}")
        return self.run(*arguments, CODES=codes, PYTHON="./python", **job).returncode

    def run(self, *arguments: str, **environment: str) -> Any:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        with (self.folder / "slurm-7.out").open("a") as log:
            of_job = "SLURM_JOB_ID" in environment
            return subprocess.run(
                ["sh", str(self.script), *arguments],
                cwd=self.folder,
                env={**os.environ, "PATH": path, **environment},
                stdout=log if of_job else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def asked(self) -> list[str]:
        path = self.folder / "asked"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def slurm(tmp_path: pathlib.Path) -> Slurm:
    return Slurm(tmp_path)


@pytest.mark.parametrize(
    ("codes", "queued"),
    [
        ("75 0", 1),
        ("1 KILL 0", 2),
        ("2 0", 0),
        ("1 1 1 1", 2),
        ("saves saves saves 1 0", 4),
    ],
)
def test_a_job_queues_itself_again_where_that_can_help(
    slurm: Slurm, codes: str, queued: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTARTS", "2")
    arguments = ("--workdir=run", "--config.prepare.weights=(('ArXiv',2.0),)")
    for restarts in range(queued + 1):
        assert len(slurm.asked()) == restarts
        slurm.job(*arguments, restarts=restarts, codes=codes)
    assert slurm.asked() == ["scontrol requeue 7"] * queued
    log = (slurm.folder / "slurm-7.out").read_text()
    assert log.count("=== ") == 2 * (queued + 1)
    assert f"start {queued + 1} on n[1-2]: --workdir=run" in log
    assert f"with -m looped_jax.main {' '.join(arguments)}\n" in log


def test_a_job_that_is_stopped_saves_itself_and_is_not_queued_again(slurm: Slurm) -> None:
    assert slurm.run("stop", "7", STATE="RUNNING").returncode == 0
    assert slurm.asked() == ["scancel --signal=TERM 7"]
    assert slurm.job("--workdir=run", restarts=0, codes="75") == 75
    assert slurm.asked() == ["scancel --signal=TERM 7"]
    assert (slurm.folder / "slurm-7.out").read_text().endswith("newest checkpoint none; stopped\n")
    slurm.run("stop", "8", STATE="PENDING")
    assert slurm.asked()[1:] == ["scancel 8"]


def test_a_jobs_state_and_log_are_shown(slurm: Slurm) -> None:
    slurm.job("--workdir=run", restarts=0, codes="1")
    status = slurm.run("status", "7", STATE="7 PENDING BeginTime").stdout
    assert status.startswith("7 PENDING BeginTime\n=== ")
    assert "waiting for restart 1 of 5" in status
    logs = slurm.run("logs", "7").stdout
    assert logs == (slurm.folder / "slurm-7.out").read_text() and "start 1 with" in logs
    assert "launch/slurm.sh status JOB" in slurm.run("status").stdout
    assert "sbatch launch/slurm.sh" in slurm.run("--workdir=run").stdout


def test_slurm_is_told_to_keep_what_a_restart_needs() -> None:
    lines = (LAUNCH / "slurm.sh").read_text().splitlines()
    told = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--requeue", "--open-mode=append", "--signal=TERM@300"} < told


def test_scripts_are_valid_shell() -> None:
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert [script.name for script in scripts] == ["keep.sh", "slurm.sh", "tpu_vm.sh"]
    for script in scripts:
        assert os.access(script, os.X_OK)
        subprocess.run(["sh", "-n", str(script)], check=True)
