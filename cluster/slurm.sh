#!/bin/bash
# A Ray cluster inside one Slurm allocation, and one job on it. From the project's root, on a file system that all nodes see:
#
#     uv sync --no-install-project --no-default-groups --group demo
#     sbatch cluster/slurm.sh pipelines/pretrain.py --recipe llip_b16_k64 --shards /data/shards --output /data/llip --workers 128
#
#SBATCH --job-name=llip
#SBATCH --nodes=16
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --output=%x-%j.log
set -euo pipefail

# The job id spreads ports, so that two allocations that share a login network do not meet.
port=$((20000 + SLURM_JOB_ID % 10000))
dashboard=$((30000 + SLURM_JOB_ID % 10000))
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One token for head, workers and the submission below: srun passes the environment on. Anybody else on these nodes gets 401.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python3 -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
export PATH=$PWD/.venv/bin:$PATH
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0

trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT # srun passes the signal on to Ray on every node

srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --block --port="$port" --dashboard-host=0.0.0.0 --dashboard-port="$dashboard" &
if ((SLURM_JOB_NUM_NODES > 1)); then
    others=$((SLURM_JOB_NUM_NODES - 1))
    # A raylet tries for RAY_gcs_rpc_server_reconnect_timeout_s to reach its head.
    srun --nodes="$others" --ntasks="$others" --exclude="$head" \
        ray start --block --address="$head:$port" &
fi

export RAY_API_SERVER_ADDRESS=http://$head:$dashboard
for _ in {1..120}; do
    alive=$(ray list nodes --address "$RAY_API_SERVER_ADDRESS" --filter state=ALIVE --format json 2>/dev/null | grep -c '"node_id"' || true)
    ((alive >= SLURM_JOB_NUM_NODES)) && break
    sleep 5
done
((alive >= SLURM_JOB_NUM_NODES)) || { echo "error: only $alive of $SLURM_JOB_NUM_NODES nodes joined within 10 minutes" >&2; exit 1; }

ray job submit --address "$RAY_API_SERVER_ADDRESS" --runtime-env cluster/runtime_env.yaml --working-dir . -- python "$@"
