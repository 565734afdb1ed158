"""What every program stands on: flags, device, process, paths, and a training run's parts."""
