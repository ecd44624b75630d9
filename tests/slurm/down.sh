#!/usr/bin/env bash
# Stop only what up.sh started: cancel jobs, wait for the step daemons, then end the daemons by pid file.
S=$(realpath -m "${1:?state dir}"); export SLURM_CONF="$S/slurm.conf"
scancel -u "$(id -un)" 2>/dev/null || true
for i in $(seq 100); do [ -z "$(squeue -h 2>/dev/null)" ] && break; sleep 0.1; done
for f in "$S"/slurmd*.pid "$S"/slurmctld.pid "$S"/munge/munged.pid; do
  [ -s "$f" ] || continue
  p=$(cat "$f"); kill "$p" 2>/dev/null || true
  for i in $(seq 100); do kill -0 "$p" 2>/dev/null || break; sleep 0.1; done
  kill -0 "$p" 2>/dev/null && echo "pid $p ($f) still alive" || true
done
