"""What every process needs: clock, entropy, TLS, RPC channels, supervision, logging."""
