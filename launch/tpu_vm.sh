#!/bin/sh
# A Cloud TPU from nothing to a run. Each step is one gcloud command, printed before it runs;
# DRY_RUN=1 only prints.
#
#   NAME=loop ZONE=us-west4-a TYPE=v5litepod-64 launch/tpu_vm.sh create
#   NAME=loop ZONE=us-west4-a                   launch/tpu_vm.sh install
#   NAME=loop ZONE=us-west4-a                   launch/tpu_vm.sh run python -m looped_jax.main …
#   NAME=loop ZONE=us-west4-a                   launch/tpu_vm.sh delete
#
# SLICES=2 on every step: two slices of TYPE, joined by the network.
set -eu
if [ $# = 0 ]; then
    sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
: "${NAME:?set NAME, how the TPU is called}" "${ZONE:?set ZONE, e.g. us-west4-a}"
SLICES=${SLICES:-1}
VERSION=${VERSION:-v2-alpha-tpuv5-lite} # The software on the VMs; v2-alpha-tpuv5 for v5p.

gcloud_tpu() {
    echo "gcloud compute tpus $*"
    [ -n "${DRY_RUN:-}" ] || gcloud compute tpus "$@"
}

on_all() {
    if [ "$SLICES" = 1 ]; then
        gcloud_tpu tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$1"
    else
        gcloud_tpu queued-resources ssh "$NAME" --zone="$ZONE" --node=all --worker=all --command="$1"
    fi
}

case "$1" in
create)
    : "${TYPE:?set TYPE, e.g. v5litepod-64}"
    if [ "$SLICES" = 1 ]; then
        gcloud_tpu tpu-vm create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" --version="$VERSION"
    else
        gcloud_tpu queued-resources create "$NAME" --zone="$ZONE" --accelerator-type="$TYPE" \
            --runtime-version="$VERSION" --node-count="$SLICES" --node-prefix="$NAME"
    fi
    ;;
install)
    # A copy of this folder on every host, and a virtual environment with the TPU's libraries.
    archive=$(mktemp)
    tar czf "$archive" --exclude='./.*' --exclude=./runs -C "$(dirname "$0")/.." .
    if [ "$SLICES" = 1 ]; then
        gcloud_tpu tpu-vm scp "$archive" "$NAME:looped_jax.tar.gz" --zone="$ZONE" --worker=all
    else
        gcloud_tpu queued-resources scp "$archive" "$NAME:looped_jax.tar.gz" --zone="$ZONE" \
            --node=all --worker=all
    fi
    rm "$archive"
    on_all "mkdir -p looped_jax && tar xzf looped_jax.tar.gz -C looped_jax && cd looped_jax \
&& { command -v python3.11 || sudo apt-get install --quiet --yes python3.11 python3.11-venv; } \
&& python3.11 -m venv .venv \
&& .venv/bin/pip install --quiet --constraint constraints.txt --editable '.[tpu]'"
    ;;
run)
    shift
    on_all "cd looped_jax && . .venv/bin/activate && $*"
    ;;
delete)
    if [ "$SLICES" = 1 ]; then
        gcloud_tpu tpu-vm delete "$NAME" --zone="$ZONE" --quiet
    else
        gcloud_tpu queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
    fi
    ;;
*)
    echo "$0: $1 is not one of create, install, run, delete" >&2
    exit 2
    ;;
esac
