"""The REST interface: routes into control-plane use cases."""
