"""The host's side of a run: its folder, checkpoints, logs, memory and signals."""
