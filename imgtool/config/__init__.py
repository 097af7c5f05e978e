"""What an experiment is, and how its YAML is read, checked and edited."""
