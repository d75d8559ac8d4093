#!/bin/bash

# Parameters
#SBATCH --account=xyz@v100
#SBATCH --comment='fl-0123456789ab pack ba9876543210'
#SBATCH --cpus-per-task=4
#SBATCH --hint=nomultithread
#SBATCH --job-name=fl-0123456789ab-pack
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/study/tasks/submissions/fl-0123456789ab/%j_0_log.out
#SBATCH --partition=prepost
#SBATCH --requeue
#SBATCH --signal=USR2@360
#SBATCH --time=1190
#SBATCH --wckey=''

# setup
source /etc/profile
module purge
module load pytorch-gpu/py3/2.8.0
export TORCH_HOME="$WORK/torch"
set +eu; set +o pipefail; trap - ERR EXIT
export PYTHONPATH=/study/tasks/code/0123456789abcdef${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export OMP_NUM_THREADS=4
cd /study/tasks/submissions/fl-0123456789ab
element=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
rm -f "${element}_submitted.pkl.save_tmp"
ln -sf task.pkl "${element}_submitted.pkl"

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /study/tasks/submissions/fl-0123456789ab/%j_%t_log.out --kill-on-bad-exit=1 --cpus-per-task=4 bash -c 'trap "" USR2 TERM; exec "$0" "$@"' /bin/python -u -m submitit.core._submit /study/tasks/submissions/fl-0123456789ab


# teardown
/bin/python -m jobs.again /study/tasks/submissions/fl-0123456789ab /study/tasks/snapshots/0123456789abcdef.json $?
code=$?
rm -f "${element}_submitted.pkl" "${element}"_*_result.pkl
exit $code