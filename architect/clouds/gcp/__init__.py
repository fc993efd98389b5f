"""Google Compute Engine: notices by the metadata server (`metadata`)."""
