"""The provider contract and one folder per cloud: notices, and (local) hosts made of network namespaces."""
