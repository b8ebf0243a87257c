"""What the commands are told: options, flags and YAML files, and the errors about them."""
