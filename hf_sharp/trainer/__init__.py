"""`SharpTrainer`, with its checks, saving and resuming."""
