#!/bin/sh
# A run on GPU nodes under Slurm: one process per GPU, found by JAX through Slurm's environment.
#
#   sbatch --nodes=4 launch/slurm.sh --config=experiments/pile_12x2.py --workdir=/shared/runs/12x2 …
#
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --signal=TERM@300
set -eu
# SIGTERM five minutes before the end of the allocation: the run saves and ends, and the same command
# goes on from there.
exec srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" -m looped_jax.main "$@"
