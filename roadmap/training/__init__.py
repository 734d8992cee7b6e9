"""One run: its network, its optimisation, its checkpoints, on one process or many."""
