"""How busy many GPUs are kept: the service's own scheduling, on virtual time."""
