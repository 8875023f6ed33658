"""Bytes of picture files to pixels, and back: JPEG, PNG, DICOM and the rest; what a shard keeps."""
