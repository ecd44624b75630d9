#!/usr/bin/env bash
# Start a private one-node Slurm (no systemd, no cgroups, nothing written under /etc or /run).
# usage: up.sh STATE_DIR    -> writes STATE_DIR/env.sh to be sourced
set -euo pipefail
S=$(realpath -m "${1:?state dir}"); AUTH=${AUTH:-munge}
mkdir -p "$S"/{ctld,slurmd,log,munge}; chmod 711 "$S"; chmod 700 "$S/munge"
H=$(hostname -s); MEM=$(awk '/MemTotal/{print int($2/1024*0.9)}' /proc/meminfo)
if [ "$AUTH" = munge ]; then
  [ -s "$S/munge/key" ] || { (umask 077; head -c 1024 /dev/urandom > "$S/munge/key"); }
  chmod 755 "$S/munge"
  munged --force --key-file="$S/munge/key" --socket="$S/munge/sock" --pid-file="$S/munge/munged.pid" \
         --log-file="$S/log/munged.log" --seed-file="$S/munge/seed"
  AUTHCONF="AuthType=auth/munge
AuthInfo=socket=$S/munge/sock,cred_expire=5
CredType=cred/munge"
else
  AUTHCONF="AuthType=auth/none
CredType=cred/none"
fi
cat > "$S/slurm.conf" <<CONF
ClusterName=lab
SlurmctldHost=$H(127.0.0.1)
SlurmUser=root
SlurmdUser=root
$AUTHCONF
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobCompType=${JOBCOMP:-jobcomp/none}
JobCompLoc=$S/log/jobcomp.txt
JobAcctGatherType=jobacct_gather/linux
SlurmctldPort=${CTLD_PORT:-16817}
SlurmdPort=${SLURMD_PORT:-16818}
StateSaveLocation=$S/ctld
SlurmdSpoolDir=$S/slurmd
SlurmctldPidFile=$S/slurmctld.pid
SlurmdPidFile=$S/slurmd.pid
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd.log
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=5
MinJobAge=600
SlurmdTimeout=30
InactiveLimit=0
JobRequeue=1
GresTypes=gpu
NodeName=$H NodeAddr=127.0.0.1 CPUs=${SLURM_CPUS:-8} RealMemory=$MEM State=UNKNOWN Gres=gpu:2
PartitionName=debug Nodes=$H Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
CONF
cat > "$S/gres.conf" <<CONF
NodeName=$H Name=gpu File=/dev/null,/dev/zero
CONF
cat > "$S/cgroup.conf" <<CONF
CgroupPlugin=cgroup/v1
CgroupAutomount=no
CONF
echo "export SLURM_CONF=$S/slurm.conf" > "$S/env.sh"
export SLURM_CONF="$S/slurm.conf"
slurmctld -f "$SLURM_CONF"
slurmd -f "$SLURM_CONF" -N "$H"
for i in $(seq 100); do
  st=$(sinfo -h -o %T 2>/dev/null || true)
  [ "$st" = idle ] && { echo "slurm up after $((i*2))/10 s of waiting"; exit 0; }
  sleep 0.2
done
echo "slurm did not come up" >&2; for f in "$S"/log/*.log; do echo "== $f"; tail -n 20 "$f"; done >&2; exit 1
