#!/usr/bin/env bash
# Trains under Slurm, one process per device. After a preemption, a failed node or the
# time limit the job goes back into the queue and on with the run where it was saved.
#
#   sbatch --ntasks=2 launch/slurm.sh --env humanoid --logdir runs/humanoid
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --time=8:00:00 \
#       launch/slurm.sh --env humanoid --logdir runs/humanoid
#
# Submit it from where `python -m iqmjx.train` works. Ask for GPUs by node, never by task:
# process i of a node takes device i, so each has to see all of them.
#SBATCH --job-name=iqmjx
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time limit (Slurm may be a minute early), to this script alone.
#SBATCH --signal=B:USR1@120
set -uo pipefail

main() {
    logdir=$(flag logdir "$@")
    if [[ -z $logdir ]]; then
        echo "usage: sbatch [OPTIONS] launch/slurm.sh --logdir FOLDER [FLAGS]" >&2
        exit 2
    fi
    # A stop by Slurm sends SIGTERM to the processes, which save and end, and to this
    # script, which has to outlive them. SIGTERM to srun alone would kill them unsaved.
    trap : TERM
    trap 'scancel --signal=TERM "$SLURM_JOB_ID"' USR1 # to the processes
    train "$@" &
    wait_for $!
    local code=$?
    # A job that is ending already was cancelled, or goes back into the queue by itself.
    if ((code == 0)) && unfinished "$@" && [[ $(job_state) == RUNNING ]]; then
        scontrol requeue "$SLURM_JOB_ID" || exit 1
    fi
    exit $code
}

train() {
    export PYTHONUNBUFFERED=1
    # Processes wait for each other: where one dies, the others have to go too.
    exec srun --kill-on-bad-exit=1 \
        ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
        python -m iqmjx.train --resume "$@"
}

wait_for() { # PID: its exit code, however many signals come in between
    while kill -0 "$1" 2> /dev/null; do wait "$1"; done
    wait "$1"
}

unfinished() { # ARGUMENTS
    local wanted taken
    wanted=$(flag num_timesteps "$@") # on a resume there may be another than the saved
    wanted=${wanted:-$(grep -Po '"num_timesteps": \K\d+' "$logdir/config.json")}
    taken=$(tail -n 1 "$logdir/metrics.jsonl" | grep -Po '"env_steps": \K\d+')
    ((${taken:-0} < wanted))
}

job_state() {
    squeue --noheader --format=%T --jobs="$SLURM_JOB_ID"
}

flag() { # NAME ARGUMENTS: the value of --NAME VALUE or --NAME=VALUE
    local name=$1
    shift
    while (($#)); do
        case $1 in
            --"$name"=*) echo "${1#*=}" ;;
            --"$name") echo "${2:-}" ;;
        esac
        shift
    done | tail -n 1
}

main "$@"
