"""Values only: ids, specs, sizes, states and their transition tables. Imports nothing of ours but errors."""
