"""One run: its network, its optimization, its checkpoints, on one process or many."""
