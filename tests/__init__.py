"""Tests mirror the package: `tests/data` proves `medclip_oc/data`, and so on."""
