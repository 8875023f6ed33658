"""Processes, devices, memory, signals and the disk: what every long piece of work stands on."""
