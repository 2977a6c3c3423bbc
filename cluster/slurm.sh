#!/bin/bash
# A Ray cluster inside one Slurm allocation, and one job on it. From the project's root, on a file system that all nodes see:
#
#     uv sync --no-install-project --no-default-groups --group demo --compile-bytecode
#     sbatch cluster/slurm.sh pipelines/pretrain.py --recipe llip_b16_k64 --shards /data/shards --output /data/llip --workers 128
#
# The job saves and queues itself again before its time is up; Slurm queues it again where a node fails. To save and stop:
# scancel --signal=TERM --batch JOB
#
#SBATCH --job-name=llip
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

requeue() {
    echo "queued again: $1" >&2
    trap '' TERM # Slurm's own, which ends what is queued again
    scontrol requeue "$SLURM_JOB_ID"
    exit 143
}
# What killed an attempt may have passed; one that died within RETRY_AFTER seconds would die again.
retry() {
    echo "error: $1" >&2
    ((SECONDS < ${RETRY_AFTER:-600})) || requeue "$1"
    exit 1
}
save() { ray job stop llip || true; } # SIGTERM, on which the run saves; returns once it has ended
# An answer of Ray's server; Ray's own commands take seconds of imports for it.
ask() {
    python3 -c 'import os, sys, urllib.request as web
token = {"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]}
print(web.urlopen(web.Request(os.environ["RAY_API_SERVER_ADDRESS"] + sys.argv[1], headers=token), timeout=60).read().decode())' "$1" 2>/dev/null
}

trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT # srun passes the signal on to Ray on every node
trap 'save; requeue "the time limit is near"' USR1
trap 'save; exit 143' TERM

# The job id spreads ports, so that two allocations that share a node or a login network do not meet.
port=$((20000 + SLURM_JOB_ID % 600 * 16))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p') # a node's name need not resolve

# One token for head, workers and the submission below: srun passes the environment on. Anybody else on these nodes gets 401.
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
export RAY_API_SERVER_ADDRESS=http://$address:$((port + 2))
export PATH=$PWD/.venv/bin:$PATH
cpus=${SLURM_CPUS_PER_TASK:-1}
# A raylet waits 15 s for its agent, which reads a thousand files; where that takes longer the node ends, and is started again
# with these files in memory.
node="ray start --block --num-cpus=$cpus \
    --dashboard-agent-listen-port=\$((p)) --dashboard-agent-grpc-port=\$((p + 1)) --metrics-export-port=\$((p + 2)) --runtime-env-agent-port=\$((p + 3))"

# --cpus-per-task: srun does not take it over from sbatch.
start_head() {
    srun --nodes=1 --ntasks=1 --nodelist="$head" --cpus-per-task="$cpus" \
        bash -c "p=$((port + 4)); exec $node --head --port=$port --ray-client-server-port=$((port + 1)) \
            --dashboard-host=0.0.0.0 --dashboard-port=$((port + 2))" &
    ray_head=$!
}
# A head that dies is started again, twice.
head_is_alive() {
    kill -0 "$ray_head" 2>/dev/null && return
    ((starts++ < 3)) || retry "Ray's head on $head did not start"
    start_head
}
starts=1
start_head
others=$((SLURM_JOB_NUM_NODES - 1)) alive=0
while ((alive < SLURM_JOB_NUM_NODES)); do
    if ((SECONDS >= 600)); then # a job that never had its nodes may never get them
        missing="only $alive of $SLURM_JOB_NUM_NODES nodes joined within 10 minutes"
        ((!${SLURM_RESTART_COUNT:-0})) || requeue "$missing"
        echo "error: $missing" >&2
        exit 1
    fi
    sleep 2
    head_is_alive
    alive=$(ask '/api/v0/nodes?limit=10000' | grep -o '"state": "ALIVE"' | wc -l || true)
    if ((alive && others)); then # not before: all would read their environment at once, and time out
        srun --nodes="$others" --ntasks="$others" --exclude="$head" --cpus-per-task="$cpus" \
            bash -c "p=$((port + 8)); while :; do $node --address=$address:$port; sleep 5; done" &
        others=0
    fi
done

ray job submit --no-wait --submission-id llip --runtime-env cluster/runtime_env.yaml --working-dir . -- python "$@"
# The log's connection may break in a month; the job's state says when it has ended.
state=RUNNING code=
while [[ $state == PENDING || $state == RUNNING ]]; do
    ray job logs --follow llip &
    wait -n "$!" "$ray_head" || true
    kill -0 "$ray_head" 2>/dev/null || retry "Ray's head on $head ended"
    sleep 1
    answer=$(ask /api/jobs/llip) || continue
    state=$(sed -n 's/.*"status": "\([A-Z]*\)".*/\1/p' <<<"$answer")
    code=$(sed -n 's/.*"driver_exit_code": \(-\?[0-9]*\).*/\1/p' <<<"$answer")
done
case $state,$code in
    SUCCEEDED,*) exit 0 ;;
    STOPPED,* | FAILED,143) exit 143 ;;
    FAILED, | FAILED,-* | FAILED,137) retry "the driver was killed${code:+, exit code $code}" ;;
    *) exit "${code:-1}" ;;
esac
