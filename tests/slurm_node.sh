#!/usr/bin/env bash
# A Slurm cluster of one node, this machine, in one folder: no systemd, no cgroups.
#
#   tests/slurm_node.sh start DIR     as root; then: export SLURM_CONF=DIR/slurm.conf
#   tests/slurm_node.sh stop DIR
#
# Needs munge and slurm-wlm (Debian's names). The node says that it has four CPUs,
# whatever it has: tasks share what there is.
set -euo pipefail
usage="usage: slurm_node.sh start|stop DIR"
action=${1:?$usage}
dir=${2:?$usage}

start() {
    mkdir -p "$dir"/{state,spool}
    dir=$(cd "$dir" && pwd)
    chmod 755 "$dir"
    (umask 077 && head -c 1024 /dev/urandom > "$dir/munge.key")
    munged --force --socket="$dir/munge.socket" --key-file="$dir/munge.key" \
        --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" \
        --seed-file="$dir/munged.seed" --num-threads=2 2> "$dir/munged.stderr"
    configuration > "$dir/slurm.conf"
    export SLURM_CONF=$dir/slurm.conf
    slurmctld -c > "$dir/slurmctld.stderr" 2>&1
    slurmd -N localhost -c > "$dir/slurmd.stderr" 2>&1
    for _ in {1..100}; do
        [[ $(sinfo --noheader --format=%T 2> /dev/null) == idle ]] && return
        sleep 0.2
    done
    tail -n 20 "$dir"/*.log >&2
    stop
    exit 1
}

configuration() {
    local ports
    ports=$(python3 -c '
import socket
sockets = [socket.create_server(("", 0)) for _ in range(2)]
print(*[s.getsockname()[1] for s in sockets])')
    cat << CONF
ClusterName=one
SlurmctldHost=$(hostname)(localhost)
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
SlurmUser=root
# A requeued job waits for cred_expire to pass: two minutes where it is not set.
AuthInfo=socket=$dir/munge.socket,cred_expire=5
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=2
# The tasks find each other by the node's name, so it is one that resolves everywhere.
NodeName=localhost NodeHostname=$(hostname) CPUs=4 State=UNKNOWN
# A job in high takes the CPUs of those in low.
PartitionName=low Nodes=localhost Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=high Nodes=localhost MaxTime=INFINITE PriorityTier=2
CONF
}

stop() {
    dir=$(cd "$dir" && pwd)
    for daemon in slurmd slurmctld munged; do
        if [[ -s $dir/$daemon.pid ]]; then
            kill "$(< "$dir/$daemon.pid")" || true
        fi
    done
}

case $action in
    start) start ;;
    stop) stop ;;
    *) echo "$usage" >&2 && exit 2 ;;
esac
