"""What every service shares: server life cycle, interceptors, channels, errors, conversions."""
