"""Memory and disk: dirty tracking, ordering, transfer, post-copy; one memory process per VM."""
