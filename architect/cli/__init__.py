"""The command line: parse, call the REST client, print."""
