"""What the worker asks of the other services, and where their replicas are."""
