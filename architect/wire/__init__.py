"""Messages, framing and versions: bytes in, values out. Nothing here does I/O."""
