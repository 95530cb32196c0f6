#!/bin/sh
# A Cloud TPU from nothing to a run that goes on by itself. POSIX sh. Each step is one gcloud command,
# printed before it runs; DRY_RUN=1 only prints.
#
#   export NAME=loop ZONE=us-west4-a TYPE=v5litepod-64
#   launch/tpu_vm.sh create
#   launch/tpu_vm.sh install
#   launch/tpu_vm.sh run python -m looped_jax.main …     on every host, in the background (keep.sh)
#   launch/tpu_vm.sh status                              how it is there, its last lines
#   launch/tpu_vm.sh logs [-f]                           of the first host
#   launch/tpu_vm.sh stop                                it saves itself and is not started again
#   launch/tpu_vm.sh delete
#   launch/tpu_vm.sh watch python -m looped_jax.main …   all of it, and again when the TPU is lost
#
# SPOT=1           a TPU that may be taken away
# SLICES=2         on every step: two slices of TYPE, joined by the network
# SERVICE_ACCOUNT  that the TPU acts as, for a bucket
# RESTARTS, WAIT   of the run, see launch/keep.sh
# POLL=60          seconds between two looks of `watch`
# RECREATE=50      TPUs, or tries to get one, in a row without a new checkpoint, before it gives up
set -eu
script=$0
if [ $# = 0 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "$script" >&2
    exit 2
fi
: "${NAME:?set NAME, how the TPU is called}" "${ZONE:?set ZONE, e.g. us-west4-a}"
SLICES=${SLICES:-1}
VERSION=${VERSION:-v2-alpha-tpuv5-lite} # The software on the VMs; v5p: v2-alpha-tpuv5, v6e: v2-alpha-tpuv6e.
POLL=${POLL:-60} RECREATE=${RECREATE:-50}

if [ "$SLICES" = 1 ]; then
    kind=tpu-vm on_each=--worker=all on_first=--worker=0 state_field=state
else
    kind=queued-resources on_each='--node=all --worker=all' on_first='--node=0 --worker=0'
    state_field=state.state
fi

# Words as a shell reads them back: the far side gets one string.
quoted() {
    words=
    for word; do
        case $word in
        '' | *[!A-Za-z0-9_./:=,+@%-]*)
            word=$(printf '%s\n' "$word" | LC_ALL=C sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/")
            ;;
        esac
        words="$words $word"
    done
    printf '%s' "${words# }"
}

gcloud_tpu() {
    printf 'gcloud compute tpus %s\n' "$(quoted "$@")"
    [ -n "${DRY_RUN:-}" ] || gcloud compute tpus "$@"
}

# on_hosts WHICH COMMAND; $on_each and $on_first are words of their own.
on_hosts() {
    # shellcheck disable=SC2086
    gcloud_tpu $kind ssh "$NAME" --zone="$ZONE" $1 --command="$2"
}

keep() {
    echo "looped_jax/launch/keep.sh $1 keep"
}

create() {
    : "${TYPE:?set TYPE, e.g. v5litepod-64}"
    set -- "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
        --scopes=https://www.googleapis.com/auth/cloud-platform
    [ -z "${SPOT:-}" ] || set -- "$@" --spot
    [ -z "${SERVICE_ACCOUNT:-}" ] || set -- "$@" --service-account="$SERVICE_ACCOUNT"
    if [ "$SLICES" = 1 ]; then
        gcloud_tpu $kind create "$@" --version="$VERSION"
    else
        gcloud_tpu $kind create "$@" --runtime-version="$VERSION" --node-count="$SLICES" \
            --node-prefix="$NAME"
    fi
}

# A copy of this folder on every host, and a virtual environment with the libraries of TPUs and
# buckets.
install() {
    archive=$(mktemp)
    tar czf "$archive" --exclude='./.*' --exclude=./runs -C "$(dirname "$script")/.." .
    code=0
    # shellcheck disable=SC2086
    gcloud_tpu $kind scp "$archive" "$NAME:looped_jax.tar.gz" --zone="$ZONE" $on_each || code=$?
    rm "$archive"
    [ $code = 0 ] || return $code
    on_hosts "$on_each" "mkdir -p looped_jax && tar xzf looped_jax.tar.gz -C looped_jax && cd looped_jax \
&& { command -v python3.11 || sudo apt-get install --quiet --yes python3.11 python3.11-venv; } \
&& python3.11 -m venv .venv \
&& .venv/bin/pip install --quiet --constraint constraints.txt --editable '.[tpu,gcs]'"
}

run() {
    on_hosts "$on_each" "cd looped_jax && . .venv/bin/activate \
&& RESTARTS=${RESTARTS:-5} WAIT=${WAIT:-5} launch/keep.sh start \"\$HOME/keep\" $(quoted "$@")"
}

status() {
    on_hosts "$on_each" "if [ -e keep ]; then $(keep status); else echo 'keep: none'; fi"
}

delete() {
    if [ "$SLICES" = 1 ]; then
        gcloud_tpu $kind delete "$NAME" --zone="$ZONE" --quiet
    else
        gcloud_tpu $kind delete "$NAME" --zone="$ZONE" --force --quiet
    fi
}

say() {
    echo "=== $(date -u +%Y-%m-%dT%H:%M:%SZ) $*"
}

# The TPU's state, NONE if there is none, or UNKNOWN.
tpu_state() {
    if said=$(gcloud compute tpus $kind describe "$NAME" --zone="$ZONE" \
        --format="value($state_field)" 2>&1); then
        echo "$said" | grep -x '[A-Z_]*' | tail -n 1
        return
    fi
    case $said in
    *NOT_FOUND*) echo NONE ;;
    *) echo "$said" >&2 && echo UNKNOWN ;;
    esac
}

# How the run is on all hosts together: one word of launch/keep.sh, or `unknown`. New checkpoints
# begin the count of TPUs again.
run_state() {
    if ! said=$(status 2>&1); then
        echo "$said" >&2
        state=unknown
        return
    fi
    words=$(echo "$said" | sed -n 's/^keep: \([a-z]*\).*/\1/p')
    for state in "done" failed stopped none lost running; do
        case $words in *$state*) break ;; esac
    done
    checkpoint=$(echo "$said" | sed -n 's/^keep: .*newest checkpoint \([0-9]*\).*/\1/p' | sort -n | tail -n 1)
    if [ -n "$checkpoint" ] && [ "$checkpoint" != "$seen" ]; then
        seen=$checkpoint tries=0 pause=$POLL
        say "running: newest checkpoint $seen"
    fi
}

# One try for another TPU in place of the one that is gone.
recreate() {
    tries=$((tries + 1))
    if [ "$tries" -gt "$RECREATE" ]; then
        say "gave up: $RECREATE TPUs, or tries to get one, without a new checkpoint" >&2
        exit 1
    fi
    say "the TPU is $1; creating it, try $tries of $RECREATE"
    if { [ "$1" = NONE ] || delete; } && create; then
        pause=$POLL
    else
        pause=$((pause * 2 < 600 ? pause * 2 : 600))
    fi
}

watch() {
    if [ -n "${DRY_RUN:-}" ]; then
        create && install && run "$@"
        return
    fi
    tries=0 seen='' pause=$POLL
    while :; do
        tpu=$(tpu_state)
        case $tpu in
        READY | ACTIVE)
            run_state
            case $state in
            none) { say "installing" && install && run "$@"; } || say "that failed; trying again" ;;
            lost) { say "starting again" && run "$@"; } || say "that failed; trying again" ;;
            "done") say "done" && return 0 ;;
            stopped) say "stopped" && return 75 ;;
            failed)
                say "failed: launch/tpu_vm.sh logs" >&2
                status >&2
                return 1
                ;;
            esac
            ;;
        NONE | PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED) recreate "$tpu" ;;
        *) say "the TPU is $tpu" ;;
        esac
        sleep "$pause"
    done
}

what=$1
shift
case $what in
create | install | status | delete) "$what" ;;
run | watch)
    [ $# -gt 0 ] || { echo "$script: say what to run: $what python -m looped_jax.main …" >&2 && exit 2; }
    "$what" "$@"
    ;;
logs) on_hosts "$on_first" "$(keep logs) $(quoted "$@")" ;;
stop) on_hosts "$on_each" "$(keep stop)" ;;
*)
    echo "$script: $what is not one of create, install, run, status, logs, stop, delete, watch" >&2
    exit 2
    ;;
esac
