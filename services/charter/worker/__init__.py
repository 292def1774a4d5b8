"""The training process of one run: a gRPC client of the services that owns all training state."""
