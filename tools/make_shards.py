"""Pack radiology images and captions into tar shards.

    python tools/make_shards.py --source ROCOv2/ --out shards/rocov2
    python tools/make_shards.py --table pairs.csv --image-column path --caption-column report \\
        --out shards/mine
    python tools/make_shards.py --source ROCOv2/ --out shards/rocov2 --audit-only
    python tools/make_shards.py --verify --out shards/rocov2

A source is ROCOv2 as Kaggle, Zenodo or Hugging Face give it, ImageCLEFmedical, ROCO v1, or any
table with a column of image paths and one of captions. What is written, and how it is read again:
shards/README.md. Every row that can't be packed stands in rejects.csv with the reason. A packing
that was killed resumes when the same command is given again.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script: tools/ is there

from medclip_oc.make_shards import run

if __name__ == "__main__":
    run()
