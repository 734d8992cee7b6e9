"""A real Slurm on one machine, for tests: started as root in a folder of its own, and stopped without a
trace.
"""
