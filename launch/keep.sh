#!/bin/sh
# Keeps a command running on this host (Linux, POSIX sh) until it is done, whatever becomes of the
# terminal.
#
#   launch/keep.sh start FOLDER COMMAND…   in the background; what it prints goes to FOLDER/log
#   launch/keep.sh status FOLDER           how it is, its newest checkpoint, its last lines
#   launch/keep.sh logs FOLDER [-f]        what it printed, with -f also what it goes on to print
#   launch/keep.sh stop FOLDER             SIGTERM, on which a run saves itself, and no other start
#
# It is started again after every end but exit status 0 (done), 2 (what the user has to put right
# would only fail again) and 126 or 127 (no such program).
#   RESTARTS=5    at most so many starts in a row without a new checkpoint in its --workdir
#   WAIT=5        seconds before the first of them, doubled before each other, 300 at most
#   STOP_WAIT=300 seconds that `stop` waits for the end
set -u
export LOOPED_JAX_EXIT_STOPPED=75 # Not 0, which is a run that is done.
me=$0
RESTARTS=${RESTARTS:-5} WAIT=${WAIT:-5} STOP_WAIT=${STOP_WAIT:-300}

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$me" >&2
    exit 2
}

say() {
    printf '=== %s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*"
}

# A state is one word, and what there is to say about it.
state() {
    echo "$*" >"$folder/state.new" && mv "$folder/state.new" "$folder/state"
}

how() {
    said=$(cat "$folder/state")
    case $said in
    running* | waiting*) kept || said="lost: its keeper is gone" ;;
    esac
    echo "keep: $said, $(newest) ($(uname -n))"
}

# Whoever keeps the command holds the lock, and so does the command: it is free when both are gone.
kept() {
    ! flock --nonblock "$folder/lock" true
}

workdir_in() {
    workdir=
    while [ $# -gt 0 ]; do
        case $1 in
        --workdir=\~/*) workdir=$HOME/${1#--workdir=\~/} ;;
        --workdir=*) workdir=${1#--workdir=} ;;
        --workdir) workdir=${2:-} ;;
        esac
        shift
    done
    case $workdir in
    ?*/) workdir=${workdir%/} ;;
    esac
    case $workdir in
    '' | /* | *://*) echo "$workdir" ;;
    *) echo "$PWD/$workdir" ;;
    esac
}

# The complete checkpoints of the run, or of the runs one folder below: Orbax writes that file last.
checkpoints() {
    workdir=$(cat "$folder/workdir") last=_CHECKPOINT_METADATA
    for pattern in "$workdir/checkpoints/*/$last" "$workdir/*/checkpoints/*/$last"; do
        case $workdir in
        '') ;;
        gs://*) gcloud storage ls "$pattern" 2>/dev/null ;;
        *) find "$workdir" -maxdepth 4 -path "$pattern" ;;
        esac
    done 2>/dev/null | sed -n "s|/$last\$||p" | grep '/[0-9]*$' | sort -u
}

newest() {
    step=$(checkpoints | sed 's|.*/||' | sort -n | tail -n 1)
    echo "newest checkpoint ${step:-none}"
}

# Whether another start is due after this exit status; says so. How many there have been in a row
# without a new checkpoint is then in $row.
again() {
    row=0
    case $1 in
    0) how="done" ;;
    2 | 126 | 127) how="failed: it would only fail again" ;;
    *)
        checkpoints >"$folder/now"
        if cmp -s "$folder/now" "$folder/seen"; then row=$(cat "$folder/row"); fi
        mv "$folder/now" "$folder/seen"
        row=$((row + 1))
        echo "$row" >"$folder/row"
        if [ -e "$folder/stop" ]; then
            how="stopped"
        elif [ "$row" -gt "$RESTARTS" ]; then
            how="failed: $RESTARTS restarts without a new checkpoint"
        else
            how="waiting for restart $row of $RESTARTS without a new checkpoint"
        fi
        ;;
    esac
    say "ended with exit status $1, $(newest); $how"
    state "$how"
    case $how in waiting*) ;; *) return 1 ;; esac
}

# Sleeps so many seconds, or until it is told to stop.
pause() {
    left=$1
    while [ "$left" -gt 0 ] && [ ! -e "$folder/stop" ]; do
        sleep 1
        left=$((left - 1))
    done
}

keep() {
    start=0 code=0
    while :; do
        start=$((start + 1))
        state "running, start $start since $(date -u +%Y-%m-%dT%H:%M:%SZ)"
        say "start $start on $(uname -n): $*"
        "$@" &
        echo $! >"$folder/pid"
        wait $! && code=0 || code=$?
        rm "$folder/pid"
        again "$code" || return 0
        seconds=$WAIT
        while [ "$row" -gt 1 ]; do
            row=$((row - 1)) seconds=$((seconds * 2))
        done
        pause $((seconds < 300 ? seconds : 300))
        if [ -e "$folder/stop" ]; then
            state "stopped"
            say "stopped before another start"
            return 0
        fi
    done
}

[ $# -ge 2 ] || usage
what=$1 folder=$2
shift 2
case $what in
start)
    [ $# -ge 1 ] || usage
    mkdir -p "$folder" || exit 2
    exec 9>"$folder/lock"
    if ! flock --nonblock 9; then
        printf '%s\n' "$@" | cmp -s - "$folder/command" && echo "keep: runs already" && exit 0
        echo "keep: another command runs already, stop it first: $(tr '\n' ' ' <"$folder/command")" >&2
        exit 2
    fi
    rm -f "$folder/stop" "$folder/row" "$folder/seen" "$folder/pid"
    printf '%s\n' "$@" >"$folder/command"
    workdir_in "$@" >"$folder/workdir"
    state "running, about to start"
    # It inherits the lock.
    setsid nohup "$me" keep "$folder" "$@" </dev/null >>"$folder/log" 2>&1 &
    echo "keep: started, $(uname -n):$folder/log has what it prints"
    ;;
keep) keep "$@" ;;
again) # CODE COMMAND…: for a scheduler that does the starting.
    mkdir -p "$folder" || exit 2
    code=$1
    shift
    workdir_in "$@" >"$folder/workdir"
    again "$code"
    ;;
status)
    if [ ! -e "$folder/state" ]; then
        echo "keep: none, nothing was started here"
        exit 0
    fi
    how
    tail -n 10 "$folder/log" | tr '\r' '\n' | tail -n 10
    ;;
logs)
    if [ "${1:-}" = -f ]; then exec tail -n 50 -f "$folder/log"; fi
    cat "$folder/log"
    ;;
stop)
    if [ ! -e "$folder/state" ]; then
        echo "keep: none, nothing was started here"
        exit 0
    fi
    : >"$folder/stop"
    told='' left=$STOP_WAIT
    while kept; do
        # It may be between two starts.
        pid=$(cat "$folder/pid" 2>/dev/null)
        if [ -n "$pid" ] && [ "$pid" != "$told" ]; then
            kill -TERM "$pid" && told=$pid
        fi
        if [ "$left" -le 0 ]; then
            echo "keep: running still after $STOP_WAIT s; it will not be started again" >&2
            exit 1
        fi
        sleep 1
        left=$((left - 1))
    done
    read -r word _ <"$folder/state"
    case $word in
    running* | waiting*) state "stopped" ;; # Its keeper was gone.
    esac
    how
    ;;
*) usage ;;
esac
