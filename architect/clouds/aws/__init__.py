"""AWS EC2: notices by the instance metadata service (`imds`)."""
