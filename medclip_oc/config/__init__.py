"""Settings: one dataclass per owner, filled from YAML and the command line. No torch here."""
