#!/bin/sh
# A run on GPU nodes under Slurm that goes on by itself: one process per GPU, found by JAX through
# Slurm's environment. POSIX sh; to be called in the folder of the project.
#
#   sbatch --nodes=4 launch/slurm.sh --config=experiments/pile_12x2.py --workdir=/shared/runs/12x2 …
#   launch/slurm.sh status JOB      how it is, its last lines
#   launch/slurm.sh logs JOB [-f]
#   launch/slurm.sh stop JOB        it saves itself and is not queued again (scancel does not wait)
#
# It is queued again when the time is over, it is preempted or it crashes, but not after an error that
# the user has to put right, nor more than RESTARTS (5) times in a row without a new checkpoint.
#
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
#SBATCH --signal=TERM@300
set -u

say() {
    printf '=== %s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*"
}

case ${1:-} in
status | logs | stop)
    [ $# -ge 2 ] || { echo "launch/slurm.sh $1 JOB" >&2 && exit 2; }
    log=slurm-$2.out keep=slurm-$2.keep
    ;;
esac
case ${1:-} in
status)
    squeue --jobs="$2" --format='%i %T %r' 2>/dev/null || echo "job $2 is not in the queue"
    grep '^===' "$log" | tail -n 2
    tail -n 10 "$log" | tr '\r' '\n' | tail -n 10
    ;;
logs)
    if [ "${3:-}" = -f ]; then exec tail -n 50 -f "$log"; fi
    cat "$log"
    ;;
stop)
    mkdir -p "$keep" && : >"$keep/stop" || exit 1
    case $(squeue --jobs="$2" --noheader --format=%T) in
    RUNNING) scancel --signal=TERM "$2" ;; # To the processes, not to this script.
    *) scancel "$2" ;;
    esac
    ;;
*)
    # In a job. SIGTERM goes to the processes five minutes before the end of the allocation: the run
    # saves itself, ends with 75 and is queued again.
    : "${SLURM_JOB_ID:?sbatch launch/slurm.sh … starts a run}"
    say "start $((${SLURM_RESTART_COUNT:-0} + 1)) on $SLURM_JOB_NODELIST: $*"
    # A process that fails ends the others through JAX. Slurm would do so sooner, and then say with
    # what signal they died, not that the first one failed with 2.
    export LOOPED_JAX_EXIT_STOPPED=75 # Not 0, which is a run that is done.
    srun --kill-on-bad-exit=0 "${PYTHON:-.venv/bin/python}" -m looped_jax.main "$@"
    code=$?
    # The path of this script is Slurm's copy.
    if launch/keep.sh again "slurm-$SLURM_JOB_ID.keep" "$code" "$@"; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit "$code"
    ;;
esac
