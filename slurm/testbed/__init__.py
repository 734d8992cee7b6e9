"""A real Slurm on one machine, for tests: started as root in its own folder, and removed when stopped."""
