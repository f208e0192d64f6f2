"""Speed and memory of batch norm on this machine: rivals, floors, and what the command prints."""
