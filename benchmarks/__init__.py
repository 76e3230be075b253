"""What Conveyor costs: run `python -m benchmarks` on a machine that does nothing else."""
