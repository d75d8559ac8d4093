"""A real Slurm on this machine, for tests: `python -m tests.cluster start`."""
